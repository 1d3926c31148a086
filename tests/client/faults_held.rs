//! A holder against servers that fail: renewals and releases that get no answer, a wrong one, or
//! half of one; and the connection afterwards, which must not be handed to the next.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use dflockd_client::server::{Server, ServerConfig};
use dflockd_client::{AsyncDistributedLock, ErrorKind, LockClient, LockOptions, LostReason};
use futures::FutureExt;
use futures::future::join_all;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep, timeout};

use crate::peers::{End, PONG, Peers, TOKEN, Wire, cut, peer, script, sound};

const S: Duration = Duration::from_secs(1);

/// A lock whose first connection is faulty and whose later ones are sound, and the sound server.
fn lock(first: impl Fn() -> End + Send + Sync + 'static) -> (AsyncDistributedLock, Server) {
    let server = Server::new(ServerConfig::default()).unwrap();
    let client = LockClient::builder().dial(Peers::first(first, &server)).build().unwrap();
    (client.lock("k").unwrap(), server)
}

async fn heals(lock: &AsyncDistributedLock, server: &Server, after: &str) {
    sleep(S / 100).await;
    let guard = timeout(S, lock.acquire()).await;
    let guard = guard.unwrap_or_else(|_| panic!("{after}: the next acquire hangs"));
    let guard = guard.unwrap_or_else(|error| panic!("{after}: the next acquire fails: {error}"));
    guard.release().await.unwrap_or_else(|error| panic!("{after}: {error}"));
    sleep(S / 100).await;
    assert!(server.stats().locks.is_empty(), "{after}");
}

const GRANT: &str = "ok 000000000000002a00112233445566aa 33\n";
const SHORT: &str = "ok 000000000000002a00112233445566aa 2\n";

