//! The client's two faces behind one, so that a behaviour is written once and tested on both: by tasks
//! that await, and by threads that block.
//!
//! Threads lend the test's own runtime, whose time stands still. It goes on while they are blocked, in
//! steps, so their times are coarse: ask [`Face::is_exact`] before counting on one.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use dflockd_client::{
    AsyncDistributedLock, AsyncDistributedSemaphore, Builder, ClientTarget, Error, Fence, LeaseState,
    LockClient, LockOptions, LostReason, Outcome, StatsResult, SyncDistributedLock, SyncDistributedSemaphore,
    Token, blocking,
};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::Instant;

type Result<T, E = Error> = std::result::Result<T, E>;

/// How far the clock goes on, and how often, while a thread is blocked.
const STEP: Duration = Duration::from_millis(50);
const TURN: Duration = Duration::from_micros(100);

/// Makes two tests of each behaviour, `async fn(Face)`.
macro_rules! on_both_faces {
    ($($behaviour:ident),* $(,)?) => {
        $(mod $behaviour {
            use crate::faces::Face;

            #[tokio::test(start_paused = true)]
            async fn by_tasks() {
                super::$behaviour(Face::Tasks).await;
            }

            #[tokio::test(start_paused = true)]
            async fn by_threads() {
                super::$behaviour(Face::Threads).await;
            }
        })*
    };
}
pub(crate) use on_both_faces;

// The threads that call for the test on this one.
thread_local!(static CALLING: RefCell<Vec<PathBuf>> = const { RefCell::new(Vec::new()) });

/// Whether a thread is blocked, and not about to run; or gone, or the system does not tell.
fn sleeps(thread: &Path) -> bool {
    let stat = std::fs::read_to_string(thread.join("stat"));
    stat.map_or(true, |stat| stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" S")))
}

/// Lets the test's time go on by a step, if all threads wait for it and it has stood still since.
async fn step(since: Instant) {
    if Instant::now() == since && CALLING.with_borrow(|calling| calling.iter().all(|thread| sleeps(thread))) {
        tokio::time::advance(STEP).await;
    }
}

/// Runs `call` on a thread of its own, and lets time go on while it is blocked.
async fn on_a_thread<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
    let (tell, mut told) = oneshot::channel();
    let (name, named) = mpsc::channel();
    thread::spawn(move || {
        let path = std::fs::read_link("/proc/thread-self").map(|path| Path::new("/proc").join(path));
        name.send(path.unwrap_or_default()).unwrap();
        tell.send(call())
    });
    let thread = named.recv().unwrap();
    CALLING.with_borrow_mut(|calling| calling.push(thread.clone()));
    let value = loop {
        // Time stands still while a blocking task runs: this one is a pause of real time.
        let (turn, since) = (spawn_blocking(|| thread::sleep(TURN)), Instant::now());
        tokio::select! {
            biased;
            value = &mut told => break value.expect("the thread does not panic"),
            _ = turn => step(since).await,
        }
    };
    CALLING.with_borrow_mut(|calling| calling.retain(|other| *other != thread));
    value
}

/// Who calls the client.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Face {
    Tasks,
    Threads,
}

impl Face {
    pub(crate) const BOTH: [Self; 2] = [Self::Tasks, Self::Threads];

    /// Whether what happens can be timed.
    pub(crate) fn is_exact(self) -> bool {
        self == Self::Tasks
    }

