//! Tries again: what a policy repeats and what it never does, always within the acquire timeout;
//! and what is repeated without one, which is only what was never sent.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dflockd_client::server::{Server, ServerConfig};
use dflockd_client::{ErrorKind, LockClient, RetryPolicy};
use tokio::time::{Instant, sleep};

use crate::faces::{Face, Lock, on_both_faces};
use crate::peers::{End, Peers, Wire, peer, script, sound};

const S: Duration = Duration::from_secs(1);

on_both_faces!(
    a_server_that_comes_up_late_is_tried_again_after_pauses_that_double,
    connections_that_fail_half_way_are_tried_again_and_leave_one_holder,
    a_dial_that_hangs_is_tried_again_after_its_own_time,
    answers_stand_however_patient_the_client_is,
    a_refused_token_is_not_offered_again,
    bad_input_is_not_tried_again,
    a_try_has_no_time_for_another_try,
    without_a_policy_nothing_is_tried_again,
    an_idle_connection_that_the_server_has_ended_is_replaced_without_a_policy,
);

fn server() -> Server {
    Server::new(ServerConfig::default()).unwrap()
}

fn patient() -> RetryPolicy {
    RetryPolicy::new().jitter(0.0)
}

fn lock(face: Face, dial: Peers, retry: Option<RetryPolicy>) -> (Lock, Arc<AtomicUsize>) {
    let dials = dial.dials();
    let mut builder = LockClient::builder().dial(dial);
    if let Some(policy) = retry {
        builder = builder.retry(policy);
    }
    (face.build(builder).lock("k").unwrap(), dials)
}

/// A lock whose first connections end in `end`, and all later ones at a sound server.
fn healing(face: Face, failures: usize, end: fn() -> End) -> (Lock, Arc<AtomicUsize>, Server) {
    let server = server();
    let way = server.clone();
    let dial = Peers::new(move |_, nth| if nth < failures { end() } else { sound(&way) });
    let (lock, dials) = lock(face, dial, Some(patient()));
    (lock, dials, server)
}

fn refused() -> End {
    End::Fails(io::ErrorKind::ConnectionRefused)
}

/// Takes the request, and closes without an answer.
fn hangs_up() -> End {
    peer(|far| async move {
        Wire::new(far).request().await;
    })
}

async fn a_server_that_comes_up_late_is_tried_again_after_pauses_that_double(face: Face) {
    let (lock, dials, _server) = healing(face, 4, refused);
    let start = Instant::now();
    let guard = lock.acquire().await.unwrap();
    assert!(guard.is_held());
    assert_eq!(dials.load(Ordering::SeqCst), 5);
    let pauses = Duration::from_millis(100 + 200 + 400 + 800);
    let took = start.elapsed();
    assert!(took >= pauses && (took < pauses + S / 10 || !face.is_exact()), "{took:?}");
}

async fn connections_that_fail_half_way_are_tried_again_and_leave_one_holder(face: Face) {
    let ends: [fn() -> End; 5] = [
        hangs_up,
        || End::Fails(io::ErrorKind::ConnectionReset),
        || script(&["error_draining\n"], true),
        || script(&["error_not_leader 10.0.0.9:6388\n"], true),
        // What a server says that had read nothing for too long: the request was lost.
        || script(&["error\n"], true),
    ];
    for end in ends {
        let (lock, dials, server) = healing(face, 2, end);
        let guard = lock.acquire().await.unwrap();
        assert_eq!(dials.load(Ordering::SeqCst), 3);
        assert_eq!(server.stats().locks.len(), 1);
        guard.release().await.unwrap();
    }
}

async fn a_dial_that_hangs_is_tried_again_after_its_own_time(face: Face) {
    let (lock, dials, _server) = healing(face, 1, || End::Hangs);
    let start = Instant::now();
    lock.acquire_within(30 * S).await.unwrap().release().await.unwrap();
    assert_eq!(dials.load(Ordering::SeqCst), 2);
    let took = start.elapsed();
    assert!(took >= 10 * S && (took < 11 * S || !face.is_exact()), "{took:?}");
}

async fn answers_stand_however_patient_the_client_is(face: Face) {
    let answers: [(fn() -> End, ErrorKind); 7] = [
        (|| script(&["timeout\n"], false), ErrorKind::Busy),
        (|| script(&["error_auth\n"], true), ErrorKind::Auth),
        (|| script(&["error_limit_mismatch\n"], false), ErrorKind::LimitMismatch),
        (|| script(&["error_max_locks\n"], false), ErrorKind::MaxLocks),
        (|| script(&["error_max_waiters\n"], false), ErrorKind::MaxWaiters),
        (|| script(&["error\n"], false), ErrorKind::Server),
        (|| script(&["nonsense\n"], false), ErrorKind::Protocol),
    ];
    for (end, kind) in answers {
        let (lock, dials, _server) = healing(face, 1, end);
        // Over a connection of its own: a busy key would be waited for over another one.
        let error = lock.isolated().acquire().await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert_eq!(dials.load(Ordering::SeqCst), 1, "{error}");
    }
}

