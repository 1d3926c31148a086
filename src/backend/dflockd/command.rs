//! One free function per wire command, over an [`AsyncConn`]: the bare protocol. No renewal, no retry; a
//! grant is bound to its connection, and lost with it.
//!
//! Each function states the time within which it has its reply, counted from its turn on the connection.
//! After that it fails with [`Timeout`](crate::ErrorKind::Timeout), and the connection is closed. The 5 s are
//! the connection's [`request_timeout`](AsyncConn::request_timeout), which also bounds a command whose
//! timeout is 0.
//!
//! Durations are rounded up to whole seconds. Every function checks its input before it sends anything
//! ([`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput)), and is as cancel safe as
//! [`AsyncConn::command`]: if its future is dropped half-way, the connection closes. A reply that does not
//! fit the command closes it as well ([`ErrorKind::Protocol`](crate::ErrorKind::Protocol)), since it may be
//! another command's. The `sem_` functions are the same commands for semaphores, with a limit.
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

mod semaphore;

use std::sync::Arc;
use std::time::Duration;

use crate::backend::dflockd::conn::AsyncConn;
use crate::backend::dflockd::connect::{open_stream, within};
use crate::backend::dflockd::options::{check_auth_token, check_server, server_name};
use crate::backend::dflockd::replies;
use crate::backend::dflockd::tls::ClientTls;
use crate::error::{Error, ErrorKind, Result};
use crate::net::TcpDial;
use crate::proto::{Expect, Family, Reply, Request, Secret, StatsResult, Status};
use crate::types::{Key, Limit, Seconds, Token};
use crate::validate::{check_time, lease_seconds};

pub use crate::backend::dflockd::replies::{Enqueued, Grant};
pub use semaphore::{sem_acquire, sem_enqueue, sem_release, sem_renew, sem_wait};

/// The longest `stats` reply, in bytes, that is parsed on the caller's task.
const MAX_PARSED_INLINE: usize = 64 * 1024;

/// Connects to a server; over TLS if `tls` is given. `TCP_NODELAY` and keepalive probes are on.
///
/// # Errors
/// All within `connect_timeout`: [`Timeout`](ErrorKind::Timeout), [`Io`](ErrorKind::Io) or
/// [`ConnectionClosed`](ErrorKind::ConnectionClosed) from connecting, [`Tls`](ErrorKind::Tls) from
/// the handshake; each names the address.
///
/// # Cancel safety
/// Dropping the future abandons the attempt.
///
/// # Examples
/// ```
/// # use dflockd_client::server::{Server, ServerConfig};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
/// # let server = Server::bind(ServerConfig { port: 0, ..Default::default() }).await?;
/// # let port = server.local_addr().unwrap().port();
/// # tokio::spawn(server.run(std::future::pending()));
/// use dflockd_client::command;
/// use std::time::Duration;
/// let conn = command::open_conn("127.0.0.1", port, None, Duration::from_secs(5)).await?;
/// command::ping(&conn).await?;
/// # Ok(()) }
/// ```
pub async fn open_conn(
    host: &str,
    port: u16,
    tls: Option<&ClientTls>,
    connect_timeout: Duration,
) -> Result<AsyncConn> {
    check_server(host, port)?;
    check_time("connect_timeout", connect_timeout)?;
    let server: Arc<str> = server_name(host, port).into();
    let dial = TcpDial::new();
    let opening = open_stream(&dial, host, port, tls);
    let stream =
        within(connect_timeout, opening).await.map_err(|e| e.during("connect").on_server(&server))?;
    Ok(AsyncConn::new(stream))
}

/// Sends a request and returns its reply. A reply that does not fit closes the connection. The server may
/// wait up to `timeout` before it replies.
async fn request_reply(conn: &AsyncConn, request: &Request, timeout: Duration) -> Result<Reply> {
    let read = |line: String| Reply::parse(line.as_bytes(), request.expect()).map_err(replies::bad_reply);
    exchange(conn, request, timeout, read).await
}

async fn exchange<T>(
    conn: &AsyncConn,
    request: &Request,
    timeout: Duration,
    read: impl FnOnce(String) -> Result<T>,
) -> Result<T> {
    let arg = request.arg();
    let arg = String::from_utf8_lossy(&arg);
    let key = request.key().map_or("_".into(), Key::to_text);
    conn.exchange(request.command(), &key, &arg, Some(conn.reply_within(timeout)), read).await
}

/// Requests `stats` and parses the reply in place, since it can be long.
async fn request_stats(conn: &AsyncConn) -> Result<StatsResult> {
    let read = |line: String| match Status::parse(&line) {
        Some(status) => Ok(Err(replies::status_error(&status, Expect::Stats))),
        None if line.starts_with("ok ") => Ok(Ok(line)),
        None => Reply::parse(line.as_bytes(), Expect::Stats).map(|_| Ok(line)).map_err(replies::bad_reply),
    };
    let line = exchange(conn, &Request::Stats, Duration::ZERO, read).await??;
    if line.len() <= MAX_PARSED_INLINE {
        return replies::stats(&line);
    }
    // A million keys take a second to parse, in which other tasks must have their turn.
    let parsed = tokio::task::spawn_blocking(move || replies::stats(&line)).await;
    parsed.unwrap_or_else(|_| Err(Error::new(ErrorKind::ConnectionClosed, "the runtime was shut down")))
}

