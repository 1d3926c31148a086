//! Acquiring a key in two steps, for threads: the outcome of an enqueue, and a place in a key's wait queue.

use std::time::Duration;

use crate::blocking::LeaseGuard;
use crate::blocking::runtime::Runtime;
use crate::client;
use crate::error::Result;
use crate::types::Key;

/// The outcome of [`enqueue`](crate::SyncDistributedLock::enqueue).
#[must_use = "dropping it releases the lease, or leaves the queue"]
#[derive(Debug)]
pub enum Enqueued {
    /// The key was free and is held.
    Acquired(LeaseGuard),
    /// The key was busy. [`Ticket::wait`] returns the guard.
    Queued(Ticket),
}

impl Enqueued {
    pub(super) fn new(enqueued: client::Enqueued, runtime: &Runtime) -> Self {
        match enqueued {
            client::Enqueued::Acquired(guard) => Self::Acquired(LeaseGuard::new(guard, runtime)),
            client::Enqueued::Queued(ticket) => Self::Queued(Ticket { ticket, runtime: runtime.clone() }),
        }
    }
}

/// A place in a key's queue: [`Ticket`](crate::Ticket) for threads. Pings keep it until the ticket is dropped.
/// Dropping the ticket leaves the queue.
///
/// Once the key is granted to the ticket, the server's lease runs even if no thread waits: call
/// [`wait`](Self::wait) within the ttl, or the grant expires.
#[must_use = "dropping the ticket leaves the queue"]
#[derive(Debug)]
pub struct Ticket {
    ticket: client::Ticket,
    runtime: Runtime,
}

impl Ticket {
    /// Returns the key.
    pub fn key(&self) -> &Key {
        self.ticket.key()
    }

    /// Waits up to `timeout` for the grant (`w`, `sw`). After the timeout it gives up the place, and returns
    /// within one more second, even if the server does not reply.
    ///
    /// # Errors
    /// As [`Ticket::wait`](crate::Ticket::wait).
    ///
    /// # Panics
    /// In async code, as the [module](crate::blocking#panics) says; the queue is left.
    ///
    /// # Examples
    /// ```
    /// # fn main() -> dflockd_client::Result<()> {
    /// # let locks = dflockd_client::test_util::TestServer::new().builder().blocking().build()?;
    /// use dflockd_client::blocking::Enqueued;
    /// use std::time::Duration;
    /// let lock = locks.lock("nightly-report")?;
    /// let first = lock.acquire()?;
    /// let Enqueued::Queued(ticket) = lock.enqueue()? else { panic!("it is taken") };
    /// first.release()?;
    /// assert!(ticket.wait(Duration::from_secs(60))?.is_held());
    /// # Ok(()) }
    /// ```
    pub fn wait(self, timeout: Duration) -> Result<LeaseGuard> {
        LeaseGuard::block_on_acquire(&self.runtime, "Ticket", self.ticket.wait(timeout))
    }
}
