//! A naive model of the table: lists that are scanned as a whole, times in whole seconds, and the number of
//! grants as fences.

use super::*;

struct Held {
    grant: u64,
    conn: u64,
    deadline: u64,
}

struct Queued {
    waiter: u64,
    conn: u64,
    lease: u64,
    blocking: bool,
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
    Holding { grant: u64, lease: u64, delivered: bool },
    Lost,
}

#[derive(Default)]
pub(super) struct Model {
    pub(super) now: u64,
    pub(super) broken: bool,
    draining: bool,
    auto_release: bool,
    grants: u64,
    /// The keys of the grants, in order.
    keys: Vec<u8>,
    pub(super) joins: u64,
    rows: Vec<Row>,
    kept: Vec<(u64, u8, Kept)>,
    outcomes: Vec<(u8, Delivery)>,
}

fn grant(number: u64, lease: u64) -> Grant {
    Grant { token: Token::mint(Fence::new(number), 0), lease: seconds(lease) }
}

impl Model {
    pub(super) fn new(auto_release: bool) -> Self {
        Self { auto_release, ..Self::default() }
    }

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

    /// Returns the key of a grant, unless another is wanted.
    pub(super) fn key_of(&self, grant: u64, wanted: Option<u8>) -> u8 {
        let own = grant.checked_sub(1).map_or(0, |at| self.keys[at as usize]);
        wanted.unwrap_or(own)
    }

