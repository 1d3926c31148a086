//! The embedded server: speaks the dflockd protocol, in this process (for tests, development and
//! single-node production) or as the `dflockd` binary. Does not depend on the client.
//!
//! [`Server::bind`] listens on all addresses of a host, [`Server::run`] serves them, and [`Server::reload`]
//! reads certificate and auth token again. The server logs through `tracing`. Warnings that peers can cause
//! have a rate limit: of each kind (refused connections, failed handshakes, failed authentications), the
//! first five are logged at once, then every ten seconds their number and one more in full. If the system
//! cannot accept connections, for example because no file is left, one warning is logged at once, then
//! their number. A subscriber that blocks also blocks the server; that of `dflockd` never blocks.

mod accept;
mod bind;
mod config;
mod connection;
mod credentials;
pub mod fence;
mod lifecycle;
mod shared;
mod stats;
pub mod table;
mod warnings;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, ErrorKind, Result};
use crate::net::{Listen, Stream};
use crate::proto::StatsResult;
use bind::Listeners;
use shared::ServerShared;

pub use config::ServerConfig;

/// A lock server. Cheap to clone; all clones share one server.
///
/// All timers are tokio's, so a test with paused time drives them.
///
/// ```
/// use dflockd_client::server::{Server, ServerConfig};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
/// let server = Server::bind(ServerConfig { port: 0, ..Default::default() }).await?;
/// let address = server.local_addr().expect("a bound server has an address");
/// let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
/// let running = tokio::spawn(server.clone().run(async { drop(stopped.await) }));
/// // Clients may use `address` now.
/// assert_eq!(server.stats().connections, 0);
/// drop(stop);
/// running.await.expect("the server does not panic");
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Server {
    shared: Arc<ServerShared>,
    listener: Arc<Mutex<Option<Listeners>>>,
    addresses: Arc<[SocketAddr]>,
}

