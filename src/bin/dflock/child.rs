//! The command that runs under the lock: how it is started, which processes a signal reaches, and
//! how it and what it leaves behind end. Knows nothing of locks.
//!
//! With a terminal, the command stays in `dflock`'s process group, so that it can read the terminal
//! and ^C reaches it; without one it gets a group of its own, so that all of it can be ended.

use std::convert::Infallible;
use std::ffi::OsString;
use std::future::pending;
use std::io;
use std::os::unix::process::CommandExt;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitOptions, WaitStatus, getpgid, getpgrp, getpid, kill_current_process_group, kill_process,
    kill_process_group, test_kill_process_group,
};
use tokio::signal::unix::{self, SignalKind};
use tokio::time::{Instant, sleep, sleep_until};

use crate::exit::{CANNOT_RUN, Failure, NOT_FOUND, SIGNALLED, one_line};
use crate::family::Family;
use crate::output::say;
use crate::tether::{tied, untied};

/// How often it is looked whether the rest has ended, at first: the system tells of children alone.
const SOON: Duration = Duration::from_millis(20);

/// The same later on, and how often it is looked after the command: `dflock` may have been started
/// with the signal blocked that tells of it.
const LATER: Duration = Duration::from_secs(1);

/// Longer than anything is waited for.
const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 86400);

/// What to do about the processes that the command leaves behind when it ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Rest {
    /// They live on.
    #[default]
    Leave,
    /// The lock is kept until they have ended.
    WaitForAll,
    /// Those of the command's process group are ended.
    EndGroup,
    /// They are ended.
    EndAll,
}

/// How the command is to be run.
#[derive(Debug)]
pub(crate) struct Manner {
    /// By the shell, as a script with arguments.
    pub(crate) shell: bool,
    /// It is not to outlive `dflock`.
    pub(crate) tied: bool,
    pub(crate) rest: Rest,
    /// How long after `TERM` to send `KILL`.
    pub(crate) kill_after: Duration,
}

/// The running command.
pub(crate) struct Running {
    pid: Pid,
    reach: Reach,
    rest: Rest,
    family: Family,
    ended: unix::Signal,
    /// Its exit code, once it has ended.
    code: Option<u8>,
    kill_after: Duration,
    kill_at: Option<Instant>,
    killed: bool,
}

/// Whom a signal reaches that ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// There is no terminal: the command's own group.
    Group,
    /// `dflock` leads a terminal's job: all of it, `dflock` included.
    Job,
    /// `dflock` is a part of a script's job, which must live on: the command, and what it has
    /// started in that job.
    Part,
}

impl Reach {
    fn find() -> Self {
        match std::fs::File::open("/dev/tty") {
            Err(_) => Self::Group,
            Ok(_) if getpgrp() == getpid() => Self::Job,
            Ok(_) => Self::Part,
        }
    }
}

