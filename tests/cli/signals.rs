//! What signals do: to the command, and to `dflock` while it waits.

use crate::dflockd::{Dflockd, until};
use crate::support::{bare, dflock, ended, run, start, stats, waiting};

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
    until("the sleep is gone", || !crate::support::runs(ended.err.trim()));
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
