//! Authentication byte by byte: what counts as the token, what may follow it, and the reply to a connection
//! that ends before it. Over pipes, in virtual time.

use dflockd_client::server::{Server, ServerConfig};
use tokio::time::{Instant, sleep};

use crate::wire::{Peer, S, Serving, connect, server, settle};

const AUTH: &str = "auth\n_\ns3cret\n";

fn guarded() -> Server {
    server(ServerConfig { auth_token: Some("s3cret".into()), ..Default::default() })
}

/// Returns the replies to a peer that sends this and then no more, and the time until the server closes if
/// the peer does not.
async fn replies_to(server: &Server, frames: impl AsRef<[u8]>, half_close: bool) -> (String, u128) {
    let mut peer = connect(server);
    let start = Instant::now();
    peer.send(frames).await;
    if half_close {
        peer.half_close().await;
    }
    (peer.rest().await, start.elapsed().as_millis())
}

async fn authenticated(server: &Server) -> Peer {
    let mut peer = connect(server);
    assert_eq!(peer.ask("auth", "_", "s3cret").await, "ok");
    peer
}

fn refused() -> (String, u128) {
    ("error_auth\n".into(), 100)
}

#[tokio::test(start_paused = true)]
async fn white_space_round_the_token_does_not_count_and_inside_it_does() {
    let server = guarded();
    for arg in [" s3cret ", "\t \ts3cret", "s3cret\r", " s3cret \r\r", "\u{a0}s3cret\u{b}\u{2003}"] {
        assert_eq!(connect(&server).ask("auth", "_", arg).await, "ok", "{arg:?}");
    }
    for arg in ["s3 cret", "s3cret x", "S3cret", "", " ", "s3cret\u{200b}", "\"s3cret\""] {
        assert_eq!(replies_to(&server, format!("auth\n_\n{arg}\n"), false).await, refused(), "{arg:?}");
    }
    for arg in [&b"\xff"[..], b"s3cret\xff", b"\xc2s3cret", b"s3cret\xa0"] {
        let frame = [b"auth\n_\n", arg, b"\n"].concat();
        assert_eq!(replies_to(&server, frame, false).await, refused(), "{arg:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn white_space_round_the_token_that_is_configured_does_not_count_either() {
    let server = self::server(ServerConfig { auth_token: Some(" s3 cret ".into()), ..Default::default() });
    for arg in ["s3 cret", " s3 cret "] {
        assert_eq!(connect(&server).ask("auth", "_", arg).await, "ok", "{arg:?}");
    }
    for token in [" ", "\t"] {
        let blank = ServerConfig { auth_token: Some(token.into()), ..Default::default() };
        assert!(Server::new(blank).unwrap_err().to_string().contains("auth_token is empty"), "{token:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_further_auth_right_or_wrong_is_an_error_and_the_connection_goes_on_with_what_it_holds() {
    let server = guarded();
    let mut peer = authenticated(&server).await;
    let token = peer.token("l", "k", "0 600").await;
    for arg in ["s3cret", " s3cret ", "wrong", "", &"x".repeat(64 * 1024)] {
        assert_eq!(peer.ask("auth", "_", arg).await, "error", "{} bytes", arg.len());
    }
    sleep(S).await;
    assert_eq!(peer.ask("n", "k", &token).await, "ok 33");
    assert_eq!(peer.ask("r", "k", &token).await, "ok");
}

#[tokio::test(start_paused = true)]
async fn a_half_close_before_the_end_of_the_auth_frame_is_refused_whichever_byte_it_comes_at() {
    let server = guarded();
    for at in 0..AUTH.len() {
        assert_eq!(replies_to(&server, &AUTH[..at], true).await, refused(), "after {:?}", &AUTH[..at]);
        // Each byte on its own.
        let mut peer = connect(&server);
        for byte in AUTH[..at].bytes() {
            peer.send([byte]).await;
            settle().await;
        }
        peer.half_close().await;
        assert_eq!(peer.rest().await, "error_auth\n", "after {:?}", &AUTH[..at]);
    }
    assert_eq!(replies_to(&server, AUTH, true).await, ("ok\n".into(), 0));
    for behind in ["p", "ping\n", "ping\n_\n", "ping\n_\n_"] {
        let reply = replies_to(&server, format!("{AUTH}{behind}"), true).await;
        assert_eq!(reply, ("ok\n".into(), 0), "a part of a later frame is dropped: {behind:?}");
    }
    settle().await;
    assert_eq!(server.stats().connections, 0);
}

#[tokio::test(start_paused = true)]
async fn anything_malformed_before_the_auth_frame_is_refused() {
    let server = guarded();
    let (long, longer) = ("x".repeat(300), "x".repeat(64 * 1024 + 1));
    let frames = [
        format!("auth\n{long}\ns3cret\n"),
        format!("{long}\n_\ns3cret\n"),
        format!("auth\n_\n{longer}\n"),
        format!("l\nk\n{long}\n"),
        format!("auth\n_\n{}s3cret{}\n", " ".repeat(64 * 1024), " "),
        "\n\n\n".into(),
        "AUTH\n_\ns3cret\n".into(),
        "auth \n_\ns3cret\n".into(),
        "nope\n_\n_\n".into(),
        "l\n\n0\n".into(),
        "l\nk\nx\n".into(),
        "ping\n_\n_\n".into(),
        "stats\n_\n_\n".into(),
    ];
    for frame in frames {
        let shown: String = frame.chars().take(20).collect();
        assert_eq!(replies_to(&server, &frame, false).await, refused(), "{shown:?}");
        let followed = format!("{frame}{AUTH}ping\n_\n_\n");
        assert_eq!(replies_to(&server, &followed, false).await, refused(), "{shown:?} and more");
    }
    assert_eq!(server.stats().idle_locks.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_line_over_its_cap_that_a_half_close_ends_is_answered() {
    let (open, guarded) = (server(ServerConfig::default()), guarded());
    let long = "x".repeat(257);
    for begun in [long.clone(), format!("l\n{long}"), format!("l\nk\n{long}"), format!("ping\n_\n_\n{long}")]
    {
        let before = if begun.starts_with("ping") { "ok\n" } else { "" };
        let answered = (format!("{before}error\n"), 0);
        assert_eq!(replies_to(&open, &begun, true).await, answered);
        let after = (format!("ok\n{before}error\n"), 0);
        assert_eq!(replies_to(&guarded, format!("{AUTH}{begun}"), true).await, after);
        assert_eq!(replies_to(&guarded, &begun, true).await, refused());
    }
    for fits in ["x".repeat(256), format!("l\n{}", "x".repeat(256)), format!("auth\n_\n{long}")] {
        assert_eq!(
            replies_to(&open, &fits, true).await,
            (String::new(), 0),
            "it is within its cap, and dropped"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_without_a_token_refuses_every_auth_and_goes_on() {
    let server = server(ServerConfig::default());
    let mut peer = connect(&server);
    for arg in ["s3cret", "", " "] {
        assert_eq!(peer.ask("auth", "_", arg).await, "error", "{arg:?}");
    }
    assert!(peer.is_open().await);
    for at in 0..AUTH.len() {
        assert_eq!(replies_to(&server, &AUTH[..at], true).await, (String::new(), 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_closes_at_once_a_connection_that_has_sent_half_a_request() {
    for begun in ["", "l", "l\n", "l\nk", "l\nk\n", "l\nk\n0", &"x".repeat(1000)] {
        let server = server(ServerConfig::default());
        let mut serving = Serving::start(&server);
        let mut peer = serving.connect_from([1; 4]);
        peer.send(begun).await;
        settle().await;
        let start = Instant::now();
        serving.stop();
        serving.task.await.unwrap();
        assert!(start.elapsed() < S, "{begun:?}: {:?}", start.elapsed());
        assert_eq!(peer.rest().await, "", "{begun:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_lets_a_holder_finish_the_request_that_it_has_begun() {
    let server = server(ServerConfig::default());
    let mut serving = Serving::start(&server);
    let mut peer = serving.connect_from([1; 4]);
    let token = peer.token("l", "k", "0 600").await;
    peer.send("r\nk").await;
    settle().await;
    serving.stop();
    sleep(5 * S).await;
    peer.send(format!("\n{token}\n")).await;
    assert_eq!(peer.rest().await, "ok\n");
    serving.task.await.unwrap();
}
