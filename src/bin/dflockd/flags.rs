//! The flags and environment variables of the binary, with Go's single dash, and the settings that they
//! make.

use std::error::Error as _;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process;
use std::time::Duration;

use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, Command, CommandFactory, FromArgMatches, Parser};
use dflockd_client::MAX_SECONDS;
use dflockd_client::server::ServerConfig;

/// A flag takes precedence over its environment variable, and that over the default.
#[derive(Parser)]
#[command(
    name = "dflockd",
    version,
    long_about = None,
    about = "A lock server: first-in-first-out locks and semaphores with leases and fencing tokens",
    after_help = "Flags are accepted with one dash too (-port 6388). SIGINT and SIGTERM stop the server gracefully; \
                  SIGHUP reloads certificate, key and auth token file."
)]
pub(crate) struct Flags {
    /// Address or name to listen on, all addresses of a name; empty for every interface
    #[arg(long, env = "DFLOCKD_HOST", default_value = "127.0.0.1", value_name = "HOST")]
    host: String,
    /// TCP port to listen on; 0 picks a free one
    #[arg(
        long, env = "DFLOCKD_PORT", default_value_t = 6388, value_name = "PORT", allow_negative_numbers = true,
        value_parser = number::<u16>(0, u16::MAX.into())
    )]
    port: u16,
    /// Lease of requests that name none, in seconds
    #[arg(
        long, env = "DFLOCKD_DEFAULT_LEASE_TTL_S", default_value_t = 33, value_name = "SECONDS", allow_negative_numbers = true,
        value_parser = number::<u64>(1, MAX_SECONDS)
    )]
    default_lease_ttl: u64,
    /// Interval at which expired leases are swept, in seconds
    #[arg(
        long, env = "DFLOCKD_LEASE_SWEEP_INTERVAL_S", default_value_t = 1, value_name = "SECONDS", allow_negative_numbers = true,
        value_parser = number::<u64>(1, MAX_SECONDS)
    )]
    lease_sweep_interval: u64,
    /// Interval at which idle keys are collected, in seconds
    #[arg(
        long, env = "DFLOCKD_GC_INTERVAL_S", default_value_t = 5, value_name = "SECONDS", allow_negative_numbers = true,
        value_parser = number::<u64>(1, MAX_SECONDS)
    )]
    gc_interval: u64,
    /// Time for which a key may be idle before it is collected, in seconds
    #[arg(
        long, env = "DFLOCKD_GC_MAX_IDLE_S", default_value_t = 60, value_name = "SECONDS", allow_negative_numbers = true,
        value_parser = number::<u64>(0, MAX_SECONDS)
    )]
    gc_max_idle: u64,
    /// Maximum number of keys, in use or idle
    #[arg(
        long, env = "DFLOCKD_MAX_LOCKS", default_value_t = 1024, value_name = "N", allow_negative_numbers = true,
        value_parser = number::<usize>(1, usize::MAX as u64)
    )]
    max_locks: usize,
    /// Maximum number of waiters for one key; 0 for no limit
    #[arg(
        long, env = "DFLOCKD_MAX_WAITERS", default_value_t = 0, value_name = "N", allow_negative_numbers = true,
        value_parser = number::<usize>(0, usize::MAX as u64)
    )]
    max_waiters: usize,
    /// Maximum number of open connections; 0 for no limit
    #[arg(
        long, env = "DFLOCKD_MAX_CONNECTIONS", default_value_t = 0, value_name = "N", allow_negative_numbers = true,
        value_parser = number::<usize>(0, usize::MAX as u64)
    )]
    max_connections: usize,
    /// Maximum number of open connections from one address; 0 for no limit
    #[arg(
        long, env = "DFLOCKD_MAX_CONNECTIONS_PER_IP", default_value_t = 0, value_name = "N", allow_negative_numbers = true,
        value_parser = number::<usize>(0, usize::MAX as u64)
    )]
    max_connections_per_ip: usize,
    /// Time within which a request line must arrive, in seconds
    #[arg(
        long, env = "DFLOCKD_READ_TIMEOUT_S", default_value_t = 23, value_name = "SECONDS", allow_negative_numbers = true,
        value_parser = number::<u64>(1, MAX_SECONDS)
    )]
    read_timeout: u64,
    /// Time within which a peer must accept a reply, or 8 KB of a long one, in seconds
    #[arg(
        long, env = "DFLOCKD_WRITE_TIMEOUT_S", default_value_t = 5, value_name = "SECONDS", allow_negative_numbers = true,
        value_parser = number::<u64>(1, MAX_SECONDS)
    )]
    write_timeout: u64,
    /// Time that a graceful stop waits for holders to release, in seconds; 0 waits for all
    #[arg(
        long, env = "DFLOCKD_SHUTDOWN_TIMEOUT_S", default_value_t = 30, value_name = "SECONDS", allow_negative_numbers = true,
        value_parser = number::<u64>(0, MAX_SECONDS)
    )]
    shutdown_timeout: u64,
    /// Free what a connection holds when it closes
    #[arg(
        long, env = "DFLOCKD_AUTO_RELEASE_ON_DISCONNECT", default_value_t = true, default_missing_value = "true",
        num_args = 0..=1, require_equals = true, action = ArgAction::Set, value_name = "BOOL", value_parser = switch
    )]
    auto_release_on_disconnect: bool,
    /// File that keeps fences growing across crashes and clock steps
    #[arg(long, env = "DFLOCKD_FENCE_STATE_FILE", value_name = "FILE")]
    fence_state_file: Option<PathBuf>,
    /// Certificate chain for TLS, PEM; needs --tls-key
    #[arg(long, env = "DFLOCKD_TLS_CERT", value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// Private key for TLS, PEM; needs --tls-cert
    #[arg(long, env = "DFLOCKD_TLS_KEY", value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Token that every connection must authenticate with; prefer --auth-token-file
    #[arg(long, env = "DFLOCKD_AUTH_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    auth_token: Option<String>,
    /// File that holds the auth token; trailing whitespace is ignored
    #[arg(long, env = "DFLOCKD_AUTH_TOKEN_FILE", value_name = "FILE")]
    auth_token_file: Option<PathBuf>,
    /// Log every connection and request error
    #[arg(
        long, env = "DFLOCKD_DEBUG", default_value_t = false, default_missing_value = "true", num_args = 0..=1,
        require_equals = true, action = ArgAction::Set, value_name = "BOOL", value_parser = switch
    )]
    pub(crate) debug: bool,
}

