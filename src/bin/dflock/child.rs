//! The command that runs under the lock: how it is started, which processes a signal reaches, and
//! how it ends. Knows nothing of locks.
//!
//! With a terminal, the command stays in `dflock`'s process group, so that it can read the terminal
//! and ^C reaches it; without one it gets a group of its own, so that all of it can be ended.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::{
    Pid, Signal, getpgrp, getpid, kill_current_process_group, kill_process, kill_process_group,
    test_kill_process_group,
};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use crate::exit::{CANNOT_RUN, Failure, NOT_FOUND, SIGNALLED, one_line};

/// How often it is looked whether a group has ended: the system tells of children alone.
const LOOK: Duration = Duration::from_millis(20);

/// The running command.
pub(crate) struct Running {
    child: Child,
    pid: Pid,
    reach: Reach,
}

/// Whom a signal reaches that ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// There is no terminal: the command's own group.
    Group,
    /// `dflock` leads a terminal's job: all of it, `dflock` included.
    Job,
    /// `dflock` is a part of a script's job, which must live on: the command alone.
    Process,
}

impl Reach {
    fn find() -> Self {
        match std::fs::File::open("/dev/tty") {
            Err(_) => Self::Group,
            Ok(_) if getpgrp() == getpid() => Self::Job,
            Ok(_) => Self::Process,
        }
    }
}

impl Running {
    /// Starts `words`, by the shell if `shell` says so, with `variables`; `None` takes one away.
    pub(crate) fn start(
        words: &[OsString],
        shell: bool,
        variables: &[(&str, Option<String>)],
    ) -> Result<Self, Failure> {
        let prefix: &[OsString] = if shell { &["/bin/sh".into(), "-c".into()] } else { &[] };
        let mut words: Vec<_> = [prefix, words].concat();
        if shell {
            // What follows the script is its name, `$0`, and only then its arguments.
            words.insert(3.min(words.len()), "sh".into());
        }
        let program = words.remove(0);
        let mut command = Command::new(&program);
        command.args(words);
        for (name, value) in variables {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let reach = Reach::find();
        if reach == Reach::Group {
            command.process_group(0);
        }
        let child = command.spawn().map_err(|error| {
            let code = if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { CANNOT_RUN };
            Failure::new(code, format!("cannot run {}: {error}", one_line(&program.display())))
        })?;
        let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        let pid = pid.ok_or_else(|| Failure::new(CANNOT_RUN, "the command has no process number"))?;
        Ok(Self { child, pid, reach })
    }

    /// Waits for the command's end.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(crate) async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Passes a signal on that was sent to `dflock`.
    pub(crate) fn forward(&self, signal: Signal) {
        let of_keyboard = signal == Signal::INT || signal == Signal::QUIT;
        let alone = self.reach == Reach::Group;
        if of_keyboard && !alone && in_foreground() {
            return; // what the terminal's keys send has reached the command already
        }
        let ends = of_keyboard || signal == Signal::HUP || signal == Signal::TERM;
        self.send(signal, alone && ends);
    }

    /// Ends the command: `TERM`, which it may heed, or `KILL`.
    pub(crate) fn end(&self, signal: Signal) {
        self.send(signal, true);
        // Who is suspended cannot heed.
        self.send(Signal::CONT, true);
    }

    fn send(&self, signal: Signal, to_all: bool) {
        // `dflock` must outlive its job to say what has become of it.
        let reach = match self.reach {
            Reach::Job if signal == Signal::KILL => Reach::Process,
            reach if to_all => reach,
            _ => Reach::Process,
        };
        // It may have ended on its own just now, which is as good.
        let _ = match reach {
            Reach::Group => kill_process_group(self.pid, signal),
            Reach::Job => kill_current_process_group(signal),
            Reach::Process => kill_process(self.pid, signal),
        };
    }

    /// After the command has ended: waits until all that it started has, and kills what is left at
    /// `kill_at`. Only of use where it has a group of its own.
    pub(crate) async fn rest_ends(&self, kill_at: Instant) {
        if self.reach != Reach::Group {
            return;
        }
        while test_kill_process_group(self.pid).is_ok() {
            if Instant::now() >= kill_at {
                let _ = kill_process_group(self.pid, Signal::KILL);
                return;
            }
            sleep(LOOK).await;
        }
    }
}

/// The command's exit code, as a shell tells it.
pub(crate) fn code_of(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| i32::from(SIGNALLED) + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}

/// Whether the terminal's keys send their signals to this process.
fn in_foreground() -> bool {
    let terminal = std::fs::File::open("/dev/tty");
    terminal.is_ok_and(|terminal| rustix::termios::tcgetpgrp(&terminal).is_ok_and(|group| group == getpgrp()))
}
