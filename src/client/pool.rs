//! Connections per server: the shared ones, over which the uncontended work of all tasks goes, and
//! those that one wait or one isolated lease has to itself; dialling, handing out, taking back,
//! closing. Knows of no guard.

mod berth;
mod lines;
mod shelf;

use std::mem;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, timeout, timeout_at};

use crate::client::command::{self, open_stream, within};
use crate::client::conn::AsyncConn;
use crate::client::fences::FenceWatch;
use crate::client::leases::Leases;
use crate::client::metrics::{Meter, Metrics};
use crate::client::options::{Options, Server};
use crate::client::session::{Home, Orphan, Session};
use crate::error::{Error, ErrorKind, Result};
use crate::lease::{Done, Tally};
use crate::process::Origin;
use crate::proto::StatsResult;

pub(crate) use berth::Berth;
pub(crate) use lines::InLine;
use lines::Lines;
use shelf::Shelf;

/// How long closing a client may take, releases included.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

pub(crate) struct Pool {
    pub(crate) options: Arc<Options>,
    pub(crate) fences: FenceWatch,
    pub(crate) leases: Leases,
    pub(crate) lines: Lines,
    pub(crate) meter: Arc<Meter>,
    shelves: Vec<Mutex<Shelf>>,
    /// Which servers have said that they are shutting down.
    draining: Vec<Arc<AtomicBool>>,
    closed: watch::Sender<bool>,
    origin: Origin,
}

/// A forked process neither closes what it finds here nor takes a lock of it.
impl Drop for Pool {
    fn drop(&mut self) {
        if !self.origin.is_here() {
            mem::forget(mem::take(&mut self.shelves));
            mem::forget(mem::replace(&mut self.closed, watch::Sender::new(true)));
        }
    }
}

impl Pool {
    pub(crate) fn new(options: Arc<Options>, tally: Arc<Tally>) -> Arc<Self> {
        let shelves = options.servers.iter().map(|_| Mutex::new(Shelf::new(&options))).collect();
        let draining = options.servers.iter().map(|_| Arc::default()).collect();
        Arc::new(Self {
            options,
            fences: FenceWatch::default(),
            leases: Leases::default(),
            lines: Lines::default(),
            meter: Arc::new(Meter::new(tally)),
            shelves,
            draining,
            closed: watch::Sender::new(false),
            origin: Origin::here(),
        })
    }

    /// A place on a shared connection, if one is open with room for it at `now`. It is for requests
    /// that the server answers at once.
    pub(crate) fn board_open(self: &Arc<Self>, shard: usize, now: Instant) -> Option<Berth> {
        let session = if self.is_closed() { None } else { self.shelf(shard).pick(now) }?;
        Some(Berth::new(self, shard, session, true))
    }

    /// The same, on one that is dialled if need be.
    pub(crate) async fn board(self: &Arc<Self>, shard: usize) -> Result<Berth> {
        loop {
            self.check_open()?;
            let dial = {
                let mut shelf = self.shelf(shard);
                match shelf.pick(Instant::now()) {
                    Some(session) => return Ok(Berth::new(self, shard, session, true)),
                    None => shelf.join_dial(self, shard),
                }
            };
            match dial.await {
                // It may have ended already: whoever sends over it is told so.
                Ok(session) if self.shelf(shard).seat(&session) => {
                    return Ok(Berth::new(self, shard, session, true));
                }
                Ok(_) => {}
                Err(error) => {
                    let other = self.shelf(shard).pick_any();
                    return other.map(|session| Berth::new(self, shard, session, true)).ok_or(error);
                }
            }
        }
    }

    /// A connection of one's own, for a request that may wait, or for a lease that is to have it: an
    /// idle one, or one that is dialled.
    pub(crate) async fn board_alone(self: &Arc<Self>, shard: usize) -> Result<Berth> {
        self.check_open()?;
        let (session, permit) = self.idle_or_dialled(shard).await?;
        session.take(permit);
        Ok(Berth::new(self, shard, session, false))
    }

    async fn idle_or_dialled(self: &Arc<Self>, shard: usize) -> Result<(Session, OwnedSemaphorePermit)> {
        let permit = self.room(shard).await?;
        let idle = self.shelf(shard).pop_idle();
        let session = match idle {
            Some(session) => session,
            None => self.dial(shard).await?,
        };
        Ok((session, permit))
    }

    /// Room for one more connection beside the shared ones.
    async fn room(&self, shard: usize) -> Result<OwnedSemaphorePermit> {
        let room = self.shelf(shard).room();
        if let Ok(permit) = room.clone().try_acquire_owned() {
            return Ok(permit);
        }
        let until = Instant::now() + self.options.connect_timeout;
        let full = || self.full(shard);
        // The semaphore is never closed.
        timeout_at(until, room.acquire_owned()).await.map_err(|_| full())?.map_err(|_| full())
    }

    fn full(&self, shard: usize) -> Error {
        let (most, waited) = (self.options.max_connections, self.options.connect_timeout);
        let detail = format!("all {most} connections (max_connections) stayed in use for {waited:?}");
        Error::new(ErrorKind::Overloaded, detail).on_server(&self.options.servers[shard].name)
    }

