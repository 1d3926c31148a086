//! The flags that say where the servers are and how to talk to them, each with its environment
//! variable; and the clients that come of them.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::Resettable;
use clap::parser::ValueSource;
use dflockd_client::tls::ClientTls;
use dflockd_client::{
    AsyncConn, Directory, Error, ErrorKind, LockClient, RetryPolicy, StatsResult, command, printable,
};
use tokio::time::Instant;

use crate::args::duration;
use crate::exit::{Failure, one_line};
use crate::files::{self, Files, named};

const DEFAULT_PORT: u16 = 6388;

/// How long the table of a server that answers may take to come.
const TABLE: Duration = Duration::from_secs(60);

/// One server, as the user names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Server {
    host: String,
    port: u16,
}

impl Server {
    /// `host`, `host:port`, `[v6]` or `[v6]:port`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        const LONGEST_LABEL: usize = 63;
        let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, rest)) => (host, rest),
            None if text.matches(':').count() > 1 => {
                return Err("an IPv6 address goes in brackets, such as [::1]:6388".to_owned());
            }
            None => text.split_at(text.find(':').unwrap_or(text.len())),
        };
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => DEFAULT_PORT,
            Some(digits) => match digits.parse() {
                Ok(port) if port > 0 => port,
                _ => return Err("the port is no number from 1 to 65535".to_owned()),
            },
            None => return Err("after an address in brackets comes a colon and a port".to_owned()),
        };
        // What is longer is no name, and may be a key: it would be shown with each error of its server.
        let is_long = host.split('.').any(|label| label.len() > LONGEST_LABEL);
        // It is shown in tables and errors, and no host's name holds what must be escaped there.
        let deceives = printable(host) != host;
        if host.is_empty()
            || is_long
            || deceives
            || host.contains(|c: char| c.is_whitespace() || "[]".contains(c))
        {
            return Err("it takes HOST:PORT, and commas between several".to_owned());
        }
        Ok(Self { host: host.to_owned(), port })
    }

    pub(crate) fn name(&self) -> String {
        let Self { host, port } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
}

const DIRECTORY: &str = "directory";

/// The flags that only servers have a use for.
const OF_SERVERS: [&str; 7] =
    ["servers", "auth_token_file", "tls_ca", "tls_cert", "tls_key", "server_name", "connect_timeout"];

/// Where the servers are, and how to talk to them.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Connection")]
pub(crate) struct Connection {
    /// The servers that share the keys, in the same order for every client.
    #[arg(long, env = "DFLOCK_SERVERS", value_name = "HOST:PORT,...", value_delimiter = ',',
          default_value = "127.0.0.1:6388", value_parser = Server::parse)]
    pub(crate) servers: Vec<Server>,

    /// Ask no server: take the key's lock file in this directory, which all who use the key share
    /// and which must exist. Semaphores and fences are the servers' alone.
    #[arg(long, env = "DFLOCK_DIRECTORY", value_name = "DIR", conflicts_with_all = OF_SERVERS)]
    pub(crate) directory: Option<PathBuf>,

    /// The file that holds the auth token, - for standard input, as with the other files; white space
    /// at its end does not count.
    #[arg(long, env = "DFLOCK_AUTH_TOKEN_FILE", value_name = "FILE")]
    auth_token_file: Option<PathBuf>,

    /// The PEM file with the CA to trust; turns TLS on.
    #[arg(long, env = "DFLOCK_TLS_CA", value_name = "FILE")]
    tls_ca: Option<PathBuf>,

    /// The PEM file with the certificate to show; needs --tls-key and --tls-ca.
    #[arg(long, env = "DFLOCK_TLS_CERT", value_name = "FILE")]
    tls_cert: Option<PathBuf>,

    /// The PEM file with that certificate's private key.
    #[arg(long, env = "DFLOCK_TLS_KEY", value_name = "FILE")]
    tls_key: Option<PathBuf>,

    /// The name that the server's certificate is for, where it is not the host's; needs --tls-ca.
    #[arg(long, env = "DFLOCK_SERVER_NAME", value_name = "NAME")]
    server_name: Option<String>,

    /// How long to try to connect.
    #[arg(long, env = "DFLOCK_CONNECT_TIMEOUT", value_name = "TIME", default_value = "10s", value_parser = duration)]
    connect_timeout: Duration,

    /// How long a server may take to answer what waits for no key, connecting included.
    #[arg(long, env = "DFLOCK_REQUEST_TIMEOUT", value_name = "TIME", default_value = "5s", value_parser = duration)]
    request_timeout: Duration,
}

