//! The task behind a session: it alone touches the stream.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::{ABANDONED, Answer, CLOSING, Call, Caller, Orphan, Session, Shared, Usage, named, shut_down};
use crate::client::conn::{closed_by_peer, unasked};
use crate::client::outcome;
use crate::error::{Error, ErrorKind, Result};
use crate::net::BoxStream;
use crate::proto::{Family, LineDecoder, LineTooLong, MAX_REPLY_BYTES, Reply, Request, Status};
use crate::sabotage::{Rule, is_broken};
use crate::types::Token;

/// How long a session whose last user is gone may take to finish what is under way.
const FINISH_LIMIT: Duration = Duration::from_secs(5);
/// How long an abandoned wait listens for a grant that crossed it.
const ABANDON_LIMIT: Duration = Duration::from_secs(1);
/// How much is gathered before it has to be written.
const WRITE_BATCH: usize = 64 * 1024;

/// How much of a reply is read away that is too long to be kept: the table of a server with a
/// million keys.
const MAX_READ_AWAY: usize = 256 * 1024 * 1024;

pub(super) struct Driver {
    reader: ReadHalf<BoxStream>,
    writer: WriteHalf<BoxStream>,
    queue: mpsc::UnboundedReceiver<Call>,
    /// To hand out with grants; weak, so that it does not keep the session open.
    handle: mpsc::WeakUnboundedSender<Call>,
    shared: Arc<Shared>,
    /// Sent and unanswered, in order, each with the instant before it was sent.
    pending: VecDeque<(Call, Instant)>,
    out: Vec<u8>,
    written: usize,
    unflushed: bool,
    decoder: LineDecoder,
    last_sent: Instant,
}

/// What the driver woke up for.
enum Event {
    Calls(usize),
    Written(std::io::Result<usize>),
    Read(std::io::Result<usize>),
    Quiet,
    Nudged,
}

