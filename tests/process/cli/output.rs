//! What is printed: tables, JSON, help, pages; and to whom.

use std::io::pipe;
use std::process::Stdio;

use crate::cli::support::{Ended, Started, bare, dflock, ended, run, start, stats, waiting};
use crate::dflockd::Dflockd;

fn holder(server: &Dflockd, args: &[&str]) -> Started {
    let args = [&["run"], args, &["--", "sh", "-c", "echo held; read _; true"]].concat();
    let holder = start(&mut dflock(server, &args));
    holder.says("held");
    holder
}

/// Two servers, as a list.
fn both(one: &Dflockd, other: &Dflockd) -> String {
    format!("{},{}", one.address, other.address)
}

#[test]
fn stats_are_a_table_of_what_is_held_and_who_waits() {
    let server = Dflockd::start::<&str>(&[], &[]);
    let nothing = run(&server, &["stats"]);
    assert_eq!(nothing.out, "1 connection, 0 keys held, 0 waiting, 0 idle\n");
    let _lock = holder(&server, &["row:42", "--ttl", "1h"]);
    let _slot = holder(&server, &["exports", "--limit", "3"]);
    let _waiter = start(&mut dflock(&server, &["run", "row:42", "--", "true"]));
    waiting(&server, 1);
    let told = run(&server, &["stats"]);
    let words: Vec<Vec<_>> = told.out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words[0], ["KEY", "HELD", "WAITING", "TTL"]);
    assert_eq!(words[1], ["exports", "1/3", "0", "-"]);
    assert_eq!(words[2][..3], ["row:42", "1/1", "1"]);
    assert!(words[2][3] == "1h" || words[2][3] == "59m", "{told:?}");
    assert!(told.out.ends_with("connections, 2 keys held, 1 waiting, 0 idle\n"), "{told:?}");
    assert!(!told.out.contains('\u{1b}'), "no colours in a pipe");
}

#[test]
fn stats_are_json_as_the_protocol_has_it() {
    let server = Dflockd::start::<&str>(&[], &[]);
    let _lock = holder(&server, &["row:42"]);
    let told = stats(&server);
    assert_eq!(told["locks"][0]["key"], "row:42");
    for key in ["connections", "locks", "semaphores", "idle_locks", "idle_semaphores"] {
        assert!(told.get(key).is_some(), "{told}");
    }
}

#[test]
fn stats_of_several_servers_come_together_or_apart() {
    let (one, other) = (Dflockd::start::<&str>(&[], &[]), Dflockd::start::<&str>(&[], &[]));
    let servers = both(&one, &other);
    // By the rule of all clients these live on shards 0 and 1.
    let _first = holder(&one, &["a"]);
    let _second = holder(&other, &["b"]);
    let together = ended(&mut bare(&["stats", "--servers", &servers]));
    assert!(together.out.contains("\na ") && together.out.contains("\nb "), "{together:?}");
    let apart = ended(&mut bare(&["stats", "--all-shards", "--servers", &servers]));
    let lines: Vec<_> = apart.out.lines().collect();
    assert_eq!(lines[0], format!("shard 0: {}", one.address));
    assert!(lines[2].starts_with("a "), "{apart:?}");
    assert_eq!(lines[4], format!("shard 1: {}", other.address));
    assert!(lines[6].starts_with("b "), "{apart:?}");

    let address = other.address.to_string();
    other.kill();
    let together = ended(&mut bare(&["stats", "--servers", &servers]));
    assert_eq!(together.code, Some(69), "half of it would look like the whole: {together:?}");
    assert!(together.line().contains(&address), "{together:?}");
    let apart = ended(&mut bare(&["stats", "--all-shards", "--json", "--servers", &servers]));
    assert_eq!(apart.code, Some(69), "{apart:?}");
    let told: serde_json::Value = serde_json::from_str(&apart.out).expect("it is JSON");
    assert_eq!(told[0]["stats"]["locks"][0]["key"], "a");
    assert_eq!((&told[1]["server"], &told[1]["shard"]), (&address.clone().into(), &1.into()));
    assert!(told[1]["error"].as_str().is_some_and(|error| error.contains("refused")), "{told}");
    assert!(apart.err.contains(&address), "{apart:?}");
}

#[test]
fn a_ping_is_answered_by_each_server() {
    let (one, other) = (Dflockd::start::<&str>(&[], &[]), Dflockd::start::<&str>(&[], &[]));
    let servers = both(&one, &other);
    let told = ended(&mut bare(&["ping", "--servers", &servers]));
    assert_eq!((told.code, told.out.lines().count()), (Some(0), 2), "{told:?}");
    let (here, gone) = (one.address.to_string(), other.address.to_string());
    other.kill();
    let told = ended(&mut bare(&["ping", "--servers", &servers]));
    assert_eq!(told.code, Some(69));
    assert!(told.out.starts_with(&here) && told.err.contains(&gone), "{told:?}");
}

#[test]
fn a_keys_server_is_the_one_of_all_clients() {
    let shard = |key, servers: &str| ended(&mut bare(&["shard", key, "--servers", servers]));
    let three = "a:1,b:2,c";
    assert_eq!(shard("my-key", three).out, "c:6388 (shard 2 of 3)\n");
    assert_eq!(shard("deploy-job", three).out, "b:2 (shard 1 of 3)\n");
    assert_eq!(shard("deploy-job", "a,b,c,d,[::1]:5,f,g").out, "[::1]:5 (shard 4 of 7)\n");
    assert_eq!(shard("ключ", three).out, "a:1 (shard 0 of 3)\n");
}

