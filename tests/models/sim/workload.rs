//! What the clients do: each has a few tasks that take keys in every way there is, hold them for a
//! while, and let go in every way there is, or leave in the middle. Knows nothing of what goes
//! wrong around it.

use std::sync::Arc;
use std::time::Duration;

use dflockd_client::{
    AsyncDistributedLock, AsyncDistributedSemaphore, Enqueued, ErrorKind, Lease, LeaseGuard, LockClient,
    OnDisconnect, Outcome, Result, RetryPolicy,
};
use fastrand::Rng;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::sim::history::{End, Hold, Recorder, now};
use crate::sim::network::{Ears, PORT, SimDial};
use crate::sim::plan::{CONNECT_TIMEOUT, Key, LONGEST_WAIT, Plan, S, Weather};
use crate::sim::world::{AUTH_TOKEN, server_name};

/// How often a holder looks whether it still is one.
pub(crate) const LOOK: Duration = Duration::from_millis(50);

/// A client that sees all of the plan's servers.
pub(crate) fn client(plan: &Plan, ears: Ears) -> LockClient {
    let mut builder = LockClient::builder()
        .servers((0..plan.shards).map(|shard| (server_name(shard), PORT)))
        .dial(SimDial(ears))
        .connect_timeout(CONNECT_TIMEOUT)
        .keepalive_interval(plan.keepalive)
        .shared_connections(plan.shared_connections)
        .max_leases_per_connection(plan.leases_per_connection)
        .lease_ttl(plan.ttl);
    if plan.reattach {
        builder = builder.on_disconnect(OnDisconnect::Reattach);
    }
    if plan.retry {
        builder = builder.retry(RetryPolicy::new());
    }
    if plan.auth {
        builder = builder.auth_token(AUTH_TOKEN);
    }
    builder.build().expect("the plan's settings are valid")
}

/// Runs a client's tasks until the plan's end. `life` counts how often its host was started.
pub(crate) async fn run(plan: Arc<Plan>, client_index: usize, life: u64, record: Recorder, ears: Ears) {
    let locks = client(&plan, ears);
    let mut workers = JoinSet::new();
    for index in 0..plan.workers as u64 {
        let seed = plan.seed.wrapping_mul(1_000_003) + 10_000 * client_index as u64 + 100 * life + index;
        let worker = Worker {
            plan: plan.clone(),
            client: client_index,
            locks: locks.clone(),
            dice: Rng::with_seed(seed),
            record: record.clone(),
        };
        workers.spawn(worker.run());
    }
    while let Some(worker) = workers.join_next().await {
        worker.expect("a worker does not panic");
    }
    end(&plan, client_index, &locks, &record).await;
}

/// Nothing is left of what the tasks did, and the client ends: by being closed, or just so.
async fn end(plan: &Plan, client: usize, locks: &LockClient, record: &Recorder) {
    sleep(S).await;
    let metrics = locks.metrics();
    if plan.is_calm() && (metrics.leases, metrics.waiting) != (0, 0) {
        record.fault(format!("client {client} has something left: {metrics:?}"));
    }
    if client.is_multiple_of(2) {
        let closing = record.called(client, "close", 6 * S);
        let closed = locks.close().await;
        closing
            .ended(closed.map_or_else(|error| End::Failed(error.kind(), error.to_string()), |()| End::Done));
        let refused = locks.lock("late").expect("the key is valid").try_acquire().await;
        if !refused.as_ref().is_err_and(|error| error.kind() == ErrorKind::ClientClosed) {
            record.fault(format!("a closed client answers {refused:?}"));
        }
    }
}

/// A lock or a semaphore.
pub(crate) enum Resource {
    Lock(AsyncDistributedLock),
    Semaphore(AsyncDistributedSemaphore),
}

impl Resource {
    pub(crate) fn new(locks: &LockClient, key: &Key) -> Self {
        match key.limit {
            None => Self::Lock(locks.lock(&key.name).expect("the key is valid")),
            Some(limit) => Self::Semaphore(locks.semaphore(&key.name, limit).expect("the key is valid")),
        }
    }

    fn isolated(&self) -> Self {
        match self {
            Self::Lock(lock) => Self::Lock(lock.isolated()),
            Self::Semaphore(semaphore) => Self::Semaphore(semaphore.isolated()),
        }
    }

    pub(crate) async fn acquire(&self, within: Duration) -> Result<LeaseGuard> {
        match self {
            Self::Lock(lock) => lock.acquire_within(within).await,
            Self::Semaphore(semaphore) => semaphore.acquire_within(within).await,
        }
    }

    async fn try_acquire(&self) -> Result<Option<LeaseGuard>> {
        match self {
            Self::Lock(lock) => lock.try_acquire().await,
            Self::Semaphore(semaphore) => semaphore.try_acquire().await,
        }
    }

    async fn enqueue(&self) -> Result<Enqueued> {
        match self {
            Self::Lock(lock) => lock.enqueue().await,
            Self::Semaphore(semaphore) => semaphore.enqueue().await,
        }
    }
}

struct Worker {
    plan: Arc<Plan>,
    client: usize,
    locks: LockClient,
    dice: Rng,
    record: Recorder,
}

impl Worker {
    async fn run(mut self) {
        while now() < self.plan.until {
            let patience = (self.dice.u8(0..8) == 0).then(|| self.up_to(4_000));
            match patience {
                // Dropped at whichever await it stands, with whatever it has.
                Some(patience) => _ = timeout(patience, self.take_and_hold()).await,
                None => self.take_and_hold().await,
            }
            let pause = self.up_to(800);
            sleep(pause).await;
        }
    }

