//! The `dflockd` binary: turns flags into settings, runs the server, and handles signals.

mod flags;
mod limits;
mod log;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use dflockd_client::server::{Server, ServerConfig};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use flags::Flags;
use log::Log;

/// How long blocking calls, and then the last lines of the log, may take at the end.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let flags = Flags::from_args(std::env::args_os());
    let log = match Log::start(io::stderr()) {
        Ok(log) => log,
        Err(error) => {
            // `eprintln!` panics if stderr is closed.
            let _ = writeln!(io::stderr(), "dflockd: could not start the log: {error}");
            return ExitCode::FAILURE;
        }
    };
    init_logging(&log, flags.debug);
    tracing::debug!("debug events are logged");
    let _flush = FlushOnDrop(log.clone());
    let outcome = run(flags.into());
    if let Err(error) = &outcome {
        log.write_line(format!("dflockd: {error}\n").as_bytes());
    }
    if outcome.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Writes the rest of the log when the process ends, even by a panic.
struct FlushOnDrop(Log);

impl Drop for FlushOnDrop {
    fn drop(&mut self) {
        self.0.flush(SHUTDOWN_GRACE);
    }
}

/// Directs events and panics to the log.
fn init_logging(log: &Log, debug: bool) {
    let level = if debug { "debug" } else { "info" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let (colour, log) = (io::stderr().is_terminal(), log.clone());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colour)
        .with_writer(move || log.clone())
        .log_internal_errors(false)
        .init();
    // The default hook writes to stderr, and blocks on it.
    std::panic::set_hook(Box::new(|panic| {
        let trace = Backtrace::capture();
        match trace.status() {
            BacktraceStatus::Captured => tracing::error!("{panic}\n{trace}"),
            _ => tracing::error!("{panic}"),
        }
    }));
}

fn run(config: ServerConfig) -> io::Result<()> {
    let runtime = Runtime::new()?;
    let outcome = runtime.block_on(serve(config));
    // Not dropped: that would wait without bound for a name lookup or a file read in flight.
    runtime.shutdown_timeout(SHUTDOWN_GRACE);
    outcome
}

async fn serve(config: ServerConfig) -> io::Result<()> {
    // From here on, none of these signals ends the process by itself.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let hangup = signal(SignalKind::hangup())?;
    limits::ignore_file_size_signal()?;
    let mut shutdown = Box::pin(async move { either(&mut interrupt, &mut terminate).await });
    let server = tokio::select! {
        bound = Server::bind(config) => bound?,
        () = &mut shutdown => return Ok(()),
    };
    limits::raise_open_files();
    tokio::spawn(reload_on_hangup(server.clone(), hangup));
    server.run(shutdown).await;
    Ok(())
}

/// Reloads the server's files at each SIGHUP.
async fn reload_on_hangup(server: Server, mut hangup: Signal) {
    while hangup.recv().await.is_some() {
        tracing::info!("SIGHUP: reloading certificate and auth token");
        // The server logs a failure, and keeps the old value.
        let _ = server.reload().await;
    }
}

async fn either(one: &mut Signal, other: &mut Signal) {
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}
