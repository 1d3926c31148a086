//! Tests of the table in virtual time, one for each rule, and against a naive model.

mod leases;
mod leaving;
mod limits;
mod model;
mod parts;
mod queue;
mod registrations;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::proto::{HeldLock, HeldSemaphore, IdleKey, StatsResult};
use crate::types::Fence;

const A: ConnId = ConnId(1);
const B: ConnId = ConnId(2);
const C: ConnId = ConnId(3);

fn config() -> TableConfig {
    TableConfig {
        default_lease: seconds(33),
        max_locks: 1024,
        max_waiters: 0,
        gc_max_idle: Duration::from_secs(60),
        auto_release: true,
    }
}

fn seconds(seconds: u64) -> Seconds {
    Seconds::new(seconds).unwrap()
}

/// Returns a table whose mint counts from 1, and fails while the switch is on.
fn table(config: TableConfig) -> (LockTable, Arc<AtomicBool>) {
    let broken = Arc::new(AtomicBool::new(false));
    let (mut last, switch) = (0, broken.clone());
    let mint = move || {
        (!switch.load(Ordering::Relaxed)).then(|| {
            last += 1;
            Token::mint(Fence::new(last), 0)
        })
    };
    (LockTable::new(config, Box::new(mint)), broken)
}

/// A table, its clock, and short forms of the commands.
struct Bench {
    table: LockTable,
    broken: Arc<AtomicBool>,
    now: Instant,
}

fn bench() -> Bench {
    bench_with(|_| {})
}

fn bench_with(change: impl FnOnce(&mut TableConfig)) -> Bench {
    let mut config = config();
    change(&mut config);
    let (table, broken) = table(config);
    Bench { table, broken, now: Instant::now() }
}

fn key(key: &str) -> Key {
    Key::parse(key).unwrap()
}

impl Bench {
    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    fn acquire(&mut self, conn: ConnId, name: &str, lease: u64) -> AcquireOutcome {
        self.shared(conn, name, 1, lease)
    }

    fn shared(&mut self, conn: ConnId, name: &str, limit: u64, lease: u64) -> AcquireOutcome {
        let limit = Limit::new(limit).unwrap();
        self.table.acquire(self.now, conn, &key(name), limit, Some(seconds(lease)), true)
    }

    fn attempt(&mut self, conn: ConnId, name: &str) -> AcquireOutcome {
        self.table.acquire(self.now, conn, &key(name), Limit::ONE, None, false)
    }

    fn enqueue(&mut self, conn: ConnId, name: &str, lease: u64) -> EnqueueOutcome {
        self.table.enqueue(self.now, conn, &key(name), Limit::ONE, Some(seconds(lease)))
    }

    fn wait(&mut self, conn: ConnId, name: &str) -> AcquireOutcome {
        self.table.wait(self.now, conn, &key(name), true)
    }

    fn release(&mut self, name: &str, grant: &Grant) -> bool {
        self.table.release(self.now, &key(name), &grant.token)
    }

    fn renew(&mut self, name: &str, grant: &Grant, lease: Option<u64>) -> Option<u64> {
        let lease = lease.map(seconds);
        self.table.renew(self.now, &key(name), &grant.token, lease).map(Seconds::get)
    }

    /// Expects a grant for this waiter as the next outcome.
    fn delivered(&mut self, conn: ConnId, waiter: WaiterId) -> Grant {
        let delivery = self.table.poll_delivery().expect("a delivery");
        assert_eq!((delivery.conn, delivery.waiter), (conn, waiter));
        delivery.outcome.expect("a grant")
    }

    fn quiet(&mut self) {
        assert_eq!(self.table.poll_delivery(), None);
    }
}

#[track_caller]
fn granted(outcome: AcquireOutcome) -> Grant {
    let AcquireOutcome::Granted(grant) = outcome else { panic!("not granted: {outcome:?}") };
    grant
}

#[track_caller]
fn waiting(outcome: AcquireOutcome) -> WaiterId {
    let AcquireOutcome::Waiting(waiter) = outcome else { panic!("not waiting: {outcome:?}") };
    waiter
}

#[track_caller]
fn acquired(outcome: EnqueueOutcome) -> Grant {
    let EnqueueOutcome::Acquired(grant) = outcome else { panic!("not acquired: {outcome:?}") };
    grant
}
