//! Many leases over few connections: who shares one and what that costs whom, lines for a busy key,
//! limits, idle connections, and a client that is closed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dflockd_client::server::{Server, ServerConfig};
use dflockd_client::test_util::TestServer;
use dflockd_client::{
    Enqueued, ErrorKind, LeaseGuard, LockClient, LockOptions, LostReason, Result, StatsResult,
};
use futures::FutureExt;
use futures::future::{join_all, try_join_all};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::peers::{End, Peers, peer, script, sound};

const S: Duration = Duration::from_secs(1);

fn waits(locks: &LockClient, key: &str, time: Duration) -> JoinHandle<Result<LeaseGuard>> {
    let lock = locks.lock(key).unwrap();
    tokio::spawn(async move { lock.acquire_within(time).await })
}

async fn hold(locks: &LockClient, keys: std::ops::Range<usize>) -> Vec<LeaseGuard> {
    let acquires = keys.map(|n| {
        let lock = locks.lock(format!("key-{n}")).unwrap();
        async move { lock.acquire().await }
    });
    try_join_all(acquires).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_thousand_leases_are_taken_renewed_and_let_go_over_one_connection() {
    let server = TestServer::new();
    let locks = server.locks();
    let guards = hold(&locks, 0..1000).await;
    assert_eq!(server.stats().connections, 1);
    sleep(600 * S).await;
    assert!(guards.iter().all(|guard| guard.is_held()));
    assert_eq!((server.stats().connections, server.stats().locks.len()), (1, 1000));
    join_all(guards.into_iter().map(LeaseGuard::release)).await.into_iter().for_each(Result::unwrap);
    assert!(server.stats().locks.is_empty());
    assert_eq!((server.stats().connections, locks.metrics().connects), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_while_the_way_is_full_is_sent_once_there_is_room() {
    let server = Server::new(ServerConfig::default()).unwrap();
    let behind = server.clone();
    let dial = Peers::new(move |_, _| {
        // Less room than one request takes.
        let (near, far) = tokio::io::duplex(4);
        let behind = behind.clone();
        tokio::spawn(async move {
            // The first request stands in the way for a second, and others come meanwhile.
            sleep(S).await;
            behind.serve_stream(far).await;
        });
        End::Open(Box::new(near))
    });
    let locks = LockClient::builder().dial(dial).build().unwrap();
    let first = waits(&locks, "first", S);
    sleep(S / 2).await;
    let others: Vec<_> = (0..3).map(|n| waits(&locks, &format!("key-{n}"), S)).collect();
    for waiting in others.into_iter().chain([first]) {
        let guard = timeout(3 * S, waiting).await.expect("it is sent").unwrap().unwrap();
        guard.release().await.unwrap();
    }
    assert!(server.stats().locks.is_empty());
}

#[tokio::test(start_paused = true)]
async fn those_who_want_the_first_connection_share_its_dial_and_its_failure() {
    let dial = Peers::new(|_, _| End::Hangs);
    let dials = dial.dials();
    let locks = LockClient::builder().dial(dial).connect_timeout(3 * S).build().unwrap();
    let start = Instant::now();
    let waiting: Vec<_> = (0..50).map(|n| waits(&locks, &format!("key-{n}"), 5 * S)).collect();
    for outcome in join_all(waiting).await {
        let error = outcome.unwrap().unwrap_err();
        assert!(error.to_string().contains("no connection within 3s"), "{error}");
        assert!(!error.is_busy());
    }
    assert_eq!((dials.load(Ordering::SeqCst), start.elapsed()), (1, 3 * S));
}

#[tokio::test(start_paused = true)]
async fn a_dial_goes_on_when_the_one_that_began_it_leaves() {
    let server = Server::new(ServerConfig::default()).unwrap();
    let way = server.clone();
    let dial = Peers::new(move |_, _| {
        let way = way.clone();
        peer(move |far| async move {
            // The server is slow to look at its connection.
            sleep(S).await;
            way.serve_stream(far).await;
        })
    });
    let dials = dial.dials();
    let locks = LockClient::builder().dial(dial).build().unwrap();
    let (first, second) = (waits(&locks, "one", 5 * S), waits(&locks, "two", 5 * S));
    sleep(S / 2).await;
    first.abort();
    let second = second.await.unwrap().unwrap();
    assert!(second.is_held());
    assert_eq!(dials.load(Ordering::SeqCst), 1);
    sleep(S).await;
    assert_eq!(server.stats().locks.len(), 1, "{:?}", server.stats());
}

#[tokio::test(start_paused = true)]
async fn an_acquire_that_is_dropped_costs_no_other_lease_on_its_connection() {
    let server = TestServer::with(ServerConfig { auto_release_on_disconnect: false, ..Default::default() });
    let server = server.unwrap();
    let locks = server.locks();
    let others = hold(&locks, 0..10).await;
    for polls in 0..6 {
        let lock = locks.lock("k").unwrap();
        let mut acquire = async move { lock.acquire().await }.boxed().fuse();
        for _ in 0..polls {
            assert!((&mut acquire).now_or_never().is_none_or(|outcome| outcome.is_ok()));
            tokio::task::yield_now().await;
        }
        drop(acquire);
        sleep(S / 10).await;
        assert_eq!(server.stats().locks.len(), 10, "after {polls} polls: {:?}", server.stats());
    }
    sleep(60 * S).await;
    assert!(others.iter().all(|guard| guard.is_held()));
    assert_eq!(server.stats().connections, 1);
}

#[tokio::test(start_paused = true)]
async fn tasks_that_want_one_key_get_it_in_order_over_few_connections() {
    let server = TestServer::new();
    let locks = server.locks();
    let (order, most) = (Arc::new(std::sync::Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
    let mut tasks = Vec::new();
    for n in 0..100 {
        let (lock, order, most, server) =
            (locks.lock("k").unwrap(), order.clone(), most.clone(), server.clone());
        tasks.push(tokio::spawn(async move {
            let guard = lock.acquire_within(1000 * S).await.unwrap();
            order.lock().unwrap().push(n);
            sleep(S).await;
            let stats = server.stats();
            assert!(stats.locks[0].waiters <= 1, "{stats:?}");
            most.fetch_max(stats.connections as usize, Ordering::SeqCst);
            guard.release().await.unwrap();
        }));
        // One after another, so that there is an order.
        sleep(S / 1000).await;
    }
    assert_eq!(locks.metrics().waiting, 99);
    join_all(tasks).await.into_iter().for_each(Result::unwrap);
    assert_eq!(*order.lock().unwrap(), (0..100).collect::<Vec<_>>());
    assert!(most.load(Ordering::SeqCst) <= 3, "{most:?} connections");
    assert_eq!((locks.metrics().waiting, locks.metrics().waits), (0, 99));
}

#[tokio::test(start_paused = true)]
async fn a_process_with_many_waiters_does_not_pass_by_another_that_waits() {
    let server = TestServer::new();
    let (many, one) = (server.locks(), server.locks());
    let held = many.lock("k").unwrap().acquire().await.unwrap();
    let mut ours = vec![waits(&many, "k", 100 * S)];
    sleep(S).await;
    let theirs = waits(&one, "k", 100 * S);
    sleep(S).await;
    ours.extend((0..10).map(|_| waits(&many, "k", 100 * S)));
    sleep(S).await;
    held.release().await.unwrap();
    ours.remove(0).await.unwrap().unwrap().release().await.unwrap();
    let theirs = timeout(S, theirs).await.expect("it is their turn").unwrap().unwrap();
    theirs.release().await.unwrap();
    for ours in ours {
        timeout(S, ours).await.expect("and then ours").unwrap().unwrap().release().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_tries_their_way_past_those_who_wait() {
    let server = TestServer::new();
    let locks = server.locks();
    let held = locks.lock("k").unwrap().acquire().await.unwrap();
    let waiting = waits(&locks, "k", 100 * S);
    sleep(S).await;
    assert!(locks.lock("k").unwrap().try_acquire().await.unwrap().is_none());
    let error = locks.lock("k").unwrap().acquire_within(Duration::ZERO).await.unwrap_err();
    assert!(error.is_busy() && !error.is_timeout(), "{error}");
    // Another limit is another matter.
    let error = locks.semaphore("k", 2).unwrap().acquire().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LimitMismatch);
    held.release().await.unwrap();
    waiting.await.unwrap().unwrap().release().await.unwrap();
    assert!(locks.lock("k").unwrap().try_acquire().await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn one_that_leaves_the_line_lets_the_others_forward() {
    let server = TestServer::new();
    let locks = server.locks();
    let held = server.locks().lock("k").unwrap().acquire().await.unwrap();
    let mut line = Vec::new();
    for time in [100, 100, 2, 100] {
        line.push(waits(&locks, "k", time * S));
        sleep(S / 10).await;
    }
    // The first waits at the server, the second behind it, the third runs out of time there.
    line.remove(0).abort();
    sleep(3 * S).await;
    assert_eq!(server.stats().locks[0].waiters, 1, "the next has taken the place");
    let error = line.remove(1).await.unwrap().unwrap_err();
    assert!(error.is_busy(), "{error}");
    assert_eq!(error.to_string(), "acquire of \"k\": the key stayed busy");
    held.release().await.unwrap();
    for waiting in line {
        timeout(S, waiting).await.expect("its turn comes").unwrap().unwrap().release().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn waiting_in_line_counts_towards_the_timeout() {
    let server = TestServer::new();
    let locks = server.locks();
    let _held = server.locks().lock("k").unwrap().acquire().await.unwrap();
    let start = Instant::now();
    let (first, second) = (waits(&locks, "k", 4 * S), waits(&locks, "k", 6 * S));
    assert!(first.await.unwrap().unwrap_err().is_busy());
    assert_eq!(start.elapsed(), 4 * S);
    assert!(second.await.unwrap().unwrap_err().is_busy());
    assert_eq!(start.elapsed(), 6 * S);
}

#[tokio::test(start_paused = true)]
async fn a_semaphores_slots_go_to_those_in_line_and_are_never_too_many() {
    let server = TestServer::new();
    let locks = server.locks();
    let inside = Arc::new(AtomicUsize::new(0));
    let tasks = (0..60).map(|_| {
        let (slots, inside) = (locks.semaphore("s", 3).unwrap(), inside.clone());
        tokio::spawn(async move {
            let slot = slots.acquire_within(1000 * S).await.unwrap();
            assert!(inside.fetch_add(1, Ordering::SeqCst) < 3);
            sleep(S).await;
            inside.fetch_sub(1, Ordering::SeqCst);
            slot.release().await.unwrap();
        })
    });
    let start = Instant::now();
    join_all(tasks).await.into_iter().for_each(Result::unwrap);
    assert!(start.elapsed() < 21 * S, "slots stood empty: {:?}", start.elapsed());
}

/// A client whose connections can be ended one by one: the answer's numbers count from 0.
fn with_switches(server: &Server) -> (LockClient, Arc<std::sync::Mutex<Vec<tokio::task::AbortHandle>>>) {
    let (server, switches) = (server.clone(), Arc::new(std::sync::Mutex::new(Vec::new())));
    let noted = switches.clone();
    let dial = Peers::new(move |_, _| {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let server = server.clone();
        let serving = tokio::spawn(async move { server.serve_stream(far).await });
        noted.lock().unwrap().push(serving.abort_handle());
        End::Open(Box::new(near))
    });
    (LockClient::builder().dial(dial).build().unwrap(), switches)
}

#[tokio::test(start_paused = true)]
async fn a_connections_end_loses_all_leases_on_it_and_no_isolated_one() {
    let server = Server::new(ServerConfig::default()).unwrap();
    let (locks, switches) = with_switches(&server);
    let shared = hold(&locks, 0..5).await;
    let dear = locks.lock("dear").unwrap().isolated();
    let isolated = dear.acquire().await.unwrap();
    let slot = locks.semaphore("slots", 2).unwrap().isolated().try_acquire().await.unwrap().unwrap();
    assert_eq!(server.stats().connections, 3);
    switches.lock().unwrap()[0].abort();
    for guard in &shared {
        assert_eq!(guard.lost().await, LostReason::ConnectionClosed);
    }
    sleep(60 * S).await;
    assert!(isolated.is_held() && slot.is_held());
    assert!(dear.try_acquire().await.unwrap().is_none());
    // New ones share another connection.
    assert_eq!(hold(&locks, 0..5).await.len(), 5);
}

#[tokio::test(start_paused = true)]
async fn more_shared_connections_carry_fewer_leases_each() {
    let server = TestServer::new();
    let locks = server.builder().shared_connections(3).build().unwrap();
    let _guards = hold(&locks, 0..30).await;
    let mut owners: Vec<_> = server.stats().locks.iter().map(|lock| lock.owner_conn_id).collect();
    owners.sort_unstable();
    let counts: Vec<_> = owners.chunk_by(|a, b| a == b).map(<[_]>::len).collect();
    assert!(counts.len() == 3 && counts.iter().all(|count| (8..=12).contains(count)), "{counts:?}");
}

#[tokio::test(start_paused = true)]
async fn leases_past_the_limit_of_a_connection_go_by_another_that_closes_when_it_is_idle() {
    let server = TestServer::new();
    let locks = server.builder().max_leases_per_connection(4).idle_timeout(30 * S).build().unwrap();
    let guards = hold(&locks, 0..10).await;
    assert_eq!(server.stats().connections, 3);
    drop(guards);
    sleep(29 * S).await;
    assert_eq!(server.stats().connections, 3, "kept for a while");
    sleep(2 * S).await;
    assert_eq!(server.stats().connections, 1, "the shared one stays");
    let _guards = hold(&locks, 0..8).await;
    assert_eq!(server.stats().connections, 2);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_was_waited_on_is_used_again_and_closes_when_it_is_idle() {
    let server = TestServer::new();
    let (locks, rival) = (server.builder().idle_timeout(30 * S).build().unwrap(), server.locks());
    for _ in 0..5 {
        let held = rival.lock("k").unwrap().acquire().await.unwrap();
        let waiting = waits(&locks, "k", 10 * S);
        sleep(S).await;
        held.release().await.unwrap();
        waiting.await.unwrap().unwrap().release().await.unwrap();
    }
    assert_eq!((server.stats().connections, locks.metrics().connects), (3, 2));
    sleep(31 * S).await;
    assert_eq!(server.stats().connections, 2);
    assert_eq!(locks.metrics().connections, 1);
}

#[tokio::test(start_paused = true)]
async fn whoever_needs_one_connection_too_many_waits_for_it_and_is_told_so() {
    let server = TestServer::new();
    let rival = server.locks();
    let locks = server.builder().max_connections(3).connect_timeout(5 * S).build().unwrap();
    let _held = hold(&rival, 0..4).await;
    let waiting = [waits(&locks, "key-0", 100 * S), waits(&locks, "key-1", 100 * S)];
    sleep(S).await;
    let start = Instant::now();
    let error = waits(&locks, "key-2", 100 * S).await.unwrap().unwrap_err();
    assert_eq!((error.kind(), start.elapsed()), (ErrorKind::Overloaded, 5 * S), "{error}");
    assert!(error.to_string().contains("all 3 connections (max_connections)"), "{error}");
    assert_eq!(server.stats().connections, 4, "the rival's and three of ours");
    // A try needs none, and a wait that ends makes room.
    assert!(locks.lock("free").unwrap().try_acquire().await.unwrap().is_some());
    let third = waits(&locks, "key-2", 100 * S);
    sleep(S).await;
    waiting[0].abort();
    sleep(S).await;
    let waiters = server.stats().locks.iter().map(|lock| lock.waiters).sum::<u64>();
    assert_eq!(waiters, 2, "{:?}", server.stats());
    drop(_held);
    assert!(third.await.unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_overdue_sends_new_requests_by_another_connection() {
    let server = Server::new(ServerConfig::default()).unwrap();
    let silent = || script(&["ok 000000000000002a00112233445566aa 600\n"], false);
    let dial = Peers::first(silent, &server);
    let locks = LockClient::builder().dial(dial).build().unwrap();
    let long = LockOptions::new().lease_ttl(600 * S);
    let guard = locks.lock("one").unwrap().with_options(long).unwrap().acquire().await.unwrap();
    let stuck = waits(&locks, "two", 60 * S);
    sleep(S + S / 10).await;
    let next = timeout(S, locks.lock("three").unwrap().acquire()).await.expect("it is not stuck").unwrap();
    assert!(next.is_held() && guard.is_held(), "the first lease is not lost by that alone");
    assert!(stuck.await.unwrap().unwrap_err().is_timeout());
    assert_eq!(guard.lost().await, LostReason::KeepaliveTimeout);
    assert!(next.is_held());
}

#[tokio::test(start_paused = true)]
async fn a_table_too_large_to_read_costs_no_lease() {
    let server = TestServer::new();
    let locks = server.builder().max_stats_bytes(500).build().unwrap();
    let guards = hold(&locks, 0..4).await;
    assert_eq!(locks.stats().await.unwrap()[0].locks.len(), 4);
    let more = hold(&locks, 4..10).await;
    let error = locks.stats().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    assert!(error.to_string().contains("longer than 500 bytes"), "{error}");
    assert!(guards.iter().chain(&more).all(|guard| guard.is_held()));
    sleep(S).await;
    assert_eq!(server.stats().connections, 1, "what was asked over is closed");
}

#[tokio::test(start_paused = true)]
async fn a_closed_client_ends_what_waits_and_lets_go_of_what_it_held() {
    for frees in [true, false] {
        let config = ServerConfig { auto_release_on_disconnect: frees, ..Default::default() };
        let server = TestServer::with(config).unwrap();
        let (locks, rival) = (server.locks(), server.with_own_network().locks());
        let guards = hold(&locks, 0..20).await;
        let isolated = locks.lock("isolated").unwrap().isolated().acquire().await.unwrap();
        let forgotten = locks.lock("forgotten").unwrap().acquire().await.unwrap();
        forgotten.forget();
        let theirs = hold(&rival, 100..102).await;
        let waiting: Vec<_> =
            (0..6).map(|n| waits(&locks, &format!("key-{}", 100 + n % 2), 1000 * S)).collect();
        let Enqueued::Queued(ticket) = locks.lock("key-100").unwrap().enqueue().await.unwrap() else {
            panic!("it is taken")
        };
        let ticket = tokio::spawn(async move { ticket.wait(1000 * S).await });
        let working = tokio::spawn({
            let lost = guards[0].lost();
            async move { lost.run_until(std::future::pending::<()>()).await }
        });
        sleep(S).await;

        locks.close().await.unwrap();
        assert_eq!(working.await.unwrap(), Err(LostReason::ClientClosed));
        assert!(guards.iter().all(|guard| !guard.is_held()) && !isolated.is_held());
        for waiting in waiting.into_iter().chain([ticket]) {
            let error = waiting.await.unwrap().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ClientClosed, "{error}");
        }
        // At once: all that was let go, or not taken yet. A moment later the server has seen the connections
        // close, and what was forgotten goes with them, where it frees that.
        let ours =
            |stats: &StatsResult| stats.locks.iter().filter(|lock| !lock.key.starts_with("key-10")).count();
        let stats = server.stats();
        assert!(ours(&stats) <= 1 && stats.locks.iter().all(|lock| lock.waiters == 0), "{stats:?}");
        sleep(S / 100).await;
        let stats = server.stats();
        let kept = if frees { 2 } else { 3 };
        assert_eq!((stats.connections, stats.locks.len()), (1, kept), "frees: {frees}: {stats:?}");

        let clone = locks.clone();
        for error in [
            clone.lock("k").unwrap().acquire().await.unwrap_err(),
            clone.lock("k").unwrap().try_acquire().await.unwrap_err(),
            clone.lock("k").unwrap().isolated().acquire().await.unwrap_err(),
            clone.lock("k").unwrap().enqueue().await.unwrap_err(),
            clone.stats().await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::ClientClosed, "{error}");
        }
        clone.close().await.unwrap();
        assert_eq!(guards[0].lost().await, LostReason::ClientClosed);
        drop(guards);
        sleep(S).await;
        assert_eq!((server.stats().connections, locks.metrics().connections), (1, 0));
        assert!(theirs.iter().all(|guard| guard.is_held()));
    }
}

#[tokio::test(start_paused = true)]
async fn closing_takes_no_longer_than_its_limit() {
    let server = TestServer::new();
    let locks = server.locks();
    let guard = locks.lock("k").unwrap().acquire().await.unwrap();
    server.partition();
    let start = Instant::now();
    let error = locks.close().await.unwrap_err();
    assert_eq!((error.kind(), start.elapsed()), (ErrorKind::Timeout, 5 * S), "{error}");
    assert!(!guard.is_held());
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_crosses_the_close_is_given_back() {
    let server = TestServer::with(ServerConfig { auto_release_on_disconnect: false, ..Default::default() });
    let server = server.unwrap();
    for turns in 0..12 {
        let locks = server.locks();
        let acquiring = waits(&locks, "k", 10 * S);
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
        locks.close().await.unwrap();
        match acquiring.await.unwrap() {
            Ok(guard) => assert!(!guard.is_held(), "after {turns} turns"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ClientClosed, "after {turns} turns: {error}"),
        }
        sleep(S).await;
        assert!(server.stats().locks.is_empty(), "after {turns} turns: {:?}", server.stats());
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_counts_what_it_does() {
    let server = TestServer::new();
    let (locks, rival) = (server.locks(), server.with_own_network().locks());
    let one = locks.lock("one").unwrap().acquire().await.unwrap();
    let two = locks.lock("two").unwrap().acquire().await.unwrap();
    two.renew().await.unwrap();
    let _held = rival.lock("three").unwrap().acquire().await.unwrap();
    assert!(locks.lock("three").unwrap().try_acquire().await.unwrap().is_none());
    assert!(locks.lock("three").unwrap().acquire_within(2 * S).await.unwrap_err().is_busy());
    let metrics = locks.metrics();
    assert_eq!((metrics.connections, metrics.connects, metrics.leases), (2, 2, 2));
    assert_eq!((metrics.acquires, metrics.waits, metrics.waiting, metrics.failures), (2, 1, 0, 1));
    assert_eq!((metrics.renewals, metrics.releases, metrics.in_flight), (1, 0, 0));
    assert_eq!(metrics.acquire_latency.count(), 2);
    assert_eq!(metrics.acquire_latency.max(), Duration::ZERO, "nothing was waited for");
    assert!(metrics.round_trip_latency.count() >= 5, "{metrics:?}");
    one.release().await.unwrap();
    server.cut();
    two.lost().await;
    drop(two);
    sleep(S).await;
    let metrics = locks.metrics();
    assert_eq!((metrics.releases, metrics.losses, metrics.leases), (1, 1, 0), "{metrics:?}");
    assert_eq!(rival.metrics().acquires, 1, "clients count for themselves");
}

#[tokio::test(start_paused = true)]
async fn a_client_tells_how_long_its_acquires_and_its_requests_took() {
    let server = TestServer::new();
    let (locks, rival) = (server.locks(), server.with_own_network().locks());
    let free = locks.lock("free").unwrap().acquire().await.unwrap();
    let held = rival.lock("busy").unwrap().acquire().await.unwrap();
    let lock = locks.lock("busy").unwrap();
    let waiting = tokio::spawn(async move { lock.acquire().await.unwrap() });
    sleep(2 * S).await;
    held.release().await.unwrap();
    let _held = waiting.await.unwrap();
    let about = |took: Duration, told: Duration| took >= told && took <= told + told / 50;
    let latency = locks.metrics().acquire_latency;
    assert!(about(latency.max(), 2 * S) && about(latency.quantile(0.99), 2 * S), "{latency:?}");
    assert!(about(latency.mean(), S) && latency.quantile(0.5) < S && latency.count() == 2, "{latency:?}");
    // A request that is answered late.
    assert!(locks.metrics().round_trip_latency.max() < S, "a wait is none");
    server.partition();
    let renewing = tokio::spawn(async move { free.renew().await.map(|_| free) });
    sleep(3 * S).await;
    server.heal();
    let _free = renewing.await.unwrap().unwrap();
    let latency = locks.metrics().round_trip_latency;
    assert!(about(latency.max(), 3 * S) && latency.quantile(0.5) < S, "{latency:?}");
}

#[test]
fn settings_of_connections_that_cannot_work_are_refused() {
    let builder = LockClient::builder;
    for (builder, fault) in [
        (builder().shared_connections(0), "shared_connections is 0, the least is 1"),
        (builder().max_leases_per_connection(0), "max_leases_per_connection is 0, the least is 1"),
        (builder().max_unanswered_requests(0), "max_unanswered_requests is 0, the least is 1"),
        (builder().idle_timeout(Duration::ZERO), "idle_timeout is 0, it must be longer"),
        (
            builder().shared_connections(4).max_connections(4),
            "max_connections is 4, it must be more than shared_connections, which is 4",
        ),
    ] {
        let error = builder.build().unwrap_err();
        assert!(error.is_invalid_input());
        assert_eq!(error.to_string(), format!("invalid input: {fault}"));
    }
    assert!(builder().shared_connections(4).max_connections(5).build().is_ok());
    assert!(builder().max_connections(usize::MAX).max_unanswered_requests(1).build().is_ok());
}

#[tokio::test(start_paused = true)]
async fn one_server_of_many_that_is_down_holds_up_no_other() {
    let server = Server::new(ServerConfig::default()).unwrap();
    let dial = Peers::new(move |host, _| if host == "down" { End::Hangs } else { sound(&server) });
    let by_name = |key: &str, _: usize| usize::from(key.starts_with("down"));
    let builder = LockClient::builder().servers([("up", 1), ("down", 2)]).dial(dial);
    let locks = builder.sharding_strategy(by_name).build().unwrap();
    let down = waits(&locks, "down-1", 10 * S);
    let start = Instant::now();
    let _guards = hold(&locks, 0..100).await;
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert!(down.await.unwrap().unwrap_err().to_string().contains("down:2"));
}

#[test]
fn an_acquire_is_small_enough_to_be_moved_about() {
    let locks = LockClient::builder().build().unwrap();
    let (lock, slots) = (locks.lock("k").unwrap(), locks.semaphore("s", 2).unwrap());
    for (what, size) in [
        ("acquire", size_of_val(&lock.acquire())),
        ("try", size_of_val(&lock.try_acquire())),
        ("slot", size_of_val(&slots.acquire())),
        ("enqueue", size_of_val(&lock.enqueue())),
        ("stats", size_of_val(&locks.stats())),
    ] {
        assert!(size <= 512, "{what}: {size} bytes");
    }
}
