//! The checked settings of a lock file, on which its contenders agree.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::error::{Error, ErrorKind, Result};
use crate::file::mark::Mark;
use crate::file::name::ClaimName;
use crate::lease::LeaseConfig;
use crate::types::{Key, MAX_SECONDS};

/// The shortest lifetime: times are kept in whole seconds.
const MIN_LIFETIME: Duration = Duration::from_secs(1);

pub(super) type Clock = dyn Fn() -> SystemTime + Send + Sync;

/// The checked settings.
pub(super) struct Settings {
    pub(super) lockfile: PathBuf,
    pub(super) key: Key,
    pub(super) separator: String,
    pub(super) hostname: String,
    pub(super) lifetime: Duration,
    pub(super) default_timeout: Option<Duration>,
    pub(super) slop: Duration,
    pub(super) poll: Duration,
    pub(super) retry_errnos: Vec<i32>,
    pub(super) lease_config: LeaseConfig,
    pub(super) mark: Mark,
    pub(super) clock: Arc<Clock>,
}

impl Settings {
    pub(super) fn now(&self) -> SystemTime {
        (self.clock)()
    }

    /// Returns when something that lasts for `lifetime` from now ends: a whole second, never later.
    pub(super) fn expiry(&self, lifetime: Duration) -> SystemTime {
        let since = self.now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let end = since.saturating_add(lifetime).as_secs().min(MAX_SECONDS);
        UNIX_EPOCH + Duration::from_secs(end)
    }

    /// Returns `true` if `expiry` is so long ago that no difference of clocks explains it.
    pub(super) fn is_expired(&self, expiry: SystemTime) -> bool {
        expiry.checked_add(self.slop).is_some_and(|end| self.now() > end)
    }

    /// Returns the directory of the lock file.
    pub(super) fn directory(&self) -> &Path {
        // `build` has made the path absolute, and seen that it ends in a name.
        self.lockfile.parent().unwrap_or(Path::new("/"))
    }

    /// Returns the prefix of the names of all files that belong to the lock.
    pub(super) fn prefix(&self) -> Vec<u8> {
        let mut prefix = self.lockfile.file_name().unwrap_or_default().as_encoded_bytes().to_vec();
        prefix.extend_from_slice(self.separator.as_bytes());
        prefix
    }

    /// Returns `true` if a claim has this machine's name, which another machine may have as well.
    pub(super) fn is_of_this_host(&self, claim: &ClaimName<'_>) -> bool {
        claim.hostname == self.hostname.as_bytes()
    }

    /// Returns `true` if the process that has made the claim is known to be dead.
    pub(super) fn is_dead(&self, claim: &ClaimName<'_>) -> bool {
        self.is_of_this_host(claim) && self.mark.is_dead(claim)
    }

    /// Creates an error about this lock.
    pub(super) fn error(&self, kind: ErrorKind, detail: impl Into<String>) -> Error {
        Error::new(kind, detail).for_key(&self.key)
    }

    /// Creates an error for a failed call to the file system.
    pub(super) fn io(&self, doing: &str, path: &Path, cause: io::Error) -> Error {
        let detail = if path == self.lockfile { doing.into() } else { format!("{doing} {}", path.display()) };
        self.error(ErrorKind::Io, detail).caused_by(cause)
    }

    /// Returns `true` if reading is to be tried again after this error.
    pub(super) fn is_transient(&self, error: &io::Error) -> bool {
        error.raw_os_error().is_some_and(|code| self.retry_errnos.contains(&code))
    }
}

pub(super) fn check_lifetime(field: &'static str, lifetime: Duration) -> Result<()> {
    if lifetime < MIN_LIFETIME {
        return Err(Error::invalid(field, format!("is {lifetime:?}, the least is 1 s")));
    }
    if lifetime.as_secs() > MAX_SECONDS {
        let fault = format!("is {} s, the limit is {MAX_SECONDS} s", lifetime.as_secs());
        return Err(Error::invalid(field, fault));
    }
    Ok(())
}
