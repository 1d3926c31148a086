//! One contender for a lock file: its claim, and the steps by which it takes, keeps and releases the
//! lock. Each step makes a few calls to the file system and never pauses; the caller pauses in between.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::error::{Error, ErrorKind, Result};
use crate::file::disk::{self, Content, FileId};
use crate::file::name::{self, ClaimName};
use crate::file::settings::Settings;
use crate::file::steps::Progress;
use crate::lease::LostReason;

/// How often, and how many times at most, a late holder checks whether a challenge still stands.
const LATE_INTERVAL: Duration = Duration::from_millis(25);
const LATE_LOOKS: u32 = 40;

/// A contender and its state.
pub(super) struct Contender {
    pub(super) settings: Arc<Settings>,
    pub(super) claim: PathBuf,
    /// The path of the file that announces that it breaks the lock.
    pub(super) challenge: PathBuf,
    text: Vec<u8>,
    /// The process that made the claim: a child made by a fork holds nothing of its parent's.
    pid: u32,
    pub(super) state: ContenderState,
    /// The lock that it has broken, until its remains are cleaned up.
    pub(super) broken: Option<Content>,
    /// The number of claims that it has written so far.
    claims: u64,
    /// When the claim expires, or the lock, as far as it is proven to be held.
    pub(super) expiry: SystemTime,
}

/// Which files of a contender's exist.
#[derive(Debug)]
pub(super) enum ContenderState {
    /// No file exists.
    Idle,
    /// The claim exists.
    Claimed(FileId),
    /// The challenge exists as well; other contenders may have theirs.
    Challenging(FileId),
    /// No other challenge stood, and the lock was found expired, with this content.
    Settling(FileId, Content),
    /// The lock is taken.
    Held(FileId),
}

/// The outcome of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The lock is held.
    Held,
    /// Another contender holds it: try again later.
    Busy,
    /// Other contenders break it too: try again soon.
    Contested,
    /// The lock is being broken, or proven to be held: go on after this pause, past the deadline too.
    Settling(Duration),
    /// The lock was taken, and lost before it was proven to be held: give up, and try again later.
    Lost,
}

/// A lock that was refreshed only after its end, and is not yet proven to be held.
#[derive(Clone, Copy, Debug)]
pub(super) struct LateRefresh {
    /// Which of the contender's claims has the lock.
    claim: u64,
    /// The end that the refresh has set.
    end: SystemTime,
    /// How many more times the directory is checked for challenges.
    looks: u32,
}

impl Contender {
    pub(super) fn new(settings: Arc<Settings>) -> Self {
        let (pid, salt) = (std::process::id(), settings.mark.salt());
        let claim = name::claim(&settings.lockfile, &settings.separator, &settings.hostname, pid, salt);
        Self {
            challenge: name::challenge(&claim, &settings.separator),
            // `build` has seen that a path has bytes.
            text: name::bytes_of(&claim).unwrap_or_default(),
            claim,
            pid,
            state: ContenderState::Idle,
            broken: None,
            claims: 0,
            expiry: UNIX_EPOCH,
            settings,
        }
    }

