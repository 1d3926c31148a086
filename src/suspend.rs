//! Measures for how long the machine was suspended. The clocks that leases count with stand still
//! meanwhile, and a server on another machine goes on. Linux has a clock that counts the time; on systems
//! without one, no suspension is noticed.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::failpoints;

/// A smaller difference between two readings of the clocks may be due to the readings.
const NOISE_NANOS: i64 = 1_000_000;
/// How many suspensions are kept apart.
const MAX_SUSPENSIONS: usize = 64;

static SUSPENSIONS: Mutex<Suspensions> = Mutex::new(Suspensions::new());
/// How far the clock that counts suspended time is ahead, in nanoseconds, as far as was noticed.
static KNOWN_OFFSET: AtomicI64 = AtomicI64::new(UNKNOWN);
const UNKNOWN: i64 = i64::MIN;
/// `true` once the machine was suspended.
static EVER_SUSPENDED: AtomicBool = AtomicBool::new(false);

/// Returns the current instant, after it has noticed every earlier suspension. A duration that is counted
/// from it includes every later one.
pub(crate) fn now() -> Instant {
    notice();
    Instant::now()
}

/// Notices if the machine was suspended since the last call. Costs two readings of a clock.
pub(crate) fn notice() {
    let known = KNOWN_OFFSET.load(Ordering::Acquire);
    // The clock that counts all time is read last, so that no suspension is missed.
    let Some(ahead) = clocks::offset_at_most() else { return };
    if known == UNKNOWN || ahead - known > NOISE_NANOS {
        record();
    }
}

fn record() {
    let mut naps = SUSPENSIONS.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(ahead) = clocks::exact_offset() else { return };
    let known = KNOWN_OFFSET.load(Ordering::Acquire);
    if known == UNKNOWN {
        KNOWN_OFFSET.store(ahead, Ordering::Release);
    } else if ahead - known > NOISE_NANOS {
        let slept = Duration::from_nanos(ahead.abs_diff(known));
        naps.add(Instant::now(), slept);
        EVER_SUSPENDED.store(true, Ordering::Release);
        KNOWN_OFFSET.store(ahead, Ordering::Release);
        drop(naps);
        tracing::warn!(?slept, "this machine was suspended");
    }
}

/// Returns for how long the machine was suspended since `then`, as far as that was noticed.
pub(crate) fn since(then: Instant) -> Duration {
    if !EVER_SUSPENDED.load(Ordering::Acquire) {
        return Duration::ZERO;
    }
    SUSPENSIONS.lock().unwrap_or_else(PoisonError::into_inner).since(then)
}

/// The suspensions, each with the instant at which it was noticed.
struct Suspensions(Vec<(Instant, Duration)>);

impl Suspensions {
    const fn new() -> Self {
        Self(Vec::new())
    }

    fn add(&mut self, noticed: Instant, slept: Duration) {
        if self.0.len() == MAX_SUSPENSIONS {
            // The two oldest count as one, at the instant of the later one.
            let (_, oldest) = self.0.remove(0);
            self.0[0].1 += oldest;
        }
        self.0.push((noticed, slept));
    }

    /// A suspension that was noticed after `then` counts, even if it began before.
    fn since(&self, then: Instant) -> Duration {
        self.0.iter().filter(|(noticed, _)| *noticed > then).map(|(_, slept)| *slept).sum()
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
mod clocks {
    use std::time::Duration;

    use rustix::time::{ClockId, DynamicClockId, Timespec, clock_gettime, clock_gettime_dynamic};

    use super::failpoints;

    /// How close to each other the readings of the two clocks should be.
    const CLOSE_NANOS: i64 = 100_000;

    /// Returns how far the clock that counts suspended time is ahead, or slightly more.
    pub(super) fn offset_at_most() -> Option<i64> {
        let awake = awake();
        all().map(|all| all - awake)
    }

    /// Returns the same exactly, unless this thread is preempted each time.
    pub(super) fn exact_offset() -> Option<i64> {
        let mut closest: Option<(i64, i64)> = None;
        for _ in 0..8 {
            let (before, all, after) = (awake(), all()?, awake());
            let apart = after - before;
            if closest.is_none_or(|(least, _)| apart < least) {
                closest = Some((apart, all - after));
            }
            if apart < CLOSE_NANOS {
                break;
            }
        }
        closest.map(|(_, ahead)| ahead)
    }

    fn awake() -> i64 {
        nanos(clock_gettime(ClockId::Monotonic))
    }

    /// Kernels without this clock are too old for this crate.
    fn all() -> Option<i64> {
        let all = clock_gettime_dynamic(DynamicClockId::Boottime).ok()?;
        Some(nanos(all) + failpoints::suspended())
    }

    fn nanos(time: Timespec) -> i64 {
        // Neither clock is before its start, or centuries after it.
        let since = Duration::try_from(time).unwrap_or_default();
        i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod clocks {
    pub(super) fn ahead() -> Option<i64> {
        None
    }

    pub(super) fn ahead_exactly() -> Option<i64> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn what_was_noticed_after_an_instant_counts_from_it() {
        let (mut naps, start) = (Suspensions::new(), Instant::now());
        naps.add(start + 10 * S, 60 * S);
        naps.add(start + 20 * S, 5 * S);
        let slept = [0, 9, 10, 19, 20, 30].map(|then| naps.since(start + then * S).as_secs());
        assert_eq!(slept, [65, 65, 5, 5, 0, 0]);
    }

    #[test]
    fn what_is_too_long_ago_to_be_told_apart_still_counts() {
        let (mut naps, start) = (Suspensions::new(), Instant::now());
        for n in 1..=1000 {
            naps.add(start + n * S, S);
        }
        assert_eq!(naps.0.len(), MAX_SUSPENSIONS);
        assert_eq!((naps.since(start), naps.since(start + 999 * S)), (1000 * S, S));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_machine_that_is_awake_is_not_said_to_have_slept() {
        let start = now();
        let exact = clocks::exact_offset().unwrap();
        for _ in 0..200_000 {
            notice();
        }
        assert_eq!(since(start), Duration::ZERO);
        assert!((clocks::exact_offset().unwrap() - exact).abs() < NOISE_NANOS);
    }
}
