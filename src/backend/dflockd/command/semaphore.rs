//! The commands for semaphores: those for locks, with a limit.

use std::time::Duration;

use crate::backend::dflockd::command::{acquire_any, enqueue_any, release_any, renew_any, wait_any};
use crate::backend::dflockd::conn::AsyncConn;
use crate::backend::dflockd::replies::{Enqueued, Grant};
use crate::error::Result;
use crate::proto::Family;
use crate::types::{Limit, Token};

/// `sl`: takes one of `limit` slots, waiting up to `timeout`. Reply within `timeout` + 1 s.
///
/// # Errors
/// As [`acquire`](super::acquire).
///
/// # Examples
/// ```
/// # use dflockd_client::{AsyncConn, command, test_util::TestServer};
/// # use std::time::Duration;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
/// # let conn = TestServer::new().conn();
/// let slot = command::sem_acquire(&conn, "exports", Duration::ZERO, 3, None).await?;
/// command::sem_release(&conn, "exports", &slot.token).await?;
/// # Ok(()) }
/// ```
pub async fn sem_acquire(
    conn: &AsyncConn,
    key: &str,
    timeout: Duration,
    limit: u64,
    lease: Option<Duration>,
) -> Result<Grant> {
    acquire_any(conn, key, timeout, Some(Limit::new(limit)?), lease).await
}

/// `se`: takes one of `limit` slots or a place in the wait queue, without waiting. Reply within 5 s.
///
/// # Errors
/// As [`enqueue`](super::enqueue).
///
/// # Examples
/// ```
/// # use dflockd_client::{AsyncConn, command, test_util::TestServer};
/// # use std::time::Duration;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
/// # let conn = TestServer::new().conn();
/// use command::Enqueued;
/// let place = command::sem_enqueue(&conn, "exports", 3, None).await?;
/// assert!(matches!(place, Enqueued::Acquired(_)));
/// # Ok(()) }
/// ```
pub async fn sem_enqueue(
    conn: &AsyncConn,
    key: &str,
    limit: u64,
    lease: Option<Duration>,
) -> Result<Enqueued> {
    enqueue_any(conn, key, Some(Limit::new(limit)?), lease).await
}

/// `sw`: waits for a slot, as [`wait`](super::wait) does for a lock.
///
/// # Errors
/// As [`wait`](super::wait).
///
/// # Examples
/// ```
/// # use dflockd_client::{AsyncConn, command, test_util::TestServer};
/// # use std::time::Duration;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
/// # let conn = TestServer::new().conn();
/// command::sem_enqueue(&conn, "exports", 3, None).await?;
/// let slot = command::sem_wait(&conn, "exports", Duration::from_secs(5)).await?;
/// command::sem_release(&conn, "exports", &slot.token).await?;
/// # Ok(()) }
/// ```
pub async fn sem_wait(conn: &AsyncConn, key: &str, timeout: Duration) -> Result<Grant> {
    wait_any(conn, key, timeout, Family::Semaphore).await
}

/// `sr`: releases a slot, as [`release`](super::release) does a lock.
///
/// # Errors
/// As [`release`](super::release).
///
/// # Examples
/// ```
/// # use dflockd_client::{AsyncConn, command, test_util::TestServer};
/// # use std::time::Duration;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
/// # let conn = TestServer::new().conn();
/// let slot = command::sem_acquire(&conn, "exports", Duration::ZERO, 3, None).await?;
/// command::sem_release(&conn, "exports", &slot.token).await?;
/// # Ok(()) }
/// ```
pub async fn sem_release(conn: &AsyncConn, key: &str, token: &Token) -> Result<()> {
    release_any(conn, key, token, Family::Semaphore).await
}

/// `sn`: renews the lease of a slot, as [`renew`](super::renew) does that of a lock.
///
/// # Errors
/// As [`renew`](super::renew).
///
/// # Examples
/// ```
/// # use dflockd_client::{AsyncConn, command, test_util::TestServer};
/// # use std::time::Duration;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
/// # let conn = TestServer::new().conn();
/// let slot = command::sem_acquire(&conn, "exports", Duration::ZERO, 3, None).await?;
/// let lease = command::sem_renew(&conn, "exports", &slot.token, None).await?;
/// assert_eq!(lease, Duration::from_secs(33)); // the server's default
/// # Ok(()) }
/// ```
pub async fn sem_renew(
    conn: &AsyncConn,
    key: &str,
    token: &Token,
    lease: Option<Duration>,
) -> Result<Duration> {
    renew_any(conn, key, token, lease, Family::Semaphore).await
}