/// Names the operation and the key in an error.
fn named<T>(outcome: Result<T>, operation: &'static str, key: &Key) -> Result<T> {
    outcome.map_err(|error| error.during(operation).for_key(key))
}

/// `auth`: authenticates. The first command on a server that has an auth token. Reply within 5 s.
///
/// # Errors
/// [`PermissionDenied`](ErrorKind::PermissionDenied) if the server refuses the token, or has none configured;
/// otherwise as [`AsyncConn::command`].
///
/// # Examples
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
/// use dflockd_client::{command, server::ServerConfig, test_util::TestServer};
/// let config = ServerConfig { auth_token: Some("s3cret".into()), ..Default::default() };
/// let conn = TestServer::with(config)?.conn();
/// command::authenticate(&conn, "s3cret").await?;
/// command::ping(&conn).await?;
/// # Ok(()) }
/// ```
pub async fn authenticate(conn: &AsyncConn, auth_token: &str) -> Result<()> {
    check_auth_token(auth_token)?;
    let request = Request::Auth { token: Secret::new(auth_token) };
    let outcome = request_reply(conn, &request, Duration::ZERO).await.and_then(replies::authenticated);
    outcome.map_err(|error| error.during("authenticate"))
}

/// `ping`: keeps a quiet connection open. Reply within 5 s.
///
/// # Errors
/// [`Server`](ErrorKind::Server) from a server too old to know the command (the connection stays open);
/// otherwise as [`AsyncConn::command`].
///
/// # Examples
/// ```
/// # use dflockd_client::{AsyncConn, command, test_util::TestServer};
/// # use std::time::Duration;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
/// # let conn = TestServer::new().conn();
/// command::ping(&conn).await?;
/// # Ok(()) }
/// ```
pub async fn ping(conn: &AsyncConn) -> Result<()> {
    request_reply(conn, &Request::Ping, Duration::ZERO)
        .await
        .and_then(replies::done)
        .map_err(|error| error.during("ping"))
}

/// `stats`: returns what the server holds now. Reply within 5 s.
///
/// # Errors
/// [`Protocol`](ErrorKind::Protocol) if the reply is longer than
/// [`max_stats_bytes`](AsyncConn::max_stats_bytes) or malformed; otherwise as [`AsyncConn::command`].
///
/// # Examples
/// ```
/// # use dflockd_client::{AsyncConn, command, test_util::TestServer};
/// # use std::time::Duration;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
/// # let conn = TestServer::new().conn();
/// let stats = command::stats(&conn).await?;
/// assert_eq!(stats.connections, 1);
/// # Ok(()) }
/// ```
pub async fn stats(conn: &AsyncConn) -> Result<StatsResult> {
    request_stats(conn).await.map_err(|error| error.during("stats"))
}

/// `l`: takes the lock, waiting up to `timeout` (0 is a try). Reply within `timeout` + 1 s.
///
/// # Errors
/// [`Busy`](ErrorKind::Busy) if the key stays held, [`MaxLocks`](ErrorKind::MaxLocks),
/// [`MaxWaiters`](ErrorKind::MaxWaiters), [`LimitMismatch`](ErrorKind::LimitMismatch),
/// [`Draining`](ErrorKind::Draining); otherwise as [`AsyncConn::command`].
///
/// # Examples
/// ```
/// # use dflockd_client::{AsyncConn, command, test_util::TestServer};
/// # use std::time::Duration;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
/// # let conn = TestServer::new().conn();
/// let grant = command::acquire(&conn, "job", Duration::from_secs(5), None).await?;
/// assert_eq!(grant.lease, Duration::from_secs(33)); // the server's default
/// command::release(&conn, "job", &grant.token).await?;
/// # Ok(()) }
/// ```
pub async fn acquire(
    conn: &AsyncConn,
    key: &str,
    timeout: Duration,
    lease: Option<Duration>,
) -> Result<Grant> {
    acquire_any(conn, key, timeout, None, lease).await
}

async fn acquire_any(
    conn: &AsyncConn,
    key: &str,
    timeout: Duration,
    limit: Option<Limit>,
    lease: Option<Duration>,
) -> Result<Grant> {
    let key = Key::parse(key)?;
    let seconds = Seconds::ceil("timeout", timeout)?;
    let lease = lease_seconds("lease", lease)?;
    let request = Request::Acquire { key: key.clone(), timeout: seconds, limit, lease };
    let reply = request_reply(conn, &request, timeout).await;
    named(reply.and_then(replies::grant), "acquire", &key)
}

