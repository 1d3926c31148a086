//! The directory engine alone: its files, its settings, and what it cannot do.

use std::fs;
use std::path::Path;
use std::time::Duration;

use dflockd_client::{
    AsyncDistributedLock, AsyncDistributedSemaphore, Directory, ErrorKind, FileLock, LeaseEventKind,
    LockClient, LockOptions, RetryPolicy, SyncDistributedLock,
};
use futures::FutureExt;
use tempfile::TempDir;

fn directory(dir: &Path) -> Directory {
    Directory::new(dir).hostname("here").poll(Duration::from_millis(5))
}

fn client(dir: &Path) -> LockClient {
    LockClient::builder().backend(directory(dir)).build().unwrap()
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn temp() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[tokio::test]
async fn a_key_is_a_lock_file_that_excludes_a_file_lock() {
    let dir = temp();
    let locks = client(dir.path());
    let path = directory(dir.path()).path("jobs/17").unwrap();
    assert_eq!(path, dir.path().join("jobs%2F17.lock"));
    let guard = locks.lock("jobs/17").unwrap().acquire().await.unwrap();
    assert_eq!((guard.key().to_string(), guard.fence()), ("jobs/17".to_owned(), None));
    assert!(guard.ttl() <= Duration::from_secs(15) && guard.ttl() > Duration::from_secs(12));
    let other = FileLock::builder(&path).hostname("here").build().unwrap();
    assert!(!other.try_lock().unwrap());
    guard.release().await.unwrap();
    assert!(files(dir.path()).is_empty());
    assert!(other.try_lock().unwrap());
    let error = locks.lock("jobs/17").unwrap().acquire_within(Duration::from_millis(20)).await.unwrap_err();
    assert!(error.is_busy(), "{error}");
    assert!(locks.lock("jobs/17").unwrap().try_acquire().await.unwrap().is_none());
}

#[tokio::test]
async fn what_it_cannot_do_is_unsupported_before_any_file_is_touched() {
    let dir = temp();
    let missing = dir.path().join("missing");
    let locks = client(&missing);
    let errors = [
        locks.semaphore("k", 2).unwrap_err(),
        AsyncDistributedSemaphore::builder("k", 1).backend(directory(&missing)).build().unwrap_err(),
        locks.lock("k").unwrap().enqueue().now_or_never().expect("no I/O").unwrap_err(),
        locks.stats().now_or_never().expect("no I/O").unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    }
    let can = locks.capabilities();
    assert!(!(can.semaphores || can.enqueue || can.fifo || can.fences));
}

#[tokio::test]
async fn bad_settings_and_keys_are_named_before_any_file_is_touched() {
    let dir = temp();
    let locks = client(dir.path());
    let error = locks.lock("x/".repeat(100)).unwrap_err();
    let text = error.to_string();
    assert!(error.is_invalid_input() && text.contains("x/x/") && text.contains("405 bytes"), "{text}");
    assert!(text.contains("limit is 213"), "{text}");
    // The longest that passes makes claims and challenges that the file system takes.
    let longest = "k".repeat(208);
    locks.lock(&longest).unwrap().acquire().await.unwrap().release().await.unwrap();
    assert!(locks.lock(longest + "k").unwrap_err().is_invalid_input());

    let brief = LockOptions::new().lease_ttl(Duration::from_secs(1));
    let error = locks.lock("k").unwrap().with_options(brief).unwrap_err();
    assert!(error.is_invalid_input() && error.to_string().contains("lease_ttl"), "{error}");
    let separated = dir.path().join("a|b");
    for (given, field) in [
        (directory(Path::new("")), "directory"),
        (directory(&separated), "directory"),
        (directory(dir.path()).separator("_"), "separator"),
        (directory(dir.path()).separator("%"), "separator"),
        (directory(dir.path()).separator(""), "separator"),
        (directory(dir.path()).hostname(""), "hostname"),
        (directory(dir.path()).poll(Duration::ZERO), "poll"),
    ] {
        let error = LockClient::builder().backend(given).build().unwrap_err();
        assert!(error.is_invalid_input() && error.to_string().contains(field), "{field}: {error}");
    }
}

#[tokio::test]
async fn a_directory_that_is_none_is_named() {
    let dir = temp();
    let missing = dir.path().join("missing");
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    for (path, fault) in [(&missing, "does not exist"), (&file, "is not a directory")] {
        let error = client(path).lock("k").unwrap().acquire().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io, "{error}");
        let text = error.to_string();
        assert!(text.contains(fault) && text.contains(&path.display().to_string()), "{text}");
        assert_eq!(error.server(), Some(path.join("k.lock").to_str().unwrap()));
        assert_eq!(error.key().unwrap().to_string(), "k");
    }
}

