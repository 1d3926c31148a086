//! A contender on its way to the lock. What is dropped on its way leaves nothing behind.

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

/// A contender that is taking the lock. Dropping it gives up, and returns it to where it came from.
pub(super) struct Attempt {
    contender: Option<Contender>,
    owner: Option<SharedContender>,
    lifetime: Duration,
    late: Option<LateRefresh>,
    /// The outcome of an attempt that failed: its files are being removed.
    failed: Option<Result<Step>>,
    /// Dropped when the attempt is over, and has left no file behind.
    under_way: Option<UnderWay>,
}

/// Something that is to live for as long as an attempt, the removal of its files included.
pub(crate) type UnderWay = Box<dyn Send>;

impl Attempt {
    /// A contender of its own.
    pub(super) fn new(settings: Arc<Settings>, lifetime: Duration, under_way: Option<UnderWay>) -> Self {
        let mut attempt = Self::with_owner(Contender::new(settings), None, lifetime);
        attempt.under_way = under_way;
        attempt
    }

    /// The slot's contender, which must not have the lock already; `None` while another call has it.
    pub(super) fn from_shared(slot: &SharedContender, lifetime: Duration) -> Result<Option<Self>> {
        let mut place = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(contender) = place.as_mut() {
            contender.begin()?;
        }
        Ok(place.take().map(|contender| Self::with_owner(contender, Some(slot.clone()), lifetime)))
    }

    fn with_owner(contender: Contender, home: Option<SharedContender>, lifetime: Duration) -> Self {
        Self { contender: Some(contender), owner: home, lifetime, late: None, failed: None, under_way: None }
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
        // The first error is the one to tell.
        self.failed.take().unwrap_or(Ok(Step::Busy)).and_then(|step| gave_up.map(|()| step))
    }

    /// The contender, which holds the lock; or none, where it has gone home.
    pub(super) fn finish(mut self) -> Option<Contender> {
        let contender = self.contender.take()?;
        self.put_back(contender)
    }

    /// Takes one step towards leaving no file behind. After the last one the contender has gone home.
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
            Some(home) => {
                *home.lock().unwrap_or_else(PoisonError::into_inner) = Some(contender);
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
        let mut turn = Attempt::with_owner(contender, self.owner.take(), self.lifetime);
        turn.under_way = self.under_way.take();
        spawn_or_run(
            move || turn.give_up(),
            |outcome| {
                if let Err(error) = outcome {
                    tracing::warn!(%error, "a lock file's claim was left behind");
                }
            },
        );
    }
}

/// When to try again, and when to stop.
pub(super) struct PollTimer {
    deadline: Option<Instant>,
    backoff: Backoff,
}

impl PollTimer {
    pub(super) fn new(settings: &Settings, timeout: Option<Duration>) -> Self {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        Self { deadline, backoff: Backoff::new(settings.poll) }
    }

    /// How long to pause after a step that came to this; `None` when the time is up. A break that
    /// has got as far as it can be is seen to its end.
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

/// Takes the lock on this thread; `None` when the time is up. Either way, or after an error, nothing
/// is under way any more.
pub(super) fn take(mut turn: Attempt, patience: &mut PollTimer) -> Result<Option<Attempt>> {
    loop {
        match turn.step() {
            Ok(Step::Held) => return Ok(Some(turn)),
            Ok(step) => match patience.pause(step) {
                Some(pause) => std::thread::sleep(pause),
                None => return run_steps(|| turn.give_up()).map(|()| None),
            },
            Err(error) => {
                drop(turn.finish());
                return Err(error);
            }
        }
    }
}

/// Takes the lock off the reactor; as [`take`]. The instant is from before the step that took it.
pub(super) async fn take_async(
    mut turn: Attempt,
    patience: &mut PollTimer,
) -> Result<Option<(Attempt, Instant)>> {
    loop {
        let began = suspend::now();
        let step = spawn_blocking_limited(move || {
            let outcome = turn.step();
            (turn, outcome)
        });
        let (back, outcome) = step.await?;
        turn = back;
        match outcome {
            Ok(Step::Held) => return Ok(Some((turn, began))),
            Ok(step) => match patience.pause(step) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return run_steps_async(move || turn.give_up()).await.map(|()| None),
            },
            Err(error) => {
                drop(turn.finish());
                return Err(error);
            }
        }
    }
}
