//! What signals do: to the command, and to `dflock` while it waits.

use crate::cli::support::{bare, dflock, ended, run, start, stats, waiting};
use crate::dflockd::{Dflockd, until};

/// Says which signal it got, and ends with 9.
const TRAPS: &str = "for s in HUP INT QUIT TERM USR1 USR2; do trap \"echo got $s; exit 9\" $s; done; \
                     echo ready; while :; do read _ || sleep 0.01; done";

#[test]
fn signals_are_forwarded_to_the_command() {
    let server = Dflockd::start::<&str>(&[], &[]);
    for signal in ["HUP", "INT", "QUIT", "TERM", "USR1", "USR2"] {
        let command = start(&mut dflock(&server, &["run", "k", "--shell", TRAPS]));
        command.says("ready");
        command.signal(signal);
        let ended = command.end();
        assert_eq!(ended.code, Some(9), "{signal}: {ended:?}");
        assert_eq!(ended.out, format!("ready\ngot {signal}\n"), "once, and no other");
    }
    // The lock was released, not left to run out.
    assert_eq!(run(&server, &["run", "--try", "k", "--", "true"]).code, Some(0));
}

/// Those whose numbers are free to be sent and that a program may handle; see `man 7 signal`.
#[cfg(target_os = "linux")]
fn that_would_end_it() -> impl Iterator<Item = i32> {
    // KILL; faults; PIPE, which is ignored; CHLD, CONT, STOP, TSTP, TTIN, TTOU, URG, WINCH; libc's own.
    let others = [9, 4, 8, 11, 13, 17, 18, 19, 20, 21, 22, 23, 28, 32, 33];
    (1..=64).filter(move |number| !others.contains(number))
}

#[test]
#[cfg(target_os = "linux")]
fn every_signal_that_would_end_it_reaches_the_command() {
    let server = Dflockd::start::<&str>(&[], &[]);
    let started: Vec<_> = that_would_end_it()
        .map(|number| {
            let key = number.to_string();
            let script = "ulimit -c 0; echo ready; exec sleep 1000";
            let command = start(&mut dflock(&server, &["run", &key, "--shell", script]));
            command.says("ready");
            command.signal(&key);
            (number, command)
        })
        .collect();
    for (number, command) in started {
        let ended = command.end();
        assert_eq!(ended.code, Some(128 + number), "the command died of it, and not dflock: {ended:?}");
    }
}

#[test]
fn the_lock_is_kept_until_a_command_that_heeds_no_signal_has_ended() {
    let server = Dflockd::start::<&str>(&[], &[]);
    let script = "trap 'echo got it' ALRM; echo ready; until [ \"$line\" = end ]; do read line; done; exit 3";
    let mut command = start(&mut dflock(&server, &["run", "k", "--shell", script]));
    command.says("ready");
    command.signal("ALRM");
    command.says("got it");
    assert_eq!(run(&server, &["run", "--try", "k", "--", "true"]).code, Some(124));
    command.write("end\n");
    assert_eq!(command.end().code, Some(3));
}

/// A command that runs, and its number.
#[cfg(target_os = "linux")]
fn sleeper(server: &Dflockd, flags: &[&str]) -> (crate::cli::support::Started, String) {
    let pids = tempfile::NamedTempFile::new().expect("there is room");
    let path = pids.path().to_str().expect("text");
    let script = "echo $$ >\"$1\"; echo ready; exec sleep 1000 >&- 2>&-";
    let args = [&["run", "k"], flags, &["--shell", script, path]].concat();
    let command = start(&mut dflock(server, &args));
    command.says("ready");
    (command, std::fs::read_to_string(path).expect("it is written").trim().to_owned())
}

