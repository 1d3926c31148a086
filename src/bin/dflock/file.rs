//! `dflock file`: a command under a lock file, and what is to be known and done about one.

use std::fs;
use std::io::ErrorKind::{NotFound, StaleNetworkFileHandle};
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::path::Path;
use std::time::SystemTime;

use dflockd_client::file::Builder;
use dflockd_client::{Error, ErrorKind, FileLock, LockState};

use crate::args::{Claims, File, FileAction, Holding};
use crate::exit::{BUSY, Failure, UNAVAILABLE, one_line};
use crate::hold::hold;
use crate::table::seconds;

pub(crate) async fn file(file: &File) -> Result<u8, Failure> {
    match (&file.action, &file.path, &file.holding) {
        (Some(FileAction::Status { path, claims }), ..) => status(path, claims),
        (Some(FileAction::Break { path, yes, claims }), ..) => take_away(path, *yes, claims),
        (None, Some(path), Some(holding)) => run(path, &file.claims, holding).await,
        _ => Err(Failure::usage("give a lock file and a command; see dflock file --help")),
    }
}

fn builder(path: &Path, claims: &Claims) -> Builder {
    let mut builder = FileLock::builder(path);
    if let Some(hostname) = &claims.hostname {
        builder = builder.hostname(hostname);
    }
    if let Some(separator) = &claims.separator {
        builder = builder.separator(separator);
    }
    builder
}

async fn run(path: &Path, claims: &Claims, holding: &Holding) -> Result<u8, Failure> {
    let mut builder = builder(path, claims);
    if let Some(ttl) = holding.ttl {
        builder = builder.lifetime(ttl);
    }
    let lock = builder.build().map_err(Failure::of_file)?;
    let what = path.display().to_string();
    let failed = |error| not_acquired(path, claims, error);
    hold(&what, lock.acquire_within(holding.patience()), failed, None, holding).await
}

/// Creates the failure that `error` means. If the lock file is one of another separator, names that.
fn not_acquired(path: &Path, claims: &Claims, error: Error) -> Failure {
    let mut failure = Failure::of_file(error);
    let found = look(path, claims).ok().filter(|found| !found.is_lock);
    let separator = found.and_then(|found| separator_of(path, &found.content?));
    if let (Some(line), Some(separator)) = (&mut failure.line, separator) {
        line.push_str(&format!("; the lock file is one with --separator '{}'", one_line(&separator)));
    }
    failure
}

/// A lock file as it stood when it was looked at.
struct Found {
    /// What is said of it.
    text: String,
    /// Whether it is a lock file, or none at all.
    is_lock: bool,
    /// Returns `true` if a holder keeps it from being taken.
    is_held: bool,
    /// What the file says: a claim's path.
    content: Option<Vec<u8>>,
}

fn look(path: &Path, claims: &Claims) -> Result<Found, Failure> {
    let lock = builder(path, claims).build().map_err(Failure::of_file)?;
    let free = || Found { text: "unlocked".to_owned(), is_lock: true, is_held: false, content: None };
    let state = lock.state().map_err(Failure::of_file)?;
    if state == LockState::Unlocked {
        return Ok(free());
    }
    let content = content_of(path)?;
    let (details, expiration) = match (lock.details(), lock.expiration()) {
        (Ok(details), Ok(expiration)) => (details, expiration),
        (Err(error), _) | (_, Err(error)) if error.kind() == ErrorKind::NotLocked => {
            // It was left just now, or never was a lock.
            let Some(content) = content else { return Ok(free()) };
            let hint = separator_of(path, &content)
                .map(|separator| format!(", but one with --separator '{}'", one_line(&separator)));
            let text = format!("not a lock file{}", hint.unwrap_or_default());
            return Ok(Found { text, is_lock: false, is_held: true, content: Some(content) });
        }
        (Err(error), _) | (_, Err(error)) => return Err(Failure::of_file(error)),
    };
    let (word, until) = match expiration.duration_since(SystemTime::now()) {
        Ok(left) => ("locked", format!("for {} more unless refreshed", seconds(left))),
        Err(over) => ("expired", format!("since {}", seconds(over.duration()))),
    };
    // Its end decides when it can be taken, even if its holder is known to be gone.
    let is_held = word == "locked";
    let (word, gone) = match (state, is_held) {
        (LockState::Stale, true) => ("stale", ", which no longer runs"),
        (LockState::Stale, false) => (word, ", which no longer runs"),
        _ => (word, ""),
    };
    let holder = format!("process {} on {}{gone}", details.pid, one_line(&details.hostname));
    Ok(Found { text: format!("{word}: {holder}; {until}"), is_lock: true, is_held, content })
}

