//! One server's connections: which are shared, which are idle, which dial is under way. Plain
//! bookkeeping, under the pool's lock.
//!
//! What a connection is for, its place here says, and nothing else: it stands among the shared ones,
//! or among the idle ones, or nowhere, where one lease or one wait has it to itself, or where it takes
//! nobody new. Places on a connection are taken here alone, and only on one that stands among the
//! shared ones, which it does not leave for the idle ones while anybody has a place on it. So a lease
//! never comes to share a connection with a wait.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use tokio::runtime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::backend::dflockd::mux::{ConnMonitor, MuxConnection, WeakMuxConnection};
use crate::backend::dflockd::options::Options;
use crate::backend::dflockd::pool::Pool;
use crate::error::Result;

/// A dial that several wait for. When all of them are gone, so is the dial.
pub(super) type Connecting = Shared<BoxFuture<'static, Result<MuxConnection>>>;

pub(super) struct ServerPool {
    runtimes: Vec<RuntimePool>,
    /// All that may be open, whoever has them.
    opened: Vec<WeakMuxConnection>,
    /// Each open connection that is not idle holds a permit of one of these; together with the idle
    /// ones they never exceed both. The first is for shared connections alone, so that waits never
    /// leave the others without one.
    reserved: Arc<Semaphore>,
    exclusive: Arc<Semaphore>,
    /// How many permits there are of both.
    max: usize,
    options: Arc<Options>,
    closed: bool,
}

/// The connections of one runtime: their drivers run there, and no caller on another is given one.
struct RuntimePool {
    id: runtime::Id,
    /// Each carries the requests and leases of many.
    shared: Vec<MuxConnection>,
    /// Nobody has them; the one that was used last is the last.
    idle: Vec<MuxConnection>,
    connecting: Option<WeakShared<BoxFuture<'static, Result<MuxConnection>>>>,
}

impl ServerPool {
    pub(super) fn new(options: &Arc<Options>) -> Self {
        let capped = |permits: usize| permits.min(Semaphore::MAX_PERMITS);
        let reserved = capped(options.shared_connections);
        let exclusive = capped(options.max_connections - options.shared_connections);
        Self {
            runtimes: Vec::new(),
            opened: Vec::new(),
            reserved: Arc::new(Semaphore::new(reserved)),
            exclusive: Arc::new(Semaphore::new(exclusive)),
            max: reserved + exclusive,
            options: options.clone(),
            closed: false,
        }
    }

    pub(super) fn exclusive_permits(&self) -> Arc<Semaphore> {
        self.exclusive.clone()
    }

    /// Room for a shared connection that need not wait for others to be done with theirs.
    pub(super) fn reserved(&self) -> Option<OwnedSemaphorePermit> {
        self.reserved.clone().try_acquire_owned().ok()
    }

    fn runtime(&self, here: runtime::Id) -> Option<&RuntimePool> {
        self.runtimes.iter().find(|runtime| runtime.id == here)
    }

    /// The runtime of a runtime, made if there is none. Those whose runtimes have ended go.
    fn runtime_or_insert(&mut self, here: runtime::Id) -> &mut RuntimePool {
        let at = self.runtimes.iter().position(|runtime| runtime.id == here).unwrap_or_else(|| {
            self.runtimes.retain_mut(RuntimePool::is_used);
            self.runtimes.push(RuntimePool {
                id: here,
                shared: Vec::new(),
                idle: Vec::new(),
                connecting: None,
            });
            self.runtimes.len() - 1
        });
        &mut self.runtimes[at]
    }

    /// A place on the shared connection with the fewest users; `None` where another connection is
    /// to be dialled first.
    pub(super) fn least_loaded(&self, here: runtime::Id, now: Instant) -> Option<MuxConnection> {
        let (count, mux) = self.runtime(here)?.least_loaded(now);
        mux.filter(|_| count >= self.options.shared_connections).filter(|mux| self.try_reserve(mux))
    }

    /// A place on whichever shared connection there is, if none can be dialled.
    pub(super) fn any(&self, here: runtime::Id) -> Option<MuxConnection> {
        let (_, mux) = self.runtime(here)?.least_loaded(Instant::now());
        mux.filter(|mux| self.try_reserve(mux))
    }

    /// A place on the connection that a dial brought, if it still stands among the shared ones. One that
    /// has ended since has places for everyone: whoever sends over it is told so.
    pub(super) fn try_reserve_opened(&self, mux: &MuxConnection) -> bool {
        if mux.is_closed() {
            mux.users().fetch_add(1, Ordering::Relaxed);
            return true;
        }
        let runtime = self.runtime(mux.runtime());
        let is_shared =
            runtime.is_some_and(|runtime| runtime.shared.iter().any(|shared| shared.is_same(mux)));
        is_shared && self.try_reserve(mux)
    }

    /// Takes a place on a shared connection, if it has exclusive.
    fn try_reserve(&self, mux: &MuxConnection) -> bool {
        let has_room = mux.users().load(Ordering::Relaxed) < self.options.max_leases_per_connection;
        if has_room {
            mux.users().fetch_add(1, Ordering::Relaxed);
        }
        has_room
    }

