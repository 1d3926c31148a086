//! Long work in parts: each part does as many steps as requested, and all parts together do the same as the
//! whole.

use super::*;

const KEYS: usize = 25;

/// Returns a table with expired holders, each with a waiter.
fn expired() -> Bench {
    let mut t = bench();
    for number in 0..KEYS {
        let key = format!("k{number}");
        granted(t.acquire(A, &key, 5));
        waiting(t.acquire(B, &key, 100));
    }
    t.pass(5);
    t
}

#[test]
fn a_sweep_in_parts_evicts_so_many_at_a_time_and_hands_each_on() {
    let mut t = expired();
    let mut parts = Vec::new();
    loop {
        let more = t.table.sweep_part(t.now, 10);
        parts.push(std::iter::from_fn(|| t.table.poll_delivery()).count());
        if !more {
            break;
        }
    }
    assert_eq!(parts, [10, 10, 5]);
    assert!(!t.table.holds(A));
}

#[test]
fn a_collection_in_parts_drops_so_many_at_a_time() {
    let mut t = expired();
    t.table.disconnect(t.now, A);
    t.table.disconnect(t.now, B);
    t.pass(60);
    let mut left = Vec::new();
    loop {
        let more = t.table.collect_part(t.now, 10);
        left.push(t.table.stats(t.now).idle_locks.len());
        if !more {
            break;
        }
    }
    assert_eq!(left, [15, 5, 0]);
}

#[test]
fn stats_in_parts_name_every_key_once() {
    let t = expired();
    let (mut rows, mut from) = (Vec::new(), 0);
    loop {
        let (part, more) = t.table.stats_part(t.now, from..from + 10, None);
        assert!(part.locks.len() <= 10);
        rows.extend(part.locks);
        if !more {
            break;
        }
        from += 10;
    }
    assert_eq!(rows.len(), KEYS);
    assert_eq!(rows, t.table.stats(t.now).locks);
}

#[test]
fn a_part_of_stats_behind_the_last_place_is_empty() {
    let t = expired();
    assert_eq!(t.table.stats_part(t.now, KEYS..KEYS + 10, None), (StatsResult::default(), false));
}

/// Returns a table in which a connection has holders, with a waiter each, places in queues, registrations,
/// and expired ones.
fn leaving() -> Bench {
    let mut t = bench();
    for number in 0..KEYS {
        let (held, queued) = (format!("held{number}"), format!("queued{number}"));
        granted(t.acquire(A, &held, 100));
        waiting(t.acquire(B, &held, 100));
        granted(t.acquire(C, &queued, 100));
        assert_eq!(t.enqueue(A, &queued, 100), EnqueueOutcome::Queued);
        acquired(t.enqueue(A, &format!("told{number}"), 100));
        acquired(t.enqueue(A, &format!("lost{number}"), 5));
    }
    t.pass(5);
    t.table.sweep(t.now);
    t
}

#[test]
fn a_connection_leaves_in_parts_and_leaves_nothing() {
    let mut t = leaving();
    let (mut parts, mut handed_on, mut more) = (0, Vec::new(), t.table.leave(t.now, A, None, 10));
    loop {
        handed_on.push(std::iter::from_fn(|| t.table.poll_delivery()).count());
        assert!(*handed_on.last().unwrap() <= 10);
        if !more {
            break;
        }
        parts += 1;
        // Other connections are served between the parts. The connection that leaves is granted nothing.
        granted(t.acquire(C, &format!("new{parts}"), 100));
        more = t.table.leave_part(t.now, 10);
    }
    // 25 each: waiters, their registrations, delivered registrations, expired registrations, holders of
    // each kind.
    assert_eq!(parts, 15);
    assert_eq!(handed_on.iter().sum::<usize>(), KEYS);
    assert!(!t.table.holds(A));
    assert_eq!(t.wait(A, "lost1"), AcquireOutcome::Refused(Status::NotEnqueued));
    assert!(!t.table.leave_part(t.now, 10));
}

#[test]
fn a_connection_that_leaves_in_parts_is_granted_nothing_between_them() {
    let mut t = bench();
    let held = granted(t.acquire(C, "k", 100));
    for number in 0..KEYS {
        granted(t.acquire(C, &format!("other{number}"), 100));
        assert_eq!(t.enqueue(A, &format!("other{number}"), 100), EnqueueOutcome::Queued);
    }
    assert_eq!(t.enqueue(A, "k", 100), EnqueueOutcome::Queued);
    let next = waiting(t.acquire(B, "k", 100));
    assert!(t.table.leave(t.now, A, None, 1));
    assert!(t.release("k", &held));
    t.delivered(B, next);
    while t.table.leave_part(t.now, 10) {}
    assert!(!t.table.holds(A));
    t.quiet();
}

#[test]
fn connections_that_leave_take_turns() {
    let mut t = bench();
    for number in 0..KEYS {
        granted(t.acquire(A, &format!("a{number}"), 100));
        granted(t.acquire(B, &format!("b{number}"), 100));
    }
    t.table.leave(t.now, A, None, 1);
    t.table.leave(t.now, B, None, 1);
    let held = |t: &Bench| {
        let locks = t.table.stats(t.now).locks;
        ["a", "b"].map(|of| locks.iter().filter(|lock| lock.key.starts_with(of)).count())
    };
    assert_eq!(held(&t), [24, 24]);
    for _ in 0..4 {
        t.table.leave_part(t.now, 5);
    }
    assert_eq!(held(&t), [14, 14]);
    while t.table.leave_part(t.now, 5) {}
    assert_eq!(held(&t), [0, 0]);
}

#[test]
fn a_connection_is_given_up_in_parts_and_each_of_its_leases_ends_then() {
    let mut t = bench();
    for number in 0..KEYS {
        granted(t.acquire(A, &format!("k{number}"), 100));
    }
    let until = t.now + Duration::from_secs(20);
    let mut more = t.table.leave(t.now, A, Some(until), 10);
    let mut parts = 1;
    while more {
        more = t.table.leave_part(t.now, 10);
        parts += 1;
    }
    assert_eq!(parts, 3);
    assert!(t.table.stats(t.now).locks.iter().all(|lock| (lock.lease_expires_in_s - 20.0).abs() < 0.1));
}

#[test]
fn a_table_drains_in_parts() {
    let mut t = leaving();
    let (mut parts, mut refused) = (1, 0);
    let mut more = t.table.drain_part(t.now, 10);
    loop {
        let part = std::iter::from_fn(|| t.table.poll_delivery())
            .inspect(|delivery| assert!(delivery.outcome.is_err()))
            .count();
        assert!(part <= 10);
        refused += part;
        assert_eq!(
            t.acquire(B, "new", 1),
            AcquireOutcome::Refused(Status::Draining),
            "from the first part on"
        );
        if !more {
            break;
        }
        more = t.table.drain_part(t.now, 10);
        parts += 1;
    }
    assert_eq!(refused, KEYS);
    assert!(parts > 10);
    assert!(t.table.holds(A), "holders release by themselves");
}
