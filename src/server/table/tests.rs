//! One test for each rule of the table, in virtual time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::types::Fence;

const A: ConnId = ConnId(1);
const B: ConnId = ConnId(2);
const C: ConnId = ConnId(3);

pub(super) fn config() -> TableConfig {
    TableConfig {
        default_lease: seconds(33),
        max_locks: 1024,
        max_waiters: 0,
        gc_max_idle: Duration::from_secs(60),
        auto_release: true,
    }
}

pub(super) fn seconds(seconds: u64) -> Seconds {
    Seconds::new(seconds).unwrap()
}

/// A table whose mint counts from 1, and fails while the switch is on.
pub(super) fn table(config: TableConfig) -> (LockTable, Arc<AtomicBool>) {
    let broken = Arc::new(AtomicBool::new(false));
    let (mut last, switch) = (0, broken.clone());
    let mint = move || {
        (!switch.load(Ordering::Relaxed)).then(|| {
            last += 1;
            Token::mint(Fence::new(last), 0)
        })
    };
    (LockTable::new(config, Box::new(mint)), broken)
}

/// A table, its clock, and the commands in short.
struct Bench {
    table: LockTable,
    broken: Arc<AtomicBool>,
    now: Instant,
}

fn bench() -> Bench {
    bench_with(|_| {})
}

fn bench_with(change: impl FnOnce(&mut TableConfig)) -> Bench {
    let mut config = config();
    change(&mut config);
    let (table, broken) = table(config);
    Bench { table, broken, now: Instant::now() }
}

fn key(key: &str) -> Key {
    Key::parse(key).unwrap()
}

impl Bench {
    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    fn acquire(&mut self, conn: ConnId, name: &str, lease: u64) -> Answer {
        self.shared(conn, name, 1, lease)
    }

    fn shared(&mut self, conn: ConnId, name: &str, limit: u64, lease: u64) -> Answer {
        let limit = Limit::new(limit).unwrap();
        self.table.acquire(self.now, conn, &key(name), limit, Some(seconds(lease)), true)
    }

    fn attempt(&mut self, conn: ConnId, name: &str) -> Answer {
        self.table.acquire(self.now, conn, &key(name), Limit::ONE, None, false)
    }

    fn enqueue(&mut self, conn: ConnId, name: &str, lease: u64) -> Place {
        self.table.enqueue(self.now, conn, &key(name), Limit::ONE, Some(seconds(lease)))
    }

    fn wait(&mut self, conn: ConnId, name: &str) -> Answer {
        self.table.wait(self.now, conn, &key(name), true)
    }

    fn release(&mut self, name: &str, grant: &Grant) -> bool {
        self.table.release(self.now, &key(name), &grant.token)
    }

    fn renew(&mut self, name: &str, grant: &Grant, lease: Option<u64>) -> Option<u64> {
        let lease = lease.map(seconds);
        self.table.renew(self.now, &key(name), &grant.token, lease).map(Seconds::get)
    }

    /// The next outcome must be a grant for this waiter.
    fn delivered(&mut self, conn: ConnId, waiter: WaiterId) -> Grant {
        let delivery = self.table.poll_delivery().expect("a delivery");
        assert_eq!((delivery.conn, delivery.waiter), (conn, waiter));
        delivery.outcome.expect("a grant")
    }

    fn quiet(&mut self) {
        assert_eq!(self.table.poll_delivery(), None);
    }
}

#[track_caller]
fn granted(answer: Answer) -> Grant {
    let Answer::Granted(grant) = answer else { panic!("not granted: {answer:?}") };
    grant
}

#[track_caller]
fn waiting(answer: Answer) -> WaiterId {
    let Answer::Waiting(waiter) = answer else { panic!("not waiting: {answer:?}") };
    waiter
}

#[track_caller]
fn acquired(place: Place) -> Grant {
    let Place::Acquired(grant) = place else { panic!("not acquired: {place:?}") };
    grant
}

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
    assert_eq!(t.attempt(B, "k"), Answer::Busy);
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
fn the_first_use_fixes_the_limit_until_the_key_is_collected() {
    let mut t = bench();
    let held = granted(t.acquire(A, "k", 10));
    assert_eq!(t.shared(B, "k", 2, 10), Answer::Refused(Status::LimitMismatch));
    t.release("k", &held);
    assert_eq!(t.shared(B, "k", 2, 10), Answer::Refused(Status::LimitMismatch));
    t.pass(59);
    t.table.collect(t.now);
    assert_eq!(t.shared(B, "k", 2, 10), Answer::Refused(Status::LimitMismatch));
    t.pass(1);
    t.table.collect(t.now);
    granted(t.shared(B, "k", 2, 10));
}

