//! The server byte by byte: every reply, every malformed request, every limit of the protocol,
//! over a pipe and in virtual time.

use std::time::Duration;

use dflockd_client::proto::StatsResult;
use dflockd_client::server::{Server, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::{Instant, advance, sleep, timeout};

const S: Duration = Duration::from_secs(1);

/// A raw connection to a server.
struct Peer(DuplexStream);

impl Peer {
    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.expect("the server reads");
    }

    /// Returns the next line, without its newline.
    async fn line(&mut self) -> String {
        let mut line = Vec::new();
        loop {
            match timeout(3600 * S, self.0.read_u8()).await.expect("the server replies in time") {
                Ok(b'\n') => return String::from_utf8(line).expect("replies are text"),
                Ok(byte) => line.push(byte),
                Err(_) => panic!("closed after {:?}", String::from_utf8_lossy(&line)),
            }
        }
    }

    async fn ask(&mut self, cmd: &str, key: &str, arg: &str) -> String {
        self.send(format!("{cmd}\n{key}\n{arg}\n")).await;
        self.line().await
    }

    /// Requests a grant, and returns its token.
    async fn token(&mut self, cmd: &str, key: &str, arg: &str) -> String {
        let reply = self.ask(cmd, key, arg).await;
        let fields: Vec<&str> = reply.split(' ').collect();
        assert!(matches!(fields[..], ["ok" | "acquired", _, _]), "{reply}");
        assert!(fields[1].len() == 32 && fields[1].bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')));
        fields[1].to_owned()
    }

    /// Returns what the server still sends until it closes.
    async fn rest(&mut self) -> String {
        let mut rest = String::new();
        timeout(3600 * S, self.0.read_to_string(&mut rest))
            .await
            .expect("the server closes")
            .expect("no error");
        rest
    }

    async fn is_open(&mut self) -> bool {
        self.ask("ping", "_", "_").await == "ok"
    }
}

fn server(config: ServerConfig) -> Server {
    Server::new(config).expect("the settings are valid")
}

fn connect(server: &Server) -> Peer {
    let (near, far) = tokio::io::duplex(256 * 1024);
    let server = server.clone();
    tokio::spawn(async move { server.serve_stream(far).await });
    Peer(near)
}

fn peer() -> Peer {
    connect(&server(ServerConfig::default()))
}

#[tokio::test(start_paused = true)]
async fn every_command_has_its_replies() {
    let mut peer = peer();
    assert_eq!(peer.ask("ping", "", "").await, "ok");
    assert_eq!(peer.ask("auth", "_", "anything").await, "error");
    let token = peer.token("l", "k", "0").await;
    assert_eq!(peer.ask("l", "k", "0").await, "timeout");
    assert_eq!(peer.ask("l", "k", "2").await, "timeout");
    assert_eq!(peer.ask("n", "k", &token).await, "ok 33");
    assert_eq!(peer.ask("n", "k", &format!("  {token}\t7 ")).await, "ok 7");
    assert_eq!(peer.ask("sl", "k", "0 2").await, "error_limit_mismatch");
    assert_eq!(peer.ask("se", "k", "2").await, "error_limit_mismatch");
    assert_eq!(peer.ask("w", "k", "0").await, "error_not_enqueued");
    assert_eq!(peer.ask("e", "k", "").await, "queued");
    assert_eq!(peer.ask("e", "k", "").await, "error_already_enqueued");
    assert_eq!(peer.ask("w", "k", "1").await, "timeout");
    assert_eq!(peer.ask("w", "k", "1").await, "error_not_enqueued");
    assert_eq!(peer.ask("r", "k", &token).await, "ok");
    assert_eq!(peer.ask("r", "k", &token).await, "error");
    assert_eq!(peer.ask("n", "k", &token).await, "error");
    assert!(peer.ask("e", "k", "9").await.ends_with(" 9"));
    assert!(peer.ask("w", "k", "0").await.ends_with(" 9"));
}

#[tokio::test(start_paused = true)]
async fn semaphore_commands_are_the_locks_twins() {
    let mut peer = peer();
    let lock = peer.token("sl", "lock", "0 1 5").await;
    assert_eq!(peer.ask("l", "lock", "0").await, "timeout");
    assert_eq!(peer.ask("n", "lock", &lock).await, "ok 33");
    assert_eq!(peer.ask("r", "lock", &lock).await, "ok");
    let slots = [peer.token("sl", "sem", "0 2").await, peer.token("se", "sem", "2").await];
    assert!(slots[0] < slots[1], "fences grow");
    assert_eq!(peer.ask("sl", "sem", "0 2").await, "timeout");
    assert_eq!(peer.ask("sn", "sem", &slots[1]).await, "ok 33");
    assert_eq!(peer.ask("sr", "sem", &slots[1]).await, "ok");
    assert_eq!(peer.ask("sw", "sem", "0").await, "error_not_enqueued", "the release cleared it");
}

#[tokio::test(start_paused = true)]
async fn malformed_requests_are_refused_and_the_connection_goes_on() {
    let mut peer = peer();
    let cases = [
        ("nope", "k", "1"),
        ("", "k", "1"),
        ("L", "k", "1"),
        (" l", "k", "1"),
        ("l ", "k", "1"),
        ("l", "", "1"),
        ("l", "a b", "1"),
        ("l", "a\tb", "1"),
        ("l", "k", ""),
        ("l", "k", "x"),
        ("l", "k", "1.0"),
        ("l", "k", "-1"),
        ("l", "k", "9223372037"),
        ("l", "k", "99999999999999999999"),
        ("l", "k", "1 0"),
        ("l", "k", "1 -1"),
        ("l", "k", "1 2 3"),
        ("sl", "k", "1"),
        ("sl", "k", "1 0"),
        ("sl", "k", "1 -2"),
        ("sl", "k", "1 2 3 4"),
        ("e", "k", "0"),
        ("e", "k", "1 2"),
        ("se", "k", ""),
        ("se", "k", "x"),
        ("w", "k", ""),
        ("w", "k", "-1"),
        ("w", "k", "1 2"),
        ("r", "k", ""),
        ("r", "k", " "),
        ("n", "k", ""),
        ("n", "k", "token 0"),
        ("n", "k", "token 1 2"),
    ];
    for (cmd, key, arg) in cases {
        assert_eq!(peer.ask(cmd, key, arg).await, "error", "{cmd:?} {key:?} {arg:?}");
    }
    assert!(peer.is_open().await);
    assert_eq!(peer.ask("stats", "a b", "x").await.matches("\"key\"").count(), 0, "nothing was taken");
}

#[tokio::test(start_paused = true)]
async fn what_only_looks_malformed_is_served() {
    let mut peer = peer();
    for arg in ["+0", "-0", " 0 ", "\u{a0}0\u{b}+5"] {
        let token = peer.token("l", "k", arg).await;
        assert_eq!(peer.ask("r", "k", &token).await, "ok", "{arg:?}");
    }
    for key in ["a\u{a0}b", "a\u{b}b", &"k".repeat(256)] {
        peer.token("l", key, "0").await;
    }
    peer.send(b"l\n\xff\xfe\n0\n").await;
    assert!(peer.line().await.starts_with("ok "));
    peer.send(b"ping\r\r\n_\r\n_\r\n").await;
    assert_eq!(peer.line().await, "ok");
}

#[tokio::test(start_paused = true)]
async fn a_line_over_its_cap_is_refused_and_ends_the_connection() {
    let long = "x".repeat(257);
    for frame in [format!("{long}\nk\n0\n"), format!("l\n{long}\n0\n"), format!("l\nk\n{long}\n")] {
        let mut peer = peer();
        peer.send(frame).await;
        assert_eq!(peer.rest().await, "error\n");
    }
    let mut peer = peer();
    peer.send(format!("auth\n_\n{}\nping\n_\n_\n", "t".repeat(64 * 1024))).await;
    assert_eq!((peer.line().await, peer.line().await), ("error".into(), "ok".into()));
    peer.send(format!("auth\n_\n{}\n", "t".repeat(64 * 1024 + 1))).await;
    assert_eq!(peer.rest().await, "error\n");
}

#[tokio::test(start_paused = true)]
async fn pipelined_frames_are_answered_in_order() {
    let mut peer = peer();
    peer.send("ping\n_\n_\nbad\n_\n_\nl\nk\n0\nl\nk\n1\nping\n_\n_\n").await;
    assert_eq!(peer.line().await, "ok");
    assert_eq!(peer.line().await, "error");
    assert!(peer.line().await.starts_with("ok "));
    let start = Instant::now();
    assert_eq!(peer.line().await, "timeout");
    assert_eq!(start.elapsed().as_secs(), 1, "a blocking command holds up those behind it");
    assert_eq!(peer.line().await, "ok");
}

#[tokio::test(start_paused = true)]
async fn bytes_may_come_one_at_a_time() {
    let mut peer = peer();
    for byte in b"l\nkey\n0 5\nping\n_\n_\n" {
        peer.send([*byte]).await;
        tokio::task::yield_now().await;
    }
    assert!(peer.line().await.ends_with(" 5"));
    assert_eq!(peer.line().await, "ok");
}

#[tokio::test(start_paused = true)]
async fn a_half_close_after_whole_frames_is_answered_and_after_a_part_is_not() {
    let mut peer = peer();
    peer.send("ping\n_\n_\nping\n_\n_\n").await;
    peer.0.shutdown().await.unwrap();
    assert_eq!(peer.rest().await, "ok\nok\n");
    let mut peer = self::peer();
    peer.send("ping\n_\n").await;
    peer.0.shutdown().await.unwrap();
    assert_eq!(peer.rest().await, "");
}

#[tokio::test(start_paused = true)]
async fn a_silent_or_slow_connection_is_ended_and_frees_what_it_holds() {
    let server = server(ServerConfig::default());
    let mut holder = connect(&server);
    holder.token("l", "k", "0 600").await;
    let start = Instant::now();
    assert_eq!(holder.rest().await, "error\n");
    assert_eq!(start.elapsed().as_secs(), 23);
    let mut slow = connect(&server);
    slow.token("l", "k", "0").await;
    let start = Instant::now();
    for _ in 0..4 {
        slow.send("x").await;
        advance(10 * S).await;
        if start.elapsed() > 25 * S {
            break;
        }
    }
    assert_eq!(slow.rest().await, "error\n", "a byte now and then is no line");
}

#[tokio::test(start_paused = true)]
async fn pings_keep_a_connection_and_waiting_needs_none() {
    let server = server(ServerConfig::default());
    let (mut holder, mut waiter) = (connect(&server), connect(&server));
    let token = holder.token("l", "k", "0 300").await;
    waiter.send("l\nk\n200\n").await;
    for _ in 0..8 {
        sleep(20 * S).await;
        assert!(holder.is_open().await);
    }
    assert_eq!(holder.ask("r", "k", &token).await, "ok");
    assert!(waiter.line().await.starts_with("ok "));
    sleep(20 * S).await;
    assert!(waiter.is_open().await, "the time limit of lines counts from the reply");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_goes_away_while_it_waits_leaves_the_queue_at_once() {
    let server = server(ServerConfig::default());
    let mut holder = connect(&server);
    let token = holder.token("l", "k", "0").await;
    let (mut gone, mut half, mut next) = (connect(&server), connect(&server), connect(&server));
    for waiter in [&mut gone, &mut half, &mut next] {
        waiter.send("l\nk\n100\n").await;
        sleep(S / 100).await;
    }
    drop(gone);
    half.0.shutdown().await.unwrap();
    sleep(S / 100).await;
    assert_eq!(server.stats().locks[0].waiters, 1);
    assert_eq!(holder.ask("r", "k", &token).await, "ok");
    assert!(next.line().await.starts_with("ok "));
    assert_eq!(half.rest().await, "");
}

#[tokio::test(start_paused = true)]
async fn an_expired_lease_is_handed_on_by_the_sweep() {
    let server = server(ServerConfig::default());
    let (mut holder, mut waiter) = (connect(&server), connect(&server));
    let token = holder.token("l", "k", "0 5").await;
    let start = Instant::now();
    let next = waiter.token("l", "k", "60").await;
    assert!((5..=6).contains(&start.elapsed().as_secs()));
    assert!(next > token);
    assert_eq!(holder.ask("n", "k", &token).await, "error");
    assert_eq!(holder.ask("r", "k", &token).await, "error");
}

#[tokio::test(start_paused = true)]
async fn thousands_of_leases_that_run_out_together_go_in_one_sweep_and_their_keys_in_one_collection() {
    const MANY: usize = 3000;
    let server = server(ServerConfig { max_locks: MANY, ..Default::default() });
    let mut holder = connect(&server);
    for number in 0..MANY {
        holder.token("l", &format!("k{number}"), "0 5").await;
    }
    let json = holder.ask("stats", "_", "_").await;
    let stats = StatsResult::from_json(json.strip_prefix("ok ").unwrap()).unwrap();
    assert_eq!(stats.locks.len(), MANY);
    assert_eq!(stats, server.stats());
    sleep(6 * S).await;
    assert!(server.stats().locks.is_empty());
    assert_eq!(server.stats().idle_locks.len(), MANY);
    sleep(65 * S).await;
    assert!(server.stats().idle_locks.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_enqueued_grant_counts_from_the_grant_and_its_wait_sets_it_anew() {
    let server = server(ServerConfig::default());
    let (mut holder, mut queued, mut third) = (connect(&server), connect(&server), connect(&server));
    let token = holder.token("l", "k", "0").await;
    assert_eq!(queued.ask("e", "k", "10").await, "queued");
    assert_eq!(holder.ask("r", "k", &token).await, "ok");
    sleep(8 * S).await;
    let token = queued.token("w", "k", "0").await;
    sleep(8 * S).await;
    assert_eq!(queued.ask("n", "k", &format!("{token} 10")).await, "ok 10");
    assert_eq!(queued.ask("r", "k", &token).await, "ok");
    let token = third.token("l", "k", "0").await;
    assert_eq!(queued.ask("e", "k", "10").await, "queued");
    assert_eq!(third.ask("r", "k", &token).await, "ok");
    sleep(12 * S).await;
    third.token("l", "k", "0").await;
    assert_eq!(queued.ask("w", "k", "0").await, "error_lease_expired");
    assert_eq!(queued.ask("w", "k", "0").await, "error_not_enqueued");
}

#[tokio::test(start_paused = true)]
async fn without_auto_release_a_lease_outlives_its_connection() {
    let server = server(ServerConfig { auto_release_on_disconnect: false, ..Default::default() });
    let mut holder = connect(&server);
    let token = holder.token("l", "k", "0 30").await;
    drop(holder);
    sleep(S).await;
    let mut other = connect(&server);
    assert_eq!(other.ask("l", "k", "0").await, "timeout");
    assert_eq!(other.ask("n", "k", &format!("{token} 30")).await, "ok 30");
    assert_eq!(other.ask("r", "k", &token).await, "ok");
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_finds_its_waiter_gone_is_handed_on_also_without_auto_release() {
    let config = ServerConfig { auto_release_on_disconnect: false, ..Default::default() };
    let server = server(config);
    let (mut holder, mut waiter, mut next) = (connect(&server), connect(&server), connect(&server));
    let token = holder.token("l", "k", "0").await;
    waiter.send("l\nk\n100\n").await;
    sleep(S / 100).await;
    next.send("l\nk\n100\n").await;
    sleep(S / 100).await;
    holder.send(format!("r\nk\n{token}\n")).await;
    drop(waiter);
    let start = Instant::now();
    assert!(next.line().await.starts_with("ok "));
    assert!(start.elapsed() < 2 * S, "the lease of 33 s was not waited for");
}

#[tokio::test(start_paused = true)]
async fn the_caps_have_their_statuses() {
    let server = server(ServerConfig { max_locks: 1, max_waiters: 1, ..Default::default() });
    let (mut one, mut two, mut three) = (connect(&server), connect(&server), connect(&server));
    let token = one.token("l", "a", "0").await;
    assert_eq!(one.ask("l", "b", "0").await, "error_max_locks");
    assert_eq!(one.ask("se", "b", "2").await, "error_max_locks");
    two.send("l\na\n100\n").await;
    sleep(S / 100).await;
    assert_eq!(three.ask("l", "a", "5").await, "error_max_waiters");
    assert_eq!(three.ask("l", "a", "0").await, "error_max_waiters");
    assert_eq!(three.ask("e", "a", "").await, "error_max_waiters");
    assert_eq!(one.ask("r", "a", &token).await, "ok");
    let token = two.line().await.split(' ').nth(1).unwrap().to_owned();
    assert_eq!(two.ask("r", "a", &token).await, "ok");
    assert_eq!(one.ask("l", "b", "0").await, "error_max_locks", "an idle key counts");
    for _ in 0..4 {
        sleep(20 * S).await;
        assert!(one.is_open().await);
    }
    one.token("l", "b", "0").await;
}

#[tokio::test(start_paused = true)]
async fn authentication_comes_first() {
    let config = ServerConfig { auth_token: Some("s3cret".into()), ..Default::default() };
    let server = server(config);
    let mut peer = connect(&server);
    assert_eq!(peer.ask("auth", "_", "s3cret").await, "ok");
    assert!(peer.is_open().await);
    for frame in ["auth\n_\ns3cres\n", "auth\n_\ns3cret!\n", "auth\n_\n\n", "ping\n_\n_\n", "nope\n_\n_\n"] {
        let mut peer = connect(&server);
        let start = Instant::now();
        peer.send(frame).await;
        peer.send("ping\n_\n_\n").await;
        assert_eq!(peer.rest().await, "error_auth\n", "{frame:?}");
        assert_eq!(start.elapsed().as_millis(), 100, "{frame:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn stats_are_one_line_of_json_with_all_keys() {
    let server = server(ServerConfig::default());
    let (mut one, mut two) = (connect(&server), connect(&server));
    assert!(one.is_open().await && two.is_open().await);
    assert_eq!(
        one.ask("stats", "", "").await,
        r#"ok {"connections":2,"locks":[],"semaphores":[],"idle_locks":[],"idle_semaphores":[]}"#
    );
    one.token("l", "a", "0 10").await;
    one.token("sl", "s", "0 3").await;
    two.send("l\na\n100\n").await;
    sleep(S).await;
    let stats = one.ask("stats", "_", "_").await;
    let json: serde_json::Value = serde_json::from_str(stats.strip_prefix("ok ").unwrap()).unwrap();
    assert_eq!(json["locks"][0]["key"], "a");
    assert_eq!(json["locks"][0]["owner_conn_id"], 1);
    assert_eq!(json["locks"][0]["lease_expires_in_s"], 9.0);
    assert_eq!(json["locks"][0]["waiters"], 1);
    assert_eq!(
        json["semaphores"][0],
        serde_json::json!({"key": "s", "limit": 3, "holders": 1, "waiters": 0})
    );
}

#[tokio::test(start_paused = true)]
async fn a_graceful_stop_drains() {
    let server = server(ServerConfig { shutdown_timeout: 10 * S, ..Default::default() });
    let (mut holder, mut waiter, mut idle) = (connect(&server), connect(&server), connect(&server));
    let token = holder.token("l", "k", "0 100").await;
    waiter.send("l\nk\n100\n").await;
    assert!(idle.is_open().await);
    sleep(S / 100).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stopping = tokio::spawn({
        let server = server.clone();
        async move { server.serve(listener, std::future::ready(())).await }
    });
    assert_eq!(waiter.rest().await, "error_draining\n");
    assert_eq!(idle.rest().await, "");
    for (cmd, arg) in [("l", "0"), ("sl", "0 2"), ("e", ""), ("se", "2"), ("w", "0"), ("sw", "0")] {
        assert_eq!(holder.ask(cmd, "x", arg).await, "error_draining", "{cmd}");
    }
    assert!(holder.is_open().await);
    assert!(holder.ask("stats", "_", "_").await.starts_with("ok {"));
    assert_eq!(holder.ask("n", "k", &token).await, "ok 33");
    assert_eq!(holder.ask("r", "k", &token).await, "ok");
    assert_eq!(holder.rest().await, "", "it has released, so its connection may close");
    stopping.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_with_its_timeout_whoever_holds_on() {
    let server = server(ServerConfig { shutdown_timeout: 10 * S, ..Default::default() });
    let mut holder = connect(&server);
    holder.token("l", "k", "0 100").await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let start = Instant::now();
    server.serve(listener, std::future::ready(())).await;
    assert_eq!(start.elapsed().as_secs(), 10);
    assert_eq!(holder.rest().await, "");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_read_is_ended() {
    let server = server(ServerConfig::default());
    let (near, far) = tokio::io::duplex(64);
    let serving = tokio::spawn({
        let server = server.clone();
        async move { server.serve_stream(far).await }
    });
    let mut peer = Peer(near);
    let start = Instant::now();
    let _ = timeout(60 * S, peer.0.write_all("ping\n_\n_\n".repeat(1000).as_bytes())).await;
    serving.await.unwrap();
    assert!(start.elapsed() < 10 * S);
    assert_eq!(server.stats().connections, 0);
}
