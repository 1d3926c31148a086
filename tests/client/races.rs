//! Two things at once: a grant and the end of the wait for it, a release and the loss of its
//! connection, two releases, a drop and the next acquire. Whichever comes first, nobody holds what
//! nobody knows of, and a release is attempted once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dflockd_client::failpoints::await_event_handlers;
use dflockd_client::server::{Server, ServerConfig};
use dflockd_client::test_util::TestServer;
use dflockd_client::{Enqueued, ErrorKind, LeaseEventKind, LockClient};
use tokio::time::{Instant, sleep, sleep_until};

use crate::peers::{Peers, TOKEN, Wire, peer, sound};
use crate::turns::turn;
use crate::world::{S, Way, World, count};

async fn turns(count: usize) {
    for _ in 0..count {
        turn().await;
    }
}

/// Whether the server frees what a closed connection held.
fn settings(frees: bool) -> ServerConfig {
    ServerConfig { auto_release_on_disconnect: frees, ..Default::default() }
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_crosses_a_cancel_is_given_back() {
    let mut crossed = 0;
    for (room, steps) in [(64 * 1024, 12), (1, 90)] {
        for (frees, offset) in
            [true, false].into_iter().flat_map(|frees| (0..steps).map(move |at| (frees, at)))
        {
            crossed += tokio::spawn(async move {
                let world = World::new(settings(frees), Way::pipe(room));
                let (lock, held) = (world.lock(), world.rival_holds().await);
                let waiter = tokio::spawn(async move { lock.acquire().await });
                sleep(S).await;
                assert_eq!(count(&world.server.stats()), (1, 1));
                drop(held);
                turns(offset).await;
                let granted = count(&world.server.stats()) == (1, 0);
                waiter.abort();
                let taken = waiter.await.is_ok_and(|outcome| outcome.is_ok());
                sleep(S).await;
                let stats = world.server.stats();
                assert_eq!(count(&stats), (0, 0), "{room} bytes, frees: {frees}, after {offset}: {stats:?}");
                usize::from(granted && !taken)
            })
            .await
            .unwrap();
        }
    }
    assert!(crossed > 20, "no grant ever crossed a cancel: {crossed}");
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_crosses_a_timeout_is_held_or_given_back() {
    let mut outcomes = [0, 0];
    for (frees, offset) in [true, false].into_iter().flat_map(|frees| (0..=8).map(move |at| (frees, at))) {
        let world = World::new(settings(frees), Way::pipe(64));
        let (lock, held) = (world.lock(), world.rival_holds().await);
        // There is a connection already, so the request leaves at once.
        world.locks.stats().await.unwrap();
        let due = Instant::now() + S + Duration::from_millis(offset) - Duration::from_millis(4);
        let let_go = async {
            sleep_until(due).await;
            drop(held);
        };
        let (outcome, ()) = tokio::join!(lock.acquire_within(S), let_go);
        sleep(S).await;
        let stats = world.server.stats();
        match outcome {
            Ok(guard) => {
                assert!(guard.is_held());
                assert_eq!(count(&stats), (1, 0), "{offset}: {stats:?}");
                outcomes[0] += 1;
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
                assert_eq!(count(&stats), (0, 0), "{offset}: {stats:?}");
                outcomes[1] += 1;
            }
        }
    }
    assert!(outcomes.iter().all(|n| *n > 4), "{outcomes:?}");
}

#[tokio::test(start_paused = true)]
async fn a_grant_whose_reply_comes_after_the_client_gave_up_is_given_back() {
    let server = TestServer::with(settings(false)).unwrap();
    let (locks, rival) = (server.locks(), server.with_own_network().locks());
    let held = rival.lock("k").unwrap().acquire().await.unwrap();
    let waiter = tokio::spawn(async move { locks.lock("k").unwrap().acquire_within(2 * S).await });
    sleep(S).await;
    server.hold_replies();
    held.release().await.unwrap();
    let error = waiter.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert_eq!(count(&server.stats()), (1, 0), "the grant is on its way");
    sleep(S / 2).await;
    server.heal();
    sleep(S).await;
    let stats = server.stats();
    assert_eq!((stats.connections, count(&stats)), (1, (0, 0)), "{stats:?}");
}

/// What became of releases, as told to whoever listens.
fn counted(server: &TestServer) -> (LockClient, Arc<Mutex<Vec<&'static str>>>) {
    let releases = Arc::new(Mutex::new(Vec::new()));
    let told = releases.clone();
    let builder = server.builder().on_event(move |event| match &event.kind {
        LeaseEventKind::Released => told.lock().unwrap().push("released"),
        LeaseEventKind::ReleaseFailed(_) => told.lock().unwrap().push("failed"),
        LeaseEventKind::Lost(_) => told.lock().unwrap().push("lost"),
        _ => {}
    });
    (builder.build().unwrap(), releases)
}

#[tokio::test(start_paused = true)]
async fn a_release_that_crosses_the_loss_of_its_connection_has_one_outcome() {
    let mut seen = Vec::new();
    for (offset, early) in (0..8).flat_map(|offset| [(offset, false), (offset, true)]) {
        for (frees, reset) in [(true, false), (true, true), (false, false)] {
            let outcome = tokio::spawn(async move {
                let what = format!("{offset} turns, early: {early}, frees: {frees}, reset: {reset}");
                let server = TestServer::with(settings(frees)).unwrap();
                let (locks, releases) = counted(&server);
                let guard = locks.lock("k").unwrap().acquire().await.unwrap();
                let cut = || if reset { server.reset() } else { server.cut() };
                if early {
                    cut();
                    turns(offset).await;
                    drop(guard);
                } else {
                    drop(guard);
                    turns(offset).await;
                    cut();
                }
                sleep(S).await;
                await_event_handlers();
                let releases = releases.lock().unwrap().clone();
                assert_eq!(releases.len(), 1, "{what}: {releases:?}");
                let free = count(&server.stats()) == (0, 0);
                // A release that failed may not have reached a server that waits for one.
                assert!(
                    free || (!frees && releases == ["failed"]),
                    "{what}: {releases:?}, {:?}",
                    server.stats()
                );
                if !free {
                    sleep(34 * S).await;
                    assert_eq!(count(&server.stats()), (0, 0), "{what}: it runs out");
                }
                releases[0]
            });
            seen.push(outcome.await.unwrap());
        }
    }
    for outcome in ["released", "failed", "lost"] {
        assert!(seen.contains(&outcome), "never {outcome}");
    }
}

#[tokio::test(start_paused = true)]
async fn of_two_handles_that_release_one_reaches_the_server() {
    let releases = Arc::new(AtomicUsize::new(0));
    let counted = releases.clone();
    let serve = move || {
        let counted = counted.clone();
        peer(move |far| async move {
            let mut wire = Wire::new(far);
            while let Some(request) = wire.request().await {
                match &request[..2] {
                    "l " => wire.send(format!("ok {TOKEN} 33\n")).await,
                    "r " => {
                        counted.fetch_add(1, Ordering::SeqCst);
                        wire.send("ok\n").await;
                    }
                    _ => wire.send("ok\n").await,
                }
            }
        })
    };
    let dial = Peers::first(serve, &Server::new(settings(true)).unwrap());
    let lock = LockClient::builder().dial(dial).build().unwrap().lock("k").unwrap();
    let guard = lock.acquire().await.unwrap();
    let (one, two) = ((*guard).clone(), (*guard).clone());
    let (one, two) = tokio::join!(one.release(), two.release());
    let errors: Vec<_> = [one, two].into_iter().filter_map(Result::err).map(|error| error.kind()).collect();
    assert_eq!(errors, [ErrorKind::NotHeld]);
    assert!(!guard.is_held());
    assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::NotHeld);
    sleep(S).await;
    assert_eq!(releases.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_panic_that_unwinds_through_a_guard_releases_it() {
    let world = World::new(settings(false), Way::pipe(64));
    let lock = world.lock();
    let task = tokio::spawn(async move {
        let guard = lock.acquire().await.unwrap();
        assert!(!guard.is_held(), "as a test of a panic");
    });
    assert!(task.await.unwrap_err().is_panic());
    sleep(S).await;
    assert_eq!(count(&world.server.stats()), (0, 0));
    assert!(world.lock().try_acquire().await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_lease_keeps_the_key_and_its_connection_until_its_ttl() {
    let world = World::new(settings(true), Way::pipe(64));
    world.lock().acquire().await.unwrap().forget();
    let World { server, locks, rival } = world;
    drop(locks);
    // The margin ahead of the deadline is at most 500 ms.
    sleep(32 * S).await;
    let stats = server.stats();
    assert_eq!((stats.connections, count(&stats)), (1, (1, 0)));
    assert!(rival.lock("k").unwrap().try_acquire().await.unwrap().is_none());
    drop(rival);
    sleep(3 * S).await;
    let stats = server.stats();
    assert_eq!((stats.connections, count(&stats)), (0, (0, 0)), "{stats:?}");
}

#[tokio::test(start_paused = true)]
async fn a_grant_whose_confirmation_takes_as_long_as_its_lease_is_given_back() {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let dial = Peers::new(move |_, _| {
        let tell = tell.clone();
        peer(|far| async move {
            let mut wire = Wire::new(far);
            while let Some(request) = wire.request().await {
                let answer = match request.split(' ').collect::<Vec<_>>()[..] {
                    ["l", _, "0", ..] => "timeout\n".to_owned(),
                    ["l", ..] => {
                        sleep(2 * S).await;
                        format!("ok {TOKEN} 3\n")
                    }
                    ["n", ..] => {
                        sleep(3 * S).await;
                        "ok 3\n".to_owned()
                    }
                    _ => {
                        tell.send(request).unwrap();
                        "ok\n".to_owned()
                    }
                };
                wire.send(&answer).await;
            }
        })
    });
    let lock = LockClient::builder().dial(dial).build().unwrap().lock("k").unwrap();
    let error = lock.acquire().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LeaseExpired, "{error}");
    assert_eq!(told.recv().await.unwrap(), format!("r k {TOKEN}"));
}

#[tokio::test(start_paused = true)]
async fn a_connection_by_which_a_forgotten_lease_may_still_be_held_is_not_used_again() {
    let server = Server::new(settings(true)).unwrap();
    let dial = Peers::new(move |_, _| sound(&server));
    let dials = dial.dials();
    let lock = LockClient::builder().dial(dial).build().unwrap().lock("k").unwrap();
    let Enqueued::Acquired(guard) = lock.enqueue().await.unwrap() else { panic!("the key is free") };
    guard.forget();
    sleep(35 * S).await;
    // A server that still knew of the first would say that this is the second on one connection.
    drop(lock.enqueue().await.unwrap());
    assert_eq!(dials.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn leases_outlive_the_client_that_took_them() {
    let world = World::new(settings(true), Way::pipe(64));
    let one = world.lock().acquire().await.unwrap();
    let two = world.locks.lock("two").unwrap().acquire().await.unwrap();
    let World { server, locks, rival } = world;
    drop((locks, rival));
    sleep(600 * S).await;
    assert!(one.is_held() && two.is_held());
    assert_eq!(count(&server.stats()), (2, 0));
    one.release().await.unwrap();
    drop(two);
    sleep(S).await;
    let stats = server.stats();
    assert_eq!((stats.connections, count(&stats)), (0, (0, 0)), "{stats:?}");
}

#[tokio::test(start_paused = true)]
async fn a_drop_followed_at_once_by_an_acquire_gets_the_key() {
    for room in [1, 64 * 1024] {
        let world = World::new(settings(true), Way::pipe(room));
        let lock = world.lock();
        let mut guard = lock.acquire().await.unwrap();
        let start = Instant::now();
        for _ in 0..100 {
            let fence = guard.fence();
            drop(guard);
            guard = lock.acquire_within(S).await.unwrap();
            assert!(guard.fence() > fence && guard.is_held());
        }
        assert!(start.elapsed() < S, "somebody waited for a lease to run out: {:?}", start.elapsed());
        assert_eq!(count(&world.server.stats()), (1, 0));
        assert!(world.server.stats().connections <= 3, "{:?}", world.server.stats());
    }
}