/// A flag beats the variables that contradict it: those of the servers where a directory is given, and
/// that of the directory where a flag of the servers' is.
pub(crate) fn without_contradicting_variables(command: clap::Command, args: &[OsString]) -> clap::Command {
    let without = |command: clap::Command, ids: &[&str]| {
        let ids: Vec<_> = ids.iter().map(|id| (*id).to_owned()).collect();
        without_variables(command, &move |id| ids.iter().any(|given| given == id))
    };
    let all: Vec<_> = OF_SERVERS.into_iter().chain([DIRECTORY]).collect();
    let Ok(given) = without(command.clone(), &all).try_get_matches_from(args) else { return command };
    let Some((_, given)) = given.subcommand() else { return command };
    let is_given = |id: &str| {
        let source = given.try_contains_id(id).is_ok().then(|| given.value_source(id)).flatten();
        source == Some(ValueSource::CommandLine)
    };
    match (is_given(DIRECTORY), OF_SERVERS.into_iter().any(is_given)) {
        (true, _) => without(command, &OF_SERVERS),
        (_, true) => without(command, &[DIRECTORY]),
        _ => command,
    }
}

fn without_variables(command: clap::Command, ignored: &impl Fn(&str) -> bool) -> clap::Command {
    let command =
        command.mut_args(|arg| if ignored(arg.get_id().as_str()) { arg.env(Resettable::Reset) } else { arg });
    command.mut_subcommands(|command| without_variables(command, ignored))
}

impl Connection {
    /// Refuses a directory where servers are needed.
    pub(crate) fn needs_servers(&self, command: &str) -> Result<(), Failure> {
        match &self.directory {
            None => Ok(()),
            Some(_) => Err(Failure::usage(format!("{command} asks servers, and a --directory has none"))),
        }
    }

    /// Checks the flags that need each other, and reads the files, each once.
    pub(crate) fn ready(&self) -> Result<Ready<'_>, Failure> {
        if self.request_timeout.is_zero() {
            return Err(Failure::usage("--request-timeout is 0, it must be longer"));
        }
        let mut files = Files::default();
        let auth_token = self.auth_token(&mut files)?;
        Ok(Ready { flags: self, auth_token, tls: self.tls(&mut files)? })
    }

    /// Whether a file is to come from standard input.
    pub(crate) fn reads_stdin(&self) -> bool {
        let files = [&self.auth_token_file, &self.tls_ca, &self.tls_cert, &self.tls_key];
        files.into_iter().flatten().any(|file| files::is_stdin(file))
    }

    fn auth_token(&self, files: &mut Files) -> Result<Option<String>, Failure> {
        let Some(file) = &self.auth_token_file else { return Ok(None) };
        let text = files.read("--auth-token-file", file)?;
        let text = String::from_utf8(text)
            .map_err(|_| Failure::usage(format!("--auth-token-file {}: it is no text", named(file))))?;
        Ok(Some(text.trim_end().to_owned()))
    }

    fn tls(&self, files: &mut Files) -> Result<Option<ClientTls>, Failure> {
        let Some(ca) = &self.tls_ca else {
            let needs_ca = self.tls_cert.is_some() || self.tls_key.is_some() || self.server_name.is_some();
            if needs_ca {
                return Err(Failure::usage("--tls-cert, --tls-key and --server-name need --tls-ca"));
            }
            return Ok(None);
        };
        let mut tls = ClientTls::builder().ca_pem(files.read("--tls-ca", ca)?);
        if let Some(name) = &self.server_name {
            tls = tls.server_name(name);
        }
        let wrong = |which: String| move |error| Failure::usage(format!("{which}: {}", one_line(&error)));
        // By itself first, so that it is clear which file is wrong.
        let alone = tls.clone().build().map_err(wrong(format!("--tls-ca {}", named(ca))))?;
        match (&self.tls_cert, &self.tls_key) {
            (Some(cert), Some(key)) => {
                let which = format!("--tls-cert {}, --tls-key {}", named(cert), named(key));
                let (cert, key) = (files.read("--tls-cert", cert)?, files.read("--tls-key", key)?);
                tls.client_cert_pem(cert, key).build().map(Some).map_err(wrong(which))
            }
            (None, None) => Ok(Some(alone)),
            _ => Err(Failure::usage("--tls-cert and --tls-key need each other: only one is set")),
        }
    }
}

/// The flags with what their files say.
pub(crate) struct Ready<'a> {
    flags: &'a Connection,
    auth_token: Option<String>,
    tls: Option<ClientTls>,
}