impl Running {
    /// Starts `words` with `variables`; `None` takes one away. To be called by the main thread: the
    /// command that is tied to `dflock` is tied to the thread that starts it.
    pub(crate) fn start(
        words: &[OsString],
        variables: &[(&str, Option<String>)],
        manner: &Manner,
    ) -> Result<Self, Failure> {
        // Before there is a child: if the parent of `dflock` has SIGCHLD ignored, the system discards the status
        // of children.
        let ended = unix::signal(SignalKind::child()).map_err(|error| {
            Failure::new(CANNOT_RUN, format!("cannot listen for the command's end: {error}"))
        })?;
        let family = Family::found();
        let of_all = matches!(manner.rest, Rest::WaitForAll | Rest::EndAll);
        if of_all && family.living(None).is_none() {
            return Err(Failure::usage("--wait-for-all and --kill-all need Linux and its /proc"));
        }
        let prefix: &[OsString] = if manner.shell { &["/bin/sh".into(), "-c".into()] } else { &[] };
        let mut words: Vec<_> = [prefix, words].concat();
        if manner.shell {
            // What follows the script is its name, `$0`, and only then its arguments.
            words.insert(3.min(words.len()), "sh".into());
        }
        let program = words.remove(0);
        let mut command = if manner.tied { tied(&program, &words) } else { untied(&program, &words) };
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
        let child = command.spawn().map_err(|error| cannot_run(&program, &error))?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| Failure::new(CANNOT_RUN, "the command has no process number"))?;
        let (rest, kill_after) = (manner.rest, manner.kill_after);
        Ok(Self { pid, reach, rest, family, ended, code: None, kill_after, kill_at: None, killed: false })
    }

    /// Waits for the command's end, and for the rest as far as it is to be waited for; the exit code.
    /// Sends `KILL` where it is time to. Every child is reaped on the way: as process 1 of a
    /// container, `dflock` is the one who has to.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(crate) async fn wait(&mut self) -> io::Result<u8> {
        let mut pause = SOON;
        loop {
            self.reap()?;
            if let Some(code) = self.code {
                if self.rest_is_over() {
                    return Ok(code);
                }
                if matches!(self.rest, Rest::EndGroup | Rest::EndAll) && self.kill_at.is_none() {
                    self.end(Signal::TERM);
                }
            }
            let kill_at = self.kill_at;
            tokio::select! {
                _ = self.ended.recv() => pause = SOON,
                () = sleep(if self.code.is_some() { pause } else { LATER }) => pause = (2 * pause).min(LATER),
                () = sleep_until(kill_at.unwrap_or_else(Instant::now)), if kill_at.is_some() => self.kill(),
            }
        }
    }

    fn reap(&mut self) -> io::Result<()> {
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if pid == self.pid => self.code = Some(code_of(status)),
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Ok(None) => return Ok(()),
                Err(Errno::CHILD) if self.code.is_some() => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn rest_is_over(&self) -> bool {
        match (self.rest, self.living()) {
            (Rest::Leave, _) => true,
            (_, Some(living)) => living.is_empty(),
            (_, None) => self.reach != Reach::Group || test_kill_process_group(self.pid).is_err(),
        }
    }

    /// Those that live and that the signals are meant for that reach all.
    fn living(&self) -> Option<Vec<Pid>> {
        let group = if self.reach == Reach::Group { self.pid } else { getpgrp() };
        let of_all = matches!(self.rest, Rest::WaitForAll | Rest::EndAll);
        self.family.living((!of_all).then_some(group))
    }

    /// Passes a signal on that was sent to `dflock`.
    pub(crate) fn forward(&self, signal: Signal) {
        let of_keyboard = signal == Signal::INT || signal == Signal::QUIT;
        let alone = self.reach == Reach::Group;
        if of_keyboard && !alone && in_foreground() {
            return; // what the terminal's keys send has reached the command already
        }
        let ends = of_keyboard || signal == Signal::HUP || signal == Signal::TERM;
        if alone && ends || self.code.is_some() {
            self.send(signal);
        } else {
            // It may have ended on its own just now, which is as good.
            let _ = kill_process(self.pid, signal);
        }
    }

    /// Ends the command and its group, and all else if it is to be: by `TERM`, which they may heed,
    /// and by `KILL` later; or by `KILL` at once. From now on [`wait`](Self::wait) waits for them.
    pub(crate) fn end(&mut self, signal: Signal) {
        if self.rest != Rest::EndAll {
            self.rest = if self.rest == Rest::WaitForAll { Rest::EndAll } else { Rest::EndGroup };
        }
        self.killed = signal == Signal::KILL;
        let patience = if self.killed { SOON } else { self.kill_after.min(FOR_EVER) };
        self.kill_at = Some(Instant::now() + patience);
        self.send(signal);
        // Who is suspended cannot heed.
        self.send(Signal::CONT);
    }

    /// Kills what is left, and once more soon: it may just have started something.
    fn kill(&mut self) {
        if !self.killed {
            let who = if self.code.is_some() { "what the command has started" } else { "the command" };
            say(&format!("{who} runs on after {:?}: sent SIGKILL", self.kill_after));
        }
        self.end(Signal::KILL);
    }

    /// Sends to all whom signals reach that end.
    fn send(&self, signal: Signal) {
        let (living, runs) = (self.living(), self.code.is_none());
        // Who has ended on its own just now is out of reach, which is as good.
        let whole_group = match self.reach {
            Reach::Group if runs || living.is_none() => {
                let _ = kill_process_group(self.pid, signal);
                Some(self.pid)
            }
            // `dflock` must outlive its job to say what has become of it.
            Reach::Job if runs && signal != Signal::KILL => {
                let _ = kill_current_process_group(signal);
                Some(getpgrp())
            }
            _ if runs && living.is_none() => {
                let _ = kill_process(self.pid, signal);
                None
            }
            _ => None,
        };
        for pid in living.unwrap_or_default() {
            if whole_group.is_none() || getpgid(Some(pid)).ok() != whole_group {
                let _ = kill_process(pid, signal);
            }
        }
    }
}

/// Reaps each child that ends while there is no command yet, forever: as process 1 of a container,
/// `dflock` is given orphans while it waits for its lock as well.
pub(crate) async fn reap_others() -> Infallible {
    let Ok(mut ended) = unix::signal(SignalKind::child()) else { return pending().await };
    loop {
        while let Ok(Some(_)) | Err(Errno::INTR) = rustix::process::wait(WaitOptions::NOHANG) {}
        ended.recv().await;
    }
}

/// Why the command was not started, with the exit code that a shell has for it.
pub(crate) fn cannot_run(program: &OsString, error: &io::Error) -> Failure {
    let code = if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { CANNOT_RUN };
    Failure::new(code, format!("cannot run {}: {error}", one_line(&program.display())))
}

/// The command's exit code, as a shell tells it.
fn code_of(status: WaitStatus) -> u8 {
    let signal = || status.terminating_signal().map(|signal| i32::from(SIGNALLED) + signal);
    status.exit_status().or_else(signal).and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}

/// Whether the terminal's keys send their signals to this process.
fn in_foreground() -> bool {
    let terminal = std::fs::File::open("/dev/tty");
    terminal.is_ok_and(|terminal| rustix::termios::tcgetpgrp(&terminal).is_ok_and(|group| group == getpgrp()))
}
