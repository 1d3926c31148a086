//! The checked lease settings of a lock, and the options that replace some of them.

use std::time::Duration;

use crate::client::retry::RetryPolicy;
use crate::error::Result;
use crate::lease::LeaseConfig;
use crate::types::Seconds;
use crate::validate::lease_seconds;

/// The checked lease settings of a lock.
#[derive(Clone, Debug)]
pub(crate) struct LeaseOptions {
    pub(crate) request_timeout: Duration,
    pub(crate) acquire_timeout: Duration,
    pub(crate) ttl: Option<Seconds>,
    pub(crate) config: LeaseConfig,
    pub(crate) retry: Option<RetryPolicy>,
}

/// The settings of one lock that differ from those of its client. A setting that is not set stays as it is.
///
/// ```
/// use std::time::Duration;
/// use dflockd_client::{LockClient, LockOptions};
/// let locks = LockClient::builder().build()?;
/// let quick = LockOptions::new().lease_ttl(Duration::from_secs(5)).acquire_timeout(Duration::ZERO);
/// let lock = locks.lock("cache:rebuild")?.with_options(quick)?;
/// # Ok::<(), dflockd_client::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[must_use = "options do nothing until a lock is made with them"]
pub struct LockOptions {
    acquire_timeout: Option<Duration>,
    lease_ttl: Option<Duration>,
}

impl LockOptions {
    /// Makes options that change no setting.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`Builder::acquire_timeout`](crate::Builder::acquire_timeout) for this lock.
    pub fn acquire_timeout(mut self, timeout: Duration) -> Self {
        self.acquire_timeout = Some(timeout);
        self
    }

    /// Sets [`Builder::lease_ttl`](crate::Builder::lease_ttl) for this lock.
    pub fn lease_ttl(mut self, ttl: Duration) -> Self {
        self.lease_ttl = Some(ttl);
        self
    }
}

impl LeaseOptions {
    /// Returns these settings with the changes of `options`.
    pub(crate) fn with_options(mut self, options: LockOptions) -> Result<Self> {
        if let Some(timeout) = options.acquire_timeout {
            Seconds::ceil("acquire_timeout", timeout)?;
            self.acquire_timeout = timeout;
        }
        if options.lease_ttl.is_some() {
            self.ttl = lease_seconds("lease_ttl", options.lease_ttl)?;
        }
        Ok(self)
    }
}
