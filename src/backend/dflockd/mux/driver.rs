//! The driver of a connection: the one task that touches the stream.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until, timeout};

use super::ConnRef;
use super::buffered::Buffered;
use super::deliver::deliver;
use super::requests::{InFlight, Responder};
use super::response::{UnclaimedGrant, driver_stopped};
use super::shared::{ConnShared, Occupancy};
use super::state::ConnState;
use crate::backend::dflockd::connect::{closed_by_peer, unsolicited};
use crate::backend::dflockd::replies;
use crate::error::{Error, ErrorKind, Result};
use crate::net::BoxStream;
use crate::proto::{Expect, LineDecoder, LineTooLong, MAX_REPLY_BYTES, Reply, Request, Status};
use crate::suspend;

/// The timeout of the requests in flight on a connection without users, and of an abandoned wait that reads
/// on for a late grant.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// The number of replies delivered before their callers have a turn. Their next requests are then sent while
/// the driver delivers the rest, so that neither side waits for the other.
const REPLY_BATCH: usize = 32;

pub(super) struct Driver {
    stream: Buffered,
    /// Delivered with grants. Weak, so that it does not keep the connection open.
    handle: Weak<ConnRef>,
    shared: Arc<ConnShared>,
    decoder: LineDecoder,
    /// Round trips that the metrics do not count yet.
    round_trips: Vec<Duration>,
    /// The deadline of the requests in flight, once no more are taken.
    close_by: Option<Instant>,
}

impl Driver {
    pub(super) fn new(stream: BoxStream, handle: Weak<ConnRef>, shared: Arc<ConnShared>) -> Self {
        Self {
            stream: Buffered::new(stream),
            handle,
            shared,
            decoder: LineDecoder::new(),
            round_trips: Vec::with_capacity(REPLY_BATCH),
            close_by: None,
        }
    }

    pub(super) async fn run(mut self) {
        let reason = self.drive().await;
        self.close(reason);
    }

    /// Serves until the connection closes, and returns why it does.
    async fn drive(&mut self) -> Error {
        let mut timer = pin!(sleep_until(self.next_timer()));
        match poll_fn(|cx| self.poll(cx, timer.as_mut())).await {
            Err(error) => error,
            Ok(()) if self.shared.state() == ConnState::Abandoned => self.await_late_grant().await,
            Ok(()) => {
                let _ = timeout(CLOSE_TIMEOUT, poll_fn(|cx| self.stream.poll_shutdown(cx))).await;
                Error::new(ErrorKind::ConnectionClosed, "this client closed it")
            }
        }
    }