#[tokio::test(start_paused = true)]
async fn a_release_whose_reply_is_cut_at_any_byte_says_so_and_has_let_go() {
    for at in 0..3 {
        let server = Server::new(ServerConfig::default()).unwrap();
        let way = server.clone();
        let dial =
            Peers::first(move || cut(&way, None, Some((PONG.len() + GRANT.len()) as u64 + at)), &server);
        let lock = LockClient::builder().dial(dial).build().unwrap().lock("k").unwrap();
        let guard = match at {
            // Nothing of the reply comes through: the way is cut before it could be asked for, and
            // the lease is lost as it comes.
            0 => {
                assert_eq!(lock.acquire().await.unwrap_err().kind(), ErrorKind::ConnectionClosed);
                None
            }
            _ => Some(lock.acquire().await.unwrap()),
        };
        if let Some(guard) = guard {
            let error = guard.release().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionClosed, "at {at}: {error}");
            assert!(error.to_string().starts_with("release of \"k\" on "), "{error}");
        }
        heals(&lock, &server, &format!("a release cut at {at}")).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_release_that_is_not_answered_ends_in_time_and_its_connection_is_not_used_again() {
    let (lock, server) = lock(|| script(&[GRANT], false));
    let guard = lock.acquire().await.unwrap();
    let start = Instant::now();
    let error = guard.release().await.unwrap_err();
    assert_eq!((error.kind(), start.elapsed()), (ErrorKind::Timeout, 5 * S), "{error}");
    heals(&lock, &server, "a release without an answer").await;
}

#[tokio::test(start_paused = true)]
async fn a_release_with_a_wrong_answer_is_a_protocol_error() {
    for answer in ["ok 33\n", "timeout\n", "garbage\n"] {
        let answers: &'static [&'static str] = Box::leak(Box::new([GRANT, answer]));
        let (lock, server) = lock(move || script(answers, false));
        let error = lock.acquire().await.unwrap().release().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{answer:?}: {error}");
        heals(&lock, &server, answer).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_release_that_the_server_knows_nothing_of_says_so() {
    let (lock, server) = lock(|| script(&[GRANT, "error\n"], true));
    let error = lock.acquire().await.unwrap().release().await.unwrap_err();
    assert_eq!((error.kind(), error.raw()), (ErrorKind::NotHeld, Some("error")));
    assert!(error.is_lease_lost());
    heals(&lock, &server, "an unknown release").await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_nobody_renews_is_lost_at_its_deadline_and_its_release_says_so() {
    let (lock, server) = lock(|| script(&[SHORT], false));
    let guard = lock.acquire().await.unwrap();
    let start = Instant::now();
    assert_eq!(guard.lost().await, LostReason::DeadlinePassed);
    assert!(start.elapsed() < 2 * S && start.elapsed() > S);
    assert!(!guard.is_held());
    let error = guard.release().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LeaseLost);
    assert_eq!(
        error.to_string(),
        "release of \"k\" on 127.0.0.1:6388: the lease is lost: its deadline passed without a renewal"
    );
    // The renewal is overdue by then.
    sleep(S).await;
    heals(&lock, &server, "a lost lease").await;
}

#[tokio::test(start_paused = true)]
async fn the_connection_of_a_lost_lease_does_not_serve_the_next_acquire() {
    let (lock, server) = lock(|| script(&[SHORT], false));
    let guard = lock.acquire().await.unwrap();
    guard.lost().await;
    drop(guard);
    // The renewal is overdue by then.
    sleep(S).await;
    heals(&lock, &server, "the connection answers nothing").await;
}

#[tokio::test(start_paused = true)]
async fn a_renewal_with_a_wrong_answer_loses_the_lease_at_once() {
    for answer in ["ok 0\n", "ok -1\n", "ok 9223372037\n", "ok\n", "garbage\n"] {
        let answers: &'static [&'static str] = Box::leak(Box::new([GRANT, answer]));
        let (lock, server) = lock(move || script(answers, false));
        let guard = lock.acquire().await.unwrap();
        let error = guard.renew().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{answer:?}: {error}");
        assert_eq!(timeout(S, guard.lost()).await, Ok(LostReason::ConnectionClosed), "{answer:?}");
        drop(guard);
        heals(&lock, &server, answer).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_fails_for_another_reason_does_not_lose_the_lease() {
    let (lock, server) = lock(|| script(&[GRANT, "error_not_leader h:1\n", "ok 33\n", "ok\n"], true));
    let guard = lock.acquire().await.unwrap();
    let error = guard.renew().await.unwrap_err();
    assert_eq!((error.kind(), error.leader()), (ErrorKind::NotLeader, Some("h:1")));
    assert!(guard.is_held());
    assert_eq!(guard.renew().await.unwrap(), 33 * S);
    guard.release().await.unwrap();
    heals(&lock, &server, "a replica").await;
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_comes_back_after_the_deadline_is_not_a_success() {
    let late = || {
        peer(|far| async move {
            let mut wire = Wire::new(far);
            wire.request().await;
            wire.send(SHORT).await;
            wire.request().await;
            sleep(3 * S).await;
            wire.send("ok 2\n").await;
            wire.closed().await;
        })
    };
    let (lock, _server) = lock(late);
    let guard = lock.acquire().await.unwrap();
    let error = guard.renew().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LeaseLost, "{error}");
    assert_eq!(timeout(S, guard.lost()).await, Ok(LostReason::DeadlinePassed));
    assert!(!guard.is_held());
    drop(guard);
}

#[tokio::test(start_paused = true)]
async fn a_lease_without_pings_or_renewals_answered_is_lost_and_the_next_goes_elsewhere() {
    // The peer takes all and answers nothing after the grant, for far longer than the lease.
    let (lock, server) = lock(|| script(&["ok 000000000000002a00112233445566aa 600\n"], false));
    let lock = lock.with_options(LockOptions::new().lease_ttl(600 * S)).unwrap();
    let guard = lock.acquire().await.unwrap();
    assert_eq!(guard.token().expose(), TOKEN);
    let start = Instant::now();
    assert_eq!(guard.lost().await, LostReason::KeepaliveTimeout);
    // A server drops a connection on which it hears nothing for 23 s, and hands the key on.
    assert!(start.elapsed() < 23 * S, "{:?}", start.elapsed());
    assert!(!guard.is_held());
    drop(guard);
    heals(&lock, &server, "20 s of silence").await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_that_answers_no_ping_is_not_used_again() {
    let (lock, server) = lock(|| script(&["timeout\n"], false));
    assert!(lock.try_acquire().await.unwrap().is_none());
    sleep(25 * S).await;
    heals(&lock, &server, "pings without an answer").await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_that_was_closed_is_replaced_unnoticed() {
    let (lock, server) = lock(|| script(&["timeout\n"], true));
    assert!(lock.try_acquire().await.unwrap().is_none());
    heals(&lock, &server, "an idle connection closed").await;
}

#[tokio::test(start_paused = true)]
async fn requests_that_are_never_answered_do_not_pile_up_without_a_limit() {
    let (lock, _server) = lock(|| script(&[GRANT], false));
    let guard = lock.acquire().await.unwrap();
    let mut asking = Vec::new();
    let error = loop {
        let mut renewal = Box::pin(guard.renew());
        if let Some(outcome) = (&mut renewal).now_or_never() {
            break outcome.unwrap_err();
        }
        asking.push(renewal);
        assert!(asking.len() <= 300_000, "requests pile up without a limit");
        if asking.len() % 256 == 0 {
            // The connection sends what it has, and the peer takes it.
            for _ in 0..8 {
                tokio::task::yield_now().await;
            }
        }
    };
    assert_eq!(error.kind(), ErrorKind::Overloaded, "after {}: {error}", asking.len());
    assert!(asking.len() > 1000);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_drains_is_unavailable_to_every_acquire() {
    let server = Server::new(ServerConfig::default()).unwrap();
    let way = server.clone();
    let client = LockClient::builder().dial(Peers::new(move |_, _| sound(&way))).build().unwrap();
    let held = client.lock("held").unwrap().acquire().await.unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stopping = tokio::spawn(async move { server.serve(listener, async {}).await });
    sleep(S).await;
    for _ in 0..5 {
        // The server closes a connection that holds nothing, whether or not it came to say why.
        let error = client.lock("k").unwrap().acquire().await.unwrap_err();
        let kinds = [ErrorKind::Draining, ErrorKind::ConnectionClosed];
        assert!(kinds.contains(&error.kind()) && error.is_unavailable(), "{error}");
    }
    held.release().await.unwrap();
    stopping.await.unwrap();
}

/// A connection that answers so many requests at once, and takes nothing after them.
struct BreaksAfter {
    requests: usize,
    lines: usize,
    answers: Vec<u8>,
    reader: Option<Waker>,
}

impl AsyncWrite for BreaksAfter {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.lines == 3 * self.requests {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        self.lines += bytes.iter().filter(|byte| **byte == b'\n').count();
        if self.lines == 3 * self.requests {
            // The first was the ping with which the client begins.
            let grants = format!("ok {TOKEN} 33\n").repeat(self.requests - 1);
            self.answers = (PONG.to_owned() + &grants).into();
            self.reader.take().expect("the client reads all the time").wake();
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for BreaksAfter {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.answers.is_empty() {
            self.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        to.put_slice(&std::mem::take(&mut self.answers));
        Poll::Ready(Ok(()))
    }
}

#[tokio::test(start_paused = true)]
async fn answers_that_came_before_the_way_broke_reach_their_callers() {
    const MANY: usize = 100;
    let breaks = || {
        let stream = BreaksAfter { requests: 1 + MANY, lines: 0, answers: Vec::new(), reader: None };
        End::Open(Box::new(stream))
    };
    let (lock, _server) = lock(breaks);
    let tasks = (0..MANY).map(|_| {
        let lock = lock.clone();
        tokio::spawn(async move { lock.try_acquire().await.map(drop) })
    });
    let outcomes: Vec<_> = join_all(tasks).await.into_iter().map(Result::unwrap).collect();
    // The first grants are let go at once, and that fails; the others are lost as they come.
    assert!(outcomes[0].is_ok(), "{:?}", outcomes[0]);
    for error in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
        assert!(error.to_string().ends_with("lost on arrival: its connection closed"), "{error}");
    }
}
