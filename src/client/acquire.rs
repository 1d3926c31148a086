//! An acquire, for every backend: the try, the local queue, the wait, the retries, and the guard.

use std::sync::Arc;
use std::time::Duration;

use futures::TryFutureExt;
use futures::future::{BoxFuture, Either, Ready, ready};
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::Instrument;

use crate::backend::{AcquireRequest, Attempt, Backend, Deadline, Grant, busy, client_closed};
use crate::client::any::with_backend;
use crate::client::inner::ClientInner;
use crate::client::lease_options::{LeaseOptions, LockOptions};
use crate::client::local_queue::LocalPlace;
use crate::client::registered::Registered;
use crate::client::retry::is_retryable;
use crate::error::{Error, ErrorKind, Result};
use crate::lease::{HeldLease, LeaseGuard, LostReason};
use crate::suspend;
use crate::types::{Key, Limit, Seconds};

/// A key, with the client and the settings that acquire it.
#[derive(Clone)]
pub(crate) struct Resource {
    pub(crate) client: Arc<ClientInner>,
    pub(crate) request: AcquireRequest,
    pub(crate) lease: LeaseOptions,
}

impl Resource {
    pub(crate) fn new(
        client: Arc<ClientInner>,
        key: Key,
        limit: Option<Limit>,
        lease: LeaseOptions,
    ) -> Result<Self> {
        let request = AcquireRequest { key, limit, ttl: lease.ttl, isolated: false };
        Self { client, request, lease }.checked()
    }

    /// Fails if the backend cannot grant this.
    fn checked(self) -> Result<Self> {
        with_backend!(&self.client.backend, backend => backend.check(&self.request))?;
        Ok(self)
    }

    /// Returns the same resource with other settings for its leases.
    pub(crate) fn with_options(&self, options: LockOptions) -> Result<Self> {
        let lease = self.lease.clone().with_options(options)?;
        let request = AcquireRequest { ttl: lease.ttl, ..self.request.clone() };
        Self { client: self.client.clone(), request, lease }.checked()
    }

    /// Returns the same resource with leases that share no connection.
    pub(crate) fn isolated(&self) -> Self {
        let request = AcquireRequest { isolated: true, ..self.request.clone() };
        Self { request, ..self.clone() }
    }

    /// Acquires the key, and waits for it up to the acquire timeout.
    pub(crate) async fn acquire(&self) -> Result<LeaseGuard> {
        self.acquire_by(&self.deadline(self.lease.acquire_timeout)).await
    }

    /// Acquires the key, and waits for it up to `timeout`.
    pub(crate) async fn acquire_within(&self, timeout: Duration) -> Result<LeaseGuard> {
        Seconds::ceil("timeout", timeout)?;
        self.acquire_by(&self.deadline(timeout)).await
    }

    #[expect(clippy::manual_async_fn, reason = "an async function keeps its arguments twice")]
    fn acquire_by<'a>(
        &'a self,
        deadline: &'a Deadline,
    ) -> impl Future<Output = Result<LeaseGuard>> + Send + 'a {
        async move {
            let guard = with_backend!(&self.client.backend, backend => {
                let acquire = Acquire::new(self, backend)?;
                acquire.instrumented(acquire.run(deadline)).await?
            });
            self.client.counters.acquired(deadline.began().elapsed());
            Ok(guard)
        }
    }

    /// Acquires the key if it is free. Returns `None` if it is busy, or its queue is full.
    pub(crate) async fn try_acquire(&self) -> Result<Option<LeaseGuard>> {
        let deadline = &self.deadline(Duration::ZERO);
        let outcome = with_backend!(&self.client.backend, backend => {
            let acquire = Acquire::new(self, backend)?;
            acquire.instrumented(acquire.try_once(true, deadline)).await?
        });
        Ok(match outcome {
            Try::Acquired(guard) => {
                self.client.counters.acquired(deadline.began().elapsed());
                Some(guard)
            }
            Try::Busy(_) => None,
        })
    }

    /// Returns the deadline of an operation that begins now and may wait for the key up to `timeout`.
    pub(crate) fn deadline(&self, timeout: Duration) -> Deadline {
        let now = suspend::now();
        if timeout.is_zero() {
            Deadline::of_request(now, self.lease.request_timeout)
        } else {
            Deadline::of_wait(now, timeout)
        }
    }
}

