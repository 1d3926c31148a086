//! The server's lock table alone: the cost of a command with few and with many other keys.

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use dflockd_client::server::table::{AcquireOutcome, ConnId, LockTable, TableConfig};
use dflockd_client::{Key, Limit, Seconds, Token};

const ME: ConnId = ConnId(1);
const OTHER: ConnId = ConnId(2);

fn table() -> LockTable {
    let config = TableConfig {
        default_lease: Seconds::new(33).unwrap(),
        max_locks: usize::MAX,
        max_waiters: 0,
        gc_max_idle: Duration::from_secs(60),
        auto_release: true,
    };
    let mut fence = 0;
    let mint = move || {
        fence += 1;
        Some(Token::mint(dflockd_client::Fence::new(fence), 7))
    };
    LockTable::new(config, Box::new(mint))
}

fn held(table: &mut LockTable, now: Instant, conn: ConnId, key: &Key) -> Token {
    match table.acquire(now, conn, key, Limit::new(1).unwrap(), None, false) {
        AcquireOutcome::Granted(grant) => grant.token,
        other => panic!("the key is free, and yet: {other:?}"),
    }
}

fn free_key(c: &mut Criterion) {
    let mut group = c.benchmark_group("table: acquire and release of a free key");
    for others in [0, 1_000, 100_000] {
        group.bench_function(BenchmarkId::from_parameter(format!("{others} others held")), |b| {
            let (mut table, now) = (table(), Instant::now());
            for other in 0..others {
                held(&mut table, now, OTHER, &Key::parse(&format!("other:{other}")).unwrap());
            }
            let key = Key::parse("mine").unwrap();
            b.iter(|| {
                let token = held(&mut table, now, ME, &key);
                assert!(table.release(now, &key, &token));
            });
        });
    }
    group.finish();
}

fn hand_off(c: &mut Criterion) {
    let mut group = c.benchmark_group("table: release to the next of a queue");
    for waiters in [1_u64, 1_000, 100_000] {
        group.bench_function(BenchmarkId::from_parameter(format!("{waiters} waiting")), |b| {
            let (mut table, now) = (table(), Instant::now());
            let key = Key::parse("busy").unwrap();
            let mut token = held(&mut table, now, ME, &key);
            let queue = |table: &mut LockTable, conn| {
                let answer = table.acquire(now, conn, &key, Limit::new(1).unwrap(), None, true);
                assert!(matches!(answer, AcquireOutcome::Waiting(_)));
            };
            (0..waiters).for_each(|waiter| queue(&mut table, ConnId(10 + waiter)));
            b.iter(|| {
                assert!(table.release(now, &key, &token));
                let delivery = table.poll_delivery().expect("a waiter is there");
                token = delivery.outcome.expect("it is granted").token;
                queue(&mut table, delivery.conn);
            });
        });
    }
    group.finish();
}

/// Joins the end of a wait queue and leaves it.
fn join_and_leave(c: &mut Criterion) {
    let mut group = c.benchmark_group("table: join a queue and leave it");
    for waiters in [1_u64, 1_000, 100_000] {
        group.bench_function(BenchmarkId::from_parameter(format!("{waiters} waiting")), |b| {
            let (mut table, now) = (table(), Instant::now());
            let key = Key::parse("busy").unwrap();
            held(&mut table, now, ME, &key);
            let queue = |table: &mut LockTable, conn| match table.acquire(
                now,
                conn,
                &key,
                Limit::new(1).unwrap(),
                None,
                true,
            ) {
                AcquireOutcome::Waiting(waiter) => waiter,
                other => panic!("the key is held, and yet: {other:?}"),
            };
            for waiter in 0..waiters {
                queue(&mut table, ConnId(10 + waiter));
            }
            b.iter(|| {
                let waiter = queue(&mut table, OTHER);
                assert_eq!(table.cancel_wait(now, waiter), None);
            });
        });
    }
    group.finish();
}

/// A sweep that evicts a thousand leases, and one that evicts none, with leases that stay.
fn sweep(c: &mut Criterion) {
    const EXPIRED: u64 = 1000;
    let mut group = c.benchmark_group("table: sweep");
    for others in [0, 1_000, 100_000] {
        let (mut table, now) = (table(), Instant::now());
        for other in 0..others {
            held(
                &mut table,
                now + Duration::from_secs(60),
                OTHER,
                &Key::parse(&format!("o:{other}")).unwrap(),
            );
        }
        let keys: Vec<_> = (0..EXPIRED).map(|number| Key::parse(&format!("x:{number}")).unwrap()).collect();
        let after = now + Duration::from_secs(33);
        group.bench_function(format!("{EXPIRED} expire, {others} others held"), |b| {
            b.iter_custom(|times| {
                let sweep = |_| {
                    keys.iter().for_each(|key| drop(held(&mut table, now, ME, key)));
                    let began = Instant::now();
                    table.sweep(after);
                    began.elapsed()
                };
                (0..times).map(sweep).sum()
            });
            assert!(!table.holds(ME));
        });
        group
            .bench_function(format!("none expires, {others} others held"), |b| b.iter(|| table.sweep(after)));
    }
    group.finish();
}

criterion_group!(benches, free_key, hand_off, join_and_leave, sweep);
criterion_main!(benches);
