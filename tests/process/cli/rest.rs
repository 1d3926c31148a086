//! What becomes of the processes that a command leaves behind: in the background, in sessions of
//! their own, orphaned. On Linux, which alone can tell whose they are.
#![cfg(target_os = "linux")]

use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

use crate::cli::support::{dflock, run, runs, start, waiting};
use crate::dflockd::{Dflockd, until};

/// Leaves one that runs in the command's group and an orphan in a session of its own behind, when the
/// numbers of both stand in the files.
const LEAVES: &str = "exec >&- 2>&-; sleep 1000 & echo $! >\"$1\"; \
                      (setsid sh -c 'echo $$ >\"$0\"; exec sleep 1000' \"$2\" &); \
                      until test -s \"$2\"; do sleep 0.01; done; exit 4";

/// Runs it, and returns the numbers of the two.
#[track_caller]
fn left_by(flags: &[&str]) -> (String, String) {
    let server = Dflockd::start::<&str>(&[], &[]);
    let directory = tempfile::tempdir().expect("there is room");
    let files = ["in-group", "apart"].map(|name| directory.path().join(name));
    let [in_group, apart] = files.each_ref().map(|file| file.to_str().expect("text"));
    let ended = run(&server, &[&["run", "k"], flags, &["--shell", LEAVES, in_group, apart]].concat());
    assert_eq!(ended.code, Some(4), "the command's own: {ended:?}");
    assert_eq!(run(&server, &["run", "--try", "k", "--", "true"]).code, Some(0), "the key is free");
    let [in_group, apart] = files.map(|file| std::fs::read_to_string(file).expect("it is written"));
    (in_group.trim().to_owned(), apart.trim().to_owned())
}

fn kill(pid: &str) {
    assert!(Command::new("kill").args(["-KILL", pid]).status().expect("there is a kill").success());
}

#[test]
fn what_a_command_leaves_behind_lives_on() {
    let (in_group, apart) = left_by(&[]);
    assert!(runs(&in_group) && runs(&apart));
    kill(&in_group);
    kill(&apart);
}

#[test]
fn the_rest_of_the_group_is_ended_where_that_is_wanted() {
    let (in_group, apart) = left_by(&["--kill-group"]);
    assert!(!runs(&in_group) && runs(&apart));
    kill(&apart);
}

#[test]
fn all_that_is_left_is_ended_where_that_is_wanted() {
    let (in_group, apart) = left_by(&["--kill-all"]);
    assert!(!runs(&in_group) && !runs(&apart));
}

#[test]
fn what_will_not_end_is_killed() {
    let server = Dflockd::start::<&str>(&[], &[]);
    let script = "(setsid sh -c 'trap \"\" TERM; echo $$; echo ready; exec >&- 2>&-; while :; do sleep 0.01; done' &) \
                  && read _";
    let mut command =
        start(&mut dflock(&server, &["run", "k", "--kill-all", "--kill-after", "50ms", "--shell", script]));
    command.says("ready");
    command.write("\n");
    let ended = command.end();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.err.contains("what the command has started runs on after 50ms: sent SIGKILL"), "{ended:?}");
    assert!(!runs(ended.out.lines().next().expect("its number")));
}

/// Leaves an orphan in a session of its own behind that ends when `file` is there.
fn leaves_a_waiter(file: &Path) -> String {
    let wait = "echo $$; echo ready; exec >&- 2>&-; until test -e \"$0\"; do sleep 0.02; done";
    format!("(setsid sh -c '{wait}' '{}' &); exit 4", file.display())
}

#[test]
fn the_lock_is_kept_for_what_is_waited_for() {
    let server = Dflockd::start::<&str>(&[], &[]);
    let directory = tempfile::tempdir().expect("there is room");
    let file = directory.path().join("go");
    let script = leaves_a_waiter(&file);
    let command = start(&mut dflock(&server, &["run", "k", "--wait-for-all", "--shell", &script]));
    command.says("ready");
    // Long after the script itself has ended.
    assert_eq!(run(&server, &["run", "--wait", "1s", "k", "--", "true"]).code, Some(124));
    std::fs::write(&file, "").expect("it is written");
    assert_eq!(command.end().code, Some(4));
    assert_eq!(run(&server, &["run", "--try", "k", "--", "true"]).code, Some(0));
}

