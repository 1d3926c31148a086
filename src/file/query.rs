//! What a lock file says to whoever looks, its holder or not. Touches nothing.

use std::path::PathBuf;
use std::time::SystemTime;

use crate::error::{Error, ErrorKind, Result};
use crate::file::disk::{self, Content};
use crate::file::host;
use crate::file::name::{self, ClaimName};
use crate::file::settings::Settings;

/// Who holds a lock file, as it says itself.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Details {
    /// The holder's machine.
    pub hostname: String,
    /// The holder's process on that machine.
    pub pid: u32,
    /// The lock file, as the holder spells its path.
    pub lockfile: PathBuf,
}

/// What can be told of a lock file from outside. Clocks are compared without slop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LockState {
    /// There is no lock file.
    Unlocked,
    /// This process has it, by this object or another one, and it has not expired.
    Ours,
    /// This process had it, and it has expired: the next contender may break it.
    OursExpired,
    /// A process of this machine had it that does not run any more.
    Stale,
    /// Another process of this machine has it, and it has expired.
    TheirsExpired,
    /// Another process of this machine has it, or a process of another machine, or the file at the
    /// path is not a lock.
    Unknown,
}

impl Settings {
    /// Reads the lock file, again and again while the error is one to retry.
    fn read(&self) -> Result<Option<Content>> {
        loop {
            match disk::read(&self.lockfile) {
                Err(error) if self.is_retried(&error) => std::thread::sleep(self.poll),
                outcome => return outcome.map_err(|e| self.io("could not read it", &self.lockfile, e)),
            }
        }
    }

    pub(super) fn details(&self) -> Result<Details> {
        let unknown = |detail: &str| self.error(ErrorKind::NotLocked, detail);
        let found = self.read()?.ok_or_else(|| unknown("there is no lock file"))?;
        let name = ClaimName::parse(&found.text, &self.separator);
        let name = name.ok_or_else(|| unknown("the file at the path is not a lock"))?;
        let lockfile = name::path_of(name.lockfile).map(PathBuf::from).unwrap_or_default();
        let hostname = String::from_utf8_lossy(name.hostname).into_owned();
        Ok(Details { hostname, pid: name.pid, lockfile })
    }

    /// What a waiter hears whose time is up: who keeps the lock, as far as can be told.
    pub(super) fn timed_out(&self) -> Error {
        let found = disk::read(&self.lockfile).ok().flatten();
        let detail = match found.as_ref().map(|found| ClaimName::parse(&found.text, &self.separator)) {
            Some(Some(name)) => {
                let hostname = String::from_utf8_lossy(name.hostname);
                format!("process {} on {hostname} keeps it", name.pid)
            }
            Some(None) => "what stands at the path is not a lock, and is left alone".to_owned(),
            None => "others kept it".to_owned(),
        };
        self.error(ErrorKind::Timeout, detail).while_busy()
    }

    pub(super) fn expiration(&self) -> Result<SystemTime> {
        let found = disk::stat(&self.lockfile);
        let found = found.map_err(|e| self.io("could not look at it", &self.lockfile, e))?;
        let found = found.ok_or_else(|| self.error(ErrorKind::NotLocked, "there is no lock file"))?;
        Ok(found.mtime)
    }

    pub(super) fn state(&self) -> Result<LockState> {
        let Some(found) = self.read()? else { return Ok(LockState::Unlocked) };
        let Some(name) = ClaimName::parse(&found.text, &self.separator) else {
            return Ok(LockState::Unknown);
        };
        if name.hostname != self.hostname.as_bytes() {
            return Ok(LockState::Unknown);
        }
        let expired = found.stat.mtime < self.now();
        Ok(match (name.pid == std::process::id(), expired) {
            (true, false) => LockState::Ours,
            (true, true) => LockState::OursExpired,
            (false, _) if !host::is_alive(name.pid) => LockState::Stale,
            (false, true) => LockState::TheirsExpired,
            (false, false) => LockState::Unknown,
        })
    }
}
