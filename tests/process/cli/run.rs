//! `dflock run`: the command's end, its environment, and who must wait.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;

use crate::cli::support::{bare, dflock, ended, run, start, waiting};
use crate::dflockd::Dflockd;

fn server() -> Dflockd {
    Dflockd::start::<&str>(&[], &[])
}

/// Holds the key until its stdin is closed.
const HOLD: [&str; 4] = ["--", "sh", "-c", "echo held; read _; true"];

#[test]
fn the_commands_exit_code_is_handed_on() {
    let server = server();
    for code in [0, 1, 7, 75, 255] {
        let ended = run(&server, &["run", "k", "--", "sh", "-c", &format!("exit {code}")]);
        assert_eq!((ended.code, &*ended.err), (Some(code), ""), "{ended:?}");
    }
    let ended = run(&server, &["run", "k", "--", "sh", "-c", "kill -KILL $$"]);
    assert_eq!(ended.code, Some(128 + 9));
}

#[test]
fn the_command_finds_the_lease_in_its_environment() {
    let server = server();
    let print = "echo $DFLOCK_KEY $DFLOCK_GRANTOR $DFLOCK_TTL $DFLOCK_LIMIT; echo $DFLOCK_TOKEN_FENCE";
    let fence = |args: &[&str], want: &str| -> u64 {
        let ended = run(&server, &[args, &["--", "sh", "-c", print]].concat());
        let (first, fence) = ended.out.split_once('\n').expect("two lines");
        assert_eq!(first, want, "{ended:?}");
        fence.trim().parse().expect("a number")
    };
    let address = server.address;
    let first = fence(&["run", "row:42", "--ttl", "1m"], &format!("row:42 {address} 60 1"));
    let second = fence(&["run", "row:42", "--ttl", "90"], &format!("row:42 {address} 90 1"));
    assert!(second > first, "{second} comes after {first}");
    fence(&["run", "s", "--limit", "3"], &format!("s {address} 33 3"));
}

