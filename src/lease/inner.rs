//! One lease, shared by its guard, its handles and its renewal task.

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

pub(super) struct LeaseInner<H: HeldLease + ?Sized = dyn HeldLease> {
    pub(super) token: Token,
    pub(super) reporter: Arc<LeaseReporter>,
    schedule: Mutex<RenewalSchedule>,
    disposition: DispositionCell,
    /// Wakes the renewal task after a change of the schedule that it did not make itself.
    pub(super) schedule_changed: Notify,
    task: Mutex<Option<JoinHandle<()>>>,
    pub(super) held: H,
}

/// The holder's decision about the lease.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Disposition {
    /// The lease is renewed and will be released.
    Kept,
    /// The lease is neither renewed nor released. It expires by itself.
    Forgotten,
    /// The one release was attempted.
    Released,
}

/// A disposition that can leave [`Disposition::Kept`] once.
struct DispositionCell(AtomicU8);

impl DispositionCell {
    fn new() -> Self {
        Self(AtomicU8::new(Disposition::Kept as u8))
    }

    fn is_kept(&self) -> bool {
        self.0.load(Ordering::Acquire) == Disposition::Kept as u8
    }

    /// Sets the disposition. Returns `false`, and changes nothing, if it was set before.
    fn set(&self, disposition: Disposition) -> bool {
        let (kept, new) = (Disposition::Kept as u8, disposition as u8);
        self.0.compare_exchange(kept, new, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

impl<H: HeldLease> LeaseInner<H> {
    #[inline(always)]
    pub(super) fn new(held: H, token: Token, reporter: LeaseReporter, schedule: RenewalSchedule) -> Self {
        reporter.granted(schedule.ttl());
        Self {
            token,
            reporter: Arc::new(reporter),
            schedule: Mutex::new(schedule),
            disposition: DispositionCell::new(),
            schedule_changed: Notify::new(),
            task: Mutex::new(None),
            held,
        }
    }
}

impl<H: HeldLease + ?Sized> LeaseInner<H> {
    pub(super) fn set_task(&self, task: JoinHandle<()>) {
        *self.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
    }

    pub(super) fn schedule(&self) -> MutexGuard<'_, RenewalSchedule> {
        // No panic under this lock leaves the schedule half changed.
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns `true` until the lease is released or forgotten.
    pub(super) fn is_kept(&self) -> bool {
        self.disposition.is_kept()
    }

    pub(super) fn is_ours(&self) -> bool {
        self.reporter.state.is_ours()
    }

    /// Reads the schedule. In a forked process, returns `None` if the schedule was locked at the fork.
    pub(super) fn read<T>(&self, read: impl FnOnce(&RenewalSchedule) -> T) -> Option<T> {
        let schedule = if self.is_ours() { Some(self.schedule()) } else { self.schedule.try_lock().ok() };
        schedule.map(|schedule| read(&schedule))
    }

    /// Returns when the lease expires by the runtime's clock, unless the machine is suspended before.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.read(|schedule| {
            let deadline = Instant::from(schedule.deadline());
            deadline.checked_sub(suspended(schedule)).unwrap_or_else(|| schedule.sent().into())
        })
    }

    /// Polls the schedule and publishes the state of the lease.
    pub(super) fn poll_schedule(&self, now: Instant, in_flight: bool) -> RenewalAction {
        let action = {
            let mut schedule = self.schedule();
            let suspended = suspended(&schedule);
            match schedule.poll((now + suspended).into_std(), in_flight) {
                RenewalAction::Wait(until) => {
                    RenewalAction::Wait(until.checked_sub(suspended).unwrap_or(now.into_std()))
                }
                action => action,
            }
        };
        self.publish();
        action
    }

    /// Applies the outcome of a renewal sent at `sent`. Does not report one that comes after a release.
    pub(super) fn apply_renewal(&self, sent: Instant, outcome: &Result<Duration>) {
        let now = suspend::now();
        match outcome {
            Ok(ttl) => {
                let is_held = {
                    let mut schedule = self.schedule();
                    let received = lease_time(&schedule, now);
                    schedule.renewed(sent.into_std(), *ttl, received, fastrand::f64());
                    // Computed again: the suspended time now counts from the renewal.
                    schedule.state(lease_time(&schedule, now)).lost().is_none()
                };
                if is_held && self.is_kept() {
                    self.reporter.renewed(*ttl);
                }
                self.publish();
            }
            Err(error) if error.kind() == ErrorKind::NotHeld => {
                self.lose(self.held.lost(now).unwrap_or(LostReason::RenewalRejected));
            }
            Err(error) if self.is_kept() => {
                self.reporter.renew_failed(error);
                let mut schedule = self.schedule();
                let now = lease_time(&schedule, now);
                schedule.failed(now, fastrand::f64());
            }
            Err(_) => {}
        }
        // The deadline may be earlier now.
        self.schedule_changed.notify_one();
    }

