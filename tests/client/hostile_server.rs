//! Servers that lie, in virtual time: whatever they say, the client claims no lease that it was not
//! given, none for longer than it was given, and takes no line for the reply to another request.

use std::time::Duration;

use dflockd_client::server::{Server, ServerConfig};
use dflockd_client::{
    AsyncConn, AsyncDistributedLock, Enqueued, ErrorKind, LockClient, LockOptions, LostReason, MAX_SECONDS,
    command,
};
use tokio::time::{Instant, sleep, timeout};

use crate::peers::{End, Peers, TOKEN, Wire, peer, sound};

const S: Duration = Duration::from_secs(1);
const GRANT: &str = "ok 000000000000002a00112233445566aa 33\n";
const MOST: Duration = Duration::from_secs(MAX_SECONDS);

/// Answers its first requests with these bytes and takes all that comes then.
fn says(answers: Vec<Vec<u8>>) -> End {
    peer(|far| async move {
        let mut wire = Wire::new(far);
        for answer in answers {
            if wire.request().await.is_none() {
                return;
            }
            wire.send(answer).await;
        }
        wire.closed().await;
    })
}

/// A lock whose first connection lies, and whose later ones are sound.
fn lock(first: impl Fn() -> End + Send + Sync + 'static) -> (AsyncDistributedLock, Server) {
    let server = Server::new(ServerConfig::default()).unwrap();
    let client = LockClient::builder().dial(Peers::first(first, &server)).build().unwrap();
    (client.lock("k").unwrap(), server)
}

fn lied_to(answers: &[&[u8]]) -> (AsyncDistributedLock, Server) {
    let answers: Vec<Vec<u8>> = answers.iter().map(|answer| answer.to_vec()).collect();
    lock(move || says(answers.clone()))
}

/// The next acquire is served by the sound server, and leaves nothing.
async fn heals(lock: &AsyncDistributedLock, server: &Server, after: &str) {
    sleep(S / 100).await;
    let guard = timeout(S, lock.acquire()).await.unwrap_or_else(|_| panic!("{after}: the next one hangs"));
    let guard = guard.unwrap_or_else(|error| panic!("{after}: {error}"));
    assert_ne!(guard.token().expose(), TOKEN, "{after}: that was the liar's");
    assert!(guard.is_held());
    guard.release().await.unwrap_or_else(|error| panic!("{after}: {error}"));
    sleep(S / 100).await;
    assert!(server.stats().locks.is_empty(), "{after}");
}

