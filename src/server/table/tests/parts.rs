//! Long work in parts: as many steps as asked for, and together what the whole would have done.

use super::*;

const KEYS: usize = 25;

/// A table with expired holders, each with one who waits.
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
        let (part, more) = t.table.stats_part(t.now, from..from + 10);
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
    assert_eq!(t.table.stats_part(t.now, KEYS..KEYS + 10), (StatsResult::default(), false));
}
