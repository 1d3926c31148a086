//! The binary on SIGTERM: which clients are refused, which may finish, and the exit code.

use crate::dflockd::{Dflockd, until};

fn draining(server: &Dflockd) {
    until("it drains", || server.log().contains("draining"));
}

#[test]
fn either_signal_stops_a_server_without_connections_at_once() {
    for signal in ["TERM", "INT"] {
        // If it waited for anything, it would wait forever.
        let server = Dflockd::start(&["--shutdown-timeout=0"], &[]);
        server.signal(signal);
        let (status, log) = server.end();
        assert_eq!(status.code(), Some(0), "{signal}: {log}");
        assert!(log.contains("draining") && log.contains("stopped"), "{log}");
    }
}

#[test]
fn a_stop_refuses_who_waits_closes_who_is_idle_and_lets_holders_finish() {
    for signal in ["TERM", "INT"] {
        let server = Dflockd::start(&["--shutdown-timeout=0"], &[]);
        let (mut holder, mut other) = (server.connect(), server.connect());
        let (mut waiter, mut idle, mut waits) = (server.connect(), server.connect(), server.connect());
        let token = holder.token("l", "k", "0 1000");
        let own = other.token("se", "s", "2 1000");
        waiter.send("l\nk\n1000\n");
        assert_eq!(waits.ask("e", "k", "1000"), "queued");
        waits.send("w\nk\n1000\n");
        assert_eq!(idle.ask("ping", "_", "_"), "ok");
        until("both wait", || holder.ask("stats", "_", "_").contains("\"waiters\":2"));

        server.signal(signal);
        for refused in [&mut waiter, &mut waits] {
            assert_eq!(refused.line(), "error_draining", "{signal}");
            assert!(refused.is_closed(), "it holds nothing");
        }
        assert!(idle.is_closed());
        for (cmd, arg) in [("l", "0"), ("sl", "0 2"), ("e", ""), ("se", "2"), ("w", "0"), ("sw", "0")] {
            assert_eq!(holder.ask(cmd, "x", arg), "error_draining", "{cmd}");
        }
        assert_eq!(holder.ask("ping", "_", "_"), "ok");
        assert!(holder.ask("stats", "_", "_").starts_with("ok {"));
        assert_eq!(holder.ask("n", "k", &token), "ok 33");
        assert_eq!(other.ask("sw", "s", "5"), "error_draining");
        assert_eq!(other.ask("sn", "s", &format!("{own} 9")), "ok 9");
        assert!(std::net::TcpStream::connect(server.address).is_err(), "no new client is accepted");

        assert_eq!(holder.ask("r", "k", &token), "ok");
        assert!(holder.is_closed());
        assert_eq!(other.ask("sr", "s", &own), "ok");
        assert!(other.is_closed());
        let (status, log) = server.end();
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(!log.contains("shutdown timeout"), "{log}");
    }
}

#[test]
fn a_holder_that_leaves_ends_the_stop_too() {
    let server = Dflockd::start(&["--shutdown-timeout=0"], &[]);
    let mut holder = server.connect();
    holder.token("l", "k", "0 1000");
    server.signal("TERM");
    draining(&server);
    drop(holder);
    assert_eq!(server.end().0.code(), Some(0));
}

#[test]
fn the_shutdown_timeout_ends_whoever_holds_on() {
    let mut server = Dflockd::start(&["--shutdown-timeout=1"], &[]);
    let mut holder = server.connect();
    holder.token("l", "k", "0 1000");
    server.signal("TERM");
    draining(&server);
    assert_eq!(holder.ask("ping", "_", "_"), "ok");
    assert!(server.is_running());
    assert!(holder.is_closed());
    let (status, log) = server.end();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("shutdown timeout"), "{log}");
}

#[test]
fn a_state_file_is_free_for_the_next_server_after_the_stop() {
    let directory = tempfile::tempdir().unwrap();
    let fence = format!("--fence-state-file={}", directory.path().join("fence").display());
    let server = Dflockd::start(&[&fence], &[]);
    let mut holder = server.connect();
    let first = holder.token("l", "k", "0");
    server.signal("TERM");
    draining(&server);
    assert_eq!(holder.ask("r", "k", &first), "ok");
    assert_eq!(server.end().0.code(), Some(0));
    assert!(Dflockd::start(&[fence], &[]).connect().token("l", "k", "0") > first);
}
