//! How a lease stands, from its grant to its loss: healthy, at risk, lost, and who is told when.
//! Work that runs under a lease, and leases that outlive whoever acquired them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dflockd_client::failpoints::await_event_handlers;
use dflockd_client::test_util::TestServer;
use dflockd_client::{
    Builder, ClientTarget, Lease, LeaseEventKind, LeaseGuard, LeaseState, LostReason, Outcome,
};
use futures::FutureExt;
use tokio::time::{Instant, sleep, timeout};

use crate::faces::{Face, Guard, on_both_faces};
use crate::turns::Dice;

const S: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

on_both_faces!(
    a_lease_is_at_risk_when_the_share_that_was_set_is_left,
    a_renewal_in_time_heals_a_lease_at_risk,
);

fn networked() -> (TestServer, Builder<ClientTarget>) {
    let server = TestServer::new();
    (server.clone(), server.builder())
}

async fn held_by(face: Face, builder: Builder<ClientTarget>, ttl: u32) -> Guard {
    let locks = face.build(builder.lease_ttl(ttl * S));
    locks.lock("k").unwrap().acquire().await.unwrap()
}

async fn hold(builder: Builder<ClientTarget>, ttl: u32) -> LeaseGuard {
    let locks = builder.lease_ttl(ttl * S).build().unwrap();
    locks.lock("k").unwrap().acquire().await.unwrap()
}

async fn a_lease_is_at_risk_when_the_share_that_was_set_is_left(face: Face) {
    for (ratio, left) in [(0.1, S), (0.25, 5 * S / 2), (0.5, 5 * S), (0.9, 9 * S)] {
        let (server, builder) = networked();
        // The lease counts from before its request: by the real clock of threads, that is before the guard.
        let start = Instant::now();
        let guard = held_by(face, builder.at_risk_ratio(ratio), 10).await;
        server.partition();
        guard.at_risk().await;
        let due = 10 * S - left;
        let took = start.elapsed();
        assert!(took >= due && (took <= due + 2 * MS || !face.is_exact()), "{ratio}: {took:?}");
        assert!(guard.is_held() || !face.is_exact(), "{ratio}");
        assert!(guard.state() == LeaseState::AtRisk || !face.is_exact(), "{ratio}");
    }
}

async fn a_renewal_in_time_heals_a_lease_at_risk(face: Face) {
    let (server, builder) = networked();
    let guard = held_by(face, builder, 10).await;
    for _ in 0..5 {
        server.hold_requests();
        guard.at_risk().await;
        assert_eq!(guard.state(), LeaseState::AtRisk);
        server.heal();
        sleep(S / 10).await;
        assert_eq!(guard.state(), LeaseState::Healthy);
    }
}

