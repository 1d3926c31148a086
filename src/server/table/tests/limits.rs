//! Limits, caps, the collection of idle keys, and the statistics.

use super::*;

#[test]
fn the_first_use_fixes_the_limit_until_the_key_is_collected() {
    let mut t = bench();
    let held = granted(t.acquire(A, "k", 10));
    assert_eq!(t.shared(B, "k", 2, 10), AcquireOutcome::Refused(Status::LimitMismatch));
    t.release("k", &held);
    assert_eq!(t.shared(B, "k", 2, 10), AcquireOutcome::Refused(Status::LimitMismatch));
    t.pass(59);
    t.table.collect(t.now);
    assert_eq!(t.shared(B, "k", 2, 10), AcquireOutcome::Refused(Status::LimitMismatch));
    t.pass(1);
    t.table.collect(t.now);
    granted(t.shared(B, "k", 2, 10));
}

#[test]
fn limits_are_checked_before_the_queue_and_a_full_queue_before_a_try() {
    let mut t = bench_with(|config| config.max_waiters = 1);
    granted(t.acquire(A, "k", 10));
    assert_eq!(t.attempt(B, "k"), AcquireOutcome::Busy);
    let waiter = waiting(t.acquire(B, "k", 10));
    assert_eq!(t.shared(C, "k", 2, 10), AcquireOutcome::Refused(Status::LimitMismatch));
    assert_eq!(t.acquire(C, "k", 10), AcquireOutcome::Refused(Status::MaxWaiters));
    assert_eq!(t.attempt(C, "k"), AcquireOutcome::Refused(Status::MaxWaiters));
    assert_eq!(t.enqueue(C, "k", 10), EnqueueOutcome::Refused(Status::MaxWaiters));
    assert_eq!(t.table.cancel_wait(t.now, waiter), None);
    assert_eq!(t.enqueue(C, "k", 10), EnqueueOutcome::Queued);
}

#[test]
fn idle_keys_count_to_the_cap_until_they_are_collected() {
    let mut t = bench_with(|config| config.max_locks = 1);
    let held = granted(t.acquire(A, "k", 10));
    assert_eq!(t.acquire(A, "other", 10), AcquireOutcome::Refused(Status::MaxLocks));
    t.release("k", &held);
    assert_eq!(t.enqueue(A, "other", 10), EnqueueOutcome::Refused(Status::MaxLocks));
    assert_eq!(t.table.stats(t.now).idle_locks.len(), 1);
    t.pass(60);
    t.table.collect(t.now);
    granted(t.acquire(A, "other", 10));
}

#[test]
fn a_key_in_use_is_not_collected() {
    let mut t = bench();
    let held = granted(t.acquire(A, "k", 1000));
    t.pass(100);
    t.table.collect(t.now);
    assert!(t.release("k", &held));
    granted(t.acquire(A, "k", 1000));
    t.pass(100);
    t.table.collect(t.now);
    assert_eq!(t.attempt(B, "k"), AcquireOutcome::Busy);
}

#[test]
fn stats_tell_held_from_idle_and_locks_from_semaphores() {
    let mut t = bench();
    let held = granted(t.acquire(A, "held", 10));
    let idle = granted(t.acquire(A, "idle", 10));
    granted(t.shared(B, "sem", 3, 10));
    let shared = granted(t.shared(B, "idle-sem", 3, 10));
    waiting(t.acquire(C, "held", 10));
    t.release("idle", &idle);
    t.release("idle-sem", &shared);
    t.pass(4);
    let stats = t.table.stats(t.now);
    let lock = HeldLock { key: "held".into(), owner_conn_id: 1, lease_expires_in_s: 6.0, waiters: 1 };
    assert_eq!(stats.locks, [lock]);
    let semaphore = HeldSemaphore { key: "sem".into(), limit: 3, holders: 1, waiters: 0 };
    assert_eq!(stats.semaphores, [semaphore]);
    assert_eq!(stats.idle_locks, [IdleKey { key: "idle".into(), idle_s: 4.0 }]);
    assert_eq!(stats.idle_semaphores, [IdleKey { key: "idle-sem".into(), idle_s: 4.0 }]);
    t.pass(60);
    assert_eq!(t.table.stats(t.now).locks[0].lease_expires_in_s, 0.0, "never negative");
    assert_eq!(t.renew("held", &held, None), None);
}