/// The outcome of a try.
enum Try {
    Acquired(LeaseGuard),
    Busy(Error),
}

/// One acquire on one backend.
pub(crate) struct Acquire<'a, B> {
    resource: &'a Resource,
    backend: &'a B,
    endpoint: usize,
}

impl<'a, B: Backend> Acquire<'a, B> {
    pub(crate) fn new(resource: &'a Resource, backend: &'a B) -> Result<Self> {
        let key = &resource.request.key;
        let named = |error: Error| error.during("acquire").for_key(key);
        resource.client.check_process().map_err(named)?;
        let endpoint = backend.locate(key).map_err(named)?;
        Ok(Self { resource, backend, endpoint })
    }

    pub(crate) fn endpoint(&self) -> usize {
        self.endpoint
    }

    fn client(&self) -> &'a Arc<ClientInner> {
        &self.resource.client
    }

    /// Runs `work` in a span, and names and counts its failure.
    fn instrumented<T>(&self, work: impl Future<Output = Result<T>>) -> impl Future<Output = Result<T>> {
        let (key, server) = (&self.resource.request.key, self.backend.endpoint(self.endpoint));
        let span = tracing::info_span!("acquire", %key, %server);
        let work = work.map_err(move |error| {
            let error = error.during("acquire").for_key(key);
            self.client().counters.failed();
            tracing::debug!(%error, "not acquired");
            error
        });
        work.instrument(span)
    }

    /// Acquires a free key with the first try. Boxes every later step, which is rare: callers move the future
    /// of an acquire, so it should be small.
    async fn run(&self, deadline: &Deadline) -> Result<LeaseGuard> {
        if self.skips_try(deadline) {
            return Box::pin(self.with_retry(deadline, None)).await;
        }
        let first_try = match self.try_once(true, deadline).await {
            Ok(Try::Acquired(guard)) => return Ok(guard),
            first_try => first_try,
        };
        Box::pin(self.with_retry(deadline, Some(first_try))).await
    }

    fn skips_try(&self, deadline: &Deadline) -> bool {
        deadline.waits() && self.backend.skips_try(&self.resource.request)
    }

    /// Acquires the key, and retries by the policy until the deadline. The first attempt begins with the outcome
    /// of `first_try`, if there was one.
    async fn with_retry(
        &self,
        deadline: &Deadline,
        mut first_try: Option<Result<Try>>,
    ) -> Result<LeaseGuard> {
        let mut attempt = 0;
        loop {
            let outcome = self.attempt(deadline, first_try.take()).await;
            let (error, policy) = match (outcome, self.resource.lease.retry) {
                (Err(error), Some(policy)) if is_retryable(&error) => (error, policy),
                (outcome, _) => return outcome,
            };
            let next_attempt = Instant::now() + policy.pause(attempt, fastrand::f64());
            if next_attempt >= deadline.wait_ends() {
                return Err(error);
            }
            tracing::debug!(%error, attempt, "acquire is tried again");
            sleep_until(next_attempt).await;
            attempt += 1;
        }
    }

    /// Tries the key, unless the caller has, and waits for it if it is busy.
    async fn attempt(&self, deadline: &Deadline, first_try: Option<Result<Try>>) -> Result<LeaseGuard> {
        if self.skips_try(deadline) {
            return Box::pin(self.client().unless_closed(self.wait(deadline, None))).await;
        }
        let outcome = match first_try {
            Some(outcome) => outcome,
            None => self.try_once(false, deadline).await,
        };
        match outcome? {
            Try::Acquired(guard) => return Ok(guard),
            Try::Busy(error) if !deadline.waits() => return Err(error),
            Try::Busy(_) => {}
        }
        let _waiting = self.client().counters.waits();
        Box::pin(self.client().unless_closed(self.wait_in_local_queue(deadline))).await
    }

    /// Acquires the key if it is free. Overtakes no waiter of this client. The first try comes at the instant
    /// when the deadline began, and so does not read the clock again.
    async fn try_once(&self, is_first: bool, deadline: &Deadline) -> Result<Try> {
        let Resource { client, request, .. } = self.resource;
        let AcquireRequest { key, limit, isolated, .. } = request;
        if !isolated && client.queues.is_waited_for(key, *limit) {
            return Ok(Try::Busy(busy()));
        }
        let now = if is_first { deadline.began() } else { suspend::now() };
        // A grant that lived across an await would make the future larger.
        let completing = match self.backend.try_acquire(request, self.endpoint, now, deadline).await? {
            Attempt::Acquired(grant) => self.complete(grant, deadline),
            Attempt::Busy(error) => return Ok(Try::Busy(error)),
        };
        completing.await.map(Try::Acquired)
    }

    /// Waits behind the other tasks of this client, and then in the backend's queue.
    async fn wait_in_local_queue(&self, deadline: &Deadline) -> Result<LeaseGuard> {
        let AcquireRequest { key, limit, .. } = &self.resource.request;
        let mut place = self.client().queues.join(key, *limit)?;
        timeout_at(deadline.wait_ends(), place.reach_head()).await.map_err(|_| busy())?;
        self.wait(deadline, Some(place)).await
    }

    /// Waits in the backend's queue. Gives up the place in the local queue once the key is granted, so that the
    /// next task may wait at the backend.
    async fn wait(&self, deadline: &Deadline, place: Option<LocalPlace<'_>>) -> Result<LeaseGuard> {
        let grant = self.backend.acquire(&self.resource.request, self.endpoint, deadline).await?;
        drop(place);
        self.complete(grant, deadline).await
    }

    /// Makes the guard of a grant. Renews once before, if the grant took long to arrive.
    ///
    /// The ttl counts from when the request was sent. A grant that took long has little or none of it
    /// left, and its connection was unproven for as long. One renewal makes both count from now.
    #[inline(always)]
    pub(crate) fn complete<'b>(
        &'b self,
        grant: Grant<B::Lease>,
        deadline: &'b Deadline,
    ) -> Either<Ready<Result<LeaseGuard>>, BoxFuture<'b, Result<LeaseGuard>>> {
        let Grant { sent, received, ttl, .. } = grant;
        // The holders of a semaphore have different fences at the same time.
        if self.resource.request.limit.is_none_or(|limit| limit.get() == 1) {
            let endpoint = self.backend.endpoint(self.endpoint);
            self.client().fences.granted(&self.resource.request.key, grant.fence, (sent, received), endpoint);
        }
        let is_stale = received - sent + suspend::since(sent) > (ttl / 10).min(self.backend.confirm_after());
        if is_stale {
            return Either::Right(Box::pin(deadline.bounds("reply", self.confirm(grant))));
        }
        Either::Left(ready(self.guard(grant)))
    }

    async fn confirm(&self, mut grant: Grant<B::Lease>) -> Result<LeaseGuard> {
        grant.sent = suspend::now();
        grant.ttl = match grant.lease.lease().renew().await {
            Err(error) if error.kind() == ErrorKind::NotHeld => {
                return Err(Error::new(ErrorKind::LeaseExpired, "").caused_by(error));
            }
            renewed => renewed?,
        };
        grant.received = suspend::now();
        self.guard(grant)
    }

    #[inline(always)]
    fn guard(&self, grant: Grant<B::Lease>) -> Result<LeaseGuard> {
        let Grant { lease, token, fence, ttl, sent, received } = grant;
        let registered = Registered::new(lease.claim(), self.client());
        let number = registered.number();
        let (key, config) = (self.resource.request.key.clone(), &self.resource.lease.config);
        let guard = LeaseGuard::new(registered, key, (token, fence), config, (sent, received), ttl);
        // On an error, the drop of the guard releases the lease.
        if let Some(reason) = guard.state_at(received).lost() {
            let has_expired = reason == LostReason::DeadlinePassed;
            let kind = if has_expired { ErrorKind::LeaseExpired } else { ErrorKind::ConnectionClosed };
            return Err(Error::new(kind, format!("lost on arrival: {reason}")));
        }
        if self.client().registry.insert(number, &guard) { Ok(guard) } else { Err(client_closed()) }
    }
}
