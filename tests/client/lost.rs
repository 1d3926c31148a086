//! A lease that is lost says so: with the reason, in time, to everyone who asks, and for good;
//! whatever the network or the server does.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use dflockd_client::failpoints::await_event_handlers;
use dflockd_client::server::{Server, ServerConfig};
use dflockd_client::test_util::TestServer;
use dflockd_client::{Builder, ClientTarget, ErrorKind, LeaseEventKind, LeaseState, LockClient, LostReason};
use futures::FutureExt;
use tokio::time::{Instant, advance, sleep, timeout};

use crate::faces::{Face, Guard, on_both_faces};
use crate::peers::{Peers, TOKEN, Wire, peer};

const S: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

on_both_faces!(
    a_close_and_a_reset_are_told_within_50_ms,
    the_first_rejected_renewal_is_the_end,
    a_renewal_to_a_shorter_ttl_is_lost_when_that_is_over,
    a_renewal_that_fails_in_another_way_is_tried_again_in_time,
    a_renewal_whose_answer_comes_too_late_is_tried_again,
    a_drained_servers_close_is_told_as_such,
);

fn server() -> Server {
    Server::new(ServerConfig::default()).unwrap()
}

fn networked() -> (TestServer, Builder<ClientTarget>) {
    let server = TestServer::new();
    (server.clone(), server.builder())
}

async fn hold(face: Face, builder: Builder<ClientTarget>, ttl: u32) -> Guard {
    let locks = face.build(builder.lease_ttl(ttl * S));
    locks.lock("k").unwrap().acquire().await.unwrap()
}

fn margin(guard: &Guard) -> Duration {
    (guard.ttl() / 50).min(500 * MS)
}

async fn a_close_and_a_reset_are_told_within_50_ms(face: Face) {
    for (what, ttl, after) in [("close", 600, 0), ("close", 600, 37), ("reset", 600, 0), ("reset", 33, 100)] {
        let (server, builder) = networked();
        let guard = hold(face, builder, ttl).await;
        let watch = tokio::spawn(guard.lost());
        sleep(after * S).await;
        assert!(guard.is_held(), "{what} after {after} s");
        let start = Instant::now();
        if what == "close" {
            server.cut()
        } else {
            server.reset()
        }
        assert_eq!(watch.await.unwrap(), LostReason::ConnectionClosed, "{what}");
        assert!(start.elapsed() <= 50 * MS || !face.is_exact(), "{what}: {:?}", start.elapsed());
        assert_eq!(guard.state(), LeaseState::Lost(LostReason::ConnectionClosed));
        assert!(!guard.is_held());
    }
}

async fn the_first_rejected_renewal_is_the_end(face: Face) {
    let (server, builder) = networked();
    let rejected = Arc::new(Mutex::new(Vec::new()));
    let seen = rejected.clone();
    let builder = builder.on_event(move |event| seen.lock().unwrap().push(format!("{:?}", event.kind)));
    let guard = hold(face, builder.renew_jitter(0.0), 10).await;
    server.expire_lease("k");
    let start = Instant::now();
    assert_eq!(guard.lost().await, LostReason::RenewalRejected);
    assert!(
        start.elapsed() <= 5 * S + 50 * MS || !face.is_exact(),
        "{:?}: it is due after 5 s",
        start.elapsed()
    );
    sleep(30 * S).await;
    await_event_handlers();
    let events = rejected.lock().unwrap().clone();
    assert_eq!(events, ["Granted { ttl: 10s }", "Lost(RenewalRejected)"]);
}

#[tokio::test(start_paused = true)]
async fn a_network_that_swallows_everything_loses_the_lease_in_time() {
    for (requests, replies) in [(true, true), (true, false), (false, true)] {
        for ttl in [1, 2, 5, 19, 20, 21, 25, 33, 60, 600] {
            for after in [0, 3, 8, 14, 47] {
                let what = format!("ttl {ttl} s, {requests}/{replies} swallowed after {after} s");
                let (server, builder) = networked();
                let guard = hold(Face::Tasks, builder, ttl).await;
                sleep(after * S).await;
                match (requests, replies) {
                    (true, true) => server.partition(),
                    (true, false) => server.hold_requests(),
                    _ => server.hold_replies(),
                }
                let (swallowed, deadline) = (Instant::now(), guard.deadline() - margin(&guard));
                let silent = swallowed + 20 * S;
                let reason = guard.lost().await;
                let now = Instant::now();
                assert!(
                    now <= deadline.min(silent) + 2 * MS,
                    "{what}: {:?} late",
                    now - deadline.min(silent)
                );
                assert!(now <= guard.deadline(), "{what}");
                match reason {
                    LostReason::DeadlinePassed => assert!(now >= deadline, "{what}: too early"),
                    LostReason::KeepaliveTimeout => {
                        assert!(now < deadline, "{what}: the deadline came first")
                    }
                    other => panic!("{what}: {other}"),
                }
                assert_eq!(reason == LostReason::DeadlinePassed, ttl <= 20 || now >= deadline, "{what}");
                assert!(!guard.is_held());
                // Whoever has the key now, or gets it next, comes after the loss was told.
                sleep(Duration::from_secs(ttl.into()) + 25 * S).await;
                let stats = server.stats();
                assert_eq!(stats.locks.len(), 0, "{what}: {stats:?}");
            }
        }
    }
}

