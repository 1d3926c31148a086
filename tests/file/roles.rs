//! What this binary does when another one of its tests starts it as a process.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dflockd_client::FileLock;
use dflockd_client::file::Builder;

use crate::support::SAYS;

#[test]
#[ignore = "a part that other tests let it play"]
fn play() {
    let Ok(role) = std::env::var("FILE_ROLE") else { return };
    let path = PathBuf::from(std::env::var_os("FILE_PATH").expect("it is set"));
    match role.as_str() {
        "hold" => hold(&path),
        "take turns" => take_turns(&path),
        "try" => try_once(&path),
        "wait" => wait(&path),
        "look" => look(&path),
        "crowd" => crowd(&path),
        role => panic!("there is no role {role:?}"),
    }
}

fn say(word: &str) {
    println!("{SAYS}{word}");
}

/// The next line from the parent; none when it has gone.
fn listen() -> Option<String> {
    let mut line = String::new();
    let length = std::io::stdin().read_line(&mut line).expect("it is text");
    (length > 0).then(|| line.trim_end().to_owned())
}

fn builder(path: &Path) -> Builder {
    FileLock::builder(path).hostname("here").poll(Duration::from_millis(5))
}

/// Takes the lock for a second, keeps it until told, and prints the outcome of its release.
fn hold(path: &Path) {
    let slop = Duration::from_secs(1);
    let lock = builder(path).lifetime(Duration::from_secs(1)).slop(slop).build().unwrap();
    lock.lock(None).unwrap();
    say("held");
    if listen().is_some() {
        say(&format!("{:?}", lock.unlock().map_err(|error| error.kind())));
    }
}

/// Says which process it is, and what it takes the lock for.
fn look(path: &Path) {
    let state = builder(path).build().unwrap().state().unwrap();
    say(&format!("{} sees {state:?}", std::process::id()));
}

/// Prints its process number, waits for the lock, which it never breaks, and prints that it holds it.
fn wait(path: &Path) {
    let lock = builder(path).slop(Duration::from_secs(100_000)).build().unwrap();
    say(&std::process::id().to_string());
    say(&format!("{:?}", lock.lock(None).map_err(|error| error.kind())));
    lock.unlock().unwrap();
    say("left");
}

/// For each name that it reads: takes that lock, logs that it comes and goes, and prints that it has.
fn take_turns(dir: &Path) {
    let mut log = OpenOptions::new().append(true).create(true).open(dir.join("log")).unwrap();
    let pid = std::process::id();
    while let Some(name) = listen() {
        let lock = builder(&dir.join(&name)).build().unwrap();
        lock.lock(None).unwrap();
        log.write_all(format!("{name} enter {pid}\n").as_bytes()).unwrap();
        std::thread::yield_now();
        log.write_all(format!("{name} leave {pid}\n").as_bytes()).unwrap();
        lock.unlock().unwrap();
        say("done");
    }
}

/// Tries once, and prints the outcome.
fn try_once(path: &Path) {
    let outcome = builder(path).build().and_then(|lock| lock.try_lock());
    say(&outcome.map_or_else(|error| format!("{:?}: {error}", error.kind()), |taken| taken.to_string()));
}

/// Lets a thousand tasks wait for a lock that is taken, says how many threads there are then, and
/// lets each have its turn.
fn crowd(path: &Path) {
    const TASKS: usize = 1000;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.unwrap().block_on(async {
        let lock = Arc::new(builder(path).poll(Duration::from_millis(250)).build().unwrap());
        let held = lock.acquire().await.unwrap();
        let tasks: Vec<_> = (0..TASKS)
            .map(|_| {
                let lock = lock.clone();
                tokio::spawn(async move { lock.acquire().await.unwrap().release().await.unwrap() })
            })
            .collect();
        let entries = |path: &Path| std::fs::read_dir(path).unwrap().count();
        while entries(path.parent().unwrap()) < TASKS + 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        say(&entries(Path::new("/proc/self/task")).to_string());
        held.release().await.unwrap();
        for task in tasks {
            task.await.unwrap();
        }
        say("done");
    });
}
