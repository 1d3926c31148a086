//! What a client has done and how long it took, counted as it happens and read at any time. Knows of
//! no connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::backend::Gauges;
use crate::latency::{Latency, SharedLatency};
use crate::lease::LeaseCounters;

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
    pub connects: u64,
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

/// The counters of one client.
pub(crate) struct ClientCounters {
    tally: Arc<LeaseCounters>,
    waits: AtomicU64,
    waiting: AtomicUsize,
    failures: AtomicU64,
    acquires: SharedLatency,
}

impl ClientCounters {
    pub(crate) fn new(tally: Arc<LeaseCounters>) -> Self {
        Self {
            tally,
            waits: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            failures: AtomicU64::new(0),
            acquires: SharedLatency::new(),
        }
    }

    pub(crate) fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a caller as waiting for as long as the guard lives.
    pub(crate) fn waits(&self) -> WaitingGuard<'_> {
        self.waits.fetch_add(1, Ordering::Relaxed);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        WaitingGuard(&self.waiting)
    }

    pub(crate) fn acquired(&self, took: Duration) {
        self.acquires.record([took]);
    }

    pub(crate) fn read(&self, gauges: Gauges, leases: usize) -> Metrics {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let tally = &self.tally;
        Metrics {
            connections: gauges.connections,
            leases,
            in_flight: gauges.in_flight,
            waiting: self.waiting.load(Ordering::Relaxed),
            connects: gauges.connects,
            acquires: count(&tally.granted),
            waits: count(&self.waits),
            failures: count(&self.failures),
            renewals: count(&tally.renewed),
            renewal_failures: count(&tally.renew_failed),
            losses: count(&tally.lost),
            releases: count(&tally.released),
            release_failures: count(&tally.release_failed),
            dropped_events: count(&tally.dropped_events),
            acquire_latency: self.acquires.read(),
            round_trip_latency: gauges.round_trips,
        }
    }
}

/// One caller that waits.
pub(crate) struct WaitingGuard<'a>(&'a AtomicUsize);

impl Drop for WaitingGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
