//! Leases that expire, are renewed, or exceed the range of the clock.

use super::*;

#[test]
fn the_next_acquire_evicts_an_expired_holder_in_favour_of_who_waits_already() {
    let mut t = bench();
    granted(t.acquire(A, "k", 5));
    let second = waiting(t.acquire(B, "k", 10));
    t.pass(5);
    let third = waiting(t.acquire(C, "k", 10));
    let grant = t.delivered(B, second);
    t.quiet();
    assert!(t.release("k", &grant));
    t.delivered(C, third);
}

#[test]
fn a_sweep_evicts_what_has_expired_and_hands_it_on() {
    let mut t = bench();
    granted(t.acquire(A, "k", 5));
    let waiter = waiting(t.acquire(B, "k", 7));
    granted(t.acquire(A, "other", 6));
    t.pass(4);
    t.table.sweep(t.now);
    t.quiet();
    t.pass(1);
    t.table.sweep(t.now);
    let grant = t.delivered(B, waiter);
    assert!(t.table.holds(A) && t.table.holds(B));
    t.pass(6);
    t.table.sweep(t.now);
    assert!(!t.table.holds(A));
    assert_eq!(t.renew("k", &grant, None), Some(33), "its lease counts from the grant");
}

#[test]
fn an_expired_holder_can_be_released_until_it_is_evicted_but_never_renewed() {
    let mut t = bench();
    let first = granted(t.acquire(A, "k", 5));
    t.pass(5);
    assert!(t.release("k", &first));
    let second = granted(t.acquire(A, "k", 5));
    t.pass(5);
    assert_eq!(t.renew("k", &second, Some(100)), None);
    assert!(!t.release("k", &second), "the renew evicted it");
}

#[test]
fn a_renew_moves_the_deadline_from_any_connection() {
    let mut t = bench();
    let held = granted(t.acquire(A, "k", 5));
    t.pass(4);
    assert_eq!(t.renew("k", &held, Some(5)), Some(5));
    t.pass(4);
    assert_eq!(t.attempt(B, "k"), AcquireOutcome::Busy);
    t.pass(1);
    granted(t.attempt(B, "k"));
}

#[test]
fn the_longest_lease_does_not_overflow_the_clock() {
    let mut t = bench();
    granted(t.acquire(A, "k", crate::types::MAX_SECONDS));
    t.table.sweep(t.now);
    assert_eq!(t.attempt(B, "k"), AcquireOutcome::Busy);
}
