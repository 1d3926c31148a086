//! The binary's log if it cannot be written, and if peers would fill it.

use std::fs;
use std::io::{BufRead, BufReader, PipeReader, Read, Write, pipe};
use std::net::{SocketAddr, TcpStream};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::thread::spawn;

use crate::dflockd::{Dflockd, Wire, until};

/// A number of refused requests that fills a pipe and the server's buffer several times.
const FLOOD: usize = 20_000;

/// Makes the server log that many lines, and waits for its replies.
fn flood(wire: &mut Wire, count: usize) {
    for _ in 0..count / 100 {
        wire.send(&"nonsense\nk\n1\n".repeat(100));
        (0..100).for_each(|_| assert_eq!(wire.line(), "error"));
    }
}

/// Holds a key through a flood of log lines, then stops the server.
fn outlives(server: Dflockd) {
    let (mut holder, mut other) = (server.connect(), server.connect());
    let token = holder.token("l", "k", "0 1000");
    flood(&mut other, FLOOD);
    assert_eq!(holder.ask("ping", "_", "_"), "ok");
    assert_eq!(other.ask("l", "k", "0"), "timeout", "the key is held");
    assert_eq!(holder.ask("n", "k", &token), "ok 33");
    assert_eq!(server.connect().ask("ping", "_", "_"), "ok", "new connections are let in");
    server.signal("TERM");
    assert!(other.is_closed());
    assert_eq!(holder.ask("r", "k", &token), "ok");
    assert!(holder.is_closed());
    assert_eq!(server.end().0.code(), Some(0));
}

#[test]
fn a_log_whose_reader_is_gone_ends_nothing() {
    let gone = || Stdio::from(pipe().unwrap().1);
    outlives(Dflockd::start_with_stderr(&["--debug"], gone));
}

#[cfg(target_os = "linux")]
#[test]
fn a_log_on_a_full_device_ends_nothing() {
    let full = || Stdio::from(fs::File::options().write(true).open("/dev/full").unwrap());
    outlives(Dflockd::start_with_stderr(&["--debug"], full));
}

/// At the limit on a file's size, the system sends a signal that ends a process without a handler for it.
#[cfg(target_os = "linux")]
#[test]
fn a_log_file_at_its_size_limit_ends_nothing() {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    let file = tempfile::tempfile().unwrap();
    let server = Dflockd::start_with_stderr(&["--debug"], || file.try_clone().unwrap().into());
    let pid = i32::try_from(server.pid()).ok().and_then(Pid::from_raw);
    prlimit(pid, Resource::Fsize, Rlimit { current: Some(4096), maximum: Some(4096) }).unwrap();
    outlives(server);
    assert_eq!(file.metadata().unwrap().len(), 4096, "the limit was reached, and no more");
}

#[cfg(target_os = "linux")]
#[test]
fn the_exit_code_of_a_fault_is_the_same_though_nothing_can_be_written() {
    let full = || Stdio::from(fs::File::options().write(true).open("/dev/full").unwrap());
    for (flag, code) in [("--prot=1", 2), ("--auth-token=", 1)] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_dflockd"));
        let status = command.arg(flag).stdout(full()).stderr(full()).status().unwrap();
        assert_eq!(status.code(), Some(code), "{flag}");
    }
}

/// Returns a server with `--debug`, and the other end of its stderr.
fn start_piped() -> (Dflockd, PipeReader) {
    let reader = Mutex::new(None);
    let server = Dflockd::start_with_stderr(&["--debug"], || {
        let (ours, theirs) = pipe().unwrap();
        *reader.lock().unwrap() = Some(ours);
        Stdio::from(theirs)
    });
    (server, reader.into_inner().unwrap().unwrap())
}

#[test]
fn a_log_whose_reader_is_stuck_hangs_nothing() {
    let (server, _stuck) = start_piped();
    outlives(server);
}

