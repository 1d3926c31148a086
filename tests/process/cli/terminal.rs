//! On a terminal: the spinner, the keys that send signals, the question before a lock is broken, and
//! the full screen of `top`. The terminal is tmux's; it must be installed where `CHECK_STRICT` is 1.

use std::io::ErrorKind;
use std::process::{Command, Output};
use std::time::Duration;

use crate::cli::support::{dflock, run, start, stats};
use crate::dflockd::{Dflockd, until};

/// A terminal with a shell in it.
pub(crate) struct Terminal {
    directory: tempfile::TempDir,
}

impl Terminal {
    /// None where there is no tmux and it may be missing.
    pub(crate) fn open() -> Option<Self> {
        match Command::new("tmux").arg("-V").output() {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {
                assert!(
                    std::env::var_os("CHECK_STRICT").is_none_or(|strict| strict != "1"),
                    "tmux is missing"
                );
                eprintln!("!!! skipped: tmux is not installed");
                return None;
            }
            Err(error) => panic!("tmux: {error}"),
        }
        let terminal = Self { directory: tempfile::tempdir().expect("there is room") };
        // Interactive, so that each command is a job of its own, and bare of anybody's settings.
        let shell = "env -i HOME=/nonexistent TERM=screen-256color PATH=\"$PATH\" PS1='ready> ' bash --norc --noprofile -i";
        let made = terminal.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "100", "-y", "20", shell]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        terminal.shows("ready>");
        Some(terminal)
    }

    fn tmux(&self, args: &[&str]) -> Output {
        let socket = self.directory.path().join("tmux");
        let output = Command::new("tmux").arg("-S").arg(socket).args(args).env_remove("TMUX").output();
        output.expect("there is a tmux")
    }

    /// Types a command line, which runs `dflock` against `server`.
    pub(crate) fn enters(&self, server: &Dflockd, line: &str) {
        let (dflock, address) = (env!("CARGO_BIN_EXE_dflock"), server.address);
        let file = self.directory.path().join("line");
        let script = format!("export DFLOCK_SERVERS={address}\ndflock() {{ '{dflock}' \"$@\"; }}\n{line}\n");
        std::fs::write(&file, script).expect("it is written");
        self.types(&format!(". {}", file.display()));
        self.press("Enter");
    }

    fn types(&self, text: &str) {
        self.tmux(&["send-keys", "-l", text]);
    }

    /// A key by its name: `Enter`, `C-c`.
    pub(crate) fn press(&self, key: &str) {
        self.tmux(&["send-keys", key]);
    }

    /// Leaves nothing on the screen but the prompt, so that what is shown next is new.
    fn clear(&self) {
        self.press("C-l");
        until("the screen is clear", || self.screen().trim() == "ready>");
    }

    fn screen(&self) -> String {
        // With `-J`, what was too long for a line is one line all the same.
        let screen = String::from_utf8(self.tmux(&["capture-pane", "-p", "-J"]).stdout).expect("text");
        screen.lines().map(|line| format!("{}\n", line.trim_end())).collect()
    }

    #[track_caller]
    pub(crate) fn shows(&self, text: &str) -> String {
        let mut screen = String::new();
        until(&format!("the screen shows {text:?}"), || {
            screen = self.screen();
            screen.contains(text)
        });
        screen
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

fn holder(server: &Dflockd, args: &[&str]) -> crate::cli::support::Started {
    let args = [&["run"], args, &["--", "sh", "-c", "echo held; read _; true"]].concat();
    let holder = start(&mut dflock(server, &args));
    holder.says("held");
    holder
}

#[test]
fn a_wait_is_shown_and_leaves_no_trace() {
    let Some(terminal) = Terminal::open() else { return };
    let server = Dflockd::start::<&str>(&[], &[]);
    let holder = holder(&server, &["k"]);
    terminal.enters(&server, "dflock run k -- echo mine");
    terminal.shows("waiting for \"k\" (");
    assert_eq!(holder.end().code, Some(0));
    let screen = terminal.shows("\nmine\n");
    assert!(!screen.contains("waiting"), "{screen}");
}

#[test]
fn a_halted_terminal_halts_neither_the_command_nor_its_lease() {
    let Some(terminal) = Terminal::open() else { return };
    let server = Dflockd::start::<&str>(&[], &[]);
    let holder = holder(&server, &["k"]);
    let file = terminal.directory.path().join("done");
    // For longer than the lease lasts where it is not renewed.
    let script = format!("sleep 2.5; touch {}", file.display());
    terminal.enters(&server, &format!("dflock run k --ttl 1s --shell '{script}'; echo code $?"));
    terminal.shows("waiting for \"k\" (");
    terminal.press("C-s");
    until("nothing is shown any more", || {
        let before = terminal.screen();
        std::thread::sleep(Duration::from_millis(500));
        before == terminal.screen()
    });
    assert_eq!(holder.end().code, Some(0));
    until("the command has run", || file.exists());
    until("the key is free again", || run(&server, &["run", "--try", "k", "--", "true"]).code == Some(0));
    terminal.press("C-q");
    let screen = terminal.shows("code 0");
    assert!(!screen.contains("waiting"), "{screen}");
}

#[test]
fn what_a_job_leaves_behind_is_ended_and_the_shell_lives() {
    let Some(terminal) = Terminal::open() else { return };
    let server = Dflockd::start::<&str>(&[], &[]);
    for (flag, reader) in [("--kill-group", ""), ("--kill-all", " | cat")] {
        let line =
            format!("dflock run {flag} k --shell 'sleep 1000 & echo $! is ready'{reader}; echo code $?");
        terminal.clear();
        terminal.enters(&server, &line);
        let screen = terminal.shows("code 0");
        let ready = screen.lines().find(|line| line.ends_with(" is ready")).expect("it shows that");
        let pid = ready.split(' ').next().expect("its number").to_owned();
        assert!(!crate::cli::support::runs(&pid), "{screen}");
    }
}

#[test]
fn the_command_can_read_the_terminal() {
    let Some(terminal) = Terminal::open() else { return };
    let server = Dflockd::start::<&str>(&[], &[]);
    terminal.enters(
        &server,
        "dflock run k --shell 'read -p \"sure? \" answer </dev/tty; echo \"you said $answer\"'",
    );
    terminal.shows("sure?");
    terminal.types("yes");
    terminal.press("Enter");
    terminal.shows("you said yes");
}

#[test]
fn control_c_reaches_the_command_once_and_the_lock_is_released() {
    let Some(terminal) = Terminal::open() else { return };
    let server = Dflockd::start::<&str>(&[], &[]);
    let script = "n=0; trap 'n=$((n+1))' INT; trap 'echo \"$n of them\"; exit 4' TERM; echo $$ is ready; \
                  while :; do :; done";
    let quoted = script.replace('\'', "'\\''");
    terminal.enters(&server, &format!("dflock run k --shell '{quoted}'; echo code $?"));
    let screen = terminal.shows(" is ready");
    let ready = screen.lines().find(|line| line.ends_with(" is ready")).expect("it shows that");
    let pid = ready.split(' ').next().expect("its number").to_owned();
    terminal.press("C-c");
    terminal.shows("^C");
    assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("there is a kill").success());
    terminal.shows("1 of them\ncode 4");
    assert_eq!(run(&server, &["run", "--try", "k", "--", "true"]).code, Some(0));
}

