//! The JSON of `stats`, made of parts: a table of a million keys is neither locked nor written in
//! one go. Knows of no table and no connection.

use serde::Serialize;

use crate::proto::StatsResult;

/// Rows as JSON so far, by list.
#[derive(Default)]
pub(super) struct StatsJson {
    locks: String,
    semaphores: String,
    idle_locks: String,
    idle_semaphores: String,
}

impl StatsJson {
    /// Appends the part's rows.
    pub(super) fn add(&mut self, part: &StatsResult) {
        append(&mut self.locks, &part.locks);
        append(&mut self.semaphores, &part.semaphores);
        append(&mut self.idle_locks, &part.idle_locks);
        append(&mut self.idle_semaphores, &part.idle_semaphores);
    }

    /// The whole.
    pub(super) fn finish(self, connections: u64) -> String {
        let Self { locks, semaphores, idle_locks, idle_semaphores } = self;
        format!(
            r#"{{"connections":{connections},"locks":[{locks}],"semaphores":[{semaphores}],"idle_locks":[{idle_locks}],"idle_semaphores":[{idle_semaphores}]}}"#
        )
    }
}

fn append<T: Serialize>(list: &mut String, rows: &[T]) {
    // Structs of strings and finite numbers always serialise.
    let json = serde_json::to_string(rows).unwrap_or_default();
    let rows = json.trim_start_matches('[').trim_end_matches(']');
    if !list.is_empty() && !rows.is_empty() {
        list.push(',');
    }
    list.push_str(rows);
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
            let (mut json, mut from) = (StatsJson::default(), 0);
            for cut in cuts.iter().copied().chain([all.len()]) {
                json.add(&part(&all[from..cut]));
                from = cut;
            }
            assert_eq!(json.finish(9), whole.to_json(), "{cuts:?}");
        }
    }
}
