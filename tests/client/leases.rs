//! Leases end to end, in virtual time: client and server of this crate over pipes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dflockd_client::server::ServerConfig;
use dflockd_client::test_util::TestServer;
use dflockd_client::{ErrorKind, LockOptions, LostReason, Outcome};
use tokio::time::{sleep, timeout};

use crate::faces::{Enqueued, Face, on_both_faces};

const S: Duration = Duration::from_secs(1);
/// Longer than anything takes, also where time goes on in its own way.
const LONG: Duration = Duration::from_secs(1_000_000);

on_both_faces!(
    a_lease_of_two_seconds_is_held_for_an_hour,
    a_quiet_lease_outlives_the_servers_read_timeout,
    a_ticket_keeps_its_place_for_minutes,
    a_dropped_ticket_leaves_the_queue,
    busy_is_an_error_and_for_a_try_none,
    a_lease_released_behind_its_holder_is_lost_at_the_next_renewal,
    a_closed_connection_loses_the_lease_at_once,
    a_draining_server_says_so,
    a_semaphore_is_never_over_its_limit,
    a_wrong_auth_token_is_permission_denied,
    a_forgotten_lease_keeps_the_key_until_it_runs_out,
    a_detached_lease_lives_on_and_is_released_once,
);

fn ttl(seconds: u32) -> LockOptions {
    LockOptions::new().lease_ttl(seconds * S)
}

async fn a_lease_of_two_seconds_is_held_for_an_hour(face: Face) {
    let server = TestServer::new();
    let lock = face.build(server.builder()).lock("k").unwrap().with(ttl(2)).unwrap();
    let guard = lock.acquire().await.unwrap();
    sleep(3600 * S).await;
    assert!(guard.is_held());
    assert!(lock.try_acquire().await.unwrap().is_none());
    guard.release().await.unwrap();
    assert!(lock.try_acquire().await.unwrap().is_some());
}

async fn a_quiet_lease_outlives_the_servers_read_timeout(face: Face) {
    let server = TestServer::new();
    let lock = face.build(server.builder()).lock("k").unwrap().with(ttl(600)).unwrap();
    let guard = lock.acquire().await.unwrap();
    sleep(290 * S).await;
    assert!(guard.is_held());
    assert_eq!(server.stats().locks.len(), 1);
}

async fn a_ticket_keeps_its_place_for_minutes(face: Face) {
    let server = TestServer::new();
    let lock = face.build(server.builder()).lock("k").unwrap();
    let Enqueued::Acquired(guard) = lock.enqueue().await.unwrap() else { panic!("the key was free") };
    let Enqueued::Queued(ticket) = lock.enqueue().await.unwrap() else { panic!("the key was taken") };
    sleep(180 * S).await;
    assert!(guard.is_held());
    let late = lock.clone();
    let late = tokio::spawn(async move { late.acquire_within(LONG).await.unwrap() });
    sleep(S).await;
    guard.release().await.unwrap();
    let guard = ticket.wait(LONG).await.unwrap();
    assert!(guard.is_held() && !late.is_finished());
    drop(guard);
    assert!(late.await.unwrap().is_held());
}

async fn a_dropped_ticket_leaves_the_queue(face: Face) {
    let server = TestServer::new();
    let lock = face.build(server.builder()).lock("k").unwrap();
    let guard = lock.acquire().await.unwrap();
    let Enqueued::Queued(ticket) = lock.enqueue().await.unwrap() else { panic!("the key was taken") };
    assert_eq!(server.stats().locks[0].waiters, 1);
    drop(ticket);
    sleep(S).await;
    assert_eq!(server.stats().locks[0].waiters, 0);
    drop(guard);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_acquire_leaves_the_queue() {
    let server = TestServer::new();
    let lock = server.locks().lock("k").unwrap();
    let guard = lock.acquire().await.unwrap();
    assert!(timeout(3 * S, lock.acquire()).await.is_err());
    sleep(S).await;
    assert_eq!(server.stats().locks[0].waiters, 0);
    guard.release().await.unwrap();
    sleep(S).await;
    assert!(server.stats().locks.is_empty());
}

async fn busy_is_an_error_and_for_a_try_none(face: Face) {
    let server = TestServer::new();
    let lock = face.build(server.builder()).lock("k").unwrap();
    let guard = lock.acquire().await.unwrap();
    let error = lock.acquire_within(2 * S).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert_eq!(error.to_string(), "acquire of \"k\" on 127.0.0.1:6388: the key stayed busy");
    assert!(lock.try_acquire().await.unwrap().is_none());
    drop(guard);
}

async fn a_lease_released_behind_its_holder_is_lost_at_the_next_renewal(face: Face) {
    let server = TestServer::new();
    let client = face.build(server.builder());
    let guard = client.lock("k").unwrap().with(ttl(10)).unwrap().acquire().await.unwrap();
    dflockd_client::command::release(&server.conn(), "k", &guard.token()).await.unwrap();
    assert_eq!(guard.lost().await, LostReason::RenewalRejected);
    assert!(!guard.is_held());
    assert_eq!(guard.run_nothing().await, Outcome::Lost(LostReason::RenewalRejected));
    assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::LeaseLost);
}

