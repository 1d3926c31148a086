//! Sessions per server: dialling, handing out, taking back. A session that is handed out carries
//! one lease or one wait; one that is taken back serves the next.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::client::command::{self, open_stream, within};
use crate::client::conn::AsyncConn;
use crate::client::fences::FenceWatch;
use crate::client::options::{Options, Server};
use crate::client::session::{Answer, Failure, Home, Orphan, Session};
use crate::error::{Error, ErrorKind, Result};
use crate::lease::Done;
use crate::proto::{Reply, Request, Status};
use crate::types::Key;

/// How many sessions without a lease are kept per server for the next one.
const MAX_IDLE: usize = 16;
/// How often a request that was not sent is made again on another session.
const RESENDS: usize = 3;

pub(crate) struct Pool {
    pub(crate) options: Arc<Options>,
    pub(crate) fences: FenceWatch,
    idle: Vec<Mutex<Vec<Session>>>,
    /// Which servers have said that they are shutting down.
    draining: Vec<Arc<AtomicBool>>,
}

impl Pool {
    pub(crate) fn new(options: Arc<Options>) -> Arc<Self> {
        let idle = options.servers.iter().map(|_| Mutex::default()).collect();
        let draining = options.servers.iter().map(|_| Arc::default()).collect();
        Arc::new(Self { options, fences: FenceWatch::default(), idle, draining })
    }

    /// Sends a request to the key's server on a session of its own, which the answer is bound to.
    ///
    /// A pooled session that turns out dead before anything was sent is replaced unnoticed.
    pub(crate) async fn begin(self: &Arc<Self>, key: &Key) -> Result<Waiting> {
        let shard = self.options.shard(key)?;
        let session = self.checkout(shard).await?;
        Ok(Waiting { pool: self.clone(), shard, session: Some(session), under_way: false })
    }

    /// Takes an idle session of the server's, or dials.
    pub(crate) async fn checkout(self: &Arc<Self>, shard: usize) -> Result<Session> {
        let idle = {
            let mut idle = self.idle(shard);
            idle.retain(|session| !session.is_closed() && !session.is_shaky());
            // One that is owed a reply, to a release or a ping, may be gone.
            let free = idle.iter().rposition(|session| !session.is_busy());
            free.map(|at| idle.swap_remove(at))
        };
        match idle {
            Some(session) => Ok(session),
            None => self.dial(shard).await,
        }
    }

    fn idle(&self, shard: usize) -> std::sync::MutexGuard<'_, Vec<Session>> {
        // Nothing panics while the list is locked.
        self.idle[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a session back on which nothing is held and nothing waits.
    pub(crate) fn give_back(&self, shard: usize, session: Session) {
        let mut idle = self.idle(shard);
        if idle.len() < MAX_IDLE && !session.is_closed() {
            idle.push(session);
        }
    }

    async fn dial(self: &Arc<Self>, shard: usize) -> Result<Session> {
        let server = &self.options.servers[shard];
        let stream = within(self.options.connect_timeout, self.handshake(server)).await;
        let stream = stream.map_err(|error| error.on_server(&server.name))?;
        tracing::debug!(server = %server.name, "connected");
        self.draining[shard].store(false, Ordering::Relaxed);
        let (pool, options) = (Arc::downgrade(self), self.options.clone());
        let rescue = Arc::new(move |orphan, done| {
            // A release outlives the client that it came from.
            let pool = pool.upgrade().unwrap_or_else(|| Self::new(options.clone()));
            pool.rescue(shard, orphan, done);
        });
        let keepalive = self.options.keepalive_interval;
        let draining = self.draining[shard].clone();
        Ok(Session::spawn(stream, Home { server: server.name.clone(), keepalive, draining, rescue }))
    }

    async fn handshake(&self, server: &Server) -> Result<crate::net::BoxStream> {
        let options = &self.options;
        let stream = open_stream(&*options.dial, &server.host, server.port, options.tls.as_ref()).await?;
        let conn = AsyncConn::new(stream);
        if let Some(token) = &options.auth_token {
            command::authenticate(&conn, token).await?;
        }
        conn.into_stream()
    }

    /// Releases a grant over another session than the one that brought it.
    fn rescue(self: &Arc<Self>, shard: usize, orphan: Orphan, done: Option<Done>) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return unrescued(&orphan, done, Error::new(ErrorKind::ConnectionClosed, "there is no runtime"));
        };
        let pool = self.clone();
        runtime.spawn(async move {
            match pool.checkout(shard).await {
                Ok(session) => pool.release(shard, &session, orphan, done),
                Err(error) => unrescued(&orphan, done, error),
            }
        });
    }

    /// Lets go without waiting, and takes the session back.
    pub(crate) fn release(&self, shard: usize, session: &Session, orphan: Orphan, done: Option<Done>) {
        session.release(orphan, done);
        self.give_back(shard, session.clone());
    }

    /// Asks one server something that holds nothing.
    pub(crate) async fn ask(self: &Arc<Self>, shard: usize, request: Request) -> Result<Reply> {
        let session = self.checkout(shard).await?;
        let mut waiting = Waiting { pool: self.clone(), shard, session: Some(session), under_way: false };
        let reply = waiting.call(request, command::IO_SLACK).await?.claim();
        match &reply {
            Reply::Refused(Status::Auth) => waiting.discard(),
            _ => waiting.done(),
        }
        Ok(reply)
    }
}

