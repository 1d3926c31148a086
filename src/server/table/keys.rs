//! The keys in use or idle, each stored once, with its limit and its counts. Orders idle keys by the time
//! since which they are idle.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::time::{Duration, Instant};

use hashbrown::HashTable;

use super::slab::Slab;
use super::slots::{HolderSlot, KeySlot};
use crate::types::{Key, Limit};

/// A key in use or idle.
pub(super) struct Entry {
    pub(super) key: Key,
    pub(super) limit: Limit,
    /// The holder of a key of limit 1. It has no second one, so it needs no further index.
    pub(super) holder: Option<HolderSlot>,
    pub(super) holders: u32,
    pub(super) waiters: u32,
    pub(super) idle_since: Option<Instant>,
}

impl Entry {
    /// Returns `true` if the limit allows one more holder.
    pub(super) fn has_room(&self) -> bool {
        u64::from(self.holders) < self.limit.get()
    }

    fn is_unused(&self) -> bool {
        self.holders == 0 && self.waiters == 0
    }
}

/// A key in the index. Its hash is kept, so that an index that grows need not hash a million keys.
struct Indexed {
    slot: u32,
    hash: u32,
}

/// The number of hash tables that the index consists of. A table that grows moves all its entries, which
/// takes milliseconds for a million keys.
const SHARDS: usize = 256;

/// Returns a hash for a table that uses the lowest bits and the highest.
fn spread(hash: u32) -> u64 {
    u64::from(hash) << 32 | u64::from(hash)
}

/// Returns the index of a table. Uses bits that the table itself does not use while it is small.
fn shard(hash: u32) -> usize {
    (hash >> 16) as usize % SHARDS
}

pub(super) struct Keys {
    entries: Slab<Entry>,
    index: Vec<HashTable<Indexed>>,
    // Clients choose the keys. A keyed hasher keeps them from filling one bucket on purpose.
    hasher: RandomState,
    idle: BTreeSet<(Instant, KeySlot)>,
}

impl Keys {
    pub(super) fn new() -> Self {
        let hasher = RandomState::new();
        let index = (0..SHARDS).map(|_| HashTable::new()).collect();
        Self { entries: Slab::new(), index, hasher, idle: BTreeSet::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    #[expect(clippy::cast_possible_truncation, reason = "half of the hash is enough")]
    fn hash(&self, key: &Key) -> u32 {
        self.hasher.hash_one(key) as u32
    }

    pub(super) fn find(&self, key: &Key) -> Option<KeySlot> {
        let hash = self.hash(key);
        let same = |indexed: &Indexed| {
            indexed.hash == hash && self.entries.get(indexed.slot).is_some_and(|entry| entry.key == *key)
        };
        self.index[shard(hash)].find(spread(hash), same).map(|indexed| KeySlot(indexed.slot))
    }

    /// Adds a key that [`find`](Self::find) does not find.
    pub(super) fn insert(&mut self, key: &Key, limit: Limit) -> KeySlot {
        let (holder, idle_since) = (None, None);
        let entry = Entry { key: key.clone(), limit, holder, holders: 0, waiters: 0, idle_since };
        let (slot, hash) = (self.entries.insert(entry), self.hash(key));
        let again = |indexed: &Indexed| spread(indexed.hash);
        self.index[shard(hash)].insert_unique(spread(hash), Indexed { slot, hash }, again);
        KeySlot(slot)
    }

    pub(super) fn get(&self, slot: KeySlot) -> Option<&Entry> {
        self.entries.get(slot.0)
    }

    pub(super) fn get_mut(&mut self, slot: KeySlot) -> Option<&mut Entry> {
        self.entries.get_mut(slot.0)
    }

    /// Returns the number of slots, free ones included.
    pub(super) fn slot_count(&self) -> usize {
        self.entries.slot_count()
    }

    pub(super) fn range(&self, places: Range<usize>) -> impl Iterator<Item = &Entry> {
        self.entries.range(places)
    }

    /// Marks the key as idle or as in use, by its counts.
    pub(super) fn update_idle(&mut self, now: Instant, slot: KeySlot) {
        let Some(entry) = self.entries.get_mut(slot.0) else { return };
        match entry.idle_since {
            None if entry.is_unused() => {
                entry.idle_since = Some(now);
                self.idle.insert((now, slot));
            }
            Some(since) if !entry.is_unused() => {
                entry.idle_since = None;
                self.idle.remove(&(since, slot));
            }
            _ => {}
        }
    }

    /// Drops at most `max_keys` keys that were idle for `max_idle`, and returns `true` if more may be left.
    pub(super) fn collect(&mut self, now: Instant, max_idle: Duration, max_keys: usize) -> bool {
        for _ in 0..max_keys {
            let Some(&(since, slot)) = self.idle.first() else { return false };
            if now.saturating_duration_since(since) < max_idle {
                return false;
            }
            self.idle.pop_first();
            let Some(entry) = self.entries.remove(slot.0) else { continue };
            let hash = self.hash(&entry.key);
            let index = &mut self.index[shard(hash)];
            if let Ok(found) = index.find_entry(spread(hash), |indexed| indexed.slot == slot.0) {
                found.remove();
            }
        }
        true
    }
}
