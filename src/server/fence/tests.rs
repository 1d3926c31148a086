//! The counter across restarts, crashes, clock steps and disk failures.

use std::fs;

use super::*;

fn take(counter: &mut FenceCounter, count: usize) -> Vec<u64> {
    (0..count).map(|_| counter.next().unwrap().get()).collect()
}

fn stored(path: &Path) -> u64 {
    u64::from_be_bytes(fs::read(path).unwrap().try_into().unwrap())
}

#[test]
fn counts_up_from_the_wall_clock() {
    assert_eq!(take(&mut FenceCounter::in_memory(42), 3), [42, 43, 44]);
    let directory = tempfile::tempdir().unwrap();
    let mut counter = FenceCounter::open(directory.path().join("fence"), 42).unwrap();
    assert_eq!(take(&mut counter, 3), [42, 43, 44]);
}

#[test]
fn stops_at_the_last_number_instead_of_starting_over() {
    let mut counter = FenceCounter::in_memory(u64::MAX - 2);
    assert_eq!(take(&mut counter, 2), [u64::MAX - 2, u64::MAX - 1]);
    assert_eq!((counter.next(), counter.next()), (None, None));

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fence");
    let mut counter = FenceCounter::open(&path, u64::MAX - 2).unwrap();
    assert_eq!(take(&mut counter, 2), [u64::MAX - 2, u64::MAX - 1]);
    assert_eq!(counter.next(), None);
    drop(counter);
    assert!(FenceCounter::open(&path, 1).unwrap_err().to_string().contains("used up all fences"));
}

#[test]
fn the_ceiling_on_disk_is_above_every_fence_in_use() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fence");
    let mut counter = FenceCounter::open_reserving(&path, 1000, 3).unwrap();
    for expected in 1000..1020 {
        let fence = counter.next().unwrap().get();
        assert_eq!(fence, expected);
        assert!(fence < stored(&path), "{fence} is used before it is reserved");
    }
    assert!(stored(&path) <= 1020 + 3, "no more than a reservation is skipped");
}

#[test]
fn goes_on_above_the_last_run_though_the_clock_is_set_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fence");
    let mut highest = 0;
    for (now, count) in [(5_000_000_000, 3), (7, 5), (0, 1), (4_000_000_000, 2)] {
        let mut counter = FenceCounter::open(&path, now).unwrap();
        let fences = take(&mut counter, count);
        assert!(fences[0] > highest, "{} after {highest}", fences[0]);
        highest = *fences.last().unwrap();
    }
    let later = highest + 1_000_000_000;
    assert_eq!(take(&mut FenceCounter::open(&path, later).unwrap(), 1), [later]);
}

#[test]
fn a_file_of_another_size_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fence");
    for content in [&b""[..], b"1234567", b"123456789", &[0; 4096]] {
        fs::write(&path, content).unwrap();
        let error = FenceCounter::open(&path, 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(error.to_string().contains("not 8 bytes long"), "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        assert_eq!(fs::read(&path).unwrap(), content);
    }
}

#[test]
fn a_second_server_on_the_same_file_is_kept_off_until_the_first_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fence");
    let first = FenceCounter::open(&path, 1).unwrap();
    let error = FenceCounter::open(&path, 1).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
    assert!(error.to_string().contains("in use by another server"), "{error}");
    drop(first);
    FenceCounter::open(&path, 1).unwrap();
}

#[test]
fn a_path_that_cannot_be_written_stops_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing").join("fence");
    assert_eq!(FenceCounter::open(&missing, 1).unwrap_err().kind(), io::ErrorKind::NotFound);
    assert!(FenceCounter::open(directory.path(), 1).is_err(), "a directory is no state file");
}

#[test]
fn no_fence_is_handed_out_while_none_can_be_reserved() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fence");
    let mut counter = FenceCounter::open_reserving(&path, 10, 2).unwrap();
    assert_eq!(take(&mut counter, 2), [10, 11]);
    // A directory in place of the file makes the write fail for every user, root included.
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_eq!((counter.next(), counter.next()), (None, None));
    fs::remove_dir(&path).unwrap();
    assert_eq!(take(&mut counter, 2), [12, 13]);
    assert!(stored(&path) > 13);
}

#[test]
fn a_file_that_was_removed_is_made_anew_with_what_is_reserved_and_kept() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fence");
    let mut counter = FenceCounter::open_reserving(&path, 10, 2).unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(take(&mut counter, 3), [10, 11, 12]);
    assert!(stored(&path) > 12);
    assert_eq!(FenceCounter::open(&path, 1).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
    drop(counter);
    assert!(take(&mut FenceCounter::open(&path, 1).unwrap(), 1)[0] > 12);
}

