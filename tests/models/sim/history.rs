//! What happened in a schedule, as the clients saw it and by one clock. Judges nothing.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dflockd_client::{ErrorKind, Lease, LostReason};

#[derive(Debug, Default)]
pub(crate) struct History {
    /// Every server's starts, in order.
    pub(crate) boots: Vec<Boot>,
    pub(crate) holds: Vec<Hold>,
    pub(crate) calls: Vec<Call>,
    /// A host is going down: what its tasks do when they are dropped has no time.
    pub(crate) crashing: bool,
    /// What must not happen whatever the circumstances.
    pub(crate) faults: Vec<String>,
    /// All of it, for people, and to tell whether two runs were the same.
    pub(crate) log: Vec<String>,
}

impl History {
    /// What there was in it, by name.
    pub(crate) fn contents(&self) -> impl Iterator<Item = String> {
        let grants = self.holds.iter().map(|_| "granted".to_owned());
        let lost = self.holds.iter().filter_map(|hold| hold.lost).map(|reason| format!("lost: {reason:?}"));
        let ends = self.calls.iter().filter_map(|call| Some((call.what, &call.end.as_ref()?.1)));
        let ends = ends.map(|(what, end)| match end {
            End::Failed(kind, _) => format!("{what}: {kind:?}"),
            end => format!("{what}: {end:?}"),
        });
        grants.chain(lost).chain(ends)
    }
}

/// A server starts, and knows nothing but that fences up to `floor` may have been handed out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Boot {
    pub(crate) shard: usize,
    pub(crate) floor: u64,
}

/// What a client took for its own.
#[derive(Clone, Debug)]
pub(crate) struct Hold {
    pub(crate) client: usize,
    /// Its index in the plan.
    pub(crate) key: usize,
    pub(crate) fence: u64,
    /// When the key was asked for.
    pub(crate) asked: Duration,
    /// When the guard was there.
    pub(crate) from: Duration,
    /// When the guard last said that it was held, if it ever did.
    pub(crate) until: Option<Duration>,
    pub(crate) lost: Option<LostReason>,
    /// When it said so past its deadline, or after it was lost.
    pub(crate) overstays: Option<Duration>,
}

/// An operation of the client's.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) client: usize,
    pub(crate) what: &'static str,
    pub(crate) began: Duration,
    /// How long it may take.
    pub(crate) limit: Duration,
    pub(crate) end: Option<(Duration, End)>,
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Done,
    Failed(ErrorKind, String),
    /// The caller left.
    Dropped,
    /// The caller's host went down.
    Crashed,
}

/// Writes a history. Cheap to clone; clones write the same.
#[derive(Clone, Default)]
pub(crate) struct Recorder(Arc<Mutex<History>>);

/// The simulation's time, on a host of it.
pub(crate) fn now() -> Duration {
    turmoil::sim_elapsed().expect("this runs on a host of the simulation")
}

impl Recorder {
    pub(crate) fn history(&self) -> MutexGuard<'_, History> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn log(&self, at: Duration, line: impl fmt::Display) {
        self.history().log.push(format!("{:>9.3} {line}", at.as_secs_f64()));
    }

    /// Something that must never happen did.
    pub(crate) fn fault(&self, fault: impl Into<String>) {
        let fault = fault.into();
        self.log(now(), format_args!("FAULT {fault}"));
        self.history().faults.push(fault);
    }

    pub(crate) fn booted(&self, shard: usize, floor: u64) {
        self.log(now(), format_args!("shard {shard} starts above fence {floor}"));
        self.history().boots.push(Boot { shard, floor });
    }

    pub(crate) fn called(&self, client: usize, what: &'static str, limit: Duration) -> Calling {
        let mut history = self.history();
        history.calls.push(Call { client, what, began: now(), limit, end: None });
        Calling { record: self.clone(), call: history.calls.len() - 1, end: End::Dropped }
    }

    /// A host goes down.
    pub(crate) fn crashing(&self) {
        self.history().crashing = true;
    }

    /// A host went down, and with it whatever a client had under way.
    pub(crate) fn crashed(&self, client: Option<usize>, at: Duration) {
        let mut history = self.history();
        history.crashing = false;
        let open = history.calls.iter_mut().filter(|call| Some(call.client) == client && call.end.is_none());
        open.for_each(|call| call.end = Some((at, End::Crashed)));
    }

    pub(crate) fn granted(&self, hold: Hold) -> usize {
        let Hold { client, key, fence, .. } = hold;
        self.log(now(), format_args!("client {client} has key-{key} with fence {fence}"));
        let mut history = self.history();
        history.holds.push(hold);
        history.holds.len() - 1
    }

    /// Asks a lease whether it is held.
    pub(crate) fn look(&self, hold: usize, lease: &Lease) -> bool {
        let (held, now) = (lease.is_held(), now());
        let past_deadline = lease.deadline() <= tokio::time::Instant::now();
        let mut history = self.history();
        let hold = &mut history.holds[hold];
        if held {
            hold.until = Some(now);
            if past_deadline || hold.lost.is_some() {
                hold.overstays.get_or_insert(now);
            }
        } else if let (None, Some(reason)) = (hold.lost, lease.state().lost()) {
            hold.lost = Some(reason);
            let Hold { client, key, fence, .. } = *hold;
            drop(history);
            self.log(now, format_args!("client {client} lost key-{key} with fence {fence}: {reason}"));
        }
        held
    }
}

/// A call that is under way.
pub(crate) struct Calling {
    record: Recorder,
    call: usize,
    end: End,
}

impl Calling {
    pub(crate) fn ended(mut self, end: End) {
        self.end = end;
    }
}

/// Dropped without an end, its caller has left.
impl Drop for Calling {
    fn drop(&mut self) {
        let mut history = self.record.history();
        if history.crashing {
            return;
        }
        let call = &mut history.calls[self.call];
        call.end = Some((now(), self.end.clone()));
        let line = format!("client {} {}: {:?}", call.client, call.what, self.end);
        drop(history);
        self.record.log(now(), line);
    }
}
