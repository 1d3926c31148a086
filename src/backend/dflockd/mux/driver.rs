//! The task behind a session: it alone touches the stream.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until, timeout};

use super::{
    ABANDONED, Buffered, CLOSING, ConnRef, ConnShared, ENDED, FINISHED, InFlight, MuxConnection, OPEN,
    Occupancy, Responder, Response, UnclaimedGrant, named, shut_down,
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
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How many replies are handed out before their callers have a turn. What they ask next is then on
/// its way while the rest is handed out, so that neither side waits for the other.
const REPLY_BATCH: usize = 32;

pub(super) struct Driver {
    stream: Buffered,
    /// To hand out with grants; weak, so that it does not keep the session open.
    handle: Weak<ConnRef>,
    shared: Arc<ConnShared>,
    decoder: LineDecoder,
    /// How long requests took that are not counted yet.
    round_trips: Vec<Duration>,
    /// When to give up what is under way, once nothing more is taken.
    close_by: Option<Instant>,
}

impl Driver {
    pub(super) fn new(stream: BoxStream, handle: Weak<ConnRef>, shared: Arc<ConnShared>) -> Self {
        let (wire, decoder, trips) =
            (Buffered::new(stream), LineDecoder::new(), Vec::with_capacity(REPLY_BATCH));
        Self { stream: wire, handle, shared, decoder, round_trips: trips, close_by: None }
    }

    pub(super) async fn run(mut self) {
        let end = self.drive().await;
        self.close(end);
    }

    /// Serves until the connection ends, and answers why.
    async fn drive(&mut self) -> Error {
        let mut alarm = pin!(sleep_until(self.next_timer()));
        match poll_fn(|cx| self.poll(cx, alarm.as_mut())).await {
            Err(error) => error,
            Ok(()) if self.shared.state() == ABANDONED => self.await_late_grant().await,
            Ok(()) => {
                let _ = timeout(CLOSE_TIMEOUT, poll_fn(|cx| self.stream.poll_shutdown(cx))).await;
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
            set_alarm |= has_read && self.receive(REPLY_BATCH)?;
            // What the server has said was read before: a line that came unasked must not pass for
            // the reply to the next request.
            if let Poll::Ready(Err(error)) = self.poll_send(cx) {
                return Poll::Ready(Err(self.drain_replies(cx, error)));
            }
            if !self.stream.unread().is_empty() {
                cx.waker().wake_by_ref();
                break;
            } else if !has_read {
                break;
            }
        }
        match self.shared.state() {
            OPEN => {}
            ABANDONED => return Poll::Ready(Ok(())),
            _ if self.is_done() => return Poll::Ready(Ok(())),
            _ if self.close_by.is_none() => {
                self.close_by = Some(Instant::now() + CLOSE_TIMEOUT);
                set_alarm = true;
            }
            _ => {}
        }
        if set_alarm | self.shared.reset_timer.swap(false, Ordering::Relaxed) {
            alarm.as_mut().reset(self.next_timer());
        }
        if alarm.as_mut().poll(cx).is_ready() {
            self.handle_timer()?;
            alarm.as_mut().reset(self.next_timer());
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Whether everything that was asked is answered.
    fn is_done(&self) -> bool {
        self.stream.is_sent() && self.shared.requests().len() == 0
    }

    /// Has bytes to look at, once this is ready.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        match ready!(self.stream.poll_read(cx))? {
            0 => Poll::Ready(Err(closed_by_peer(self.stream_position()))),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Hands out what was answered before the stream failed.
    fn drain_replies(&mut self, cx: &mut Context<'_>, error: Error) -> Error {
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
        self.stream.poll_send(cx, |sending| self.shared.requests().encode(sending))
    }

    /// Hands out so many replies, of those that were read. Answers whether a request that may wait
    /// was among those that they answer.
    fn receive(&mut self, most: usize) -> Result<bool> {
        let now = Instant::now();
        self.shared.answers.store(true, Ordering::Relaxed);
        let waited = self.receive_at(now, most);
        self.shared.answers.store(false, Ordering::Release);
        self.shared.context.metrics.round_trips(self.round_trips.drain(..));
        waited
    }

    fn receive_at(&mut self, now: Instant, most: usize) -> Result<bool> {
        let mut waited = false;
        for _ in 0..most {
            let mut unread = self.stream.unread();
            let line = self.decoder.next(&mut unread, MAX_REPLY_BYTES);
            let left = unread.len();
            let Some(line) = line else {
                self.stream.consume_to(left);
                break;
            };
            let Some(call) = self.shared.next_call(self.stream.sent_before_read(), now) else {
                return Err(line.map_or_else(too_long, unasked));
            };
            let reply = match line {
                Ok(line) => Reply::parse(line, call.request.expect()).map_err(replies::bad_reply),
                Err(fault) => Err(too_long(fault)),
            };
            self.stream.consume_to(left);
            match reply {
                // The server closes a connection to which it says this: those who have asked behind the
                // ping are to hear why.
                Ok(Reply::Refused(Status::Auth)) if matches!(call.request, Request::Ping) => {
                    return Err(replies::status_error(&Status::Auth, Expect::Done));
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
    fn answer(&mut self, call: InFlight, reply: Reply, now: Instant) -> bool {
        let (sent, waits) = (call.sent, call.request.may_wait());
        self.shared.liveness.acked(proven(waits, sent, now, self.shared.context.keepalive));
        if !waits {
            self.round_trips.push(now - sent);
        }
        if let Some(orphan) = answer(call, reply, &self.handle, &self.shared) {
            self.release_unclaimed(orphan);
        }
        waits
    }

    /// Releases a grant that came when nobody had the session any more, so nobody waited for it.
    fn release_unclaimed(&mut self, orphan: UnclaimedGrant) {
        if self.shared.state() == ABANDONED {
            return (self.shared.context.release_elsewhere)(orphan, None);
        }
        let UnclaimedGrant { key, token, family, .. } = orphan;
        self.send_internal(Request::Release { key, token, family });
    }

    /// Asks something of the driver's own, whether or not it takes more from others.
    fn send_internal(&self, request: Request) {
        let call = InFlight { request, caller: Responder::None, sent: Instant::now() };
        self.shared.push(self.shared.requests(), call);
    }

    /// Where in the conversation the stream stands.
    fn stream_position(&self) -> &'static str {
        match (self.decoder.at_boundary(), self.shared.requests().len() == 0) {
            (false, _) => "in the middle of a reply",
            (true, false) => "without a reply",
            (true, true) => "while it was idle",
        }
    }

    /// When to look at the connection again, or at those who wait for a release.
    fn next_timer(&self) -> Instant {
        let late_at = self.shared.requests().next_deadline();
        let next = self.close_by.unwrap_or_else(|| self.next_liveness_check());
        late_at.map_or(next, |late_at| late_at.min(next))
    }

    /// When to look whether the connection is quiet, or the server is. Not later than the next ping
    /// is due, whatever is under way now: its answer does not set this anew.
    fn next_liveness_check(&self) -> Instant {
        let keepalive = self.shared.context.keepalive;
        let outbox = self.shared.requests();
        // Behind a request that waits in a queue the server answers nothing, and drops nothing.
        if outbox.front().is_some_and(Request::may_wait) {
            return Instant::now() + keepalive;
        }
        let next = (outbox.last_call() + keepalive).min(self.shared.liveness.expires_at());
        let idle = self.idle_until().filter(|until| outbox.len() == 0 || *until > Instant::now());
        idle.map_or(next, |idle| idle.min(next))
    }

    /// Pings over a connection that was quiet for a while, so that the server does not drop it, and
    /// gives up one over which no answer comes. A ping goes out while answers are owed as well: it may
    /// be what proves, once a stall is over, that the server has listened since.
    fn handle_timer(&mut self) -> Result<()> {
        let (now, keepalive) = (suspend::now(), self.shared.context.keepalive);
        if self.close_by.is_some_and(|finish_by| now >= finish_by) {
            let late = "the server did not answer before it was closed";
            return Err(Error::new(ErrorKind::Timeout, late));
        }
        let mut outbox = self.shared.requests();
        outbox.expire_overdue(now);
        let (is_idle, last_call) = (outbox.len() == 0, outbox.last_call());
        let waits = outbox.front().is_some_and(Request::may_wait);
        drop(outbox);
        if !waits && now >= self.shared.liveness.expires_at() {
            let detail = format!("the server answered nothing for {:?}", 2 * keepalive);
            return Err(Error::new(ErrorKind::Timeout, detail));
        }
        if is_idle && self.close_idle(now) {
            tracing::debug!(server = %self.shared.context.server, "a connection that nobody needs is closed");
        } else if !waits && now >= last_call + keepalive {
            self.send_internal(Request::Ping);
        }
        Ok(())
    }

    /// Until when the connection is kept though nobody has it.
    fn idle_until(&self) -> Option<Instant> {
        match *self.shared.occupancy() {
            Occupancy::Idle(until) => Some(until),
            Occupancy::InUse(_) => None,
        }
    }

    /// Closes a connection that nobody has had for long. Whoever takes it looks behind the same lock.
    fn close_idle(&self, now: Instant) -> bool {
        let usage = self.shared.occupancy();
        let is_over = matches!(*usage, Occupancy::Idle(until) if now >= until);
        if is_over {
            self.shared.advance(CLOSING);
        }
        is_over
    }

    async fn await_late_grant(&mut self) -> Error {
        // What is not on its way yet need not be asked any more.
        let retracted = self.shared.requests().cancel_unsent();
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
                left = left || self.poll_half_close(cx)?.is_ready();
                if !has_read {
                    return Poll::Pending;
                }
            }
        });
        let ended: Result<Result<()>, _> = timeout(CLOSE_TIMEOUT, listening).await;
        let kind = if ended.is_ok() { ErrorKind::ConnectionClosed } else { ErrorKind::Timeout };
        Error::new(kind, "its wait was given up")
    }

    /// Sends what is left, and closes this way of the stream.
    fn poll_half_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        ready!(self.poll_send(cx))?;
        self.stream.poll_shutdown(cx)
    }

    /// Tells everyone who still waits, and everyone who asks later.
    fn close(&mut self, end: Error) {
        let end = end.on_server(&self.shared.context.server);
        tracing::debug!(server = %self.shared.context.server, reason = %end, "connection ended");
        // The first end stands; this is the only one who sets it.
        let _ = self.shared.end.set(end.clone());
        self.shared.advance(ENDED);
        *self.shared.occupancy() = Occupancy::InUse(None);
        let left = self.shared.requests().end(self.stream.sent());
        for (call, unsent) in left {
            self.shared.fail(call, &end, unsent);
        }
        self.shared.advance(FINISHED);
        self.shared.closed.notify_waiters();
    }
}

/// The runtime may drop the driver at any await: whoever looks must then see it closed.
impl Drop for Driver {
    fn drop(&mut self) {
        if self.shared.end.get().is_none() && self.shared.origin.is_here() {
            self.close(shut_down());
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
fn answer(
    call: InFlight,
    reply: Reply,
    handle: &Weak<ConnRef>,
    shared: &ConnShared,
) -> Option<UnclaimedGrant> {
    if reply == Reply::Refused(Status::Draining) {
        shared.context.draining.store(true, Ordering::Relaxed);
    }
    if matches!((&call.request, &reply), (Request::Ping, Reply::Refused(Status::Error))) {
        shared.is_unfenced.store(true, Ordering::Relaxed);
    }
    let InFlight { request, caller, .. } = call;
    let caller = match caller {
        Responder::Release { done, .. } => {
            released(&request, reply, done, shared);
            return None;
        }
        Responder::Caller { tell, .. } => Some(tell),
        Responder::None => None,
    };
    let orphan = match &reply {
        Reply::Granted { token, .. } | Reply::Acquired { token, .. } => orphan(request, token),
        _ => None,
    };
    let (orphan, left) = match orphan.map(|orphan| (orphan, handle.upgrade())) {
        Some((orphan, Some(handle))) => (Some((orphan, MuxConnection(handle))), None),
        Some((orphan, None)) => (None, Some(orphan)),
        None => (None, None),
    };
    let answer = Response { reply: Some(reply), unclaimed: orphan };
    // One that cannot be delivered comes back and is dropped, which releases its grant.
    match caller {
        Some(caller) => drop(caller.send(Ok(answer))),
        None => drop(answer),
    }
    left
}

fn released(request: &Request, reply: Reply, done: Option<ReleaseCompletion>, shared: &ConnShared) {
    match (done, request, reply) {
        (Some(done), request, reply) => {
            let outcome = replies::released(reply);
            done.complete(outcome.map_err(|error| named(error.on_server(&shared.context.server), request)));
        }
        (None, Request::Release { key, token, .. }, Reply::Refused(status)) => {
            let (fence, status) = (shared.fence_of(token), status.to_string());
            tracing::debug!(%key, ?fence, status = %printable(&status), "released a lease that was gone already");
        }
        (None, ..) => {}
    }
}

fn orphan(request: Request, token: &Token) -> Option<UnclaimedGrant> {
    let (key, family) = match request {
        Request::Acquire { key, limit, .. } | Request::Enqueue { key, limit, .. } => (key, Family::of(limit)),
        Request::Wait { key, family, .. } => (key, family),
        _ => return None,
    };
    Some(UnclaimedGrant { key, token: token.clone(), family, rerouted: None })
}
