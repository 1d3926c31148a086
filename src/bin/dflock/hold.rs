//! A command under a lease, whoever grants it: the wait, the command's environment, what a lost
//! lease does to it, and the exit code.

use std::io::IsTerminal;
use std::pin::pin;
use std::time::Duration;

use dflockd_client::{Error, LeaseGuard, LostReason};
use indicatif::{ProgressBar, ProgressStyle};
use rustix::process::Signal;
use tokio::time::{Instant, sleep, sleep_until};

use crate::args::{Holding, OnLost};
use crate::child::{Running, code_of};
use crate::exit::{BUSY, Failure, LOST, SIGNALLED, UNAVAILABLE, one_line, printable, say};
use crate::signals::Signals;

/// As good as for ever, and a time that every server takes.
const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 86400);

/// A wait that is over sooner is not worth a word.
const SHORT: Duration = Duration::from_millis(300);

impl Holding {
    /// How long to wait for the lock.
    pub(crate) fn patience(&self) -> Duration {
        if self.at_once { Duration::ZERO } else { self.wait.unwrap_or(FOR_EVER) }
    }

    /// The exit code that the user wants in place of the usual one.
    fn code(&self, failure: Failure) -> Failure {
        let code = match failure.code {
            BUSY => self.conflict_exit_code,
            LOST => self.lost_exit_code,
            code => code,
        };
        Failure { code, ..failure }
    }
}

/// Waits for `acquire`, runs the command under its guard, and answers with the exit code.
/// `failed` makes of an error what the user is told; `limit` goes to the command.
pub(crate) async fn hold(
    what: &str,
    acquire: impl Future<Output = Result<LeaseGuard, Error>>,
    failed: impl Fn(Error) -> Failure,
    limit: Option<u64>,
    holding: &Holding,
) -> Result<u8, Failure> {
    let deaf = |error| Failure::new(UNAVAILABLE, format!("cannot listen to signals: {error}"));
    let mut signals = Signals::listen().map_err(deaf)?;
    let guard = tokio::select! {
        biased;
        outcome = waiting(what, acquire) => outcome.map_err(|error| holding.code(failed(error)))?,
        signal = signals.next() => {
            return Err(Failure::silent(SIGNALLED.saturating_add(signal.as_raw() as u8)));
        }
    };
    let command = match Running::start(&holding.command, holding.shell, &variables(&guard, limit)) {
        Ok(command) => command,
        Err(failure) => {
            let _ = guard.release().await;
            return Err(failure);
        }
    };
    let outcome = under(&guard, command, signals, holding).await;
    let (code, lost) = outcome.map_err(|failure| holding.code(failure))?;
    if lost {
        return Ok(code);
    }
    match guard.release().await {
        Ok(()) => Ok(code),
        Err(error) if error.is_lease_lost() && holding.on_lost != OnLost::Warn => {
            let line = format!("the command has ended, but {}", one_line(&error));
            Err(holding.code(Failure::new(LOST, line)))
        }
        Err(error) if error.is_lease_lost() => {
            say(&one_line(&error));
            Ok(code)
        }
        Err(error) => {
            say(&format!("{}; the key may stay taken until its lease runs out", one_line(&error)));
            Ok(code)
        }
    }
}

/// What the command finds in its environment; nothing of an outer `dflock`'s shines through.
fn variables(guard: &LeaseGuard, limit: Option<u64>) -> Vec<(&'static str, Option<String>)> {
    vec![
        ("DFLOCK_KEY", Some(guard.key().to_string())),
        ("DFLOCK_TOKEN_FENCE", guard.fence().map(|fence| fence.get().to_string())),
        ("DFLOCK_GRANTOR", Some(guard.grantor().to_string())),
        ("DFLOCK_TTL", Some(guard.ttl().as_secs().to_string())),
        ("DFLOCK_LIMIT", limit.map(|limit| limit.to_string())),
    ]
}

/// Runs the command to its end; the exit code, and whether the lease was lost, which then is said.
async fn under(
    guard: &LeaseGuard,
    mut command: Running,
    mut signals: Signals,
    holding: &Holding,
) -> Result<(u8, bool), Failure> {
    let mut is_lost = pin!(guard.lost());
    let (mut lost, mut killed) = (None::<Lost>, false);
    let status = loop {
        let kill_at = lost.as_ref().and_then(|lost| lost.kill_at).filter(|_| !killed);
        tokio::select! {
            status = command.wait() => break status,
            signal = signals.next() => {
                // The whole job may have been sent a TERM when the lease was lost: this is it.
                let is_echo = lost.is_some() && holding.on_lost == OnLost::Term && signal == Signal::TERM;
                if !is_echo {
                    command.forward(signal);
                }
            }
            reason = &mut is_lost, if lost.is_none() => {
                lost = Some(Lost::new(reason, guard, &command, holding));
                killed = holding.on_lost == OnLost::Kill;
            }
            () = sleep_until(kill_at.unwrap_or_else(Instant::now)), if kill_at.is_some() => {
                killed = true;
                command.end(Signal::KILL);
                say(&format!("the command runs on after {:?}: sent SIGKILL", holding.kill_after));
            }
        }
    };
    let status = status.map_err(|error| Failure::new(LOST, format!("lost sight of the command: {error}")))?;
    match lost {
        None => Ok((code_of(status), false)),
        Some(Lost { kill_at: None }) => Ok((code_of(status), true)),
        Some(Lost { kill_at: Some(kill_at) }) => {
            command.rest_ends(kill_at).await;
            Err(Failure::silent(LOST))
        }
    }
}

/// The lease is lost, and what was done about it.
struct Lost {
    /// When to do more; never if the command was to run on.
    kill_at: Option<Instant>,
}

impl Lost {
    fn new(reason: LostReason, guard: &LeaseGuard, command: &Running, holding: &Holding) -> Self {
        let (signal, done, patience) = match holding.on_lost {
            OnLost::Warn => (None, "the command runs on", None),
            OnLost::Term => (Some(Signal::TERM), "sent SIGTERM to the command", Some(holding.kill_after)),
            OnLost::Kill => (Some(Signal::KILL), "sent SIGKILL to the command", Some(Duration::ZERO)),
        };
        if let Some(signal) = signal {
            command.end(signal);
        }
        let key = printable(&guard.key().to_string());
        say(&format!("the lease on \"{key}\" is lost: {reason}; {done}"));
        let kill_at = patience.map(|patience| Instant::now().checked_add(patience));
        Self { kill_at: kill_at.map(|at| at.unwrap_or_else(|| Instant::now() + FOR_EVER)) }
    }
}

/// Waits, and on a terminal shows that it does.
async fn waiting<T>(what: &str, acquire: impl Future<Output = T>) -> T {
    let mut acquire = pin!(acquire);
    if !std::io::stderr().is_terminal() {
        return acquire.await;
    }
    tokio::select! {
        outcome = &mut acquire => return outcome,
        () = sleep(SHORT) => {}
    }
    let spinner = ProgressBar::new_spinner().with_message(printable(what));
    let style = ProgressStyle::with_template("{spinner} waiting for {msg} ({elapsed})");
    if let Ok(style) = style {
        spinner.set_style(style);
    }
    spinner.enable_steady_tick(Duration::from_millis(120));
    let _cleared = Cleared(spinner);
    acquire.await
}

/// The spinner leaves no trace, however its wait ends.
struct Cleared(ProgressBar);

impl Drop for Cleared {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
