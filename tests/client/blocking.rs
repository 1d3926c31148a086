//! What is the blocking face's own: the hidden thread, guards that drop anywhere, calls in async code,
//! and blocked threads that wake. What it has in common with the async face, the tests of that show
//! on both.

use std::cell::RefCell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use dflockd_client::blocking::{self, Enqueued, LeaseGuard, LockClient};
use dflockd_client::server::{Server, ServerConfig};
use dflockd_client::test_util::TestServer;
use dflockd_client::{
    ErrorKind, LeaseState, LockOptions, LostReason, Outcome, SyncConn, SyncDistributedLock,
    SyncDistributedSemaphore, command,
};

const S: Duration = Duration::from_secs(1);
/// Long enough for anything that happens at all.
const LONG: Duration = Duration::from_secs(60);

fn locks(server: &TestServer) -> LockClient {
    server.builder().blocking().build().unwrap()
}

/// A server that keeps what a closed connection held, so that only a release frees it.
fn keeping() -> TestServer {
    TestServer::with(ServerConfig { auto_release_on_disconnect: false, ..Default::default() }).unwrap()
}

fn hold(server: &TestServer) -> LeaseGuard {
    locks(server).lock("k").unwrap().acquire().unwrap()
}

fn is_free(server: &TestServer) -> bool {
    server.stats().locks.is_empty()
}

/// Looks until it is so.
#[track_caller]
fn soon(what: &str, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < LONG, "{what} never came");
        thread::sleep(S / 1000);
    }
}

#[test]
fn what_threads_share_can_be_shared() {
    fn shared<T: Send + Sync + 'static>() {}
    shared::<LockClient>();
    shared::<SyncDistributedLock>();
    shared::<SyncDistributedSemaphore>();
    shared::<LeaseGuard>();
    shared::<blocking::Lease>();
    shared::<blocking::Ticket>();
    shared::<SyncConn>();
}

#[test]
fn sixty_four_threads_count_without_a_race() {
    let server = TestServer::new();
    let lock = locks(&server).lock("counter").unwrap();
    let (counter, inside, start) = (AtomicU64::new(0), AtomicBool::new(false), Barrier::new(64));
    thread::scope(|threads| {
        for _ in 0..64 {
            threads.spawn(|| {
                start.wait();
                for _ in 0..5 {
                    let guard = lock.acquire_within(LONG).unwrap();
                    assert!(!inside.swap(true, Ordering::SeqCst), "two are inside");
                    let seen = counter.load(Ordering::SeqCst);
                    thread::yield_now();
                    counter.store(seen + 1, Ordering::SeqCst);
                    inside.store(false, Ordering::SeqCst);
                    guard.release().unwrap();
                }
            });
        }
    });
    assert_eq!(counter.into_inner(), 64 * 5);
}

#[test]
fn a_lease_is_renewed_while_its_thread_is_busy_for_three_ttls() {
    let lock = locks(&TestServer::new()).lock("k").unwrap();
    let lock = lock.with_options(LockOptions::new().lease_ttl(2 * S)).unwrap();
    let guard = lock.acquire().unwrap();
    let (granted, began) = (guard.deadline(), Instant::now());
    while began.elapsed() < 6 * S {
        std::hint::spin_loop();
    }
    assert!(guard.is_held() && guard.deadline() > granted + 2 * S);
    assert!(lock.try_acquire().unwrap().is_none());
    guard.release().unwrap();
}

#[test]
fn many_locks_are_served_by_one_thread() {
    let servers: Vec<_> = (0..4).map(|_| TestServer::new()).collect();
    let clients: Vec<_> = servers.iter().map(locks).collect();
    let guards: Vec<_> =
        (0..100).map(|n| clients[n % 4].lock(format!("k{n}")).unwrap().acquire().unwrap()).collect();
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let names = threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("comm")).ok());
    // The system keeps fifteen letters of a name.
    assert_eq!(names.filter(|name| name.trim() == "dflockd-blockin").count(), 1);
    assert!(guards.iter().all(|guard| guard.is_held()));
}

