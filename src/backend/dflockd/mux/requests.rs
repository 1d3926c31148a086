//! What was position of the server and is not answered yet, in order: a first part that was sent, and a
//! rest that waits for its replies. Knows of no stream.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::monitor::Rerouted;
use super::response::{Response, TrySendError};
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
const EXPIRY_INTERVAL: Duration = Duration::from_millis(10);

/// A request on its way, or sent and unanswered.
pub(super) struct InFlight {
    pub(super) request: Request,
    pub(super) responder: Responder,
    /// The instant before it was sent.
    pub(super) sent: Instant,
}

impl InFlight {
    /// Until when somebody waits for the answer, if anybody does.
    fn deadline(&self) -> Option<Instant> {
        match &self.responder {
            Responder::Caller { deadline, .. } => Some(deadline.at()),
            Responder::Release { completion, .. } => completion.as_ref()?.deadline(),
            Responder::None => None,
        }
    }

    /// Tells whoever waits that there is no answer in time. What is answered later is nobody's.
    fn time_out(&mut self) {
        match std::mem::replace(&mut self.responder, Responder::None) {
            Responder::Caller { sender, deadline } => {
                let failure = TrySendError { error: deadline.passed("reply"), request: None };
                // The responder may be gone.
                drop(sender.send(Err(failure)));
            }
            Responder::Release { mut completion, rerouted } => {
                completion.iter_mut().for_each(ReleaseCompletion::time_out);
                self.responder = Responder::Release { completion, rerouted };
            }
            Responder::None => {}
        }
    }

    /// Whether whoever position is gone.
    pub(super) fn is_cancelled(&self) -> bool {
        matches!(&self.responder, Responder::Caller { sender, .. } if sender.is_closed())
    }
}

/// Where a request begins that was not sent yet.
const UNSENT: u64 = u64::MAX;

/// Who hears of the reply.
pub(super) enum Responder {
    Caller {
        sender: oneshot::Sender<Result<Response, TrySendError>>,
        deadline: Deadline,
    },
    /// Nobody waits for a release, but somebody may want to know how it went.
    Release {
        completion: Option<ReleaseCompletion>,
        rerouted: Option<Rerouted>,
    },
    None,
}

/// The requests of one connection. Positions count the bytes of all requests that were ever sent.
pub(super) struct RequestQueue {
    /// Unanswered, in order, each with the position at which it begins, once it is sent.
    entries: VecDeque<(InFlight, u64)>,
    /// How many of them are sent, or about to be.
    owed: usize,
    /// The position at which those end.
    end: u64,
    last_pushed: Instant,
    /// When somebody who waits may have to be sent away: not later than this.
    next_deadline: Option<Instant>,
}

impl RequestQueue {
    pub(super) fn new(now: Instant) -> Self {
        Self { entries: VecDeque::new(), owed: 0, end: 0, last_pushed: now, next_deadline: None }
    }

    /// Takes a request. Answers whether it can be sent now, and is the first that can.
    pub(super) fn push(&mut self, request: InFlight) -> bool {
        self.next_deadline = self.next_deadline.into_iter().chain(request.deadline()).min();
        let is_first = self.entries.len() == self.owed && self.owed < MAX_OWED;
        self.last_pushed = request.sent;
        self.entries.push_back((request, UNSENT));
        is_first
    }

    /// The request that a reply answers: the oldest, if it was sent before the position `position`.
    pub(super) fn pop(&mut self, position: u64) -> Option<InFlight> {
        self.entries.front().filter(|(_, begin)| *begin < position)?;
        self.owed -= 1;
        self.entries.pop_front().map(|(request, _)| request)
    }

    /// Takes back the requests that wait to be sent.
    pub(super) fn cancel_unsent(&mut self) -> Vec<InFlight> {
        self.entries.split_off(self.owed).into_iter().map(|(request, _)| request).collect()
    }

    /// Appends what can be sent now to `sending`.
    pub(super) fn encode(&mut self, sending: &mut Vec<u8>) {
        let until = self.entries.len().min(MAX_OWED);
        for (request, begin) in self.entries.range_mut(self.owed..until) {
            let len = sending.len();
            request.request.encode(sending);
            *begin = self.end;
            self.end += (sending.len() - len) as u64;
        }
        self.owed = until;
    }

    /// Sends those away whose time is up.
    pub(super) fn expire_overdue(&mut self, now: Instant) {
        let mut next: Option<Instant> = None;
        for (request, _) in &mut self.entries {
            match request.deadline() {
                Some(until) if until <= now => request.time_out(),
                until => next = next.into_iter().chain(until).min(),
            }
        }
        // Not for each of many by itself.
        self.next_deadline = next.map(|next| next.max(now + EXPIRY_INTERVAL));
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.next_deadline
    }

    /// Forgets requests whose callers are gone, and with that which reply is whose.
    pub(super) fn drop_cancelled(&mut self) {
        self.entries.retain(|(request, begin)| {
            let is_cancelled = request.is_cancelled();
            self.owed -= usize::from(is_cancelled && *begin != UNSENT);
            !is_cancelled
        });
    }

    /// Hands over what has no reply, each with whether nothing of it was sent up to the position
    /// `sent`.
    pub(super) fn drain(&mut self, sent: u64) -> impl Iterator<Item = (InFlight, bool)> + use<> {
        std::mem::take(&mut self.entries).into_iter().map(move |(request, begin)| (request, begin >= sent))
    }

    /// How many requests have no reply.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The request that is answered next.
    pub(super) fn front(&self) -> Option<&Request> {
        self.entries.front().map(|(request, _)| &request.request)
    }

    /// The instant before the last request was made.
    pub(super) fn last_pushed(&self) -> Instant {
        self.last_pushed
    }
}
