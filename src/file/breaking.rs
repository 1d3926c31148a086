//! Breaks an expired lock, by a challenge that all contenders can see: so the file that is replaced is
//! the one that was judged. The docs of the module `file` have the argument.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::Result;
use crate::file::contender::{Contender, ContenderState, Step};
use crate::file::disk::{self, Content, FileId};
use crate::file::name::{self, ClaimName};
use crate::types::printable;

/// How long a breaker waits before it fires, so that a Python breaker that began before has finished.
const SETTLE_PAUSE: Duration = Duration::from_millis(50);

/// How long a challenge stands, unless it is renewed, before other contenders take its owner for dead.
const CHALLENGE_LIFETIME: Duration = Duration::from_secs(5);

impl Contender {
    /// Opens a lock file that looks expired from outside, and announces the break if it is a lock.
    pub(super) fn challenge(&mut self, id: FileId) -> Result<Step> {
        if self.judge()?.is_none() {
            return Ok(Step::Busy);
        }
        self.touch(self.settings.expiry(CHALLENGE_LIFETIME))?;
        match disk::link(&self.claim, &self.challenge) {
            Ok(()) => {}
            Err(error) if disk::is_missing(&error) => return Ok(Step::Busy),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                return Err(self.settings.io("could not write the challenge", &self.challenge, error));
            }
        }
        self.state = ContenderState::Challenging(id);
        self.survey(id)
    }

    /// Returns the lock file's content if it is a lock that has expired.
    fn judge(&self) -> Result<Option<Content>> {
        let lockfile = &self.settings.lockfile;
        let found = match disk::read(lockfile) {
            Err(error) if self.settings.is_transient(&error) => return Ok(None),
            outcome => outcome.map_err(|e| self.settings.io("could not read it", lockfile, e))?,
        };
        let Some(found) = found.filter(|lock| self.settings.is_expired(lock.stat.mtime)) else {
            return Ok(None);
        };
        if self.parse(&found.text).is_none() {
            tracing::debug!(key = %self.settings.key, "the file at the path is not a lock: it is left alone");
            return Ok(None);
        }
        Ok(Some(found))
    }

    /// Looks for other challenges. If there is none, goes on; waits for those that come after this one in
    /// the order of names, and withdraws for those before it.
    pub(super) fn survey(&mut self, id: FileId) -> Result<Step> {
        // A challenge that waits for long must not be taken for a dead contender's.
        self.touch(self.settings.expiry(CHALLENGE_LIFETIME))?;
        let others = self.challenges()?;
        if others.iter().any(|other| *other < self.challenge) {
            return self.withdraw(id);
        }
        if !others.is_empty() {
            return Ok(Step::Contested);
        }
        let Some(mut judged) = self.judge()? else { return self.withdraw(id) };
        // From now on it looks fresh to Python's breakers, and they leave it alone.
        let lockfile = &self.settings.lockfile;
        let touched =
            disk::touch_if_unchanged(lockfile, &judged, self.settings.expiry(self.settings.lifetime));
        let Some(mtime) =
            touched.map_err(|e| self.settings.io("could not set the times of it", lockfile, e))?
        else {
            return self.withdraw(id);
        };
        judged.stat.mtime = mtime;
        tracing::info!(key = %self.settings.key, holder = self.holder(&judged), "the lock has expired: breaking it");
        self.state = ContenderState::Settling(id, judged);
        Ok(Step::Settling(SETTLE_PAUSE))
    }

    /// Names the holder of a broken lock, for the log.
    fn holder(&self, judged: &Content) -> String {
        let name = self.parse(&judged.text);
        let hostname = |name: &ClaimName<'_>| printable(&String::from_utf8_lossy(name.hostname)).into_owned();
        name.map(|name| format!("{}, process {}", hostname(&name), name.pid)).unwrap_or_default()
    }

    /// Returns `true` if another contender's challenge stands.
    pub(super) fn is_challenged(&self) -> Result<bool> {
        self.challenges().map(|standing| !standing.is_empty())
    }

    /// Returns the other challenges that stand. Removes those that have expired.
    fn challenges(&self) -> Result<Vec<PathBuf>> {
        let mut standing = Vec::new();
        for path in self.files()? {
            if path == self.challenge || !name::is_challenge(&path, &self.settings.separator) {
                continue;
            }
            match self.stat(&path)? {
                None => {}
                Some(other) if self.settings.is_expired(other.mtime) => drop(self.remove_other(&path)?),
                Some(_) => standing.push(path),
            }
        }
        Ok(standing)
    }

    /// Returns all files in the directory that belong to the lock, but not the lock file.
    fn files(&self) -> Result<Vec<PathBuf>> {
        let directory = self.settings.directory();
        let found = disk::list(directory, &self.settings.prefix());
        found.map_err(|e| self.settings.io("could not list", directory, e))
    }

    fn stat(&self, path: &Path) -> Result<Option<disk::Stat>> {
        disk::stat(path).map_err(|e| self.settings.io("could not look at", path, e))
    }

    fn remove_other(&self, path: &Path) -> Result<bool> {
        disk::remove(path).map_err(|e| self.settings.io("could not remove", path, e))
    }

    fn withdraw(&mut self, id: FileId) -> Result<Step> {
        self.remove_other(&self.challenge)?;
        self.state = ContenderState::Claimed(id);
        Ok(Step::Busy)
    }

    /// Replaces the lock file that was judged, if it has not changed and the challenge still stands: the
    /// challenge itself becomes the lock file.
    pub(super) fn fire(&mut self, id: FileId) -> Result<Step> {
        let ContenderState::Settling(_, judged) = &self.state else { return Ok(Step::Busy) };
        let judged = judged.clone();
        let lockfile = self.settings.lockfile.clone();
        let found = match disk::read(&lockfile) {
            Err(error) if self.settings.is_transient(&error) => return Ok(Step::Settling(SETTLE_PAUSE)),
            outcome => outcome.map_err(|e| self.settings.io("could not read it", &lockfile, e))?,
        };
        if found.as_ref() != Some(&judged) {
            return self.withdraw(id);
        }
        let fired = disk::rename(&self.challenge, &lockfile);
        if !self.is_ours(id)? {
            match fired {
                Err(error) if !disk::is_missing(&error) => {
                    return Err(self.settings.io("could not replace it", &lockfile, error));
                }
                _ => return self.withdraw(id),
            }
        }
        self.broken = Some(judged);
        Ok(self.enter(id))
    }

    /// Removes files that dead contenders have left. A failure is no reason to give the lock up.
    pub(super) fn clean(&self, broken: &Content) {
        if let Err(error) = self.remove_claims(broken) {
            tracing::debug!(key = %self.settings.key, %error, "could not clean up after a broken lock");
        }
    }

    /// Removes the broken lock's claim, and the claims of processes that are known to be dead.
    fn remove_claims(&self, judged: &Content) -> Result<()> {
        if let Some(claim) = ClaimName::beside(&judged.text, &self.settings.lockfile) {
            self.remove_claim_of(&claim, judged)?;
        }
        for path in self.files()? {
            let Some(text) = name::bytes_of(&path) else { continue };
            let Some(claim) = self.parse(&text) else { continue };
            if self.settings.is_dead(&claim)
                && self.stat(&path)?.is_some_and(|found| self.settings.is_expired(found.mtime))
            {
                self.remove_other(&path)?;
            }
        }
        Ok(())
    }

    /// Removes the claim of a broken lock. Its owner may live, be late, and have made a new claim of the
    /// same name: so the claim is moved aside before it is checked, and put back if it is not the one
    /// that was judged.
    fn remove_claim_of(&self, claim: &Path, judged: &Content) -> Result<()> {
        let is_judged = |found: &disk::Stat| found.id == judged.stat.id && found.mtime == judged.stat.mtime;
        if !self.stat(claim)?.as_ref().is_some_and(is_judged) {
            return Ok(());
        }
        let aside = &self.challenge;
        match disk::rename(claim, aside) {
            Err(error) if disk::is_missing(&error) => return Ok(()),
            outcome => outcome.map_err(|e| self.settings.io("could not take aside", claim, e))?,
        }
        if !self.stat(aside)?.as_ref().is_some_and(is_judged) {
            // If the owner has made yet another one, that one stays.
            let _ = disk::link(aside, claim);
        }
        self.remove_other(aside).map(drop)
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use crate::file::FileLock;
    use crate::file::mark::{Mark, tests::elsewhere};
    use std::fs::{self, File};
    use std::time::SystemTime;

    fn old(path: &Path) {
        let end = SystemTime::now() - Duration::from_secs(1000);
        File::open(path).and_then(|file| file.set_modified(end)).unwrap();
    }

    #[test]
    fn a_breaker_takes_away_the_claims_of_those_alone_that_it_knows_to_be_dead() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lck");
        let (here, elsewhere) = (Mark::here(), elsewhere());
        let (own, dead) = (std::process::id(), u32::MAX);
        let waiting = |host: &str, pid: u32, salt: u64| {
            let claim = name::claim(&path, "|", host, pid, salt);
            fs::write(&claim, name::bytes_of(&claim).unwrap()).unwrap();
            old(&claim);
            claim
        };
        // Python's numbers are random, and have no mark.
        let stay = [
            waiting("here", own, here.salt()),
            waiting("here", dead, elsewhere.salt()),
            waiting("here", dead, 17),
            waiting("far", dead, here.salt()),
        ];
        let goes = waiting("here", dead, here.salt());
        let broken = waiting("here", dead, elsewhere.salt());
        fs::hard_link(&broken, &path).unwrap();

        let lock = FileLock::builder(&path).hostname("here").build().unwrap();
        assert!(lock.try_lock().unwrap());
        assert!(stay.iter().all(|claim| claim.exists()), "{:?}", fs::read_dir(dir.path()).unwrap().count());
        assert!(!goes.exists());
        assert!(!broken.exists(), "the broken lock's own claim goes");
    }
}
