//! The embedded server: speaks the dflockd protocol, in this process (for tests, development and
//! single-node production) or as the `dflockd` binary. Knows nothing of the client.
//!
//! [`Server::bind`] listens on all addresses of a host, [`Server::run`] serves them, and
//! [`Server::reload`] reads certificate and auth token anew. What it does is logged by `tracing`;
//! warnings that peers can cause have a rate: of each kind (refused connections, failed handshakes
//! and authentications) the first five at once, then every ten seconds their number and one more in
//! full. A system that lets nobody in, for want of open files, is warned of once, then by number.
//! A subscriber that blocks, blocks the server: `dflockd` brings one that does not.

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

/// A lock server. Cheap to clone; clones are the same server.
///
/// All its timers are tokio's, so a test with paused time drives it.
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
    /// A server without a socket, for [`serve`](Self::serve) and [`serve_stream`](Self::serve_stream).
    ///
    /// # Errors
    /// A setting that cannot work ([`InvalidInput`](crate::ErrorKind::InvalidInput)); a file that
    /// cannot be read ([`Io`](crate::ErrorKind::Io), [`Tls`](crate::ErrorKind::Tls)).
    pub fn new(config: ServerConfig) -> Result<Self> {
        Ok(Self { shared: ServerShared::new(config)?, listener: Arc::default(), addresses: Arc::default() })
    }

    /// A server that listens on the configured host and port.
    ///
    /// A host that is a name is listened on at all its addresses: `localhost` is `127.0.0.1` and
    /// `::1`. IPv6 addresses may stand in brackets. An empty host is every interface, of IPv4 and
    /// IPv6, and so is `::`; `0.0.0.0` is every interface of IPv4. Of several addresses, those that
    /// the machine does not have are passed over, which is logged, as long as one works. All have the
    /// same port; port 0 picks a free one.
    ///
    /// # Errors
    /// As [`new`](Self::new); [`Io`](crate::ErrorKind::Io) when the host cannot be resolved or an
    /// address cannot be listened on, which the text names.
    pub async fn bind(config: ServerConfig) -> Result<Self> {
        let (host, port) = (config.host.clone(), config.port);
        let mut server = Self::new(config)?;
        let listeners = Listeners::bind(&host, port).await?;
        server.addresses = listeners.addresses()?.into();
        server.listener = Arc::new(Mutex::new(Some(listeners)));
        Ok(server)
    }

    /// The address that a bound server listens on; the first, if there are several.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.addresses.first().copied()
    }

    /// All addresses that a bound server listens on, with one port. Empty if it is not bound.
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

    /// Serves the bound addresses until `shutdown` resolves, then stops gracefully: nothing more is
    /// granted, holders may let go, and after the shutdown timeout all connections are closed.
    ///
    /// Returns at once on a server that is not bound or runs already.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) {
        // Nothing panics while the slot is locked.
        let listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(listener) = listener {
            self.serve(listener, shutdown).await;
        }
    }

    /// [`run`](Self::run) over any listener.
    pub async fn serve(&self, listener: impl Listen, shutdown: impl Future<Output = ()> + Send) {
        accept::serve(&self.shared, listener, shutdown).await;
    }

    /// Serves one stream that is open already, such as a duplex pipe, until it ends. TLS, where it
    /// is configured, is up to the caller.
    pub async fn serve_stream(&self, stream: impl Stream) {
        connection::serve(self.shared.clone(), stream).await;
    }

    /// Reads the files of `tls_cert`, `tls_key` and `auth_token_file` anew, as `dflockd` does when it
    /// gets SIGHUP. What was read is in force for every connection that comes later, all in one
    /// step; open connections, and what they hold, stay as they are.
    ///
    /// What cannot be read, the certificate with its key or the token, stays as it was, and the log
    /// says why. A file that is no regular one, such as a pipe, is not read again. Without such
    /// settings there is nothing to do.
    ///
    /// # Cancel safety
    /// The files are read in the background, also if the future is dropped.
    ///
    /// # Errors
    /// As [`new`](Self::new), for the first thing that could not be read; the other may have been.
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
        // A file may be on a disk that takes its time, or never answers.
        let reading = tokio::task::spawn_blocking(move || shared.reload_credentials());
        let failed = |cause| Error::new(ErrorKind::Io, "could not read the files anew").caused_by(cause);
        reading.await.map_err(failed)?
    }

    /// Begins the graceful stop that [`serve`](Self::serve) ends with.
    #[cfg(feature = "test-util")]
    pub(crate) fn drain(&self) {
        self.shared.begin_drain();
        let shared = self.shared.clone();
        tokio::spawn(async move { accept::stop(&shared).await });
    }

    /// Ends every connection, as the end of the process does.
    #[cfg(feature = "test-util")]
    pub(crate) fn crash(&self) {
        self.shared.lifecycle.advance(lifecycle::ServerState::Stopped);
    }

    /// Takes the key from everyone who holds it, and tells how many did.
    #[cfg(feature = "test-util")]
    pub(crate) fn revoke(&self, key: &crate::types::Key) -> usize {
        self.shared.with_table(|table, now| table.revoke(now, key))
    }

    /// What the server holds right now.
    pub fn stats(&self) -> StatsResult {
        self.shared.stats()
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}
