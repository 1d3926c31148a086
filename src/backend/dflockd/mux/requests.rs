//! The requests of one connection that have no reply yet, in order: first those sent, then those still to be
//! sent.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::response::{Rerouted, Response, TrySendError};
use crate::backend::Deadline;
use crate::lease::ReleaseCompletion;
use crate::proto::Request;

/// The maximum number of replies that a server may owe at a time.
///
/// If a server cannot write a reply for its write timeout (5 s), it closes the connection, and frees what the
/// connection held. So all owed replies fit into the send buffer of the server's system, even if this side
/// reads nothing: no write of the server's ever waits for this side. The smallest initial send buffer of a
/// common system has 16 KiB. A grant, the longest reply, has 47 bytes, and 76 as a TLS record of its own.
pub(super) const MAX_OWED: usize = 212;
const _: () = assert!(MAX_OWED * 76 < 16 * 1024);

/// The shortest interval between two checks for expired deadlines.
const EXPIRY_INTERVAL: Duration = Duration::from_millis(10);

/// A request that is queued, or sent and unanswered.
pub(super) struct InFlight {
    pub(super) request: Request,
    pub(super) responder: Responder,
    /// The instant before it was queued.
    pub(super) sent: Instant,
}

impl InFlight {
    /// Returns the deadline of the caller that waits for the reply; `None` if there is none.
    fn deadline(&self) -> Option<Instant> {
        match &self.responder {
            Responder::Caller { deadline, .. } => Some(deadline.at()),
            Responder::Release { completion, .. } => completion.as_ref()?.deadline(),
            Responder::None => None,
        }
    }

    /// Fails the caller, since its deadline has passed. Its responder is then gone, and a later reply is
    /// released or dropped.
    fn time_out(&mut self) {
        match std::mem::replace(&mut self.responder, Responder::None) {
            Responder::Caller { sender, deadline } => {
                let failure = TrySendError { error: deadline.passed("reply"), request: None };
                // The caller may have dropped its future.
                drop(sender.send(Err(failure)));
            }
            Responder::Release { mut completion, rerouted } => {
                completion.iter_mut().for_each(ReleaseCompletion::time_out);
                self.responder = Responder::Release { completion, rerouted };
            }
            Responder::None => {}
        }
    }

    /// Returns `true` if the caller is gone.
    pub(super) fn is_cancelled(&self) -> bool {
        matches!(&self.responder, Responder::Caller { sender, .. } if sender.is_closed())
    }
}

/// The position of a request that was not sent yet.
const UNSENT: u64 = u64::MAX;

/// The party that waits for the reply.
pub(super) enum Responder {
    Caller {
        sender: oneshot::Sender<Result<Response, TrySendError>>,
        deadline: Deadline,
    },
    /// No caller waits for the release itself, but one may wait for its completion.
    Release {
        completion: Option<ReleaseCompletion>,
        rerouted: Option<Rerouted>,
    },
    None,
}

/// The requests of one connection. Positions count the bytes of all requests ever sent.
pub(super) struct RequestQueue {
    /// The unanswered requests in order, each with the position at which it begins.
    entries: VecDeque<(InFlight, u64)>,
    /// The number of them that are sent, or encoded to be sent.
    owed: usize,
    /// The position at which those end.
    end: u64,
    last_pushed: Instant,
    /// The earliest deadline of a caller, or a time before it.
    next_deadline: Option<Instant>,
}

impl RequestQueue {
    pub(super) fn new(now: Instant) -> Self {
        Self { entries: VecDeque::new(), owed: 0, end: 0, last_pushed: now, next_deadline: None }
    }

    /// Takes a request. Returns `true` if it can be sent now and the request before it is sent already.
    pub(super) fn push(&mut self, request: InFlight) -> bool {
        self.next_deadline = self.next_deadline.into_iter().chain(request.deadline()).min();
        let is_first = self.entries.len() == self.owed && self.owed < MAX_OWED;
        self.last_pushed = request.sent;
        self.entries.push_back((request, UNSENT));
        is_first
    }

    /// Removes the request that a reply answers: the oldest, if it begins before `position`.
    pub(super) fn pop(&mut self, position: u64) -> Option<InFlight> {
        self.entries.front().filter(|(_, begin)| *begin < position)?;
        self.owed -= 1;
        self.entries.pop_front().map(|(request, _)| request)
    }

    /// Removes the requests that are not sent.
    pub(super) fn cancel_unsent(&mut self) -> Vec<InFlight> {
        self.entries.split_off(self.owed).into_iter().map(|(request, _)| request).collect()
    }

    /// Appends to `sending` what can be sent now.
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

    /// Fails the callers whose deadlines have passed.
    pub(super) fn expire_overdue(&mut self, now: Instant) {
        let mut next: Option<Instant> = None;
        for (request, _) in &mut self.entries {
            match request.deadline() {
                Some(until) if until <= now => request.time_out(),
                until => next = next.into_iter().chain(until).min(),
            }
        }
        // One check serves many deadlines.
        self.next_deadline = next.map(|next| next.max(now + EXPIRY_INTERVAL));
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.next_deadline
    }

    /// Drops requests whose callers are gone. Replies then no longer match requests.
    pub(super) fn drop_cancelled(&mut self) {
        self.entries.retain(|(request, begin)| {
            let is_cancelled = request.is_cancelled();
            self.owed -= usize::from(is_cancelled && *begin != UNSENT);
            !is_cancelled
        });
    }

    /// Removes all requests, each with `true` if none of its bytes is among the first `sent`.
    pub(super) fn drain(&mut self, sent: u64) -> impl Iterator<Item = (InFlight, bool)> + use<> {
        std::mem::take(&mut self.entries).into_iter().map(move |(request, begin)| (request, begin >= sent))
    }

    /// Returns how many requests have no reply.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns the request that is answered next.
    pub(super) fn front(&self) -> Option<&Request> {
        self.entries.front().map(|(request, _)| &request.request)
    }

    /// Returns the instant before the last request was queued.
    pub(super) fn last_pushed(&self) -> Instant {
        self.last_pushed
    }
}
