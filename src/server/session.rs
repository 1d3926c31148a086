//! One connection: frames in, replies out, strictly in order. Replies are gathered and written
//! once per batch; while a command waits, the peer is watched.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use futures::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::{consume_budget, yield_now};
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};

use crate::net::Stream;
use crate::proto::{Frame, FrameDecoder, Reply, Request, Status};
use crate::server::phase::Phase;
use crate::server::shared::{Connected, Shared, Wait};
use crate::server::table::{Answer, Grant, Place, WaiterId};
use crate::types::{Key, Limit, Seconds, Token};

/// How much is read at once from a peer that sends little: most do, and there may be many.
const READ_CHUNK: usize = 4 * 1024;
/// How much from one that sent more than fitted: the larger the batch, the fewer the system calls.
const READ_CHUNK_BUSY: usize = 32 * 1024;
/// How much may be read ahead of a command that waits.
const READ_AHEAD: usize = 64 * 1024;
/// How many bytes of replies are gathered before they are written.
const WRITE_BATCH: usize = 32 * 1024;
/// How long a connection that failed to authenticate stays open.
const AUTH_PAUSE: Duration = Duration::from_millis(100);
/// How often a draining server looks whether a holder's lease has run out.
const DRAIN_LOOK: Duration = Duration::from_millis(200);

/// Why a connection ends; nobody asks further.
struct Closed;

pub(super) async fn serve(shared: Arc<Shared>, stream: impl Stream) {
    let connected = shared.connect();
    serve_connected(shared, connected, stream).await;
}

pub(super) async fn serve_connected(shared: Arc<Shared>, connected: Connected, stream: impl Stream) {
    let mut session = Session {
        stream,
        inbox: BytesMut::new(),
        chunk: READ_CHUNK,
        out: Vec::new(),
        written: 0,
        unsent: Vec::new(),
        decoder: FrameDecoder::new(),
        authenticated: shared.auth_token.is_none(),
        line_started: Instant::now(),
        shared,
        connected,
    };
    let shared = session.shared.clone();
    let stopped = async {
        // Wakes the session as well, which looks at the phase whenever it is polled.
        shared.life.reaches(Phase::Draining).await;
        yield_now().await;
        shared.life.reaches(Phase::Stopped).await;
    };
    tokio::select! {
        biased;
        Closed = session.run() => {}
        () = stopped => {}
    }
    // The peer may be gone already.
    let _ = timeout(AUTH_PAUSE, session.stream.shutdown()).await;
}

struct Session<S> {
    stream: S,
    inbox: BytesMut,
    /// How much the next read asks for.
    chunk: usize,
    out: Vec<u8>,
    /// How much of `out` is written.
    written: usize,
    /// The grants in `out`, by where their replies end: undone if it is not written so far.
    unsent: Vec<(usize, Key, Token)>,
    decoder: FrameDecoder,
    authenticated: bool,
    line_started: Instant,
    shared: Arc<Shared>,
    connected: Connected,
}

/// A grant whose reply was not written whole reached nobody. One whose reply was may be known to
/// the peer, whatever became of the replies behind it.
impl<S> Drop for Session<S> {
    fn drop(&mut self) {
        let written = self.written;
        for (_, key, token) in self.unsent.drain(..).filter(|(end, ..)| *end > written) {
            self.shared.with(|table, now| table.release(now, &key, &token));
        }
    }
}

impl<S: Stream> Session<S> {
    async fn run(&mut self) -> Closed {
        let mut timer = pin!(sleep_until(self.line_limit()));
        loop {
            if let Err(closed) = self.serve_inbox().await {
                return closed;
            }
            if let Err(closed) = self.flush().await {
                return closed;
            }
            if let Err(closed) = self.read(timer.as_mut()).await {
                return closed;
            }
        }
    }

