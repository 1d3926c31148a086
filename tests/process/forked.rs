//! Real forks of a process that holds leases, at moments at which its other threads hold any lock there
//! is: the child has no part in them, drops all of it without waiting for anybody, and the parent keeps
//! what it holds.

use std::process::exit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dflockd_client::server::{Server, ServerConfig};
use dflockd_client::{Enqueued, LeaseState, LockClient, LostReason, blocking};
use fork::{Fork, WEXITSTATUS, WIFEXITED, fork, waitpid_nohang};
use tokio::runtime::{Builder, Runtime};

use crate::apart::is_apart;

/// How often the process forks.
const FORKS: usize = 200;
/// How long a child may take, on a machine that is busy.
const CAP: Duration = Duration::from_secs(60);

/// What the parent holds.
struct Holds {
    client: LockClient,
    guard: dflockd_client::LeaseGuard,
    isolated: dflockd_client::LeaseGuard,
    ticket: dflockd_client::Ticket,
    thread_client: blocking::LockClient,
    thread_guard: blocking::LeaseGuard,
}

impl Holds {
    fn all_held(&self) -> bool {
        self.guard.is_held() && self.isolated.is_held() && self.thread_guard.is_held()
    }

    fn none_held(&self) -> bool {
        let forked = LeaseState::Lost(LostReason::Forked);
        let states = [self.guard.state(), self.isolated.state(), self.thread_guard.state()];
        !self.guard.is_held()
            && !self.isolated.is_held()
            && !self.thread_guard.is_held()
            && states.iter().all(|state| *state == forked)
            && self.thread_guard.renew().is_err()
            && self.thread_guard.run(|_| ()) == dflockd_client::Outcome::Lost(LostReason::Forked)
            && self.thread_client.lock("other").is_ok_and(|lock| lock.acquire().is_err())
    }
}

fn hold(runtime: &Runtime, port: u16) -> Holds {
    let builder = || LockClient::builder().servers([("127.0.0.1", port)]);
    let client = builder().build().unwrap();
    let thread_client = builder().blocking().build().unwrap();
    let thread_guard = thread_client.lock("by-threads").unwrap().acquire().unwrap();
    runtime.block_on(async {
        let guard = client.lock("shared").unwrap().acquire().await.unwrap();
        let isolated = client.lock("isolated").unwrap().isolated().acquire().await.unwrap();
        let ticket = match client.lock("shared").unwrap().enqueue().await.unwrap() {
            Enqueued::Queued(ticket) => ticket,
            Enqueued::Acquired(_) => panic!("it is free"),
        };
        Holds { client: client.clone(), guard, isolated, ticket, thread_client, thread_guard }
    })
}

/// Keeps the threads busy over the very connections and runtimes that the leases are on.
fn keep_busy(runtime: &Runtime, holds: &Holds, stop: &Arc<AtomicBool>) {
    for n in 0..4 {
        let (client, stop) = (holds.client.clone(), stop.clone());
        runtime.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                drop(client.lock(format!("busy-{n}")).unwrap().acquire().await);
            }
        });
    }
    let (client, stop) = (holds.thread_client.clone(), stop.clone());
    thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            drop(client.lock("busy").unwrap().acquire());
        }
    });
}

/// The exit status of a child; none where it hangs.
fn status_of(child: i32) -> Option<i32> {
    let start = Instant::now();
    while start.elapsed() < CAP {
        match waitpid_nohang(child).unwrap() {
            Some(status) => return Some(status),
            None => thread::sleep(Duration::from_millis(1)),
        }
    }
    None
}

#[test]
fn a_forked_child_neither_holds_nor_hangs_and_the_parent_keeps_what_it_has() {
    // Apart, or each child would keep open what the tests beside this one close.
    let name = "::a_forked_child_neither_holds_nor_hangs_and_the_parent_keeps_what_it_has";
    if !is_apart(&[module_path!(), name].concat()) {
        return;
    }
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let server = runtime.block_on(Server::bind(ServerConfig { port: 0, ..Default::default() })).unwrap();
    let port = server.local_addr().unwrap().port();
    runtime.spawn(server.run(std::future::pending()));
    let holds = hold(&runtime, port);
    let stop = Arc::default();
    keep_busy(&runtime, &holds, &stop);
    for n in 0..FORKS {
        match fork().unwrap() {
            Fork::Parent(child) => {
                let status = status_of(child);
                assert!(status.is_some(), "fork {n}: the child hangs");
                let code = status.filter(|status| WIFEXITED(*status)).map(|status| WEXITSTATUS(status));
                assert_eq!(code, Some(0), "fork {n}: {status:?}");
                assert!(holds.all_held(), "fork {n}: the parent has lost something");
            }
            Fork::Child => {
                let none_held = holds.none_held();
                drop(holds);
                exit(if none_held { 0 } else { 1 });
            }
        }
    }
    stop.store(true, Ordering::Relaxed);
    // The server still knows of all of it.
    runtime.block_on(async {
        let stats = holds.client.stats().await.unwrap();
        let waiters = |key: &str| stats[0].locks.iter().find(|lock| lock.key == key).map(|lock| lock.waiters);
        assert_eq!(["shared", "isolated", "by-threads"].map(waiters), [Some(1), Some(0), Some(0)]);
        holds.guard.release().await.unwrap();
        let next = holds.ticket.wait(CAP).await.unwrap();
        next.release().await.unwrap();
        holds.isolated.release().await.unwrap();
    });
    holds.thread_guard.release().unwrap();
}
