//! The binary on SIGHUP: new files count for new connections, broken files change nothing, and no lock is
//! lost.

use std::fs;
use std::path::PathBuf;

use dflockd_client::tls::ClientTls;
use dflockd_client::{ErrorKind, LeaseGuard, LockClient};

use crate::dflockd::{Dflockd, until};

/// A certificate for `localhost`, its key and a token, in the files that the server is started with.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.at(name), text).unwrap();
    }

    fn flag(&self, name: &str) -> String {
        format!("--{name}={}", self.at(name).display())
    }

    /// Writes a new certificate and its key, and returns the certificate.
    fn certify(&self) -> String {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        self.write("tls-cert", &made.cert.pem());
        self.write("tls-key", &made.signing_key.serialize_pem());
        made.cert.pem()
    }
}

/// Sends SIGHUP, and waits until the log contains this text once more than before.
fn hang_up(server: &Dflockd, says: &str) {
    let count = || server.log().matches(says).count();
    let before = count();
    server.signal("HUP");
    until(says, || count() > before);
}

fn client(server: &Dflockd, ca: Option<&str>, token: Option<&str>) -> LockClient {
    let mut builder = LockClient::builder().servers([("localhost", server.address.port())]);
    if let Some(ca) = ca {
        builder = builder.tls(ClientTls::builder().ca_pem(ca).build().unwrap());
    }
    if let Some(token) = token {
        builder = builder.auth_token(token);
    }
    builder.build().unwrap()
}

async fn take(client: &LockClient, key: &str) -> Result<LeaseGuard, ErrorKind> {
    client.lock(key).unwrap().acquire().await.map_err(|error| error.kind())
}

#[tokio::test]
async fn new_handshakes_see_the_new_certificate_and_old_connections_keep_their_leases() {
    let files = Files::new();
    let old = files.certify();
    let server = Dflockd::start(&[files.flag("tls-cert"), files.flag("tls-key")], &[]);
    let holder = client(&server, Some(&old), None);
    let guard = take(&holder, "k").await.unwrap();
    let new = files.certify();
    assert_eq!(
        take(&client(&server, Some(&new), None), "x").await.unwrap_err(),
        ErrorKind::Tls,
        "not before SIGHUP"
    );

    hang_up(&server, "reloaded tls_cert and tls_key");
    take(&client(&server, Some(&new), None), "x").await.unwrap().release().await.unwrap();
    assert_eq!(take(&client(&server, Some(&old), None), "x").await.unwrap_err(), ErrorKind::Tls);
    guard.renew().await.unwrap();
    assert!(client(&server, Some(&new), None).lock("k").unwrap().try_acquire().await.unwrap().is_none());
    guard.release().await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_read_leaves_the_old_in_place_and_is_logged() {
    let files = Files::new();
    let old = files.certify();
    files.write("auth-token-file", "first");
    let flags = ["tls-cert", "tls-key", "auth-token-file"].map(|name| files.flag(name));
    let server = Dflockd::start(&flags, &[]);
    let holder = client(&server, Some(&old), Some("first"));
    let guard = take(&holder, "k").await.unwrap();

    let key = fs::read_to_string(files.at("tls-key")).unwrap();
    let another = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    for (name, text) in [("tls-cert", "no certificate"), ("tls-key", &another.signing_key.serialize_pem())] {
        files.write(name, text);
        hang_up(&server, "could not reload tls_cert and tls_key, the old value stays in use");
        take(&client(&server, Some(&old), Some("first")), "x").await.unwrap().release().await.unwrap();
        // One fault at a time: the other file is valid.
        files.write("tls-cert", &old);
    }
    // The token is reloaded even if the certificate cannot be read.
    fs::remove_file(files.at("tls-cert")).unwrap();
    files.write("auth-token-file", "second");
    hang_up(&server, "reloaded auth_token_file");
    take(&client(&server, Some(&old), Some("second")), "x").await.unwrap().release().await.unwrap();
    for broken in ["", "two\nlines"] {
        files.write("auth-token-file", broken);
        hang_up(&server, "could not reload auth_token_file, the old value stays in use");
        take(&client(&server, Some(&old), Some("second")), "x").await.unwrap().release().await.unwrap();
    }
    guard.renew().await.unwrap();
    let log = server.log();
    for secret in ["first", "second", "two", &key[40..80]] {
        assert!(!log.contains(secret), "a secret is logged: {log}");
    }
}

#[test]
fn a_new_token_is_asked_of_new_connections_alone() {
    let files = Files::new();
    files.write("auth-token-file", "first");
    let server = Dflockd::start(&[files.flag("auth-token-file")], &[]);
    let mut holder = server.connect();
    assert_eq!(holder.ask("auth", "_", "first"), "ok");
    let token = holder.token("l", "k", "0 1000");
    files.write("auth-token-file", "second\n");
    hang_up(&server, "reloaded auth_token_file");

    assert_eq!(server.connect().ask("auth", "_", "first"), "error_auth");
    let mut other = server.connect();
    assert_eq!(other.ask("auth", "_", "second"), "ok");
    assert_eq!(other.ask("l", "k", "0"), "timeout", "the key is held");
    assert_eq!(holder.ask("n", "k", &token), "ok 33");
    assert_eq!(holder.ask("r", "k", &token), "ok");
    assert!(other.ask("l", "k", "0").starts_with("ok "));
}

#[test]
fn a_hang_up_is_ignored_where_no_file_is_given() {
    for flags in [&[][..], &["--auth-token=hunter2"]] {
        let server = Dflockd::start(flags, &[]);
        let mut holder = server.connect();
        if !flags.is_empty() {
            assert_eq!(holder.ask("auth", "_", "hunter2"), "ok");
        }
        holder.token("l", "k", "0 1000");
        hang_up(&server, "nothing to reload");
        hang_up(&server, "nothing to reload");
        assert_eq!(holder.ask("l", "k", "0"), "timeout", "the key is held");
        if !flags.is_empty() {
            assert_eq!(server.connect().ask("auth", "_", "hunter2"), "ok");
        }
    }
}

#[test]
fn a_token_that_came_by_a_pipe_is_not_waited_for_again() {
    let files = Files::new();
    let fifo = files.at("auth-token-file");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let writer = std::thread::spawn(move || fs::write(fifo, "hunter2").unwrap());
    let server = Dflockd::start(&[files.flag("auth-token-file")], &[]);
    writer.join().unwrap();
    hang_up(&server, "it is not a regular file");
    assert_eq!(server.connect().ask("auth", "_", "hunter2"), "ok");
    server.signal("TERM");
    assert_eq!(server.end().0.code(), Some(0));
}
