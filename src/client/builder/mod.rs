//! The builder and its lease settings, which every backend has. `build` checks them.

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

/// The default timeout of an operation that waits for no key.
const DEFAULT_REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Builds a client, a lock or a semaphore from its settings. [`build`](Self::build) checks them. Does no I/O.
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
    /// The backend with its settings.
    backend: B,
    lease: LeaseSettings,
}

/// The lease settings, before they are checked.
struct LeaseSettings {
    request_timeout: Duration,
    acquire_timeout: Duration,
    lease_ttl: Option<Duration>,
    config: LeaseConfig,
    retry: Option<RetryPolicy>,
}

impl Default for LeaseSettings {
    fn default() -> Self {
        Self {
            request_timeout: DEFAULT_REQUEST_TIMEOUT,
            acquire_timeout: Duration::from_secs(10),
            lease_ttl: None,
            config: LeaseConfig::default(),
            retry: None,
        }
    }
}

impl LeaseSettings {
    fn check(self) -> Result<LeaseOptions> {
        check_time("request_timeout", self.request_timeout)?;
        check_share("renew_jitter", self.config.renewal.jitter)?;
        check_share("at_risk_ratio", self.config.renewal.at_risk)?;
        let ratio = self.config.renewal.ratio;
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
            config: self.config,
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
    /// Sets the backend that grants the leases: [`Dflockd`], which is the default, or with the feature `file` a
    /// [`Directory`](crate::Directory) of lock files. Keeps the lease settings, and drops those of the previous
    /// backend.
    pub fn backend<C: IntoBackend>(self, backend: C) -> Builder<T, C> {
        Builder { target: self.target, backend, lease: self.lease }
    }

    /// Sets the timeout of every operation that waits for no key, connecting included: `try_acquire`,
    /// `enqueue`, `stats`, and an acquire whose timeout is 0; above 0. The client still reads a later reply,
    /// and releases a grant in it. `stats` of a long table over a slow link needs more. Defaults to 5 s.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.lease.request_timeout = timeout;
        self
    }

    /// Sets how long an acquire waits for the key. It returns within one more second, connecting included,
    /// even if the server does not reply: the server counts in whole seconds, rounded up. 0 makes it a try,
    /// which has the [request timeout](Self::request_timeout). Defaults to 10 s.
    pub fn acquire_timeout(mut self, timeout: Duration) -> Self {
        self.lease.acquire_timeout = timeout;
        self
    }

    /// Sets the ttl of the lease: how long the lock outlives a holder that no longer renews, in whole seconds,
    /// rounded up, at least 1. A short ttl renews often. With a long one, the key of a crashed holder stays taken
    /// for long, if the server does not notice the crash. Defaults to the server's own
    /// (33 s unless set there), for a directory of lock files to 15 s.
    pub fn lease_ttl(mut self, ttl: Duration) -> Self {
        self.lease.lease_ttl = Some(ttl);
        self
    }

    /// Sets the share of the remaining lease after which it is renewed, above 0 and below 1: a low share renews
    /// often, a high one leaves little time for another try. Defaults to 0.5.
    pub fn renew_ratio(mut self, ratio: f64) -> Self {
        self.lease.config.renewal.ratio = ratio;
        self
    }

    /// Sets the share of each interval by which a renewal may come early at random, 0 to 1, so that
    /// many leases do not renew at the same time. Defaults to 0.1.
    pub fn renew_jitter(mut self, jitter: f64) -> Self {
        self.lease.config.renewal.jitter = jitter;
        self
    }

    /// Sets the share of the ttl that is left when [`Lease::at_risk`](crate::Lease::at_risk) resolves, 0 to
    /// 1: a larger share leaves more time to wind down, and causes more false alarms. Defaults to 0.25.
    pub fn at_risk_ratio(mut self, ratio: f64) -> Self {
        self.lease.config.renewal.at_risk = ratio;
        self
    }

    /// Calls `handler` with every event of a lease, for metrics or an audit log. Defaults to none.
    ///
    /// The client calls it in order, on a dedicated thread, so it may block, and a panic in it is logged: no
    /// lease waits for it. Up to 65,536 events wait for it. Further events are dropped, counted in
    /// [`Metrics::dropped_events`](crate::Metrics::dropped_events) and logged as a warning. Events arrive late:
    /// for the current state, use [`Lease::state`](crate::Lease::state). Events that wait when the client and
    /// its leases are dropped are still delivered. Those that wait when the process exits are not.
    ///
    /// # Examples
    /// ```
    /// # use dflockd_client::test_util::TestServer;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
    /// # let server = TestServer::new();
    /// use dflockd_client::{LeaseEventKind, LostReason};
    /// let (sender, losses) = std::sync::mpsc::channel();
    /// let locks = server.builder().on_event(move |event| {
    ///     if let LeaseEventKind::Lost(reason) = event.kind {
    ///         sender.send(reason).unwrap_or_default();
    ///     }
    /// }).build()?;
    /// let guard = locks.lock("account:17")?.acquire().await?;
    /// server.cut();
    /// guard.lost().await;
    /// assert_eq!(losses.recv(), Ok(LostReason::ConnectionClosed));
    /// # Ok(()) }
    /// ```
    pub fn on_event(mut self, handler: impl Fn(&LeaseEvent) + Send + Sync + 'static) -> Self {
        self.lease.config.handler = EventHandler::new(handler);
        self
    }

    /// Sets the policy by which an acquire is retried, within its timeout, while the server cannot be reached
    /// or shuts down. Defaults to no retry.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.lease.retry = Some(policy);
        self
    }

    /// Returns the same settings for another target.
    #[cfg(feature = "blocking")]
    pub(crate) fn map_target<U>(self, map: impl FnOnce(T) -> U) -> Builder<U, B> {
        Builder { target: map(self.target), backend: self.backend, lease: self.lease }
    }

    /// Checks every setting and builds the target. Does no I/O.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput), which names the setting, the fault and the limit.
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
            .field("config", &self.lease.config)
            .field("retry", &self.lease.retry)
            .finish_non_exhaustive()
    }
}
