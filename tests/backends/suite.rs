//! What every engine must do for tasks. What one cannot do it must say.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dflockd_client::{Enqueued, ErrorKind, LockClient, LostReason};
use futures::FutureExt;
use futures::future::{join_all, try_join_all};
use tokio::task::yield_now;
use tokio::time::{Instant, timeout};

use crate::engines::{CAP, Census, Engine, KEY, NOTHING};

macro_rules! for_each_engine {
    ($($test:ident)*) => {
        mod dflockd {
            $(#[tokio::test(start_paused = true)]
            async fn $test() {
                super::$test(<crate::engines::Dflockd as crate::engines::Engine>::start()).await;
            })*
        }
        mod directory {
            $(#[tokio::test]
            async fn $test() {
                super::$test(<crate::engines::LockFiles as crate::engines::Engine>::start()).await;
            })*
        }
    };
}
pub(crate) use for_each_engine;

for_each_engine! {
    one_holder_at_a_time_counts_exactly
    two_hundred_tasks_take_turns_at_one_key
    a_try_neither_waits_nor_takes_what_is_held
    one_of_many_tries_takes_a_free_key
    a_wait_ends_in_time_and_says_that_the_key_is_busy
    a_key_that_is_let_go_is_handed_to_a_waiter
    a_lease_that_was_taken_away_is_lost_and_its_release_disturbs_nobody
    a_lease_is_released_once
    closing_lets_everything_go_and_refuses_what_comes_later
    fences_grow_or_are_none
    waiters_of_different_clients_are_served_in_order
    semaphores_count_or_are_unsupported
    a_place_in_the_queue_is_kept_or_unsupported
    keys_do_not_exclude_each_other
}

/// How many are inside at a time, and how many have been.
#[derive(Default)]
struct Room {
    inside: AtomicUsize,
    count: AtomicUsize,
}

