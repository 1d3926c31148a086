//! Two events at once on a connection: a grant and its waiter's end, a stop and a request, a reply and a
//! peer that no longer reads. Over pipes, in virtual time.

use dflockd_client::server::ServerConfig;
use tokio::time::{Instant, sleep};

use crate::wire::{Peer, S, Serving, connect, connect_by, granted, server, settle};

fn keeping() -> ServerConfig {
    ServerConfig { auto_release_on_disconnect: false, ..Default::default() }
}

#[tokio::test(start_paused = true)]
async fn a_half_close_behind_a_command_that_blocks_takes_it_out_of_the_queue() {
    let server = server(ServerConfig::default());
    let mut holder = connect(&server);
    let token = holder.token("l", "k", "0").await;
    let mut half = connect(&server);
    half.send("ping\n_\n_\nl\nk\n100\nping\n_\n_\n").await;
    half.half_close().await;
    let start = Instant::now();
    assert_eq!(
        half.rest().await,
        "ok\n",
        "earlier requests get replies; the wait and what is behind it do not"
    );
    assert!(start.elapsed() < S);
    assert!(server.stats().locks[0].waiters == 0);
    assert_eq!(holder.ask("r", "k", &token).await, "ok");
}

#[tokio::test(start_paused = true)]
async fn a_half_close_behind_commands_that_need_not_wait_gets_all_replies() {
    let server = server(ServerConfig::default());
    let mut half = connect(&server);
    half.send("l\nk\n100\nl\nk\n0\ne\nother\n\nbad\n\n\nw\nother\n9\n").await;
    half.half_close().await;
    let replies = half.rest().await;
    let replies: Vec<&str> = replies.lines().collect();
    assert_eq!(replies.len(), 5, "{replies:?}");
    let token = granted(replies[2]);
    granted(replies[0]);
    assert_eq!((replies[1], replies[3], granted(replies[4])), ("timeout", "error", token));
    settle().await;
    assert_eq!(server.stats().idle_locks.len(), 2, "and then it is gone");
}

