//! The one error of this crate: opaque, cheap to clone, one word wide, told apart by its kind.
//! Knows of no wire and no socket; the rooms that meet a failure say what it was.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::Arc;

use crate::types::{Invalid, Key, Quoted, printable};

mod shown;

#[cfg(feature = "client")]
pub(crate) use shown::is_host;
#[cfg(any(feature = "client", feature = "tls"))]
pub(crate) use shown::quoted;
#[cfg(any(feature = "server", feature = "tls"))]
pub(crate) use shown::shown;

/// What went wrong, as far as a caller would act on it differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The time allowed ran out: the lock stayed busy, the server stayed silent, or the dial did
    /// not finish.
    Timeout,
    /// The server wants authentication first (`error_auth` to a command other than `auth`).
    Auth,
    /// The server refused the auth token in the handshake.
    PermissionDenied,
    /// The server has as many keys as it may (`error_max_locks`).
    MaxLocks,
    /// The key has as many waiters as it may (`error_max_waiters`).
    MaxWaiters,
    /// The key is in use with another limit, or was until a while ago (`error_limit_mismatch`). A
    /// server keeps the limit of a key that nobody uses for up to its `--gc-max-idle` and
    /// `--gc-interval`, 65 s unless set; then the key can have another one.
    LimitMismatch,
    /// A `wait` on a key that this connection did not enqueue for (`error_not_enqueued`).
    NotQueued,
    /// A second `enqueue` on one connection and key (`error_already_enqueued`).
    AlreadyQueued,
    /// The grant's lease ran out before its holder heard of it (`error_lease_expired`).
    LeaseExpired,
    /// The server is shutting down and grants nothing more (`error_draining`).
    Draining,
    /// The server is a replica that does not grant; [`Error::leader`] may name the one that does
    /// (`error_not_leader`).
    NotLeader,
    /// The lease was lost before the operation: what it guarded may have had another holder.
    LeaseLost,
    /// The server knows no such holder: the token was released, has expired, or never was.
    NotHeld,
    /// This very object has the lock file already; locks are not reentrant.
    AlreadyLocked,
    /// The lock file is not held, or not by this object.
    NotLocked,
    /// Another status of the server's; [`Error::raw`] has its text.
    Server,
    /// The peer broke the protocol: a malformed, oversized or unasked-for line.
    Protocol,
    /// A value that cannot be sent or a setting that cannot work; nothing was sent.
    InvalidInput,
    /// The connection is closed, by the peer, by [`close`](crate::AsyncConn::close), or because
    /// an earlier command was cut off and its reply can no longer be told from others.
    ConnectionClosed,
    /// The client was closed, by [`LockClient::close`](crate::LockClient::close).
    ClientClosed,
    /// More requests are under way on this client than it keeps, or all the connections that it may
    /// have stay in use; nothing was sent.
    Overloaded,
    /// The engine that grants the leases cannot do this; nothing was sent. See
    /// [`LockClient::capabilities`](crate::LockClient::capabilities).
    Unsupported,
    /// The operating system refused an operation.
    Io,
    /// The TLS handshake or its settings failed.
    Tls,
}

