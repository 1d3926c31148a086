//! Certificates and keys as they come out of editors, secret stores and shells: what loads, what is
//! wrong with the rest, and that nothing of a key is shown by it, whichever way it was given.

use std::error::Error as _;
use std::path::Path;
use std::process::Command;

use dflockd_client::server::ServerConfig;
use dflockd_client::tls::{ClientTls, ServerTls};
use dflockd_client::{Error, ErrorKind};
use rcgen::{CertificateParams, KeyPair};

/// What may be seen of a key at a stretch: one character less than this.
const WINDOW: usize = 20;

struct Pair {
    cert: String,
    key: String,
}

fn pair() -> Pair {
    let key = KeyPair::generate().unwrap();
    let cert = CertificateParams::new(["locks.example".to_owned()]).unwrap().self_signed(&key).unwrap();
    Pair { cert: cert.pem(), key: key.serialize_pem() }
}

/// What is between the lines that begin and end it.
fn body(pem: &str) -> String {
    pem.lines().filter(|line| !line.starts_with("-----")).collect()
}

/// A text of one of the kinds of keys that there are, with the base64 of `body` in it.
fn labelled(label: &str, body: &str) -> String {
    let lines: Vec<_> = body.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// Every way in which a key's text is found to be spoiled, by name.
fn mangled(key: &str) -> Vec<(&'static str, Vec<u8>)> {
    let text = |text: String| text.into_bytes();
    let utf16 = |swap: fn(u16) -> [u8; 2]| key.encode_utf16().flat_map(swap).collect::<Vec<_>>();
    vec![
        ("no line breaks", text(key.replace('\n', ""))),
        ("line breaks as two characters", text(key.replace('\n', "\\n"))),
        ("line breaks as two characters, quoted", text(format!("\"{}\"", key.replace('\n', "\\n")))),
        ("line breaks as \\r\\n in four characters", text(key.replace('\n', "\\r\\n"))),
        ("blanks for line breaks", text(key.replace('\n', " "))),
        ("tabs for line breaks", text(key.replace('\n', "\t"))),
        ("form feeds for line breaks", text(key.replace('\n', "\x0c"))),
        ("no line break after BEGIN", text(key.replacen('\n', "", 1))),
        ("no line break before END", text(key.replace("\n-----END", "-----END"))),
        ("indented", text(key.replace('\n', "\n    ").replacen("-----BEGIN", "    -----BEGIN", 1))),
        ("cut in the middle", text(key[..key.len() / 2].to_owned())),
        ("cut before END", text(key[..key.rfind("-----END").unwrap()].to_owned())),
        ("no BEGIN", text(key.lines().skip(1).collect::<Vec<_>>().join("\n"))),
        ("base64 alone", text(body(key))),
        ("another END", text(key.replace("-----END ", "-----END X "))),
        ("an unknown label", text(key.replace("PRIVATE KEY", "SECRET"))),
        ("the body as a label", text(format!("-----BEGIN {}-----\n-----END\n", body(key)))),
        ("four dashes", text(key.replacen("-----\n", "----\n", 1))),
        ("six dashes", text(key.replacen("-----\n", "------\n", 1))),
        ("no base64", text(key.replacen("\nM", "\n!", 1).replace("x", "?"))),
        ("a prompt before it", text(key.replace("-----BEGIN", "$ cat key.pem -----BEGIN"))),
        ("utf-16, little end first", utf16(u16::to_le_bytes)),
        ("utf-16, big end first", utf16(u16::to_be_bytes)),
        ("zero bytes", text(key.replace('\n', "\0"))),
        ("twice on one line", text(key.replace('\n', "").repeat(2))),
        ("encrypted", text(key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"))),
        (
            "encrypted the old way",
            text(key.replacen('\n', "\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\n", 1)),
        ),
    ]
}

/// Every kind of key, each spoiled in every way. A body of random bytes is no key once it is read.
fn all() -> Vec<(String, Vec<u8>, String)> {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let alphabet: Vec<char> = ('A'..='Z').chain('a'..='z').chain('0'..='9').chain(['+', '/']).collect();
    let mut keys = vec![("PRIVATE KEY", body(&pair().key))];
    for label in ["PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY", "OPENSSH PRIVATE KEY"] {
        keys.push((label, (0..700).map(|_| alphabet[random.usize(..64)]).collect()));
    }
    let mut all = Vec::new();
    for (label, body) in keys {
        let sound = labelled(label, &body);
        for (how, text) in mangled(&sound).into_iter().chain([("sound", sound.clone().into_bytes())]) {
            all.push((format!("{label}, {how}"), text, body.clone()));
        }
    }
    all
}

/// Panics where as much as a window of the key is in what was shown, as text or as numbers.
#[track_caller]
fn hides(what: &str, shown: &str, body: &str) {
    for part in shown.as_bytes().windows(WINDOW) {
        // Only base64 is, and so text.
        let text = str::from_utf8(part).unwrap_or("-");
        assert!(!body.contains(text), "{what}: {shown}");
    }
    let numbers = shown.split([',', ' ', '\n']).filter(|word| word.parse::<u8>().is_ok());
    assert!(numbers.count() < WINDOW, "{what}: {shown}");
}

/// All that an error shows, its causes included.
fn everything(error: &Error) -> String {
    let mut shown = format!("{error} {error:?} {error:#?}");
    let mut source = error.source();
    while let Some(cause) = source {
        shown += &format!(" {cause} {cause:?} {cause:#?}");
        source = cause.source();
    }
    let io = std::io::Error::from(error.clone());
    shown + &format!(" {io} {io:?}")
}

#[test]
fn no_error_of_the_library_shows_a_key_however_it_is_spoiled_or_given() {
    let (good, dir) = (pair(), tempfile::tempdir().unwrap());
    let file = dir.path().join("key.pem");
    let cert = &*good.cert;
    for (what, text, body) in all() {
        std::fs::write(&file, &text).unwrap();
        let lossy = String::from_utf8_lossy(&text).into_owned();
        let outcomes = [
            ServerTls::from_pem(cert, &*text).map(drop),
            ServerTls::from_pem(&*text, &*good.key).map(drop),
            ServerTls::builder().cert_pem(cert, &*good.key).client_ca_pem(&*text).build().map(drop),
            ClientTls::builder().ca_pem(&*text).build().map(drop),
            ClientTls::builder().ca_pem(cert).client_cert_pem(cert, &*text).build().map(drop),
            // The key's text where a file's name, or another name, belongs.
            ServerTls::from_pem_files(&*lossy, &*lossy).map(drop),
            ClientTls::builder().ca_file(&*lossy).build().map(drop),
            ClientTls::builder().ca_pem(cert).server_name(&*lossy).build().map(drop),
        ];
        for (entry, outcome) in outcomes.into_iter().enumerate() {
            let error = outcome.expect_err(&what);
            hides(&format!("{what}, entry {entry}"), &everything(&error), &body);
        }
        let builder =
            ClientTls::builder().ca_file(&*lossy).client_cert_pem(cert, &*text).server_name(&*lossy);
        let server = ServerTls::builder().cert_files(&*lossy, &*lossy);
        let config = ServerConfig { tls_key: Some((&*lossy).into()), ..Default::default() };
        hides(&what, &format!("{builder:?} {server:?} {config:?}"), &body);
    }
}

#[test]
fn neither_binary_shows_a_key_that_is_spoiled() {
    let (good, dir) = (pair(), tempfile::tempdir().unwrap());
    let file = |name: &str, text: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let cert = file("cert.pem", good.cert.as_bytes());
    // One kind of key in every way: each is two processes.
    for (what, text, body) in all().into_iter().take(28) {
        let key = file("key.pem", &text);
        if !what.contains("sound") {
            let flags = ["--tls-cert", &cert, "--tls-key", &key, "--debug"];
            let said = crate::dflockd::run(&flags, &[("RUST_LOG", "trace"), ("DFLOCKD_PORT", "0")]);
            assert!(!said.status.success(), "{what}");
            hides(&what, &shown_by(said), &body);
        }
        let said = dflock(&["ping", "--tls-ca", &cert, "--tls-cert", &cert, "--tls-key", &key]);
        hides(&what, &shown_by(said), &body);
    }
}

fn dflock(args: &[&str]) -> std::process::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dflock"));
    // Nothing listens there.
    command.args(args).env("DFLOCK_SERVERS", "127.0.0.1:1").output().unwrap()
}

fn shown_by(output: std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn no_argument_that_stands_in_the_wrong_place_is_repeated_if_it_may_be_a_key() {
    let key = pair().key;
    let body = body(&key);
    for text in [&*key, &key.replace('\n', ""), &key.replace('\n', "\\n"), &body] {
        let numbered = ["--port", "--max-locks", "--debug", "--auto-release-on-disconnect"];
        for flag in numbered.into_iter().chain([
            "--tls-key",
            "--auth-token",
            "--prot",
            "--fence-state-file",
            "--host",
        ]) {
            for args in [vec![flag.to_owned(), text.to_owned()], vec![format!("{flag}={text}")]] {
                // Some are taken as they are, and would be served by.
                let args = [&args[..], &["--tls-cert=x".to_owned()]].concat();
                hides(
                    &format!("dflockd {flag}"),
                    &shown_by(crate::dflockd::run(&args, &[("DFLOCKD_PORT", "0")])),
                    &body,
                );
            }
        }
        hides("dflockd", &shown_by(crate::dflockd::run(&[text, "--tls-cert=x"], &[])), &body);
        for args in [
            vec![text],
            vec!["ping", text],
            vec!["ping", "--tls-key", text],
            vec!["ping", "--connect-timeout", text],
            vec!["ping", "--servers", text],
            vec!["run", "--limit", text, "k", "true"],
            vec!["run", "--wait", text, "k", "true"],
            vec!["run", "--on-lost", text, "k", "true"],
            vec!["man", text],
            vec!["completions", text],
        ] {
            hides(&format!("dflock {args:?}"), &shown_by(dflock(&args)), &body);
        }
    }
}

#[track_caller]
fn refused(outcome: dflockd_client::Result<ServerTls>, words: &str) {
    let error = outcome.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert!(error.to_string().ends_with(words), "{error}");
}

#[test]
fn a_spoiled_key_is_told_what_became_of_it() {
    let Pair { cert, key } = pair();
    let given = |key: String| ServerTls::from_pem(&*cert, key);
    let malformed = "invalid input: the given pem of the private key is malformed: its line breaks are";
    refused(given(key.replace('\n', "")), &format!("{malformed} missing"));
    refused(given(key.replace('\n', "\\n")), &format!("{malformed} written as the two characters \\n"));
    refused(given(key.replace('\n', " ")), &format!("{malformed} missing, there are blanks instead"));
    refused(given(key.replacen("\nM", "\n!", 1)), "its base64 is broken");
    refused(given("hello".into()), "no private key in the given pem: it has no BEGIN line");
    let dir = tempfile::tempdir().unwrap();
    let utf16 = dir.path().join("key.pem");
    let text: Vec<u8> =
        "\u{feff}".encode_utf16().chain(key.encode_utf16()).flat_map(u16::to_le_bytes).collect();
    std::fs::write(&utf16, text).unwrap();
    let words = format!("no private key in {}: it is utf-16 text, save it as utf-8", utf16.display());
    let cert_file = dir.path().join("cert.pem");
    std::fs::write(&cert_file, &cert).unwrap();
    refused(ServerTls::from_pem_files(cert_file, utf16), &words);
    // A path is no text, and the text is not shown.
    let error = ServerTls::from_pem_files(&*key, Path::new("key.pem")).unwrap_err();
    assert!(error.to_string().contains("bytes, given where a path belongs"), "{error}");
}

#[test]
fn only_a_label_or_a_header_makes_a_key_an_encrypted_one() {
    let Pair { cert, key } = pair();
    let given = |key: String| ServerTls::from_pem(&*cert, key);
    given(format!("# this is NOT an ENCRYPTED key\n{key}")).unwrap();
    given(format!("{key}# Proc-Type is not 4,ENCRYPTED here\n")).unwrap();
    let locked = labelled("ENCRYPTED PRIVATE KEY", "AAAA");
    given(format!("{locked}{key}")).unwrap();
    refused(given(locked), "is encrypted: decrypt it first");
    let old = key.replacen('\n', "\nProc-Type: 4,ENCRYPTED\n\n", 1);
    refused(given(old), "is encrypted: decrypt it first");
}

#[test]
fn a_byte_order_mark_does_no_harm_and_line_ends_may_be_any_systems() {
    let Pair { cert, key } = pair();
    let ways: [fn(&str) -> String; 4] = [
        |pem| format!("\u{feff}{pem}"),
        |pem| pem.replace('\n', "\r\n"),
        |pem| pem.replace('\n', "\r"),
        |pem| format!("\u{feff}Bag Attributes\r\n    friendlyName: x\r\n{}", pem.replace('\n', "\r\n")),
    ];
    for way in ways {
        ServerTls::builder().cert_pem(way(&cert), way(&key)).client_ca_pem(way(&cert)).build().unwrap();
        ClientTls::builder().ca_pem(way(&cert)).client_cert_pem(way(&cert), way(&key)).build().unwrap();
    }
}
