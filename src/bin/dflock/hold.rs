//! A command under a lease, of any backend: the wait, the command's environment, what a lost
//! lease does to it, and the exit code.

use std::pin::pin;
use std::time::Duration;

use dflockd_client::{Error, LeaseGuard, LostReason};
use rustix::process::Signal;

use crate::args::{Holding, OnLost};
use crate::child::{Manner, Rest, Running, reap_others};
use crate::exit::{BUSY, Failure, LOST, SIGNALLED, UNAVAILABLE, one_line};
use crate::output::say;
use crate::signals::Signals;
use crate::waiting::waiting;

/// Practically forever, and a time that every server accepts.
const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 86400);

impl Holding {
    /// How long to wait for the lock.
    pub(crate) fn patience(&self) -> Duration {
        if self.at_once { Duration::ZERO } else { self.wait.unwrap_or(FOR_EVER) }
    }

    fn manner(&self) -> Manner {
        Manner {
            shell: self.shell,
            // Who lets it run on without its lease lets it run on without `dflock`.
            tied: self.on_lost != OnLost::Warn,
            rest: match (self.kill_group, self.kill_all, self.wait_for_all) {
                (true, ..) => Rest::EndGroup,
                (_, true, _) => Rest::EndAll,
                (.., true) => Rest::WaitForAll,
                _ => Rest::Leave,
            },
            kill_after: self.kill_after,
        }
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
        never = reap_others() => match never {},
    };
    let command = match Running::start(&holding.command, &variables(&guard, limit), &holding.manner()) {
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
        ("DFLOCK_KEY", Some(guard.key().to_text().into_owned())),
        ("DFLOCK_TOKEN_FENCE", guard.fence().map(|fence| fence.get().to_string())),
        ("DFLOCK_GRANTOR", Some(guard.endpoint().to_string())),
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
    let mut lost = false;
    let code = loop {
        tokio::select! {
            code = command.wait() => break code,
            signal = signals.next() => {
                // The whole job may have been sent a TERM when the lease was lost: this is it.
                let is_echo = lost && holding.on_lost == OnLost::Term && signal == Signal::TERM;
                if !is_echo {
                    command.forward(signal);
                }
            }
            reason = &mut is_lost, if !lost => {
                lost = true;
                tell_lost(reason, guard, &mut command, holding.on_lost);
            }
        }
    };
    let code = code.map_err(|error| Failure::new(LOST, format!("lost sight of the command: {error}")))?;
    match lost && holding.on_lost != OnLost::Warn {
        true => Err(Failure::silent(LOST)),
        false => Ok((code, lost)),
    }
}

/// Ends the command whose lease is lost, unless it is to run on, and says so.
fn tell_lost(reason: LostReason, guard: &LeaseGuard, command: &mut Running, on_lost: OnLost) {
    let (signal, done) = match on_lost {
        OnLost::Warn => (None, "the command runs on"),
        OnLost::Term => (Some(Signal::TERM), "sent SIGTERM to the command"),
        OnLost::Kill => (Some(Signal::KILL), "sent SIGKILL to the command"),
    };
    if let Some(signal) = signal {
        command.end(signal);
    }
    say(&format!("the lease on \"{}\" is lost: {reason}; {done}", guard.key()));
}
