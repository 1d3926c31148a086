//! A server's grant as a held lease: renewed and released over the connection that it came by, or, if the
//! lock reattaches, over a later one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::Instant;

use crate::backend::Deadline;
use crate::backend::dflockd::mux::{MuxConnection, Response, UnclaimedGrant};
use crate::backend::dflockd::options::OnDisconnect;
use crate::backend::dflockd::pool::{Pool, PoolConnection};
use crate::backend::dflockd::replies;
use crate::backend::here;
use crate::error::{Error, ErrorKind, Result};
use crate::lease::{Change, HeldLease, LostReason, ReleaseCompletion};
use crate::proto::{Family, Request};
use crate::suspend;
use crate::types::{Key, Seconds, Token};

/// The timeout of a renewal.
const RENEW_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) struct DflockdLease {
    pub(crate) pool: Arc<Pool>,
    pub(crate) shard: usize,
    /// The lease's place on a connection; `None` once the lease is released.
    pub(crate) conn: Mutex<Option<PoolConnection>>,
    pub(crate) key: Key,
    pub(crate) token: Token,
    pub(crate) family: Family,
    /// The ttl as granted. A renewal without one would fall back to the server's default.
    pub(crate) ttl: Seconds,
}

impl DflockdLease {
    fn unclaimed(&self) -> UnclaimedGrant {
        UnclaimedGrant {
            key: self.key.clone(),
            token: self.token.clone(),
            family: self.family,
            rerouted: None,
        }
    }

    fn conn(&self) -> MutexGuard<'_, Option<PoolConnection>> {
        // Nothing panics while it is locked.
        self.conn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the connection; `None` once the lease is released.
    fn mux(&self) -> Option<MuxConnection> {
        self.conn().as_ref().map(|conn| conn.mux().clone())
    }

    fn reattaches(&self) -> bool {
        self.pool.options.settings.on_disconnect == OnDisconnect::Reattach
    }

    /// Returns the connection to renew over. If the old one has closed and the lock reattaches, it is another
    /// one.
    async fn attached(&self, deadline: &Deadline) -> Result<MuxConnection> {
        let released = || Error::new(ErrorKind::NotHeld, "it was released");
        let mux = self.mux().ok_or_else(released)?;
        if !self.reattaches() || mux.lost(suspend::now()).is_none() {
            return Ok(mux);
        }
        let conn = deadline.bounds("connection", self.pool.checkout_shared(self.shard)).await?;
        tracing::debug!(key = %self.key, server = %self.endpoint(), "the lease moves to another connection");
        let mux = conn.mux().clone();
        // Dropped outside the lock.
        let _old = self.conn().as_mut().ok_or_else(released).map(|old| std::mem::replace(old, conn))?;
        Ok(mux)
    }

    async fn renew_once(&self) -> Result<Duration> {
        let (key, token) = (self.key.clone(), self.token.clone());
        let request = Request::Renew { key, token, lease: Some(self.ttl), family: self.family };
        here()?;
        let deadline = &Deadline::of_request(suspend::now(), RENEW_TIMEOUT);
        let mux = self.attached(deadline).await?;
        let response = mux.send_request(request, suspend::now(), deadline).await;
        response.map_err(|failure| failure.error).map(Response::into_reply).and_then(replies::renewed)
    }
}

impl HeldLease for DflockdLease {
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
        self.conn().as_ref().is_none_or(|conn| conn.mux().is_driven_here())
    }

    fn release(&self, now: Instant, completion: ReleaseCompletion) {
        let conn = self.conn().take();
        if let Some(conn) = conn {
            if !conn.mux().is_ours() {
                return std::mem::forget(conn);
            }
            conn.mux().release(self.unclaimed(), now, Some(completion));
        }
    }

    fn cut(&self) {
        let conn = self.conn().take();
        if let Some(conn) = conn {
            conn.discard();
        }
    }

    fn lost(&self, now: Instant) -> Option<LostReason> {
        if self.reattaches() { None } else { self.conn().as_ref()?.mux().lost(now) }
    }

    async fn changed(&self) -> Change {
        let Some(mux) = self.mux() else { return std::future::pending().await };
        mux.closed().await;
        match mux.lost(suspend::now()) {
            Some(reason) if !self.reattaches() => Change::Lost(reason),
            _ => Change::InDoubt,
        }
    }
}

/// Gives the place back also if the lease was never released: if it is forgotten, lost, or cut off by the end
/// of its runtime.
impl Drop for DflockdLease {
    fn drop(&mut self) {
        let conn = self.conn.get_mut().unwrap_or_else(PoisonError::into_inner);
        if conn.as_ref().is_none_or(|conn| conn.mux().is_ours()) {
            return self.cut();
        }
        // A forked child leaves all of it alone.
        std::mem::forget(conn.take());
    }
}
