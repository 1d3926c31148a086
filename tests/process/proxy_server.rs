//! The client and the real binary, which is killed, suspended or stopped under it: a lease is lost
//! in time and never silently, and whoever asks again once the server is back is served.

use std::time::Duration;

use dflockd_client::{
    AsyncDistributedLock, Builder, ClientTarget, ErrorKind, LeaseGuard, LockClient, LostReason, Result,
};
use tokio::task::{JoinHandle, yield_now};
use tokio::time::timeout;

use crate::dflockd::Dflockd;
use crate::proxy::{Proxy, Way};

const S: Duration = Duration::from_secs(1);
/// Longer than anything takes, on the slowest machine.
const CAP: Duration = Duration::from_secs(60);

fn through(port: u16) -> Builder<ClientTarget> {
    LockClient::builder().servers([("127.0.0.1", port)]).keepalive_interval(S).connect_timeout(S)
}

/// Spawns an acquire of a held lock. Returns once it stands in the server's queue.
async fn queued(client: &LockClient, lock: &AsyncDistributedLock) -> JoinHandle<Result<LeaseGuard>> {
    let waiting = tokio::spawn({
        let lock = lock.clone();
        async move { lock.acquire_within(600 * S).await }
    });
    let queued = async {
        while client.stats().await.unwrap()[0].locks[0].waiters == 0 {
            yield_now().await;
        }
    };
    timeout(CAP, queued).await.expect("it waits");
    waiting
}

#[tokio::test]
async fn a_killed_server_loses_the_lease_and_its_successor_grants_a_higher_fence() {
    let directory = tempfile::tempdir().unwrap();
    let fence = format!("--fence-state-file={}", directory.path().join("fence").display());
    let mut server = Dflockd::start(&[&fence], &[]);
    let proxy = Proxy::to(server.address).await;
    let client = through(proxy.port).lease_ttl(600 * S).build().unwrap();
    let lock = client.lock("k").unwrap();
    let mut last = None;
    for round in 0..3 {
        let guard = lock.acquire().await.unwrap();
        assert!(guard.fence() > last, "round {round}");
        last = guard.fence();
        let waiting = queued(&client, &lock).await;
        server.kill();
        assert_eq!(timeout(CAP, guard.lost()).await, Ok(LostReason::ConnectionClosed), "round {round}");
        assert!(!guard.is_held());
        let error = timeout(CAP, waiting).await.expect("the wait ends").unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionClosed, "round {round}: {error}");
        let error = lock.acquire().await.unwrap_err();
        assert!(error.is_unavailable(), "nobody is there: {error}");
        drop(guard);
        server = Dflockd::start(&[&fence], &[]);
        proxy.lead_to(server.address);
    }
    let guard = lock.acquire().await.unwrap();
    assert!(guard.fence() > last);
    guard.release().await.unwrap();
}

/// A stopped process, which goes on or is killed when this drops: it cannot end by itself.
struct Suspended<'a>(&'a Dflockd);

impl<'a> Suspended<'a> {
    fn new(server: &'a Dflockd) -> Self {
        server.signal("STOP");
        // The signal is sent before the threads have stopped, and one of them may answer yet.
        while !is_stopped(server.pid()) {
            std::thread::yield_now();
        }
        Self(server)
    }
}

/// Whether each thread of a process stands still, as `/proc` tells; elsewhere that is taken for granted.
fn is_stopped(pid: u32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    threads.flatten().all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        // The state follows the name, which stands in brackets and may hold any character.
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T'))
    })
}

impl Drop for Suspended<'_> {
    fn drop(&mut self) {
        self.0.signal("CONT");
    }
}

