//! The binary's settings: by flag, by variable, by default; and the errors for bad ones.

use std::fs;
use std::net::TcpListener;
#[cfg(target_os = "linux")]
use std::process::Stdio;
use std::time::Duration;

use crate::dflockd::{Dflockd, refusal, run, until};

/// Flag, variable, default, a value for the flag, another for the variable.
const SETTINGS: [(&str, &str, &str, &str, &str); 20] = [
    ("host", "DFLOCKD_HOST", "127.0.0.1", "localhost", "0.0.0.0"),
    ("port", "DFLOCKD_PORT", "6388", "0", "0"),
    ("default-lease-ttl", "DFLOCKD_DEFAULT_LEASE_TTL_S", "33", "7", "8"),
    ("lease-sweep-interval", "DFLOCKD_LEASE_SWEEP_INTERVAL_S", "1", "2", "3"),
    ("gc-interval", "DFLOCKD_GC_INTERVAL_S", "5", "6", "7"),
    ("gc-max-idle", "DFLOCKD_GC_MAX_IDLE_S", "60", "0", "62"),
    ("max-locks", "DFLOCKD_MAX_LOCKS", "1024", "100", "200"),
    ("max-waiters", "DFLOCKD_MAX_WAITERS", "0", "10", "20"),
    ("max-connections", "DFLOCKD_MAX_CONNECTIONS", "0", "30", "40"),
    ("max-connections-per-ip", "DFLOCKD_MAX_CONNECTIONS_PER_IP", "0", "50", "60"),
    ("read-timeout", "DFLOCKD_READ_TIMEOUT_S", "23", "24", "25"),
    ("write-timeout", "DFLOCKD_WRITE_TIMEOUT_S", "5", "6", "7"),
    ("shutdown-timeout", "DFLOCKD_SHUTDOWN_TIMEOUT_S", "30", "0", "31"),
    ("auto-release-on-disconnect", "DFLOCKD_AUTO_RELEASE_ON_DISCONNECT", "true", "true", "false"),
    ("fence-state-file", "DFLOCKD_FENCE_STATE_FILE", "None", "fence-by-flag", "fence-by-variable"),
    ("tls-cert", "DFLOCKD_TLS_CERT", "None", "cert-by-flag", "cert-by-variable"),
    ("tls-key", "DFLOCKD_TLS_KEY", "None", "key-by-flag", "key-by-variable"),
    ("auth-token", "DFLOCKD_AUTH_TOKEN", "not set", "hunter2-by-flag", "hunter2-by-variable"),
    ("auth-token-file", "DFLOCKD_AUTH_TOKEN_FILE", "None", "token-by-flag", "token-by-variable"),
    ("debug", "DFLOCKD_DEBUG", "false", "false", "true"),
];

/// Returns `true` if the log shows the setting with this value.
fn shows(log: &str, flag: &str, value: &str) -> bool {
    if flag == "debug" {
        return log.contains("debug events are logged") == (value == "true");
    }
    let shown = match flag {
        "auth-token" if value != "not set" => "\"set\"".to_owned(),
        "host" | "auth-token" => format!("{value:?}"),
        "default-lease-ttl"
        | "lease-sweep-interval"
        | "gc-interval"
        | "gc-max-idle"
        | "read-timeout"
        | "write-timeout"
        | "shutdown-timeout" => format!("{:?}", Duration::from_secs(value.parse().unwrap())),
        "fence-state-file" | "tls-cert" | "tls-key" | "auth-token-file" if value != "None" => {
            format!("Some({value:?})")
        }
        _ => value.to_owned(),
    };
    let entry = format!(" {}: {shown}", flag.replace('-', "_"));
    log.contains(&format!("{entry},")) || log.contains(&format!("{entry} }}"))
}

/// Returns a directory with a certificate, a key and a token under the names in `SETTINGS`. Values that are
/// file names become paths in it.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        for by in ["flag", "variable"] {
            let write =
                |name: &str, text: &str| fs::write(directory.path().join(format!("{name}-by-{by}")), text);
            write("cert", &made.cert.pem()).unwrap();
            write("key", &made.signing_key.serialize_pem()).unwrap();
            write("token", "hunter2").unwrap();
        }
        Self(directory)
    }

    fn value(&self, flag: &str, value: &str) -> String {
        match flag {
            "fence-state-file" | "tls-cert" | "tls-key" | "auth-token-file" => {
                self.0.path().join(value).to_str().unwrap().to_owned()
            }
            _ => value.to_owned(),
        }
    }
}

#[test]
fn every_setting_has_its_default() {
    let server = Dflockd::start(&["--port", "0"], &[]);
    for (flag, _, default, ..) in SETTINGS.iter().filter(|(flag, ..)| *flag != "port") {
        assert!(shows(&server.log(), flag, default), "{flag} is not {default}: {}", server.log());
    }
}

