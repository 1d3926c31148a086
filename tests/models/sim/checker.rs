//! Judges a history. Knows the rules, and nothing of how the history came to be.

use std::time::Duration;

use dflockd_client::ErrorKind;

use crate::sim::history::{End, History, Hold};
use crate::sim::plan::{Plan, Weather};

/// What is wrong with a history.
pub(crate) fn violations(plan: &Plan, history: &History) -> Vec<String> {
    let mut found = history.faults.clone();
    found.extend(lost_from_the_start(history));
    found.extend(overstays(history));
    found.extend(too_many_holders(plan, history));
    found.extend(fences_out_of_order(plan, history));
    found.extend(calls_that_go_on(history));
    found.extend(wrong_ends(plan, history));
    if plan.weather != Weather::Storm {
        found.extend(lost_for_no_reason(plan, history));
    }
    found
}

/// How many times the server had forgotten everything when it made this grant: overlaps count
/// within one memory only.
fn memory(history: &History, shard: usize, hold: &Hold) -> usize {
    history.boots.iter().filter(|boot| boot.shard == shard && boot.floor < hold.fence).count()
}

fn lost_from_the_start(history: &History) -> Vec<String> {
    let holds = history.holds.iter().filter(|hold| hold.until.is_none());
    holds.map(|hold| format!("handed out when it was lost: {hold:?}")).collect()
}

fn overstays(history: &History) -> Vec<String> {
    let holds = history.holds.iter().filter(|hold| hold.overstays.is_some());
    holds.map(|hold| format!("held past its deadline or its loss: {hold:?}")).collect()
}

