//! Processes in a namespace of process numbers of their own, as in a container, that share the
//! directory and the host's name with those outside: their numbers mean nothing there.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use dflockd_client::LockState;

use crate::support::{Place, Process, set_end};

const S: Duration = Duration::from_secs(1);

/// The command that makes a namespace, as root or as a user who may; `None` if no user may.
fn unshare() -> Option<Command> {
    let ways: [&[&str]; 2] = [&[], &["--user", "--map-root-user"]];
    for way in ways {
        let command = || {
            let mut command = Command::new("unshare");
            command.args(way).args(["--pid", "--fork", "--kill-child"]);
            command
        };
        let quiet = command().arg("true").stderr(Stdio::null()).status();
        if quiet.is_ok_and(|status| status.success()) {
            return Some(command());
        }
    }
    println!("!!! SKIPPED: this machine makes no namespace of process numbers");
    None
}

/// Starts a process in a namespace of its own, with a number that no process out here has.
fn start_elsewhere(role: &str, path: &Path) -> Option<Process> {
    let mut command = unshare()?;
    let is_free = |pid: &u32| !Path::new(&format!("/proc/{pid}")).exists();
    let free = (300..30_000).find(|start| (*start..start + 100).all(|pid| is_free(&pid)))?;
    // Each turn uses numbers up.
    let script = "until [ \"$(sh -c 'echo $$')\" -ge \"$FIRST\" ]; do :; done; \"$0\" \"$@\"; exit $?";
    command.args(["sh", "-c", script]).arg(std::env::current_exe().unwrap()).env("FIRST", free.to_string());
    Some(Process::start_by(command, role, path))
}

fn is_dead_out_here(pid: u32) -> bool {
    let status = Command::new("kill").args(["-0", &pid.to_string()]).stderr(Stdio::null()).status();
    !status.expect("there is a kill").success()
}

#[test]
fn the_claim_of_a_waiter_elsewhere_stays_though_no_process_here_has_its_number() {
    let place = Place::new();
    let held = place.abandoned("x.lck");
    set_end(&held, SystemTime::now() + 100 * S);
    let Some(mut waiter) = start_elsewhere("wait", &place.path()) else { return };
    let pid = waiter.hear().parse().unwrap();
    let claim = place.claim_of("here", pid);
    assert!(is_dead_out_here(pid), "{pid}");
    let number = fs::metadata(&claim).unwrap().ino();
    let long_ago = SystemTime::now() - 1000 * S;
    set_end(&claim, long_ago);
    set_end(&held, long_ago);
    let lock = place.lock();
    assert!(lock.try_lock().unwrap());
    assert_eq!(fs::metadata(&claim).unwrap().ino(), number, "it is the waiter's own, still there");
    lock.unlock().unwrap();
    assert_eq!((&*waiter.hear(), &*waiter.hear()), ("Ok(())", "left"));
    assert!(place.files().is_empty(), "{:?}", place.files());
}

#[test]
fn a_living_holder_elsewhere_is_not_called_dead_and_a_dead_one_is_not_called_so_either() {
    let place = Place::new();
    let lock = place.builder().slop(S).build().unwrap();
    let state = |end: SystemTime| {
        set_end(&place.path(), end);
        lock.state().unwrap()
    };
    let (soon, long_ago) = (SystemTime::now() + 100 * S, SystemTime::now() - 100 * S);
    let Some(mut holder) = start_elsewhere("hold", &place.path()) else { return };
    assert_eq!(holder.hear(), "held");
    assert!(is_dead_out_here(lock.details().unwrap().pid));
    assert_eq!((state(soon), state(long_ago)), (LockState::Unknown, LockState::TheirsExpired));
    // From out here nothing is known of it, whatever has become of it.
    holder.kill();
    assert_eq!((state(soon), state(long_ago)), (LockState::Unknown, LockState::TheirsExpired));
    // It is broken by its time all the same.
    lock.lock(None).unwrap();
    lock.unlock().unwrap();
    assert!(place.files().is_empty(), "{:?}", place.files());
}

#[test]
fn the_first_process_of_two_containers_is_not_taken_for_one() {
    let place = Place::new();
    let in_container = |role: &str| {
        let mut command = unshare()?;
        command.arg(std::env::current_exe().unwrap());
        Some(Process::start_by(command, role, &place.path()))
    };
    let Some(mut holder) = in_container("hold") else { return };
    assert_eq!(holder.hear(), "held");
    set_end(&place.path(), SystemTime::now() + 100 * S);
    assert_eq!(place.lock().details().unwrap().pid, 1);
    assert_eq!(in_container("look").unwrap().hear(), format!("1 sees {:?}", LockState::Unknown));
}
