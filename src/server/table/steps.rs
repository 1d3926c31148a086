//! The steps that the table's commands share: the fast path, joining and leaving a queue, eviction, the
//! grant to the next waiter.

use std::time::{Duration, Instant};

use super::holders::Holder;
use super::slots::{HolderSlot, KeySlot};
use super::waiters::Waiter;
use super::{ConnId, FastPath, Grant, LockTable, Registration, WaiterId};
use crate::proto::Status;
use crate::types::{Key, Limit, Seconds, Token};

/// The number of expired registrations that are kept for a connection, even if `max_locks` is lower.
const MIN_EXPIRED_KEPT: usize = 1024;
/// The number of holders of one key that are evicted at once, and of waiters that are granted it at once. A
/// limit of a million allows a million of each.
const MAX_STEPS_PER_KEY: usize = 512;

impl LockTable {
    /// Takes the key if it has room and no waiters. Checks the limits first, then the queue's cap. Adds a
    /// new key only once a token is minted for it.
    pub(super) fn fast_path(
        &mut self,
        now: Instant,
        conn: ConnId,
        (key, found): (&Key, Option<KeySlot>),
        limit: Limit,
        lease: Seconds,
    ) -> Result<FastPath, Status> {
        match found.and_then(|slot| self.keys.get(slot)) {
            None if self.keys.len() >= self.config.max_locks => return Err(Status::MaxLocks),
            None => {}
            Some(entry) if entry.limit != limit => return Err(Status::LimitMismatch),
            Some(entry) if entry.has_room() && entry.waiters == 0 => {}
            Some(entry) => {
                let cap = self.config.max_waiters;
                let full = cap != 0 && entry.waiters as usize >= cap;
                return found.filter(|_| !full).map(FastPath::Full).ok_or(Status::MaxWaiters);
            }
        }
        let token = (self.mint)().ok_or(Status::Error)?;
        let slot = found.unwrap_or_else(|| self.keys.insert(key, limit));
        let holder = self.insert_holder(now, slot, conn, token.clone(), lease).ok_or(Status::Error)?;
        self.keys.update_idle(now, slot);
        Ok(FastPath::Held(holder, Grant { token, lease }))
    }

    fn insert_holder(
        &mut self,
        now: Instant,
        slot: KeySlot,
        conn: ConnId,
        token: Token,
        lease: Seconds,
    ) -> Option<HolderSlot> {
        let deadline = deadline(now, lease);
        let entry = self.keys.get_mut(slot)?;
        Some(self.holders.insert(entry, Holder { token, deadline, conn, key: slot }))
    }

    pub(super) fn join(&mut self, conn: ConnId, key: KeySlot, lease: Seconds, blocking: bool) -> WaiterId {
        if let Some(entry) = self.keys.get_mut(key) {
            entry.waiters += 1;
        }
        self.waiters.join(Waiter { conn, key, lease, blocking })
    }

    pub(super) fn leave_queue(&mut self, id: WaiterId) -> Option<Waiter> {
        let waiter = self.waiters.leave(id)?;
        if let Some(entry) = self.keys.get_mut(waiter.key) {
            entry.waiters -= 1;
        }
        Some(waiter)
    }

    pub(super) fn find(&self, key: &Key, token: &Token) -> Option<(KeySlot, HolderSlot)> {
        let slot = self.keys.find(key)?;
        Some((slot, self.holders.find(self.keys.get(slot)?, slot, token)?))
    }

    /// Restarts the lease, unless it has expired.
    pub(super) fn extend(
        &mut self,
        now: Instant,
        slot: KeySlot,
        holder: HolderSlot,
        lease: Seconds,
    ) -> Option<Token> {
        self.holders.get(holder).filter(|holder| holder.deadline > now)?;
        self.holders.extend(self.keys.get(slot)?, holder, deadline(now, lease))
    }

    /// Removes the holder, and clears the registration that it belongs to. Returns the connection of that
    /// registration, if there was one.
    pub(super) fn remove_holder(&mut self, slot: KeySlot, holder: HolderSlot) -> Option<ConnId> {
        let conn = self.holders.remove(self.keys.get_mut(slot)?, holder)?.conn;
        match self.registrations.get(&(conn, slot)) {
            Some(Registration::Holding { holder: registered, .. }) if *registered == holder => {
                self.registrations.remove(&(conn, slot));
                Some(conn)
            }
            _ => None,
        }
    }

    /// Removes a holder whose lease has expired. A later wait for it is refused with that reason.
    pub(super) fn evict(&mut self, slot: KeySlot, holder: HolderSlot) {
        let Some(conn) = self.remove_holder(slot, holder) else { return };
        let Some(entry) = self.keys.get(slot) else { return };
        let lost = self.expired_registrations.entry(conn).or_default();
        // What a connection that enqueues and never waits can use up must have a bound.
        if lost.len() < self.config.max_locks.max(MIN_EXPIRED_KEPT) {
            lost.insert(entry.key.clone());
        }
    }

