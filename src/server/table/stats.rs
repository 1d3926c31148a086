//! The table seen from outside.

use std::time::Instant;

use super::LockTable;
use crate::proto::{HeldLock, HeldSemaphore, IdleKey, StatsResult};
use crate::types::Limit;

impl LockTable {
    /// What is held, waited for and idle; `connections` is the caller's to fill in.
    pub fn stats(&self, now: Instant) -> StatsResult {
        let mut stats = StatsResult::default();
        for (key, resource) in &self.keys {
            let key = key.to_string();
            let waiters = resource.queue.len() as u64;
            match (resource.idle, resource.limit) {
                (Some((since, _)), limit) => {
                    let idle = IdleKey { key, idle_s: now.saturating_duration_since(since).as_secs_f64() };
                    let list =
                        if limit == Limit::ONE { &mut stats.idle_locks } else { &mut stats.idle_semaphores };
                    list.push(idle);
                }
                (None, Limit::ONE) => {
                    let holder = resource.holders.any();
                    stats.locks.push(HeldLock {
                        key,
                        owner_conn_id: holder.map_or(0, |holder| holder.conn.0.cast_signed()),
                        lease_expires_in_s: holder.map_or(0.0, |holder| {
                            holder.deadline.saturating_duration_since(now).as_secs_f64()
                        }),
                        waiters,
                    });
                }
                (None, limit) => {
                    let holders = resource.holders.len() as u64;
                    stats.semaphores.push(HeldSemaphore { key, limit: limit.get(), holders, waiters });
                }
            }
        }
        stats
    }
}