#[tokio::test(start_paused = true)]
async fn a_grant_and_its_waiters_end_at_one_moment_pass_the_key_on() {
    // Ten times, because the order in which the two are seen must not matter.
    for round in 0..10 {
        let server = server(keeping());
        let (mut holder, mut waiter, mut next) = (connect(&server), connect(&server), connect(&server));
        let token = holder.token("l", "k", "0").await;
        waiter.send("l\nk\n100\n").await;
        settle().await;
        next.send("l\nk\n100\n").await;
        settle().await;
        holder.send(format!("r\nk\n{token}\n")).await;
        waiter.half_close().await;
        let start = Instant::now();
        granted(&next.line().await);
        assert!(start.elapsed() < S, "round {round}: the lease of 33 s was waited for");
        assert_eq!(waiter.rest().await, "", "round {round}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_ends_as_its_time_runs_out_is_a_grant_or_a_timeout_but_never_both() {
    for early_ms in [0, 1] {
        let server = server(ServerConfig::default());
        let (mut holder, mut waiter) = (connect(&server), connect(&server));
        let token = holder.token("l", "k", "0").await;
        waiter.send("l\nk\n5\n").await;
        sleep(5 * S - std::time::Duration::from_millis(early_ms)).await;
        holder.send(format!("r\nk\n{token}\n")).await;
        let reply = waiter.line().await;
        assert_eq!(holder.line().await, "ok");
        let held = server.stats().locks.len();
        assert_eq!(held, usize::from(reply != "timeout"), "{reply}");
        assert!(waiter.is_open().await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_was_written_whole_is_kept_when_a_later_reply_cannot_be() {
    let server = server(keeping());
    let mut peer = connect_by(&server, 64);
    // The peer reads nothing after the grant, so the pipe fills and the write times out.
    peer.send("l\nk\n0 600\n").await;
    peer.send("stats\n_\n_\n".repeat(6)).await;
    let reply = peer.line().await;
    let token = granted(&reply);
    sleep(10 * S).await;
    assert_eq!(server.stats().connections, 0, "it was closed");
    let mut other = connect(&server);
    assert_eq!(other.ask("l", "k", "0").await, "timeout", "the peer knows its token: it is still held");
    assert_eq!(other.ask("r", "k", token).await, "ok");
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_was_written_in_part_is_undone() {
    let server = server(keeping());
    // The reply to a grant has 40 bytes: this pipe accepts the first and half of the second.
    let mut peer = connect_by(&server, 64);
    peer.send("l\na\n0 600\nl\nb\n0 600\n").await;
    sleep(10 * S).await;
    assert_eq!(server.stats().connections, 0, "it was closed");
    let stats = server.stats();
    assert_eq!((&*stats.locks[0].key, &*stats.idle_locks[0].key), ("a", "b"));
    let mut seen = vec![0; 64];
    tokio::io::AsyncReadExt::read_exact(&mut peer.0, &mut seen).await.unwrap();
    assert!(seen[..40].ends_with(b" 600\n") && seen[40..].starts_with(b"ok "));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_comes_together_with_the_stop_is_answered() {
    for round in 0..20 {
        let server = server(ServerConfig::default());
        let mut serving = Serving::start(&server);
        let mut peer = serving.connect_from([1; 4]);
        assert!(peer.is_open().await);
        serving.stop();
        // No other task runs before this is sent, so the connection sees both at once.
        peer.send("l\nk\n9\nping\n_\n_\n").await;
        assert!(
            matches!(&*peer.rest().await, "error_draining\nok\n"),
            "round {round}: the request had come before the stop"
        );
        serving.task.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_refuses_registered_waits_and_takes_back_grants_that_nobody_collected() {
    let server = server(ServerConfig { shutdown_timeout: std::time::Duration::ZERO, ..Default::default() });
    let mut serving = Serving::start(&server);
    let (mut holder, mut queued, mut enqueued) =
        (serving.connect_from([1; 4]), serving.connect_from([1; 4]), serving.connect_from([1; 4]));
    let token = holder.token("l", "k", "0 1000").await;
    assert_eq!(queued.ask("e", "k", "1000").await, "queued");
    let own = enqueued.token("e", "own", "1000").await;
    assert_eq!(holder.ask("r", "k", &token).await, "ok");
    serving.stop();
    assert_eq!(queued.rest().await, "", "it holds nothing that it could release");
    for cmd in ["w", "sw"] {
        assert_eq!(enqueued.ask(cmd, "own", "5").await, "error_draining");
    }
    assert_eq!(enqueued.ask("n", "own", &own).await, "ok 33");
    assert!(!serving.task.is_finished());
    assert_eq!(enqueued.ask("r", "own", &own).await, "ok");
    assert_eq!(enqueued.rest().await, "");
    serving.task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stop_without_a_time_limit_waits_for_leases_to_run_out() {
    let server = server(ServerConfig { shutdown_timeout: std::time::Duration::ZERO, ..Default::default() });
    let mut serving = Serving::start(&server);
    let mut holder = serving.connect_from([1; 4]);
    holder.token("l", "k", "0 100").await;
    serving.stop();
    let start = Instant::now();
    for _ in 0..9 {
        sleep(10 * S).await;
        assert!(holder.is_open().await);
    }
    assert!(!serving.task.is_finished());
    assert_eq!(holder.rest().await, "");
    serving.task.await.unwrap();
    assert!((100..=102).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_holder_released_by_another_connection_is_closed_by_the_stop() {
    let server = server(ServerConfig { shutdown_timeout: std::time::Duration::ZERO, ..Default::default() });
    let mut serving = Serving::start(&server);
    let (mut one, mut two) = (serving.connect_from([1; 4]), serving.connect_from([1; 4]));
    let (first, second) = (one.token("l", "a", "0").await, two.token("l", "b", "0").await);
    serving.stop();
    settle().await;
    assert_eq!(two.ask("r", "a", &first).await, "ok");
    assert_eq!(one.rest().await, "");
    assert_eq!(two.ask("r", "b", &second).await, "ok");
    serving.task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn nothing_is_done_for_a_peer_that_did_not_authenticate() {
    let server = server(ServerConfig { auth_token: Some("right".into()), ..Default::default() });
    for frames in ["l\nk\n0\n", "auth\n_\nwrong\nl\nk\n0\n", "bad\n_\n_\nauth\n_\nright\nl\nk\n0\n"] {
        let mut peer = connect(&server);
        peer.send(frames).await;
        assert_eq!(peer.rest().await, "error_auth\n", "{frames:?}");
    }
    assert_eq!(server.stats().locks.len() + server.stats().idle_locks.len(), 0);
    let mut peer = connect(&server);
    peer.send("auth\nany key\nright\nbad\n_\n_\nl\nk\n0\n").await;
    assert_eq!((peer.line().await, peer.line().await), ("ok".into(), "error".into()));
    granted(&peer.line().await);
}

#[tokio::test(start_paused = true)]
async fn an_over_long_line_ends_with_its_end_and_takes_the_frames_behind_it_along() {
    let server = server(ServerConfig::default());
    let mut peer = connect(&server);
    peer.send("ping\n_\n_\n").await;
    for _ in 0..1000 {
        peer.send("x".repeat(1000)).await;
    }
    assert_eq!(peer.line().await, "ok");
    let start = Instant::now();
    sleep(S).await;
    peer.send("\nl\nk\n0\n").await;
    assert_eq!(peer.rest().await, "error\n");
    assert_eq!(start.elapsed().as_secs(), 1, "only at the line's end");
    assert_eq!(server.stats().locks.len(), 0);
    let mut cut = connect(&server);
    cut.send("x".repeat(1000)).await;
    cut.half_close().await;
    assert_eq!(cut.rest().await, "error\n", "the end of the stream ends the line");
}

#[tokio::test(start_paused = true)]
async fn a_release_by_another_connection_leaves_the_first_ones_other_grants_alone() {
    let server = server(ServerConfig::default());
    let (mut one, mut two) = (connect(&server), connect(&server));
    let slots = [one.token("sl", "s", "0 2").await, one.token("sl", "s", "0 2").await];
    assert_eq!(two.ask("sr", "s", &slots[0]).await, "ok");
    assert_eq!(one.ask("sr", "s", &slots[0]).await, "error");
    let third = two.token("sl", "s", "0 2").await;
    drop(one);
    settle().await;
    assert_eq!(two.ask("sn", "s", &third).await, "ok 33", "a disconnect frees its own alone");
    assert_eq!(two.ask("sn", "s", &slots[1]).await, "error");
}

#[tokio::test(start_paused = true)]
async fn a_command_may_wait_for_the_longest_time_there_is() {
    let server = server(ServerConfig::default());
    let (mut holder, mut waiter) = (connect(&server), connect(&server));
    let token = holder.token("l", "k", "0 9223372036").await;
    waiter.send("l\nk\n9223372036 9223372036\n").await;
    for _ in 0..10 {
        sleep(20 * S).await;
        assert!(holder.is_open().await);
    }
    assert_eq!(server.stats().locks[0].waiters, 1);
    assert_eq!(holder.ask("r", "k", &token).await, "ok");
    assert!(waiter.line().await.ends_with(" 9223372036"));
}

#[tokio::test(start_paused = true)]
async fn frames_read_ahead_of_a_wait_are_served_after_it_in_order() {
    let server = server(ServerConfig::default());
    let (mut holder, mut waiter) = (connect(&server), connect(&server));
    let token = holder.token("l", "k", "0").await;
    waiter.send("l\nk\n50\n").await;
    settle().await;
    // More than the server reads ahead, so that it must read the rest later.
    let pings = 20_000;
    let Peer(stream) = waiter;
    let (mut replies, mut requests) = tokio::io::split(stream);
    let writing = tokio::spawn(async move {
        let all = "ping\n_\n_\n".repeat(pings) + "r\nk\n0\n";
        tokio::io::AsyncWriteExt::write_all(&mut requests, all.as_bytes()).await.unwrap();
        requests
    });
    settle().await;
    assert_eq!(holder.ask("r", "k", &token).await, "ok");
    let mut seen = vec![0; 39 + 3 * pings + 6];
    tokio::io::AsyncReadExt::read_exact(&mut replies, &mut seen).await.unwrap();
    let seen = String::from_utf8(seen).unwrap();
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(lines.len(), pings + 2);
    assert!(lines[0].ends_with(" 33") && lines[pings + 1] == "error");
    assert!(lines[1..=pings].iter().all(|line| *line == "ok"));
    drop(writing.await.unwrap());
}
