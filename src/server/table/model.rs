//! The table once more, as naive as can be (lists, scanned whole), and the property that both
//! answer alike. Whole seconds for times, the count of grants for fences.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::tests::{seconds, table};
use super::*;
use crate::types::Fence;

const MAX_LOCKS: usize = 3;
const MAX_WAITERS: usize = 3;
const MAX_IDLE: u64 = 4;
const DEFAULT_LEASE: u64 = 3;

#[derive(Clone, Debug)]
enum Op {
    Acquire { conn: u64, key: u8, limit: u64, lease: Option<u64>, may_wait: bool },
    Enqueue { conn: u64, key: u8, limit: u64, lease: Option<u64> },
    Wait { conn: u64, key: u8, may_wait: bool },
    Cancel { back: usize },
    Release { key: Option<u8>, back: usize },
    Renew { key: Option<u8>, back: usize, lease: Option<u64> },
    Disconnect { conn: u64 },
    Sweep,
    Collect,
    Pass { seconds: u64 },
    Poll,
    Break { on: bool },
    Drain,
}

struct Held {
    grant: u64,
    conn: u64,
    deadline: u64,
}

struct Queued {
    waiter: u64,
    conn: u64,
    lease: u64,
    attended: bool,
}

struct Row {
    key: u8,
    limit: u64,
    held: Vec<Held>,
    queue: Vec<Queued>,
    idle_since: Option<u64>,
}

#[derive(Clone, PartialEq)]
enum Kept {
    Queued { waiter: u64 },
    Holding { grant: u64, lease: u64, told: bool },
    Lost,
}

#[derive(Default)]
struct Model {
    now: u64,
    broken: bool,
    draining: bool,
    auto_release: bool,
    grants: u64,
    /// The key of each grant, from the first on.
    keys: Vec<u8>,
    joins: u64,
    rows: Vec<Row>,
    kept: Vec<(u64, u8, Kept)>,
    ready: Vec<(u8, Delivery)>,
}

fn grant(number: u64, lease: u64) -> Grant {
    Grant { token: Token::mint(Fence::new(number), 0), lease: seconds(lease) }
}

impl Model {
    fn row(&mut self, key: u8) -> Option<&mut Row> {
        self.rows.iter_mut().find(|row| row.key == key)
    }

    fn kept(&self, conn: u64, key: u8) -> Option<Kept> {
        self.kept.iter().find(|kept| (kept.0, kept.1) == (conn, key)).map(|kept| kept.2.clone())
    }

    fn forget(&mut self, conn: u64, key: u8) {
        self.kept.retain(|kept| (kept.0, kept.1) != (conn, key));
    }

    fn mint(&mut self, key: u8) -> Option<u64> {
        if self.broken {
            return None;
        }
        self.grants += 1;
        self.keys.push(key);
        Some(self.grants)
    }

    /// The key of a grant, unless another is wanted.
    fn key_of(&self, grant: u64, wanted: Option<u8>) -> u8 {
        let own = grant.checked_sub(1).map_or(0, |at| self.keys[at as usize]);
        wanted.unwrap_or(own)
    }

    fn evict(&mut self, only: Option<u8>) {
        let now = self.now;
        for row in self.rows.iter_mut().filter(|row| only.is_none_or(|key| key == row.key)) {
            for gone in row.held.iter().filter(|held| held.deadline <= now) {
                for (.., kept) in &mut self.kept {
                    if matches!(kept, Kept::Holding { grant, .. } if *grant == gone.grant) {
                        *kept = Kept::Lost;
                    }
                }
            }
            row.held.retain(|held| held.deadline > now);
        }
    }

    /// Grants whatever can be granted on one key or on all, then finds out what is idle.
    fn settle(&mut self, only: Option<u8>) {
        for at in 0..self.rows.len() {
            let key = self.rows[at].key;
            if only.is_some_and(|only| only != key) {
                continue;
            }
            while (self.rows[at].held.len() as u64) < self.rows[at].limit && !self.rows[at].queue.is_empty() {
                let Some(number) = self.mint(key) else { break };
                let Queued { waiter, conn, lease, attended } = self.rows[at].queue.remove(0);
                let deadline = self.now + lease;
                self.rows[at].held.push(Held { grant: number, conn, deadline });
                if attended {
                    let outcome = Ok(grant(number, lease));
                    let delivery = Delivery { conn: ConnId(conn), waiter: WaiterId(waiter), outcome };
                    self.ready.push((key, delivery));
                } else {
                    self.forget(conn, key);
                    self.kept.push((conn, key, Kept::Holding { grant: number, lease, told: false }));
                }
            }
            let row = &mut self.rows[at];
            let unused = row.held.is_empty() && row.queue.is_empty();
            row.idle_since = unused.then_some(row.idle_since.unwrap_or(self.now));
        }
    }

