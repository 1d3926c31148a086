//! What `stats` says, as rows: one for each key that is held or waited for. Knows of no server and
//! no screen.

use std::time::Duration;

use dflockd_client::{StatsResult, printable};
use unicode_width::UnicodeWidthStr;

/// A key that is held or waited for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    pub(crate) key: String,
    pub(crate) holders: u64,
    pub(crate) limit: u64,
    pub(crate) waiters: u64,
    /// Servers tell it of locks alone.
    pub(crate) ttl: Option<Duration>,
    /// The connection that holds the lock.
    pub(crate) owner: Option<i64>,
}

impl Row {
    pub(crate) fn all(stats: &StatsResult) -> Vec<Self> {
        let locks = stats.locks.iter().map(|lock| {
            let owner = Some(lock.owner_conn_id).filter(|id| *id != 0);
            let ttl = Duration::try_from_secs_f64(lock.lease_expires_in_s).unwrap_or_default();
            Self {
                key: lock.key.clone(),
                holders: owner.is_some().into(),
                limit: 1,
                waiters: lock.waiters,
                ttl: owner.map(|_| ttl),
                owner,
            }
        });
        let semaphores = stats.semaphores.iter().map(|semaphore| Self {
            key: semaphore.key.clone(),
            holders: semaphore.holders,
            limit: semaphore.limit,
            waiters: semaphore.waiters,
            ttl: None,
            owner: None,
        });
        locks.chain(semaphores).collect()
    }

    /// The key as a terminal may show it.
    pub(crate) fn shown(&self) -> String {
        printable(&self.key).into_owned()
    }

    pub(crate) fn held(&self) -> String {
        format!("{}/{}", self.holders, self.limit)
    }

    pub(crate) fn ttl(&self) -> String {
        self.ttl.map_or_else(|| "-".to_owned(), seconds)
    }
}

/// Everything that several servers hold, as one of them would tell it.
pub(crate) fn merged(all: impl IntoIterator<Item = StatsResult>) -> StatsResult {
    all.into_iter().fold(StatsResult::default(), |mut sum, stats| {
        sum.connections += stats.connections;
        sum.locks.extend(stats.locks);
        sum.semaphores.extend(stats.semaphores);
        sum.idle_locks.extend(stats.idle_locks);
        sum.idle_semaphores.extend(stats.idle_semaphores);
        sum
    })
}

/// `3 connections, 2 keys held, 1 waiting`
pub(crate) fn summary(stats: &StatsResult) -> String {
    let (locks, semaphores) = (&stats.locks, &stats.semaphores);
    let held = locks.iter().filter(|lock| lock.owner_conn_id != 0).count()
        + semaphores.iter().filter(|semaphore| semaphore.holders > 0).count();
    let waiters =
        locks.iter().map(|lock| lock.waiters).chain(semaphores.iter().map(|s| s.waiters)).sum::<u64>();
    let idle = stats.idle_locks.len() + stats.idle_semaphores.len();
    let connections = usize::try_from(stats.connections).unwrap_or(usize::MAX);
    let (connections, held) = (count(connections, "connection"), count(held, "key"));
    format!("{connections}, {held} held, {waiters} waiting, {idle} idle")
}

/// `1 key`, `2 keys`, `1,000,000 keys`
pub(crate) fn count(n: usize, what: &str) -> String {
    format!("{} {what}{}", grouped(n), if n == 1 { "" } else { "s" })
}

/// `1,000,000`
pub(crate) fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    groups.join(",")
}

/// A span in whole seconds, rounded up, as people write it: `90s` is `1m 30s`.
pub(crate) fn seconds(span: Duration) -> String {
    let whole = span.as_secs() + u64::from(span.subsec_nanos() > 0);
    humantime::format_duration(Duration::from_secs(whole)).to_string()
}

/// Lines of aligned cells: the first column to the left, the others to the right.
pub(crate) fn aligned(lines: &[Vec<String>]) -> Vec<String> {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.width()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let line = |cells: &Vec<String>| {
        let cells = cells.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            let space = " ".repeat(width - cell.width());
            if column == 0 { format!("{cell}{space}") } else { format!("{space}{cell}") }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    lines.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_tell_who_holds_and_who_waits() {
        let stats = StatsResult::from_json(
            r#"{"connections":2,"locks":[{"key":"a","owner_conn_id":7,"lease_expires_in_s":1.5,"waiters":3},
            {"key":"b","owner_conn_id":0,"lease_expires_in_s":0,"waiters":1}],
            "semaphores":[{"key":"c","limit":3,"holders":2,"waiters":0}],"idle_locks":[],"idle_semaphores":[]}"#,
        );
        let stats = stats.expect("it is whole");
        let cells = |row: &Row| (row.held(), row.waiters, row.ttl());
        let told: Vec<_> = Row::all(&stats).iter().map(cells).collect();
        let want = [("1/1", 3, "2s"), ("0/1", 1, "-"), ("2/3", 0, "-")];
        assert_eq!(told, want.map(|(held, waiters, ttl)| (held.to_owned(), waiters, ttl.to_owned())));
        assert_eq!(summary(&stats), "2 connections, 2 keys held, 4 waiting, 0 idle");
    }

    #[test]
    fn large_numbers_are_read_in_groups() {
        for (n, text) in [
            (0, "0 keys"),
            (1, "1 key"),
            (999, "999 keys"),
            (1000, "1,000 keys"),
            (1_234_567, "1,234,567 keys"),
        ] {
            assert_eq!(count(n, "key"), text);
        }
    }

    #[test]
    fn cells_are_aligned_by_what_they_take_on_a_terminal() {
        let lines = [vec!["KEY".to_owned(), "N".to_owned()], vec!["鍵".to_owned(), "10".to_owned()]];
        assert_eq!(aligned(&lines), ["KEY   N", "鍵   10"]);
    }
}