impl Driver {
    pub(super) fn new(
        stream: BoxStream,
        queue: mpsc::UnboundedReceiver<Call>,
        handle: mpsc::WeakUnboundedSender<Call>,
        shared: Arc<Shared>,
    ) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self {
            reader,
            writer,
            queue,
            handle,
            shared,
            pending: VecDeque::new(),
            out: Vec::new(),
            written: 0,
            unflushed: false,
            decoder: LineDecoder::new(),
            last_sent: Instant::now(),
        }
    }

    pub(super) async fn run(mut self) {
        let end = self.drive().await;
        self.finish(end);
    }

    /// Serves until the connection ends, and answers why.
    async fn drive(&mut self) -> Error {
        let mut calls = Vec::with_capacity(64);
        let mut chunk = vec![0; 8 * 1024];
        let mut last_call = None;
        let mut alarm = pin!(sleep_until(self.next_check()));
        loop {
            if last_call.is_some() && self.pending.is_empty() && self.out.is_empty() {
                let _ = timeout(FINISH_LIMIT, self.writer.shutdown()).await;
                return Error::new(ErrorKind::ConnectionClosed, "this client closed it");
            }
            let takes = last_call.is_none() && self.out.len() < WRITE_BATCH;
            // What the server has said is read before anything more is asked: a line that came
            // unasked must not pass for the reply to the next request.
            let event = tokio::select! {
                biased;
                n = self.reader.read(&mut chunk) => Event::Read(n),
                n = self.queue.recv_many(&mut calls, 64), if takes => Event::Calls(n),
                done = write_some(&mut self.writer, &self.out[self.written..]), if self.unflushed => Event::Written(done),
                () = self.shared.nudge.notified() => Event::Nudged,
                () = &mut alarm => Event::Quiet,
            };
            match event {
                Event::Calls(0) => {
                    let until = *last_call.insert(Instant::now() + FINISH_LIMIT);
                    alarm.as_mut().reset(until);
                }
                Event::Calls(_) => {
                    let now = Instant::now();
                    calls.drain(..).for_each(|call| self.admit(call, now));
                }
                Event::Written(Ok(n)) => self.advance(n),
                Event::Written(Err(cause)) => return Error::io("could not send", cause),
                Event::Read(Ok(0)) => return closed_by_peer(self.place()),
                Event::Read(Ok(n)) => match self.receive(&chunk[..n]) {
                    Ok(true) if last_call.is_none() => alarm.as_mut().reset(self.next_check()),
                    Ok(_) => {}
                    Err(error) => return error,
                },
                Event::Read(Err(cause)) => return Error::io("could not read", cause),
                Event::Quiet if last_call.is_some() => {
                    return Error::new(ErrorKind::Timeout, "the server did not answer before it was closed");
                }
                Event::Quiet => {
                    if let Err(error) = self.check() {
                        return error;
                    }
                    alarm.as_mut().reset(self.next_check());
                }
                Event::Nudged => match self.shared.course() {
                    ABANDONED => return self.listen_for_crossing_grant(&mut chunk).await,
                    CLOSING => self.queue.close(),
                    _ => alarm.as_mut().reset(self.next_check()),
                },
            }
        }
    }

    /// Puts a request on its way, unless its caller is gone already.
    fn admit(&mut self, call: Call, now: Instant) {
        if call.is_deserted() {
            self.shared.under_way.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        call.request.encode(&mut self.out);
        self.last_sent = now;
        if self.pending.is_empty() {
            self.shared.proof.owes(Some(self.last_sent));
        }
        self.pending.push_back((call, self.last_sent));
        self.unflushed = true;
    }

    fn advance(&mut self, written: usize) {
        if self.written == self.out.len() {
            self.out.clear();
            self.written = 0;
            self.unflushed = false;
        } else {
            self.written += written;
        }
    }

    /// Hands out the replies in these bytes. Answers whether a request that may wait was among
    /// those that they answer.
    fn receive(&mut self, mut bytes: &[u8]) -> Result<bool> {
        let (now, mut waited) = (Instant::now(), false);
        loop {
            let line = match self.decoder.next(&mut bytes, MAX_REPLY_BYTES) {
                None => {
                    self.shared.proof.owes((!self.pending.is_empty()).then_some(now));
                    return Ok(waited);
                }
                Some(Ok(line)) => Ok(line),
                Some(Err(fault)) => Err(fault),
            };
            if is_broken(Rule::ReplyOrder) {
                self.pending.retain(|(call, _)| !call.is_deserted());
            }
            let Some((call, sent)) = self.pending.pop_front() else {
                return Err(line.map_or_else(too_long, unasked));
            };
            self.shared.under_way.fetch_sub(1, Ordering::Relaxed);
            let reply = match line {
                Ok(line) => Reply::parse(line, call.request.expect()).map_err(outcome::bad_reply),
                Err(fault) => Err(too_long(fault)),
            };
            match reply {
                Ok(reply) => {
                    let waits = call.request.may_wait();
                    self.shared.proof.answered(proven(waits, sent, now, self.shared.home.keepalive));
                    if waits {
                        waited = true;
                    } else {
                        self.shared.home.meter.round_trip(now - sent);
                    }
                    if let Some(orphan) = answer(call, reply, &self.handle, &self.shared) {
                        self.let_go(orphan);
                    }
                }
                // A table can be larger than what is read of it. Its line is read to its end, and
                // leases on this connection go on.
                Err(error) if self.decoder.overlong_head().starts_with(b"ok {") && is_stats(&call) => {
                    self.decoder.resync(MAX_READ_AWAY);
                    self.shared.fail(call, &error, false);
                }
                Err(error) => {
                    self.shared.fail(call, &error, false);
                    return Err(error);
                }
            }
        }
    }

    /// Releases a grant that came when nobody had the session any more, so nobody waited for it.
    fn let_go(&mut self, orphan: Orphan) {
        if self.shared.course() == ABANDONED {
            return (self.shared.home.rescue)(orphan, None);
        }
        self.shared.under_way.fetch_add(1, Ordering::Relaxed);
        self.admit(Call { request: orphan.release(), caller: Caller::Nobody }, Instant::now());
    }

    /// Where in the conversation the stream stands.
    fn place(&self) -> &'static str {
        match (self.decoder.at_boundary(), self.pending.is_empty()) {
            (false, _) => "in the middle of a reply",
            (true, false) => "without a reply",
            (true, true) => "while it was idle",
        }
    }

    /// When to look whether the connection is quiet, or the server is. Not later than the next ping
    /// is due, whatever is under way now: its answer does not set this anew.
    fn next_check(&self) -> Instant {
        let (now, keepalive) = (Instant::now(), self.shared.home.keepalive);
        // Behind a request that waits in a queue the server answers nothing, and drops nothing.
        if self.pending.front().is_some_and(|(call, _)| call.request.may_wait()) {
            return now + keepalive;
        }
        let (quiet, silent) = (self.last_sent + keepalive, self.shared.proof.ends());
        let ping = if self.pending.is_empty() || quiet > now { quiet } else { silent };
        let idle = self.idle_until().filter(|_| self.pending.is_empty());
        idle.map_or(ping, |idle| idle.min(ping)).min(silent)
    }

    /// Pings over a connection that was quiet for a while, so that the server does not drop it, and
    /// gives up one over which no answer comes.
    fn check(&mut self) -> Result<()> {
        let now = Instant::now();
        let waits = self.pending.front().is_some_and(|(call, _)| call.request.may_wait());
        if !waits && now >= self.shared.proof.ends() {
            let silent = 2 * self.shared.home.keepalive;
            return Err(Error::new(
                ErrorKind::Timeout,
                format!("the server answered nothing for {silent:?}"),
            ));
        }
        if self.pending.is_empty() && self.idle_until().is_some_and(|until| now >= until) {
            tracing::debug!(server = %self.shared.home.server, "a connection that nobody needs is closed");
            self.shared.steer(CLOSING);
        } else if self.pending.is_empty() && now >= self.last_sent + self.shared.home.keepalive {
            self.admit_ping();
        }
        Ok(())
    }

    /// Until when the connection is kept though nobody has it.
    fn idle_until(&self) -> Option<Instant> {
        match *self.shared.usage() {
            Usage::Idle(until) => Some(until),
            Usage::Taken(_) => None,
        }
    }

    fn admit_ping(&mut self) {
        self.shared.under_way.fetch_add(1, Ordering::Relaxed);
        self.admit(Call { request: Request::Ping, caller: Caller::Nobody }, Instant::now());
    }

    async fn listen_for_crossing_grant(&mut self, chunk: &mut [u8]) -> Error {
        let abandoned = || Error::new(ErrorKind::ConnectionClosed, "its wait was given up");
        let listening = async {
            let mut left = false;
            loop {
                // The server may be in the middle of a reply, and take nothing until that is read.
                tokio::select! {
                    biased;
                    read = self.reader.read(chunk) => match read? {
                        0 => return Ok(()),
                        n if self.receive(&chunk[..n]).is_err() => return Ok(()),
                        _ => {}
                    },
                    done = leave(&mut self.writer, &self.out, &mut self.written), if !left => {
                        done?;
                        left = true;
                    }
                }
            }
        };
        let _: std::io::Result<()> = timeout(ABANDON_LIMIT, listening).await.unwrap_or(Ok(()));
        abandoned()
    }

    /// Tells everyone who still waits, and everyone who asks later.
    fn finish(&mut self, end: Error) {
        let end = end.on_server(&self.shared.home.server);
        tracing::debug!(server = %self.shared.home.server, reason = %end, "connection ended");
        self.shared.ended.send_replace(Some(end.clone()));
        *self.shared.usage() = Usage::Taken(None);
        self.queue.close();
        for (call, _) in self.pending.drain(..) {
            self.shared.fail(call, &end, false);
        }
        while let Ok(call) = self.queue.try_recv() {
            self.shared.fail(call, &end, true);
        }
    }
}

