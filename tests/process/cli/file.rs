//! `dflock file`: a command under a lock file, who has it, and how it is taken away.

use std::path::Path;
use std::process::Command;

use crate::cli::support::{Ended, Started, bare, ended, start};

struct Lock(tempfile::TempDir);

impl Lock {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("there is room"))
    }

    fn path(&self) -> String {
        self.0.path().join("report lock.lck").to_str().expect("text").to_owned()
    }

    fn command(&self, before: &[&str], after: &[&str]) -> Command {
        bare(&[&["file"], before, &[&*self.path()], after].concat())
    }

    fn run(&self, before: &[&str], after: &[&str]) -> Ended {
        ended(&mut self.command(before, after))
    }

    fn hold(&self, flags: &[&str]) -> Started {
        let holder = start(&mut self.command(flags, &["--", "sh", "-c", "echo held; read _; true"]));
        holder.says("held");
        holder
    }

    /// What lies in the directory.
    fn files(&self) -> usize {
        std::fs::read_dir(self.0.path()).expect("it is there").count()
    }
}

#[test]
fn the_command_runs_under_the_lock_file_and_leaves_none() {
    let lock = Lock::new();
    let script = "echo $DFLOCK_KEY ${DFLOCK_TOKEN_FENCE-none} $DFLOCK_TTL; test -e \"$DFLOCK_KEY\" && exit 7";
    let mut command = lock.command(&["--ttl", "30s"], &["--", "sh", "-c", script]);
    let ended = ended(command.env("DFLOCK_TOKEN_FENCE", "of another lease"));
    let (said, code) = (ended.out.trim_end(), ended.code);
    assert!(said.starts_with(&format!("{} none ", lock.path())), "{ended:?}");
    assert_eq!((code, lock.files()), (Some(7), 0));
}

#[test]
fn a_lock_file_excludes() {
    let lock = Lock::new();
    let holder = lock.hold(&[]);
    let busy = lock.run(&["--try"], &["--", "echo", "never"]);
    assert_eq!(busy.code, Some(124));
    assert!(busy.line().contains("--wait"), "{busy:?}");
    assert_eq!(lock.run(&["--wait", "50ms", "-E", "9"], &["--", "true"]).code, Some(9));
    let waiter = start(&mut lock.command(&[], &["--", "echo", "mine"]));
    assert_eq!(holder.end().code, Some(0));
    assert_eq!(waiter.end().out, "mine\n");
}

#[test]
fn the_status_says_who_has_it() {
    let lock = Lock::new();
    let free = lock.run(&["status"], &[]);
    assert_eq!((free.code, &*free.out), (Some(0), "unlocked\n"));
    let holder = lock.hold(&[]);
    let held = lock.run(&["status"], &[]);
    assert_eq!(held.code, Some(124), "{held:?}");
    assert!(held.out.starts_with(&format!("locked: process {} on ", holder.pid())), "{held:?}");
    std::fs::write(lock.0.path().join("other"), "no lock").expect("it is written");
    let other = ended(bare(&["file", "status"]).arg(lock.0.path().join("other")));
    assert_eq!((other.code, &*other.out), (Some(124), "not a lock file\n"));
}

#[test]
fn a_broken_lock_ends_its_holders_command() {
    let lock = Lock::new();
    let holder = lock.hold(&[]);
    let unasked = lock.run(&["break"], &[]);
    assert_eq!(unasked.code, Some(64));
    assert!(unasked.line().contains("--yes"), "{unasked:?}");
    assert!(Path::new(&lock.path()).exists());

    let broken = lock.run(&["break", "--yes"], &[]);
    assert_eq!(broken.code, Some(0), "{broken:?}");
    assert!(broken.out.contains(&holder.pid().to_string()), "{broken:?}");
    assert_eq!(lock.files(), 0);
    let ended = holder.end_of_itself();
    assert_eq!(ended.code, Some(75), "{ended:?}");
    assert!(ended.err.contains("lost: its lock file was removed"), "{ended:?}");

    let again = lock.run(&["break", "--yes"], &[]);
    assert_eq!(again.code, Some(69));
    assert!(again.line().contains("not locked"), "{again:?}");
}

#[test]
fn what_is_not_a_lock_is_not_broken() {
    let lock = Lock::new();
    std::fs::write(lock.path(), "a letter").expect("it is written");
    let ended = lock.run(&["break", "--yes"], &[]);
    assert_eq!(ended.code, Some(69));
    assert!(ended.line().contains("not a lock file"), "{ended:?}");
    assert_eq!(std::fs::read_to_string(lock.path()).expect("it is there"), "a letter");
}

#[test]
fn a_lock_file_of_another_separator_is_told_with_it() {
    let lock = Lock::new();
    let _holder = lock.hold(&["--separator", "=#="]);
    let held = lock.run(&["status"], &[]);
    let hint = "not a lock file, but one with --separator '=#='";
    assert_eq!((held.code, held.out.trim_end()), (Some(124), hint), "{held:?}");
    let broken = lock.run(&["break", "--yes"], &[]);
    assert_eq!(broken.code, Some(69), "{broken:?}");
    assert!(broken.line().contains(hint), "{broken:?}");
    assert_eq!(lock.run(&["status", "--separator", "=#="], &[]).code, Some(124));
    let busy = lock.run(&["--try"], &["--", "true"]);
    assert_eq!(busy.code, Some(124), "{busy:?}");
    assert!(busy.line().ends_with("the lock file is one with --separator '=#='"), "{busy:?}");
    let busy = lock.run(&["--try", "--separator", "=#="], &["--", "true"]);
    assert!(!busy.line().contains("--separator"), "{busy:?}");

    let lock = Lock::new();
    for text in ["", "7", "12 34", "a=1=2", "a|b|1|2|3", "a||1||x"] {
        std::fs::write(lock.path(), text).expect("it is written");
        assert_eq!(lock.run(&["status"], &[]).out, "not a lock file\n", "{text:?}");
    }
}

