//! What was asked of the server and is not answered yet, in order: a first part that was sent, and a
//! rest that waits for its replies. Knows of no stream.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Answer, Failure, Rescue};
use crate::backend::Deadline;
use crate::lease::ReleaseCompletion;
use crate::proto::Request;

/// How many replies a server may owe at a time.
///
/// A server that cannot get rid of a reply gives the connection up after its write timeout (5 s), and
/// frees what it held. So all that are owed fit into the send buffer of the server's system, even
/// where nothing is read here: no write of the server's ever waits for this side. The smallest one
/// that a common system begins with has 16 KiB. A grant, the longest reply, has 47 bytes, and 76 as a
/// TLS record of its own.
pub(super) const MAX_OWED: usize = 212;
const _: () = assert!(MAX_OWED * 76 < 16 * 1024);

/// How often those whose time is up are looked for, at the most.
const LATE_STEP: Duration = Duration::from_millis(10);

/// A request on its way, or sent and unanswered.
pub(super) struct Call {
    pub(super) request: Request,
    pub(super) caller: Caller,
    /// The instant before it was sent.
    pub(super) sent: Instant,
}

impl Call {
    /// Until when somebody waits for the answer, if anybody does.
    fn until(&self) -> Option<Instant> {
        match &self.caller {
            Caller::Waits { deadline, .. } => Some(deadline.at()),
            Caller::Releases { done, .. } => done.as_ref()?.deadline(),
            Caller::Nobody => None,
        }
    }

    /// Tells whoever waits that there is no answer in time. What is answered later is nobody's.
    fn give_up(&mut self) {
        match std::mem::replace(&mut self.caller, Caller::Nobody) {
            Caller::Waits { tell, deadline } => {
                let failure = Failure { error: deadline.passed("reply"), unsent: None };
                // The caller may be gone.
                drop(tell.send(Err(failure)));
            }
            Caller::Releases { mut done, rescue } => {
                done.iter_mut().for_each(ReleaseCompletion::time_out);
                self.caller = Caller::Releases { done, rescue };
            }
            Caller::Nobody => {}
        }
    }

    /// Whether whoever asked is gone.
    pub(super) fn is_deserted(&self) -> bool {
        matches!(&self.caller, Caller::Waits { tell, .. } if tell.is_closed())
    }
}

/// Where a request begins that was not sent yet.
const UNSENT: u64 = u64::MAX;

/// Who hears of the reply.
pub(super) enum Caller {
    Waits {
        tell: oneshot::Sender<Result<Answer, Failure>>,
        deadline: Deadline,
    },
    /// Nobody waits for a release, but somebody may want to know how it went.
    Releases {
        done: Option<ReleaseCompletion>,
        rescue: Option<Rescue>,
    },
    Nobody,
}

/// The requests of one connection. Positions count the bytes of all requests that were ever sent.
pub(super) struct Outbox {
    /// Unanswered, in order, each with the position at which it begins, once it is sent.
    calls: VecDeque<(Call, u64)>,
    /// How many of them are sent, or about to be.
    owed: usize,
    /// The position at which those end.
    end: u64,
    last_call: Instant,
    /// When somebody who waits may have to be sent away: not later than this.
    late_at: Option<Instant>,
}

impl Outbox {
    pub(super) fn new(now: Instant) -> Self {
        Self { calls: VecDeque::new(), owed: 0, end: 0, last_call: now, late_at: None }
    }

    /// Takes a request. Answers whether it can be sent now, and is the first that can.
    pub(super) fn push(&mut self, call: Call) -> bool {
        self.late_at = self.late_at.into_iter().chain(call.until()).min();
        let is_first = self.calls.len() == self.owed && self.owed < MAX_OWED;
        self.last_call = call.sent;
        self.calls.push_back((call, UNSENT));
        is_first
    }

    /// The request that a reply answers: the oldest, if it was sent before the position `asked`.
    pub(super) fn pop(&mut self, asked: u64) -> Option<Call> {
        self.calls.front().filter(|(_, begin)| *begin < asked)?;
        self.owed -= 1;
        self.calls.pop_front().map(|(call, _)| call)
    }

    /// Takes back the requests that wait to be sent.
    pub(super) fn retract(&mut self) -> Vec<Call> {
        self.calls.split_off(self.owed).into_iter().map(|(call, _)| call).collect()
    }

    /// Appends what can be sent now to `sending`.
    pub(super) fn encode(&mut self, sending: &mut Vec<u8>) {
        let until = self.calls.len().min(MAX_OWED);
        for (call, begin) in self.calls.range_mut(self.owed..until) {
            let len = sending.len();
            call.request.encode(sending);
            *begin = self.end;
            self.end += (sending.len() - len) as u64;
        }
        self.owed = until;
    }

    /// Sends those away whose time is up.
    pub(super) fn give_up_late(&mut self, now: Instant) {
        let mut next: Option<Instant> = None;
        for (call, _) in &mut self.calls {
            match call.until() {
                Some(until) if until <= now => call.give_up(),
                until => next = next.into_iter().chain(until).min(),
            }
        }
        // Not for each of many by itself.
        self.late_at = next.map(|next| next.max(now + LATE_STEP));
    }

    pub(super) fn late_at(&self) -> Option<Instant> {
        self.late_at
    }

    /// Forgets requests whose callers are gone, and with that which reply is whose.
    pub(super) fn forget_deserted(&mut self) {
        self.calls.retain(|(call, begin)| {
            let is_deserted = call.is_deserted();
            self.owed -= usize::from(is_deserted && *begin != UNSENT);
            !is_deserted
        });
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