    /// Puts the lease in doubt: only a renewal can decide whether it is held.
    #[cfg(feature = "client")]
    pub(super) fn doubt(&self) {
        {
            let mut schedule = self.schedule();
            let now = lease_time(&schedule, Instant::now());
            schedule.doubt(now);
        }
        self.publish();
    }

    /// Returns `true` if only a renewal can decide whether the lease is held.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.schedule().is_in_doubt()
    }

    /// Publishes the state of the lease, once per change. Does nothing after a loss or a release.
    fn publish(&self) {
        let new_state = self.reporter.state.update(|current| {
            if current.lost().is_some() {
                return None;
            }
            // Read under the lock of the state, so that of two concurrent calls the later one wins.
            let state = self.state_by_schedule(Instant::now());
            (current != state).then_some(state)
        });
        match new_state {
            Some(LeaseState::AtRisk) => self.reporter.at_risk(),
            Some(LeaseState::Lost(reason)) => self.reporter.lost(reason),
            Some(LeaseState::Healthy | LeaseState::Released) | None => {}
        }
    }

    /// Marks the lease as lost, unless it was released or forgotten before. The first reason stands.
    pub(super) fn lose(&self, reason: LostReason) {
        // A forked process may drop the renewal task with the runtime.
        if self.is_kept() && self.is_ours() {
            self.schedule().lose(reason);
            self.publish();
            self.schedule_changed.notify_one();
        }
    }

    /// Returns the current state, in any process. A lease that was reported as lost stays lost.
    pub(super) fn state(&self) -> LeaseState {
        if self.is_ours() { self.state_at(suspend::now()) } else { self.reporter.state.seen() }
    }

    /// Returns the state at `now`, which was read a moment ago, in the process that holds the lease.
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
        let schedule = self.schedule();
        schedule.state(lease_time(&schedule, now))
    }

    fn abort_task(&self) {
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            task.abort();
        }
    }

    /// Claims the one release. Returns `false` if the lease was released or forgotten before.
    pub(super) fn claim_release(&self) -> bool {
        let claimed = self.dispose(Disposition::Released);
        if claimed {
            self.abort_task();
        }
        claimed
    }

    /// Gives up renewing and releasing.
    pub(super) fn forget(&self) {
        if self.is_ours() && self.dispose(Disposition::Forgotten) {
            self.reporter.forgotten();
            self.schedule_changed.notify_one();
        }
    }

    /// Ends the lease for every handle on it, before anything is sent: work that ends later finds the lease
    /// released, and work that ended before finds it held. A loss before this stands. Returns `false` if the
    /// lease was released or forgotten before.
    fn dispose(&self, disposition: Disposition) -> bool {
        let mut is_first = false;
        self.reporter.state.update(|current| {
            is_first = self.disposition.set(disposition);
            (is_first && current.lost().is_none()).then_some(LeaseState::Released)
        });
        is_first
    }

    /// Starts the release, and sends its outcome to `caller`.
    pub(super) fn release(&self, now: Instant, caller: Option<ReleaseWaiter>) {
        self.held.release(now, ReleaseCompletion::new(self.reporter.clone(), caller));
    }

    /// Starts the release of a lost lease, which the server may still hold.
    pub(super) fn release_lost(&self, now: Instant) {
        self.held.release(now, ReleaseCompletion::ignored());
    }

    /// Makes the error of an operation on a lease that is no longer held.
    pub(super) fn over_error(&self, operation: &'static str, reason: LostReason) -> Error {
        let was_released = reason == LostReason::Released;
        let kind = if was_released { ErrorKind::NotHeld } else { ErrorKind::LeaseLost };
        self.reporter.error(operation, kind, reason.to_string())
    }
}

/// Returns how long the machine was suspended since the request was sent that the deadline counts from. The lease
/// ran on meanwhile, and the runtime's clock stood still.
fn suspended(schedule: &RenewalSchedule) -> Duration {
    suspend::since(schedule.sent().into())
}

/// Converts the runtime's time to the time that the schedule counts.
fn lease_time(schedule: &RenewalSchedule, now: Instant) -> std::time::Instant {
    (now + suspended(schedule)).into_std()
}
