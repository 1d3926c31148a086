//! The binary in a process of its own: started with flags and variables, reached by its port, and
//! killed when the test is through with it. Waits for conditions, never for a span of time.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

/// Longer than anything takes, on the slowest machine.
const CAP: Duration = Duration::from_secs(60);

pub(crate) type Variables<'a> = &'a [(&'a str, &'a str)];

/// A server that runs.
pub(crate) struct Dflockd {
    child: Child,
    pub(crate) address: SocketAddr,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Dflockd {
    /// On a free port, unless the flags or the variables name one.
    pub(crate) fn start<A: AsRef<OsStr>>(flags: &[A], variables: Variables) -> Self {
        Self::try_start(flags, variables).unwrap_or_else(|log| panic!("it does not listen: {log}"))
    }

    /// Or what it said instead.
    pub(crate) fn try_start<A: AsRef<OsStr>>(flags: &[A], variables: Variables) -> Result<Self, String> {
        let names_port = flags.iter().any(|flag| flag.as_ref().to_string_lossy().contains("-port"));
        let port = if names_port { &[][..] } else { &[("DFLOCKD_PORT", "0")] };
        Self::follow(command(flags, &[port, variables].concat()))
    }

    /// On a free port, under what the shell is told first, such as a `ulimit`.
    pub(crate) fn start_under(shell: &str) -> Self {
        let script = format!("{shell} && exec \"$0\" \"$@\"");
        let server = command::<&str>(&[], &[]).get_program().to_owned();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &script]).arg(server).args(["--port", "0"]).env_clear();
        Self::follow(command).unwrap_or_else(|log| panic!("it does not listen: {log}"))
    }

    /// Starts it, and waits until it says where it listens, or has ended.
    fn follow(mut command: Command) -> Result<Self, String> {
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
        let stderr = child.stderr.take().expect("stderr is piped");
        let log = Arc::new(Mutex::new(String::new()));
        let (reader, addresses) = follow(stderr, log.clone());
        let Ok(address) = addresses.recv_timeout(CAP) else {
            let _ = child.kill();
            let _ = child.wait();
            return Err(log.lock().unwrap().clone());
        };
        Ok(Self { child, address, log, reader: Some(reader) })
    }

    /// With a stderr of the caller's, and so without a log to read an address from.
    pub(crate) fn start_with_stderr<A: AsRef<OsStr>>(flags: &[A], stderr: impl Fn() -> Stdio) -> Self {
        // A port that is free now may be taken before the server has it: then another will do.
        for _ in 0..10 {
            let free = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("it binds");
            let port = free.port().to_string();
            let mut child = command(flags, &[("DFLOCKD_PORT", &port)]);
            let mut child = child.stdin(Stdio::null()).stderr(stderr()).spawn().expect("it starts");
            let mut runs = true;
            until("it listens or ends", || {
                runs = child.try_wait().expect("it can be waited for").is_none();
                !runs || TcpStream::connect(free).is_ok()
            });
            if runs {
                return Self { child, address: free, log: Arc::default(), reader: None };
            }
        }
        panic!("none of ten ports stays free");
    }

    pub(crate) fn connect(&self) -> Wire {
        Wire::open(self.address)
    }

    /// Sends `TERM`, `INT` or the like.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let status =
            Command::new("kill").args([&format!("-{name}"), &pid]).status().expect("there is a kill");
        assert!(status.success(), "the server is gone already");
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("it can be waited for").is_none()
    }

    /// How it ends by itself, and everything that it logged.
    pub(crate) fn end(mut self) -> (ExitStatus, String) {
        let mut status = None;
        until("the server ends", || {
            status = self.child.try_wait().expect("it can be waited for");
            status.is_some()
        });
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the log is text");
        }
        let log = self.log.lock().unwrap().clone();
        (status.expect("it has ended"), log)
    }

    /// As a crash would: nothing is said, nothing is written.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }
}

