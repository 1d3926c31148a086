//! The property that the table returns the same as a naive model, for any sequence of operations.

mod naive;
mod ops;
mod pairs;

use std::sync::atomic::Ordering;

use proptest::prelude::*;

use self::naive::Model;
use self::ops::{Op, op};
use self::pairs::Pairs;
use super::*;

const MAX_LOCKS: usize = 3;
const MAX_WAITERS: usize = 3;
const MAX_IDLE: u64 = 4;
const DEFAULT_LEASE: u64 = 3;

/// Few in a debug build, which each push waits for; many in a release build, to find rare failures.
const CASES: u32 = if cfg!(debug_assertions) { 96 } else { 2048 };

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn the_table_answers_as_the_naive_model_does(
        auto_release: bool,
        mut ops in prop::collection::vec(op(), 1..200),
        end in prop::collection::vec(op(), 0..20),
    ) {
        ops.push(Op::Drain);
        ops.extend(end);
        run(auto_release, ops);
    }
}

fn run(auto_release: bool, ops: Vec<Op>) {
    let (max_locks, max_waiters, gc_max_idle) = (MAX_LOCKS, MAX_WAITERS, Duration::from_secs(MAX_IDLE));
    let default_lease = seconds(DEFAULT_LEASE);
    let settings = TableConfig { default_lease, max_locks, max_waiters, gc_max_idle, auto_release };
    let (mut real, broken) = table(settings);
    let mut model = Model::new(auto_release);
    let mut pairs = Pairs::default();
    let start = Instant::now();
    for op in ops {
        let now = start + Duration::from_secs(model.now);
        let lease_of = |lease: Option<u64>| lease.map(seconds);
        let limit_of = |limit| Limit::new(limit).unwrap();
        match op {
            Op::Acquire { conn, key, limit, lease, may_wait } => {
                let outcome =
                    real.acquire(now, ConnId(conn), &name(key), limit_of(limit), lease_of(lease), may_wait);
                pairs.assert_acquire(&outcome, &model.acquire(conn, key, limit, lease, may_wait));
            }
            Op::Enqueue { conn, key, limit, lease } => {
                let outcome = real.enqueue(now, ConnId(conn), &name(key), limit_of(limit), lease_of(lease));
                pairs.assert_enqueue(&outcome, &model.enqueue(conn, key, limit, lease));
            }
            Op::Wait { conn, key, may_wait } => {
                let outcome = real.wait(now, ConnId(conn), &name(key), may_wait);
                pairs.assert_acquire(&outcome, &model.wait(conn, key, may_wait));
            }
            Op::Cancel { back } => {
                let waiter = model.joins.saturating_sub(back as u64);
                match (real.cancel_wait(now, WaiterId(waiter)), model.cancel(waiter)) {
                    (Some(real), Some(model)) => pairs.assert_outcome(&real, &model),
                    (real, model) => assert_eq!(real, model),
                }
            }
            Op::Release { key, back } => {
                let (token, number) = pairs.pick(back);
                let key = model.key_of(number, key);
                assert_eq!(real.release(now, &name(key), &token), model.release(key, number));
            }
            Op::Renew { key, back, lease } => {
                let (token, number) = pairs.pick(back);
                let key = model.key_of(number, key);
                let renewed = real.renew(now, &name(key), &token, lease_of(lease));
                assert_eq!(renewed, model.renew(key, number, lease));
            }
            Op::Disconnect { conn } => {
                real.disconnect(now, ConnId(conn));
                model.disconnect(conn);
            }
            Op::GiveUp { conn, seconds } => {
                real.give_up(now, ConnId(conn), now + Duration::from_secs(seconds));
                model.give_up(conn, seconds);
            }
            Op::Sweep => {
                real.sweep(now);
                model.evict(None);
                model.grant_next(None);
            }
            Op::Collect => {
                real.collect(now);
                model.collect();
            }
            Op::Pass { seconds } => model.now += seconds,
            Op::Poll => {
                for expected in model.poll() {
                    let delivery = real.poll_delivery().expect("a delivery");
                    assert_eq!((delivery.conn, delivery.waiter), (expected.conn, expected.waiter));
                    pairs.assert_outcome(&delivery.outcome, &expected.outcome);
                }
                assert_eq!(real.poll_delivery(), None);
            }
            Op::Break { on } => {
                broken.store(on, Ordering::Relaxed);
                model.broken = on;
            }
            Op::Drain => {
                real.drain(now);
                model.drain();
            }
        }
        let stats = sorted(real.stats(start + Duration::from_secs(model.now)));
        assert_eq!(stats, model.stats());
        assert!(stats.semaphores.iter().all(|row| row.holders <= row.limit), "over the limit");
        for conn in 1..=3 {
            assert_eq!(real.holds(ConnId(conn)), model.holds(conn));
        }
        real.check();
    }
}

impl LockTable {
    /// Checks what must hold between any two commands: counts and indices agree, and nothing is left
    /// behind.
    fn check(&self) {
        let held: u64 = self.keys.range(0..usize::MAX).map(|entry| u64::from(entry.holders)).sum();
        let waiting: usize = self.keys.range(0..usize::MAX).map(|entry| entry.waiters as usize).sum();
        assert_eq!(waiting, self.waiters.len());
        let by_conn = (0..=3)
            .map(|conn| self.holders.of_conn(ConnId(conn), HolderSlot::FIRST).count() as u64)
            .sum::<u64>();
        assert_eq!(held, by_conn);
        for entry in self.keys.range(0..usize::MAX) {
            let slot = self.keys.find(&entry.key).expect("every key is indexed");
            assert_eq!(entry.idle_since.is_some(), entry.holders == 0 && entry.waiters == 0);
            let blocked = !entry.has_room() || entry.waiters == 0 || self.stalled.contains(&slot);
            assert!(blocked, "a free place, and a waiter for it");
        }
        for ((conn, slot), kept) in &self.registrations {
            match kept {
                Registration::Queued(waiter) => {
                    let waiter = self.waiters.get(*waiter).expect("a registered waiter waits");
                    assert_eq!((waiter.conn, waiter.key), (*conn, *slot));
                }
                Registration::Holding { holder, .. } => {
                    let holder = self.holders.get(*holder).expect("a registered holder holds");
                    assert_eq!((holder.conn, holder.key), (*conn, *slot));
                }
            }
        }
    }
}

fn name(key: u8) -> Key {
    Key::from_wire(&[b'a' + key]).unwrap()
}

fn sorted(mut stats: StatsResult) -> StatsResult {
    stats.locks.sort_by(|a, b| a.key.cmp(&b.key));
    stats.semaphores.sort_by(|a, b| a.key.cmp(&b.key));
    stats.idle_locks.sort_by(|a, b| a.key.cmp(&b.key));
    stats.idle_semaphores.sort_by(|a, b| a.key.cmp(&b.key));
    stats
}