impl Flags {
    /// Reads flags, the program's name first, and the environment; an empty variable counts as not set.
    /// Prints and exits on `--help` and `--version` (with status 74 if the output cannot be written), and
    /// on an invalid flag (with status 2). Reports a fault in one line.
    pub(crate) fn from_args(args: impl Iterator<Item = OsString>) -> Self {
        parse(args).unwrap_or_else(|error| exit(&error))
    }
}

impl From<Flags> for ServerConfig {
    fn from(flags: Flags) -> Self {
        Self {
            host: flags.host,
            port: flags.port,
            default_lease_ttl: Duration::from_secs(flags.default_lease_ttl),
            lease_sweep_interval: Duration::from_secs(flags.lease_sweep_interval),
            gc_interval: Duration::from_secs(flags.gc_interval),
            gc_max_idle: Duration::from_secs(flags.gc_max_idle),
            max_locks: flags.max_locks,
            max_waiters: flags.max_waiters,
            max_connections: flags.max_connections,
            max_connections_per_ip: flags.max_connections_per_ip,
            read_timeout: Duration::from_secs(flags.read_timeout),
            write_timeout: Duration::from_secs(flags.write_timeout),
            shutdown_timeout: Duration::from_secs(flags.shutdown_timeout),
            auto_release_on_disconnect: flags.auto_release_on_disconnect,
            fence_state_file: flags.fence_state_file,
            tls_cert: flags.tls_cert,
            tls_key: flags.tls_key,
            auth_token: flags.auth_token,
            auth_token_file: flags.auth_token_file,
        }
    }
}

fn parse(args: impl Iterator<Item = OsString>) -> Result<Flags, clap::Error> {
    let mut matches = command().try_get_matches_from(args.map(two_dashes))?;
    Flags::from_arg_matches_mut(&mut matches)
}

/// The arguments are invalid.
const USAGE: i32 = 2;
/// The output could not be written: `EX_IOERR`.
const OUTPUT: i32 = 74;
/// The reader of a pipe has closed it, as a shell shows it: 128 plus the number of `SIGPIPE`.
const NO_READER: i32 = 141;

