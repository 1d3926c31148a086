//! What a holder keeps: the guard that releases on drop, and the handle behind it.

use std::fmt;
use std::ops::Deref;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::error::{Error, ErrorKind, Result};
use crate::lease::engine::Engine;
use crate::lease::renewal::{LeaseState, LostReason, Pace, Renewal, Step};
use crate::lease::task;
use crate::types::{Fence, Key, Token};

/// What the guard, its handles and the renewal task share.
pub(super) struct Shared {
    pub(super) key: Key,
    pub(super) engine: Box<dyn Engine>,
    token: Token,
    renewal: Mutex<Renewal>,
    state: watch::Sender<LeaseState>,
    phase: AtomicU8,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// The lease is renewed and will be released.
const KEPT: u8 = 0;
/// The lease is neither renewed nor released: it runs out by itself.
const FORGOTTEN: u8 = 1;
/// The one release was attempted.
const RELEASED: u8 = 2;

impl Shared {
    fn renewal(&self) -> MutexGuard<'_, Renewal> {
        // Nothing panics while the schedule is locked; if it did, its numbers are still whole.
        self.renewal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wants_renewal(&self) -> bool {
        self.phase.load(Ordering::Acquire) == KEPT
    }

    /// Asks the schedule and publishes how the lease stands.
    pub(super) fn poll(&self, now: Instant, no_renewal: bool) -> Step {
        let (step, state) = {
            let mut renewal = self.renewal();
            (renewal.poll(now.into_std(), no_renewal), renewal.state(now.into_std()))
        };
        self.publish(state);
        step
    }

    /// Books the outcome of a renewal sent at `sent`.
    pub(super) fn settle(&self, sent: Instant, outcome: Result<Duration>) {
        let now = Instant::now();
        match outcome {
            Ok(ttl) => {
                let mut renewal = self.renewal();
                renewal.renewed(sent.into_std(), ttl, now.into_std(), fastrand::f64());
                let state = renewal.state(now.into_std());
                drop(renewal);
                tracing::debug!(key = %self.key, fence = ?self.token.fence(), ?ttl, "lease renewed");
                self.publish(state);
            }
            Err(error) if error.kind() == ErrorKind::NotHeld => self.lose(LostReason::RenewalRejected),
            Err(error) => {
                tracing::debug!(key = %self.key, fence = ?self.token.fence(), %error, "renewal failed");
                self.renewal().failed(now.into_std(), fastrand::f64());
            }
        }
    }

    fn publish(&self, state: LeaseState) {
        self.state.send_if_modified(|current| {
            let news = *current != state && current.lost().is_none();
            if news {
                *current = state;
            }
            news
        });
    }

    /// The lease is lost, unless it was let go before.
    pub(super) fn lose(&self, reason: LostReason) {
        if self.phase.load(Ordering::Acquire) == RELEASED {
            return;
        }
        let first = {
            let mut renewal = self.renewal();
            renewal.lose(reason);
            self.state.borrow().lost().is_none()
        };
        self.publish(LeaseState::Lost(reason));
        if first && self.wants_renewal() {
            tracing::warn!(key = %self.key, fence = ?self.token.fence(), %reason, "lease lost");
        }
    }

    fn state(&self) -> LeaseState {
        let state = self.renewal().state(Instant::now().into_std());
        match (state.lost(), self.engine.lost()) {
            (None, Some(reason)) => LeaseState::Lost(reason),
            _ => state,
        }
    }

    fn stop_task(&self) {
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            task.abort();
        }
    }

    /// Claims the one release; `false` where it was claimed before or given up.
    fn claim_release(&self) -> bool {
        let claimed = self.phase.compare_exchange(KEPT, RELEASED, Ordering::AcqRel, Ordering::Acquire);
        if claimed.is_ok() {
            self.stop_task();
        }
        claimed.is_ok()
    }

    fn lost_error(&self, operation: &'static str, reason: LostReason) -> Error {
        Error::new(ErrorKind::LeaseLost, reason.to_string()).during(operation).for_key(&self.key)
    }
}

