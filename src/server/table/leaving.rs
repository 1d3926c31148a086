//! Connections that are gone and a server that stops: what they leave behind goes in parts, so that no
//! step takes long, however much it is. Knows of no command.

use std::time::Instant;

use super::slots::{HolderSlot, KeySlot};
use super::{ConnId, LockTable, Registration};
use crate::proto::Status;

/// A connection that is gone and has left something behind.
pub(super) struct LeavingConnection {
    /// How long its holders are kept; `None` frees them.
    kept_until: Option<Instant>,
    /// The first holder that was not looked at.
    next_holder: HolderSlot,
}

impl LockTable {
    /// The peer is gone: its waiters and registrations leave, with grants that it was never told of;
    /// its other holders too where `auto_release` is set.
    pub fn disconnect(&mut self, now: Instant, conn: ConnId) {
        self.leave(now, conn, None, usize::MAX);
    }

    /// The server gave the connection up, and its peer may not know: all that it holds is kept until
    /// then, or until the lease expires, whichever is first. A renewal by token, over another
    /// connection, keeps a holder for as long as it says. The rest goes as after a
    /// [`disconnect`](Self::disconnect). Without `auto_release`, a holder keeps its whole lease.
    pub fn give_up(&mut self, now: Instant, conn: ConnId, until: Instant) {
        self.leave(now, conn, Some(until), usize::MAX);
    }

    /// [`give_up`](Self::give_up), or without a time [`disconnect`](Self::disconnect), in at most so
    /// many steps. Returns whether there is more, which [`leave_part`](Self::leave_part) does.
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

    /// The next steps of one connection that leaves; they take turns. Returns whether there is more.
    pub fn leave_part(&mut self, now: Instant, max_steps: usize) -> bool {
        let next = self.leaving.range(self.next_leaving..).next().or_else(|| self.leaving.first_key_value());
        let Some((&conn, _)) = next else { return false };
        self.next_leaving = ConnId(conn.0 + 1);
        self.leave_steps(now, conn, max_steps);
        !self.leaving.is_empty()
    }

    /// Whether something is held, at that time, for a connection that the server gave up.
    pub fn has_kept_leases(&self, now: Instant) -> bool {
        self.kept_until.is_some_and(|until| now < until) && !self.holders.is_empty()
    }

    /// Refuses acquire, enqueue and wait with `error_draining` from now on, and all that wait. Takes
    /// grants back that no client was told of: none could release them.
    pub fn drain(&mut self, now: Instant) {
        self.drain_part(now, usize::MAX);
    }

    /// [`drain`](Self::drain), in at most so many steps. Returns whether there may be more.
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
        // All its places go before any hand-off, or it would be granted something once more.
        let more = (0..max_steps).all(|_| self.leave_step(conn, &mut touched));
        self.grant_next_all(now, touched);
        if !more {
            self.leaving.remove(&conn);
        }
        more
    }

    /// Returns whether there was something left to do.
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

    /// Frees one holder of a connection that leaves, or sets when it will be.
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

    /// Takes back a grant that its connection was never told of; returns its key.
    fn revoke_registered(&mut self, slot: KeySlot, registration: &Registration) -> Option<KeySlot> {
        let Registration::Holding { holder, delivered: false, .. } = registration else { return None };
        self.remove_holder(slot, *holder);
        Some(slot)
    }
}
