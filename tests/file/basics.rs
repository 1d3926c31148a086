//! Taking, keeping, leaving, asking: one process.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dflockd_client::{ErrorKind, FileLock, LeaseState, LockState, LostReason};

use crate::support::Place;

const S: Duration = Duration::from_secs(1);

fn kind<T: std::fmt::Debug>(outcome: dflockd_client::Result<T>) -> ErrorKind {
    outcome.expect_err("it must fail").kind()
}

#[test]
fn a_lock_is_a_second_link_to_a_claim_that_says_its_own_path() {
    let place = Place::new();
    let lock = place.lock();
    lock.lock(None).unwrap();
    let claim = lock.claimfile().to_str().unwrap();
    let (file, link) = (fs::metadata(place.path()).unwrap(), fs::metadata(claim).unwrap());
    assert_eq!(fs::read_to_string(place.path()).unwrap(), claim);
    assert_eq!((file.ino(), file.nlink()), (link.ino(), 2));
    assert_eq!((file.mtime_nsec(), file.atime()), (0, file.mtime()));
    let fields: Vec<_> = claim.rsplit('|').collect();
    assert_eq!(fields[1..], [&std::process::id().to_string(), "here", place.path().to_str().unwrap()]);
    assert!(fields[0].parse::<i64>().is_ok());
    lock.unlock().unwrap();
    assert!(place.files().is_empty());
}

#[test]
fn two_locks_of_one_process_exclude_each_other() {
    let place = Place::new();
    let (one, other) = (place.lock(), place.lock());
    one.lock(None).unwrap();
    assert!(!other.try_lock().unwrap());
    assert_eq!(kind(other.lock(Duration::from_millis(20))), ErrorKind::Timeout);
    assert!(one.is_locked().unwrap() && !other.is_locked().unwrap());
    assert_eq!(kind(other.unlock()), ErrorKind::NotLocked);
    assert_eq!(place.files().len(), 2, "whoever timed out leaves no claim: {:?}", place.files());
    one.unlock().unwrap();
    other.lock(None).unwrap();
    assert!(other.is_locked().unwrap());
}

#[test]
fn a_lock_is_not_reentrant_and_says_so() {
    let place = Place::new();
    let lock = place.lock();
    lock.lock(None).unwrap();
    assert_eq!(kind(lock.lock(None)), ErrorKind::AlreadyLocked);
    assert_eq!(kind(lock.try_lock()), ErrorKind::AlreadyLocked);
    assert!(lock.is_locked().unwrap(), "asking twice takes nothing away");
}

#[test]
fn a_dropped_lock_is_let_go() {
    let place = Place::new();
    let lock = place.lock();
    lock.lock(None).unwrap();
    drop(lock);
    assert!(place.files().is_empty());
}

#[test]
fn what_is_not_locked_can_be_neither_refreshed_nor_left_unless_unconditionally() {
    let place = Place::new();
    let lock = place.lock();
    assert_eq!(kind(lock.refresh(None)), ErrorKind::NotLocked);
    assert_eq!(kind(lock.unlock()), ErrorKind::NotLocked);
    lock.refresh_unconditionally(None).unwrap();
    lock.unlock_unconditionally().unwrap();
    assert_eq!(kind(lock.details()), ErrorKind::NotLocked);
    assert_eq!(kind(lock.expiration()), ErrorKind::NotLocked);
    assert_eq!(lock.state().unwrap(), LockState::Unlocked);
}

#[test]
fn a_refresh_moves_the_end_and_keeps_the_new_lifetime() {
    let place = Place::new();
    let lock = place.lock();
    lock.lock(None).unwrap();
    let now = SystemTime::now();
    lock.refresh(100 * S).unwrap();
    assert_eq!(lock.lifetime(), 100 * S);
    let left = lock.expiration().unwrap().duration_since(now).unwrap();
    assert!(left > 98 * S && left < 110 * S, "{left:?}");
    assert_eq!(kind(lock.refresh(Duration::ZERO)), ErrorKind::InvalidInput);
}

#[test]
fn an_expired_lock_is_broken_and_its_claim_goes_with_it() {
    let place = Place::new();
    let (one, other) = (place.lock(), place.builder().build().unwrap());
    one.lock(None).unwrap();
    expire(&one);
    other.lock(Duration::ZERO).unwrap();
    assert!(other.is_locked().unwrap());
    assert_eq!(place.files().len(), 2, "{:?}", place.files());
    assert!(!one.is_locked().unwrap());
    assert_eq!(kind(one.unlock()), ErrorKind::NotLocked);
    assert!(other.is_locked().unwrap(), "the late one takes nothing away");
    other.unlock().unwrap();
    assert!(place.files().is_empty(), "{:?}", place.files());
}

#[test]
fn a_lock_that_was_broken_can_be_taken_again_by_the_same_object() {
    let place = Place::new();
    let (one, other) = (place.lock(), place.lock());
    one.lock(None).unwrap();
    expire(&one);
    other.lock(None).unwrap();
    assert!(!one.try_lock().unwrap());
    other.unlock().unwrap();
    assert!(one.try_lock().unwrap());
}

/// Sets a lock's end far back, as if nobody had refreshed it.
fn expire(lock: &FileLock) {
    let file = fs::File::open(lock.claimfile()).unwrap();
    let long_ago = SystemTime::now() - 100 * S;
    file.set_modified(long_ago).unwrap();
}

#[tokio::test]
async fn a_guard_holds_the_file_and_leaves_it() {
    let place = Place::new();
    let lock = place.lock();
    let guard = lock.acquire().await.unwrap();
    assert_eq!(guard.state(), LeaseState::Healthy);
    assert_eq!(guard.fence(), None);
    assert_eq!(guard.key().to_text(), place.path().to_string_lossy());
    assert!(guard.ttl() <= 15 * S && guard.ttl() > 10 * S, "{:?}", guard.ttl());
    assert_eq!(fs::read_to_string(place.path()).unwrap(), guard.token().expose());
    assert!(format!("{:?}", guard.token()).len() < 20);
    assert!(lock.try_acquire().await.unwrap().is_none());
    guard.release().await.unwrap();
    assert!(place.files().is_empty());
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
    let count = Arc::new(std::sync::Mutex::new((0, 0)));
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
            if let std::task::Poll::Ready(guard) = futures::poll!(&mut future) {
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
