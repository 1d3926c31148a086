//! How long a release is waited for, whatever keeps its answer away.
#![cfg(all(feature = "client", feature = "server"))]

#[path = "support/peers.rs"]
mod peers;

use std::time::Duration;

use dflockd_client::test_util::TestServer;
use dflockd_client::{ErrorKind, LeaseGuard, LockClient};
use futures::future::try_join_all;
use peers::{End, Peers, TOKEN, Wire};
use tokio::time::{Instant, sleep};

const S: Duration = Duration::from_secs(1);

async fn hold_two(locks: &LockClient) -> [LeaseGuard; 2] {
    let acquires = (0..2).map(|n| {
        let lock = locks.lock(format!("key-{n}")).unwrap();
        async move { lock.acquire().await }
    });
    try_join_all(acquires).await.unwrap().try_into().unwrap()
}

/// A client of a peer that grants two keys, and then reads nothing more.
fn with_a_peer_that_falls_silent() -> LockClient {
    let dial = Peers::new(|_, _| {
        let (near, far) = tokio::io::duplex(64);
        tokio::spawn(async move {
            let mut wire = Wire::new(far);
            for token in [TOKEN, "000000000000002b00112233445566aa"] {
                wire.request().await;
                wire.send(format!("ok {token} 600\n")).await;
            }
            std::future::pending::<()>().await;
        });
        End::Open(Box::new(near))
    });
    LockClient::builder().dial(dial).build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_release_behind_a_way_that_is_full_ends_after_its_time() {
    let locks = with_a_peer_that_falls_silent();
    let [first, _second] = hold_two(&locks).await;
    let others = (2..12).map(|n| {
        let lock = locks.lock(format!("key-{n}")).unwrap();
        tokio::spawn(async move { lock.acquire_within(S).await })
    });
    let others: Vec<_> = others.collect();
    sleep(S).await;
    let start = Instant::now();
    let error = first.release().await.unwrap_err();
    assert_eq!((error.kind(), start.elapsed()), (ErrorKind::Timeout, 5 * S), "{error}");
    assert_eq!(error.to_string(), "release of \"key-0\" on 127.0.0.1:6388: timed out: no answer within 5 s");
    for waiting in others {
        assert!(waiting.await.unwrap().is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn closing_the_client_does_not_put_off_a_release() {
    let locks = with_a_peer_that_falls_silent();
    let [first, _second] = hold_two(&locks).await;
    let start = Instant::now();
    let releasing = tokio::spawn(first.release());
    sleep(3 * S).await;
    let closing = tokio::spawn(async move { locks.close().await });
    let error = releasing.await.unwrap().unwrap_err();
    assert_eq!((error.kind(), start.elapsed()), (ErrorKind::Timeout, 5 * S), "{error}");
    assert_eq!(closing.await.unwrap().unwrap_err().kind(), ErrorKind::Timeout);
    assert_eq!(start.elapsed(), 8 * S);
}

#[test]
fn a_release_ends_on_another_runtime_than_the_leases_which_stands_still() {
    let runtime =
        || tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let (ours, other) = (runtime(), runtime());
    let guard = ours.block_on(async {
        let server = TestServer::new();
        server.locks().lock("k").unwrap().acquire().await.unwrap()
    });
    let error = other.block_on(guard.release()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
}