    fn enter(&mut self, conn: u64, key: u8, limit: u64, lease: u64) -> Result<Option<Grant>, Status> {
        let rows = self.rows.len();
        match self.row(key) {
            None if rows >= MAX_LOCKS => return Err(Status::MaxLocks),
            None => {}
            Some(row) if row.limit != limit => return Err(Status::LimitMismatch),
            Some(row) if row.queue.is_empty() && (row.held.len() as u64) < limit => {}
            Some(row) if row.queue.len() >= MAX_WAITERS => return Err(Status::MaxWaiters),
            Some(_) => return Ok(None),
        }
        let number = self.mint(key).ok_or(Status::Error)?;
        if self.row(key).is_none() {
            self.rows.push(Row { key, limit, held: vec![], queue: vec![], idle_since: None });
        }
        let deadline = self.now + lease;
        let row = self.row(key).unwrap();
        row.held.push(Held { grant: number, conn, deadline });
        row.idle_since = None;
        Ok(Some(grant(number, lease)))
    }

    fn join(&mut self, conn: u64, key: u8, lease: u64, attended: bool) -> u64 {
        self.joins += 1;
        let waiter = self.joins;
        self.row(key).unwrap().queue.push(Queued { waiter, conn, lease, attended });
        waiter
    }

    fn acquire(&mut self, conn: u64, key: u8, limit: u64, lease: Option<u64>, may_wait: bool) -> Answer {
        if self.draining {
            return Answer::Refused(Status::Draining);
        }
        self.evict(Some(key));
        self.settle(Some(key));
        let lease = lease.unwrap_or(DEFAULT_LEASE);
        match self.enter(conn, key, limit, lease) {
            Err(status) => Answer::Refused(status),
            Ok(Some(grant)) => Answer::Granted(grant),
            Ok(None) if may_wait => Answer::Waiting(WaiterId(self.join(conn, key, lease, true))),
            Ok(None) => Answer::Busy,
        }
    }

    fn enqueue(&mut self, conn: u64, key: u8, limit: u64, lease: Option<u64>) -> Place {
        if self.draining {
            return Place::Refused(Status::Draining);
        }
        self.evict(Some(key));
        self.settle(Some(key));
        if self.kept(conn, key).is_some_and(|kept| kept != Kept::Lost) {
            return Place::Refused(Status::AlreadyEnqueued);
        }
        let lease = lease.unwrap_or(DEFAULT_LEASE);
        let (kept, place) = match self.enter(conn, key, limit, lease) {
            Err(status) => return Place::Refused(status),
            Ok(Some(grant)) => {
                (Kept::Holding { grant: self.grants, lease, told: true }, Place::Acquired(grant))
            }
            Ok(None) => (Kept::Queued { waiter: self.join(conn, key, lease, false) }, Place::Queued),
        };
        self.forget(conn, key);
        self.kept.push((conn, key, kept));
        place
    }

    fn wait(&mut self, conn: u64, key: u8, may_wait: bool) -> Answer {
        self.evict(Some(key));
        self.settle(Some(key));
        let kept = self.kept(conn, key);
        self.forget(conn, key);
        if self.draining {
            return Answer::Refused(Status::Draining);
        }
        let now = self.now;
        match kept {
            None => Answer::Refused(Status::NotEnqueued),
            Some(Kept::Lost) => Answer::Refused(Status::LeaseExpired),
            Some(Kept::Holding { grant: number, lease, .. }) => {
                let row = self.row(key).unwrap();
                row.held.iter_mut().find(|held| held.grant == number).unwrap().deadline = now + lease;
                Answer::Granted(grant(number, lease))
            }
            Some(Kept::Queued { waiter }) if may_wait => {
                let row = self.row(key).unwrap();
                row.queue.iter_mut().find(|queued| queued.waiter == waiter).unwrap().attended = true;
                Answer::Waiting(WaiterId(waiter))
            }
            Some(Kept::Queued { waiter }) => {
                self.row(key).unwrap().queue.retain(|queued| queued.waiter != waiter);
                self.settle(Some(key));
                Answer::Busy
            }
        }
    }