fn too_many_holders(plan: &Plan, history: &History) -> Vec<String> {
    let mut found = Vec::new();
    for (index, key) in plan.keys.iter().enumerate() {
        let holds: Vec<_> = history.holds.iter().filter(|hold| hold.key == index).collect();
        for hold in &holds {
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
        ErrorKind::Busy | ErrorKind::Timeout => true,
        ErrorKind::MaxWaiters => plan.max_waiters > 0,
        ErrorKind::ConnectionClosed
        | ErrorKind::Draining
        | ErrorKind::Io
        | ErrorKind::LeaseExpired
        | ErrorKind::LeaseLost
        | ErrorKind::NotHeld
        // A server that has read nothing for long says `error`, and may say it to what was lost.
        | ErrorKind::Server => !plan.is_calm(),
        _ => false,
    };
    let ends = history.calls.iter().filter_map(|call| match &call.end {
        Some((_, End::Failed(kind, text))) if !fine(*kind) => Some((call, text)),
        _ => None,
    });
    ends.map(|(call, text)| format!("must not come of it: {:?} of {call:?}", text)).collect()
}

fn lost_for_no_reason(plan: &Plan, history: &History) -> Vec<String> {
    let lost = history.holds.iter().filter(|hold| hold.lost.is_some());
    let lost = lost.filter(|hold| !plan.is_near_stall(hold.client, hold.from));
    lost.map(|hold| format!("lost for no reason: {hold:?}")).collect()
}

mod tests {
    use dflockd_client::LostReason;

    use super::*;
    use crate::sim::history::{Boot, Call};
    use crate::sim::plan::{Key, S};

    /// A lock and a semaphore of two on one server.
    fn plan(calm: bool) -> Plan {
        let key = |name: &str, limit| Key { name: name.to_owned(), limit, shard: 0 };
        let keys = vec![key("lock", None), key("semaphore", Some(2))];
        let weather = if calm { Weather::Calm } else { Weather::Storm };
        Plan { weather, shards: 1, keys, max_waiters: 0, ..Plan::new(0) }
    }

    /// Somebody has a key from one second to another.
    fn hold(key: usize, fence: u64, from: u32, until: u32) -> Hold {
        let (asked, from, until) = (S * from, S * from, Some(S * until));
        Hold { client: 0, key, fence, asked, from, until, lost: None, overstays: None }
    }

    fn held(holds: impl IntoIterator<Item = Hold>) -> History {
        let boots = vec![Boot { shard: 0, floor: 0 }];
        History { boots, holds: holds.into_iter().collect(), ..History::default() }
    }

    fn called(end: Option<(u32, End)>) -> History {
        let end = end.map(|(at, end)| (S * at, end));
        let call = Call { client: 0, what: "acquire", began: S, limit: 5 * S, end };
        History { calls: vec![call], ..History::default() }
    }

    #[track_caller]
    fn assert_finds(history: &History, what: &str) {
        let found = violations(&plan(true), history);
        assert!(found.len() == 1 && found[0].contains(what), "{found:?}");
    }

    #[test]
    fn holders_after_one_another_and_as_many_as_there_are_slots_are_fine() {
        let holds = [hold(0, 1, 1, 3), hold(0, 2, 4, 5), hold(1, 3, 1, 9), hold(1, 4, 1, 9)];
        assert_eq!(violations(&plan(true), &held(holds)), [""; 0]);
    }

    #[test]
    fn one_holder_too_many_is_found() {
        assert_finds(&held([hold(0, 1, 1, 3), hold(0, 2, 3, 5)]), "held by 2");
        assert_finds(&held([hold(1, 1, 1, 9), hold(1, 2, 2, 9), hold(1, 3, 4, 5)]), "held by 3");
    }

    #[test]
    fn a_holder_from_before_the_server_forgot_is_another_matter() {
        let mut history = held([hold(0, 1, 1, 9), hold(0, 8, 4, 5)]);
        history.boots.push(Boot { shard: 0, floor: 7 });
        assert_eq!(violations(&plan(true), &history), [""; 0]);
    }

    #[test]
    fn a_guard_that_is_lost_from_the_start_is_found() {
        assert_finds(&held([Hold { until: None, ..hold(0, 2, 2, 2) }]), "handed out when it was lost");
    }

    #[test]
    fn fences_that_fall_or_repeat_are_found() {
        assert_finds(&held([hold(0, 2, 1, 3), hold(0, 1, 4, 5)]), "does not grow");
        assert_finds(&held([hold(0, 2, 1, 3), hold(1, 2, 4, 5)]), "does not grow");
        let at_a_time = Hold { asked: S, ..hold(1, 1, 2, 3) };
        assert_eq!(violations(&plan(true), &held([hold(0, 2, 2, 3), at_a_time])), [""; 0]);
    }

    #[test]
    fn whoever_overstays_is_found() {
        assert_finds(&held([Hold { overstays: Some(2 * S), ..hold(0, 1, 1, 3) }]), "past its deadline");
    }

    #[test]
    fn calls_that_end_late_or_never_are_found() {
        assert_eq!(violations(&plan(true), &called(Some((6, End::Done)))), [""; 0]);
        assert_finds(&called(Some((7, End::Done))), "goes on");
        assert_finds(&called(None), "goes on");
    }

    #[test]
    fn errors_that_nothing_explains_are_found() {
        let failed = |kind| called(Some((2, End::Failed(kind, String::new()))));
        assert_finds(&failed(ErrorKind::Protocol), "must not come of it");
        assert_finds(&failed(ErrorKind::MaxWaiters), "must not come of it");
        assert_finds(&failed(ErrorKind::ConnectionClosed), "must not come of it");
        assert_eq!(violations(&plan(false), &failed(ErrorKind::ConnectionClosed)), [""; 0]);
        assert_eq!(violations(&plan(true), &failed(ErrorKind::Timeout)), [""; 0]);
    }

    #[test]
    fn a_loss_in_the_calm_is_found() {
        let lost = held([Hold { lost: Some(LostReason::DeadlinePassed), ..hold(0, 1, 1, 3) }]);
        assert_finds(&lost, "for no reason");
        assert_eq!(violations(&plan(false), &lost), [""; 0]);
    }
}
