//! One client on several runtimes, some of which are not driven, or live for a moment, or are not there.
//! Each uses connections of its own, so that none waits for another.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use dflockd_client::server::ServerConfig;
use dflockd_client::{AsyncConn, Enqueued, Error, ErrorKind, LeaseGuard, LockClient, OnDisconnect};
use futures::executor::block_on;
use futures::{FutureExt, pin_mut};
use tokio::runtime::{Builder as Maker, Runtime};
use tokio::time::timeout;

use crate::house::House;

const S: Duration = Duration::from_secs(1);
/// More than anything here takes, and less than a connection that is given up.
const CAP: Duration = Duration::from_secs(15);

/// A runtime that runs only while it is blocked on.
fn current_thread() -> Runtime {
    Maker::new_current_thread().enable_all().build().unwrap()
}

/// The same, where time passes as soon as nothing else does.
fn paused() -> Runtime {
    Maker::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

fn hold(runtime: &Runtime, locks: &LockClient, key: &str) -> LeaseGuard {
    let lock = locks.lock(key).unwrap();
    runtime.block_on(async { timeout(CAP, lock.acquire()).await }).expect("it hangs").unwrap()
}

async fn all_kinds(locks: &LockClient, name: &str) {
    let own = format!("own-{name}");
    let lock = locks.lock(&own).unwrap();
    let held = lock.acquire().await.unwrap();
    assert!(lock.isolated().try_acquire().await.unwrap().is_none());
    held.renew().await.unwrap();
    let Enqueued::Queued(ticket) = lock.enqueue().await.unwrap() else { panic!("it is taken") };
    held.release().await.unwrap();
    ticket.wait(10 * S).await.unwrap().release().await.unwrap();
    let slots = locks.semaphore("slots", 3).unwrap().acquire_within(60 * S).await.unwrap();
    locks.lock("everybody's").unwrap().acquire_within(60 * S).await.unwrap().release().await.unwrap();
    locks.stats().await.unwrap();
    drop(slots);
}

#[test]
fn a_runtime_that_is_not_driven_holds_up_no_other() {
    let house = House::new(ServerConfig::default());
    let locks = house.client();
    let (first, second) = (current_thread(), current_thread());
    let kept = hold(&first, &locks, "kept");
    second.block_on(async { timeout(CAP, all_kinds(&locks, "second")).await }).expect("it hangs");
    first.block_on(async { timeout(CAP, all_kinds(&locks, "first")).await }).expect("it hangs");
    first.block_on(kept.release()).unwrap();
}

#[test]
fn a_dial_on_a_runtime_that_is_not_driven_holds_up_no_other() {
    let house = House::new(ServerConfig::default());
    let locks = house.client();
    let (first, second) = (current_thread(), current_thread());
    let lock = locks.lock("k").unwrap();
    let dialling = lock.acquire();
    pin_mut!(dialling);
    first.block_on(async { assert!(futures::poll!(&mut dialling).is_pending()) });
    assert!(hold(&second, &locks, "other").is_held());
}

#[test]
fn short_lived_runtimes_on_many_threads_use_one_client() {
    let house = House::new(ServerConfig::default());
    let locks = Arc::new(house.client());
    let threads: Vec<_> = (0..10)
        .map(|n| {
            let locks = locks.clone();
            thread::spawn(move || {
                for turn in 0..20 {
                    let runtime = current_thread();
                    let name = format!("{n}-{turn}");
                    runtime
                        .block_on(async { timeout(4 * CAP, all_kinds(&locks, &name)).await })
                        .unwrap_or_else(|_| panic!("{name} hangs"));
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let began = Instant::now();
    while house.server.stats().connections > 0 || locks.metrics().connections > 0 {
        assert!(began.elapsed() < CAP, "{:?}, {:?}", house.server.stats(), locks.metrics());
        thread::sleep(S / 500);
    }
    assert_eq!(locks.metrics().failures, 0);
}

#[test]
fn runtimes_of_both_kinds_use_one_client() {
    let house = House::new(ServerConfig::default());
    let locks = house.client();
    let many = Maker::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let tasks: Vec<_> = (0..8)
        .map(|n| {
            let locks = locks.clone();
            many.spawn(async move {
                for turn in 0..10 {
                    timeout(4 * CAP, all_kinds(&locks, &format!("task-{n}-{turn}"))).await.expect("it hangs");
                }
            })
        })
        .collect();
    let threads: Vec<_> = (0..3)
        .map(|n| {
            let locks = locks.clone();
            thread::spawn(move || {
                for turn in 0..10 {
                    let name = format!("thread-{n}-{turn}");
                    current_thread()
                        .block_on(async { timeout(4 * CAP, all_kinds(&locks, &name)).await })
                        .expect("it hangs");
                }
            })
        })
        .collect();
    many.block_on(async {
        for task in tasks {
            task.await.unwrap();
        }
    });
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    many.block_on(async { timeout(CAP, locks.close()).await }).expect("it hangs").unwrap();
    assert!(house.server.stats().locks.is_empty());
}

#[test]
fn the_first_in_line_on_a_runtime_that_is_not_driven_holds_up_its_own_line_alone() {
    let house = House::new(ServerConfig::default());
    let (locks, rival) = (house.client(), house.client());
    let (first, second) = (current_thread(), current_thread());
    let held = hold(&second, &rival, "k");
    let lock = locks.lock("k").unwrap();
    let stuck = lock.acquire_within(S);
    pin_mut!(stuck);
    // It waits at the server, for a second, and then is not looked at any more.
    let connections = house.server.stats().connections;
    first.block_on(async {
        while house.server.stats().locks[0].waiters == 0 {
            assert!(futures::poll!(&mut stuck).is_pending());
            tokio::task::yield_now().await;
        }
    });
    assert!(house.server.stats().connections > connections);
    second.block_on(async {
        let next = lock.acquire_within(60 * S);
        pin_mut!(next);
        while house.server.stats().locks[0].waiters != 1 || house.server.stats().connections < 5 {
            assert!(futures::poll!(&mut next).is_pending());
            tokio::time::sleep(S / 100).await;
        }
        held.release().await.unwrap();
        timeout(CAP, next).await.expect("it hangs").unwrap().release().await.unwrap();
    });
    assert!(first.block_on(stuck).unwrap_err().is_busy());
}

#[test]
fn a_lease_whose_runtime_is_not_driven_is_not_renewed_and_its_release_says_that_it_got_no_answer() {
    let house = House::new(ServerConfig::default());
    let locks = house.client();
    let (first, second) = (current_thread(), paused());
    let guard = hold(&first, &locks, "k");
    let lease = (*guard).clone();
    second.block_on(async {
        let error = lease.renew().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
        let error = guard.release().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
        assert_eq!(error.to_string().matches("no reply within 5 s").count(), 1, "{error}");
    });
    assert_eq!(house.server.stats().locks.len(), 1);
    // What was queued goes out once the runtime runs.
    let began = Instant::now();
    while !house.server.stats().locks.is_empty() {
        assert!(began.elapsed() < CAP, "{:?}", house.server.stats());
        first.block_on(tokio::task::yield_now());
    }
}

#[test]
fn a_client_is_closed_from_any_runtime_within_its_limit() {
    let house = House::new(ServerConfig::default());
    let locks = house.client();
    let (first, second) = (current_thread(), paused());
    let guard = hold(&first, &locks, "k");
    let error = second.block_on(locks.close()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(!guard.is_held());
    let error = second.block_on(locks.lock("k").unwrap().acquire()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ClientClosed, "{error}");
    // Where all are driven, it is closed in order.
    let many = Maker::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let locks = house.client();
    let _guard = many.block_on(locks.lock("other").unwrap().acquire()).unwrap();
    current_thread().block_on(locks.close()).unwrap();
    assert!(house.server.stats().locks.iter().all(|lock| lock.key != "other"));
}

#[test]
fn the_limit_of_connections_is_that_of_all_runtimes_together() {
    let house = House::new(ServerConfig::default());
    let locks = house.builder().max_connections(2).connect_timeout(S / 10).build().unwrap();
    let (first, second, third) = (current_thread(), current_thread(), current_thread());
    let _one = hold(&first, &locks, "one");
    let two = hold(&second, &locks, "two");
    let error = third.block_on(locks.lock("three").unwrap().acquire()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overloaded, "{error}");
    assert!(error.to_string().contains("all 2 connections (max_connections)"), "{error}");
    assert_eq!(house.server.stats().connections, 2);
    drop(two);
    drop(second);
    assert!(hold(&third, &locks, "three").is_held());
}

#[test]
fn an_idle_connection_of_another_runtime_makes_room() {
    let house = House::new(ServerConfig::default());
    let locks = house.builder().max_connections(3).connect_timeout(S / 10).build().unwrap();
    let many = Maker::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let lock = locks.lock("k").unwrap().isolated();
    // One that is shared, and two that are idle now.
    many.block_on(async {
        let (one, other) =
            (lock.acquire().await.unwrap(), locks.lock("other").unwrap().acquire().await.unwrap());
        let two = locks.lock("l").unwrap().isolated().acquire().await.unwrap();
        for guard in [one, two, other] {
            guard.release().await.unwrap();
        }
    });
    let other = current_thread();
    let _held = hold(&other, &locks, "k");
    let began = Instant::now();
    while house.server.stats().connections > 3 {
        assert!(began.elapsed() < CAP, "{:?}", house.server.stats());
        thread::sleep(S / 500);
    }
}

/// What every operation says outside a runtime, in this crate's words.
#[track_caller]
fn says_so(error: Error) {
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert!(error.to_string().contains("no tokio runtime runs this"), "{error}");
}

#[test]
fn outside_any_runtime_each_operation_fails_at_once_and_says_why() {
    let house = House::new(ServerConfig::default());
    let locks = house.client();
    let runtime = current_thread();
    let guard = hold(&runtime, &locks, "k");
    let lock = locks.lock("k").unwrap();
    says_so(block_on(lock.acquire()).unwrap_err());
    says_so(block_on(lock.acquire_within(S)).unwrap_err());
    says_so(block_on(lock.try_acquire()).unwrap_err());
    says_so(block_on(lock.clone().isolated().acquire()).unwrap_err());
    says_so(block_on(lock.enqueue()).unwrap_err());
    says_so(block_on(locks.semaphore("s", 2).unwrap().acquire()).unwrap_err());
    says_so(block_on(locks.stats()).unwrap_err());
    says_so(block_on(locks.close()).unwrap_err());
    says_so(block_on(guard.renew()).unwrap_err());
    let Enqueued::Queued(ticket) = runtime.block_on(lock.enqueue()).unwrap() else { panic!("it is taken") };
    says_so(block_on(ticket.wait(S)).unwrap_err());
    says_so(block_on(guard.release()).unwrap_err());
    // It was sent all the same.
    assert!(hold(&runtime, &locks, "k").is_held());
    let attached = house.builder().on_disconnect(OnDisconnect::Reattach).build().unwrap();
    let guard = hold(&runtime, &attached, "l");
    says_so(block_on(guard.renew()).unwrap_err());
}

#[test]
fn outside_any_runtime_a_bare_connection_works_without_time_limits_alone() {
    let (near, _far) = tokio::io::duplex(64);
    let conn = AsyncConn::new(near);
    says_so(block_on(conn.command("ping", "_", "_", Some(S))).unwrap_err());
    says_so(block_on(dflockd_client::command::ping(&conn)).unwrap_err());
    says_so(block_on(dflockd_client::command::open_conn("127.0.0.1", 1, None, S)).unwrap_err());
    let mut asks = Box::pin(conn.command("ping", "_", "_", None));
    assert!((&mut asks).now_or_never().is_none());
    drop(asks);
    block_on(conn.close());
}
