//! The task behind a session: it alone touches the stream.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until, timeout};

use super::{
    ABANDONED, Answer, CLOSING, Call, Caller, ENDED, FINISHED, Handles, OPEN, Orphan, Session, Shared, Usage,
    Wire, named, shut_down,
};
use crate::backend::dflockd::connect::{closed_by_peer, unasked};
use crate::backend::dflockd::replies;
use crate::error::{Error, ErrorKind, Result};
use crate::lease::ReleaseCompletion;
use crate::net::BoxStream;
use crate::proto::{Expect, Family, LineDecoder, LineTooLong, MAX_REPLY_BYTES, Reply, Request, Status};
use crate::suspend;
use crate::types::{Token, printable};

/// How long a session whose last user is gone may take to finish what is under way, and how long an
/// abandoned wait listens for a grant that crossed it.
const FINISH_LIMIT: Duration = Duration::from_secs(5);
/// How many replies are handed out before their callers have a turn. What they ask next is then on
/// its way while the rest is handed out, so that neither side waits for the other.
const TURN: usize = 32;

pub(super) struct Driver {
    wire: Wire,
    /// To hand out with grants; weak, so that it does not keep the session open.
    handle: Weak<Handles>,
    shared: Arc<Shared>,
    decoder: LineDecoder,
    /// How long requests took that are not counted yet.
    trips: Vec<Duration>,
    /// When to give up what is under way, once nothing more is taken.
    finish_by: Option<Instant>,
}

impl Driver {
    pub(super) fn new(stream: BoxStream, handle: Weak<Handles>, shared: Arc<Shared>) -> Self {
        let (wire, decoder, trips) = (Wire::new(stream), LineDecoder::new(), Vec::with_capacity(TURN));
        Self { wire, handle, shared, decoder, trips, finish_by: None }
    }

    pub(super) async fn run(mut self) {
        let end = self.drive().await;
        self.finish(end);
    }

    /// Serves until the connection ends, and answers why.
    async fn drive(&mut self) -> Error {
        let mut alarm = pin!(sleep_until(self.next_check()));
        match poll_fn(|cx| self.poll(cx, alarm.as_mut())).await {
            Err(error) => error,
            Ok(()) if self.shared.course() == ABANDONED => self.listen_for_crossing_grant().await,
            Ok(()) => {
                let _ = timeout(FINISH_LIMIT, poll_fn(|cx| self.wire.poll_shutdown(cx))).await;
                Error::new(ErrorKind::ConnectionClosed, "this client closed it")
            }
        }
    }

