//! What a lock and a semaphore have in common: taking a key, in one step or in two, and the lease
//! that comes of it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::TryFutureExt;
use futures::future::{BoxFuture, Either, Ready, ready};
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::Instrument;

use crate::client::engine::ServerLease;
use crate::client::options::LeaseOptions;
use crate::client::outcome::{self, Grant};
use crate::client::pool::{Berth, InLine, Pool, client_closed};
use crate::client::retry::is_worth_a_retry;
use crate::client::runtime::here;
use crate::client::session::Answer;
use crate::error::{Error, ErrorKind, Result};
use crate::lease::{Engine, LeaseGuard, LostReason};
use crate::proto::{Family, Reply, Request};
use crate::types::{Key, Limit, Seconds};

/// How long a connection may take to close after the server said so.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// A key with all that is needed to take it.
#[derive(Clone)]
pub(crate) struct Resource {
    pub(crate) pool: Arc<Pool>,
    pub(crate) key: Key,
    pub(crate) limit: Option<Limit>,
    pub(crate) lease: LeaseOptions,
    /// Whether its leases have a connection of their own.
    pub(crate) isolated: bool,
}

impl Resource {
    pub(crate) async fn acquire(&self, timeout: Seconds) -> Result<LeaseGuard> {
        let began = Instant::now();
        let guard = self.observed(|shard| self.acquire_patiently(shard, timeout, began)).await?;
        self.pool.meter.acquired(began.elapsed());
        Ok(guard)
    }

    /// A try: busy, and a queue that is full, are `None`.
    pub(crate) async fn try_acquire(&self) -> Result<Option<LeaseGuard>> {
        let began = Instant::now();
        match self.observed(|shard| self.try_now(shard, began)).await? {
            Try::Held(guard) => {
                self.pool.meter.acquired(began.elapsed());
                Ok(Some(guard))
            }
            Try::Busy(_) => Ok(None),
        }
    }

    /// Names what fails, traces it and counts it.
    async fn observed<T, F: Future<Output = Result<T>>>(
        &self,
        acquire: impl FnOnce(usize) -> F,
    ) -> Result<T> {
        let named = |error: Error| error.during("acquire").for_key(&self.key);
        self.pool.check_process().map_err(named)?;
        let shard = self.pool.options.shard(&self.key).map_err(named)?;
        let server = &self.pool.options.servers[shard].name;
        let span = tracing::info_span!("acquire", key = %self.key, %server);
        let acquire = acquire(shard).map_err(|error| {
            let error = named(error);
            self.pool.meter.failed();
            tracing::debug!(%error, "not acquired");
            error
        });
        acquire.instrument(span).await
    }

    /// A key that is free is taken over a shared connection. All that comes after that is boxed, here
    /// and elsewhere, since it is rare: an acquire is moved when it is made, and should be small.
    async fn acquire_patiently(&self, shard: usize, timeout: Seconds, began: Instant) -> Result<LeaseGuard> {
        if self.waits_alone(timeout) {
            return Box::pin(self.acquire_again(shard, timeout, began, None)).await;
        }
        let tried = match self.try_now(shard, began).await {
            Ok(Try::Held(guard)) => return Ok(guard),
            tried => tried,
        };
        Box::pin(self.acquire_again(shard, timeout, began, Some(tried))).await
    }

    /// Whether it need not be tried first: it waits on a connection of its own in any case.
    fn waits_alone(&self, timeout: Seconds) -> bool {
        self.isolated && timeout != Seconds::ZERO
    }

    /// Waits for a key that was found busy, and tries again, where that was asked for, until the time
    /// is up.
    async fn acquire_again(
        &self,
        shard: usize,
        timeout: Seconds,
        began: Instant,
        mut tried: Option<Result<Try>>,
    ) -> Result<LeaseGuard> {
        let until = began.checked_add(timeout.duration());
        let (mut left, mut attempt, mut now) = (timeout, 0, began);
        loop {
            let outcome = self.acquire_once(shard, left, now, tried.take()).await;
            let (error, policy) = match (outcome, self.lease.retry) {
                (Err(error), Some(policy)) if is_worth_a_retry(&error) => (error, policy),
                (outcome, _) => return outcome,
            };
            let again = Instant::now() + policy.pause(attempt, fastrand::f64());
            let remaining = until.map_or(timeout.duration(), |until| until.saturating_duration_since(again));
            if remaining.is_zero() {
                return Err(error);
            }
            tracing::debug!(%error, attempt, "acquire is tried again");
            sleep_until(again).await;
            now = Instant::now();
            left = Seconds::ceil("timeout", remaining)?;
            attempt += 1;
        }
    }

