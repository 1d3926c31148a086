//! The real client and the real server on a simulated network: hosts that crash and come back,
//! links that lose, hold or delay what is sent, servers that drain, callers that change their mind.
//! Everything that happens follows from a seed. A checker goes over what the clients saw, and is
//! itself checked: with a rule of the client's broken, it must find fault.
//!
//! - `SIM_SEED=n` replays one seed and prints its history.
//! - `SIM_SEEDS=a..b` runs other seeds than usual.
//! - `SIM_BREAK=Deadline` (or other rules, joined by `+`) breaks a rule in all of them; `SIM_SHOWS=text`
//!   then lets only violations count that contain the text.

mod checker;
mod history;
mod network;
mod plan;
mod workload;
mod world;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use dflockd_client::failpoints::{self, Rule};
use history::History;
use plan::Plan;

/// How many schedules are run by default.
const SCHEDULES: u64 = 2_000;
/// Among how many a broken rule has to show.
const SHOWN_AMONG: u64 = 400;
/// What the schedules must lead to among them, or they show little.
const EVENTS: &[&str] = &[
    "acquire: Draining",
    "acquire: LeaseExpired",
    "acquire: MaxWaiters",
    "acquire: Crashed",
    "enqueue: Dropped",
    "lost: ConnectionClosed",
    "lost: DeadlinePassed",
    "lost: RenewalRejected",
    "lost: ServerDraining",
    "lost: KeepaliveTimeout",
    "release: Dropped",
    "renew: Dropped",
    "stats: Dropped",
    "try: Dropped",
    "wait: Done",
    "wait: Dropped",
    "wait: LeaseExpired",
];
/// How many schedules are run twice.
const REPLAYED: u64 = 40;

#[test]
fn whatever_the_schedule_leases_keep_what_they_promise() {
    break_rules();
    count_panics();
    let ((seeds, verbose), shows) = (seeds(), std::env::var("SIM_SHOWS").unwrap_or_default());
    let (next, failed) = (AtomicU64::new(seeds.start), AtomicBool::new(false));
    let contents = Mutex::new(BTreeMap::new());
    let work = || {
        while !failed.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            let (history, mut found) = run(seed, verbose);
            found.retain(|violation| violation.contains(&shows));
            if !found.is_empty() && !failed.swap(true, Ordering::Relaxed) {
                println!("seed {seed} fails; SIM_SEED={seed} replays it");
                found.iter().for_each(|violation| println!("  violation: {violation}"));
            }
            let mut contents = contents.lock().expect("nothing panics while it counts");
            history.contents().for_each(|name| *contents.entry(name).or_insert(0) += 1);
        }
    };
    let threads = thread::available_parallelism().map_or(2, usize::from);
    thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    assert!(!failed.load(Ordering::Relaxed), "a schedule fails, see above");
    let contents = contents.into_inner().expect("nothing panics while it counts");
    println!("{contents:#?}");
    if seeds == (0..SCHEDULES) {
        let missing: Vec<_> = EVENTS.iter().filter(|event| !contents.contains_key(**event)).collect();
        assert!(missing.is_empty(), "no schedule leads to {missing:?}");
    }
}

#[test]
fn a_seed_replays_exactly() {
    for seed in 0..REPLAYED {
        let [first, second] = [(); 2].map(|()| {
            let run = thread::spawn(move || world::run(&Arc::new(Plan::new(seed))).log);
            run.join().expect("a schedule does not panic")
        });
        let differs = first.iter().zip(&second).find(|(first, second)| first != second);
        assert_eq!(differs, None, "seed {seed}");
        assert_eq!(first.len(), second.len(), "seed {seed}");
    }
}

#[test]
fn the_checker_sees_leases_that_outlive_their_deadline() {
    assert_shows(&[Rule::Deadline], "held by 2");
}

#[test]
fn the_checker_sees_grants_that_nobody_releases() {
    assert_shows(&[Rule::ReleaseUnclaimed], "was not handed on");
}