    /// To the child of a fork, another process has made the claim.
    #[cfg(all(test, unix))]
    pub(super) fn seem_forked(&mut self) {
        self.pid += 1;
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.text).into_owned()
    }

    pub(super) fn is_held(&self) -> bool {
        matches!(self.state, ContenderState::Held(_))
    }

    /// Returns `true` if no file of this contender's exists.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.state, ContenderState::Idle)
    }

    /// Takes the lock if it is free, or goes one step further in breaking it if it has expired, or in
    /// proving that it is held. `late` is where a proof that takes several steps is kept. After an error
    /// or [`Step::Lost`] the caller gives up.
    pub(super) fn step(&mut self, lifetime: Duration, late: &mut Option<LateRefresh>) -> Result<Step> {
        if self.is_foreign() {
            let fault = "was made by a process that this one was forked from, build a new one";
            return Err(Error::invalid("lock", fault).for_key(&self.settings.key));
        }
        let took = match self.state {
            ContenderState::Idle => {
                let id = self.write_claim(lifetime)?;
                self.link(id, lifetime)?
            }
            ContenderState::Claimed(id) => self.link(id, lifetime)?,
            ContenderState::Challenging(id) => self.survey(id)?,
            ContenderState::Settling(id, _) => self.fire(id)?,
            ContenderState::Held(_) if late.is_none() => return Ok(Step::Held),
            ContenderState::Held(_) => Step::Held,
        };
        if took == Step::Held { self.prove(lifetime, late) } else { Ok(took) }
    }

    /// Returns `true` if another process has made the claim, and this one was forked from it.
    fn is_foreign(&self) -> bool {
        self.pid != std::process::id()
    }

    /// Checks that this contender does not hold the lock. If it has lost it, removes its files.
    pub(super) fn begin(&mut self) -> Result<()> {
        let ContenderState::Held(id) = self.state else { return Ok(()) };
        if self.is_ours(id)? {
            return Err(self.settings.error(ErrorKind::AlreadyLocked, "this object has it"));
        }
        // A forked child leaves its parent's files alone.
        if self.is_foreign() { Ok(()) } else { self.clear() }
    }

    fn write_claim(&mut self, lifetime: Duration) -> Result<FileId> {
        let written = disk::write(&self.claim, &self.text);
        let id = written.map_err(|e| self.settings.io("could not write the claim", &self.claim, e))?;
        (self.state, self.expiry) = (ContenderState::Claimed(id), UNIX_EPOCH);
        self.claims += 1;
        self.touch(self.settings.expiry(lifetime))?;
        Ok(id)
    }

    /// Sets the end of a claim that has no lock yet.
    pub(super) fn touch(&mut self, expiry: SystemTime) -> Result<()> {
        if self.expiry != expiry {
            disk::touch(&self.claim, expiry)
                .map_err(|e| self.settings.io("could not set the times of", &self.claim, e))?;
            self.expiry = expiry;
        }
        Ok(())
    }

    fn link(&mut self, id: FileId, lifetime: Duration) -> Result<Step> {
        // A lock must not look expired in the instant between the link and the touch after it.
        if self.settings.now() + lifetime / 2 >= self.expiry {
            self.touch(self.settings.expiry(lifetime))?;
        }
        let settings = self.settings.clone();
        let Err(refused) = disk::link(&self.claim, &settings.lockfile) else {
            return Ok(self.enter(id));
        };
        let found = disk::stat(&settings.lockfile);
        let found =
            found.map_err(|e| settings.io("could not look at the lock file", &settings.lockfile, e))?;
        // An NFS server that answers twice may refuse what it has done.
        if found.is_some_and(|lock| lock.id == id) && self.is_ours(id)? {
            return Ok(self.enter(id));
        }
        if disk::is_missing(&refused) {
            if disk::stat(&self.claim).is_ok_and(|claim| claim.is_none()) {
                self.state = ContenderState::Idle;
            }
            return Ok(Step::Busy);
        }
        if refused.kind() != std::io::ErrorKind::AlreadyExists {
            return Err(settings.io("could not link the claim to it", &settings.lockfile, refused));
        }
        match found {
            None => Ok(Step::Busy),
            Some(lock) if lock.is_file && !settings.is_expired(lock.mtime) => {
                if lock.links != 2 {
                    tracing::debug!(key = %settings.key, links = lock.links, "a lock file does not have two links");
                }
                Ok(Step::Busy)
            }
            Some(_) => self.challenge(id),
        }
    }

    /// The lock file is this claim's. Whether it is held is yet to be proven.
    pub(super) fn enter(&mut self, id: FileId) -> Step {
        self.state = ContenderState::Held(id);
        Step::Held
    }

    /// Proves that the lock that was just taken is held, and sets its end: the lifetime counts from now.
    fn prove(&mut self, lifetime: Duration, late: &mut Option<LateRefresh>) -> Result<Step> {
        let fresh = late.is_none()
            && self.expiry == self.settings.expiry(lifetime)
            && self.settings.now() < self.expiry;
        let held = if fresh { Progress::Done(true) } else { self.refresh(lifetime, late)? };
        let held = match held {
            Progress::Pause(pause) => return Ok(Step::Settling(pause)),
            Progress::Done(held) => held,
        };
        if let Some(broken) = self.broken.take() {
            self.clean(&broken);
        }
        if !held {
            return Ok(Step::Lost);
        }
        tracing::debug!(key = %self.settings.key, "the lock file is taken");
        Ok(Step::Held)
    }

    /// Returns `true` if the lock file is this claim's. The claim is checked last: while it exists, its
    /// number was not given to another file.
    pub(super) fn is_ours(&self, id: FileId) -> Result<bool> {
        if self.is_foreign() {
            return Ok(false);
        }
        let stat = |path: &Path| disk::stat(path).map_err(|e| self.settings.io("could not look at", path, e));
        let lock = stat(&self.settings.lockfile)?;
        if !lock.is_some_and(|lock| lock.id == id && lock.links == 2) {
            return Ok(false);
        }
        Ok(stat(&self.claim)?.is_some_and(|claim| claim.id == id))
    }

    /// Returns the claim that holds the lock; `None` if there is none, if another process made it, or if
    /// the lock was taken anew since `late` began.
    fn held_claim(&self, late: Option<&LateRefresh>) -> Option<FileId> {
        let ContenderState::Held(id) = self.state else { return None };
        let is_same = late.is_none_or(|late| late.claim == self.claims);
        (is_same && !self.is_foreign()).then_some(id)
    }

    /// Extends the lock; returns `false` if it is no longer held. If it had expired, the proof that it is
    /// held takes several steps, whose state is `late`.
    pub(super) fn refresh(
        &mut self,
        lifetime: Duration,
        late: &mut Option<LateRefresh>,
    ) -> Result<Progress<bool>> {
        let Some(id) = self.held_claim(late.as_ref()) else { return Ok(Progress::Done(false)) };
        if let Some(begun) = late.take() {
            return self.prove_late(id, begun, late);
        }
        let expiry = self.settings.expiry(lifetime);
        match disk::touch(&self.claim, expiry) {
            Ok(true) => {}
            Ok(false) => return Ok(Progress::Done(false)),
            // A file that may not be touched belongs to another user.
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                return Ok(Progress::Done(false));
            }
            Err(error) => return Err(self.settings.io("could not set the times of", &self.claim, error)),
        }
        // In this order: if the lock had not expired when it was seen to be ours, no breaker may have it.
        if !self.is_ours(id)? {
            return Ok(Progress::Done(false));
        }
        if self.settings.now() < self.expiry {
            self.expiry = expiry;
            return Ok(Progress::Done(true));
        }
        self.prove_late(id, LateRefresh { claim: self.claims, end: expiry, looks: LATE_LOOKS }, late)
    }

    /// Looks for challenges. Since the refresh no contender can judge the lock expired, and the challenge
    /// of one that did before still stands. So if no challenge stands and the lock file is ours, the lock
    /// is held.
    fn prove_late(
        &mut self,
        id: FileId,
        mut begun: LateRefresh,
        late: &mut Option<LateRefresh>,
    ) -> Result<Progress<bool>> {
        if self.is_challenged()? {
            begun.looks -= 1;
            if begun.looks == 0 {
                return Ok(Progress::Done(false));
            }
            *late = Some(begun);
            return Ok(Progress::Pause(LATE_INTERVAL));
        }
        let ours = self.is_ours(id)? && self.settings.now() < begun.end;
        if ours {
            self.expiry = begun.end;
        }
        Ok(Progress::Done(ours))
    }

    /// Returns why the lock is no longer held; `None` if it is held. Changes nothing.
    pub(super) fn lost(&self) -> Result<Option<LostReason>> {
        let ContenderState::Held(id) = self.state else { return Ok(Some(LostReason::FileRemoved)) };
        if self.is_ours(id)? {
            return Ok(None);
        }
        let found = disk::stat(&self.settings.lockfile);
        Ok(Some(match found {
            Ok(Some(lock)) if lock.id != id => LostReason::FileReplaced,
            _ => LostReason::FileRemoved,
        }))
    }

    /// Returns how long the lock lasts from `from`, unless it is refreshed.
    pub(super) fn left(&self, from: SystemTime) -> Duration {
        self.expiry.duration_since(from).unwrap_or_default()
    }

    /// Releases the lock; returns `false` if it was no longer held. Past its end this takes several
    /// steps, as in [`refresh`](Self::refresh).
    pub(super) fn release(
        &mut self,
        lifetime: Duration,
        late: &mut Option<LateRefresh>,
    ) -> Result<Progress<bool>> {
        let Some(id) = self.held_claim(late.as_ref()) else { return Ok(Progress::Done(false)) };
        // Past its end another contender may be about to break it, and then removing it is not safe.
        let in_time = late.is_none() && self.settings.now() < self.expiry;
        let ours = if in_time { Progress::Done(self.is_ours(id)?) } else { self.refresh(lifetime, late)? };
        let Progress::Done(ours) = ours else { return Ok(ours) };
        if ours {
            let lockfile = &self.settings.lockfile;
            disk::remove(lockfile).map_err(|e| self.settings.io("could not remove it", lockfile, e))?;
            tracing::debug!(key = %self.settings.key, "the lock file is released");
        }
        self.clear()?;
        Ok(Progress::Done(ours))
    }

    /// Removes all files of this contender, the lock included if it is held; in steps, as
    /// [`release`](Self::release).
    pub(super) fn give_up(&mut self, late: &mut Option<LateRefresh>) -> Result<Progress<()>> {
        if self.is_foreign() || self.is_idle() {
            return Ok(Progress::Done(()));
        }
        if self.is_held() {
            return self.release(self.settings.lifetime, late).map(|left| left.map(drop));
        }
        self.clear().map(Progress::Done)
    }

    fn clear(&mut self) -> Result<()> {
        if matches!(self.state, ContenderState::Challenging(_) | ContenderState::Settling(..)) {
            self.remove(&self.challenge)?;
        }
        self.remove(&self.claim)?;
        self.state = ContenderState::Idle;
        Ok(())
    }

    fn remove(&self, path: &Path) -> Result<()> {
        disk::remove(path).map(|_| ()).map_err(|e| self.settings.io("could not remove", path, e))
    }

    /// Parses a lock file's text; `None` if the file is not a lock.
    pub(super) fn parse<'a>(&self, text: &'a [u8]) -> Option<ClaimName<'a>> {
        ClaimName::parse(text, &self.settings.separator)
    }
}

impl fmt::Debug for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Contender").field("claim", &self.claim).field("stage", &self.state).finish()
    }
}
