//! Leader election among processes: three candidates, one leader. The leader is killed (`kill -9`), and then,
//! on systems with signals for it, one is suspended. Measures the time until another one leads.
//!
//! `cargo run --release --example leader` runs all of it. To start your own candidates, in as many terminals
//! as you like: `cargo run --example leader -- --stand alice --locks 127.0.0.1:6388`.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use clap::Parser;
use dflockd_client::server::{Server, ServerConfig};
use dflockd_client::{Error, LockClient, Outcome};

type Result<T = (), E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// Printed by a candidate when it is elected.
const LEADS: &str = "leads";
const CANDIDATES: usize = 3;
/// Longer than any take-over, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Parser)]
struct Flags {
    /// Stands for election under this name until killed.
    #[arg(long, requires = "locks")]
    stand: Option<String>,
    /// The lock server.
    #[arg(long, value_name = "HOST:PORT")]
    locks: Option<SocketAddr>,
    /// A leader's lease, in seconds: a suspended leader is followed after this time.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    ttl: u64,
}

#[tokio::main]
async fn main() -> Result {
    let flags = Flags::parse();
    match (flags.stand, flags.locks) {
        (Some(name), Some(locks)) => Ok(stand(&name, locks, flags.ttl).await?),
        _ => election(flags.ttl).await,
    }
}

/// Runs one candidate: waits in the queue, leads, and stands again when it is deposed.
async fn stand(name: &str, server: SocketAddr, ttl: u64) -> Result<(), Error> {
    let locks = LockClient::builder()
        .servers([(server.ip().to_string(), server.port())])
        .lease_ttl(Duration::from_secs(ttl))
        .build()?;
    let office = locks.lock("leader")?;
    loop {
        let guard = match office.acquire_within(Duration::from_secs(3600)).await {
            Err(error) if error.is_busy() => continue,
            elected => elected?,
        };
        let fence = guard.fence().map_or("no fence".into(), |fence| format!("fence {fence}"));
        println!("{name} {LEADS} with {fence}");
        if let Outcome::Lost(reason) = guard.run(lead()).await {
            println!("{name} is deposed: {reason}");
        }
    }
}

/// Does what only a leader may do.
async fn lead() {
    std::future::pending().await
}

/// A candidate's process, and the lines that it has printed.
struct Candidate {
    name: String,
    process: Child,
}

impl Drop for Candidate {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn election(ttl: u64) -> Result {
    let server = Server::bind(ServerConfig { port: 0, ..Default::default() }).await?;
    let address = server.local_addr().ok_or("the server is not bound")?;
    tokio::spawn(server.run(std::future::pending()));
    // The rest waits for processes, on a thread that serves nothing.
    tokio::task::spawn_blocking(move || play(address, ttl).map_err(|error| error.to_string())).await??;
    Ok(())
}

fn play(server: SocketAddr, ttl: u64) -> Result {
    let (say, said) = channel();
    let mut candidates = Vec::new();
    for number in 1..=CANDIDATES {
        candidates.push(enter(number, server, ttl, &say)?);
    }
    let leader = next_leader(&said)?;
    println!("-- kill -9 of {leader}");
    let since = Instant::now();
    candidates.retain(|candidate| candidate.name != leader);
    let next = next_leader(&said)?;
    println!("-- {next} took over after {:.1} ms: its connection closed with it", ms(since));

    if !suspend(&candidates, &next) {
        return Ok(());
    }
    println!("-- {next} is suspended: no connection closes");
    let since = Instant::now();
    let last = next_leader(&said)?;
    println!(
        "-- {last} took over after {:.0} ms: the lease of {ttl} s expired, and a server looks",
        ms(since)
    );
    println!("   once a second (--lease-sweep-interval)");
    Ok(())
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// Starts a candidate, and prints its lines.
fn enter(number: usize, server: SocketAddr, ttl: u64, say: &Sender<String>) -> Result<Candidate> {
    let name = format!("candidate-{number}");
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--stand", &name, "--locks", &server.to_string(), "--ttl", &ttl.to_string()]);
    let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let lines = BufReader::new(process.stdout.take().ok_or("stdout is not piped")?).lines();
    let say = say.clone();
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            println!("{line}");
            if say.send(line).is_err() {
                return;
            }
        }
    });
    Ok(Candidate { name, process })
}

/// Waits until a candidate leads, and returns which.
fn next_leader(said: &Receiver<String>) -> Result<String> {
    loop {
        let line = said.recv_timeout(PATIENCE)?;
        if let Some((name, rest)) = line.split_once(' ')
            && rest.starts_with(LEADS)
        {
            return Ok(name.to_owned());
        }
    }
}

/// Suspends a candidate, as a machine that sleeps does. Returns `false` if the system cannot.
fn suspend(candidates: &[Candidate], name: &str) -> bool {
    let Some(candidate) = candidates.iter().find(|candidate| candidate.name == name) else { return false };
    let pid = candidate.process.id().to_string();
    cfg!(unix) && Command::new("kill").args(["-STOP", &pid]).status().is_ok_and(|status| status.success())
}
