//! Leases on servers that keep what a closed connection held: lost with their connection unless
//! told to reattach, and then renewed by token over another while they last, and not longer.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use dflockd_client::failpoints::await_event_handlers;
use dflockd_client::server::{Server, ServerConfig};
use dflockd_client::test_util::TestServer;
use dflockd_client::{
    ErrorKind, LeaseEventKind, LeaseState, LockClient, LockOptions, LostReason, OnDisconnect,
};
use tokio::time::{Instant, sleep, timeout};

use crate::faces::{Face, Guard, on_both_faces};
use crate::peers::{End, Peers, Wire, peer, sound};

const S: Duration = Duration::from_secs(1);

on_both_faces!(
    a_lease_that_reattaches_is_at_risk_until_it_is_renewed_over_another_connection,
    a_late_release_does_not_touch_a_newer_lease,
    a_renewal_names_the_ttl_that_was_asked_for,
    a_renewal_names_the_ttl_that_was_granted_where_none_was_asked_for,
);

fn keeping() -> ServerConfig {
    ServerConfig { auto_release_on_disconnect: false, ..ServerConfig::default() }
}

async fn hold(face: Face, server: &TestServer, on_disconnect: OnDisconnect) -> Guard {
    let builder = server.builder().on_disconnect(on_disconnect).lease_ttl(60 * S);
    face.build(builder).lock("k").unwrap().acquire().await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_ends_loses_the_lease_unless_told_otherwise() {
    let server = TestServer::with(keeping()).unwrap();
    let guard = hold(Face::Tasks, &server, OnDisconnect::default()).await;
    server.cut();
    assert_eq!(timeout(S / 20, guard.lost()).await, Ok(LostReason::ConnectionClosed));
}

/// What happens next, by the test's time.
async fn next(events: &mpsc::Receiver<LeaseEventKind>) -> LeaseEventKind {
    loop {
        await_event_handlers();
        match events.try_recv() {
            Ok(event) => return event,
            Err(_) => sleep(Duration::from_millis(1)).await,
        }
    }
}

async fn a_lease_that_reattaches_is_at_risk_until_it_is_renewed_over_another_connection(face: Face) {
    let server = TestServer::with(keeping()).unwrap();
    let (told, heard) = mpsc::channel();
    let builder = server.builder().on_event(move |event| drop(told.send(event.kind.clone())));
    let client = face.build(builder.on_disconnect(OnDisconnect::Reattach).lease_ttl(60 * S));
    let guard = client.lock("k").unwrap().acquire().await.unwrap();
    assert!(matches!(next(&heard).await, LeaseEventKind::Granted { .. }));
    for _ in 0..5 {
        let (fence, deadline) = (guard.fence(), guard.deadline());
        sleep(S).await;
        server.cut();
        assert!(matches!(next(&heard).await, LeaseEventKind::AtRisk));
        assert!(guard.is_held());
        assert!(matches!(next(&heard).await, LeaseEventKind::Renewed { .. }));
        assert_eq!(guard.state(), LeaseState::Healthy);
        assert!(guard.deadline() > deadline);
        assert_eq!(guard.fence(), fence);
    }
    sleep(600 * S).await;
    assert!(guard.is_held());
    guard.release().await.unwrap();
    assert!(server.stats().locks.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_cannot_reattach_is_lost_at_its_deadline() {
    let server = Server::new(keeping()).unwrap();
    let down = Arc::new(AtomicBool::new(false));
    let is_down = down.clone();
    let dial = Peers::new(move |_, _| {
        if is_down.load(Ordering::SeqCst) {
            return End::Fails(io::ErrorKind::ConnectionRefused);
        }
        let (way, is_down) = (server.clone(), is_down.clone());
        peer(move |far| async move {
            let goes_down = async {
                while !is_down.load(Ordering::SeqCst) {
                    sleep(S / 10).await;
                }
            };
            tokio::select! {
                () = way.serve_stream(far) => {}
                () = goes_down => {}
            }
        })
    });
    let dials = dial.dials();
    let builder = LockClient::builder().dial(dial).on_disconnect(OnDisconnect::Reattach).lease_ttl(60 * S);
    let guard = builder.build().unwrap().lock("k").unwrap().acquire().await.unwrap();
    down.store(true, Ordering::SeqCst);
    let start = Instant::now();
    assert_eq!(guard.lost().await, LostReason::DeadlinePassed);
    assert!(start.elapsed() < 60 * S && start.elapsed() > 59 * S, "{:?}", start.elapsed());
    let dials = dials.load(Ordering::SeqCst);
    assert!((20..200).contains(&dials), "{dials} dials");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_frees_what_a_closed_connection_held_refuses_the_renewal() {
    let server = TestServer::new();
    let guard = hold(Face::Tasks, &server, OnDisconnect::Reattach).await;
    server.cut();
    assert_eq!(timeout(S, guard.lost()).await, Ok(LostReason::RenewalRejected));
}

#[tokio::test(start_paused = true)]
async fn a_release_goes_by_another_connection_where_its_own_has_ended() {
    let server = TestServer::with(keeping()).unwrap();
    let guard = hold(Face::Tasks, &server, OnDisconnect::Reattach).await;
    server.cut();
    guard.release().await.unwrap();
    assert!(server.stats().locks.is_empty());

    let guard = hold(Face::Tasks, &server, OnDisconnect::Reattach).await;
    server.cut();
    drop(guard);
    sleep(S / 10).await;
    assert!(server.stats().locks.is_empty());
}

async fn a_late_release_does_not_touch_a_newer_lease(face: Face) {
    let server = TestServer::with(keeping()).unwrap();
    let old = hold(face, &server, OnDisconnect::Lost).await;
    server.cut();
    old.lost().await;
    sleep(61 * S).await;
    let new = hold(face, &server, OnDisconnect::Lost).await;
    let error = old.release().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LeaseLost, "{error}");
    sleep(S).await;
    assert!(new.is_held());
    assert_eq!(server.stats().locks.len(), 1);
    new.renew().await.unwrap();
}

async fn a_renewal_names_the_ttl_that_was_asked_for(face: Face) {
    let server = TestServer::new();
    let seven = LockOptions::new().lease_ttl(7 * S);
    let guard = face.build(server.builder()).lock("k").unwrap().with(seven).unwrap().acquire().await.unwrap();
    sleep(60 * S).await;
    assert_eq!(guard.renew().await.unwrap(), 7 * S);
    assert!(server.stats().locks[0].lease_expires_in_s <= 7.0);
}

async fn a_renewal_names_the_ttl_that_was_granted_where_none_was_asked_for(face: Face) {
    let (told, mut asked) = tokio::sync::mpsc::unbounded_channel();
    let dial = Peers::new(move |_, _| {
        let told = told.clone();
        peer(move |far| async move {
            let mut wire = Wire::new(far);
            for reply in [format!("ok {} 41\n", crate::peers::TOKEN), "ok 41\n".into()] {
                let Some(request) = wire.request().await else { return };
                told.send(request).unwrap();
                wire.send(reply).await;
            }
            wire.closed().await;
        })
    });
    let guard = face.build(LockClient::builder().dial(dial)).lock("k").unwrap().acquire().await.unwrap();
    guard.renew().await.unwrap();
    assert_eq!(asked.recv().await.unwrap(), "l k 0");
    assert_eq!(asked.recv().await.unwrap(), format!("n k {} 41", crate::peers::TOKEN));
}

#[tokio::test(start_paused = true)]
async fn a_reattached_lease_leaves_one_connection_behind() {
    let server = Server::new(keeping()).unwrap();
    let way = server.clone();
    let builder = LockClient::builder().dial(Peers::new(move |_, _| sound(&way)));
    let client = builder.on_disconnect(OnDisconnect::Reattach).build().unwrap();
    let guard = client.lock("k").unwrap().acquire().await.unwrap();
    sleep(100 * S).await;
    assert_eq!(server.stats().connections, 1);
    guard.release().await.unwrap();
    drop(client);
    sleep(S).await;
    assert_eq!(server.stats().connections, 0);
}