    fn cancel(&mut self, waiter: u64) -> Option<Result<Grant, Status>> {
        let ready = self.ready.iter().position(|(_, delivery)| delivery.waiter.0 == waiter);
        if let Some(at) = ready {
            return Some(self.ready.remove(at).1.outcome);
        }
        for at in 0..self.rows.len() {
            let before = self.rows[at].queue.len();
            self.rows[at].queue.retain(|queued| queued.waiter != waiter || !queued.attended);
            if self.rows[at].queue.len() < before {
                self.settle(Some(self.rows[at].key));
            }
        }
        None
    }

    fn remove(&mut self, key: u8, number: u64) -> bool {
        let Some(row) = self.row(key) else { return false };
        let before = row.held.len();
        row.held.retain(|held| held.grant != number);
        if row.held.len() == before {
            return false;
        }
        self.kept.retain(|(.., kept)| !matches!(kept, Kept::Holding { grant, .. } if *grant == number));
        true
    }

    fn release(&mut self, key: u8, number: u64) -> bool {
        let removed = self.remove(key, number);
        if removed {
            self.settle(Some(key));
        }
        removed
    }

    fn renew(&mut self, key: u8, number: u64, lease: Option<u64>) -> Option<Seconds> {
        self.evict(Some(key));
        self.settle(Some(key));
        let (now, lease) = (self.now, lease.unwrap_or(DEFAULT_LEASE));
        self.row(key)?.held.iter_mut().find(|held| held.grant == number)?.deadline = now + lease;
        Some(seconds(lease))
    }

    fn take_back_untold(&mut self, of: impl Fn(u64) -> bool) -> Vec<u8> {
        let mut keys = Vec::new();
        for (conn, key, kept) in self.kept.clone() {
            if let (true, Kept::Holding { grant, told: false, .. }) = (of(conn), kept) {
                self.remove(key, grant);
                keys.push(key);
            }
        }
        keys
    }

    fn disconnect(&mut self, conn: u64) {
        let mut touched = Vec::new();
        let (gone, ready) =
            std::mem::take(&mut self.ready).into_iter().partition(|(_, delivery)| delivery.conn.0 == conn);
        self.ready = ready;
        let gone: Vec<(u8, Delivery)> = gone;
        for (key, delivery) in gone {
            if let Ok(grant) = delivery.outcome {
                self.remove(key, grant.token.fence().unwrap().get());
                touched.push(key);
            }
        }
        touched.extend(self.take_back_untold(|of| of == conn));
        self.kept.retain(|kept| kept.0 != conn);
        for row in &mut self.rows {
            let before = (row.queue.len(), row.held.len());
            row.queue.retain(|queued| queued.conn != conn);
            if self.auto_release {
                row.held.retain(|held| held.conn != conn);
            }
            if before != (row.queue.len(), row.held.len()) {
                touched.push(row.key);
            }
        }
        for key in touched {
            self.settle(Some(key));
        }
    }

    fn collect(&mut self) {
        let now = self.now;
        self.rows.retain(|row| row.idle_since.is_none_or(|since| now - since < MAX_IDLE));
    }

    fn drain(&mut self) {
        self.draining = true;
        for row in &mut self.rows {
            for Queued { waiter, conn, attended, .. } in std::mem::take(&mut row.queue) {
                if attended {
                    let outcome = Err(Status::Draining);
                    let delivery = Delivery { conn: ConnId(conn), waiter: WaiterId(waiter), outcome };
                    self.ready.push((row.key, delivery));
                }
            }
        }
        self.take_back_untold(|_| true);
        self.kept.clear();
        self.settle(None);
    }