/// Prints the output of `--help` and `--version`, or the fault, and exits.
fn exit(error: &clap::Error) -> ! {
    // `eprintln!` panics if stderr is closed. The status shows the fault without it.
    let say = |line: &str| drop(writeln!(io::stderr(), "dflockd: {line}"));
    if error.use_stderr() {
        say(&fault(error));
        process::exit(USAGE)
    }
    match error.print().and_then(|()| io::stdout().flush()) {
        Ok(()) => process::exit(0),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => process::exit(NO_READER),
        Err(error) => {
            say(&format!("could not write the output: {error}"));
            process::exit(OUTPUT)
        }
    }
}

fn command() -> Command {
    // In scripts and compose files, an empty variable means "not set".
    Flags::command().mut_args(|arg| {
        let empty = |name| std::env::var_os(name).is_some_and(|value| value.is_empty());
        if arg.get_env().is_some_and(empty) { arg.env(Resettable::Reset) } else { arg }
    })
}

/// Turns `-port` into `--port`. A flag of one letter and a number stay as they are.
fn two_dashes(arg: OsString) -> OsString {
    match arg.as_encoded_bytes() {
        [b'-', b'a'..=b'z', _, ..] => {
            let mut long = OsString::from("-");
            long.push(arg);
            long
        }
        _ => arg,
    }
}

/// Returns a parser for whole numbers from `min` to `max`.
fn number<T: TryFrom<u64>>(
    least: u64,
    most: u64,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync {
    move |text| {
        let number = text.parse().ok().filter(|number| (least..=most).contains(number));
        let number = number.and_then(|number| T::try_from(number).ok());
        number.ok_or_else(|| format!("it takes a whole number from {least} to {most}"))
    }
}

fn switch(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "t" | "1" => Ok(true),
        "false" | "f" | "0" => Ok(false),
        _ => Err("it takes true or false".into()),
    }
}

/// Returns the fault in one line. Repeats no argument but a flag's name or a bad number: it might be a
/// misplaced secret.
fn fault(error: &clap::Error) -> String {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.as_str(),
        _ => "",
    };
    let flag = context(ContextKind::InvalidArg);
    let named = flag.split([' ', '[', '=']).next().unwrap_or_default();
    match (error.kind(), error.source()) {
        (ErrorKind::ValueValidation, Some(fault)) => {
            let value = shown(context(ContextKind::InvalidValue));
            format!("{} is {value}: {fault}", with_variable(named))
        }
        (ErrorKind::InvalidValue, _) => format!("{} needs a value", with_variable(named)),
        (ErrorKind::UnknownArgument, _) if is_flag(named) => {
            format!("there is no flag {named}: try --help")
        }
        (ErrorKind::UnknownArgument | ErrorKind::TooManyValues, _) => {
            "a value that belongs to no flag: try --help".into()
        }
        _ => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            line.strip_prefix("error: ").unwrap_or(line).to_owned()
        }
    }
}

/// Returns `true` if the text may be a flag, and is not a key or a token that begins with a dash.
fn is_flag(text: &str) -> bool {
    const LONGEST_FLAG: usize = 40;
    let name = text.trim_start_matches('-');
    let plain = name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'-'));
    text.starts_with('-') && plain && (1..=LONGEST_FLAG).contains(&name.len())
}

/// Returns a bad value as text. Hides one that is long and not a number: it might be a misplaced secret.
fn shown(value: &str) -> String {
    const LONGEST: usize = 19;
    let is_number = value.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'-' | b'.'));
    if value.len() > LONGEST && !is_number {
        return format!("a text of {} bytes", value.len());
    }
    format!("{value:?}")
}

/// Returns the flag with its environment variable: either may have the bad value.
fn with_variable(flag: &str) -> String {
    let command = Flags::command();
    let arg = command.get_arguments().find(|arg| arg.get_long() == flag.strip_prefix("--"));
    match arg.and_then(|arg| arg.get_env()) {
        Some(variable) => format!("{flag} ({})", variable.display()),
        None => flag.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Flags {
        Flags::from_args(["dflockd"].iter().chain(args).map(OsString::from))
    }

    #[test]
    fn flags_with_no_value_set_are_the_defaults() {
        let config = ServerConfig::from(parse(&[]));
        assert_eq!(format!("{config:?}"), format!("{:?}", ServerConfig::default()));
    }

    #[test]
    fn one_dash_is_as_good_as_two() {
        let flags = parse(&["-port", "7000", "--max-locks=5", "-auto-release-on-disconnect=false", "-debug"]);
        assert!(flags.debug);
        let config = ServerConfig::from(flags);
        assert_eq!((config.port, config.max_locks), (7000, 5));
        assert!(!config.auto_release_on_disconnect);
    }
}
