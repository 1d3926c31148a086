//! The lock table, without I/O: FIFO queues, leases, limits, two-phase registrations, collection.
//! Time is an argument. Knows of no socket, runtime or clock.

use std::time::{Duration, Instant};

use crate::proto::{StatsResult, Status};
use crate::types::{Key, Limit, Seconds, Token};

/// A connection, as the server numbers them (from 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u64);

/// A place in a key's queue, from [`Answer::Waiting`] until it is delivered or cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WaiterId(pub u64);

/// The settings that the table obeys.
#[derive(Clone, Debug)]
pub struct TableConfig {
    /// The lease of commands that name none.
    pub default_lease: Seconds,
    /// How many keys may be in use or idle at once.
    pub max_locks: usize,
    /// How many may wait for one key; 0 for no limit.
    pub max_waiters: usize,
    /// How long a key without holder and waiter is kept.
    pub gc_max_idle: Duration,
    /// Whether a disconnect releases what the connection holds.
    pub auto_release: bool,
}

/// A key held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The proof of it.
    pub token: Token,
    /// For how long, unless renewed.
    pub lease: Seconds,
}

/// What a command that may wait comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The key is held.
    Granted(Grant),
    /// In the queue: [`LockTable::poll_delivery`] brings the outcome under this id.
    Waiting(WaiterId),
    /// Busy, and the command would not wait.
    Busy,
    /// Refused.
    Refused(Status),
}

/// What an enqueue comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The key is held at once.
    Acquired(Grant),
    /// In the queue.
    Queued,
    /// Refused.
    Refused(Status),
}

/// The outcome of a waiting command, for the connection that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Who waits.
    pub conn: ConnId,
    /// Under which id.
    pub waiter: WaiterId,
    /// The grant, or why there will be none (`error_draining`, `error_lease_expired`).
    pub outcome: Result<Grant, Status>,
}

/// The table. Every method that takes `now` first evicts what has expired on the key it touches.
/// After each call, drain [`poll_delivery`](Self::poll_delivery).
pub struct LockTable {
    _todo: (),
}

impl LockTable {
    /// An empty table; `mint` makes each grant's token, or `None` where no fence can be had.
    pub fn new(_config: TableConfig, _mint: Box<dyn FnMut() -> Option<Token> + Send>) -> Self {
        todo!()
    }

    /// `l`, `sl` (`limit` 1 for `l`): takes the key, or queues when `may_wait`.
    pub fn acquire(
        &mut self,
        _now: Instant,
        _conn: ConnId,
        _key: &Key,
        _limit: Limit,
        _lease: Option<Seconds>,
        _may_wait: bool,
    ) -> Answer {
        todo!()
    }

    /// `e`, `se`: takes the key or a place, registered for the connection.
    pub fn enqueue(
        &mut self,
        _now: Instant,
        _conn: ConnId,
        _key: &Key,
        _limit: Limit,
        _lease: Option<Seconds>,
    ) -> Place {
        todo!()
    }

    /// `w`, `sw`: collects the connection's registration for the key; clears it in every case.
    pub fn wait(&mut self, _now: Instant, _conn: ConnId, _key: &Key, _may_wait: bool) -> Answer {
        todo!()
    }

    /// The wait timed out: leaves the queue. `Some` where the outcome had come first and was not
    /// polled yet (it is then not delivered any more).
    pub fn cancel_wait(&mut self, _now: Instant, _waiter: WaiterId) -> Option<Result<Grant, Status>> {
        todo!()
    }

    /// `r`, `sr`: whether there was such a holder (an expired one counts until it is evicted).
    pub fn release(&mut self, _now: Instant, _key: &Key, _token: &Token) -> bool {
        todo!()
    }

    /// `n`, `sn`: the lease just set, or `None` where it is not held or has expired.
    pub fn renew(
        &mut self,
        _now: Instant,
        _key: &Key,
        _token: &Token,
        _lease: Option<Seconds>,
    ) -> Option<Seconds> {
        todo!()
    }

    /// The connection is gone: its waiters and registrations leave; its holders too where
    /// `auto_release` is set.
    pub fn disconnect(&mut self, _now: Instant, _conn: ConnId) {
        todo!()
    }

    /// Evicts every expired lease; costs what expires.
    pub fn sweep(&mut self, _now: Instant) {
        todo!()
    }

    /// Drops keys idle for `gc_max_idle`; costs what is dropped.
    pub fn collect(&mut self, _now: Instant) {
        todo!()
    }

    /// From now on acquire, enqueue and wait are refused with `error_draining`, and so is everyone
    /// who waits.
    pub fn drain(&mut self) {
        todo!()
    }

    /// Whether the connection holds anything.
    pub fn holds(&self, _conn: ConnId) -> bool {
        todo!()
    }

    /// The next outcome for a waiting connection.
    pub fn poll_delivery(&mut self) -> Option<Delivery> {
        todo!()
    }

    /// What is held, waited for and idle; `connections` is the caller's to fill in.
    pub fn stats(&self, _now: Instant) -> StatsResult {
        todo!()
    }
}
