//! The statistics of the table.

use std::ops::Range;
use std::time::Instant;

use super::LockTable;
use super::holders::Holder;
use super::keys::Entry;
use crate::proto::{HeldLock, HeldSemaphore, IdleKey, StatsResult};
use crate::types::Limit;

/// One of the lists in a reply to `stats`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatsList {
    /// Keys of limit 1 that are held or waited for.
    Locks,
    /// Keys of another limit that are held or waited for.
    Semaphores,
    /// Keys of limit 1 that are not in use.
    IdleLocks,
    /// Keys of another limit that are not in use.
    IdleSemaphores,
}

impl StatsList {
    /// Returns the list that the key belongs to.
    fn of(entry: &Entry) -> Self {
        match (entry.idle_since, entry.limit) {
            (None, Limit::ONE) => Self::Locks,
            (None, _) => Self::Semaphores,
            (Some(_), Limit::ONE) => Self::IdleLocks,
            (Some(_), _) => Self::IdleSemaphores,
        }
    }
}

impl LockTable {
    /// Returns the keys that are held, waited for or idle. The caller fills `connections` in.
    pub fn stats(&self, now: Instant) -> StatsResult {
        self.stats_part(now, 0..usize::MAX, None).0
    }

    /// Returns the [`stats`](Self::stats) of the keys in a range of slots, of one list or of all, and
    /// `true` if there are slots behind it. A key keeps its slot until it is collected.
    pub fn stats_part(
        &self,
        now: Instant,
        places: Range<usize>,
        only: Option<StatsList>,
    ) -> (StatsResult, bool) {
        let mut stats = StatsResult::default();
        let more = places.end < self.keys.slot_count();
        for entry in self.keys.range(places) {
            let list = StatsList::of(entry);
            if only.is_none_or(|only| only == list) {
                self.stats_of(now, entry, &mut stats);
            }
        }
        (stats, more)
    }

    fn stats_of(&self, now: Instant, entry: &Entry, stats: &mut StatsResult) {
        let key = entry.key.to_text().into_owned();
        let (lock, waiters) = (entry.limit == Limit::ONE, u64::from(entry.waiters));
        if let Some(since) = entry.idle_since {
            let idle_s = now.saturating_duration_since(since).as_secs_f64();
            let list = if lock { &mut stats.idle_locks } else { &mut stats.idle_semaphores };
            list.push(IdleKey { key, idle_s });
        } else if lock {
            let holder = entry.holder.and_then(|slot| self.holders.get(slot));
            let left = |holder: &Holder| holder.deadline.saturating_duration_since(now).as_secs_f64();
            let lease_expires_in_s = holder.map_or(0.0, left);
            let owner_conn_id = holder.map_or(0, |holder| i64::try_from(holder.conn.0).unwrap_or(i64::MAX));
            stats.locks.push(HeldLock { key, owner_conn_id, lease_expires_in_s, waiters });
        } else {
            let (limit, holders) = (entry.limit.get(), u64::from(entry.holders));
            stats.semaphores.push(HeldSemaphore { key, limit, holders, waiters });
        }
    }
}