#[tokio::test(start_paused = true)]
async fn a_grant_of_another_shape_is_none() {
    let long = format!("ok {} 33\n", "t".repeat(246));
    let shapes: [&[u8]; 24] = [
        b"ok  33\n",
        b"ok \t33\n",
        b"ok token\n",
        b"ok token \n",
        b"ok token 33 44\n",
        b"ok to ken 33\n",
        b"ok to\0ken 33\n",
        b"ok to\x1bken 33\n",
        b"ok to\rken 33\n",
        "ok to\u{2028}ken 33\n".as_bytes(),
        b"ok to\xff\xfeken 33\n",
        b"\xff\xfe\n",
        long.as_bytes(),
        b"ok token +33\n",
        b"ok token 3.3\n",
        b"ok token 0x21\n",
        b"ok token 33s\n",
        "ok token \u{663}\u{663}\n".as_bytes(),
        b"ok token 99999999999999999999999999999999999999\n",
        b"OK token 33\n",
        b" ok token 33\n",
        b"ok\ttoken\t33\n",
        b"acquired token 33\n",
        b"timeout 33\n",
    ];
    for shape in shapes {
        let name = format!("{:?}", String::from_utf8_lossy(shape));
        let (lock, server) = lied_to(&[shape]);
        let error = lock.acquire().await.expect_err(&name);
        assert_eq!(error.kind(), ErrorKind::Protocol, "{name}: {error}");
        heals(&lock, &server, &name).await;
        let (near, far) = tokio::io::duplex(4096);
        let conn = AsyncConn::new(near);
        let mut wire = Wire::new(far);
        let answering = async {
            wire.request().await;
            wire.send(shape).await;
        };
        let (outcome, ()) = tokio::join!(command::acquire(&conn, "k", S, None), answering);
        assert_eq!(outcome.expect_err(&name).kind(), ErrorKind::Protocol, "{name}");
        timeout(S, wire.closed()).await.unwrap_or_else(|_| panic!("{name}: the connection lives on"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_place_of_another_shape_is_none() {
    for shape in ["ok token 33\n", "acquired  33\n", "acquired token\n", "queued 1\n", "timeout\n", "ok\n"] {
        let (lock, server) = lied_to(&[shape.as_bytes()]);
        let error = lock.enqueue().await.expect_err(shape);
        assert_eq!(error.kind(), ErrorKind::Protocol, "{shape:?}: {error}");
        heals(&lock, &server, shape).await;
        let (lock, server) =
            lied_to(&[b"queued\n", shape.replace("ok token 33", "acquired token 33").as_bytes()]);
        let Enqueued::Queued(ticket) = lock.enqueue().await.unwrap() else { panic!("it said queued") };
        let error = ticket.wait(S).await.expect_err(shape);
        let kind = if shape == "timeout\n" { ErrorKind::Busy } else { ErrorKind::Protocol };
        assert_eq!(error.kind(), kind, "{shape:?}: {error}");
        if kind == ErrorKind::Protocol {
            heals(&lock, &server, shape).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_of_any_visible_shape_is_held_and_sent_back_as_it_came() {
    for token in ["x", "\u{ff}\u{1f512}", "../../etc", "000000000000002A00112233445566AA", &"t".repeat(245)] {
        let (heard, mut releases) = tokio::sync::mpsc::unbounded_channel();
        let grant = format!("ok {token} 33\n");
        let (lock, _server) = lock(move || {
            let (heard, grant) = (heard.clone(), grant.clone());
            peer(move |far| async move {
                let mut wire = Wire::new(far);
                for answer in [&*grant, "ok 33\n", "ok\n"] {
                    let Some(request) = wire.request().await else { return };
                    let _ = heard.send(request);
                    wire.send(answer).await;
                }
                wire.closed().await;
            })
        });
        let guard = lock.acquire().await.unwrap();
        guard.renew().await.unwrap();
        guard.release().await.unwrap();
        assert_eq!(releases.recv().await.unwrap(), "l k 0");
        assert_eq!(releases.recv().await.unwrap(), format!("n k {token} 33"));
        assert_eq!(releases.recv().await.unwrap(), format!("r k {token}"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_as_long_as_the_server_said_whatever_was_asked_for() {
    let times = [1, 2, 33, 1000, MAX_SECONDS];
    for granted in times {
        for renewed in times {
            let what = format!("granted for {granted} s, renewed for {renewed} s");
            let grant = format!("ok {TOKEN} {granted}\n");
            let (lock, server) = lied_to(&[grant.as_bytes(), format!("ok {renewed}\n").as_bytes()]);
            let lock = lock.with_options(LockOptions::new().lease_ttl(33 * S)).unwrap();
            let sent = Instant::now();
            let guard = lock.acquire().await.unwrap();
            assert_eq!(guard.ttl().as_secs(), granted, "{what}");
            assert!(guard.deadline() <= sent + Duration::from_secs(granted), "{what}");
            sleep(S / 10).await;
            let sent = Instant::now();
            assert_eq!(guard.renew().await.unwrap().as_secs(), renewed, "{what}");
            let deadline = sent + Duration::from_secs(renewed);
            assert!(guard.deadline() <= deadline && guard.deadline() > sent, "{what}: also where it is less");
            // From here on nothing is answered.
            let reason = guard.lost().await;
            assert!(Instant::now() < deadline && sent.elapsed() <= 20 * S, "{what}: {:?}", sent.elapsed());
            let silent = renewed > 20;
            let expected = if silent { LostReason::KeepaliveTimeout } else { LostReason::DeadlinePassed };
            assert_eq!(reason, expected, "{what}");
            assert!(!guard.is_held(), "{what}");
            drop(guard);
            // What is asked is overdue by then.
            sleep(S).await;
            heals(&lock, &server, &what).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_longest_lease_of_a_lying_server_is_still_given_up_with_its_connection() {
    let (lock, server) = lied_to(&[format!("ok {TOKEN} {MAX_SECONDS}\n").as_bytes(), b"ok 33\n", b""]);
    let lock = lock.with_options(LockOptions::new().lease_ttl(MOST)).unwrap();
    let guard = lock.acquire().await.unwrap();
    assert_eq!(guard.ttl(), MOST);
    // The first ping is answered as if it were a renewal.
    assert_eq!(timeout(11 * S, guard.lost()).await, Ok(LostReason::ConnectionClosed));
    drop(guard);
    heals(&lock, &server, "a ping with a wrong answer").await;
}

#[tokio::test(start_paused = true)]
async fn a_renewal_answered_with_anything_else_loses_the_lease() {
    let grant = GRANT;
    let acquired = grant.replace("ok", "acquired");
    for answer in
        [grant, &*acquired, "ok 33 33\n", "ok 33x\n", "ok +33\n", "ok\t33\n", "queued\n", "timeout\n"]
    {
        let (lock, server) = lied_to(&[grant.as_bytes(), answer.as_bytes()]);
        let guard = lock.acquire().await.unwrap();
        let error = guard.renew().await.expect_err(answer);
        assert_eq!(error.kind(), ErrorKind::Protocol, "{answer:?}: {error}");
        assert!(!error.to_string().contains(TOKEN), "{error}");
        assert_eq!(timeout(S, guard.lost()).await, Ok(LostReason::ConnectionClosed), "{answer:?}");
        assert!(!guard.is_held());
        drop(guard);
        heals(&lock, &server, answer).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_comes_before_anything_was_asked_is_nobodys() {
    for unasked in [GRANT.to_owned(), GRANT.repeat(3), "ok\n".to_owned(), format!("timeout\n{GRANT}")] {
        let name = unasked.clone();
        let (lock, server) = lock(move || {
            let unasked = unasked.clone();
            peer(move |far| async move {
                let mut wire = Wire::new(far);
                wire.send(unasked).await;
                wire.closed().await;
            })
        });
        heals(&lock, &server, &name).await;
    }
    // Where every connection begins like that, there is an end to trying.
    let dial = Peers::new(|_, _| {
        peer(|far| async move {
            let mut wire = Wire::new(far);
            wire.send(GRANT).await;
            wire.closed().await;
        })
    });
    let dials = dial.dials();
    let lock = LockClient::builder().dial(dial).build().unwrap().lock("k").unwrap();
    let error = timeout(S, lock.acquire()).await.expect("it ends").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    assert!(dials.load(std::sync::atomic::Ordering::SeqCst) < 10);
}

#[tokio::test(start_paused = true)]
async fn a_grant_behind_another_reply_is_nobodys() {
    // To an acquire, to an enqueue, and to a release.
    let (lock, server) = lied_to(&[format!("timeout\n{GRANT}").as_bytes()]);
    assert!(lock.try_acquire().await.unwrap().is_none());
    heals(&lock, &server, "behind a timeout").await;

    let (lock, server) = lied_to(&[format!("queued\n{GRANT}").as_bytes()]);
    let Enqueued::Queued(ticket) = lock.enqueue().await.unwrap() else { panic!("it said queued") };
    sleep(S).await;
    let error = ticket.wait(S).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    heals(&lock, &server, "behind a place").await;

    let (lock, server) = lied_to(&[GRANT.as_bytes(), format!("ok\n{GRANT}").as_bytes()]);
    lock.acquire().await.unwrap().release().await.unwrap();
    heals(&lock, &server, "behind a release").await;
}

#[tokio::test(start_paused = true)]
async fn what_comes_behind_the_ok_of_an_authentication_is_nobodys() {
    for (behind, pause) in
        [(GRANT, Duration::ZERO), ("o", Duration::ZERO), ("\n", Duration::ZERO), (GRANT, S)]
    {
        let server = Server::new(ServerConfig { auth_token: Some("s3cret".into()), ..Default::default() });
        let server = server.unwrap();
        let first = move || {
            peer(move |far| async move {
                let mut wire = Wire::new(far);
                wire.request().await;
                if pause.is_zero() {
                    wire.send(format!("ok\n{behind}")).await;
                } else {
                    wire.send("ok\n").await;
                    wire.request().await;
                    wire.send(format!("timeout\n{behind}")).await;
                }
                wire.closed().await;
            })
        };
        let dial = Peers::new({
            let server = server.clone();
            move |_, nth| if nth == 0 { first() } else { sound(&server) }
        });
        let lock = LockClient::builder().dial(dial).auth_token("s3cret").build().unwrap().lock("k").unwrap();
        match lock.try_acquire().await {
            Ok(guard) => assert!(guard.is_none() && !pause.is_zero(), "{behind:?}: that was no grant"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Protocol, "{behind:?}: {error}"),
        }
        heals(&lock, &server, behind).await;
    }
}
