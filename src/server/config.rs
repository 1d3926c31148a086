//! The server's settings: as a struct for the library, and as flags and environment variables for
//! the binary.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Parser};

use crate::error::{Error, ErrorKind, Result};
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
    about = "A lock server: first-in-first-out locks and semaphores with leases and fencing tokens",
    after_help = "Flags are accepted with one dash too (-port 6388). SIGINT and SIGTERM stop the server gracefully."
)]
pub struct ServerConfig {
    /// Address to listen on
    #[arg(long, env = "DFLOCKD_HOST", default_value = "127.0.0.1", value_name = "ADDRESS")]
    pub host: String,
    /// TCP port to listen on; 0 picks a free one
    #[arg(long, env = "DFLOCKD_PORT", default_value_t = 6388)]
    pub port: u16,
    /// Lease of requests that name none, in seconds
    #[arg(long, env = "DFLOCKD_DEFAULT_LEASE_TTL_S", default_value_t = 33, value_name = "SECONDS")]
    pub default_lease_ttl: u64,
    /// How often expired leases are swept up, in seconds
    #[arg(long, env = "DFLOCKD_LEASE_SWEEP_INTERVAL_S", default_value_t = 1, value_name = "SECONDS")]
    pub lease_sweep_interval: u64,
    /// How often idle keys are collected, in seconds
    #[arg(long, env = "DFLOCKD_GC_INTERVAL_S", default_value_t = 5, value_name = "SECONDS")]
    pub gc_interval: u64,
    /// How long a key may be idle before it is collected, in seconds
    #[arg(long, env = "DFLOCKD_GC_MAX_IDLE_S", default_value_t = 60, value_name = "SECONDS")]
    pub gc_max_idle: u64,
    /// How many keys may exist at once
    #[arg(long, env = "DFLOCKD_MAX_LOCKS", default_value_t = 1024, value_name = "N")]
    pub max_locks: usize,
    /// How many may wait for one key; 0 for no limit
    #[arg(long, env = "DFLOCKD_MAX_WAITERS", default_value_t = 0, value_name = "N")]
    pub max_waiters: usize,
    /// How many connections may be open at once; 0 for no limit
    #[arg(long, env = "DFLOCKD_MAX_CONNECTIONS", default_value_t = 0, value_name = "N")]
    pub max_connections: usize,
    /// How many connections one address may have open at once; 0 for no limit
    #[arg(long, env = "DFLOCKD_MAX_CONNECTIONS_PER_IP", default_value_t = 0, value_name = "N")]
    pub max_connections_per_ip: usize,
    /// How long a request line may take to come, in seconds
    #[arg(long, env = "DFLOCKD_READ_TIMEOUT_S", default_value_t = 23, value_name = "SECONDS")]
    pub read_timeout: u64,
    /// How long a peer may take to accept a reply, in seconds
    #[arg(long, env = "DFLOCKD_WRITE_TIMEOUT_S", default_value_t = 5, value_name = "SECONDS")]
    pub write_timeout: u64,
    /// How long a graceful stop waits for holders to let go, in seconds; 0 waits for all
    #[arg(long, env = "DFLOCKD_SHUTDOWN_TIMEOUT_S", default_value_t = 30, value_name = "SECONDS")]
    pub shutdown_timeout: u64,
    /// Whether a closed connection frees what it holds
    #[arg(
        long, env = "DFLOCKD_AUTO_RELEASE_ON_DISCONNECT", default_value_t = true, default_missing_value = "true",
        num_args = 0..=1, require_equals = true, action = ArgAction::Set, value_name = "BOOL"
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
        require_equals = true, action = ArgAction::Set, value_name = "BOOL"
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
    /// Reads flags, the program's name first, and the environment. Prints and exits on `--help`,
    /// `--version` and a flag that cannot be read.
    pub fn from_args(args: impl IntoIterator<Item = String>) -> Self {
        Self::parse_from(args.into_iter().map(two_dashes))
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
            return Err(Error::invalid("tls_cert", "and tls_key need each other: only one is set"));
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
                    Error::new(ErrorKind::Io, format!("could not read {}", path.display())).caused_by(cause)
                };
                std::fs::read_to_string(path).map_err(failed)?.trim_end().to_owned()
            }
            (None, Some(token)) if !token.is_empty() => token.clone(),
            (None, _) => return Ok(None),
        };
        if token.is_empty() {
            return Err(Error::invalid("auth_token_file", "is empty"));
        }
        if token.contains(['\n', '\r']) {
            return Err(Error::invalid("auth_token", "has a line break"));
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
            .field("fence_state_file", &self.fence_state_file)
            .field("tls_cert", &self.tls_cert)
            .field("tls_key", &self.tls_key)
            .field("auth_token", &secret(&self.auth_token))
            .field("auth_token_file", &self.auth_token_file)
            .field("debug", &self.debug)
            .finish()
    }
}

/// `-port` means `--port`; what has one letter, or is a number, stays as it is.
fn two_dashes(arg: String) -> String {
    match arg.strip_prefix('-') {
        Some(name) if name.len() > 1 && name.starts_with(|c: char| c.is_ascii_lowercase()) => {
            format!("--{name}")
        }
        _ => arg,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> ServerConfig {
        let args = ["dflockd"].iter().chain(args).map(|arg| (*arg).to_owned());
        ServerConfig::from_args(args)
    }

    #[test]
    fn flags_with_no_value_set_are_the_defaults() {
        assert_eq!(format!("{:?}", parse(&[])), format!("{:?}", ServerConfig::default()));
    }

    #[test]
    fn one_dash_is_as_good_as_two() {
        let config =
            parse(&["-port", "7000", "--max-locks=5", "-auto-release-on-disconnect=false", "-debug"]);
        assert_eq!((config.port, config.max_locks), (7000, 5));
        assert!(!config.auto_release_on_disconnect && config.debug);
    }

    #[test]
    fn a_setting_that_cannot_work_is_named_with_its_limit() {
        let fault = |config: ServerConfig| config.validate().unwrap_err().to_string();
        let config = ServerConfig { read_timeout: 0, ..Default::default() };
        assert_eq!(fault(config), "invalid input: read_timeout is 0, the least is 1");
        let config = ServerConfig { tls_cert: Some("c".into()), ..Default::default() };
        assert!(fault(config).contains("tls_key"));
        let config = ServerConfig { default_lease_ttl: MAX_SECONDS + 1, ..Default::default() };
        assert!(fault(config).contains("the limit is 9223372036 s"));
        assert!(ServerConfig::default().validate().is_ok());
    }

    #[test]
    fn a_token_file_loses_its_trailing_white_space_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let config = ServerConfig { auth_token_file: Some(path.clone()), ..Default::default() };
        std::fs::write(&path, " se cret \r\n\n").unwrap();
        assert_eq!(config.read_auth_token().unwrap().as_deref(), Some(" se cret"));
        std::fs::write(&path, "two\nlines").unwrap();
        assert!(config.read_auth_token().is_err());
    }

    #[test]
    fn secrets_are_not_shown() {
        let config = ServerConfig { auth_token: Some("hunter2hunter2".into()), ..Default::default() };
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