async fn a_closed_connection_loses_the_lease_at_once(face: Face) {
    let server = TestServer::new();
    let guard =
        face.build(server.builder()).lock("k").unwrap().with(ttl(600)).unwrap().acquire().await.unwrap();
    server.cut();
    let lost = timeout(if face.is_exact() { S } else { 100 * S }, guard.lost()).await;
    assert_eq!(lost, Ok(LostReason::ConnectionClosed));
}

async fn a_draining_server_says_so(face: Face) {
    let server = TestServer::new();
    let lock = face.build(server.builder()).lock("k").unwrap();
    let guard = lock.acquire().await.unwrap();
    let waiter = tokio::spawn({
        let lock = lock.clone();
        async move { lock.acquire_within(LONG).await.unwrap_err() }
    });
    sleep(S).await;
    server.drain();
    assert_eq!(waiter.await.unwrap().kind(), ErrorKind::Draining);
    guard.release().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn two_hundred_tasks_never_share_the_lock() {
    let server = TestServer::new();
    let client = server.locks();
    let (counter, inside) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut tasks = Vec::new();
    for _ in 0..200 {
        let lock = client.lock("k").unwrap();
        let (counter, inside) = (counter.clone(), inside.clone());
        tasks.push(tokio::spawn(async move {
            let guard = lock.acquire_within(600 * S).await.unwrap();
            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
            let seen = counter.load(Ordering::SeqCst);
            sleep(S / 100).await;
            counter.store(seen + 1, Ordering::SeqCst);
            inside.fetch_sub(1, Ordering::SeqCst);
            let fence = guard.fence().unwrap();
            guard.release().await.unwrap();
            fence
        }));
    }
    let mut fences = Vec::new();
    for task in tasks {
        fences.push(task.await.unwrap());
    }
    assert_eq!(counter.load(Ordering::SeqCst), 200);
    fences.sort_unstable();
    fences.dedup();
    assert_eq!(fences.len(), 200);
}

async fn a_semaphore_is_never_over_its_limit(face: Face) {
    let server = TestServer::new();
    let client = face.build(server.builder());
    let (inside, most) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let tasks = (0..30).map(|_| {
        let semaphore = client.semaphore("slots", 3).unwrap();
        let (inside, most) = (inside.clone(), most.clone());
        tokio::spawn(async move {
            let guard = semaphore.acquire_within(LONG).await.unwrap();
            most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            sleep(S).await;
            inside.fetch_sub(1, Ordering::SeqCst);
            drop(guard);
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    assert_eq!(most.load(Ordering::SeqCst), 3);
}

async fn a_wrong_auth_token_is_permission_denied(face: Face) {
    let server =
        TestServer::with(ServerConfig { auth_token: Some("right".into()), ..Default::default() }).unwrap();
    let lock = |token: &str| face.build(server.builder().auth_token(token)).lock("k").unwrap();
    let error = lock("wrong").acquire().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    assert_eq!(std::io::Error::from(error).kind(), std::io::ErrorKind::PermissionDenied);
    assert!(lock("right").acquire().await.is_ok());
    let error = face.build(server.builder()).lock("k").unwrap().acquire().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Auth);
}

async fn a_forgotten_lease_keeps_the_key_until_it_runs_out(face: Face) {
    let server = TestServer::new();
    let lock = face.build(server.builder()).lock("k").unwrap().with(ttl(10)).unwrap();
    lock.acquire().await.unwrap().forget();
    sleep(8 * S).await;
    assert!(lock.try_acquire().await.unwrap().is_none());
    sleep(3 * S).await;
    assert!(lock.try_acquire().await.unwrap().is_some());
}

async fn a_detached_lease_lives_on_and_is_released_once(face: Face) {
    let server = TestServer::new();
    let lock = face.build(server.builder()).lock("k").unwrap().with(ttl(2)).unwrap();
    let lease = lock.acquire().await.unwrap().detach();
    let twin = lease.clone();
    sleep(60 * S).await;
    assert!(lease.is_held());
    lease.release().await.unwrap();
    assert_eq!(twin.release().await.unwrap_err().kind(), ErrorKind::NotHeld);
    assert!(lock.try_acquire().await.unwrap().is_some());
}