/// The runtime may drop the driver at any await: whoever looks must then see it closed.
impl Drop for Driver {
    fn drop(&mut self) {
        if self.shared.ended.borrow().is_none() {
            self.finish(shut_down());
        }
    }
}

/// Writes, or flushes once all is written.
async fn write_some(writer: &mut WriteHalf<BoxStream>, rest: &[u8]) -> std::io::Result<usize> {
    if rest.is_empty() {
        writer.flush().await?;
        return Ok(0);
    }
    match writer.write(rest).await? {
        0 => Err(std::io::ErrorKind::WriteZero.into()),
        n => Ok(n),
    }
}

/// Writes what is left, and closes this way of the stream. Dropped, it may be made again.
async fn leave(writer: &mut WriteHalf<BoxStream>, out: &[u8], written: &mut usize) -> std::io::Result<()> {
    while *written < out.len() {
        match writer.write(&out[*written..]).await? {
            0 => return Err(std::io::ErrorKind::WriteZero.into()),
            n => *written += n,
        }
    }
    writer.shutdown().await
}

/// When a request that is answered now proves the server to have been listening.
///
/// One that waited in a queue for long says that the server was there when it answered, which was
/// a moment ago; a lease that comes of it is confirmed by a renewal before anybody relies on it.
fn proven(waits: bool, sent: Instant, now: Instant, keepalive: Duration) -> Instant {
    if waits && now > sent + keepalive { now } else { sent }
}