    /// Serves every whole frame that has been read.
    async fn serve_inbox(&mut self) -> Result<(), Closed> {
        loop {
            let mut rest = &self.inbox[..];
            let frame = self.decoder.next(&mut rest);
            let used = self.inbox.len() - rest.len();
            self.inbox.advance(used);
            match frame {
                None => return Ok(()),
                Some(Frame::Request(request)) => self.serve(request).await?,
                Some(Frame::Malformed(fault)) => {
                    tracing::debug!(%fault, "refused a request");
                    self.check_auth().await?;
                    self.refuse(Status::Error);
                }
                Some(Frame::TooLong(fault)) => {
                    tracing::debug!(%fault, "closing a connection");
                    self.refuse(Status::Error);
                    self.flush().await?;
                    return Err(Closed);
                }
            }
            if self.out.len() >= WRITE_BATCH {
                self.flush().await?;
            }
            // One read brings hundreds of frames: whoever sends them fast must not keep others waiting.
            consume_budget().await;
        }
    }

    /// When the line that has begun must have ended.
    fn line_limit(&self) -> Instant {
        self.line_started + self.shared.config.read_limit()
    }

    /// Reads more, while the line that has begun is within its time and the server goes on.
    ///
    /// The timer is kept from one read to the next. One that goes off may be an earlier line's: to set
    /// it anew with each line would cost more than the line.
    async fn read(&mut self, mut timer: Pin<&mut Sleep>) -> Result<(), Closed> {
        let limit = self.line_limit();
        loop {
            let draining = self.shared.life.phase() != Phase::Serving;
            let may_go = draining && self.decoder.at_boundary() && !self.holds();
            self.inbox.reserve(self.chunk);
            tokio::select! {
                biased;
                // First of all: what has come already is answered, also by a server that stops.
                read = self.stream.read_buf(&mut self.inbox) => {
                    let n = read.ok().filter(|n| *n > 0).ok_or(Closed)?;
                    if self.inbox.len() == self.inbox.capacity() {
                        self.chunk = READ_CHUNK_BUSY;
                    }
                    let fresh = &self.inbox[self.inbox.len() - n..];
                    if memchr::memchr(b'\n', fresh).is_some() {
                        self.line_started = Instant::now();
                    } else if Instant::now() >= limit {
                        // A peer that always has more to send never lets the timer have its turn.
                        return Err(self.time_out().await);
                    }
                    return Ok(());
                }
                () = std::future::ready(()), if may_go => return Err(Closed),
                () = &mut timer => {
                    if Instant::now() >= limit {
                        return Err(self.time_out().await);
                    }
                    timer.as_mut().reset(limit);
                }
                () = self.shared.life.has_reached(Phase::Draining), if !draining => {}
                () = sleep(DRAIN_LOOK), if draining => {}
            }
        }
    }

    async fn time_out(&mut self) -> Closed {
        tracing::debug!("read timeout: closing a connection");
        self.refuse(Status::Error);
        self.flush().await.err().unwrap_or(Closed)
    }

    async fn flush(&mut self) -> Result<(), Closed> {
        if self.out.is_empty() {
            return Ok(());
        }
        // Most peers take it at once: no need for a timer.
        let written = match self.write().now_or_never() {
            Some(written) => Ok(written),
            None => timeout(self.shared.config.write_limit(), self.write()).await,
        };
        match written {
            Ok(Ok(())) => {
                self.out.clear();
                self.unsent.clear();
                self.written = 0;
                Ok(())
            }
            Ok(Err(_)) => Err(Closed),
            Err(_) => {
                tracing::debug!("write timeout: closing a connection");
                Err(Closed)
            }
        }
    }

