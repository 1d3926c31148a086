//! The lock table, without I/O: FIFO queues, leases, limits, two-phase registrations, collection.
//! Time is an argument. Knows of no socket, runtime or clock.

mod holders;
mod keys;
mod leaving;
mod slab;
mod slots;
mod stats;
mod steps;
mod waiters;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use self::holders::Holders;
use self::keys::Keys;
use self::leaving::LeavingConnection;
use self::slots::{HolderSlot, KeySlot};
pub use self::stats::StatsList;
use self::waiters::Waiters;
use crate::proto::Status;
use crate::types::{Key, Limit, Seconds, Token};

/// A connection, as the server numbers them (from 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u64);

/// A place in a key's queue, from [`Answer::Waiting`] until it is delivered or cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WaiterId(pub u64);

/// The settings that the table obeys.
#[derive(Clone, Debug)]
pub struct TableConfig {
    /// The lease of commands that name none.
    pub default_lease: Seconds,
    /// How many keys may be in use or idle at once.
    pub max_locks: usize,
    /// How many may wait for one key; 0 for no limit.
    pub max_waiters: usize,
    /// How long a key without holder and waiter is kept.
    pub gc_max_idle: Duration,
    /// Whether a disconnect releases what the connection holds.
    pub auto_release: bool,
}

/// A key held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The proof of it.
    pub token: Token,
    /// For how long, unless renewed.
    pub lease: Seconds,
}

/// What a command that may wait comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AcquireOutcome {
    /// The key is held.
    Granted(Grant),
    /// In the queue: [`LockTable::poll_delivery`] brings the outcome under this id.
    Waiting(WaiterId),
    /// Busy, and the command would not wait.
    Busy,
    /// Refused.
    Refused(Status),
}

/// What an enqueue comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnqueueOutcome {
    /// The key is held at once.
    Acquired(Grant),
    /// In the queue.
    Queued,
    /// Refused.
    Refused(Status),
}

/// The outcome of a waiting command, for the connection that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Who waits.
    pub conn: ConnId,
    /// Under which id.
    pub waiter: WaiterId,
    /// The grant, or why there will be none (`error_draining`, `error_lease_expired`).
    pub outcome: Result<Grant, Status>,
}

/// An enqueue that no wait has collected yet.
#[derive(Clone)]
enum Registration {
    Queued(WaiterId),
    Holding {
        holder: HolderSlot,
        lease: Seconds,
        /// Whether the connection knows the token: false for a grant that came while it queued.
        delivered: bool,
    },
}

/// What the fast path comes to.
enum FastPath {
    Held(HolderSlot, Grant),
    /// No room, or others wait; the queue takes one more.
    Full(KeySlot),
}

/// The table. A lease has run out once `now` reaches its deadline; acquire, enqueue, wait and
/// renew first evict what has run out on their key and hand it on.
/// After each call, drain [`poll_delivery`](Self::poll_delivery).
pub struct LockTable {
    config: TableConfig,
    mint: Box<dyn FnMut() -> Option<Token> + Send>,
    draining: bool,
    keys: Keys,
    holders: Holders,
    waiters: Waiters,
    /// Each of them has a holder or a waiter, so its key cannot be collected under it.
    registrations: BTreeMap<(ConnId, KeySlot), Registration>,
    /// Registrations whose lease ran out: a wait must say so, even after the key is collected.
    expired_registrations: BTreeMap<ConnId, BTreeSet<Key>>,
    /// Keys with room and waiters for which no token could be minted.
    stalled: BTreeSet<KeySlot>,
    /// Connections that are gone, as long as something of theirs is here. They are granted nothing.
    leaving: BTreeMap<ConnId, LeavingConnection>,
    /// Whose turn it is among them.
    next_leaving: ConnId,
    /// When the last holder that is kept for a connection given up will have gone.
    kept_until: Option<Instant>,
}

