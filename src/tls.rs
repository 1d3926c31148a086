//! TLS over any stream: rustls configs from PEM, and the two handshakes. Certificates are read once, when
//! a config is built.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::ServerName;
use rustls::server::WebPkiClientVerifier;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// The TLS library that configs are made with, in the version that this crate uses.
pub use tokio_rustls::rustls;

use crate::error::{Error, ErrorKind, Result, quoted};
use crate::net::BoxStream;
use crate::tls::alert_stream::AlertStream;
use crate::tls::error::Side;
use crate::tls::pem::{Identity, Pem};

mod alert_stream;
mod error;
mod mangled;
mod pem;

/// The TLS settings of a client: the CAs that it trusts, its certificate, the name that it expects. Cheap
/// to clone.
///
/// ```no_run
/// use dflockd_client::tls::ClientTls;
/// # fn main() -> dflockd_client::Result<()> {
/// let tls = ClientTls::builder().ca_file("ca.pem").build()?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct ClientTls {
    config: Arc<rustls::ClientConfig>,
    server_name: Option<ServerName<'static>>,
}

impl ClientTls {
    /// Starts with no CA, no client certificate, and the host of the connection as the name to expect.
    pub fn builder() -> ClientTlsBuilder {
        ClientTlsBuilder::default()
    }

    /// Uses a config as it is: for the system's roots, or a custom verifier or provider.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use dflockd_client::tls::{ClientTls, rustls};
    ///
    /// let roots = rustls::RootCertStore::empty(); // filled from the system's store
    /// let ring = Arc::new(rustls::crypto::ring::default_provider());
    /// let config = rustls::ClientConfig::builder_with_provider(ring)
    ///     .with_safe_default_protocol_versions()?
    ///     .with_root_certificates(roots)
    ///     .with_no_client_auth();
    /// let tls = ClientTls::from_config(Arc::new(config)).with_server_name("locks.example")?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn from_config(config: Arc<rustls::ClientConfig>) -> Self {
        Self { config, server_name: None }
    }

    /// Expects a certificate for `name`, a DNS name or an IP address, for every host.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if `name` is neither.
    pub fn with_server_name(mut self, name: &str) -> Result<Self> {
        self.server_name = Some(parse_name(name)?);
        Ok(self)
    }

    /// Performs the client's side of the handshake on `stream`, which is connected to `host`.
    ///
    /// Has no timeout: a silent peer keeps it waiting. A server that requires another client certificate
    /// can refuse only after a TLS 1.3 handshake, so that failure may come with the first read instead,
    /// inside an [`io::Error`](std::io::Error).
    ///
    /// # Cancel safety
    /// Dropping the future drops `stream` and with it the connection.
    ///
    /// # Errors
    /// [`ErrorKind::Tls`] if the handshake fails; the text has the reason: a certificate that is not of a
    /// given CA, for another name or out of date, a client certificate that the server misses or refuses,
    /// a peer that does not speak TLS. [`ErrorKind::InvalidInput`] if `host` is not a name that a
    /// certificate can have.
    pub async fn connect(&self, host: &str, stream: BoxStream) -> Result<BoxStream> {
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => parse_name(host)?,
        };
        let side = Side::Client { has_certificate: self.config.client_auth_cert_resolver.has_certs() };
        match TlsConnector::from(self.config.clone()).connect(name, stream).await {
            Ok(stream) => Ok(Box::new(AlertStream { stream, side })),
            Err(cause) => Err(side.explain(cause)),
        }
    }
}

/// Shows only the name to expect: keys and certificates stay out of logs.
impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

/// Settings of a [`ClientTls`]. Files are read by [`build`](Self::build).
#[derive(Clone, Default)]
#[must_use = "settings do nothing until `build`"]
pub struct ClientTlsBuilder {
    ca: Vec<Pem>,
    identity: Option<Identity>,
    server_name: Option<String>,
}

impl ClientTlsBuilder {
    /// Trusts the CA certificates in this PEM file, in addition to those given before. A server's
    /// self-signed certificate may be here too, unless it is marked as a CA's. Defaults to none.
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.ca.push(Pem::File(path.into()));
        self
    }

    /// Trusts the CA certificates in this PEM text, in addition to those given before. Defaults to none.
    pub fn ca_pem(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.ca.push(Pem::Bytes(pem.into()));
        self
    }

    /// Shows the server this certificate (its chain, leaf first) when it asks, from PEM files.
    /// Defaults to none.
    pub fn client_cert_files(mut self, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.identity = Some(Identity { cert: Pem::File(cert.into()), key: Pem::File(key.into()) });
        self
    }

    /// Shows the server this certificate (its chain, leaf first) when it asks, from PEM text.
    /// Defaults to none.
    pub fn client_cert_pem(mut self, cert: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.identity = Some(Identity { cert: Pem::Bytes(cert.into()), key: Pem::Bytes(key.into()) });
        self
    }

    /// Expects a certificate for this DNS name or IP address. Defaults to the host of the connection.
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// Reads the files and builds the config: TLS 1.2 or later, by the ring provider.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if a file cannot be read or is longer than 4 MiB; [`ErrorKind::InvalidInput`] if no CA is
    /// given, a PEM holds no certificate or key or one that cannot be used, the key is another
    /// certificate's, or the server name is neither a DNS name nor an IP address.
    pub fn build(self) -> Result<ClientTls> {
        if self.ca.is_empty() {
            let fault =
                "no ca to trust: give ca_file or ca_pem, or take the system's by ClientTls::from_config";
            return Err(Error::new(ErrorKind::InvalidInput, fault));
        }
        let builder = rustls::ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_root_certificates(pem::roots(&self.ca)?);
        let config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let (chain, key) = identity.read()?;
                builder.with_client_auth_cert(chain, key).map_err(|cause| identity.unusable(cause))?
            }
        };
        let tls = ClientTls::from_config(Arc::new(config));
        match self.server_name {
            Some(name) => tls.with_server_name(&name),
            None => Ok(tls),
        }
    }
}

