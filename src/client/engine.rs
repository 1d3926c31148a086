//! A server's grant as the engine of a lease: renewed and released over the session that brought
//! it, or, where the lock was told to reattach, over the one after that.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;

use crate::client::options::OnDisconnect;
use crate::client::outcome;
use crate::client::pool::Pool;
use crate::client::session::{Answer, Orphan, Session};
use crate::error::Result;
use crate::lease::{Done, Engine, Incident, LostReason};
use crate::proto::{Family, Request};
use crate::types::{Key, Seconds, Token};

/// How long a renewal waits for its reply.
const RENEW_LIMIT: Duration = Duration::from_secs(5);

pub(crate) struct ServerLease {
    pub(crate) pool: Arc<Pool>,
    pub(crate) shard: usize,
    pub(crate) session: Mutex<Session>,
    pub(crate) key: Key,
    pub(crate) token: Token,
    pub(crate) family: Family,
    /// As it was granted: a renewal without one would fall back to the server's default.
    pub(crate) ttl: Seconds,
    pub(crate) on_disconnect: OnDisconnect,
}

impl ServerLease {
    fn orphan(&self) -> Orphan {
        Orphan { key: self.key.clone(), token: self.token.clone(), family: self.family, rescued: false }
    }

    fn slot(&self) -> MutexGuard<'_, Session> {
        // Nothing panics while the slot is locked.
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn session(&self) -> Session {
        self.slot().clone()
    }

    fn reattaches(&self) -> bool {
        self.on_disconnect == OnDisconnect::Reattach
    }

    /// The session to renew over: another one, where the old one ended and that is no loss.
    async fn attached(&self) -> Result<Session> {
        let session = self.session();
        if !self.reattaches() || session.lost().is_none() {
            return Ok(session);
        }
        let session = self.pool.checkout(self.shard).await?;
        tracing::debug!(key = %self.key, server = %session.server(), "the lease moves to another connection");
        self.slot().clone_from(&session);
        Ok(session)
    }

    async fn renew_once(&self) -> Result<Duration> {
        let (key, token) = (self.key.clone(), self.token.clone());
        let request = Request::Renew { key, token, lease: Some(self.ttl), family: self.family };
        let session = self.attached().await?;
        let answer = session.call(request, RENEW_LIMIT).await;
        answer.map_err(|failure| failure.error).map(Answer::claim).and_then(outcome::renewed)
    }
}

impl Engine for ServerLease {
    fn grantor(&self) -> Arc<str> {
        self.slot().server().clone()
    }

    fn renew(&self) -> BoxFuture<'_, Result<Duration>> {
        Box::pin(async {
            let outcome = self.renew_once().await;
            outcome.map_err(|error| error.during("renew").for_key(&self.key).on_server(&self.grantor()))
        })
    }

    fn release(&self, done: Done) {
        self.pool.release(self.shard, &self.session(), self.orphan(), Some(done));
    }

    fn lost(&self) -> Option<LostReason> {
        if self.reattaches() { None } else { self.slot().lost() }
    }

    fn incident(&self) -> BoxFuture<'_, Incident> {
        let session = self.session();
        Box::pin(async move {
            session.closed().await;
            match session.lost() {
                Some(reason) if !self.reattaches() => Incident::Lost(reason),
                _ => Incident::Doubt,
            }
        })
    }
}
