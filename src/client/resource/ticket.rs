//! Taking a key in two steps: what an enqueue comes to, and a place in a key's queue.

use std::time::Duration;

use tokio::time::Instant;

use crate::client::deadline::Deadline;
use crate::client::pool::{Berth, client_closed};
use crate::client::resource::Resource;
use crate::client::runtime::here;
#[cfg(doc)]
use crate::error::ErrorKind;
use crate::error::Result;
use crate::lease::LeaseGuard;
use crate::types::{Key, Seconds};

/// What [`enqueue`](crate::AsyncDistributedLock::enqueue) comes to.
#[must_use = "dropping it gives the lease, or the place in the queue, back"]
#[derive(Debug)]
pub enum Enqueued {
    /// The key was free and is held.
    Acquired(LeaseGuard),
    /// In the queue: [`Ticket::wait`] for the guard.
    Queued(Ticket),
}

/// A place in a key's queue. It is kept, by pings, for as long as the ticket lives; dropping the
/// ticket leaves the queue.
///
/// Once the ticket's turn has come, the server's lease runs whether or not anybody waits: wait
/// within the ttl, or the place is lost.
#[must_use = "dropping the ticket leaves the queue"]
pub struct Ticket(pub(super) Option<Place>);

pub(super) struct Place {
    pub(super) resource: Resource,
    pub(super) berth: Berth,
}

impl Ticket {
    /// The key that is queued for.
    pub fn key(&self) -> &Key {
        &self.place().resource.key
    }

    fn place(&self) -> &Place {
        self.0.as_ref().expect("a ticket has its place until it is consumed")
    }

    /// Waits up to `timeout` for the grant (`w`, `sw`). The place is given up when the time runs out,
    /// and the answer is there within a second more, whether or not the server answers: it counts in
    /// whole seconds, rounded up.
    ///
    /// # Errors
    /// [`Timeout`](ErrorKind::Timeout); [`LeaseExpired`](ErrorKind::LeaseExpired) when the grant
    /// came and ran out before this call; [`Draining`](ErrorKind::Draining);
    /// [`ConnectionClosed`](ErrorKind::ConnectionClosed) when the connection was lost, and the
    /// place with it; [`InvalidInput`](ErrorKind::InvalidInput) for a timeout over
    /// 9,223,372,036 s.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the queue; a grant that crosses it is released.
    ///
    /// # Examples
    /// ```
    /// # use dflockd_client::test_util::TestServer;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
    /// # let locks = TestServer::new().locks();
    /// use dflockd_client::Enqueued;
    /// use std::time::Duration;
    /// let lock = locks.lock("nightly-report")?;
    /// let first = lock.acquire().await?;
    /// let Enqueued::Queued(ticket) = lock.enqueue().await? else { panic!("it is taken") };
    /// first.release().await?;
    /// let second = ticket.wait(Duration::from_secs(60)).await?;
    /// assert!(second.is_held());
    /// # Ok(()) }
    /// ```
    pub async fn wait(mut self, timeout: Duration) -> Result<LeaseGuard> {
        let deadline = Deadline::of_wait(Instant::now(), timeout);
        let timeout = Seconds::ceil("timeout", timeout)?;
        here().map_err(|error| error.during("wait").for_key(self.key()))?;
        let Place { resource, berth } = self.0.take().expect("a ticket has its place until it is consumed");
        let granted = async {
            if !berth.session().unqueue() {
                return Err(client_closed());
            }
            resource.wait_for_grant(berth, resource.waits(timeout), &deadline, None).await
        };
        let outcome = resource.pool.unless_closed(granted).await;
        outcome.map_err(|error| error.during("wait").for_key(&resource.key))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(place) = self.0.take() {
            if !place.berth.session().is_ours() {
                return std::mem::forget(place);
            }
            place.berth.session().leave_queue();
        }
    }
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ticket").field("key", self.key()).finish_non_exhaustive()
    }
}
