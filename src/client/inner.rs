//! One client, shared by its clones, its locks and its leases.

use std::mem;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::backend::{Backend, CLOSE_TIMEOUT, client_closed, here};
use crate::client::any::{AnyBackend, with_backend};
use crate::client::fence_monitor::FenceMonitor;
use crate::client::local_queue::LocalQueues;
use crate::client::metrics::{ClientCounters, Metrics};
use crate::client::registry::LeaseRegistry;
use crate::error::{Error, ErrorKind, Result};
use crate::lease::LeaseCounters;
use crate::process::Origin;
use crate::proto::StatsResult;

pub(crate) struct ClientInner {
    pub(crate) backend: AnyBackend,
    pub(crate) registry: LeaseRegistry,
    pub(crate) fences: FenceMonitor,
    pub(crate) queues: LocalQueues,
    pub(crate) counters: ClientCounters,
    closed: watch::Sender<bool>,
    origin: Origin,
}

/// A forked process must not take the lock of the channel.
impl Drop for ClientInner {
    fn drop(&mut self) {
        if !self.origin.is_here() {
            mem::forget(mem::replace(&mut self.closed, watch::Sender::new(true)));
        }
    }
}

impl ClientInner {
    pub(crate) fn new(backend: AnyBackend, lease_counters: Arc<LeaseCounters>) -> Arc<Self> {
        Arc::new(Self {
            backend,
            registry: LeaseRegistry::default(),
            fences: FenceMonitor::default(),
            queues: LocalQueues::default(),
            counters: ClientCounters::new(lease_counters),
            closed: watch::Sender::new(false),
            origin: Origin::here(),
        })
    }

    /// Returns `true` in the process that built the client, and `false` in one that was forked from it.
    pub(crate) fn is_ours(&self) -> bool {
        self.origin.is_here()
    }

    /// Fails in a forked process, which has the client's memory but not its tasks.
    pub(crate) fn check_process(&self) -> Result<()> {
        let forked = |fault| Err(Error::new(ErrorKind::ConnectionClosed, fault));
        self.origin.fault().map_or(Ok(()), forked)
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        if *self.closed.borrow() { Err(client_closed()) } else { Ok(()) }
    }

    /// Runs `work` until it is done or the client is closed. Drops the unfinished work then.
    pub(crate) async fn unless_closed<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut closed = self.closed.subscribe();
        tokio::select! {
            biased;
            _ = closed.wait_for(|closed| *closed) => Err(client_closed()),
            outcome = work => outcome,
        }
    }

    pub(crate) async fn stats(&self) -> Result<Vec<StatsResult>> {
        self.check_process().map_err(|error| error.during("stats"))?;
        with_backend!(&self.backend, backend => self.unless_closed(backend.stats()).await)
    }

    pub(crate) fn metrics(&self) -> Metrics {
        let gauges = with_backend!(&self.backend, backend => backend.gauges());
        self.counters.read(gauges, self.registry.len())
    }

    /// Refuses new work, ends every wait, releases every lease, and closes the backend.
    pub(crate) async fn close(&self) -> Result<()> {
        self.check_process()?;
        here().map_err(|error| error.during("close"))?;
        self.closed.send_replace(true);
        let deadline = Instant::now() + CLOSE_TIMEOUT;
        let closed = with_backend!(&self.backend, backend => {
            let closed = backend.close(deadline);
            let released = self.registry.release_all(deadline).await;
            released.and(closed.await)
        });
        closed.map_err(|error| error.during("close"))
    }
}
