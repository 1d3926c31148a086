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
    /// What must not happen whatever the circumstances.
    pub(crate) faults: Vec<String>,
    /// All of it, for people, and to tell whether two runs were the same.
    pub(crate) log: Vec<String>,
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

    pub(crate) fn called(&self, client: usize, what: &'static str, limit: Duration) -> usize {
        let mut history = self.history();
        history.calls.push(Call { client, what, began: now(), limit, end: None });
        history.calls.len() - 1
    }

    pub(crate) fn ended(&self, call: usize, end: End) {
        let (client, what) = {
            let call = &mut self.history().calls[call];
            call.end = Some((now(), end.clone()));
            (call.client, call.what)
        };
        self.log(now(), format_args!("client {client} {what}: {end:?}"));
    }

    /// A client's host went down, and with it whatever was under way.
    pub(crate) fn crashed(&self, client: usize, at: Duration) {
        let mut history = self.history();
        let open = history.calls.iter_mut().filter(|call| call.client == client && call.end.is_none());
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
