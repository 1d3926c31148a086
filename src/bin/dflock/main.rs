//! The `dflock` binary: a command line over the crate's public API.

mod args;
mod child;
mod connection;
mod exit;
mod family;
mod file;
mod files;
mod help;
mod hold;
mod output;
mod pages;
mod run;
mod signals;
mod stats;
mod table;
mod tether;
mod top;
mod waiting;

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use args::Action;
use exit::Failure;

/// How long what is left to do in the background may take: a lock file's claim that is taken away.
const LINGER: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    if let Some(code) = tether::become_command() {
        return code;
    }
    let code = answer();
    output::flush();
    code
}

fn answer() -> ExitCode {
    let outcome = match args::parse(std::env::args_os()) {
        Ok(cli) => act(&cli.action),
        Err(error) => refused(&error),
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            if let Some(line) = &failure.line {
                output::say(line);
            }
            ExitCode::from(failure.code)
        }
    }
}

fn act(action: &Action) -> Result<u8, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime =
        runtime.map_err(|error| Failure::new(exit::UNAVAILABLE, format!("cannot start: {error}")))?;
    let outcome = runtime.block_on(async {
        match action {
            Action::Run(run) => run::run(run).await,
            Action::File(file) => file::file(file).await,
            Action::Stats(stats) => stats::stats(stats).await,
            Action::Top(top) => top::top(top).await,
            Action::Ping(ping) => stats::ping(ping).await,
            Action::Shard(shard) => stats::shard(shard),
            Action::Completions { shell } => pages::completions(*shell),
            Action::Man { dir: Some(dir), .. } => pages::man_pages(dir),
            Action::Man { subcommand, .. } => pages::man(subcommand.as_deref()),
        }
    });
    runtime.shutdown_timeout(LINGER);
    outcome
}

/// Answers `--help` and `--version`, and says what is wrong with anything else.
fn refused(error: &clap::Error) -> Result<u8, Failure> {
    if error.use_stderr() {
        return Err(Failure::usage(args::fault(error)));
    }
    let written = error.print().and_then(|()| io::stdout().flush());
    written.map_err(|error| Failure::output(&error))?;
    Ok(0)
}
