//! Servers that never stop talking, or never start, in virtual time: the client keeps to its time
//! limits, reads no more than it may, and gives up a connection over which nothing sensible comes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dflockd_client::server::{Server, ServerConfig};
use dflockd_client::{
    AsyncConn, AsyncDistributedLock, ErrorKind, LockClient, LockOptions, LostReason, RetryPolicy,
    StatsResult, command,
};
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::time::{Instant, sleep, timeout};

use crate::peers::{End, Peers, Wire, peer};

const S: Duration = Duration::from_secs(1);
const GRANT: &str = "ok 000000000000002a00112233445566aa 600\n";
/// What a pipe to a client holds, each way.
const PIPE: usize = 64 * 1024;
/// The longest reply.
const CAP: usize = 1024 * 1024;

/// A connection over a small pipe, so that bytes that nobody reads hold their sender up.
fn narrow<F, T>(serve: F) -> End
where
    F: FnOnce(DuplexStream) -> T,
    T: Future<Output = ()> + Send + 'static,
{
    let (near, far) = tokio::io::duplex(PIPE);
    tokio::spawn(serve(far));
    End::Open(Box::new(near))
}

/// Sends this again and again until the client closes; counts what it got rid of.
async fn pour(flood: &str, wire: Wire, sent: Arc<AtomicUsize>) {
    let (mut far, flood) = (wire.into_inner(), flood.repeat(4096 / flood.len()));
    while far.write_all(flood.as_bytes()).await.is_ok() {
        sent.fetch_add(flood.len(), Ordering::SeqCst);
    }
}

fn lock(first: impl Fn() -> End + Send + Sync + 'static) -> (AsyncDistributedLock, Server) {
    let server = Server::new(ServerConfig::default()).unwrap();
    let client = LockClient::builder().dial(Peers::first(first, &server)).build().unwrap();
    let lock = client.lock("k").unwrap().with_options(LockOptions::new().lease_ttl(600 * S)).unwrap();
    (lock, server)
}

async fn heals(lock: &AsyncDistributedLock, server: &Server, after: &str) {
    sleep(S / 100).await;
    let guard = timeout(S, lock.acquire()).await.unwrap_or_else(|_| panic!("{after}: the next one hangs"));
    guard.unwrap_or_else(|error| panic!("{after}: {error}")).release().await.unwrap();
    sleep(S / 100).await;
    assert!(server.stats().locks.is_empty(), "{after}");
}

/// A line that grows without end is given up at its cap, a line that nobody asked for at once.
#[track_caller]
fn assert_bounded(flood: &str, sent: &AtomicUsize) {
    let sent = sent.load(Ordering::SeqCst);
    let most = if flood.contains('\n') { 2 * PIPE } else { CAP + 2 * PIPE };
    assert!(sent <= most, "{flood:?}: {sent} bytes were taken");
}