/// Shows paths and the name to expect, but no key, even if it was given to another setting.
impl fmt::Debug for ClientTlsBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTlsBuilder")
            .field("ca", &self.ca)
            .field("identity", &self.identity)
            .field("server_name", &self.server_name.as_deref().map(quoted))
            .finish()
    }
}

/// The TLS settings of a server: its certificate, and the CAs of the certificates that its clients must
/// present. Cheap to clone.
///
/// ```no_run
/// use dflockd_client::tls::ServerTls;
/// # fn main() -> dflockd_client::Result<()> {
/// let tls = ServerTls::from_pem_files("server.pem", "server.key")?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct ServerTls {
    config: Arc<rustls::ServerConfig>,
}

impl ServerTls {
    /// Shows this certificate (its chain, leaf first) and asks clients for none.
    ///
    /// # Errors
    /// As [`ServerTlsBuilder::build`].
    pub fn from_pem_files(cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Result<Self> {
        Self::builder().cert_files(cert, key).build()
    }

    /// Shows this certificate (its chain, leaf first) and asks clients for none.
    ///
    /// # Errors
    /// As [`ServerTlsBuilder::build`].
    pub fn from_pem(cert: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Result<Self> {
        Self::builder().cert_pem(cert, key).build()
    }

    /// Starts with no certificate, and asks clients for none.
    pub fn builder() -> ServerTlsBuilder {
        ServerTlsBuilder::default()
    }

    /// Uses a config as it is.
    pub fn from_config(config: Arc<rustls::ServerConfig>) -> Self {
        Self { config }
    }

    /// Performs the server's side of the handshake on `stream`.
    ///
    /// Has no timeout: a silent peer keeps it waiting.
    ///
    /// # Cancel safety
    /// Dropping the future drops `stream` and with it the connection.
    ///
    /// # Errors
    /// [`ErrorKind::Tls`] if the handshake fails; the text has the reason: a client that presents no
    /// certificate or not one of the given CA, that refuses the server's, or does not speak TLS.
    pub async fn accept(&self, stream: BoxStream) -> Result<BoxStream> {
        match TlsAcceptor::from(self.config.clone()).accept(stream).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(cause) => Err(Side::Server.explain(cause)),
        }
    }
}

/// Shows nothing: keys and certificates stay out of logs.
impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").finish_non_exhaustive()
    }
}

/// Settings of a [`ServerTls`]. Files are read by [`build`](Self::build).
#[derive(Clone, Debug, Default)]
#[must_use = "settings do nothing until `build`"]
pub struct ServerTlsBuilder {
    identity: Option<Identity>,
    client_ca: Vec<Pem>,
}

impl ServerTlsBuilder {
    /// The server's certificate (its chain, leaf first) and key, in PEM files. Must be given.
    pub fn cert_files(mut self, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.identity = Some(Identity { cert: Pem::File(cert.into()), key: Pem::File(key.into()) });
        self
    }

    /// The server's certificate (its chain, leaf first) and key, as PEM text. Must be given.
    pub fn cert_pem(mut self, cert: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.identity = Some(Identity { cert: Pem::Bytes(cert.into()), key: Pem::Bytes(key.into()) });
        self
    }

    /// Turns away clients that show no certificate of a CA in this PEM file, or of one given
    /// before. Defaults to asking for none.
    pub fn client_ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.client_ca.push(Pem::File(path.into()));
        self
    }

    /// Turns away clients that show no certificate of a CA in this PEM text, or of one given
    /// before. Defaults to asking for none.
    pub fn client_ca_pem(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.client_ca.push(Pem::Bytes(pem.into()));
        self
    }

    /// Reads the files and builds the config: TLS 1.2 or later, by the ring provider.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if a file cannot be read or is longer than 4 MiB; [`ErrorKind::InvalidInput`] if no
    /// certificate is given, a PEM holds no certificate or key or one that cannot be used, or the
    /// key is another certificate's.
    pub fn build(self) -> Result<ServerTls> {
        let Some(identity) = &self.identity else {
            return Err(Error::new(ErrorKind::InvalidInput, "no certificate for the server to show"));
        };
        let builder = rustls::ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(unusable)?;
        let builder = if self.client_ca.is_empty() {
            builder.with_no_client_auth()
        } else {
            let roots = Arc::new(pem::roots(&self.client_ca)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).build();
            builder.with_client_cert_verifier(verifier.map_err(unusable)?)
        };
        let (chain, key) = identity.read()?;
        let config = builder.with_single_cert(chain, key).map_err(|cause| identity.unusable(cause))?;
        Ok(ServerTls::from_config(Arc::new(config)))
    }
}

/// Returns the provider by name. The process may have no default, or another crate's choice.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Returns the name that a certificate of `host` must be for. IPv6 addresses may be in brackets.
fn parse_name(host: &str) -> Result<ServerName<'static>> {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok(ServerName::IpAddress(ip.into()));
    }
    ServerName::try_from(host.to_owned()).map_err(|cause| {
        let fault = format!("{} is not a name that a certificate can have", quoted(host));
        Error::new(ErrorKind::InvalidInput, fault).caused_by(cause)
    })
}

fn unusable(cause: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Tls, "unusable settings").caused_by(cause)
}
