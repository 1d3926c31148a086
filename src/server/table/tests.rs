//! The table's rules, one by one, in virtual time.

use std::time::{Duration, Instant};

use super::*;

struct World {
    table: LockTable,
    now: Instant,
}

fn world(change: impl FnOnce(&mut TableConfig)) -> World {
    let mut config = TableConfig {
        default_lease: Seconds::new(33).unwrap(),
        max_locks: 1024,
        max_waiters: 0,
        gc_max_idle: Duration::from_secs(60),
        auto_release: true,
    };
    change(&mut config);
    let mut fence = 0;
    let mint = move || {
        fence += 1;
        Some(Token::mint(Fence::new(fence), 7))
    };
    World { table: LockTable::new(config, Box::new(mint)), now: Instant::now() }
}

fn key(name: &str) -> Key {
    Key::parse(name).unwrap()
}

fn limit(n: u64) -> Limit {
    Limit::new(n).unwrap()
}

impl World {
    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    fn acquire(&mut self, conn: u64, name: &str, n: u64) -> Answer {
        self.table.acquire(self.now, ConnId(conn), &key(name), limit(n), None, true)
    }

    fn granted(&mut self, conn: u64, name: &str, n: u64) -> Token {
        match self.acquire(conn, name, n) {
            Answer::Granted(grant) => grant.token,
            other => panic!("{other:?}"),
        }
    }

    fn waiting(&mut self, conn: u64, name: &str, n: u64) -> WaiterId {
        match self.acquire(conn, name, n) {
            Answer::Waiting(id) => id,
            other => panic!("{other:?}"),
        }
    }

    fn delivered(&mut self) -> Vec<u64> {
        std::iter::from_fn(|| self.table.poll_delivery()).map(|delivery| delivery.conn.0).collect()
    }
}

#[test]
fn grants_are_first_in_first_out_and_fences_grow() {
    let mut w = world(|_| {});
    let first = w.granted(1, "k", 1);
    w.waiting(2, "k", 1);
    w.waiting(3, "k", 1);
    assert!(w.table.release(w.now, &key("k"), &first));
    assert_eq!(w.delivered(), [2]);
    w.table.disconnect(w.now, ConnId(2));
    assert_eq!(w.delivered(), [3]);
    assert!(!w.table.release(w.now, &key("k"), &first));
}

#[test]
fn a_waiter_that_left_is_passed_over() {
    let mut w = world(|_| {});
    let token = w.granted(1, "k", 1);
    let leaver = w.waiting(2, "k", 1);
    w.waiting(3, "k", 1);
    assert_eq!(w.table.cancel_wait(w.now, leaver), None);
    w.table.release(w.now, &key("k"), &token);
    assert_eq!(w.delivered(), [3]);
}

#[test]
fn an_outcome_that_came_before_the_cancel_is_handed_out_by_it() {
    let mut w = world(|_| {});
    let token = w.granted(1, "k", 1);
    let waiter = w.waiting(2, "k", 1);
    w.table.release(w.now, &key("k"), &token);
    assert!(matches!(w.table.cancel_wait(w.now, waiter), Some(Ok(_))));
    assert!(w.delivered().is_empty());
}

#[test]
fn an_expired_lease_goes_to_the_next_and_is_never_revived() {
    let mut w = world(|_| {});
    let token = w.granted(1, "k", 1);
    w.waiting(2, "k", 1);
    w.pass(32);
    assert_eq!(w.table.renew(w.now, &key("k"), &token, None), Seconds::new(33));
    w.pass(32);
    w.table.sweep(w.now);
    assert!(w.delivered().is_empty());
    w.pass(1);
    assert_eq!(w.table.renew(w.now, &key("k"), &token, None), None);
    assert_eq!(w.delivered(), [2]);
}

#[test]
fn an_expired_holder_can_be_released_until_it_is_evicted() {
    let mut w = world(|_| {});
    let token = w.granted(1, "k", 1);
    w.pass(40);
    assert!(w.table.release(w.now, &key("k"), &token));
    let token = w.granted(1, "k", 1);
    w.pass(40);
    w.table.sweep(w.now);
    assert!(!w.table.release(w.now, &key("k"), &token));
}

#[test]
fn a_semaphore_has_its_limit_and_no_other() {
    let mut w = world(|_| {});
    let tokens = [w.granted(1, "k", 2), w.granted(1, "k", 2)];
    w.waiting(2, "k", 2);
    assert_eq!(w.acquire(3, "k", 1), Answer::Refused(Status::LimitMismatch));
    assert!(w.table.release(w.now, &key("k"), &tokens[1]));
    assert_eq!(w.delivered(), [2]);
    w.pass(33);
    w.table.sweep(w.now);
    assert_eq!(w.acquire(3, "k", 3), Answer::Refused(Status::LimitMismatch));
    w.pass(60);
    w.table.collect(w.now);
    w.granted(3, "k", 3);
}