#[test]
fn every_setting_has_its_variable_and_its_flag_beats_it() {
    let files = Files::new();
    // A token and a file that holds one exclude each other, so there are two rounds.
    for left_out in ["auth-token", "auth-token-file"] {
        let settings = || SETTINGS.iter().filter(|(flag, ..)| *flag != left_out && *flag != "port");
        let values: Vec<_> = settings()
            .map(|(flag, variable, _, by_flag, by_variable)| {
                (*flag, *variable, files.value(flag, by_flag), files.value(flag, by_variable))
            })
            .collect();
        let variables: Vec<_> = values.iter().map(|(_, variable, _, value)| (*variable, &**value)).collect();
        let mut server = Dflockd::start(&["--port", "0"], &variables);
        for (flag, variable, _, value) in &values {
            assert!(shows(&server.log(), flag, value), "{variable} does not set {flag}: {}", server.log());
        }
        let flags: Vec<_> = values.iter().map(|(flag, _, value, _)| format!("--{flag}={value}")).collect();
        let flags = [&flags[..], &["--port=0".to_owned()]].concat();
        // This server uses the state file now.
        assert!(server.is_running());
        server.kill();
        server = Dflockd::start(&flags, &variables);
        for (flag, _, value, _) in &values {
            assert!(
                shows(&server.log(), flag, value),
                "--{flag} does not beat its variable: {}",
                server.log()
            );
        }
        assert!(!server.log().contains("hunter2"), "a secret is shown: {}", server.log());
    }
}

#[test]
fn a_flag_beats_its_variable_also_where_that_is_bad_and_an_empty_one_is_none() {
    let server = Dflockd::start(&["--port=0", "--max-locks=9"], &[("DFLOCKD_MAX_LOCKS", "many")]);
    assert!(shows(&server.log(), "max-locks", "9"), "{}", server.log());
    let variables: Vec<_> = SETTINGS.iter().map(|(_, variable, ..)| (*variable, "")).collect();
    let server = Dflockd::start(&["--port=0"], &variables);
    for (flag, _, default, ..) in SETTINGS.iter().filter(|(flag, ..)| *flag != "port") {
        assert!(shows(&server.log(), flag, default), "{flag}: {}", server.log());
    }
}

#[test]
fn one_dash_is_as_good_as_two_and_switches_need_no_value() {
    let flags =
        ["-port", "0", "-max-locks=9", "-auto-release-on-disconnect=false", "-gc-interval", "8", "-debug"];
    let server = Dflockd::start(&flags, &[]);
    let expected = [
        ("max-locks", "9"),
        ("auto-release-on-disconnect", "false"),
        ("gc-interval", "8"),
        ("debug", "true"),
    ];
    for (flag, value) in expected {
        assert!(shows(&server.log(), flag, value), "{flag}: {}", server.log());
    }
    let flags = ["-auto-release-on-disconnect", "--debug=1", "--port=0"];
    let server = Dflockd::start(&flags, &[("DFLOCKD_AUTO_RELEASE_ON_DISCONNECT", "0")]);
    for flag in ["auto-release-on-disconnect", "debug"] {
        assert!(shows(&server.log(), flag, "true"), "{flag}: {}", server.log());
    }
}

#[test]
fn help_lists_every_flag_with_its_variable_and_shows_no_secret() {
    for flag in ["--help", "-help", "-h"] {
        let output = run(&[flag], &[("DFLOCKD_AUTH_TOKEN", "hunter2")]);
        assert!(output.status.success() && output.stderr.is_empty());
        let help = String::from_utf8(output.stdout).unwrap();
        // Independent of the line breaks.
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        for (flag, variable, default, ..) in SETTINGS {
            assert!(help.contains(&format!("--{flag}")) && help.contains(variable), "{flag}: {help}");
            let default = format!("[default: {default}]");
            assert!(
                help.contains(&default) || default.contains("None") || flag == "auth-token",
                "{flag}: {help}"
            );
        }
        assert!(!help.contains("hunter2") && !help.contains("ServerConfig"), "{help}");
    }
}

#[test]
fn the_version_is_the_crates() {
    for flag in ["--version", "-version", "-V"] {
        let output = run(&[flag], &[]);
        assert!(output.status.success());
        let version = format!("dflockd {}\n", dflockd_client::VERSION);
        assert_eq!(String::from_utf8(output.stdout).unwrap(), version);
    }
}

/// Returns the exit status and stderr of the binary, with stdout directed to that file.
#[cfg(target_os = "linux")]
fn printed_to(stdout: impl Into<Stdio>, flag: &str) -> (Option<i32>, String) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_dflockd"));
    let command = command.arg(flag).stdout(stdout).stderr(Stdio::piped());
    let output = command.spawn().unwrap().wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[cfg(target_os = "linux")]
