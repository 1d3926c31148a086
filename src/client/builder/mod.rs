//! The settings of leases, for every engine, checked once in `build`.

mod dflockd;

use std::fmt;
use std::time::Duration;

use crate::backend::dflockd::Dflockd;
use crate::client::any::IntoBackend;
use crate::client::lease_options::LeaseOptions;
use crate::client::retry::RetryPolicy;
use crate::client::target::{BuilderParts, Target};
use crate::error::{Error, Result};
use crate::lease::{EventHandler, LeaseConfig, LeaseEvent};
use crate::types::Seconds;
use crate::validate::{check_share, check_time, lease_seconds};

/// How long an operation that waits for no key may take, unless set.
const DEFAULT_REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// The settings of a client, a lock or a semaphore. Nothing is checked, and nothing connects,
/// before [`build`](Self::build).
///
/// ```
/// use std::time::Duration;
/// use dflockd_client::{AsyncDistributedLock, ErrorKind};
/// let lock = AsyncDistributedLock::builder("deploy-job")
///     .servers([("10.0.0.1", 6388), ("10.0.0.2", 6388)])
///     .acquire_timeout(Duration::from_secs(30))
///     .lease_ttl(Duration::from_secs(60))
///     .build()?;
/// let error = AsyncDistributedLock::builder("two words").build().unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::InvalidInput);
/// # Ok::<(), dflockd_client::Error>(())
/// ```
#[must_use = "a builder does nothing until it is built"]
pub struct Builder<T, B = Dflockd> {
    target: T,
    /// The engine with its settings.
    backend: B,
    lease: LeaseSettings,
}

/// The lease settings, as they were given.
struct LeaseSettings {
    request_timeout: Duration,
    acquire_timeout: Duration,
    lease_ttl: Option<Duration>,
    terms: LeaseConfig,
    retry: Option<RetryPolicy>,
}

impl Default for LeaseSettings {
    fn default() -> Self {
        Self {
            request_timeout: DEFAULT_REQUEST_TIMEOUT,
            acquire_timeout: Duration::from_secs(10),
            lease_ttl: None,
            terms: LeaseConfig::default(),
            retry: None,
        }
    }
}

impl LeaseSettings {
    fn check(self) -> Result<LeaseOptions> {
        check_time("request_timeout", self.request_timeout)?;
        check_share("renew_jitter", self.terms.renewal.jitter)?;
        check_share("at_risk_ratio", self.terms.renewal.at_risk)?;
        let ratio = self.terms.renewal.ratio;
        if !(ratio > 0.0 && ratio < 1.0) {
            return Err(Error::invalid("renew_ratio", format!("is {ratio}, it must be above 0 and below 1")));
        }
        if let Some(retry) = &self.retry {
            retry.check()?;
        }
        Seconds::ceil("acquire_timeout", self.acquire_timeout)?;
        Ok(LeaseOptions {
            request_timeout: self.request_timeout,
            acquire_timeout: self.acquire_timeout,
            ttl: lease_seconds("lease_ttl", self.lease_ttl)?,
            terms: self.terms,
            retry: self.retry,
        })
    }
}

impl<T: Target> Builder<T> {
    pub(crate) fn new(target: T) -> Self {
        Self { target, backend: Dflockd::default(), lease: LeaseSettings::default() }
    }
}

impl<T: Target, B: IntoBackend> Builder<T, B> {
    /// Chooses another engine to grant the leases. The lease settings stay; those of the engine that was
    /// chosen before are gone. Defaults to [`Dflockd`].
    pub fn backend<C: IntoBackend>(self, backend: C) -> Builder<T, C> {
        Builder { target: self.target, backend, lease: self.lease }
    }

