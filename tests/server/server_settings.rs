//! The effect of each setting for a time or a number, seen from a connection, in virtual time.

use std::time::Duration;

use dflockd_client::ErrorKind;
use dflockd_client::server::{Server, ServerConfig};
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep, timeout};

use crate::wire::{S, Serving, connect, connect_by, granted, server, settle};

const MOST: Duration = Duration::from_secs(9_223_372_036);
const NS: Duration = Duration::from_nanos(1);

/// Returns the seconds until the key is granted to a waiter, after a lease of 2 s that is not renewed.
async fn handed_on_after(config: ServerConfig) -> u64 {
    let server = server(config);
    let (mut holder, mut waiter) = (connect(&server), connect(&server));
    settle().await;
    let start = Instant::now();
    holder.token("l", "k", "0 2").await;
    waiter.token("l", "k", "1000").await;
    start.elapsed().as_secs()
}

/// Returns the seconds until an unused key is collected.
async fn collected_after(config: ServerConfig) -> u64 {
    let server = server(config);
    let mut peer = connect(&server);
    let token = peer.token("l", "k", "0").await;
    assert_eq!(peer.ask("r", "k", &token).await, "ok");
    let start = Instant::now();
    while !server.stats().idle_locks.is_empty() {
        assert!(start.elapsed() < 10_000 * S, "it is never collected");
        sleep(S / 10).await;
    }
    start.elapsed().as_secs()
}

#[tokio::test(start_paused = true)]
async fn the_default_lease_is_for_commands_that_name_none() {
    let server = server(ServerConfig { default_lease_ttl: 7 * S, ..Default::default() });
    let mut peer = connect(&server);
    let reply = peer.ask("l", "k", "0").await;
    assert!(reply.ends_with(" 7"), "{reply}");
    let token = granted(&reply);
    assert_eq!(peer.ask("n", "k", &format!("{token} 9")).await, "ok 9");
    assert_eq!(peer.ask("n", "k", token).await, "ok 7");
    sleep(7 * S).await;
    assert_eq!(peer.ask("n", "k", token).await, "error", "and it expires");
}

#[tokio::test(start_paused = true)]
async fn expired_leases_are_swept_at_the_interval() {
    assert!((2..=3).contains(&handed_on_after(ServerConfig::default()).await));
    let config = ServerConfig { lease_sweep_interval: 10 * S, ..Default::default() };
    assert!((9..=10).contains(&handed_on_after(config).await));
}

#[tokio::test(start_paused = true)]
async fn idle_keys_are_collected_at_the_interval_once_they_are_idle_for_long_enough() {
    let config = |gc_interval, gc_max_idle| ServerConfig {
        gc_interval,
        gc_max_idle,
        read_timeout: MOST,
        ..Default::default()
    };
    assert!(
        (59..=66).contains(&collected_after(ServerConfig { read_timeout: MOST, ..Default::default() }).await)
    );
    assert!((2..=4).contains(&collected_after(config(S, 3 * S)).await));
    assert!((49..=51).contains(&collected_after(config(50 * S, 3 * S)).await));
    assert!(collected_after(config(S, Duration::ZERO)).await <= 2, "0: at the next round");
}

#[tokio::test(start_paused = true)]
async fn the_read_timeout_ends_a_silent_connection() {
    for read_timeout in [S, 90 * S] {
        let server = server(ServerConfig { read_timeout, ..Default::default() });
        let mut peer = connect(&server);
        assert!(peer.is_open().await);
        let start = Instant::now();
        assert_eq!(peer.rest().await, "error\n");
        assert_eq!(start.elapsed().as_secs(), read_timeout.as_secs());
    }
}

#[tokio::test(start_paused = true)]
async fn the_write_timeout_ends_a_peer_that_does_not_read() {
    for write_timeout in [S, 20 * S] {
        let server = server(ServerConfig { write_timeout, ..Default::default() });
        let mut peer = connect_by(&server, 64);
        let start = Instant::now();
        let sent = timeout(1000 * S, peer.0.write_all("ping\n_\n_\n".repeat(10_000).as_bytes())).await;
        assert!(sent.expect("the server closes").is_err());
        assert_eq!(start.elapsed().as_secs(), write_timeout.as_secs());
    }
}

