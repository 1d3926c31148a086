//! The bare connection and the commands over it: every command's bytes, and what every reply is
//! to its caller, in whatever pieces it comes.

use std::time::Duration;

use dflockd_client::{AsyncConn, Error, ErrorKind, Result, Token, command};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio_test::io::Builder;

use crate::peers::{TOKEN, Wire};

const S: Duration = Duration::from_secs(1);
const GRANT: &str = r#"Grant { token: Token(00000000…), lease: 7s }"#;

/// A command: how it is called, what it sends, and what it makes of the replies that suit it.
struct Case {
    name: &'static str,
    call: for<'a> fn(&'a AsyncConn) -> BoxFuture<'a, Result<String>>,
    sends: &'static str,
    takes: &'static [(&'static str, &'static str)],
}

fn token() -> Token {
    Token::parse(TOKEN).unwrap()
}

macro_rules! case {
    ($name:literal, |$conn:ident| $call:expr, $sends:expr, $($reply:expr => $value:expr),+) => {
        Case {
            name: $name,
            call: |$conn| async move { $call.await.map(|value| format!("{value:?}")) }.boxed(),
            sends: $sends,
            takes: &[$(($reply, $value)),+],
        }
    };
}

const GRANTED: &str = "ok 000000000000002a00112233445566aa 7\n";
const TAKEN: &str = "acquired 000000000000002a00112233445566aa 7\n";
const PLACE: &str = "Acquired(Grant { token: Token(00000000…), lease: 7s })";
const EMPTY: &str =
    "ok {\"connections\":0,\"locks\":[],\"semaphores\":[],\"idle_locks\":[],\"idle_semaphores\":[]}\n";
const NO_STATS: &str =
    "StatsResult { connections: 0, locks: [], semaphores: [], idle_locks: [], idle_semaphores: [] }";

/// All commands, with and without what may be left out.
fn cases() -> Vec<Case> {
    vec![
        case!("authenticate", |c| command::authenticate(c, "s3cret token"), "auth\n_\ns3cret token\n", "ok\n" => "()"),
        case!("ping", |c| command::ping(c), "ping\n_\n_\n", "ok\n" => "()", "ok\r\n" => "()"),
        case!("stats", |c| command::stats(c), "stats\n_\n_\n", EMPTY => NO_STATS),
        case!("acquire", |c| command::acquire(c, "k", 10 * S, None), "l\nk\n10\n", GRANTED => GRANT),
        case!("acquire", |c| command::acquire(c, "k", S / 2, Some(S * 5 / 2)), "l\nk\n1 3\n", GRANTED => GRANT),
        case!("acquire", |c| command::sem_acquire(c, "k", 10 * S, 3, None), "sl\nk\n10 3\n", GRANTED => GRANT),
        case!("acquire", |c| command::sem_acquire(c, "k", Duration::ZERO, 1, Some(S)), "sl\nk\n0 1 1\n", GRANTED => GRANT),
        case!("enqueue", |c| command::enqueue(c, "k", None), "e\nk\n\n", TAKEN => PLACE, "queued\n" => "Queued"),
        case!("enqueue", |c| command::enqueue(c, "k", Some(9 * S)), "e\nk\n9\n", TAKEN => PLACE),
        case!("enqueue", |c| command::sem_enqueue(c, "k", 3, None), "se\nk\n3\n", "queued\n" => "Queued"),
        case!("enqueue", |c| command::sem_enqueue(c, "k", 3, Some(S)), "se\nk\n3 1\n", TAKEN => PLACE),
        case!("wait", |c| command::wait(c, "k", 10 * S), "w\nk\n10\n", GRANTED => GRANT),
        case!("wait", |c| command::sem_wait(c, "k", 10 * S), "sw\nk\n10\n", GRANTED => GRANT),
        case!("release", |c| async { command::release(c, "k", &token()).await },
            "r\nk\n000000000000002a00112233445566aa\n", "ok\n" => "()"),
        case!("release", |c| async { command::sem_release(c, "k", &token()).await },
            "sr\nk\n000000000000002a00112233445566aa\n", "ok\n" => "()"),
        case!("renew", |c| async { command::renew(c, "k", &token(), None).await },
            "n\nk\n000000000000002a00112233445566aa\n", "ok 33\n" => "33s"),
        case!("renew", |c| async { command::renew(c, "k", &token(), Some(S * 3 / 2)).await },
            "n\nk\n000000000000002a00112233445566aa 2\n", "ok 2\n" => "2s"),
        case!("renew", |c| async { command::sem_renew(c, "k", &token(), Some(S)).await },
            "sn\nk\n000000000000002a00112233445566aa 1\n", "ok 9223372036\n" => "9223372036s"),
    ]
}

