//! What can happen to a lease, as event handlers receive it.

use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;
use crate::lease::LostReason;
use crate::types::{Fence, Key};

/// Something that happened to a lease; see [`Builder::on_event`](crate::Builder::on_event).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LeaseEvent {
    /// The key that is, or was, held.
    pub key: Key,
    /// The grant's fence; none from a server too old to fence, and none for a lock file.
    pub fence: Option<Fence>,
    /// Who granted: the server's `host:port`, or the path of the lock file.
    pub endpoint: Arc<str>,
    /// What happened.
    pub kind: LeaseEventKind,
}

/// What happened to a lease.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum LeaseEventKind {
    /// It began.
    Granted {
        /// Its length, unless renewed.
        ttl: Duration,
    },
    /// It was renewed.
    Renewed {
        /// Its length from when the renewal was sent.
        ttl: Duration,
    },
    /// A renewal failed in a way that says nothing about the lease; it is tried again.
    RenewFailed(Error),
    /// Little time is left because renewals are late, or its connection was lost and it may have
    /// outlived that. A renewal heals it.
    AtRisk,
    /// It was lost.
    Lost(LostReason),
    /// It was let go, and the server said so.
    Released,
    /// Letting go failed: the lease runs out by itself, or has.
    ReleaseFailed(Error),
    /// It is neither renewed nor released any more.
    Forgotten,
}