#[tokio::test(start_paused = true)]
async fn no_number_of_waiters_is_too_many_without_a_cap() {
    let server = server(ServerConfig::default());
    let mut holder = connect(&server);
    holder.token("l", "k", "0 1000").await;
    let mut waiters = Vec::new();
    for _ in 0..200 {
        let mut waiter = connect(&server);
        waiter.send("l\nk\n1000\n").await;
        waiters.push(waiter);
    }
    settle().await;
    assert_eq!(server.stats().locks[0].waiters, 200);
}

#[tokio::test(start_paused = true)]
async fn connections_past_the_cap_are_closed_until_one_leaves() {
    let server = server(ServerConfig { max_connections: 2, ..Default::default() });
    let serving = Serving::start(&server);
    // All at once: none has been served when the next one is accepted.
    let (mut one, mut two, mut three) =
        (serving.connect_from([1; 4]), serving.connect_from([2; 4]), serving.connect_from([3; 4]));
    assert_eq!(three.rest().await, "");
    assert!(one.is_open().await && two.is_open().await);
    assert_eq!(server.stats().connections, 2);
    drop(one);
    settle().await;
    assert!(serving.connect_from([3; 4]).is_open().await);
    assert!(two.is_open().await);
}

#[tokio::test(start_paused = true)]
async fn connections_of_one_address_past_the_cap_are_closed_until_one_leaves() {
    let server = server(ServerConfig { max_connections_per_ip: 2, ..Default::default() });
    let serving = Serving::start(&server);
    let (mut one, mut two, mut three) =
        (serving.connect_from([1; 4]), serving.connect_from([1; 4]), serving.connect_from([1; 4]));
    let mut other = serving.connect_from([2; 4]);
    assert_eq!(three.rest().await, "");
    assert!(one.is_open().await && two.is_open().await && other.is_open().await);
    for _ in 0..5 {
        assert_eq!(serving.connect_from([1; 4]).rest().await, "", "a refused one is not counted");
    }
    drop(one);
    settle().await;
    let mut again = serving.connect_from([1; 4]);
    assert!(again.is_open().await);
    assert_eq!(serving.connect_from([1; 4]).rest().await, "");
}

#[tokio::test(start_paused = true)]
async fn connections_that_fail_give_their_place_back() {
    let config = ServerConfig {
        max_connections: 1,
        max_connections_per_ip: 1,
        auth_token: Some("right".into()),
        ..Default::default()
    };
    let server = server(config);
    let serving = Serving::start(&server);
    for frames in ["auth\n_\nwrong\n", "x\n", &"x".repeat(300)] {
        let mut peer = serving.connect_from([1; 4]);
        peer.send(frames).await;
        peer.half_close().await;
        peer.rest().await;
        drop(peer);
        settle().await;
        assert_eq!(server.stats().connections, 0, "{frames:?}");
    }
    assert_eq!(serving.connect_from([1; 4]).ask("auth", "_", "right").await, "ok");
}

#[cfg(feature = "tls")]
#[tokio::test(start_paused = true)]
async fn a_connection_that_never_shakes_hands_is_ended_by_the_read_timeout_or_a_stop() {
    let directory = tempfile::tempdir().unwrap();
    let (cert, key) = (directory.path().join("cert"), directory.path().join("key"));
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let config = ServerConfig {
        tls_cert: Some(cert),
        tls_key: Some(key),
        read_timeout: 50 * S,
        shutdown_timeout: 40 * S,
        ..Default::default()
    };
    let server = server(config);
    let mut serving = Serving::start(&server);
    let mut silent = serving.connect_from([1; 4]);
    let start = Instant::now();
    assert_eq!(silent.rest().await, "");
    assert_eq!(start.elapsed().as_secs(), 50);
    let mut silent = serving.connect_from([1; 4]);
    settle().await;
    assert_eq!(server.stats().connections, 1);
    let start = Instant::now();
    serving.stop();
    serving.task.await.unwrap();
    assert_eq!(start.elapsed().as_secs(), 0, "it holds nothing, so the stop need not wait for it");
    assert_eq!(silent.rest().await, "");
}

