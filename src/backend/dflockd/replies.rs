//! Makes errors of statuses and values of grants.

use std::time::Duration;

use crate::backend::busy;
use crate::error::{Error, ErrorKind, Result};
use crate::proto::{BadReply, Expect, Reply, StatsResult, Status};
use crate::types::Token;

/// A grant, as the functions of [`command`](crate::command) return it. Nothing renews it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Proves the grant to [`renew`](crate::command::renew) and [`release`](crate::command::release).
    /// [`Token::fence`] is noise from a 1.x server, which replies to [`ping`](crate::command::ping) with an
    /// error.
    pub token: Token,
    /// The lease, unless it is renewed: whole seconds.
    pub lease: Duration,
}

/// The outcome of [`enqueue`](crate::command::enqueue).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Enqueued {
    /// The key was free and is held.
    Acquired(Grant),
    /// The connection has a place in the wait queue: [`wait`](crate::command::wait) for the grant.
    Queued,
}

/// An idle key keeps its limit until the server collects it: at most the sum of the two settings later.
const LIMIT_CHANGES: &str = "the key can have a new limit once it was idle for as long as the server keeps \
                            idle keys (--gc-max-idle, 60 s unless set, and up to --gc-interval, 5 s)";

/// Returns the error of a status, as the reply to a request that expects `expect`.
pub(crate) fn status_error(status: &Status, expect: Expect) -> Error {
    let kind = match status {
        Status::Error if expect == Expect::Lease => ErrorKind::NotHeld,
        Status::Auth => ErrorKind::Auth,
        Status::MaxLocks => ErrorKind::MaxLocks,
        Status::MaxWaiters => ErrorKind::MaxWaiters,
        Status::LimitMismatch => ErrorKind::LimitMismatch,
        Status::NotEnqueued => ErrorKind::NotQueued,
        Status::AlreadyEnqueued => ErrorKind::AlreadyQueued,
        Status::LeaseExpired => ErrorKind::LeaseExpired,
        Status::Draining => ErrorKind::Draining,
        Status::NotLeader(_) => ErrorKind::NotLeader,
        _ => ErrorKind::Server,
    };
    let raw = status.to_string();
    let detail = match kind {
        ErrorKind::Server => format!("{raw:?}"),
        ErrorKind::LimitMismatch => LIMIT_CHANGES.to_owned(),
        _ => String::new(),
    };
    let leader = if let Status::NotLeader(leader) = status { leader.as_deref() } else { None };
    Error::new(kind, detail).with_raw(&raw).with_leader(leader)
}

pub(crate) fn bad_reply(error: BadReply) -> Error {
    Error::new(ErrorKind::Protocol, "").caused_by(error)
}

fn unexpected(reply: Reply, expect: Expect) -> Error {
    match reply {
        Reply::Refused(status) => status_error(&status, expect),
        Reply::Timeout => busy().with_raw("timeout"),
        // `Reply::parse` allows no other reply for what was expected.
        _ => Error::new(ErrorKind::Protocol, "a reply to another request"),
    }
}

/// `l`, `sl`, `w`, `sw`
pub(crate) fn grant(reply: Reply) -> Result<Grant> {
    match reply {
        Reply::Granted { token, lease } => Ok(Grant { token, lease: lease.duration() }),
        other => Err(unexpected(other, Expect::Grant)),
    }
}

/// `e`, `se`
pub(crate) fn place(reply: Reply) -> Result<Enqueued> {
    match reply {
        Reply::Acquired { token, lease } => Ok(Enqueued::Acquired(Grant { token, lease: lease.duration() })),
        Reply::Queued => Ok(Enqueued::Queued),
        other => Err(unexpected(other, Expect::Enqueue)),
    }
}

/// `r`, `sr`
pub(crate) fn released(reply: Reply) -> Result<()> {
    match reply {
        Reply::Done => Ok(()),
        // To a release, as to a renewal, a bare `error` means that there is no such holder.
        other => Err(unexpected(other, Expect::Lease)),
    }
}

/// `n`, `sn`
pub(crate) fn renewed(reply: Reply) -> Result<Duration> {
    match reply {
        Reply::Renewed(lease) => Ok(lease.duration()),
        other => Err(unexpected(other, Expect::Lease)),
    }
}

/// `ping`
pub(crate) fn done(reply: Reply) -> Result<()> {
    match reply {
        Reply::Done => Ok(()),
        other => Err(unexpected(other, Expect::Done)),
    }
}

/// `auth`: any error means that the server refused the token, except if it is shutting down.
pub(crate) fn authenticated(reply: Reply) -> Result<()> {
    match reply {
        Reply::Done => Ok(()),
        Reply::Refused(status) if status != Status::Draining => {
            let detail = "the server refused the auth token, or has none configured";
            Err(Error::new(ErrorKind::PermissionDenied, detail).with_raw(&status.to_string()))
        }
        other => Err(unexpected(other, Expect::Done)),
    }
}

/// `stats`, a line that is no status: `ok` and the JSON.
pub(crate) fn stats(line: &str) -> Result<StatsResult> {
    StatsResult::from_json(line.strip_prefix("ok ").unwrap_or_default())
        .map_err(|cause| Error::new(ErrorKind::Protocol, "malformed stats").caused_by(cause))
}
