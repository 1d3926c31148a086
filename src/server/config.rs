//! The server's settings, and their checks. Does not depend on flags or the environment.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result, shown};
use crate::files;
use crate::types::{MAX_AUTH_TOKEN_BYTES, Seconds};

/// The settings of a server.
///
/// ```
/// use std::time::Duration;
/// use dflockd_client::server::ServerConfig;
/// let config = ServerConfig { port: 0, gc_max_idle: Duration::from_secs(5), ..Default::default() };
/// assert_eq!(config.default_lease_ttl, Duration::from_secs(33));
/// ```
#[derive(Clone)]
pub struct ServerConfig {
    /// The address or name to listen on, all addresses of a name; empty for every interface. Defaults to
    /// `127.0.0.1`.
    pub host: String,
    /// The TCP port to listen on; 0 picks a free one. Defaults to 6388.
    pub port: u16,
    /// The lease of requests that name none, in whole seconds, rounded up, at least 1 s. Defaults to 33 s.
    pub default_lease_ttl: Duration,
    /// The interval at which expired leases are swept; above 0. Defaults to 1 s.
    pub lease_sweep_interval: Duration,
    /// The interval at which idle keys are collected; above 0. Defaults to 5 s.
    pub gc_interval: Duration,
    /// The time for which a key may be idle before it is collected. Defaults to 60 s.
    pub gc_max_idle: Duration,
    /// The maximum number of keys, in use or idle; at least 1. Defaults to 1024.
    pub max_locks: usize,
    /// The maximum number of waiters for one key; 0 for no limit. Defaults to 0.
    pub max_waiters: usize,
    /// The maximum number of open connections; 0 for no limit. Defaults to 0.
    pub max_connections: usize,
    /// The maximum number of open connections from one address; 0 for no limit. Defaults to 0.
    pub max_connections_per_ip: usize,
    /// The time within which a request line must arrive; above 0. Clients ping well within it. Defaults to
    /// 23 s.
    pub read_timeout: Duration,
    /// The time within which a peer must accept a reply, or 8 KB of a long one; above 0. Defaults to 5 s.
    pub write_timeout: Duration,
    /// The time that a graceful stop waits for holders to release; 0 waits for all. Defaults to 30 s.
    pub shutdown_timeout: Duration,
    /// If `true`, a closed connection frees what it holds. Defaults to `true`.
    pub auto_release_on_disconnect: bool,
    /// The file that keeps fences growing across crashes and clock steps. Defaults to none.
    pub fence_state_file: Option<PathBuf>,
    /// The certificate chain for TLS, PEM; needs `tls_key`. Defaults to none.
    pub tls_cert: Option<PathBuf>,
    /// The private key for TLS, PEM; needs `tls_cert`. Defaults to none.
    pub tls_key: Option<PathBuf>,
    /// The token that every connection must authenticate with, 1 byte to 64 KiB, no line break. Defaults
    /// to none.
    pub auth_token: Option<String>,
    /// The file that holds the auth token; trailing whitespace is ignored. Defaults to none.
    pub auth_token_file: Option<PathBuf>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".into(),
            port: 6388,
            default_lease_ttl: Duration::from_secs(33),
            lease_sweep_interval: Duration::from_secs(1),
            gc_interval: Duration::from_secs(5),
            gc_max_idle: Duration::from_secs(60),
            max_locks: 1024,
            max_waiters: 0,
            max_connections: 0,
            max_connections_per_ip: 0,
            read_timeout: Duration::from_secs(23),
            write_timeout: Duration::from_secs(5),
            shutdown_timeout: Duration::from_secs(30),
            auto_release_on_disconnect: true,
            fence_state_file: None,
            tls_cert: None,
            tls_key: None,
            auth_token: None,
            auth_token_file: None,
        }
    }
}

