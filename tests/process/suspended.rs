//! Holders that do not run for a while: blocked, starved of their runtime, or stopped by a signal
//! as a whole process. Whatever they ask first when they are back, the answer counts the time that
//! they were away.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dflockd_client::server::{Server, ServerConfig};
use dflockd_client::test_util::TestServer;
use dflockd_client::{AsyncDistributedLock, ErrorKind, Fence, LeaseGuard, LeaseState, LostReason, Outcome};
use futures::FutureExt;
use tokio::time::advance;

const S: Duration = Duration::from_secs(1);

async fn hold(server: &TestServer, ttl: u32) -> LeaseGuard {
    let locks = server.builder().lease_ttl(ttl * S).build().unwrap();
    locks.lock("k").unwrap().acquire().await.unwrap()
}

/// The clock goes on, and nothing else does.
fn starve(time: Duration) {
    assert!(advance(time).now_or_never().is_none(), "it moves the clock and then yields");
}

#[tokio::test(start_paused = true)]
async fn a_starved_lease_is_never_held_past_its_deadline() {
    for (ttl, away, reason) in [
        (5, 5, LostReason::DeadlinePassed),
        (33, 40, LostReason::DeadlinePassed),
        (600, 21, LostReason::KeepaliveTimeout),
        (600, 700, LostReason::DeadlinePassed),
    ] {
        let server = TestServer::new();
        let guard = hold(&server, ttl).await;
        assert!(guard.is_held());
        let deadline = guard.deadline();
        starve(away * S);
        let what = format!("ttl {ttl} s, away for {away} s");
        assert!(!guard.is_held(), "{what}");
        assert_eq!(guard.state(), LeaseState::Lost(reason), "{what}");
        assert_eq!(guard.deadline(), deadline, "{what}");
        assert_eq!(guard.run(async { panic!("it ran") }).await, Outcome::Lost::<()>(reason), "{what}");
        assert_eq!(guard.renew().await.unwrap_err().kind(), ErrorKind::LeaseLost, "{what}");
        assert_eq!(guard.lost().await, reason, "{what}");
        assert!(!guard.is_held(), "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_was_starved_for_less_than_its_time_lives_on() {
    let server = TestServer::new();
    let guard = hold(&server, 10).await;
    for _ in 0..20 {
        starve(9 * S);
        assert!(guard.is_held());
        assert_eq!(guard.state(), LeaseState::AtRisk);
        guard.renew().await.unwrap();
        assert_eq!(guard.state(), LeaseState::Healthy);
    }
}

#[tokio::test]
async fn work_that_blocks_past_the_deadline_is_lost_whatever_it_came_to() {
    let server = TestServer::new();
    let guard = hold(&server, 1).await;
    let work = async {
        // Blocks the runtime and with it the renewals, as no work should.
        std::thread::sleep(S + S / 10);
        "too late"
    };
    let outcome = guard.run(work).await;
    assert_eq!(outcome, Outcome::Lost(LostReason::DeadlinePassed));
    assert!(!guard.is_held());
}

/// Says which part of the test below a process plays, and to which port it talks.
const PORT: &str = "STOPPED_HOLDER_PORT";

fn lock(port: u16) -> AsyncDistributedLock {
    let builder = AsyncDistributedLock::builder("k").servers([("127.0.0.1", port)]).lease_ttl(S);
    builder.acquire_timeout(60 * S).build().unwrap()
}

/// Takes the lock, and says how it stands each time that it reads a line: before anything else.
fn stopped_holder(port: u16) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let guard = runtime.block_on(lock(port).acquire()).unwrap();
    println!("fence {}", guard.fence().unwrap().get());
    for line in std::io::stdin().lines() {
        let held = guard.is_held();
        line.unwrap();
        println!("held {held} {:?}", guard.state());
        std::io::stdout().flush().unwrap();
    }
}

/// Ends with the test, however that ends.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_process_that_was_stopped_finds_its_lease_lost_and_another_holder_ahead() {
    if let Ok(port) = std::env::var(PORT) {
        return stopped_holder(port.parse().unwrap());
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server =
        runtime.block_on(Server::bind(ServerConfig { port: 0, ..Default::default() })).expect("a free port");
    let port = server.local_addr().unwrap().port();
    runtime.spawn(server.run(std::future::pending()));
    let name = "suspended::a_process_that_was_stopped_finds_its_lease_lost_and_another_holder_ahead";
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(PORT, port.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut holder = Holder(child);
    let child = &mut holder.0;
    let (mut questions, answers) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let pid = child.id().to_string();
    let signal = |name: &str| {
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success(), "{name}");
    };
    let mut answers = BufReader::new(answers).lines().map(Result::unwrap);
    // What the test harness of the child prints is not for us.
    let mut answer = move |word: &str| {
        let found = answers.find_map(|line| line.split_once(word).map(|(_, rest)| rest.trim().to_owned()));
        found.unwrap_or_else(|| panic!("the holder ended without a word of {word:?}"))
    };
    let fence = Fence::new(answer("fence ").parse().unwrap());
    questions.write_all(b"\n").unwrap();
    assert_eq!(answer("held "), "true Healthy");

    signal("-STOP");
    let next = runtime.block_on(lock(port).acquire()).expect("the lease runs out");
    assert!(next.fence().unwrap() > fence);
    questions.write_all(b"\n").unwrap();
    signal("-CONT");
    let first_thing = answer("held ");
    assert!(first_thing.starts_with("false Lost("), "{first_thing}");
    assert!(next.is_held());
    drop(questions);
    assert!(child.wait().unwrap().success());
}
