//! Tests that would disturb their neighbours, each in a process of its own: this binary, started again for
//! that test alone. With a runner that gives each test a process, it is one process more and no other result.

use std::process::Command;

/// Says that this process is the one apart.
const APART: &str = "TEST_APART";

/// Whether this is the test's own process. Where it is not, runs the test of this full name in one, and
/// fails as it does.
pub(crate) fn is_apart(name: &str) -> bool {
    if std::env::var(APART).is_ok_and(|apart| apart == name) {
        return true;
    }
    let (_, path) = name.split_once("::").expect("a crate comes first");
    let mut process = Command::new(std::env::current_exe().expect("it has a path"));
    let output = process.args(["--exact", path, "--nocapture"]).env(APART, name).output();
    let output = output.expect("a test can be run again");
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
    assert!(output.status.success(), "{}: {}\n{}", output.status, said[0], said[1]);
    assert!(said[0].contains("1 passed"), "it ran: {}", said[0]);
    false
}
