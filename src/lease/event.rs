//! The events of a lease, as event handlers receive them.

use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;
use crate::lease::LostReason;
use crate::types::{Fence, Key};

/// An event of one lease; see [`Builder::on_event`](crate::Builder::on_event).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LeaseEvent {
    /// The key that is, or was, held.
    pub key: Key,
    /// The grant's fence; `None` from a server too old to fence, and for a lock file.
    pub fence: Option<Fence>,
    /// The server that granted the lease, as `host:port`, or the path of the lock file.
    pub endpoint: Arc<str>,
    /// The kind of the event, with its data.
    pub kind: LeaseEventKind,
}

/// The kind of a [`LeaseEvent`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum LeaseEventKind {
    /// The lease was granted.
    Granted {
        /// The length of the lease unless it is renewed.
        ttl: Duration,
    },
    /// The lease was renewed.
    Renewed {
        /// The length of the lease from when the renewal was sent.
        ttl: Duration,
    },
    /// A renewal failed in a way that says nothing about the lease. It is tried again.
    RenewFailed(Error),
    /// Little time is left because renewals are late, or the connection of the lease was lost and the
    /// lease may have outlived it. A renewal that succeeds makes the lease healthy again.
    AtRisk,
    /// The lease was lost.
    Lost(LostReason),
    /// The lease was released, and the server confirmed it.
    Released,
    /// The release failed. The lease expires by itself, or has expired.
    ReleaseFailed(Error),
    /// The lease is no longer renewed and will not be released.
    Forgotten,
}
