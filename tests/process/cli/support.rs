//! `dflock` in a process of its own, away from whatever terminal the tests run on.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{JoinHandle, spawn};

use crate::dflockd::{Dflockd, until};

/// Longer than anything takes, on the slowest machine.
pub(crate) const CAP: std::time::Duration = std::time::Duration::from_secs(60);

/// The command line, with a clean environment but for the server's address.
pub(crate) fn dflock<A: AsRef<OsStr>>(server: &Dflockd, args: &[A]) -> Command {
    let mut command = bare(args);
    command.env("DFLOCK_SERVERS", server.address.to_string());
    command
}

/// The command line without a server. It has a session of its own, so that it has no terminal.
pub(crate) fn bare<A: AsRef<OsStr>>(args: &[A]) -> Command {
    let mut command = Command::new("setsid");
    command.arg(env!("CARGO_BIN_EXE_dflock")).args(args).env_clear();
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.envs(std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("LLVM")));
    command
}

/// How it ended and what it said.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ended {
    /// The one line on stderr, where nothing else was said.
    #[track_caller]
    pub(crate) fn line(&self) -> &str {
        assert_eq!(self.out, "", "{self:?}");
        assert_eq!((self.err.lines().count(), self.err.ends_with('\n')), (1, true), "{self:?}");
        assert!(self.err.starts_with("dflock: "), "{self:?}");
        self.err.trim_end()
    }
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("text");
        Self { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

/// Runs it to its end.
#[track_caller]
pub(crate) fn ended(command: &mut Command) -> Ended {
    start(command).end()
}

#[track_caller]
pub(crate) fn run<A: AsRef<OsStr>>(server: &Dflockd, args: &[A]) -> Ended {
    ended(&mut dflock(server, args))
}

/// One that runs, with its stdin open.
pub(crate) struct Started {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    out: Option<JoinHandle<String>>,
    err: Option<JoinHandle<String>>,
}

#[track_caller]
pub(crate) fn start(command: &mut Command) -> Started {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let (tell, lines) = channel();
    let out = follow(child.stdout.take().expect("it is piped"), tell.clone());
    let err = follow(child.stderr.take().expect("it is piped"), tell);
    let stdin = child.stdin.take();
    Started { child, stdin, lines, out: Some(out), err: Some(err) }
}

/// Reads a stream to its end, and tells each line.
fn follow(stream: impl Read + Send + 'static, tell: Sender<String>) -> JoinHandle<String> {
    spawn(move || {
        let mut all = String::new();
        for line in BufReader::new(stream).lines() {
            let line = line.expect("text");
            all.push_str(&line);
            all.push('\n');
            let _ = tell.send(line);
        }
        all
    })
}

impl Started {
    /// Waits until it has printed this line, on stdout or on stderr.
    #[track_caller]
    pub(crate) fn says(&self, line: &str) {
        self.tells(line, |said| said == line);
    }

    /// Waits until it has printed a line with this in it, on stdout or on stderr.
    #[track_caller]
    pub(crate) fn mentions(&self, part: &str) {
        self.tells(part, |said| said.contains(part));
    }

    #[track_caller]
    fn tells(&self, what: &str, is_it: impl Fn(&str) -> bool) {
        loop {
            match self.lines.recv_timeout(CAP) {
                Ok(said) if is_it(&said) => return,
                Ok(_) => {}
                Err(error) => panic!("it never says {what:?}: {error}"),
            }
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    #[track_caller]
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status();
        assert!(status.expect("there is a kill").success(), "it is gone already");
    }

    pub(crate) fn write(&mut self, text: &str) {
        self.stdin.as_mut().expect("it is open").write_all(text.as_bytes()).expect("it is read");
    }

    /// Closes stdin, and waits for the end.
    #[track_caller]
    pub(crate) fn end(mut self) -> Ended {
        drop(self.stdin.take());
        self.end_of_itself()
    }

    /// Waits for the end.
    #[track_caller]
    pub(crate) fn end_of_itself(mut self) -> Ended {
        let status = self.status();
        let (out, err) = (self.out.take().expect("once"), self.err.take().expect("once"));
        // Whatever the command has left running keeps them open.
        until("nobody writes any more", || out.is_finished() && err.is_finished());
        let (out, err) = (out.join().expect("text"), err.join().expect("text"));
        Ended { code: status.code(), out, err }
    }

    #[track_caller]
    fn status(&mut self) -> ExitStatus {
        let mut status = None;
        until("it ends", || {
            status = self.child.try_wait().expect("it can be waited for");
            status.is_some()
        });
        status.expect("it has ended")
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// What the server says of all keys.
pub(crate) fn stats(server: &Dflockd) -> serde_json::Value {
    let told = run(server, &["stats", "--json"]);
    assert_eq!(told.code, Some(0), "{told:?}");
    serde_json::from_str(&told.out).expect("it is JSON")
}

/// Waits until this many wait for the one lock that there is.
pub(crate) fn waiting(server: &Dflockd, waiters: u64) {
    until("they wait", || stats(server)["locks"][0]["waiters"] == waiters);
}

/// Whether a process runs, one that nobody has reaped yet left out.
pub(crate) fn runs(pid: &str) -> bool {
    let state = Command::new("ps").args(["-o", "stat=", "-p", pid]).output().expect("there is a ps");
    let state = String::from_utf8_lossy(&state.stdout);
    !state.trim().is_empty() && !state.trim().starts_with('Z')
}
