//! Runs calls to the file system off the reactor, a few at a time.

use std::thread;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::sleep;

use crate::error::{Error, ErrorKind, Result};
use crate::file::steps::Progress;

/// The file calls in flight at a time in this process: further ones queue, and do not each start a
/// thread.
static BLOCKING_PERMITS: Semaphore = Semaphore::const_new(16);

/// Runs calls to the file system off the reactor.
pub(super) async fn spawn_blocking_limited<T: Send + 'static>(
    job: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    // The job keeps it to its end, even if no task waits for it.
    let permit = BLOCKING_PERMITS.acquire().await.map_err(|_| stopped())?;
    join(spawn_blocking(move || {
        let value = job();
        drop(permit);
        value
    }))
    .await
}

/// Runs a job off the reactor step by step. Once polled, it runs to its end even if the future is
/// dropped; it blocks no thread while it pauses.
pub(super) async fn run_steps_async<T: Send + 'static>(
    mut step: impl FnMut() -> Result<Progress<T>> + Send + 'static,
) -> Result<T> {
    join(tokio::spawn(async move {
        loop {
            let (back, progress) = spawn_blocking_limited(move || {
                let progress = step();
                (step, progress)
            })
            .await?;
            step = back;
            match progress? {
                Progress::Done(value) => return Ok(value),
                Progress::Pause(pause) => sleep(pause).await,
            }
        }
    }))
    .await?
}

async fn join<T>(running: JoinHandle<T>) -> Result<T> {
    match running.await {
        Ok(value) => Ok(value),
        Err(failed) if failed.is_panic() => std::panic::resume_unwind(failed.into_panic()),
        Err(_) => Err(stopped()),
    }
}

fn stopped() -> Error {
    Error::new(ErrorKind::Io, "the runtime is shut down")
}

/// Runs a job without waiting for it, and passes its outcome to `done`: off the reactor, or, if there
/// is no runtime or it is ending, on this thread.
pub(super) fn spawn_or_run<T: 'static>(
    mut step: impl FnMut() -> Result<Progress<T>> + Send + 'static,
    done: impl FnOnce(Result<T>) + Send + 'static,
) {
    let mut done = Some(done);
    let mut job = RunOnDrop(Some(move || {
        let outcome = match step() {
            Ok(Progress::Pause(pause)) => return Some(pause),
            Ok(Progress::Done(value)) => Ok(value),
            Err(error) => Err(error),
        };
        if let Some(done) = done.take() {
            done(outcome);
        }
        None
    }));
    // If there is no runtime, the job is dropped here, and so runs here.
    let Ok(runtime) = Handle::try_current() else { return };
    runtime.spawn(async move {
        loop {
            let stepped = spawn_blocking_limited(move || {
                let pause = job.step();
                (job, pause)
            });
            let Ok((back, Some(pause))) = stepped.await else { return };
            job = back;
            sleep(pause).await;
        }
    });
}

/// A job that runs to its end wherever it is dropped, if not before. It returns how long to pause before
/// its next step; `None` after the last.
struct RunOnDrop<F: FnMut() -> Option<Duration>>(Option<F>);

impl<F: FnMut() -> Option<Duration>> RunOnDrop<F> {
    fn step(&mut self) -> Option<Duration> {
        // Taken out: a job that panics does not run again where it is dropped.
        let mut job = self.0.take()?;
        let pause = job();
        self.0 = pause.map(|_| job);
        pause
    }
}

impl<F: FnMut() -> Option<Duration>> Drop for RunOnDrop<F> {
    fn drop(&mut self) {
        while let Some(pause) = self.step() {
            thread::sleep(pause);
        }
    }
}
