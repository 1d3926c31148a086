//! How long something took, as a histogram: what metrics return.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;

/// How long something took, over all times that it was done: a histogram with two significant
/// digits.
#[derive(Clone)]
pub struct Latency(Histogram<u64>);

impl Latency {
    pub(crate) fn new() -> Self {
        let histogram = Histogram::new(2).expect("2 digits are within the range of 0 to 5");
        Self(histogram)
    }

    pub(crate) fn record(&mut self, took: Duration) {
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

/// A latency that several tasks record to.
pub(crate) struct SharedLatency(Mutex<Latency>);

impl SharedLatency {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Latency::new()))
    }

    pub(crate) fn record(&self, took: impl IntoIterator<Item = Duration>) {
        let mut latency = self.lock();
        took.into_iter().for_each(|took| latency.record(took));
    }

    pub(crate) fn read(&self) -> Latency {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Latency> {
        // Nothing panics while it is locked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