    /// Reads, writes and looks at the clock, until there is no more to do on this connection.
    fn poll(&mut self, cx: &mut Context<'_>, mut alarm: Pin<&mut Sleep>) -> Poll<Result<()>> {
        self.shared.waker.register(cx.waker());
        let mut set_alarm = false;
        loop {
            let has_read = self.poll_read(cx)?.is_ready();
            set_alarm |= has_read && self.receive(TURN)?;
            // What the server has said was read before: a line that came unasked must not pass for
            // the reply to the next request.
            if let Poll::Ready(Err(error)) = self.poll_send(cx) {
                return Poll::Ready(Err(self.read_out(cx, error)));
            }
            if !self.wire.unread().is_empty() {
                cx.waker().wake_by_ref();
                break;
            } else if !has_read {
                break;
            }
        }
        match self.shared.course() {
            OPEN => {}
            ABANDONED => return Poll::Ready(Ok(())),
            _ if self.is_done() => return Poll::Ready(Ok(())),
            _ if self.finish_by.is_none() => {
                self.finish_by = Some(Instant::now() + FINISH_LIMIT);
                set_alarm = true;
            }
            _ => {}
        }
        if set_alarm | self.shared.set_alarm.swap(false, Ordering::Relaxed) {
            alarm.as_mut().reset(self.next_check());
        }
        if alarm.as_mut().poll(cx).is_ready() {
            self.check()?;
            alarm.as_mut().reset(self.next_check());
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Whether everything that was asked is answered.
    fn is_done(&self) -> bool {
        self.wire.is_sent() && self.shared.outbox().len() == 0
    }

    /// Has bytes to look at, once this is ready.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        match ready!(self.wire.poll_read(cx))? {
            0 => Poll::Ready(Err(closed_by_peer(self.place()))),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Hands out what was answered before the stream failed.
    fn read_out(&mut self, cx: &mut Context<'_>, error: Error) -> Error {
        while let Poll::Ready(Ok(())) = self.poll_read(cx) {
            if self.receive(usize::MAX).is_err() {
                break;
            }
        }
        error
    }

    /// Sends what was asked. Ready once all of it is on its way.
    ///
    /// What an earlier time has left goes first. Whoever asked after that woke nobody, since bytes were
    /// waiting already.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.wire.poll_send(cx, |sending| self.shared.outbox().encode(sending))
    }

    /// Hands out so many replies, of those that were read. Answers whether a request that may wait
    /// was among those that they answer.
    fn receive(&mut self, most: usize) -> Result<bool> {
        let now = Instant::now();
        self.shared.answers.store(true, Ordering::Relaxed);
        let waited = self.receive_at(now, most);
        self.shared.answers.store(false, Ordering::Release);
        self.shared.home.metrics.round_trips(self.trips.drain(..));
        waited
    }

    fn receive_at(&mut self, now: Instant, most: usize) -> Result<bool> {
        let mut waited = false;
        for _ in 0..most {
            let mut unread = self.wire.unread();
            let line = self.decoder.next(&mut unread, MAX_REPLY_BYTES);
            let left = unread.len();
            let Some(line) = line else {
                self.wire.leave_unread(left);
                break;
            };
            let Some(call) = self.shared.next_call(self.wire.asked(), now) else {
                return Err(line.map_or_else(too_long, unasked));
            };
            let reply = match line {
                Ok(line) => Reply::parse(line, call.request.expect()).map_err(replies::bad_reply),
                Err(fault) => Err(too_long(fault)),
            };
            self.wire.leave_unread(left);
            match reply {
                // The server closes a connection to which it says this: those who have asked behind the
                // ping are to hear why.
                Ok(Reply::Refused(Status::Auth)) if matches!(call.request, Request::Ping) => {
                    return Err(replies::refusal(&Status::Auth, Expect::Done));
                }
                Ok(reply) => waited |= self.answer(call, reply, now),
                Err(error) => {
                    self.shared.fail(call, &error, false);
                    return Err(error);
                }
            }
        }
        Ok(waited)
    }

    /// Hands a reply to its caller. Answers whether the request was one that may wait.
    fn answer(&mut self, call: Call, reply: Reply, now: Instant) -> bool {
        let (sent, waits) = (call.sent, call.request.may_wait());
        self.shared.proof.answered(proven(waits, sent, now, self.shared.home.keepalive));
        if !waits {
            self.trips.push(now - sent);
        }
        if let Some(orphan) = answer(call, reply, &self.handle, &self.shared) {
            self.let_go(orphan);
        }
        waits
    }

    /// Releases a grant that came when nobody had the session any more, so nobody waited for it.
    fn let_go(&mut self, orphan: Orphan) {
        if self.shared.course() == ABANDONED {
            return (self.shared.home.rescue)(orphan, None);
        }
        let Orphan { key, token, family, .. } = orphan;
        self.admit(Request::Release { key, token, family });
    }

    /// Asks something of the driver's own, whether or not it takes more from others.
    fn admit(&self, request: Request) {
        let call = Call { request, caller: Caller::Nobody, sent: Instant::now() };
        self.shared.push(self.shared.outbox(), call);
    }

    /// Where in the conversation the stream stands.
    fn place(&self) -> &'static str {
        match (self.decoder.at_boundary(), self.shared.outbox().len() == 0) {
            (false, _) => "in the middle of a reply",
            (true, false) => "without a reply",
            (true, true) => "while it was idle",
        }
    }