    async fn take_and_hold(&mut self) {
        let (key, asked) = (self.dice.usize(0..self.plan.keys.len()), now());
        if let Some(guard) = self.take(key).await {
            self.hold(key, asked, guard).await;
        }
    }

    /// So many milliseconds at most; often few.
    fn up_to(&mut self, most: u64) -> Duration {
        let most = if self.dice.bool() { most } else { most / 16 + 1 };
        Duration::from_millis(self.dice.u64(0..most))
    }

    /// Makes a call, and sometimes leaves before it ends.
    async fn call<T>(
        &mut self,
        what: &'static str,
        limit: Duration,
        call: impl Future<Output = Result<T>>,
    ) -> Option<T> {
        let patience = (self.dice.u8(0..3) == 0).then(|| self.up_to(3_000));
        let calling = self.record.called(self.client, what, limit + self.plan.slack());
        let outcome = match patience {
            Some(patience) => timeout(patience, call).await.ok(),
            None => Some(call.await),
        };
        calling.ended(match &outcome {
            None => End::Dropped,
            Some(Ok(_)) => End::Done,
            Some(Err(error)) => End::Failed(error.kind(), error.to_string()),
        });
        outcome?.ok()
    }

    /// Takes the key, in one way or another.
    async fn take(&mut self, key: usize) -> Option<LeaseGuard> {
        let mut resource = Resource::new(&self.locks, &self.plan.keys[key]);
        if self.dice.u8(0..5) == 0 {
            resource = resource.isolated();
        }
        match self.dice.u8(0..10) {
            0..=4 => {
                let within = S * self.dice.u32(1..=LONGEST_WAIT as u32);
                self.call("acquire", within, resource.acquire(within)).await
            }
            5 | 6 => self.call("try", Duration::ZERO, resource.try_acquire()).await.flatten(),
            7 | 8 => self.enqueue(&resource).await,
            _ => {
                self.stats().await;
                None
            }
        }
    }

    async fn enqueue(&mut self, resource: &Resource) -> Option<LeaseGuard> {
        match self.call("enqueue", Duration::ZERO, resource.enqueue()).await? {
            Enqueued::Acquired(guard) => Some(guard),
            Enqueued::Queued(ticket) => {
                let pause = self.up_to(2_000);
                sleep(pause).await;
                if self.dice.u8(0..4) == 0 {
                    return None;
                }
                let within = S * self.dice.u32(0..=LONGEST_WAIT as u32);
                self.call("wait", within, ticket.wait(within)).await
            }
        }
    }

    async fn stats(&mut self) {
        let locks = self.locks.clone();
        let stats = self.call("stats", Duration::ZERO, locks.stats()).await;
        if stats.is_some_and(|stats| stats.len() != self.plan.shards) {
            self.record.fault("stats of another number of servers");
        }
    }

    /// Holds the key for a while, and lets go.
    async fn hold(&mut self, key: usize, asked: Duration, guard: LeaseGuard) {
        let Some(fence) = guard.fence() else { return self.record.fault("a grant without a fence") };
        if guard.key().to_string() != self.plan.keys[key].name {
            self.record.fault(format!("asked for key-{key}, got {guard:?}"));
        }
        let hold = Hold {
            client: self.client,
            key,
            fence: fence.get(),
            asked,
            from: now(),
            until: None,
            lost: None,
            overstays: None,
        };
        let hold = self.record.granted(hold);
        let longest = match self.plan.weather {
            Weather::Calm => 2_000,
            Weather::Stalls => 25_000,
            Weather::Storm => 2 * self.plan.ttl.as_millis() as u64,
        };
        let end = now() + self.up_to(longest);
        while self.record.look(hold, &guard) && now() < end {
            self.pass_time(hold, &guard, end).await;
        }
        self.let_go(hold, guard).await;
    }

    /// Does one thing while a lease is held.
    async fn pass_time(&mut self, hold: usize, lease: &Lease, end: Duration) {
        let (record, plan, client) = (self.record.clone(), self.plan.clone(), self.client);
        let looks = async {
            while record.look(hold, lease) {
                if plan.is_time_to_prove(client, now())
                    && let Err(error) = lease.renew().await
                {
                    record.fault(format!("a renewal before a stall: {error}"));
                }
                sleep(LOOK).await;
            }
        };
        let works = async {
            match self.dice.u8(0..8) {
                0 | 1 => _ = self.call("renew", 5 * S, lease.renew()).await,
                2 => self.stats().await,
                3 | 4 => {
                    let outcome = lease.run(sleep(self.until(end))).await;
                    if outcome == Outcome::Completed(()) && !lease.is_held() {
                        self.record.fault(format!("work counts as completed, and {lease:?} is lost"));
                    }
                }
                _ => sleep(self.until(end)).await,
            }
        };
        // Both are polled, also when the lease is lost half-way: the call is seen to its end.
        tokio::pin!(looks, works);
        tokio::select! {
            biased;
            () = &mut looks => works.await,
            () = &mut works => {}
        }
    }

    fn until(&mut self, end: Duration) -> Duration {
        let most = end.saturating_sub(now()).as_millis() as u64;
        self.up_to(most + 1)
    }

    async fn let_go(&mut self, hold: usize, guard: LeaseGuard) {
        self.record.look(hold, &guard);
        match self.dice.u8(0..8) {
            0..=2 => _ = self.call("release", 5 * S, guard.release()).await,
            3 => {
                let lease = guard.detach();
                _ = self.call("release", 5 * S, lease.release()).await;
            }
            4 if self.plan.weather == Weather::Storm => guard.forget(),
            _ => drop(guard),
        }
    }
}
