//! Tasks: guards over a lock file, how they are kept and lost, and futures that are dropped.

use std::fs;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::{Duration, SystemTime};

use dflockd_client::{ErrorKind, LeaseEventKind, LeaseGuard, LeaseState, LostReason};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::support::{Place, kind, set_end};

const S: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_guard_holds_the_file_and_leaves_it() {
    let place = Place::new();
    let lock = place.lock();
    let guard = lock.acquire().await.unwrap();
    assert_eq!(guard.state(), LeaseState::Healthy);
    assert_eq!(guard.fence(), None);
    assert_eq!(guard.key().to_text(), place.path().to_string_lossy());
    assert_ends_with_the_file(&guard, &place);
    assert_eq!(fs::read_to_string(place.path()).unwrap(), guard.token().expose());
    assert!(format!("{:?}", guard.token()).len() < 20);
    assert!(lock.try_acquire().await.unwrap().is_none());
    guard.release().await.unwrap();
    assert!(place.files().is_empty());
}

/// A guard may not count as held for longer than the file lasts.
fn assert_ends_with_the_file(guard: &LeaseGuard, place: &Place) {
    let end = place.lock().expiration().unwrap();
    let left = end.duration_since(SystemTime::now()).unwrap();
    assert!(guard.deadline() - Instant::now() <= left);
    assert!(guard.is_held());
}

#[tokio::test]
async fn a_guard_hears_that_its_file_was_removed_or_replaced() {
    for (replace, reason) in [(false, LostReason::FileRemoved), (true, LostReason::FileReplaced)] {
        let place = Place::new();
        let guard = place.lock().acquire().await.unwrap();
        fs::remove_file(place.path()).unwrap();
        if replace {
            fs::write(place.path(), "another's").unwrap();
        }
        assert_eq!(guard.lost().await, reason);
        assert_eq!(kind(guard.release().await), ErrorKind::LeaseLost);
        // The claim is taken away in the background; another's file stays.
        until_left(&place, usize::from(replace)).await;
    }
}