#[test]
fn what_is_waited_for_gets_the_signals_when_the_command_has_ended() {
    let server = Dflockd::start::<&str>(&[], &[]);
    let script = leaves_a_waiter(Path::new("/no/such/file"));
    let command = start(&mut dflock(&server, &["run", "k", "--wait-for-all", "--shell", &script]));
    command.says("ready");
    let left = || Command::new("pgrep").args(["-P", &command.pid().to_string(), "-f", "exit 4"]).output();
    until("the script has ended", || left().expect("there is a pgrep").stdout.is_empty());
    command.signal("TERM");
    assert_eq!(command.end().code, Some(4));
}

#[test]
fn a_lost_lease_ends_all_that_the_lock_was_kept_for() {
    let server = Dflockd::start::<&str>(&[], &[]);
    let script = leaves_a_waiter(Path::new("/no/such/file"));
    let command = start(&mut dflock(&server, &["run", "k", "--wait-for-all", "--shell", &script]));
    command.says("ready");
    server.kill();
    let ended = command.end();
    assert_eq!(ended.code, Some(75), "{ended:?}");
    assert!(!runs(ended.out.lines().next().expect("its number")));
}

#[test]
fn only_one_can_be_wanted() {
    let server = Dflockd::start::<&str>(&[], &[]);
    let flags = ["--kill-group", "--kill-all", "--wait-for-all"];
    for (one, other) in [(0, 1), (0, 2), (1, 2)] {
        let ended = run(&server, &["run", flags[one], flags[other], "k", "--", "true"]);
        assert_eq!(ended.code, Some(64), "{ended:?}");
    }
}

#[test]
fn orphans_are_reaped_while_the_lock_is_waited_for() {
    let server = Dflockd::start::<&str>(&[], &[]);
    let holder = start(&mut dflock(&server, &["run", "k", "--", "sh", "-c", "echo held; read _; true"]));
    holder.says("held");
    let mut shell = Command::new("sh");
    let script = "sleep 0.2 >/dev/null 2>&1 & exec \"$@\"";
    shell.args(["-c", script, "sh", env!("CARGO_BIN_EXE_dflock"), "run", "k", "--", "true"]);
    shell.env("DFLOCK_SERVERS", server.address.to_string());
    let waiter = start(&mut shell);
    waiting(&server, 1);
    let children = || Command::new("ps").args(["-o", "pid=", "--ppid", &waiter.pid().to_string()]).output();
    until("it has no child, not even one that has ended", || {
        children().expect("there is a ps").stdout.is_empty()
    });
    assert_eq!(holder.end().code, Some(0));
    assert_eq!(waiter.end().code, Some(0));
}

/// `dflock` as process 1 of a namespace, against `server`; `None` where that may not be.
fn first(server: &Dflockd, args: &[&str]) -> Option<Command> {
    let inside = ["--pid", "--fork", "--kill-child", "--mount-proc"];
    for before in [&["--user", "--map-root-user"][..], &[]] {
        let tried = Command::new("unshare").args(before).args(inside).arg("true").output();
        match tried {
            Ok(output) if output.status.success() => {
                let mut command = Command::new("unshare");
                command.args(before).args(inside).arg(env!("CARGO_BIN_EXE_dflock")).args(args);
                command.env("DFLOCK_SERVERS", server.address.to_string());
                return Some(command);
            }
            Err(error) if error.kind() != ErrorKind::NotFound => panic!("unshare: {error}"),
            _ => {}
        }
    }
    eprintln!("!!! skipped: no process namespace can be made here");
    None
}

#[test]
fn as_process_1_it_reaps_orphans() {
    let server = Dflockd::start::<&str>(&[], &[]);
    let script =
        "test $PPID = 1 || exit 9; (true &); while ps -eo stat= | grep -q Z; do sleep 0.02; done; exit 4";
    let Some(mut command) = first(&server, &["run", "k", "--shell", script]) else { return };
    let ended = start(&mut command).end();
    assert_eq!(ended.code, Some(4), "{ended:?}");
}

#[test]
fn as_process_1_it_ends_after_a_lost_lease_when_nothing_lives() {
    let server = Dflockd::start::<&str>(&[], &[]);
    let script = "(sleep 1000 &); echo ready; exec sleep 1000";
    let Some(mut command) = first(&server, &["run", "k", "--kill-after", "1h", "--shell", script]) else {
        return;
    };
    let command = start(&mut command);
    command.says("ready");
    server.kill();
    let ended = command.end();
    assert_eq!(ended.code, Some(75), "{ended:?}");
}
