//! What the builders make for threads: the async thing, with a runtime beside it. The settings are
//! the async builder's own.

use tokio::runtime::Handle;

use crate::blocking::runtime::Runtime;
use crate::blocking::{LockClient, SyncDistributedLock, SyncDistributedSemaphore};
use crate::client::sealed::Sealed;
use crate::client::{Builder, BuilderParts, ClientTarget, IntoBackend, LockTarget, SemaphoreTarget, Target};
use crate::error::Result;

/// Builds the blocking twin of what `T` builds.
#[derive(Debug)]
pub struct Blocking<T> {
    target: T,
    runtime: Runtime,
}

impl<T> Sealed for Blocking<T> {}

impl<T: Target, B: IntoBackend> Builder<T, B> {
    /// The same settings for the blocking twin of what this builds: [`blocking`](crate::blocking).
    ///
    /// # Examples
    /// ```
    /// # fn main() -> dflockd_client::Result<()> {
    /// # let server = dflockd_client::test_util::TestServer::new();
    /// let locks = server.builder().blocking().build()?;
    /// locks.lock("account:17")?.acquire()?.release()?;
    /// # Ok(()) }
    /// ```
    pub fn blocking(self) -> Builder<Blocking<T>, B> {
        self.map_target(|target| Blocking { target, runtime: Runtime::default() })
    }
}

impl<T, B: IntoBackend> Builder<Blocking<T>, B>
where
    Blocking<T>: Target,
{
    /// Runs connections and renewals on this runtime. Somebody must drive it for as long as anything
    /// built here is in use: a current-thread runtime that nobody blocks on makes every call wait
    /// for ever, and one that is shut down makes it fail with
    /// [`ConnectionClosed`](crate::ErrorKind::ConnectionClosed). Its IO and time drivers must be on.
    /// Defaults to the hidden thread that all blocking objects share.
    ///
    /// # Examples
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let server = dflockd_client::test_util::TestServer::new();
    /// let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    /// let locks = server.builder().blocking().runtime(runtime.handle().clone()).build()?;
    /// locks.lock("account:17")?.acquire()?.release()?;
    /// # Ok(()) }
    /// ```
    pub fn runtime(self, handle: Handle) -> Self {
        self.map_target(|target| Blocking { runtime: Runtime::lent(handle), ..target })
    }
}

impl Target for Blocking<ClientTarget> {
    type Output = LockClient;

    fn build_from(self, parts: BuilderParts) -> Result<LockClient> {
        Ok(LockClient { client: self.target.build_from(parts)?, runtime: self.runtime })
    }
}

impl Target for Blocking<LockTarget> {
    type Output = SyncDistributedLock;

    fn build_from(self, parts: BuilderParts) -> Result<SyncDistributedLock> {
        Ok(SyncDistributedLock { lock: self.target.build_from(parts)?, runtime: self.runtime })
    }
}

impl Target for Blocking<SemaphoreTarget> {
    type Output = SyncDistributedSemaphore;

    fn build_from(self, parts: BuilderParts) -> Result<SyncDistributedSemaphore> {
        Ok(SyncDistributedSemaphore { semaphore: self.target.build_from(parts)?, runtime: self.runtime })
    }
}
