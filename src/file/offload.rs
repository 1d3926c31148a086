//! Calls to the file system made off the reactor, a few at a time. Knows of no lock.

use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::error::{Error, ErrorKind, Result};

/// File calls under way at a time in this process: waiters beyond it wait for their turn, and do
/// not each start a thread.
static CALLS: Semaphore = Semaphore::const_new(16);

/// Runs calls to the file system off the reactor.
pub(super) async fn off_reactor<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let stopped = || Error::new(ErrorKind::Io, "the runtime is shut down");
    // Kept by the job to its end, even if nobody waits for it any more.
    let permit = CALLS.acquire().await.map_err(|_| stopped())?;
    let running = tokio::task::spawn_blocking(move || {
        let value = job();
        drop(permit);
        value
    });
    match running.await {
        Ok(value) => Ok(value),
        Err(failed) if failed.is_panic() => std::panic::resume_unwind(failed.into_panic()),
        Err(_) => Err(stopped()),
    }
}

/// A job that is done wherever it is dropped, if not before.
struct Surely<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> Surely<F> {
    fn run(mut self) {
        if let Some(job) = self.0.take() {
            job();
        }
    }
}

impl<F: FnOnce()> Drop for Surely<F> {
    fn drop(&mut self) {
        if let Some(job) = self.0.take() {
            job();
        }
    }
}

/// Does the job without waiting for it: off the reactor, or, where there is none or it is ending,
/// right here.
pub(super) fn soon(job: impl FnOnce() + Send + 'static) {
    let job = Surely(Some(job));
    if let Ok(runtime) = Handle::try_current() {
        // What keeps the job from being done drops it, and so does it.
        runtime.spawn(async move { drop(off_reactor(move || job.run()).await) });
    }
}