#[test]
fn the_command_finds_no_fence_where_the_server_has_none() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there is a port");
    let address = listener.local_addr().expect("it is bound");
    // A 1.x server: it does not know `ping`, and its tokens are random.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut to = stream.expect("it is accepted");
            let from = BufReader::new(to.try_clone().expect("it is open"));
            std::thread::spawn(move || {
                let mut lines = from.lines().map_while(Result::ok);
                while let (Some(command), Some(_), Some(_)) = (lines.next(), lines.next(), lines.next()) {
                    let reply = match &*command {
                        "l" | "sl" => "ok 83f61c0a59d27be49b1d03f7c2e84a56 33\n",
                        "r" | "sr" => "ok\n",
                        _ => "error\n",
                    };
                    if to.write_all(reply.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    for limit in [&[][..], &["--limit", "3"]] {
        let print = ["--", "sh", "-c", "echo $DFLOCK_KEY ${DFLOCK_TOKEN_FENCE-none}"];
        let mut command = bare(&[&["run", "row:42"], limit, &print].concat());
        command.env("DFLOCK_SERVERS", address.to_string()).env("DFLOCK_TOKEN_FENCE", "of another lease");
        let ended = ended(&mut command);
        assert_eq!((ended.code, &*ended.out, &*ended.err), (Some(0), "row:42 none\n", ""));
    }
}

#[test]
fn a_taken_key_is_waited_for() {
    let server = server();
    let first = start(&mut dflock(&server, &[&["run", "k"][..], &HOLD].concat()));
    first.says("held");
    let second = start(&mut dflock(&server, &["run", "k", "--", "echo", "mine"]));
    waiting(&server, 1);
    assert_eq!(first.end().code, Some(0));
    let second = second.end();
    assert_eq!((second.code, &*second.out), (Some(0), "mine\n"));
    assert_eq!(second.err, "", "nothing spins in a pipe");
}

#[test]
fn a_key_that_stays_taken_has_an_exit_code_of_its_own() {
    let server = server();
    let first = start(&mut dflock(&server, &[&["run", "k"][..], &HOLD].concat()));
    first.says("held");
    for (flags, code) in [
        (&["--try"][..], 124),
        (&["-n"], 124),
        (&["--wait", "1s"], 124),
        (&["--wait", "0"], 124),
        (&["--try", "--conflict-exit-code", "3"], 3),
        (&["-nE0"], 0),
    ] {
        let ended = run(&server, &[&["run", "k"], flags, &["--", "echo", "never"]].concat());
        assert_eq!(ended.code, Some(code), "{flags:?}: {ended:?}");
        assert!(ended.line().contains("\"k\"") && ended.line().contains("--wait"), "{ended:?}");
    }
    drop(first);
}

#[test]
fn a_limit_lets_several_in() {
    let server = server();
    let args = [&["run", "s", "--limit", "2"][..], &HOLD].concat();
    let holders = [start(&mut dflock(&server, &args)), start(&mut dflock(&server, &args))];
    holders.iter().for_each(|holder| holder.says("held"));
    let third = ["run", "s", "--limit", "2", "--try", "--", "true"];
    assert_eq!(run(&server, &third).code, Some(124));
    let other = run(&server, &["run", "s", "--limit", "3", "--", "true"]);
    assert_eq!(other.code, Some(69));
    assert!(other.line().contains("--limit"), "{other:?}");
    for holder in holders {
        assert_eq!(holder.end().code, Some(0));
    }
    assert_eq!(run(&server, &third).code, Some(0));
}

#[test]
fn words_reach_the_command_as_they_are() {
    let server = server();
    let words = ["a b", "", "it's", "\"q\"", "$HOME", "*", "--try", "-n", "line\nbreak", "ключ"];
    let ended = run(&server, &[&["run", "k", "--", "printf", "<%s>"], &words[..]].concat());
    let want: String = words.iter().map(|word| format!("<{word}>")).collect();
    assert_eq!(ended.out.trim_end_matches('\n'), want);
}

#[test]
fn the_shell_runs_a_script_with_its_arguments() {
    let server = server();
    let script = "printf '<%s>' \"$@\" | tr a-z A-Z";
    let ended = run(&server, &["run", "k", "--shell", script, "a b", "$HOME", "--try"]);
    assert_eq!((ended.code, ended.out.trim_end()), (Some(0), "<A B><$HOME><--TRY>"));
    assert_eq!(run(&server, &["run", "k", "--shell", "exit 3"]).code, Some(3));
}

#[test]
fn the_command_has_dflocks_stdin() {
    let server = server();
    let mut cat = start(&mut dflock(&server, &["run", "k", "--", "cat"]));
    cat.write("through\n");
    cat.says("through");
    assert_eq!(cat.end().code, Some(0));
}

#[test]
fn a_command_that_cannot_be_run_is_told_as_in_a_shell() {
    let server = server();
    let missing = run(&server, &["run", "k", "--", "no-such-command"]);
    assert_eq!(missing.code, Some(127));
    assert!(missing.line().contains("no-such-command"), "{missing:?}");
    let directory = run(&server, &["run", "k", "--", "/"]);
    assert_eq!(directory.code, Some(126), "{directory:?}");
    // The key was given back.
    assert_eq!(run(&server, &["run", "--try", "k", "--", "true"]).code, Some(0));
}

#[test]
fn a_lease_is_renewed_while_the_command_runs() {
    let server = Dflockd::start(&["--lease-sweep-interval", "1"], &[]);
    let holder = start(&mut dflock(&server, &[&["run", "k", "--ttl", "1s"][..], &HOLD].concat()));
    holder.says("held");
    // Its server gives a lease that is not renewed to the next one after a second.
    let next = run(&server, &["run", "k", "--wait", "3s", "--", "true"]);
    assert_eq!(next.code, Some(124), "{next:?}");
    assert_eq!(holder.end().code, Some(0));
}