#[test]
fn a_file_that_was_replaced_is_gone_on_with_above_both() {
    for (found, next) in [(5u64, 12), (1000, 1001)] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fence");
        let mut counter = FenceCounter::open_reserving(&path, 10, 2).unwrap();
        fs::write(directory.path().join("other"), found.to_be_bytes()).unwrap();
        fs::rename(directory.path().join("other"), &path).unwrap();
        assert_eq!(take(&mut counter, 3), [10, 11, next]);
        assert!(stored(&path) > next);
        assert!(FenceCounter::open(&path, 1).is_err(), "it is locked");
    }
}

#[test]
fn a_file_that_another_server_has_is_not_taken_over() {
    let directory = tempfile::tempdir().unwrap();
    let (path, moved) = (directory.path().join("fence"), directory.path().join("moved"));
    let mut counter = FenceCounter::open_reserving(&path, 10, 2).unwrap();
    fs::rename(&path, moved).unwrap();
    let other = FenceCounter::open_reserving(&path, 50, 2).unwrap();
    assert_eq!(take(&mut counter, 2), [10, 11]);
    assert_eq!(counter.next(), None);
    drop(other);
    assert!(counter.next().unwrap().get() > 51);
}

#[cfg(unix)]
#[test]
fn a_link_is_followed_and_its_file_is_locked_by_every_name() {
    use std::os::unix::fs::symlink;
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let first = take(&mut FenceCounter::open(at("fence"), 100).unwrap(), 1)[0];
    symlink("fence", at("link")).unwrap();
    symlink("link", at("link of a link")).unwrap();
    fs::hard_link(at("fence"), at("hard link")).unwrap();
    let names = ["fence", "link", "link of a link", "hard link"];
    let mut last = first;
    for name in names {
        let mut counter = FenceCounter::open_reserving(&at(name), 1, 2).unwrap();
        for other in names {
            let error = FenceCounter::open(at(other), 1).unwrap_err();
            assert!(error.to_string().contains("in use by another server"), "{name}, {other}: {error}");
        }
        for fence in take(&mut counter, 5) {
            assert!(fence > last, "{name}");
            last = fence;
        }
    }
    assert!(fs::symlink_metadata(at("link")).unwrap().is_symlink());
    assert!(names.iter().all(|name| stored(&at(name)) == stored(&at("fence"))), "it is one file still");

    symlink("missing", at("broken")).unwrap();
    let error = FenceCounter::open(at("broken"), 1).unwrap_err().to_string();
    assert!(error.contains("broken is a symbolic link to a file that does not exist"), "{error}");
    assert!(!at("missing").exists());
}

#[cfg(unix)]
#[test]
fn what_is_no_regular_file_is_refused_at_once_and_named() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    assert!(std::process::Command::new("mkfifo").arg(at("fifo")).status().unwrap().success());
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    std::os::unix::fs::symlink("fifo", at("link")).unwrap();
    fs::create_dir(at("directory")).unwrap();
    let cases = [
        (at("fifo"), "a FIFO"),
        (at("link"), "a FIFO"),
        (at("socket"), "a socket"),
        (at("directory"), "a directory"),
        ("/dev/null".into(), "a device"),
        ("/dev/zero".into(), "a device"),
    ];
    for (path, kind) in cases {
        let error = FenceCounter::open(&path, 1).unwrap_err().to_string();
        assert!(
            error.contains(&format!("{} is {kind}: it must be a regular file", path.display())),
            "{error}"
        );
    }
}

#[test]
fn servers_that_make_the_file_at_once_leave_it_to_one() {
    for _ in 0..50 {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fence");
        let open = || FenceCounter::open(&path, 1).ok();
        let counters: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(open)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(counters.iter().flatten().count(), 1);
    }
}

#[test]
fn tokens_carry_the_fences_in_order_and_differ_in_salt() {
    let mut mint = token_mint(FenceCounter::in_memory(7));
    let (first, second) = (mint().unwrap(), mint().unwrap());
    assert_eq!(first.fence(), Some(Fence::new(7)));
    assert_eq!(second.fence(), Some(Fence::new(8)));
    assert!(first.expose() < second.expose());
    assert_ne!(first.expose()[16..], second.expose()[16..]);
    assert_eq!(token_mint(FenceCounter::in_memory(u64::MAX))(), None);
}

#[test]
fn no_two_tokens_share_their_salt() {
    let mut mint = token_mint(FenceCounter::in_memory(7));
    let salts: std::collections::HashSet<_> =
        (0..1000).map(|_| mint().unwrap().expose().split_off(16)).collect();
    assert_eq!(salts.len(), 1000);
}
