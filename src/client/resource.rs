//! What a lock and a semaphore have in common: taking a key, in one step or in two, and the lease
//! that comes of it.

mod ticket;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::TryFutureExt;
use futures::future::{BoxFuture, Either, Ready, ready};
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::Instrument;

use crate::client::deadline::Deadline;
use crate::client::engine::ServerLease;
use crate::client::options::LeaseOptions;
use crate::client::outcome::{self, Grant};
use crate::client::pool::{Berth, InLine, Pool, client_closed};
use crate::client::retry::is_worth_a_retry;
use crate::client::session::Answer;
use crate::error::{Error, ErrorKind, Result};
use crate::lease::{Engine, LeaseGuard, LostReason};
use crate::proto::{Family, Reply, Request};
use crate::suspend;
use crate::types::{Key, Limit, Seconds};

use ticket::Place;
pub use ticket::{Enqueued, Ticket};

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
    /// Takes the key, or waits for it as long as was set.
    pub(crate) async fn acquire(&self) -> Result<LeaseGuard> {
        self.acquire_by(&self.deadline(self.lease.acquire_timeout)).await
    }

    /// Takes the key, or waits for it for so long.
    pub(crate) async fn acquire_within(&self, timeout: Duration) -> Result<LeaseGuard> {
        Seconds::ceil("timeout", timeout)?;
        self.acquire_by(&self.deadline(timeout)).await
    }

    async fn acquire_by(&self, deadline: &Deadline) -> Result<LeaseGuard> {
        let guard = self.observed(|shard| self.acquire_patiently(shard, deadline)).await?;
        self.pool.meter.acquired(deadline.began().elapsed());
        Ok(guard)
    }

    /// A try: busy, and a queue that is full, are `None`.
    pub(crate) async fn try_acquire(&self) -> Result<Option<LeaseGuard>> {
        let deadline = &self.deadline(Duration::ZERO);
        match self.observed(|shard| self.try_now(shard, deadline.began(), deadline)).await? {
            Try::Held(guard) => {
                self.pool.meter.acquired(deadline.began().elapsed());
                Ok(Some(guard))
            }
            Try::Busy(_) => Ok(None),
        }
    }

    /// For something that begins now and may wait so long for the key.
    fn deadline(&self, timeout: Duration) -> Deadline {
        let now = suspend::now();
        if timeout.is_zero() {
            Deadline::of_request(now, self.pool.options.request_timeout)
        } else {
            Deadline::of_wait(now, timeout)
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
    async fn acquire_patiently(&self, shard: usize, deadline: &Deadline) -> Result<LeaseGuard> {
        if self.waits_alone(deadline) {
            return Box::pin(self.acquire_again(shard, deadline, None)).await;
        }
        let tried = match self.try_now(shard, deadline.began(), deadline).await {
            Ok(Try::Held(guard)) => return Ok(guard),
            tried => tried,
        };
        Box::pin(self.acquire_again(shard, deadline, Some(tried))).await
    }

    /// Whether it need not be tried first: it waits on a connection of its own in any case.
    fn waits_alone(&self, deadline: &Deadline) -> bool {
        self.isolated && deadline.waits()
    }

    /// Waits for a key that was found busy, and tries again, where that was asked for, until the time
    /// is up.
    async fn acquire_again(
        &self,
        shard: usize,
        deadline: &Deadline,
        mut tried: Option<Result<Try>>,
    ) -> Result<LeaseGuard> {
        let mut attempt = 0;
        loop {
            let outcome = self.acquire_once(shard, deadline, tried.take()).await;
            let (error, policy) = match (outcome, self.lease.retry) {
                (Err(error), Some(policy)) if is_worth_a_retry(&error) => (error, policy),
                (outcome, _) => return outcome,
            };
            let again = Instant::now() + policy.pause(attempt, fastrand::f64());
            if again >= deadline.wait_ends() {
                return Err(error);
            }
            tracing::debug!(%error, attempt, "acquire is tried again");
            sleep_until(again).await;
            attempt += 1;
        }
    }

    /// Tries, where that was not done, and waits for a key that is busy, over a connection of its own.
    async fn acquire_once(
        &self,
        shard: usize,
        deadline: &Deadline,
        tried: Option<Result<Try>>,
    ) -> Result<LeaseGuard> {
        if self.waits_alone(deadline) {
            return Box::pin(self.pool.unless_closed(self.acquire_alone(shard, deadline))).await;
        }
        let tried = match tried {
            Some(tried) => tried,
            None => self.try_now(shard, suspend::now(), deadline).await,
        };
        match tried? {
            Try::Held(guard) => return Ok(guard),
            Try::Busy(error) if !deadline.waits() => return Err(error),
            Try::Busy(_) => {}
        }
        let _waits = self.pool.meter.waits();
        Box::pin(self.pool.unless_closed(self.acquire_in_turn(shard, deadline))).await
    }

    /// Takes the key if it is free. Nobody passes by those of this client who wait for it.
    async fn try_now(&self, shard: usize, now: Instant, deadline: &Deadline) -> Result<Try> {
        let (mut berth, now) = if self.isolated {
            (Box::pin(self.board_alone(shard, deadline)).await?, suspend::now())
        } else if self.pool.lines.is_waited_for(&self.key, self.limit) {
            return Ok(Try::Busy(outcome::busy()));
        } else if let Some(berth) = self.pool.board_open(shard, now) {
            (berth, now)
        } else {
            let boarding = self.boarded(shard, deadline, self.pool.board(shard));
            (Box::pin(boarding).await?, suspend::now())
        };
        let reply = berth.ask(self.asks(Seconds::ZERO), now, deadline);
        let answer = berth.answer(reply, deadline).await?;
        match self.settle(berth, answer, now, deadline).await {
            Ok(guard) => Ok(Try::Held(guard)),
            Err(error) if error.is_busy() => Ok(Try::Busy(error)),
            Err(error) => Err(error),
        }
    }

    async fn board_alone(&self, shard: usize, deadline: &Deadline) -> Result<Berth> {
        self.boarded(shard, deadline, self.pool.board_alone(shard)).await
    }

    async fn boarded(
        &self,
        shard: usize,
        deadline: &Deadline,
        boarding: impl Future<Output = Result<Berth>>,
    ) -> Result<Berth> {
        let boarded = deadline.bounds("connection", boarding).await;
        let server = &self.pool.options.servers[shard].name;
        boarded.map_err(|error| if error.is_timeout() { error.on_server(server) } else { error })
    }

    /// Waits at the server, on a connection of its own.
    async fn acquire_alone(&self, shard: usize, deadline: &Deadline) -> Result<LeaseGuard> {
        let berth = self.board_alone(shard, deadline).await?;
        let left = deadline.wait_left(Instant::now())?;
        self.wait_for_grant(berth, self.asks(left), deadline, None).await
    }

    /// Waits behind the others of this client, and then at the server.
    async fn acquire_in_turn(&self, shard: usize, deadline: &Deadline) -> Result<LeaseGuard> {
        let mut line = InLine::join(&self.pool, &self.key, self.limit)?;
        timeout_at(deadline.wait_ends(), line.turn()).await.map_err(|_| outcome::busy())?;
        let berth = self.board_alone(shard, deadline).await?;
        let left = deadline.wait_left(Instant::now())?;
        self.wait_for_grant(berth, self.asks(left), deadline, Some(line)).await
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
        let deadline = &self.deadline(Duration::ZERO);
        let mut berth = self.board_alone(self.pool.options.shard(&self.key)?, deadline).await?;
        let sent = suspend::now();
        let reply = berth.ask(request, sent, deadline);
        let answer = berth.answer(reply, deadline).await?;
        if *answer.reply() == Reply::Queued {
            tracing::debug!(key = %self.key, "queued");
            // A wait of no time ends the registration: it answers `timeout`, or a grant that came meanwhile.
            berth.session().queue(self.waits(Seconds::ZERO));
            let ticket = Ticket(Some(Place { resource: self.clone(), berth }));
            // A client that was closed before this had a place to give up left it to this.
            self.pool.check_open()?;
            return Ok(Enqueued::Queued(ticket));
        }
        self.settle(berth, answer, sent, deadline).await.map(Enqueued::Acquired)
    }

    /// Sends a request that may wait for a grant, and makes a guard of it. Once it is answered, the
    /// next in line may ask.
    async fn wait_for_grant(
        &self,
        mut berth: Berth,
        request: Request,
        deadline: &Deadline,
        line: Option<InLine>,
    ) -> Result<LeaseGuard> {
        let sent = suspend::now();
        let reply = berth.ask(request, sent, deadline);
        let answer = berth.answer(reply, deadline).await?;
        drop(line);
        self.settle(berth, answer, sent, deadline).await
    }

    /// Makes a guard of a grant, or an error of a refusal. Ready at once, but for a refusal, and for a
    /// grant that took long to come.
    ///
    /// The deadline counts from when the request was sent. A grant that took long to come has little
    /// or nothing of that left, and its connection went unproven for as long; one renewal makes both
    /// count from now.
    fn settle<'a>(
        &'a self,
        berth: Berth,
        answer: Answer,
        sent: Instant,
        deadline: &'a Deadline,
    ) -> Either<Ready<Result<LeaseGuard>>, BoxFuture<'a, Result<LeaseGuard>>> {
        let Some(grant) = answer.grant() else {
            return Either::Right(Box::pin(self.refused(berth, answer, deadline)));
        };
        let now = suspend::now();
        let is_stale =
            now - sent + suspend::since(sent) > (grant.lease / 10).min(self.pool.options.keepalive_interval);
        Either::Left(ready(match self.engine(berth, &grant, (sent, now)) {
            Err(error) => Err(error),
            Ok(engine) if is_stale => {
                let renewing = self.hold_renewed(engine, answer, grant);
                return Either::Right(Box::pin(deadline.bounds("reply", renewing)));
            }
            Ok(engine) => self.hold(engine, answer, grant, sent, now),
        }))
    }

    async fn refused(&self, berth: Berth, answer: Answer, deadline: &Deadline) -> Result<LeaseGuard> {
        let server = berth.session().server().clone();
        let error = outcome::grant(answer.claim()).err();
        let mut error =
            error.unwrap_or_else(|| Error::new(ErrorKind::Protocol, "a reply to another request"));
        // A sound request gets a bare `error` from a server that had read nothing for too long, and
        // closes: the request was lost, or crossed that.
        if error.raw() == Some("error") && berth.ends_by(deadline.at().min(Instant::now() + LAST_WORDS)).await
        {
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
        let sent = suspend::now();
        let lease = match engine.renew().await {
            Err(error) if error.kind() == ErrorKind::NotHeld => {
                return Err(Error::new(ErrorKind::LeaseExpired, "").caused_by(error));
            }
            renewed => renewed?,
        };
        self.hold(engine, answer, Grant { lease, ..grant }, sent, suspend::now())
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
