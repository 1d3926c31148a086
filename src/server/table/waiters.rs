//! Who waits for which key, first in, first out, and the outcomes that nobody has polled yet.
//! Ids grow, so the order of ids is the order of arrival. Knows of no lease and no limit.

use std::collections::{BTreeMap, BTreeSet};

use super::slots::KeySlot;
use super::{ConnId, Delivery, Grant, WaiterId};
use crate::proto::Status;
use crate::types::Seconds;

/// A place in a queue.
#[derive(Clone)]
pub(super) struct Waiter {
    pub(super) conn: ConnId,
    pub(super) key: KeySlot,
    pub(super) lease: Seconds,
    /// Whether a command blocks on it; false for an enqueue before its wait.
    pub(super) blocking: bool,
}

type Outcome = Result<Grant, Status>;

#[derive(Default)]
pub(super) struct Waiters {
    last_id: u64,
    waiting: BTreeMap<WaiterId, Waiter>,
    queues: BTreeSet<(KeySlot, WaiterId)>,
    /// Not polled yet, with the key that they were for.
    outcomes: BTreeMap<WaiterId, (Waiter, Outcome)>,
    /// Those in `waiting` and those in `ready`.
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

    /// The head of the key's queue.
    pub(super) fn head(&self, key: KeySlot) -> Option<WaiterId> {
        let queue = (key, WaiterId(0))..=(key, WaiterId(u64::MAX));
        self.queues.range(queue).next().map(|(_, id)| *id)
    }

    pub(super) fn get(&self, id: WaiterId) -> Option<&Waiter> {
        self.waiting.get(&id)
    }

    /// From now on a command blocks on this place.
    pub(super) fn set_blocking(&mut self, id: WaiterId) {
        if let Some(waiter) = self.waiting.get_mut(&id) {
            waiter.blocking = true;
        }
    }

    /// The one that has waited for longest, on any key.
    pub(super) fn oldest(&self) -> Option<WaiterId> {
        self.waiting.keys().next().copied()
    }

    /// The first of the connection's places and outcomes.
    pub(super) fn first_of_conn(&self, conn: ConnId) -> Option<WaiterId> {
        let all = (conn, WaiterId(0))..=(conn, WaiterId(u64::MAX));
        self.by_conn.range(all).next().map(|(_, id)| *id)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Keeps the outcome for one who has left the queue.
    pub(super) fn deliver(&mut self, id: WaiterId, waiter: Waiter, outcome: Outcome) {
        self.by_conn.insert((waiter.conn, id));
        self.outcomes.insert(id, (waiter, outcome));
    }

    /// Takes back an outcome that was not polled.
    pub(super) fn take_outcome(&mut self, id: WaiterId) -> Option<(Waiter, Outcome)> {
        let ready = self.outcomes.remove(&id)?;
        self.by_conn.remove(&(ready.0.conn, id));
        Some(ready)
    }

    /// The next outcome; those for one key come in its queue's order.
    pub(super) fn poll(&mut self) -> Option<Delivery> {
        let (waiter, (Waiter { conn, .. }, outcome)) = self.outcomes.pop_first()?;
        self.by_conn.remove(&(conn, waiter));
        Some(Delivery { conn, waiter, outcome })
    }
}
