//! The async methods of a lock file, whose calls to the file system run off the reactor, and the guard.

use std::time::{Duration, SystemTime};

use crate::error::{Error, Result};
use crate::file::attempt::{Attempt, InFlight, PollTimer, take_async};
use crate::file::contender::Step;
use crate::file::engine::{FileGrant, FileLease};
use crate::file::lock::FileLock;
use crate::file::offload::{run_steps_async, spawn_blocking_limited};
use crate::file::query::{Details, LockState};
use crate::file::slot;
use crate::lease::LeaseGuard;
use crate::suspend;
use crate::types::Token;

/// The shortest lifetime of a guard's lock. Its end is cut to a whole second: of 2 s, only half might be
/// left.
pub(crate) const MIN_GUARD_LIFETIME: Duration = Duration::from_secs(2);

impl FileLock {
    /// Waits for the lock, up to the default timeout, or forever if there is none. Returns a guard, which
    /// refreshes the lock in the background and releases it on drop.
    ///
    /// The guard is the same as that of a server's lease, except for what a file cannot do: it has no
    /// [`fence`](crate::Lease::fence), and it may take up to a second to notice that its file was broken,
    /// replaced or removed. Its key and endpoint are the lock file's path, its token the claim's.
    ///
    /// # Errors
    /// [`Busy`](crate::ErrorKind::Busy) and [`Io`](crate::ErrorKind::Io) as [`lock`](Self::lock);
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) if the lifetime is under 2 s, since ends are cut
    /// to whole seconds.
    ///
    /// # Cancel safety
    /// Dropping the future takes the claim away, and leaves a lock that was just taken.
    ///
    /// # Panics
    /// If it is called outside a tokio runtime with its timer enabled.
    ///
    /// # Examples
    /// ```
    /// # use dflockd_client::FileLock;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path().join("report.lck");
    /// let lock = FileLock::builder(&path).build()?;
    /// let guard = lock.acquire().await?;
    /// assert!(guard.is_held());
    /// guard.release().await?;
    /// assert!(!path.exists());
    /// # Ok(()) }
    /// ```
    pub async fn acquire(&self) -> Result<LeaseGuard> {
        match self.acquire_lease(self.settings.default_timeout).await? {
            Some(guard) => Ok(guard),
            None => Err(self.timed_out().await.during("acquire")),
        }
    }

    /// Waits for the lock up to `timeout`; as [`acquire`](Self::acquire).
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    ///
    /// # Examples
    /// ```
    /// # use dflockd_client::FileLock;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path().join("report.lck");
    /// use std::time::Duration;
    /// let lock = FileLock::builder(&path).build()?;
    /// let guard = lock.acquire().await?;
    /// let error = lock.acquire_within(Duration::from_millis(5)).await.unwrap_err();
    /// assert!(error.is_busy());
    /// # Ok(()) }
    /// ```
    pub async fn acquire_within(&self, timeout: Duration) -> Result<LeaseGuard> {
        match self.acquire_lease(Some(timeout)).await? {
            Some(guard) => Ok(guard),
            None => Err(self.timed_out().await.during("acquire")),
        }
    }

    /// Takes the lock if it is free or expired; returns `None` if it is busy.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire), without the timeout.
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    pub async fn try_acquire(&self) -> Result<Option<LeaseGuard>> {
        self.acquire_lease(Some(Duration::ZERO)).await
    }

    async fn acquire_lease(&self, timeout: Option<Duration>) -> Result<Option<LeaseGuard>> {
        let grant = self.acquire_grant(timeout, None).await?;
        let (key, config) = (self.settings.key.clone(), &self.settings.lease_config);
        Ok(grant.map(|grant| {
            let FileGrant { lease, token, began, ttl } = grant;
            LeaseGuard::new(lease, key, (token, None), config, (began, suspend::now()), ttl)
        }))
    }

    /// Takes the lock with a new claim, as [`acquire_within`](Self::acquire_within); returns `None` if it
    /// is busy. Waits forever if `timeout` is `None`. Drops `in_flight` once this neither waits for the lock nor
    /// has files to remove.
    pub(crate) async fn acquire_grant(
        &self,
        timeout: Option<Duration>,
        in_flight: Option<InFlight>,
    ) -> Result<Option<FileGrant>> {
        let lifetime = self.lifetime();
        if lifetime < MIN_GUARD_LIFETIME {
            return Err(Error::invalid("lifetime", format!("is {lifetime:?}, the least for a guard is 2 s")));
        }
        let attempt = Attempt::new(self.settings.clone(), lifetime, in_flight);
        let taken = take_async(attempt, &mut PollTimer::new(&self.settings, timeout)).await;
        let Some((attempt, began)) = taken.map_err(|error| error.during("acquire"))? else { return Ok(None) };
        let Some(held) = attempt.finish() else { return Ok(None) };
        // In this order: a lease counts from before it was requested, and no longer than it lasts.
        let since = began.elapsed();
        let ttl = since + held.left(self.settings.now());
        let token = Token::of_file(&held.text());
        Ok(Some(FileGrant { lease: FileLease::new(held, lifetime), token, began, ttl }))
    }

    /// As [`lock`](Self::lock), off the reactor.
    ///
    /// # Errors
    /// As [`lock`](Self::lock).
    ///
    /// # Cancel safety
    /// Dropping the future takes the claim away, and leaves a lock that was just taken.
    ///
    /// # Examples
    /// ```
    /// # use dflockd_client::FileLock;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path().join("report.lck");
    /// let lock = FileLock::builder(&path).build()?;
    /// lock.lock_async(None).await?;
    /// assert!(lock.is_locked_async().await?);
    /// lock.unlock_async().await?;
    /// # Ok(()) }
    /// ```
    pub async fn lock_async(&self, timeout: impl Into<Option<Duration>>) -> Result<()> {
        let timeout = timeout.into().or(self.settings.default_timeout);
        match self.take_async(timeout).await? {
            true => Ok(()),
            false => Err(self.timed_out().await.during("lock")),
        }
    }

    /// As [`try_lock`](Self::try_lock), off the reactor.
    ///
    /// # Errors
    /// As [`try_lock`](Self::try_lock).
    ///
    /// # Cancel safety
    /// As [`lock_async`](Self::lock_async).
    pub async fn try_lock_async(&self) -> Result<bool> {
        self.take_async(Some(Duration::ZERO)).await
    }

    async fn take_async(&self, timeout: Option<Duration>) -> Result<bool> {
        self.take_shared(timeout).await.map_err(|error| error.during("lock"))
    }

    async fn take_shared(&self, timeout: Option<Duration>) -> Result<bool> {
        let mut timer = PollTimer::new(&self.settings, timeout);
        loop {
            let (contender, lifetime) = (self.contender.clone(), self.lifetime());
            if let Some(attempt) =
                spawn_blocking_limited(move || Attempt::from_shared(&contender, lifetime)).await??
            {
                let taken = take_async(attempt, &mut timer).await?;
                return Ok(taken.map(|(attempt, _)| attempt.finish()).is_some());
            }
            // Another call is taking it for this object.
            let Some(pause) = timer.pause(Step::Busy) else { return Ok(false) };
            tokio::time::sleep(pause).await;
        }
    }

    async fn timed_out(&self) -> Error {
        let settings = self.settings.clone();
        spawn_blocking_limited(move || settings.timed_out()).await.unwrap_or_else(|stopped| stopped)
    }

    /// As [`unlock`](Self::unlock), off the reactor.
    ///
    /// # Errors
    /// As [`unlock`](Self::unlock).
    ///
    /// # Cancel safety
    /// Once polled, it is done even if the future is dropped.
    pub async fn unlock_async(&self) -> Result<()> {
        let lifetime = self.lifetime();
        self.require_held(run_steps_async(slot::release(self.contender.clone(), lifetime)).await, "unlock")
    }

    /// As [`unlock_unconditionally`](Self::unlock_unconditionally), off the reactor.
    ///
    /// # Errors
    /// As [`unlock_unconditionally`](Self::unlock_unconditionally).
    ///
    /// # Cancel safety
    /// As [`unlock_async`](Self::unlock_async).
    pub async fn unlock_unconditionally_async(&self) -> Result<()> {
        run_steps_async(slot::give_up(self.contender.clone())).await.map_err(|error| error.during("unlock"))
    }

    /// As [`refresh`](Self::refresh), off the reactor.
    ///
    /// # Errors
    /// As [`refresh`](Self::refresh).
    ///
    /// # Cancel safety
    /// As [`unlock_async`](Self::unlock_async).
    pub async fn refresh_async(&self, lifetime: impl Into<Option<Duration>>) -> Result<()> {
        if let Some(lifetime) = lifetime.into() {
            self.set_lifetime(lifetime)?;
        }
        self.require_held(self.touch_async().await, "refresh")
    }

    /// As [`refresh_unconditionally`](Self::refresh_unconditionally), off the reactor.
    ///
    /// # Errors
    /// As [`refresh_unconditionally`](Self::refresh_unconditionally).
    ///
    /// # Cancel safety
    /// As [`unlock_async`](Self::unlock_async).
    pub async fn refresh_unconditionally_async(&self, lifetime: impl Into<Option<Duration>>) -> Result<()> {
        if let Some(lifetime) = lifetime.into() {
            self.set_lifetime(lifetime)?;
        }
        self.touch_async().await.map(drop).map_err(|error| error.during("refresh"))
    }

    /// As [`is_locked`](Self::is_locked), off the reactor.
    ///
    /// # Errors
    /// As [`is_locked`](Self::is_locked).
    ///
    /// # Cancel safety
    /// As [`unlock_async`](Self::unlock_async).
    pub async fn is_locked_async(&self) -> Result<bool> {
        self.touch_async().await.map_err(|error| error.during("is_locked"))
    }

    async fn touch_async(&self) -> Result<bool> {
        run_steps_async(slot::refresh(self.contender.clone(), self.lifetime())).await
    }

    /// As [`state`](Self::state), off the reactor.
    ///
    /// # Errors
    /// As [`state`](Self::state).
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn state_async(&self) -> Result<LockState> {
        let settings = self.settings.clone();
        spawn_blocking_limited(move || settings.state()).await?.map_err(|error| error.during("state"))
    }

    /// As [`details`](Self::details), off the reactor.
    ///
    /// # Errors
    /// As [`details`](Self::details).
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn details_async(&self) -> Result<Details> {
        let settings = self.settings.clone();
        spawn_blocking_limited(move || settings.details()).await?.map_err(|error| error.during("details"))
    }

    /// As [`expiration`](Self::expiration), off the reactor.
    ///
    /// # Errors
    /// As [`expiration`](Self::expiration).
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn expiration_async(&self) -> Result<SystemTime> {
        let settings = self.settings.clone();
        spawn_blocking_limited(move || settings.expiration())
            .await?
            .map_err(|error| error.during("expiration"))
    }
}