    /// Writes `out`, and keeps count, lest it matters where it broke off.
    async fn write(&mut self) -> io::Result<()> {
        while self.written < self.out.len() {
            match self.stream.write(&self.out[self.written..]).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                n => self.written += n,
            }
        }
        self.stream.flush().await
    }

    fn reply(&mut self, reply: &Reply) {
        reply.encode(&mut self.out);
    }

    fn refuse(&mut self, status: Status) {
        self.reply(&Reply::Refused(status));
    }

    fn holds(&self) -> bool {
        self.shared.with(|table, _| table.holds(self.connected.id))
    }

    async fn check_auth(&mut self) -> Result<(), Closed> {
        if self.authenticated { Ok(()) } else { self.deny().await }
    }

    async fn deny(&mut self) -> Result<(), Closed> {
        tracing::warn!("authentication failed");
        self.refuse(Status::Auth);
        self.flush().await?;
        sleep(AUTH_PAUSE).await;
        Err(Closed)
    }

    async fn serve(&mut self, request: Request) -> Result<(), Closed> {
        if let Request::Auth { token } = &request {
            return self.authenticate(token.expose()).await;
        }
        self.check_auth().await?;
        match request {
            Request::Auth { .. } => {}
            Request::Ping => self.reply(&Reply::Done),
            Request::Stats => {
                let stats = self.shared.stats_json().await;
                self.reply(&Reply::Stats(stats));
            }
            Request::Acquire { key, timeout, limit, lease } => {
                let limit = limit.unwrap_or(Limit::ONE);
                return self.acquire(key, timeout, limit, lease).await;
            }
            Request::Wait { key, timeout, .. } => return self.wait(key, timeout).await,
            Request::Enqueue { key, limit, lease } => {
                let (conn, limit) = (self.connected.id, limit.unwrap_or(Limit::ONE));
                let place = self.shared.with(|table, now| table.enqueue(now, conn, &key, limit, lease));
                match place {
                    Place::Acquired(Grant { token, lease }) => {
                        self.reply(&Reply::Acquired { token: token.clone(), lease });
                        self.unsent.push((self.out.len(), key, token));
                    }
                    Place::Queued => self.reply(&Reply::Queued),
                    Place::Refused(status) => self.refuse(status),
                }
            }
            Request::Release { key, token, .. } => {
                let released = self.shared.with(|table, now| table.release(now, &key, &token));
                self.reply(&if released { Reply::Done } else { Reply::Refused(Status::Error) });
            }
            Request::Renew { key, token, lease, .. } => {
                let renewed = self.shared.with(|table, now| table.renew(now, &key, &token, lease));
                self.reply(&renewed.map_or(Reply::Refused(Status::Error), Reply::Renewed));
            }
        }
        Ok(())
    }

    async fn authenticate(&mut self, token: &[u8]) -> Result<(), Closed> {
        let right = self.shared.auth_token.as_ref().map(|right| same(right.as_bytes(), token));
        match right {
            None => self.refuse(Status::Error),
            Some(true) => {
                self.authenticated = true;
                self.reply(&Reply::Done);
            }
            Some(false) => return self.deny().await,
        }
        Ok(())
    }

    async fn acquire(
        &mut self,
        key: Key,
        patience: Seconds,
        limit: Limit,
        lease: Option<Seconds>,
    ) -> Result<(), Closed> {
        let (conn, may_wait) = (self.connected.id, patience > Seconds::ZERO);
        let (answer, wait) = self
            .shared
            .with_wait(&key, |table, now| pending(table.acquire(now, conn, &key, limit, lease, may_wait)));
        self.answer(key, answer, wait, patience).await
    }

    async fn wait(&mut self, key: Key, patience: Seconds) -> Result<(), Closed> {
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
    ) -> Result<(), Closed> {
        let outcome = match (answer, wait) {
            (Answer::Granted(grant), _) => Some(Ok(grant)),
            (Answer::Refused(status), _) => Some(Err(status)),
            (Answer::Busy, _) | (Answer::Waiting(_), None) => None,
            (Answer::Waiting(_), Some(wait)) => self.watch(wait, patience).await?,
        };
        match outcome {
            Some(Ok(Grant { token, lease })) => {
                self.reply(&Reply::Granted { token: token.clone(), lease });
                self.unsent.push((self.out.len(), key, token));
            }
            Some(Err(status)) => self.refuse(status),
            None => self.reply(&Reply::Timeout),
        }
        Ok(())
    }

    async fn watch(
        &mut self,
        mut wait: Wait,
        patience: Seconds,
    ) -> Result<Option<Result<Grant, Status>>, Closed> {
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
                    read.ok().filter(|n| *n > 0).ok_or(Closed)?;
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
