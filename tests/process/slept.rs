//! A machine that was suspended: the clocks that everything counts with stood still, and the server went on.
//! The suspension is pretended, by the clock that leases compare with theirs, for the whole process; so
//! there is one test, in a process of its own, and its scenes follow each other in one runtime.

use std::sync::mpsc;
use std::time::Duration;

use dflockd_client::failpoints::{await_event_handlers, suspend};
use dflockd_client::server::ServerConfig;
use dflockd_client::test_util::TestServer;
use dflockd_client::{ErrorKind, FileLock, LeaseEventKind, LeaseState, LostReason, OnDisconnect, Outcome};
use futures::FutureExt;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout};

use crate::apart::is_apart;

const S: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn suspended_time_counts() {
    if !is_apart(concat!(module_path!(), "::suspended_time_counts")) {
        return;
    }
    the_first_look_after_a_deadline_that_passed_meanwhile_says_lost().await;
    a_server_that_may_have_dropped_the_connection_meanwhile_counts_as_silent().await;
    whoever_only_waits_hears_of_it_by_the_next_ping().await;
    a_short_suspension_shortens_the_lease_until_it_is_renewed().await;
    a_lease_that_reattaches_is_renewed_over_another_connection().await;
    what_is_acquired_afterwards_counts_from_then().await;
    a_grant_that_was_asked_for_before_it_is_confirmed().await;
    threads_see_it_too().await;
    a_lock_file_that_expired_meanwhile_is_lost().await;
}

async fn the_first_look_after_a_deadline_that_passed_meanwhile_says_lost() {
    let server = TestServer::new();
    let (tell, events) = mpsc::channel();
    let locks = server.builder().lease_ttl(15 * S).on_event(move |event| {
        tell.send(event.kind.clone()).unwrap();
    });
    let lock = locks.build().unwrap().lock("k").unwrap();
    let guard = lock.acquire().await.unwrap();
    sleep(S).await;
    suspend(15 * S);
    assert!(!guard.is_held());
    assert_eq!(guard.state(), LeaseState::Lost(LostReason::DeadlinePassed));
    assert!(guard.deadline() <= Instant::now());
    assert_eq!(guard.lost().now_or_never(), Some(LostReason::DeadlinePassed));
    assert_eq!(guard.renew().await.unwrap_err().kind(), ErrorKind::LeaseLost);
    // The renewal task wakes up, and does not bring it back.
    sleep(60 * S).await;
    assert_eq!(guard.state(), LeaseState::Lost(LostReason::DeadlinePassed));
    await_event_handlers();
    let events: Vec<_> = events.try_iter().map(|change| format!("{change:?}")).collect();
    assert_eq!(events, ["Granted { ttl: 15s }", "Lost(DeadlinePassed)"]);
    assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::LeaseLost);
}

async fn a_server_that_may_have_dropped_the_connection_meanwhile_counts_as_silent() {
    let server = TestServer::new();
    let guard =
        server.builder().lease_ttl(600 * S).build().unwrap().lock("k").unwrap().acquire().await.unwrap();
    sleep(S).await;
    suspend(17 * S);
    assert!(guard.is_held(), "the server reads for longer than that");
    suspend(3 * S);
    assert_eq!(guard.state(), LeaseState::Lost(LostReason::KeepaliveTimeout));
}

async fn whoever_only_waits_hears_of_it_by_the_next_ping() {
    for (ttl, slept, reason) in
        [(600, 60, LostReason::KeepaliveTimeout), (15, 15, LostReason::DeadlinePassed)]
    {
        let server = TestServer::new();
        let builder = server.builder().lease_ttl(ttl * S).renew_jitter(0.0);
        let guard = builder.build().unwrap().lock("k").unwrap().acquire().await.unwrap();
        sleep(S).await;
        let run = guard.run(std::future::pending::<()>());
        let suspended = async {
            sleep(S).await;
            suspend(slept * S);
        };
        let (outcome, ()) = tokio::join!(timeout(10 * S, run), suspended);
        assert_eq!(outcome.unwrap(), Outcome::Lost(reason), "{ttl}");
    }
}