#[test]
fn the_caps_hold() {
    let mut w = world(|config| (config.max_locks, config.max_waiters) = (1, 1));
    w.granted(1, "a", 1);
    assert_eq!(w.acquire(1, "b", 1), Answer::Refused(Status::MaxLocks));
    w.waiting(2, "a", 1);
    assert_eq!(w.acquire(3, "a", 1), Answer::Refused(Status::MaxWaiters));
    let tried = w.table.acquire(w.now, ConnId(3), &key("a"), Limit::ONE, None, false);
    assert_eq!(tried, Answer::Refused(Status::MaxWaiters));
}

#[test]
fn an_enqueue_is_registered_until_its_wait() {
    let mut w = world(|_| {});
    let k = key("k");
    let (one, two) = (ConnId(1), ConnId(2));
    assert_eq!(w.table.wait(w.now, one, &k, true), Answer::Refused(Status::NotEnqueued));
    let Place::Acquired(grant) = w.table.enqueue(w.now, one, &k, Limit::ONE, None) else { panic!() };
    let again = w.table.enqueue(w.now, one, &k, Limit::ONE, None);
    assert_eq!(again, Place::Refused(Status::AlreadyEnqueued));
    assert_eq!(w.table.enqueue(w.now, two, &k, Limit::ONE, None), Place::Queued);
    w.pass(20);
    assert_eq!(w.table.wait(w.now, one, &k, true), Answer::Granted(grant.clone()));
    w.pass(20);
    assert!(w.table.renew(w.now, &k, &grant.token, None).is_some(), "the wait set the lease anew");
    assert!(w.table.release(w.now, &k, &grant.token));
    assert!(w.delivered().is_empty(), "nobody waits yet");
    assert!(matches!(w.table.wait(w.now, two, &k, true), Answer::Granted(_)));
}

#[test]
fn a_background_grant_that_ran_out_is_never_handed_out() {
    let mut w = world(|_| {});
    let (k, two) = (key("k"), ConnId(2));
    let token = w.granted(1, "k", 1);
    assert_eq!(w.table.enqueue(w.now, two, &k, Limit::ONE, None), Place::Queued);
    w.table.release(w.now, &k, &token);
    w.pass(33);
    w.granted(3, "k", 1);
    assert_eq!(w.table.wait(w.now, two, &k, true), Answer::Refused(Status::LeaseExpired));
    assert_eq!(w.table.wait(w.now, two, &k, true), Answer::Refused(Status::NotEnqueued));
}

#[test]
fn without_auto_release_a_disconnect_frees_waiters_alone() {
    let mut w = world(|config| config.auto_release = false);
    w.granted(1, "k", 1);
    w.waiting(2, "k", 1);
    w.waiting(3, "k", 1);
    w.table.disconnect(w.now, ConnId(1));
    w.table.disconnect(w.now, ConnId(2));
    assert!(w.delivered().is_empty());
    w.pass(33);
    w.table.sweep(w.now);
    assert_eq!(w.delivered(), [3]);
}

#[test]
fn a_draining_table_grants_nothing_and_lets_holders_go() {
    let mut w = world(|_| {});
    let token = w.granted(1, "k", 1);
    w.waiting(2, "k", 1);
    w.table.drain();
    let delivery = w.table.poll_delivery().unwrap();
    assert_eq!((delivery.conn, delivery.outcome), (ConnId(2), Err(Status::Draining)));
    assert_eq!(w.acquire(3, "x", 1), Answer::Refused(Status::Draining));
    assert!(w.table.holds(ConnId(1)));
    assert!(w.table.renew(w.now, &key("k"), &token, None).is_some());
    assert!(w.table.release(w.now, &key("k"), &token));
    assert!(!w.table.holds(ConnId(1)));
}

#[test]
fn stats_tell_held_waited_for_and_idle_apart() {
    let mut w = world(|_| {});
    let token = w.granted(1, "held", 1);
    w.waiting(2, "held", 1);
    w.granted(1, "slots", 2);
    let idle = w.granted(1, "idle", 1);
    w.table.release(w.now, &key("idle"), &idle);
    w.pass(3);
    let stats = w.table.stats(w.now);
    assert_eq!((stats.locks[0].owner_conn_id, stats.locks[0].waiters), (1, 1));
    assert!((stats.locks[0].lease_expires_in_s - 30.0).abs() < 1e-9);
    assert_eq!((stats.semaphores[0].limit, stats.semaphores[0].holders), (2, 1));
    assert!((stats.idle_locks[0].idle_s - 3.0).abs() < 1e-9);
    drop(token);
}