fn is_stats(call: &Call) -> bool {
    call.request == Request::Stats
}

fn too_long(fault: LineTooLong) -> Error {
    Error::new(ErrorKind::Protocol, "reply too long").caused_by(fault)
}

/// Hands a reply to its caller; a grant travels with the duty to release it, or comes back where
/// nobody has the session any more.
#[must_use]
fn answer(
    call: Call,
    reply: Reply,
    handle: &mpsc::WeakUnboundedSender<Call>,
    shared: &Arc<Shared>,
) -> Option<Orphan> {
    if reply == Reply::Refused(Status::Draining) {
        shared.home.draining.store(true, Ordering::Relaxed);
    }
    let orphan = match &reply {
        Reply::Granted { token, .. } | Reply::Acquired { token, .. } => orphan(&call.request, token),
        _ => None,
    };
    let (orphan, left) = match (orphan, handle.upgrade()) {
        (Some(orphan), Some(calls)) => (Some((orphan, Session { calls, shared: shared.clone() })), None),
        (orphan, _) => (None, orphan),
    };
    match (call.caller, call.request) {
        // An answer that cannot be delivered comes back and is dropped, which releases its grant.
        (Caller::Waits(caller), _) => drop(caller.send(Ok(Answer { reply: Some(reply), orphan }))),
        (Caller::Releases { done: Some(done), .. }, request) => {
            let outcome = outcome::released(reply);
            done(outcome.map_err(|error| named(error.on_server(&shared.home.server), &request)));
        }
        (Caller::Releases { done: None, .. }, request) => {
            if let (Request::Release { key, token, .. }, Reply::Refused(status)) = (request, reply) {
                tracing::debug!(%key, fence = ?token.fence(), %status, "released a lease that was gone already");
            }
        }
        (Caller::Nobody, _) => drop(Answer { reply: Some(reply), orphan }),
    }
    left
}

fn orphan(request: &Request, token: &Token) -> Option<Orphan> {
    let family = match request {
        Request::Acquire { limit, .. } | Request::Enqueue { limit, .. } => Family::of(*limit),
        Request::Wait { family, .. } => *family,
        _ => return None,
    };
    Some(Orphan { key: request.key()?.clone(), token: token.clone(), family, rescued: false })
}
