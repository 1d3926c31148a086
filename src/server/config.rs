//! The server's settings: as a struct for the library, and as flags and environment variables for
//! the binary.

mod flags;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Parser};

use self::flags::{number, switch};
use crate::error::{Error, ErrorKind, Result, shown};
use crate::files;
use crate::types::{MAX_AUTH_TOKEN_BYTES, MAX_SECONDS};

/// The settings of a server. A flag beats its environment variable, which beats the default.
///
/// ```
/// use dflockd_client::server::ServerConfig;
/// let config = ServerConfig { port: 0, max_waiters: 100, ..Default::default() };
/// assert_eq!(config.default_lease_ttl, 33);
/// ```
#[derive(Clone, Parser)]
#[command(
    name = "dflockd",
    version,
    long_about = None,
    about = "A lock server: first-in-first-out locks and semaphores with leases and fencing tokens",
    after_help = "Flags are accepted with one dash too (-port 6388). SIGINT and SIGTERM stop the server gracefully; \
                  SIGHUP has it read certificate, key and auth token file anew."
)]
pub struct ServerConfig {
    /// Address or name to listen on, all addresses of a name; empty for every interface
    #[arg(long, env = "DFLOCKD_HOST", default_value = "127.0.0.1", value_name = "HOST")]
    pub host: String,
    /// TCP port to listen on; 0 picks a free one
    #[arg(
        long, env = "DFLOCKD_PORT", default_value_t = 6388, value_name = "PORT", allow_negative_numbers = true,
        value_parser = number::<u16>(0, u16::MAX.into())
    )]
    pub port: u16,
    /// Lease of requests that name none, in seconds
    #[arg(
        long, env = "DFLOCKD_DEFAULT_LEASE_TTL_S", default_value_t = 33, value_name = "SECONDS", allow_negative_numbers = true,
        value_parser = number::<u64>(1, MAX_SECONDS)
    )]
    pub default_lease_ttl: u64,
    /// How often expired leases are swept up, in seconds
    #[arg(
        long, env = "DFLOCKD_LEASE_SWEEP_INTERVAL_S", default_value_t = 1, value_name = "SECONDS", allow_negative_numbers = true,
        value_parser = number::<u64>(1, MAX_SECONDS)
    )]
    pub lease_sweep_interval: u64,
    /// How often idle keys are collected, in seconds
    #[arg(
        long, env = "DFLOCKD_GC_INTERVAL_S", default_value_t = 5, value_name = "SECONDS", allow_negative_numbers = true,
        value_parser = number::<u64>(1, MAX_SECONDS)
    )]
    pub gc_interval: u64,
    /// How long a key may be idle before it is collected, in seconds
    #[arg(
        long, env = "DFLOCKD_GC_MAX_IDLE_S", default_value_t = 60, value_name = "SECONDS", allow_negative_numbers = true,
        value_parser = number::<u64>(0, MAX_SECONDS)
    )]
    pub gc_max_idle: u64,
    /// How many keys may exist at once
    #[arg(
        long, env = "DFLOCKD_MAX_LOCKS", default_value_t = 1024, value_name = "N", allow_negative_numbers = true,
        value_parser = number::<usize>(1, usize::MAX as u64)
    )]
    pub max_locks: usize,
    /// How many may wait for one key; 0 for no limit
    #[arg(
        long, env = "DFLOCKD_MAX_WAITERS", default_value_t = 0, value_name = "N", allow_negative_numbers = true,
        value_parser = number::<usize>(0, usize::MAX as u64)
    )]
    pub max_waiters: usize,
    /// How many connections may be open at once; 0 for no limit
    #[arg(
        long, env = "DFLOCKD_MAX_CONNECTIONS", default_value_t = 0, value_name = "N", allow_negative_numbers = true,
        value_parser = number::<usize>(0, usize::MAX as u64)
    )]
    pub max_connections: usize,
    /// How many connections one address may have open at once; 0 for no limit
    #[arg(
        long, env = "DFLOCKD_MAX_CONNECTIONS_PER_IP", default_value_t = 0, value_name = "N", allow_negative_numbers = true,
        value_parser = number::<usize>(0, usize::MAX as u64)
    )]
    pub max_connections_per_ip: usize,
    /// How long a request line may take to come, in seconds
    #[arg(
        long, env = "DFLOCKD_READ_TIMEOUT_S", default_value_t = 23, value_name = "SECONDS", allow_negative_numbers = true,
        value_parser = number::<u64>(1, MAX_SECONDS)
    )]
    pub read_timeout: u64,
    /// How long a peer may take to accept a reply, or 8 KB of a long one, in seconds
    #[arg(
        long, env = "DFLOCKD_WRITE_TIMEOUT_S", default_value_t = 5, value_name = "SECONDS", allow_negative_numbers = true,
        value_parser = number::<u64>(1, MAX_SECONDS)
    )]
    pub write_timeout: u64,
    /// How long a graceful stop waits for holders to let go, in seconds; 0 waits for all
    #[arg(
        long, env = "DFLOCKD_SHUTDOWN_TIMEOUT_S", default_value_t = 30, value_name = "SECONDS", allow_negative_numbers = true,
        value_parser = number::<u64>(0, MAX_SECONDS)
    )]
    pub shutdown_timeout: u64,
    /// Whether a closed connection frees what it holds
    #[arg(
        long, env = "DFLOCKD_AUTO_RELEASE_ON_DISCONNECT", default_value_t = true, default_missing_value = "true",
        num_args = 0..=1, require_equals = true, action = ArgAction::Set, value_name = "BOOL", value_parser = switch
    )]
    pub auto_release_on_disconnect: bool,
    /// File that keeps fences growing over crashes and clock steps
    #[arg(long, env = "DFLOCKD_FENCE_STATE_FILE", value_name = "FILE")]
    pub fence_state_file: Option<PathBuf>,
    /// Certificate chain for TLS, PEM; needs --tls-key
    #[arg(long, env = "DFLOCKD_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// Private key for TLS, PEM; needs --tls-cert
    #[arg(long, env = "DFLOCKD_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Token that every connection must authenticate with; prefer --auth-token-file
    #[arg(long, env = "DFLOCKD_AUTH_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub auth_token: Option<String>,
    /// File that holds the auth token; trailing white space is ignored
    #[arg(long, env = "DFLOCKD_AUTH_TOKEN_FILE", value_name = "FILE")]
    pub auth_token_file: Option<PathBuf>,
    /// Log every connection and request error
    #[arg(
        long, env = "DFLOCKD_DEBUG", default_value_t = false, default_missing_value = "true", num_args = 0..=1,
        require_equals = true, action = ArgAction::Set, value_name = "BOOL", value_parser = switch
    )]
    pub debug: bool,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".into(),
            port: 6388,
            default_lease_ttl: 33,
            lease_sweep_interval: 1,
            gc_interval: 5,
            gc_max_idle: 60,
            max_locks: 1024,
            max_waiters: 0,
            max_connections: 0,
            max_connections_per_ip: 0,
            read_timeout: 23,
            write_timeout: 5,
            shutdown_timeout: 30,
            auto_release_on_disconnect: true,
            fence_state_file: None,
            tls_cert: None,
            tls_key: None,
            auth_token: None,
            auth_token_file: None,
            debug: false,
        }
    }
}

