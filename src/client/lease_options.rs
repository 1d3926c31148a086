//! How locks take and keep their leases, and the settings that one lock may have of its own.

use std::time::Duration;

use crate::client::retry::RetryPolicy;
use crate::error::Result;
use crate::lease::LeaseConfig;
use crate::types::Seconds;
use crate::validate::lease_seconds;

/// How a lock is taken and kept.
#[derive(Clone, Debug)]
pub(crate) struct LeaseOptions {
    pub(crate) request_timeout: Duration,
    pub(crate) acquire_timeout: Duration,
    pub(crate) ttl: Option<Seconds>,
    pub(crate) terms: LeaseConfig,
    pub(crate) retry: Option<RetryPolicy>,
}

/// Settings of one lock that differ from its client's; what is not set stays as it is.
///
/// ```
/// use std::time::Duration;
/// use dflockd_client::{LockClient, Settings};
/// let locks = LockClient::builder().build()?;
/// let quick = Settings::new().lease_ttl(Duration::from_secs(5)).acquire_timeout(Duration::ZERO);
/// let lock = locks.lock("cache:rebuild")?.with(quick)?;
/// # Ok::<(), dflockd_client::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[must_use = "settings do nothing until a lock is made with them"]
pub struct LockOptions {
    acquire_timeout: Option<Duration>,
    lease_ttl: Option<Duration>,
}

impl LockOptions {
    /// No setting changed.
    pub fn new() -> Self {
        Self::default()
    }

    /// See [`Builder::acquire_timeout`](crate::Builder::acquire_timeout).
    pub fn acquire_timeout(mut self, timeout: Duration) -> Self {
        self.acquire_timeout = Some(timeout);
        self
    }

    /// See [`Builder::lease_ttl`](crate::Builder::lease_ttl).
    pub fn lease_ttl(mut self, ttl: Duration) -> Self {
        self.lease_ttl = Some(ttl);
        self
    }
}

impl LeaseOptions {
    /// These options with the settings' changes.
    pub(crate) fn with(mut self, settings: LockOptions) -> Result<Self> {
        if let Some(timeout) = settings.acquire_timeout {
            Seconds::ceil("acquire_timeout", timeout)?;
            self.acquire_timeout = timeout;
        }
        if settings.lease_ttl.is_some() {
            self.ttl = lease_seconds("lease_ttl", settings.lease_ttl)?;
        }
        Ok(self)
    }
}
