//! Where the servers are and how they are talked to: by flag, by variable, and what is said when
//! it does not work.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cli::support::{bare, ended, run};
use crate::dflockd::Dflockd;

/// A port that nobody listens on.
fn nowhere() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("there is a port");
    listener.local_addr().expect("it is bound").to_string()
}

#[test]
fn no_server_is_told_at_once_with_what_to_do() {
    let server = nowhere();
    for args in [&["run", "k", "--", "echo", "never"][..], &["stats"], &["ping"]] {
        let ended = ended(bare(args).env("DFLOCK_SERVERS", &server));
        assert_eq!(ended.code, Some(69), "{ended:?}");
        assert!(ended.line().contains(&server) && ended.line().contains("--servers"), "{ended:?}");
    }
}

#[test]
fn a_flag_beats_its_variable_and_an_empty_variable_is_none() {
    let server = Dflockd::start::<&str>(&[], &[]);
    let address = server.address.to_string();
    let flag = ended(bare(&["ping", "--servers", &address]).env("DFLOCK_SERVERS", nowhere()));
    assert_eq!(flag.code, Some(0), "{flag:?}");
    let mut all_empty = bare(&["ping", "--servers", &address]);
    for name in [
        "SERVERS",
        "AUTH_TOKEN_FILE",
        "TLS_CA",
        "TLS_CERT",
        "TLS_KEY",
        "SERVER_NAME",
        "CONNECT_TIMEOUT",
        "REQUEST_TIMEOUT",
    ] {
        all_empty.env(format!("DFLOCK_{name}"), "");
    }
    let ended = ended(&mut all_empty);
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[test]
fn the_auth_token_comes_from_a_file() {
    let server = Dflockd::start(&["--auth-token", "open sesame"], &[]);
    let directory = tempfile::tempdir().expect("there is room");
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::write(&path, text).expect("it is written");
        path
    };
    let (right, wrong) = (file("right", "open sesame\n"), file("wrong", "open barley"));
    let with = |token: &Path, args: &[&str]| {
        ended(
            bare(args).env("DFLOCK_SERVERS", server.address.to_string()).env("DFLOCK_AUTH_TOKEN_FILE", token),
        )
    };
    for args in [&["run", "k", "--", "true"][..], &["ping"], &["stats"]] {
        assert_eq!(with(&right, args).code, Some(0));
        let refused = with(&wrong, args);
        assert_eq!(refused.code, Some(77), "{refused:?}");
        assert!(refused.line().contains("--auth-token-file"), "{refused:?}");
        assert!(!refused.err.contains("barley"), "a secret is shown");
        assert_eq!(run(&server, args).code, Some(77), "no token at all");
    }
    let all = ["stats", "--all-shards"];
    for refused in [with(&wrong, &all), run(&server, &all)] {
        assert_eq!((refused.code, refused.out.lines().last()), (Some(77), Some("denied")), "{refused:?}");
    }
    let missing = with(&directory.path().join("missing"), &["ping"]);
    assert_eq!(missing.code, Some(64));
    assert!(missing.line().contains("--auth-token-file"), "{missing:?}");
}

/// A certificate for `locks.example` and its key, in files.
fn certificate(directory: &Path) -> (PathBuf, PathBuf) {
    let made = rcgen::generate_simple_self_signed(["locks.example".to_owned()]).expect("it is made");
    let (cert, key) = (directory.join("cert.pem"), directory.join("key.pem"));
    fs::write(&cert, made.cert.pem()).expect("it is written");
    fs::write(&key, made.signing_key.serialize_pem()).expect("it is written");
    (cert, key)
}