#[tokio::test]
async fn many_tasks_share_one_lock_object_and_one_holds_at_a_time() {
    let place = Place::new();
    let lock = Arc::new(place.builder().poll(Duration::from_millis(20)).build().unwrap());
    let count = Arc::new(Mutex::new((0, 0)));
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let (lock, count) = (lock.clone(), count.clone());
            tokio::spawn(async move {
                let guard = lock.acquire().await.unwrap();
                let inside = || count.lock().unwrap();
                inside().0 += 1;
                assert_eq!(inside().0, 1);
                tokio::task::yield_now().await;
                inside().0 -= 1;
                inside().1 += 1;
                guard.release().await.unwrap();
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(count.lock().unwrap().1, 20);
    assert!(place.files().is_empty(), "{:?}", place.files());
}

#[tokio::test]
async fn a_dropped_acquire_leaves_nothing_behind() {
    let place = Place::new();
    let lock = place.lock();
    for polls in 0..40 {
        let mut future = Box::pin(lock.acquire());
        for _ in 0..polls {
            if let Poll::Ready(guard) = futures::poll!(&mut future) {
                guard.unwrap().release().await.unwrap();
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(future);
        // Whoever comes next gets it, at once or when the dropped one is cleaned up.
        lock.acquire_within(60 * S).await.unwrap().release().await.unwrap();
    }
    until_left(&place, 0).await;
}

async fn until_left(place: &Place, files: usize) {
    while place.files().len() != files {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_guard_outlives_its_lifetime_by_refreshing() {
    let place = Place::new();
    let (tell, mut told) = mpsc::unbounded_channel();
    let builder = place.builder().lifetime(2 * S).slop(Duration::ZERO);
    let lock = builder.on_event(move |event| drop(tell.send(event.kind.clone()))).build().unwrap();
    let guard = lock.acquire().await.unwrap();
    let end = lock.expiration_async().await.unwrap();
    assert!(matches!(told.recv().await, Some(LeaseEventKind::Granted { .. })));
    while lock.expiration_async().await.unwrap() < end + S || SystemTime::now() < end + S {
        assert!(matches!(told.recv().await, Some(LeaseEventKind::Renewed { .. })));
    }
    assert!(guard.is_held());
    assert!(lock.try_acquire().await.unwrap().is_none());
    assert!(guard.renew().await.unwrap() > Duration::ZERO);
    assert_ends_with_the_file(&guard, &place);
    guard.release().await.unwrap();
    assert!(place.files().is_empty());
}

#[tokio::test]
async fn a_guard_whose_lock_is_broken_hears_of_it_and_takes_nothing_from_the_next() {
    let place = Place::new();
    let lock = place.lock();
    let guard = lock.acquire().await.unwrap();
    set_end(&place.path(), SystemTime::now() - 100 * S);
    let next = lock.acquire().await.unwrap();
    assert_eq!(guard.lost().await, LostReason::FileReplaced);
    drop(guard);
    next.renew().await.unwrap();
    next.release().await.unwrap();
    until_left(&place, 0).await;
}

#[tokio::test]
async fn a_renewal_by_hand_says_that_the_lock_is_lost_and_why() {
    let place = Place::new();
    let guard = place.lock().acquire().await.unwrap();
    fs::remove_file(place.path()).unwrap();
    let error = guard.renew().await.unwrap_err();
    assert!(error.is_lease_lost(), "{error}");
    assert_eq!(guard.state(), LeaseState::Lost(LostReason::FileRemoved));
}

#[tokio::test(start_paused = true)]
async fn a_guard_that_was_starved_of_its_refreshes_is_lost_at_its_deadline() {
    let place = Place::new();
    let guard = place.lock().acquire().await.unwrap();
    assert!(guard.is_held());
    tokio::time::advance(16 * S).await;
    assert!(!guard.is_held());
    assert_eq!(guard.state(), LeaseState::Lost(LostReason::DeadlinePassed));
}

#[tokio::test]
async fn a_forgotten_guard_leaves_the_lock_to_run_out() {
    let place = Place::new();
    let lock = place.lock();
    lock.acquire().await.unwrap().forget();
    assert!(lock.try_acquire().await.unwrap().is_none());
    assert_eq!(place.files().len(), 2);
}

#[test]
fn a_guard_that_is_dropped_after_its_runtime_leaves_the_lock() {
    let place = Place::new();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let guard = runtime.block_on(place.lock().acquire()).unwrap();
    drop(runtime);
    assert!(!guard.is_held());
    drop(guard);
    assert!(place.files().is_empty(), "{:?}", place.files());
}

#[test]
fn what_is_dropped_as_the_runtime_ends_leaves_nothing_behind() {
    let place = Place::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let lock = place.lock();
    runtime.block_on(async {
        let guard = lock.acquire().await.unwrap();
        let waiting = lock.acquire_within(60 * S);
        let mut waiting = Box::pin(waiting);
        assert!(futures::poll!(&mut waiting).is_pending());
        drop(waiting);
        drop(guard);
    });
    drop(runtime);
    assert!(place.files().is_empty(), "{:?}", place.files());
}

#[tokio::test]
async fn a_dropped_lock_async_leaves_the_object_ready_for_the_next_call() {
    let place = Place::new();
    let (lock, other) = (place.lock(), place.lock());
    other.lock_async(None).await.unwrap();
    for polls in 1..10 {
        let mut future = Box::pin(lock.lock_async(None));
        for _ in 0..polls {
            assert!(futures::poll!(&mut future).is_pending());
            tokio::task::yield_now().await;
        }
    }
    assert!(!lock.is_locked_async().await.unwrap());
    until_left(&place, 2).await;
    other.unlock_async().await.unwrap();
    lock.lock_async(60 * S).await.unwrap();
    assert!(lock.is_locked_async().await.unwrap());
    lock.refresh_async(None).await.unwrap();
    lock.unlock_unconditionally_async().await.unwrap();
    assert_eq!(kind(lock.unlock_async().await), ErrorKind::NotLocked);
    assert!(place.files().is_empty(), "{:?}", place.files());
}