#[test]
#[cfg(target_os = "linux")]
fn a_command_does_not_outlive_a_dflock_that_was_killed() {
    for signal in ["KILL", "ILL", "FPE"] {
        let server = Dflockd::start::<&str>(&[], &[]);
        let (command, pid) = sleeper(&server, &[]);
        command.signal(signal);
        assert_eq!(command.end().code, None, "nothing but the kernel can act now");
        until("the command is gone", || !crate::cli::support::runs(&pid));
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_command_that_may_run_on_without_its_lease_outlives_dflock() {
    let server = Dflockd::start::<&str>(&[], &[]);
    let (command, pid) = sleeper(&server, &["--on-lost", "warn"]);
    command.signal("KILL");
    assert_eq!(command.end().code, None);
    // The kernel would have ended it before its parent's end is told.
    assert!(crate::cli::support::runs(&pid));
    let killed = std::process::Command::new("kill").args(["-KILL", &pid]).status();
    assert!(killed.expect("there is a kill").success());
}

#[test]
fn who_ignores_that_children_end_is_told_of_the_commands_end_all_the_same() {
    let server = Dflockd::start::<&str>(&[], &[]);
    let mut shell = std::process::Command::new("env");
    shell.args(["--ignore-signal=CHLD", env!("CARGO_BIN_EXE_dflock")]);
    shell.env("DFLOCK_SERVERS", server.address.to_string());
    // And the command can wait for children of its own.
    shell.args(["run", "k", "--shell", "sh -c 'exit 3' & wait $!; exit $?"]);
    let ended = ended(&mut shell);
    assert_eq!((ended.code, &*ended.err), (Some(3), ""), "{ended:?}");
}

#[test]
fn a_command_that_dies_of_a_signal_is_told_as_in_a_shell() {
    let server = Dflockd::start::<&str>(&[], &[]);
    let command = start(&mut dflock(&server, &["run", "k", "--shell", "echo ready; exec sleep 1000"]));
    command.says("ready");
    command.signal("TERM");
    assert_eq!(command.end().code, Some(128 + 15));
}

#[test]
fn a_signal_that_ends_reaches_all_that_the_command_has_started() {
    let server = Dflockd::start::<&str>(&[], &[]);
    let script = "sleep 1000 & echo $! >&2; echo ready; wait";
    let command = start(&mut dflock(&server, &["run", "k", "--shell", script]));
    command.says("ready");
    command.signal("TERM");
    let ended = command.end(); // which reads stderr to its end: nobody has it open any more
    until("the sleep is gone", || !crate::cli::support::runs(ended.err.trim()));
}

#[test]
fn a_signal_ends_the_wait_and_leaves_the_queue() {
    let server = Dflockd::start::<&str>(&[], &[]);
    let holder = start(&mut dflock(&server, &["run", "k", "--", "sh", "-c", "echo held; read _; true"]));
    holder.says("held");
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let waiter = start(&mut dflock(&server, &["run", "k", "--", "echo", "never"]));
        waiting(&server, 1);
        waiter.signal(signal);
        let ended = waiter.end();
        assert_eq!((ended.code, &*ended.out, &*ended.err), (Some(code), "", ""));
        until("it has left", || stats(&server)["locks"][0]["waiters"] == 0);
    }
    assert_eq!(holder.end().code, Some(0));
}

#[test]
fn what_is_ignored_stays_ignored() {
    let server = Dflockd::start::<&str>(&[], &[]);
    let mut nohup = std::process::Command::new("sh");
    let script = "trap '' HUP; exec \"$@\"";
    nohup
        .args(["-c", script, "sh"])
        .arg(env!("CARGO_BIN_EXE_dflock"))
        .env("DFLOCK_SERVERS", server.address.to_string());
    nohup.args(["run", "k", "--", "sh", "-c", "kill -HUP $PPID $$; echo alive"]);
    let ended = ended(&mut nohup);
    assert_eq!((ended.code, &*ended.out), (Some(0), "alive\n"), "{ended:?}");
}

#[test]
fn top_needs_a_terminal_and_says_so() {
    let ended = ended(&mut bare(&["top"]));
    assert_eq!(ended.code, Some(64));
    assert!(ended.line().contains("dflock stats"), "{ended:?}");
}