#[test]
fn the_checker_sees_replies_that_are_read_as_anothers() {
    assert_shows(&[Rule::ReplyOrder], "must not come of it");
}

/// A server that frees at once what a connection held that takes no more replies, and a client that asks for
/// a long one over the connection of its leases.
#[test]
fn the_checker_sees_leases_that_a_long_reply_ends() {
    assert_shows(&[Rule::GivenUp, Rule::StatsApart], "held by 2");
}

/// Each side is right by itself: this client with such a server, and this server with such a client.
#[test]
fn a_long_reply_ends_no_lease_where_one_side_sees_to_it() {
    for rule in [Rule::GivenUp, Rule::StatsApart] {
        let child = with_broken(&[rule], SHOWN_AMONG / 2).output().expect("a test can be run again");
        assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
    }
}

/// What comes of a seed, and what is wrong with that.
fn run(seed: u64, verbose: bool) -> (History, Vec<String>) {
    let plan = Arc::new(Plan::new(seed));
    PANICS.set(0);
    let Ok(history) = std::panic::catch_unwind(|| world::run(&plan)) else {
        return (History::default(), vec!["the simulation itself panicked".to_owned()]);
    };
    if verbose {
        println!("{plan:#?}");
        history.log.iter().for_each(|line| println!("{line}"));
    }
    let mut found = checker::violations(&plan, &history);
    if PANICS.get() > 0 {
        found.push("a task panicked".to_owned());
    }
    (history, found)
}

thread_local! {
    /// How often a task of this thread's schedule has panicked: the runtime hides that.
    static PANICS: Cell<u32> = const { Cell::new(0) };
}

fn count_panics() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        PANICS.set(PANICS.get() + 1);
        report(info);
    }));
}

/// Fails unless a schedule shows that these rules are broken.
fn assert_shows(rules: &[Rule], violation: &str) {
    let child = with_broken(rules, SHOWN_AMONG).env("SIM_SHOWS", violation).output();
    let child = child.expect("a test can be run again");
    let said = String::from_utf8_lossy(&child.stdout);
    println!("{said}");
    assert!(!child.status.success(), "nothing shows that {rules:?} are broken");
    assert!(said.contains("  violation: "), "it fails for another reason");
}

/// The schedules in a process of their own, since a rule is broken for a whole process.
fn with_broken(rules: &[Rule], seeds: u64) -> Command {
    let names: Vec<_> = rules.iter().map(|rule| format!("{rule:?}")).collect();
    let mut child = Command::new(std::env::current_exe().expect("a test has a path"));
    child
        .args(["--exact", "sim::whatever_the_schedule_leases_keep_what_they_promise", "--nocapture"])
        .env("SIM_BREAK", names.join("+"))
        .env("SIM_SEEDS", format!("0..{seeds}"))
        .env_remove("SIM_SEED");
    child
}

/// Which seeds to run, and whether to tell all about them.
fn seeds() -> (Range<u64>, bool) {
    let number = |text: &str| text.parse::<u64>().expect("a seed is a number");
    if let Ok(seed) = std::env::var("SIM_SEED") {
        return (number(&seed)..number(&seed) + 1, true);
    }
    match std::env::var("SIM_SEEDS") {
        Ok(seeds) => {
            let (from, to) = seeds.split_once("..").expect("seeds are given as a..b");
            (number(from)..number(to), false)
        }
        Err(_) => (0..SCHEDULES, false),
    }
}

fn break_rules() {
    let Ok(rules) = std::env::var("SIM_BREAK") else { return };
    let known = [Rule::Deadline, Rule::ReleaseUnclaimed, Rule::ReplyOrder, Rule::GivenUp, Rule::StatsApart];
    let named = |name: &str| known.into_iter().find(|rule| format!("{rule:?}") == name);
    failpoints::break_only(rules.split('+').map(|name| named(name).expect("SIM_BREAK names rules")));
}
