//! Fences: for one key each grant's is greater than the last one's, over crashes, restarts and clocks
//! that are set back; and a state file that says nothing is no reason to start over.

use std::fs;
use std::path::{Path, PathBuf};

use dflockd_client::fence_from_token;

use crate::dflockd::{Dflockd, Variables, granted, refusal};

const NONE: Variables = &[];

fn fence(reply: &str) -> u64 {
    fence_from_token(granted(reply)).expect("our tokens have fences").get()
}

fn flag(file: &Path) -> [PathBuf; 2] {
    ["--fence-state-file".into(), file.into()]
}

/// Takes a semaphore's slot so many times, in one pipelined write.
fn take(server: &Dflockd, count: usize) -> Vec<u64> {
    let mut wire = server.connect();
    let mut ask = "sl\nk\n0 1000000 600\n".repeat(count);
    let mut fences = Vec::with_capacity(count);
    // In parts that no buffer between the two is too small for.
    while !ask.is_empty() {
        let rest = ask.split_off(ask.len().min(19 * 500));
        wire.send(&ask);
        fences.extend((0..ask.len() / 19).map(|_| fence(&wire.line())));
        ask = rest;
    }
    assert_eq!(fences.len(), count);
    fences
}

#[track_caller]
fn assert_grows(fences: &[u64]) {
    if let Some(pair) = fences.windows(2).find(|pair| pair[0] >= pair[1]) {
        panic!("{} comes after {}", pair[1], pair[0]);
    }
}

#[test]
fn fences_grow_over_every_way_to_be_granted() {
    let server = Dflockd::start(&["--lease-sweep-interval=1"], NONE);
    let (mut one, mut two) = (server.connect(), server.connect());
    let mut fences = Vec::new();
    for _ in 0..50 {
        let held = one.ask("l", "k", "0");
        assert_eq!(two.ask("e", "k", ""), "queued");
        let token = granted(&held).to_owned();
        assert_eq!(one.ask("r", "k", &token), "ok");
        let waited = two.ask("w", "k", "5");
        one.send("l\nk\n60\n");
        let token = granted(&waited).to_owned();
        assert_eq!(two.ask("r", "k", &token), "ok");
        let queued = one.line();
        let token = granted(&queued).to_owned();
        assert_eq!(two.ask("r", "k", &token), "ok");
        let acquired = one.ask("se", "k", "1");
        let again = one.ask("w", "k", "5");
        assert_eq!(fence(&acquired), fence(&again), "one grant, told twice");
        let token = granted(&again).to_owned();
        assert_eq!(one.ask("sr", "k", &token), "ok");
        fences.extend([&held, &waited, &queued, &acquired].map(|reply| fence(reply)));
    }
    // A lease that runs out: the sweep hands it on.
    let lost = one.ask("l", "k", "0 1");
    let next = two.ask("l", "k", "60");
    fences.extend([fence(&lost), fence(&next)]);
    assert_grows(&fences);
}

#[test]
fn fences_grow_over_crashes() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("fence");
    let mut fences = Vec::new();
    for round in 0..5 {
        let server = Dflockd::start(&flag(&file), NONE);
        let took = take(&server, 3000);
        assert!(took[0] > fences.last().copied().unwrap_or_default(), "round {round}");
        fences.extend(took);
        // Some more are granted, or not, while it dies.
        server.connect().send(&"sl\nk\n0 1000000 600\n".repeat(200));
        server.kill();
        let ceiling = u64::from_be_bytes(fs::read(&file).unwrap().try_into().unwrap());
        assert!(ceiling > *fences.last().unwrap(), "round {round}: more were used than were reserved");
    }
    assert_grows(&fences);
}

#[test]
fn fences_grow_over_restarts_of_every_kind_without_a_state_file_as_long_as_the_clock_does() {
    let mut fences = Vec::new();
    for _ in 0..3 {
        let server = Dflockd::start::<&str>(&[], NONE);
        fences.extend(take(&server, 100));
        server.kill();
    }
    assert_grows(&fences);
}