/// What a scripted peer does with the renewals that it gets, after a grant of 33 s.
enum Answer {
    Now(&'static str),
    /// After so many seconds.
    After(u32, &'static str),
    Never,
}

/// A lease whose renewals are answered like this, and what happens to it.
async fn renewed_by(face: Face, answers: &'static [Answer]) -> (Guard, Arc<Mutex<Vec<String>>>) {
    let serve = move || {
        peer(move |far| async move {
            let mut wire = Wire::new(far);
            wire.request().await;
            wire.send(format!("ok {TOKEN} 33\n")).await;
            let mut answers = answers.iter();
            while let Some(request) = wire.request().await {
                if !request.starts_with("n ") {
                    wire.send("ok\n").await;
                    continue;
                }
                match answers.next() {
                    Some(Answer::Now(line)) => wire.send(line).await,
                    Some(Answer::After(pause, line)) => {
                        sleep(*pause * S).await;
                        wire.send(line).await;
                    }
                    Some(Answer::Never) => return wire.closed().await,
                    None => wire.send("ok 33\n").await,
                }
            }
        })
    };
    let events = Arc::new(Mutex::new(Vec::new()));
    let seen = events.clone();
    let builder = LockClient::builder().dial(Peers::first(serve, &server()));
    let builder = builder.on_event(move |event| {
        let change = match &event.kind {
            LeaseEventKind::RenewFailed(error) => format!("{:?}", error.kind()),
            LeaseEventKind::Lost(reason) => format!("{reason:?}"),
            other => format!("{other:?}").split(' ').next().unwrap().to_owned(),
        };
        seen.lock().unwrap().push(change);
    });
    // Not the silence is in question here.
    (hold(face, builder.renew_jitter(0.0).keepalive_interval(60 * S), 33).await, events)
}

async fn a_renewal_that_fails_in_another_way_is_tried_again_in_time(face: Face) {
    use Answer::Now;
    let (guard, events) = renewed_by(
        face,
        &[
            Now("error_draining\n"),
            Now("error_not_leader other:1\n"),
            Now("error_of_tomorrow with words\n"),
            Now("error_max_locks\n"),
        ],
    )
    .await;
    sleep(100 * S).await;
    assert!(guard.is_held());
    await_event_handlers();
    let events: Vec<_> = events.lock().unwrap().iter().take(6).cloned().collect();
    assert_eq!(events, ["Granted", "Draining", "NotLeader", "Server", "MaxLocks", "Renewed"]);
}

async fn a_renewal_whose_answer_comes_too_late_is_tried_again(face: Face) {
    let (guard, events) = renewed_by(face, &[Answer::After(6, "ok 33\n")]).await;
    assert_eq!(timeout(200 * S, guard.lost()).await.ok(), None);
    await_event_handlers();
    let events: Vec<_> = events.lock().unwrap().iter().take(3).cloned().collect();
    assert_eq!(events, ["Granted", "Timeout", "Renewed"]);
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_does_not_bring_a_lost_lease_back() {
    for looks in [false, true] {
        let (guard, events) = renewed_by(Face::Tasks, &[Answer::After(40, "ok 33\n")]).await;
        let start = Instant::now();
        sleep(33 * S).await;
        if looks {
            assert!(!guard.is_held());
        }
        let reason = guard.lost().await;
        assert!(start.elapsed() <= 33 * S + MS);
        sleep(60 * S).await;
        assert!(!guard.is_held());
        assert_eq!(guard.state(), LeaseState::Lost(reason));
        assert_eq!(guard.lost().now_or_never(), Some(reason));
        assert_eq!(guard.renew().await.unwrap_err().kind(), ErrorKind::LeaseLost);
        await_event_handlers();
        let events = events.lock().unwrap();
        assert_eq!(events.last(), Some(&format!("{reason:?}")), "{events:?}");
        assert_eq!(events.iter().filter(|event| **event == format!("{reason:?}")).count(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_looks_first_tells_all_who_wait() {
    let (server, builder) = networked();
    let Guard::Tasks(guard) = hold(Face::Tasks, builder, 5).await else { panic!("tasks hold it") };
    let (lost, at_risk) = (guard.lost(), tokio::spawn(guard.at_risk()));
    server.partition();
    // The clock goes on, and nothing but this task has run since.
    assert!(advance(6 * S).now_or_never().is_none());
    assert_eq!(lost.reason(), None, "it looks at no clock");
    assert!(!guard.is_held(), "this does");
    assert_eq!(lost.reason(), Some(LostReason::DeadlinePassed));
    assert_eq!(lost.now_or_never(), Some(LostReason::DeadlinePassed));
    at_risk.await.unwrap();
    assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::LeaseLost);
}

async fn a_renewal_to_a_shorter_ttl_is_lost_when_that_is_over(face: Face) {
    let (guard, _events) = renewed_by(face, &[Answer::Now("ok 2\n"), Answer::Never]).await;
    let start = Instant::now();
    assert_eq!(guard.renew().await.unwrap(), 2 * S);
    assert_eq!(guard.lost().await, LostReason::DeadlinePassed);
    assert!(start.elapsed() <= 2 * S || !face.is_exact(), "told {:?} after the renewal", start.elapsed());
}

async fn a_drained_servers_close_is_told_as_such(face: Face) {
    let server = TestServer::with(ServerConfig { shutdown_timeout: 20 * S, ..Default::default() }).unwrap();
    let locks = face.build(server.builder());
    let guard = locks.lock("k").unwrap().acquire().await.unwrap();
    let waiter = tokio::spawn({
        let lock = locks.lock("k").unwrap();
        async move { lock.acquire_within(100_000 * S).await.unwrap_err() }
    });
    sleep(S).await;
    server.drain();
    assert_eq!(waiter.await.unwrap().kind(), ErrorKind::Draining);
    assert!(guard.is_held(), "a server that drains lets its holders finish");
    assert_eq!(guard.lost().await, LostReason::ServerDraining);
}
