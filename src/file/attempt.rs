//! One attempt at taking the lock. If it is dropped, it leaves no file behind.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::error::Result;
use crate::file::backoff::Backoff;
use crate::file::contender::{Contender, LateRefresh, Step};
use crate::file::offload::{run_steps_async, spawn_blocking_limited, spawn_or_run};
use crate::file::settings::Settings;
use crate::file::slot::SharedContender;
use crate::file::steps::{Progress, run_steps};
use crate::suspend;

/// A contender that is taking the lock. Dropping it gives up, and returns the contender to its owner.
pub(super) struct Attempt {
    contender: Option<Contender>,
    owner: Option<SharedContender>,
    lifetime: Duration,
    late: Option<LateRefresh>,
    /// The outcome of an attempt that failed: its files are being removed.
    failed: Option<Result<Step>>,
    /// Dropped when the attempt is over, and has left no file behind.
    in_flight: Option<InFlight>,
}

/// Something that is to live for as long as an attempt, the removal of its files included.
pub(crate) type InFlight = Box<dyn Send>;

impl Attempt {
    /// Starts an attempt of a new contender.
    pub(super) fn new(settings: Arc<Settings>, lifetime: Duration, in_flight: Option<InFlight>) -> Self {
        let mut attempt = Self::with_owner(Contender::new(settings), None, lifetime);
        attempt.in_flight = in_flight;
        attempt
    }

    /// Starts an attempt of a shared contender, which must not hold the lock already; `None` while
    /// another call has the contender.
    pub(super) fn from_shared(shared: &SharedContender, lifetime: Duration) -> Result<Option<Self>> {
        let mut contender = shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(present) = contender.as_mut() {
            present.begin()?;
        }
        Ok(contender.take().map(|contender| Self::with_owner(contender, Some(shared.clone()), lifetime)))
    }

    fn with_owner(contender: Contender, owner: Option<SharedContender>, lifetime: Duration) -> Self {
        Self { contender: Some(contender), owner, lifetime, late: None, failed: None, in_flight: None }
    }

    /// Takes one step. After an error no file is left behind.
    pub(super) fn step(&mut self) -> Result<Step> {
        let Some(contender) = self.contender.as_mut() else { return Ok(Step::Busy) };
        if self.failed.is_none() {
            let failed = match contender.step(self.lifetime, &mut self.late) {
                Ok(Step::Lost) => Ok(Step::Busy),
                Ok(step) => return Ok(step),
                Err(error) => Err(error),
            };
            (self.failed, self.late) = (Some(failed), None);
        }
        let gave_up = match contender.give_up(&mut self.late) {
            Ok(Progress::Pause(pause)) => return Ok(Step::Settling(pause)),
            outcome => outcome.map(drop),
        };
        // The first error is the one to report.
        self.failed.take().unwrap_or(Ok(Step::Busy)).and_then(|step| gave_up.map(|()| step))
    }

    /// Returns the contender, which holds the lock; `None` if it has an owner, to which it goes.
    pub(super) fn finish(mut self) -> Option<Contender> {
        let contender = self.contender.take()?;
        self.put_back(contender)
    }

    /// Takes one step towards leaving no file behind. After the last one the contender is back with its
    /// owner.
    pub(super) fn give_up(&mut self) -> Result<Progress<()>> {
        let Some(mut contender) = self.contender.take() else { return Ok(Progress::Done(())) };
        let outcome = contender.give_up(&mut self.late);
        match outcome {
            Ok(Progress::Pause(_)) => self.contender = Some(contender),
            _ => drop(self.put_back(contender)),
        }
        outcome
    }

    fn put_back(&mut self, contender: Contender) -> Option<Contender> {
        match self.owner.take() {
            None => Some(contender),
            Some(owner) => {
                *owner.lock().unwrap_or_else(PoisonError::into_inner) = Some(contender);
                None
            }
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let Some(contender) = self.contender.take() else { return };
        if contender.is_idle() {
            drop(self.put_back(contender));
            return;
        }
        let mut attempt = Attempt::with_owner(contender, self.owner.take(), self.lifetime);
        attempt.in_flight = self.in_flight.take();
        spawn_or_run(
            move || attempt.give_up(),
            |outcome| {
                if let Err(error) = outcome {
                    tracing::warn!(%error, "a lock file's claim was left behind");
                }
            },
        );
    }
}

/// Decides when to try again, and when to stop.
pub(super) struct PollTimer {
    deadline: Option<Instant>,
    backoff: Backoff,
}

impl PollTimer {
    pub(super) fn new(settings: &Settings, timeout: Option<Duration>) -> Self {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        Self { deadline, backoff: Backoff::new(settings.poll) }
    }

    /// Returns how long to pause after a step; `None` if the deadline has passed. A break that is
    /// settling goes on past the deadline.
    pub(super) fn pause(&mut self, step: Step) -> Option<Duration> {
        let pause = match step {
            Step::Held => return Some(Duration::ZERO),
            Step::Settling(pause) => return Some(pause),
            Step::Busy | Step::Lost => self.backoff.pause(fastrand::f64()),
            Step::Contested => Duration::from_millis(1 + fastrand::u64(0..4)),
        };
        let Some(deadline) = self.deadline else { return Some(pause) };
        let left = deadline.saturating_duration_since(Instant::now());
        (!left.is_zero()).then(|| pause.min(left))
    }
}

/// Takes the lock on this thread; returns `None` if the deadline has passed. In that case, and after an
/// error, no file is left.
pub(super) fn take(mut attempt: Attempt, timer: &mut PollTimer) -> Result<Option<Attempt>> {
    loop {
        match attempt.step() {
            Ok(Step::Held) => return Ok(Some(attempt)),
            Ok(step) => match timer.pause(step) {
                Some(pause) => std::thread::sleep(pause),
                None => return run_steps(|| attempt.give_up()).map(|()| None),
            },
            Err(error) => {
                drop(attempt.finish());
                return Err(error);
            }
        }
    }
}

/// Takes the lock off the reactor, as [`take`]. Returns the instant before the step that took it as well.
pub(super) async fn take_async(
    mut attempt: Attempt,
    timer: &mut PollTimer,
) -> Result<Option<(Attempt, Instant)>> {
    loop {
        let began = suspend::now();
        let step = spawn_blocking_limited(move || {
            let outcome = attempt.step();
            (attempt, outcome)
        });
        let (back, outcome) = step.await?;
        attempt = back;
        match outcome {
            Ok(Step::Held) => return Ok(Some((attempt, began))),
            Ok(step) => match timer.pause(step) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return run_steps_async(move || attempt.give_up()).await.map(|()| None),
            },
            Err(error) => {
                drop(attempt.finish());
                return Err(error);
            }
        }
    }
}
