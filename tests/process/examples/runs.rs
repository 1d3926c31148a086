//! Every example runs to its end, as a process of its own. One that this table does not know runs
//! without arguments.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What makes a run short.
const ARGUMENTS: [(&str, &[&str]); 2] = [("leader", &["--ttl", "1"]), ("load", &["--rounds", "20"])];
/// Those that serve until they are stopped, and have a test of their own.
const SERVICES: [&str; 1] = ["axum_service"];
/// Those that need a feature, and whether this build has it.
const NEEDS: [(&str, bool); 1] = [("file_lock", cfg!(feature = "file"))];
/// Longer than any of them takes, on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// All examples that this build has, by their sources.
fn names() -> BTreeSet<String> {
    let examples = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")).unwrap();
    let sources = examples.map(|entry| entry.unwrap().path());
    let programs =
        sources.filter(|path| path.extension().is_some_and(|e| e == "rs") || path.join("main.rs").exists());
    let names = programs.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned());
    names.filter(|name| !NEEDS.contains(&(name.as_str(), false))).collect()
}

/// The binary that this build has made of it: `cargo test` builds them beside its own.
fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let built = test.parent().unwrap().with_file_name("examples").join(name);
    let built = built.with_extension(std::env::consts::EXE_EXTENSION);
    assert!(built.exists(), "there is no {}: run `cargo build --examples --all-features`", built.display());
    built
}

/// A process that ends with its test.
struct Run(Child);

impl Run {
    fn start(name: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(binary(name));
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self(command.spawn().unwrap_or_else(|error| panic!("{name}: {error}")))
    }

    /// Waits for its end; it must be a good one. What it printed.
    fn finish(mut self, name: &str) -> String {
        let [out, err] = [reader(self.0.stdout.take()), reader(self.0.stderr.take())];
        let since = Instant::now();
        let status = loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                break Some(status);
            }
            if since.elapsed() > PATIENCE {
                break None;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        drop(self);
        let (out, err) = (out.join().unwrap(), err.join().unwrap());
        assert!(status.is_some_and(|status| status.success()), "{name}: {status:?}\n{out}\n{err}");
        out
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Reads to the end, lest the writer waits for room.
fn reader(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = String::new();
        // What was read until it failed is shown.
        let _ = pipe.map(|mut pipe| pipe.read_to_string(&mut text));
        text
    })
}

#[test]
fn every_example_runs_to_its_end() {
    for name in names().iter().filter(|name| !SERVICES.contains(&name.as_str())) {
        let known = ARGUMENTS.iter().find(|(known, _)| known == name);
        let output = Run::start(name, known.map_or(&[], |(_, arguments)| arguments)).finish(name);
        assert!(!output.trim().is_empty(), "{name} shows nothing");
    }
}

#[test]
fn load_runs_every_scenario() {
    let files = tempfile::tempdir().unwrap();
    let plot = files.path().join("plot.svg");
    let plot = plot.to_str().unwrap();
    let scenarios: [(&[&str], &[&str]); 8] = [
        (
            &["--workers", "1,3", "--baseline", "--plot", plot],
            &["1 workers, shared", "3 connections", "ratio"],
        ),
        (
            &["run", "--workers", "4", "--keys", "one", "--mode", "per-worker", "--baseline"],
            &["1 connections"],
        ),
        (&["run", "--workers", "4", "--keys", "3", "--client-threads", "2"], &["4 workers"]),
        (&["run", "--workers", "2", "--tls", "--baseline"], &["2 workers", "ratio"]),
        (
            &["fill", "--few", "100", "--many", "2000", "--probes", "500"],
            &["memory per held lease", "with 2000"],
        ),
        (&["hold", "--leases", "50", "--lease", "2", "--time", "3"], &["lost meanwhile: 0"]),
        (&["queue", "--few", "20", "--many", "200", "--steps", "10"], &["join", "leave", "hand-off"]),
        (
            &["sweep", "--few", "10", "--many", "1000", "--expire", "100", "--idle", "1", "--lease", "2"],
            &["1000 held, 100 expire"],
        ),
    ];
    for (arguments, words) in scenarios {
        let rounds: &[&str] = if arguments.contains(&"--workers") { &["--rounds", "20"] } else { &[] };
        let printed = Run::start("load", &[arguments, rounds].concat()).finish("load");
        for word in words {
            assert!(printed.contains(word), "{arguments:?} does not print {word:?}:\n{printed}");
        }
    }
    assert!(std::fs::read_to_string(plot).unwrap().contains("</svg>"));
}

#[test]
fn the_tables_name_examples_that_exist() {
    let names = names();
    for name in ARGUMENTS.map(|(name, _)| name).iter().chain(&SERVICES) {
        assert!(names.contains(*name), "there is no example {name}");
    }
}

/// One request, and its answer: status and body.
fn http(address: &str, request: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    let length = body.len();
    let head =
        format!("{request} HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n");
    stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, answer.split_once("\r\n\r\n").unwrap_or_default().1.to_owned())
}

#[cfg(unix)]
#[test]
fn the_axum_service_answers_and_stops_gracefully() {
    let mut service = Run::start("axum_service", &["--listen", "127.0.0.1:0"]);
    let mut lines = BufReader::new(service.0.stdout.take().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("listening on http://").unwrap_or_else(|| panic!("{line:?}"));

    assert_eq!(http(address, "GET /health", ""), (200, "ok\n".into()));
    let order = r#"{"from": "alice", "to": "bob", "cents": 2500}"#;
    let (status, receipt) = http(address, "POST /transfers", order);
    assert_eq!(status, 200, "{receipt}");
    assert!(receipt.contains(r#""from":{"cents":7500,"#), "{receipt}");
    assert!(http(address, "GET /accounts/bob", "").1.contains(r#""cents":12500,"#));
    let (status, metrics) = http(address, "GET /metrics", "");
    assert!(status == 200 && metrics.contains("\nlocks_acquires_total "), "{metrics}");

    // A request that is under way is finished, and what it holds is let go.
    let slow = std::thread::spawn({
        let address = address.to_owned();
        move || http(&address, "POST /transfers", r#"{"from": "a", "to": "b", "cents": 1, "work_ms": 500}"#)
    });
    let busy = || http(address, "POST /transfers", r#"{"from": "b", "to": "c", "cents": 1}"#).0;
    while !slow.is_finished() && busy() == 200 {}
    let stopped = Command::new("kill").args(["-TERM", &service.0.id().to_string()]).status().unwrap();
    assert!(stopped.success());
    assert_eq!(slow.join().unwrap().0, 200);
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    service.finish("axum_service");
    assert_eq!(rest, "stopped, and released every lock\n");
}