#[tokio::test]
async fn a_suspended_server_loses_the_lease_answers_nobody_wrongly_and_serves_again() {
    let server = Dflockd::start::<&str>(&[], &[]);
    let client = through(server.address.port()).lease_ttl(2 * S).build().unwrap();
    let long = through(server.address.port()).lease_ttl(600 * S).build().unwrap();
    let (lock, long) = (client.lock("k").unwrap(), long.lock("long").unwrap());
    let (guard, kept) = (lock.acquire().await.unwrap(), long.acquire().await.unwrap());
    let suspended = Suspended::new(&server);
    let lost = async {
        let reason = timeout(CAP, guard.lost()).await.expect("by its deadline");
        assert!(matches!(reason, LostReason::DeadlinePassed | LostReason::KeepaliveTimeout), "{reason}");
    };
    let silent = async {
        let reason = timeout(CAP, kept.lost()).await.expect("by the silence");
        assert_eq!(reason, LostReason::KeepaliveTimeout);
    };
    // What is asked meanwhile gets no answer, and no wrong one.
    let asked = async {
        let error = timeout(CAP, lock.try_acquire()).await.expect("it ends").unwrap_err();
        assert_eq!((error.kind(), error.raw()), (ErrorKind::Timeout, None), "{error}");
        let waiting = lock.acquire_within(600 * S);
        assert!(timeout(S, waiting).await.is_err(), "nobody grants");
        let error = timeout(CAP, client.stats()).await.expect("it ends").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    };
    tokio::join!(lost, silent, asked);
    assert!(!guard.is_held() && !kept.is_held());
    drop(suspended);
    // The server now finds what was sent to it, and that those who sent it have gone.
    for (lock, old) in [(&lock, guard), (&long, kept)] {
        let next = lock.acquire_within(CAP).await.unwrap();
        assert!(next.is_held() && next.fence() > old.fence());
        assert_eq!(old.release().await.unwrap_err().kind(), ErrorKind::LeaseLost);
        assert!(next.is_held(), "the release of the old lease is not the new one's");
        assert!(lock.try_acquire().await.unwrap().is_none());
        next.release().await.unwrap();
    }
    let freed = async {
        while !client.stats().await.unwrap()[0].locks.is_empty() {
            yield_now().await;
        }
    };
    timeout(CAP, freed).await.expect("nothing is left of what was asked meanwhile");
}

#[tokio::test]
async fn a_server_told_to_stop_lets_the_holder_release_and_the_waiter_know() {
    let server = Dflockd::start(&["--shutdown-timeout=0"], &[]);
    let proxy = Proxy::to(server.address).await;
    proxy.both(Way::Drip);
    let client = through(proxy.port).build().unwrap();
    let lock = client.lock("k").unwrap();
    let guard = lock.acquire().await.unwrap();
    let waiting = queued(&client, &lock).await;
    server.signal("TERM");
    let error = timeout(CAP, waiting).await.expect("it is told").unwrap().unwrap_err();
    assert_eq!((error.kind(), error.raw()), (ErrorKind::Draining, Some("error_draining")), "{error}");
    assert!(guard.is_held(), "a holder may finish");
    guard.renew().await.unwrap();
    assert!(guard.is_held());
    guard.release().await.unwrap();
    let (status, log) = server.end();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!log.contains("shutdown timeout"), "{log}");
    assert!(lock.acquire().await.unwrap_err().is_unavailable());
}

#[tokio::test]
async fn a_holder_that_holds_on_to_a_stopping_server_is_told_why_it_lost() {
    let server = Dflockd::start(&["--shutdown-timeout=1"], &[]);
    let client = through(server.address.port()).build().unwrap();
    let guard = client.lock("k").unwrap().acquire().await.unwrap();
    let waiting = tokio::spawn({
        let lock = client.lock("k").unwrap();
        async move { lock.acquire_within(600 * S).await }
    });
    let queued = async {
        while client.stats().await.unwrap()[0].locks[0].waiters == 0 {
            yield_now().await;
        }
    };
    timeout(CAP, queued).await.expect("it waits");
    server.signal("TERM");
    let error = timeout(CAP, waiting).await.expect("it is told").unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Draining, "{error}");
    assert_eq!(timeout(CAP, guard.lost()).await, Ok(LostReason::ServerDraining));
    assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::LeaseLost);
    let (status, log) = server.end();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("shutdown timeout"), "{log}");
}
