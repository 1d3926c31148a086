//! The counters of one client's connections.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::backend::Gauges;
use crate::latency::SharedLatency;

pub(crate) struct ConnMetrics {
    connects: AtomicU64,
    round_trips: SharedLatency,
}

impl ConnMetrics {
    pub(crate) fn new() -> Self {
        Self { connects: AtomicU64::new(0), round_trips: SharedLatency::new() }
    }

    pub(crate) fn connected(&self) {
        self.connects.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn round_trips(&self, took: impl Iterator<Item = Duration>) {
        self.round_trips.record(took);
    }

    pub(crate) fn read(&self, connections: usize, in_flight: usize) -> Gauges {
        let connects = self.connects.load(Ordering::Relaxed);
        Gauges { connections, in_flight, connects, round_trips: self.round_trips.read() }
    }
}