impl Room {
    /// Counts in a way that is right only for those who are alone.
    async fn visit(&self) {
        assert_eq!(self.inside.fetch_add(1, Ordering::SeqCst), 0, "two holders");
        let count = self.count.load(Ordering::SeqCst);
        yield_now().await;
        self.count.store(count + 1, Ordering::SeqCst);
        self.inside.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Lets each client have so many tasks, each of which takes the key so many times.
async fn crowd(clients: &[LockClient], tasks: usize, times: usize) -> usize {
    let room = Arc::new(Room::default());
    let visitors = clients.iter().flat_map(|locks| (0..tasks).map(move |_| locks)).map(|locks| {
        let (lock, room) = (locks.lock(KEY).unwrap(), room.clone());
        tokio::spawn(async move {
            for _ in 0..times {
                let guard = lock.acquire_within(10 * CAP).await.unwrap();
                room.visit().await;
                guard.release().await.unwrap();
            }
        })
    });
    try_join_all(visitors.collect::<Vec<_>>()).await.unwrap();
    room.count.load(Ordering::SeqCst)
}

async fn one_holder_at_a_time_counts_exactly(engine: impl Engine) {
    let clients = [engine.client(), engine.client(), engine.client()];
    assert_eq!(crowd(&clients, 10, 3).await, 90);
    engine.settles(NOTHING).await;
}

async fn two_hundred_tasks_take_turns_at_one_key(engine: impl Engine) {
    assert_eq!(crowd(&[engine.client()], 200, 1).await, 200);
    engine.settles(NOTHING).await;
}

async fn a_try_neither_waits_nor_takes_what_is_held(engine: impl Engine) {
    let (locks, others) = (engine.client(), engine.client());
    let guard = locks.lock(KEY).unwrap().acquire().await.unwrap();
    for locks in [&locks, &others] {
        let tried = timeout(CAP, locks.lock(KEY).unwrap().try_acquire()).await.expect("it waits");
        assert!(tried.unwrap().is_none());
        let error = locks.lock(KEY).unwrap().acquire_within(Duration::ZERO).await.unwrap_err();
        assert!(error.is_busy(), "{error}");
    }
    assert!(guard.is_held());
    engine.settles(Census { held: 1, waiting: 0 }).await;
    guard.release().await.unwrap();
    assert!(others.lock(KEY).unwrap().try_acquire().await.unwrap().is_some());
}

async fn one_of_many_tries_takes_a_free_key(engine: impl Engine) {
    let clients = [engine.client(), engine.client(), engine.client()];
    let tries = (0..30).map(|n| {
        let lock = clients[n % 3].lock(KEY).unwrap();
        tokio::spawn(async move { lock.try_acquire().await.unwrap() })
    });
    let guards: Vec<_> =
        join_all(tries.collect::<Vec<_>>()).await.into_iter().flat_map(Result::unwrap).collect();
    assert_eq!(guards.len(), 1);
    engine.settles(Census { held: 1, waiting: 0 }).await;
}

async fn a_wait_ends_in_time_and_says_that_the_key_is_busy(engine: impl Engine) {
    let (locks, others) = (engine.client(), engine.client());
    let _guard = locks.lock(KEY).unwrap().acquire().await.unwrap();
    let patience = Duration::from_millis(300);
    for locks in [&locks, &others] {
        let began = Instant::now();
        let waited =
            timeout(CAP, locks.lock(KEY).unwrap().acquire_within(patience)).await.expect("it waits on");
        let error = waited.unwrap_err();
        assert!(error.is_busy() && began.elapsed() >= patience, "{error} after {:?}", began.elapsed());
        assert_eq!(error.key().unwrap().to_string(), KEY);
    }
    engine.settles(Census { held: 1, waiting: 0 }).await;
}

async fn a_key_that_is_let_go_is_handed_to_a_waiter(engine: impl Engine) {
    let guard = engine.client().lock(KEY).unwrap().acquire().await.unwrap();
    let lock = engine.client().lock(KEY).unwrap();
    let waits = tokio::spawn(async move { lock.acquire_within(CAP).await });
    engine.settles(Census { held: 1, waiting: 1 }).await;
    drop(guard);
    assert!(waits.await.unwrap().unwrap().is_held());
}

async fn a_lease_that_was_taken_away_is_lost_and_its_release_disturbs_nobody(engine: impl Engine) {
    let (locks, others) = (engine.client(), engine.client());
    let guard = locks.lock(KEY).unwrap().acquire().await.unwrap();
    engine.take_away(KEY);
    let next = others.lock(KEY).unwrap().acquire().await.unwrap();
    timeout(CAP, guard.lost()).await.expect("it is not told");
    assert!(!guard.is_held());
    assert!(guard.renew().await.unwrap_err().is_lease_lost());
    assert!(guard.release().await.unwrap_err().is_lease_lost());
    assert!(next.is_held());
    next.renew().await.unwrap();
    assert!(locks.lock(KEY).unwrap().try_acquire().await.unwrap().is_none());
    next.release().await.unwrap();
}

async fn a_lease_is_released_once(engine: impl Engine) {
    let locks = engine.client();
    let lease = locks.lock(KEY).unwrap().acquire().await.unwrap().detach();
    let other = lease.clone();
    lease.release().await.unwrap();
    let next = locks.lock(KEY).unwrap().acquire().await.unwrap();
    for handle in [lease, other] {
        assert_eq!(handle.release().await.unwrap_err().kind(), ErrorKind::NotHeld);
    }
    next.renew().await.unwrap();
    assert!(next.is_held() && locks.lock(KEY).unwrap().try_acquire().await.unwrap().is_none());
    next.release().await.unwrap();
    assert_eq!(locks.metrics().releases, 2);
    engine.settles(NOTHING).await;
}

async fn closing_lets_everything_go_and_refuses_what_comes_later(engine: impl Engine) {
    let (locks, others) = (engine.client(), engine.client());
    let lock = locks.lock(KEY).unwrap();
    let guard = lock.acquire().await.unwrap();
    let second = locks.lock("another").unwrap().acquire().await.unwrap().detach();
    let waiting = lock.clone();
    let waits = tokio::spawn(async move { waiting.acquire().await });
    engine.settles(Census { held: 2, waiting: 1 }).await;
    locks.close().await.unwrap();
    assert_eq!(engine.census(), NOTHING, "it closed before everything was let go");
    assert_eq!(guard.lost().await, LostReason::ClientClosed);
    assert_eq!(second.lost().await, LostReason::ClientClosed);
    let refused = [
        waits.await.unwrap().map(drop),
        lock.acquire().await.map(drop),
        lock.try_acquire().await.map(drop),
        locks.lock("third").unwrap().acquire().await.map(drop),
    ];
    for refused in refused {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ClientClosed);
    }
    locks.close().await.unwrap();
    assert!(others.lock(KEY).unwrap().try_acquire().await.unwrap().is_some());
}

async fn fences_grow_or_are_none(engine: impl Engine) {
    let clients = [engine.client(), engine.client()];
    let mut last = None;
    for n in 0..6 {
        let guard = clients[n % 2].lock(KEY).unwrap().acquire().await.unwrap();
        let fence = guard.fence();
        assert_eq!(fence.is_some(), clients[0].capabilities().fences);
        assert!(fence.is_none() || fence > last, "{fence:?} after {last:?}");
        last = fence;
        guard.release().await.unwrap();
    }
}

async fn waiters_of_different_clients_are_served_in_order(engine: impl Engine) {
    let locks = engine.client();
    if !locks.capabilities().fifo {
        return;
    }
    let guard = locks.lock(KEY).unwrap().acquire().await.unwrap();
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    for waiting in 1..=5 {
        let (lock, tell) = (engine.client().lock(KEY).unwrap(), tell.clone());
        tokio::spawn(async move {
            let guard = lock.acquire().await.unwrap();
            tell.send(waiting).unwrap();
            guard.release().await.unwrap();
        });
        engine.settles(Census { held: 1, waiting }).await;
    }
    guard.release().await.unwrap();
    for expected in 1..=5 {
        assert_eq!(told.recv().await, Some(expected));
    }
}

async fn semaphores_count_or_are_unsupported(engine: impl Engine) {
    let locks = engine.client();
    if !locks.capabilities().semaphores {
        assert_eq!(locks.semaphore(KEY, 2).unwrap_err().kind(), ErrorKind::Unsupported);
        return assert_eq!(engine.census(), NOTHING);
    }
    let slots = locks.semaphore(KEY, 2).unwrap();
    let (first, _second) = (slots.acquire().await.unwrap(), slots.acquire().await.unwrap());
    let others = engine.client().semaphore(KEY, 2).unwrap();
    assert!(others.try_acquire().await.unwrap().is_none());
    first.release().await.unwrap();
    assert!(others.try_acquire().await.unwrap().is_some());
}

async fn a_place_in_the_queue_is_kept_or_unsupported(engine: impl Engine) {
    let locks = engine.client();
    let lock = locks.lock(KEY).unwrap();
    if !locks.capabilities().enqueue {
        let error = lock.enqueue().now_or_never().expect("it is known before any I/O").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        return assert_eq!(engine.census(), NOTHING);
    }
    let Enqueued::Acquired(guard) = lock.enqueue().await.unwrap() else { panic!("it is free") };
    let Enqueued::Queued(dropped) = lock.enqueue().await.unwrap() else { panic!("it is taken") };
    let Enqueued::Queued(ticket) = lock.enqueue().await.unwrap() else { panic!("it is taken") };
    engine.settles(Census { held: 1, waiting: 2 }).await;
    drop(dropped);
    guard.release().await.unwrap();
    ticket.wait(CAP).await.unwrap().release().await.unwrap();
    engine.settles(NOTHING).await;
}

async fn keys_do_not_exclude_each_other(engine: impl Engine) {
    let locks = engine.client();
    let keys = ["a", "A.b", "a/b", "a%2Fb", "..", ".lock", "é", "a|b|1|2", "a.lock"];
    let guards = join_all(keys.map(|key| {
        let lock = locks.lock(key).unwrap();
        async move { lock.try_acquire().await.unwrap().expect("it is free") }
    }))
    .await;
    assert_eq!(guards.len(), keys.len());
    engine.settles(Census { held: keys.len(), waiting: 0 }).await;
    locks.close().await.unwrap();
    assert_eq!(engine.census(), NOTHING);
}
