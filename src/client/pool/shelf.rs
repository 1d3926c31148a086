//! One server's connections: which are shared, which are idle, which dial is under way. Plain
//! bookkeeping, under the pool's lock.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::client::options::Options;
use crate::client::pool::Pool;
use crate::client::session::{Session, WeakSession};
use crate::error::Result;

/// A dial that several wait for. When all of them are gone, so is the dial.
pub(super) type Dialling = Shared<BoxFuture<'static, Result<Session>>>;

pub(super) struct Shelf {
    /// Each carries the requests and leases of many.
    shared: Vec<Session>,
    /// Nobody has them; the one that was used last is the last.
    idle: Vec<Session>,
    dialling: Option<WeakShared<BoxFuture<'static, Result<Session>>>>,
    /// All that may be open, whoever has them.
    opened: Vec<WeakSession>,
    /// Room for connections beside the shared ones. Whoever has one of those holds a permit, so that
    /// together with the idle ones they never exceed it.
    room: Arc<Semaphore>,
    options: Arc<Options>,
}

impl Shelf {
    pub(super) fn new(options: &Arc<Options>) -> Self {
        let room = options.max_connections - options.shared_connections;
        Self {
            shared: Vec::new(),
            idle: Vec::new(),
            dialling: None,
            opened: Vec::new(),
            room: Arc::new(Semaphore::new(room.min(Semaphore::MAX_PERMITS))),
            options: options.clone(),
        }
    }

    pub(super) fn room(&self) -> Arc<Semaphore> {
        self.room.clone()
    }

    /// A place on the shared connection with the fewest users; `None` where another connection is
    /// to be dialled first.
    pub(super) fn pick(&mut self, now: Instant) -> Option<Session> {
        self.shared.retain(|session| is_fit(session, now));
        if self.shared.len() < self.options.shared_connections { None } else { self.least_used() }
    }

    /// A place on whichever shared connection there is, if none can be dialled.
    pub(super) fn pick_any(&mut self) -> Option<Session> {
        let now = Instant::now();
        self.shared.retain(|session| is_fit(session, now));
        self.least_used()
    }

    fn least_used(&self) -> Option<Session> {
        let users = |session: &&Session| session.users().load(Ordering::Relaxed);
        let session = self.shared.iter().min_by_key(users)?;
        self.seat(session).then(|| session.clone())
    }

    /// Takes a place on a shared connection, if it has room.
    pub(super) fn seat(&self, session: &Session) -> bool {
        let fits = session.users().load(Ordering::Relaxed) < self.options.max_leases_per_connection;
        if fits {
            session.users().fetch_add(1, Ordering::Relaxed);
        }
        fits
    }

    /// The dial that brings the next shared connection; begun if nobody has.
    pub(super) fn join_dial(&mut self, pool: &Arc<Pool>, shard: usize) -> Dialling {
        let under_way = self.dialling.as_ref().and_then(WeakShared::upgrade);
        if let Some(dialling) = under_way.filter(|dialling| dialling.peek().is_none()) {
            return dialling;
        }
        let surplus = self.shared.len() >= self.options.shared_connections;
        let pool = pool.clone();
        let dialling = async move {
            let session = if surplus {
                let (session, permit) = pool.idle_or_dialled(shard).await?;
                session.take(permit);
                session
            } else {
                pool.dial(shard).await?
            };
            pool.shelf(shard).shared.push(session.clone());
            Ok(session)
        };
        let dialling = dialling.boxed().shared();
        self.dialling = dialling.downgrade();
        dialling
    }

    pub(super) fn opened(&mut self, session: &Session) {
        self.opened.retain(|opened| opened.upgrade().is_some());
        self.opened.push(session.downgrade());
    }

    /// All that are open.
    pub(super) fn open(&self) -> Vec<Session> {
        self.opened.iter().filter_map(WeakSession::upgrade).collect()
    }

    /// The idle connection that was used last. One that is owed a reply may be gone.
    pub(super) fn pop_idle(&mut self) -> Option<Session> {
        let now = Instant::now();
        self.idle.retain(|session| is_fit(session, now));
        let free = self.idle.iter().rposition(|session| session.under_way() == 0);
        free.map(|at| self.idle.remove(at))
    }

    /// Nobody has this connection any more.
    pub(super) fn put_idle(&mut self, session: Session) {
        let now = Instant::now();
        if is_fit(&session, now) {
            session.rest(now + self.options.idle_timeout);
            self.idle.push(session);
        }
    }

    /// Nobody uses this shared connection any more: one too many becomes idle.
    pub(super) fn unused(&mut self, session: &Session) {
        if self.shared.len() > self.options.shared_connections
            && session.users().load(Ordering::Relaxed) == 0
            && let Some(at) = self.shared.iter().position(|shared| shared.is_same(session))
        {
            let session = self.shared.remove(at);
            self.put_idle(session);
        }
    }

    /// No more requests for this connection: the server is about to close it.
    pub(super) fn retire(&mut self, session: &Session) {
        self.shared.retain(|shared| !shared.is_same(session));
    }

    /// Hands over all that are open.
    pub(super) fn close(&mut self) -> Vec<Session> {
        self.shared.clear();
        self.idle.clear();
        self.open()
    }
}

fn is_fit(session: &Session, now: Instant) -> bool {
    !session.is_closed() && !session.is_shaky(now)
}