    /// Tries, where that was not done, and waits for a key that is busy, over a connection of its own.
    async fn acquire_once(
        &self,
        shard: usize,
        timeout: Seconds,
        now: Instant,
        tried: Option<Result<Try>>,
    ) -> Result<LeaseGuard> {
        if self.waits_alone(timeout) {
            return Box::pin(self.pool.unless_closed(self.acquire_alone(shard, timeout))).await;
        }
        let tried = match tried {
            Some(tried) => tried,
            None => self.try_now(shard, now).await,
        };
        match tried? {
            Try::Held(guard) => return Ok(guard),
            Try::Busy(error) if timeout == Seconds::ZERO => return Err(error),
            Try::Busy(_) => {}
        }
        let _waits = self.pool.meter.waits();
        let until = now.checked_add(timeout.duration());
        Box::pin(self.pool.unless_closed(self.acquire_in_turn(shard, timeout, until))).await
    }

    /// Takes the key if it is free. Nobody passes by those of this client who wait for it.
    async fn try_now(&self, shard: usize, now: Instant) -> Result<Try> {
        let (mut berth, now) = if self.isolated {
            (Box::pin(self.pool.board_alone(shard)).await?, Instant::now())
        } else if self.pool.lines.is_waited_for(&self.key, self.limit) {
            return Ok(Try::Busy(outcome::busy()));
        } else if let Some(berth) = self.pool.board_open(shard, now) {
            (berth, now)
        } else {
            (Box::pin(self.pool.board(shard)).await?, Instant::now())
        };
        let reply = berth.ask(self.asks(Seconds::ZERO), now, Duration::from_secs(30));
        let answer = berth.answer(reply).await?;
        match self.settle(berth, answer, now).await {
            Ok(guard) => Ok(Try::Held(guard)),
            Err(error) if error.is_busy() => Ok(Try::Busy(error)),
            Err(error) => Err(error),
        }
    }

    async fn acquire_alone(&self, shard: usize, timeout: Seconds) -> Result<LeaseGuard> {
        let berth = self.pool.board_alone(shard).await?;
        self.wait_for_grant(berth, self.asks(timeout), timeout, None).await
    }

    /// Waits behind the others of this client, and then at the server.
    async fn acquire_in_turn(
        &self,
        shard: usize,
        timeout: Seconds,
        until: Option<Instant>,
    ) -> Result<LeaseGuard> {
        let mut line = InLine::join(&self.pool, &self.key, self.limit)?;
        let mut left = timeout;
        if let Some(until) = until {
            timeout_at(until, line.turn()).await.map_err(|_| outcome::busy())?;
            left = Seconds::ceil("timeout", until.saturating_duration_since(Instant::now()))?;
            if left == Seconds::ZERO {
                return Err(outcome::busy());
            }
        } else {
            line.turn().await;
        }
        let berth = self.pool.board_alone(shard).await?;
        self.wait_for_grant(berth, self.asks(left), left, Some(line)).await
    }

    fn asks(&self, timeout: Seconds) -> Request {
        Request::Acquire { key: self.key.clone(), timeout, limit: self.limit, lease: self.lease.ttl }
    }

    fn waits(&self, timeout: Seconds) -> Request {
        Request::Wait { key: self.key.clone(), timeout, family: Family::of(self.limit) }
    }

    pub(crate) async fn enqueue(&self) -> Result<Enqueued> {
        let outcome = match self.pool.check_process() {
            Ok(()) => Box::pin(self.pool.unless_closed(self.enqueue_unnamed())).await,
            Err(error) => Err(error),
        };
        outcome.map_err(|error| {
            self.pool.meter.failed();
            error.during("enqueue").for_key(&self.key)
        })
    }

    async fn enqueue_unnamed(&self) -> Result<Enqueued> {
        let request = Request::Enqueue { key: self.key.clone(), limit: self.limit, lease: self.lease.ttl };
        let mut berth = self.pool.board_alone(self.pool.options.shard(&self.key)?).await?;
        let sent = Instant::now();
        let reply = berth.ask(request, sent, Duration::from_secs(30));
        let answer = berth.answer(reply).await?;
        if *answer.reply() == Reply::Queued {
            tracing::debug!(key = %self.key, "queued");
            // A wait of no time ends the registration: it answers `timeout`, or a grant that came meanwhile.
            berth.session().queue(self.waits(Seconds::ZERO));
            let ticket = Ticket(Some(Place { resource: self.clone(), berth }));
            // A client that was closed before this had a place to give up left it to this.
            self.pool.check_open()?;
            return Ok(Enqueued::Queued(ticket));
        }
        self.settle(berth, answer, sent).await.map(Enqueued::Acquired)
    }

    /// Sends a request that may wait for a grant, and makes a guard of it. Once it is answered, the
    /// next in line may ask.
    async fn wait_for_grant(
        &self,
        mut berth: Berth,
        request: Request,
        timeout: Seconds,
        line: Option<InLine>,
    ) -> Result<LeaseGuard> {
        let sent = Instant::now();
        let reply = berth.ask(request, sent, timeout.duration() + Duration::from_secs(30));
        let answer = berth.answer(reply).await?;
        drop(line);
        self.settle(berth, answer, sent).await
    }

