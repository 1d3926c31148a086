//! Runs the work of blocking objects: on one hidden thread with one runtime for the whole process, or on the
//! runtime that the builder was given. The caller's threads only wait for outcomes, so they cannot hold up a renewal.

use std::cell::Cell;
use std::future::pending;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any, resume_unwind};
use std::sync::{Mutex, OnceLock, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::block_in_place;

use crate::error::{Error, ErrorKind, Result};
use crate::lease::LeaseGuard;
use crate::process::Origin;

/// The longest time that a guard's drop waits for its release.
const DROP_TIMEOUT: Duration = Duration::from_secs(1);

/// The runtime of one object: the one that the builder was given, or the hidden one.
#[derive(Clone, Debug, Default)]
pub(super) struct Runtime {
    given: Option<Handle>,
    origin: Origin,
}

impl Runtime {
    pub(super) fn given(handle: Handle) -> Self {
        Self { given: Some(handle), origin: Origin::here() }
    }

    /// Runs `work` on this runtime, and blocks until it is done. A panic in async code names the
    /// `async_counterpart` of the blocking type.
    pub(super) fn run<T: Send + 'static>(
        &self,
        async_counterpart: &str,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        block(async_counterpart, || {
            let handle = self.handle()?;
            match handle.block_on(handle.spawn(work)) {
                Ok(outcome) => outcome,
                // The caller's own code may have panicked in the task: a sharding strategy, a dial.
                Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
                Err(_) => Err(Error::new(ErrorKind::ConnectionClosed, "the runtime is shut down")),
            }
        })
    }

    /// Spawns `work` on this runtime.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        if let Ok(handle) = self.handle() {
            handle.spawn(work);
        }
    }

    /// Calls `read` with the runtime's clock, which may be paused in a test.
    pub(super) fn enter<T>(&self, read: impl FnOnce() -> T) -> T {
        let _entered = self.given.as_ref().map(Handle::enter);
        read()
    }

    /// Releases the lease of `guard`. Waits up to [`DROP_TIMEOUT`] for the outcome, so that the release is done
    /// before the program exits, unless this thread runs async tasks.
    pub(super) fn release_on_drop(&self, guard: LeaseGuard) {
        if !self.origin.is_here() {
            // The drop of a guard does nothing in a forked process.
            return drop(guard);
        }
        let (done, is_done) = mpsc::channel::<()>();
        self.spawn(async move {
            // The log and the event handler receive a failure.
            drop(guard.release().await);
            drop(done);
        });
        if Handle::try_current().is_err_and(|none| none.is_missing_context()) {
            let _ = is_done.recv_timeout(DROP_TIMEOUT);
        }
    }

    fn handle(&self) -> Result<Handle> {
        match &self.given {
            Some(handle) => check_process(&self.origin).map(|()| handle.clone()),
            None => Worker::get().and_then(Worker::handle),
        }
    }
}

/// Blocks this thread in `wait`. If this thread runs async tasks, panics before it calls `wait`.
fn block<T>(async_counterpart: &str, wait: impl FnOnce() -> T) -> T {
    let allowed = Cell::new(false);
    let wait = || {
        allowed.set(true);
        wait()
    };
    // Only tokio knows whether this thread may block, and `block_in_place` panics if it may not.
    match catch_unwind(AssertUnwindSafe(|| block_in_place(wait))) {
        Ok(value) => value,
        Err(panic) if allowed.get() => resume_unwind(panic),
        Err(_) => panic_any(format!(
            "this call would block a thread that runs async tasks: await `{async_counterpart}` instead, or block \
             in `tokio::task::spawn_blocking`"
        )),
    }
}

/// The hidden thread.
struct Worker {
    handle: Handle,
    origin: Origin,
}

impl Worker {
    /// Returns the thread of this process, and starts it at the first use.
    fn get() -> Result<&'static Self> {
        static WORKER: OnceLock<Worker> = OnceLock::new();
        static STARTING: Mutex<()> = Mutex::new(());
        if let Some(worker) = WORKER.get() {
            return Ok(worker);
        }
        let _starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        match WORKER.get() {
            Some(worker) => Ok(worker),
            None => {
                let worker = Self::start().map_err(|cause| Error::io("could not start a thread", cause))?;
                Ok(WORKER.get_or_init(|| worker))
            }
        }
    }

    fn start() -> std::io::Result<Self> {
        const NAME: &str = "dflockd-blocking";
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .thread_name("dflockd-callback")
            .build()?;
        let handle = runtime.handle().clone();
        thread::Builder::new().name(NAME.into()).spawn(move || runtime.block_on(pending::<()>()))?;
        Ok(Self { handle, origin: Origin::here() })
    }

    fn handle(&self) -> Result<Handle> {
        check_process(&self.origin).map(|()| self.handle.clone())
    }
}

/// Fails in a forked process, which has the memory of a runtime but not its threads.
fn check_process(origin: &Origin) -> Result<()> {
    let forked = |fault| Err(Error::new(ErrorKind::ConnectionClosed, fault));
    origin.fault().map_or(Ok(()), forked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::in_a_fork;

    #[test]
    fn a_call_in_a_forked_process_fails_instead_of_waiting_for_a_thread_that_the_process_does_not_have() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for runtime in [Runtime::default(), Runtime::given(runtime.handle().clone())] {
            assert!(runtime.handle().is_ok());
            let error = in_a_fork(|| runtime.run("it", async { Ok(()) })).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionClosed);
            assert!(error.to_string().contains("forked"), "{error}");
        }
    }
}
