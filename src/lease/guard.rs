//! The guard of a lease, which releases it on drop.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::Instrument;

use crate::error::Result;
use crate::lease::config::LeaseConfig;
use crate::lease::handle::Lease;
use crate::lease::held::HeldLease;
use crate::lease::inner::LeaseInner;
use crate::lease::renewal::RenewalSchedule;
use crate::lease::reporter::LeaseReporter;
use crate::lease::task;
use crate::suspend;
use crate::types::{Fence, Key, Token};

/// A lease that is released when dropped. Its other methods are those of [`Lease`].
///
/// Dropping it queues the release without waiting and without a runtime. A release that fails then is logged.
/// To receive the error, await [`release`](Self::release).
#[must_use = "the lease is released as soon as the guard is dropped"]
pub struct LeaseGuard(Option<Lease>);

impl LeaseGuard {
    /// Makes the guard of a grant whose request was sent at `sent`, and spawns its renewal task.
    #[inline(always)]
    pub(crate) fn new(
        held: impl HeldLease,
        key: Key,
        (token, fence): (Token, Option<Fence>),
        config: &LeaseConfig,
        (sent, now): (Instant, Instant),
        ttl: Duration,
    ) -> Self {
        let schedule =
            RenewalSchedule::new(config.renewal, sent.into_std(), ttl, now.into_std(), fastrand::f64());
        let reporter = LeaseReporter::new(key, fence, held.endpoint(), config);
        let span = reporter.span.clone();
        let lease = Arc::new(LeaseInner::new(held, token, reporter, schedule));
        lease.set_task(tokio::spawn(task::run(lease.clone()).instrument(span)));
        Self(Some(Lease(lease)))
    }

    /// Releases the lease (`r`, `sr`) and returns the outcome; see [`Lease::release`].
    ///
    /// # Errors
    /// As [`Lease::release`].
    ///
    /// # Cancel safety
    /// The lease is released even if the future is dropped.
    ///
    /// # Examples
    /// ```
    /// # use dflockd_client::test_util::TestServer;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
    /// # let locks = TestServer::new().locks();
    /// let guard = locks.lock("account:17")?.acquire().await?;
    /// guard.release().await?;
    /// assert!(locks.stats().await?[0].locks.is_empty());
    /// # Ok(()) }
    /// ```
    pub async fn release(self) -> Result<()> {
        let lease = Lease::clone(&self);
        lease.release().await
        // If the future is dropped before its first poll, the drop of `self` releases the lease. Later that
        // drop does nothing, since the release was claimed.
    }

    /// Detaches the lease from this guard: it is renewed until it is released through the handle, lost, or
    /// the runtime shuts down. No drop releases it then.
    ///
    /// # Examples
    /// ```
    /// # use dflockd_client::test_util::TestServer;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
    /// # let locks = TestServer::new().locks();
    /// let guard = locks.lock("account:17")?.acquire().await?;
    /// let lease = guard.detach();
    /// assert!(lease.is_held());
    /// lease.release().await?;
    /// # Ok(()) }
    /// ```
    pub fn detach(mut self) -> Lease {
        self.take()
    }

    /// Stops renewing and releases nothing: the key stays taken until the lease expires.
    ///
    /// The client keeps the connection open until then, since a server frees what a closed connection held.
    ///
    /// # Examples
    /// ```
    /// # use dflockd_client::test_util::TestServer;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
    /// # let locks = TestServer::new().locks();
    /// let lock = locks.lock("once-an-hour")?;
    /// lock.acquire().await?.forget();
    /// assert!(lock.try_acquire().await?.is_none()); // until the lease expires
    /// # Ok(()) }
    /// ```
    pub fn forget(mut self) {
        let lease = self.take();
        lease.0.forget();
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
        let Some(lease) = self.0.take() else { return };
        if !lease.0.is_ours() {
            // Dropping its parts could wait for locks that no thread of this process holds.
            return std::mem::forget(lease);
        }
        if !lease.0.is_kept() {
            return;
        }
        let now = suspend::now();
        let lost = lease.0.state_at(now).lost().is_some();
        if lease.0.claim_release() {
            if lost {
                lease.0.release_lost(now);
            } else {
                lease.0.release(now, None);
            }
        }
    }
}