async fn a_refused_token_is_not_offered_again(face: Face) {
    let dial = Peers::new(|_, _| script(&["error_auth\n"], true));
    let dials = dial.dials();
    let builder = LockClient::builder().dial(dial).auth_token("wrong").retry(patient());
    let error = face.build(builder).lock("k").unwrap().acquire().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    assert_eq!(dials.load(Ordering::SeqCst), 1);
}

async fn bad_input_is_not_tried_again(face: Face) {
    let dial = Peers::new(|_, _| refused());
    let dials = dial.dials();
    let builder = LockClient::builder().dial(dial).sharding_strategy(|_: &str, _| 7_usize).retry(patient());
    let error = face.build(builder).lock("k").unwrap().acquire().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert_eq!(dials.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn trying_ends_with_the_acquire_timeout_and_the_last_error() {
    let (lock, dials) = lock(Face::Tasks, Peers::new(|_, _| refused()), Some(patient().longest_pause(S)));
    let start = Instant::now();
    let error = lock.acquire_within(5 * S).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    assert!(start.elapsed() <= 5 * S && start.elapsed() > 3 * S, "{:?}", start.elapsed());
    assert_eq!(dials.load(Ordering::SeqCst), 8); // at 0, 0.1, 0.3, 0.7, 1.5, 2.5, 3.5 and 4.5 s
}

#[tokio::test(start_paused = true)]
async fn what_is_left_of_the_timeout_is_what_the_next_try_waits() {
    // Refused for 3 s of a timeout of 5 s, then a busy key: 2 s more, up to a whole second.
    let server = server();
    let holder = LockClient::builder().dial({
        let way = server.clone();
        Peers::new(move |_, _| sound(&way))
    });
    let _held = holder.build().unwrap().lock("k").unwrap().acquire().await.unwrap();
    let start = Instant::now();
    let dial = Peers::new(move |_, _| if start.elapsed() < 3 * S { refused() } else { sound(&server) });
    let (lock, _) = lock(Face::Tasks, dial, Some(patient().longest_pause(S / 2)));
    let error = lock.acquire_within(5 * S).await.unwrap_err();
    assert_eq!((error.kind(), error.raw()), (ErrorKind::Busy, Some("timeout")));
    assert!(start.elapsed() >= 5 * S && start.elapsed() < 6 * S, "{:?}", start.elapsed());
}

async fn a_try_has_no_time_for_another_try(face: Face) {
    let (lock, dials, _server) = healing(face, 1, refused);
    assert_eq!(lock.try_acquire().await.unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(dials.load(Ordering::SeqCst), 1);
    assert!(lock.try_acquire().await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_retry_stops_trying() {
    let (lock, dials) = lock(Face::Tasks, Peers::new(|_, _| refused()), Some(patient()));
    assert!(tokio::time::timeout(S / 2, lock.acquire()).await.is_err());
    let before = dials.load(Ordering::SeqCst);
    sleep(60 * S).await;
    assert_eq!(dials.load(Ordering::SeqCst), before);
}

async fn without_a_policy_nothing_is_tried_again(face: Face) {
    for end in [refused as fn() -> End, hangs_up] {
        let (lock, dials) = lock(face, Peers::new(move |_, _| end()), None);
        let kind = lock.acquire().await.unwrap_err().kind();
        assert!(matches!(kind, ErrorKind::Io | ErrorKind::ConnectionClosed), "{kind:?}");
        assert_eq!(dials.load(Ordering::SeqCst), 1);
    }
}

async fn an_idle_connection_that_the_server_has_ended_is_replaced_without_a_policy(face: Face) {
    // A server says `error` before it drops an idle connection: with and without the end behind it.
    for closes in [true, false] {
        let server = server();
        let way = server.clone();
        let first = move || {
            peer(move |far| async move {
                let mut wire = Wire::new(far);
                wire.request().await;
                wire.send("timeout\n").await;
                sleep(S).await;
                wire.send("error\n").await;
                if !closes {
                    wire.closed().await;
                }
            })
        };
        let (lock, dials) =
            lock(face, Peers::new(move |_, nth| if nth == 0 { first() } else { sound(&way) }), None);
        assert!(lock.try_acquire().await.unwrap().is_none());
        sleep(2 * S).await;
        assert!(lock.try_acquire().await.unwrap().is_some(), "closes: {closes}");
        assert_eq!(dials.load(Ordering::SeqCst), 2);
    }
}

#[test]
fn a_policy_that_cannot_work_is_refused_by_build() {
    let build = |policy| LockClient::builder().retry(policy).build().map(drop);
    let faults = [
        (RetryPolicy::new().first_pause(Duration::ZERO), "first_pause is 0, it must be longer"),
        (RetryPolicy::new().longest_pause(Duration::ZERO), "longest_pause is 0, it must be longer"),
        (RetryPolicy::new().jitter(1.5), "jitter is 1.5, the range is 0 to 1"),
        (RetryPolicy::new().jitter(f64::NAN), "jitter is NaN, the range is 0 to 1"),
    ];
    for (policy, fault) in faults {
        let error = build(policy).unwrap_err();
        assert_eq!(error.to_string(), format!("invalid input: {fault}"));
    }
    assert!(build(RetryPolicy::new()).is_ok());
}