#[test]
fn what_a_stuck_reader_missed_is_counted_where_it_is_missing() {
    let (server, stuck) = start_piped();
    let mut wire = server.connect();
    flood(&mut wire, FLOOD);
    let log = Arc::new(Mutex::new(Vec::<String>::new()));
    let lines = log.clone();
    let reading = spawn(move || {
        BufReader::new(stuck).lines().for_each(|line| lines.lock().unwrap().push(line.unwrap()));
    });
    until("the loss is reported", || {
        log.lock().unwrap().iter().any(|line| line.contains("log lines lost: "))
    });
    flood(&mut wire, 100);
    drop(wire);
    server.signal("TERM");
    assert_eq!(server.end().0.code(), Some(0));
    reading.join().unwrap();
    let log = log.lock().unwrap();
    let refused = log.iter().filter(|line| line.contains("request refused")).count();
    let lost: usize = log.iter().filter_map(|line| number_after(line, "log lines lost: ")).sum();
    assert!(lost > FLOOD / 2, "it was hardly stuck: {lost}");
    assert_eq!(refused + lost, FLOOD + 100);
    let report = log.iter().position(|line| line.contains("log lines lost: ")).unwrap();
    let after = log[report..].iter().filter(|line| line.contains("request refused")).count();
    assert_eq!(after, 100, "what came later stands behind the report");
    assert!(log.last().unwrap().contains("stopped"), "the last lines come out: {:?}", log.last());
}

fn number_after(line: &str, mark: &str) -> Option<usize> {
    let (_, rest) = line.split_once(mark)?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Opens that many connections, sends the text over each, and waits until the server has closed it.
fn strangers(address: SocketAddr, count: usize, says: &'static str) {
    let threads = 8;
    let strangers: Vec<_> = (0..threads)
        .map(|_| {
            spawn(move || {
                for _ in 0..count / threads {
                    let mut stream = TcpStream::connect(address).unwrap();
                    // A refused connection may fail at any step.
                    let _ = stream.write_all(says.as_bytes());
                    let _ = stream.read_to_end(&mut Vec::new());
                }
            })
        })
        .collect();
    strangers.into_iter().for_each(|thread| thread.join().unwrap());
}

/// Returns the number of lines that contain the text, and the number of events that they report.
fn count_events(log: &str, what: &str) -> (usize, usize) {
    let lines = log.lines().filter(|line| line.contains(what));
    lines.fold((0, 0), |(lines, events), line| {
        (lines + 1, events + number_after(line, &format!("{what} … and ")).unwrap_or(1))
    })
}

#[test]
fn peers_that_are_turned_away_fill_no_log_and_are_all_counted() {
    let directory = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let file = |name: &str, text: String| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let cert = format!("--tls-cert={}", file("cert", made.cert.pem()));
    let key = format!("--tls-key={}", file("key", made.signing_key.serialize_pem()));
    let cases: [(&[&str], &'static str, usize, &'static str); 4] = [
        (&[&cert, &key], "rubbish\n\n\n", 5000, "handshake failed"),
        (&["--max-connections=1"], "ping\n_\n_\n", 2000, "connection refused: max-connections"),
        (&["--max-connections-per-ip=1"], "ping\n_\n_\n", 2000, "connection refused: max-connections-per-ip"),
        (&["--auth-token=hunter2"], "ping\n_\n_\n", 80, "authentication failed"),
    ];
    for (flags, says, count, what) in cases {
        let server = Dflockd::start(flags, &[]);
        // Takes the place, if there is only one.
        let first = flags[0].starts_with("--max").then(|| {
            let mut first = server.connect();
            assert_eq!(first.ask("ping", "_", "_"), "ok");
            first
        });
        strangers(server.address, count, says);
        drop(first);
        server.signal("TERM");
        let (status, log) = server.end();
        assert_eq!(status.code(), Some(0), "{log}");
        let (lines, events) = count_events(&log, what);
        assert_eq!(events, count, "{log}");
        // The first five and a report, and one more of each for every ten seconds that the flood took.
        assert!((6..50).contains(&lines), "{lines} lines: {log}");
    }
}
