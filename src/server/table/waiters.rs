//! The waiters of each key, first in, first out, and the outcomes that are not polled yet. Ids grow, so the
//! order of ids is the order of arrival.

use std::collections::{BTreeMap, BTreeSet};

use super::slots::KeySlot;
use super::{ConnId, Delivery, Grant, WaiterId};
use crate::proto::Status;
use crate::types::Seconds;

/// A place in a key's queue.
#[derive(Clone)]
pub(super) struct Waiter {
    pub(super) conn: ConnId,
    pub(super) key: KeySlot,
    pub(super) lease: Seconds,
    /// `true` if a command blocks on this place, `false` for an enqueue before its wait.
    pub(super) blocking: bool,
}

type Outcome = Result<Grant, Status>;

#[derive(Default)]
pub(super) struct Waiters {
    last_id: u64,
    waiting: BTreeMap<WaiterId, Waiter>,
    queues: BTreeSet<(KeySlot, WaiterId)>,
    /// Outcomes that are not polled yet, each with the waiter that it is for.
    outcomes: BTreeMap<WaiterId, (Waiter, Outcome)>,
    /// The waiters in `waiting` and those in `outcomes`.
    by_conn: BTreeSet<(ConnId, WaiterId)>,
}

impl Waiters {
    pub(super) fn join(&mut self, waiter: Waiter) -> WaiterId {
        self.last_id += 1;
        let id = WaiterId(self.last_id);
        self.queues.insert((waiter.key, id));
        self.by_conn.insert((waiter.conn, id));
        self.waiting.insert(id, waiter);
        id
    }

    pub(super) fn leave(&mut self, id: WaiterId) -> Option<Waiter> {
        let waiter = self.waiting.remove(&id)?;
        self.queues.remove(&(waiter.key, id));
        self.by_conn.remove(&(waiter.conn, id));
        Some(waiter)
    }

    /// Returns the head of the key's queue.
    pub(super) fn head(&self, key: KeySlot) -> Option<WaiterId> {
        let queue = (key, WaiterId(0))..=(key, WaiterId(u64::MAX));
        self.queues.range(queue).next().map(|(_, id)| *id)
    }

    pub(super) fn get(&self, id: WaiterId) -> Option<&Waiter> {
        self.waiting.get(&id)
    }

    /// Notes that a command blocks on this place from now on.
    pub(super) fn set_blocking(&mut self, id: WaiterId) {
        if let Some(waiter) = self.waiting.get_mut(&id) {
            waiter.blocking = true;
        }
    }

    /// Returns the waiter of any key that has waited longest.
    pub(super) fn oldest(&self) -> Option<WaiterId> {
        self.waiting.keys().next().copied()
    }

    /// Returns the first of the connection's waiters and outcomes.
    pub(super) fn first_of_conn(&self, conn: ConnId) -> Option<WaiterId> {
        let all = (conn, WaiterId(0))..=(conn, WaiterId(u64::MAX));
        self.by_conn.range(all).next().map(|(_, id)| *id)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Keeps the outcome of a waiter that has left the queue.
    pub(super) fn deliver(&mut self, id: WaiterId, waiter: Waiter, outcome: Outcome) {
        self.by_conn.insert((waiter.conn, id));
        self.outcomes.insert(id, (waiter, outcome));
    }

    /// Removes an outcome that was not polled.
    pub(super) fn take_outcome(&mut self, id: WaiterId) -> Option<(Waiter, Outcome)> {
        let ready = self.outcomes.remove(&id)?;
        self.by_conn.remove(&(ready.0.conn, id));
        Some(ready)
    }

    /// Returns the next outcome. Outcomes for one key come in the order of its queue.
    pub(super) fn poll(&mut self) -> Option<Delivery> {
        let (waiter, (Waiter { conn, .. }, outcome)) = self.outcomes.pop_first()?;
        self.by_conn.remove(&(conn, waiter));
        Some(Delivery { conn, waiter, outcome })
    }
}
