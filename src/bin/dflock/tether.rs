//! How the command is tied to `dflock`: should `dflock` be killed outright, the kernel kills the
//! command. The command's process runs `dflock` first, which asks the kernel for that and then
//! becomes the command: a process can ask it for itself alone.
//!
//! It is `KILL` that the kernel sends. With `dflock`, the connection is gone, and the server hands
//! the key on at once: whatever the command still did it would do beside the next holder. And after
//! a `TERM`, no process is left to follow it up.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use crate::child::cannot_run;
use crate::output;

/// What the process calls itself until it is the command, and how `dflock` knows its part.
const NAME: &str = "dflock: starting";

/// This very program, also when its file has been replaced.
#[cfg(target_os = "linux")]
const THIS: &str = "/proc/self/exe";

/// What runs `words`; tied to this process where the system can.
#[cfg(target_os = "linux")]
pub(crate) fn tied(program: &OsString, words: &[OsString]) -> Command {
    if !std::fs::exists(THIS).is_ok_and(|exists| exists) {
        return untied(program, words);
    }
    let mut command = Command::new(THIS);
    command.arg0(NAME).arg(std::process::id().to_string()).arg(program).args(words);
    command
}

#[cfg(not(target_os = "linux"))]
pub(crate) use untied as tied;

pub(crate) fn untied(program: &OsString, words: &[OsString]) -> Command {
    let mut command = Command::new(program);
    command.args(words);
    command
}

/// Becomes the command, if that is what this process was started for. It returns if it was not, or
/// with the exit code when the command cannot be run.
pub(crate) fn become_command() -> Option<ExitCode> {
    let mut args = std::env::args_os();
    args.next().filter(|name| name == NAME)?;
    let parent = args.next()?.to_str()?.parse().ok()?;
    let program = args.next()?;
    let words: Vec<_> = args.collect();
    tie(parent);
    let failure = cannot_run(&program, &untied(&program, &words).exec());
    output::say(failure.line.as_deref().unwrap_or_default());
    output::flush();
    Some(ExitCode::from(failure.code))
}

#[cfg(target_os = "linux")]
fn tie(parent: i32) {
    use rustix::process::{Signal, getpid, getppid, kill_process, set_parent_process_death_signal};
    // What refuses this refuses it to everybody: the command runs as it would elsewhere.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    // It may have been too late. A parent outside of this process's namespace has no number here.
    let found = getppid().map(|pid| pid.as_raw_nonzero().get());
    if found.is_some_and(|found| found != parent) {
        let _ = kill_process(getpid(), Signal::KILL);
    }
}

#[cfg(not(target_os = "linux"))]
fn tie(_parent: i32) {}