    pub(crate) fn build(self, builder: Builder<ClientTarget>) -> Client {
        match self {
            Self::Tasks => Client::Tasks(builder.build().expect("the settings are fine")),
            Self::Threads => {
                let builder = builder.blocking().runtime(Handle::current());
                Client::Threads(builder.build().expect("the settings are fine"))
            }
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Client {
    Tasks(LockClient),
    Threads(blocking::LockClient),
}

impl Client {
    pub(crate) fn lock(&self, key: impl AsRef<str>) -> Result<Lock> {
        Ok(match self {
            Self::Tasks(client) => Lock::Tasks(client.lock(key)?),
            Self::Threads(client) => Lock::Threads(client.lock(key)?),
        })
    }

    pub(crate) fn semaphore(&self, key: impl AsRef<str>, limit: u64) -> Result<Lock> {
        Ok(match self {
            Self::Tasks(client) => Lock::TaskSlots(client.semaphore(key, limit)?),
            Self::Threads(client) => Lock::ThreadSlots(client.semaphore(key, limit)?),
        })
    }

    pub(crate) async fn close(&self) -> Result<()> {
        match self.clone() {
            Self::Tasks(client) => client.close().await,
            Self::Threads(client) => on_a_thread(move || client.close()).await,
        }
    }

    pub(crate) async fn stats(&self) -> Result<Vec<StatsResult>> {
        match self.clone() {
            Self::Tasks(client) => client.stats().await,
            Self::Threads(client) => on_a_thread(move || client.stats()).await,
        }
    }
}

/// A lock or a semaphore.
#[derive(Clone, Debug)]
pub(crate) enum Lock {
    Tasks(AsyncDistributedLock),
    TaskSlots(AsyncDistributedSemaphore),
    Threads(SyncDistributedLock),
    ThreadSlots(SyncDistributedSemaphore),
}

/// The same call on whichever it is, on a thread where it blocks.
macro_rules! call {
    ($lock:expr, $call:ident($($arg:expr),*)) => {
        match $lock.clone() {
            Lock::Tasks(lock) => lock.$call($($arg),*).await.map(Into::into),
            Lock::TaskSlots(slots) => slots.$call($($arg),*).await.map(Into::into),
            Lock::Threads(lock) => on_a_thread(move || lock.$call($($arg),*)).await.map(Into::into),
            Lock::ThreadSlots(slots) => on_a_thread(move || slots.$call($($arg),*)).await.map(Into::into),
        }
    };
}

impl Lock {
    pub(crate) fn with(&self, settings: LockOptions) -> Result<Self> {
        Ok(match self {
            Self::Tasks(lock) => Self::Tasks(lock.with_options(settings)?),
            Self::TaskSlots(slots) => Self::TaskSlots(slots.with_options(settings)?),
            Self::Threads(lock) => Self::Threads(lock.with_options(settings)?),
            Self::ThreadSlots(slots) => Self::ThreadSlots(slots.with_options(settings)?),
        })
    }

    pub(crate) fn isolated(&self) -> Self {
        match self {
            Self::Tasks(lock) => Self::Tasks(lock.isolated()),
            Self::TaskSlots(slots) => Self::TaskSlots(slots.isolated()),
            Self::Threads(lock) => Self::Threads(lock.isolated()),
            Self::ThreadSlots(slots) => Self::ThreadSlots(slots.isolated()),
        }
    }

    pub(crate) async fn acquire(&self) -> Result<Guard> {
        call!(self, acquire())
    }

    pub(crate) async fn acquire_within(&self, timeout: Duration) -> Result<Guard> {
        call!(self, acquire_within(timeout))
    }

    pub(crate) async fn try_acquire(&self) -> Result<Option<Guard>> {
        let guard: Result<Tried> = call!(self, try_acquire());
        guard.map(|tried| tried.0)
    }

    pub(crate) async fn enqueue(&self) -> Result<Enqueued> {
        call!(self, enqueue())
    }
}

struct Tried(Option<Guard>);

impl<G: Into<Guard>> From<Option<G>> for Tried {
    fn from(guard: Option<G>) -> Self {
        Self(guard.map(Into::into))
    }
}

#[derive(Debug)]
pub(crate) enum Guard {
    Tasks(dflockd_client::LeaseGuard),
    Threads(blocking::LeaseGuard),
}

impl From<dflockd_client::LeaseGuard> for Guard {
    fn from(guard: dflockd_client::LeaseGuard) -> Self {
        Self::Tasks(guard)
    }
}

impl From<blocking::LeaseGuard> for Guard {
    fn from(guard: blocking::LeaseGuard) -> Self {
        Self::Threads(guard)
    }
}

impl Guard {
    fn lease(&self) -> Lease {
        match self {
            Self::Tasks(guard) => Lease::Tasks(dflockd_client::Lease::clone(guard)),
            Self::Threads(guard) => Lease::Threads(blocking::Lease::clone(guard)),
        }
    }

    pub(crate) fn token(&self) -> Token {
        self.lease().token()
    }

    pub(crate) fn fence(&self) -> Option<Fence> {
        self.lease().fence()
    }

    pub(crate) fn ttl(&self) -> Duration {
        self.lease().ttl()
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.lease().deadline()
    }

    pub(crate) fn state(&self) -> LeaseState {
        self.lease().state()
    }

    pub(crate) fn is_held(&self) -> bool {
        self.lease().is_held()
    }

    /// Resolves when the lease is lost; borrows nothing.
    pub(crate) fn lost(&self) -> impl Future<Output = LostReason> + Send + 'static {
        self.lease().lost()
    }

    pub(crate) fn at_risk(&self) -> impl Future<Output = ()> + Send + 'static {
        self.lease().at_risk()
    }

    pub(crate) async fn renew(&self) -> Result<Duration> {
        self.lease().renew().await
    }

    /// Does nothing, while the lease is held.
    pub(crate) async fn run_nothing(&self) -> Outcome<()> {
        match self.lease() {
            Lease::Tasks(lease) => lease.run(async {}).await,
            Lease::Threads(lease) => on_a_thread(move || lease.run(|_| ())).await,
        }
    }

    pub(crate) async fn release(self) -> Result<()> {
        match self {
            Self::Tasks(guard) => guard.release().await,
            Self::Threads(guard) => on_a_thread(move || guard.release()).await,
        }
    }

    pub(crate) fn detach(self) -> Lease {
        match self {
            Self::Tasks(guard) => Lease::Tasks(guard.detach()),
            Self::Threads(guard) => Lease::Threads(guard.detach()),
        }
    }

    pub(crate) fn forget(self) {
        match self {
            Self::Tasks(guard) => guard.forget(),
            Self::Threads(guard) => guard.forget(),
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Lease {
    Tasks(dflockd_client::Lease),
    Threads(blocking::Lease),
}

/// The same question to whichever it is.
macro_rules! ask {
    ($lease:expr, $lease_:ident => $question:expr) => {
        match $lease {
            Lease::Tasks($lease_) => $question,
            Lease::Threads($lease_) => $question,
        }
    };
}

impl Lease {
    pub(crate) fn token(&self) -> Token {
        ask!(self, lease => lease.token().clone())
    }

    pub(crate) fn fence(&self) -> Option<Fence> {
        ask!(self, lease => lease.fence())
    }

    pub(crate) fn ttl(&self) -> Duration {
        ask!(self, lease => lease.ttl())
    }

    pub(crate) fn deadline(&self) -> Instant {
        match self {
            Self::Tasks(lease) => lease.deadline(),
            Self::Threads(lease) => lease.deadline().into(),
        }
    }

    pub(crate) fn state(&self) -> LeaseState {
        ask!(self, lease => lease.state())
    }

    pub(crate) fn is_held(&self) -> bool {
        ask!(self, lease => lease.is_held())
    }

    pub(crate) async fn lost(self) -> LostReason {
        match self {
            Self::Tasks(lease) => lease.lost().await,
            Self::Threads(lease) => on_a_thread(move || lease.lost()).await,
        }
    }

    pub(crate) async fn at_risk(self) {
        match self {
            Self::Tasks(lease) => lease.at_risk().await,
            Self::Threads(lease) => {
                let state = on_a_thread(move || lease.at_risk()).await;
                assert_ne!(state, LeaseState::Healthy);
            }
        }
    }

    pub(crate) async fn renew(&self) -> Result<Duration> {
        match self.clone() {
            Self::Tasks(lease) => lease.renew().await,
            Self::Threads(lease) => on_a_thread(move || lease.renew()).await,
        }
    }

    pub(crate) async fn release(&self) -> Result<()> {
        match self.clone() {
            Self::Tasks(lease) => lease.release().await,
            Self::Threads(lease) => on_a_thread(move || lease.release()).await,
        }
    }
}

#[derive(Debug)]
pub(crate) enum Enqueued {
    Acquired(Guard),
    Queued(Ticket),
}

impl From<dflockd_client::Enqueued> for Enqueued {
    fn from(enqueued: dflockd_client::Enqueued) -> Self {
        match enqueued {
            dflockd_client::Enqueued::Acquired(guard) => Self::Acquired(guard.into()),
            dflockd_client::Enqueued::Queued(ticket) => Self::Queued(Ticket::Tasks(ticket)),
        }
    }
}

impl From<blocking::Enqueued> for Enqueued {
    fn from(enqueued: blocking::Enqueued) -> Self {
        match enqueued {
            blocking::Enqueued::Acquired(guard) => Self::Acquired(guard.into()),
            blocking::Enqueued::Queued(ticket) => Self::Queued(Ticket::Threads(ticket)),
        }
    }
}

#[derive(Debug)]
pub(crate) enum Ticket {
    Tasks(dflockd_client::Ticket),
    Threads(blocking::Ticket),
}

impl Ticket {
    pub(crate) async fn wait(self, timeout: Duration) -> Result<Guard> {
        match self {
            Self::Tasks(ticket) => ticket.wait(timeout).await.map(Into::into),
            Self::Threads(ticket) => on_a_thread(move || ticket.wait(timeout)).await.map(Into::into),
        }
    }
}