/// `e`: takes the lock or a place in its wait queue, without waiting. Reply within 5 s.
///
/// # Errors
/// [`AlreadyQueued`](ErrorKind::AlreadyQueued) on a second enqueue before its [`wait`]; otherwise as
/// [`acquire`], without the timeout.
///
/// # Examples
/// ```
/// # use dflockd_client::{AsyncConn, command, test_util::TestServer};
/// # use std::time::Duration;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
/// # let conn = TestServer::new().conn();
/// use command::Enqueued;
/// let Enqueued::Acquired(grant) = command::enqueue(&conn, "job", None).await? else { panic!("it is free") };
/// command::release(&conn, "job", &grant.token).await?;
/// assert!(matches!(command::enqueue(&conn, "job", None).await?, Enqueued::Acquired(_)));
/// # Ok(()) }
/// ```
pub async fn enqueue(conn: &AsyncConn, key: &str, lease: Option<Duration>) -> Result<Enqueued> {
    enqueue_any(conn, key, None, lease).await
}

async fn enqueue_any(
    conn: &AsyncConn,
    key: &str,
    limit: Option<Limit>,
    lease: Option<Duration>,
) -> Result<Enqueued> {
    let key = Key::parse(key)?;
    let lease = lease_seconds("lease", lease)?;
    let request = Request::Enqueue { key: key.clone(), limit, lease };
    let reply = request_reply(conn, &request, Duration::ZERO).await;
    named(reply.and_then(replies::place), "enqueue", &key)
}

/// `w`: waits up to `timeout` for the grant of an earlier [`enqueue`] on this connection. A timeout gives up
/// the place in the wait queue. Reply within `timeout` + 1 s.
///
/// # Errors
/// [`Busy`](ErrorKind::Busy), [`NotQueued`](ErrorKind::NotQueued),
/// [`LeaseExpired`](ErrorKind::LeaseExpired) if the grant came and its lease expired before this call,
/// [`Draining`](ErrorKind::Draining); otherwise as [`AsyncConn::command`].
///
/// # Examples
/// ```
/// # use dflockd_client::{AsyncConn, command, test_util::TestServer};
/// # use std::time::Duration;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
/// # let conn = TestServer::new().conn();
/// let first = command::acquire(&conn, "job", Duration::ZERO, None).await?;
/// command::enqueue(&conn, "job", None).await?;
/// command::release(&conn, "job", &first.token).await?;
/// let second = command::wait(&conn, "job", Duration::from_secs(5)).await?;
/// assert!(second.token.fence() > first.token.fence());
/// # Ok(()) }
/// ```
pub async fn wait(conn: &AsyncConn, key: &str, timeout: Duration) -> Result<Grant> {
    wait_any(conn, key, timeout, Family::Lock).await
}

async fn wait_any(conn: &AsyncConn, key: &str, timeout: Duration, family: Family) -> Result<Grant> {
    let key = Key::parse(key)?;
    let seconds = Seconds::ceil("timeout", timeout)?;
    let request = Request::Wait { key: key.clone(), timeout: seconds, family };
    let reply = request_reply(conn, &request, timeout).await;
    named(reply.and_then(replies::grant), "wait", &key)
}

/// `r`: releases the lock, from any connection. Reply within 5 s.
///
/// # Errors
/// [`NotHeld`](ErrorKind::NotHeld) if the server knows no such holder; otherwise as [`AsyncConn::command`].
///
/// # Examples
/// ```
/// # use dflockd_client::{AsyncConn, command, test_util::TestServer};
/// # use std::time::Duration;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
/// # let conn = TestServer::new().conn();
/// use dflockd_client::ErrorKind;
/// let grant = command::acquire(&conn, "job", Duration::ZERO, None).await?;
/// command::release(&conn, "job", &grant.token).await?;
/// let error = command::release(&conn, "job", &grant.token).await.unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::NotHeld);
/// # Ok(()) }
/// ```
pub async fn release(conn: &AsyncConn, key: &str, token: &Token) -> Result<()> {
    release_any(conn, key, token, Family::Lock).await
}

async fn release_any(conn: &AsyncConn, key: &str, token: &Token, family: Family) -> Result<()> {
    let key = Key::parse(key)?;
    let request = Request::Release { key: key.clone(), token: token.clone(), family };
    let reply = request_reply(conn, &request, Duration::ZERO).await;
    named(reply.and_then(replies::released), "release", &key)
}

/// `n`: renews the lease, counting from now, and returns it; from any connection. Reply within 5 s. Without a
/// `lease`, the server falls back to its own default.
///
/// # Errors
/// [`NotHeld`](ErrorKind::NotHeld) if the token is not held or its lease has expired; otherwise as
/// [`AsyncConn::command`].
///
/// # Examples
/// ```
/// # use dflockd_client::{AsyncConn, command, test_util::TestServer};
/// # use std::time::Duration;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
/// # let conn = TestServer::new().conn();
/// let grant = command::acquire(&conn, "job", Duration::ZERO, None).await?;
/// let minute = Duration::from_secs(60);
/// assert_eq!(command::renew(&conn, "job", &grant.token, Some(minute)).await?, minute);
/// # Ok(()) }
/// ```
pub async fn renew(conn: &AsyncConn, key: &str, token: &Token, lease: Option<Duration>) -> Result<Duration> {
    renew_any(conn, key, token, lease, Family::Lock).await
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
    let reply = request_reply(conn, &request, Duration::ZERO).await;
    named(reply.and_then(replies::renewed), "renew", &key)
}
