//! Connections that go, and a server that stops.

use super::*;

#[test]
fn a_disconnect_takes_waiters_and_registrations_and_hands_on_what_was_held() {
    let mut t = bench();
    granted(t.acquire(A, "k", 50));
    waiting(t.acquire(A, "k", 50));
    assert_eq!(t.enqueue(A, "k", 50), Place::Queued);
    acquired(t.enqueue(A, "own", 50));
    let waiter = waiting(t.acquire(B, "k", 50));
    t.table.disconnect(t.now, A);
    t.delivered(B, waiter);
    t.quiet();
    assert!(!t.table.holds(A));
    assert_eq!(t.wait(A, "own"), Answer::Refused(Status::NotEnqueued));
    granted(t.attempt(C, "own"));
}

#[test]
fn without_auto_release_a_disconnect_keeps_what_the_connection_knew_of_alone() {
    let mut t = bench_with(|config| config.auto_release = false);
    let held = granted(t.acquire(A, "known", 50));
    let other = granted(t.acquire(B, "unpolled", 50));
    let second = granted(t.acquire(B, "unwaited", 50));
    waiting(t.acquire(A, "unpolled", 50));
    assert_eq!(t.enqueue(A, "unwaited", 50), Place::Queued);
    t.release("unpolled", &other);
    t.release("unwaited", &second);
    t.table.disconnect(t.now, A);
    t.quiet();
    granted(t.attempt(B, "unpolled"));
    granted(t.attempt(B, "unwaited"));
    assert_eq!(t.attempt(B, "known"), Answer::Busy);
    assert!(t.release("known", &held));
}

#[test]
fn draining_refuses_who_waits_and_who_comes_but_lets_holders_go() {
    let mut t = bench();
    let held = granted(t.acquire(A, "k", 50));
    let waiter = waiting(t.acquire(B, "k", 50));
    assert_eq!(t.enqueue(C, "k", 50), Place::Queued);
    t.table.drain();
    let delivery = t.table.poll_delivery().expect("a delivery");
    assert_eq!(delivery, Delivery { conn: B, waiter, outcome: Err(Status::Draining) });
    t.quiet();
    assert_eq!(t.acquire(B, "new", 50), Answer::Refused(Status::Draining));
    assert_eq!(t.enqueue(B, "new", 50), Place::Refused(Status::Draining));
    assert_eq!(t.wait(C, "k"), Answer::Refused(Status::Draining));
    assert_eq!(t.renew("k", &held, None), Some(33));
    assert!(t.release("k", &held));
    t.quiet();
    assert!(!t.table.holds(A));
}

#[test]
fn draining_takes_back_what_nobody_could_release() {
    let mut t = bench();
    let held = granted(t.acquire(A, "k", 50));
    assert_eq!(t.enqueue(B, "k", 50), Place::Queued);
    t.release("k", &held);
    assert!(t.table.holds(B));
    t.table.drain();
    assert!(!t.table.holds(B));
    bench().table.drain();
}