impl fmt::Debug for LeaseGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LeaseGuard").field(&self.0).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::thread;

    use futures::FutureExt;
    use futures::future::BoxFuture;

    use super::*;
    use crate::error::ErrorKind;
    use crate::lease::completion::ReleaseCompletion;
    use crate::lease::held::Change;
    use crate::lease::{LeaseState, LostReason, LostSignal, Outcome};
    use crate::process::in_a_fork;

    const S: Duration = Duration::from_secs(1);

    /// Counts its calls.
    struct CountedCalls(Arc<AtomicUsize>);

    impl CountedCalls {
        fn count(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl HeldLease for CountedCalls {
        fn endpoint(&self) -> Arc<str> {
            "here".into()
        }

        fn renew(&self) -> BoxFuture<'_, Result<Duration>> {
            self.count();
            Box::pin(pending())
        }

        fn release(&self, _: Instant, _: ReleaseCompletion) {
            self.count();
        }

        fn enforces_release_deadline(&self) -> bool {
            self.count();
            false
        }

        fn lost(&self, _: Instant) -> Option<LostReason> {
            self.count();
            None
        }

        async fn changed(&self) -> Change {
            pending().await
        }
    }

    impl Drop for CountedCalls {
        fn drop(&mut self) {
            self.count();
        }
    }

    fn guard(calls: &Arc<AtomicUsize>) -> LeaseGuard {
        let (key, token) = (Key::parse("k").unwrap(), Token::parse("t").unwrap());
        let now = Instant::now();
        LeaseGuard::new(
            CountedCalls(calls.clone()),
            key,
            (token, None),
            &LeaseConfig::default(),
            (now, now),
            60 * S,
        )
    }

    /// Does all that a forked child can do with a lease of its parent, while the locks of the lease are held by a
    /// thread that the child does not have.
    fn use_in_child(
        guard: LeaseGuard,
        other: LeaseGuard,
        mut watch: LostSignal,
        risk: impl Future<Output = ()>,
    ) {
        let forked = LostReason::Forked;
        assert!(!guard.is_held());
        assert_eq!(guard.state(), LeaseState::Lost(forked));
        assert_eq!(format!("{guard:?}").matches("Forked").count(), 1);
        assert_eq!(guard.ttl(), Duration::ZERO);
        assert!(guard.deadline() <= Instant::now());
        assert_eq!((watch.reason(), (&mut watch).now_or_never()), (Some(forked), Some(forked)));
        assert_eq!((risk.now_or_never(), guard.at_risk().now_or_never()), (Some(()), Some(())));
        assert_eq!(guard.run(async {}).now_or_never(), Some(Outcome::Lost(forked)));
        let errors =
            [guard.renew().now_or_never().unwrap().map(drop), guard.release().now_or_never().unwrap()];
        for error in errors.map(Result::unwrap_err) {
            assert_eq!(error.kind(), ErrorKind::LeaseLost, "{error}");
            assert!(error.to_string().contains("forked"), "{error}");
        }
        other.forget();
    }

    #[tokio::test]
    async fn a_forked_process_has_no_part_in_a_lease_and_takes_no_lock_of_it() {
        let calls = Arc::default();
        let [guard, other] = [guard(&calls), guard(&calls)];
        let leases = [Lease::clone(&guard), Lease::clone(&other)];
        let (mut watch, mut risk) = (guard.lost(), Box::pin(guard.at_risk()));
        assert_eq!(((&mut watch).now_or_never(), (&mut risk).now_or_never()), (None, None));
        let before = calls.load(Ordering::Relaxed);
        let locks = leases.each_ref().map(|Lease(lease)| (lease.schedule(), lease.reporter.state.lock()));
        let (done, is_done) = mpsc::channel();
        let child = thread::spawn(move || {
            in_a_fork(|| use_in_child(guard, other, watch, risk));
            done.send(()).unwrap();
        });
        is_done.recv_timeout(60 * S).expect("the child neither panics nor waits for a lock");
        child.join().unwrap();
        assert_eq!(calls.load(Ordering::Relaxed), before, "the child called the backend");
        drop(locks);
        assert!(leases.iter().all(|lease| lease.is_held()), "the parent has lost them");
    }
}