    fn stats(&self) -> StatsResult {
        let mut stats = StatsResult::default();
        for Row { key, limit, held, queue, idle_since } in &self.rows {
            let (key, limit, waiters) = (name(*key).to_string(), *limit, queue.len() as u64);
            match (idle_since, limit) {
                (Some(since), _) => {
                    let idle_s = (self.now - since) as f64;
                    let list = if limit == 1 { &mut stats.idle_locks } else { &mut stats.idle_semaphores };
                    list.push(IdleKey { key, idle_s });
                }
                (None, 1) => {
                    let holder = held.first();
                    let lease_expires_in_s =
                        holder.map_or(0, |held| held.deadline.saturating_sub(self.now)) as f64;
                    let owner_conn_id = holder.map_or(0, |held| held.conn as i64);
                    stats.locks.push(HeldLock { key, owner_conn_id, lease_expires_in_s, waiters });
                }
                (None, _) => {
                    let holders = held.len() as u64;
                    stats.semaphores.push(HeldSemaphore { key, limit, holders, waiters });
                }
            }
        }
        sorted(stats)
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

/// Which grant of the model is which of the table: one sweep may grant several keys in any order.
#[derive(Default)]
struct Pairs {
    tokens: Vec<(Token, Token)>,
    by_model: HashMap<u64, Token>,
}

impl Pairs {
    fn same(&mut self, real: &Grant, model: &Grant) {
        assert_eq!(real.lease, model.lease);
        let number = model.token.fence().unwrap().get();
        let known = self.by_model.entry(number).or_insert_with(|| {
            assert!(self.tokens.iter().all(|(token, _)| *token != real.token), "a token twice");
            self.tokens.push((real.token.clone(), model.token.clone()));
            real.token.clone()
        });
        assert_eq!(*known, real.token);
    }

    fn outcome(&mut self, real: &Result<Grant, Status>, model: &Result<Grant, Status>) {
        match (real, model) {
            (Ok(real), Ok(model)) => self.same(real, model),
            _ => assert_eq!(real, model),
        }
    }

    fn answer(&mut self, real: &Answer, model: &Answer) {
        match (real, model) {
            (Answer::Granted(real), Answer::Granted(model)) => self.same(real, model),
            _ => assert_eq!(real, model),
        }
    }

    fn place(&mut self, real: &Place, model: &Place) {
        match (real, model) {
            (Place::Acquired(real), Place::Acquired(model)) => self.same(real, model),
            _ => assert_eq!(real, model),
        }
    }

    /// One of the latest grants.
    fn pick(&self, back: usize) -> (Token, u64) {
        let unknown = Token::mint(Fence::new(0), 1);
        let at = self.tokens.len().checked_sub(back + 1);
        at.map_or((unknown, 0), |at| {
            let (real, model) = &self.tokens[at];
            (real.clone(), model.fence().unwrap().get())
        })
    }
}

fn run(auto_release: bool, ops: Vec<Op>) {
    let (max_locks, max_waiters, gc_max_idle) = (MAX_LOCKS, MAX_WAITERS, Duration::from_secs(MAX_IDLE));
    let default_lease = seconds(DEFAULT_LEASE);
    let settings = TableConfig { default_lease, max_locks, max_waiters, gc_max_idle, auto_release };
    let (mut real, broken) = table(settings);
    let mut model = Model { auto_release, ..Model::default() };
    let mut pairs = Pairs::default();
    let start = Instant::now();
    for op in ops {
        let now = start + Duration::from_secs(model.now);
        let lease_of = |lease: Option<u64>| lease.map(seconds);
        let limit_of = |limit| Limit::new(limit).unwrap();
        match op {
            Op::Acquire { conn, key, limit, lease, may_wait } => {
                let answer =
                    real.acquire(now, ConnId(conn), &name(key), limit_of(limit), lease_of(lease), may_wait);
                pairs.answer(&answer, &model.acquire(conn, key, limit, lease, may_wait));
            }
            Op::Enqueue { conn, key, limit, lease } => {
                let place = real.enqueue(now, ConnId(conn), &name(key), limit_of(limit), lease_of(lease));
                pairs.place(&place, &model.enqueue(conn, key, limit, lease));
            }
            Op::Wait { conn, key, may_wait } => {
                let answer = real.wait(now, ConnId(conn), &name(key), may_wait);
                pairs.answer(&answer, &model.wait(conn, key, may_wait));
            }
            Op::Cancel { back } => {
                let waiter = model.joins.saturating_sub(back as u64);
                match (real.cancel_wait(now, WaiterId(waiter)), model.cancel(waiter)) {
                    (Some(real), Some(model)) => pairs.outcome(&real, &model),
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
            Op::Sweep => {
                real.sweep(now);
                model.evict(None);
                model.settle(None);
            }
            Op::Collect => {
                real.collect(now);
                model.collect();
            }
            Op::Pass { seconds } => model.now += seconds,
            Op::Poll => {
                model.ready.sort_by_key(|(_, delivery)| delivery.waiter.0);
                for (_, expected) in std::mem::take(&mut model.ready) {
                    let delivery = real.poll_delivery().expect("a delivery");
                    assert_eq!((delivery.conn, delivery.waiter), (expected.conn, expected.waiter));
                    pairs.outcome(&delivery.outcome, &expected.outcome);
                }
                assert_eq!(real.poll_delivery(), None);
            }
            Op::Break { on } => {
                broken.store(on, Ordering::Relaxed);
                model.broken = on;
            }
            Op::Drain => {
                // The table knows the time of its last command alone.
                real.sweep(now);
                model.evict(None);
                model.settle(None);
                real.drain();
                model.drain();
            }
        }
        let stats = sorted(real.stats(start + Duration::from_secs(model.now)));
        assert_eq!(stats, model.stats());
        assert!(stats.semaphores.iter().all(|row| row.holders <= row.limit), "over the limit");
        for conn in 1..=3 {
            let holds = model.rows.iter().flat_map(|row| &row.held).any(|held| held.conn == conn);
            assert_eq!(real.holds(ConnId(conn)), holds);
        }
        real.check();
    }
}

impl LockTable {
    /// What must hold between any two commands: counts and indices agree, nothing is left behind.
    fn check(&self) {
        let held: u64 = self.keys.iter().map(|entry| u64::from(entry.holders)).sum();
        let waiting: usize = self.keys.iter().map(|entry| entry.waiters as usize).sum();
        assert_eq!(waiting, self.waiters.ids().len());
        let by_conn = (0..=3).map(|conn| self.holders.of_conn(ConnId(conn)).count() as u64).sum::<u64>();
        assert_eq!(held, by_conn);
        for entry in self.keys.iter() {
            let slot = self.keys.find(&entry.key).expect("every key is indexed");
            assert_eq!(entry.idle_since.is_some(), entry.holders == 0 && entry.waiters == 0);
            let blocked = !entry.has_room() || entry.waiters == 0 || self.stalled.contains(&slot);
            assert!(blocked, "a place is free, yet one waits");
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

fn op() -> impl Strategy<Value = Op> {
    let (conn, key) = (1..=3u64, 0..4u8);
    let lease = prop_oneof![Just(None), (1..=5u64).prop_map(Some)];
    let other = prop_oneof![9 => Just(None), 1 => key.clone().prop_map(Some)];
    // Mostly the limit that the key has: 1 for the even, 2 for the odd.
    let place = (key.clone(), prop_oneof![9 => Just(None), 1 => (1..=3u64).prop_map(Some)])
        .prop_map(|(key, limit)| (key, limit.unwrap_or(1 + u64::from(key % 2))));
    prop_oneof![
        8 => (conn.clone(), place.clone(), lease.clone(), any::<bool>()).prop_map(
            |(conn, (key, limit), lease, may_wait)| Op::Acquire { conn, key, limit, lease, may_wait }
        ),
        8 => (conn.clone(), place, lease.clone())
            .prop_map(|(conn, (key, limit), lease)| Op::Enqueue { conn, key, limit, lease }),
        6 => (conn.clone(), key, prop::bool::weighted(0.8))
            .prop_map(|(conn, key, may_wait)| Op::Wait { conn, key, may_wait }),
        3 => (0..4usize).prop_map(|back| Op::Cancel { back }),
        5 => (other.clone(), 0..5usize).prop_map(|(key, back)| Op::Release { key, back }),
        4 => (other, 0..5usize, lease).prop_map(|(key, back, lease)| Op::Renew { key, back, lease }),
        1 => conn.prop_map(|conn| Op::Disconnect { conn }),
        3 => Just(Op::Sweep),
        2 => Just(Op::Collect),
        6 => (1..=3u64).prop_map(|seconds| Op::Pass { seconds }),
        5 => Just(Op::Poll),
        1 => prop::bool::weighted(0.3).prop_map(|on| Op::Break { on }),
    ]
}

proptest! {
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
