//! The effect of the binary's settings, seen from a connection and in the log.

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use crate::dflockd::{Dflockd, Wire, granted, until};

#[test]
fn host_and_port_are_where_it_listens() {
    let server = Dflockd::start(&["--host", "0.0.0.0"], &[]);
    assert!(server.address.ip().is_unspecified());
    // A port that is free now may be in use before the server binds it; then another is tried.
    let started = (0..10).find_map(|_| {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
        Some((Dflockd::try_start(&["-port", &port], &[]).ok()?, port))
    });
    let (server, port) = started.expect("one of ten ports stays free");
    assert_eq!(server.address.to_string(), format!("127.0.0.1:{port}"));
    assert_eq!(server.connect().ask("ping", "_", "_"), "ok");
}

#[test]
fn all_addresses_of_a_host_are_listened_on_at_one_port() {
    if TcpListener::bind("[::1]:0").is_err() {
        eprintln!("!!! skipped: this machine has no ::1");
        return;
    }
    let cases: [(&str, &[&str], &[&str]); 6] = [
        ("localhost", &["127.0.0.1", "::1"], &[]),
        ("", &["127.0.0.1", "::1"], &[]),
        ("::", &["127.0.0.1", "::1"], &[]),
        ("0.0.0.0", &["127.0.0.1"], &["::1"]),
        ("[::1]", &["::1"], &["127.0.0.1"]),
        ("::1", &["::1"], &["127.0.0.1"]),
    ];
    for (host, yes, no) in cases {
        let server = Dflockd::start(&[format!("--host={host}")], &[]);
        let port = server.address.port();
        let at = |ip: &&str| std::net::SocketAddr::new(ip.parse().unwrap(), port);
        for address in yes.iter().map(at) {
            assert_eq!(
                Wire::open(address).ask("ping", "_", "_"),
                "ok",
                "{host:?} {address}: {}",
                server.log()
            );
        }
        for address in no.iter().map(at) {
            assert!(std::net::TcpStream::connect(address).is_err(), "{host:?} {address}: {}", server.log());
        }
    }
}

#[test]
fn one_peer_has_one_cap_at_all_addresses() {
    let server = Dflockd::start(&["--host=", "--max-connections-per-ip=1"], &[]);
    let address = std::net::SocketAddr::new([127, 0, 0, 1].into(), server.address.port());
    let mut one = Wire::open(address);
    assert_eq!(one.ask("ping", "_", "_"), "ok");
    assert!(Wire::open(address).is_closed());
}

#[test]
fn limits_and_the_default_lease_hold_on_the_wire() {
    let flags = ["--default-lease-ttl=7", "--max-locks=1", "--max-waiters=1"];
    let server = Dflockd::start(&flags, &[]);
    let (mut one, mut two) = (server.connect(), server.connect());
    assert!(one.ask("l", "k", "0").ends_with(" 7"));
    assert_eq!(one.ask("l", "other", "0"), "error_max_locks");
    assert_eq!(one.ask("e", "k", ""), "queued");
    assert_eq!(two.ask("l", "k", "0"), "error_max_waiters");
}

#[test]
fn connections_past_a_cap_are_closed() {
    for flag in ["--max-connections=1", "--max-connections-per-ip=1"] {
        let server = Dflockd::start(&[flag], &[]);
        let mut one = server.connect();
        assert_eq!(one.ask("ping", "_", "_"), "ok");
        assert!(server.connect().is_closed(), "{flag}");
        assert_eq!(one.ask("ping", "_", "_"), "ok");
        drop(one);
        // A refused connection may fail at any step.
        until("the place is free again", || {
            let mut again = server.connect();
            again.try_send("ping\n_\n_\n") && again.line() == "ok"
        });
    }
}

#[test]
fn a_silent_connection_is_ended_by_the_read_timeout() {
    let server = Dflockd::start(&["--read-timeout=1"], &[]);
    let mut silent = server.connect();
    assert_eq!(silent.line(), "error");
    assert!(silent.is_closed());
}

#[test]
fn expired_leases_and_idle_keys_go_by_the_sweep_and_the_collection() {
    let flags = ["--gc-interval=1", "--gc-max-idle=0", "--lease-sweep-interval=1"];
    let server = Dflockd::start(&flags, &[]);
    let (mut holder, mut watcher) = (server.connect(), server.connect());
    let token = holder.token("l", "k", "0 1");
    until("the lease is swept and the key collected", || !watcher.ask("stats", "_", "_").contains("\"k\""));
    assert_eq!(holder.ask("n", "k", &token), "error");
}

