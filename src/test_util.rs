//! A lock server inside a test: reached by pipes instead of sockets, so that paused time drives
//! leases and nothing needs a free port. For the tests of services that hold leases, and for this
//! crate's own. The one room that joins the client and the server.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::BoxFuture;
use tokio::io::DuplexStream;
use tokio::task::AbortHandle;

use crate::client::{AsyncConn, Builder, ClientTarget, LockClient};
use crate::error::Result;
use crate::net::{BoxStream, Dial};
use crate::server::{Server, ServerConfig};

/// How much a pipe holds, each way.
const PIPE_BYTES: usize = 64 * 1024;

/// An embedded server with a network that can be cut. Cheap to clone; clones are the same server.
///
/// ```
/// use std::time::Duration;
/// use dflockd_client::{LostReason, Outcome, test_util::TestServer};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
/// // In a test of yours: #[tokio::test(start_paused = true)]
/// let server = TestServer::new();
/// let locks = server.locks();
/// let guard = locks.lock("job")?.acquire().await?;
/// server.cut(); // what does the service do when its lease is lost?
/// let outcome = guard.run(std::future::pending::<()>()).await;
/// assert_eq!(outcome, Outcome::Lost(LostReason::ConnectionClosed));
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct TestServer {
    server: Server,
    connections: Arc<Mutex<Vec<AbortHandle>>>,
}

impl TestServer {
    /// A server with default settings.
    pub fn new() -> Self {
        Self::with(ServerConfig::default()).expect("the defaults are valid")
    }

    /// A server with these settings; its address and TLS are of no concern here.
    ///
    /// # Errors
    /// As [`Server::new`].
    pub fn with(config: ServerConfig) -> Result<Self> {
        Ok(Self { server: Server::new(config)?, connections: Arc::default() })
    }

    /// A client of this server with default settings.
    pub fn locks(&self) -> LockClient {
        self.builder().build().expect("the defaults are valid")
    }

    /// The builder of a client of this server.
    pub fn builder(&self) -> Builder<ClientTarget> {
        LockClient::builder().dial(self.clone())
    }

    /// A bare connection to this server, for the functions of [`command`](crate::command).
    pub fn conn(&self) -> AsyncConn {
        AsyncConn::new(self.open())
    }

    /// The server itself, for its [`stats`](Server::stats).
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Cuts every connection that is open now. New ones work.
    pub fn cut(&self) {
        self.connections().drain(..).for_each(|connection| connection.abort());
    }

    fn open(&self) -> DuplexStream {
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        let server = self.server.clone();
        let serving = tokio::spawn(async move { server.serve_stream(far).await });
        let mut connections = self.connections();
        connections.retain(|connection| !connection.is_finished());
        connections.push(serving.abort_handle());
        near
    }

    fn connections(&self) -> std::sync::MutexGuard<'_, Vec<AbortHandle>> {
        // Nothing panics while the list is locked.
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for TestServer {
    fn default() -> Self {
        Self::new()
    }
}

/// Dials this server, whatever the address.
impl Dial for TestServer {
    fn dial<'a>(&'a self, _host: &'a str, _port: u16) -> BoxFuture<'a, io::Result<BoxStream>> {
        let near = self.open();
        Box::pin(async { Ok(Box::new(near) as BoxStream) })
    }
}

impl fmt::Debug for TestServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestServer").field("stats", &self.server.stats()).finish_non_exhaustive()
    }
}
