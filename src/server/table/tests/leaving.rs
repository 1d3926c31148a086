//! Connections that close, and a server that stops.

use super::*;

#[test]
fn a_disconnect_takes_waiters_and_registrations_and_hands_on_what_was_held() {
    let mut t = bench();
    granted(t.acquire(A, "k", 50));
    waiting(t.acquire(A, "k", 50));
    assert_eq!(t.enqueue(A, "k", 50), EnqueueOutcome::Queued);
    acquired(t.enqueue(A, "own", 50));
    let waiter = waiting(t.acquire(B, "k", 50));
    t.table.disconnect(t.now, A);
    t.delivered(B, waiter);
    t.quiet();
    assert!(!t.table.holds(A));
    assert_eq!(t.wait(A, "own"), AcquireOutcome::Refused(Status::NotEnqueued));
    granted(t.attempt(C, "own"));
}

#[test]
fn without_auto_release_a_disconnect_keeps_what_the_connection_knew_of_alone() {
    let mut t = bench_with(|config| config.auto_release = false);
    let held = granted(t.acquire(A, "known", 50));
    let other = granted(t.acquire(B, "unpolled", 50));
    let second = granted(t.acquire(B, "unwaited", 50));
    waiting(t.acquire(A, "unpolled", 50));
    assert_eq!(t.enqueue(A, "unwaited", 50), EnqueueOutcome::Queued);
    t.release("unpolled", &other);
    t.release("unwaited", &second);
    t.table.disconnect(t.now, A);
    t.quiet();
    granted(t.attempt(B, "unpolled"));
    granted(t.attempt(B, "unwaited"));
    assert_eq!(t.attempt(B, "known"), AcquireOutcome::Busy);
    assert!(t.release("known", &held));
}

#[test]
fn draining_refuses_who_waits_and_who_comes_but_lets_holders_go() {
    let mut t = bench();
    let held = granted(t.acquire(A, "k", 50));
    let waiter = waiting(t.acquire(B, "k", 50));
    assert_eq!(t.enqueue(C, "k", 50), EnqueueOutcome::Queued);
    t.table.drain(t.now);
    let delivery = t.table.poll_delivery().expect("a delivery");
    assert_eq!(delivery, Delivery { conn: B, waiter, outcome: Err(Status::Draining) });
    t.quiet();
    assert_eq!(t.acquire(B, "new", 50), AcquireOutcome::Refused(Status::Draining));
    assert_eq!(t.enqueue(B, "new", 50), EnqueueOutcome::Refused(Status::Draining));
    assert_eq!(t.wait(C, "k"), AcquireOutcome::Refused(Status::Draining));
    assert_eq!(t.renew("k", &held, None), Some(33));
    assert!(t.release("k", &held));
    t.quiet();
    assert!(!t.table.holds(A));
}

#[test]
fn draining_takes_back_what_nobody_could_release() {
    let mut t = bench();
    let held = granted(t.acquire(A, "k", 50));
    assert_eq!(t.enqueue(B, "k", 50), EnqueueOutcome::Queued);
    t.release("k", &held);
    assert!(t.table.holds(B));
    t.table.drain(t.now);
    assert!(!t.table.holds(B));
}

#[test]
fn what_a_connection_held_that_was_given_up_is_kept_until_then_and_no_longer() {
    let mut t = bench();
    let long = granted(t.acquire(A, "long", 50));
    granted(t.acquire(A, "short", 5));
    let renewed = granted(t.acquire(A, "renewed", 50));
    acquired(t.enqueue(A, "told", 50));
    let busy = granted(t.acquire(B, "busy", 50));
    assert_eq!(t.enqueue(A, "busy", 50), EnqueueOutcome::Queued);
    waiting(t.acquire(A, "busy", 50));
    let until = t.now + Duration::from_secs(20);
    t.table.give_up(t.now, A, until);
    assert!(t.release("busy", &busy), "its places are gone:");
    granted(t.attempt(B, "busy"));
    t.pass(5);
    granted(t.attempt(B, "short"));
    assert_eq!(t.renew("renewed", &renewed, Some(40)), Some(40));
    t.pass(14);
    for key in ["long", "told", "renewed"] {
        assert_eq!(t.attempt(B, key), AcquireOutcome::Busy, "{key}");
    }
    assert!(t.table.has_kept_leases(t.now));
    t.pass(1);
    assert!(!t.table.has_kept_leases(t.now));
    assert_eq!(t.renew("long", &long, None), None);
    granted(t.attempt(B, "long"));
    granted(t.attempt(B, "told"));
    assert_eq!(t.attempt(B, "renewed"), AcquireOutcome::Busy, "a renewal counts, and it was answered so");
    t.pass(25);
    granted(t.attempt(B, "renewed"));
}

#[test]
fn what_was_given_up_too_late_to_be_kept_goes_at_once() {
    let mut t = bench();
    granted(t.acquire(A, "k", 50));
    let waiter = waiting(t.acquire(B, "k", 50));
    t.table.give_up(t.now, A, t.now);
    t.delivered(B, waiter);
    assert!(!t.table.has_kept_leases(t.now));
}

#[test]
fn a_key_that_is_kept_is_released_by_its_token_and_swept_when_the_time_comes() {
    let mut t = bench();
    let first = granted(t.acquire(A, "k", 50));
    granted(t.acquire(A, "swept", 50));
    let until = t.now + Duration::from_secs(20);
    t.table.give_up(t.now, A, until);
    assert!(t.release("k", &first));
    granted(t.attempt(B, "k"));
    t.pass(20);
    t.table.sweep(t.now);
    assert!(!t.table.holds(A));
}

#[test]
fn without_auto_release_a_connection_that_was_given_up_keeps_its_whole_lease() {
    let mut t = bench_with(|config| config.auto_release = false);
    granted(t.acquire(A, "k", 50));
    t.table.give_up(t.now, A, t.now + Duration::from_secs(20));
    assert!(
        !t.table.has_kept_leases(t.now),
        "a stop need not wait for it, as for none that has no connection"
    );
    t.pass(49);
    assert_eq!(t.attempt(B, "k"), AcquireOutcome::Busy);
}
