//! What the guard, its handles and the renewal task share: one lease and how it stands.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::error::{Error, ErrorKind, Result};
use crate::lease::engine::{Done, Engine, Releaser};
use crate::lease::event::Teller;
use crate::lease::renewal::{LeaseState, LostReason, Renewal, Step};
use crate::types::Token;

pub(super) struct Shared<E: Engine + ?Sized = dyn Engine> {
    pub(super) token: Token,
    pub(super) teller: Arc<Teller>,
    renewal: Mutex<Renewal>,
    phase: AtomicU8,
    /// Wakes the renewal task when others than itself have changed the schedule.
    pub(super) changed: Notify,
    task: Mutex<Option<JoinHandle<()>>>,
    pub(super) engine: E,
}

/// The lease is renewed and will be released.
const KEPT: u8 = 0;
/// The lease is neither renewed nor released: it runs out by itself.
const FORGOTTEN: u8 = 1;
/// The one release was attempted.
const RELEASED: u8 = 2;

impl<E: Engine> Shared<E> {
    pub(super) fn new(engine: E, token: Token, teller: Teller, renewal: Renewal) -> Self {
        teller.granted(renewal.ttl());
        Self {
            token,
            teller: Arc::new(teller),
            renewal: Mutex::new(renewal),
            phase: AtomicU8::new(KEPT),
            changed: Notify::new(),
            task: Mutex::new(None),
            engine,
        }
    }
}

impl<E: Engine + ?Sized> Shared<E> {
    pub(super) fn set_task(&self, task: JoinHandle<()>) {
        *self.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
    }

    pub(super) fn renewal(&self) -> MutexGuard<'_, Renewal> {
        // Nothing panics while the schedule is locked; if it did, its numbers are still whole.
        self.renewal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wants_renewal(&self) -> bool {
        self.phase() == KEPT
    }

    fn phase(&self) -> u8 {
        self.phase.load(Ordering::Acquire)
    }

    /// Asks the schedule and publishes how the lease stands.
    pub(super) fn poll(&self, now: Instant, no_renewal: bool) -> Step {
        let step = self.renewal().poll(now.into_std(), no_renewal);
        self.publish();
        step
    }

    /// Books the outcome of a renewal sent at `sent`.
    pub(super) fn settle(&self, sent: Instant, outcome: &Result<Duration>) {
        let now = Instant::now();
        match outcome {
            Ok(ttl) => {
                let held = {
                    let mut renewal = self.renewal();
                    renewal.renewed(sent.into_std(), *ttl, now.into_std(), fastrand::f64());
                    renewal.state(now.into_std()).lost().is_none()
                };
                if held {
                    self.teller.renewed(*ttl);
                }
                self.publish();
            }
            Err(error) if error.kind() == ErrorKind::NotHeld => {
                self.lose(self.engine.lost(now).unwrap_or(LostReason::RenewalRejected));
            }
            Err(error) => {
                self.teller.renew_failed(error);
                self.renewal().failed(now.into_std(), fastrand::f64());
            }
        }
        // The deadline may be an earlier one now.
        self.changed.notify_one();
    }

    /// What keeps the lease is in doubt.
    pub(super) fn doubt(&self) {
        self.renewal().doubt(Instant::now().into_std());
        self.publish();
    }

    /// Whether only a renewal can tell how the lease stands.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.renewal().is_in_doubt()
    }

    /// Tells everyone how the lease stands, once per change; never again after a loss or a release.
    fn publish(&self) {
        if self.phase() == RELEASED {
            return;
        }
        let news = self.teller.standing.update(|current| {
            // Looked up in here, so that of two who publish at a time the later look wins.
            let state = self.renewal().state(Instant::now().into_std());
            (current != state && current.lost().is_none()).then_some(state)
        });
        // A forgotten lease is meant to run out.
        match news.filter(|_| self.wants_renewal()) {
            Some(LeaseState::AtRisk) => self.teller.at_risk(),
            Some(LeaseState::Lost(reason)) => self.teller.lost(reason),
            Some(LeaseState::Healthy) | None => {}
        }
    }

    /// The lease is lost, unless it was let go before. The first reason stands.
    pub(super) fn lose(&self, reason: LostReason) {
        if self.phase() == RELEASED {
            return;
        }
        self.renewal().lose(reason);
        self.publish();
        self.changed.notify_one();
    }

    /// How the lease stands now, or stood when it was released. Once seen as lost it stays lost.
    pub(super) fn state(&self) -> LeaseState {
        if self.phase() == RELEASED {
            return self.teller.standing.get();
        }
        self.state_at(Instant::now())
    }

    /// How a lease stands that was not released.
    pub(super) fn state_at(&self, now: Instant) -> LeaseState {
        let state = self.renewal().state(now.into_std());
        let found = state.lost().is_none().then(|| self.engine.lost(now)).flatten();
        if let Some(reason) = state.lost().or(found) {
            self.lose(reason);
            return self.renewal().state(now.into_std());
        }
        state
    }

    fn stop_task(&self) {
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            task.abort();
        }
    }

    /// Claims the one release; `false` where it was claimed before or given up.
    pub(super) fn claim_release(&self) -> bool {
        let claimed = self.phase.compare_exchange(KEPT, RELEASED, Ordering::AcqRel, Ordering::Acquire);
        if claimed.is_ok() {
            self.stop_task();
            self.wake_watchers();
        }
        claimed.is_ok()
    }

    /// Gives up renewing and releasing.
    pub(super) fn forget(&self) {
        if self.phase.compare_exchange(KEPT, FORGOTTEN, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.teller.forgotten();
            self.wake_watchers();
        }
    }

    /// Lets those look again who wait for the lease to be let go.
    fn wake_watchers(&self) {
        self.teller.standing.look_again();
    }

    /// Lets go, and tells `caller` how it went.
    pub(super) fn release(&self, now: Instant, caller: Option<Releaser>) {
        self.engine.release(now, Done::heard(self.teller.clone(), caller));
    }

    /// Lets go of what is lost: the server is told in case it is not.
    pub(super) fn release_lost(&self, now: Instant) {
        self.engine.release(now, Done::unheard());
    }

    pub(super) fn lost_error(&self, operation: &'static str, reason: LostReason) -> Error {
        self.teller.error(operation, ErrorKind::LeaseLost, reason.to_string())
    }
}
