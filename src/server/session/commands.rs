//! What each command does: to the table, and to the connection where it waits.

use tokio::io::AsyncReadExt;
use tokio::time::{Instant, sleep, sleep_until};

use super::{AUTH_PAUSE, Ended, READ_CHUNK, Session};
use crate::net::Stream;
use crate::proto::{Reply, Request, StatsResult, Status};
use crate::server::shared::Wait;
use crate::server::stats::{LISTS, StatsReply};
use crate::server::table::{Answer, Grant, Place, WaiterId};
use crate::types::{Key, Limit, Seconds};

/// How many keys `stats` looks at before it writes: what it keeps of them has a bound.
const STATS_PART: usize = 128;
/// How much may be read ahead of a command that waits.
const READ_AHEAD: usize = 64 * 1024;

impl<S: Stream> Session<S> {
    pub(super) async fn serve(&mut self, request: Request) -> Result<(), Ended> {
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
                let (conn, limit) = (self.connected.id, limit.unwrap_or(Limit::ONE));
                let place = self.shared.with(|table, now| table.enqueue(now, conn, &key, limit, lease));
                match place {
                    Place::Acquired(grant) => {
                        self.out.grant(key, grant, |Grant { token, lease }| Reply::Acquired { token, lease })
                    }
                    Place::Queued => self.out.reply(&Reply::Queued),
                    Place::Refused(status) => self.refuse(status),
                }
            }
            Request::Release { key, token, .. } => {
                let released = self.shared.with(|table, now| table.release(now, &key, &token));
                self.out.reply(&if released { Reply::Done } else { Reply::Refused(Status::Error) });
            }
            Request::Renew { key, token, lease, .. } => {
                let renewed = self.shared.with(|table, now| table.renew(now, &key, &token, lease));
                self.out.reply(&renewed.map_or(Reply::Refused(Status::Error), Reply::Renewed));
            }
        }
        Ok(())
    }

    /// Answers `stats`. A table that is not looked at in one piece is gone through once for each list,
    /// and what was seen is written before the next look: this keeps no more than a part of it, however
    /// large the table and however slow the peer. Each row is true of a moment, not all of the same: a
    /// key that changes meanwhile may stand in two lists, or in none.
    async fn stats(&mut self) -> Result<(), Ended> {
        let shared = self.shared.clone();
        let (all, more) = shared.stats_part(0..STATS_PART, None);
        if !more {
            let all = StatsResult { connections: shared.open(), ..all };
            self.out.reply(&Reply::Stats(all.to_json()));
            return Ok(());
        }
        let mut reply = StatsReply::begin(shared.open(), self.out.bytes());
        for list in LISTS {
            reply.begin_list(list, self.out.bytes());
            let (mut from, mut more) = (0, true);
            while more {
                // Never closed. Kept over the turn of all others, or many would take one each.
                let turn = shared.stats_turn.acquire().await;
                let part;
                (part, more) = shared.stats_part(from..from + STATS_PART, Some(list));
                reply.rows(list, &part, self.out.bytes());
                from += STATS_PART;
                shared.give_way().await;
                drop(turn);
                if self.out.is_full() {
                    self.flush().await?;
                }
            }
            reply.end_list(self.out.bytes());
        }
        reply.end(self.out.bytes());
        // The time limit of lines does not run meanwhile.
        self.line_started = Instant::now();
        Ok(())
    }

    pub(super) fn refuse(&mut self, status: Status) {
        self.out.reply(&Reply::Refused(status));
    }

    pub(super) async fn check_auth(&mut self) -> Result<(), Ended> {
        if self.authenticated { Ok(()) } else { Err(self.deny().await) }
    }

    async fn deny(&mut self) -> Ended {
        self.shared.warnings.authentication.warn(|what| tracing::warn!("{what}"));
        self.refuse_auth().await
    }

    /// Ends a connection that has not authenticated, and so holds nothing.
    pub(super) async fn refuse_auth(&mut self) -> Ended {
        self.refuse(Status::Auth);
        if self.flush().await.is_ok() {
            sleep(AUTH_PAUSE).await;
        }
        Ended::ByPeer
    }

    /// The first `auth` counts. Later ones, and all on a server without a token, are refused and change
    /// nothing, whatever they carry.
    async fn authenticate(&mut self, token: &[u8]) -> Result<(), Ended> {
        if self.authenticated {
            self.refuse(Status::Error);
            return Ok(());
        }
        // White space round it does not count, as with every argument. The right one is UTF-8.
        let given = std::str::from_utf8(token).map_or(token, |token| token.trim().as_bytes());
        let right = self.shared.door().auth_token;
        if !right.is_some_and(|right| same(right.trim().as_bytes(), given)) {
            return Err(self.deny().await);
        }
        self.authenticated = true;
        self.out.reply(&Reply::Done);
        Ok(())
    }

    async fn acquire(
        &mut self,
        key: Key,
        patience: Seconds,
        limit: Limit,
        lease: Option<Seconds>,
    ) -> Result<(), Ended> {
        let (conn, may_wait) = (self.connected.id, patience > Seconds::ZERO);
        let (answer, wait) = self
            .shared
            .with_wait(&key, |table, now| pending(table.acquire(now, conn, &key, limit, lease, may_wait)));
        self.answer(key, answer, wait, patience).await
    }

    async fn wait(&mut self, key: Key, patience: Seconds) -> Result<(), Ended> {
        let (conn, may_wait) = (self.connected.id, patience > Seconds::ZERO);
        let (answer, wait) =
            self.shared.with_wait(&key, |table, now| pending(table.wait(now, conn, &key, may_wait)));
        self.answer(key, answer, wait, patience).await
    }

    /// Answers a command that may wait; meanwhile everything before it is written, and a peer that
    /// goes away is noticed.
    async fn answer(
        &mut self,
        key: Key,
        answer: Answer,
        wait: Option<Wait>,
        patience: Seconds,
    ) -> Result<(), Ended> {
        let outcome = match (answer, wait) {
            (Answer::Granted(grant), _) => Some(Ok(grant)),
            (Answer::Refused(status), _) => Some(Err(status)),
            (Answer::Busy, _) | (Answer::Waiting(_), None) => None,
            (Answer::Waiting(_), Some(wait)) => self.watch(wait, patience).await?,
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

    async fn watch(
        &mut self,
        mut wait: Wait,
        patience: Seconds,
    ) -> Result<Option<Result<Grant, Status>>, Ended> {
        let limit = Instant::now() + patience.duration();
        self.flush().await?;
        let outcome = loop {
            let room = self.inbox.len() < READ_AHEAD;
            if room {
                self.inbox.reserve(READ_CHUNK);
            }
            tokio::select! {
                biased;
                // First of all: a grant that comes together with the end of its peer goes on.
                read = self.stream.read_buf(&mut self.inbox), if room => {
                    Ended::unless_read(read)?;
                }
                outcome = wait.outcome() => break Some(outcome),
                () = sleep_until(limit) => break wait.give_up(),
            }
        };
        // The time limit of lines does not run while a command waits.
        self.line_started = Instant::now();
        Ok(outcome)
    }
}

/// An answer, and the wait that it begins.
fn pending(answer: Answer) -> (Answer, Option<WaiterId>) {
    let waiter = if let Answer::Waiting(waiter) = &answer { Some(*waiter) } else { None };
    (answer, waiter)
}

/// Compares in a time that does not depend on where the two differ.
fn same(right: &[u8], given: &[u8]) -> bool {
    let mut differ = right.len() ^ given.len();
    for (index, byte) in given.iter().enumerate() {
        differ |= usize::from(byte ^ right.get(index).copied().unwrap_or(0));
    }
    differ == 0
}
