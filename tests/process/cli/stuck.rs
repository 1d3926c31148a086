//! Output that nobody reads, that nobody can read, or that has no room.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Write, pipe};
use std::process::{Command, Stdio};

use crate::cli::support::{dflock, run, start};
use crate::dflockd::{Dflockd, until};

/// A pipe that takes nothing more: nobody reads, and the reader is still there.
fn full() -> (PipeReader, PipeWriter) {
    let (reader, writer) = pipe().expect("there is a pipe");
    let mut filling = writer.try_clone().expect("there is room");
    let (tell, told) = std::sync::mpsc::channel();
    // It stays in its write until the test ends.
    std::thread::spawn(move || {
        while filling.write_all(&[b'x'; 4096]).is_ok() {
            let _ = tell.send(());
        }
    });
    while told.recv_timeout(std::time::Duration::from_millis(500)).is_ok() {}
    (reader, writer)
}

/// How `dflock` ends with its stderr there and nobody else's: its exit code.
#[track_caller]
fn code(command: &mut Command, stderr: impl Into<Stdio>) -> Option<i32> {
    let mut child = command.stdin(Stdio::null()).stderr(stderr).spawn().expect("it starts");
    let mut status = None;
    until("it ends", || {
        status = child.try_wait().expect("it can be waited for");
        status.is_some()
    });
    status.expect("it has ended").code()
}

/// What `dflock` says of a lease that is lost has no reader, and it ends the command all the same.
#[track_caller]
fn loses_its_lease(stderr: impl Into<Stdio>) {
    let server = Dflockd::start::<&str>(&[], &[]);
    let file = tempfile::tempdir().expect("there is room");
    let ready = file.path().join("ready");
    let mut command = dflock(&server, &["run", "k", "--shell", "touch \"$1\"; exec sleep 1000 2>/dev/null"]);
    command.arg(&ready);
    let told = std::thread::spawn({
        let ready = ready.clone();
        move || {
            until("the command runs", || ready.exists());
            server.kill();
        }
    });
    assert_eq!(code(&mut command, stderr), Some(75));
    told.join().expect("it was ready");
}

#[test]
fn a_stderr_that_nobody_reads_halts_nothing() {
    let (_reader, writer) = full();
    loses_its_lease(writer);
}

#[test]
fn a_stderr_that_nobody_can_read_ends_nothing() {
    let (reader, writer) = pipe().expect("there is a pipe");
    drop(reader);
    loses_its_lease(writer);
}

#[test]
fn a_stderr_without_room_ends_nothing() {
    loses_its_lease(File::options().write(true).open("/dev/full").expect("there is one"));
}

#[test]
fn what_is_left_is_killed_though_nobody_reads_that_it_is() {
    let server = Dflockd::start(&["--lease-sweep-interval", "1"], &[]);
    let (_reader, writer) = full();
    let script = "(trap '' TERM; while :; do sleep 0.01; done) & echo held; read _";
    let mut command = dflock(&server, &["run", "k", "--ttl", "1s", "--kill-group", "--kill-after", "1s"]);
    command.args(["--shell", script]).stdin(Stdio::null()).stderr(writer).stdout(Stdio::null());
    let mut child = command.spawn().expect("it starts");
    let mut status = None;
    until("it ends", || {
        status = child.try_wait().expect("it can be waited for");
        status.is_some()
    });
    // `read` has found no line.
    assert_eq!(status.expect("it has ended").code(), Some(1), "the lease was not lost");
    assert_eq!(run(&server, &["run", "--try", "k", "--", "true"]).code, Some(0));
}

#[test]
fn a_wrong_argument_is_refused_where_nobody_reads_why() {
    let (_reader, writer) = full();
    assert_eq!(code(&mut crate::cli::support::bare(&["fly"]), writer), Some(64));
    let (_reader, writer) = full();
    let server = Dflockd::start::<&str>(&[], &[]);
    let holder = start(&mut dflock(&server, &["run", "k", "--", "sh", "-c", "echo held; read _"]));
    holder.says("held");
    assert_eq!(code(&mut dflock(&server, &["run", "--try", "k", "--", "true"]), writer), Some(124));
}
