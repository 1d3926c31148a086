//! The lock table, without I/O: FIFO queues, leases, limits, two-phase registrations, collection of idle
//! keys. Callers pass the time in. Does not depend on a runtime.

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

/// The number of a connection, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u64);

/// The number of a place in a key's queue, valid from [`AcquireOutcome::Waiting`] until its outcome is
/// delivered or the wait is cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WaiterId(pub u64);

/// The settings of a table.
#[derive(Clone, Debug)]
pub struct TableConfig {
    /// The lease of a command that names none.
    pub default_lease: Seconds,
    /// The maximum number of keys, in use or idle.
    pub max_locks: usize,
    /// The maximum number of waiters for one key; 0 means no limit.
    pub max_waiters: usize,
    /// The time for which a key without holders and waiters is kept.
    pub gc_max_idle: Duration,
    /// If `true`, a disconnect releases what the connection holds.
    pub auto_release: bool,
}

/// A grant of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The token that proves the grant.
    pub token: Token,
    /// The lease of the grant, unless renewed.
    pub lease: Seconds,
}

/// The outcome of an acquire or a wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AcquireOutcome {
    /// The connection holds the key.
    Granted(Grant),
    /// The command waits in the queue. [`LockTable::poll_delivery`] returns its outcome with this id.
    Waiting(WaiterId),
    /// The key is busy, and the command does not wait.
    Busy,
    /// Refused.
    Refused(Status),
}

/// The outcome of an enqueue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnqueueOutcome {
    /// The connection holds the key at once.
    Acquired(Grant),
    /// The connection has a place in the queue.
    Queued,
    /// Refused.
    Refused(Status),
}

/// The outcome of a command that waited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The connection that waits.
    pub conn: ConnId,
    /// The id of the wait.
    pub waiter: WaiterId,
    /// The grant, or the reason why there is none (`error_draining`, `error_lease_expired`).
    pub outcome: Result<Grant, Status>,
}

/// An enqueue that no wait command has collected yet.
#[derive(Clone)]
enum Registration {
    Queued(WaiterId),
    Holding {
        holder: HolderSlot,
        lease: Seconds,
        /// `true` if the connection knows the token, `false` for a grant that came while it was queued.
        delivered: bool,
    },
}

/// The outcome of the fast path.
enum FastPath {
    Held(HolderSlot, Grant),
    /// The key has no room or has waiters already, and its queue accepts one more.
    Full(KeySlot),
}

/// Locks, semaphores and their queues. A lease expires once `now` reaches its deadline. Acquire, enqueue,
/// wait and renew first evict the expired holders of their key and grant it to its waiters. After each
/// call, the caller drains [`poll_delivery`](Self::poll_delivery).
pub struct LockTable {
    config: TableConfig,
    mint: Box<dyn FnMut() -> Option<Token> + Send>,
    draining: bool,
    keys: Keys,
    holders: Holders,
    waiters: Waiters,
    /// Each registration has a holder or a waiter, so its key cannot be collected before it.
    registrations: BTreeMap<(ConnId, KeySlot), Registration>,
    /// The keys of registrations whose lease expired. A wait must report that, even after the key is
    /// collected.
    expired_registrations: BTreeMap<ConnId, BTreeSet<Key>>,
    /// Keys with room and waiters for which no token could be minted.
    stalled: BTreeSet<KeySlot>,
    /// Closed connections of which something is left. They are granted nothing.
    leaving: BTreeMap<ConnId, LeavingConnection>,
    /// The connection in `leaving` that is next.
    next_leaving: ConnId,
    /// The time by which the last holder that is kept for a connection given up has gone.
    kept_until: Option<Instant>,
}

impl LockTable {
    /// Creates an empty table. `mint` returns a token with a fence of its own for each grant, or `None` if
    /// it has no fence.
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

    /// Takes the key, or joins the queue if `may_wait` (commands `l`, with `limit` 1, and `sl`).
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

    /// Takes the key or a place in its queue, and registers it for the connection (commands `e`, `se`).
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

    /// Collects the connection's registration for the key, and clears it in every case (commands `w`,
    /// `sw`).
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

    /// Takes a wait that timed out out of the queue. Returns `Some` if its outcome came first and was not
    /// polled yet; it is then no longer delivered.
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

    /// Releases a holder, and returns `true` if there was one (commands `r`, `sr`). An expired holder
    /// counts until it is evicted.
    pub fn release(&mut self, now: Instant, key: &Key, token: &Token) -> bool {
        let Some((slot, holder)) = self.find(key, token) else { return false };
        self.remove_holder(slot, holder);
        self.grant_next(now, slot);
        true
    }

    /// Renews a lease, and returns its new length (commands `n`, `sn`); `None` if the key is not held with
    /// this token or the lease has expired.
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

    /// Evicts every expired lease. The cost grows with the number of expired leases alone.
    pub fn sweep(&mut self, now: Instant) {
        self.sweep_part(now, usize::MAX);
    }

    /// Sweeps in at most so many steps, and returns `true` if more may be left. See [`sweep`](Self::sweep).
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
            // While no token can be minted, one failure is enough: the other keys would fail too.
            if left == 0 && self.stalled.contains(&slot) {
                return false;
            }
            steps = steps.saturating_add(left.max(1));
        }
        steps >= max_steps
    }

    /// Drops the keys that were idle for `gc_max_idle`. The cost grows with the number of dropped keys
    /// alone.
    pub fn collect(&mut self, now: Instant) {
        self.collect_part(now, usize::MAX);
    }

    /// Drops at most so many idle keys, and returns `true` if more may be left. See
    /// [`collect`](Self::collect).
    pub fn collect_part(&mut self, now: Instant, max_keys: usize) -> bool {
        self.keys.collect(now, self.config.gc_max_idle, max_keys)
    }

    /// Returns `true` if the connection holds anything.
    pub fn holds(&self, conn: ConnId) -> bool {
        self.holders.of_conn(conn, HolderSlot::FIRST).next().is_some()
    }

    /// Returns the next outcome for a waiting connection.
    pub fn poll_delivery(&mut self) -> Option<Delivery> {
        self.waiters.poll()
    }
}
