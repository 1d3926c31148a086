//! Serves each command: changes the table, replies, and waits for grants.

use tokio::io::AsyncReadExt;
use tokio::time::{Instant, sleep, sleep_until};

use super::{AUTH_FAILURE_DELAY, Connection, EndedBy, READ_CHUNK};
use crate::net::Stream;
use crate::proto::{Reply, Request, StatsResult, Status};
use crate::server::shared::PendingWait;
use crate::server::stats::{LISTS, StatsReply};
use crate::server::table::{AcquireOutcome, EnqueueOutcome, Grant, WaiterId};
use crate::types::{Key, Limit, Seconds};

/// The number of keys that `stats` reads before it writes, which bounds what it keeps in memory.
const STATS_PART_SIZE: usize = 128;
/// How many bytes may be read while a command waits.
const READ_AHEAD: usize = 64 * 1024;

impl<S: Stream> Connection<S> {
    pub(super) async fn serve(&mut self, request: Request) -> Result<(), EndedBy> {
        if let Request::Auth { token } = &request {
            return self.authenticate(token.expose()).await;
        }
        self.check_auth().await?;
        match request {
            Request::Auth { .. } => {}
            Request::Ping => self.out.reply(&Reply::Done),
            Request::Stats => return self.stats().await,
            Request::Acquire { key, timeout, limit, lease } => {
                let limit = limit.unwrap_or(Limit::ONE);
                return self.acquire(key, timeout, limit, lease).await;
            }
            Request::Wait { key, timeout, .. } => return self.wait(key, timeout).await,
            Request::Enqueue { key, limit, lease } => {
                let (conn, limit) = (self.guard.id, limit.unwrap_or(Limit::ONE));
                let outcome =
                    self.shared.with_table(|table, now| table.enqueue(now, conn, &key, limit, lease));
                match outcome {
                    EnqueueOutcome::Acquired(grant) => {
                        self.out.grant(key, grant, |Grant { token, lease }| Reply::Acquired { token, lease })
                    }
                    EnqueueOutcome::Queued => self.out.reply(&Reply::Queued),
                    EnqueueOutcome::Refused(status) => self.refuse(status),
                }
            }
            Request::Release { key, token, .. } => {
                let released = self.shared.with_table(|table, now| table.release(now, &key, &token));
                self.out.reply(&if released { Reply::Done } else { Reply::Refused(Status::Error) });
            }
            Request::Renew { key, token, lease, .. } => {
                let renewed = self.shared.with_table(|table, now| table.renew(now, &key, &token, lease));
                self.out.reply(&renewed.map_or(Reply::Refused(Status::Error), Reply::Renewed));
            }
        }
        Ok(())
    }

    /// Replies to `stats`. A table larger than one part is read once for each list, and each part is
    /// written before the next is read. So memory stays bounded, however large the table and however slow
    /// the peer. Each row is true at one moment, and rows differ in that moment: a key that changes
    /// meanwhile may appear in two lists, or in none.
    async fn stats(&mut self) -> Result<(), EndedBy> {
        let shared = self.shared.clone();
        let (all, more) = shared.stats_part(0..STATS_PART_SIZE, None);
        if !more {
            let all = StatsResult { connections: shared.open_connections(), ..all };
            self.out.reply(&Reply::Stats(all.to_json()));
            return Ok(());
        }
        let mut reply = StatsReply::begin(shared.open_connections(), self.out.bytes());
        for list in LISTS {
            reply.begin_list(list, self.out.bytes());
            let (mut from, mut more) = (0, true);
            while more {
                // The semaphore is never closed. The permit is kept while other tasks run, or each of many
                // requests would take a part of its own.
                let turn = shared.stats_permit.acquire().await;
                let part;
                (part, more) = shared.stats_part(from..from + STATS_PART_SIZE, Some(list));
                reply.rows(list, &part, self.out.bytes());
                from += STATS_PART_SIZE;
                shared.give_way().await;
                drop(turn);
                if self.out.is_full() {
                    self.flush().await?;
                }
            }
            reply.end_list(self.out.bytes());
        }
        reply.end(self.out.bytes());
        // The read timeout does not run while the reply is written.
        self.line_started = Instant::now();
        Ok(())
    }

    pub(super) fn refuse(&mut self, status: Status) {
        self.out.reply(&Reply::Refused(status));
    }

    pub(super) async fn check_auth(&mut self) -> Result<(), EndedBy> {
        if self.authenticated { Ok(()) } else { Err(self.fail_auth().await) }
    }

    async fn fail_auth(&mut self) -> EndedBy {
        self.shared.warnings.authentication.warn(|what| tracing::warn!("{what}"));
        self.refuse_auth().await
    }

