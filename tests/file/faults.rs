//! Bad input, and everything that can stand where a lock is expected.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use dflockd_client::file::Builder;
use dflockd_client::{ErrorKind, FileLock, LockState, Result};

use crate::support::{Place, Process, set_end};

const S: Duration = Duration::from_secs(1);
const SHORT: Duration = Duration::from_millis(20);

fn long_ago() -> SystemTime {
    SystemTime::now() - 1000 * S
}

fn fault(builder: Builder) -> String {
    let error = builder.build().expect_err("it cannot work");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    error.to_string()
}

#[test]
fn bad_settings_are_refused_by_build_with_their_fault_and_the_limit() {
    let lock = || FileLock::builder("/d/x.lck").hostname("h");
    let cases = [
        (FileLock::builder(""), "invalid input: lockfile is empty"),
        (FileLock::builder("/d/"), "invalid input: lockfile /d/ does not end in a file's name"),
        (FileLock::builder("/d/.."), "invalid input: lockfile /d/.. does not end in a file's name"),
        (FileLock::builder("a\0b"), "invalid input: lockfile \"a\\0b\" has a zero byte"),
        (
            FileLock::builder("/d/a|b"),
            "invalid input: lockfile /d/a|b contains the separator \"|\", set another one",
        ),
        (lock().lifetime(Duration::from_millis(999)), "invalid input: lifetime is 999ms, the least is 1 s"),
        (
            lock().lifetime(Duration::MAX),
            "invalid input: lifetime is 18446744073709551615 s, the limit is 9223372036 s",
        ),
        (lock().poll(Duration::ZERO), "invalid input: poll is 0, it must be longer"),
        (lock().separator(""), "invalid input: separator is empty"),
        (lock().hostname(""), "invalid input: hostname is empty"),
        (lock().hostname("a|b"), "invalid input: hostname is \"a|b\", it contains the separator \"|\""),
    ];
    for (builder, text) in cases {
        assert_eq!(fault(builder), text);
    }
    for separator in ["/", "1", " ", "a/", "\n"] {
        assert!(fault(lock().separator(separator)).starts_with("invalid input: separator is "));
    }
    for hostname in ["a/b", "a b", "a\n"] {
        assert!(fault(lock().hostname(hostname)).starts_with("invalid input: hostname is "));
    }
}

#[test]
fn a_name_that_outgrows_the_file_system_is_refused_by_build_and_the_longest_one_works() {
    let place = Place::new();
    let builder = |length: usize| FileLock::builder(place.dir().join("n".repeat(length))).hostname("host");
    // Three separators and "|break", ten digits of a process, nineteen at random, the host's name.
    let longest = 255 - 3 - 6 - 10 - 19 - 4;
    let lock = builder(longest).build().unwrap();
    lock.lock(None).unwrap();
    set_end(lock.claimfile(), long_ago());
    let next = builder(longest).build().unwrap();
    next.lock(None).unwrap();
    let text = fault(builder(longest + 1));
    assert!(text.contains("grows to 256 bytes") && text.ends_with("the limit is 255"), "{text}");
}

#[test]
fn another_separator_allows_for_the_usual_one_in_the_path() {
    let place = Place::new();
    let builder = || FileLock::builder(place.dir().join("a|b")).hostname("h").separator("::");
    let (one, other) = (builder().build().unwrap(), builder().build().unwrap());
    one.lock(None).unwrap();
    assert_eq!(other.details().unwrap().lockfile, place.dir().join("a|b"));
    set_end(one.claimfile(), long_ago());
    assert!(other.try_lock().unwrap());
    other.unlock().unwrap();
    assert!(place.files().is_empty());
}

#[test]
fn a_path_need_not_be_text() {
    let place = Place::new();
    let path = place.dir().join(OsStr::from_bytes(b"\xff\xfe.lck"));
    let build = || FileLock::builder(&path).hostname("h").build().unwrap();
    let (one, other) = (build(), build());
    one.lock(None).unwrap();
    assert_eq!(other.details().unwrap().lockfile, path);
    set_end(one.claimfile(), long_ago());
    assert!(other.try_lock().unwrap());
    assert!(other.is_locked().unwrap());
    other.unlock().unwrap();
    assert!(place.files().is_empty());
}

#[test]
fn a_relative_path_keeps_its_meaning_when_it_is_built() {
    let lock = FileLock::builder("target/relative.lck").hostname("h").build().unwrap();
    assert_eq!(lock.lockfile(), std::env::current_dir().unwrap().join("target/relative.lck"));
}