/// How [`Lease::run`] ended.
#[must_use = "the lease may have been lost before the work was done"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<T> {
    /// The work finished while the lease was held.
    Completed(T),
    /// The lease was lost first, and the work was dropped where it stood.
    Lost(LostReason),
}

/// A handle on a lease that is held, renewed in the background. Cloning is cheap; dropping a
/// handle releases nothing (a [`LeaseGuard`] does that).
#[derive(Clone)]
pub struct Lease(Arc<Shared>);

impl Lease {
    /// The key that is held.
    pub fn key(&self) -> &Key {
        &self.0.key
    }

    /// The grant's token, as the server spelled it. Keep it out of logs.
    pub fn token(&self) -> &Token {
        &self.0.token
    }

    /// The grant's fence, to be checked by whatever the lease protects; `None` from servers too
    /// old to fence.
    pub fn fence(&self) -> Option<Fence> {
        self.0.token.fence()
    }

    /// The lease's length, as the server last set it.
    pub fn ttl(&self) -> Duration {
        self.0.renewal().ttl()
    }

    /// The instant up to which the lease is proven: when the last successful acquire or renewal
    /// was *sent*, plus the ttl. Never later than the server's own deadline.
    pub fn deadline(&self) -> Instant {
        self.0.renewal().deadline().into()
    }

    /// How the lease stands right now, by this process's clock.
    pub fn state(&self) -> LeaseState {
        self.0.state()
    }

    /// Whether the lease is held and neither released nor forgotten. Never true past the
    /// [`deadline`](Self::deadline), even if the renewal task was starved.
    pub fn is_held(&self) -> bool {
        self.0.wants_renewal() && self.state().lost().is_none()
    }

    /// Resolves when the lease is lost, with the reason; never after a release.
    ///
    /// The future is `'static` and borrows nothing: hand it to other tasks.
    ///
    /// # Cancel safety
    /// Dropping it loses nothing; a later call resolves at once if the lease is lost by then.
    pub fn lost(&self) -> impl Future<Output = LostReason> + Send + 'static {
        let mut state = self.0.state.subscribe();
        async move {
            loop {
                if let Some(reason) = state.borrow_and_update().lost() {
                    return reason;
                }
                if state.changed().await.is_err() {
                    // Released and gone: it can no longer be lost.
                    return std::future::pending().await;
                }
            }
        }
    }

    /// Resolves when little time is left (a quarter of the ttl) because renewals are late, or when
    /// the lease is lost. A later renewal may still heal the lease.
    ///
    /// # Cancel safety
    /// Dropping it loses nothing.
    pub fn at_risk(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut state = self.0.state.subscribe();
        async move {
            if state.wait_for(|state| *state != LeaseState::Healthy).await.is_err() {
                std::future::pending().await
            }
        }
    }

    /// Renews now (`n`, `sn`), whatever the schedule says, and answers the new ttl.
    ///
    /// # Errors
    /// [`ErrorKind::LeaseLost`] when the lease was lost before; [`ErrorKind::NotHeld`] when the
    /// server rejects the renewal, which loses the lease; otherwise what kept the answer away,
    /// which does not.
    ///
    /// # Cancel safety
    /// A renewal that was sent may still take effect; the deadline then stays the earlier one.
    pub async fn renew(&self) -> Result<Duration> {
        if let Some(reason) = self.state().lost() {
            return Err(self.0.lost_error("renew", reason));
        }
        let sent = Instant::now();
        let outcome = self.0.engine.renew().await;
        self.0.settle(sent, outcome.clone());
        outcome
    }

    /// Runs `work` while the lease is held; drops it where it stands when the lease is lost.
    ///
    /// Work that has started a blocking call or spawned a task goes on beyond the drop: the
    /// [`fence`](Self::fence) is for those.
    ///
    /// # Cancel safety
    /// Dropping the future drops `work`; the lease stays held.
    pub async fn run<F: Future>(&self, work: F) -> Outcome<F::Output> {
        tokio::select! {
            biased;
            reason = self.lost() => Outcome::Lost(reason),
            value = work => Outcome::Completed(value),
        }
    }

    /// Lets go (`r`, `sr`) and reports. Attempted once, whoever comes first; a second call is
    /// told [`ErrorKind::NotHeld`].
    ///
    /// # Errors
    /// [`ErrorKind::LeaseLost`] when the lease was lost before (the server is told all the same);
    /// [`ErrorKind::NotHeld`] when the server knows no such holder any more, or the lease was
    /// released before; otherwise what kept the answer away: the lease then runs out by itself.
    ///
    /// # Cancel safety
    /// Once polled, the release is on its way even if the future is dropped.
    pub async fn release(&self) -> Result<()> {
        let lost = self.state().lost();
        if !self.0.claim_release() {
            let again = Error::new(ErrorKind::NotHeld, "it was released or forgotten before");
            return Err(again.during("release").for_key(&self.0.key));
        }
        if let Some(reason) = lost {
            self.0.engine.release_soon();
            return Err(self.0.lost_error("release", reason));
        }
        let outcome = self.0.engine.release().await;
        match &outcome {
            Ok(()) => tracing::debug!(key = %self.0.key, fence = ?self.fence(), "lease released"),
            Err(error) => tracing::warn!(key = %self.0.key, fence = ?self.fence(), %error, "release failed"),
        }
        outcome
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("key", &self.0.key)
            .field("token", &self.0.token)
            .field("state", &self.state())
            .finish()
    }
}