/// The error of every operation in this crate. Cloning is cheap.
///
/// Branch on [`Error::kind`] or on a predicate; print it for people. It names the operation, the
/// key and the server as far as they are known, and keeps the cause as its
/// [`source`](StdError::source).
///
/// ```
/// use dflockd_client::{Error, ErrorKind, Key};
/// let error = Error::from(Key::parse("").unwrap_err());
/// assert_eq!(error.kind(), ErrorKind::InvalidInput);
/// assert_eq!(error.to_string(), "invalid input: key is empty");
/// ```
#[derive(Clone)]
pub struct Error(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    detail: String,
    operation: Option<&'static str>,
    key: Option<Key>,
    server: Option<Arc<str>>,
    raw: Option<Arc<str>>,
    leader: Option<Arc<str>>,
    /// Whether it says that what was waited for was taken, and nothing worse.
    busy: bool,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of `kind`; `detail` says what happened, in lower case and without a full stop.
    pub(crate) fn new(kind: ErrorKind, detail: impl Into<String>) -> Self {
        Self(Arc::new(Inner {
            kind,
            detail: detail.into(),
            operation: None,
            key: None,
            server: None,
            raw: None,
            leader: None,
            busy: false,
            source: None,
        }))
    }

    /// What kind of failure this is.
    ///
    /// # Examples
    /// ```
    /// # use dflockd_client::test_util::TestServer;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
    /// # let locks = TestServer::new().locks();
    /// use dflockd_client::ErrorKind;
    /// use std::time::Duration;
    /// let lock = locks.lock("account:17")?;
    /// let guard = lock.acquire().await?;
    /// match lock.acquire_within(Duration::ZERO).await {
    ///     Ok(_) => unreachable!("it is taken"),
    ///     Err(error) if error.kind() == ErrorKind::Timeout => println!("busy: {error}"),
    ///     Err(error) => return Err(error),
    /// }
    /// # Ok(()) }
    /// ```
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The key that the failed operation was about.
    pub fn key(&self) -> Option<&Key> {
        self.0.key.as_ref()
    }

    /// The server (`host:port`) that the failed operation was sent to.
    pub fn server(&self) -> Option<&str> {
        self.0.server.as_deref()
    }

    /// The server's own status line, where it answered with one, exactly as it came;
    /// [`printable`](crate::printable) makes it fit to be shown.
    pub fn raw(&self) -> Option<&str> {
        self.0.raw.as_deref()
    }

    /// The address that a replica named as its leader.
    pub fn leader(&self) -> Option<&str> {
        self.0.leader.as_deref()
    }

    /// The time allowed ran out.
    pub fn is_timeout(&self) -> bool {
        self.kind() == ErrorKind::Timeout
    }

    /// The key is taken: it stayed so for as long as it was waited for, or as many wait as may. The
    /// same call may succeed later. A server that does not answer is a
    /// [`Timeout`](ErrorKind::Timeout) as well, but not this.
    ///
    /// # Examples
    /// ```
    /// # use dflockd_client::test_util::TestServer;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> dflockd_client::Result<()> {
    /// # let server = TestServer::new();
    /// # let locks = server.locks();
    /// let lock = locks.lock("account:17")?;
    /// let guard = lock.acquire().await?;
    /// assert!(lock.acquire().await.unwrap_err().is_busy());
    /// server.partition();
    /// assert!(!lock.acquire().await.unwrap_err().is_busy());
    /// # Ok(()) }
    /// ```
    pub fn is_busy(&self) -> bool {
        self.0.busy || self.kind() == ErrorKind::MaxWaiters
    }

    /// A lease is gone: what it guarded may have another holder by now.
    pub fn is_lease_lost(&self) -> bool {
        use ErrorKind::{LeaseExpired, LeaseLost, NotHeld, NotLocked};
        matches!(self.kind(), LeaseLost | LeaseExpired | NotHeld | NotLocked)
    }

    /// The caller's input is at fault; the same call fails again.
    pub fn is_invalid_input(&self) -> bool {
        self.kind() == ErrorKind::InvalidInput
    }

    /// The connection or the server went away, or never was there; or the client has no room for
    /// more, or is closed.
    pub fn is_unavailable(&self) -> bool {
        use ErrorKind::{ClientClosed, ConnectionClosed, Draining, Io, NotLeader, Overloaded};
        matches!(self.kind(), ClientClosed | ConnectionClosed | Draining | Io | NotLeader | Overloaded)
    }
}

/// What the rooms add on the way up. Each keeps what is already known.
#[cfg_attr(not(feature = "client"), allow(dead_code))]
impl Error {
    pub(crate) fn invalid(field: &'static str, fault: impl Into<String>) -> Self {
        Invalid::new(field, fault).into()
    }

    pub(crate) fn during(mut self, operation: &'static str) -> Self {
        Arc::make_mut(&mut self.0).operation.get_or_insert(operation);
        self
    }

    pub(crate) fn for_key(mut self, key: &Key) -> Self {
        Arc::make_mut(&mut self.0).key.get_or_insert_with(|| key.clone());
        self
    }

    pub(crate) fn on_server(mut self, server: &Arc<str>) -> Self {
        Arc::make_mut(&mut self.0).server.get_or_insert_with(|| server.clone());
        self
    }

    pub(crate) fn with_raw(mut self, raw: &str) -> Self {
        Arc::make_mut(&mut self.0).raw = Some(raw.into());
        self
    }

    pub(crate) fn with_leader(mut self, leader: Option<&str>) -> Self {
        Arc::make_mut(&mut self.0).leader = leader.map(Into::into);
        self
    }

    #[cfg(any(feature = "client", feature = "file"))]
    pub(crate) fn while_busy(mut self) -> Self {
        Arc::make_mut(&mut self.0).busy = true;
        self
    }

    pub(crate) fn caused_by(mut self, source: impl StdError + Send + Sync + 'static) -> Self {
        Arc::make_mut(&mut self.0).source = Some(Arc::new(source));
        self
    }