impl Server {
    /// Creates a server without a socket, for [`serve`](Self::serve) and
    /// [`serve_stream`](Self::serve_stream).
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) if a setting is invalid;
    /// [`Io`](crate::ErrorKind::Io) or [`Tls`](crate::ErrorKind::Tls) if a file cannot be read.
    pub fn new(config: ServerConfig) -> Result<Self> {
        Ok(Self { shared: ServerShared::new(config)?, listener: Arc::default(), addresses: Arc::default() })
    }

    /// Creates a server that listens on the configured host and port.
    ///
    /// A name stands for all its addresses: `localhost` for `127.0.0.1` and `::1`. IPv6 addresses may be in
    /// brackets. An empty host and `::` stand for every interface, of IPv4 and IPv6; `0.0.0.0` for every
    /// interface of IPv4. Addresses that the machine lacks are logged and skipped, as long as one can be
    /// bound. All addresses use the same port; port 0 picks a free one.
    ///
    /// # Cancel safety
    /// If the future is dropped, the server does not listen. A background thread reads the files, and reads
    /// the current one, which may be a pipe, to its end all the same.
    ///
    /// # Errors
    /// As for [`new`](Self::new); [`Io`](crate::ErrorKind::Io) if the host cannot be resolved or an address
    /// cannot be bound. The text names it.
    pub async fn bind(config: ServerConfig) -> Result<Self> {
        let (host, port) = (config.host.clone(), config.port);
        // A file may be a pipe without a writer, or on a disk that never replies.
        let mut server = in_background("could not read the files", move || Self::new(config)).await?;
        let listeners = Listeners::bind(&host, port).await?;
        server.addresses = listeners.addresses()?.into();
        server.listener = Arc::new(Mutex::new(Some(listeners)));
        Ok(server)
    }

    /// Returns the first address that the server listens on, or `None` if it is not bound.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.addresses.first().copied()
    }

    /// Returns all addresses that the server listens on, all with one port. Empty if it is not bound.
    ///
    /// ```
    /// use dflockd_client::server::{Server, ServerConfig};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
    /// let config = ServerConfig { host: "localhost".into(), port: 0, ..Default::default() };
    /// let server = Server::bind(config).await?;
    /// for address in server.local_addrs() {
    ///     assert!(address.ip().is_loopback());
    ///     assert_eq!(address.port(), server.local_addr().unwrap().port());
    /// }
    /// # Ok(()) }
    /// ```
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Serves the bound addresses until `shutdown` resolves, then stops gracefully: it grants nothing more,
    /// waits for holders to release, and after the shutdown timeout closes all connections.
    ///
    /// Returns at once if the server is not bound or already runs.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) {
        // Never poisoned: no code panics while it holds the lock.
        let listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(listener) = listener {
            self.serve(listener, shutdown).await;
        }
    }

    /// Serves connections from any listener until `shutdown` resolves, then stops as [`run`](Self::run)
    /// does.
    pub async fn serve(&self, listener: impl Listen, shutdown: impl Future<Output = ()> + Send) {
        accept::serve(&self.shared, listener, shutdown).await;
    }

    /// Serves one open stream, such as a duplex pipe, until it ends. The caller does the TLS handshake, if
    /// TLS is configured.
    pub async fn serve_stream(&self, stream: impl Stream) {
        connection::serve(self.shared.clone(), stream).await;
    }

    /// Reads the files of `tls_cert`, `tls_key` and `auth_token_file` again, as `dflockd` does on SIGHUP.
    /// All later connections see the new values, in one step. Open connections, and what they hold, stay as
    /// they are.
    ///
    /// If the certificate with its key, or the token, cannot be read, it stays as it was, and the cause is
    /// logged. A file that is not a regular file, such as a pipe, is not read again. If none of these
    /// settings is set, this does nothing.
    ///
    /// # Cancel safety
    /// The files are read in the background, even if the future is dropped.
    ///
    /// # Errors
    /// As for [`new`](Self::new), for the first file that could not be read. The other may have been
    /// reloaded.
    ///
    /// ```
    /// # use dflockd_client::server::{Server, ServerConfig};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let directory = tempfile::tempdir()?;
    /// let file = directory.path().join("token");
    /// std::fs::write(&file, "old")?;
    /// let server = Server::new(ServerConfig { auth_token_file: Some(file.clone()), ..Default::default() })?;
    /// std::fs::write(&file, "new")?;
    /// server.reload().await?;
    /// # Ok(()) }
    /// ```
    pub async fn reload(&self) -> Result<()> {
        let shared = self.shared.clone();
        in_background("could not reload the files", move || shared.reload_credentials()).await
    }

    /// Begins the graceful stop that [`serve`](Self::serve) ends with.
    #[cfg(feature = "test-util")]
    pub(crate) fn drain(&self) {
        self.shared.begin_drain();
        let shared = self.shared.clone();
        tokio::spawn(async move { accept::stop(&shared).await });
    }

    /// Ends every connection at once, as the end of the process does.
    #[cfg(feature = "test-util")]
    pub(crate) fn crash(&self) {
        self.shared.lifecycle.advance(lifecycle::ServerState::Stopped);
    }

    /// Takes the key from all its holders, and returns their number.
    #[cfg(feature = "test-util")]
    pub(crate) fn revoke(&self, key: &crate::types::Key) -> usize {
        self.shared.with_table(|table, now| table.revoke(now, key))
    }

    /// Returns what the server holds right now.
    pub fn stats(&self) -> StatsResult {
        self.shared.stats()
    }
}

/// Reads files on a thread that may wait, and goes on reading if the future is dropped.
async fn in_background<T: Send + 'static>(
    fault: &'static str,
    read: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let failed = |cause| Error::new(ErrorKind::Io, fault).caused_by(cause);
    tokio::task::spawn_blocking(read).await.map_err(failed)?
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}
