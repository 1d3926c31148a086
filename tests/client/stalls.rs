//! Links that stall and recover. A lease lives through every stall that ends before its connection
//! must count as lost: two keepalive intervals after the last request was sent that was answered.

// Dice alone are used of it.

use std::time::Duration;

use dflockd_client::server::ServerConfig;
use dflockd_client::test_util::TestServer;
use dflockd_client::{Enqueued, LeaseGuard, LockClient, LostReason, OnDisconnect};
use futures::FutureExt;
use tokio::time::{Instant, sleep, sleep_until};

use crate::turns::Dice;

const S: Duration = Duration::from_secs(1);
const TTL: Duration = Duration::from_secs(60);
/// After so long without a proof a connection is given up: two keepalive intervals.
const PATIENCE: Duration = Duration::from_secs(20);
/// What a round trip takes at most, in virtual time: nothing, but for the clock's own grain.
const GRAIN: Duration = Duration::from_millis(5);

fn client(server: &TestServer) -> LockClient {
    server.builder().lease_ttl(TTL).build().unwrap()
}

async fn hold(locks: &LockClient, key: &str) -> LeaseGuard {
    locks.lock(key).unwrap().acquire().await.unwrap()
}

/// Which way is stalled.
#[derive(Clone, Copy, Debug)]
enum Way {
    Both,
    Requests,
    Replies,
}

const WAYS: [Way; 3] = [Way::Both, Way::Requests, Way::Replies];

fn stall(server: &TestServer, way: Way) {
    match way {
        Way::Both => server.partition(),
        Way::Requests => server.hold_requests(),
        Way::Replies => server.hold_replies(),
    }
}

