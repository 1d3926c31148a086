//! Locks without async: five threads contend for one key, one of them computes for three ttls and keeps its
//! lease, a waiting thread is woken, and a lease is lost on purpose.
//!
//! `cargo run --release --example blocking`

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use dflockd_client::blocking::{self, Enqueued, LockClient};
use dflockd_client::server::{Server, ServerConfig};
use dflockd_client::{Outcome, SyncDistributedSemaphore, blocking::Lease};

const TTL: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // The server is async. If `dflockd` runs as a process, none of this is needed.
    let runtime = tokio::runtime::Runtime::new()?;
    let server = runtime.block_on(Server::bind(ServerConfig { port: 0, ..Default::default() }))?;
    let port = server.local_addr().ok_or("the server is not bound")?.port();
    runtime.spawn(server.run(std::future::pending()));

    let locks = LockClient::builder().servers([("127.0.0.1", port)]).lease_ttl(TTL).build()?;

    println!("Five threads, one key. A lease lasts 1 s, the first thread computes for 3 s.");
    contend(&locks)?;

    println!("\nOne slot, a place in its queue, and a thread that waits there.");
    let exports = SyncDistributedSemaphore::builder("exports", 1).servers([("127.0.0.1", port)]).build()?;
    let slot = exports.acquire()?;
    let Enqueued::Queued(ticket) = exports.enqueue()? else { return Err("the slot was taken".into()) };
    let waiter = thread::spawn(move || ticket.wait(PATIENCE));
    slot.release()?;
    let slot = waiter.join().map_err(|_| "the waiter panicked")??;
    println!("the waiter has it, until {slot:?} is dropped");

    println!("\nA lease that is lost: another client releases it behind its holder.");
    let guard = locks.lock("lost-on-purpose")?.acquire()?;
    let (sender, receiver) = mpsc::channel();
    guard.on_lost(move |reason| sender.send(reason).unwrap_or_default());
    let thief = blocking::open_conn("127.0.0.1", port, None, PATIENCE)?;
    blocking::release(&thief, "lost-on-purpose", guard.token())?;
    match guard.run(|lease| compute(lease, 10 * TTL)) {
        Outcome::Lost(reason) => println!("the holder stopped its work: {reason}"),
        Outcome::Completed(steps) => return Err(format!("it worked on for {steps} steps").into()),
    }
    println!("its callback got: {}", receiver.recv_timeout(PATIENCE)?);
    Ok(())
}

fn contend(locks: &LockClient) -> dflockd_client::Result<()> {
    let lock = locks.lock("one-key")?;
    let first = lock.acquire()?;
    thread::scope(|threads| {
        let others: Vec<_> = (2..=5)
            .map(|n| {
                let lock = &lock;
                threads.spawn(move || {
                    let guard = lock.acquire_within(PATIENCE)?;
                    println!("thread {n} was granted, fence {:?}", guard.fence().map(|fence| fence.get()));
                    guard.release()
                })
            })
            .collect();
        let steps = compute(&first, 3 * TTL);
        println!("thread 1 did {steps} steps, and holds its lease: {}", first.is_held());
        first.release()?;
        others.into_iter().try_for_each(|thread| thread.join().expect("it does not panic"))
    })
}

/// Keeps the processor busy for as long as the lease is held.
fn compute(lease: &Lease, time: Duration) -> u64 {
    let began = Instant::now();
    let mut steps = 0;
    while lease.is_held() && began.elapsed() < time {
        std::hint::black_box((0..1000_u64).sum::<u64>());
        steps += 1;
    }
    steps
}
