//! One free function per wire command, over an [`AsyncConn`]: for those who want the protocol and
//! nothing on top. No renewal, no retry; a grant is bound to its connection, and lost with it.
//!
//! Durations go up to whole seconds. Every function checks its input before it sends anything
//! ([`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput)) and is, as to cancellation,
//! [`AsyncConn::command`]: dropped half-way, it closes the connection. The `sem_` functions are
//! those of semaphores: the same, with a limit.
//!
//! ```
//! use std::time::Duration;
//! use dflockd_client::{AsyncConn, command};
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
//! # let stream = tokio_test::io::Builder::new()
//! #     .write(b"l\nk\n10 30\n").read(b"ok 000000000000002a00112233445566aa 30\n")
//! #     .write(b"r\nk\n000000000000002a00112233445566aa\n").read(b"ok\n").build();
//! let conn = AsyncConn::new(stream);
//! let grant = command::acquire(&conn, "k", Duration::from_secs(10), Some(Duration::from_secs(30))).await?;
//! command::release(&conn, "k", &grant.token).await?;
//! # Ok(()) }
//! ```

use std::sync::Arc;
use std::time::Duration;

use crate::client::conn::AsyncConn;
use crate::client::outcome;
use crate::client::tls::ClientTls;
use crate::error::{Error, ErrorKind, Result};
use crate::net::{BoxStream, Dial, TcpDial};
use crate::proto::{Family, Reply, Request, Secret, StatsResult};
use crate::types::{Key, Limit, MAX_AUTH_TOKEN_BYTES, Seconds, Token};

pub use crate::client::outcome::{Grant, Place};

/// How much longer than its own timeout a command's reply may take.
pub(crate) const IO_SLACK: Duration = Duration::from_secs(30);

/// Dials a server, over TLS where `tls` is given. `TCP_NODELAY` and keepalive probes are on.
///
/// # Errors
/// All within `connect_timeout`: [`Timeout`](ErrorKind::Timeout), [`Io`](ErrorKind::Io) or
/// [`ConnectionClosed`](ErrorKind::ConnectionClosed) from connecting, [`Tls`](ErrorKind::Tls) from
/// the handshake; each names the address.
///
/// # Cancel safety
/// Dropping the future gives the attempt up.
pub async fn open_conn(
    host: &str,
    port: u16,
    tls: Option<&ClientTls>,
    connect_timeout: Duration,
) -> Result<AsyncConn> {
    check_server(host, port)?;
    check_time("connect_timeout", connect_timeout)?;
    let server: Arc<str> = server_name(host, port).into();
    let opening = open_stream(&TcpDial, host, port, tls);
    let stream =
        within(connect_timeout, opening).await.map_err(|e| e.during("connect").on_server(&server))?;
    Ok(AsyncConn::new(stream))
}

/// Runs `connecting` under the connect timeout.
pub(crate) async fn within<T>(limit: Duration, connecting: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(limit, connecting)
        .await
        .unwrap_or_else(|_| Err(Error::new(ErrorKind::Timeout, format!("no connection within {limit:?}"))))
}

pub(crate) async fn open_stream(
    dial: &dyn Dial,
    host: &str,
    port: u16,
    tls: Option<&ClientTls>,
) -> Result<BoxStream> {
    let stream = dial.dial(host, port).await.map_err(|cause| Error::io("could not connect", cause))?;
    match tls {
        Some(tls) => tls.connect(host, stream).await,
        None => Ok(stream),
    }
}

