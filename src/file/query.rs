//! Reads a lock file, for its holder and for other processes. Changes nothing.

use std::path::PathBuf;
use std::time::SystemTime;

use crate::error::{Error, ErrorKind, Result};
use crate::file::disk::{self, Content};
use crate::file::name::{self, ClaimName};
use crate::file::settings::Settings;

/// The holder that a lock file names.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Details {
    /// The holder's machine.
    pub hostname: String,
    /// The holder's process number where it runs: in a container they count from 1.
    pub pid: u32,
    /// The lock file's path, as the holder spells it.
    pub lockfile: PathBuf,
}

/// The state of a lock file, as far as it shows from outside. Clocks are compared without slop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LockState {
    /// There is no lock file.
    Unlocked,
    /// This process holds it, by this object or another one, and it has not expired.
    Ours,
    /// This process holds it, and it has expired: the next contender may break it.
    OursExpired,
    /// A process of this machine holds it, and no longer runs. This state is returned only if it is
    /// certain: the holder is one of this crate's, and ran where this process runs.
    Stale,
    /// Another process of a machine with this machine's name holds it, and it has expired.
    TheirsExpired,
    /// Another process of this machine, or a process of another machine, holds it; or the file at the
    /// path is not a lock.
    Unknown,
}

impl Settings {
    /// Reads the lock file; tries again while the error is transient.
    fn read(&self) -> Result<Option<Content>> {
        loop {
            match disk::read(&self.lockfile) {
                Err(error) if self.is_transient(&error) => std::thread::sleep(self.poll),
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

    /// Returns the error of a waiter whose deadline has passed; it names the holder, as far as the file
    /// does.
    pub(super) fn timed_out(&self) -> Error {
        let found = disk::read(&self.lockfile).ok().flatten();
        let detail = match found.as_ref().map(|found| ClaimName::parse(&found.text, &self.separator)) {
            Some(Some(name)) => {
                let hostname = String::from_utf8_lossy(name.hostname);
                format!("process {} on {hostname} holds it", name.pid)
            }
            Some(None) => "the file at the path is not a lock, and is left alone".to_owned(),
            None => "other contenders held it".to_owned(),
        };
        self.error(ErrorKind::Busy, detail)
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
        if !self.is_of_this_host(&name) {
            return Ok(LockState::Unknown);
        }
        let expired = found.stat.mtime < self.now();
        Ok(match (self.mark.is_own(&name), expired) {
            (true, false) => LockState::Ours,
            (true, true) => LockState::OursExpired,
            (false, _) if self.is_dead(&name) => LockState::Stale,
            (false, true) => LockState::TheirsExpired,
            (false, false) => LockState::Unknown,
        })
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use crate::file::FileLock;
    use crate::file::mark::{Mark, tests::elsewhere};
    use std::fs;
    use std::time::Duration;

    #[test]
    fn a_process_number_counts_for_nothing_unless_the_claim_was_made_here() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lck");
        let lock = FileLock::builder(&path).hostname("here").build().unwrap();
        let (here, elsewhere) = (Mark::here(), elsewhere());
        let (own, init, dead) = (std::process::id(), 1, u32::MAX);
        let python = 17;
        let cases = [
            (own, here.salt(), LockState::Ours, LockState::OursExpired),
            (init, here.salt(), LockState::Unknown, LockState::TheirsExpired),
            (dead, here.salt(), LockState::Stale, LockState::Stale),
            // The first processes of two containers have the same number, and so may others.
            (own, elsewhere.salt(), LockState::Unknown, LockState::TheirsExpired),
            (dead, elsewhere.salt(), LockState::Unknown, LockState::TheirsExpired),
            (own, python, LockState::Unknown, LockState::TheirsExpired),
            (dead, python, LockState::Unknown, LockState::TheirsExpired),
        ];
        for (pid, salt, fresh, expired) in cases {
            let claim = name::claim(&path, "|", "here", pid, salt);
            fs::write(&path, name::bytes_of(&claim).unwrap()).unwrap();
            for (end, state) in
                [(SystemTime::now() + Duration::from_secs(1000), fresh), (SystemTime::UNIX_EPOCH, expired)]
            {
                fs::File::open(&path).and_then(|file| file.set_modified(end)).unwrap();
                assert_eq!(lock.state().unwrap(), state, "{}", claim.display());
            }
        }
    }

    #[test]
    fn what_a_process_elsewhere_holds_is_unknown_to_it_and_it_to_that_process() {
        let dir = tempfile::tempdir().unwrap();
        let build = || FileLock::builder(dir.path().join("x.lck")).hostname("here");
        let (near, far) = (build().build().unwrap(), build().mark(elsewhere()).build().unwrap());
        near.lock(None).unwrap();
        assert_eq!((near.state().unwrap(), far.state().unwrap()), (LockState::Ours, LockState::Unknown));
        near.unlock().unwrap();
        far.lock(None).unwrap();
        assert_eq!((near.state().unwrap(), far.state().unwrap()), (LockState::Unknown, LockState::Ours));
    }
}
