//! The bare connection among tasks and in time: commands take turns, a command that was cut off
//! ends the connection, nothing waits longer than it may.

use std::sync::Arc;
use std::time::Duration;

use dflockd_client::{AsyncConn, ErrorKind, Token, command};
use futures::FutureExt;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout};

use crate::peers::{TOKEN, Wire};

const S: Duration = Duration::from_secs(1);

fn pair() -> (AsyncConn, Wire) {
    let (near, far) = tokio::io::duplex(4096);
    (AsyncConn::new(near), Wire::new(far))
}

#[track_caller]
fn is_dead(conn: &AsyncConn) {
    let next = command::ping(conn).now_or_never().expect("a dead connection answers at once");
    assert_eq!(next.unwrap_err().kind(), ErrorKind::ConnectionClosed);
}

#[tokio::test(start_paused = true)]
async fn a_command_dropped_before_its_reply_ends_the_connection() {
    let (conn, mut wire) = pair();
    assert!(timeout(S, command::acquire(&conn, "k", 10 * S, None)).await.is_err());
    assert_eq!(wire.any_request().await.as_deref(), Some("l k 10"));
    wire.send(format!("ok {TOKEN} 33\n")).await;
    is_dead(&conn);
    assert_eq!(wire.any_request().await, None, "the server sees the end");
}

