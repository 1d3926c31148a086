//! What file systems refuse: room, permission, and hard links.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::Command;

use dflockd_client::FileLock;

use crate::support::{Place, Process};

#[test]
fn a_full_disk_is_an_error_and_nothing_is_left_behind() {
    let place = Place::new();
    // A limit of nothing on the size of files is as good as a full disk.
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' XFSZ; ulimit -f 0; exec \"$0\" \"$@\""]).arg(std::env::current_exe().unwrap());
    let said = Process::start_by(shell, "try", &place.path()).hear();
    assert!(said.starts_with("Io: lock of ") && said.contains("could not write the claim"), "{said}");
    assert!(place.files().is_empty(), "{:?}", place.files());
}

/// A directory on a file system without hard links, removed with its handle; `None` if there is no such
/// file system.
struct Vfat(Place);

impl Vfat {
    fn mount() -> Option<Self> {
        let place = Place::new();
        let script = "truncate -s 4M \"$0/image\" && mkfs.vfat \"$0/image\" && mkdir \"$0/at\" && \
                      mount -o loop \"$0/image\" \"$0/at\"";
        let made = Command::new("sh").args(["-c", script]).arg(place.dir()).output().ok()?;
        made.status.success().then(|| Self(place))
    }
}

impl Drop for Vfat {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.dir().join("at")).status();
    }
}

#[test]
fn a_file_system_without_hard_links_is_called_one_and_nothing_is_left_behind() {
    let named = "could not link the claim to it: the file system has no hard links";
    if let Some(vfat) = Vfat::mount() {
        let dir = vfat.0.dir().join("at");
        let error =
            FileLock::builder(dir.join("x.lck")).hostname("h").build().unwrap().try_lock().unwrap_err();
        assert!(error.to_string().contains(named), "{error}");
        assert_eq!(std::io::Error::from(error).kind(), std::io::ErrorKind::Unsupported);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    } else {
        println!("!!! SKIPPED: no vfat can be mounted here");
    }
    for errno in ["EPERM", "EOPNOTSUPP", "ENOSYS", "EMLINK"] {
        let place = Place::new();
        let Some(strace) = refusing_links(errno) else { return };
        let said = Process::start_by(strace, "try", &place.path()).hear();
        assert!(said.starts_with("Io: lock of ") && said.contains(named), "{errno}: {said}");
        assert!(place.files().is_empty(), "{:?}", place.files());
    }
    let place = Place::new();
    let said = Process::start_by(refusing_links("EACCES").unwrap(), "try", &place.path()).hear();
    assert!(said.contains("denied") && !said.contains("hard links"), "{said}");
}

/// This test's binary, for which every link fails in this way; `None` if there is no tool for it.
fn refusing_links(errno: &str) -> Option<Command> {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o", "/dev/null", "-e"]).arg(format!("inject=?link,linkat:error={errno}"));
    let works = Command::new("strace").args(["-o", "/dev/null", "true"]).status().is_ok_and(|s| s.success());
    if !works {
        println!("!!! SKIPPED: there is no strace that works");
        return None;
    }
    strace.arg(std::env::current_exe().unwrap());
    Some(strace)
}

/// Runs a try as a user who owns nothing here; only root can do so.
fn try_as_nobody(place: &Place) -> Option<String> {
    const NOBODY: u32 = 65534;
    let me = fs::metadata(place.dir()).unwrap().uid();
    if me != 0 {
        return None;
    }
    // A copy that others can reach.
    let copy = Place::new();
    let binary = copy.dir().join("test");
    fs::copy(std::env::current_exe().unwrap(), &binary).unwrap();
    fs::set_permissions(copy.dir(), Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(&binary);
    command.uid(NOBODY).gid(NOBODY).current_dir(copy.dir());
    Some(Process::start_by(command, "try", &place.path()).hear())
}

#[test]
fn a_directory_that_may_not_be_written_is_an_error() {
    let place = Place::new();
    fs::set_permissions(place.dir(), Permissions::from_mode(0o755)).unwrap();
    let Some(said) = try_as_nobody(&place) else { return };
    assert!(said.starts_with("Io: ") && said.contains("denied"), "{said}");
}

#[test]
fn a_lock_that_may_not_be_touched_is_broken_if_it_may_be_replaced() {
    let place = Place::new();
    fs::set_permissions(place.dir(), Permissions::from_mode(0o777)).unwrap();
    place.abandoned("x.lck");
    let Some(said) = try_as_nobody(&place) else { return };
    assert_eq!(said, "true");

    // In a sticky directory it may not.
    let place = Place::new();
    fs::set_permissions(place.dir(), Permissions::from_mode(0o1777)).unwrap();
    let path = place.abandoned("x.lck");
    let said = try_as_nobody(&place).unwrap();
    assert!(said.starts_with("Io: ") && said.contains("could not replace it"), "{said}");
    assert!(path.exists());
    assert_eq!(place.files().len(), 2, "the challenge is gone: {:?}", place.files());
}
