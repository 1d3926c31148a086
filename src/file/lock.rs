//! The public lock file and its blocking methods. The async ones are in `async_api`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crate::error::{ErrorKind, Result};
use crate::file::attempt::{Attempt, PollTimer, take};
use crate::file::builder::Builder;
use crate::file::contender::{Contender, Step};
use crate::file::offload::spawn_or_run;
use crate::file::query::{Details, LockState};
use crate::file::settings::{Settings, check_lifetime};
use crate::file::slot::{self, SharedContender, try_with_contender};
use crate::file::steps::run_steps;
use crate::process::Origin;

/// A lock file that programs on a shared file system contend for, Python's `flufl.lock` among them.
///
/// It is one contender, with a claim of its own: two `FileLock`s on one path exclude each other, in one
/// process as in two. It takes and releases the lock with [`lock`](Self::lock) and
/// [`unlock`](Self::unlock); such a lock is refreshed by hand. [`acquire`](Self::acquire) returns a
/// [`LeaseGuard`](crate::LeaseGuard) instead, which is refreshed in the background; each guard has a
/// claim of its own, so many tasks can share one `FileLock`.
///
/// Dropping it releases the lock, if it holds it; within a runtime, in the background. Locks are not
/// reentrant.
///
/// The methods that touch files block; those that end in `_async` do the same off the reactor.
///
/// # Examples
/// ```
/// use dflockd_client::FileLock;
/// use std::time::Duration;
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("report.lck");
/// let lock = FileLock::builder(&path).build()?;
/// lock.lock(Duration::from_secs(5))?;
/// // One process on all machines gets here at a time.
/// lock.unlock()?;
/// # Ok::<(), dflockd_client::Error>(())
/// ```
pub struct FileLock {
    pub(super) settings: Arc<Settings>,
    pub(super) contender: SharedContender,
    lifetime: Mutex<Duration>,
    claim: PathBuf,
    origin: Origin,
}

impl FileLock {
    /// Starts a lock on the file at `path`, which need not exist; its directory must. A relative
    /// path is made absolute.
    pub fn builder(path: impl Into<PathBuf>) -> Builder {
        Builder::new(path.into())
    }

    pub(super) fn new(settings: Settings) -> Self {
        let lifetime = Mutex::new(settings.lifetime);
        let settings = Arc::new(settings);
        let contender = Contender::new(settings.clone());
        let claim = contender.claim.clone();
        Self {
            contender: Arc::new(Mutex::new(Some(contender))),
            settings,
            lifetime,
            claim,
            origin: Origin::here(),
        }
    }

    /// Takes the lock; waits for it up to `timeout`, for the default timeout if that is `None`, or
    /// forever if there is no default.
    ///
    /// A waiter tries again and again, with growing pauses (see [`Builder::poll`]); chance, not order,
    /// decides which waiter is next. An expired lock is broken, which takes 50 ms, and goes on even past
    /// the timeout.
    ///
    /// # Errors
    /// [`Busy`](ErrorKind::Busy) if other contenders keep it, or an unrelated file stands at the
    /// path; [`AlreadyLocked`](ErrorKind::AlreadyLocked) if this object holds it; [`Io`](ErrorKind::Io)
    /// if the directory is missing or may not be written, a directory stands at the path, or the disk is
    /// full. No claim is left behind.
    ///
    /// # Examples
    /// ```
    /// # use dflockd_client::{ErrorKind, FileLock};
    /// # use std::time::Duration;
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path().join("report.lck");
    /// let (one, other) = (FileLock::builder(&path).build()?, FileLock::builder(&path).build()?);
    /// one.lock(None)?;
    /// let error = other.lock(Duration::from_millis(10)).unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::Busy);
    /// # Ok::<(), dflockd_client::Error>(())
    /// ```
    pub fn lock(&self, timeout: impl Into<Option<Duration>>) -> Result<()> {
        let timeout = timeout.into().or(self.settings.default_timeout);
        let taken = self.take(timeout);
        let taken = taken.and_then(|taken| taken.then_some(()).ok_or_else(|| self.settings.timed_out()));
        taken.map_err(|error| error.during("lock"))
    }