#[tokio::test(start_paused = true)]
async fn a_command_that_times_out_ends_the_connection() {
    let (conn, mut wire) = pair();
    let error = conn.command("ping", "_", "_", Some(S)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(error.to_string().contains("no reply within 1s"), "{error}");
    assert_eq!(wire.any_request().await.as_deref(), Some("ping _ _"));
    wire.send("ok\n").await;
    is_dead(&conn);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_reads_nothing_counts_against_the_time_limit() {
    let (near, _far) = tokio::io::duplex(4);
    let conn = AsyncConn::new(near);
    let start = Instant::now();
    assert_eq!(command::ping(&conn).await.unwrap_err().kind(), ErrorKind::Timeout);
    assert_eq!(start.elapsed(), 5 * S);
    is_dead(&conn);
}

#[tokio::test(start_paused = true)]
async fn a_command_dropped_while_it_waits_for_its_turn_costs_nothing() {
    let (conn, mut wire) = pair();
    let first = command::acquire(&conn, "k", 10 * S, None);
    let second = timeout(S, command::ping(&conn));
    let peer = async {
        assert_eq!(wire.any_request().await.as_deref(), Some("l k 10"));
        sleep(2 * S).await;
        wire.send(format!("ok {TOKEN} 33\n")).await;
    };
    let (first, second, ()) = tokio::join!(first, second, peer);
    assert_eq!(first.unwrap().lease, 33 * S);
    assert!(second.is_err());
    let (third, ()) = tokio::join!(command::stats(&conn), async {
        assert_eq!(wire.any_request().await.as_deref(), Some("stats _ _"), "the ping was never sent");
        wire.send("error\n").await;
    });
    assert_eq!(third.unwrap_err().kind(), ErrorKind::Server);
}

#[tokio::test(start_paused = true)]
async fn commands_of_many_tasks_take_turns_and_get_their_own_replies() {
    let (conn, mut wire) = pair();
    let conn = Arc::new(conn);
    let tasks: Vec<_> = (1..=50_u64)
        .map(|n| {
            let conn = conn.clone();
            tokio::spawn(async move {
                let token = Token::parse(TOKEN).unwrap();
                let lease = Duration::from_secs(n);
                assert_eq!(command::renew(&conn, "k", &token, Some(lease)).await.unwrap(), lease);
            })
        })
        .collect();
    for _ in 0..50 {
        let request = wire.any_request().await.unwrap();
        // The next request must not come before this one is answered.
        assert!(timeout(S, wire.any_request()).await.is_err());
        wire.send(format!("ok {}\n", request.rsplit(' ').next().unwrap())).await;
    }
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_reply_is_never_the_next_commands() {
    // Both at once; the second in pieces of its own, before the next command.
    for together in [true, false] {
        let (conn, mut wire) = pair();
        let (reply, ()) = tokio::join!(command::ping(&conn), async {
            wire.any_request().await.unwrap();
            wire.send(if together { "ok\nok\n" } else { "ok\n" }).await;
        });
        reply.unwrap();
        if !together {
            wire.send("o").await;
        }
        let token = Token::parse(TOKEN).unwrap();
        let error = command::release(&conn, "k", &token).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
        assert!(error.to_string().contains("unsolicited line"), "{error}");
        is_dead(&conn);
        assert_eq!(wire.any_request().await, None, "the release was not sent");
    }
}

/// The runtime makes a task that has done much pause at its next read, even where there is
/// something to read: that must not pass for silence.
#[tokio::test(start_paused = true)]
async fn an_unasked_line_is_found_whatever_the_task_did_before() {
    for busy in 0..140 {
        let (conn, mut wire) = pair();
        wire.send("ok\n").await;
        let outcome = tokio::spawn(async move {
            for _ in 0..busy {
                let _ = tokio::task::coop::consume_budget().now_or_never();
            }
            command::ping(&conn).await
        });
        let error = outcome.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "after {busy} steps: {error}");
        assert_eq!(wire.any_request().await, None, "after {busy} steps");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_server_says_before_it_drops_an_idle_connection_is_an_end() {
    let (conn, mut wire) = pair();
    wire.send("error\n").await;
    drop(wire);
    let error = command::ping(&conn).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionClosed);
    assert_eq!(error.to_string(), "ping: connection closed: the server closed an idle connection");
    is_dead(&conn);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_has_closed_is_found_out_before_anything_is_sent() {
    let (conn, wire) = pair();
    drop(wire);
    let error = command::ping(&conn).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionClosed);
    assert!(error.to_string().contains("before the request was sent"), "{error}");
    is_dead(&conn);
}

#[tokio::test(start_paused = true)]
async fn close_ends_the_command_under_way_and_all_that_follow() {
    let (conn, mut wire) = pair();
    let (under_way, queued, closing) =
        (command::acquire(&conn, "k", 100 * S, None), command::ping(&conn), async {
            sleep(S).await;
            conn.close().await;
            conn.close().await;
        });
    let start = Instant::now();
    let (under_way, queued, ()) = tokio::join!(under_way, queued, closing);
    assert_eq!(under_way.unwrap_err().kind(), ErrorKind::ConnectionClosed);
    assert_eq!(queued.unwrap_err().kind(), ErrorKind::ConnectionClosed);
    assert_eq!(start.elapsed(), S);
    is_dead(&conn);
    assert_eq!(wire.any_request().await.as_deref(), Some("l k 100"));
    assert_eq!(wire.any_request().await, None);
}

#[tokio::test(start_paused = true)]
async fn close_of_an_idle_connection_is_seen_by_the_server() {
    let (conn, mut wire) = pair();
    conn.close().await;
    assert_eq!(wire.any_request().await, None);
    is_dead(&conn);
}

#[tokio::test(start_paused = true)]
async fn a_close_that_is_dropped_closes_all_the_same() {
    let (conn, _wire) = pair();
    let under_way = command::acquire(&conn, "k", 100 * S, None);
    let (under_way, ()) = tokio::join!(under_way, async {
        yield_now().await;
        let _ = conn.close().now_or_never();
    });
    assert_eq!(under_way.unwrap_err().kind(), ErrorKind::ConnectionClosed);
    is_dead(&conn);
}

#[tokio::test(start_paused = true)]
async fn each_command_waits_for_its_own_timeout_and_a_second_more_or_for_5_s() {
    let token = Token::parse(TOKEN).unwrap();
    macro_rules! waits {
        ($seconds:expr, |$conn:ident| $call:expr) => {{
            let $conn = &silence();
            let start = Instant::now();
            let error = $call.await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
            assert_eq!(error.raw(), None, "the server said nothing");
            assert_eq!(start.elapsed(), S.mul_f64($seconds), "{error}");
            is_dead($conn);
        }};
    }
    waits!(5.0, |c| command::authenticate(c, "token"));
    waits!(5.0, |c| command::ping(c));
    waits!(5.0, |c| command::stats(c));
    waits!(11.0, |c| command::acquire(c, "k", 10 * S, None));
    waits!(5.0, |c| command::acquire(c, "k", Duration::ZERO, None));
    waits!(3.5, |c| command::sem_acquire(c, "k", S * 5 / 2, 3, None));
    waits!(5.0, |c| command::enqueue(c, "k", None));
    waits!(5.0, |c| command::sem_enqueue(c, "k", 2, None));
    waits!(11.0, |c| command::wait(c, "k", 10 * S));
    waits!(2.0, |c| command::sem_wait(c, "k", S));
    waits!(5.0, |c| command::release(c, "k", &token));
    waits!(5.0, |c| command::sem_release(c, "k", &token));
    waits!(5.0, |c| command::renew(c, "k", &token, None));
    waits!(5.0, |c| command::sem_renew(c, "k", &token, Some(S)));
    let patient = silence().request_timeout(7 * S);
    let start = Instant::now();
    assert_eq!(command::ping(&patient).await.unwrap_err().kind(), ErrorKind::Timeout);
    assert_eq!(start.elapsed(), 7 * S);
}

/// A peer that takes everything and says nothing.
fn silence() -> AsyncConn {
    let (conn, mut wire) = pair();
    tokio::spawn(async move { wire.closed().await });
    conn
}

#[tokio::test(start_paused = true)]
async fn a_command_without_a_time_limit_waits_for_ever() {
    let (conn, mut wire) = pair();
    let reply = conn.command("l", "k", "9223372036", None);
    let (reply, ()) = tokio::join!(reply, async {
        wire.any_request().await.unwrap();
        sleep(365 * 24 * 3600 * S).await;
        wire.send("timeout\n").await;
    });
    assert_eq!(reply.unwrap(), "timeout");
}

#[tokio::test(start_paused = true)]
async fn the_longest_wait_does_not_overflow_its_time_limit() {
    let (conn, mut wire) = pair();
    let longest = Duration::from_secs(dflockd_client::MAX_SECONDS);
    let (grant, ()) = tokio::join!(command::acquire(&conn, "k", longest, Some(longest)), async {
        assert_eq!(wire.any_request().await.as_deref(), Some("l k 9223372036 9223372036"));
        wire.send(format!("ok {TOKEN} 9223372036\n")).await;
    });
    assert_eq!(grant.unwrap().lease, longest);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_sent_is_refused_with_nothing_sent() {
    let (conn, mut wire) = pair();
    let long = "x".repeat(257);
    for (cmd, key, arg, fault) in [
        ("pi\nng", "_", "_", "command has a line break"),
        ("ping", "\r", "_", "key has a line break"),
        ("ping", "_", "a\nb", "arg has a line break"),
        (&*long, "_", "_", "command is 257 bytes long, the limit is 256"),
        ("ping", &*long, "_", "key is 257 bytes long, the limit is 256"),
        ("ping", "_", &*long, "arg is 257 bytes long, the limit is 256"),
        ("auth", "_", &*"t".repeat(65537), "arg is 65537 bytes long, the limit is 65536"),
    ] {
        let error = conn.command(cmd, key, arg, None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert_eq!(error.to_string(), format!("invalid input: {fault}"));
    }
    let past = Duration::from_secs(dflockd_client::MAX_SECONDS + 1);
    let token = Token::parse(TOKEN).unwrap();
    let faults = [
        command::acquire(&conn, "a b", S, None).await.map(drop),
        command::acquire(&conn, "k", past, None).await.map(drop),
        command::acquire(&conn, "k", S, Some(Duration::ZERO)).await.map(drop),
        command::sem_acquire(&conn, "k", S, 0, None).await.map(drop),
        command::enqueue(&conn, "", None).await.map(drop),
        command::sem_enqueue(&conn, "k", u64::MAX, None).await.map(drop),
        command::wait(&conn, "k", past).await.map(drop),
        command::release(&conn, "k\t", &token).await,
        command::renew(&conn, "k", &token, Some(past)).await.map(drop),
        command::authenticate(&conn, "two\nlines").await,
        command::authenticate(&conn, "").await,
    ];
    for fault in faults {
        let error = fault.unwrap_err();
        assert!(error.is_invalid_input(), "{error}");
    }
    let (pong, request) = tokio::join!(command::ping(&conn), async {
        let request = wire.any_request().await;
        wire.send("ok\n").await;
        request
    });
    pong.expect("the connection goes on");
    assert_eq!(request.as_deref(), Some("ping _ _"));
}
