//! Every kind of error, provoked through the public API: by the embedded server where it can, by a
//! scripted peer otherwise. What each says, what it keeps, and what it is to code that knows
//! `std::io` alone.

use std::collections::BTreeSet;
use std::error::Error as _;
use std::io;
use std::time::Duration;

use dflockd_client::server::{Server, ServerConfig};
use dflockd_client::test_util::TestServer;
use dflockd_client::tls::ClientTls;
use dflockd_client::{AsyncConn, Directory, Error, ErrorKind, FileLock, LockClient, LockOptions, command};
use futures::FutureExt;
use tokio::time::{Instant, sleep};

use crate::faces::{Client, Enqueued, Face, Guard, on_both_faces};
use crate::peers::{End, Peers, Wire, peer, script, sound};

const S: Duration = Duration::from_secs(1);
const SERVER: &str = "locks.example:6388";

on_both_faces!(
    every_kind_can_be_provoked,
    every_error_names_operation_key_and_server_and_what_happened,
    what_the_server_said_and_what_caused_it_are_kept,
    every_error_is_an_io_error_of_a_kind_and_comes_out_of_it_whole,
    the_predicates_sort_the_kinds,
);

fn server(config: ServerConfig) -> Server {
    Server::new(config).unwrap()
}

fn plain() -> Server {
    server(ServerConfig::default())
}

fn dial(server: &Server) -> Peers {
    let server = server.clone();
    Peers::new(move |_, _| sound(&server))
}

fn client(face: Face, dial: Peers) -> Client {
    face.build(LockClient::builder().servers([("locks.example", 6388)]).dial(dial))
}

async fn hold(face: Face, server: &Server, ttl: u32) -> Guard {
    let quick = LockOptions::new().lease_ttl(ttl * S);
    client(face, dial(server)).lock("k").unwrap().with(quick).unwrap().acquire().await.unwrap()
}

async fn acquire(client: Client) -> Error {
    client.lock("k").unwrap().acquire().await.unwrap_err()
}

async fn answered(face: Face, answers: &'static [&'static str]) -> Error {
    acquire(client(face, Peers::new(move |_, _| script(answers, true)))).await
}

async fn busy(face: Face) -> Error {
    let server = plain();
    let _held = hold(face, &server, 30).await;
    acquire(client(face, dial(&server))).await
}

async fn timeout(face: Face) -> Error {
    acquire(client(face, Peers::new(|_, _| End::Hangs))).await
}

/// Refused before anything is sent: it names neither key nor server.
fn unsupported() -> Error {
    let folder = tempfile::tempdir().unwrap();
    let locks = LockClient::builder().backend(Directory::new(folder.path())).build().unwrap();
    locks.semaphore("k", 2).unwrap_err()
}

async fn auth(face: Face) -> Error {
    acquire(client(
        face,
        dial(&server(ServerConfig { auth_token: Some("right".into()), ..Default::default() })),
    ))
    .await
}

async fn permission_denied(face: Face) -> Error {
    let server = server(ServerConfig { auth_token: Some("right".into()), ..Default::default() });
    let builder = LockClient::builder().servers([("locks.example", 6388)]).auth_token("wrong");
    acquire(face.build(builder.dial(dial(&server)))).await
}

async fn max_locks(face: Face) -> Error {
    let server = server(ServerConfig { max_locks: 1, ..Default::default() });
    let _other = client(face, dial(&server)).lock("other").unwrap().acquire().await.unwrap();
    acquire(client(face, dial(&server))).await
}

async fn max_waiters(face: Face) -> Error {
    let server = server(ServerConfig { max_waiters: 1, ..Default::default() });
    let _held = hold(face, &server, 30).await;
    let lock = client(face, dial(&server)).lock("k").unwrap();
    let Enqueued::Queued(_ticket) = lock.enqueue().await.unwrap() else { panic!("the key is taken") };
    lock.acquire().await.unwrap_err()
}

async fn limit_mismatch(face: Face) -> Error {
    let server = plain();
    let _slot = client(face, dial(&server)).semaphore("k", 3).unwrap().acquire().await.unwrap();
    acquire(client(face, dial(&server))).await
}

fn bare(server: &Server) -> AsyncConn {
    let End::Open(stream) = sound(server) else { panic!("a sound server is reached") };
    AsyncConn::new(stream)
}

async fn not_queued() -> Error {
    command::wait(&bare(&plain()), "k", S).await.unwrap_err()
}

