//! A held lock file as a lease: refreshed off the reactor, and checked in between, so that its holder
//! soon learns that a contender has broken it.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use tokio::time::{Instant, sleep};

use crate::error::{Error, ErrorKind, Result};
use crate::file::contender::{Contender, LateRefresh};
use crate::file::offload::{run_steps_async, spawn_blocking_limited, spawn_or_run};
use crate::file::settings::Settings;
use crate::file::slot::{self, SharedContender, with_contender};
use crate::file::steps::Progress;
use crate::lease::{Change, HeldLease, LostReason, ReleaseCompletion};
use crate::types::Token;

/// How often a holder checks that its lock file still exists.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A lock file that was just taken. Dropping it does not release the lock, which stays until it expires:
/// create a guard from it at once, or release its lease.
pub(crate) struct FileGrant {
    pub(crate) lease: FileLease,
    /// The claim's name.
    pub(crate) token: Token,
    /// The instant before the lock was taken.
    pub(crate) began: Instant,
    /// How long the lock lasts, counted from `began`.
    pub(crate) ttl: Duration,
}

/// A lock file that a contender holds.
pub(crate) struct FileLease {
    settings: Arc<Settings>,
    lifetime: Duration,
    endpoint: Arc<str>,
    contender: SharedContender,
    lost: Arc<OnceLock<LostReason>>,
}

impl FileLease {
    /// Creates the lease of a contender that holds the lock.
    pub(super) fn new(contender: Contender, lifetime: Duration) -> Self {
        let settings = contender.settings.clone();
        let endpoint = settings.lockfile.to_string_lossy().into();
        Self {
            settings,
            lifetime,
            endpoint,
            contender: Arc::new(Mutex::new(Some(contender))),
            lost: Arc::default(),
        }
    }

    /// Starts a release, and passes its outcome to `done`.
    pub(crate) fn release_then(&self, done: impl FnOnce(Result<()>) + Send + 'static) {
        let settings = self.settings.clone();
        spawn_or_run(slot::release(self.contender.clone(), self.lifetime), move |outcome| {
            let outcome = outcome.and_then(|was_held| {
                let gone = || {
                    settings.error(ErrorKind::NotHeld, "another contender broke it, or its file was removed")
                };
                was_held.then_some(()).ok_or_else(gone)
            });
            done(outcome.map_err(|error| error.during("release")));
        });
    }

    async fn renew_once(&self) -> Result<Duration> {
        let (contender, lifetime, lost) = (self.contender.clone(), self.lifetime, self.lost.clone());
        // A lease counts from before its renewal is requested.
        let from = self.settings.now();
        let mut late = None;
        let left = run_steps_async(move || {
            with_contender(&contender, |held| renew(held, lifetime, from, &lost, &mut late))
                .unwrap_or(Ok(Progress::Done(None)))
        });
        left.await?.ok_or_else(|| self.not_held())
    }

    fn not_held(&self) -> Error {
        let reason = self.lost.get().map_or_else(|| "it was released".to_owned(), ToString::to_string);
        self.settings.error(ErrorKind::NotHeld, reason)
    }

    async fn check(&self) -> Option<LostReason> {
        let (contender, lost) = (self.contender.clone(), self.lost.clone());
        let look = spawn_blocking_limited(move || {
            // A file that cannot be read may exist: the deadline decides.
            let reason = with_contender(&contender, |held| held.lost().ok().flatten()).flatten();
            reason.map(|reason| *lost.get_or_init(|| reason))
        });
        look.await.ok().flatten()
    }
}

/// Refreshes once; returns how long the lock lasts, counted from `from` by the clock that its end is set
/// with.
fn renew(
    held: &mut Contender,
    lifetime: Duration,
    from: SystemTime,
    lost: &OnceLock<LostReason>,
    late: &mut Option<LateRefresh>,
) -> Result<Progress<Option<Duration>>> {
    let held_still = match held.refresh(lifetime, late)? {
        Progress::Done(held_still) => held_still,
        Progress::Pause(pause) => return Ok(Progress::Pause(pause)),
    };
    if held_still {
        return Ok(Progress::Done(Some(held.left(from))));
    }
    if let Some(reason) = held.lost()? {
        lost.get_or_init(|| reason);
    }
    Ok(Progress::Done(None))
}

impl HeldLease for FileLease {
    fn endpoint(&self) -> Arc<str> {
        self.endpoint.clone()
    }

    fn renew(&self) -> BoxFuture<'_, Result<Duration>> {
        Box::pin(async { self.renew_once().await.map_err(|error| error.during("renew")) })
    }

    fn enforces_release_deadline(&self) -> bool {
        false
    }

    fn release(&self, _: Instant, completion: ReleaseCompletion) {
        self.release_then(|outcome| completion.complete(outcome));
    }

    fn lost(&self, _: Instant) -> Option<LostReason> {
        self.lost.get().copied()
    }

    async fn changed(&self) -> Change {
        loop {
            sleep(CHECK_INTERVAL.min(self.lifetime / 4)).await;
            if let Some(reason) = self.check().await {
                return Change::Lost(reason);
            }
        }
    }
}
