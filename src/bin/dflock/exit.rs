//! How `dflock` ends: its exit codes, which are stable, and the one line on stderr that says why and
//! what to do.

use std::fmt::Display;
use std::io;

use dflockd_client::{Error, ErrorKind, printable};

/// The arguments or the settings are wrong.
pub(crate) const USAGE: u8 = 64;
/// The server or the lock file cannot be used.
pub(crate) const UNAVAILABLE: u8 = 69;
/// The output could not be written.
pub(crate) const OUTPUT: u8 = 74;
/// The lease was lost while the command ran.
pub(crate) const LOST: u8 = 75;
/// The server wants a token, or another one.
pub(crate) const DENIED: u8 = 77;
/// The key stayed taken for as long as it was waited for; as `timeout(1)`.
pub(crate) const BUSY: u8 = 124;
/// The command was found and could not be run; as in a shell.
pub(crate) const CANNOT_RUN: u8 = 126;
/// There is no such command; as in a shell.
pub(crate) const NOT_FOUND: u8 = 127;
/// Plus the number of the signal that ended the command, or `dflock` while it waited; as in a shell.
pub(crate) const SIGNALLED: u8 = 128;

/// What stands in `--help` and in the man pages.
pub(crate) const TABLE: &str = "\
Exit codes:
  the command's own, or 128+N when signal N ended it, and
   64  the arguments or settings are wrong
   69  the server (or the lock file) cannot be used
   75  the lease was lost (--lost-exit-code)
   77  the server refused the auth token, or wants one
  124  the key stayed taken (--conflict-exit-code)
  126  the command cannot be run
  127  there is no such command
  128+N  signal N came before the command was started";

/// Why it ends without having done what it was asked to.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: u8,
    /// Empty if there is no reader, or everything was printed before.
    pub(crate) line: Option<String>,
}

impl Failure {
    pub(crate) fn new(code: u8, line: impl Into<String>) -> Self {
        Self { code, line: Some(line.into()) }
    }

    pub(crate) fn silent(code: u8) -> Self {
        Self { code, line: None }
    }

    pub(crate) fn usage(line: impl Into<String>) -> Self {
        Self::new(USAGE, line)
    }

    /// The output could not be written. Who closed it knows.
    pub(crate) fn output(error: &io::Error) -> Self {
        const SIGPIPE: u8 = 13;
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::silent(SIGNALLED + SIGPIPE),
            _ => Self::new(OUTPUT, format!("could not write the output: {error}")),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::with_text(&error, &one_line(&error))
    }
}

impl Failure {
    /// Creates the failure that `error` means, in the words of `text`.
    fn with_text(error: &Error, text: &str) -> Self {
        let (code, advice) = match error.kind() {
            ErrorKind::InvalidInput => return Self::usage(invalid(error)),
            ErrorKind::Auth | ErrorKind::PermissionDenied => (DENIED, "give the server's --auth-token-file"),
            _ if error.is_busy() => (BUSY, "try later, or wait longer (--wait)"),
            ErrorKind::LimitMismatch => (UNAVAILABLE, "give the --limit that the key's other users give"),
            ErrorKind::MaxLocks => (UNAVAILABLE, "raise the server's --max-locks"),
            ErrorKind::Draining => (UNAVAILABLE, "try again when it is back, or let --retry do so"),
            ErrorKind::Tls => {
                (UNAVAILABLE, "check --tls-ca and --server-name, and that the server speaks TLS")
            }
            ErrorKind::Timeout | ErrorKind::ConnectionClosed | ErrorKind::Io => {
                (UNAVAILABLE, "is a server running there? --servers names others")
            }
            _ => (UNAVAILABLE, ""),
        };
        Self::advised(code, text, advice)
    }

    /// An error of a server's, which it may not name.
    pub(crate) fn of_server(server: &str, error: &Error) -> Self {
        Self::of_server_with_text(server, error, &one_line(error))
    }

    /// Creates the failure that a server's `error` means, in the words of `text`.
    pub(crate) fn of_server_with_text(server: &str, error: &Error, text: &str) -> Self {
        let failure = Self::with_text(error, text);
        let line = failure.line.map(|line| match line.contains(server) {
            true => line,
            false => format!("{server}: {line}"),
        });
        Self { line, ..failure }
    }

    /// A lock file's error: there is no server to ask about.
    pub(crate) fn of_file(error: Error) -> Self {
        match error.kind() {
            ErrorKind::InvalidInput => {
                Self::usage(invalid(&error).replace("set another one", "give another --separator"))
            }
            ErrorKind::Busy => Self::advised(BUSY, &one_line(&error), "try later, or wait longer (--wait)"),
            ErrorKind::Io => Self::advised(UNAVAILABLE, &one_line(&error), disk_advice(&error)),
            _ => Self::advised(UNAVAILABLE, &one_line(&error), ""),
        }
    }

    /// An error of a directory of lock files.
    pub(crate) fn of_directory(error: Error) -> Self {
        match error.kind() {
            ErrorKind::InvalidInput => Self::usage(invalid(&error).replace(", set another one", "")),
            ErrorKind::Unsupported => Self::usage(one_line(&error)),
            _ if error.is_busy() => Self::from(error),
            _ => Self::advised(UNAVAILABLE, &one_line(&error), ""),
        }
    }

    fn advised(code: u8, text: &str, advice: &str) -> Self {
        let separator = if advice.is_empty() { "" } else { "; " };
        Self::new(code, format!("{text}{separator}{advice}"))
    }
}

/// What to do about a file system that refuses.
fn disk_advice(error: &Error) -> &'static str {
    use io::ErrorKind::{
        NotFound, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull, Unsupported,
    };
    // What only an owner may do is no matter of the directory.
    const EPERM: i32 = 1;
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<io::Error>());
    match cause.map(io::Error::kind) {
        Some(NotFound) => "is its directory there?",
        Some(PermissionDenied) if cause.and_then(io::Error::raw_os_error) == Some(EPERM) => "",
        Some(PermissionDenied) => "may you write to its directory?",
        Some(Unsupported) => "name a file on another file system",
        Some(ReadOnlyFilesystem) => "name a file where it can be written",
        Some(StorageFull | QuotaExceeded) => "make room",
        _ => "",
    }
}

/// What the library calls a setting, and what the user does.
const NAMES: [(&str, &str); 11] = [
    ("auth_token", "the token of --auth-token-file"),
    ("connect_timeout", "--connect-timeout"),
    ("directory", "--directory"),
    ("hostname", "--hostname"),
    ("key", "the key"),
    ("lease_ttl", "--ttl"),
    ("lifetime", "--ttl"),
    ("limit", "--limit"),
    ("request_timeout", "--request-timeout"),
    ("separator", "--separator"),
    ("timeout", "--wait"),
];

/// The fault of a setting, by its name on the command line.
fn invalid(error: &Error) -> String {
    let text = one_line(error);
    let Some(fault) = text.strip_prefix("invalid input: ") else { return text };
    let named = NAMES.iter().find_map(|(name, flag)| {
        let rest = fault.strip_prefix(name).filter(|rest| rest.starts_with(' '))?;
        Some(format!("{flag}{rest}"))
    });
    named.unwrap_or_else(|| fault.to_owned())
}

/// Shows a foreign text in one line, safe for a terminal.
pub(crate) fn one_line(text: &impl Display) -> String {
    printable(&text.to_string()).into_owned()
}