/// The network fails and recovers at random; a rival is after the key all the while.
async fn live_with_a_flaky_network(seed: u64) -> (LostReason, usize) {
    let mut dice = Dice::new(seed);
    let (server, builder) = networked();
    let events = Arc::new(Mutex::new(Vec::new()));
    let seen = events.clone();
    let builder = builder.on_event(move |event| seen.lock().unwrap().push(event.kind.clone()));
    let ttl = [2, 5, 10, 33, 120][dice.below(5) as usize];
    let guard = hold(builder.keepalive_interval(Duration::from_secs(2 + dice.below(8))), ttl).await;
    let rival = server.with_own_network().locks().lock("k").unwrap();
    let mut rival = tokio::spawn(async move { rival.acquire_within(100_000 * S).await.unwrap() });
    let mut holds_up_until = Instant::now();
    let (mut before, mut samples, start) = (guard.state(), 0, Instant::now());
    loop {
        sleep(Duration::from_millis(7 + dice.below(40))).await;
        samples += 1;
        let (state, now) = (guard.state(), Instant::now());
        await_event_handlers();
        let renewed = std::mem::take(&mut *events.lock().unwrap());
        let renewed = renewed.iter().any(|event| matches!(event, LeaseEventKind::Renewed { .. }));
        match (before, state) {
            (LeaseState::Lost(reason), now) => assert_eq!(now, LeaseState::Lost(reason), "seed {seed}"),
            (LeaseState::AtRisk, LeaseState::Healthy) => assert!(renewed, "seed {seed}: healed by nothing"),
            (LeaseState::Healthy, LeaseState::Lost(LostReason::DeadlinePassed)) => {
                panic!("seed {seed}: lost without a warning")
            }
            _ => {}
        }
        assert!(guard.deadline() > now || state.lost().is_some(), "seed {seed}: held past its deadline");
        assert_eq!(guard.is_held(), state.lost().is_none(), "seed {seed}");
        if (&mut rival).now_or_never().is_some() {
            let reason = state.lost().unwrap_or_else(|| panic!("seed {seed}: two hold the key"));
            return (reason, samples);
        }
        before = state;
        if now >= holds_up_until {
            let flaky = dice.below(4) == 0;
            match (flaky, flaky && dice.below(2) == 0) {
                (true, true) => server.partition(),
                (true, false) => server.hold_replies(),
                _ => server.heal(),
            }
            holds_up_until = now + Duration::from_millis(dice.below(if flaky { 25_000 } else { 5_000 }));
        }
        if now > start + 600 * S {
            // It has proved itself; now to the end.
            server.partition();
        }
        assert!(now < start + 2000 * S, "seed {seed}: nobody ever gets the key");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_over_a_flaky_network_goes_from_healthy_to_at_risk_and_back_and_once_to_lost() {
    let mut reasons = HashMap::new();
    for seed in 0..60 {
        let (reason, samples) = live_with_a_flaky_network(seed).await;
        println!("seed {seed}: {reason:?} after {samples} looks");
        *reasons.entry(reason).or_insert(0) += 1;
    }
    for reason in [LostReason::DeadlinePassed, LostReason::KeepaliveTimeout] {
        assert!(reasons.contains_key(&reason), "the dice never come to {reason:?}: {reasons:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn every_task_that_has_the_signal_hears_of_the_loss() {
    let (server, builder) = networked();
    let guard = hold(builder, 600).await;
    let lost = guard.lost();
    let children: Vec<_> = (0..10)
        .map(|n| {
            let lost = lost.clone();
            tokio::spawn(async move {
                // Some wait already, some look in later, some ask twice.
                sleep(n * S).await;
                let twin = lost.clone();
                (lost.await, twin.await)
            })
        })
        .collect();
    sleep(5 * S).await;
    drop(lost);
    server.cut();
    for child in children {
        let heard = timeout(10 * S, child).await.expect("it hears of it").unwrap();
        assert_eq!(heard, (LostReason::ConnectionClosed, LostReason::ConnectionClosed));
    }
}

#[tokio::test(start_paused = true)]
async fn work_is_dropped_at_once_when_the_lease_is_lost() {
    let (server, builder) = networked();
    let guard = hold(builder, 600).await;
    let work = Arc::new(());
    let alive = Arc::downgrade(&work);
    let run = guard.run(async move {
        sleep(100 * S).await;
        drop(work);
    });
    let cut = async {
        sleep(3 * S).await;
        server.cut();
        Instant::now()
    };
    let (outcome, cut) = tokio::join!(
        async {
            let outcome = run.await;
            assert!(alive.upgrade().is_none(), "the work is still there");
            (outcome, Instant::now())
        },
        cut
    );
    assert_eq!(outcome.0, Outcome::Lost(LostReason::ConnectionClosed));
    assert!(outcome.1 <= cut + 50 * MS);
    // Work does not begin under a lost lease.
    assert_eq!(
        guard.run(async { panic!("it ran") }).await,
        Outcome::Lost::<()>(LostReason::ConnectionClosed)
    );
}

#[tokio::test(start_paused = true)]
async fn work_that_ends_in_time_is_completed() {
    let (_server, builder) = networked();
    let guard = hold(builder, 2).await;
    let work = async {
        sleep(60 * S).await;
        "done"
    };
    assert_eq!(guard.run(work).await, Outcome::Completed("done"));
    assert!(guard.is_held());
}

/// As hyper drops a handler when its client goes away.
#[tokio::test(start_paused = true)]
async fn a_detached_lease_outlives_the_handler_that_took_it() {
    let (server, builder) = networked();
    let locks = builder.lease_ttl(3 * S).build().unwrap();
    let uploads: Arc<Mutex<HashMap<String, Lease>>> = Arc::default();
    let handler = tokio::spawn({
        let (locks, uploads) = (locks.clone(), uploads.clone());
        async move {
            let lease = locks.lock("k").unwrap().acquire().await.unwrap().detach();
            uploads.lock().unwrap().insert("k".into(), lease);
            std::future::pending::<()>().await
        }
    });
    sleep(S).await;
    handler.abort();
    assert!(handler.await.unwrap_err().is_cancelled());
    sleep(300 * S).await;
    let lease = uploads.lock().unwrap().remove("k").unwrap();
    assert!(lease.is_held());
    assert_eq!(lease.state(), LeaseState::Healthy);
    assert!(locks.lock("k").unwrap().try_acquire().await.unwrap().is_none());
    lease.release().await.unwrap();
    assert!(server.stats().locks.is_empty());
}
