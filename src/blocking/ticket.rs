//! Taking a key in two steps, for threads: what an enqueue comes to, and the place in a queue.

use std::time::Duration;

use crate::blocking::LeaseGuard;
use crate::blocking::runtime::Runtime;
use crate::error::Result;
use crate::types::Key;

/// What [`enqueue`](crate::SyncDistributedLock::enqueue) comes to.
#[must_use = "dropping it gives the lease, or the place in the queue, back"]
#[derive(Debug)]
pub enum Enqueued {
    /// The key was free and is held.
    Acquired(LeaseGuard),
    /// In the queue: [`Ticket::wait`] for the guard.
    Queued(Ticket),
}

impl Enqueued {
    pub(super) fn new(enqueued: crate::Enqueued, runtime: &Runtime) -> Self {
        match enqueued {
            crate::Enqueued::Acquired(guard) => Self::Acquired(LeaseGuard::new(guard, runtime)),
            crate::Enqueued::Queued(ticket) => Self::Queued(Ticket { ticket, runtime: runtime.clone() }),
        }
    }
}

/// A place in a key's queue: [`Ticket`](crate::Ticket) for threads. It is kept for as long as the
/// ticket lives; dropping the ticket leaves the queue.
///
/// Once the ticket's turn has come, the server's lease runs whether or not anybody waits: wait
/// within the ttl, or the place is lost.
#[must_use = "dropping the ticket leaves the queue"]
#[derive(Debug)]
pub struct Ticket {
    ticket: crate::Ticket,
    runtime: Runtime,
}

impl Ticket {
    /// The key that is queued for.
    pub fn key(&self) -> &Key {
        self.ticket.key()
    }

    /// Waits up to `timeout` for the grant (`w`, `sw`). The place is given up when the time runs out,
    /// and the answer is there within a second more, whether or not the server answers.
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
        LeaseGuard::by(&self.runtime, "Ticket", self.ticket.wait(timeout))
    }
}