#[tokio::test(start_paused = true)]
async fn a_stall_that_is_over_before_its_time_costs_no_lease() {
    for way in WAYS {
        let server = TestServer::new();
        let locks = client(&server);
        let kept = hold(&locks, "kept").await;
        let dropped = hold(&locks, "dropped").await;
        // The release is under way when the ping would be due, and is answered late.
        stall(&server, way);
        drop(dropped);
        sleep(11 * S).await;
        server.heal();
        sleep(9 * S + S / 2).await;
        assert!(kept.is_held(), "{way:?}: {:?}", kept.state());
        sleep(600 * S).await;
        assert!(kept.is_held(), "{way:?}: {:?}", kept.state());
        assert_eq!((server.stats().locks.len(), locks.metrics().connects), (1, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_stall_that_outlasts_the_proof_costs_the_lease() {
    for way in WAYS {
        let server = TestServer::new();
        let kept = hold(&client(&server), "kept").await;
        sleep(3 * S).await;
        let began = Instant::now();
        stall(&server, way);
        assert_eq!(kept.lost().await, LostReason::KeepaliveTimeout);
        assert!(began.elapsed().abs_diff(PATIENCE - 3 * S) <= GRAIN, "{way:?}: {:?}", began.elapsed());
    }
}

/// What is asked while the link is stalled.
#[derive(Clone, Copy, Debug)]
enum Asks {
    Nothing,
    /// A guard is dropped.
    Release,
    /// A free key is taken.
    Try,
    /// The lease is renewed by hand.
    Renewal,
    /// A key that is busy is waited for.
    Wait,
}

const ASKS: [Asks; 5] = [Asks::Nothing, Asks::Release, Asks::Try, Asks::Renewal, Asks::Wait];

/// How the lease is held.
#[derive(Clone, Copy, Debug)]
enum Held {
    Shared,
    Isolated,
    /// It was waited for, and came long after it was asked for.
    Late,
}

/// One lease, and a stall from `start` to `end`, counted from its last proof; a request `after` the
/// stall began.
async fn lives_through(held: Held, way: Way, asks: Asks, start: Duration, end: Duration, after: Duration) {
    let what = format!("{held:?}, {way:?}, {start:?} to {end:?}, {asks:?} after {after:?}");
    let server = TestServer::new();
    let locks = client(&server);
    let _busy = hold(&server.locks(), "busy").await;
    let other = hold(&locks, "other").await;
    let kept = match held {
        Held::Shared => hold(&locks, "kept").await,
        Held::Isolated => locks.lock("kept").unwrap().isolated().acquire().await.unwrap(),
        Held::Late => {
            let before = hold(&server.locks(), "kept").await;
            let lock = locks.lock("kept").unwrap();
            let waiting = tokio::spawn(async move { lock.acquire_within(100 * S).await });
            sleep(33 * S).await;
            before.release().await.unwrap();
            let kept = waiting.await.unwrap().unwrap();
            // The other connection is proven as well.
            other.renew().await.unwrap();
            kept
        }
    };
    let began = Instant::now();
    sleep_until(began + start).await;
    stall(&server, way);
    sleep_until(began + (start + after).min(end)).await;
    let (lock, lease) = (locks.clone(), kept.clone());
    let asking = match asks {
        Asks::Nothing => None,
        Asks::Release => {
            drop(other);
            None
        }
        Asks::Try => Some(tokio::spawn(async move { hold(&lock, "free").await.release().await })),
        Asks::Renewal => Some(tokio::spawn(async move { lease.renew().await.map(drop) })),
        Asks::Wait => {
            Some(tokio::spawn(
                async move { lock.lock("busy").unwrap().acquire_within(2 * S).await.map(drop) },
            ))
        }
    };
    sleep_until(began + end).await;
    server.heal();
    sleep(100 * S).await;
    assert!(kept.is_held(), "{what}: {:?}", kept.state());
    // What became of it is another matter, but it came to something.
    assert!(asking.is_none_or(|asking| asking.is_finished()), "{what}: it hangs");
    kept.release().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn no_stall_that_is_over_before_its_time_costs_a_lease_whenever_it_begins() {
    let step = S * 5 / 2;
    for held in [Held::Shared, Held::Isolated, Held::Late] {
        for asks in ASKS {
            for way in WAYS {
                // Pings come every ten seconds: what begins later begins after a later proof.
                for start in (0..4).map(|n| n * step) {
                    for end in (1..8).map(|n| n * step).filter(|end| *end > start) {
                        lives_through(held, way, asks, start, end - GRAIN, Duration::ZERO).await;
                    }
                    lives_through(held, way, asks, start, PATIENCE - GRAIN, Duration::ZERO).await;
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn random_stalls_cost_no_lease_either() {
    for seed in 0..500 {
        let mut dice = Dice::new(seed);
        // Half of them at once, which is the hardest: the proof is then as old as what is asked.
        let mut millis = |below: u64| Duration::from_millis(dice.below(2) * dice.below(below));
        let start = millis(9_990);
        let end = PATIENCE - GRAIN - millis(19_990 - start.as_millis() as u64);
        let after = millis(end.as_millis() as u64 + 1);
        let held = [Held::Shared, Held::Isolated, Held::Late][dice.below(3) as usize];
        let (way, asks) = (WAYS[dice.below(3) as usize], ASKS[dice.below(5) as usize]);
        println!("seed {seed}");
        lives_through(held, way, asks, start, end, after).await;
    }
}

#[tokio::test(start_paused = true)]
async fn stalls_one_after_another_cost_no_lease() {
    for seed in 0..60 {
        let mut dice = Dice::new(seed);
        let server = TestServer::new();
        let locks = client(&server);
        let kept = hold(&locks, "kept").await;
        for _ in 0..20 {
            sleep(Duration::from_millis(dice.below(12_000))).await;
            stall(&server, WAYS[dice.below(3) as usize]);
            // Something is asked in the middle of it, or not.
            let asked = dice.below(2) == 0;
            sleep(Duration::from_millis(dice.below(5_000))).await;
            let lock = locks.lock("free").unwrap();
            let asking = asked.then(|| tokio::spawn(async move { lock.try_acquire().await.map(drop) }));
            sleep(Duration::from_millis(dice.below(4_900))).await;
            server.heal();
            sleep(GRAIN).await;
            assert!(asking.is_none_or(|asking| asking.now_or_never().is_some()), "seed {seed}: it hangs");
            assert!(kept.is_held(), "seed {seed}: {:?}", kept.state());
        }
        kept.release().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_may_reattach_keeps_its_connection_through_a_stall() {
    let server = TestServer::with(ServerConfig { auto_release_on_disconnect: false, ..Default::default() });
    let server = server.unwrap();
    let locks = server.builder().lease_ttl(TTL).on_disconnect(OnDisconnect::Reattach).build().unwrap();
    let (kept, dropped) = (hold(&locks, "kept").await, hold(&locks, "dropped").await);
    server.partition();
    drop(dropped);
    sleep(PATIENCE - GRAIN).await;
    server.heal();
    sleep(600 * S).await;
    assert!(kept.is_held());
    assert_eq!((locks.metrics().connects, server.stats().connections), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_ticket_keeps_its_place_through_a_stall() {
    for way in WAYS {
        for end in (1..10).map(|n| n * 2 * S).chain([PATIENCE]) {
            let server = TestServer::new();
            let locks = client(&server);
            let holder = hold(&server.locks(), "k").await;
            let Enqueued::Queued(ticket) = locks.lock("k").unwrap().enqueue().await.unwrap() else {
                panic!("it is held")
            };
            stall(&server, way);
            sleep(end - GRAIN).await;
            server.heal();
            sleep(50 * S).await;
            assert_eq!(server.stats().locks[0].waiters, 1, "{way:?}, {end:?}");
            // On another connection of the same server, which had its stall too.
            drop(holder);
            let guard = ticket.wait(S).await.unwrap_or_else(|error| panic!("{way:?}, {end:?}: {error}"));
            guard.release().await.unwrap();
        }
    }
}
