//! Guards and the end of their runtime: dropped on a plain thread, after the runtime is gone, or in
//! the midst of its going. Nothing panics or hangs, the loss is told, and the server frees the key.

// What the world needs.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use dflockd_client::server::ServerConfig;
use dflockd_client::{ErrorKind, LeaseGuard, LockClient, LostReason};
use futures::FutureExt;
use tokio::runtime::{Builder, Runtime};

use crate::house::House;
use crate::world::count;

const CAP: Duration = Duration::from_secs(60);

fn house(auto_release_on_disconnect: bool) -> House {
    House::new(ServerConfig { auto_release_on_disconnect, ..Default::default() })
}

impl House {
    #[track_caller]
    fn until(&self, what: &str, (connections, holders): (u64, u64)) {
        let began = Instant::now();
        loop {
            let stats = self.server.stats();
            if (stats.connections, count(&stats)) == (connections, (holders, 0)) {
                return;
            }
            assert!(began.elapsed() < CAP, "it never happens: {what}: {stats:?}");
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Both kinds of runtime, each for a client.
fn runtimes() -> [Runtime; 2] {
    [
        Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap(),
        Builder::new_current_thread().enable_all().build().unwrap(),
    ]
}

fn hold(runtime: &Runtime, locks: &LockClient) -> LeaseGuard {
    runtime.block_on(locks.lock("k").unwrap().acquire()).unwrap()
}

#[test]
fn a_guard_dropped_on_a_plain_thread_is_released() {
    // Only a release frees the key here.
    let house = house(false);
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let locks = house.client();
    let guard = hold(&runtime, &locks);
    thread::spawn(move || {
        assert!(guard.is_held());
        drop(guard);
    })
    .join()
    .unwrap();
    house.until("the release arrives", (1, 0));
    assert!(hold(&runtime, &locks).is_held());
}

#[test]
fn a_guard_that_outlives_its_runtime_is_lost_and_says_so() {
    for background in [true, false] {
        for runtime in runtimes() {
            let house = house(true);
            let locks = house.client();
            let guard = hold(&runtime, &locks);
            let (lost, lease) = (guard.lost(), (*guard).clone());
            if background {
                runtime.shutdown_background()
            } else {
                drop(runtime)
            }
            house.until("the connection is closed", (0, 0));
            // A worker of a runtime that is shut down in the background may take a moment.
            let reason = house.runtime.block_on(async { tokio::time::timeout(CAP, lost).await }).unwrap();
            let reasons = [LostReason::RuntimeShutdown, LostReason::ConnectionClosed];
            assert!(reasons.contains(&reason), "{reason:?}");
            assert!(!guard.is_held());
            drop(guard);
            let error = lease.release().now_or_never();
            assert!(error.is_some_and(|outcome| outcome.is_err_and(|e| e.kind() == ErrorKind::NotHeld)));
            // The client itself may go on in another runtime.
            for next in runtimes() {
                let guard = hold(&next, &locks);
                next.block_on(guard.release()).unwrap();
            }
        }
    }
}

#[test]
fn a_release_after_the_runtime_ended_says_that_the_lease_is_lost() {
    for runtime in runtimes() {
        let house = house(true);
        let guard = hold(&runtime, &house.client());
        drop(runtime);
        let error = house.runtime.block_on(guard.release()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LeaseLost, "{error}");
        house.until("all is closed", (0, 0));
    }
}

#[test]
fn guards_that_go_with_their_runtime_leave_nothing() {
    for background in [true, false] {
        for runtime in runtimes() {
            let house = house(true);
            let locks = house.client();
            let (ready, told) = mpsc::channel();
            for n in 0..8 {
                let (locks, ready) = (locks.clone(), ready.clone());
                runtime.spawn(async move {
                    let guard = locks.lock(format!("k{n}")).unwrap().acquire().await.unwrap();
                    let waiting = locks.lock("k0").unwrap();
                    ready.send(()).unwrap();
                    let _ = waiting.acquire_within(CAP).await;
                    drop(guard);
                });
            }
            // A runtime on this thread runs only while it is driven.
            let all = runtime.spawn_blocking(move || (0..8).for_each(|_| told.recv_timeout(CAP).unwrap()));
            runtime.block_on(all).unwrap();
            if background {
                runtime.shutdown_background()
            } else {
                drop(runtime)
            }
            house.until("everything is free and closed", (0, 0));
            drop(locks);
        }
    }
}

#[test]
fn a_guard_lost_with_its_runtime_is_let_go_by_the_next() {
    // The server keeps what a closed connection held; the release goes by another.
    for runtime in runtimes() {
        let house = house(false);
        let locks = house.client();
        let guard = hold(&runtime, &locks);
        drop(runtime);
        house.until("the connection is closed", (0, 1));
        let [next, _] = runtimes();
        next.block_on(async move { drop(guard) });
        house.until("the key is let go", (1, 0));
    }
}