#[test]
#[cfg(unix)]
fn what_is_no_regular_file_is_refused_and_not_read() {
    let lock = Lock::new();
    let pipe = Command::new("mkfifo").arg(lock.path()).status().expect("there is a mkfifo");
    assert!(pipe.success());
    for path in [&*lock.path(), "/dev/zero"] {
        for args in [&["file", "status", path][..], &["file", "break", "--yes", path]] {
            let ended = ended(&mut bare(args));
            assert_eq!(ended.code, Some(69), "{ended:?}");
            assert!(ended.line().contains("no regular file"), "{ended:?}");
        }
    }
}

#[test]
fn a_signal_in_the_wait_leaves_nothing_behind() {
    let lock = Lock::new();
    let holder = lock.hold(&[]);
    let before = lock.files();
    let waiter = start(&mut lock.command(&[], &["--", "echo", "never"]));
    crate::dflockd::until("it waits", || lock.files() > before);
    waiter.signal("TERM");
    assert_eq!(waiter.end().code, Some(143));
    crate::dflockd::until("its claim is gone", || lock.files() == before);
    assert_eq!(holder.end().code, Some(0));
}

#[test]
fn a_claim_bears_the_names_that_are_given() {
    let lock = Lock::new();
    let path = lock.0.path().join("a|b.lck");
    let path = path.to_str().expect("text");
    let with = |command: &[&str], rest: &[&str]| {
        let flags = ["--hostname", "worker-3", "--separator", "^"];
        bare(&[&["file"], command, &flags, &[path], rest].concat())
    };
    let holder = start(&mut with(&[], &["--", "sh", "-c", "echo held; read _; true"]));
    holder.says("held");
    let names: Vec<_> = std::fs::read_dir(lock.0.path()).expect("it is there").collect();
    let names = names.into_iter().map(|entry| entry.expect("it is there").file_name());
    let claim = names.map(|name| name.into_string().expect("text")).find(|name| name.contains("^worker-3^"));
    assert!(claim.is_some_and(|claim| claim.starts_with("a|b.lck^worker-3^")));
    let held = ended(&mut with(&["status"], &[]));
    assert_eq!(held.code, Some(124), "{held:?}");
    assert!(held.out.starts_with(&format!("locked: process {} on worker-3", holder.pid())), "{held:?}");
    let broken = ended(&mut with(&["break"], &["--yes"]));
    assert_eq!(broken.code, Some(0), "{broken:?}");
    assert_eq!(holder.end_of_itself().code, Some(75));
}

#[test]
fn a_missing_directory_is_told_with_what_to_do() {
    let ended = ended(&mut bare(&["file", "/no/such/directory/a.lck", "--", "true"]));
    assert_eq!(ended.code, Some(69));
    assert!(ended.line().ends_with("; is its directory there?"), "{ended:?}");
}

#[test]
fn a_file_system_without_hard_links_is_no_matter_of_permission() {
    let lock = Lock::new();
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o", "/dev/null", "-e", "inject=?link,linkat:error=EPERM"]);
    command.args([env!("CARGO_BIN_EXE_dflock"), "file", &lock.path(), "--", "true"]);
    if !Command::new("strace").args(["-o", "/dev/null", "true"]).status().is_ok_and(|s| s.success()) {
        println!("!!! SKIPPED: there is no strace that works");
        return;
    }
    let ended = ended(&mut command);
    assert_eq!((ended.code, lock.files()), (Some(69), 0));
    assert!(ended.line().contains("the file system has no hard links"), "{ended:?}");
    assert!(ended.line().ends_with("; name a file on another file system"), "{ended:?}");
}

#[test]
fn the_lock_of_a_dead_holder_is_stale_until_it_expires_and_then_can_be_taken() {
    let lock = Lock::new();
    let holder = lock.hold(&["--ttl", "1h"]);
    holder.signal("KILL");
    holder.end();
    let stale = lock.run(&["status"], &[]);
    assert_eq!(stale.code, Some(124), "{stale:?}");
    assert!(
        stale.out.starts_with("stale: process ") && stale.out.contains(", which no longer runs; for "),
        "{stale:?}"
    );
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(1000);
    std::fs::File::open(lock.path()).and_then(|file| file.set_modified(long_ago)).expect("it is ours");
    let expired = lock.run(&["status"], &[]);
    assert_eq!(expired.code, Some(0), "{expired:?}");
    assert!(
        expired.out.starts_with("expired: process ") && expired.out.contains(", which no longer runs; since")
    );
    assert_eq!(lock.run(&["--try"], &["--", "true"]).code, Some(0));
    assert_eq!(lock.files(), 0);
}