    /// Takes the lock if it is free or expired; returns `false` if it is busy.
    ///
    /// # Errors
    /// As [`lock`](Self::lock), without the timeout.
    ///
    /// # Examples
    /// ```
    /// # use dflockd_client::FileLock;
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path().join("report.lck");
    /// let (one, other) = (FileLock::builder(&path).build()?, FileLock::builder(&path).build()?);
    /// assert!(one.try_lock()?);
    /// assert!(!other.try_lock()?);
    /// # Ok::<(), dflockd_client::Error>(())
    /// ```
    pub fn try_lock(&self) -> Result<bool> {
        self.take(Some(Duration::ZERO)).map_err(|error| error.during("lock"))
    }

    fn take(&self, timeout: Option<Duration>) -> Result<bool> {
        let mut timer = PollTimer::new(&self.settings, timeout);
        loop {
            if let Some(attempt) = Attempt::from_shared(&self.contender, self.lifetime())? {
                return Ok(take(attempt, &mut timer)?.map(Attempt::finish).is_some());
            }
            // Another call is taking it for this object.
            let Some(pause) = timer.pause(Step::Busy) else { return Ok(false) };
            std::thread::sleep(pause);
        }
    }

    /// Releases the lock.
    ///
    /// # Errors
    /// [`NotLocked`](ErrorKind::NotLocked) if this object does not hold it, or it was broken;
    /// [`Io`](ErrorKind::Io) if a file cannot be removed.
    ///
    /// # Examples
    /// ```
    /// # use dflockd_client::{ErrorKind, FileLock};
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path().join("report.lck");
    /// let lock = FileLock::builder(&path).build()?;
    /// lock.lock(None)?;
    /// lock.unlock()?;
    /// assert_eq!(lock.unlock().unwrap_err().kind(), ErrorKind::NotLocked);
    /// # Ok::<(), dflockd_client::Error>(())
    /// ```
    pub fn unlock(&self) -> Result<()> {
        let lifetime = self.lifetime();
        self.require_held(run_steps(slot::release(self.contender.clone(), lifetime)), "unlock")
    }

    /// Releases the lock if this object holds it, and otherwise removes the files that this object has
    /// left.
    ///
    /// # Errors
    /// [`Io`](ErrorKind::Io) if a file cannot be removed.
    pub fn unlock_unconditionally(&self) -> Result<()> {
        let outcome = run_steps(slot::give_up(self.contender.clone()));
        outcome.map_err(|error| error.during("unlock"))
    }

    /// Extends the lock to last for its lifetime from now, or for `lifetime`, which it keeps.
    ///
    /// # Errors
    /// [`NotLocked`](ErrorKind::NotLocked) if this object does not hold it, or it was broken: what it
    /// guards may have another holder. [`InvalidInput`](ErrorKind::InvalidInput) for a lifetime under
    /// 1 s; [`Io`](ErrorKind::Io) if the files cannot be read.
    ///
    /// # Examples
    /// ```
    /// # use dflockd_client::FileLock;
    /// # use std::time::Duration;
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path().join("report.lck");
    /// let lock = FileLock::builder(&path).build()?;
    /// lock.lock(None)?;
    /// let before = lock.expiration()?;
    /// lock.refresh(Duration::from_secs(60))?;
    /// assert!(lock.expiration()? > before);
    /// # Ok::<(), dflockd_client::Error>(())
    /// ```
    pub fn refresh(&self, lifetime: impl Into<Option<Duration>>) -> Result<()> {
        if let Some(lifetime) = lifetime.into() {
            self.set_lifetime(lifetime)?;
        }
        self.require_held(self.touch(), "refresh")
    }

    /// As [`refresh`](Self::refresh), but it is not an error if this object does not hold the lock.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) for a lifetime under 1 s; [`Io`](ErrorKind::Io) if the
    /// files cannot be read.
    pub fn refresh_unconditionally(&self, lifetime: impl Into<Option<Duration>>) -> Result<()> {
        if let Some(lifetime) = lifetime.into() {
            self.set_lifetime(lifetime)?;
        }
        self.touch().map(drop).map_err(|error| error.during("refresh"))
    }

    /// Returns `true` if this object holds the lock. The call refreshes the lock, so that the result
    /// still holds when it is returned.
    ///
    /// # Errors
    /// [`Io`](ErrorKind::Io) if the files cannot be read.
    ///
    /// # Examples
    /// ```
    /// # use dflockd_client::FileLock;
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path().join("report.lck");
    /// let lock = FileLock::builder(&path).build()?;
    /// assert!(!lock.is_locked()?);
    /// lock.lock(None)?;
    /// assert!(lock.is_locked()?);
    /// # Ok::<(), dflockd_client::Error>(())
    /// ```
    pub fn is_locked(&self) -> Result<bool> {
        self.touch().map_err(|error| error.during("is_locked"))
    }

