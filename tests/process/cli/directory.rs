//! `dflock run --directory`: a command under a lock file in a directory, and what needs a server.

use std::process::Command;

use crate::cli::support::{Ended, bare, ended, start};

fn command(dir: &tempfile::TempDir, args: &[&str]) -> Command {
    bare(&[&["run", "--directory", dir.path().to_str().expect("text")], args].concat())
}

fn run(dir: &tempfile::TempDir, args: &[&str]) -> Ended {
    ended(&mut command(dir, args))
}

fn temp() -> tempfile::TempDir {
    tempfile::tempdir().expect("there is room")
}

#[test]
fn the_command_runs_under_the_lock_file_of_its_key() {
    let dir = temp();
    let script =
        "echo $DFLOCK_KEY ${DFLOCK_TOKEN_FENCE-none} $DFLOCK_GRANTOR; test -e \"$DFLOCK_GRANTOR\" && exit 7";
    let ended = run(&dir, &["jobs/17", "--", "sh", "-c", script]);
    let path = dir.path().join("jobs%2F17.lock");
    assert_eq!(ended.out, format!("jobs/17 none {}\n", path.display()), "{ended:?}");
    assert_eq!(ended.code, Some(7));
    assert_eq!(std::fs::read_dir(dir.path()).expect("it is there").count(), 0);
}

#[test]
fn it_excludes_and_waits() {
    let dir = temp();
    let holder = start(&mut command(&dir, &["k", "--", "sh", "-c", "echo held; read _; true"]));
    holder.says("held");
    let busy = run(&dir, &["--try", "k", "--", "echo", "never"]);
    assert_eq!(busy.code, Some(124));
    assert!(busy.line().contains("--wait"), "{busy:?}");
    assert_eq!(run(&dir, &["--wait", "50ms", "-E", "9", "k", "--", "true"]).code, Some(9));
    assert_eq!(run(&dir, &["--try", "other", "--", "echo", "mine"]).out, "mine\n");
    let waiter = start(&mut command(&dir, &["k", "--", "echo", "mine"]));
    assert_eq!(holder.end().code, Some(0));
    assert_eq!(waiter.end().out, "mine\n");
}

#[test]
fn the_variable_stands_for_the_flag_and_a_flag_beats_it() {
    let dir = temp();
    let mut by_variable = bare(&["run", "k", "--", "sh", "-c", "echo $DFLOCK_GRANTOR"]);
    by_variable.env("DFLOCK_DIRECTORY", dir.path());
    let path = dir.path().join("k.lock").display().to_string() + "\n";
    assert_eq!(ended(&mut by_variable).out, path);
    // Of two variables none is right; an empty one is none.
    let both = ended(by_variable.env("DFLOCK_SERVERS", "127.0.0.1:1"));
    assert_eq!(both.code, Some(64));
    assert!(both.line().contains("--directory") && both.line().contains("--servers"), "{both:?}");
    assert_eq!(ended(by_variable.env("DFLOCK_SERVERS", "")).out, path);
    let mut by_flag = command(&dir, &["k", "--", "echo", "mine"]);
    assert_eq!(ended(by_flag.env("DFLOCK_SERVERS", "127.0.0.1:1")).out, "mine\n");
    let mut server = bare(&["run", "--servers", "127.0.0.1:1", "k", "--", "true"]);
    let away = ended(server.env("DFLOCK_DIRECTORY", dir.path()));
    assert_eq!(away.code, Some(69), "{away:?}");
    assert!(away.line().contains("127.0.0.1:1"), "{away:?}");
    assert_eq!(run(&dir, &["--servers", "127.0.0.1:1", "k", "--", "true"]).code, Some(64));
    assert_eq!(run(&dir, &["--tls-ca", "ca.pem", "k", "--", "true"]).code, Some(64));
}

#[test]
fn what_a_directory_cannot_do_is_a_fault_of_usage() {
    let dir = temp();
    let limit = run(&dir, &["--limit", "3", "k", "--", "true"]);
    assert_eq!(limit.code, Some(64));
    assert!(limit.line().contains("semaphores"), "{limit:?}");
    let brief = run(&dir, &["--ttl", "1s", "k", "--", "true"]);
    assert_eq!(brief.code, Some(64));
    assert!(brief.line().contains("--ttl is 1s"), "{brief:?}");
    let long = run(&dir, &[&*"k".repeat(250), "--", "true"]);
    assert_eq!(long.code, Some(64));
    assert!(long.line().contains("255 bytes") && long.line().contains("limit"), "{long:?}");
    let path = dir.path().to_str().expect("text");
    for words in [&["stats"][..], &["ping"], &["top"], &["shard", "k"]] {
        let refused = ended(&mut bare(&[words, &["--directory", path]].concat()));
        assert_eq!(refused.code, Some(64), "{refused:?}");
        assert!(refused.line().contains(words[0]) && refused.line().contains("--directory"), "{refused:?}");
    }
}

#[test]
fn a_directory_that_is_missing_is_named() {
    let dir = temp();
    let missing = dir.path().join("missing");
    let path = missing.to_str().expect("text");
    let ended = ended(&mut bare(&["run", "--directory", path, "k", "--", "true"]));
    assert_eq!(ended.code, Some(69));
    assert!(ended.line().contains(&format!("the directory {path} does not exist")), "{ended:?}");
    assert!(!ended.line().contains("server"), "{ended:?}");
}
