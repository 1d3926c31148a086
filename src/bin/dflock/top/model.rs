//! What `top` knows and what its keys do, without a screen and without a clock.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::time::Duration;

use dflockd_client::StatsResult;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use tokio::time::Instant;

use crate::table::{Row, summary};

/// What the rows are sorted by. Most, oldest and soonest come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sort {
    Waiters,
    Age,
    Ttl,
    Key,
}

/// How a server stands.
#[derive(Debug)]
pub(super) enum Standing {
    /// Nothing has come yet.
    Asked,
    Up {
        summary: String,
        rows: Vec<Row>,
    },
    /// It fails, and that is why.
    Down(String),
}

#[derive(Debug)]
pub(super) struct Server {
    pub(super) name: String,
    pub(super) standing: Standing,
    /// Since when each key has been seen with the same holder.
    seen: HashMap<String, Seen>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    owner: Option<i64>,
    since: Instant,
    /// It was held before anybody looked.
    at_least: bool,
}

/// For how long a key has been held as it is, as far as was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Age {
    pub(super) span: Duration,
    pub(super) at_least: bool,
}

/// A row on the screen.
#[derive(Debug)]
pub(super) struct Line<'a> {
    pub(super) shard: usize,
    pub(super) row: &'a Row,
    pub(super) age: Option<Age>,
}

#[derive(Debug)]
pub(super) struct Model {
    pub(super) servers: Vec<Server>,
    pub(super) sort: Sort,
    pub(super) reversed: bool,
    /// The one server that is shown; all for `None`.
    pub(super) only: Option<usize>,
    pub(super) selected: usize,
}

impl Model {
    pub(super) fn new(names: impl IntoIterator<Item = String>) -> Self {
        let server = |name| Server { name, standing: Standing::Asked, seen: HashMap::new() };
        let servers = names.into_iter().map(server).collect();
        Self { servers, sort: Sort::Waiters, reversed: false, only: None, selected: 0 }
    }

    /// Takes a server's answer in.
    pub(super) fn told(&mut self, shard: usize, answer: Result<StatsResult, String>, now: Instant) {
        let server = &mut self.servers[shard];
        let stats = match answer {
            Ok(stats) => stats,
            Err(fault) => {
                server.standing = Standing::Down(fault);
                server.seen.clear(); // it may come back with other holders under the same numbers
                return;
            }
        };
        let at_least = !matches!(server.standing, Standing::Up { .. });
        let rows = Row::all(&stats);
        let held = rows.iter().filter(|row| row.holders > 0);
        let seen = held.map(|row| {
            let before = server.seen.get(&row.key).filter(|seen| seen.owner == row.owner);
            let seen = before.copied().unwrap_or(Seen { owner: row.owner, since: now, at_least });
            (row.key.clone(), seen)
        });
        server.seen = seen.collect();
        server.standing = Standing::Up { summary: summary(&stats), rows };
    }

    /// The rows to show, in their order.
    pub(super) fn lines(&self, now: Instant) -> Vec<Line<'_>> {
        let shown =
            self.servers.iter().enumerate().filter(|(shard, _)| self.only.is_none_or(|only| only == *shard));
        let mut lines: Vec<_> = shown
            .flat_map(|(shard, server)| {
                let rows = match &server.standing {
                    Standing::Up { rows, .. } => rows.as_slice(),
                    Standing::Asked | Standing::Down(_) => &[],
                };
                rows.iter().map(move |row| {
                    let age = server.seen.get(&row.key).map(|seen| Age {
                        span: now.saturating_duration_since(seen.since),
                        at_least: seen.at_least,
                    });
                    Line { shard, row, age }
                })
            })
            .collect();
        lines.sort_by(|one, other| {
            let order = self.order(one, other);
            let order = if self.reversed { order.reverse() } else { order };
            order.then_with(|| one.row.key.cmp(&other.row.key)).then(one.shard.cmp(&other.shard))
        });
        lines
    }

    fn order(&self, one: &Line<'_>, other: &Line<'_>) -> Ordering {
        match self.sort {
            Sort::Waiters => other.row.waiters.cmp(&one.row.waiters),
            Sort::Age => other.age.map(|age| age.span).cmp(&one.age.map(|age| age.span)),
            // What has no ttl comes last.
            Sort::Ttl => one.row.ttl.unwrap_or(Duration::MAX).cmp(&other.row.ttl.unwrap_or(Duration::MAX)),
            Sort::Key => one.row.key.cmp(&other.row.key),
        }
    }

    /// Does what the key says; whether that is to stop.
    pub(super) fn press(&mut self, key: KeyEvent) -> bool {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c') if control => return true,
            KeyCode::Char('q') | KeyCode::Esc => return true,
            KeyCode::Char('w') => self.sort_by(Sort::Waiters),
            KeyCode::Char('a') => self.sort_by(Sort::Age),
            KeyCode::Char('t') => self.sort_by(Sort::Ttl),
            KeyCode::Char('k') => self.sort_by(Sort::Key),
            KeyCode::Char('r') => self.reversed = !self.reversed,
            KeyCode::Tab | KeyCode::Right => self.only = self.turn(1),
            KeyCode::BackTab | KeyCode::Left => self.only = self.turn(self.servers.len()),
            KeyCode::Down => self.selected = self.selected.saturating_add(1),
            KeyCode::Up => self.selected = self.selected.saturating_sub(1),
            KeyCode::PageDown => self.selected = self.selected.saturating_add(10),
            KeyCode::PageUp => self.selected = self.selected.saturating_sub(10),
            KeyCode::Home => self.selected = 0,
            KeyCode::End => self.selected = usize::MAX,
            _ => {}
        }
        false
    }

    /// The same key twice turns the order round.
    fn sort_by(&mut self, sort: Sort) {
        self.reversed = self.sort == sort && !self.reversed;
        self.sort = sort;
    }

    /// All servers, then each one, then all again: `by` steps on.
    fn turn(&self, by: usize) -> Option<usize> {
        let at = self.only.map_or(0, |only| only + 1);
        ((at + by) % (self.servers.len() + 1)).checked_sub(1)
    }
}