    /// Ends a connection that has not authenticated, and therefore holds nothing.
    pub(super) async fn refuse_auth(&mut self) -> EndedBy {
        self.refuse(Status::Auth);
        if self.flush().await.is_ok() {
            sleep(AUTH_FAILURE_DELAY).await;
        }
        EndedBy::Peer
    }

    /// Checks the token of the first `auth`. Later ones, and all on a server without a token, are refused
    /// and change nothing.
    async fn authenticate(&mut self, token: &[u8]) -> Result<(), EndedBy> {
        if self.authenticated {
            self.refuse(Status::Error);
            return Ok(());
        }
        // Whitespace around it is ignored, as for every argument. The configured token is UTF-8.
        let given = std::str::from_utf8(token).map_or(token, |token| token.trim().as_bytes());
        let right = self.shared.credentials().auth_token;
        if !right.is_some_and(|right| constant_time_eq(right.trim().as_bytes(), given)) {
            return Err(self.fail_auth().await);
        }
        self.authenticated = true;
        self.out.reply(&Reply::Done);
        Ok(())
    }

    async fn acquire(
        &mut self,
        key: Key,
        timeout: Seconds,
        limit: Limit,
        lease: Option<Seconds>,
    ) -> Result<(), EndedBy> {
        let (conn, may_wait) = (self.guard.id, timeout > Seconds::ZERO);
        let (outcome, wait) = self.shared.begin_wait(&key, |table, now| {
            with_waiter_id(table.acquire(now, conn, &key, limit, lease, may_wait))
        });
        self.reply_to_wait(key, outcome, wait, timeout).await
    }

    async fn wait(&mut self, key: Key, timeout: Seconds) -> Result<(), EndedBy> {
        let (conn, may_wait) = (self.guard.id, timeout > Seconds::ZERO);
        let (outcome, wait) =
            self.shared.begin_wait(&key, |table, now| with_waiter_id(table.wait(now, conn, &key, may_wait)));
        self.reply_to_wait(key, outcome, wait, timeout).await
    }

    /// Replies to a command that may wait. While it waits, earlier replies are written, and a peer that
    /// closes the connection is noticed.
    async fn reply_to_wait(
        &mut self,
        key: Key,
        outcome: AcquireOutcome,
        wait: Option<PendingWait>,
        timeout: Seconds,
    ) -> Result<(), EndedBy> {
        let outcome = match (outcome, wait) {
            (AcquireOutcome::Granted(grant), _) => Some(Ok(grant)),
            (AcquireOutcome::Refused(status), _) => Some(Err(status)),
            (AcquireOutcome::Busy, _) | (AcquireOutcome::Waiting(_), None) => None,
            (AcquireOutcome::Waiting(_), Some(wait)) => self.wait_for_grant(wait, timeout).await?,
        };
        match outcome {
            Some(Ok(grant)) => {
                self.out.grant(key, grant, |Grant { token, lease }| Reply::Granted { token, lease });
            }
            Some(Err(status)) => self.refuse(status),
            None => self.out.reply(&Reply::Timeout),
        }
        Ok(())
    }

    async fn wait_for_grant(
        &mut self,
        mut wait: PendingWait,
        timeout: Seconds,
    ) -> Result<Option<Result<Grant, Status>>, EndedBy> {
        let deadline = Instant::now() + timeout.duration();
        self.flush().await?;
        let outcome = loop {
            let room = self.inbox.len() < READ_AHEAD;
            if room {
                self.inbox.reserve(READ_CHUNK);
            }
            tokio::select! {
                biased;
                // First, so that a grant that arrives together with the peer's close goes to the next
                // waiter.
                read = self.stream.read_buf(&mut self.inbox), if room => {
                    EndedBy::check_read(read)?;
                }
                outcome = wait.outcome() => break Some(outcome),
                () = sleep_until(deadline) => break wait.cancel(),
            }
        };
        // The read timeout does not run while a command waits.
        self.line_started = Instant::now();
        Ok(outcome)
    }
}

/// Returns the outcome with the id of the wait that it begins.
fn with_waiter_id(outcome: AcquireOutcome) -> (AcquireOutcome, Option<WaiterId>) {
    let waiter = if let AcquireOutcome::Waiting(waiter) = &outcome { Some(*waiter) } else { None };
    (outcome, waiter)
}

/// Compares in a time that does not depend on where the two differ, so that timing reveals nothing
/// of the token.
fn constant_time_eq(right: &[u8], given: &[u8]) -> bool {
    let mut differ = right.len() ^ given.len();
    for (index, byte) in given.iter().enumerate() {
        differ |= usize::from(byte ^ right.get(index).copied().unwrap_or(0));
    }
    differ == 0
}
