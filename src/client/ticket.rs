//! Acquiring a key in two steps: the outcome of an enqueue, and a place in a key's wait queue.

use std::time::Duration;

use tokio::time::Instant;

use crate::backend::{Deadline, Enqueue, client_closed, here};
use crate::client::acquire::{Acquire, Resource};
use crate::client::any::{AnyPlace, KnownBackend, with_backend};
#[cfg(doc)]
use crate::error::ErrorKind;
use crate::error::{Error, Result};
use crate::lease::LeaseGuard;
use crate::types::{Key, Seconds};

impl Resource {
    pub(crate) async fn enqueue(&self) -> Result<Enqueued> {
        let outcome = match self.client.check_process() {
            Ok(()) => Box::pin(self.client.unless_closed(self.enqueue_unnamed())).await,
            Err(error) => Err(error),
        };
        outcome.map_err(|error| {
            self.client.counters.failed();
            error.during("enqueue").for_key(&self.request.key)
        })
    }

    async fn enqueue_unnamed(&self) -> Result<Enqueued> {
        with_backend!(&self.client.backend, backend => self.enqueue_at(backend).await)
    }

    async fn enqueue_at<B: KnownBackend>(&self, backend: &B) -> Result<Enqueued> {
        let acquire = Acquire::new(self, backend)?;
        let deadline = &self.deadline(Duration::ZERO);
        match backend.enqueue(&self.request, acquire.endpoint(), deadline).await? {
            Enqueue::Acquired(grant) => acquire.complete(grant, deadline).await.map(Enqueued::Acquired),
            Enqueue::Queued(place) => {
                tracing::debug!(key = %self.request.key, "queued");
                let ticket = Ticket { resource: self.clone(), place: B::keep(place) };
                // A client that was closed before the ticket existed could not give up its place.
                self.client.check_open()?;
                Ok(Enqueued::Queued(ticket))
            }
        }
    }
}

/// The outcome of [`enqueue`](crate::AsyncDistributedLock::enqueue).
#[must_use = "dropping it releases the lease, or leaves the queue"]
#[derive(Debug)]
pub enum Enqueued {
    /// The key was free and is held.
    Acquired(LeaseGuard),
    /// The key was busy. [`Ticket::wait`] returns the guard.
    Queued(Ticket),
}

/// A place in a key's queue. Pings keep it until the ticket is dropped. Dropping the ticket leaves the queue.
///
/// Once the key is granted to the ticket, the server's lease runs even if no task waits: call
/// [`wait`](Self::wait) within the ttl, or the grant expires.
#[must_use = "dropping the ticket leaves the queue"]
pub struct Ticket {
    resource: Resource,
    place: AnyPlace,
}

impl Ticket {
    /// Returns the key.
    pub fn key(&self) -> &Key {
        &self.resource.request.key
    }

    /// Waits up to `timeout` for the grant (`w`, `sw`). After the timeout it gives up the place, and returns
    /// within one more second, even if the server does not reply: the server counts in whole seconds, rounded
    /// up.
    ///
    /// # Errors
    /// - [`Busy`](ErrorKind::Busy) if the grant does not come in time.
    /// - [`Timeout`](ErrorKind::Timeout) if the server does not reply.
    /// - [`LeaseExpired`](ErrorKind::LeaseExpired) if the grant came and expired before this call.
    /// - [`Draining`](ErrorKind::Draining) if the server shuts down.
    /// - [`ConnectionClosed`](ErrorKind::ConnectionClosed) if the connection was lost, and the place with it.
    /// - [`InvalidInput`](ErrorKind::InvalidInput) for a timeout over 9,223,372,036 s.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the queue. A late grant is released.
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
    pub async fn wait(self, timeout: Duration) -> Result<LeaseGuard> {
        let deadline = Deadline::of_wait(Instant::now(), timeout);
        let timeout = Seconds::ceil("timeout", timeout)?;
        let Self { resource, place } = self;
        let named = |error: Error| error.during("wait").for_key(&resource.request.key);
        here().map_err(named)?;
        let waiting = async {
            with_backend!(&resource.client.backend, backend => {
                wait_at(backend, place, &resource, timeout, &deadline).await
            })
        };
        resource.client.unless_closed(waiting).await.map_err(named)
    }
}

async fn wait_at<B: KnownBackend>(
    backend: &B,
    place: AnyPlace,
    resource: &Resource,
    timeout: Seconds,
    deadline: &Deadline,
) -> Result<LeaseGuard> {
    let acquire = Acquire::new(resource, backend)?;
    let place = B::take(place).ok_or_else(client_closed)?;
    let grant = backend.wait(place, &resource.request, timeout, deadline).await?;
    acquire.complete(grant, deadline).await
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ticket").field("key", self.key()).finish_non_exhaustive()
    }
}
