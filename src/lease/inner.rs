//! What the guard, its handles and the renewal task share: one lease and how it stands.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::error::{Error, ErrorKind, Result};
use crate::lease::completion::{ReleaseCompletion, ReleaseWaiter};
use crate::lease::held::HeldLease;
use crate::lease::renewal::{LeaseState, LostReason, RenewalAction, RenewalSchedule};
use crate::lease::reporter::LeaseReporter;
use crate::suspend;
use crate::types::Token;

pub(super) struct LeaseInner<E: HeldLease + ?Sized = dyn HeldLease> {
    pub(super) token: Token,
    pub(super) reporter: Arc<LeaseReporter>,
    renewal: Mutex<RenewalSchedule>,
    phase: AtomicU8,
    /// Wakes the renewal task when others than itself have changed the schedule.
    pub(super) schedule_changed: Notify,
    task: Mutex<Option<JoinHandle<()>>>,
    pub(super) held: E,
}

/// The lease is renewed and will be released.
const KEPT: u8 = 0;
/// The lease is neither renewed nor released: it runs out by itself.
const FORGOTTEN: u8 = 1;
/// The one release was attempted.
const RELEASED: u8 = 2;

impl<E: HeldLease> LeaseInner<E> {
    pub(super) fn new(engine: E, token: Token, teller: LeaseReporter, renewal: RenewalSchedule) -> Self {
        teller.granted(renewal.ttl());
        Self {
            token,
            reporter: Arc::new(teller),
            renewal: Mutex::new(renewal),
            phase: AtomicU8::new(KEPT),
            schedule_changed: Notify::new(),
            task: Mutex::new(None),
            held: engine,
        }
    }
}

impl<E: HeldLease + ?Sized> LeaseInner<E> {
    pub(super) fn set_task(&self, task: JoinHandle<()>) {
        *self.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
    }

    pub(super) fn renewal(&self) -> MutexGuard<'_, RenewalSchedule> {
        // Nothing panics while the schedule is locked; if it did, its numbers are still whole.
        self.renewal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it was not let go.
    pub(super) fn is_kept(&self) -> bool {
        self.phase.load(Ordering::Acquire) == KEPT
    }

    pub(super) fn is_ours(&self) -> bool {
        self.reporter.state.is_ours()
    }

    /// Reads the schedule; in a forked process only if it was not locked at the fork.
    pub(super) fn read<T>(&self, read: impl FnOnce(&RenewalSchedule) -> T) -> Option<T> {
        let renewal = if self.is_ours() { Some(self.renewal()) } else { self.renewal.try_lock().ok() };
        renewal.map(|renewal| read(&renewal))
    }

