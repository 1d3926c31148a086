//! One free function per wire command, over a [`SyncConn`]: the functions of [`command`](crate::command), blocking.
//! Each function sends, returns and fails like the one of the same name there. Each panics in async code, as the
//! [module](crate::blocking#panics) says.

use std::time::Duration;

use crate::backend::dflockd::ClientTls;
use crate::backend::dflockd::command::{self, Enqueued, Grant};
use crate::blocking::SyncConn;
use crate::error::Result;
use crate::proto::StatsResult;
use crate::types::Token;

/// Connects to a server, over TLS if `tls` is given; see [`command::open_conn`].
///
/// # Errors
/// As [`command::open_conn`].
///
/// # Examples
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use dflockd_client::server::{Server, ServerConfig};
/// # let runtime = tokio::runtime::Runtime::new()?;
/// # let server = runtime.block_on(Server::bind(ServerConfig { port: 0, ..Default::default() }))?;
/// # let port = server.local_addr().unwrap().port();
/// # runtime.spawn(server.run(std::future::pending()));
/// use dflockd_client::blocking;
/// use std::time::Duration;
/// let conn = blocking::open_conn("127.0.0.1", port, None, Duration::from_secs(5))?;
/// blocking::ping(&conn)?;
/// # Ok(()) }
/// ```
pub fn open_conn(
    host: &str,
    port: u16,
    tls: Option<&ClientTls>,
    connect_timeout: Duration,
) -> Result<SyncConn> {
    let (host, tls) = (host.to_owned(), tls.cloned());
    SyncConn::open(async move { command::open_conn(&host, port, tls.as_ref(), connect_timeout).await })
}

/// `auth`: the first command on a server that has an auth token. Reply within 5 s.
///
/// As a [`std::io::Error`], a rejected token has the kind `PermissionDenied`.
///
/// # Errors
/// As [`command::authenticate`].
///
/// # Examples
/// ```
/// # fn main() -> dflockd_client::Result<()> {
/// use dflockd_client::{blocking, server::ServerConfig, test_util::TestServer};
/// use std::io;
/// let config = ServerConfig { auth_token: Some("s3cret".into()), ..Default::default() };
/// let server = TestServer::with(config)?;
/// blocking::authenticate(&server.sync_conn(), "s3cret")?;
/// let error = blocking::authenticate(&server.sync_conn(), "guess").unwrap_err();
/// assert_eq!(io::Error::from(error).kind(), io::ErrorKind::PermissionDenied);
/// # Ok(()) }
/// ```
pub fn authenticate(conn: &SyncConn, auth_token: &str) -> Result<()> {
    let auth_token = auth_token.to_owned();
    conn.run(|conn| async move { command::authenticate(&conn, &auth_token).await })
}

/// `ping`: keeps a quiet connection open. Reply within 5 s.
///
/// # Errors
/// As [`command::ping`].
///
/// # Examples
/// ```
/// # fn main() -> dflockd_client::Result<()> {
/// # use dflockd_client::blocking;
/// # use std::time::Duration;
/// # let conn = dflockd_client::test_util::TestServer::new().sync_conn();
/// blocking::ping(&conn)?;
/// # Ok(()) }
/// ```
pub fn ping(conn: &SyncConn) -> Result<()> {
    conn.run(|conn| async move { command::ping(&conn).await })
}

/// `stats`: returns what the server holds now. Reply within 5 s.
///
/// # Errors
/// As [`command::stats`].
///
/// # Examples
/// ```
/// # fn main() -> dflockd_client::Result<()> {
/// # use dflockd_client::blocking;
/// # use std::time::Duration;
/// # let conn = dflockd_client::test_util::TestServer::new().sync_conn();
/// assert_eq!(blocking::stats(&conn)?.connections, 1);
/// # Ok(()) }
/// ```
pub fn stats(conn: &SyncConn) -> Result<StatsResult> {
    conn.run(|conn| async move { command::stats(&conn).await })
}

