//! What becomes of the command when its lease is lost.

use crate::cli::support::{Ended, Started, dflock, runs, start};
use crate::dflockd::{Dflockd, until};

/// A server that is gone once the command runs, and how `dflock` ends after that.
#[track_caller]
fn lost(flags: &[&str], script: &str) -> Ended {
    let (server, command) = running(flags, script);
    server.kill();
    command.end()
}

fn running(flags: &[&str], script: &str) -> (Dflockd, Started) {
    let server = Dflockd::start::<&str>(&[], &[]);
    let args = [&["run", "row:42"], flags, &["--shell", script]].concat();
    let command = start(&mut dflock(&server, &args));
    command.says("ready");
    (server, command)
}

#[test]
fn the_command_is_told_to_stop_and_the_exit_code_says_why() {
    let ended = lost(&[], "trap 'echo stopping; exit 3' TERM; echo ready; while :; do sleep 0.01; done");
    assert_eq!((ended.code, &*ended.out), (Some(75), "ready\nstopping\n"), "{ended:?}");
    // The shell may say of its own that its child was ended.
    let said: Vec<_> = ended.err.lines().filter(|line| line.starts_with("dflock: ")).collect();
    assert_eq!(said.len(), 1, "{ended:?}");
    let said = said[0];
    assert!(said.starts_with("dflock: the lease on \"row:42\" is lost: its connection closed"), "{said}");
    assert!(said.ends_with("sent SIGTERM to the command"), "{said}");
}

#[test]
fn the_exit_code_of_a_lost_lease_can_be_chosen() {
    let ended = lost(&["--lost-exit-code", "12"], "echo ready; exec sleep 1000");
    assert_eq!(ended.code, Some(12), "{ended:?}");
}

#[test]
fn a_command_that_will_not_stop_is_killed() {
    let stubborn = "trap '' TERM; echo ready; while :; do sleep 0.01; done";
    let ended = lost(&["--kill-after", "50ms"], stubborn);
    assert_eq!(ended.code, Some(75), "{ended:?}");
    assert!(ended.err.trim_end().ends_with("sent SIGKILL"), "{ended:?}");
    let ended = lost(&["--on-lost", "kill"], stubborn);
    assert_eq!(ended.code, Some(75), "{ended:?}");
    assert!(ended.err.contains("sent SIGKILL to the command"), "{ended:?}");
    assert_eq!(ended.err.lines().count(), 1, "{ended:?}");
}

#[test]
fn all_that_the_command_has_started_is_ended_with_it() {
    // The child outlives its parent's end, and heeds no TERM.
    let script = "sh -c 'trap \"\" TERM; echo $$; echo ready; while :; do sleep 0.01; done' & \
                  trap 'exit' TERM; wait";
    let ended = lost(&["--kill-after", "50ms"], script);
    assert_eq!(ended.code, Some(75), "{ended:?}");
    let child = ended.out.lines().next().expect("its number");
    until("the child is gone", || !runs(child));
}

#[test]
fn a_suspended_command_is_ended_too() {
    let (server, command) = running(&["--kill-after", "1h"], "echo ready; kill -STOP $$; echo never");
    server.kill();
    let ended = command.end();
    assert_eq!((ended.code, &*ended.out), (Some(75), "ready\n"), "{ended:?}");
}

#[test]
fn a_warning_lets_the_command_run_on() {
    let (server, mut command) = running(&["--on-lost", "warn"], "echo ready; read go; echo $go; exit 5");
    server.kill();
    command.mentions("the command runs on");
    command.write("on\n");
    command.says("on");
    let ended = command.end();
    assert_eq!(ended.code, Some(5), "{ended:?}");
    assert!(ended.err.contains("\"row:42\"") && ended.err.contains("lost"), "{ended:?}");
    assert_eq!(ended.err.lines().count(), 1, "{ended:?}");
}

#[test]
fn a_command_that_runs_on_without_its_lease_still_gets_signals() {
    let (server, command) =
        running(&["--on-lost", "warn"], "trap 'exit 4' TERM; echo ready; while :; do sleep 0.01; done");
    server.kill();
    command.mentions("the command runs on");
    command.signal("TERM");
    let ended = command.end();
    assert_eq!(ended.code, Some(4), "{ended:?}");
}

#[test]
fn a_server_that_dies_in_the_wait_ends_it() {
    let server = Dflockd::start::<&str>(&[], &[]);
    let holder = start(&mut dflock(
        &server,
        &["run", "k", "--on-lost", "warn", "--", "sh", "-c", "echo held; read _; true"],
    ));
    holder.says("held");
    let waiter = start(&mut dflock(&server, &["run", "k", "--", "echo", "never"]));
    crate::cli::support::waiting(&server, 1);
    server.kill();
    let ended = waiter.end();
    assert_eq!(ended.code, Some(69), "{ended:?}");
    assert!(ended.line().contains("\"k\""), "{ended:?}");
}

#[test]
fn a_retry_waits_for_the_server_to_come_back() {
    let server = Dflockd::start::<&str>(&[], &[]);
    let port = server.address.port().to_string();
    let holder = start(&mut dflock(
        &server,
        &["run", "k", "--on-lost", "warn", "--", "sh", "-c", "echo held; read _; true"],
    ));
    holder.says("held");
    let waiter = start(&mut dflock(&server, &["run", "k", "--retry", "--", "echo", "mine"]));
    crate::cli::support::waiting(&server, 1);
    server.kill();
    let _again = Dflockd::start(&["--port", &port], &[]);
    let ended = waiter.end();
    assert_eq!((ended.code, &*ended.out), (Some(0), "mine\n"), "{ended:?}");
}