#[test]
fn a_missing_directory_is_an_error_that_names_the_path_and_the_cause() {
    let place = Place::new();
    let path = place.dir().join("none/x.lck");
    let error = FileLock::builder(&path).hostname("h").build().unwrap().lock(None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    let text = error.to_string();
    assert!(text.starts_with(&format!("lock of {path:?}: i/o error: could not write the claim")), "{text}");
    assert!(std::error::Error::source(&error).is_some());
    assert_eq!(std::io::Error::from(error).kind(), std::io::ErrorKind::NotFound);
}

#[test]
fn a_directory_at_the_path_is_an_error_and_no_claim_is_left() {
    let place = Place::new();
    fs::create_dir(place.path()).unwrap();
    let error = place.lock().lock(None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().contains("directory"), "{error}");
    assert_eq!(place.files(), ["x.lck"]);
}

#[test]
fn reading_is_tried_again_on_the_errors_that_are_listed() {
    const EISDIR: i32 = 21;
    let place = Place::new();
    fs::create_dir(place.path()).unwrap();
    let lock = place.builder().retry_errnos([EISDIR]).build().unwrap();
    assert_eq!(lock.retry_errnos(), [EISDIR]);
    assert_eq!(lock.lock(SHORT).unwrap_err().kind(), ErrorKind::Busy);
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| lock.lock(None));
        fs::remove_dir(place.path()).unwrap();
        waiter.join().unwrap().unwrap();
    });
}

/// What no contender takes for a lock, however old it is.
#[test]
fn an_unrelated_file_is_never_touched_and_times_out() {
    let texts: [&[u8]; 7] = [
        b"",
        b"notes, not a lock\n",
        b"\x00\xff\xfe",
        b"/d/x.lck|elsewhere|1",
        b"/d/x.lck|elsewhere|1|2|3",
        b"/d/x.lck|elsewhere|one|2",
        &[b'|'; 100_000],
    ];
    for text in texts {
        let place = Place::new();
        fs::write(place.path(), text).unwrap();
        set_end(&place.path(), long_ago());
        let before = fs::metadata(place.path()).unwrap();
        let lock = place.lock();
        let error = lock.lock(SHORT).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
        assert!(error.to_string().ends_with("the file at the path is not a lock, and is left alone"));
        assert!(!lock.try_lock().unwrap());
        assert_eq!(lock.state().unwrap(), LockState::Unknown);
        assert_eq!(lock.details().unwrap_err().kind(), ErrorKind::NotLocked);
        lock.unlock_unconditionally().unwrap();
        let after = fs::metadata(place.path()).unwrap();
        assert_eq!(fs::read(place.path()).unwrap(), text);
        assert_eq!(
            (before.ino(), before.mtime(), before.nlink()),
            (after.ino(), after.mtime(), after.nlink())
        );
        assert_eq!(place.files(), ["x.lck"]);
    }
}

#[test]
fn a_pipe_or_a_symbolic_link_at_the_path_neither_blocks_nor_changes() {
    let place = Place::new();
    assert!(Command::new("mkfifo").arg(place.path()).status().unwrap().success());
    assert_eq!(place.lock().lock(SHORT).unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(place.lock().state().unwrap(), LockState::Unknown);
    fs::remove_file(place.path()).unwrap();

    let elsewhere = place.abandoned("elsewhere.lck");
    std::os::unix::fs::symlink(&elsewhere, place.path()).unwrap();
    assert_eq!(place.lock().lock(SHORT).unwrap_err().kind(), ErrorKind::Busy);
    assert!(fs::symlink_metadata(place.path()).unwrap().is_symlink());
}

#[test]
fn a_lock_file_with_one_or_three_links_is_waited_for_and_broken_when_it_expires() {
    for links in [1, 3] {
        let place = Place::new();
        let path = place.abandoned("x.lck");
        set_end(&path, SystemTime::now() + 100 * S);
        if links == 1 {
            fs::remove_file(format!("{}|elsewhere|1|17", path.display())).unwrap();
        } else {
            fs::hard_link(&path, place.dir().join("backup")).unwrap();
        }
        assert_eq!(fs::metadata(&path).unwrap().nlink(), links);
        let lock = place.lock();
        assert!(!lock.try_lock().unwrap());
        set_end(&path, long_ago());
        assert!(lock.try_lock().unwrap());
        lock.unlock().unwrap();
        assert_eq!(place.files().len(), usize::from(links == 3), "{:?}", place.files());
    }
}

#[test]
fn a_third_link_to_a_held_lock_makes_it_look_lost() {
    let place = Place::new();
    let lock = place.lock();
    lock.lock(None).unwrap();
    let backup = place.dir().join("backup");
    fs::hard_link(place.path(), &backup).unwrap();
    assert!(!lock.is_locked().unwrap());
    fs::remove_file(backup).unwrap();
    assert!(lock.is_locked().unwrap());
}

#[test]
fn a_clock_that_is_set_back_leaves_the_holder_its_lock() {
    let place = Place::new();
    let seconds = Arc::new(AtomicU64::new(1_000_000));
    let build = || place.builder().clock(clock(&seconds)).build().unwrap();
    let (one, other) = (build(), build());
    one.lock(None).unwrap();
    assert_eq!(one.expiration().unwrap(), SystemTime::UNIX_EPOCH + 1_000_015 * S);
    seconds.store(500_000, Ordering::Relaxed);
    assert!(!other.try_lock().unwrap());
    one.refresh(None).unwrap();
    assert_eq!(one.expiration().unwrap(), SystemTime::UNIX_EPOCH + 500_015 * S);
    seconds.store(500_025, Ordering::Relaxed);
    assert!(!other.try_lock().unwrap(), "the slop is not over");
    seconds.store(500_026, Ordering::Relaxed);
    assert!(other.try_lock().unwrap());
}

/// A clock that the test sets, in seconds since 1970.
fn clock(seconds: &Arc<AtomicU64>) -> impl Fn() -> SystemTime + Send + Sync + 'static {
    let seconds = seconds.clone();
    move || SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.load(Ordering::Relaxed))
}

