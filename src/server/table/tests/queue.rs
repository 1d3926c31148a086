//! Grants, and their order.

use super::*;

#[test]
fn a_lock_goes_to_waiters_in_the_order_of_their_arrival() {
    let mut t = bench();
    let first = granted(t.acquire(A, "k", 10));
    let second = waiting(t.acquire(B, "k", 20));
    let third = waiting(t.acquire(C, "k", 30));
    t.quiet();
    assert!(t.release("k", &first));
    let grant = t.delivered(B, second);
    assert_eq!(grant.lease, seconds(20));
    assert!(grant.token.fence() > first.token.fence());
    t.quiet();
    assert!(!t.release("k", &first), "released once");
    assert!(t.release("k", &grant));
    t.delivered(C, third);
}

#[test]
fn a_lock_is_not_reentrant() {
    let mut t = bench();
    granted(t.acquire(A, "k", 10));
    waiting(t.acquire(A, "k", 10));
}

#[test]
fn a_try_is_busy_and_does_not_queue() {
    let mut t = bench();
    let held = granted(t.attempt(A, "k"));
    assert_eq!(held.lease, seconds(33), "the default");
    assert_eq!(t.attempt(B, "k"), AcquireOutcome::Busy);
    t.release("k", &held);
    t.quiet();
    granted(t.attempt(B, "k"));
}

#[test]
fn a_semaphore_has_as_many_holders_as_its_limit() {
    let mut t = bench();
    let first = granted(t.shared(A, "s", 2, 10));
    let second = granted(t.shared(A, "s", 2, 10));
    let third = waiting(t.shared(B, "s", 2, 10));
    assert!(t.release("s", &second));
    t.delivered(B, third);
    assert_eq!(t.renew("s", &first, Some(5)), Some(5));
    assert_eq!(t.renew("s", &second, Some(5)), None);
    t.pass(5);
    let stats = t.table.stats(t.now);
    assert_eq!(stats.semaphores[0].holders, 2, "not evicted before it is touched");
    granted(t.shared(C, "s", 2, 10));
}

#[test]
fn a_cancelled_wait_is_passed_over_unless_its_grant_came_first() {
    let mut t = bench();
    let held = granted(t.acquire(A, "k", 50));
    let second = waiting(t.acquire(B, "k", 5));
    let third = waiting(t.acquire(C, "k", 5));
    assert_eq!(t.table.cancel_wait(t.now, second), None);
    t.release("k", &held);
    let outcome = t.table.cancel_wait(t.now, third).expect("the grant came first");
    t.quiet();
    assert!(t.release("k", &outcome.expect("a grant")));
    assert_eq!(t.table.cancel_wait(t.now, third), None);
}

#[test]
fn where_no_token_can_be_minted_nothing_is_granted_and_waiters_stay() {
    let mut t = bench();
    let held = granted(t.acquire(A, "k", 50));
    let waiter = waiting(t.acquire(B, "k", 50));
    t.broken.store(true, Ordering::Relaxed);
    assert_eq!(t.acquire(A, "new", 50), AcquireOutcome::Refused(Status::Error));
    assert_eq!(t.enqueue(A, "new", 50), EnqueueOutcome::Refused(Status::Error));
    assert!(t.release("k", &held));
    t.quiet();
    let stats = t.table.stats(t.now);
    assert_eq!((stats.locks.len(), stats.idle_locks.len()), (1, 0), "waited for is not idle");
    assert_eq!((stats.locks[0].owner_conn_id, stats.locks[0].waiters), (0, 1));
    t.table.sweep(t.now);
    t.quiet();
    t.broken.store(false, Ordering::Relaxed);
    t.table.sweep(t.now);
    t.delivered(B, waiter);
}
