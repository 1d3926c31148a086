//! The kinds of error.

use std::fmt;

#[cfg(doc)]
use crate::error::Error;

/// The kind of failure, as far as a caller would act on it differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The key is held by others, and stayed so for as long as the caller waited.
    Busy,
    /// An operation did not finish in time: the server sent no reply, or the connection was not
    /// established.
    Timeout,
    /// The server requires authentication first (`error_auth` to a command other than `auth`).
    Auth,
    /// The server refused the auth token in the handshake.
    PermissionDenied,
    /// The server has reached its limit of keys (`error_max_locks`).
    MaxLocks,
    /// The key has reached its limit of waiters (`error_max_waiters`).
    MaxWaiters,
    /// The key is in use with another limit, or was until a while ago (`error_limit_mismatch`). A server
    /// keeps the limit of an unused key for up to its `--gc-max-idle` and `--gc-interval`, 65 s unless
    /// set; then the key can have another one.
    LimitMismatch,
    /// A `wait` on a key that this connection did not enqueue for (`error_not_enqueued`).
    NotQueued,
    /// A second `enqueue` on one connection and key (`error_already_enqueued`).
    AlreadyQueued,
    /// The grant's lease expired before its holder learned of it (`error_lease_expired`).
    LeaseExpired,
    /// The server is shutting down and no longer grants (`error_draining`).
    Draining,
    /// The server is a replica that does not grant; [`Error::leader`](crate::Error::leader) may name the one that does
    /// (`error_not_leader`).
    NotLeader,
    /// The lease was lost before the operation: what it guarded may have had another holder.
    LeaseLost,
    /// The server knows no such holder: the token was released, has expired, or never existed.
    NotHeld,
    /// This object already holds the lock file; locks are not reentrant.
    AlreadyLocked,
    /// The lock file is not held, or not by this object.
    NotLocked,
    /// Another status of the server's; [`Error::raw`](crate::Error::raw) returns its text.
    Server,
    /// The peer violated the protocol: a malformed, oversized or unsolicited line.
    Protocol,
    /// A value that cannot be sent, or a setting that cannot work; nothing was sent.
    InvalidInput,
    /// The connection is closed, by the peer, by [`close`](crate::AsyncConn::close), or because an
    /// earlier command was cut off and its reply can no longer be matched.
    ConnectionClosed,
    /// The client was closed, by [`LockClient::close`](crate::LockClient::close).
    ClientClosed,
    /// The client has reached its limit of requests in flight, or all of its connections stay in use;
    /// nothing was sent.
    Overloaded,
    /// The backend that grants the leases cannot do this; nothing was sent. See
    /// [`LockClient::capabilities`](crate::LockClient::capabilities).
    Unsupported,
    /// The operating system refused an operation.
    Io,
    /// The TLS handshake or its settings failed.
    Tls,
}

impl ErrorKind {
    /// Returns the kind in words, as an error shows it.
    pub(super) fn phrase(self) -> &'static str {
        match self {
            Self::Busy => "the key stayed busy",
            Self::Timeout => "timed out",
            Self::Auth => "authentication required",
            Self::PermissionDenied => "permission denied",
            Self::MaxLocks => "too many keys on the server",
            Self::MaxWaiters => "too many waiters for the key",
            Self::LimitMismatch => "the key is in use with another limit",
            Self::NotQueued => "not in the queue",
            Self::AlreadyQueued => "already in the queue",
            Self::LeaseExpired => "the lease expired before it was handed over",
            Self::Draining => "the server is shutting down",
            Self::NotLeader => "the server is not the leader",
            Self::LeaseLost => "the lease is lost",
            Self::NotHeld => "not the holder",
            Self::AlreadyLocked => "already locked",
            Self::NotLocked => "not locked",
            Self::Server => "the server refused",
            Self::Protocol => "protocol violation",
            Self::InvalidInput => "invalid input",
            Self::ConnectionClosed => "connection closed",
            Self::ClientClosed => "the client is closed",
            Self::Overloaded => "the client is overloaded",
            Self::Unsupported => "not supported",
            Self::Io => "i/o error",
            Self::Tls => "tls error",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.phrase())
    }
}
