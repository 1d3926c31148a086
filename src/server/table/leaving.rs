//! Removes what a closed connection or a server that stops leaves behind, in parts, so that no step takes
//! long.

use std::time::Instant;

use super::slots::{HolderSlot, KeySlot};
use super::{ConnId, LockTable, Registration};
use crate::proto::Status;

/// A connection that has closed, and of which something is left.
pub(super) struct LeavingConnection {
    /// The time until which its holders are kept; `None` frees them at once.
    kept_until: Option<Instant>,
    /// The first holder that is not yet processed.
    next_holder: HolderSlot,
}

impl LockTable {
    /// Removes a connection whose peer has closed it: its waiters, its registrations, and the grants that
    /// were not delivered. With `auto_release`, its other holders are freed too.
    pub fn disconnect(&mut self, now: Instant, conn: ConnId) {
        self.leave(now, conn, None, usize::MAX);
    }

    /// Removes a connection that the server gave up while its peer may not know that. What it holds is kept
    /// until `until` or until its lease expires, whichever is first. A renewal by token, over another
    /// connection, sets a new lease. The rest goes as after a [`disconnect`](Self::disconnect). Without
    /// `auto_release`, a holder keeps its whole lease.
    pub fn give_up(&mut self, now: Instant, conn: ConnId, until: Instant) {
        self.leave(now, conn, Some(until), usize::MAX);
    }

    /// Does the same as [`give_up`](Self::give_up), or without `kept_until` as
    /// [`disconnect`](Self::disconnect), in at most so many steps. Returns `true` if more is left, for
    /// [`leave_part`](Self::leave_part) to do.
    pub fn leave(
        &mut self,
        now: Instant,
        conn: ConnId,
        kept_until: Option<Instant>,
        max_steps: usize,
    ) -> bool {
        let kept_until = kept_until.filter(|until| *until > now);
        if self.config.auto_release && self.holds(conn) {
            self.kept_until = self.kept_until.max(kept_until);
        }
        self.leaving.insert(conn, LeavingConnection { kept_until, next_holder: HolderSlot::FIRST });
        self.leave_steps(now, conn, max_steps)
    }

    /// Does the next steps for one of the connections that leave, each in turn. Returns `true` if more is
    /// left.
    pub fn leave_part(&mut self, now: Instant, max_steps: usize) -> bool {
        let next = self.leaving.range(self.next_leaving..).next().or_else(|| self.leaving.first_key_value());
        let Some((&conn, _)) = next else { return false };
        self.next_leaving = ConnId(conn.0 + 1);
        self.leave_steps(now, conn, max_steps);
        !self.leaving.is_empty()
    }

    /// Returns `true` if a holder of a connection that the server gave up is kept at that time.
    pub fn has_kept_leases(&self, now: Instant) -> bool {
        self.kept_until.is_some_and(|until| now < until) && !self.holders.is_empty()
    }

    /// Refuses acquire, enqueue and wait with `error_draining` from now on, and refuses all waiters.
    /// Revokes the grants that were not delivered: no client could release them.
    pub fn drain(&mut self, now: Instant) {
        self.drain_part(now, usize::MAX);
    }

    /// Drains in at most so many steps, and returns `true` if more may be left. See [`drain`](Self::drain).
    pub fn drain_part(&mut self, now: Instant, max_steps: usize) -> bool {
        self.draining = true;
        let (mut touched, mut steps) = (Vec::new(), 0);
        while steps < max_steps {
            if let Some(id) = self.waiters.oldest() {
                if let Some(waiter) = self.leave_queue(id) {
                    touched.push(waiter.key);
                    if waiter.blocking {
                        self.waiters.deliver(id, waiter, Err(Status::Draining));
                    }
                }
            } else if let Some(((_, slot), registration)) = self.registrations.pop_first() {
                touched.extend(self.revoke_registered(slot, &registration));
            } else if !self
                .expired_registrations
                .keys()
                .next()
                .copied()
                .is_some_and(|conn| self.drop_expired_registration(conn))
            {
                break;
            }
            steps += 1;
        }
        self.grant_next_all(now, touched);
        steps == max_steps
    }

    fn leave_steps(&mut self, now: Instant, conn: ConnId, max_steps: usize) -> bool {
        let mut touched = Vec::new();
        // All places of the connection go before any key is granted again. Otherwise it would be granted
        // one.
        let more = (0..max_steps).all(|_| self.leave_step(conn, &mut touched));
        self.grant_next_all(now, touched);
        if !more {
            self.leaving.remove(&conn);
        }
        more
    }

    /// Returns `true` if there was something left to do.
    fn leave_step(&mut self, conn: ConnId, touched: &mut Vec<KeySlot>) -> bool {
        if let Some(id) = self.waiters.first_of_conn(conn) {
            if let Some((waiter, outcome)) = self.waiters.take_outcome(id) {
                self.revoke_undelivered(&waiter, &outcome);
                touched.push(waiter.key);
            } else if let Some(waiter) = self.leave_queue(id) {
                touched.push(waiter.key);
            }
            return true;
        }
        let registered = (conn, KeySlot::FIRST)..=(conn, KeySlot::LAST);
        if let Some((&at @ (_, slot), _)) = self.registrations.range(registered).next() {
            if let Some(registration) = self.registrations.remove(&at) {
                touched.extend(self.revoke_registered(slot, &registration));
            }
            return true;
        }
        self.drop_expired_registration(conn)
            || (self.config.auto_release && self.free_one_holder(conn, touched))
    }

    /// Frees one holder of a connection that leaves, or sets its new deadline.
    fn free_one_holder(&mut self, conn: ConnId, touched: &mut Vec<KeySlot>) -> bool {
        let Some(leaving) = self.leaving.get_mut(&conn) else { return false };
        let Some(slot) = self.holders.of_conn(conn, leaving.next_holder).next() else { return false };
        leaving.next_holder = slot.next();
        let Some(holder) = self.holders.get(slot) else { return true };
        let (key, deadline) = (holder.key, holder.deadline);
        match leaving.kept_until {
            None => {
                self.remove_holder(key, slot);
                touched.push(key);
            }
            Some(until) => {
                if let Some(entry) = self.keys.get(key) {
                    self.holders.extend(entry, slot, deadline.min(until));
                }
            }
        }
        true
    }

    /// Revokes a registered grant that was not delivered, and returns its key.
    fn revoke_registered(&mut self, slot: KeySlot, registration: &Registration) -> Option<KeySlot> {
        let Registration::Holding { holder, delivered: false, .. } = registration else { return None };
        self.remove_holder(slot, *holder);
        Some(slot)
    }
}