    /// Reads, delivers and sends, and handles the timer, until the connection is to close.
    fn poll(&mut self, cx: &mut Context<'_>, mut timer: Pin<&mut Sleep>) -> Poll<Result<()>> {
        self.shared.waker.register(cx.waker());
        let mut reset_timer = false;
        loop {
            let has_read = self.poll_read(cx)?.is_ready();
            reset_timer |= has_read && self.receive(REPLY_BATCH)?;
            // Sends only after it has read: an unsolicited line must not pass for the reply to the next
            // request.
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
            ConnState::Open => {}
            ConnState::Abandoned => return Poll::Ready(Ok(())),
            _ if self.is_done() => return Poll::Ready(Ok(())),
            _ if self.close_by.is_none() => {
                self.close_by = Some(Instant::now() + CLOSE_TIMEOUT);
                reset_timer = true;
            }
            _ => {}
        }
        if reset_timer | self.shared.reset_timer.swap(false, Ordering::Relaxed) {
            timer.as_mut().reset(self.next_timer());
        }
        if timer.as_mut().poll(cx).is_ready() {
            self.handle_timer()?;
            timer.as_mut().reset(self.next_timer());
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Returns `true` if every request is sent and answered.
    fn is_done(&self) -> bool {
        self.stream.is_sent() && self.shared.requests().len() == 0
    }

    /// Reads. When ready, there are bytes to decode.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        match ready!(self.stream.poll_read(cx))? {
            0 => Poll::Ready(Err(closed_by_peer(self.stream_position()))),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Delivers the replies that came before the stream failed.
    fn drain_replies(&mut self, cx: &mut Context<'_>, error: Error) -> Error {
        while let Poll::Ready(Ok(())) = self.poll_read(cx) {
            if self.receive(usize::MAX).is_err() {
                break;
            }
        }
        error
    }

    /// Sends the queued requests. Ready once all of them are sent.
    ///
    /// Bytes left from an earlier poll go first. A request queued after them did not wake the driver, since
    /// the stream wakes it.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.stream.poll_send(cx, |sending| self.shared.requests().encode(sending))
    }

    /// Delivers at most `max` of the replies that were read. Returns `true` if one of them answers a request
    /// that may wait.
    fn receive(&mut self, max: usize) -> Result<bool> {
        let now = Instant::now();
        self.shared.delivering.store(true, Ordering::Relaxed);
        let waited = self.receive_at(now, max);
        self.shared.delivering.store(false, Ordering::Release);
        self.shared.context.metrics.round_trips(self.round_trips.drain(..));
        waited
    }

    fn receive_at(&mut self, now: Instant, max: usize) -> Result<bool> {
        let mut waited = false;
        for _ in 0..max {
            let mut unread = self.stream.unread();
            let line = self.decoder.next(&mut unread, MAX_REPLY_BYTES);
            let left = unread.len();
            let Some(line) = line else {
                self.stream.consume_to(left);
                break;
            };
            let Some(answered) = self.shared.next_answered(self.stream.sent_before_read(), now) else {
                return Err(line.map_or_else(too_long, unsolicited));
            };
            let reply = match line {
                Ok(line) => Reply::parse(line, answered.request.expect()).map_err(replies::bad_reply),
                Err(fault) => Err(too_long(fault)),
            };
            self.stream.consume_to(left);
            match reply {
                // The server closes the connection after this reply. As the close reason it reaches the
                // callers whose requests came after the ping.
                Ok(Reply::Refused(Status::Auth)) if matches!(answered.request, Request::Ping) => {
                    return Err(replies::status_error(&Status::Auth, Expect::Done));
                }
                Ok(reply) => waited |= self.handle_reply(answered, reply, now),
                Err(error) => {
                    self.shared.fail(answered, &error, false);
                    return Err(error);
                }
            }
        }
        Ok(waited)
    }

    /// Handles a reply. Returns `true` if its request was one that may wait.
    fn handle_reply(&mut self, answered: InFlight, reply: Reply, now: Instant) -> bool {
        let (sent, waits) = (answered.sent, answered.request.may_wait());
        self.shared.liveness.acked(proven(waits, sent, now, self.shared.context.keepalive));
        if !waits {
            self.round_trips.push(now - sent);
        }
        if let Some(unclaimed) = deliver(answered, reply, &self.handle, &self.shared) {
            self.release_unclaimed(unclaimed);
        }
        waits
    }

    /// Releases a grant that came after the last handle dropped.
    fn release_unclaimed(&mut self, unclaimed: UnclaimedGrant) {
        if self.shared.state() == ConnState::Abandoned {
            return (self.shared.context.release_elsewhere)(unclaimed, None);
        }
        let UnclaimedGrant { key, token, family, .. } = unclaimed;
        self.send_internal(Request::Release { key, token, family });
    }

    /// Sends a request of the driver itself, also if the connection takes none from callers.
    fn send_internal(&self, request: Request) {
        let request = InFlight { request, responder: Responder::None, sent: Instant::now() };
        self.shared.push(self.shared.requests(), request);
    }

    /// Returns where in the conversation the stream stands.
    fn stream_position(&self) -> &'static str {
        match (self.decoder.at_boundary(), self.shared.requests().len() == 0) {
            (false, _) => "in the middle of a reply",
            (true, false) => "without a reply",
            (true, true) => "while it was idle",
        }
    }

    /// Returns the time of the next check of the connection, or of the callers' deadlines.
    fn next_timer(&self) -> Instant {
        let deadline = self.shared.requests().next_deadline();
        let next = self.close_by.unwrap_or_else(|| self.next_liveness_check());
        deadline.map_or(next, |deadline| deadline.min(next))
    }

    /// Returns the time at which to check for a quiet connection or a quiet server. Not later than the next
    /// ping is due, whatever is in flight now, since a reply does not set the timer anew.
    fn next_liveness_check(&self) -> Instant {
        let keepalive = self.shared.context.keepalive;
        let requests = self.shared.requests();
        // While a request waits in a wait queue, the server answers nothing that comes after it, and does not
        // drop the connection.
        if requests.front().is_some_and(Request::may_wait) {
            return Instant::now() + keepalive;
        }
        let next = (requests.last_pushed() + keepalive).min(self.shared.liveness.expires_at());
        let idle = self.idle_until().filter(|until| requests.len() == 0 || *until > Instant::now());
        idle.map_or(next, |idle| idle.min(next))
    }