#[tokio::test(start_paused = true)]
async fn the_greatest_settings_work() {
    let config = ServerConfig {
        default_lease_ttl: MOST,
        lease_sweep_interval: MOST,
        gc_interval: MOST,
        gc_max_idle: MOST,
        max_locks: usize::MAX,
        max_waiters: usize::MAX,
        max_connections: usize::MAX,
        max_connections_per_ip: usize::MAX,
        read_timeout: MOST,
        write_timeout: MOST,
        shutdown_timeout: MOST,
        ..Default::default()
    };
    let server = server(config);
    let mut serving = Serving::start(&server);
    let mut peer = serving.connect_from([1; 4]);
    let reply = peer.ask("l", "k", "0").await;
    assert!(reply.ends_with(" 9223372036"));
    sleep(3600 * S).await;
    assert_eq!(peer.ask("l", "k", "1").await, "timeout");
    serving.stop();
    assert_eq!(peer.ask("r", "k", granted(&reply)).await, "ok");
    serving.task.await.unwrap();
}

#[test]
fn settings_that_cannot_work_are_refused_by_name() {
    type Change = fn(&mut ServerConfig);
    let cases: [(&str, Change); 19] = [
        ("default_lease_ttl is 0", |config| config.default_lease_ttl = Duration::ZERO),
        ("lease_sweep_interval is 0", |config| config.lease_sweep_interval = Duration::ZERO),
        ("gc_interval is 0", |config| config.gc_interval = Duration::ZERO),
        ("max_locks is 0", |config| config.max_locks = 0),
        ("read_timeout is 0", |config| config.read_timeout = Duration::ZERO),
        ("write_timeout is 0", |config| config.write_timeout = Duration::ZERO),
        ("default_lease_ttl is 9223372037 s", |config| config.default_lease_ttl = MOST + NS),
        ("lease_sweep_interval is 9223372037 s", |config| config.lease_sweep_interval = MOST + NS),
        ("gc_interval is 9223372037 s", |config| config.gc_interval = MOST + NS),
        ("gc_max_idle is 9223372037 s", |config| config.gc_max_idle = MOST + NS),
        ("read_timeout is 9223372037 s", |config| config.read_timeout = MOST + NS),
        ("write_timeout is 9223372037 s", |config| config.write_timeout = MOST + NS),
        ("shutdown_timeout is 9223372037 s", |config| config.shutdown_timeout = MOST + NS),
        ("tls_cert is set alone: both --tls-cert and --tls-key must be provided", |config| {
            config.tls_cert = Some("c".into());
        }),
        ("tls_key is set alone: both --tls-cert and --tls-key must be provided", |config| {
            config.tls_key = Some("k".into());
        }),
        ("auth_token is empty", |config| config.auth_token = Some(String::new())),
        ("auth_token has a line break inside", |config| config.auth_token = Some("hunter\n2".into())),
        ("auth_token is 65537 bytes long", |config| {
            config.auth_token = Some("hunter2".repeat(9363)[..65537].into())
        }),
        ("auth_token and auth_token_file are both set", |config| {
            config.auth_token = Some("hunter2".into());
            config.auth_token_file = Some("f".into());
        }),
    ];
    for (fault, change) in cases {
        let mut config = ServerConfig::default();
        change(&mut config);
        let error = Server::new(config).expect_err(fault);
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{fault}");
        assert!(error.to_string().contains(fault), "{error}");
        assert!(!error.to_string().contains("hunter"), "a secret is shown: {error}");
    }
}