#[tokio::test]
async fn an_acquire_is_tried_again_until_the_directory_is_there() {
    let dir = temp();
    let late = dir.path().join("late");
    let retry = RetryPolicy::new().first_pause(Duration::from_millis(10));
    let lock = AsyncDistributedLock::builder("k").backend(directory(&late)).retry(retry).build().unwrap();
    let waits = tokio::spawn(async move { lock.acquire().await });
    tokio::time::sleep(Duration::from_millis(30)).await;
    fs::create_dir(&late).unwrap();
    waits.await.unwrap().unwrap().release().await.unwrap();
}

#[tokio::test]
async fn events_and_metrics_tell_of_the_lock_file() {
    let dir = temp();
    let (tell, told) = std::sync::mpsc::channel();
    let locks = LockClient::builder()
        .on_event(move |event| tell.send((event.endpoint.to_string(), event.kind.clone())).unwrap())
        .backend(directory(dir.path()))
        .build()
        .unwrap();
    let guard = locks.lock("k").unwrap().acquire().await.unwrap();
    let path = dir.path().join("k.lock").to_str().unwrap().to_owned();
    assert!(matches!(told.recv().unwrap(), (named, LeaseEventKind::Granted { .. }) if named == path));
    assert_eq!(locks.metrics().leases, 1);
    guard.release().await.unwrap();
    assert_eq!((locks.metrics().leases, locks.metrics().acquires, locks.metrics().releases), (0, 1, 1));
}

#[test]
fn threads_take_it_as_well() {
    let dir = temp();
    let lock = SyncDistributedLock::builder("k").backend(directory(dir.path())).build().unwrap();
    let guard = lock.acquire().unwrap();
    assert!(lock.try_acquire().unwrap().is_none());
    guard.release().unwrap();
    assert!(files(dir.path()).is_empty());
}

#[tokio::test]
async fn closing_waits_until_every_file_is_gone() {
    const KEYS: usize = 20;
    let dir = temp();
    let (locks, others) = (client(dir.path()), client(dir.path()));
    let guard = locks.lock("own").unwrap().acquire().await.unwrap();
    let (mut held, mut waits) = (Vec::new(), Vec::new());
    for n in 0..KEYS {
        held.push(others.lock(format!("k{n}")).unwrap().acquire().await.unwrap());
        let lock = locks.lock(format!("k{n}")).unwrap();
        waits.push(tokio::spawn(async move { lock.acquire_within(Duration::from_secs(60)).await }));
    }
    // Lock files with their claims, and a claim of each waiter.
    while files(dir.path()).len() < 2 + 3 * KEYS {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    locks.close().await.unwrap();
    assert_eq!(files(dir.path()).len(), 2 * KEYS);
    for waits in waits {
        assert_eq!(waits.await.unwrap().unwrap_err().kind(), ErrorKind::ClientClosed);
    }
    assert!(!guard.is_held() && held.iter().all(|guard| guard.is_held()));
}

#[test]
fn an_acquire_is_small_enough_to_be_moved_about() {
    let dir = temp();
    let lock = client(dir.path()).lock("k").unwrap();
    for size in [size_of_val(&lock.acquire()), size_of_val(&lock.try_acquire())] {
        assert!(size <= 512, "{size} bytes");
    }
}