impl Drop for Dflockd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs it to its end: `--help`, `--version`, and settings that it refuses.
pub(crate) fn run<A: AsRef<OsStr>>(flags: &[A], variables: Variables) -> Output {
    let mut command = command(flags, variables);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.expect("it starts");
    let began = Instant::now();
    while child.try_wait().expect("it can be waited for").is_none() {
        if began.elapsed() > CAP {
            let _ = child.kill();
            panic!("it runs on with {variables:?}");
        }
        sleep(Duration::from_millis(2));
    }
    child.wait_with_output().expect("its output is read")
}

/// The one line in which it says why it does not start.
#[track_caller]
pub(crate) fn refusal<A: AsRef<OsStr>>(flags: &[A], variables: Variables) -> String {
    let output = run(flags, variables);
    let said = String::from_utf8(output.stderr).expect("text");
    assert!(output.status.code().is_some_and(|code| code != 0), "{:?}: {said}", output.status);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    assert_eq!((said.lines().count(), said.ends_with('\n')), (1, true), "{said}");
    assert!(said.starts_with("dflockd: "), "{said}");
    said
}

/// Polls for a condition; fails when it never comes true.
#[track_caller]
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < CAP, "it never happens: {what}");
        sleep(Duration::from_millis(2));
    }
}

fn command<A: AsRef<OsStr>>(flags: &[A], variables: Variables) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dflockd"));
    command.args(flags).env_clear().envs(variables.iter().copied());
    // Coverage tools name their output by variables.
    command.envs(std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("LLVM")));
    command
}

/// Keeps the log, and tells the address when it is there.
fn follow(
    stderr: impl Read + Send + 'static,
    log: Arc<Mutex<String>>,
) -> (JoinHandle<()>, Receiver<SocketAddr>) {
    let (sender, receiver) = channel();
    let reader = spawn(move || {
        for line in BufReader::new(stderr).lines() {
            let line = line.expect("the log is text");
            let address = line.split_once("listening address=").and_then(|(_, rest)| rest.split(' ').next());
            *log.lock().unwrap() += &(line.clone() + "\n");
            if let Some(address) = address {
                let _ = sender.send(address.parse().expect("an address"));
            }
        }
    });
    (reader, receiver)
}

/// A raw connection.
pub(crate) struct Wire(BufReader<TcpStream>);

impl Wire {
    pub(crate) fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("it listens");
        stream.set_read_timeout(Some(CAP)).expect("the cap is not 0");
        stream.set_nodelay(true).expect("it is tcp");
        Self(BufReader::new(stream))
    }

    pub(crate) fn send(&mut self, frames: &str) {
        self.0.get_mut().write_all(frames.as_bytes()).expect("the server reads");
    }

    /// Whether it could be sent: not where the server has closed already.
    pub(crate) fn try_send(&mut self, frames: &str) -> bool {
        self.0.get_mut().write_all(frames.as_bytes()).is_ok()
    }

    /// The next line, without its end; empty where the connection is closed.
    pub(crate) fn line(&mut self) -> String {
        let mut line = Vec::new();
        match self.0.read_until(b'\n', &mut line) {
            Ok(_) => String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned(),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => String::new(),
            Err(error) => panic!("{error}"),
        }
    }

    pub(crate) fn ask(&mut self, cmd: &str, key: &str, arg: &str) -> String {
        self.send(&format!("{cmd}\n{key}\n{arg}\n"));
        self.line()
    }

    /// Asks for a grant and answers its token.
    pub(crate) fn token(&mut self, cmd: &str, key: &str, arg: &str) -> String {
        let reply = self.ask(cmd, key, arg);
        granted(&reply).to_owned()
    }

    /// Whether the server has closed the connection and said nothing more. Blocks until it does.
    pub(crate) fn is_closed(&mut self) -> bool {
        self.line().is_empty()
    }
}

/// The token of a grant's reply.
#[track_caller]
pub(crate) fn granted(reply: &str) -> &str {
    let fields: Vec<&str> = reply.split(' ').collect();
    assert!(matches!(fields[..], ["ok" | "acquired", _, _]), "{reply:?}");
    assert_eq!(fields[1].len(), 32, "{reply}");
    fields[1]
}