#[test]
fn control_c_ends_a_wait() {
    let Some(terminal) = Terminal::open() else { return };
    let server = Dflockd::start::<&str>(&[], &[]);
    let holder = holder(&server, &["k"]);
    terminal.enters(&server, "dflock run k -- echo never; echo code $?");
    terminal.shows("waiting for");
    terminal.press("C-c");
    // The shell takes it as a reason to stop reading the line; the prompt is back all the same.
    until("it has left the queue", || stats(&server)["locks"][0]["waiters"] == 0);
    let screen = terminal.shows("\nready>");
    assert!(!screen.contains("never\n"), "{screen}");
    assert_eq!(holder.end().code, Some(0));
}

#[test]
fn a_lost_lease_ends_the_whole_job() {
    let Some(terminal) = Terminal::open() else { return };
    let server = Dflockd::start::<&str>(&[], &[]);
    terminal.enters(&server, "dflock run k --shell 'sleep 1000 & echo $! is ready; wait'; echo code $?");
    let screen = terminal.shows(" is ready");
    let ready = screen.lines().find(|line| line.ends_with(" is ready")).expect("it shows that");
    let pid = ready.split(' ').next().expect("its number").to_owned();
    server.kill();
    let screen = terminal.shows("code 75");
    assert!(screen.contains("the lease on \"k\" is lost"), "{screen}");
    until("the sleep is gone", || !crate::cli::support::runs(&pid));
}

#[test]
fn a_script_lives_on_when_a_command_in_it_loses_its_lease() {
    let Some(terminal) = Terminal::open() else { return };
    let server = Dflockd::start::<&str>(&[], &[]);
    let (script, dflock) = (terminal.directory.path().join("script"), env!("CARGO_BIN_EXE_dflock"));
    let text = format!("'{dflock}' run k --shell 'echo is ready; exec sleep 1000'\necho code $?\n");
    std::fs::write(&script, text).expect("it is written");
    terminal.enters(&server, &format!("bash {}", script.display()));
    terminal.shows("is ready");
    server.kill();
    terminal.shows("code 75");
}

