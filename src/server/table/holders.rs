//! The grants in force, indexed by key and token, by connection and by deadline.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::ConnId;
use super::keys::Entry;
use super::slab::Slab;
use super::slots::{HolderSlot, KeySlot};
use crate::types::{Fence, Limit, Token};

/// A grant in force.
pub(super) struct Holder {
    pub(super) token: Token,
    pub(super) deadline: Instant,
    pub(super) conn: ConnId,
    pub(super) key: KeySlot,
}

pub(super) struct Holders {
    slab: Slab<Holder>,
    by_deadline: BTreeSet<(Instant, HolderSlot)>,
    by_conn: BTreeSet<(ConnId, HolderSlot)>,
    /// Only for keys with a limit above 1: the entry of a lock names its one holder itself.
    semaphore_deadlines: BTreeSet<(KeySlot, Instant, HolderSlot)>,
    /// By the fence of each token. Not a hash map: one that grows moves all its entries at once.
    semaphore_fences: BTreeMap<(KeySlot, Fence), HolderSlot>,
}

impl Holders {
    pub(super) fn new() -> Self {
        Self {
            slab: Slab::new(),
            by_deadline: BTreeSet::new(),
            by_conn: BTreeSet::new(),
            semaphore_deadlines: BTreeSet::new(),
            semaphore_fences: BTreeMap::new(),
        }
    }

    pub(super) fn get(&self, slot: HolderSlot) -> Option<&Holder> {
        self.slab.get(slot.0)
    }

    pub(super) fn insert(&mut self, entry: &mut Entry, holder: Holder) -> HolderSlot {
        let (conn, key, deadline) = (holder.conn, holder.key, holder.deadline);
        let fence = holder.token.fence();
        let slot = HolderSlot(self.slab.insert(holder));
        self.by_deadline.insert((deadline, slot));
        self.by_conn.insert((conn, slot));
        if entry.limit == Limit::ONE {
            entry.holder = Some(slot);
        } else {
            self.semaphore_deadlines.insert((key, deadline, slot));
            self.semaphore_fences.extend(fence.map(|fence| ((key, fence), slot)));
        }
        entry.holders += 1;
        slot
    }

    pub(super) fn remove(&mut self, entry: &mut Entry, slot: HolderSlot) -> Option<Holder> {
        let holder = self.slab.remove(slot.0)?;
        self.by_deadline.remove(&(holder.deadline, slot));
        self.by_conn.remove(&(holder.conn, slot));
        if entry.limit == Limit::ONE {
            entry.holder = None;
        } else {
            self.semaphore_deadlines.remove(&(holder.key, holder.deadline, slot));
            holder.token.fence().and_then(|fence| self.semaphore_fences.remove(&(holder.key, fence)));
        }
        entry.holders -= 1;
        Some(holder)
    }

    /// Sets the holder's deadline, and returns its token.
    pub(super) fn extend(&mut self, entry: &Entry, slot: HolderSlot, deadline: Instant) -> Option<Token> {
        let holder = self.slab.get_mut(slot.0)?;
        let old = std::mem::replace(&mut holder.deadline, deadline);
        self.by_deadline.remove(&(old, slot));
        self.by_deadline.insert((deadline, slot));
        if entry.limit != Limit::ONE {
            self.semaphore_deadlines.remove(&(holder.key, old, slot));
            self.semaphore_deadlines.insert((holder.key, deadline, slot));
        }
        Some(holder.token.clone())
    }

    pub(super) fn find(&self, entry: &Entry, key: KeySlot, token: &Token) -> Option<HolderSlot> {
        let slot = match entry.limit {
            Limit::ONE => entry.holder?,
            _ => *self.semaphore_fences.get(&(key, token.fence()?))?,
        };
        self.get(slot).filter(|holder| holder.token == *token).map(|_| slot)
    }

    /// Returns a holder of any key whose lease has expired.
    pub(super) fn expired(&self, now: Instant) -> Option<(HolderSlot, KeySlot)> {
        let (_, slot) = self.by_deadline.first().filter(|(deadline, _)| *deadline <= now)?;
        Some((*slot, self.get(*slot)?.key))
    }

    /// Returns a holder of this key whose lease has expired.
    pub(super) fn expired_of(&self, entry: &Entry, key: KeySlot, now: Instant) -> Option<HolderSlot> {
        if entry.limit == Limit::ONE {
            return entry.holder.filter(|slot| self.get(*slot).is_some_and(|holder| holder.deadline <= now));
        }
        let mut until_now = self.semaphore_deadlines.range(..=(key, now, HolderSlot::LAST));
        until_now.next_back().filter(|(of, ..)| *of == key).map(|(.., slot)| *slot)
    }

    /// Returns what the connection holds, from this slot on.
    pub(super) fn of_conn(&self, conn: ConnId, from: HolderSlot) -> impl Iterator<Item = HolderSlot> {
        let all = (conn, from)..=(conn, HolderSlot::LAST);
        self.by_conn.range(all).map(|(_, slot)| *slot)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slab.len() == 0
    }
}
