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

use crate::backend::dflockd::mux::{MuxConnection, Trace, WeakMuxConnection};
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
    runtime: runtime::Id,
    /// Each carries the requests and leases of many.
    shared: Vec<MuxConnection>,
    /// Nobody has them; the one that was used last is the last.
    idle: Vec<MuxConnection>,
    connecting: Option<WeakShared<BoxFuture<'static, Result<MuxConnection>>>>,
}

impl ServerPool {
    pub(super) fn new(options: &Arc<Options>) -> Self {
        let cap = |permits: usize| permits.min(Semaphore::MAX_PERMITS);
        let reserved = cap(options.shared_connections);
        let room = cap(options.max_connections - options.shared_connections);
        Self {
            runtimes: Vec::new(),
            opened: Vec::new(),
            reserved: Arc::new(Semaphore::new(reserved)),
            exclusive: Arc::new(Semaphore::new(room)),
            max: reserved + room,
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
        self.runtimes.iter().find(|bay| bay.runtime == here)
    }

    /// The bay of a runtime, made if there is none. Those whose runtimes have ended go.
    fn runtime_or_insert(&mut self, here: runtime::Id) -> &mut RuntimePool {
        let at = self.runtimes.iter().position(|bay| bay.runtime == here).unwrap_or_else(|| {
            self.runtimes.retain_mut(RuntimePool::is_used);
            self.runtimes.push(RuntimePool {
                runtime: here,
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
        let (count, session) = self.runtime(here)?.least_loaded(now);
        session
            .filter(|_| count >= self.options.shared_connections)
            .filter(|session| self.try_reserve(session))
    }

    /// A place on whichever shared connection there is, if none can be dialled.
    pub(super) fn any(&self, here: runtime::Id) -> Option<MuxConnection> {
        let (_, session) = self.runtime(here)?.least_loaded(Instant::now());
        session.filter(|session| self.try_reserve(session))
    }

    /// A place on the connection that a dial brought, if it still stands among the shared ones. One that
    /// has ended since has places for everyone: whoever sends over it is told so.
    pub(super) fn try_reserve_opened(&self, session: &MuxConnection) -> bool {
        if session.is_closed() {
            session.users().fetch_add(1, Ordering::Relaxed);
            return true;
        }
        let bay = self.runtime(session.runtime());
        let is_shared = bay.is_some_and(|bay| bay.shared.iter().any(|shared| shared.is_same(session)));
        is_shared && self.try_reserve(session)
    }

    /// Takes a place on a shared connection, if it has room.
    fn try_reserve(&self, session: &MuxConnection) -> bool {
        let fits = session.users().load(Ordering::Relaxed) < self.options.max_leases_per_connection;
        if fits {
            session.users().fetch_add(1, Ordering::Relaxed);
        }
        fits
    }

    /// The dial that brings the next shared connection; begun if nobody has.
    pub(super) fn join_connect(&mut self, pool: &Arc<Pool>, shard: usize, here: runtime::Id) -> Connecting {
        let bay = self.runtime_or_insert(here);
        bay.shared.retain(|session| !session.is_closed());
        let under_way = bay.connecting.as_ref().and_then(WeakShared::upgrade);
        if let Some(dialling) = under_way.filter(|dialling| dialling.peek().is_none()) {
            return dialling;
        }
        let pool = pool.clone();
        let dialling = async move { pool.open_shared(shard, here).await }.boxed().shared();
        bay.connecting = dialling.downgrade();
        dialling
    }

    /// Puts a connection that nobody has among the shared ones.
    pub(super) fn share(&mut self, session: &MuxConnection) {
        if !self.closed {
            self.runtime_or_insert(session.runtime()).shared.push(session.clone());
        }
    }

    /// Enters a connection that was opened; `false` where the client was closed meanwhile.
    #[must_use]
    pub(super) fn opened(&mut self, session: &MuxConnection) -> bool {
        self.opened.retain(|opened| opened.upgrade().is_some());
        self.opened.push(session.downgrade());
        !self.closed
    }

    /// All whose drivers run, or that somebody has.
    pub(super) fn traces(&self) -> Vec<Trace> {
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
        let bay = self.runtime_or_insert(here);
        bay.idle.retain(|session| is_usable(session, now));
        while let Some(at) = bay.idle.iter().rposition(MuxConnection::is_quiet) {
            let session = bay.idle.remove(at);
            match session.mark_in_use(permit) {
                Ok(()) => return Ok(session),
                Err(left) => permit = left,
            }
        }
        self.evict_idle();
        Err(permit)
    }

    /// Whoever holds a permit is about to dial: an idle connection that is one too many then goes, whoever
    /// could have used it.
    pub(super) fn evict_idle(&mut self) {
        let held = self.max - self.reserved.available_permits() - self.exclusive.available_permits();
        let idle: usize = self.runtimes.iter().map(|bay| bay.idle.len()).sum();
        if held + idle > self.max
            && let Some(bay) = self.runtimes.iter_mut().find(|bay| !bay.idle.is_empty())
        {
            bay.idle.remove(0);
        }
    }

    /// Nobody has this connection any more.
    pub(super) fn push_idle(&mut self, session: MuxConnection) {
        let now = Instant::now();
        if !self.closed && is_usable(&session, now) {
            session.mark_idle(now + self.options.idle_timeout);
            self.runtime_or_insert(session.runtime()).idle.push(session);
        }
    }

    /// Shared connections of a runtime that are too many, and that nobody uses, become idle.
    pub(super) fn release_surplus(&mut self, here: runtime::Id) {
        let few = self.options.shared_connections;
        let Some(bay) = self.runtimes.iter_mut().find(|bay| bay.runtime == here && bay.shared.len() > few)
        else {
            return;
        };
        let now = Instant::now();
        let is_unused = |session: &MuxConnection| session.users().load(Ordering::Relaxed) == 0;
        bay.shared.retain(|session| !(session.is_closed() || is_unused(session) && session.is_suspect(now)));
        let mut surplus = Vec::new();
        while bay.shared.len() > few
            && let Some(at) = bay.shared.iter().rposition(is_unused)
        {
            surplus.push(bay.shared.remove(at));
        }
        surplus.into_iter().for_each(|session| self.push_idle(session));
    }

    /// No more requests for this connection: the server is about to close it.
    pub(super) fn retire(&mut self, session: &MuxConnection) {
        for bay in &mut self.runtimes {
            bay.shared.retain(|shared| !shared.is_same(session));
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
        self.shared.retain(|session| !session.is_closed());
        self.idle.retain(|session| !session.is_closed());
        let dials = self.connecting.as_ref().is_some_and(|dialling| dialling.upgrade().is_some());
        dials || !self.shared.is_empty() || !self.idle.is_empty()
    }

    /// How many shared connections are fit for use, and the one of them with the fewest users.
    fn least_loaded(&self, now: Instant) -> (usize, Option<MuxConnection>) {
        let users = |session: &MuxConnection| session.users().load(Ordering::Relaxed);
        let mut count = 0;
        let fit = self.shared.iter().filter(|session| is_usable(session, now)).inspect(|_| count += 1);
        let least = fit.min_by_key(|session| users(session)).cloned();
        (count, least)
    }
}

fn is_usable(session: &MuxConnection, now: Instant) -> bool {
    !session.is_closed() && !session.is_suspect(now)
}