#[test]
fn tls_is_set_by_flags_and_by_variables() {
    let directory = tempfile::tempdir().expect("there is room");
    let (cert, key) = certificate(directory.path());
    let (cert, key) = (cert.to_str().expect("text"), key.to_str().expect("text"));
    let server = Dflockd::start(&["--tls-cert", cert, "--tls-key", key], &[]);
    // The server asks for no certificate; it is read and offered all the same.
    let flags = ["--tls-ca", cert, "--server-name", "locks.example", "--tls-cert", cert, "--tls-key", key];
    let by_flag = run(&server, &[&["run", "k"][..], &flags, &["--", "echo", "mine"]].concat());
    assert_eq!((by_flag.code, &*by_flag.out), (Some(0), "mine\n"), "{by_flag:?}");
    let mut command = bare(&["run", "k", "--", "echo", "mine"]);
    command.env("DFLOCK_SERVERS", server.address.to_string()).env("DFLOCK_TLS_CA", cert);
    command
        .env("DFLOCK_SERVER_NAME", "locks.example")
        .env("DFLOCK_TLS_CERT", cert)
        .env("DFLOCK_TLS_KEY", key);
    assert_eq!(ended(&mut command).code, Some(0));

    let wrong_name = run(&server, &["ping", "--tls-ca", cert]);
    assert_eq!(wrong_name.code, Some(69));
    assert!(wrong_name.line().contains("--server-name"), "{wrong_name:?}");
    for (flags, names) in [
        (&["--server-name", "x"][..], "--tls-ca"),
        (&["--tls-cert", cert, "--tls-ca", cert], "--tls-key"),
        (&["--tls-ca", "/no/such/file"], "/no/such/file"),
    ] {
        let ended = run(&server, &[&["ping"], flags].concat());
        assert_eq!(ended.code, Some(64), "{ended:?}");
        assert!(ended.line().contains(names), "{ended:?}");
    }
}

/// A named pipe from which `text` can be read once, in `directory`.
fn once(directory: &Path, name: &str, text: &[u8]) -> String {
    let path = directory.join(name);
    let made = std::process::Command::new("mkfifo").arg(&path).status();
    assert!(made.expect("there is a mkfifo").success());
    let (writing, text) = (path.clone(), text.to_owned());
    std::thread::spawn(move || fs::write(writing, text));
    path.to_str().expect("text").to_owned()
}

#[test]
fn what_can_be_read_once_is_read_once_for_all_servers() {
    let directory = tempfile::tempdir().expect("there is room");
    let (cert, key) = certificate(directory.path());
    let flags = ["--auth-token", "open sesame", "--tls-cert"].map(Path::new);
    let flags = [&flags[..], &[&cert, Path::new("--tls-key"), &key]].concat();
    let servers = [Dflockd::start(&flags, &[]), Dflockd::start(&flags, &[])];
    let names = servers.each_ref().map(|server| server.address.to_string()).join(",");
    let both = [fs::read(&cert).expect("it is there"), fs::read(&key).expect("it is there")].concat();
    for (at, command) in [&["ping"][..], &["stats"], &["run", "k", "--", "true"]].into_iter().enumerate() {
        let fifo = |name: &str, text: &[u8]| once(directory.path(), &format!("{name}-{at}"), text);
        let token = fifo("token", b"open sesame\n");
        // One file for both is read once as well.
        let (ca, identity) = (fifo("ca", &both), fifo("identity", &both));
        let mut args = vec![command[0], "--servers", &names, "--server-name", "locks.example"];
        args.extend(["--auth-token-file", &token, "--tls-ca", &ca, "--tls-cert", &identity]);
        args.extend(["--tls-key", &identity]);
        args.extend(&command[1..]);
        let ended = ended(&mut bare(&args));
        assert_eq!((ended.code, &*ended.err), (Some(0), ""), "{ended:?}");
    }
}

#[test]
fn a_file_may_be_standard_input() {
    let server = Dflockd::start(&["--auth-token", "open sesame"], &[]);
    for command in [&["ping"][..], &["run", "k", "--", "cat"]] {
        let args = [&[command[0], "--auth-token-file", "-"], &command[1..]].concat();
        let mut started = crate::cli::support::start(&mut crate::cli::support::dflock(&server, &args));
        started.write("open sesame\n");
        let ended = started.end();
        assert_eq!((ended.code, &*ended.err), (Some(0), ""), "{ended:?}");
    }
}

