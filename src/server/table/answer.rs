//! What goes into the table and what comes out of it.

use std::time::Duration;

use crate::proto::Status;
use crate::types::{Seconds, Token};

/// A connection, as the server numbers them (from 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u64);

/// A place in a key's queue, from [`Answer::Waiting`] until it is delivered or cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
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
    /// In the queue: [`LockTable::poll_delivery`](super::LockTable::poll_delivery) brings the outcome under this id.
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
