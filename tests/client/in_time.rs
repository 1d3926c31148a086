//! Time given is time kept: whatever the network swallows, each call ends when it said it would, and
//! nothing is left of it once the network is back.

use std::time::Duration;

use dflockd_client::test_util::TestServer;
use dflockd_client::{Error, ErrorKind, LockClient, LockOptions, RetryPolicy};
use futures::future::{join, join_all};
use tokio::time::{Instant, sleep};

use crate::faces::{Client, Enqueued, Face, Guard, on_both_faces};

const S: Duration = Duration::from_secs(1);
/// What a request may take that waits for no key, unless set.
const REQUEST: Duration = Duration::from_secs(5);
/// How much longer than its timeout a wait may take.
const GRACE: Duration = Duration::from_secs(1);

on_both_faces!(
    a_warm_client_that_is_cut_off_keeps_its_times,
    a_cold_client_that_is_cut_off_keeps_its_times,
    an_isolated_lock_that_is_cut_off_keeps_its_times,
    a_wait_that_falls_silent_ends_in_time_and_leaves_the_queue,
    a_ticket_that_falls_silent_ends_in_time_and_leaves_the_queue,
    a_line_of_waits_that_falls_silent_ends_in_time,
    a_retry_that_reaches_nobody_ends_in_time,
    a_renewal_that_gets_no_answer_ends_in_time,
    what_is_set_for_requests_holds_for_all_of_them,
    a_busy_key_is_waited_for_as_long_as_was_asked,
);

/// Fails with a timeout that is the silent server's, after exactly so long.
async fn silent<T: std::fmt::Debug>(
    face: Face,
    what: &str,
    limit: Duration,
    call: impl Future<Output = Result<T, Error>>,
) {
    let start = Instant::now();
    let error = call.await.expect_err(what);
    let took = start.elapsed();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{what}: {error}");
    assert!(!error.is_busy(), "{what}: {error}");
    // While a thread is blocked, time goes on in steps.
    let coarse = if face.is_exact() { Duration::from_millis(20) } else { S };
    assert!(limit <= took && took <= limit + coarse, "{what}: {took:?}, and not {limit:?}: {error}");
}

/// All that a client can ask, one after another.
async fn all_are_silent(face: Face, client: &Client) {
    let lock = client.lock("k").unwrap();
    silent(face, "try", REQUEST, lock.try_acquire()).await;
    silent(face, "acquire", 2 * S + GRACE, lock.acquire_within(2 * S)).await;
    silent(face, "a fraction", S * 5 / 2 + GRACE, lock.acquire_within(S * 5 / 2)).await;
    silent(face, "no time", REQUEST, lock.acquire_within(Duration::ZERO)).await;
    let brief = lock.with(LockOptions::new().acquire_timeout(S / 10)).unwrap();
    silent(face, "as set", S / 10 + GRACE, brief.acquire()).await;
    silent(face, "slot", 2 * S + GRACE, client.semaphore("s", 3).unwrap().acquire_within(2 * S)).await;
    silent(face, "enqueue", REQUEST, lock.enqueue()).await;
    silent(face, "stats", REQUEST, client.stats()).await;
}

/// Nobody holds `k` or waits for it, a moment after the network is back.
async fn nothing_is_left(server: &TestServer) {
    server.heal();
    sleep(3 * S).await;
    let stats = server.stats();
    assert!(stats.locks.iter().all(|lock| lock.key != "k"), "{stats:?}");
    assert!(stats.semaphores.is_empty(), "{stats:?}");
}

async fn a_warm_client_that_is_cut_off_keeps_its_times(face: Face) {
    let server = TestServer::new();
    let client = face.build(server.builder());
    let _warm = client.lock("another").unwrap().acquire().await.unwrap();
    server.partition();
    all_are_silent(face, &client).await;
    nothing_is_left(&server).await;
    assert!(client.lock("k").unwrap().try_acquire().await.unwrap().is_some());
}

async fn a_cold_client_that_is_cut_off_keeps_its_times(face: Face) {
    let server = TestServer::new();
    let client = face.build(server.builder());
    server.partition();
    all_are_silent(face, &client).await;
    nothing_is_left(&server).await;
}

async fn an_isolated_lock_that_is_cut_off_keeps_its_times(face: Face) {
    for warm in [false, true] {
        let server = TestServer::new();
        let client = face.build(server.builder());
        let lock = client.lock("k").unwrap().isolated();
        if warm {
            lock.acquire().await.unwrap().release().await.unwrap();
        }
        server.partition();
        silent(face, "acquire", 2 * S + GRACE, lock.acquire_within(2 * S)).await;
        silent(face, "try", REQUEST, lock.try_acquire()).await;
        silent(face, "enqueue", REQUEST, lock.enqueue()).await;
        nothing_is_left(&server).await;
    }
}

async fn rival_holds(server: &TestServer) -> dflockd_client::LeaseGuard {
    server.with_own_network().locks().lock("k").unwrap().acquire().await.unwrap()
}

async fn a_wait_that_falls_silent_ends_in_time_and_leaves_the_queue(face: Face) {
    for isolated in [false, true] {
        let server = TestServer::new();
        let held = rival_holds(&server).await;
        let client = face.build(server.builder());
        let lock = client.lock("k").unwrap();
        let lock = if isolated { lock.isolated() } else { lock };
        let cut = async {
            sleep(S).await;
            assert_eq!(server.stats().locks[0].waiters, 1);
            server.partition();
        };
        join(silent(face, "acquire", 2 * S + GRACE, lock.acquire_within(2 * S)), cut).await;
        server.heal();
        sleep(3 * S).await;
        assert_eq!(server.stats().locks[0].waiters, 0);
        held.release().await.unwrap();
        nothing_is_left(&server).await;
    }
}