/// `l`: acquires the lock, and waits up to `timeout` (0 is a try). Reply within `timeout` + 1 s.
///
/// # Errors
/// As [`command::acquire`].
///
/// # Examples
/// ```
/// # fn main() -> dflockd_client::Result<()> {
/// # use dflockd_client::blocking;
/// # use std::time::Duration;
/// # let conn = dflockd_client::test_util::TestServer::new().sync_conn();
/// let grant = blocking::acquire(&conn, "job", Duration::from_secs(5), None)?;
/// assert_eq!(grant.lease, Duration::from_secs(33)); // the server's default
/// # Ok(()) }
/// ```
pub fn acquire(conn: &SyncConn, key: &str, timeout: Duration, lease: Option<Duration>) -> Result<Grant> {
    let key = key.to_owned();
    conn.run(|conn| async move { command::acquire(&conn, &key, timeout, lease).await })
}

/// `e`: acquires the lock or a place in its queue. Reply within 5 s.
///
/// # Errors
/// As [`command::enqueue`].
///
/// # Examples
/// ```
/// # fn main() -> dflockd_client::Result<()> {
/// # use dflockd_client::blocking;
/// # use std::time::Duration;
/// # let conn = dflockd_client::test_util::TestServer::new().sync_conn();
/// let enqueued = blocking::enqueue(&conn, "job", None)?;
/// assert!(matches!(enqueued, dflockd_client::command::Enqueued::Acquired(_)));
/// # Ok(()) }
/// ```
pub fn enqueue(conn: &SyncConn, key: &str, lease: Option<Duration>) -> Result<Enqueued> {
    let key = key.to_owned();
    conn.run(|conn| async move { command::enqueue(&conn, &key, lease).await })
}

/// `w`: waits up to `timeout` for the grant of an enqueued key. Reply within `timeout` + 1 s.
///
/// # Errors
/// As [`command::wait`].
///
/// # Examples
/// ```
/// # fn main() -> dflockd_client::Result<()> {
/// # use dflockd_client::blocking;
/// # use std::time::Duration;
/// # let conn = dflockd_client::test_util::TestServer::new().sync_conn();
/// let first = blocking::acquire(&conn, "job", Duration::ZERO, None)?;
/// blocking::enqueue(&conn, "job", None)?;
/// blocking::release(&conn, "job", &first.token)?;
/// let second = blocking::wait(&conn, "job", Duration::from_secs(5))?;
/// assert!(second.token.fence() > first.token.fence());
/// # Ok(()) }
/// ```
pub fn wait(conn: &SyncConn, key: &str, timeout: Duration) -> Result<Grant> {
    let key = key.to_owned();
    conn.run(|conn| async move { command::wait(&conn, &key, timeout).await })
}

/// `r`: releases the lock, over any connection. Reply within 5 s.
///
/// # Errors
/// As [`command::release`].
///
/// # Examples
/// ```
/// # fn main() -> dflockd_client::Result<()> {
/// # use dflockd_client::blocking;
/// # use std::time::Duration;
/// # let conn = dflockd_client::test_util::TestServer::new().sync_conn();
/// let grant = blocking::acquire(&conn, "job", Duration::ZERO, None)?;
/// blocking::release(&conn, "job", &grant.token)?;
/// # Ok(()) }
/// ```
pub fn release(conn: &SyncConn, key: &str, token: &Token) -> Result<()> {
    let (key, token) = (key.to_owned(), token.clone());
    conn.run(|conn| async move { command::release(&conn, &key, &token).await })
}

/// `n`: renews the lease, which counts from now, and returns its length; over any connection. Reply within
/// 5 s. Without a `lease` the server uses its own default.
///
/// # Errors
/// As [`command::renew`].
///
/// # Examples
/// ```
/// # fn main() -> dflockd_client::Result<()> {
/// # use dflockd_client::blocking;
/// # use std::time::Duration;
/// # let conn = dflockd_client::test_util::TestServer::new().sync_conn();
/// let grant = blocking::acquire(&conn, "job", Duration::ZERO, None)?;
/// let minute = Duration::from_secs(60);
/// assert_eq!(blocking::renew(&conn, "job", &grant.token, Some(minute))?, minute);
/// # Ok(()) }
/// ```
pub fn renew(conn: &SyncConn, key: &str, token: &Token, lease: Option<Duration>) -> Result<Duration> {
    let (key, token) = (key.to_owned(), token.clone());
    conn.run(|conn| async move { command::renew(&conn, &key, &token, lease).await })
}

