//! The metrics of a client: its counters, and the snapshot that a caller reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::backend::Gauges;
use crate::latency::{Latency, SharedLatency};
use crate::lease::LeaseCounters;

/// Metrics of one [`LockClient`](crate::LockClient): some are current values, the other ones count since the
/// client was built. Returned by [`LockClient::metrics`](crate::LockClient::metrics).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Metrics {
    /// Connections that are open now.
    pub connections: usize,
    /// Leases held now, lost ones included until their guards are dropped.
    pub leases: usize,
    /// Requests in flight now: sent, and without a reply.
    pub in_flight: usize,
    /// Acquires that wait now: in the client's local queue for a key, or in the server's.
    pub waiting: usize,
    /// Connections opened.
    pub connects: u64,
    /// Grants.
    pub acquires: u64,
    /// Acquires that had to wait because the key was busy, successful or not.
    pub waits: u64,
    /// Acquires and enqueues that failed, which includes a key that stayed busy. A try that finds the key busy
    /// does not count.
    pub failures: u64,
    /// Renewals that succeeded.
    pub renewals: u64,
    /// Renewals that failed in a way that says nothing about their lease.
    pub renewal_failures: u64,
    /// Leases lost.
    pub losses: u64,
    /// Leases released.
    pub releases: u64,
    /// Leases whose release failed.
    pub release_failures: u64,
    /// Events that the [event handler](crate::Builder::on_event) did not receive, because 65,536 events waited
    /// for it.
    pub dropped_events: u64,
    /// The time from the call of an acquire to its guard, waiting included.
    pub acquire_latency: Latency,
    /// The time from a request to its reply, for requests to which the server replies at once.
    pub round_trip_latency: Latency,
}

/// The counters of one client.
pub(crate) struct ClientCounters {
    leases: Arc<LeaseCounters>,
    waits: AtomicU64,
    waiting: AtomicUsize,
    failures: AtomicU64,
    acquires: SharedLatency,
}

impl ClientCounters {
    pub(crate) fn new(leases: Arc<LeaseCounters>) -> Self {
        Self {
            leases,
            waits: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            failures: AtomicU64::new(0),
            acquires: SharedLatency::new(),
        }
    }

    pub(crate) fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a caller as waiting until the guard is dropped.
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
        let counters = &self.leases;
        Metrics {
            connections: gauges.connections,
            leases,
            in_flight: gauges.in_flight,
            waiting: self.waiting.load(Ordering::Relaxed),
            connects: gauges.connects,
            acquires: count(&counters.granted),
            waits: count(&self.waits),
            failures: count(&self.failures),
            renewals: count(&counters.renewed),
            renewal_failures: count(&counters.renew_failed),
            losses: count(&counters.lost),
            releases: count(&counters.released),
            release_failures: count(&counters.release_failed),
            dropped_events: count(&counters.dropped_events),
            acquire_latency: self.acquires.read(),
            round_trip_latency: gauges.round_trips,
        }
    }
}

/// Counts one caller that waits, until it is dropped.
pub(crate) struct WaitingGuard<'a>(&'a AtomicUsize);

impl Drop for WaitingGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