/// Reads what is at the path; `None` if there is nothing. A device may have no end and a pipe no writer,
/// so only a regular file is opened, and read as far as a lock file's text may go.
fn content_of(path: &Path) -> Result<Option<Vec<u8>>, Failure> {
    const MAX_BYTES: u64 = 16 * 1024;
    let read = || {
        if !fs::symlink_metadata(path)?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
        }
        let mut content = Vec::new();
        fs::File::open(path)?.take(MAX_BYTES).read_to_end(&mut content)?;
        Ok(content)
    };
    match read() {
        Ok(content) => Ok(Some(content)),
        Err(error) if matches!(error.kind(), NotFound | StaleNetworkFileHandle) => Ok(None),
        Err(error) => {
            let line = format!("cannot read {}: {error}", one_line(&path.display()));
            Err(Failure::new(UNAVAILABLE, line))
        }
    }
}

/// Returns the separator with which `content` is a lock file's text, if there is one: what is between
/// its last two numbers.
fn separator_of(path: &Path, content: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(content).ok()?.trim();
    let rest = text.trim_end_matches(|c: char| c.is_ascii_digit());
    let (_, separator) = rest.split_at(rest.rfind(|c: char| c.is_ascii_digit())? + 1);
    if separator.is_empty() || rest.len() == text.len() {
        return None;
    }
    let lock = FileLock::builder(path).separator(separator).build().ok()?;
    lock.details().is_ok().then(|| separator.to_owned())
}

fn status(path: &Path, claims: &Claims) -> Result<u8, Failure> {
    let found = look(path, claims)?;
    writeln!(io::stdout(), "{}", found.text).map_err(|error| Failure::output(&error))?;
    Ok(if found.is_held { BUSY } else { 0 })
}

fn take_away(path: &Path, yes: bool, claims: &Claims) -> Result<u8, Failure> {
    let found = look(path, claims)?;
    let Some(content) = found.content else {
        return Err(Failure::new(UNAVAILABLE, format!("{} is not locked", one_line(&path.display()))));
    };
    if !found.is_lock {
        let line = format!("{} is {}; remove it yourself", one_line(&path.display()), found.text);
        return Err(Failure::new(UNAVAILABLE, line));
    }
    if !yes && !confirmed(path, &found.text)? {
        return Err(Failure::new(BUSY, "it stays as it is"));
    }
    if content_of(path)?.as_ref() != Some(&content) {
        return Err(Failure::new(UNAVAILABLE, "it has changed hands meanwhile; look again"));
    }
    let failed =
        |error| Failure::new(UNAVAILABLE, format!("cannot remove {}: {error}", one_line(&path.display())));
    // The claim first: a contender that finds the lock gone must not find a claim that is refreshed.
    if let Some(claim) = claim_beside(path, &content) {
        match fs::remove_file(claim) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
    }
    fs::remove_file(path).map_err(failed)?;
    writeln!(io::stdout(), "broken; it was {}", found.text).map_err(|error| Failure::output(&error))?;
    Ok(0)
}

/// The claim that the lock file names, if it is where a claim belongs: beside the lock file.
fn claim_beside(path: &Path, content: &[u8]) -> Option<std::path::PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    let named = Path::new(std::ffi::OsStr::from_bytes(content.trim_ascii_end()));
    let (name, lock) = (named.file_name()?, path.file_name()?);
    let is_claim = name.as_bytes().starts_with(lock.as_bytes()) && name != lock;
    is_claim.then(|| path.with_file_name(name))
}

fn confirmed(path: &Path, text: &str) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::usage("there is no terminal to ask on; --yes breaks it without a question"));
    }
    let question = format!("{} is {text}. Break it? [y/N] ", one_line(&path.display()));
    let _ = write!(io::stderr(), "{question}").and_then(|()| io::stderr().flush());
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    Ok(read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes"))
}