#[test]
fn a_job_that_is_suspended_for_too_long_is_ended_when_it_continues() {
    let Some(terminal) = Terminal::open() else { return };
    let server = Dflockd::start(&["--read-timeout", "1"], &[]);
    terminal.enters(&server, "dflock run k --ttl 1s --shell 'echo is ready; exec sleep 1000'");
    terminal.shows("is ready");
    terminal.press("C-z");
    terminal.shows("Stopped");
    until("others have the key", || run(&server, &["run", "--try", "k", "--", "true"]).code == Some(0));
    terminal.types("fg");
    terminal.press("Enter");
    terminal.shows("the lease on \"k\" is lost");
    terminal.types("echo code $?");
    terminal.press("Enter");
    terminal.shows("code 75");
}

#[test]
fn a_lock_file_is_broken_when_the_user_says_so() {
    let Some(terminal) = Terminal::open() else { return };
    let server = Dflockd::start::<&str>(&[], &[]);
    let path = terminal.directory.path().join("a.lck");
    let path = path.to_str().expect("text");
    let holder = start(&mut crate::cli::support::bare(&[
        "file",
        path,
        "--on-lost",
        "warn",
        "--",
        "sh",
        "-c",
        "echo held; read _; true",
    ]));
    holder.says("held");
    terminal.enters(&server, &format!("dflock file break {path}; echo code $?"));
    terminal.shows("Break it? [y/N]");
    terminal.press("Enter");
    terminal.shows("code 124");
    assert!(std::fs::exists(path).expect("it can be seen"));
    terminal.clear();
    terminal.enters(&server, &format!("dflock file break {path}; echo code $?"));
    terminal.shows("Break it? [y/N]");
    terminal.types("y");
    terminal.press("Enter");
    terminal.shows("code 0");
    assert!(!std::fs::exists(path).expect("it can be seen"));
}

#[test]
fn top_shows_the_servers_and_keys_sorts_them_and_survives_a_restart() {
    let Some(terminal) = Terminal::open() else { return };
    let server = Dflockd::start::<&str>(&[], &[]);
    let port = server.address.port().to_string();
    let held = [
        holder(&server, &["aaa", "--ttl", "1h"]),
        holder(&server, &["zzz"]),
        holder(&server, &["slots", "--limit", "3"]),
    ];
    let waiter = start(&mut dflock(&server, &["run", "zzz", "--", "true"]));
    until("it waits", || {
        stats(&server)["locks"].as_array().is_some_and(|locks| locks.iter().any(|lock| lock["waiters"] == 1))
    });
    terminal.enters(&server, "dflock top --interval 100ms; echo code $?");
    let screen = terminal.shows("zzz");
    let line =
        |screen: &str, key: &str| screen.lines().position(|line| line.contains(key)).expect("it is there");
    assert!(screen.contains(&format!("{}  up", server.address)), "{screen}");
    assert!(screen.contains("3 keys held, 1 waiting") && screen.contains("WAITING▾"), "{screen}");
    assert!(line(&screen, "zzz") < line(&screen, "aaa"), "who is waited for comes first: {screen}");
    assert!(screen.contains("1/3"), "{screen}");
    terminal.press("k");
    let screen = terminal.shows("KEY▾");
    assert!(line(&screen, "aaa") < line(&screen, "zzz"), "{screen}");
    println!("{screen}");

    server.kill();
    let screen = terminal.shows("  down  ");
    assert!(screen.contains(" 0 keys") && !screen.contains("zzz"), "{screen}");
    println!("{screen}");
    drop((held, waiter));
    let server = Dflockd::start(&["--port", &port], &[]);
    let _again = holder(&server, &["after-the-restart"]);
    terminal.shows("after-the-restart");
    terminal.press("q");
    // The screen from before is back.
    let screen = terminal.shows("code 0");
    assert!(!screen.contains("WAITING"), "{screen}");
}

#[test]
fn colours_are_for_terminals_that_want_them() {
    let Some(terminal) = Terminal::open() else { return };
    let server = Dflockd::start::<&str>(&[], &[]);
    let _holder = holder(&server, &["k"]);
    let coloured = |line: &str| {
        terminal.clear();
        terminal.enters(&server, line);
        terminal.shows("1 key held");
        let screen = terminal.tmux(&["capture-pane", "-p", "-e"]).stdout;
        String::from_utf8(screen).expect("text").contains("\u{1b}[1mKEY")
    };
    assert!(coloured("dflock stats"));
    assert!(!coloured("NO_COLOR=1 dflock stats"));
}
