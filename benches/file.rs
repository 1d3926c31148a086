//! The lock file beside Python's `flufl.lock`, in one run: taking and releasing it while no other
//! contender wants it, and handing it over between two processes of either kind. Python's half is left
//! out if `scripts/check-peers` has not installed it. The bare calls are the six that the format needs:
//! no implementation of it can be faster.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use dflockd_client::FileLock;

/// Plays a contender: replies to `lock` and `unlock` with the time, and to `cycle N` with the nanoseconds of
/// one of N.
const PYTHON: &str = r#"
import sys, time
from flufl.lock import Lock
lock = Lock(sys.argv[1])
for line in sys.stdin:
    words = line.split()
    if words[0] == "lock":
        lock.lock()
        print(time.time_ns(), flush=True)
    elif words[0] == "unlock":
        now = time.time_ns()
        lock.unlock()
        print(now, flush=True)
    else:
        began = time.perf_counter_ns()
        for _ in range(int(words[1])):
            lock.lock()
            lock.unlock()
        print((time.perf_counter_ns() - began) // int(words[1]), flush=True)
"#;

fn contend(path: &Path) {
    let lock = FileLock::builder(path).build().unwrap();
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    for line in std::io::stdin().lines() {
        let answer = match line.unwrap().split(' ').collect::<Vec<_>>()[..] {
            ["lock"] => {
                lock.lock(None).unwrap();
                now()
            }
            ["unlock"] => {
                let began = now();
                lock.unlock().unwrap();
                began
            }
            [_, times] => {
                let times: u32 = times.parse().unwrap();
                let began = Instant::now();
                for _ in 0..times {
                    lock.lock(None).unwrap();
                    lock.unlock().unwrap();
                }
                (began.elapsed() / times).as_nanos()
            }
            _ => panic!("no such command"),
        };
        println!("{answer}");
    }
}

/// One contender's process. Dropping this kills it.
struct Contender {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Contender {
    fn start(mut command: Command) -> Self {
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        Self { process, input, output: BufReader::new(output) }
    }

    fn tell(&mut self, command: &str) {
        writeln!(self.input, "{command}").unwrap();
    }

    fn hear(&mut self) -> u64 {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim().parse().expect("it answers with a number")
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Nanoseconds for one round while no other contender wants the lock, and from a release to the next
/// grant.
struct Figures {
    alone: u64,
    hand_over: u64,
}

fn measure(start: impl Fn(&Path) -> Contender, cycles: u32, hand_overs: usize) -> Figures {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bench.lck");
    let mut pair = [start(&path), start(&path)];
    let mut best = u64::MAX;
    for _ in 0..5 {
        pair[0].tell(&format!("cycle {}", cycles / 5));
        best = best.min(pair[0].hear());
    }
    pair[0].tell("lock");
    pair[0].hear();
    let mut times: Vec<_> = (0..hand_overs)
        .map(|turn| {
            let [one, other] = &mut pair;
            let (holder, waiter) = if turn % 2 == 0 { (one, other) } else { (other, one) };
            waiter.tell("lock");
            // The other process has then begun to wait, and waits for a varying time.
            std::thread::sleep(Duration::from_millis(5 + (turn as u64 * 7) % 40));
            holder.tell("unlock");
            let left = holder.hear();
            waiter.hear().saturating_sub(left)
        })
        .collect();
    times.sort_unstable();
    Figures { alone: best, hand_over: times[times.len() / 2] }
}

/// Returns nanoseconds for creating, writing and closing a claim, linking it, and removing both names.
fn bare_calls(cycles: u32) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let (claim, lock) = (dir.path().join("claim"), dir.path().join("lock"));
    let text = claim.as_os_str().as_encoded_bytes();
    let round = || {
        let began = Instant::now();
        for _ in 0..cycles / 5 {
            std::fs::write(&claim, text).unwrap();
            std::fs::hard_link(&claim, &lock).unwrap();
            std::fs::remove_file(&lock).unwrap();
            std::fs::remove_file(&claim).unwrap();
        }
        (began.elapsed() / (cycles / 5)).as_nanos() as u64
    };
    (0..5).map(|_| round()).min().unwrap_or_default()
}

fn python(path: &Path, packages: &Path) -> Contender {
    let mut command = Command::new("python3");
    command.args(["-c", PYTHON]).arg(path).env("PYTHONPATH", packages);
    Contender::start(command)
}

fn main() {
    let arguments: Vec<_> = std::env::args().collect();
    if let [_, contender, path] = &arguments[..]
        && contender == "--contender"
    {
        return contend(Path::new(path));
    }
    let quick = arguments.iter().any(|argument| argument == "--test");
    let (cycles, hand_overs) = if quick { (50, 2) } else { (20_000, 40) };
    let ours = measure(
        |path| {
            let mut command = Command::new(&arguments[0]);
            command.arg("--contender").arg(path);
            Contender::start(command)
        },
        cycles,
        hand_overs,
    );
    println!("{:<28}{:>12}{:>12}{:>8}", "", "this crate", "flufl.lock", "ratio");
    let packages = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/peers/flufl");
    let theirs = packages.exists().then(|| measure(|path| python(path, &packages), cycles, hand_overs));
    let line = |what: &str, ours: u64, theirs: Option<u64>| {
        let micros = |nanos: u64| format!("{:.1} µs", nanos as f64 / 1000.0);
        let ratio = theirs.map_or_else(String::new, |theirs| format!("{:.1}", theirs as f64 / ours as f64));
        let theirs = theirs.map_or_else(|| "-".to_owned(), micros);
        println!("{what:<28}{:>12}{theirs:>12}{ratio:>8}", micros(ours));
    };
    line("take and leave, alone", ours.alone, theirs.as_ref().map(|theirs| theirs.alone));
    line("  the bare calls", bare_calls(cycles), None);
    line("hand over, median", ours.hand_over, theirs.as_ref().map(|theirs| theirs.hand_over));
}
