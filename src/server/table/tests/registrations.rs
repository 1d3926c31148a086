//! Enqueue and wait: registrations that are kept, expire and are cleared.

use super::*;

#[test]
fn a_second_enqueue_is_refused_until_the_first_is_waited_for_released_or_lost() {
    let mut t = bench();
    let held = acquired(t.enqueue(A, "k", 5));
    assert_eq!(t.enqueue(A, "k", 5), EnqueueOutcome::Refused(Status::AlreadyEnqueued));
    assert_eq!(granted(t.wait(A, "k")), held);
    assert_eq!(t.wait(A, "k"), AcquireOutcome::Refused(Status::NotEnqueued));
    t.release("k", &held);

    let released = acquired(t.enqueue(A, "k", 5));
    t.release("k", &released);
    assert_eq!(t.wait(A, "k"), AcquireOutcome::Refused(Status::NotEnqueued));

    acquired(t.enqueue(A, "k", 5));
    t.pass(5);
    acquired(t.enqueue(A, "k", 5));
    assert_eq!(t.enqueue(B, "k", 5), EnqueueOutcome::Queued);
    assert_eq!(t.enqueue(B, "k", 5), EnqueueOutcome::Refused(Status::AlreadyEnqueued));
}

#[test]
fn a_wait_after_an_acquired_enqueue_starts_its_lease_afresh() {
    let mut t = bench();
    let held = acquired(t.enqueue(A, "k", 5));
    t.pass(4);
    assert_eq!(granted(t.wait(A, "k")), held);
    t.pass(4);
    assert_eq!(t.attempt(B, "k"), AcquireOutcome::Busy);
    t.pass(1);
    granted(t.attempt(B, "k"));
}

#[test]
fn a_wait_for_a_lost_lease_says_so_once_even_after_the_key_is_collected() {
    let mut t = bench();
    for (swept, collected) in [(false, false), (true, false), (true, true)] {
        acquired(t.enqueue(A, "k", 5));
        t.pass(5);
        if swept {
            t.table.sweep(t.now);
        }
        if collected {
            t.pass(60);
            t.table.collect(t.now);
            assert_eq!(t.table.stats(t.now), StatsResult::default());
        }
        assert_eq!(t.wait(A, "k"), AcquireOutcome::Refused(Status::LeaseExpired));
        assert_eq!(t.wait(A, "k"), AcquireOutcome::Refused(Status::NotEnqueued));
    }
}

#[test]
fn a_queued_enqueue_granted_before_its_wait_keeps_the_grant() {
    let mut t = bench();
    let held = granted(t.acquire(A, "k", 50));
    assert_eq!(t.enqueue(B, "k", 5), EnqueueOutcome::Queued);
    t.release("k", &held);
    t.quiet();
    assert!(t.table.holds(B));
    t.pass(4);
    let grant = granted(t.wait(B, "k"));
    assert_eq!(grant.lease, seconds(5));
    t.pass(4);
    assert_eq!(t.renew("k", &grant, Some(5)), Some(5), "the wait set the lease afresh");
}

#[test]
fn a_background_grant_whose_lease_ran_out_is_never_handed_out() {
    let mut t = bench();
    let held = granted(t.acquire(A, "k", 50));
    assert_eq!(t.enqueue(B, "k", 5), EnqueueOutcome::Queued);
    t.release("k", &held);
    t.pass(5);
    granted(t.attempt(C, "k"));
    assert_eq!(t.wait(B, "k"), AcquireOutcome::Refused(Status::LeaseExpired));
    assert_eq!(t.wait(B, "k"), AcquireOutcome::Refused(Status::NotEnqueued));
}

#[test]
fn a_wait_takes_the_place_of_its_enqueue() {
    let mut t = bench();
    let held = granted(t.acquire(A, "k", 50));
    assert_eq!(t.enqueue(B, "k", 5), EnqueueOutcome::Queued);
    let third = waiting(t.acquire(C, "k", 5));
    let second = waiting(t.wait(B, "k"));
    t.release("k", &held);
    let grant = t.delivered(B, second);
    t.release("k", &grant);
    t.delivered(C, third);
}

#[test]
fn a_wait_that_will_not_wait_leaves_the_queue() {
    let mut t = bench();
    let held = granted(t.acquire(A, "k", 50));
    assert_eq!(t.enqueue(B, "k", 5), EnqueueOutcome::Queued);
    assert_eq!(t.table.wait(t.now, B, &key("k"), false), AcquireOutcome::Busy);
    t.release("k", &held);
    assert!(!t.table.holds(B));
    assert_eq!(t.wait(B, "k"), AcquireOutcome::Refused(Status::NotEnqueued));
}