#[test]
fn a_guard_that_is_dropped_is_released_when_the_drop_returns() {
    let server = keeping();
    let guard = hold(&server);
    thread::spawn(move || drop(guard)).join().unwrap();
    assert!(is_free(&server));
}

#[test]
fn a_panic_releases_on_its_way() {
    let server = keeping();
    let guard = hold(&server);
    let panics = thread::spawn(move || {
        let _guard = guard;
        panic!("as planned");
    });
    assert!(panics.join().is_err());
    assert!(is_free(&server));
}

#[test]
fn a_guard_in_a_thread_local_is_released_when_its_thread_ends() {
    thread_local!(static KEPT: RefCell<Option<LeaseGuard>> = const { RefCell::new(None) });
    let server = keeping();
    let guard = hold(&server);
    thread::spawn(move || KEPT.set(Some(guard))).join().unwrap();
    soon("the release", || is_free(&server));
}

#[test]
fn a_guard_that_a_task_drops_is_released_without_blocking_it() {
    let server = keeping();
    let guard = hold(&server);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async { drop(guard) });
    soon("the release", || is_free(&server));
}

const PORT: &str = "DFLOCKD_TEST_PORT";

/// Not a test of its own: the process that ends while it holds.
#[test]
fn ends_as_it_lets_go() {
    let Ok(port) = std::env::var(PORT) else { return };
    let locks = LockClient::builder().servers([("127.0.0.1", port.parse().unwrap())]);
    let guard = locks.connect_timeout(LONG).build().unwrap().lock("k").unwrap().acquire().unwrap();
    assert!(guard.is_held());
    drop(guard);
    std::process::exit(17);
}

#[test]
fn a_guard_that_is_dropped_at_the_end_of_a_process_is_released() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let config = ServerConfig { port: 0, auto_release_on_disconnect: false, ..Default::default() };
    let server = runtime.block_on(Server::bind(config)).unwrap();
    let port = server.local_addr().unwrap().port();
    runtime.spawn(server.clone().run(std::future::pending()));
    let mut process = Command::new(std::env::current_exe().unwrap());
    let process = process.args(["--exact", "blocking::ends_as_it_lets_go"]).env(PORT, port.to_string());
    assert_eq!(process.output().unwrap().status.code(), Some(17));
    assert!(server.stats().locks.is_empty(), "{:?}", server.stats());
}

/// What a call in async code panics with.
fn panic_of<T>(call: impl FnOnce() -> T) -> String {
    let panic = catch_unwind(AssertUnwindSafe(call)).err().expect("it panics");
    panic.downcast_ref::<String>().expect("a message").clone()
}

