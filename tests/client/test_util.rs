//! What a user's tests script happens to the client as it would out there: leases taken away,
//! connections cut and reset, partitions that heal, servers that drain and come back.

use std::time::Duration;

use dflockd_client::test_util::TestServer;
use dflockd_client::{Error, ErrorKind, LeaseGuard, LockClient, LostReason};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

const S: Duration = Duration::from_secs(1);

async fn hold(locks: &LockClient) -> LeaseGuard {
    locks.lock("k").unwrap().acquire().await.unwrap()
}

/// Waits in the key's queue.
async fn queued(server: &TestServer) -> JoinHandle<Result<LeaseGuard, Error>> {
    let lock = server.with_own_network().locks().lock("k").unwrap();
    let waiter = tokio::spawn(async move { lock.acquire_within(1000 * S).await });
    while server.stats().locks.iter().all(|lock| lock.waiters == 0) {
        sleep(S / 1000).await;
    }
    waiter
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_taken_away_goes_to_the_next_in_line_and_is_lost_at_its_next_renewal() {
    let server = TestServer::new();
    let guard = hold(&server.locks()).await;
    let waiter = queued(&server).await;
    server.expire_lease("k");
    assert!(guard.is_held(), "nobody has told the holder yet");
    let next = waiter.await.unwrap().unwrap();
    assert!(next.is_held() && next.fence() > guard.fence());
    let since = Instant::now();
    assert_eq!(guard.lost().await, LostReason::RenewalRejected);
    assert!(since.elapsed() < guard.ttl() / 2 + S, "{:?}: half the ttl", since.elapsed());
}

#[tokio::test(start_paused = true)]
async fn all_holders_of_a_semaphore_lose_it_and_all_slots_are_free() {
    let server = TestServer::new();
    let exports = server.locks().semaphore("exports", 2).unwrap();
    let (one, two) = (exports.acquire().await.unwrap(), exports.acquire().await.unwrap());
    server.expire_lease("exports");
    assert_eq!(one.renew().await.unwrap_err().kind(), ErrorKind::NotHeld);
    assert_eq!(two.lost().await, LostReason::RenewalRejected);
    assert!(exports.try_acquire().await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "no client holds \"k\"")]
async fn a_scripted_loss_of_what_nobody_holds_fails_the_test() {
    TestServer::new().expire_lease("k");
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "no client took \"k\" within a minute")]
async fn waiting_for_a_holder_that_never_comes_fails_the_test() {
    TestServer::new().wait_until_held("k").await;
}

#[tokio::test(start_paused = true)]
async fn a_holder_can_be_waited_for() {
    let server = TestServer::new();
    let locks = server.locks();
    let holder = tokio::spawn(async move {
        sleep(20 * S).await;
        hold(&locks).await
    });
    let since = Instant::now();
    server.wait_until_held("k").await;
    assert!(since.elapsed() >= 20 * S);
    assert!(holder.await.unwrap().is_held());
}

#[tokio::test(start_paused = true)]
async fn behind_a_partition_both_sides_go_on_until_their_own_time_is_up() {
    let server = TestServer::new();
    let guard = hold(&server.locks()).await;
    let waiter = queued(&server).await;
    server.partition();
    let since = Instant::now();
    assert_eq!(guard.lost().await, LostReason::KeepaliveTimeout);
    let lost = since.elapsed();
    assert_eq!(server.stats().locks[0].waiters, 1, "the server has not heard of it");
    let next = waiter.await.unwrap().unwrap();
    assert!(lost < since.elapsed(), "two held the key");
    assert!(next.is_held());
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_heals_in_time_costs_nothing() {
    for half in [TestServer::partition, TestServer::hold_requests, TestServer::hold_replies] {
        let server = TestServer::new();
        let guard = hold(&server.locks()).await;
        half(&server);
        let renewal = tokio::spawn({
            let lease = guard.detach();
            async move { (lease.renew().await, lease) }
        });
        sleep(3 * S).await;
        assert!(!renewal.is_finished(), "an answer came through");
        server.heal();
        let (renewed, lease) = renewal.await.unwrap();
        renewed.expect("it arrives late");
        assert_eq!(timeout(500 * S, lease.lost()).await.ok(), None, "it is lost after all");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_connects_through_a_partition_until_it_heals() {
    let server = TestServer::new();
    server.hold_replies();
    let error = server.locks().lock("k").unwrap().acquire().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    let locks = server.locks();
    let waiter = tokio::spawn(async move { hold(&locks).await });
    sleep(2 * S).await;
    server.heal();
    assert!(waiter.await.unwrap().is_held());
}

#[tokio::test(start_paused = true)]
async fn a_partition_of_one_network_leaves_the_other_alone() {
    let server = TestServer::new();
    let other = server.with_own_network();
    let guard = hold(&other.locks()).await;
    server.partition();
    server.cut();
    sleep(500 * S).await;
    assert!(guard.is_held());
}

#[tokio::test(start_paused = true)]
async fn a_draining_server_lets_holders_finish_and_refuses_everybody_else() {
    let server = TestServer::new();
    let locks = server.locks();
    let guard = hold(&locks).await;
    let waiter = queued(&server).await;
    server.drain();
    assert_eq!(waiter.await.unwrap().unwrap_err().kind(), ErrorKind::Draining);
    let refused = server.locks().lock("other").unwrap().acquire().await.unwrap_err();
    assert!(refused.is_unavailable(), "{refused}");
    guard.renew().await.unwrap();
    guard.release().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_restarted_server_knows_no_locks_grants_again_and_its_fences_grow() {
    let server = TestServer::new();
    let locks = server.locks();
    let guard = hold(&locks).await;
    let elsewhere = server.with_own_network().locks().lock("other").unwrap().acquire().await.unwrap();
    server.drain();
    server.restart().unwrap();
    assert_eq!(elsewhere.lost().await, LostReason::ConnectionClosed);
    assert_eq!(guard.lost().await, LostReason::ConnectionClosed);
    assert!(server.stats().locks.is_empty());
    let again = hold(&locks).await;
    assert!(again.fence() > guard.fence(), "{:?} after {:?}", again.fence(), guard.fence());
}

#[tokio::test(start_paused = true)]
async fn connections_that_were_reset_are_lost_and_new_ones_work() {
    let server = TestServer::new();
    let locks = server.locks();
    let guard = hold(&locks).await;
    server.reset();
    assert_eq!(guard.lost().await, LostReason::ConnectionClosed);
    drop(guard);
    assert!(hold(&locks).await.is_held());
}