    /// Pings over a quiet connection, so that the server does not drop it, and closes one over which no reply
    /// comes. Pings while replies are owed as well: once a stall is over, the reply to that ping may be what
    /// proves that the server has read since.
    fn handle_timer(&mut self) -> Result<()> {
        let (now, keepalive) = (suspend::now(), self.shared.context.keepalive);
        if self.close_by.is_some_and(|close_by| now >= close_by) {
            let detail = "the server did not answer before it was closed";
            return Err(Error::new(ErrorKind::Timeout, detail));
        }
        let mut requests = self.shared.requests();
        requests.expire_overdue(now);
        let (is_idle, last_pushed) = (requests.len() == 0, requests.last_pushed());
        let waits = requests.front().is_some_and(Request::may_wait);
        drop(requests);
        if !waits && now >= self.shared.liveness.expires_at() {
            let detail = format!("the server answered nothing for {:?}", 2 * keepalive);
            return Err(Error::new(ErrorKind::Timeout, detail));
        }
        if is_idle && self.close_idle(now) {
            tracing::debug!(server = %self.shared.context.server, "closing an idle connection");
        } else if !waits && now >= last_pushed + keepalive {
            self.send_internal(Request::Ping);
        }
        Ok(())
    }

    /// Returns when the connection closes as idle; `None` if it is in use.
    fn idle_until(&self) -> Option<Instant> {
        match *self.shared.occupancy() {
            Occupancy::Idle(until) => Some(until),
            Occupancy::InUse(_) => None,
        }
    }

    /// Closes the connection if it was idle for too long. `mark_in_use` checks the state under the same lock.
    fn close_idle(&self, now: Instant) -> bool {
        let occupancy = self.shared.occupancy();
        let is_due = matches!(*occupancy, Occupancy::Idle(until) if now >= until);
        if is_due {
            self.shared.advance(ConnState::Closing);
        }
        is_due
    }

    /// Half-closes the stream after an abandoned wait, and reads on for a late grant.
    async fn await_late_grant(&mut self) -> Error {
        // No caller needs an answer to what is not sent yet.
        let unsent = self.shared.requests().cancel_unsent();
        for request in unsent {
            self.shared.fail(request, &driver_stopped(), true);
        }
        let mut half_closed = false;
        let reading = poll_fn(|cx| {
            loop {
                let has_read = self.poll_read(cx)?.is_ready();
                if has_read {
                    self.receive(usize::MAX)?;
                }
                // The server may be in the middle of a reply, and read nothing until that is read.
                half_closed = half_closed || self.poll_half_close(cx)?.is_ready();
                if !has_read {
                    return Poll::Pending;
                }
            }
        });
        let ended: Result<Result<()>, _> = timeout(CLOSE_TIMEOUT, reading).await;
        let kind = if ended.is_ok() { ErrorKind::ConnectionClosed } else { ErrorKind::Timeout };
        Error::new(kind, "its wait was abandoned")
    }

    /// Sends what is left, and closes the sending half of the stream.
    fn poll_half_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        ready!(self.poll_send(cx))?;
        self.stream.poll_shutdown(cx)
    }

    /// Closes the connection: fails the requests in flight, and every later one.
    fn close(&mut self, reason: Error) {
        let reason = reason.on_server(&self.shared.context.server);
        tracing::debug!(server = %self.shared.context.server, %reason, "connection closed");
        // The first reason stands, and only the driver sets it.
        let _ = self.shared.close_reason.set(reason.clone());
        self.shared.advance(ConnState::Closed);
        *self.shared.occupancy() = Occupancy::InUse(None);
        let left = self.shared.requests().drain(self.stream.sent());
        for (request, unsent) in left {
            self.shared.fail(request, &reason, unsent);
        }
        self.shared.advance(ConnState::Finished);
        self.shared.closed.notify_waiters();
    }
}

/// The runtime may drop the driver at any await. Handles must then see the connection closed.
impl Drop for Driver {
    fn drop(&mut self) {
        if self.shared.close_reason.get().is_none() && self.shared.origin.is_here() {
            self.close(driver_stopped());
        }
    }
}

/// Returns the time at which a request that is answered now proves the server to have read.
///
/// If it waited in a wait queue for long, it proves that the server was alive when it replied, which was a
/// moment ago. A lease granted so is confirmed by a renewal before a caller relies on it.
fn proven(waits: bool, sent: Instant, now: Instant, keepalive: Duration) -> Instant {
    if waits && now > sent + keepalive { now } else { sent }
}

fn too_long(fault: LineTooLong) -> Error {
    Error::new(ErrorKind::Protocol, "reply too long").caused_by(fault)
}