    pub(super) fn evict(&mut self, only: Option<u8>) {
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

    /// Grants one key or all keys to their waiters, then updates which are idle.
    pub(super) fn grant_next(&mut self, only: Option<u8>) {
        for at in 0..self.rows.len() {
            let key = self.rows[at].key;
            if only.is_some_and(|only| only != key) {
                continue;
            }
            while (self.rows[at].held.len() as u64) < self.rows[at].limit && !self.rows[at].queue.is_empty() {
                let Some(number) = self.mint(key) else { break };
                let Queued { waiter, conn, lease, blocking } = self.rows[at].queue.remove(0);
                let deadline = self.now + lease;
                self.rows[at].held.push(Held { grant: number, conn, deadline });
                if blocking {
                    let outcome = Ok(grant(number, lease));
                    let delivery = Delivery { conn: ConnId(conn), waiter: WaiterId(waiter), outcome };
                    self.outcomes.push((key, delivery));
                } else {
                    self.forget(conn, key);
                    self.kept.push((conn, key, Kept::Holding { grant: number, lease, delivered: false }));
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

    fn join(&mut self, conn: u64, key: u8, lease: u64, blocking: bool) -> u64 {
        self.joins += 1;
        let waiter = self.joins;
        self.row(key).unwrap().queue.push(Queued { waiter, conn, lease, blocking });
        waiter
    }

    pub(super) fn acquire(
        &mut self,
        conn: u64,
        key: u8,
        limit: u64,
        lease: Option<u64>,
        may_wait: bool,
    ) -> AcquireOutcome {
        if self.draining {
            return AcquireOutcome::Refused(Status::Draining);
        }
        self.evict(Some(key));
        self.grant_next(Some(key));
        let lease = lease.unwrap_or(DEFAULT_LEASE);
        match self.enter(conn, key, limit, lease) {
            Err(status) => AcquireOutcome::Refused(status),
            Ok(Some(grant)) => AcquireOutcome::Granted(grant),
            Ok(None) if may_wait => AcquireOutcome::Waiting(WaiterId(self.join(conn, key, lease, true))),
            Ok(None) => AcquireOutcome::Busy,
        }
    }

    pub(super) fn enqueue(&mut self, conn: u64, key: u8, limit: u64, lease: Option<u64>) -> EnqueueOutcome {
        if self.draining {
            return EnqueueOutcome::Refused(Status::Draining);
        }
        self.evict(Some(key));
        self.grant_next(Some(key));
        if self.kept(conn, key).is_some_and(|kept| kept != Kept::Lost) {
            return EnqueueOutcome::Refused(Status::AlreadyEnqueued);
        }
        let lease = lease.unwrap_or(DEFAULT_LEASE);
        let (kept, outcome) = match self.enter(conn, key, limit, lease) {
            Err(status) => return EnqueueOutcome::Refused(status),
            Ok(Some(grant)) => (
                Kept::Holding { grant: self.grants, lease, delivered: true },
                EnqueueOutcome::Acquired(grant),
            ),
            Ok(None) => (Kept::Queued { waiter: self.join(conn, key, lease, false) }, EnqueueOutcome::Queued),
        };
        self.forget(conn, key);
        self.kept.push((conn, key, kept));
        outcome
    }

    pub(super) fn wait(&mut self, conn: u64, key: u8, may_wait: bool) -> AcquireOutcome {
        self.evict(Some(key));
        self.grant_next(Some(key));
        let kept = self.kept(conn, key);
        self.forget(conn, key);
        if self.draining {
            return AcquireOutcome::Refused(Status::Draining);
        }
        let now = self.now;
        match kept {
            None => AcquireOutcome::Refused(Status::NotEnqueued),
            Some(Kept::Lost) => AcquireOutcome::Refused(Status::LeaseExpired),
            Some(Kept::Holding { grant: number, lease, .. }) => {
                let row = self.row(key).unwrap();
                row.held.iter_mut().find(|held| held.grant == number).unwrap().deadline = now + lease;
                AcquireOutcome::Granted(grant(number, lease))
            }
            Some(Kept::Queued { waiter }) if may_wait => {
                let row = self.row(key).unwrap();
                row.queue.iter_mut().find(|queued| queued.waiter == waiter).unwrap().blocking = true;
                AcquireOutcome::Waiting(WaiterId(waiter))
            }
            Some(Kept::Queued { waiter }) => {
                self.row(key).unwrap().queue.retain(|queued| queued.waiter != waiter);
                self.grant_next(Some(key));
                AcquireOutcome::Busy
            }
        }
    }

    pub(super) fn cancel(&mut self, waiter: u64) -> Option<Result<Grant, Status>> {
        let ready = self.outcomes.iter().position(|(_, delivery)| delivery.waiter.0 == waiter);
        if let Some(at) = ready {
            return Some(self.outcomes.remove(at).1.outcome);
        }
        for at in 0..self.rows.len() {
            let before = self.rows[at].queue.len();
            self.rows[at].queue.retain(|queued| queued.waiter != waiter || !queued.blocking);
            if self.rows[at].queue.len() < before {
                self.grant_next(Some(self.rows[at].key));
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

    pub(super) fn release(&mut self, key: u8, number: u64) -> bool {
        let removed = self.remove(key, number);
        if removed {
            self.grant_next(Some(key));
        }
        removed
    }

    pub(super) fn renew(&mut self, key: u8, number: u64, lease: Option<u64>) -> Option<Seconds> {
        self.evict(Some(key));
        self.grant_next(Some(key));
        let (now, lease) = (self.now, lease.unwrap_or(DEFAULT_LEASE));
        self.row(key)?.held.iter_mut().find(|held| held.grant == number)?.deadline = now + lease;
        Some(seconds(lease))
    }

    /// Returns the outcomes that are not polled yet, in the order of polling.
    pub(super) fn poll(&mut self) -> Vec<Delivery> {
        self.outcomes.sort_by_key(|(_, delivery)| delivery.waiter.0);
        self.outcomes.drain(..).map(|(_, delivery)| delivery).collect()
    }

    pub(super) fn holds(&self, conn: u64) -> bool {
        self.rows.iter().flat_map(|row| &row.held).any(|held| held.conn == conn)
    }

    fn revoke_undelivered(&mut self, of: impl Fn(u64) -> bool) -> Vec<u8> {
        let mut keys = Vec::new();
        for (conn, key, kept) in self.kept.clone() {
            if let (true, Kept::Holding { grant, delivered: false, .. }) = (of(conn), kept) {
                self.remove(key, grant);
                keys.push(key);
            }
        }
        keys
    }

    pub(super) fn disconnect(&mut self, conn: u64) {
        self.leave(conn, None);
    }

    pub(super) fn give_up(&mut self, conn: u64, seconds: u64) {
        self.leave(conn, (seconds > 0).then_some(self.now + seconds));
    }

    fn leave(&mut self, conn: u64, kept_until: Option<u64>) {
        let mut touched = Vec::new();
        let (gone, ready) =
            std::mem::take(&mut self.outcomes).into_iter().partition(|(_, delivery)| delivery.conn.0 == conn);
        self.outcomes = ready;
        let gone: Vec<(u8, Delivery)> = gone;
        for (key, delivery) in gone {
            if let Ok(grant) = delivery.outcome {
                self.remove(key, grant.token.fence().unwrap().get());
                touched.push(key);
            }
        }
        touched.extend(self.revoke_undelivered(|of| of == conn));
        self.kept.retain(|kept| kept.0 != conn);
        for row in &mut self.rows {
            let before = (row.queue.len(), row.held.len());
            row.queue.retain(|queued| queued.conn != conn);
            if self.auto_release {
                match kept_until {
                    None => row.held.retain(|held| held.conn != conn),
                    Some(until) => {
                        for held in row.held.iter_mut().filter(|held| held.conn == conn) {
                            held.deadline = held.deadline.min(until);
                        }
                    }
                }
            }
            if before != (row.queue.len(), row.held.len()) {
                touched.push(row.key);
            }
        }
        for key in touched {
            self.grant_next(Some(key));
        }
    }

    pub(super) fn collect(&mut self) {
        let now = self.now;
        self.rows.retain(|row| row.idle_since.is_none_or(|since| now - since < MAX_IDLE));
    }

    pub(super) fn drain(&mut self) {
        self.draining = true;
        for row in &mut self.rows {
            for Queued { waiter, conn, blocking, .. } in std::mem::take(&mut row.queue) {
                if blocking {
                    let outcome = Err(Status::Draining);
                    let delivery = Delivery { conn: ConnId(conn), waiter: WaiterId(waiter), outcome };
                    self.outcomes.push((row.key, delivery));
                }
            }
        }
        self.revoke_undelivered(|_| true);
        self.kept.clear();
        self.grant_next(None);
    }

    pub(super) fn stats(&self) -> StatsResult {
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
