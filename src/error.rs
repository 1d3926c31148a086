//! The error of this crate: opaque, cheap to clone, one word wide, with a kind to branch on.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::Arc;

use crate::types::{Invalid, Key, Quoted, printable};

mod kind;
mod shown;

pub use kind::ErrorKind;
#[cfg(feature = "client")]
pub(crate) use shown::is_host;
#[cfg(any(feature = "client", feature = "tls"))]
pub(crate) use shown::quoted;
#[cfg(any(feature = "server", feature = "tls"))]
pub(crate) use shown::shown;

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
    /// `true` if the key or file was busy, and nothing worse happened.
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl Error {
    /// Creates an error of `kind`; `detail` describes the failure, in lower case and without a full stop.
    pub(crate) fn new(kind: ErrorKind, detail: impl Into<String>) -> Self {
        Self(Arc::new(Inner {
            kind,
            detail: detail.into(),
            operation: None,
            key: None,
            server: None,
            raw: None,
            leader: None,
            source: None,
        }))
    }

    /// Returns the kind of failure.
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
    ///     Err(error) if error.kind() == ErrorKind::Busy => println!("{error}"),
    ///     Err(error) => return Err(error),
    /// }
    /// # Ok(()) }
    /// ```
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Returns the key of the failed operation.
    pub fn key(&self) -> Option<&Key> {
        self.0.key.as_ref()
    }

    /// Returns the server (`host:port`) that the failed operation was sent to, or the path of the
    /// key's lock file in a directory.
    pub fn server(&self) -> Option<&str> {
        self.0.server.as_deref()
    }

    /// Returns the server's status line, if it sent one, exactly as it came;
    /// [`printable`](crate::printable) makes it safe to show.
    pub fn raw(&self) -> Option<&str> {
        self.0.raw.as_deref()
    }

    /// Returns the address that a replica named as its leader.
    pub fn leader(&self) -> Option<&str> {
        self.0.leader.as_deref()
    }

    /// Returns `true` if an operation did not finish in time. A key that stays held is
    /// [busy](Self::is_busy) instead.
    pub fn is_timeout(&self) -> bool {
        self.kind() == ErrorKind::Timeout
    }

    /// Returns `true` if the key is held: it stayed so until the timeout, or it has as many waiters as it
    /// may. The same call may succeed later. If a server does not answer, the error is a
    /// [`Timeout`](ErrorKind::Timeout) instead.
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
        matches!(self.kind(), ErrorKind::Busy | ErrorKind::MaxWaiters)
    }

    /// Returns `true` if a lease is gone: what it guarded may have another holder by now.
    pub fn is_lease_lost(&self) -> bool {
        use ErrorKind::{LeaseExpired, LeaseLost, NotHeld, NotLocked};
        matches!(self.kind(), LeaseLost | LeaseExpired | NotHeld | NotLocked)
    }

    /// Returns `true` if the caller's input is at fault; the same call fails again.
    pub fn is_invalid_input(&self) -> bool {
        self.kind() == ErrorKind::InvalidInput
    }

    /// Returns `true` if the connection or the server is unavailable, or the client has reached a limit
    /// or is closed.
    pub fn is_unavailable(&self) -> bool {
        use ErrorKind::{ClientClosed, ConnectionClosed, Draining, Io, NotLeader, Overloaded};
        matches!(self.kind(), ClientClosed | ConnectionClosed | Draining | Io | NotLeader | Overloaded)
    }
}

/// What each layer adds on the way up. None of these replaces what is already known.
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

    pub(crate) fn caused_by(mut self, source: impl StdError + Send + Sync + 'static) -> Self {
        Arc::make_mut(&mut self.0).source = Some(Arc::new(source));
        self
    }

    /// Returns the error in words, with the peer's text unescaped.
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
        // The path of a lock file is both its key and its endpoint.
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

    /// Creates the error of an I/O failure, with the kind that a caller would act on. If a stream of this
    /// crate has wrapped an `Error` in it, returns that one.
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

/// Shows one line to people: deceptive characters from a server or a file are escaped, as by
/// [`printable`](crate::printable).
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

/// Converts for code that branches on [`io::ErrorKind`]: a refused auth token is `PermissionDenied`, a
/// timeout is `TimedOut`, and so on; the error itself is inside.
impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        use io::ErrorKind as Io;
        let source_kind = || error.0.source.as_ref()?.downcast_ref::<io::Error>().map(io::Error::kind);
        let kind = match error.kind() {
            ErrorKind::Busy => Io::ResourceBusy,
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

/// The result of every operation of this crate.
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
