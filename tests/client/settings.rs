//! Settings: what cannot work is refused before anything is sent, with words that name it; what can
//! arrives on the wire as it was meant; and nothing secret is ever shown.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dflockd_client::server::{Server, ServerConfig};
use dflockd_client::{
    AsyncDistributedLock, AsyncDistributedSemaphore, Builder, ClientTarget, Error, ErrorKind, LockClient,
    LockOptions,
};

use crate::faces::{Enqueued, Face, on_both_faces};
use crate::peers::{Peers, TOKEN, Wire, peer, script, sound};

const S: Duration = Duration::from_secs(1);
const MOST: Duration = Duration::from_secs(9_223_372_036);

on_both_faces!(
    nothing_shows_a_secret,
    times_go_up_to_whole_seconds_on_the_wire,
    what_is_not_set_is_left_to_the_server,
    one_locks_settings_leave_the_clients_alone,
    the_longest_lease_is_granted_renewed_and_released,
    a_sharding_strategy_that_is_out_of_range_is_an_error_at_use,
);

fn nobody() -> Peers {
    Peers::new(|host, _| panic!("{host} was dialled"))
}

fn builder() -> Builder<ClientTarget> {
    LockClient::builder().dial(nobody())
}

#[track_caller]
fn refused<T>(outcome: Result<T, Error>, fault: &str) {
    let error = outcome.err().unwrap_or_else(|| panic!("taken, in spite of: {fault}"));
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.is_invalid_input());
    assert_eq!(error.to_string(), format!("invalid input: {fault}"));
}

#[test]
fn a_key_that_cannot_be_sent_is_refused() {
    let long = "k".repeat(257);
    let keys = [
        ("", "key is empty"),
        (" ", "key has whitespace at byte 0"),
        ("two words", "key has whitespace at byte 3"),
        ("tab\tbed", "key has whitespace at byte 3"),
        ("new\nline", "key has whitespace at byte 3"),
        ("return\r", "key has whitespace at byte 6"),
        ("no\u{a0}break", "key has whitespace at byte 2"),
        (&*long, "key is 257 bytes long, the limit is 256"),
    ];
    for (key, fault) in keys {
        refused(AsyncDistributedLock::builder(key).dial(nobody()).build(), fault);
        refused(AsyncDistributedSemaphore::builder(key, 2).dial(nobody()).build(), fault);
        refused(builder().build().unwrap().lock(key), fault);
        refused(builder().build().unwrap().semaphore(key, 2), fault);
    }
    for key in [&*"k".repeat(256), "schlüssel", "\u{1}", "ключ:🔑"] {
        assert_eq!(builder().build().unwrap().lock(key).unwrap().key().to_text(), key);
    }
}

#[test]
fn a_limit_that_cannot_be_sent_is_refused() {
    for (limit, fault) in [
        (0, "limit is 0, the least is 1"),
        (1 << 63, "limit is 9223372036854775808, the most is 9223372036854775807"),
    ] {
        refused(AsyncDistributedSemaphore::builder("k", limit).dial(nobody()).build(), fault);
        refused(builder().build().unwrap().semaphore("k", limit), fault);
    }
    assert_eq!(builder().build().unwrap().semaphore("k", (1 << 63) - 1).unwrap().limit(), (1 << 63) - 1);
}

#[test]
fn times_that_cannot_be_sent_are_refused() {
    let past = MOST + Duration::from_nanos(1);
    refused(builder().lease_ttl(Duration::ZERO).build(), "lease_ttl is 0, the least is 1 s");
    let too_long = |field: &str| format!("{field} is 9223372037 s, the limit is 9223372036 s");
    refused(builder().lease_ttl(past).build(), &too_long("lease_ttl"));
    refused(builder().acquire_timeout(past).build(), &too_long("acquire_timeout"));
    refused(builder().connect_timeout(past).build(), &too_long("connect_timeout"));
    refused(builder().keepalive_interval(past).build(), &too_long("keepalive_interval"));
    refused(builder().request_timeout(past).build(), &too_long("request_timeout"));
    refused(builder().request_timeout(Duration::ZERO).build(), "request_timeout is 0, it must be longer");
    refused(builder().max_stats_bytes(0).build(), "max_stats_bytes is 0, the least is 1");
    refused(builder().connect_timeout(Duration::ZERO).build(), "connect_timeout is 0, it must be longer");
    refused(
        builder().keepalive_interval(Duration::ZERO).build(),
        "keepalive_interval is 0, it must be longer",
    );
    let lock = builder().build().unwrap().lock("k").unwrap();
    refused(
        lock.with_options(LockOptions::new().lease_ttl(Duration::ZERO)),
        "lease_ttl is 0, the least is 1 s",
    );
    refused(
        lock.with_options(LockOptions::new().lease_ttl(Duration::MAX)),
        &format!("lease_ttl is {} s, the limit is 9223372036 s", u64::MAX),
    );
    refused(lock.with_options(LockOptions::new().acquire_timeout(past)), &too_long("acquire_timeout"));
    let fine = builder().lease_ttl(MOST).acquire_timeout(Duration::ZERO).connect_timeout(S / 1000);
    assert!(fine.keepalive_interval(MOST).build().is_ok());
}