#[tokio::test]
async fn a_call_that_would_block_other_tasks_panics_and_names_the_async_type() {
    let server = TestServer::new();
    let (locks, guard) = tokio::task::spawn_blocking({
        let server = server.clone();
        move || (locks(&server), hold(&server))
    })
    .await
    .unwrap();
    let lock = locks.lock("other").unwrap();
    assert!(panic_of(|| lock.acquire()).contains("`AsyncDistributedLock`"));
    let slots = locks.semaphore("slots", 2).unwrap();
    assert!(panic_of(|| slots.try_acquire()).contains("`AsyncDistributedSemaphore`"));
    assert!(panic_of(|| locks.stats()).contains("`LockClient`"));
    assert!(panic_of(|| guard.renew()).contains("`LeaseGuard`"));
    assert!(panic_of(|| blocking::ping(&SyncConn::from(server.conn()))).contains("`AsyncConn`"));
    // What does not block works, and nothing was begun.
    assert!(guard.is_held() && guard.state() == LeaseState::Healthy);
    assert_eq!(server.stats().locks.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn where_a_task_may_block_the_calls_work_and_other_tasks_go_on() {
    let server = TestServer::new();
    let lock = server.builder().blocking().runtime(tokio::runtime::Handle::current()).build().unwrap();
    let lock = lock.lock("k").unwrap();
    let first = lock.acquire().unwrap();
    let release = tokio::spawn(async move { first.release() });
    let second = lock.acquire_within(LONG).unwrap();
    release.await.unwrap().unwrap();
    second.release().unwrap();
}

#[test]
fn a_lent_runtime_that_is_shut_down_ends_leases_and_calls() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let server = TestServer::new();
    let locks = server.builder().blocking().runtime(runtime.handle().clone()).build().unwrap();
    let guard = locks.lock("k").unwrap().acquire().unwrap();
    let waiter = thread::spawn({
        let lock = locks.lock("k").unwrap();
        move || lock.acquire_within(LONG).unwrap_err().kind()
    });
    soon("the waiter", || server.stats().locks[0].waiters == 1);
    drop(runtime);
    assert_eq!(waiter.join().unwrap(), ErrorKind::ConnectionClosed);
    assert_eq!(guard.lost(), LostReason::RuntimeShutdown);
    assert_eq!(locks.lock("k").unwrap().acquire().unwrap_err().kind(), ErrorKind::ConnectionClosed);
    assert_eq!(guard.run(|_| ()), Outcome::Lost(LostReason::RuntimeShutdown));
    drop(guard);
}

#[test]
fn whoever_waits_for_a_loss_is_told_of_it_or_of_the_release() {
    let server = TestServer::new();
    let locks = locks(&server);
    for cut in [true, false] {
        let lease = locks.lock("k").unwrap().acquire().unwrap().detach();
        assert_eq!(lease.lost_timeout(S / 100), None);
        let waiters = [false, true].map(|shaky| {
            let lease = lease.clone();
            thread::spawn(move || if shaky { lease.at_risk().lost() } else { Some(lease.lost()) })
        });
        if cut {
            server.cut();
        } else {
            lease.release().unwrap();
        }
        for waiter in waiters {
            let reason = if cut { LostReason::ConnectionClosed } else { LostReason::Released };
            assert_eq!(waiter.join().unwrap(), Some(reason));
            assert_eq!(lease.lost_timeout(LONG), Some(reason));
        }
    }
}

#[test]
fn a_callback_hears_of_the_loss_once_and_may_block() {
    let server = TestServer::new();
    let locks = locks(&server);
    let (tell, told) = mpsc::channel();
    let released = locks.lock("released").unwrap().acquire().unwrap();
    let never = tell.clone();
    released.on_lost(move |reason| never.send((reason, false)).unwrap_or_default());
    released.release().unwrap();
    let guard = locks.lock("k").unwrap().acquire().unwrap();
    guard.on_lost(move |reason| {
        let taken = locks.lock("another").unwrap().acquire().unwrap();
        let _ = tell.send((reason, taken.is_held()));
    });
    server.cut();
    assert_eq!(told.recv_timeout(LONG), Ok((LostReason::ConnectionClosed, true)));
    // Both callbacks are gone, and with them the senders.
    assert_eq!(told.recv_timeout(LONG), Err(mpsc::RecvTimeoutError::Disconnected));
}

#[test]
fn what_the_callers_code_panics_with_comes_out_of_the_call() {
    let strategy = |_: &str, _: usize| -> usize { panic!("no server for it") };
    let lock = SyncDistributedLock::builder("k").sharding_strategy(strategy).build().unwrap();
    let panic = catch_unwind(AssertUnwindSafe(|| lock.acquire())).unwrap_err();
    assert_eq!(panic.downcast_ref(), Some(&"no server for it"));
}

#[test]
fn a_blocked_reader_wakes_with_an_error() {
    let server = TestServer::new();
    let _guard = hold(&server);
    for wake in [SyncConn::shutdown_read, SyncConn::close] {
        let conn = Arc::new(server.sync_conn());
        let reader = thread::spawn({
            let conn = conn.clone();
            move || conn.command("l", "k", "600", None).unwrap_err()
        });
        soon("the reader", || server.stats().locks[0].waiters == 1);
        wake(&conn);
        let error = reader.join().unwrap();
        assert_eq!(error.kind(), ErrorKind::ConnectionClosed);
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::ConnectionAborted);
        assert_eq!(blocking::ping(&conn).unwrap_err().kind(), ErrorKind::ConnectionClosed);
        soon("the end of the wait", || server.stats().locks[0].waiters == 0);
    }
}

