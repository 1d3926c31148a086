//! Where the work of blocking objects runs: one hidden thread with one runtime for the whole
//! process, or the runtime that a builder was given. Threads of the caller only wait for outcomes,
//! so a lease is renewed whatever they do. Knows of no lock.

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

/// How long a guard's drop waits for its release.
const DROP_LIMIT: Duration = Duration::from_secs(1);

/// The runtime of one object: the one that it was given, or the hidden one.
#[derive(Clone, Debug, Default)]
pub(super) struct Runtime {
    lent: Option<Handle>,
    origin: Origin,
}

impl Runtime {
    pub(super) fn lent(handle: Handle) -> Self {
        Self { lent: Some(handle), origin: Origin::here() }
    }

    /// Runs `work` there, and blocks until it is done. `twin` is what async code uses in its place.
    pub(super) fn run<T: Send + 'static>(
        &self,
        twin: &str,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        blocking(twin, || {
            let handle = self.handle()?;
            match handle.block_on(handle.spawn(work)) {
                Ok(outcome) => outcome,
                // The caller's own code may have panicked in there: a sharding strategy, a dial.
                Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
                Err(_) => Err(Error::new(ErrorKind::ConnectionClosed, "the runtime is shut down")),
            }
        })
    }

    /// Starts `work` there.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        if let Ok(handle) = self.handle() {
            handle.spawn(work);
        }
    }

    /// Looks at something by the runtime's clock, which stands still in some tests.
    pub(super) fn look<T>(&self, look: impl FnOnce() -> T) -> T {
        let _inside = self.lent.as_ref().map(Handle::enter);
        look()
    }

    /// Releases what is held. Waits a moment for that, so that it is done before a program that
    /// ends next is gone, unless this thread has async tasks to run.
    pub(super) fn let_go(&self, guard: LeaseGuard) {
        if !self.origin.is_here() {
            // It is another process's, and knows that.
            return drop(guard);
        }
        let (done, is_done) = mpsc::channel::<()>();
        self.spawn(async move {
            // A failure is told to the log and to whoever listens to events.
            drop(guard.release().await);
            drop(done);
        });
        if Handle::try_current().is_err_and(|none| none.is_missing_context()) {
            let _ = is_done.recv_timeout(DROP_LIMIT);
        }
    }

    fn handle(&self) -> Result<Handle> {
        match &self.lent {
            Some(handle) => unforked(&self.origin).map(|()| handle.clone()),
            None => Worker::get().and_then(Worker::handle),
        }
    }
}

/// Blocks this thread in `wait`, where that is allowed.
fn blocking<T>(twin: &str, wait: impl FnOnce() -> T) -> T {
    let allowed = Cell::new(false);
    let wait = || {
        allowed.set(true);
        wait()
    };
    // Tokio alone knows whether this thread may block, and tells by panicking.
    match catch_unwind(AssertUnwindSafe(|| block_in_place(wait))) {
        Ok(value) => value,
        Err(panic) if allowed.get() => resume_unwind(panic),
        Err(_) => panic_any(format!(
            "this would block a thread that runs async tasks: await `{twin}` there instead, or block in \
             `tokio::task::spawn_blocking`"
        )),
    }
}

/// The hidden thread.
struct Worker {
    handle: Handle,
    origin: Origin,
}

impl Worker {
    /// The one of this process, started at its first use.
    fn get() -> Result<&'static Self> {
        static WORKER: OnceLock<Worker> = OnceLock::new();
        static STARTING: Mutex<()> = Mutex::new(());
        if let Some(worker) = WORKER.get() {
            return Ok(worker);
        }
        let _alone = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
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
        unforked(&self.origin).map(|()| self.handle.clone())
    }
}

/// A forked process has the memory of a runtime, but not its threads.
fn unforked(origin: &Origin) -> Result<()> {
    let forked = |fault| Err(Error::new(ErrorKind::ConnectionClosed, fault));
    origin.fault().map_or(Ok(()), forked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::in_a_fork;

    #[test]
    fn a_forked_process_is_told_so_instead_of_waiting_for_a_thread_that_it_does_not_have() {
        let lent = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for runtime in [Runtime::default(), Runtime::lent(lent.handle().clone())] {
            assert!(runtime.handle().is_ok());
            let error = in_a_fork(|| runtime.run("it", async { Ok(()) })).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionClosed);
            assert!(error.to_string().contains("forked"), "{error}");
        }
    }
}
