//! Locks between processes: broken by many at once, left by the dead, kept by the late.

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, SystemTime};

use dflockd_client::{ErrorKind, LockState};

use crate::support::{Place, Process};

#[test]
fn twenty_processes_that_break_two_hundred_locks_are_never_inside_together() {
    const PROCESSES: usize = 20;
    const ROUNDS: usize = 200;
    let place = Place::new();
    let mut processes: Vec<_> = (0..PROCESSES).map(|_| Process::start("take turns", place.dir())).collect();
    for round in 0..ROUNDS {
        let name = format!("{round}.lck");
        place.abandoned(&name);
        processes.iter_mut().for_each(|process| process.tell(&name));
        for process in &mut processes {
            assert_eq!(process.hear(), "done");
        }
    }
    let log = fs::read_to_string(place.dir().join("log")).unwrap();
    assert_eq!(turns(&log), PROCESSES * ROUNDS);
    assert_eq!(place.files(), ["log"], "every claim and challenge is gone");
}

/// Counts how many times a holder came and went; panics if one came before another had gone.
fn turns(log: &str) -> usize {
    let mut inside = HashMap::new();
    let mut turns = 0;
    for line in log.lines() {
        let words: Vec<_> = line.split(' ').collect();
        let [name, what, pid] = words[..] else { panic!("{line:?} is torn") };
        if what == "enter" {
            assert_eq!(inside.insert(name, pid), None, "two at once in {name}");
        } else {
            assert_eq!(inside.remove(name), Some(pid), "{name} was left by another");
            turns += 1;
        }
    }
    assert!(inside.is_empty());
    turns
}

#[test]
fn the_lock_of_a_killed_holder_is_had_after_its_lifetime_and_the_slop_and_no_sooner() {
    let place = Place::new();
    let mut holder = Process::start("hold", &place.path());
    assert_eq!(holder.hear(), "held");
    let slop = Duration::from_secs(1);
    let lock = place.builder().slop(slop).build().unwrap();
    assert_eq!(lock.details().unwrap().pid, holder.id());
    let end = lock.expiration().unwrap();
    assert!(!lock.try_lock().unwrap());
    holder.kill();
    assert_eq!(lock.state().unwrap(), LockState::Stale);
    lock.lock(None).unwrap();
    assert!(SystemTime::now() > end + slop);
    assert_eq!(place.files().len(), 2, "the dead one's claim is gone: {:?}", place.files());
    lock.unlock().unwrap();
    assert!(place.files().is_empty());
}

#[test]
fn a_holder_that_was_stopped_past_its_end_takes_nothing_from_the_next_one() {
    let place = Place::new();
    let mut holder = Process::start("hold", &place.path());
    assert_eq!(holder.hear(), "held");
    holder.signal("STOP");
    let lock = place.builder().slop(Duration::from_secs(1)).build().unwrap();
    lock.lock(None).unwrap();
    holder.signal("CONT");
    holder.tell("leave");
    assert_eq!(holder.hear(), format!("Err({:?})", ErrorKind::NotLocked));
    assert!(lock.is_locked().unwrap());
    lock.unlock().unwrap();
    assert!(place.files().is_empty(), "{:?}", place.files());
}

#[test]
fn a_thousand_waiting_tasks_start_no_thousand_threads_and_each_gets_its_turn() {
    let place = Place::new();
    let mut crowd = Process::start("crowd", &place.path());
    let threads: usize = crowd.hear().parse().unwrap();
    // 16 calls at a time, on threads that are not always back when the next call wants one.
    assert!(threads < 100, "{threads} threads");
    assert_eq!(crowd.hear(), "done");
    assert!(place.files().is_empty());
}
