//! What a release means to every handle on the lease; and how long it is waited for, whatever keeps its
//! answer away.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use dflockd_client::test_util::TestServer;
use dflockd_client::{ErrorKind, Lease, LeaseGuard, LeaseState, LockClient, LostReason, Outcome};
use futures::future::{FutureExt, try_join_all};
use tokio::time::{Instant, sleep, timeout};

use crate::peers::{End, Peers, TOKEN, Wire};

const S: Duration = Duration::from_secs(1);

async fn hold_two(locks: &LockClient) -> [LeaseGuard; 2] {
    let acquires = (0..2).map(|n| {
        let lock = locks.lock(format!("key-{n}")).unwrap();
        async move { lock.acquire().await }
    });
    try_join_all(acquires).await.unwrap().try_into().unwrap()
}

/// A client of a peer that grants two keys, and then reads nothing more.
fn with_a_peer_that_falls_silent() -> LockClient {
    let dial = Peers::new(|_, _| {
        let (near, far) = tokio::io::duplex(64);
        tokio::spawn(async move {
            let mut wire = Wire::new(far);
            for token in [TOKEN, "000000000000002b00112233445566aa"] {
                wire.request().await;
                wire.send(format!("ok {token} 600\n")).await;
            }
            std::future::pending::<()>().await;
        });
        End::Open(Box::new(near))
    });
    LockClient::builder().dial(dial).build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_release_behind_a_way_that_is_full_ends_after_its_time() {
    let locks = with_a_peer_that_falls_silent();
    let [first, _second] = hold_two(&locks).await;
    let others = (2..12).map(|n| {
        let lock = locks.lock(format!("key-{n}")).unwrap();
        tokio::spawn(async move { lock.acquire_within(S).await })
    });
    let others: Vec<_> = others.collect();
    sleep(S).await;
    let start = Instant::now();
    let error = first.release().await.unwrap_err();
    assert_eq!((error.kind(), start.elapsed()), (ErrorKind::Timeout, 5 * S), "{error}");
    assert_eq!(error.to_string(), "release of \"key-0\" on 127.0.0.1:6388: timed out: no reply within 5 s");
    for waiting in others {
        assert!(waiting.await.unwrap().is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn closing_the_client_does_not_put_off_a_release() {
    let locks = with_a_peer_that_falls_silent();
    let [first, _second] = hold_two(&locks).await;
    let start = Instant::now();
    let releasing = tokio::spawn(first.release());
    sleep(3 * S).await;
    let closing = tokio::spawn(async move { locks.close().await });
    let error = releasing.await.unwrap().unwrap_err();
    assert_eq!((error.kind(), start.elapsed()), (ErrorKind::Timeout, 5 * S), "{error}");
    assert_eq!(closing.await.unwrap().unwrap_err().kind(), ErrorKind::Timeout);
    assert_eq!(start.elapsed(), 8 * S);
}

#[test]
fn a_release_ends_on_another_runtime_than_the_leases_which_stands_still() {
    let runtime =
        || tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let (ours, other) = (runtime(), runtime());
    let guard = ours.block_on(async {
        let server = TestServer::new();
        server.locks().lock("k").unwrap().acquire().await.unwrap()
    });
    let error = other.block_on(guard.release()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
}

type LetGo = fn(LeaseGuard);

/// The ways to let go of a lease on which there is another handle.
const WAYS: [(&str, LetGo); 4] = [
    ("release", |guard| drop(tokio::spawn(guard.release()))),
    ("drop", |guard| drop(guard)),
    ("forget", |guard| guard.forget()),
    ("release of a detached lease", |guard| {
        let lease = guard.detach();
        tokio::spawn(async move { lease.release().await });
    }),
];

async fn held(locks: &LockClient) -> (LeaseGuard, Lease) {
    let guard = locks.lock("k").unwrap().acquire().await.unwrap();
    let other = Lease::clone(&guard);
    (guard, other)
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_was_let_go_is_over_for_every_handle() {
    for (way, let_go) in WAYS {
        let server = TestServer::new();
        let (tell, events) = mpsc::channel();
        let builder = server.builder().on_event(move |event| drop(tell.send(format!("{:?}", event.kind))));
        let locks = builder.build().unwrap();
        let (guard, other) = held(&locks).await;
        let (lost, at_risk) = (tokio::spawn(other.lost()), tokio::spawn(other.at_risk()));
        let works = tokio::spawn(other.lost().run_until(std::future::pending::<()>()));
        let_go(guard);
        assert_eq!(timeout(S, lost).await.expect(way).unwrap(), LostReason::Released, "{way}");
        timeout(S, at_risk).await.expect(way).unwrap();
        assert_eq!(timeout(S, works).await.expect(way).unwrap(), Err(LostReason::Released), "{way}");
        assert_eq!(other.state(), LeaseState::Released, "{way}");
        assert_eq!(other.state().lost(), Some(LostReason::Released), "{way}");
        assert_eq!(other.lost().reason(), Some(LostReason::Released), "{way}");
        assert!(!other.is_held(), "{way}");
        let error = other.renew().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotHeld, "{way}: {error}");
        let error = other.release().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotHeld, "{way}: {error}");
        let run = other.run(async { panic!("work begins") }).await;
        assert_eq!(run, Outcome::Lost::<()>(LostReason::Released), "{way}");
        // Long after its deadline it is what it was.
        sleep(100 * S).await;
        assert_eq!(other.state(), LeaseState::Released, "{way}");
        drop((other, locks));
        let events: Vec<_> = events.iter().collect();
        let last = if way == "forget" { "Forgotten" } else { "Released" };
        assert_eq!(events, ["Granted { ttl: 33s }", last], "{way}");
    }
}

#[tokio::test(start_paused = true)]
async fn work_under_a_lease_ends_when_another_handle_lets_go_of_it() {
    for (way, let_go) in WAYS {
        let server = TestServer::new();
        let locks = server.locks();
        let (guard, lease) = held(&locks).await;
        let (work, start) = (Arc::new(()), Instant::now());
        let at_work = Arc::downgrade(&work);
        let run = tokio::spawn(async move {
            let work = async move {
                sleep(10 * S).await;
                drop(work);
            };
            (lease.run(work).await, start.elapsed())
        });
        sleep(S).await;
        let_go(guard);
        assert_eq!(run.await.unwrap(), (Outcome::Lost(LostReason::Released), S), "{way}");
        assert!(at_work.upgrade().is_none(), "{way}: it was not dropped");
    }
}

#[tokio::test(start_paused = true)]
async fn work_counts_as_completed_if_it_ended_before_the_release() {
    let server = TestServer::new();
    let locks = server.locks();
    // In one turn: the work ends, and then the lease is let go, or the other way round.
    for released_first in [false, true] {
        let (guard, lease) = held(&locks).await;
        let (finish, finished) = tokio::sync::oneshot::channel();
        let mut run = std::pin::pin!(lease.run(finished));
        assert!((&mut run).now_or_never().is_none());
        finish.send(7).unwrap();
        let outcome = if released_first {
            drop(guard);
            run.await
        } else {
            let outcome = run.await;
            drop(guard);
            outcome
        };
        let completed = Outcome::Completed(Ok(7));
        assert_eq!(outcome, if released_first { Outcome::Lost(LostReason::Released) } else { completed });
    }
    // Work that lets go itself was not done under the lease to its end.
    let (_guard, lease) = held(&locks).await;
    let outcome = lease.run(async { lease.release().await.map_err(|error| error.kind()) }).await;
    assert_eq!(outcome, Outcome::Lost(LostReason::Released));
}

#[tokio::test(start_paused = true)]
async fn a_loss_before_the_release_stands() {
    let server = TestServer::new();
    let locks = server.locks();
    let (guard, other) = held(&locks).await;
    server.cut();
    assert_eq!(other.lost().await, LostReason::ConnectionClosed);
    assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::LeaseLost);
    assert_eq!(other.state(), LeaseState::Lost(LostReason::ConnectionClosed));
    assert_eq!(other.renew().await.unwrap_err().kind(), ErrorKind::LeaseLost);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_a_release_overtakes_is_no_news() {
    let server = TestServer::new();
    let (tell, events) = mpsc::channel();
    let builder = server.builder().on_event(move |event| drop(tell.send(format!("{:?}", event.kind))));
    let locks = builder.build().unwrap();
    let (guard, other) = held(&locks).await;
    let mut renewal = Box::pin(other.renew());
    assert!((&mut renewal).now_or_never().is_none(), "it waits for its answer");
    guard.release().await.unwrap();
    let error = renewal.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotHeld, "{error}");
    drop((other, locks));
    assert_eq!(events.iter().collect::<Vec<_>>(), ["Granted { ttl: 33s }", "Released"]);
}

#[test]
fn threads_are_told_of_a_release_by_another() {
    let server = TestServer::new();
    let locks = server.builder().blocking().build().unwrap();
    let lease = locks.lock("k").unwrap().acquire().unwrap().detach();
    let outcome = lease.run(|lease| {
        let other = lease.clone();
        std::thread::spawn(move || other.release()).join().unwrap().unwrap();
        assert!(!lease.is_held());
    });
    assert_eq!(outcome, Outcome::Lost(LostReason::Released));
    assert_eq!((lease.lost(), lease.at_risk()), (LostReason::Released, LeaseState::Released));
    assert_eq!(lease.lost_timeout(Duration::ZERO), Some(LostReason::Released));
    assert_eq!(lease.at_risk_timeout(Duration::ZERO), LeaseState::Released);
    assert_eq!(lease.run(|_| panic!("work begins")), Outcome::Lost::<()>(LostReason::Released));
    assert_eq!(lease.renew().unwrap_err().kind(), ErrorKind::NotHeld);
}
