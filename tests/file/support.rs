//! A directory with a lock in it, and processes that contend for it: this test's own binary, told
//! by its environment what to do.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, SystemTime};

use dflockd_client::FileLock;
use dflockd_client::file::Builder;
use tempfile::TempDir;

/// A directory of its own, gone with the test.
pub(crate) struct Place(TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory can be made"))
    }

    pub(crate) fn dir(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.0.path().join("x.lck")
    }

    pub(crate) fn builder(&self) -> Builder {
        FileLock::builder(self.path()).hostname("here")
    }

    pub(crate) fn lock(&self) -> FileLock {
        self.builder().build().expect("the settings are fine")
    }

    /// The names in the directory, in order.
    pub(crate) fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).expect("it is there");
        let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("it is there").file_name();
        let mut names: Vec<_> = entries.map(|entry| name(entry).to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// The claim of a process that waits for the lock, once it is there.
    pub(crate) fn claim_of(&self, host: &str, pid: u32) -> PathBuf {
        let start = format!("x.lck|{host}|{pid}|");
        loop {
            if let Some(name) = self.files().into_iter().find(|name| name.starts_with(&start)) {
                return self.dir().join(name);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// A lock whose holder died long ago.
    pub(crate) fn abandoned(&self, name: &str) -> PathBuf {
        let path = self.0.path().join(name);
        let claim = format!("{}|elsewhere|1|17", path.display());
        fs::write(&claim, &claim).expect("it can be written");
        fs::hard_link(&claim, &path).expect("it can be linked");
        set_end(&path, SystemTime::now() - Duration::from_secs(100));
        path
    }
}

/// What kind of error it is; there must be one.
pub(crate) fn kind<T: std::fmt::Debug>(outcome: dflockd_client::Result<T>) -> dflockd_client::ErrorKind {
    outcome.expect_err("it must fail").kind()
}

/// Sets when a lock ends, as if its holder had.
pub(crate) fn set_end(path: &Path, end: SystemTime) {
    fs::File::open(path).and_then(|file| file.set_modified(end)).expect("it is ours");
}

/// One of this test's processes; killed with its handle.
pub(crate) struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// What a line for the parent starts with: the test runner prints lines of its own.
pub(crate) const SAYS: &str = "child: ";

impl Process {
    /// Starts a process that plays `role` with the lock at `path`.
    pub(crate) fn start(role: &str, path: &Path) -> Self {
        Self::start_by(Command::new(std::env::current_exe().expect("it has a path")), role, path)
    }

    pub(crate) fn start_by(mut command: Command, role: &str, path: &Path) -> Self {
        command.args(["--exact", "roles::play", "--ignored", "--nocapture", "--test-threads=1"]);
        command.env("FILE_ROLE", role).env("FILE_PATH", path);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("it can be started");
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let output = BufReader::new(output.expect("it is a pipe"));
        Self { child, input: input.expect("it is a pipe"), output }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns the next line that it prints.
    pub(crate) fn hear(&mut self) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert!(self.output.read_line(&mut line).expect("it is text") > 0, "the process has ended");
            // The runner's own words may stand before it on the line.
            if let Some((_, said)) = line.trim_end().split_once(SAYS) {
                return said.to_owned();
            }
        }
    }

    pub(crate) fn tell(&mut self, word: &str) {
        writeln!(self.input, "{word}").and_then(|()| self.input.flush()).expect("it listens");
    }

    /// Sends a signal, by name.
    pub(crate) fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([&format!("-{signal}"), &self.id().to_string()]).status();
        assert!(status.expect("there is a kill").success());
    }

    /// Kills it, and sees it dead.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it has ended");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