#[test]
fn a_blocked_acquire_ends_when_another_thread_closes_the_client() {
    let server = TestServer::new();
    let locks = locks(&server);
    let guard = locks.lock("k").unwrap().acquire().unwrap();
    let calls: [fn(&LockClient) -> ErrorKind; 2] = [
        |locks| locks.lock("k").unwrap().acquire_within(LONG).unwrap_err().kind(),
        |locks| match locks.lock("k").unwrap().enqueue().unwrap() {
            Enqueued::Queued(ticket) => ticket.wait(LONG).unwrap_err().kind(),
            Enqueued::Acquired(_) => panic!("it is taken"),
        },
    ];
    let waiters = calls.map(|call| {
        let locks = locks.clone();
        thread::spawn(move || call(&locks))
    });
    soon("the waiters", || server.stats().locks[0].waiters == 2);
    locks.close().unwrap();
    for waiter in waiters {
        assert_eq!(waiter.join().unwrap(), ErrorKind::ClientClosed);
    }
    assert_eq!(guard.lost(), LostReason::ClientClosed);
    assert_eq!(locks.lock("k").unwrap().acquire().unwrap_err().kind(), ErrorKind::ClientClosed);
    assert_eq!(locks.metrics().leases, 0);
    assert!(is_free(&server));
}

#[test]
fn threads_that_share_a_connection_get_their_own_replies() {
    let conn = TestServer::new().sync_conn();
    thread::scope(|threads| {
        for n in 0..16 {
            let conn = &conn;
            threads.spawn(move || {
                let key = format!("k{n}");
                for _ in 0..10 {
                    let ttl = S * (100 + n);
                    let grant = blocking::acquire(conn, &key, Duration::ZERO, Some(ttl)).unwrap();
                    assert_eq!(grant.lease, ttl, "it is another's");
                    blocking::release(conn, &key, &grant.token).unwrap();
                }
            });
        }
    });
    assert!(blocking::stats(&conn).unwrap().locks.is_empty());
}

#[test]
fn a_command_waits_as_long_as_it_was_told() {
    let server = TestServer::new();
    let _guard = hold(&server);
    let error = server.sync_conn().command("l", "k", "600", Some(S / 10)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert_eq!(io::Error::from(error).kind(), io::ErrorKind::TimedOut);
}

#[test]
fn the_functions_speak_the_whole_protocol() {
    let server = TestServer::new();
    let (one, two) = (server.sync_conn(), server.sync_conn());
    let held = blocking::acquire(&one, "k", Duration::ZERO, None).unwrap();
    assert_eq!(blocking::enqueue(&two, "k", None).unwrap(), command::Enqueued::Queued);
    assert_eq!(blocking::renew(&one, "k", &held.token, Some(5 * S)).unwrap(), 5 * S);
    blocking::release(&one, "k", &held.token).unwrap();
    let next = blocking::wait(&two, "k", LONG).unwrap();
    assert!(next.token.fence() > held.token.fence());
    let slot = blocking::sem_acquire(&one, "s", Duration::ZERO, 1, None).unwrap();
    assert_eq!(blocking::sem_enqueue(&two, "s", 1, None).unwrap(), command::Enqueued::Queued);
    assert_eq!(blocking::sem_renew(&one, "s", &slot.token, Some(5 * S)).unwrap(), 5 * S);
    blocking::sem_release(&one, "s", &slot.token).unwrap();
    let next = blocking::sem_wait(&two, "s", LONG).unwrap();
    blocking::sem_release(&two, "s", &next.token).unwrap();
    let error = blocking::sem_release(&two, "s", &next.token).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotHeld);
}

#[test]
fn a_semaphore_and_a_ticket_work_from_any_thread() {
    let server = TestServer::new();
    let slots = SyncDistributedSemaphore::builder("s", 1).dial(server.clone()).build().unwrap();
    let first = slots.acquire().unwrap();
    let Enqueued::Queued(ticket) = slots.enqueue().unwrap() else { panic!("it is taken") };
    let waiter = thread::spawn(move || ticket.wait(LONG).unwrap());
    thread::spawn(move || first.release().unwrap()).join().unwrap();
    assert!(waiter.join().unwrap().is_held());
    soon("the release", || server.stats().semaphores.iter().all(|s| s.holders == 0));
}
