//! What a lock and a semaphore have in common: taking a key, in one step or in two, and the lease
//! that comes of it.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::Instant;

use crate::client::command::IO_SLACK;
use crate::client::options::LeaseOptions;
use crate::client::outcome::{self, Grant};
use crate::client::pool::{Held, Pool, Waiting};
use crate::client::session::{Answer, Orphan};
use crate::error::{Error, ErrorKind, Result};
use crate::lease::{Engine, LeaseGuard, LostReason};
use crate::proto::{Family, Reply, Request};
use crate::types::{Key, Limit, Seconds, Token};

/// How long the lock's own renewals and releases wait for a reply.
const RENEW_LIMIT: Duration = Duration::from_secs(5);

/// A key with all that is needed to take it.
#[derive(Clone)]
pub(crate) struct Resource {
    pub(crate) pool: Arc<Pool>,
    pub(crate) key: Key,
    pub(crate) limit: Option<Limit>,
    pub(crate) lease: LeaseOptions,
}

impl Resource {
    pub(crate) async fn acquire(&self, timeout: Seconds) -> Result<LeaseGuard> {
        self.acquire_unnamed(timeout).await.map_err(|error| error.during("acquire").for_key(&self.key))
    }

    async fn acquire_unnamed(&self, timeout: Seconds) -> Result<LeaseGuard> {
        let request =
            Request::Acquire { key: self.key.clone(), timeout, limit: self.limit, lease: self.lease.ttl };
        let waiting = self.pool.begin(&self.key).await?;
        self.wait_for_grant(waiting, request, timeout).await
    }

