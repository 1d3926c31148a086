//! A client that is closed while much is under way: once `close` has answered, nothing of it is left
//! at the server.

use std::time::Duration;

use dflockd_client::server::ServerConfig;
use dflockd_client::test_util::TestServer;
use dflockd_client::{Enqueued, ErrorKind, LeaseGuard, LockClient};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::turns::{Dice, turn};

const S: Duration = Duration::from_secs(1);

/// What a task does until its client is closed.
async fn use_until_closed(locks: LockClient, mut dice: Dice, keep: bool) -> Vec<LeaseGuard> {
    let mut kept = Vec::new();
    loop {
        let key = format!("key-{}", dice.below(4));
        let (lock, slots) = (locks.lock(&key).unwrap(), locks.semaphore("slots", 2).unwrap());
        let outcome = match dice.below(6) {
            0 => lock.try_acquire().await,
            1 => lock.acquire_within(S).await.map(Some),
            2 => lock.isolated().acquire_within(S).await.map(Some),
            3 => lock.isolated().try_acquire().await,
            4 => slots.acquire_within(S).await.map(Some),
            _ => match lock.enqueue().await {
                Ok(Enqueued::Acquired(guard)) => Ok(Some(guard)),
                Ok(Enqueued::Queued(ticket)) => ticket.wait(S).await.map(Some),
                Err(error) => Err(error),
            },
        };
        match outcome {
            Ok(guard) if keep => kept.extend(guard),
            Ok(guard) => {
                turn().await;
                match guard {
                    Some(guard) if dice.below(2) == 0 => drop(guard.release().await),
                    guard => drop(guard),
                }
            }
            Err(error) if error.kind() == ErrorKind::ClientClosed => return kept,
            Err(error) => assert!(error.is_busy() || error.kind() == ErrorKind::LeaseExpired, "{error}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_held_nor_waited_for_once_a_client_has_closed() {
    let run = |frees: bool, seed: u64| async move {
        let config = ServerConfig { auto_release_on_disconnect: frees, ..Default::default() };
        let server = TestServer::with(config).unwrap();
        let mut dice = Dice::new(seed);
        let locks = server.builder().max_leases_per_connection(1 + dice.below(3) as usize).build().unwrap();
        let tasks: Vec<JoinHandle<_>> = (0..12)
            .map(|n| {
                // Some keep what they get, so that others wait.
                tokio::spawn(use_until_closed(locks.clone(), Dice::new(seed * 100 + n), n == 0))
            })
            .collect();
        for _ in 0..dice.below(120) {
            turn().await;
        }
        locks.close().await.unwrap_or_else(|error| panic!("frees {frees}, seed {seed}: {error}"));
        let stats = server.stats();
        let left = (stats.locks.len(), stats.semaphores.len());
        assert_eq!(left, (0, 0), "frees {frees}, seed {seed}: {stats:?}");
        for task in tasks {
            assert!(task.await.unwrap().iter().all(|guard| !guard.is_held()), "seed {seed}");
        }
    };
    for frees in [true, false] {
        for seed in 0..300 {
            // In a task of its own, where a turn is a turn.
            tokio::spawn(run(frees, seed)).await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_nobody_has_looked_at_is_given_back_before_the_client_has_closed() {
    let config = ServerConfig { auto_release_on_disconnect: false, ..Default::default() };
    let server = TestServer::with(config).unwrap();
    let locks = server.locks();
    // Its answer has come, and nobody polls it, until it is dropped a second later.
    let lock = locks.lock("k").unwrap();
    let mut acquire = Box::pin(async move { lock.acquire().await });
    while server.stats().locks.is_empty() {
        assert!(futures::poll!(&mut acquire).is_pending());
        tokio::task::yield_now().await;
    }
    sleep(S / 10).await;
    tokio::spawn(async move {
        sleep(S).await;
        drop(acquire);
    });
    let start = Instant::now();
    locks.close().await.unwrap();
    assert!(server.stats().locks.is_empty(), "{:?}", server.stats());
    assert!(start.elapsed() >= S);
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_nobody_takes_in_time_is_told() {
    let server = TestServer::new();
    let locks = server.locks();
    let lock = locks.lock("k").unwrap();
    let mut acquire = Box::pin(async move { lock.acquire().await });
    while server.stats().locks.is_empty() {
        assert!(futures::poll!(&mut acquire).is_pending());
        tokio::task::yield_now().await;
    }
    let start = Instant::now();
    let error = locks.close().await.unwrap_err();
    assert_eq!((error.kind(), start.elapsed()), (ErrorKind::Timeout, 5 * S), "{error}");
    drop(acquire);
}

#[tokio::test(start_paused = true)]
async fn a_grant_to_a_wait_that_the_close_ends_is_given_back_however_late_it_comes() {
    let config = ServerConfig { auto_release_on_disconnect: false, ..Default::default() };
    let server = TestServer::with(config).unwrap();
    let (locks, rival) = (server.locks(), server.with_own_network().locks());
    let held = rival.lock("k").unwrap().acquire().await.unwrap();
    let lock = locks.lock("k").unwrap();
    let waiting = tokio::spawn(async move { lock.acquire_within(100 * S).await });
    sleep(S).await;
    // The grant is on its way, and takes four seconds.
    server.hold_replies();
    drop(held);
    sleep(S / 10).await;
    assert_eq!(server.stats().locks.len(), 1);
    let healing = server.clone();
    tokio::spawn(async move {
        sleep(4 * S).await;
        healing.heal();
    });
    locks.close().await.unwrap();
    assert!(server.stats().locks.is_empty(), "{:?}", server.stats());
    assert_eq!(waiting.await.unwrap().unwrap_err().kind(), ErrorKind::ClientClosed);
}

#[tokio::test(start_paused = true)]
async fn a_ticket_leaves_the_queue_with_its_client() {
    for frees in [true, false] {
        for turn_has_come in [true, false] {
            let config = ServerConfig { auto_release_on_disconnect: frees, ..Default::default() };
            let server = TestServer::with(config).unwrap();
            let (locks, rival) = (server.locks(), server.with_own_network().locks());
            let held = rival.lock("k").unwrap().acquire().await.unwrap();
            let Enqueued::Queued(ticket) = locks.lock("k").unwrap().enqueue().await.unwrap() else {
                panic!("it is taken")
            };
            let mut held = Some(held);
            if turn_has_come {
                held.take().unwrap().release().await.unwrap();
            }
            locks.close().await.unwrap();
            if let Some(held) = held {
                held.release().await.unwrap();
            }
            assert!(server.stats().locks.is_empty(), "frees {frees}: {:?}", server.stats());
            assert_eq!(ticket.wait(S).await.unwrap_err().kind(), ErrorKind::ClientClosed);
        }
    }
}
