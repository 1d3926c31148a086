//! What was asked of the server and is not answered yet, in order, with the bytes of it that have
//! yet to be sent. Knows of no stream.

use std::collections::VecDeque;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Answer, Failure};
use crate::lease::Done;
use crate::proto::Request;

/// A request on its way, or sent and unanswered.
pub(super) struct Call {
    pub(super) request: Request,
    pub(super) caller: Caller,
    /// The instant before it was sent.
    pub(super) sent: Instant,
}

impl Call {
    /// The release that somebody waits for, and until when.
    fn awaited(&mut self) -> Option<(&mut Done, Instant)> {
        let Caller::Releases { done: Some(done), .. } = &mut self.caller else { return None };
        done.until().map(|until| (done, until))
    }

    /// Whether whoever asked is gone.
    pub(super) fn is_deserted(&self) -> bool {
        matches!(&self.caller, Caller::Waits(caller) if caller.is_closed())
    }
}

/// Who hears of the reply.
pub(super) enum Caller {
    Waits(oneshot::Sender<Result<Answer, Failure>>),
    /// Nobody waits for a release, but somebody may want to know how it went.
    Releases {
        done: Option<Done>,
        rescued: bool,
    },
    Nobody,
}

/// The requests of one connection. Positions count the bytes of all requests that it ever had.
pub(super) struct Outbox {
    /// Unanswered, in order, each with the position at which it begins.
    calls: VecDeque<(Call, u64)>,
    bytes: Vec<u8>,
    /// The position at which `bytes` ends.
    end: u64,
    last_call: Instant,
    /// When somebody who waits for a release may have to be sent away: not later than this.
    late_at: Option<Instant>,
}

impl Outbox {
    pub(super) fn new(now: Instant) -> Self {
        Self { calls: VecDeque::new(), bytes: Vec::new(), end: 0, last_call: now, late_at: None }
    }

    /// Takes a request. Answers whether its bytes are the first that wait to be sent.
    pub(super) fn push(&mut self, mut call: Call) -> bool {
        let until = call.awaited().map(|(_, until)| until);
        self.late_at = self.late_at.into_iter().chain(until).min();
        let (begin, is_first) = (self.bytes.len(), self.bytes.is_empty());
        call.request.encode(&mut self.bytes);
        self.last_call = call.sent;
        self.calls.push_back((call, self.end));
        self.end += (self.bytes.len() - begin) as u64;
        is_first
    }

    /// The request that a reply answers: the oldest, if it was sent before the position `asked`.
    pub(super) fn pop(&mut self, asked: u64) -> Option<Call> {
        let was_sent = self.calls.front().is_some_and(|(_, begin)| *begin < asked);
        if was_sent { self.calls.pop_front().map(|(call, _)| call) } else { None }
    }

    /// Takes back the requests that wait to be sent.
    pub(super) fn retract(&mut self) -> Vec<Call> {
        self.end -= self.bytes.len() as u64;
        self.bytes.clear();
        let sent = self.calls.iter().take_while(|(_, begin)| *begin < self.end).count();
        self.calls.split_off(sent).into_iter().map(|(call, _)| call).collect()
    }

    /// Moves what waits to be sent to `sending`, which is empty.
    pub(super) fn take_bytes(&mut self, sending: &mut Vec<u8>) {
        std::mem::swap(&mut self.bytes, sending);
    }

    /// Sends those away who wait for a release and whose time is up.
    pub(super) fn give_up_late(&mut self, now: Instant) {
        let still_waits = |(call, _): &mut (Call, u64)| {
            let (done, until) = call.awaited()?;
            if until <= now {
                done.give_up();
                return None;
            }
            Some(until)
        };
        self.late_at = self.calls.iter_mut().filter_map(still_waits).min();
    }

    pub(super) fn late_at(&self) -> Option<Instant> {
        self.late_at
    }

    /// Forgets requests whose callers are gone, and with that which reply is whose.
    pub(super) fn forget_deserted(&mut self) {
        self.calls.retain(|(call, _)| !call.is_deserted());
    }

    /// Hands over what has no reply, each with whether nothing of it was sent up to the position
    /// `sent`.
    pub(super) fn end(&mut self, sent: u64) -> impl Iterator<Item = (Call, bool)> + use<> {
        std::mem::take(&mut self.calls).into_iter().map(move |(call, begin)| (call, begin >= sent))
    }

    /// How many requests have no reply.
    pub(super) fn len(&self) -> usize {
        self.calls.len()
    }

    /// The request that is answered next.
    pub(super) fn front(&self) -> Option<&Request> {
        self.calls.front().map(|(call, _)| &call.request)
    }

    /// The instant before the last request was made.
    pub(super) fn last_call(&self) -> Instant {
        self.last_call
    }
}
