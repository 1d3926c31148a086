//! The reply to `stats`, encoded in parts, so that a table of a million keys is neither read nor kept in
//! one piece.

use serde::Serialize;

use crate::proto::StatsResult;
use crate::server::table::StatsList;

/// The lists, in their order on the wire.
pub(super) const LISTS: [StatsList; 4] =
    [StatsList::Locks, StatsList::Semaphores, StatsList::IdleLocks, StatsList::IdleSemaphores];

/// A reply that has begun. Each method appends the next part to `out`.
pub(super) struct StatsReply {
    /// `true` if the current list has rows.
    rows: bool,
}

impl StatsReply {
    pub(super) fn begin(connections: u64, out: &mut Vec<u8>) -> Self {
        out.extend_from_slice(format!("ok {{\"connections\":{connections}").as_bytes());
        Self { rows: false }
    }

    pub(super) fn begin_list(&mut self, list: StatsList, out: &mut Vec<u8>) {
        out.extend_from_slice(match list {
            StatsList::Locks => b",\"locks\":[",
            StatsList::Semaphores => b",\"semaphores\":[",
            StatsList::IdleLocks => b",\"idle_locks\":[",
            StatsList::IdleSemaphores => b",\"idle_semaphores\":[",
        });
        self.rows = false;
    }

    /// Appends the part's rows of this list.
    pub(super) fn rows(&mut self, list: StatsList, part: &StatsResult, out: &mut Vec<u8>) {
        match list {
            StatsList::Locks => self.append(&part.locks, out),
            StatsList::Semaphores => self.append(&part.semaphores, out),
            StatsList::IdleLocks => self.append(&part.idle_locks, out),
            StatsList::IdleSemaphores => self.append(&part.idle_semaphores, out),
        }
    }

    pub(super) fn end_list(&mut self, out: &mut Vec<u8>) {
        out.push(b']');
    }

    pub(super) fn end(self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"}\n");
    }

    fn append<T: Serialize>(&mut self, rows: &[T], out: &mut Vec<u8>) {
        for row in rows {
            if std::mem::replace(&mut self.rows, true) {
                out.push(b',');
            }
            // Cannot fail: the rows are strings and finite numbers, and the output is a vector.
            let _ = serde_json::to_writer(&mut *out, row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{HeldLock, HeldSemaphore, IdleKey};

    fn part(names: &[&str]) -> StatsResult {
        let named = || names.iter().map(|name| (*name).to_owned());
        let lock = |key| HeldLock { key, owner_conn_id: 7, lease_expires_in_s: 1.5, waiters: 2 };
        StatsResult {
            connections: 0,
            locks: named().map(lock).collect(),
            semaphores: named().map(|key| HeldSemaphore { key, limit: 3, holders: 1, waiters: 0 }).collect(),
            idle_locks: named().map(|key| IdleKey { key, idle_s: 0.25 }).collect(),
            idle_semaphores: Vec::new(),
        }
    }

    #[test]
    fn parts_make_the_same_json_as_the_whole() {
        let all = ["a", "[b", "c]", "\"d\\", "e"];
        let whole = StatsResult { connections: 9, ..part(&all) };
        for cuts in [&[][..], &[0], &[2], &[1, 1, 3], &[5]] {
            let mut out = Vec::new();
            let mut reply = StatsReply::begin(9, &mut out);
            for list in LISTS {
                reply.begin_list(list, &mut out);
                let mut from = 0;
                for cut in cuts.iter().copied().chain([all.len()]) {
                    reply.rows(list, &part(&all[from..cut]), &mut out);
                    from = cut;
                }
                reply.end_list(&mut out);
            }
            reply.end(&mut out);
            assert_eq!(String::from_utf8(out).unwrap(), format!("ok {}\n", whole.to_json()), "{cuts:?}");
        }
    }
}