#[test]
fn help_shows_examples_codes_and_variables() {
    let help = |args: &[&str]| {
        let help = ended(&mut bare(args));
        assert_eq!((help.code, &*help.err), (Some(0), ""));
        assert!(!help.out.contains('\u{1b}'), "no colours in a pipe");
        help.out
    };
    assert!(help(&["--help"]).contains("dflock run nightly-report -- ./report.sh"));
    let run = help(&["run", "--help"]);
    for code in ["64", "69", "75", "77", "124", "126", "127", "128+N"] {
        assert!(run.contains(&format!("  {code}  ")), "{code}: {run}");
    }
    for name in ["SERVERS", "AUTH_TOKEN_FILE", "TLS_CA", "TLS_CERT", "TLS_KEY", "SERVER_NAME"] {
        let flag = format!("--{}", name.to_lowercase().replace('_', "-"));
        assert!(run.contains(&flag) && run.contains(&format!("[env: DFLOCK_{name}=")), "{flag}: {run}");
    }
    for command in ["run", "file", "stats", "completions", "man"] {
        assert!(help(&[command, "--help"]).contains("Example"), "{command}");
    }
    assert_eq!(help(&["--version"]), format!("dflock {}\n", dflockd_client::VERSION));
}

#[test]
fn completions_are_taken_by_bash_and_man_pages_by_man() {
    let bash = ended(&mut bare(&["completions", "bash"]));
    let mut check = std::process::Command::new("bash");
    check.args(["-c", "eval \"$0\" && complete -p dflock", &bash.out]);
    let check = ended(&mut check);
    assert!(check.out.contains("dflock"), "{check:?}");
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        assert!(ended(&mut bare(&["completions", shell])).out.contains("dflock"), "{shell}");
    }
    let page = ended(&mut bare(&["man", "run"]));
    assert!(page.out.contains(".TH dflock-run 1") && page.out.contains("lost\\-exit\\-code"), "{page:?}");
    assert!(ended(&mut bare(&["man"])).out.contains(".TH dflock 1"));
    let directory = tempfile::tempdir().expect("there is room");
    let pages = directory.path().join("man1");
    assert_eq!(ended(bare(&["man", "--dir"]).arg(&pages)).code, Some(0));
    for page in ["dflock.1", "dflock-run.1", "dflock-file.1", "dflock-file-break.1"] {
        assert!(pages.join(page).exists(), "{page}");
    }
}

/// What is said when stdout leads there.
fn printed_to(stdout: Stdio, args: &[&str]) -> (Option<i32>, String) {
    let mut command = bare(args);
    let output = command.stdout(stdout).stderr(Stdio::piped()).spawn().expect("it starts").wait_with_output();
    let ended = Ended::from(output.expect("it ends"));
    (ended.code, ended.err)
}

#[test]
fn a_reader_that_has_gone_is_no_reason_to_complain_and_a_full_disk_is() {
    for args in [&["completions", "bash"][..], &["man"], &["--help"], &["run", "--help"], &["--version"]] {
        let (reader, writer) = pipe().expect("there is a pipe");
        drop(reader);
        assert_eq!(printed_to(writer.into(), args), (Some(141), String::new()), "{args:?}");
        let full = std::fs::File::options().write(true).open("/dev/full").expect("there is one");
        let (code, said) = printed_to(full.into(), args);
        assert_eq!((code, said.lines().count()), (Some(74), 1), "{args:?}: {said}");
        assert!(said.starts_with("dflock: could not write the output: "), "{args:?}: {said}");
    }
}

#[test]
fn closed_streams_stop_nobody() {
    let server = Dflockd::start::<&str>(&[], &[]);
    for closed in ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"] {
        let mut shell = std::process::Command::new("sh");
        shell.env("DFLOCK_SERVERS", server.address.to_string());
        shell.args(["-c", &format!("\"$0\" run k -- sh -c 'exit 5' {closed}"), env!("CARGO_BIN_EXE_dflock")]);
        assert_eq!(ended(&mut shell).code, Some(5), "{closed}");
    }
}

#[test]
fn a_key_cannot_command_the_terminal() {
    let server = Dflockd::start::<&str>(&[], &[]);
    let _holder = holder(&server, &["\u{1b}[2J"]);
    let told = run(&server, &["stats"]);
    assert!(told.out.contains("\\u{1b}[2J") && !told.out.contains('\u{1b}'), "{told:?}");
}

#[test]
fn a_key_cannot_deceive_who_reads_it_and_is_exact_in_json() {
    let server = Dflockd::start::<&str>(&[], &[]);
    let deceiving = ["\u{202e}", "\u{2066}", "\u{200b}", "\u{ad}", "\u{e0041}", "\u{fe0f}", "\u{3164}"];
    let key = format!("a{}z\u{e9}", deceiving.concat());
    let shown = "a\\u{202e}\\u{2066}\\u{200b}\\u{ad}\\u{e0041}\\u{fe0f}\\u{3164}z\u{e9}";
    let held = holder(&server, &[&key]);
    let told = run(&server, &["stats"]);
    assert!(told.out.contains(&format!("\n{shown} ")), "{told:?}");
    assert_eq!(stats(&server)["locks"][0]["key"], *key);
    let busy = run(&server, &["run", "--try", &key, "--", "true"]);
    assert!(busy.line().contains(&format!("\"{shown}\"")), "{busy:?}");
    server.kill();
    let lost = held.end();
    let said = lost.err.lines().find(|line| line.starts_with("dflock: ")).expect("it says something");
    assert!(said.contains(&format!("\"{shown}\" is lost")), "{lost:?}");
}

#[test]
fn the_command_gets_its_key_exactly() {
    let server = Dflockd::start::<&str>(&[], &[]);
    let ended = run(&server, &["run", "a\u{202e}b", "--", "sh", "-c", "printf %s \"$DFLOCK_KEY\""]);
    assert_eq!(ended.out.trim_end(), "a\u{202e}b");
}