/// A connection on which `request` is answered by these pieces, with an end of file behind them.
fn answering<'a>(request: &str, pieces: impl IntoIterator<Item = &'a [u8]>) -> AsyncConn {
    let mut builder = Builder::new();
    builder.write(request.as_bytes());
    for piece in pieces {
        builder.read(piece);
    }
    AsyncConn::new(builder.build())
}

/// An error in the mock must not be shared with its builder.
fn finish(mut builder: Builder) -> AsyncConn {
    AsyncConn::new(builder.build())
}

async fn is_dead(conn: &AsyncConn) -> bool {
    // What the test did so far may have used up its share of the runtime.
    tokio::task::yield_now().await;
    let next = command::ping(conn).now_or_never().expect("a dead connection answers at once");
    next.unwrap_err().kind() == ErrorKind::ConnectionClosed
}

#[tokio::test(start_paused = true)]
async fn every_command_sends_its_bytes_and_reads_its_reply_in_any_pieces() {
    for case in cases() {
        for (reply, value) in case.takes {
            let reply = reply.as_bytes();
            let whole = answering(case.sends, [reply]);
            assert_eq!((case.call)(&whole).await.unwrap(), *value, "{}", case.sends);
            let dripping = answering(case.sends, reply.chunks(1));
            assert_eq!((case.call)(&dripping).await.unwrap(), *value, "{}", case.sends);
            for at in 1..reply.len() {
                let torn = answering(case.sends, [&reply[..at], &reply[at..]]);
                assert_eq!((case.call)(&torn).await.unwrap(), *value, "{} at {at}", case.sends);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_reply_cut_at_any_byte_is_a_closed_connection_and_never_a_value() {
    for case in cases() {
        for (reply, _) in case.takes {
            for at in 0..reply.len() {
                let conn =
                    answering(case.sends, [&reply.as_bytes()[..at]].into_iter().filter(|p| !p.is_empty()));
                let error = (case.call)(&conn).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::ConnectionClosed, "{reply:?} cut at {at}: {error}");
                let when = if at == 0 { "without a reply" } else { "in the middle of a reply" };
                assert!(error.to_string().contains(when), "{error}");
                assert!(error.to_string().starts_with(case.name), "{error}");
                assert!(is_dead(&conn).await, "{reply:?} cut at {at}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_that_fails_at_any_byte_is_told_and_ends_the_connection() {
    use std::io::ErrorKind as Io;
    let kinds = [
        (Io::ConnectionReset, ErrorKind::ConnectionClosed),
        (Io::TimedOut, ErrorKind::Timeout),
        (Io::PermissionDenied, ErrorKind::Io),
    ];
    for (cause, kind) in kinds {
        for at in 0..GRANTED.len() {
            let mut builder = Builder::new();
            builder.write(b"l\nk\n10\n");
            if at > 0 {
                builder.read(&GRANTED.as_bytes()[..at]);
            }
            builder.read_error(cause.into());
            let conn = finish(builder);
            let error = command::acquire(&conn, "k", 10 * S, None).await.unwrap_err();
            assert_eq!(error.kind(), kind, "at {at}: {error}");
            assert_eq!(std::io::Error::from(error).kind(), cause);
            assert!(is_dead(&conn).await);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_that_fails_is_told_and_ends_the_connection() {
    let mut builder = Builder::new();
    builder.write(b"l\nk").write_error(std::io::ErrorKind::BrokenPipe.into());
    let conn = finish(builder);
    let error = command::acquire(&conn, "k", 10 * S, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionClosed);
    assert!(error.to_string().contains("could not send the request"), "{error}");
    assert!(is_dead(&conn).await);
}

#[tokio::test(start_paused = true)]
async fn every_status_has_its_kind_and_keeps_its_text() {
    use ErrorKind::{
        AlreadyQueued, Auth, Draining, LeaseExpired, LimitMismatch, MaxLocks, MaxWaiters, NotHeld, NotLeader,
        NotQueued, PermissionDenied, Server,
    };
    let statuses = [
        ("error", Server),
        ("error_auth", Auth),
        ("error_max_locks", MaxLocks),
        ("error_max_waiters", MaxWaiters),
        ("error_limit_mismatch", LimitMismatch),
        ("error_not_enqueued", NotQueued),
        ("error_already_enqueued", AlreadyQueued),
        ("error_lease_expired", LeaseExpired),
        ("error_draining", Draining),
        ("error_not_leader", NotLeader),
        ("error_not_leader 10.0.0.7:6388", NotLeader),
        ("error_of_tomorrow with words", Server),
        ("errors", Server),
    ];
    for case in cases() {
        for (status, kind) in statuses {
            let kind = match (case.name, kind) {
                ("release" | "renew", Server) if status == "error" => NotHeld,
                ("authenticate", kind) if kind != Draining => PermissionDenied,
                _ => kind,
            };
            let mut builder = Builder::new();
            builder.write(case.sends.as_bytes()).read(format!("{status}\n").as_bytes());
            builder.write(b"ping\n_\n_\n").read(b"ok\n");
            let conn = AsyncConn::new(builder.build());
            let error = (case.call)(&conn).await.unwrap_err();
            assert_eq!(error.kind(), kind, "{} {status}", case.name);
            assert_eq!(error.raw(), Some(status));
            let leader = status.strip_prefix("error_not_leader ").filter(|_| kind == NotLeader);
            assert_eq!(error.leader(), leader, "{error}");
            assert!(leader.is_none_or(|leader| error.to_string().contains(leader)), "{error}");
            assert!(error.to_string().starts_with(case.name), "{error}");
            command::ping(&conn).await.expect("a refusal leaves the connection as it is");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_busy_key_is_busy_and_leaves_the_connection_open() {
    for case in cases().into_iter().filter(|case| matches!(case.name, "acquire" | "wait")) {
        let mut builder = Builder::new();
        builder.write(case.sends.as_bytes()).read(b"timeout\n").write(b"ping\n_\n_\n").read(b"ok\n");
        let conn = AsyncConn::new(builder.build());
        let error = (case.call)(&conn).await.unwrap_err();
        assert_eq!((error.kind(), error.raw()), (ErrorKind::Busy, Some("timeout")));
        command::ping(&conn).await.unwrap();
    }
}

/// Replies that suit no command of the name; what is behind them on the stream is unknown.
fn unfit(name: &str) -> Vec<String> {
    let token = TOKEN;
    let leases = ["0", "-1", "9223372037", "1.5", "", "x", "18446744073709551617"];
    let mut unfit: Vec<String> =
        ["", "garbage", "OK", " ok", "ok\u{a0}", "\u{0}"].map(str::to_owned).to_vec();
    match name {
        "acquire" | "wait" => unfit.extend(leases.map(|lease| format!("ok {token} {lease}"))),
        "enqueue" => unfit.extend(leases.map(|lease| format!("acquired {token} {lease}"))),
        "renew" => unfit.extend(leases.map(|lease| format!("ok {lease}"))),
        _ => {}
    }
    let others: &[&str] = match name {
        "acquire" | "wait" => &["ok", "ok 33", "queued", "acquired t 7", "ok t 7 7", "timeout 1"],
        "enqueue" => &["ok", "ok t 7", "timeout", "acquired", "acquired t", "queued 1"],
        "release" | "ping" | "authenticate" => &["ok 33", "timeout", "queued", "ok t 7"],
        "renew" => &["ok", "timeout", "ok t 7"],
        _ => &["queued", "timeout"],
    };
    unfit.extend(others.iter().map(|reply| (*reply).to_owned()));
    if matches!(name, "acquire" | "wait") {
        unfit.push(format!("ok {} 7", "t".repeat(246)));
    }
    unfit
}

/// A peer that answers the first request with `reply`, and every later one with `ok`.
fn yes_man(reply: String) -> AsyncConn {
    let (near, far) = tokio::io::duplex(4096);
    tokio::spawn(async move {
        let (mut wire, mut reply) = (Wire::new(far), reply);
        while wire.any_request().await.is_some() {
            wire.send(reply + "\n").await;
            reply = "ok".into();
        }
    });
    AsyncConn::new(near)
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_does_not_fit_is_a_protocol_error_and_ends_the_connection() {
    for case in cases() {
        for reply in unfit(case.name) {
            let conn = yes_man(reply.clone());
            let error = (case.call)(&conn).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Protocol, "{} {reply:?}: {error}", case.name);
            assert!(!format!("{error} {error:?}").contains(&TOKEN[..9]), "{error}");
            assert!(is_dead(&conn).await, "{} {reply:?}", case.name);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn stats_that_are_no_json_are_a_protocol_error() {
    for json in ["", "{", "[]", "{}", "null", r#"{"connections":-1}"#] {
        let conn = answering("stats\n_\n_\n", [format!("ok {json}\n").as_bytes()]);
        let error = command::stats(&conn).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{json}");
        assert!(std::error::Error::source(&error).is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_is_not_text_is_a_protocol_error() {
    for reply in [&b"\xff\n"[..], b"ok \xc3\n", b"error \xf0\x28\x8c\xbc\n"] {
        let conn = answering("ping\n_\n_\n", [reply]);
        let error = command::ping(&conn).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
        assert!(error.to_string().contains("utf-8"), "{error}");
        assert!(is_dead(&conn).await);
    }
}

async fn longest(cmd: &str, limit: Option<usize>, len: usize) -> (AsyncConn, Result<String, Error>) {
    let mut builder = Builder::new();
    builder.write(format!("{cmd}\n_\n_\n").as_bytes());
    let line = "x".repeat(len) + "\n";
    for piece in line.as_bytes().chunks(64 * 1024) {
        builder.read(piece);
    }
    let mut conn = AsyncConn::new(builder.build());
    if let Some(limit) = limit {
        conn = if cmd == "stats" { conn.max_stats_bytes(limit) } else { conn.max_reply(limit) };
    }
    let reply = conn.command(cmd, "_", "_", None).await;
    (conn, reply)
}

#[tokio::test(start_paused = true)]
async fn a_reply_over_its_limit_is_a_protocol_error() {
    for (cmd, set, limit) in [
        ("ping", None, 1024 * 1024),
        ("ping", Some(10), 10),
        ("x", Some(100_000), 100_000),
        ("stats", Some(2_000_000), 2_000_000),
    ] {
        assert_eq!(longest(cmd, set, limit).await.1.unwrap().len(), limit);
        let (conn, reply) = longest(cmd, set, limit + 1).await;
        let error = reply.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol);
        assert!(error.to_string().ends_with(&format!("line longer than {limit} bytes")), "{error}");
        // What the mock has left to read was not asked for any more: it would panic on its drop.
        assert!(is_dead(&conn).await);
    }
}