#[test]
fn leases_outlive_their_connection_only_without_auto_release() {
    for (flag, reply) in [("=false", "timeout"), ("=true", "ok "), ("", "ok ")] {
        let server = Dflockd::start(&[format!("--auto-release-on-disconnect{flag}")], &[]);
        server.connect().token("l", "k", "0");
        let mut other = server.connect();
        until("the holder's end is noticed", || other.ask("stats", "_", "_").contains("\"connections\":1,"));
        let got = other.ask("l", "k", "0");
        assert!(got.starts_with(reply), "{flag}: {got}");
    }
}

#[test]
fn an_auth_token_is_asked_for_wherever_it_comes_from_and_never_logged() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    fs::write(&file, "hunter2 \t\r\n\n").unwrap();
    let file = file.to_str().unwrap();
    let sources: [(&[&str], crate::dflockd::Variables); 4] = [
        (&["--debug", "--auth-token=hunter2"], &[]),
        (&["--debug"], &[("DFLOCKD_AUTH_TOKEN", "hunter2")]),
        (&["--debug", "--auth-token-file", file], &[]),
        (&["--debug"], &[("DFLOCKD_AUTH_TOKEN_FILE", file)]),
    ];
    for (flags, variables) in sources {
        let server = Dflockd::start(flags, variables);
        let mut peer = server.connect();
        assert_eq!(peer.ask("auth", "_", "hunter2"), "ok", "{flags:?} {variables:?}");
        let token = peer.token("l", "k", "0");
        assert_eq!(peer.ask("r", "wrong key", &token), "error");
        assert_eq!(peer.ask("r", "k", &token), "ok");
        for frame in ["ping\n_\n_\n", "auth\n_\nhunter3\n"] {
            let mut stranger = server.connect();
            stranger.send(frame);
            assert_eq!(stranger.line(), "error_auth");
            assert!(stranger.is_closed());
        }
        drop(peer);
        until("it is logged", || server.log().matches("disconnected").count() == 3);
        let log = server.log();
        assert!(log.contains("DEBUG") && log.contains("authentication failed"), "{log}");
        for secret in ["hunter", &token] {
            assert!(!log.contains(secret), "a secret is logged: {log}");
        }
    }
}

#[test]
fn connections_are_logged_with_debug_alone() {
    for (flags, logged) in [(&["--debug"][..], true), (&[], false)] {
        let server = Dflockd::start(flags, &[]);
        let mut peer = server.connect();
        assert_eq!(peer.ask("nonsense", "k", "1"), "error");
        drop(peer);
        server.signal("TERM");
        let (_, log) = server.end();
        assert_eq!(log.contains("request refused"), logged, "{log}");
        assert_eq!(log.contains("disconnected"), logged, "{log}");
        assert!(!log.contains('\u{1b}'), "colours are for terminals: {log}");
    }
}

#[cfg(all(feature = "client", feature = "tls"))]
#[tokio::test]
async fn with_a_certificate_it_speaks_tls() {
    use dflockd_client::LockClient;
    use dflockd_client::tls::ClientTls;

    let directory = tempfile::tempdir().unwrap();
    let (cert, key) = (directory.path().join("cert"), directory.path().join("key"));
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(&cert, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let flags = ["--tls-cert".as_ref(), cert.as_os_str(), "--tls-key".as_ref(), key.as_os_str()];
    let server = Dflockd::start(&flags, &[("DFLOCKD_AUTH_TOKEN", "hunter2")]);
    let client = LockClient::builder()
        .servers([("localhost", server.address.port())])
        .tls(ClientTls::builder().ca_pem(fs::read(&cert).unwrap()).build().unwrap())
        .auth_token("hunter2")
        .build()
        .unwrap();
    let guard = client.lock("k").unwrap().acquire().await.unwrap();
    assert!(guard.is_held());
    guard.release().await.unwrap();
    let mut plain = server.connect();
    plain.send("ping\n_\n_\n");
    assert!(!plain.line().contains("ok"), "a peer without tls is not served");
}

#[test]
fn a_fence_state_file_is_made_where_it_is_missing() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("fence");
    let server = Dflockd::start(&[Path::new("--fence-state-file"), &file], &[]);
    let reply = server.connect().ask("l", "k", "0");
    let ceiling = u64::from_be_bytes(fs::read(&file).unwrap().try_into().unwrap());
    let fence = dflockd_client::fence_from_token(granted(&reply)).unwrap();
    assert!(fence.get() < ceiling, "{reply} {ceiling}");
}