    /// How long anything may take, connecting included, that waits for no key: `try_acquire`,
    /// `enqueue`, `stats`, and an acquire whose timeout is 0; above 0. An answer that comes later is
    /// still read, and a grant in it given back. A long table over a slow link needs more. Defaults to
    /// 5 s.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.lease.request_timeout = timeout;
        self
    }

    /// How long an acquire waits for the key. It ends within a second more, connecting included,
    /// whether or not the server answers: the server counts in whole seconds, rounded up. 0 is a try,
    /// which has the [request timeout](Self::request_timeout). Defaults to 10 s.
    pub fn acquire_timeout(mut self, timeout: Duration) -> Self {
        self.lease.acquire_timeout = timeout;
        self
    }

    /// The lease: how long the lock outlives a holder that falls silent, in whole seconds, rounded
    /// up, at least 1. Short ones renew often; long ones keep a crashed holder's key taken for
    /// long, where the server does not notice the crash. Defaults to the server's own (33 s unless
    /// set there), for a directory of lock files to 15 s.
    pub fn lease_ttl(mut self, ttl: Duration) -> Self {
        self.lease.lease_ttl = Some(ttl);
        self
    }

    /// The share of the remaining lease after which it is renewed, above 0 and below 1: low is
    /// careful and busy, high leaves little time for another try. Defaults to 0.5.
    pub fn renew_ratio(mut self, ratio: f64) -> Self {
        self.lease.terms.renewal.ratio = ratio;
        self
    }

    /// The share of each interval by which a renewal may come early at random, 0 to 1, so that
    /// many leases do not renew in step. Defaults to 0.1.
    pub fn renew_jitter(mut self, jitter: f64) -> Self {
        self.lease.terms.renewal.jitter = jitter;
        self
    }

    /// The share of the ttl that is left when [`Lease::at_risk`](crate::Lease::at_risk) fires, 0 to
    /// 1: more gives work more time to wind down, and more false alarms. Defaults to 0.25.
    pub fn at_risk_ratio(mut self, ratio: f64) -> Self {
        self.lease.terms.renewal.at_risk = ratio;
        self
    }

    /// Calls `listener` at everything that happens to a lease, for those who count. Defaults to none.
    ///
    /// It is called in order, on a thread that it has to itself, so it may block, and a panic in it is
    /// logged: no lease waits for it. Up to 65,536 events are kept for it; what comes beyond that is dropped,
    /// counted in [`Metrics::dropped_events`](crate::Metrics::dropped_events) and warned of. It is told of
    /// what happened a moment later, then: ask the lease how it stands. What is left when the client and its
    /// leases are gone is still told, but not what is left when the process ends.
    ///
    /// # Examples
    /// ```
    /// # use dflockd_client::test_util::TestServer;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
    /// # let server = TestServer::new();
    /// use dflockd_client::{LeaseChange, LostReason};
    /// let (tell, losses) = std::sync::mpsc::channel();
    /// let locks = server.builder().on_event(move |event| {
    ///     if let LeaseChange::Lost(reason) = event.change {
    ///         tell.send(reason).unwrap_or_default();
    ///     }
    /// }).build()?;
    /// let guard = locks.lock("account:17")?.acquire().await?;
    /// server.cut();
    /// guard.lost().await;
    /// assert_eq!(losses.recv(), Ok(LostReason::ConnectionClosed));
    /// # Ok(()) }
    /// ```
    pub fn on_event(mut self, listener: impl Fn(&LeaseEvent) + Send + Sync + 'static) -> Self {
        self.lease.terms.handler = EventHandler::new(listener);
        self
    }

    /// Tries an acquire again, within its timeout, while the server cannot be reached or shuts
    /// down. Defaults to no retry.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.lease.retry = Some(policy);
        self
    }

    /// The same settings for another target.
    #[cfg(feature = "blocking")]
    pub(crate) fn map_target<U>(self, to: impl FnOnce(T) -> U) -> Builder<U, B> {
        Builder { target: to(self.target), backend: self.backend, lease: self.lease }
    }

    /// Checks every setting and makes the thing. Connects to nothing.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput), naming the setting, its fault and the
    /// limit.
    pub fn build(self) -> Result<T::Output> {
        let lease = self.lease.check()?;
        let backend = self.backend.into_backend(lease.request_timeout)?;
        self.target.build_from(BuilderParts { backend, lease })
    }
}

impl<T, B: fmt::Debug> fmt::Debug for Builder<T, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("backend", &self.backend)
            .field("request_timeout", &self.lease.request_timeout)
            .field("acquire_timeout", &self.lease.acquire_timeout)
            .field("lease_ttl", &self.lease.lease_ttl)
            .field("terms", &self.lease.terms)
            .field("retry", &self.lease.retry)
            .finish_non_exhaustive()
    }
}