/// `sl`: acquires one of `limit` slots, and waits up to `timeout`. Reply within `timeout` + 1 s.
///
/// # Errors
/// As [`command::sem_acquire`].
///
/// # Examples
/// ```
/// # fn main() -> dflockd_client::Result<()> {
/// # use dflockd_client::blocking;
/// # use std::time::Duration;
/// # let conn = dflockd_client::test_util::TestServer::new().sync_conn();
/// let slot = blocking::sem_acquire(&conn, "exports", Duration::ZERO, 3, None)?;
/// blocking::sem_release(&conn, "exports", &slot.token)?;
/// # Ok(()) }
/// ```
pub fn sem_acquire(
    conn: &SyncConn,
    key: &str,
    timeout: Duration,
    limit: u64,
    lease: Option<Duration>,
) -> Result<Grant> {
    let key = key.to_owned();
    conn.run(|conn| async move { command::sem_acquire(&conn, &key, timeout, limit, lease).await })
}

/// `se`: acquires one of `limit` slots or a place in the queue. Reply within 5 s.
///
/// # Errors
/// As [`command::sem_enqueue`].
///
/// # Examples
/// ```
/// # fn main() -> dflockd_client::Result<()> {
/// # use dflockd_client::blocking;
/// # use std::time::Duration;
/// # let conn = dflockd_client::test_util::TestServer::new().sync_conn();
/// let enqueued = blocking::sem_enqueue(&conn, "exports", 3, None)?;
/// assert!(matches!(enqueued, dflockd_client::command::Enqueued::Acquired(_)));
/// # Ok(()) }
/// ```
pub fn sem_enqueue(conn: &SyncConn, key: &str, limit: u64, lease: Option<Duration>) -> Result<Enqueued> {
    let key = key.to_owned();
    conn.run(|conn| async move { command::sem_enqueue(&conn, &key, limit, lease).await })
}

/// `sw`: [`wait`] for a semaphore.
///
/// # Errors
/// As [`command::sem_wait`].
///
/// # Examples
/// ```
/// # fn main() -> dflockd_client::Result<()> {
/// # use dflockd_client::blocking;
/// # use std::time::Duration;
/// # let conn = dflockd_client::test_util::TestServer::new().sync_conn();
/// let first = blocking::sem_acquire(&conn, "exports", Duration::ZERO, 1, None)?;
/// blocking::sem_enqueue(&conn, "exports", 1, None)?;
/// blocking::sem_release(&conn, "exports", &first.token)?;
/// let second = blocking::sem_wait(&conn, "exports", Duration::from_secs(5))?;
/// assert_ne!(second.token, first.token);
/// # Ok(()) }
/// ```
pub fn sem_wait(conn: &SyncConn, key: &str, timeout: Duration) -> Result<Grant> {
    let key = key.to_owned();
    conn.run(|conn| async move { command::sem_wait(&conn, &key, timeout).await })
}

/// `sr`: [`release`] for a semaphore.
///
/// # Errors
/// As [`command::sem_release`].
///
/// # Examples
/// ```
/// # fn main() -> dflockd_client::Result<()> {
/// # use dflockd_client::blocking;
/// # use std::time::Duration;
/// # let conn = dflockd_client::test_util::TestServer::new().sync_conn();
/// let slot = blocking::sem_acquire(&conn, "exports", Duration::ZERO, 3, None)?;
/// blocking::sem_release(&conn, "exports", &slot.token)?;
/// # Ok(()) }
/// ```
pub fn sem_release(conn: &SyncConn, key: &str, token: &Token) -> Result<()> {
    let (key, token) = (key.to_owned(), token.clone());
    conn.run(|conn| async move { command::sem_release(&conn, &key, &token).await })
}

/// `sn`: [`renew`] for a semaphore.
///
/// # Errors
/// As [`command::sem_renew`].
///
/// # Examples
/// ```
/// # fn main() -> dflockd_client::Result<()> {
/// # use dflockd_client::blocking;
/// # use std::time::Duration;
/// # let conn = dflockd_client::test_util::TestServer::new().sync_conn();
/// let slot = blocking::sem_acquire(&conn, "exports", Duration::ZERO, 3, None)?;
/// assert_eq!(blocking::sem_renew(&conn, "exports", &slot.token, None)?, slot.lease);
/// # Ok(()) }
/// ```
pub fn sem_renew(conn: &SyncConn, key: &str, token: &Token, lease: Option<Duration>) -> Result<Duration> {
    let (key, token) = (key.to_owned(), token.clone());
    conn.run(|conn| async move { command::sem_renew(&conn, &key, &token, lease).await })
}