#[test]
fn a_late_holder_keeps_its_lock_if_nobody_is_about_to_break_it() {
    for broken in [false, true] {
        let place = Place::new();
        let seconds = Arc::new(AtomicU64::new(1_000_000));
        let lock = place.builder().clock(clock(&seconds)).build().unwrap();
        lock.lock(None).unwrap();
        seconds.store(1_000_100, Ordering::Relaxed);
        let end = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_105);
        let challenge = broken.then(|| foreign_challenge(&place, "z", end));
        assert_eq!(lock.is_locked().unwrap(), !broken);
        assert_eq!(lock.unlock().is_ok(), !broken);
        if let Some(challenge) = challenge {
            assert!(place.path().exists(), "the breaker has judged it, and it is the breaker's to take");
            fs::remove_file(challenge).unwrap();
            fs::remove_file(place.path()).unwrap();
        }
        assert!(place.files().is_empty(), "{:?}", place.files());
    }
}

/// A challenge that another contender has made, with an end.
fn foreign_challenge(place: &Place, host: &str, end: SystemTime) -> std::path::PathBuf {
    let path = place.dir().join(format!("x.lck|{host}|1|1|break"));
    fs::write(&path, "").unwrap();
    set_end(&path, end);
    path
}

#[test]
fn whoever_breaks_the_lock_already_is_not_disturbed_before_it_is_dead() {
    let place = Place::new();
    // Names before and after ours: one yields to the first, and waits for the second.
    for host in ["a", "z"] {
        let path = place.abandoned("x.lck");
        let challenge = foreign_challenge(&place, host, SystemTime::now() + 100 * S);
        let lock = place.lock();
        assert_eq!(lock.lock(SHORT).unwrap_err().kind(), ErrorKind::Busy);
        assert!(lock.expiration().unwrap() < SystemTime::now(), "it is not touched");
        assert_eq!(place.files().len(), 3, "{:?}", place.files());
        set_end(&challenge, long_ago());
        assert!(lock.try_lock().unwrap());
        lock.unlock().unwrap();
        assert!(place.files().is_empty(), "{:?}", place.files());
        assert!(!path.exists());
    }
}

#[test]
fn a_breaker_takes_away_the_claims_of_the_dead_and_of_nobody_else() {
    let place = Place::new();
    let held = place.abandoned("x.lck");
    set_end(&held, SystemTime::now() + 100 * S);
    let mut gone = Process::start("hold", &place.path());
    let claim = place.claim_of("here", gone.id());
    gone.kill();
    // Somebody who writes as Python does, with a number that tells nothing of where it is from.
    let written = |host: &str, pid: u32| {
        let path = place.dir().join(format!("x.lck|{host}|{pid}|5"));
        fs::write(&path, "").unwrap();
        set_end(&path, long_ago());
        path
    };
    let own = std::process::id();
    let stay = [written("here", own), written("here", gone.id()), written("far", gone.id())];
    let notes = place.dir().join("x.lck|notes");
    fs::write(&notes, "").unwrap();

    // One that may be about to link its claim keeps it.
    set_end(&held, long_ago());
    let lock = place.lock();
    assert!(lock.try_lock().unwrap());
    assert!(claim.exists());
    set_end(&claim, long_ago());
    set_end(lock.claimfile(), long_ago());
    let next = place.lock();
    assert!(next.try_lock().unwrap());
    assert!(!claim.exists());
    assert!(stay.iter().all(|path| path.exists()) && notes.exists(), "{:?}", place.files());
    next.unlock().unwrap();
    assert_eq!(place.files().len(), 4, "{:?}", place.files());
}

#[tokio::test]
async fn a_guard_wants_a_lifetime_of_two_seconds() -> Result<()> {
    let place = Place::new();
    let lock = place.builder().lifetime(S).build()?;
    let error = lock.acquire().await.unwrap_err();
    assert_eq!(error.to_string(), "invalid input: lifetime is 1s, the least for a guard is 2 s");
    lock.set_lifetime(2 * S)?;
    lock.acquire().await?.release().await
}
