//! A client against servers that fail in every way: it says what went wrong within its time limit,
//! never takes a wrong reply, and its next acquire finds a server that has recovered.

use std::time::Duration;

use dflockd_client::server::{Server, ServerConfig};
use dflockd_client::{AsyncDistributedLock, Enqueued, Error, ErrorKind, LockClient, LostReason};
use tokio::time::{Instant, sleep, timeout};

use crate::peers::{End, PING, PONG, Peers, TOKEN, Wire, cut, peer, script, sound};

const S: Duration = Duration::from_secs(1);

fn server() -> Server {
    Server::new(ServerConfig::default()).unwrap()
}

fn lock(dial: Peers) -> AsyncDistributedLock {
    LockClient::builder().dial(dial).build().unwrap().lock("k").unwrap()
}

/// The next acquire gets the key, and after its release the server has nothing left of anybody.
async fn heals(lock: &AsyncDistributedLock, server: &Server, after: &str) {
    // A server notices a connection that was cut by the next turn of the runtime.
    sleep(S / 100).await;
    let guard = timeout(S, lock.acquire()).await;
    let guard = guard.unwrap_or_else(|_| panic!("{after}: the next acquire hangs"));
    let guard = guard.unwrap_or_else(|error| panic!("{after}: the next acquire fails: {error}"));
    assert!(guard.is_held(), "{after}");
    guard.release().await.unwrap_or_else(|error| panic!("{after}: {error}"));
    sleep(S / 100).await;
    let stats = server.stats();
    assert!(stats.locks.is_empty() && stats.semaphores.is_empty(), "{after}: {stats:?}");
}

/// Acquires over a first connection that is faulty, then over sound ones.
async fn acquire_over(what: &str, first: impl Fn() -> End + Send + Sync + 'static) -> (Error, Duration) {
    let server = server();
    let lock = lock(Peers::first(first, &server));
    let start = Instant::now();
    let error = lock.acquire_within(60 * S).await.expect_err(what);
    let took = start.elapsed();
    let text = error.to_string();
    assert!(text.starts_with("acquire of \"k\" on 127.0.0.1:6388: "), "{what}: {text}");
    assert_eq!(error.server(), Some("127.0.0.1:6388"));
    heals(&lock, &server, what).await;
    (error, took)
}