#[tokio::test]
async fn times_that_cannot_be_sent_are_refused_at_each_use_too() {
    let lock = builder().build().unwrap().lock("k").unwrap();
    let fault = lock.acquire_within(MOST + S).await;
    refused(fault, "timeout is 9223372037 s, the limit is 9223372036 s");
}

#[test]
fn a_pace_that_cannot_work_is_refused() {
    for ratio in [0.0, -0.5, 1.0, 7.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let fault = format!("renew_ratio is {ratio}, it must be above 0 and below 1");
        refused(builder().renew_ratio(ratio).build(), &fault);
    }
    for jitter in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
        let fault = format!("renew_jitter is {jitter}, the range is 0 to 1");
        refused(builder().renew_jitter(jitter).build(), &fault);
    }
    for (ratio, jitter) in [(f64::MIN_POSITIVE, 0.0), (0.999, 1.0)] {
        assert!(builder().renew_ratio(ratio).renew_jitter(jitter).build().is_ok());
    }
}

#[test]
fn servers_that_cannot_be_dialled_are_refused() {
    let none: [(&str, u16); 0] = [];
    refused(builder().servers(none).build(), "servers is empty, the minimum is 1");
    refused(builder().servers([("a", 1), ("", 6388)]).build(), "host is empty");
    refused(builder().servers([("a b", 6388)]).build(), "host \"a b\" has whitespace");
    refused(
        builder().servers([("[::1]", 6388)]).build(),
        "host \"[::1]\" has brackets, give the address without them",
    );
    refused(builder().servers([("a", 1), ("b", 0)]).build(), "port is 0, the range is 1 to 65535");
}

#[test]
fn an_auth_token_that_cannot_be_sent_is_refused_and_not_shown() {
    let long = "hunter2".repeat(10_000);
    for (token, fault) in [
        ("", "auth_token is empty"),
        ("hunter2\nhunter2", "auth_token has a line break"),
        ("hunter2\r", "auth_token has a line break"),
        (&*long, "auth_token is 70000 bytes long, the limit is 65536"),
    ] {
        refused(builder().auth_token(token).build(), fault);
    }
    assert!(builder().auth_token("t".repeat(65536)).build().is_ok());
}

/// The requests that a client makes over its first connection, which answers each in order.
fn listening(answers: &'static [&'static str]) -> (Peers, Arc<Mutex<Vec<String>>>) {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let note = heard.clone();
    let dial = Peers::new(move |_, _| {
        let note = note.clone();
        peer(move |far| async move {
            let mut wire = Wire::new(far);
            let mut answers = answers.iter();
            while let Some(request) = wire.request().await {
                note.lock().unwrap().push(request);
                wire.send(answers.next().unwrap_or(&"error\n")).await;
            }
        })
    });
    (dial, heard)
}

async fn times_go_up_to_whole_seconds_on_the_wire(face: Face) {
    let times = [
        (Duration::from_nanos(1), "1"),
        (S, "1"),
        (S + Duration::from_nanos(1), "2"),
        (Duration::from_millis(2500), "3"),
        (MOST, "9223372036"),
        (MOST - Duration::from_nanos(1), "9223372036"),
    ];
    for (time, seconds) in times {
        let (dial, heard) = listening(&["timeout\n", "timeout\n", "queued\n", "timeout\n"]);
        let client = face.build(LockClient::builder().dial(dial).acquire_timeout(time).lease_ttl(time));
        let lock = client.lock("k").unwrap().isolated();
        assert!(lock.acquire().await.is_err());
        assert!(client.semaphore("s", 3).unwrap().isolated().acquire_within(time).await.is_err());
        let Enqueued::Queued(ticket) = lock.enqueue().await.unwrap() else { panic!("the peer said queued") };
        assert!(ticket.wait(time).await.is_err());
        let expected = [
            format!("l k {seconds} {seconds}"),
            format!("sl s {seconds} 3 {seconds}"),
            format!("e k {seconds}"),
            format!("w k {seconds}"),
        ];
        assert_eq!(*heard.lock().unwrap(), expected, "{time:?}");
    }
}

async fn what_is_not_set_is_left_to_the_server(face: Face) {
    let (dial, heard) = listening(&["timeout\n", "timeout\n", "queued\n"]);
    let client = face.build(LockClient::builder().dial(dial));
    assert!(client.lock("k").unwrap().isolated().acquire().await.is_err());
    assert!(client.lock("k").unwrap().isolated().try_acquire().await.unwrap().is_none());
    drop(client.semaphore("k", 2).unwrap().enqueue().await.unwrap());
    tokio::time::sleep(S).await;
    assert_eq!(*heard.lock().unwrap(), ["l k 10", "l k 0", "se k 2", "sw k 0"]);
}

