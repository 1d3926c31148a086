//! A connection for threads, which carries one command at a time.

use std::fmt;
use std::time::Duration;

use crate::backend::dflockd::AsyncConn;
use crate::blocking::runtime::Runtime;
use crate::error::{Error, Result};
use crate::net::Stream;

/// The async type of the same use, which a panic in async code names.
const ASYNC_COUNTERPART: &str = "AsyncConn";

/// A connection that threads may share: [`AsyncConn`] for threads. Commands take turns, so each request gets its
/// own reply. `SyncConn::from` converts an [`AsyncConn`].
///
/// ```
/// use std::time::Duration;
/// use dflockd_client::SyncConn;
/// # fn main() -> dflockd_client::Result<()> {
/// let server = tokio_test::io::Builder::new().write(b"ping\n_\n_\n").read(b"ok\n").build();
/// let conn = SyncConn::new(server);
/// let reply = conn.command("ping", "_", "_", Some(Duration::from_secs(5)))?;
/// assert_eq!(reply, "ok");
/// # Ok(()) }
/// ```
pub struct SyncConn {
    conn: AsyncConn,
    runtime: Runtime,
}

impl SyncConn {
    /// Wraps a stream on which nothing was sent yet.
    pub fn new(stream: impl Stream) -> Self {
        AsyncConn::new(stream).into()
    }

    /// Wraps a socket on which nothing was sent yet.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io) if the socket cannot be made non-blocking.
    ///
    /// # Panics
    /// In async code, as the [module](crate::blocking#panics) says.
    ///
    /// # Examples
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use dflockd_client::SyncConn;
    /// use std::io::{Read, Write};
    /// use std::net::{TcpListener, TcpStream};
    /// let listener = TcpListener::bind("127.0.0.1:0")?;
    /// let conn = SyncConn::from_std(TcpStream::connect(listener.local_addr()?)?)?;
    /// let (mut server, _) = listener.accept()?;
    /// server.write_all(b"unsolicited\n")?;
    /// conn.close();
    /// assert_eq!(server.read(&mut [0; 1])?, 0);
    /// # Ok(()) }
    /// ```
    pub fn from_std(stream: std::net::TcpStream) -> Result<Self> {
        Runtime::default().run(ASYNC_COUNTERPART, async {
            let stream = stream.set_nonblocking(true).and_then(|()| tokio::net::TcpStream::from_std(stream));
            stream.map(Self::new).map_err(|cause| Error::io("could not take the socket", cause))
        })
    }

    /// Sets the longest reply; see [`AsyncConn::max_reply`].
    pub fn max_reply(self, bytes: usize) -> Self {
        Self { conn: self.conn.max_reply(bytes), ..self }
    }

    /// Sets the longest reply to `stats`; see [`AsyncConn::max_stats_bytes`].
    pub fn max_stats_bytes(self, bytes: usize) -> Self {
        Self { conn: self.conn.max_stats_bytes(bytes), ..self }
    }

    /// Sets the timeout of requests that do not wait; see [`AsyncConn::request_timeout`].
    pub fn request_timeout(self, timeout: Duration) -> Self {
        Self { conn: self.conn.request_timeout(timeout), ..self }
    }

    /// Sends one request, any three lines, and reads its one reply line, without its line end.
    ///
    /// `read_timeout` covers writing and reading, not the wait for other threads' commands. `None`
    /// waits forever, unless another thread calls [`close`](Self::close) or
    /// [`shutdown_read`](Self::shutdown_read).
    ///
    /// # Errors
    /// As [`AsyncConn::command`].
    ///
    /// # Panics
    /// In async code, as the [module](crate::blocking#panics) says.
    pub fn command(&self, cmd: &str, key: &str, arg: &str, read_timeout: Option<Duration>) -> Result<String> {
        let (cmd, key, arg) = (cmd.to_owned(), key.to_owned(), arg.to_owned());
        self.run(|conn| async move { conn.command(&cmd, &key, &arg, read_timeout).await })
    }

    /// Closes the connection: a command in flight in another thread fails with
    /// [`ConnectionClosed`](crate::ErrorKind::ConnectionClosed), and later ones fail at once. Closing
    /// twice is no error.
    ///
    /// # Panics
    /// In async code, as the [module](crate::blocking#panics) says.
    ///
    /// # Examples
    /// ```
    /// # let server = dflockd_client::test_util::TestServer::new();
    /// let conn = server.sync_conn();
    /// conn.close();
    /// assert!(conn.command("ping", "_", "_", None).unwrap_err().is_unavailable());
    /// ```
    pub fn close(&self) {
        // If this fails, there is no runtime, and no command was ever sent.
        let _ = self.run(|conn| async move {
            conn.close().await;
            Ok(())
        });
    }

    /// Wakes a thread that waits for a reply: its command fails with
    /// [`ConnectionClosed`](crate::ErrorKind::ConnectionClosed), and later ones fail at once. Unlike
    /// [`close`](Self::close) it does not wait, and works in async code too.
    ///
    /// # Examples
    /// ```
    /// # let server = dflockd_client::test_util::TestServer::new();
    /// let (holder, conn) = (server.sync_conn(), server.sync_conn());
    /// holder.command("l", "job", "0", None)?;
    /// std::thread::scope(|threads| {
    ///     let waits = threads.spawn(|| conn.command("l", "job", "60", None));
    ///     conn.shutdown_read();
    ///     assert!(waits.join().expect("it does not panic").is_err());
    /// });
    /// # Ok::<(), dflockd_client::Error>(())
    /// ```
    pub fn shutdown_read(&self) {
        self.conn.interrupt();
    }

    /// Runs `work` on the connection, and blocks until it is done.
    pub(super) fn run<T, F>(&self, work: impl FnOnce(AsyncConn) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        self.runtime.run(ASYNC_COUNTERPART, work(self.conn.share()))
    }

    /// Opens a connection by running `open` on the hidden thread.
    pub(crate) fn open(open: impl Future<Output = Result<AsyncConn>> + Send + 'static) -> Result<Self> {
        Runtime::default().run(ASYNC_COUNTERPART, open).map(Self::from)
    }
}

impl From<AsyncConn> for SyncConn {
    fn from(conn: AsyncConn) -> Self {
        Self { conn, runtime: Runtime::default() }
    }
}

impl fmt::Debug for SyncConn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SyncConn").finish_non_exhaustive()
    }
}