#[test]
fn a_state_file_beats_the_clock() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("fence");
    // As if the clock had stood centuries ahead, and was set back since.
    let far = u64::MAX / 2;
    fs::write(&file, far.to_be_bytes()).unwrap();
    let mut fences = vec![far];
    for _ in 0..3 {
        let server = Dflockd::start(&flag(&file), NONE);
        fences.extend(take(&server, 10));
        server.kill();
    }
    assert_grows(&fences);
    assert!(fences[fences.len() - 1] < far + 10_000_000, "a restart skips a reservation, no more");
    // One from long ago: the clock has moved on.
    fs::write(&file, 5u64.to_be_bytes()).unwrap();
    let server = Dflockd::start(&flag(&file), NONE);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
    let first = u128::from(take(&server, 1)[0]);
    assert!((now - 3_600_000_000_000..=now).contains(&first), "{first} is not the clock's");
}

#[test]
fn a_damaged_state_file_stops_the_start_and_is_left_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("fence");
    for content in [&b""[..], b"1234567", b"123456789", &[0; 4096], b"1700000000000000000\n"] {
        fs::write(&file, content).unwrap();
        let said = refusal(&flag(&file), NONE);
        assert!(said.contains(file.to_str().unwrap()) && said.contains("it is not 8 bytes long"), "{said}");
        assert_eq!(fs::read(&file).unwrap(), content);
    }
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    let said = refusal(&flag(&file), NONE);
    assert!(said.contains("fence_state_file") && said.contains(file.to_str().unwrap()), "{said}");
}

#[test]
fn the_last_fence_is_not_followed_by_a_first() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("fence");
    fs::write(&file, (u64::MAX - 3).to_be_bytes()).unwrap();
    let server = Dflockd::start(&flag(&file), NONE);
    let mut wire = server.connect();
    let replies: Vec<String> = (0..4).map(|_| wire.ask("sl", "k", "0 9")).collect();
    let fences: Vec<u64> =
        replies.iter().filter(|reply| *reply != "error").map(|reply| fence(reply)).collect();
    assert_grows(&fences);
    assert!(fences.len() < 4 && replies.last().unwrap() == "error", "{replies:?}");
    server.kill();
    assert!(refusal(&flag(&file), NONE).contains("used up all fences"));
}

#[test]
fn a_second_server_on_the_same_state_file_is_refused_until_the_first_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("fence");
    let first = Dflockd::start(&flag(&file), NONE);
    let before = take(&first, 10);
    let said = refusal(&[&flag(&file)[..], &["--port=0".into()]].concat(), NONE);
    assert!(said.contains(file.to_str().unwrap()) && said.contains("in use by another server"), "{said}");
    let after = take(&first, 10);
    assert_grows(&[&before[..], &after].concat());
    first.kill();
    let second = Dflockd::start(&flag(&file), NONE);
    assert!(take(&second, 1)[0] > after[9]);
}

#[cfg(unix)]
#[test]
fn a_second_server_is_refused_by_whatever_name_it_asks_for_the_state_file() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let first = Dflockd::start(&flag(&at("fence")), NONE);
    std::os::unix::fs::symlink(at("fence"), at("link")).unwrap();
    fs::hard_link(at("fence"), at("hard")).unwrap();
    for name in ["link", "hard"] {
        let said = refusal(&[&flag(&at(name))[..], &["--port=0".into()]].concat(), NONE);
        assert!(
            said.contains(at(name).to_str().unwrap()) && said.contains("in use by another server"),
            "{said}"
        );
    }
    let last = take(&first, 5)[4];
    first.kill();
    // The link is the file's name all the same.
    let second = Dflockd::start(&flag(&at("link")), NONE);
    assert!(take(&second, 1)[0] > last);
    assert!(fs::symlink_metadata(at("link")).unwrap().is_symlink());
}

#[cfg(unix)]
#[test]
fn a_state_file_that_is_a_fifo_is_refused_instead_of_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let said = refusal(&flag(&fifo), NONE);
    assert!(said.contains(&format!("{} is a FIFO", fifo.display())), "{said}");
}
