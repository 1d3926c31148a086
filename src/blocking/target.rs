//! The targets of the builders for threads: an async target, with a runtime beside it.

use tokio::runtime::Handle;

use crate::blocking::runtime::Runtime;
use crate::client::sealed::Sealed;
use crate::client::{Builder, IntoBackend, Target};

/// Builds the blocking counterpart of what `T` builds.
#[derive(Debug)]
pub struct Blocking<T> {
    pub(super) target: T,
    pub(super) runtime: Runtime,
}

impl<T> Sealed for Blocking<T> {}

impl<T: Target, B: IntoBackend> Builder<T, B> {
    /// Returns the same settings for the blocking counterpart of the target: [`blocking`](crate::blocking).
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
    /// Sets the runtime of connections and renewals. The program must drive it while the built value is in use:
    /// if no thread drives a current-thread runtime, every call waits forever, and if the runtime is shut down,
    /// every call fails with [`ConnectionClosed`](crate::ErrorKind::ConnectionClosed). Its I/O and time drivers
    /// must be enabled. Defaults to the hidden thread that all blocking objects share.
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
        self.map_target(|target| Blocking { runtime: Runtime::given(handle), ..target })
    }
}