#[tokio::test]
async fn a_port_nobody_listens_on_is_named_with_the_cause() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let lock = AsyncDistributedLock::builder("k").servers([("127.0.0.1", port)]).build().unwrap();
    let error = lock.acquire().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.is_unavailable());
    let text = error.to_string();
    assert!(text.contains(&format!("127.0.0.1:{port}")) && text.contains("refused"), "{text}");
    assert_eq!(std::io::Error::from(error).kind(), std::io::ErrorKind::ConnectionRefused);
    let error = dflockd_client::command::open_conn("127.0.0.1", port, None, S).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().starts_with(&format!("connect on 127.0.0.1:{port}: ")), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_dial_that_is_refused_is_told_at_once() {
    let refused = || End::Fails(std::io::ErrorKind::ConnectionRefused);
    let (error, took) = acquire_over("refused", refused).await;
    assert_eq!((error.kind(), took), (ErrorKind::Io, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn a_dial_into_nowhere_ends_with_the_connect_timeout() {
    let (error, took) = acquire_over("nowhere", || End::Hangs).await;
    assert_eq!((error.kind(), took), (ErrorKind::Timeout, 10 * S));
    assert!(error.to_string().contains("no connection within 10s"), "{error}");
    assert_eq!(error.raw(), None);
}

#[tokio::test(start_paused = true)]
async fn a_try_that_cannot_connect_is_an_error_and_not_a_busy_key() {
    for end in [|| End::Hangs, || script(&[], false), || script(&["garbage\n"], false)] {
        assert!(lock(Peers::new(move |_, _| end())).try_acquire().await.is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_says_nothing_is_given_up_after_two_keepalive_intervals() {
    let (error, took) = acquire_over("silence", || script(&[], false)).await;
    assert_eq!((error.kind(), took), (ErrorKind::Timeout, 20 * S));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_end_a_wait_is_given_up_a_second_after_the_timeout() {
    let lock = lock(Peers::new(|_, nth| script(if nth == 0 { &["timeout\n"] } else { &[] }, false)));
    let start = Instant::now();
    let error = lock.acquire_within(5 * S).await.unwrap_err();
    assert_eq!((error.kind(), start.elapsed()), (ErrorKind::Timeout, 6 * S), "{error}");
}

#[tokio::test(start_paused = true)]
async fn replies_that_are_none_are_protocol_errors_at_once() {
    let answers: [&'static [&'static str]; 9] = [
        &["garbage\n"],
        &["\n"],
        &["ok\n"],
        &["ok 33\n"],
        &["queued\n"],
        &["acquired 000000000000002a00112233445566aa 33\n"],
        &["ok 000000000000002a00112233445566aa 0\n"],
        &["ok 000000000000002a00112233445566aa -1\n"],
        &["ok 000000000000002a00112233445566aa 9223372037\n"],
    ];
    for answer in answers {
        for closes in [false, true] {
            let (error, took) = acquire_over(answer[0], move || script(answer, closes)).await;
            assert_eq!((error.kind(), took), (ErrorKind::Protocol, Duration::ZERO), "{answer:?}: {error}");
            assert!(!error.to_string().contains(TOKEN), "{error}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_line_without_end_is_a_protocol_error_past_1_mib() {
    let endless = || {
        peer(|far| async move {
            let mut wire = Wire::new(far);
            wire.request().await;
            wire.send("x".repeat(2 * 1024 * 1024)).await;
            wire.closed().await;
        })
    };
    let (error, _) = acquire_over("2 MiB", endless).await;
    assert_eq!(error.kind(), ErrorKind::Protocol);
    assert!(error.to_string().contains("longer than 1048576 bytes"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn half_a_line_and_then_silence_is_silence() {
    let (error, took) = acquire_over("half a line", || script(&["ok 0000"], false)).await;
    assert_eq!((error.kind(), took), (ErrorKind::Timeout, 20 * S));
}

#[tokio::test(start_paused = true)]
async fn an_end_of_file_says_where_it_came() {
    for (answer, place) in [("", "without a reply"), ("ok 0000", "in the middle of a reply")] {
        let answer: &'static [&'static str] = Box::leak(Box::new([answer]));
        let (error, _) = acquire_over(place, move || script(answer, true)).await;
        assert_eq!(error.kind(), ErrorKind::ConnectionClosed);
        assert!(error.to_string().contains(place), "{error}");
    }
}

/// What a client did over a way that is cut: each must fail cleanly, or be whole.
async fn over_cut(what: String, requests: Option<u64>, replies: Option<u64>, whole: bool) {
    let server = server();
    let way = server.clone();
    let lock =
        lock(Peers::new(move |_, nth| if nth == 0 { cut(&way, requests, replies) } else { sound(&way) }));
    match timeout(60 * S, lock.acquire()).await.expect("no hang") {
        Ok(guard) => {
            assert!(whole, "{what}: a grant out of half a reply");
            // The connection is gone, and with it the lease; not a moment later.
            assert_eq!(timeout(S, guard.lost()).await, Ok(LostReason::ConnectionClosed), "{what}");
            let error = guard.release().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::LeaseLost, "{what}");
            assert!(error.to_string().contains("its connection closed"), "{error}");
        }
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionClosed, "{what}: {error}"),
    }
    heals(&lock, &server, &what).await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_cut_at_any_byte_of_a_request_leaves_nothing() {
    for at in 0..=(PING.len() + "l\nk\n0\n".len()) as u64 {
        over_cut(format!("request cut at {at}"), Some(at), None, false).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_cut_at_any_byte_of_a_grant_leaves_nothing() {
    let grant = format!("{PONG}ok {TOKEN} 33\n").len() as u64;
    for at in 0..=grant {
        over_cut(format!("reply cut at {at}"), None, Some(at), at == grant).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_cut_at_any_byte_of_the_authentication_leaves_nothing() {
    let config = ServerConfig { auth_token: Some("s3cret".into()), ..Default::default() };
    let server = Server::new(config).unwrap();
    let (request, reply) = ("auth\n_\ns3cret\n".len() as u64, 3);
    let cuts = (0..request).map(|at| (Some(at), None)).chain((0..reply).map(|at| (None, Some(at))));
    for (requests, replies) in cuts {
        let first = server.clone();
        let dial = Peers::first(move || cut(&first, requests, replies), &server);
        let client = LockClient::builder().dial(dial).auth_token("s3cret").build().unwrap();
        let lock = client.lock("k").unwrap();
        let error = lock.acquire().await.unwrap_err();
        let what = format!("cut at {requests:?} {replies:?}: {error}");
        assert_eq!(error.kind(), ErrorKind::ConnectionClosed, "{what}");
        assert!(error.to_string().starts_with("authenticate of \"k\" on 127.0.0.1:6388: "), "{what}");
        heals(&lock, &server, &what).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_authentication_that_gets_no_answer_ends_with_the_connect_timeout() {
    let server = server();
    let dial = Peers::first(|| script(&[], false), &server);
    let client =
        LockClient::builder().dial(dial).auth_token("s3cret").connect_timeout(3 * S).build().unwrap();
    let start = Instant::now();
    let error = client.lock("k").unwrap().acquire().await.unwrap_err();
    assert_eq!((error.kind(), start.elapsed()), (ErrorKind::Timeout, 3 * S), "{error}");
}

#[tokio::test(start_paused = true)]
async fn an_authentication_answered_with_anything_but_ok_is_refused() {
    for (answer, kind) in [
        ("garbage\n", ErrorKind::Protocol),
        ("ok ok\n", ErrorKind::Protocol),
        ("ok\nok\n", ErrorKind::Protocol),
        ("error_auth\n", ErrorKind::PermissionDenied),
        ("error\n", ErrorKind::PermissionDenied),
        ("error_draining\n", ErrorKind::Draining),
    ] {
        let answers: &'static [&'static str] = Box::leak(Box::new([answer]));
        let dial = Peers::new(move |_, _| script(answers, false));
        let client = LockClient::builder().dial(dial).auth_token("s3cret").build().unwrap();
        let error = client.lock("k").unwrap().acquire().await.unwrap_err();
        assert_eq!(error.kind(), kind, "{answer:?}: {error}");
        assert!(!error.to_string().contains("s3cret"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_grant_for_one_request_is_nobodys() {
    let twice = || {
        script(&["ok 000000000000002a00112233445566aa 33\nok 000000000000002b00112233445566aa 33\n"], false)
    };
    let server = server();
    let lock = lock(Peers::first(twice, &server));
    // Who knows what comes next: the connection ends, and the first grant with it, as it came.
    let error = lock.acquire().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionClosed, "{error}");
    assert!(error.to_string().ends_with("lost on arrival: its connection closed"), "{error}");
    heals(&lock, &server, "a second grant").await;
}

#[tokio::test(start_paused = true)]
async fn a_line_that_came_unasked_is_not_the_next_requests_reply() {
    // Which of two events a task sees first is left to chance: try often.
    for round in 0..50 {
        let server = server();
        let (speak, spoken) = tokio::sync::oneshot::channel::<()>();
        let talk = std::sync::Mutex::new(Some(spoken));
        let first = move || {
            let spoken = talk.lock().unwrap().take().unwrap();
            peer(|far| async move {
                let mut wire = Wire::new(far);
                wire.request().await;
                wire.send("timeout\n").await;
                let _ = spoken.await;
                wire.send(format!("ok {TOKEN} 33\n")).await;
                wire.closed().await;
            })
        };
        let lock = lock(Peers::first(first, &server));
        assert!(lock.try_acquire().await.unwrap().is_none());
        speak.send(()).unwrap();
        // The peer speaks in its own turn, the client asks in this one's next.
        let next = tokio::spawn(async move { (lock.acquire().await, lock) });
        let (next, lock) = next.await.unwrap();
        let guard = next.unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert_ne!(guard.token().expose(), TOKEN, "round {round}");
        drop(guard);
        heals(&lock, &server, "an unasked line").await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_unasked_line_loses_the_lease_on_its_connection() {
    for (line, closes) in [("error\n", true), ("ok\n", false), ("garbage\n", false)] {
        let talk = move || {
            peer(move |far| async move {
                let mut wire = Wire::new(far);
                wire.request().await;
                wire.send(format!("ok {TOKEN} 33\n")).await;
                sleep(S).await;
                wire.send(line).await;
                if !closes {
                    wire.closed().await;
                }
            })
        };
        let server = server();
        let lock = lock(Peers::first(talk, &server));
        let guard = lock.acquire().await.unwrap();
        let start = Instant::now();
        assert_eq!(guard.lost().await, LostReason::ConnectionClosed);
        assert_eq!(start.elapsed(), S, "{line:?}");
        drop(guard);
        heals(&lock, &server, line).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_ticket_whose_connection_is_lost_says_so() {
    let server = server();
    let holder = lock(Peers::new({
        let server = server.clone();
        move |_, _| sound(&server)
    }));
    let held = holder.acquire().await.unwrap();
    let way = server.clone();
    let queued = (PONG.len() + "queued\n".len()) as u64;
    // "queued" comes through, and then nothing any more.
    let lock = lock(Peers::first(move || cut(&way, None, Some(queued)), &server));
    let Enqueued::Queued(ticket) = lock.enqueue().await.unwrap() else { panic!("the key is taken") };
    sleep(S).await;
    let error = ticket.wait(5 * S).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionClosed, "{error}");
    assert!(error.to_string().starts_with("wait of \"k\" on "), "{error}");
    assert_eq!(server.stats().locks[0].waiters, 0);
    held.release().await.unwrap();
    heals(&lock, &server, "a lost ticket").await;
}

#[tokio::test(start_paused = true)]
async fn a_waiter_whose_connection_is_cut_leaves_the_queue() {
    let server = server();
    let way = server.clone();
    let part = PING.len() as u64 + 7;
    let dial = Peers::new(move |_, nth| if nth == 1 { cut(&way, Some(part), None) } else { sound(&way) });
    let lock = lock(dial);
    let held = lock.acquire().await.unwrap();
    let error = lock.acquire().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionClosed);
    sleep(S / 100).await;
    assert_eq!(server.stats().locks[0].waiters, 0);
    held.release().await.unwrap();
    heals(&lock, &server, "a cut waiter").await;
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_crosses_a_dropped_acquire_is_released_over_another_connection() {
    let (heard, mut released) = tokio::sync::mpsc::unbounded_channel();
    let dial = Peers::new(move |_, nth| {
        let heard = heard.clone();
        peer(move |far| async move {
            let mut wire = Wire::new(far);
            while let Some(request) = wire.request().await {
                let _ = heard.send((nth, request));
                if nth > 0 {
                    wire.send("ok\n").await;
                }
            }
            // The client has half-closed: this comes too late for its caller.
            if nth == 0 {
                wire.send(format!("ok {TOKEN} 33\n")).await;
            }
        })
    });
    let lock = lock(dial).isolated();
    assert!(timeout(S, lock.acquire()).await.is_err());
    assert_eq!(released.recv().await, Some((0, "l k 10".to_owned())));
    let release = timeout(S, released.recv()).await.expect("not only once the lease has run out");
    assert_eq!(release, Some((1, format!("r k {TOKEN}"))));
}

#[tokio::test(start_paused = true)]
async fn an_acquire_dropped_while_it_dials_or_waits_leaves_nothing() {
    // Dropped after every time up to well past the grant: nothing, a dial, a wait, a guard.
    for millis in (0..3000).step_by(250) {
        let server = server();
        let way = server.clone();
        let holder = lock(Peers::new({
            let server = server.clone();
            move |_, _| sound(&server)
        }));
        let held = holder.acquire().await.unwrap();
        let slow = lock(Peers::new(move |_, _| {
            let way = way.clone();
            peer(move |far| async move {
                sleep(S).await;
                way.serve_stream(far).await;
            })
        }));
        let dropped = tokio::spawn(async move {
            drop(timeout(Duration::from_millis(millis), slow.acquire()).await);
            slow
        });
        sleep(2 * S).await;
        held.release().await.unwrap();
        let slow = dropped.await.unwrap();
        sleep(S).await;
        let stats = server.stats();
        assert!(stats.locks.is_empty(), "dropped after {millis} ms: {stats:?}");
        assert!(slow.try_acquire().await.unwrap().is_some(), "dropped after {millis} ms");
    }
}
