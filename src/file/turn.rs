//! A contender on its way to the lock. What is dropped on its way leaves nothing behind.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::error::Result;
use crate::file::contender::{Contender, Step};
use crate::file::offload::{off_reactor, soon};
use crate::file::settings::Settings;
use crate::file::slot::Slot;
use crate::file::wait::Backoff;
use crate::suspend;

/// A contender that is taking the lock. Dropping it gives up, and returns it to where it came from.
pub(super) struct Turn {
    contender: Option<Contender>,
    home: Option<Slot>,
    lifetime: Duration,
}

impl Turn {
    /// A contender of its own.
    pub(super) fn new(settings: Arc<Settings>, lifetime: Duration) -> Self {
        Self { contender: Some(Contender::new(settings)), home: None, lifetime }
    }

    /// The slot's contender, which must not have the lock already; `None` while another call has it.
    pub(super) fn from(slot: &Slot, lifetime: Duration) -> Result<Option<Self>> {
        let mut place = slot.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(contender) = place.as_mut() else { return Ok(None) };
        contender.begin()?;
        Ok(Some(Self { contender: place.take(), home: Some(slot.clone()), lifetime }))
    }

    pub(super) fn step(&mut self) -> Result<Step> {
        self.contender.as_mut().map_or(Ok(Step::Busy), |contender| contender.step(self.lifetime))
    }

    /// The contender, which holds the lock; or none, where it has gone home.
    pub(super) fn finish(mut self) -> Option<Contender> {
        let contender = self.contender.take();
        match self.home.take() {
            None => contender,
            Some(home) => {
                *home.lock().unwrap_or_else(PoisonError::into_inner) = contender;
                None
            }
        }
    }

    /// Leaves no file behind, on this thread.
    pub(super) fn give_up(mut self) -> Result<()> {
        let outcome = self.contender.as_mut().map_or(Ok(()), Contender::give_up);
        drop(self.finish());
        outcome
    }

    fn is_over(&self) -> bool {
        self.contender.as_ref().is_none_or(Contender::is_idle)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let (contender, home) = (self.contender.take(), self.home.take());
        let Some(contender) = contender else { return };
        let turn = Turn { contender: Some(contender), home, lifetime: self.lifetime };
        if turn.is_over() {
            drop(turn.finish());
            return;
        }
        soon(move || {
            if let Err(error) = turn.give_up() {
                tracing::warn!(%error, "a lock file's claim was left behind");
            }
        });
    }
}

/// When to try again, and when to stop.
pub(super) struct Patience {
    deadline: Option<Instant>,
    backoff: Backoff,
}

impl Patience {
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
            Step::Busy => self.backoff.pause(fastrand::f64()),
            Step::Contested => Duration::from_millis(1 + fastrand::u64(0..4)),
        };
        let Some(deadline) = self.deadline else { return Some(pause) };
        let left = deadline.saturating_duration_since(Instant::now());
        (!left.is_zero()).then(|| pause.min(left))
    }
}

/// Takes the lock on this thread; `None` when the time is up. Either way, or after an error, nothing
/// is under way any more.
pub(super) fn take(mut turn: Turn, patience: &mut Patience) -> Result<Option<Turn>> {
    loop {
        match turn.step() {
            Ok(Step::Held) => return Ok(Some(turn)),
            Ok(step) => match patience.pause(step) {
                Some(pause) => std::thread::sleep(pause),
                None => return turn.give_up().map(|()| None),
            },
            Err(error) => {
                drop(turn.finish());
                return Err(error);
            }
        }
    }
}

/// Takes the lock off the reactor; as [`take`]. The instant is from before the step that took it.
pub(super) async fn take_async(mut turn: Turn, patience: &mut Patience) -> Result<Option<(Turn, Instant)>> {
    loop {
        let began = suspend::now();
        let step = off_reactor(move || {
            let outcome = turn.step();
            (turn, outcome)
        });
        let (back, outcome) = step.await?;
        turn = back;
        match outcome {
            Ok(Step::Held) => return Ok(Some((turn, began))),
            Ok(step) => match patience.pause(step) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return off_reactor(move || turn.give_up()).await?.map(|()| None),
            },
            Err(error) => {
                drop(turn.finish());
                return Err(error);
            }
        }
    }
}