async fn already_queued() -> Error {
    let conn = bare(&plain());
    command::enqueue(&conn, "k", None).await.unwrap();
    command::enqueue(&conn, "k", None).await.unwrap_err()
}

async fn lease_expired(face: Face) -> Error {
    let server = plain();
    let held = hold(face, &server, 30).await;
    let quick = LockOptions::new().lease_ttl(2 * S);
    let lock = client(face, dial(&server)).lock("k").unwrap().with(quick).unwrap();
    let Enqueued::Queued(ticket) = lock.enqueue().await.unwrap() else { panic!("the key is taken") };
    held.release().await.unwrap();
    sleep(5 * S).await;
    ticket.wait(S).await.unwrap_err()
}

async fn draining(face: Face) -> Error {
    let server = plain();
    let held = hold(face, &server, 30).await;
    let lock = client(face, dial(&server)).lock("k").unwrap();
    let waiting = tokio::spawn(async move { lock.acquire().await.unwrap_err() });
    sleep(S).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stopping = tokio::spawn(async move { server.serve(listener, async {}).await });
    let error = waiting.await.unwrap();
    held.release().await.unwrap();
    stopping.await.unwrap();
    error
}

async fn lease_lost(face: Face) -> Error {
    // The grant comes, and the connection is closed in place of an answer to its renewal.
    let grant = || script(&["ok 000000000000002a00112233445566aa 10\n", ""], true);
    let dial = Peers::new(move |_, nth| if nth == 0 { grant() } else { End::Hangs });
    let lost = client(face, dial).lock("k").unwrap().acquire().await.unwrap();
    lost.lost().await;
    lost.release().await.unwrap_err()
}

async fn not_held(face: Face) -> Error {
    let server = plain();
    let guard = hold(face, &server, 30).await;
    command::release(&bare(&server), "k", &guard.token()).await.unwrap();
    guard.release().await.unwrap_err()
}

async fn connection_closed(face: Face) -> Error {
    acquire(client(face, Peers::new(|_, _| script(&["ok 00"], true)))).await
}

async fn overloaded() -> Error {
    const MOST: usize = 10;
    let builder = LockClient::builder().servers([("locks.example", 6388)]).dial(dial(&plain()));
    let locks = builder.lease_ttl(30 * S).max_unanswered_requests(MOST).build().unwrap();
    let guard = locks.lock("k").unwrap().acquire().await.unwrap();
    // Each asks, and leaves before the answer; the connection has no turn in between.
    for _ in 0..MOST {
        assert!(guard.renew().now_or_never().is_none(), "it is sent");
    }
    let error = guard.renew().now_or_never().expect("it is not sent").unwrap_err();
    sleep(S).await;
    guard.renew().await.expect("what is under way gets done, and then it goes on");
    error
}

async fn io(face: Face) -> Error {
    acquire(client(face, Peers::new(|_, _| End::Fails(io::ErrorKind::ConnectionRefused)))).await
}

async fn tls(face: Face) -> Error {
    let key = rcgen::KeyPair::generate().unwrap();
    let ca = rcgen::CertificateParams::new(["locks.example".to_owned()]).unwrap().self_signed(&key).unwrap();
    let tls = ClientTls::builder().ca_pem(ca.pem()).build().unwrap();
    let builder = LockClient::builder().servers([("locks.example", 6388)]).tls(tls);
    // A plain server is made to speak before it can make sense of a handshake.
    let plain = Peers::new(|_, _| {
        peer(|far| async move {
            let mut wire = Wire::new(far);
            wire.send("error\n").await;
            wire.closed().await;
        })
    });
    acquire(face.build(builder.dial(plain))).await
}

async fn client_closed(face: Face) -> Error {
    let locks = client(face, Peers::new(|_, _| End::Hangs));
    locks.close().await.expect("there is nothing to close");
    acquire(locks).await
}