#[test]
fn what_cannot_be_printed_is_a_failure_and_a_reader_that_has_gone_hears_nothing() {
    for flag in ["--help", "-h", "--version"] {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let said = "dflockd: could not write the output: No space left on device (os error 28)\n";
        assert_eq!(printed_to(full, flag), (Some(74), said.to_owned()), "{flag}");
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        assert_eq!(printed_to(writer, flag), (Some(141), String::new()), "{flag}");
    }
}

#[test]
fn a_bad_value_is_named_with_its_setting_and_limit() {
    for (flag, variable, default, ..) in SETTINGS {
        if default.parse::<u64>().is_err() {
            continue;
        }
        let least = match flag {
            "port"
            | "gc-max-idle"
            | "max-waiters"
            | "max-connections"
            | "max-connections-per-ip"
            | "shutdown-timeout" => 0,
            _ => 1,
        };
        let most = match flag {
            "port" => u16::MAX.into(),
            _ if variable.ends_with("_S") => 9_223_372_036,
            _ => u64::try_from(usize::MAX).unwrap(),
        };
        let limits = format!("a whole number from {least} to {most}");
        let over = (u128::from(most) + 1).to_string();
        let under = if least == 1 { "0" } else { "-0.5" };
        for value in ["many", "-1", "1.5", "5s", " 5", "99999999999999999999999", &over, under] {
            let said = refusal(&[&format!("--{flag}"), value], &[]);
            for part in [&*format!("--{flag} "), &format!("{value:?}"), &limits] {
                assert!(said.contains(part), "{flag} {value}: {said}");
            }
        }
        let said = refusal(&["--host=127.0.0.1"], &[(variable, "many")]);
        assert!(said.contains(variable) && said.contains("\"many\""), "{said}");
    }
    for flag in ["auto-release-on-disconnect", "debug"] {
        let said = refusal(&[&format!("--{flag}=maybe")], &[]);
        assert!(
            said.contains(flag) && said.contains("\"maybe\"") && said.contains("true or false"),
            "{said}"
        );
    }
}

#[test]
fn a_flag_that_is_none_is_named_and_a_stray_value_is_not_repeated() {
    assert!(refusal(&["--prot=6388"], &[]).contains("there is no flag --prot"));
    assert!(refusal(&["-prot", "6388"], &[]).contains("there is no flag --prot"));
    assert!(refusal(&["--port"], &[]).contains("--port (DFLOCKD_PORT) needs a value"));
    let said = refusal(&["--auth-token", "one", "hunter2"], &[]);
    assert!(said.contains("belongs to no flag") && !said.contains("hunter2"), "{said}");
}

#[cfg(target_os = "linux")]
#[test]
fn arguments_that_are_not_utf8_are_paths_or_refused_but_no_panic() {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    let bytes = |text: &[u8]| OsString::from_vec(text.to_vec());
    for flag in [&b"\xff"[..], b"-\xff", b"--host=\xff", b"--port=\xff", b"-debug=\xff"] {
        let said = refusal(&[bytes(flag)], &[]);
        assert!(!said.contains("panicked"), "{said}");
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join(bytes(b"fence\xff"));
    let _server = Dflockd::start(&["-fence-state-file".into(), file.clone().into_os_string()], &[]);
    assert_eq!(fs::read(&file).unwrap().len(), 8);
}

#[test]
fn settings_that_need_or_exclude_each_other_are_named() {
    let files = Files::new();
    let path = |name: &str| files.0.path().join(name).to_str().unwrap().to_owned();
    for (flag, other) in [("tls-cert", "--tls-key"), ("tls-key", "--tls-cert")] {
        let said = refusal(&[&format!("--{flag}"), &path("cert-by-flag")], &[]);
        assert!(said.contains(other) && said.contains("must be provided"), "{said}");
    }
    let said = refusal(&["--auth-token=hunter2"], &[("DFLOCKD_AUTH_TOKEN_FILE", &path("token-by-flag"))]);
    assert!(said.contains("auth_token and auth_token_file are both set"), "{said}");
    assert!(!said.contains("hunter2"), "{said}");
}

#[test]
fn an_unusable_auth_token_is_refused_and_not_shown() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    let flag = format!("--auth-token-file={}", file.display());
    let cases: [(&[u8], &str); 5] = [
        (b"hunter\n2 hunter\n", "auth_token has a line break inside"),
        (b"hunter\r2", "auth_token has a line break inside"),
        (b" \n", "auth_token_file is empty"),
        (b"hunter\xff", "could not read auth_token_file"),
        (&[b'h'; 65537], "auth_token is 65537 bytes long, the limit is 65536"),
    ];
    for (content, fault) in cases {
        fs::write(&file, content).unwrap();
        let said = refusal(&[&flag], &[]);
        assert!(said.contains(fault) && !said.contains("hunter"), "{said}");
    }
    for flag in ["--auth-token=hunter\n2", "--auth-token=hunter2\n"] {
        let said = refusal(&[flag], &[]);
        assert!(said.contains("auth_token has a line break inside") && !said.contains("hunter"), "{said}");
    }
    assert!(refusal(&["--auth-token="], &[]).contains("auth_token is empty"));
}