    /// What it says, with whatever the peer has put into it.
    fn text(&self) -> String {
        let inner = &*self.0;
        let key = inner.key.as_ref().map(Key::to_text);
        let quoted = key.as_deref().map(Quoted);
        let mut text = match (inner.operation, quoted) {
            (Some(operation), Some(key)) => format!("{operation} of {key}"),
            (Some(operation), None) => operation.to_owned(),
            (None, Some(key)) => key.to_string(),
            (None, None) => String::new(),
        };
        // A lock file is key and grantor in one.
        if let Some(server) = inner.server.as_deref().filter(|server| key.as_deref() != Some(server)) {
            text += if text.is_empty() { "" } else { " on " };
            text += server;
        }
        if !text.is_empty() {
            text += ": ";
        }
        text += inner.kind.phrase();
        if !inner.detail.is_empty() {
            text = format!("{text}: {}", inner.detail);
        }
        if let Some(leader) = &inner.leader {
            text = format!("{text}: its leader is {leader}");
        }
        match &inner.source {
            Some(source) => format!("{text}: {source}"),
            None => text,
        }
    }

    /// An I/O failure, sorted by what it means for a caller; one that a stream of this crate has
    /// named already is taken out as it is.
    pub(crate) fn io(doing: &str, cause: io::Error) -> Self {
        use io::ErrorKind as Io;
        let cause = match cause.downcast::<Self>() {
            Ok(named) => return named,
            Err(cause) => cause,
        };
        let kind = match cause.kind() {
            Io::TimedOut => ErrorKind::Timeout,
            Io::BrokenPipe
            | Io::ConnectionAborted
            | Io::ConnectionReset
            | Io::NotConnected
            | Io::UnexpectedEof => ErrorKind::ConnectionClosed,
            _ => ErrorKind::Io,
        };
        Self::new(kind, doing).caused_by(cause)
    }
}

impl ErrorKind {
    fn phrase(self) -> &'static str {
        match self {
            Self::Timeout => "timed out",
            Self::Auth => "authentication required",
            Self::PermissionDenied => "permission denied",
            Self::MaxLocks => "too many keys on the server",
            Self::MaxWaiters => "too many waiters for the key",
            Self::LimitMismatch => "the key is in use with another limit",
            Self::NotQueued => "not in the queue",
            Self::AlreadyQueued => "already in the queue",
            Self::LeaseExpired => "the lease ran out before it was handed over",
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

/// One line, for people: what deceives is escaped, as [`printable`](crate::printable) does it, whatever
/// a server or a file put into it.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable(&self.text()))
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({:?}, {:?})", self.kind(), self.to_string())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

impl From<Invalid> for Error {
    fn from(invalid: Invalid) -> Self {
        Self::new(ErrorKind::InvalidInput, invalid.to_string())
    }
}

/// For code that branches on [`io::ErrorKind`]: a refused auth token is `PermissionDenied`, a
/// timeout is `TimedOut`, and so on; the error itself travels inside.
impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        use io::ErrorKind as Io;
        let source_kind = || error.0.source.as_ref()?.downcast_ref::<io::Error>().map(io::Error::kind);
        let kind = match error.kind() {
            ErrorKind::Timeout => Io::TimedOut,
            ErrorKind::Auth | ErrorKind::PermissionDenied => Io::PermissionDenied,
            ErrorKind::InvalidInput => Io::InvalidInput,
            ErrorKind::Unsupported => Io::Unsupported,
            ErrorKind::Protocol | ErrorKind::Tls => Io::InvalidData,
            ErrorKind::ConnectionClosed => source_kind().unwrap_or(Io::ConnectionAborted),
            ErrorKind::Io => source_kind().unwrap_or(Io::Other),
            _ => Io::Other,
        };
        io::Error::new(kind, error)
    }
}

/// What every operation of this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_word_wide() {
        assert_eq!(size_of::<Error>(), size_of::<usize>());
        assert_eq!(size_of::<Result<()>>(), size_of::<usize>());
    }

    #[test]
    fn it_names_operation_key_server_and_cause() {
        let cause = io::Error::new(io::ErrorKind::ConnectionRefused, "refused");
        let error = Error::io("could not connect", cause)
            .during("acquire")
            .for_key(&Key::parse("k").unwrap())
            .on_server(&"h:1".into());
        assert_eq!(error.to_string(), "acquire of \"k\" on h:1: i/o error: could not connect: refused");
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn an_error_comes_out_of_an_io_error_as_it_went_in() {
        let error = Error::io("could not read", Error::new(ErrorKind::Tls, "refused").into());
        assert_eq!(error.kind(), ErrorKind::Tls);
        assert_eq!(error.to_string(), "tls error: refused");
    }

    #[test]
    fn the_first_to_name_a_thing_is_right() {
        let error = Error::new(ErrorKind::Timeout, "").during("wait").during("acquire");
        assert_eq!(error.to_string(), "wait: timed out");
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::TimedOut);
    }
}