/// One error of every kind.
async fn errors(face: Face) -> Vec<(ErrorKind, Error)> {
    let invalid = LockClient::builder().servers([("", 1)]).build().unwrap_err();
    vec![
        (ErrorKind::Busy, busy(face).await),
        (ErrorKind::Timeout, timeout(face).await),
        (ErrorKind::Unsupported, unsupported()),
        (ErrorKind::Auth, auth(face).await),
        (ErrorKind::PermissionDenied, permission_denied(face).await),
        (ErrorKind::MaxLocks, max_locks(face).await),
        (ErrorKind::MaxWaiters, max_waiters(face).await),
        (ErrorKind::LimitMismatch, limit_mismatch(face).await),
        (ErrorKind::NotQueued, not_queued().await),
        (ErrorKind::AlreadyQueued, already_queued().await),
        (ErrorKind::LeaseExpired, lease_expired(face).await),
        (ErrorKind::Draining, draining(face).await),
        (ErrorKind::NotLeader, answered(face, &["error_not_leader 10.0.0.7:6388\n"]).await),
        (ErrorKind::LeaseLost, lease_lost(face).await),
        (ErrorKind::NotHeld, not_held(face).await),
        (ErrorKind::Server, answered(face, &["error_of_tomorrow\n"]).await),
        (ErrorKind::Protocol, answered(face, &["garbage\n"]).await),
        (ErrorKind::InvalidInput, invalid),
        (ErrorKind::ConnectionClosed, connection_closed(face).await),
        (ErrorKind::ClientClosed, client_closed(face).await),
        (ErrorKind::Overloaded, overloaded().await),
        (ErrorKind::Io, io(face).await),
        (ErrorKind::Tls, tls(face).await),
    ]
}

/// The kinds that only lock files have: their errors name the file in place of a key and a server.
fn errors_of_files() -> Vec<(ErrorKind, Error)> {
    let folder = tempfile::tempdir().unwrap();
    let lock = FileLock::builder(folder.path().join("k")).build().unwrap();
    let not_locked = lock.unlock().unwrap_err();
    lock.lock(S).unwrap();
    let already_locked = lock.lock(S).unwrap_err();
    vec![(ErrorKind::NotLocked, not_locked), (ErrorKind::AlreadyLocked, already_locked)]
}

/// The variants as the source names them: from outside, the compiler cannot tell that one is left out.
fn variants() -> BTreeSet<String> {
    let source = include_str!("../../src/error/kind.rs");
    let (_, body) = source.split_once("pub enum ErrorKind {").unwrap();
    let (body, _) = body.split_once("\n}").unwrap();
    let lines = body.lines().map(str::trim).filter(|line| !line.starts_with("//") && !line.is_empty());
    lines.map(|line| line.trim_end_matches(',').to_owned()).collect()
}

async fn every_kind_can_be_provoked(face: Face) {
    let mut seen = BTreeSet::new();
    for (kind, error) in errors(face).await.into_iter().chain(errors_of_files()) {
        assert_eq!(error.kind(), kind, "{error}");
        seen.insert(format!("{kind:?}"));
    }
    assert_eq!(seen, variants());
}

async fn every_error_names_operation_key_and_server_and_what_happened(face: Face) {
    for (kind, error) in errors(face).await {
        let text = error.to_string();
        let (operation, on) = match kind {
            ErrorKind::NotQueued => ("wait of \"k\"", ""),
            ErrorKind::AlreadyQueued => ("enqueue of \"k\"", ""),
            ErrorKind::LeaseExpired => ("wait of \"k\"", SERVER),
            ErrorKind::LeaseLost => ("release of \"k\"", SERVER),
            ErrorKind::NotHeld => ("release of \"k\"", SERVER),
            ErrorKind::PermissionDenied => ("authenticate of \"k\"", SERVER),
            ErrorKind::Overloaded => ("renew of \"k\"", SERVER),
            ErrorKind::InvalidInput => ("", ""),
            ErrorKind::Unsupported => ("\"k\"", ""),
            ErrorKind::ClientClosed => ("acquire of \"k\"", ""),
            _ => ("acquire of \"k\"", SERVER),
        };
        let on = if on.is_empty() { String::new() } else { format!(" on {on}") };
        let head = if operation.is_empty() { String::new() } else { format!("{operation}{on}: ") };
        assert!(text.starts_with(&format!("{head}{kind}")), "{kind:?}: {text}");
        assert_eq!(error.server(), (!on.is_empty()).then_some(SERVER), "{text}");
        assert_eq!(
            error.key().map(ToString::to_string).as_deref(),
            (!head.is_empty()).then_some("k"),
            "{text}"
        );
        assert!(!text.ends_with('.') && !text.contains('\n'), "{text}");
        assert_eq!(format!("{error:?}"), format!("Error({kind:?}, {text:?})"));
    }
}