    /// The dial that brings the next shared connection; begun if nobody has.
    pub(super) fn join_connect(&mut self, pool: &Arc<Pool>, shard: usize, here: runtime::Id) -> Connecting {
        let runtime = self.runtime_or_insert(here);
        runtime.shared.retain(|mux| !mux.is_closed());
        let connecting = runtime.connecting.as_ref().and_then(WeakShared::upgrade);
        if let Some(connecting) = connecting.filter(|connecting| connecting.peek().is_none()) {
            return connecting;
        }
        let pool = pool.clone();
        let connecting = async move { pool.open_shared(shard, here).await }.boxed().shared();
        runtime.connecting = connecting.downgrade();
        connecting
    }

    /// Puts a connection that nobody has among the shared ones.
    pub(super) fn share(&mut self, mux: &MuxConnection) {
        if !self.closed {
            self.runtime_or_insert(mux.runtime()).shared.push(mux.clone());
        }
    }

    /// Enters a connection that was opened; `false` where the client was closed meanwhile.
    #[must_use]
    pub(super) fn opened(&mut self, mux: &MuxConnection) -> bool {
        self.opened.retain(|opened| opened.upgrade().is_some());
        self.opened.push(mux.downgrade());
        !self.closed
    }

    /// All whose drivers run, or that somebody has.
    pub(super) fn monitors(&self) -> Vec<ConnMonitor> {
        self.opened.iter().filter_map(WeakMuxConnection::upgrade).collect()
    }

    /// The idle connection that was used last, of those to which nothing is owed: it is no longer idle,
    /// and holds the permit from now on. Where there is none, one may be dialled with the permit.
    pub(super) fn pop_idle(
        &mut self,
        here: runtime::Id,
        mut permit: OwnedSemaphorePermit,
    ) -> Result<MuxConnection, OwnedSemaphorePermit> {
        let now = Instant::now();
        let runtime = self.runtime_or_insert(here);
        runtime.idle.retain(|mux| is_usable(mux, now));
        while let Some(at) = runtime.idle.iter().rposition(MuxConnection::is_quiet) {
            let mux = runtime.idle.remove(at);
            match mux.mark_in_use(permit) {
                Ok(()) => return Ok(mux),
                Err(left) => permit = left,
            }
        }
        self.evict_idle();
        Err(permit)
    }

    /// Whoever holds a permit is about to dial: an idle connection that is one too many then goes, whoever
    /// could have used it.
    pub(super) fn evict_idle(&mut self) {
        let in_use = self.max - self.reserved.available_permits() - self.exclusive.available_permits();
        let idle: usize = self.runtimes.iter().map(|runtime| runtime.idle.len()).sum();
        if in_use + idle > self.max
            && let Some(runtime) = self.runtimes.iter_mut().find(|runtime| !runtime.idle.is_empty())
        {
            runtime.idle.remove(0);
        }
    }

    /// Nobody has this connection any more.
    pub(super) fn push_idle(&mut self, mux: MuxConnection) {
        let now = Instant::now();
        if !self.closed && is_usable(&mux, now) {
            mux.mark_idle(now + self.options.idle_timeout);
            self.runtime_or_insert(mux.runtime()).idle.push(mux);
        }
    }

    /// Shared connections of a runtime that are too many, and that nobody uses, become idle.
    pub(super) fn release_surplus(&mut self, here: runtime::Id) {
        let max = self.options.shared_connections;
        let Some(runtime) =
            self.runtimes.iter_mut().find(|runtime| runtime.id == here && runtime.shared.len() > max)
        else {
            return;
        };
        let now = Instant::now();
        let is_unused = |mux: &MuxConnection| mux.users().load(Ordering::Relaxed) == 0;
        runtime.shared.retain(|mux| !(mux.is_closed() || is_unused(mux) && mux.is_suspect(now)));
        let mut surplus = Vec::new();
        while runtime.shared.len() > max
            && let Some(at) = runtime.shared.iter().rposition(is_unused)
        {
            surplus.push(runtime.shared.remove(at));
        }
        surplus.into_iter().for_each(|mux| self.push_idle(mux));
    }

    /// No more requests for this connection: the server is about to close it.
    pub(super) fn retire(&mut self, mux: &MuxConnection) {
        for runtime in &mut self.runtimes {
            runtime.shared.retain(|shared| !shared.is_same(mux));
        }
    }

    /// Keeps none from now on.
    pub(super) fn close(&mut self) {
        self.closed = true;
        self.runtimes.clear();
    }
}

impl RuntimePool {
    fn is_used(&mut self) -> bool {
        self.shared.retain(|mux| !mux.is_closed());
        self.idle.retain(|mux| !mux.is_closed());
        let is_connecting = self.connecting.as_ref().is_some_and(|connecting| connecting.upgrade().is_some());
        is_connecting || !self.shared.is_empty() || !self.idle.is_empty()
    }

    /// How many shared connections are usable for use, and the one of them with the fewest users.
    fn least_loaded(&self, now: Instant) -> (usize, Option<MuxConnection>) {
        let users = |mux: &MuxConnection| mux.users().load(Ordering::Relaxed);
        let mut count = 0;
        let usable = self.shared.iter().filter(|mux| is_usable(mux, now)).inspect(|_| count += 1);
        let least = usable.min_by_key(|mux| users(mux)).cloned();
        (count, least)
    }
}

fn is_usable(mux: &MuxConnection, now: Instant) -> bool {
    !mux.is_closed() && !mux.is_suspect(now)
}