/// `host:port`, an IPv6 host in brackets.
pub(crate) fn server_name(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

pub(crate) fn check_server(host: &str, port: u16) -> Result<()> {
    if host.is_empty() {
        return Err(Error::invalid("host", "is empty"));
    }
    if host.contains(char::is_whitespace) {
        return Err(Error::invalid("host", format!("{host:?} has white space")));
    }
    if port == 0 {
        return Err(Error::invalid("port", "is 0, the range is 1 to 65535"));
    }
    Ok(())
}

pub(crate) fn check_time(field: &'static str, time: Duration) -> Result<()> {
    if time.is_zero() {
        return Err(Error::invalid(field, "is 0, it must be longer"));
    }
    Seconds::ceil(field, time)?;
    Ok(())
}

pub(crate) fn lease_seconds(field: &'static str, lease: Option<Duration>) -> Result<Option<Seconds>> {
    let Some(lease) = lease else { return Ok(None) };
    if lease.is_zero() {
        return Err(Error::invalid(field, "is 0, the least is 1 s"));
    }
    Ok(Some(Seconds::ceil(field, lease)?))
}

pub(crate) fn check_auth_token(token: &str) -> Result<()> {
    if token.is_empty() {
        return Err(Error::invalid("auth_token", "is empty"));
    }
    if token.contains(['\n', '\r']) {
        return Err(Error::invalid("auth_token", "has a line break"));
    }
    if token.len() > MAX_AUTH_TOKEN_BYTES {
        let fault = format!("is {} bytes long, the limit is {MAX_AUTH_TOKEN_BYTES}", token.len());
        return Err(Error::invalid("auth_token", fault));
    }
    Ok(())
}

/// Sends a request and reads the reply that fits it.
async fn ask(conn: &AsyncConn, request: &Request, read_timeout: Duration) -> Result<Reply> {
    let arg = request.arg();
    let arg = String::from_utf8_lossy(&arg);
    let key = request.key().map_or("_".into(), Key::to_text);
    let line = conn.command(request.command(), &key, &arg, Some(read_timeout)).await?;
    Reply::parse(line.as_bytes(), request.expect()).map_err(outcome::bad_reply)
}

/// Names the operation and the key in whatever went wrong.
fn named<T>(outcome: Result<T>, operation: &'static str, key: &Key) -> Result<T> {
    outcome.map_err(|error| error.during(operation).for_key(key))
}

/// `auth`: the first command on a server that has an auth token. Reply within 30 s.
///
/// # Errors
/// [`PermissionDenied`](ErrorKind::PermissionDenied) when the server refuses the token (or has
/// none configured); otherwise as [`AsyncConn::command`].
pub async fn authenticate(conn: &AsyncConn, auth_token: &str) -> Result<()> {
    check_auth_token(auth_token)?;
    let request = Request::Auth { token: Secret::new(auth_token) };
    let outcome = ask(conn, &request, IO_SLACK).await.and_then(outcome::authenticated);
    outcome.map_err(|error| error.during("authenticate"))
}

/// `ping`: keeps a quiet connection open. Reply within 30 s.
///
/// # Errors
/// [`Server`](ErrorKind::Server) from a server too old to know it (the connection goes on);
/// otherwise as [`AsyncConn::command`].
pub async fn ping(conn: &AsyncConn) -> Result<()> {
    ask(conn, &Request::Ping, IO_SLACK).await.and_then(outcome::done).map_err(|error| error.during("ping"))
}

/// `stats`: what the server holds right now. Reply within 30 s.
///
/// # Errors
/// [`Protocol`](ErrorKind::Protocol) when the answer is not the JSON that it should be; otherwise
/// as [`AsyncConn::command`].
pub async fn stats(conn: &AsyncConn) -> Result<StatsResult> {
    ask(conn, &Request::Stats, IO_SLACK).await.and_then(outcome::stats).map_err(|error| error.during("stats"))
}

/// `l`: takes the lock, waiting up to `timeout` (0 is a try). Reply within `timeout` + 30 s.
///
/// # Errors
/// [`Timeout`](ErrorKind::Timeout) when the key stays busy,
/// [`MaxLocks`](ErrorKind::MaxLocks), [`MaxWaiters`](ErrorKind::MaxWaiters),
/// [`LimitMismatch`](ErrorKind::LimitMismatch), [`Draining`](ErrorKind::Draining); otherwise as
/// [`AsyncConn::command`].
pub async fn acquire(
    conn: &AsyncConn,
    key: &str,
    timeout: Duration,
    lease: Option<Duration>,
) -> Result<Grant> {
    acquire_any(conn, key, timeout, None, lease).await
}

/// `sl`: takes one of `limit` slots, waiting up to `timeout`. Reply within `timeout` + 30 s.
///
/// # Errors
/// As [`acquire`].
pub async fn sem_acquire(
    conn: &AsyncConn,
    key: &str,
    timeout: Duration,
    limit: u64,
    lease: Option<Duration>,
) -> Result<Grant> {
    acquire_any(conn, key, timeout, Some(Limit::new(limit)?), lease).await
}

async fn acquire_any(
    conn: &AsyncConn,
    key: &str,
    timeout: Duration,
    limit: Option<Limit>,
    lease: Option<Duration>,
) -> Result<Grant> {
    let key = Key::parse(key)?;
    let timeout = Seconds::ceil("timeout", timeout)?;
    let lease = lease_seconds("lease", lease)?;
    let request = Request::Acquire { key: key.clone(), timeout, limit, lease };
    let reply = ask(conn, &request, timeout.duration() + IO_SLACK).await;
    named(reply.and_then(outcome::grant), "acquire", &key)
}

/// `e`: takes the lock or a place in its queue, without waiting. Reply within 30 s.
///
/// # Errors
/// [`AlreadyQueued`](ErrorKind::AlreadyQueued) on a second enqueue before its [`wait`]; otherwise
/// as [`acquire`], without the timeout.
pub async fn enqueue(conn: &AsyncConn, key: &str, lease: Option<Duration>) -> Result<Place> {
    enqueue_any(conn, key, None, lease).await
}

/// `se`: takes one of `limit` slots or a place in the queue. Reply within 30 s.
///
/// # Errors
/// As [`enqueue`].
pub async fn sem_enqueue(conn: &AsyncConn, key: &str, limit: u64, lease: Option<Duration>) -> Result<Place> {
    enqueue_any(conn, key, Some(Limit::new(limit)?), lease).await
}

async fn enqueue_any(
    conn: &AsyncConn,
    key: &str,
    limit: Option<Limit>,
    lease: Option<Duration>,
) -> Result<Place> {
    let key = Key::parse(key)?;
    let lease = lease_seconds("lease", lease)?;
    let request = Request::Enqueue { key: key.clone(), limit, lease };
    let reply = ask(conn, &request, IO_SLACK).await;
    named(reply.and_then(outcome::place), "enqueue", &key)
}

/// `w`: waits up to `timeout` for the grant of an earlier [`enqueue`] on this connection. The
/// place in the queue is given up when the time runs out. Reply within `timeout` + 30 s.
///
/// # Errors
/// [`Timeout`](ErrorKind::Timeout), [`NotQueued`](ErrorKind::NotQueued),
/// [`LeaseExpired`](ErrorKind::LeaseExpired) when the grant came and ran out before this call,
/// [`Draining`](ErrorKind::Draining); otherwise as [`AsyncConn::command`].
pub async fn wait(conn: &AsyncConn, key: &str, timeout: Duration) -> Result<Grant> {
    wait_any(conn, key, timeout, Family::Lock).await
}

/// `sw`: [`wait`] for a semaphore.
///
/// # Errors
/// As [`wait`].
pub async fn sem_wait(conn: &AsyncConn, key: &str, timeout: Duration) -> Result<Grant> {
    wait_any(conn, key, timeout, Family::Semaphore).await
}

async fn wait_any(conn: &AsyncConn, key: &str, timeout: Duration, family: Family) -> Result<Grant> {
    let key = Key::parse(key)?;
    let timeout = Seconds::ceil("timeout", timeout)?;
    let request = Request::Wait { key: key.clone(), timeout, family };
    let reply = ask(conn, &request, timeout.duration() + IO_SLACK).await;
    named(reply.and_then(outcome::grant), "wait", &key)
}

/// `r`: lets go; from any connection. Reply within 30 s.
///
/// # Errors
/// [`NotHeld`](ErrorKind::NotHeld) when the server knows no such holder; otherwise as
/// [`AsyncConn::command`].
pub async fn release(conn: &AsyncConn, key: &str, token: &Token) -> Result<()> {
    release_any(conn, key, token, Family::Lock).await
}

/// `sr`: [`release`] for a semaphore.
///
/// # Errors
/// As [`release`].
pub async fn sem_release(conn: &AsyncConn, key: &str, token: &Token) -> Result<()> {
    release_any(conn, key, token, Family::Semaphore).await
}

async fn release_any(conn: &AsyncConn, key: &str, token: &Token, family: Family) -> Result<()> {
    let key = Key::parse(key)?;
    let request = Request::Release { key: key.clone(), token: token.clone(), family };
    let reply = ask(conn, &request, IO_SLACK).await;
    named(reply.and_then(outcome::released), "release", &key)
}

/// `n`: sets the lease anew, counting from now, and answers it; from any connection. Reply within
/// 30 s. Without a `lease` the server falls back to its own default.
///
/// # Errors
/// [`NotHeld`](ErrorKind::NotHeld) when the token is not held or its lease has run out; otherwise
/// as [`AsyncConn::command`].
pub async fn renew(conn: &AsyncConn, key: &str, token: &Token, lease: Option<Duration>) -> Result<Duration> {
    renew_any(conn, key, token, lease, Family::Lock).await
}

/// `sn`: [`renew`] for a semaphore.
///
/// # Errors
/// As [`renew`].
pub async fn sem_renew(
    conn: &AsyncConn,
    key: &str,
    token: &Token,
    lease: Option<Duration>,
) -> Result<Duration> {
    renew_any(conn, key, token, lease, Family::Semaphore).await
}

async fn renew_any(
    conn: &AsyncConn,
    key: &str,
    token: &Token,
    lease: Option<Duration>,
    family: Family,
) -> Result<Duration> {
    let key = Key::parse(key)?;
    let lease = lease_seconds("lease", lease)?;
    let request = Request::Renew { key: key.clone(), token: token.clone(), lease, family };
    let reply = ask(conn, &request, IO_SLACK).await;
    named(reply.and_then(outcome::renewed), "renew", &key)
}