impl LockTable {
    /// An empty table; `mint` makes each grant's token, with a fence that no other has, or `None`
    /// where no fence can be had.
    pub fn new(config: TableConfig, mint: Box<dyn FnMut() -> Option<Token> + Send>) -> Self {
        Self {
            config,
            mint,
            draining: false,
            keys: Keys::new(),
            holders: Holders::new(),
            waiters: Waiters::default(),
            registrations: BTreeMap::new(),
            expired_registrations: BTreeMap::new(),
            stalled: BTreeSet::new(),
            leaving: BTreeMap::new(),
            next_leaving: ConnId(0),
            kept_until: None,
        }
    }

    /// `l`, `sl` (`limit` 1 for `l`): takes the key, or queues when `may_wait`.
    pub fn acquire(
        &mut self,
        now: Instant,
        conn: ConnId,
        key: &Key,
        limit: Limit,
        lease: Option<Seconds>,
        may_wait: bool,
    ) -> AcquireOutcome {
        if self.draining {
            return AcquireOutcome::Refused(Status::Draining);
        }
        let lease = lease.unwrap_or(self.config.default_lease);
        let found = self.keys.find(key);
        if let Some(slot) = found {
            self.expire_key(now, slot);
        }
        match self.fast_path(now, conn, (key, found), limit, lease) {
            Err(status) => AcquireOutcome::Refused(status),
            Ok(FastPath::Held(_, grant)) => AcquireOutcome::Granted(grant),
            Ok(FastPath::Full(slot)) if may_wait => {
                AcquireOutcome::Waiting(self.join(conn, slot, lease, true))
            }
            Ok(FastPath::Full(_)) => AcquireOutcome::Busy,
        }
    }

    /// `e`, `se`: takes the key or a place, registered for the connection.
    pub fn enqueue(
        &mut self,
        now: Instant,
        conn: ConnId,
        key: &Key,
        limit: Limit,
        lease: Option<Seconds>,
    ) -> EnqueueOutcome {
        if self.draining {
            return EnqueueOutcome::Refused(Status::Draining);
        }
        let lease = lease.unwrap_or(self.config.default_lease);
        let found = self.keys.find(key);
        if let Some(slot) = found {
            self.expire_key(now, slot);
            self.expire_registered(now, conn, slot);
            if self.registrations.contains_key(&(conn, slot)) {
                return EnqueueOutcome::Refused(Status::AlreadyEnqueued);
            }
        }
        let (slot, registration, outcome) = match self.fast_path(now, conn, (key, found), limit, lease) {
            Err(status) => return EnqueueOutcome::Refused(status),
            Ok(FastPath::Held(holder, grant)) => {
                let Some(slot) = self.holders.get(holder).map(|holder| holder.key) else {
                    return EnqueueOutcome::Refused(Status::Error);
                };
                (
                    slot,
                    Registration::Holding { holder, lease, delivered: true },
                    EnqueueOutcome::Acquired(grant),
                )
            }
            Ok(FastPath::Full(slot)) => {
                (slot, Registration::Queued(self.join(conn, slot, lease, false)), EnqueueOutcome::Queued)
            }
        };
        self.take_expired_registration(conn, key);
        self.registrations.insert((conn, slot), registration);
        outcome
    }

    /// `w`, `sw`: collects the connection's registration for the key; clears it in every case.
    pub fn wait(&mut self, now: Instant, conn: ConnId, key: &Key, may_wait: bool) -> AcquireOutcome {
        let slot = self.keys.find(key);
        if let Some(slot) = slot {
            self.expire_key(now, slot);
        }
        let found = slot.and_then(|slot| Some((slot, self.registrations.remove(&(conn, slot))?)));
        let lost = self.take_expired_registration(conn, key);
        if self.draining {
            return AcquireOutcome::Refused(Status::Draining);
        }
        match found {
            None if lost => AcquireOutcome::Refused(Status::LeaseExpired),
            None => AcquireOutcome::Refused(Status::NotEnqueued),
            Some((slot, Registration::Holding { holder, lease, .. })) => {
                match self.extend(now, slot, holder, lease) {
                    Some(token) => AcquireOutcome::Granted(Grant { token, lease }),
                    None => AcquireOutcome::Refused(Status::LeaseExpired),
                }
            }
            Some((_, Registration::Queued(waiter))) if may_wait => {
                self.waiters.set_blocking(waiter);
                AcquireOutcome::Waiting(waiter)
            }
            Some((slot, Registration::Queued(waiter))) => {
                self.leave_queue(waiter);
                self.grant_next(now, slot);
                AcquireOutcome::Busy
            }
        }
    }

