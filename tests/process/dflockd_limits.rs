//! The binary and the limit of open files.

use std::time::Instant;

use crate::dflockd::{Dflockd, Wire, until};

const CONNECTIONS: usize = 150;

#[test]
fn a_low_soft_limit_of_open_files_is_raised() {
    let output = std::process::Command::new("/bin/sh").args(["-c", "ulimit -Hn"]).output().unwrap();
    let hard = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    if hard.parse().is_ok_and(|hard: usize| hard < 2 * CONNECTIONS) {
        eprintln!("!!! skipped: the hard limit of open files is {hard}");
        return;
    }
    let server = Dflockd::start_under("ulimit -Sn 64");
    let mut wires: Vec<Wire> = (0..CONNECTIONS).map(|_| server.connect()).collect();
    assert!(wires.iter_mut().all(|wire| wire.ask("ping", "_", "_") == "ok"));
    let raised = format!("raised the limit of open files old=\"64\" new={hard:?}");
    assert!(server.log().contains(&raised), "{}", server.log());
}

#[test]
fn a_server_that_is_out_of_files_waits_for_some_warns_once_and_goes_on() {
    let server = Dflockd::start_under("ulimit -n 64");
    // Connections that are not accepted wait in the system's backlog.
    let mut wires: Vec<Wire> = (0..100).map(|_| server.connect()).collect();
    let began = Instant::now();
    let out_of_files = "could not accept a connection";
    until("it is out of files", || server.log().contains(out_of_files));
    let token = wires[0].token("l", "k", "0 1000");
    (0..100).for_each(|_| assert_eq!(wires[0].ask("ping", "_", "_"), "ok"));
    let stats = wires[0].ask("stats", "_", "_");
    let accepted = stats.split_once("\"connections\":").unwrap().1.split(',').next().unwrap();
    let accepted: usize = accepted.parse().unwrap();
    assert!((20..64).contains(&accepted), "{stats}");

    // The first connections are accepted first; when they close, the next are accepted.
    let mut rest = wires.split_off(accepted);
    wires.truncate(1);
    assert!(rest.iter_mut().all(|wire| wire.ask("ping", "_", "_") == "ok"));
    assert_eq!(wires[0].ask("r", "k", &token), "ok");
    let took = began.elapsed();
    server.signal("TERM");
    let (status, log) = server.end();
    assert_eq!(status.code(), Some(0), "{log}");
    let lines: Vec<&str> = log.lines().filter(|line| line.contains(out_of_files)).collect();
    let more =
        |line: &&str| line.split_once("… and ").map(|(_, rest)| rest.split(' ').next().unwrap().parse());
    let attempts: u128 = lines.iter().map(|line| more(line).map_or(1, Result::unwrap)).sum();
    // The server tries at most every 100 ms, however long that takes here.
    assert!(attempts <= 2 + took.as_millis() / 100, "{attempts} attempts in {took:?}: {log}");
    assert!(lines.len() as u64 <= 2 + took.as_secs() / 5, "{log}");
    assert!(lines[0].contains("os error 24") && more(&lines[0]).is_none(), "{log}");
}