/// A lease that is released when dropped. Everything to ask of it stands on [`Lease`].
///
/// Dropping queues the release without waiting for it and without needing a runtime; a failure
/// then goes to the log. Await [`release`](Self::release) to hear of it.
#[must_use = "the lease is released as soon as the guard is dropped"]
pub struct LeaseGuard(Option<Lease>);

impl LeaseGuard {
    /// Takes charge of a grant made by a request sent at `sent`: spawns the renewal task.
    pub(crate) fn new(
        engine: Box<dyn Engine>,
        key: Key,
        token: Token,
        pace: Pace,
        sent: Instant,
        ttl: Duration,
    ) -> Self {
        let now = Instant::now();
        let renewal = Renewal::new(pace, sent.into_std(), ttl, now.into_std(), fastrand::f64());
        let shared = Arc::new(Shared {
            key,
            token,
            engine,
            renewal: Mutex::new(renewal),
            state: watch::Sender::new(LeaseState::Healthy),
            phase: AtomicU8::new(KEPT),
            task: Mutex::new(None),
        });
        tracing::debug!(key = %shared.key, fence = ?shared.token.fence(), ?ttl, "lease granted");
        let task = tokio::spawn(task::keep(shared.clone()));
        *shared.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
        Self(Some(Lease(shared)))
    }

    /// Lets go (`r`, `sr`) and reports; see [`Lease::release`].
    ///
    /// # Errors
    /// As [`Lease::release`].
    ///
    /// # Cancel safety
    /// The lease is released whether or not the future is polled to its end.
    pub async fn release(self) -> Result<()> {
        let lease = Lease::clone(&self);
        lease.release().await
        // `self` drops here, or wherever the future is dropped: its release is then the second
        // one, and does nothing.
    }

    /// Lets the lease outlive this guard: it is renewed until it is released through the handle,
    /// lost, or the runtime ends. Nothing releases it on drop any more.
    pub fn detach(mut self) -> Lease {
        self.take()
    }

    /// Stops renewing and releases nothing: the key stays taken until the lease runs out.
    ///
    /// The connection is kept open until then, since a server frees what a closed one held.
    pub fn forget(mut self) {
        let lease = self.take();
        lease.0.phase.store(FORGOTTEN, Ordering::Release);
        tracing::debug!(key = %lease.0.key, fence = ?lease.fence(), "lease forgotten");
    }

    fn take(&mut self) -> Lease {
        self.0.take().expect("a guard has its lease until it is consumed")
    }
}

impl Deref for LeaseGuard {
    type Target = Lease;

    fn deref(&self) -> &Lease {
        self.0.as_ref().expect("a guard has its lease until it is consumed")
    }
}

impl Drop for LeaseGuard {
    fn drop(&mut self) {
        if let Some(lease) = self.0.take()
            && lease.0.claim_release()
        {
            lease.0.engine.release_soon();
        }
    }
}

impl fmt::Debug for LeaseGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LeaseGuard").field(&self.0).finish()
    }
}