    fn touch(&self) -> Result<bool> {
        run_steps(slot::refresh(self.contender.clone(), self.lifetime()))
    }

    pub(super) fn require_held(&self, outcome: Result<bool>, operation: &'static str) -> Result<()> {
        let not_ours = || self.settings.error(ErrorKind::NotLocked, "this object does not hold it");
        let outcome = outcome.and_then(|ours| ours.then_some(()).ok_or_else(not_ours));
        outcome.map_err(|error| error.during(operation))
    }

    /// Returns the state of the lock, whichever contender holds it. Changes nothing.
    ///
    /// # Errors
    /// [`Io`](ErrorKind::Io) if the file cannot be read.
    ///
    /// # Examples
    /// ```
    /// # use dflockd_client::{FileLock, LockState};
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path().join("report.lck");
    /// let (one, other) = (FileLock::builder(&path).build()?, FileLock::builder(&path).build()?);
    /// assert_eq!(one.state()?, LockState::Unlocked);
    /// one.lock(None)?;
    /// assert_eq!(other.state()?, LockState::Ours); // this process holds it
    /// # Ok::<(), dflockd_client::Error>(())
    /// ```
    pub fn state(&self) -> Result<LockState> {
        self.settings.state().map_err(|error| error.during("state"))
    }

    /// Returns the holder that the lock file names.
    ///
    /// # Errors
    /// [`NotLocked`](ErrorKind::NotLocked) if there is no lock file, or the file at the path is not a
    /// lock; [`Io`](ErrorKind::Io) if it cannot be read.
    ///
    /// # Examples
    /// ```
    /// # use dflockd_client::FileLock;
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path().join("report.lck");
    /// let lock = FileLock::builder(&path).build()?;
    /// lock.lock(None)?;
    /// let details = lock.details()?;
    /// assert_eq!(details.pid, std::process::id());
    /// assert_eq!(details.hostname, lock.hostname());
    /// # Ok::<(), dflockd_client::Error>(())
    /// ```
    pub fn details(&self) -> Result<Details> {
        self.settings.details().map_err(|error| error.during("details"))
    }

    /// Returns when the lock expires, whichever contender holds it: a whole second. It may be broken once
    /// the slop has passed as well.
    ///
    /// # Errors
    /// [`NotLocked`](ErrorKind::NotLocked) if there is no lock file; [`Io`](ErrorKind::Io) if it cannot
    /// be read.
    pub fn expiration(&self) -> Result<SystemTime> {
        self.settings.expiration().map_err(|error| error.during("expiration"))
    }

    /// Returns how long the lock lasts from when it is taken or refreshed.
    pub fn lifetime(&self) -> Duration {
        *self.lifetime_mut()
    }

    /// Sets how long the lock lasts from when it is taken or refreshed next.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) if that is under 1 s.
    pub fn set_lifetime(&self, lifetime: Duration) -> Result<()> {
        check_lifetime("lifetime", lifetime)?;
        *self.lifetime_mut() = lifetime;
        Ok(())
    }

    fn lifetime_mut(&self) -> std::sync::MutexGuard<'_, Duration> {
        self.lifetime.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the lock file's path, absolute.
    pub fn lockfile(&self) -> &Path {
        &self.settings.lockfile
    }

    /// Returns the path of this object's claim, which exists while it waits for the lock or holds it.
    pub fn claimfile(&self) -> &Path {
        &self.claim
    }

    /// Returns this machine's name in claims.
    pub fn hostname(&self) -> &str {
        &self.settings.hostname
    }

    /// Returns the error numbers on which reading the lock file is tried again.
    pub fn retry_errnos(&self) -> &[i32] {
        &self.settings.retry_errnos
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // A forked child does not hold it, and lacks the threads that would release it.
        if !self.origin.is_here() || try_with_contender(&self.contender, Contender::is_idle) == Some(true) {
            return;
        }
        spawn_or_run(slot::give_up(self.contender.clone()), |outcome| {
            if let Err(error) = outcome {
                tracing::warn!(%error, "a lock file could not be released");
            }
        });
    }
}

impl fmt::Debug for FileLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileLock")
            .field("lockfile", &self.settings.lockfile)
            .field("held", &try_with_contender(&self.contender, Contender::is_held))
            .field("lifetime", &self.lifetime())
            .finish_non_exhaustive()
    }
}