impl ServerConfig {
    /// Reads flags, the program's name first, and the environment, where an empty variable counts
    /// as one that is not set. Prints and exits on `--help` and `--version` (with status 74 if that
    /// cannot be written), and on a flag that cannot be read (with status 2); both say why in one line.
    pub fn from_args(args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        flags::parse(args.into_iter().map(Into::into)).unwrap_or_else(|error| flags::exit(&error))
    }

    /// Checks every setting.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput), naming the setting, its fault and the limit.
    pub fn validate(&self) -> Result<()> {
        let positive = [
            ("default_lease_ttl", self.default_lease_ttl),
            ("lease_sweep_interval", self.lease_sweep_interval),
            ("gc_interval", self.gc_interval),
            ("max_locks", self.max_locks as u64),
            ("read_timeout", self.read_timeout),
            ("write_timeout", self.write_timeout),
        ];
        for (field, value) in positive {
            if value == 0 {
                return Err(Error::invalid(field, "is 0, the least is 1"));
            }
        }
        let times = [("gc_max_idle", self.gc_max_idle), ("shutdown_timeout", self.shutdown_timeout)];
        for (field, value) in positive.into_iter().chain(times) {
            if field != "max_locks" && value > MAX_SECONDS {
                return Err(Error::invalid(field, format!("is {value} s, the limit is {MAX_SECONDS} s")));
            }
        }
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            let set = if self.tls_cert.is_some() { "tls_cert" } else { "tls_key" };
            return Err(Error::invalid(set, "is set alone: both --tls-cert and --tls-key must be provided"));
        }
        if self.auth_token.as_ref().is_some_and(|token| token.trim().is_empty()) {
            // Not the same as none: a variable that a script forgot to fill must not open the door.
            return Err(Error::invalid("auth_token", "is empty"));
        }
        if self.auth_token.is_some() && self.auth_token_file.is_some() {
            return Err(Error::invalid("auth_token", "and auth_token_file are both set"));
        }
        Ok(())
    }

    /// The auth token, from wherever it is set.
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

    pub(super) fn read_limit(&self) -> Duration {
        Duration::from_secs(self.read_timeout)
    }

    pub(super) fn write_limit(&self) -> Duration {
        Duration::from_secs(self.write_timeout)
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
            .field("debug", &self.debug)
            .finish()
    }
}

#[cfg(test)]
mod tests;