    fn shelf(&self, shard: usize) -> MutexGuard<'_, Shelf> {
        // Nothing panics while it is locked.
        self.shelves[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn dial(self: &Arc<Self>, shard: usize) -> Result<Session> {
        let server = &self.options.servers[shard];
        let conn = self.connect(server).await.map_err(|error| error.on_server(&server.name))?;
        let stream = conn.into_stream()?;
        self.check_open()?;
        tracing::debug!(server = %server.name, "connected");
        self.meter.dialled();
        self.draining[shard].store(false, Ordering::Relaxed);
        let (pool, options, tally) = (Arc::downgrade(self), self.options.clone(), self.meter.tally().clone());
        let rescue = Arc::new(move |orphan, done| {
            // A release outlives the client that it came from.
            let pool = pool.upgrade().filter(|pool| !pool.is_closed());
            let pool = pool.unwrap_or_else(|| Self::new(options.clone(), tally.clone()));
            pool.rescue(shard, orphan, done);
        });
        let home = Home {
            server: server.name.clone(),
            keepalive: self.options.keepalive_interval,
            draining: self.draining[shard].clone(),
            meter: self.meter.clone(),
            rescue,
        };
        let session = Session::spawn(stream, home);
        self.shelf(shard).opened(&session);
        Ok(session)
    }

    /// A connection that is ready for commands, within the connect timeout.
    async fn connect(&self, server: &Server) -> Result<AsyncConn> {
        let Options { connect_timeout, auth_token, tls, dial, .. } = &*self.options;
        within(*connect_timeout, async {
            let stream = open_stream(&**dial, &server.host, server.port, tls.as_ref()).await?;
            let conn = AsyncConn::new(stream).request_timeout(*connect_timeout);
            if let Some(token) = auth_token {
                command::authenticate(&conn, token).await?;
            }
            Ok(conn)
        })
        .await
    }

    /// Releases a grant over another connection than the one that brought it.
    fn rescue(self: &Arc<Self>, shard: usize, orphan: Orphan, mut done: Option<Done>) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return unrescued(&orphan, done, Error::new(ErrorKind::ConnectionClosed, "there is no runtime"));
        };
        let pool = self.clone();
        runtime.spawn(async move {
            let mut board = pin!(pool.board(shard));
            let in_time = match done.as_ref().and_then(Done::until) {
                Some(until) => timeout_at(until, &mut board).await.ok(),
                None => None,
            };
            let board = match in_time {
                Some(board) => board,
                None => {
                    done.iter_mut().for_each(Done::give_up);
                    board.await
                }
            };
            match board {
                Ok(berth) => berth.session().release(orphan, Instant::now(), done),
                Err(error) => unrescued(&orphan, done, error),
            }
        });
    }

    /// What one server holds, within the request timeout.
    ///
    /// It is asked over a connection that carries nothing else, ever: a server frees what a connection
    /// held over which it cannot get rid of a reply, and this one may be too long for any buffer.
    pub(crate) async fn stats(&self, shard: usize) -> Result<StatsResult> {
        let Options { request_timeout, max_stats_bytes, servers, .. } = &*self.options;
        let asking = async {
            self.check_process()?;
            self.check_open()?;
            let _room = self.room(shard).await?;
            let conn = self.connect(&servers[shard]).await?;
            let conn = conn.request_timeout(*request_timeout).max_stats_bytes(*max_stats_bytes);
            command::stats(&conn).await
        };
        let late = || Error::new(ErrorKind::Timeout, format!("no answer within {request_timeout:?}"));
        timeout(*request_timeout, asking).await.unwrap_or_else(|_| Err(late()))
    }

    pub(crate) fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    /// A forked process has the connections, but not the tasks that work them.
    pub(crate) fn check_process(&self) -> Result<()> {
        let forked = |fault| Err(Error::new(ErrorKind::ConnectionClosed, fault));
        self.origin.fault().map_or(Ok(()), forked)
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        if self.is_closed() { Err(client_closed()) } else { Ok(()) }
    }

    /// Does this, unless the client is closed before it is done. What is under way then is dropped.
    pub(crate) async fn unless_closed<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut closed = self.closed.subscribe();
        tokio::select! {
            biased;
            _ = closed.wait_for(|closed| *closed) => Err(client_closed()),
            outcome = work => outcome,
        }
    }

    /// Refuses what comes from now on, ends what waits, lets go of every lease, and closes the
    /// connections once the server has answered.
    pub(crate) async fn close(&self) -> Result<()> {
        self.check_process()?;
        self.closed.send_replace(true);
        let until = Instant::now() + CLOSE_LIMIT;
        let released = self.leases.release_all(until).await;
        let sessions: Vec<_> = (0..self.shelves.len()).flat_map(|shard| self.shelf(shard).close()).collect();
        sessions.iter().for_each(Session::close);
        let closed = futures::future::join_all(sessions.iter().map(Session::closed));
        let late = || Error::new(ErrorKind::Timeout, format!("not closed within {CLOSE_LIMIT:?}"));
        let closed = timeout_at(until, closed).await.map(drop).map_err(|_| late().during("close"));
        released.and(closed)
    }

    pub(crate) fn metrics(&self) -> Metrics {
        let open = (0..self.shelves.len()).flat_map(|shard| self.shelf(shard).open());
        let (connections, in_flight) =
            open.fold((0, 0), |(count, sum), session| (count + 1, sum + session.under_way()));
        self.meter.read(connections, in_flight, self.leases.len())
    }
}

pub(crate) fn client_closed() -> Error {
    Error::new(ErrorKind::ClientClosed, "")
}

/// Nothing can be done about a grant any more: it runs out by itself.
fn unrescued(orphan: &Orphan, done: Option<Done>, error: Error) {
    match done {
        Some(done) => done.tell(Err(error.during("release").for_key(&orphan.key))),
        None => {
            let fence = orphan.token.fence();
            tracing::warn!(key = %orphan.key, ?fence, %error, "a grant that nobody took runs out by itself");
        }
    }
}
