//! The side that ends a connection decides when its keys are free: at once if the peer ended it, and not
//! before the read timeout if the server did. Over pipes, in virtual time.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use dflockd_client::server::{Server, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::wire::{Peer, S, Serving, connect, connect_by, granted, server, settle};

/// Returns a holder of `k` that requests more than its pipe accepts, and does not read.
async fn deaf(server: &Server, lease: u64) -> (Peer, String) {
    let mut peer = connect_by(server, 64);
    let token = peer.token("l", "k", &format!("0 {lease}")).await;
    peer.send("ping\n_\n_\n".repeat(25)).await;
    settle().await;
    (peer, token)
}

/// Returns the seconds until `k` is granted to a waiter.
async fn handed_on_after(server: &Server) -> u64 {
    let start = Instant::now();
    let mut waiter = connect(server);
    waiter.token("l", "k", "1000").await;
    start.elapsed().as_secs()
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_read_is_closed_by_the_write_timeout_and_keeps_its_keys_until_the_read_timeout()
{
    let server = server(ServerConfig::default());
    let (_peer, _) = deaf(&server, 600).await;
    let start = Instant::now();
    sleep(6 * S).await;
    assert_eq!(server.stats().connections, 0, "the connection has gone");
    let mut other = connect(&server);
    assert_eq!(other.ask("l", "k", "0").await, "timeout", "what it held has not");
    assert_eq!(server.stats().locks.len(), 1);
    other.token("l", "k", "1000").await;
    assert!((22..=24).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_counts_from_the_last_request_and_not_from_the_first() {
    let config = ServerConfig { lease_sweep_interval: 1000 * S, ..Default::default() };
    let server = server(config);
    let mut peer = connect_by(&server, 64);
    peer.token("l", "k", "0 600").await;
    for _ in 0..3 {
        sleep(15 * S).await;
        assert!(peer.is_open().await);
    }
    peer.send("ping\n_\n_\n".repeat(25)).await;
    sleep(22 * S).await;
    let mut other = connect(&server);
    assert_eq!(other.ask("l", "k", "0").await, "timeout");
    sleep(S).await;
    // The next request finds the key free: no sweep is needed.
    other.token("l", "k", "0").await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_expires_sooner_is_not_kept_longer() {
    let server = server(ServerConfig::default());
    let (_peer, _) = deaf(&server, 9).await;
    assert!((8..=10).contains(&handed_on_after(&server).await));
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_kept_is_released_by_its_token_from_any_connection() {
    let server = server(ServerConfig::default());
    let (_peer, token) = deaf(&server, 600).await;
    sleep(6 * S).await;
    let mut other = connect(&server);
    assert_eq!(other.ask("r", "k", &token).await, "ok");
    other.token("l", "k", "0").await;
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_kept_and_renewed_over_another_connection_keeps_the_lease_that_the_answer_states() {
    let server = server(ServerConfig::default());
    let (_peer, token) = deaf(&server, 600).await;
    sleep(6 * S).await;
    let mut other = connect(&server);
    assert_eq!(other.ask("n", "k", &format!("{token} 60")).await, "ok 60");
    assert!((59..=61).contains(&handed_on_after(&server).await));
}

#[tokio::test(start_paused = true)]
async fn waiters_and_grants_that_were_not_delivered_go_at_once() {
    let server = server(ServerConfig::default());
    let (mut one, mut two) = (connect(&server), connect(&server));
    let busy = one.token("l", "busy", "0 600").await;
    let mut peer = connect_by(&server, 64);
    assert_eq!(peer.ask("e", "busy", "600").await, "queued");
    // The first reply fits into the pipe, the second does not, so only the first grant reached the peer.
    peer.send("l\nknown\n0 600\nl\nunknown\n0 600\n").await;
    sleep(6 * S).await;
    two.token("l", "unknown", "0").await;
    assert_eq!(two.ask("l", "known", "0").await, "timeout");
    assert_eq!(one.ask("r", "busy", &busy).await, "ok");
    two.token("l", "busy", "0").await;
}

#[tokio::test(start_paused = true)]
async fn without_auto_release_the_whole_lease_is_kept() {
    let config = ServerConfig { auto_release_on_disconnect: false, ..Default::default() };
    let server = server(config);
    let (_peer, _) = deaf(&server, 100).await;
    assert!((99..=101).contains(&handed_on_after(&server).await));
}

#[tokio::test(start_paused = true)]
async fn a_thousand_connections_that_do_not_read_keep_no_more_than_the_server_allows_and_it_comes_back() {
    let config = ServerConfig {
        max_locks: 1000,
        gc_interval: S,
        gc_max_idle: std::time::Duration::ZERO,
        ..Default::default()
    };
    let server = server(config);
    let mut crowd = Vec::new();
    for nth in 0..1000 {
        let mut peer = connect_by(&server, 64);
        peer.token("l", &format!("k{nth}"), "0 600").await;
        peer.send("ping\n_\n_\n".repeat(25)).await;
        crowd.push(peer);
    }
    sleep(6 * S).await;
    let mut good = connect(&server);
    assert!(good.is_open().await);
    let stats = server.stats();
    assert_eq!((stats.connections, stats.locks.len()), (1, 1000));
    assert_eq!(good.ask("l", "k", "0").await, "error_max_locks", "connections that were given up count");
    assert_eq!(good.ask("l", "k1", "0").await, "timeout");
    sleep(20 * S).await;
    let stats = server.stats();
    assert_eq!((stats.locks.len(), stats.idle_locks.len()), (0, 0));
    drop(crowd);
}

/// A stream that sends some requests, drops the replies, and then ends in a given way.
struct Scripted {
    requests: VecDeque<u8>,
    end: fn() -> io::Result<()>,
    after: Pin<Box<tokio::time::Sleep>>,
}

impl AsyncRead for Scripted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.requests.is_empty() {
            return self.after.as_mut().poll(cx).map(|()| (self.end)());
        }
        let n = self.requests.len().min(buf.remaining());
        buf.put_slice(&self.requests.drain(..n).collect::<Vec<_>>());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Scripted {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Returns a connection that takes `k`, and 10 s later ends in this way.
fn ends(server: &Server, requests: &str, end: fn() -> io::Result<()>) -> JoinHandle<()> {
    let requests = requests.bytes().collect();
    let stream = Scripted { requests, end, after: Box::pin(sleep(10 * S)) };
    let server = server.clone();
    tokio::spawn(async move { server.serve_stream(stream).await })
}

const TAKES_K: &str = "l\nk\n0 600\n";

#[tokio::test(start_paused = true)]
async fn an_end_that_the_peer_made_frees_at_once_and_any_other_with_the_read_timeout() {
    type End = fn() -> io::Result<()>;
    let by_peer: [(&str, End); 4] = [
        ("the end of the stream", || Ok(())),
        ("a reset", || Err(io::ErrorKind::ConnectionReset.into())),
        ("a pipe that broke", || Err(io::ErrorKind::BrokenPipe.into())),
        ("an end without a TLS farewell", || Err(io::ErrorKind::UnexpectedEof.into())),
    ];
    let by_server: [(&str, End); 5] = [
        ("a timeout of the system's", || Err(io::ErrorKind::TimedOut.into())),
        ("a host that cannot be reached", || Err(io::ErrorKind::HostUnreachable.into())),
        ("an abort of the system's", || Err(io::ErrorKind::ConnectionAborted.into())),
        ("a record that cannot be read", || Err(io::ErrorKind::InvalidData.into())),
        ("a panic", || panic!("the stream panics, as a connection with a fault would")),
    ];
    let both = by_peer.map(|case| (case, 9..=11)).into_iter().chain(by_server.map(|case| (case, 22..=24)));
    for ((what, end), seconds) in both {
        let server = server(ServerConfig::default());
        let serving = ends(&server, TAKES_K, end);
        settle().await;
        let after = handed_on_after(&server).await;
        assert!(seconds.contains(&after), "{what}: handed on after {after} s");
        assert_eq!(serving.await.is_err(), what == "a panic");
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_whose_task_is_dropped_keeps_what_its_peer_may_count_on() {
    let server = server(ServerConfig::default());
    let serving = ends(&server, TAKES_K, || Ok(()));
    sleep(3 * S).await;
    serving.abort();
    assert!((19..=21).contains(&handed_on_after(&server).await));
}

#[tokio::test(start_paused = true)]
async fn the_read_timeout_and_a_line_over_its_cap_free_at_once() {
    for (behind, seconds) in [("", 22..=23), (&*format!("{}\n", "x".repeat(300)), 0..=1)] {
        let server = server(ServerConfig::default());
        let mut peer = connect(&server);
        peer.token("l", "k", "0 600").await;
        peer.send(behind).await;
        settle().await;
        let after = handed_on_after(&server).await;
        assert!(seconds.contains(&after), "{behind:?}: {after} s");
        assert_eq!(peer.rest().await, "error\n");
    }
}

#[tokio::test(start_paused = true)]
async fn a_half_close_while_a_command_waits_frees_what_the_connection_holds_at_once() {
    let server = server(ServerConfig::default());
    let (mut one, mut two) = (connect(&server), connect(&server));
    one.token("l", "busy", "0 600").await;
    two.token("l", "k", "0 600").await;
    two.send("l\nbusy\n100\n").await;
    settle().await;
    two.half_close().await;
    assert_eq!(handed_on_after(&server).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_graceful_stop_waits_for_what_is_kept() {
    for (timeout_s, after) in [(0, 22..=24), (30, 22..=24), (10, 10..=10)] {
        let server = server(ServerConfig { shutdown_timeout: timeout_s * S, ..Default::default() });
        let (_peer, _) = deaf(&server, 600).await;
        let start = Instant::now();
        sleep(6 * S).await;
        assert_eq!(server.stats().connections, 0);
        let mut serving = Serving::start(&server);
        let start = if timeout_s == 10 { Instant::now() } else { start };
        serving.stop();
        serving.task.await.unwrap();
        assert!(after.contains(&start.elapsed().as_secs()), "{timeout_s}: {:?}", start.elapsed());
    }
    let server = server(ServerConfig::default());
    let (_peer, token) = deaf(&server, 600).await;
    sleep(6 * S).await;
    let mut serving = Serving::start(&server);
    let mut other = serving.connect_from([1; 4]);
    assert_eq!(other.ask("r", "k", &token).await, "ok");
    serving.stop();
    timeout(S, serving.task).await.expect("nothing is kept").unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_million_bytes_of_requests_after_the_grant_do_not_shorten_what_is_kept() {
    // The peer keeps sending and reads nothing. What the server has read counts; what it has not read yet
    // does not.
    let server = server(ServerConfig::default());
    let mut peer = connect_by(&server, 4096);
    let reply = peer.ask("l", "k", "0 600").await;
    granted(&reply);
    let sending = tokio::spawn(async move {
        let _ = timeout(
            30 * S,
            tokio::io::AsyncWriteExt::write_all(&mut peer.0, &b"ping\n_\n_\n".repeat(100_000)),
        )
        .await;
        peer
    });
    settle().await;
    assert!((22..=24).contains(&handed_on_after(&server).await));
    drop(sending.await.unwrap());
}