async fn a_ticket_that_falls_silent_ends_in_time_and_leaves_the_queue(face: Face) {
    let server = TestServer::new();
    let held = rival_holds(&server).await;
    let client = face.build(server.builder());
    let Enqueued::Queued(ticket) = client.lock("k").unwrap().enqueue().await.unwrap() else {
        panic!("it is taken")
    };
    server.partition();
    silent(face, "wait", 2 * S + GRACE, ticket.wait(2 * S)).await;
    server.heal();
    sleep(3 * S).await;
    assert_eq!(server.stats().locks[0].waiters, 0);
    held.release().await.unwrap();
    nothing_is_left(&server).await;
}

async fn a_line_of_waits_that_falls_silent_ends_in_time(face: Face) {
    let server = TestServer::new();
    let _held = rival_holds(&server).await;
    let client = face.build(server.builder());
    let start = Instant::now();
    let waits = (0..5).map(|_| {
        let lock = client.lock("k").unwrap();
        async move { lock.acquire_within(2 * S).await.unwrap_err().kind() }
    });
    let cut = async {
        sleep(S).await;
        server.partition();
    };
    let (kinds, ()) = join(join_all(waits), cut).await;
    let is_fair = |kind| matches!(kind, ErrorKind::Timeout | ErrorKind::Busy);
    assert!(kinds[0] == ErrorKind::Timeout && kinds.iter().copied().all(is_fair), "{kinds:?}");
    assert!(start.elapsed() <= 2 * S + 2 * GRACE, "{:?}", start.elapsed());
}

async fn a_retry_that_reaches_nobody_ends_in_time(face: Face) {
    let server = TestServer::new();
    let client = face.build(server.builder().retry(RetryPolicy::new()));
    server.partition();
    let start = Instant::now();
    let error = client.lock("k").unwrap().acquire_within(25 * S).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(start.elapsed() <= 25 * S + 2 * GRACE, "{:?}", start.elapsed());
    assert!(start.elapsed() >= 20 * S, "it was tried again: {:?}", start.elapsed());
    nothing_is_left(&server).await;
}

async fn a_renewal_that_gets_no_answer_ends_in_time(face: Face) {
    let server = TestServer::new();
    let client = face.build(server.builder().lease_ttl(600 * S));
    let guard: Guard = client.lock("k").unwrap().acquire().await.unwrap();
    server.partition();
    silent(face, "renew", REQUEST, guard.renew()).await;
    assert!(guard.is_held());
}

async fn what_is_set_for_requests_holds_for_all_of_them(face: Face) {
    for warm in [false, true] {
        let server = TestServer::new();
        let client = face.build(server.builder().request_timeout(S / 2));
        let lock = client.lock("k").unwrap();
        if warm {
            lock.acquire().await.unwrap().release().await.unwrap();
        }
        server.partition();
        silent(face, "try", S / 2, lock.try_acquire()).await;
        silent(face, "enqueue", S / 2, lock.enqueue()).await;
        silent(face, "stats", S / 2, client.stats()).await;
        silent(face, "no time", S / 2, lock.acquire_within(Duration::ZERO)).await;
    }
}

async fn a_busy_key_is_waited_for_as_long_as_was_asked(face: Face) {
    let server = TestServer::new();
    let held = rival_holds(&server).await;
    let lock = face.build(server.builder()).lock("k").unwrap();
    for time in [S, S * 3 / 2, 3 * S] {
        let start = Instant::now();
        let error = lock.acquire_within(time).await.unwrap_err();
        assert!(error.is_busy(), "{error}");
        let took = start.elapsed();
        assert!(took >= time && took <= time + GRACE, "{time:?}: {took:?}");
    }
    drop(held);
}

/// What a server grants after its caller has gone is let go, and the connection that others share
/// stays.
#[tokio::test(start_paused = true)]
async fn a_try_that_is_answered_too_late_leaves_its_connection_and_holds_nothing() {
    let server = TestServer::new();
    let locks = server.locks();
    let guard = locks.lock("another").unwrap().acquire().await.unwrap();
    server.hold_replies();
    let start = Instant::now();
    let tries = (0..1000).map(|n| {
        let lock = locks.lock(format!("key-{n}")).unwrap();
        async move { lock.try_acquire().await }
    });
    for tried in join_all(tries).await {
        assert_eq!(tried.unwrap_err().to_string().split(": ").last(), Some("no reply within 5s"));
    }
    assert!(start.elapsed() < REQUEST + S / 10, "{:?}", start.elapsed());
    server.heal();
    sleep(S).await;
    let stats = server.stats();
    assert_eq!((stats.locks.len(), stats.connections), (1, 1), "{stats:?}");
    assert!(guard.is_held());
    assert_eq!(locks.metrics().connects, 1);
}

/// Two times that end one after the other are each kept, whichever began first.
#[tokio::test(start_paused = true)]
async fn a_shorter_time_that_begins_later_is_kept_as_well() {
    let server = TestServer::new();
    let locks: LockClient = server.locks();
    let _warm = locks.lock("another").unwrap().acquire().await.unwrap();
    server.hold_replies();
    let (long, short) = (locks.lock("long").unwrap(), locks.lock("short").unwrap());
    let start = Instant::now();
    let timed = |call| async move { (Result::<_, Error>::unwrap_err(call), start.elapsed()) };
    let long = async { timed(long.acquire_within(8 * S).await).await };
    let short = async {
        sleep(S / 2).await;
        timed(short.acquire_within(S).await).await
    };
    let ((_, long), (_, short)) = join(long, short).await;
    assert_eq!((long.as_millis() / 100, short.as_millis() / 100), (90, 25));
}