#[test]
fn limits_are_checked_before_the_queue_and_a_full_queue_before_a_try() {
    let mut t = bench_with(|config| config.max_waiters = 1);
    granted(t.acquire(A, "k", 10));
    assert_eq!(t.attempt(B, "k"), Answer::Busy);
    let waiter = waiting(t.acquire(B, "k", 10));
    assert_eq!(t.shared(C, "k", 2, 10), Answer::Refused(Status::LimitMismatch));
    assert_eq!(t.acquire(C, "k", 10), Answer::Refused(Status::MaxWaiters));
    assert_eq!(t.attempt(C, "k"), Answer::Refused(Status::MaxWaiters));
    assert_eq!(t.enqueue(C, "k", 10), Place::Refused(Status::MaxWaiters));
    assert_eq!(t.table.cancel_wait(t.now, waiter), None);
    assert_eq!(t.enqueue(C, "k", 10), Place::Queued);
}

#[test]
fn idle_keys_count_to_the_cap_until_they_are_collected() {
    let mut t = bench_with(|config| config.max_locks = 1);
    let held = granted(t.acquire(A, "k", 10));
    assert_eq!(t.acquire(A, "other", 10), Answer::Refused(Status::MaxLocks));
    t.release("k", &held);
    assert_eq!(t.enqueue(A, "other", 10), Place::Refused(Status::MaxLocks));
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
    assert_eq!(t.attempt(B, "k"), Answer::Busy);
}

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
    assert_eq!(t.attempt(B, "k"), Answer::Busy);
    t.pass(1);
    granted(t.attempt(B, "k"));
}

#[test]
fn a_second_enqueue_is_refused_until_the_first_is_waited_for_released_or_lost() {
    let mut t = bench();
    let held = acquired(t.enqueue(A, "k", 5));
    assert_eq!(t.enqueue(A, "k", 5), Place::Refused(Status::AlreadyEnqueued));
    assert_eq!(granted(t.wait(A, "k")), held);
    assert_eq!(t.wait(A, "k"), Answer::Refused(Status::NotEnqueued));
    t.release("k", &held);

    let released = acquired(t.enqueue(A, "k", 5));
    t.release("k", &released);
    assert_eq!(t.wait(A, "k"), Answer::Refused(Status::NotEnqueued));

    acquired(t.enqueue(A, "k", 5));
    t.pass(5);
    acquired(t.enqueue(A, "k", 5));
    assert_eq!(t.enqueue(B, "k", 5), Place::Queued);
    assert_eq!(t.enqueue(B, "k", 5), Place::Refused(Status::AlreadyEnqueued));
}

#[test]
fn a_wait_after_an_acquired_enqueue_starts_its_lease_afresh() {
    let mut t = bench();
    let held = acquired(t.enqueue(A, "k", 5));
    t.pass(4);
    assert_eq!(granted(t.wait(A, "k")), held);
    t.pass(4);
    assert_eq!(t.attempt(B, "k"), Answer::Busy);
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
        assert_eq!(t.wait(A, "k"), Answer::Refused(Status::LeaseExpired));
        assert_eq!(t.wait(A, "k"), Answer::Refused(Status::NotEnqueued));
    }
}

#[test]
fn a_queued_enqueue_granted_before_its_wait_keeps_the_grant() {
    let mut t = bench();
    let held = granted(t.acquire(A, "k", 50));
    assert_eq!(t.enqueue(B, "k", 5), Place::Queued);
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
    assert_eq!(t.enqueue(B, "k", 5), Place::Queued);
    t.release("k", &held);
    t.pass(5);
    granted(t.attempt(C, "k"));
    assert_eq!(t.wait(B, "k"), Answer::Refused(Status::LeaseExpired));
    assert_eq!(t.wait(B, "k"), Answer::Refused(Status::NotEnqueued));
}

#[test]
fn a_wait_takes_the_place_of_its_enqueue() {
    let mut t = bench();
    let held = granted(t.acquire(A, "k", 50));
    assert_eq!(t.enqueue(B, "k", 5), Place::Queued);
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
    assert_eq!(t.enqueue(B, "k", 5), Place::Queued);
    assert_eq!(t.table.wait(t.now, B, &key("k"), false), Answer::Busy);
    t.release("k", &held);
    assert!(!t.table.holds(B));
    assert_eq!(t.wait(B, "k"), Answer::Refused(Status::NotEnqueued));
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
fn where_no_token_can_be_minted_nothing_is_granted_and_waiters_stay() {
    let mut t = bench();
    let held = granted(t.acquire(A, "k", 50));
    let waiter = waiting(t.acquire(B, "k", 50));
    t.broken.store(true, Ordering::Relaxed);
    assert_eq!(t.acquire(A, "new", 50), Answer::Refused(Status::Error));
    assert_eq!(t.enqueue(A, "new", 50), Place::Refused(Status::Error));
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

#[test]
fn the_longest_lease_does_not_overflow_the_clock() {
    let mut t = bench();
    granted(t.acquire(A, "k", crate::types::MAX_SECONDS));
    t.table.sweep(t.now);
    assert_eq!(t.attempt(B, "k"), Answer::Busy);
}
