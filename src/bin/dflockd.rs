//! The `dflockd` binary: flags to settings, settings to a running server.

use std::io::IsTerminal;
use std::process::ExitCode;

use dflockd_client::server::{Server, ServerConfig};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> ExitCode {
    let config = ServerConfig::from_args(std::env::args_os());
    let level = if config.debug { "debug" } else { "info" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let colour = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colour).with_writer(std::io::stderr).init();
    match run(config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dflockd: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(config: ServerConfig) -> std::io::Result<()> {
    let server = Server::bind(config).await?;
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let shutdown = async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    server.run(shutdown).await;
    Ok(())
}
