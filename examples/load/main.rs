//! Measures this crate's client and server, and what they cost on top of the network. `benches/README.md`
//! says what each scenario shows, and has the figures.
//!
//! `cargo run --release --example load -- --workers 1,50,200 --mode shared --baseline`
//!
//! The server is a process of its own, as in production, which also keeps the two sides' memory and time
//! apart. Each side has one thread unless told otherwise: on two cores, one each.

mod baseline;
mod fill;
mod hold;
mod peer;
mod plot;
mod queue;
mod report;
mod run;
mod sweep;
mod usage;
mod wire;
mod workers;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

#[derive(Parser)]
#[command(
    about = "Measures a dflockd server and this crate's client",
    args_conflicts_with_subcommands = true
)]
struct Cli {
    #[command(subcommand)]
    scenario: Option<Scenario>,
    #[command(flatten)]
    run: run::Args,
}

#[derive(Subcommand)]
enum Scenario {
    /// Many workers acquire and release (the default scenario)
    Run(run::Args),
    /// Few held keys beside a million: fill rate, probes, the server's memory
    Fill(fill::Args),
    /// A hundred thousand leases of one client: its memory and time
    Hold(hold::Args),
    /// A short queue beside one of a hundred thousand: join, leave, hand-off
    Queue(queue::Args),
    /// Leases that expire, beside few held ones and beside a million: the server's time
    Sweep(sweep::Args),
    /// The other side of a measurement: what the scenarios start in a process of its own
    #[command(hide = true)]
    Peer(peer::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match measure(cli.scenario.unwrap_or(Scenario::Run(cli.run))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(scenario: Scenario) -> Result<()> {
    match scenario {
        Scenario::Run(args) => run::main(args),
        Scenario::Fill(args) => fill::main(&args),
        Scenario::Hold(args) => hold::main(&args),
        Scenario::Queue(args) => queue::main(&args),
        Scenario::Sweep(args) => sweep::main(&args),
        Scenario::Peer(args) => peer::main(args),
    }
}

/// Reads a number from 1.
fn count() -> impl clap::builder::TypedValueParser<Value = usize> {
    clap::builder::RangedU64ValueParser::<usize>::new().range(1..)
}

/// Builds a runtime with this many threads; one of them is the calling thread.
fn runtime(threads: usize) -> std::io::Result<tokio::runtime::Runtime> {
    match threads {
        0 | 1 => tokio::runtime::Builder::new_current_thread().enable_all().build(),
        more => tokio::runtime::Builder::new_multi_thread().worker_threads(more).enable_all().build(),
    }
}
