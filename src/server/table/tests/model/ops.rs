//! The operations on a table, with their likelihood.

use proptest::prelude::*;

#[derive(Clone, Debug)]
pub(super) enum Op {
    Acquire { conn: u64, key: u8, limit: u64, lease: Option<u64>, may_wait: bool },
    Enqueue { conn: u64, key: u8, limit: u64, lease: Option<u64> },
    Wait { conn: u64, key: u8, may_wait: bool },
    Cancel { back: usize },
    Release { key: Option<u8>, back: usize },
    Renew { key: Option<u8>, back: usize, lease: Option<u64> },
    Disconnect { conn: u64 },
    GiveUp { conn: u64, seconds: u64 },
    Sweep,
    Collect,
    Pass { seconds: u64 },
    Poll,
    Break { on: bool },
    Drain,
}

pub(super) fn op() -> impl Strategy<Value = Op> {
    let (conn, key) = (1..=3u64, 0..4u8);
    let lease = prop_oneof![Just(None), (1..=5u64).prop_map(Some)];
    let other = prop_oneof![9 => Just(None), 1 => key.clone().prop_map(Some)];
    // Mostly the limit that the key has: 1 for even keys, 2 for odd ones.
    let place = (key.clone(), prop_oneof![9 => Just(None), 1 => (1..=3u64).prop_map(Some)])
        .prop_map(|(key, limit)| (key, limit.unwrap_or(1 + u64::from(key % 2))));
    prop_oneof![
        8 => (conn.clone(), place.clone(), lease.clone(), any::<bool>()).prop_map(
            |(conn, (key, limit), lease, may_wait)| Op::Acquire { conn, key, limit, lease, may_wait }
        ),
        8 => (conn.clone(), place, lease.clone())
            .prop_map(|(conn, (key, limit), lease)| Op::Enqueue { conn, key, limit, lease }),
        6 => (conn.clone(), key, prop::bool::weighted(0.8))
            .prop_map(|(conn, key, may_wait)| Op::Wait { conn, key, may_wait }),
        3 => (0..4usize).prop_map(|back| Op::Cancel { back }),
        5 => (other.clone(), 0..5usize).prop_map(|(key, back)| Op::Release { key, back }),
        4 => (other, 0..5usize, lease).prop_map(|(key, back, lease)| Op::Renew { key, back, lease }),
        1 => conn.clone().prop_map(|conn| Op::Disconnect { conn }),
        1 => (conn, 0..4u64).prop_map(|(conn, seconds)| Op::GiveUp { conn, seconds }),
        3 => Just(Op::Sweep),
        2 => Just(Op::Collect),
        6 => (1..=3u64).prop_map(|seconds| Op::Pass { seconds }),
        5 => Just(Op::Poll),
        1 => prop::bool::weighted(0.3).prop_map(|on| Op::Break { on }),
    ]
}