/// A session on which something waits, or may. Dropped while a request is under way, the session
/// is abandoned, and with it the place in the queue.
pub(crate) struct Waiting {
    pool: Arc<Pool>,
    shard: usize,
    /// Taken when the session is passed on.
    session: Option<Session>,
    under_way: bool,
}

impl Waiting {
    /// Sends a request and waits for its answer. A `wait` is bound to the connection that queued,
    /// any other request that was not sent may go by another.
    pub(crate) async fn call(&mut self, request: Request, limit: std::time::Duration) -> Result<Answer> {
        let bound = matches!(request, Request::Wait { .. });
        for attempt in 0.. {
            let Some(session) = self.session.clone() else { break };
            self.under_way = true;
            match session.call(request.clone(), limit).await {
                Ok(answer) => {
                    self.under_way = false;
                    return Ok(answer);
                }
                Err(Failure { error, unsent: true })
                    if !bound && attempt < RESENDS && session.is_closed() =>
                {
                    tracing::debug!(server = %session.server(), %error, "a dead connection is replaced");
                    self.under_way = false;
                    self.session = Some(self.pool.checkout(self.shard).await?);
                }
                Err(Failure { error, .. }) => return Err(error.on_server(session.server())),
            }
        }
        Err(Error::new(ErrorKind::ConnectionClosed, "the wait was over already"))
    }

    pub(crate) fn server(&self) -> Option<Arc<str>> {
        self.session.as_ref().map(|session| session.server().clone())
    }

    /// Sends a request whose reply nobody waits for, and gives the session back.
    pub(crate) fn end_with(mut self, request: Request) {
        if let Some(session) = self.session.take() {
            session.call_soon(request);
            self.pool.give_back(self.shard, session);
        }
    }

    /// The server is about to close the connection: it serves nobody any more.
    pub(crate) fn discard(mut self) {
        self.session = None;
    }

    /// Nothing is held and nothing waits: the session serves the next.
    pub(crate) fn done(mut self) {
        if let Some(session) = self.session.take() {
            self.pool.give_back(self.shard, session);
        }
    }

    /// The session now carries a lease.
    pub(crate) fn carry(mut self) -> Option<(Session, usize)> {
        Some((self.session.take()?, self.shard))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            if self.under_way {
                session.abandon();
            } else {
                self.pool.give_back(self.shard, session);
            }
        }
    }
}

/// Nothing can be done about a grant any more: it runs out by itself.
fn unrescued(orphan: &Orphan, done: Option<Done>, error: Error) {
    match done {
        Some(done) => done(Err(error.during("release").for_key(&orphan.key))),
        None => {
            let fence = orphan.token.fence();
            tracing::warn!(key = %orphan.key, ?fence, %error, "a grant that nobody took runs out by itself");
        }
    }
}