    /// When the lease runs out by the runtime's clock, unless the machine is suspended meanwhile.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.read(|renewal| {
            let deadline = Instant::from(renewal.deadline());
            deadline.checked_sub(slept(renewal)).unwrap_or_else(|| renewal.sent().into())
        })
    }

    /// Asks the schedule and publishes how the lease stands.
    pub(super) fn poll_schedule(&self, now: Instant, in_flight: bool) -> RenewalAction {
        let step = {
            let mut renewal = self.renewal();
            let slept = slept(&renewal);
            match renewal.poll((now + slept).into_std(), in_flight) {
                RenewalAction::Wait(until) => {
                    RenewalAction::Wait(until.checked_sub(slept).unwrap_or(now.into_std()))
                }
                step => step,
            }
        };
        self.publish();
        step
    }

    /// Books the outcome of a renewal sent at `sent`. One that a release has overtaken is no news.
    pub(super) fn apply_renewal(&self, sent: Instant, outcome: &Result<Duration>) {
        let now = suspend::now();
        match outcome {
            Ok(ttl) => {
                let held = {
                    let mut renewal = self.renewal();
                    let by = lease_time(&renewal, now);
                    renewal.renewed(sent.into_std(), *ttl, by, fastrand::f64());
                    renewal.state(lease_time(&renewal, now)).lost().is_none()
                };
                if held && self.is_kept() {
                    self.reporter.renewed(*ttl);
                }
                self.publish();
            }
            Err(error) if error.kind() == ErrorKind::NotHeld => {
                self.lose(self.held.lost(now).unwrap_or(LostReason::RenewalRejected));
            }
            Err(error) if self.is_kept() => {
                self.reporter.renew_failed(error);
                let mut renewal = self.renewal();
                let now = lease_time(&renewal, now);
                renewal.failed(now, fastrand::f64());
            }
            Err(_) => {}
        }
        // The deadline may be an earlier one now.
        self.schedule_changed.notify_one();
    }

    #[cfg(feature = "client")]
    /// What keeps the lease is in doubt.
    pub(super) fn doubt(&self) {
        {
            let mut renewal = self.renewal();
            let now = lease_time(&renewal, Instant::now());
            renewal.doubt(now);
        }
        self.publish();
    }

    /// Whether only a renewal can tell how the lease stands.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.renewal().is_in_doubt()
    }

    /// Tells everyone how the lease stands, once per change; never again after a loss or a release.
    fn publish(&self) {
        let news = self.reporter.state.update(|current| {
            if current.lost().is_some() {
                return None;
            }
            // Looked up in here, so that of two who publish at a time the later look wins.
            let state = self.state_by_schedule(Instant::now());
            (current != state).then_some(state)
        });
        match news {
            Some(LeaseState::AtRisk) => self.reporter.at_risk(),
            Some(LeaseState::Lost(reason)) => self.reporter.lost(reason),
            Some(LeaseState::Healthy | LeaseState::Released) | None => {}
        }
    }

    /// The lease is lost, unless it was let go before. The first reason stands.
    pub(super) fn lose(&self, reason: LostReason) {
        // A forked process may drop the renewal task with the runtime.
        if self.is_kept() && self.is_ours() {
            self.renewal().lose(reason);
            self.publish();
            self.schedule_changed.notify_one();
        }
    }

    /// How the lease stands now, in whichever process asks. Once seen as over, it stays that.
    pub(super) fn state(&self) -> LeaseState {
        if self.is_ours() { self.state_at(suspend::now()) } else { self.reporter.state.seen() }
    }

    /// How the lease stands at a `now` that was looked at a moment ago, in the process that holds it.
    pub(super) fn state_at(&self, now: Instant) -> LeaseState {
        if !self.is_kept() {
            return self.reporter.state.get();
        }
        let state = self.state_by_schedule(now);
        let Some(reason) = state.lost().or_else(|| self.held.lost(now)) else { return state };
        self.lose(reason);
        self.reporter.state.get()
    }

    fn state_by_schedule(&self, now: Instant) -> LeaseState {
        let renewal = self.renewal();
        renewal.state(lease_time(&renewal, now))
    }

    fn abort_task(&self) {
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            task.abort();
        }
    }

    /// Claims the one release; `false` where it was claimed before or given up.
    pub(super) fn claim_release(&self) -> bool {
        let claimed = self.dispose(RELEASED);
        if claimed {
            self.abort_task();
        }
        claimed
    }

    /// Gives up renewing and releasing.
    pub(super) fn forget(&self) {
        if self.is_ours() && self.dispose(FORGOTTEN) {
            self.reporter.forgotten();
            self.schedule_changed.notify_one();
        }
    }

    /// Ends the lease for every handle on it, before anything of that is sent: work that ends later
    /// finds it released, and work that ended before finds it held. A loss before it stands.
    fn dispose(&self, how: u8) -> bool {
        let mut is_first = false;
        self.reporter.state.update(|current| {
            let claimed = self.phase.compare_exchange(KEPT, how, Ordering::AcqRel, Ordering::Acquire);
            is_first = claimed.is_ok();
            (is_first && current.lost().is_none()).then_some(LeaseState::Released)
        });
        is_first
    }

    /// Lets go, and tells `caller` how it went.
    pub(super) fn release(&self, now: Instant, caller: Option<ReleaseWaiter>) {
        self.held.release(now, ReleaseCompletion::new(self.reporter.clone(), caller));
    }

    /// Lets go of what is lost: the server is told in case it is not.
    pub(super) fn release_lost(&self, now: Instant) {
        self.held.release(now, ReleaseCompletion::ignored());
    }

    /// What an operation on a lease comes to that is not held any more.
    pub(super) fn over_error(&self, operation: &'static str, reason: LostReason) -> Error {
        let was_let_go = reason == LostReason::Released;
        let kind = if was_let_go { ErrorKind::NotHeld } else { ErrorKind::LeaseLost };
        self.reporter.error(operation, kind, reason.to_string())
    }
}

/// For how long the machine was suspended since the request was sent that the deadline counts from: the
/// lease ran on, and the runtime's clock stood still.
fn slept(renewal: &RenewalSchedule) -> Duration {
    suspend::since(renewal.sent().into())
}

/// The runtime's time as the lease's schedule counts it.
fn lease_time(renewal: &RenewalSchedule, now: Instant) -> std::time::Instant {
    (now + slept(renewal)).into_std()
}
