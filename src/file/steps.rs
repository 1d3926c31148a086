//! Jobs that pause between calls to the file system: each is a function that takes one step and returns
//! how far it has come. The caller pauses, and holds no lock meanwhile.

use std::thread;
use std::time::Duration;

use crate::error::Result;

/// How far a job has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress<T> {
    Done(T),
    /// The next step is due after this pause.
    Pause(Duration),
}

impl<T> Progress<T> {
    pub(super) fn map<U>(self, f: impl FnOnce(T) -> U) -> Progress<U> {
        match self {
            Self::Done(value) => Progress::Done(f(value)),
            Self::Pause(pause) => Progress::Pause(pause),
        }
    }
}

/// Runs a job to its end on this thread.
pub(super) fn run_steps<T>(mut step: impl FnMut() -> Result<Progress<T>>) -> Result<T> {
    loop {
        match step()? {
            Progress::Done(value) => return Ok(value),
            Progress::Pause(pause) => thread::sleep(pause),
        }
    }
}
