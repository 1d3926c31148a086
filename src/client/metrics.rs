//! What a client has done and how long it took, counted as it happens and read at any time. Knows of
//! no connection.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::lease::Tally;

/// Figures of one [`LockClient`](crate::LockClient): some of this moment, some counted since it was
/// built. Made by [`LockClient::metrics`](crate::LockClient::metrics).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Metrics {
    /// Connections that are open now.
    pub connections: usize,
    /// Leases held now, lost ones included until their guards are dropped.
    pub leases: usize,
    /// Requests that were sent and not answered yet.
    pub in_flight: usize,
    /// Acquires that wait now: in the client's own line for a key, or at the server.
    pub waiting: usize,
    /// Connections made.
    pub dials: u64,
    /// Grants.
    pub acquires: u64,
    /// Acquires that had to wait because the key was busy, whatever came of it.
    pub waits: u64,
    /// Acquires and enqueues that ended in an error, as they do when the key stays busy; a try that
    /// finds it busy does not.
    pub failures: u64,
    /// Renewals that succeeded.
    pub renewals: u64,
    /// Renewals that failed in a way that says nothing about their lease.
    pub renewal_failures: u64,
    /// Leases lost.
    pub losses: u64,
    /// Leases let go.
    pub releases: u64,
    /// Leases whose release failed.
    pub release_failures: u64,
    /// Events that the [listener](crate::Builder::on_event) was not told, because 65,536 waited for it
    /// already.
    pub dropped_events: u64,
    /// From the call of an acquire to its guard, waiting included.
    pub acquire_latency: Latency,
    /// From making a request that the server answers at once to its answer.
    pub round_trip_latency: Latency,
}

/// How long something took, over all times that it was done: a histogram with two significant
/// digits.
#[derive(Clone)]
pub struct Latency(Histogram<u64>);

impl Latency {
    fn new() -> Self {
        let histogram = Histogram::new(2).expect("2 digits are within the range of 0 to 5");
        Self(histogram)
    }

    fn record(&mut self, took: Duration) {
        // It grows as needed; a value that it has no memory to grow for is not worth an error.
        let _ = self.0.record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }

    /// How often it was done.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// How long it took on average; zero where it never was done.
    pub fn mean(&self) -> Duration {
        Duration::from_secs_f64(self.0.mean() / 1e6)
    }

    /// The time within which this share of them was done, 0 to 1: 0.5 is the median. A quantile
    /// outside the range counts as its nearer end.
    pub fn quantile(&self, quantile: f64) -> Duration {
        Duration::from_micros(self.0.value_at_quantile(quantile.clamp(0.0, 1.0)))
    }

    /// The longest.
    pub fn max(&self) -> Duration {
        Duration::from_micros(self.0.max())
    }
}

impl fmt::Debug for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Latency")
            .field("count", &self.count())
            .field("p50", &self.quantile(0.5))
            .field("p99", &self.quantile(0.99))
            .field("max", &self.max())
            .finish()
    }
}

/// Where a client counts.
pub(crate) struct Meter {
    tally: Arc<Tally>,
    dials: AtomicU64,
    waits: AtomicU64,
    waiting: AtomicUsize,
    failures: AtomicU64,
    acquires: Mutex<Latency>,
    round_trips: Mutex<Latency>,
}

impl Meter {
    pub(crate) fn new(tally: Arc<Tally>) -> Self {
        Self {
            tally,
            dials: AtomicU64::new(0),
            waits: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            failures: AtomicU64::new(0),
            acquires: Mutex::new(Latency::new()),
            round_trips: Mutex::new(Latency::new()),
        }
    }

    pub(crate) fn tally(&self) -> &Arc<Tally> {
        &self.tally
    }

    pub(crate) fn dialled(&self) {
        self.dials.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Somebody waits for as long as the answer lives.
    pub(crate) fn waits(&self) -> WaitsOn<'_> {
        self.waits.fetch_add(1, Ordering::Relaxed);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        WaitsOn(&self.waiting)
    }

    pub(crate) fn acquired(&self, took: Duration) {
        lock(&self.acquires).record(took);
    }

    pub(crate) fn round_trips(&self, took: impl Iterator<Item = Duration>) {
        let mut round_trips = lock(&self.round_trips);
        took.for_each(|took| round_trips.record(took));
    }

    pub(crate) fn read(&self, connections: usize, in_flight: usize, leases: usize) -> Metrics {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let tally = &self.tally;
        Metrics {
            connections,
            leases,
            in_flight,
            waiting: self.waiting.load(Ordering::Relaxed),
            dials: count(&self.dials),
            acquires: count(&tally.granted),
            waits: count(&self.waits),
            failures: count(&self.failures),
            renewals: count(&tally.renewed),
            renewal_failures: count(&tally.renew_failed),
            losses: count(&tally.lost),
            releases: count(&tally.released),
            release_failures: count(&tally.release_failed),
            dropped_events: count(&tally.untold),
            acquire_latency: lock(&self.acquires).clone(),
            round_trip_latency: lock(&self.round_trips).clone(),
        }
    }
}

fn lock(latency: &Mutex<Latency>) -> MutexGuard<'_, Latency> {
    // Nothing panics while it is locked.
    latency.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One that waits.
pub(crate) struct WaitsOn<'a>(&'a AtomicUsize);

impl Drop for WaitsOn<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_is_told_to_two_digits_from_a_microsecond_to_a_year() {
        let year = Duration::from_secs(365 * 24 * 3600);
        for took in [1, 255, 256, 2_000, 2_000_000, 3_600_000_000]
            .map(Duration::from_micros)
            .into_iter()
            .chain([year])
        {
            let mut latency = Latency::new();
            latency.record(Duration::from_micros(1));
            (0..99).for_each(|_| latency.record(took));
            for told in [latency.quantile(0.5), latency.quantile(0.99), latency.max()] {
                assert!(told >= took && told <= took + took / 100, "{took:?} is told as {told:?}");
            }
            assert!(
                latency.mean() > took.mul_f64(0.98) && latency.mean() < took.mul_f64(1.02),
                "{latency:?}"
            );
            assert_eq!((latency.count(), latency.quantile(0.001)), (100, Duration::from_micros(1)));
        }
    }

    #[test]
    fn the_longest_time_that_there_is_has_a_place() {
        let mut latency = Latency::new();
        latency.record(Duration::MAX);
        assert!(latency.max() >= Duration::from_micros(u64::MAX / 100 * 99));
        assert_eq!(latency.count(), 1);
    }
}