#[tokio::test(start_paused = true)]
async fn a_flood_in_place_of_a_reply_is_a_protocol_error_and_read_no_further() {
    for flood in ["x", "ok\n", "ok", "\n", "\u{ff}", "timeout\n"] {
        for asked in ["acquire", "enqueue", "renew", "release", "stats"] {
            let what = format!("{flood:?} to {asked}");
            let sent = Arc::new(AtomicUsize::new(0));
            let counted = sent.clone();
            let held = ["renew", "release"].contains(&asked);
            let first = move || {
                let sent = counted.clone();
                narrow(move |far| async move {
                    let mut wire = Wire::new(far);
                    wire.request().await;
                    if held {
                        wire.send(GRANT).await;
                        wire.request().await;
                    }
                    pour(flood, wire, sent).await;
                })
            };
            let server = Server::new(ServerConfig::default()).unwrap();
            let builder = LockClient::builder().dial(Peers::first(first, &server)).max_stats_bytes(CAP);
            let client = builder.build().unwrap();
            let lock = client.lock("k").unwrap();
            let asking = async {
                match asked {
                    "acquire" => lock.acquire().await.map(drop),
                    "enqueue" => lock.enqueue().await.map(drop),
                    "renew" => lock.acquire().await.unwrap().renew().await.map(drop),
                    "release" => lock.acquire().await.unwrap().release().await,
                    _ => client.stats().await.map(drop),
                }
            };
            let outcome = timeout(S, asking).await.unwrap_or_else(|_| panic!("{what}: it hangs"));
            let kind = outcome.as_ref().err().map(dflockd_client::Error::kind);
            match (flood, asked) {
                // The first line is a reply, the rest is none.
                ("ok\n", "release") => assert_eq!(kind, None, "{what}"),
                // So the key is busy, and waited for over another connection, to a sound server.
                ("timeout\n", "acquire") => assert_eq!(kind, None, "{what}"),
                _ => assert_eq!(kind, Some(ErrorKind::Protocol), "{what}: {outcome:?}"),
            }
            heals(&lock, &server, &what).await;
            assert_bounded(flood, &sent);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_that_nobody_asked_for_ends_the_lease_and_is_read_no_further() {
    for flood in ["x", "ok\n", "\n"] {
        let sent = Arc::new(AtomicUsize::new(0));
        let counted = sent.clone();
        let (lock, server) = lock(move || {
            let sent = counted.clone();
            narrow(move |far| async move {
                let mut wire = Wire::new(far);
                wire.request().await;
                wire.send(GRANT).await;
                sleep(S).await;
                pour(flood, wire, sent).await;
            })
        });
        let guard = lock.acquire().await.unwrap();
        assert_eq!(timeout(2 * S, guard.lost()).await, Ok(LostReason::ConnectionClosed), "{flood:?}");
        drop(guard);
        heals(&lock, &server, flood).await;
        assert_bounded(flood, &sent);
    }
}

#[tokio::test(start_paused = true)]
async fn a_bare_connection_reads_no_further_than_its_cap_either() {
    for (cap, flood) in [(CAP, "x"), (100, "x"), (CAP, "ok\n")] {
        let (near, mut far) = tokio::io::duplex(PIPE);
        let conn = AsyncConn::new(near).max_reply(cap);
        let flooding = async {
            let (flood, mut sent) = (flood.repeat(4096 / flood.len()), 0);
            while far.write_all(flood.as_bytes()).await.is_ok() {
                sent += flood.len();
            }
            sent
        };
        let asking = async {
            // The flood has begun before this is asked, or it begins behind it.
            let first = command::ping(&conn).await;
            let second = command::ping(&conn).await;
            assert!(first.is_err() || second.is_err(), "{flood:?}");
            assert_eq!(command::ping(&conn).await.unwrap_err().kind(), ErrorKind::ConnectionClosed);
        };
        let (sent, ()) = timeout(S, async { tokio::join!(flooding, asking) }).await.expect("it is closed");
        assert!(sent <= cap + 2 * PIPE, "{flood:?}: {sent} bytes were taken");
    }
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_drips_for_ever_is_given_up_in_time() {
    // A byte each 5 s: there is always something new, and never a reply.
    let drips = |answers: &'static [&'static str]| {
        peer(move |far| async move {
            let mut wire = Wire::new(far);
            for answer in answers {
                wire.request().await;
                wire.send(answer).await;
            }
            let mut far = wire.into_inner();
            while far.write_all(b"o").await.is_ok() {
                sleep(5 * S).await;
            }
        })
    };
    let start = Instant::now();
    let (one, server) = lock(move || drips(&[]));
    let error = one.acquire_within(5 * S).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(start.elapsed() <= 36 * S, "{:?}", start.elapsed());
    heals(&one, &server, "a grant that drips").await;

    let start = Instant::now();
    let (one, server) = lock(move || drips(&[]));
    assert_eq!(one.try_acquire().await.unwrap_err().kind(), ErrorKind::Timeout);
    assert!(start.elapsed() <= 21 * S, "{:?}", start.elapsed());
    heals(&one, &server, "a try that drips").await;

    let (one, server) = lock(move || drips(&[GRANT]));
    let guard = one.acquire().await.unwrap();
    let start = Instant::now();
    assert_eq!(guard.lost().await, LostReason::KeepaliveTimeout, "bytes are no answer");
    assert!(start.elapsed() <= 20 * S, "{:?}", start.elapsed());
    drop(guard);
    heals(&one, &server, "a ping that drips").await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_reads_nothing_holds_nobody_up() {
    // The pipe takes a part of the first request.
    let deaf = || {
        let (near, far) = tokio::io::duplex(4);
        tokio::spawn(async move {
            sleep(3600 * S).await;
            drop(far);
        });
        End::Open(Box::new(near))
    };
    let (lock, server) = lock(deaf);
    let start = Instant::now();
    assert_eq!(lock.acquire_within(5 * S).await.unwrap_err().kind(), ErrorKind::Timeout);
    assert!(start.elapsed() <= 36 * S, "{:?}", start.elapsed());
    heals(&lock, &server, "a server that reads nothing").await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_closes_after_a_byte_each_time_is_given_up_in_time() {
    for byte in ["o", "\n", "e", "\0"] {
        let dial = Peers::new(move |_, _| {
            peer(move |far| async move {
                let mut wire = Wire::new(far);
                wire.request().await;
                wire.send(byte).await;
            })
        });
        let dials = dial.dials();
        let client = LockClient::builder().dial(dial).retry(RetryPolicy::new()).build().unwrap();
        let start = Instant::now();
        let error = client.lock("k").unwrap().acquire_within(60 * S).await.unwrap_err();
        let kinds = [ErrorKind::ConnectionClosed, ErrorKind::Protocol];
        assert!(kinds.contains(&error.kind()), "{byte:?}: {error}");
        assert!(start.elapsed() <= 60 * S, "{byte:?}");
        let dials = dials.load(Ordering::SeqCst);
        assert!((1..=300).contains(&dials), "{byte:?}: it dialled {dials} times");
    }
}

/// What a client makes of such a reply to `stats`.
async fn stats(reply: String) -> Result<StatsResult, ErrorKind> {
    let reply = Arc::new(reply);
    let dial = Peers::new(move |_, _| {
        let reply = reply.clone();
        narrow(move |far| async move {
            let mut wire = Wire::new(far);
            wire.request().await;
            wire.send(reply.as_bytes()).await;
            wire.closed().await;
        })
    });
    let client = LockClient::builder().dial(dial).max_stats_bytes(CAP).build().unwrap();
    let stats = timeout(S, client.stats()).await.expect("it ends");
    stats.map(|mut stats| stats.remove(0)).map_err(|error| error.kind())
}

fn with(field: &str, value: &str) -> String {
    let mut fields = vec![("connections", "1")];
    fields.extend(["locks", "semaphores", "idle_locks", "idle_semaphores"].map(|list| (list, "[]")));
    fields.retain(|(name, _)| *name != field);
    fields.push((field, value));
    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    format!("ok {{{}}}\n", fields.join(","))
}

#[tokio::test(start_paused = true)]
async fn stats_nested_as_deep_as_a_line_may_be_long_overflow_nothing() {
    let half = CAP / 2 - 100;
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let depth = half / open.len();
        let nested = format!("{}1{}", open.repeat(depth), close.repeat(depth));
        for reply in [format!("ok {nested}\n"), with("locks", &nested), with("connections", &nested)] {
            assert_eq!(stats(reply).await, Err(ErrorKind::Protocol), "{open}");
        }
        // Where a newer server may say what it likes, it is passed over or refused, but not followed.
        match stats(with("extra", &nested)).await {
            Ok(stats) => assert_eq!(stats.connections, 1),
            Err(kind) => assert_eq!(kind, ErrorKind::Protocol),
        }
        assert!(stats(with("extra", &format!("{}1{}", open.repeat(50), close.repeat(50)))).await.is_ok());
    }
    assert_eq!(stats(format!("ok {}\n", "[".repeat(CAP - 10))).await, Err(ErrorKind::Protocol));
    assert_eq!(stats(format!("ok {}\n", "[".repeat(CAP))).await, Err(ErrorKind::Protocol), "past the cap");
}

#[tokio::test(start_paused = true)]
async fn stats_of_wrong_types_are_protocol_errors() {
    let lock = |field: &str, value: &str| with("locks", &format!("[{{\"key\":\"k\",\"{field}\":{value}}}]"));
    for reply in [
        with("connections", "-1"),
        with("connections", "1.5"),
        with("connections", "18446744073709551616"),
        with("connections", "\"1\""),
        with("connections", "null"),
        with("connections", "1,\"connections\":2"),
        with("locks", "{}"),
        with("locks", "[1]"),
        with("locks", "[{}]"),
        with("locks", "[{\"key\":1}]"),
        with("locks", "[{\"key\":\"\\ud800\"}]"),
        lock("waiters", "-1"),
        lock("lease_expires_in_s", "1e999"),
        lock("lease_expires_in_s", "NaN"),
        lock("owner_conn_id", "9223372036854775808"),
        with("idle_semaphores", "[null]"),
        "ok {}\n".into(),
        "ok {} {}\n".into(),
        "ok \n".into(),
        "ok\n".into(),
        "ok [1,[],[],[],[]]x\n".into(),
        "queued\n".into(),
    ] {
        assert_eq!(stats(reply.clone()).await, Err(ErrorKind::Protocol), "{reply}");
    }
    assert_eq!(stats(with("connections", "7")).await.unwrap().connections, 7);
}
