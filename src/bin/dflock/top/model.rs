//! What `top` knows and what its keys do, without a screen and without a clock.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::time::Duration;

use dflockd_client::StatsResult;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use tokio::time::Instant;

use crate::connection::StatsFailure;
use crate::table::{Row, summary};

/// How many rows are shown.
pub(super) const MOST: usize = 1000;

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
        rows: Vec<Known>,
        /// When that came: a long table takes its time.
        at: Instant,
    },
    /// It is down, refuses the token, or fails otherwise.
    Failed(StatsFailure),
}

#[derive(Debug)]
pub(super) struct Server {
    pub(super) name: String,
    pub(super) standing: Standing,
}

/// A row, and since when it has been seen with the same holder if it has one.
#[derive(Debug)]
pub(super) struct Known {
    row: Row,
    seen: Option<Seen>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
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
        let server = |name| Server { name, standing: Standing::Asked };
        let servers = names.into_iter().map(server).collect();
        Self { servers, sort: Sort::Waiters, reversed: false, only: None, selected: 0 }
    }

    /// Takes a server's answer in.
    pub(super) fn told(&mut self, shard: usize, answer: Result<StatsResult, StatsFailure>, now: Instant) {
        let server = &mut self.servers[shard];
        let stats = match answer {
            Ok(stats) => stats,
            Err(failed) => {
                // What was seen is forgotten: it may come back with other holders under the same numbers.
                server.standing = Standing::Failed(failed);
                return;
            }
        };
        let (before, at_least) = match &server.standing {
            Standing::Up { rows, .. } => (rows.as_slice(), false),
            Standing::Asked | Standing::Failed(_) => (&[][..], true),
        };
        let before: HashMap<_, _> =
            before.iter().map(|known| (known.row.key.as_str(), (known.row.owner, known.seen))).collect();
        let known = |row: Row| {
            let same = before.get(row.key.as_str()).filter(|(owner, _)| *owner == row.owner);
            let seen = same.and_then(|(_, seen)| *seen).unwrap_or(Seen { since: now, at_least });
            Known { seen: (row.holders > 0).then_some(seen), row }
        };
        let rows = Row::all(&stats).into_iter().map(known).collect();
        server.standing = Standing::Up { summary: summary(&stats), rows, at: now };
    }

    /// The first of the rows to show, in their order, and how many there are in all: a table of a
    /// million keys is more than a person can scroll through.
    pub(super) fn lines(&self, now: Instant) -> (Vec<Line<'_>>, usize) {
        let shown =
            self.servers.iter().enumerate().filter(|(shard, _)| self.only.is_none_or(|only| only == *shard));
        let mut lines: Vec<_> = shown
            .flat_map(|(shard, server)| {
                let rows = match &server.standing {
                    Standing::Up { rows, .. } => rows.as_slice(),
                    Standing::Asked | Standing::Failed(_) => &[],
                };
                rows.iter().map(move |Known { row, seen }| {
                    let age = seen.map(|seen| Age {
                        span: now.saturating_duration_since(seen.since),
                        at_least: seen.at_least,
                    });
                    Line { shard, row, age }
                })
            })
            .collect();
        let in_order = |one: &Line<'_>, other: &Line<'_>| {
            let order = self.order(one, other);
            let order = if self.reversed { order.reverse() } else { order };
            order.then_with(|| one.row.key.cmp(&other.row.key)).then(one.shard.cmp(&other.shard))
        };
        let all = lines.len();
        if all > MOST {
            lines.select_nth_unstable_by(MOST, in_order);
            lines.truncate(MOST);
        }
        lines.sort_by(in_order);
        (lines, all)
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