#[test]
fn a_file_that_cannot_be_used_is_named_with_its_setting() {
    let files = Files::new();
    let path = |name: &str| files.0.path().join(name).to_str().unwrap().to_owned();
    let missing = path("missing");
    let said = refusal(&["--auth-token-file", &missing], &[]);
    assert!(
        said.contains("auth_token_file") && said.contains(&missing) && said.contains("No such file"),
        "{said}"
    );
    for (cert, key, fault) in [
        (path("missing"), path("key-by-flag"), format!("could not read {missing}")),
        (path("cert-by-flag"), path("missing"), format!("could not read {missing}")),
        (path("token-by-flag"), path("key-by-flag"), "no certificate in".to_owned()),
        (path("cert-by-flag"), path("token-by-flag"), "no private key in".to_owned()),
    ] {
        let said = refusal(&["--tls-cert", &cert, "--tls-key", &key], &[]);
        assert!(said.contains("tls_cert") && said.contains("tls_key") && said.contains(&fault), "{said}");
    }
    let nowhere = path("missing/fence");
    for fence in [&nowhere, files.0.path().to_str().unwrap()] {
        let said = refusal(&["--port=0", "--fence-state-file", fence], &[]);
        assert!(said.contains("fence_state_file") && said.contains(fence), "{said}");
    }
}

/// What it says of flags that it refuses, with no memory for a file without end.
#[cfg(target_os = "linux")]
fn refused_in_little_memory(flags: &[&str]) -> String {
    let mut command = std::process::Command::new("/bin/sh");
    command.args([
        "-c",
        "ulimit -v 4000000 && exec \"$0\" \"$@\"",
        env!("CARGO_BIN_EXE_dflockd"),
        "--port=0",
    ]);
    let output = command.args(flags).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{said}");
    said
}

#[cfg(target_os = "linux")]
#[test]
fn a_file_without_end_is_named_with_its_limit() {
    let files = Files::new();
    let path = |name: &str| files.0.path().join(name).to_str().unwrap().to_owned();
    let (cert, key) = (path("cert-by-flag"), path("key-by-flag"));
    let (fifo, long) = (path("fifo"), path("long"));
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    fs::File::create(&long).unwrap().set_len((4 << 20) + 1).unwrap();
    for endless in ["/dev/zero", &fifo, &long] {
        for flags in [
            ["--tls-cert", endless, "--tls-key", &key],
            ["--tls-cert", &cert, "--tls-key", endless],
            ["--auth-token-file", endless, "--host", "localhost"],
        ] {
            let pipe = fifo.clone();
            // Until its reader has had enough.
            let fill =
                move || std::io::copy(&mut std::io::repeat(b'x'), &mut fs::File::create(pipe).unwrap());
            let filling = (endless == fifo).then(|| std::thread::spawn(fill));
            let said = refused_in_little_memory(&flags);
            assert!(said.contains(endless) && said.contains("it is longer than 4 MiB, the limit"), "{said}");
            assert!(said.contains("tls_cert and tls_key") || said.contains("auth_token_file"), "{said}");
            assert!(filling.is_none_or(|filling| filling.join().unwrap().is_err()));
        }
    }
    let said = refused_in_little_memory(&["--fence-state-file", "/dev/zero"]);
    assert!(said.contains("/dev/zero is a device: it must be a regular file"), "{said}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_pipe_that_nobody_writes_to_is_waited_for_until_a_signal_comes() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    for (name, number) in [("TERM", 15), ("INT", 2)] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_dflockd"));
        let server = command.args(["--port=0", "--auth-token-file"]).arg(&fifo);
        // It says nothing, and holds no pipe open should it not end.
        let mut server = server.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let pid = server.id().to_string();
        until("it handles the signal by itself", || {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
            u64::from_str_radix(caught.trim(), 16).unwrap() & 1 << (number - 1) != 0
        });
        assert!(std::process::Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
        let mut ended = None;
        until("it ends", || {
            ended = server.try_wait().unwrap();
            ended.is_some()
        });
        assert_eq!(ended.and_then(|status| status.code()), Some(0), "{name}");
    }
}

#[test]
fn an_address_that_cannot_be_listened_on_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let said = refusal(&["--port", &address.port().to_string()], &[]);
    assert!(said.contains(&format!("could not listen on {address}")) && said.contains("in use"), "{said}");
    let said = refusal(&["--host=no such host"], &[]);
    assert!(said.contains("could not listen on no such host:6388"), "{said}");
}