    /// A try: busy, and a queue that is full, are `None`.
    pub(crate) async fn try_acquire(&self) -> Result<Option<LeaseGuard>> {
        match self.acquire(Seconds::ZERO).await {
            Ok(guard) => Ok(Some(guard)),
            Err(error) if error.raw() == Some("timeout") || error.kind() == ErrorKind::MaxWaiters => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn enqueue(&self) -> Result<Enqueued> {
        self.enqueue_unnamed().await.map_err(|error| error.during("enqueue").for_key(&self.key))
    }

    async fn enqueue_unnamed(&self) -> Result<Enqueued> {
        let request = Request::Enqueue { key: self.key.clone(), limit: self.limit, lease: self.lease.ttl };
        let mut waiting = self.pool.begin(&self.key).await?;
        let sent = Instant::now();
        let answer = waiting.call(request, IO_SLACK).await?;
        match answer.reply() {
            Reply::Queued => {
                tracing::debug!(key = %self.key, "queued");
                Ok(Enqueued::Queued(Ticket(Some(Place { resource: self.clone(), waiting }))))
            }
            Reply::Acquired { token, lease } => {
                let grant = Grant { token: token.clone(), lease: lease.duration() };
                self.hold(waiting, answer, grant, sent).await.map(Enqueued::Acquired)
            }
            _ => Err(self.refused(waiting, outcome::place(answer.claim()).err())),
        }
    }

    /// Sends a request that may wait for a grant, and makes a guard of it.
    async fn wait_for_grant(
        &self,
        mut waiting: Waiting,
        request: Request,
        timeout: Seconds,
    ) -> Result<LeaseGuard> {
        let sent = Instant::now();
        let answer = waiting.call(request, timeout.duration() + IO_SLACK).await?;
        match answer.reply() {
            Reply::Granted { token, lease } => {
                let grant = Grant { token: token.clone(), lease: lease.duration() };
                self.hold(waiting, answer, grant, sent).await
            }
            _ => Err(self.refused(waiting, outcome::grant(answer.claim()).err())),
        }
    }

    fn refused(&self, waiting: Waiting, error: Option<Error>) -> Error {
        let server = waiting.server();
        let error = error.unwrap_or_else(|| Error::new(ErrorKind::Protocol, "a reply to another request"));
        match error.kind() {
            // The server closes a connection to which it says this.
            ErrorKind::Auth | ErrorKind::Draining => waiting.discard(),
            _ => waiting.done(),
        }
        server.map_or(error.clone(), |server| error.on_server(&server))
    }

    /// Makes a guard of a grant. Until the guard stands, dropping `answer` releases the grant.
    ///
    /// The deadline counts from when the request was sent. A grant that took long to come has
    /// little or nothing of that left, so one renewal makes it count from now.
    async fn hold(
        &self,
        waiting: Waiting,
        answer: Answer,
        grant: Grant,
        mut sent: Instant,
    ) -> Result<LeaseGuard> {
        let Some(held) = waiting.carry() else {
            return Err(Error::new(ErrorKind::ConnectionClosed, "the wait was over already"));
        };
        let ttl = Seconds::ceil("lease", grant.lease)?;
        let lease = ServerLease {
            held,
            key: self.key.clone(),
            token: grant.token.clone(),
            family: Family::of(self.limit),
            ttl,
        };
        let mut proven = grant.lease;
        if sent.elapsed() > grant.lease / 10 {
            sent = Instant::now();
            proven = match lease.renew().await {
                Err(error) if error.kind() == ErrorKind::NotHeld => {
                    return Err(Error::new(ErrorKind::LeaseExpired, "").caused_by(error));
                }
                renewed => renewed?,
            };
        }
        let guard =
            LeaseGuard::new(Box::new(lease), self.key.clone(), grant.token, self.lease.pace, sent, proven);
        answer.claim();
        Ok(guard)
    }
}

/// A grant of a server's: the engine of a lease.
struct ServerLease {
    held: Held,
    key: Key,
    token: Token,
    family: Family,
    ttl: Seconds,
}

impl ServerLease {
    fn orphan(&self) -> Orphan {
        Orphan { key: self.key.clone(), token: self.token.clone(), family: self.family }
    }

    async fn ask(&self, request: Request, operation: &'static str) -> Result<Reply> {
        let session = &self.held.session;
        let answer = session.call(request, RENEW_LIMIT).await;
        let answer = answer.map_err(|failure| failure.error.on_server(session.server()));
        answer.map(Answer::claim).map_err(|error| error.during(operation).for_key(&self.key))
    }

    fn named<T>(&self, outcome: Result<T>, operation: &'static str) -> Result<T> {
        outcome.map_err(|e| e.during(operation).for_key(&self.key).on_server(self.held.session.server()))
    }
}

impl Engine for ServerLease {
    /// Names the ttl that was granted: without one the server would fall back to its default.
    fn renew(&self) -> BoxFuture<'_, Result<Duration>> {
        Box::pin(async {
            let (key, token) = (self.key.clone(), self.token.clone());
            let request = Request::Renew { key, token, lease: Some(self.ttl), family: self.family };
            let reply = self.ask(request, "renew").await?;
            self.named(outcome::renewed(reply), "renew")
        })
    }

    fn release(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            let reply = self.ask(self.orphan().release(), "release").await?;
            self.held.give_back();
            self.named(outcome::released(reply), "release")
        })
    }

    fn release_soon(&self) {
        self.held.release_soon(self.orphan());
    }

    fn lost(&self) -> Option<LostReason> {
        self.held.session.is_closed().then_some(LostReason::ConnectionClosed)
    }

    fn closed(&self) -> BoxFuture<'_, LostReason> {
        Box::pin(async {
            self.held.session.closed().await;
            LostReason::ConnectionClosed
        })
    }

    fn name(&self, error: Error) -> Error {
        error.on_server(self.held.session.server())
    }
}

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
pub struct Ticket(Option<Place>);

struct Place {
    resource: Resource,
    waiting: Waiting,
}

impl Ticket {
    /// The key that is queued for.
    pub fn key(&self) -> &Key {
        &self.place().resource.key
    }

    fn place(&self) -> &Place {
        self.0.as_ref().expect("a ticket has its place until it is consumed")
    }

    /// Waits up to `timeout` for the grant (`w`, `sw`), in whole seconds, rounded up. The place is
    /// given up when the time runs out.
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
        let timeout = Seconds::ceil("timeout", timeout)?;
        let Place { resource, waiting } = self.0.take().expect("a ticket has its place until it is consumed");
        let (key, family) = (resource.key.clone(), Family::of(resource.limit));
        let request = Request::Wait { key, timeout, family };
        let outcome = resource.wait_for_grant(waiting, request, timeout).await;
        outcome.map_err(|error| error.during("wait").for_key(&resource.key))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(Place { resource, waiting }) = self.0.take() {
            // A wait of no time ends the registration: it answers `timeout`, or a grant that came
            // meanwhile, which is then released as one that nobody took.
            let family = Family::of(resource.limit);
            waiting.end_with(Request::Wait { key: resource.key, timeout: Seconds::ZERO, family });
        }
    }
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ticket").field("key", self.key()).finish_non_exhaustive()
    }
}