impl Ready<'_> {
    pub(crate) fn servers(&self) -> &[Server] {
        &self.flags.servers
    }

    /// A client over all servers, or over the directory, for leases of `ttl`; with `retry`, one that tries again while a
    /// server is not to be had.
    pub(crate) fn client(&self, ttl: Option<Duration>, retry: bool) -> Result<LockClient, Failure> {
        let servers = self.flags.servers.iter().map(|server| (server.host.clone(), server.port));
        let mut builder = LockClient::builder().request_timeout(self.flags.request_timeout);
        if let Some(ttl) = ttl {
            builder = builder.lease_ttl(ttl);
        }
        if retry {
            builder = builder.retry(RetryPolicy::new());
        }
        if let Some(directory) = &self.flags.directory {
            return builder.backend(Directory::new(directory)).build().map_err(Failure::of_directory);
        }
        builder = builder.servers(servers).connect_timeout(self.flags.connect_timeout);
        if let Some(tls) = &self.tls {
            builder = builder.tls(tls.clone());
        }
        if let Some(token) = &self.auth_token {
            builder = builder.auth_token(token);
        }
        Ok(builder.build()?)
    }

    /// A bare connection to `server`, authenticated if there is a token. All of it, and the first
    /// answer after it, comes within the request timeout.
    pub(crate) async fn open(&self, server: &Server) -> Result<AsyncConn, Error> {
        let until = Instant::now() + self.flags.request_timeout;
        // In tenths of a second: a person may be told how long it was waited for.
        let left = || {
            let left = until.saturating_duration_since(Instant::now()).as_millis();
            Duration::from_millis(u64::try_from(left.div_ceil(100) * 100).unwrap_or(u64::MAX))
        };
        let connect_timeout = self.flags.connect_timeout.min(self.flags.request_timeout);
        let conn = command::open_conn(&server.host, server.port, self.tls.as_ref(), connect_timeout).await?;
        let conn = conn.request_timeout(left());
        if let Some(token) = &self.auth_token {
            command::authenticate(&conn, token).await?;
        }
        Ok(conn.request_timeout(left()))
    }

    /// Returns what `server` holds. The server must reply to a ping within the request timeout; its
    /// table may be long, and take longer.
    pub(crate) async fn stats(&self, server: &Server) -> Result<StatsResult, StatsFailure> {
        let failed = |error| StatsFailure::new(&server.name(), &error);
        let conn = self.open(server).await.map_err(failed)?;
        match command::ping(&conn).await {
            // A server that is too old to know it has replied.
            Err(error) if error.kind() != ErrorKind::Server => return Err(failed(error)),
            _ => {}
        }
        command::stats(&conn.request_timeout(TABLE)).await.map_err(failed)
    }
}

/// Why a server has no stats to show.
#[derive(Debug)]
pub(crate) struct StatsFailure {
    /// How the server stands, in one word: `denied`, `down`, or `failed`.
    pub(crate) status: &'static str,
    /// The error, in one line.
    pub(crate) error: String,
    /// The same with the server's name and advice, and the exit code.
    pub(crate) failure: Failure,
}

impl StatsFailure {
    fn new(server: &str, error: &Error) -> Self {
        let status = match error.kind() {
            ErrorKind::Auth | ErrorKind::PermissionDenied => "denied",
            ErrorKind::Timeout | ErrorKind::ConnectionClosed | ErrorKind::Io => "down",
            _ => "failed",
        };
        let text = one_line(error);
        // The user asked for stats; the ping before them is a detail.
        let text = text.strip_prefix("ping").map_or_else(|| text.clone(), |rest| format!("stats{rest}"));
        let failure = Failure::of_server_with_text(server, error, &text);
        Self { status, error: text, failure }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_read_with_and_without_a_port() {
        for (text, name) in [
            ("locks.example", "locks.example:6388"),
            ("10.0.0.1:7000", "10.0.0.1:7000"),
            ("[::1]", "[::1]:6388"),
            ("[::1]:7000", "[::1]:7000"),
        ] {
            assert_eq!(Server::parse(text).map(|server| server.name()), Ok(name.to_owned()));
        }
    }

    #[test]
    fn a_server_that_cannot_be_is_refused() {
        for text in ["", ":1", "a:", "a:0", "a:65536", "a:x", "::1", "[::1]7000", "a b:1", "[::1"] {
            assert!(Server::parse(text).is_err(), "{text}");
        }
    }
}