    pub(super) fn take_expired_registration(&mut self, conn: ConnId, key: &Key) -> bool {
        let Some(lost) = self.expired_registrations.get_mut(&conn) else { return false };
        let was = lost.remove(key);
        if lost.is_empty() {
            self.expired_registrations.remove(&conn);
        }
        was
    }

    /// Drops one expired registration of a connection that leaves. Returns `false` if there is none.
    pub(super) fn drop_expired_registration(&mut self, conn: ConnId) -> bool {
        let Some(lost) = self.expired_registrations.get_mut(&conn) else { return false };
        lost.pop_first();
        if lost.is_empty() {
            self.expired_registrations.remove(&conn);
        }
        true
    }

    /// Revokes a grant that was not polled: no client knows its token.
    pub(super) fn revoke_undelivered(&mut self, waiter: &Waiter, outcome: &Result<Grant, Status>) {
        let (Ok(grant), Some(entry)) = (outcome, self.keys.get(waiter.key)) else { return };
        if let Some(holder) = self.holders.find(entry, waiter.key, &grant.token) {
            self.remove_holder(waiter.key, holder);
        }
    }

    /// Evicts expired holders of the key, at most [`MAX_STEPS_PER_KEY`], and grants it to its waiters. The
    /// sweep does the rest.
    pub(super) fn expire_key(&mut self, now: Instant, slot: KeySlot) {
        for _ in 0..MAX_STEPS_PER_KEY {
            let Some(entry) = self.keys.get(slot) else { break };
            let Some(holder) = self.holders.expired_of(entry, slot, now) else { break };
            self.evict(slot, holder);
        }
        self.grant_next(now, slot);
    }

    /// Evicts the grant of the key that the connection has registered, if that has expired.
    pub(super) fn expire_registered(&mut self, now: Instant, conn: ConnId, slot: KeySlot) {
        if let Some(Registration::Holding { holder, .. }) = self.registrations.get(&(conn, slot))
            && let holder = *holder
            && self.holders.get(holder).is_some_and(|held| held.deadline <= now)
        {
            self.evict(slot, holder);
            self.grant_next(now, slot);
        }
    }

    /// Takes the key from all its holders, as if their leases had expired, and returns their number.
    #[cfg(feature = "test-util")]
    pub(crate) fn revoke(&mut self, now: Instant, key: &Key) -> usize {
        let Some(slot) = self.keys.find(key) else { return 0 };
        let (latest, mut count) = (deadline(now, Seconds::MAX), 0);
        while let Some(entry) = self.keys.get(slot)
            && let Some(holder) = self.holders.expired_of(entry, slot, latest)
        {
            self.evict(slot, holder);
            count += 1;
        }
        self.grant_next(now, slot);
        count
    }

    /// Grants the key to its waiters in order while it has room, and returns how many left the queue. Every
    /// change to a key ends with this step, which also updates whether the key is idle. If the key has more
    /// to grant than [`MAX_STEPS_PER_KEY`], or no token can be minted, the key is marked as stalled.
    pub(super) fn grant_next(&mut self, now: Instant, slot: KeySlot) -> usize {
        self.stalled.remove(&slot);
        let mut steps = 0;
        while self.keys.get(slot).is_some_and(|entry| entry.has_room())
            && let Some(id) = self.waiters.head(slot)
        {
            let leaves = self.waiters.get(id).is_some_and(|waiter| self.leaving.contains_key(&waiter.conn));
            let token = if leaves || steps == MAX_STEPS_PER_KEY { None } else { (self.mint)() };
            if steps == MAX_STEPS_PER_KEY || (token.is_none() && !leaves) {
                self.stalled.insert(slot);
                return steps;
            }
            steps += 1;
            let Some(waiter) = self.leave_queue(id) else { return steps };
            let Some(token) = token else { continue };
            let (conn, lease) = (waiter.conn, waiter.lease);
            let Some(holder) = self.insert_holder(now, slot, conn, token.clone(), lease) else {
                return steps;
            };
            if waiter.blocking {
                self.waiters.deliver(id, waiter, Ok(Grant { token, lease }));
            } else {
                let kept = Registration::Holding { holder, lease, delivered: false };
                self.registrations.insert((conn, slot), kept);
            }
        }
        self.keys.update_idle(now, slot);
        steps
    }

    pub(super) fn grant_next_all(&mut self, now: Instant, slots: Vec<KeySlot>) {
        for slot in slots {
            self.grant_next(now, slot);
        }
    }
}

/// Returns the deadline of a lease that starts now; a century from now if the clock cannot represent it.
fn deadline(now: Instant, lease: Seconds) -> Instant {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 86_400);
    now.checked_add(lease.duration()).or_else(|| now.checked_add(CENTURY)).unwrap_or(now)
}