#[test]
fn wrong_arguments_are_told_in_one_line_that_says_where_to_look() {
    for (args, names) in [
        (&[][..], "dflock --help"),
        (&["fly"], "dflock --help"),
        (&["run"], "dflock run --help"),
        (&["run", "k"], "COMMAND"),
        (&["run", "--ttl", "soon", "k", "--", "true"], "90s"),
        (&["run", "--limit", "many", "k", "--", "true"], "--limit"),
        (&["run", "--try", "--wait", "1s", "k", "--", "true"], "--wait"),
        (&["run", "--on-lost", "shrug", "k", "--", "true"], "--on-lost"),
        (&["ping", "--servers", "::1"], "brackets"),
        (&["ping", "--servers", "a:1,,b:2"], "HOST:PORT"),
        (&["file"], "dflock file --help"),
        (&["completions", "cmd.exe"], "dflock completions --help"),
        (&["man", "fly"], "dflock --help"),
    ] {
        let ended = ended(&mut bare(args));
        assert_eq!(ended.code, Some(64), "{args:?}: {ended:?}");
        assert!(ended.line().contains(names), "{args:?}: {ended:?}");
    }
    // What the library refuses is told as well, before anything is sent.
    for (args, names) in [
        (&["run", "two words", "--", "true"][..], "whitespace"),
        (&["run", "", "--", "true"], "the key is empty"),
        (&["run", "k", "--limit", "0", "--", "true"], "--limit is 0"),
        (&["run", "k", "--ttl", "0s", "--", "true"], "--ttl is 0"),
        (&["run", "k", "--wait", "999999999999s", "--", "true"], "--wait is"),
        (&["ping", "--connect-timeout", "0s"], "--connect-timeout is 0"),
        (&["ping", "--request-timeout", "0s"], "--request-timeout is 0"),
        (&["file", "/tmp/a|b.lck", "--", "true"], "give another --separator"),
        (&["file", "--separator", "7", "/tmp/a.lck", "--", "true"], "--separator is \"7\""),
        (&["file", "status", "--hostname", "a b", "/tmp/a.lck"], "--hostname is \"a b\""),
        (&["file", "--ttl", "1s", "/tmp/a.lck", "--", "true"], "--ttl is 1s"),
        (&["shard", "two words"], "whitespace"),
    ] {
        let ended = ended(&mut bare(args));
        assert_eq!(ended.code, Some(64), "{args:?}: {ended:?}");
        assert!(ended.line().contains(names), "{args:?}: {ended:?}");
    }
}

#[test]
fn an_argument_that_deceives_is_shown_escaped() {
    for args in [&["\u{202e}evil"][..], &["run", "--\u{202e}evil"], &["ping", "--servers", "a\u{202e}b"]] {
        let refused = ended(&mut bare(args));
        assert_eq!(refused.code, Some(64), "{refused:?}");
        assert!(refused.line().contains("\\u{202e}") && !refused.err.contains('\u{202e}'), "{refused:?}");
    }
}

#[test]
fn a_file_that_is_longer_than_any_token_is_refused() {
    let directory = tempfile::tempdir().expect("there is room");
    let file = directory.path().join("long");
    let long = fs::File::create(&file).expect("it can be made");
    long.set_len((4 << 20) + 1).expect("it can be long");
    let file = file.to_str().expect("it is text");
    for flag in ["--auth-token-file", "--tls-ca"] {
        let refused = ended(&mut bare(&["ping", "--servers", &nowhere(), flag, file]));
        assert_eq!(refused.code, Some(64), "{refused:?}");
        assert!(refused.line().contains(flag) && refused.line().contains("longer than 4 MiB"), "{refused:?}");
    }
}
