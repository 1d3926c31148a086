//! Taking, keeping, leaving, asking: one process.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

use dflockd_client::{ErrorKind, LockState};

use crate::support::{Place, kind, set_end};

const S: Duration = Duration::from_secs(1);

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
    let error = other.lock(Duration::from_millis(20)).unwrap_err();
    assert!(!error.is_timeout() && error.is_busy());
    let holder = format!("process {} on here holds it", std::process::id());
    assert_eq!(error.to_string(), format!("lock of {:?}: the key stayed busy: {holder}", place.path()));
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
    set_end(one.claimfile(), SystemTime::now() - 100 * S);
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
    set_end(one.claimfile(), SystemTime::now() - 100 * S);
    other.lock(None).unwrap();
    assert!(!one.try_lock().unwrap());
    other.unlock().unwrap();
    assert!(one.try_lock().unwrap());
}

#[test]
fn two_calls_of_one_object_wait_for_each_other() {
    let place = Place::new();
    let (lock, other) = (place.lock(), place.lock());
    other.lock(None).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| lock.lock(None));
        while place.files().len() < 3 {
            std::thread::yield_now();
        }
        assert_eq!(kind(lock.lock(Duration::from_millis(5))), ErrorKind::Busy);
        assert!(!lock.is_locked().unwrap());
        other.unlock().unwrap();
        waiting.join().unwrap().unwrap();
    });
    assert_eq!(kind(lock.lock(None)), ErrorKind::AlreadyLocked);
}