async fn one_locks_settings_leave_the_clients_alone(face: Face) {
    let (dial, heard) = listening(&["timeout\n", "timeout\n", "timeout\n"]);
    let client = face.build(LockClient::builder().dial(dial).acquire_timeout(4 * S).lease_ttl(7 * S));
    let lock = client.lock("k").unwrap();
    let quick = lock.with(LockOptions::new().acquire_timeout(2 * S)).unwrap();
    let short = quick.with(LockOptions::new().lease_ttl(S)).unwrap();
    for lock in [short, quick, lock] {
        assert!(lock.isolated().acquire().await.is_err());
    }
    assert_eq!(*heard.lock().unwrap(), ["l k 2 1", "l k 2 7", "l k 4 7"]);
}

#[tokio::test(start_paused = true)]
async fn a_key_is_tried_over_the_shared_connection_and_waited_for_over_another() {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let note = heard.clone();
    let dial = Peers::new(move |_, nth| {
        let note = note.clone();
        peer(move |far| async move {
            let mut wire = Wire::new(far);
            while let Some(request) = wire.request().await {
                note.lock().unwrap().push((nth, request));
                wire.send("timeout\n").await;
            }
        })
    });
    let client = LockClient::builder().dial(dial).lease_ttl(7 * S).build().unwrap();
    assert!(client.lock("k").unwrap().acquire().await.unwrap_err().is_busy());
    assert!(client.semaphore("s", 2).unwrap().acquire().await.unwrap_err().is_busy());
    assert!(client.lock("k").unwrap().try_acquire().await.unwrap().is_none());
    let heard = heard.lock().unwrap();
    let heard: Vec<_> = heard.iter().map(|(nth, request)| (*nth, &**request)).collect();
    let expected = [(0, "l k 0 7"), (1, "l k 10 7"), (0, "sl s 0 2 7"), (1, "sl s 10 2 7"), (0, "l k 0 7")];
    assert_eq!(heard, expected);
}

async fn the_longest_lease_is_granted_renewed_and_released(face: Face) {
    let server = Server::new(ServerConfig::default()).unwrap();
    let way = server.clone();
    let client = face.build(LockClient::builder().dial(Peers::new(move |_, _| sound(&way))).lease_ttl(MOST));
    let guard = client.lock("k").unwrap().acquire_within(MOST).await.unwrap();
    assert_eq!(guard.ttl(), MOST);
    assert_eq!(guard.renew().await.unwrap(), MOST);
    tokio::time::sleep(3600 * S).await;
    assert!(guard.is_held());
    guard.release().await.unwrap();
}

async fn a_sharding_strategy_that_is_out_of_range_is_an_error_at_use(face: Face) {
    for (answer, servers) in [(2, 2), (usize::MAX, 2), (1, 1)] {
        let dial = nobody();
        let dials = dial.dials();
        let fleet = (0..servers).map(|n| (format!("server-{n}"), 6388));
        let client =
            LockClient::builder().servers(fleet).dial(dial).sharding_strategy(move |_: &str, _| answer);
        let client = face.build(client);
        let lock = client.lock("k").unwrap();
        let fault = format!(
            "invalid input: sharding_strategy returned {answer} for key \"k\", there are {servers} servers"
        );
        let error = lock.acquire().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert_eq!(error.to_string(), format!("acquire of \"k\": {fault}"));
        assert!(lock.try_acquire().await.unwrap_err().is_invalid_input());
        assert!(lock.enqueue().await.unwrap_err().is_invalid_input());
        assert!(client.semaphore("k", 2).unwrap().acquire().await.unwrap_err().is_invalid_input());
        assert_eq!(dials.load(Ordering::SeqCst), 0);
    }
}

async fn nothing_shows_a_secret(face: Face) {
    let granting = || script(&["ok\n", "ok 000000000000002a00112233445566aa 33\n"], false);
    let queueing = || script(&["ok\n", "queued\n"], false);
    let dial = Peers::new(move |_, nth| if nth == 0 { granting() } else { queueing() });
    let builder = LockClient::builder().dial(dial).auth_token("hunter2hunter2");
    let mut shown = vec![format!("{builder:?} {builder:#?}")];
    let client = face.build(builder);
    let lock = client.lock("k").unwrap();
    shown.push(format!("{client:?} {lock:?} {:?}", client.semaphore("k", 2).unwrap()));
    let guard = lock.acquire().await.unwrap();
    assert_eq!(guard.token().expose(), TOKEN);
    let Enqueued::Queued(ticket) = lock.enqueue().await.unwrap() else { panic!("the peer said queued") };
    shown.push(format!("{guard:?} {guard:#?} {:?} {ticket:?}", guard.token()));
    shown.push(format!("{:?} {:?}", Enqueued::Queued(ticket), guard.state()));
    let alone = AsyncDistributedLock::builder("k").auth_token("hunter2hunter2").dial(nobody());
    shown.push(format!("{alone:?}"));
    shown.push(format!("{:?}", alone.build().unwrap()));
    let lease = guard.detach();
    shown.push(format!("{lease:?}"));
    shown.push(format!("{:?}", lease.release().await));
    for text in shown {
        assert!(!text.contains("hunter2"), "{text}");
        assert!(!text.contains(&TOKEN[..9]) && !text.contains("112233445566aa"), "{text}");
    }
}