    /// When to look at the connection again, or at those who wait for a release.
    fn next_check(&self) -> Instant {
        let late_at = self.shared.outbox().late_at();
        let next = self.finish_by.unwrap_or_else(|| self.next_look());
        late_at.map_or(next, |late_at| late_at.min(next))
    }

    /// When to look whether the connection is quiet, or the server is. Not later than the next ping
    /// is due, whatever is under way now: its answer does not set this anew.
    fn next_look(&self) -> Instant {
        let keepalive = self.shared.home.keepalive;
        let outbox = self.shared.outbox();
        // Behind a request that waits in a queue the server answers nothing, and drops nothing.
        if outbox.front().is_some_and(Request::may_wait) {
            return Instant::now() + keepalive;
        }
        let next = (outbox.last_call() + keepalive).min(self.shared.proof.ends());
        let idle = self.idle_until().filter(|until| outbox.len() == 0 || *until > Instant::now());
        idle.map_or(next, |idle| idle.min(next))
    }

    /// Pings over a connection that was quiet for a while, so that the server does not drop it, and
    /// gives up one over which no answer comes. A ping goes out while answers are owed as well: it may
    /// be what proves, once a stall is over, that the server has listened since.
    fn check(&mut self) -> Result<()> {
        let (now, keepalive) = (suspend::now(), self.shared.home.keepalive);
        if self.finish_by.is_some_and(|finish_by| now >= finish_by) {
            let late = "the server did not answer before it was closed";
            return Err(Error::new(ErrorKind::Timeout, late));
        }
        let mut outbox = self.shared.outbox();
        outbox.give_up_late(now);
        let (is_idle, last_call) = (outbox.len() == 0, outbox.last_call());
        let waits = outbox.front().is_some_and(Request::may_wait);
        drop(outbox);
        if !waits && now >= self.shared.proof.ends() {
            let detail = format!("the server answered nothing for {:?}", 2 * keepalive);
            return Err(Error::new(ErrorKind::Timeout, detail));
        }
        if is_idle && self.close_idle(now) {
            tracing::debug!(server = %self.shared.home.server, "a connection that nobody needs is closed");
        } else if !waits && now >= last_call + keepalive {
            self.admit(Request::Ping);
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

    /// Closes a connection that nobody has had for long. Whoever takes it looks behind the same lock.
    fn close_idle(&self, now: Instant) -> bool {
        let usage = self.shared.usage();
        let is_over = matches!(*usage, Usage::Idle(until) if now >= until);
        if is_over {
            self.shared.steer(CLOSING);
        }
        is_over
    }

    async fn listen_for_crossing_grant(&mut self) -> Error {
        // What is not on its way yet need not be asked any more.
        let retracted = self.shared.outbox().retract();
        for call in retracted {
            self.shared.fail(call, &shut_down(), true);
        }
        let mut left = false;
        let listening = poll_fn(|cx| {
            loop {
                let has_read = self.poll_read(cx)?.is_ready();
                if has_read {
                    self.receive(usize::MAX)?;
                }
                // The server may be in the middle of a reply, and take nothing until that is read.
                left = left || self.poll_leave(cx)?.is_ready();
                if !has_read {
                    return Poll::Pending;
                }
            }
        });
        let ended: Result<Result<()>, _> = timeout(FINISH_LIMIT, listening).await;
        let kind = if ended.is_ok() { ErrorKind::ConnectionClosed } else { ErrorKind::Timeout };
        Error::new(kind, "its wait was given up")
    }

    /// Sends what is left, and closes this way of the stream.
    fn poll_leave(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        ready!(self.poll_send(cx))?;
        self.wire.poll_shutdown(cx)
    }

    /// Tells everyone who still waits, and everyone who asks later.
    fn finish(&mut self, end: Error) {
        let end = end.on_server(&self.shared.home.server);
        tracing::debug!(server = %self.shared.home.server, reason = %end, "connection ended");
        // The first end stands; this is the only one who sets it.
        let _ = self.shared.end.set(end.clone());
        self.shared.steer(ENDED);
        *self.shared.usage() = Usage::Taken(None);
        let left = self.shared.outbox().end(self.wire.sent());
        for (call, unsent) in left {
            self.shared.fail(call, &end, unsent);
        }
        self.shared.steer(FINISHED);
        self.shared.ended.notify_waiters();
    }
}

/// The runtime may drop the driver at any await: whoever looks must then see it closed.
impl Drop for Driver {
    fn drop(&mut self) {
        if self.shared.end.get().is_none() && self.shared.origin.is_here() {
            self.finish(shut_down());
        }
    }
}

/// When a request that is answered now proves the server to have been listening.
///
/// One that waited in a queue for long says that the server was there when it answered, which was
/// a moment ago; a lease that comes of it is confirmed by a renewal before anybody relies on it.
fn proven(waits: bool, sent: Instant, now: Instant, keepalive: Duration) -> Instant {
    if waits && now > sent + keepalive { now } else { sent }
}

fn too_long(fault: LineTooLong) -> Error {
    Error::new(ErrorKind::Protocol, "reply too long").caused_by(fault)
}

/// Hands a reply to its caller; a grant travels with the duty to release it, or comes back where
/// nobody has the session any more.
#[must_use]
fn answer(call: Call, reply: Reply, handle: &Weak<Handles>, shared: &Shared) -> Option<Orphan> {
    if reply == Reply::Refused(Status::Draining) {
        shared.home.draining.store(true, Ordering::Relaxed);
    }
    if matches!((&call.request, &reply), (Request::Ping, Reply::Refused(Status::Error))) {
        shared.is_unfenced.store(true, Ordering::Relaxed);
    }
    let Call { request, caller, .. } = call;
    let caller = match caller {
        Caller::Releases { done, .. } => {
            released(&request, reply, done, shared);
            return None;
        }
        Caller::Waits { tell, .. } => Some(tell),
        Caller::Nobody => None,
    };
    let orphan = match &reply {
        Reply::Granted { token, .. } | Reply::Acquired { token, .. } => orphan(request, token),
        _ => None,
    };
    let (orphan, left) = match orphan.map(|orphan| (orphan, handle.upgrade())) {
        Some((orphan, Some(handle))) => (Some((orphan, Session(handle))), None),
        Some((orphan, None)) => (None, Some(orphan)),
        None => (None, None),
    };
    let answer = Answer { reply: Some(reply), orphan };
    // One that cannot be delivered comes back and is dropped, which releases its grant.
    match caller {
        Some(caller) => drop(caller.send(Ok(answer))),
        None => drop(answer),
    }
    left
}

fn released(request: &Request, reply: Reply, done: Option<ReleaseCompletion>, shared: &Shared) {
    match (done, request, reply) {
        (Some(done), request, reply) => {
            let outcome = replies::released(reply);
            done.complete(outcome.map_err(|error| named(error.on_server(&shared.home.server), request)));
        }
        (None, Request::Release { key, token, .. }, Reply::Refused(status)) => {
            let (fence, status) = (shared.fence_of(token), status.to_string());
            tracing::debug!(%key, ?fence, status = %printable(&status), "released a lease that was gone already");
        }
        (None, ..) => {}
    }
}

fn orphan(request: Request, token: &Token) -> Option<Orphan> {
    let (key, family) = match request {
        Request::Acquire { key, limit, .. } | Request::Enqueue { key, limit, .. } => (key, Family::of(limit)),
        Request::Wait { key, family, .. } => (key, family),
        _ => return None,
    };
    Some(Orphan { key, token: token.clone(), family, rescue: None })
}