    /// Makes a guard of a grant, or an error of a refusal. Ready at once, but for a refusal, and for a
    /// grant that took long to come.
    ///
    /// The deadline counts from when the request was sent. A grant that took long to come has little
    /// or nothing of that left, and its connection went unproven for as long; one renewal makes both
    /// count from now.
    fn settle(
        &self,
        berth: Berth,
        answer: Answer,
        sent: Instant,
    ) -> Either<Ready<Result<LeaseGuard>>, BoxFuture<'_, Result<LeaseGuard>>> {
        let Some(grant) = answer.grant() else {
            return Either::Right(Box::pin(self.refused(berth, answer)));
        };
        let now = Instant::now();
        let is_stale = now - sent > (grant.lease / 10).min(self.pool.options.keepalive_interval);
        Either::Left(ready(match self.engine(berth, &grant, (sent, now)) {
            Err(error) => Err(error),
            Ok(engine) if is_stale => {
                return Either::Right(Box::pin(self.hold_renewed(engine, answer, grant)));
            }
            Ok(engine) => self.hold(engine, answer, grant, sent, now),
        }))
    }

    async fn refused(&self, berth: Berth, answer: Answer) -> Result<LeaseGuard> {
        let server = berth.session().server().clone();
        let error = outcome::grant(answer.claim()).err();
        let mut error =
            error.unwrap_or_else(|| Error::new(ErrorKind::Protocol, "a reply to another request"));
        // A sound request gets a bare `error` from a server that had read nothing for too long, and
        // closes: the request was lost, or crossed that.
        if error.raw() == Some("error") && berth.ends_within(LAST_WORDS).await {
            let detail = "the server had read nothing from it for too long";
            error = Error::new(ErrorKind::ConnectionClosed, detail);
        }
        match error.kind() {
            // The server closes a connection to which it says this.
            ErrorKind::Auth | ErrorKind::Draining => berth.retire(),
            _ => drop(berth),
        }
        Err(error.on_server(&server))
    }

    /// `heard` is when the grant was asked for, and when it came.
    fn engine(&self, berth: Berth, grant: &Grant, heard: (Instant, Instant)) -> Result<ServerLease> {
        let ttl = Seconds::ceil("lease", grant.lease)?;
        // The holders of a semaphore have different fences at one time.
        if self.limit.is_none_or(|limit| limit.get() == 1) {
            self.pool.fences.granted(&self.key, grant.token.fence(), heard, berth.session().server());
        }
        Ok(ServerLease {
            number: self.pool.leases.number(),
            shard: berth.shard(),
            pool: self.pool.clone(),
            berth: Mutex::new(Some(berth)),
            key: self.key.clone(),
            token: grant.token.clone(),
            family: Family::of(self.limit),
            ttl,
            on_disconnect: self.lease.on_disconnect,
        })
    }

    async fn hold_renewed(&self, engine: ServerLease, answer: Answer, grant: Grant) -> Result<LeaseGuard> {
        let sent = Instant::now();
        let lease = match engine.renew().await {
            Err(error) if error.kind() == ErrorKind::NotHeld => {
                return Err(Error::new(ErrorKind::LeaseExpired, "").caused_by(error));
            }
            renewed => renewed?,
        };
        self.hold(engine, answer, Grant { lease, ..grant }, sent, Instant::now())
    }

    /// Until the guard stands, dropping `answer` releases the grant.
    fn hold(
        &self,
        engine: ServerLease,
        answer: Answer,
        grant: Grant,
        sent: Instant,
        now: Instant,
    ) -> Result<LeaseGuard> {
        let (number, key, terms) = (engine.number, self.key.clone(), &self.lease.terms);
        let guard = LeaseGuard::new(engine, key, grant.token, terms, (sent, now), grant.lease);
        answer.claim();
        // Dropped, the guard lets go.
        if let Some(reason) = guard.state_at(now).lost() {
            let ran_out = reason == LostReason::DeadlinePassed;
            let kind = if ran_out { ErrorKind::LeaseExpired } else { ErrorKind::ConnectionClosed };
            return Err(Error::new(kind, format!("lost as it came: {reason}")));
        }
        if self.pool.leases.enter(number, &guard) { Ok(guard) } else { Err(client_closed()) }
    }
}

/// What a try comes to.
enum Try {
    Held(LeaseGuard),
    /// Others hold the key, or wait for it.
    Busy(Error),
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
    berth: Berth,
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
        here().map_err(|error| error.during("wait").for_key(self.key()))?;
        let Place { resource, berth } = self.0.take().expect("a ticket has its place until it is consumed");
        let granted = async {
            if !berth.session().unqueue() {
                return Err(client_closed());
            }
            resource.wait_for_grant(berth, resource.waits(timeout), timeout, None).await
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
