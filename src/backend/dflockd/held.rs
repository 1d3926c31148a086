//! A server's grant as the engine of a lease: renewed and released over the connection that brought
//! it, or, where the lock was told to reattach, over the one after that.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::Instant;

use crate::backend::Deadline;
use crate::backend::dflockd::mux::{Answer, Orphan, Session};
use crate::backend::dflockd::options::OnDisconnect;
use crate::backend::dflockd::pool::{Berth, Pool};
use crate::backend::dflockd::replies;
use crate::backend::here;
use crate::error::{Error, ErrorKind, Result};
use crate::lease::{Change, HeldLease, LostReason, ReleaseCompletion};
use crate::proto::{Family, Request};
use crate::suspend;
use crate::types::{Key, Seconds, Token};

/// How long a renewal may take.
const RENEW_LIMIT: Duration = Duration::from_secs(5);

pub(crate) struct ServerLease {
    pub(crate) pool: Arc<Pool>,
    pub(crate) shard: usize,
    /// Where the lease is; given back when it is let go.
    pub(crate) berth: Mutex<Option<Berth>>,
    pub(crate) key: Key,
    pub(crate) token: Token,
    pub(crate) family: Family,
    /// As it was granted: a renewal without one would fall back to the server's default.
    pub(crate) ttl: Seconds,
}

impl ServerLease {
    fn orphan(&self) -> Orphan {
        Orphan { key: self.key.clone(), token: self.token.clone(), family: self.family, rescue: None }
    }

    fn berth(&self) -> MutexGuard<'_, Option<Berth>> {
        // Nothing panics while it is locked.
        self.berth.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection; none once the lease was let go.
    fn session(&self) -> Option<Session> {
        self.berth().as_ref().map(|berth| berth.session().clone())
    }

    fn reattaches(&self) -> bool {
        self.pool.options.on_disconnect == OnDisconnect::Reattach
    }

    /// The connection to renew over: another one, where the old one ended and that is no loss.
    async fn attached(&self, deadline: &Deadline) -> Result<Session> {
        let let_go = || Error::new(ErrorKind::NotHeld, "it was let go");
        let session = self.session().ok_or_else(let_go)?;
        if !self.reattaches() || session.lost(suspend::now()).is_none() {
            return Ok(session);
        }
        let berth = deadline.bounds("connection", self.pool.board(self.shard)).await?;
        tracing::debug!(key = %self.key, server = %self.endpoint(), "the lease moves to another connection");
        let session = berth.session().clone();
        // Dropped outside the lock.
        let _old = self.berth().as_mut().ok_or_else(let_go).map(|old| std::mem::replace(old, berth))?;
        Ok(session)
    }

    async fn renew_once(&self) -> Result<Duration> {
        let (key, token) = (self.key.clone(), self.token.clone());
        let request = Request::Renew { key, token, lease: Some(self.ttl), family: self.family };
        here()?;
        let deadline = &Deadline::of_request(suspend::now(), RENEW_LIMIT);
        let session = self.attached(deadline).await?;
        let answer = session.call(request, suspend::now(), deadline).await;
        answer.map_err(|failure| failure.error).map(Answer::claim).and_then(replies::renewed)
    }
}

impl HeldLease for ServerLease {
    fn endpoint(&self) -> Arc<str> {
        self.pool.options.servers[self.shard].name.clone()
    }

    fn renew(&self) -> BoxFuture<'_, Result<Duration>> {
        Box::pin(async {
            let outcome = self.renew_once().await;
            outcome.map_err(|error| error.during("renew").for_key(&self.key).on_server(&self.endpoint()))
        })
    }

    fn enforces_release_deadline(&self) -> bool {
        self.berth().as_ref().is_none_or(|berth| berth.session().is_driven_here())
    }

    fn release(&self, now: Instant, done: ReleaseCompletion) {
        let berth = self.berth().take();
        if let Some(berth) = berth {
            if !berth.session().is_ours() {
                return std::mem::forget(berth);
            }
            berth.session().release(self.orphan(), now, Some(done));
        }
    }

    fn cut(&self) {
        let berth = self.berth().take();
        if let Some(berth) = berth {
            berth.leave_behind();
        }
    }

    fn lost(&self, now: Instant) -> Option<LostReason> {
        if self.reattaches() { None } else { self.berth().as_ref()?.session().lost(now) }
    }

    async fn changed(&self) -> Change {
        let Some(session) = self.session() else { return std::future::pending().await };
        session.closed().await;
        match session.lost(suspend::now()) {
            Some(reason) if !self.reattaches() => Change::Lost(reason),
            _ => Change::InDoubt,
        }
    }
}

/// Also where it was never let go: forgotten, or lost with nobody to release it, or cut off by the
/// end of its runtime.
impl Drop for ServerLease {
    fn drop(&mut self) {
        let berth = self.berth.get_mut().unwrap_or_else(PoisonError::into_inner);
        if berth.as_ref().is_none_or(|berth| berth.session().is_ours()) {
            return self.cut();
        }
        // A forked process leaves all of it alone.
        std::mem::forget(berth.take());
    }
}