async fn what_the_server_said_and_what_caused_it_are_kept(face: Face) {
    for (kind, error) in errors(face).await {
        let raw = match kind {
            ErrorKind::Auth | ErrorKind::PermissionDenied => Some("error_auth"),
            ErrorKind::Busy => Some("timeout"),
            ErrorKind::MaxLocks => Some("error_max_locks"),
            ErrorKind::MaxWaiters => Some("error_max_waiters"),
            ErrorKind::LimitMismatch => Some("error_limit_mismatch"),
            ErrorKind::NotQueued => Some("error_not_enqueued"),
            ErrorKind::AlreadyQueued => Some("error_already_enqueued"),
            ErrorKind::LeaseExpired => Some("error_lease_expired"),
            ErrorKind::Draining => Some("error_draining"),
            ErrorKind::NotLeader => Some("error_not_leader 10.0.0.7:6388"),
            ErrorKind::NotHeld => Some("error"),
            ErrorKind::Server => Some("error_of_tomorrow"),
            _ => None,
        };
        assert_eq!(error.raw(), raw, "{error}");
        assert_eq!(error.leader(), (kind == ErrorKind::NotLeader).then_some("10.0.0.7:6388"));
        let caused = matches!(
            kind,
            ErrorKind::Io | ErrorKind::Tls | ErrorKind::Protocol | ErrorKind::ConnectionClosed
        );
        assert_eq!(error.source().is_some(), caused, "{error}");
        if let Some(source) = error.source() {
            assert!(error.to_string().ends_with(&source.to_string()), "{error}");
        }
        assert_eq!(error.clone().to_string(), error.to_string());
    }
}

async fn every_error_is_an_io_error_of_a_kind_and_comes_out_of_it_whole(face: Face) {
    use io::ErrorKind as Io;
    for (kind, error) in errors(face).await {
        let expected = match kind {
            ErrorKind::Busy => Io::ResourceBusy,
            ErrorKind::Timeout => Io::TimedOut,
            ErrorKind::Unsupported => Io::Unsupported,
            ErrorKind::Auth | ErrorKind::PermissionDenied => Io::PermissionDenied,
            ErrorKind::InvalidInput => Io::InvalidInput,
            ErrorKind::Protocol | ErrorKind::Tls => Io::InvalidData,
            ErrorKind::ConnectionClosed => Io::UnexpectedEof,
            ErrorKind::Io => Io::ConnectionRefused,
            _ => Io::Other,
        };
        let text = error.to_string();
        let outer = io::Error::from(error);
        assert_eq!(outer.kind(), expected, "{text}");
        assert_eq!(outer.to_string(), text);
        let inner = outer.downcast::<Error>().expect("the error travels inside");
        assert_eq!((inner.kind(), inner.to_string()), (kind, text));
    }
}

async fn the_predicates_sort_the_kinds(face: Face) {
    use ErrorKind::{
        Busy, ClientClosed, ConnectionClosed, Draining, InvalidInput, Io, LeaseExpired, LeaseLost,
        MaxWaiters, NotHeld, NotLeader, Overloaded, Timeout,
    };
    for (kind, error) in errors(face).await {
        assert_eq!(error.is_timeout(), kind == Timeout);
        assert_eq!(error.is_busy(), [MaxWaiters, Busy].contains(&kind), "{error}");
        assert_eq!(error.is_lease_lost(), [LeaseLost, LeaseExpired, NotHeld].contains(&kind), "{error}");
        assert_eq!(error.is_invalid_input(), kind == InvalidInput);
        let unavailable = [ClientClosed, ConnectionClosed, Draining, Io, NotLeader, Overloaded];
        assert_eq!(error.is_unavailable(), unavailable.contains(&kind));
    }
}

#[tokio::test(start_paused = true)]
async fn another_limit_is_refused_until_the_key_has_been_idle_for_as_long_as_the_error_says() {
    let server = TestServer::new();
    let locks = server.locks();
    let old = locks.semaphore("exports", 3).unwrap().acquire().await.unwrap();
    let new = locks.semaphore("exports", 5).unwrap();
    let error = new.try_acquire().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LimitMismatch);
    for words in ["once it was idle", "--gc-max-idle, 60 s", "--gc-interval, 5 s"] {
        assert!(error.to_string().contains(words), "{error}");
    }
    old.release().await.unwrap();
    let free = Instant::now();
    let slot = loop {
        match new.try_acquire().await {
            Ok(slot) => break slot.expect("it is free"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::LimitMismatch, "{error}"),
        }
        sleep(S).await;
    };
    let idle = free.elapsed();
    assert!((60 * S..=66 * S).contains(&idle), "{idle:?}");
    slot.release().await.unwrap();
}