impl ServerConfig {
    /// Checks every setting.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput), naming the setting, its fault and the limit.
    pub fn validate(&self) -> Result<()> {
        let positive = [
            ("default_lease_ttl", self.default_lease_ttl),
            ("lease_sweep_interval", self.lease_sweep_interval),
            ("gc_interval", self.gc_interval),
            ("read_timeout", self.read_timeout),
            ("write_timeout", self.write_timeout),
        ];
        for (field, time) in positive {
            if time.is_zero() {
                return Err(Error::invalid(field, "is 0, it must be longer"));
            }
        }
        if self.max_locks == 0 {
            return Err(Error::invalid("max_locks", "is 0, the least is 1"));
        }
        let times = [("gc_max_idle", self.gc_max_idle), ("shutdown_timeout", self.shutdown_timeout)];
        for (field, time) in positive.into_iter().chain(times) {
            Seconds::ceil(field, time)?;
        }
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            let set = if self.tls_cert.is_some() { "tls_cert" } else { "tls_key" };
            return Err(Error::invalid(set, "is set alone: both --tls-cert and --tls-key must be provided"));
        }
        if self.auth_token.as_ref().is_some_and(|token| token.trim().is_empty()) {
            // Not the same as none: an empty variable in a script must not turn authentication off.
            return Err(Error::invalid("auth_token", "is empty"));
        }
        if self.auth_token.is_some() && self.auth_token_file.is_some() {
            return Err(Error::invalid("auth_token", "and auth_token_file are both set"));
        }
        Ok(())
    }

    /// Returns the auth token, from the setting or its file.
    pub(super) fn read_auth_token(&self) -> Result<Option<String>> {
        let token = match (&self.auth_token_file, &self.auth_token) {
            (Some(path), _) => {
                let failed = |cause| {
                    let fault = format!("could not read auth_token_file {}", shown(path));
                    Error::new(ErrorKind::Io, fault).caused_by(cause)
                };
                let no_text = |_| io::Error::new(io::ErrorKind::InvalidData, "it is no utf-8 text");
                let token =
                    files::read_file(path).and_then(|token| String::from_utf8(token).map_err(no_text));
                let token = token.map_err(failed)?.trim_end().to_owned();
                if token.is_empty() {
                    return Err(Error::invalid("auth_token_file", "is empty"));
                }
                token
            }
            (None, Some(token)) => token.clone(),
            (None, None) => return Ok(None),
        };
        if token.contains(['\n', '\r']) {
            return Err(Error::invalid("auth_token", "has a line break inside"));
        }
        if token.len() > MAX_AUTH_TOKEN_BYTES {
            let fault = format!("is {} bytes long, the limit is {MAX_AUTH_TOKEN_BYTES}", token.len());
            return Err(Error::invalid("auth_token", fault));
        }
        Ok(Some(token))
    }
}

/// Shows no secret.
impl std::fmt::Debug for ServerConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let secret = |token: &Option<String>| if token.is_some() { "set" } else { "not set" };
        let path = |path: &Option<PathBuf>| path.as_deref().map(shown);
        f.debug_struct("ServerConfig")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("default_lease_ttl", &self.default_lease_ttl)
            .field("lease_sweep_interval", &self.lease_sweep_interval)
            .field("gc_interval", &self.gc_interval)
            .field("gc_max_idle", &self.gc_max_idle)
            .field("max_locks", &self.max_locks)
            .field("max_waiters", &self.max_waiters)
            .field("max_connections", &self.max_connections)
            .field("max_connections_per_ip", &self.max_connections_per_ip)
            .field("read_timeout", &self.read_timeout)
            .field("write_timeout", &self.write_timeout)
            .field("shutdown_timeout", &self.shutdown_timeout)
            .field("auto_release_on_disconnect", &self.auto_release_on_disconnect)
            .field("fence_state_file", &path(&self.fence_state_file))
            .field("tls_cert", &path(&self.tls_cert))
            .field("tls_key", &path(&self.tls_key))
            .field("auth_token", &secret(&self.auth_token))
            .field("auth_token_file", &path(&self.auth_token_file))
            .finish()
    }
}

#[cfg(test)]
mod tests;
