//! A lock file shared by processes that have no server in common: three of them count to thirty together, one
//! task keeps the lock for longer than its lifetime, and a holder is killed.
//!
//! `cargo run --release --example file_lock --features file` runs all of it. To use your own file, in as many
//! terminals as you like, and beside Python's `flufl.lock`: `cargo run --example file_lock --features file --
//! hold /tmp/x.lck`, and `show /tmp/x.lck`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, UNIX_EPOCH};

use clap::{Parser, Subcommand};
use dflockd_client::file::Builder;
use dflockd_client::{Error, FileLock, Outcome};

type Outcomes<T = ()> = Result<T, Box<dyn std::error::Error>>;

#[derive(Parser)]
struct Flags {
    #[command(subcommand)]
    part: Option<Part>,
    /// The lifetime of the lock without a refresh, in seconds.
    #[arg(long, default_value_t = 15, global = true)]
    lifetime: u64,
    /// By how much clocks may differ, in seconds.
    #[arg(long, default_value_t = 10, global = true)]
    slop: u64,
}

#[derive(Subcommand)]
enum Part {
    /// Takes the lock, keeps it until it reads a line, and releases it.
    Hold { lock: PathBuf },
    /// Prints what is known of the lock.
    Show { lock: PathBuf },
    /// Adds 1 to the number in a file, this many times, each under the lock.
    Count { lock: PathBuf, counter: PathBuf, times: u32 },
}

#[tokio::main]
async fn main() -> Outcomes {
    let flags = Flags::parse();
    let builder = |path: &Path| {
        let (lifetime, slop) = (Duration::from_secs(flags.lifetime), Duration::from_secs(flags.slop));
        FileLock::builder(path).lifetime(lifetime).slop(slop)
    };
    match &flags.part {
        Some(Part::Hold { lock }) => Ok(hold(builder(lock))?),
        Some(Part::Show { lock }) => Ok(show(builder(lock))?),
        Some(Part::Count { lock, counter, times }) => count(builder(lock), counter, *times),
        None => story().await,
    }
}

fn hold(builder: Builder) -> Result<(), Error> {
    let lock = builder.build()?;
    lock.lock(None)?;
    println!("held");
    // Releases at a line as well as at the end of the input.
    let _ = std::io::stdin().lock().lines().next();
    lock.unlock()?;
    println!("left");
    Ok(())
}

fn show(builder: Builder) -> Result<(), Error> {
    let lock = builder.build()?;
    println!("state {:?}", lock.state()?);
    let details = lock.details()?;
    println!("hostname {}\npid {}\nlockfile {}", details.hostname, details.pid, details.lockfile.display());
    let end = lock.expiration()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    println!("expiration {}", end.as_secs());
    Ok(())
}

fn count(builder: Builder, counter: &Path, times: u32) -> Outcomes {
    let lock = builder.poll(Duration::from_millis(20)).build()?;
    for _ in 0..times {
        lock.lock(None)?;
        let number: u64 = fs::read_to_string(counter)?.trim().parse()?;
        fs::write(counter, (number + 1).to_string())?;
        lock.unlock()?;
    }
    Ok(())
}

async fn story() -> Outcomes {
    let dir = tempfile::tempdir()?;
    let (path, counter) = (dir.path().join("counter.lck"), dir.path().join("counter"));

    println!("Three processes count to thirty, one at a time.");
    fs::write(&counter, "0")?;
    let counters: Vec<_> = (0..3).map(|_| start(&["count"], &[&path, &counter], &["10"])).collect();
    for counting in counters {
        let ended = counting?.wait()?;
        ended.success().then_some(()).ok_or("a process failed")?;
    }
    println!("  the counter says {}", fs::read_to_string(&counter)?);

    println!("\nA task keeps the lock for longer than its lifetime of 2 s.");
    let lock = FileLock::builder(&path).lifetime(Duration::from_secs(2)).slop(Duration::ZERO).build()?;
    let guard = lock.acquire().await?;
    match guard.run(tokio::time::sleep(Duration::from_secs(3))).await {
        Outcome::Completed(()) => println!("  3 s later it still holds it: {}", guard.is_held()),
        Outcome::Lost(reason) => println!("  it lost it: {reason}"),
    }
    guard.release().await?;

    println!("\nA holder with a lifetime of 1 s is killed.");
    let mut holder = start(&["--lifetime", "1", "hold"], &[&path], &[])?;
    let mut said = String::new();
    BufReader::new(holder.stdout.take().ok_or("no output")?).read_line(&mut said)?;
    println!("  process {}: {}", lock.details()?.pid, said.trim());
    holder.kill()?;
    holder.wait()?;
    println!("  the lock is {:?}", lock.state()?);
    let since = Instant::now();
    let guard = lock.acquire().await?;
    println!("  the next one has it {} ms later", since.elapsed().as_millis());
    guard.release().await?;
    println!("  and leaves {} file behind: the counter", fs::read_dir(dir.path())?.count());
    Ok(())
}

fn start(flags: &[&str], paths: &[&Path], rest: &[&str]) -> std::io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(flags).args(paths).args(rest);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()
}