    /// The wait timed out: leaves the queue. `Some` where the outcome had come first and was not
    /// polled yet (it is then not delivered any more).
    pub fn cancel_wait(&mut self, now: Instant, waiter: WaiterId) -> Option<Result<Grant, Status>> {
        if let Some((_, outcome)) = self.waiters.take_outcome(waiter) {
            return Some(outcome);
        }
        if self.waiters.get(waiter).is_some_and(|waiter| waiter.blocking)
            && let Some(waiter) = self.leave_queue(waiter)
        {
            self.grant_next(now, waiter.key);
        }
        None
    }

    /// `r`, `sr`: whether there was such a holder (an expired one counts until it is evicted).
    pub fn release(&mut self, now: Instant, key: &Key, token: &Token) -> bool {
        let Some((slot, holder)) = self.find(key, token) else { return false };
        self.remove_holder(slot, holder);
        self.grant_next(now, slot);
        true
    }

    /// `n`, `sn`: the lease just set, or `None` where it is not held or has expired.
    pub fn renew(
        &mut self,
        now: Instant,
        key: &Key,
        token: &Token,
        lease: Option<Seconds>,
    ) -> Option<Seconds> {
        let slot = self.keys.find(key)?;
        self.expire_key(now, slot);
        let (_, holder) = self.find(key, token)?;
        let lease = lease.unwrap_or(self.config.default_lease);
        self.extend(now, slot, holder, lease).map(|_| lease)
    }

    /// Evicts every expired lease; costs what expires.
    pub fn sweep(&mut self, now: Instant) {
        self.sweep_part(now, usize::MAX);
    }

    /// [`sweep`](Self::sweep), at most so many leases of it; whether there may be more.
    pub fn sweep_part(&mut self, now: Instant, max_steps: usize) -> bool {
        let mut touched = Vec::new();
        while touched.len() < max_steps
            && let Some((holder, slot)) = self.holders.expired(now)
        {
            self.evict(slot, holder);
            touched.push(slot);
        }
        let mut steps = touched.len();
        self.grant_next_all(now, touched);
        while steps < max_steps
            && let Some(slot) = self.stalled.first().copied()
        {
            let left = self.grant_next(now, slot);
            // As long as no token can be minted, one key's failure speaks for the rest.
            if left == 0 && self.stalled.contains(&slot) {
                return false;
            }
            steps = steps.saturating_add(left.max(1));
        }
        steps >= max_steps
    }

    /// Drops keys idle for `gc_max_idle`; costs what is dropped.
    pub fn collect(&mut self, now: Instant) {
        self.collect_part(now, usize::MAX);
    }

    /// [`collect`](Self::collect), at most so many keys of it; whether there may be more.
    pub fn collect_part(&mut self, now: Instant, max_keys: usize) -> bool {
        self.keys.collect(now, self.config.gc_max_idle, max_keys)
    }

    /// Whether the connection holds anything.
    pub fn holds(&self, conn: ConnId) -> bool {
        self.holders.of_conn(conn, HolderSlot::FIRST).next().is_some()
    }

    /// The next outcome for a waiting connection.
    pub fn poll_delivery(&mut self) -> Option<Delivery> {
        self.waiters.poll()
    }
}