async fn a_short_suspension_shortens_the_lease_until_it_is_renewed() {
    let server = TestServer::new();
    let locks = server.builder().lease_ttl(30 * S).build().unwrap();
    let guard = locks.lock("k").unwrap().acquire().await.unwrap();
    let before = guard.deadline();
    sleep(S).await;
    suspend(8 * S);
    assert_eq!(guard.state(), LeaseState::Healthy);
    let shorter = before - guard.deadline();
    assert!(shorter.abs_diff(8 * S) < Duration::from_millis(1), "{shorter:?}");
    assert_eq!(guard.renew().await.unwrap(), 30 * S);
    assert_eq!(guard.deadline(), Instant::now() + 30 * S);
    sleep(3600 * S).await;
    assert!(guard.is_held());
    guard.release().await.unwrap();
}

async fn a_lease_that_reattaches_is_renewed_over_another_connection() {
    let keeping = ServerConfig { auto_release_on_disconnect: false, ..ServerConfig::default() };
    let server = TestServer::with(keeping).unwrap();
    let (tell, events) = mpsc::channel();
    let builder = server.builder().lease_ttl(600 * S).on_disconnect(OnDisconnect::Reattach);
    let builder = builder.on_event(move |event| tell.send(event.kind.clone()).unwrap());
    let guard = builder.build().unwrap().lock("k").unwrap().acquire().await.unwrap();
    sleep(S).await;
    suspend(60 * S);
    assert!(guard.is_held(), "its deadline is far");
    sleep(20 * S).await;
    assert_eq!(guard.state(), LeaseState::Healthy);
    await_event_handlers();
    let changes: Vec<_> = events.try_iter().collect();
    assert!(
        matches!(
            changes[..],
            [LeaseEventKind::Granted { .. }, LeaseEventKind::AtRisk, LeaseEventKind::Renewed { .. }]
        ),
        "{changes:?}"
    );
    guard.release().await.unwrap();
}

async fn what_is_acquired_afterwards_counts_from_then() {
    let server = TestServer::new();
    let locks = server.builder().lease_ttl(5 * S).build().unwrap();
    locks.lock("k").unwrap().acquire().await.unwrap().release().await.unwrap();
    sleep(S).await;
    suspend(86_400 * S);
    // The connection of before is given up, and another one taken.
    let guard = locks.lock("k").unwrap().acquire().await.unwrap();
    assert_eq!(guard.deadline(), Instant::now() + 5 * S);
    assert_eq!(locks.metrics().connects, 2);
    sleep(600 * S).await;
    assert!(guard.is_held());
}

async fn a_grant_that_was_asked_for_before_it_is_confirmed() {
    let server = TestServer::new();
    let locks = server.builder().lease_ttl(15 * S).build().unwrap();
    locks.lock("k").unwrap().acquire().await.unwrap().release().await.unwrap();
    let lock = locks.lock("k").unwrap();
    server.partition();
    let acquiring = tokio::spawn(async move { lock.acquire().await });
    sleep(S / 2).await;
    suspend(10 * S);
    sleep(S / 10).await;
    server.heal();
    let guard = acquiring.await.unwrap().unwrap();
    let left = guard.deadline() - Instant::now();
    assert!(left >= 14 * S && guard.is_held(), "{left:?}");
}

async fn threads_see_it_too() {
    let server = TestServer::new();
    let builder = server.builder().lease_ttl(15 * S).blocking().runtime(Handle::current());
    let locks = builder.build().unwrap();
    let lock = locks.lock("k").unwrap();
    let guard = tokio::task::spawn_blocking(move || lock.acquire().unwrap()).await.unwrap();
    sleep(S).await;
    suspend(15 * S);
    assert!(!guard.is_held());
    assert_eq!(guard.run(|_| panic!("work begins")), Outcome::Lost::<()>(LostReason::DeadlinePassed));
    drop(guard);
}

async fn a_lock_file_that_expired_meanwhile_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let lock = FileLock::builder(dir.path().join("x.lck")).lifetime(60 * S).build().unwrap();
    let guard = lock.acquire().await.unwrap();
    assert!(guard.is_held());
    sleep(Duration::from_millis(1)).await;
    suspend(61 * S);
    assert!(!guard.is_held());
    assert_eq!(guard.state(), LeaseState::Lost(LostReason::DeadlinePassed));
}
