//! One server's connections: the shared ones, the idle ones, and those being opened. Plain bookkeeping under
//! the pool's lock.
//!
//! The list that a connection is in says what it is for. It is in `shared`, or in `idle`, or in neither: then
//! one lease or one wait has it exclusively, or it takes no new user. Only this file takes a place on a
//! connection, and only on one in `shared`; a connection does not move from `shared` to `idle` while a user
//! has a place on it. So a lease never shares a connection with a wait.

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

/// A connect that several callers wait for. It is dropped with the last of them.
pub(super) type Connecting = Shared<BoxFuture<'static, Result<MuxConnection>>>;

pub(super) struct ServerPool {
    runtimes: Vec<RuntimePool>,
    /// All connections that may be open, in use or not.
    opened: Vec<WeakMuxConnection>,
    /// Each open connection that is not idle holds a permit of one of these; together with the idle ones they
    /// never exceed both. The first is for shared connections alone, so that waits never use up their
    /// permits.
    reserved: Arc<Semaphore>,
    exclusive: Arc<Semaphore>,
    /// The number of permits of both.
    max: usize,
    options: Arc<Options>,
    closed: bool,
}

/// The connections of one runtime. Their drivers run there, and only its callers use them.
struct RuntimePool {
    id: runtime::Id,
    /// Each carries the requests and leases of many users.
    shared: Vec<MuxConnection>,
    /// Not in use. The last was used last.
    idle: Vec<MuxConnection>,
    connecting: Option<WeakShared<BoxFuture<'static, Result<MuxConnection>>>>,
}

impl ServerPool {
    pub(super) fn new(options: &Arc<Options>) -> Self {
        let capped = |permits: usize| permits.min(Semaphore::MAX_PERMITS);
        let reserved = capped(options.settings.shared_connections);
        let exclusive = capped(options.settings.max_connections - options.settings.shared_connections);
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

    /// Takes a permit for a shared connection that does not wait for other connections to close.
    pub(super) fn reserved(&self) -> Option<OwnedSemaphorePermit> {
        self.reserved.clone().try_acquire_owned().ok()
    }

    fn runtime(&self, here: runtime::Id) -> Option<&RuntimePool> {
        self.runtimes.iter().find(|runtime| runtime.id == here)
    }

    /// Returns the connections of a runtime, and adds it if it is new. Drops runtimes without connections.
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

    /// Takes a place on the shared connection with the fewest users. Returns `None` if another connection
    /// should be opened first.
    pub(super) fn least_loaded(&self, here: runtime::Id, now: Instant) -> Option<MuxConnection> {
        let (count, mux) = self.runtime(here)?.least_loaded(now);
        mux.filter(|_| count >= self.options.settings.shared_connections).filter(|mux| self.try_reserve(mux))
    }

    /// Takes a place on any shared connection. For a caller that could not connect.
    pub(super) fn any(&self, here: runtime::Id) -> Option<MuxConnection> {
        let (_, mux) = self.runtime(here)?.least_loaded(Instant::now());
        mux.filter(|mux| self.try_reserve(mux))
    }

    /// Takes a place on a connection that was just opened, if it is still shared. A closed connection has
    /// room for every caller, and its requests fail with the reason.
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

    /// Takes a place on a shared connection, if it has room.
    fn try_reserve(&self, mux: &MuxConnection) -> bool {
        let has_room = mux.users().load(Ordering::Relaxed) < self.options.settings.max_leases_per_connection;
        if has_room {
            mux.users().fetch_add(1, Ordering::Relaxed);
        }
        has_room
    }

    /// Returns the connect in progress for the next shared connection, and starts one if there is none.
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

    /// Adds a connection without users to the shared ones.
    pub(super) fn share(&mut self, mux: &MuxConnection) {
        if !self.closed {
            self.runtime_or_insert(mux.runtime()).shared.push(mux.clone());
        }
    }

    /// Registers an opened connection. Returns `false` if the client was closed meanwhile.
    #[must_use]
    pub(super) fn opened(&mut self, mux: &MuxConnection) -> bool {
        self.opened.retain(|opened| opened.upgrade().is_some());
        self.opened.push(mux.downgrade());
        !self.closed
    }

    /// Returns all connections that have a driver or a user.
    pub(super) fn monitors(&self) -> Vec<ConnMonitor> {
        self.opened.iter().filter_map(WeakMuxConnection::upgrade).collect()
    }

    /// Takes the idle connection that was used last and has nothing in flight. It keeps the permit from now
    /// on.
    ///
    /// # Errors
    /// Returns the permit if there is none. A new connection may be opened with it.
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

    /// Closes an idle connection if the holder of a new permit would exceed the maximum by connecting.
    pub(super) fn evict_idle(&mut self) {
        let in_use = self.max - self.reserved.available_permits() - self.exclusive.available_permits();
        let idle: usize = self.runtimes.iter().map(|runtime| runtime.idle.len()).sum();
        if in_use + idle > self.max
            && let Some(runtime) = self.runtimes.iter_mut().find(|runtime| !runtime.idle.is_empty())
        {
            runtime.idle.remove(0);
        }
    }

    /// Takes back a connection without users.
    pub(super) fn push_idle(&mut self, mux: MuxConnection) {
        let now = Instant::now();
        if !self.closed && is_usable(&mux, now) {
            mux.mark_idle(now + self.options.settings.idle_timeout);
            self.runtime_or_insert(mux.runtime()).idle.push(mux);
        }
    }

    /// Moves surplus shared connections of a runtime, if they have no users, to the idle ones.
    pub(super) fn release_surplus(&mut self, here: runtime::Id) {
        let max = self.options.settings.shared_connections;
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

    /// Takes a connection out of use for new requests, since the server is about to close it.
    pub(super) fn retire(&mut self, mux: &MuxConnection) {
        for runtime in &mut self.runtimes {
            runtime.shared.retain(|shared| !shared.is_same(mux));
        }
    }

    /// Keeps no connections from now on.
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

    /// Returns how many shared connections are usable, and the one of them with the fewest users.
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
