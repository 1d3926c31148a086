//! Judges a history. Knows the rules, and nothing of how the history came to be.

use std::time::Duration;

use dflockd_client::ErrorKind;

use crate::history::{End, History, Hold};
use crate::plan::Plan;

/// What is wrong with a history.
pub(crate) fn violations(plan: &Plan, history: &History) -> Vec<String> {
    let mut found = history.faults.clone();
    found.extend(overstays(history));
    found.extend(too_many_holders(plan, history));
    found.extend(fences_out_of_order(plan, history));
    found.extend(calls_that_go_on(history));
    found.extend(wrong_ends(plan, history));
    if plan.calm {
        found.extend(lost_in_calm(history));
    }
    found
}

/// How many times the server had forgotten everything when it made this grant: overlaps count
/// within one memory only.
fn memory(history: &History, shard: usize, hold: &Hold) -> usize {
    history.boots.iter().filter(|boot| boot.shard == shard && boot.floor < hold.fence).count()
}

fn overstays(history: &History) -> Vec<String> {
    let holds = history.holds.iter().filter(|hold| hold.overstays.is_some());
    holds.map(|hold| format!("held past its deadline or its loss: {hold:?}")).collect()
}

fn too_many_holders(plan: &Plan, history: &History) -> Vec<String> {
    let mut found = Vec::new();
    for (index, key) in plan.keys.iter().enumerate() {
        let holds: Vec<_> = history.holds.iter().filter(|hold| hold.key == index).collect();
        for hold in holds.iter().filter(|hold| hold.until.is_some()) {
            let at = hold.from;
            let beside = holds.iter().filter(|other| {
                other.from <= at
                    && other.until.is_some_and(|until| at <= until)
                    && memory(history, key.shard, other) == memory(history, key.shard, hold)
            });
            let beside: Vec<_> = beside.collect();
            if beside.len() as u64 > key.slots() {
                found.push(format!(
                    "at {at:?} {} with {} slots is held by {}: {beside:?}",
                    key.name,
                    key.slots(),
                    beside.len()
                ));
            }
        }
    }
    found
}

/// A key that is asked for after another grant of the same server has arrived comes with a higher
/// fence; and no fence comes twice.
fn fences_out_of_order(plan: &Plan, history: &History) -> Vec<String> {
    let mut found = Vec::new();
    for shard in 0..plan.shards {
        let of_shard = |hold: &&Hold| plan.keys[hold.key].shard == shard;
        let holds: Vec<_> = history.holds.iter().filter(of_shard).collect();
        for (index, later) in holds.iter().enumerate() {
            for earlier in &holds[..index] {
                let in_order = earlier.fence < later.fence;
                if earlier.fence == later.fence || (earlier.from < later.asked && !in_order) {
                    found.push(format!("the fence does not grow from {earlier:?} to {later:?}"));
                }
            }
        }
    }
    found
}

fn calls_that_go_on(history: &History) -> Vec<String> {
    let overdue = |(began, limit): (Duration, Duration), end: &Option<(Duration, End)>| {
        end.as_ref().is_none_or(|(at, _)| *at > began + limit)
    };
    let calls = history.calls.iter().filter(|call| overdue((call.began, call.limit), &call.end));
    calls.map(|call| format!("it goes on and on: {call:?}")).collect()
}

/// Servers that keep to the protocol never cause some errors, and some only when things go wrong.
fn wrong_ends(plan: &Plan, history: &History) -> Vec<String> {
    let fine = |kind: ErrorKind| match kind {
        ErrorKind::Timeout => true,
        ErrorKind::MaxWaiters => plan.max_waiters > 0,
        ErrorKind::ConnectionClosed
        | ErrorKind::Draining
        | ErrorKind::Io
        | ErrorKind::LeaseExpired
        | ErrorKind::LeaseLost
        | ErrorKind::NotHeld
        // A server that has read nothing for long says `error`, and may say it to what was lost.
        | ErrorKind::Server => !plan.calm,
        _ => false,
    };
    let ends = history.calls.iter().filter_map(|call| match &call.end {
        Some((_, End::Failed(kind, text))) if !fine(*kind) => Some((call, text)),
        _ => None,
    });
    ends.map(|(call, text)| format!("must not come of it: {:?} of {call:?}", text)).collect()
}

fn lost_in_calm(history: &History) -> Vec<String> {
    let lost = history.holds.iter().filter(|hold| hold.lost.is_some());
    lost.map(|hold| format!("lost for no reason: {hold:?}")).collect()
}
