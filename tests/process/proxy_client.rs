//! The client and the real binary with a way between them that misbehaves: a lease is reported lost
//! before another has the key, a caller who gives up leaves nothing, and what merely is slow works.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dflockd_client::{
    AsyncDistributedLock, Builder, ClientTarget, ErrorKind, LeaseEventKind, LockClient, LostReason,
    StatsResult,
};
use tokio::task::yield_now;
use tokio::time::timeout;

use crate::dflockd::Dflockd;
use crate::proxy::{Proxy, Way};

const S: Duration = Duration::from_secs(1);
/// Longer than anything takes, on the slowest machine.
const CAP: Duration = Duration::from_secs(60);

/// What becomes of a way.
type Turn = fn(&Proxy);

fn start(flags: &[&str]) -> Dflockd {
    Dflockd::start(flags, &[])
}

fn through(port: u16) -> Builder<ClientTarget> {
    LockClient::builder().servers([("127.0.0.1", port)]).keepalive_interval(S).lease_ttl(600 * S)
}

fn lock(proxy: &Proxy) -> AsyncDistributedLock {
    through(proxy.port).build().unwrap().lock("k").unwrap()
}

/// A client without a proxy.
fn direct(server: &Dflockd) -> LockClient {
    through(server.address.port()).keepalive_interval(10 * S).build().unwrap()
}

/// Asks the server until it is so.
async fn until(what: &str, client: &LockClient, so: impl Fn(&StatsResult) -> bool) {
    let asking = async {
        while !so(&client.stats().await.unwrap()[0]) {
            yield_now().await;
        }
    };
    timeout(CAP, asking).await.unwrap_or_else(|_| panic!("it never happens: {what}"));
}

async fn nothing_left(client: &LockClient, after: &str) {
    let free = |stats: &StatsResult| stats.locks.is_empty() && stats.semaphores.is_empty();
    until(&format!("{after}: the server has nothing left"), client, free).await;
}

fn waiters(stats: &StatsResult) -> u64 {
    stats.locks.first().map_or(0, |lock| lock.waiters)
}

#[tokio::test]
async fn a_lease_whose_way_ends_is_lost_and_the_key_is_free() {
    let server = start(&[]);
    let (other, proxy) = (direct(&server), Proxy::to(server.address).await);
    let ends: [(&str, Turn); 6] = [
        ("cut", Proxy::cut),
        ("reset", Proxy::reset),
        ("half-closed towards the server", |proxy| proxy.up(Way::HalfClose)),
        ("half-closed towards the client", |proxy| proxy.down(Way::HalfClose)),
        ("cut at the next reply", |proxy| proxy.down(Way::Cut)),
        ("reset at the next request", |proxy| proxy.up(Way::Reset)),
    ];
    let mut fence = None;
    for (what, end) in ends {
        let guard = lock(&proxy).acquire().await.unwrap();
        assert!(guard.fence() > fence, "{what}");
        end(&proxy);
        // By its next ping at the latest; the lease itself would last for minutes.
        let reason = timeout(CAP, guard.lost()).await;
        assert_eq!(reason, Ok(LostReason::ConnectionClosed), "{what}");
        assert!(!guard.is_held(), "{what}");
        assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::LeaseLost, "{what}");
        let next = other.lock("k").unwrap().acquire_within(CAP).await.expect(what);
        fence = next.fence();
        next.release().await.unwrap();
        proxy.cut();
    }
    nothing_left(&other, "the last").await;
}

/// Holds the key behind a way that swallows; when another has the key, the guard must have let go.
async fn swallowed(server: &Dflockd, key: String, ttl: Duration, swallow: Turn) -> LostReason {
    let proxy = Proxy::to(server.address).await;
    let client = through(proxy.port).lease_ttl(ttl).build().unwrap();
    let guard = client.lock(key.clone()).unwrap().acquire().await.unwrap();
    let other = direct(server).lock(key.clone()).unwrap();
    let next = tokio::spawn({
        let lost = guard.lost();
        async move {
            let next = other.acquire_within(CAP).await.unwrap();
            (next, lost.reason())
        }
    });
    swallow(&proxy);
    let (next, said) = next.await.unwrap();
    assert!(!guard.is_held(), "{key}: two holders");
    assert!(next.is_held() && next.fence() > guard.fence());
    let reason = timeout(CAP, guard.lost()).await.expect("it is lost");
    // Where the runtime was too busy to say so, the clock did: see `is_held`.
    assert!(said.is_none_or(|said| said == reason));
    let error = guard.release().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LeaseLost, "{error}");
    reason
}

#[tokio::test]
async fn a_lease_behind_a_way_that_swallows_is_lost_before_another_has_the_key() {
    let server = start(&["--read-timeout=4"]);
    let ways: [(&str, Turn); 3] = [
        ("up", |proxy| proxy.up(Way::Swallow)),
        ("down", |proxy| proxy.down(Way::Swallow)),
        ("both", |proxy| proxy.both(Way::Swallow)),
    ];
    let all = ways.iter().flat_map(|(name, swallow)| [1, 2, 600].map(|ttl| (name, swallow, ttl)));
    let all = all.map(|(name, swallow, ttl)| {
        let server = &server;
        async move {
            let reason = swallowed(server, format!("{name}-{ttl}"), ttl * S, *swallow).await;
            match ttl {
                // Two keepalive intervals are hardly longer.
                1 | 2 => assert!(
                    matches!(reason, LostReason::DeadlinePassed | LostReason::KeepaliveTimeout),
                    "{name}: {reason}"
                ),
                _ => assert_eq!(reason, LostReason::KeepaliveTimeout, "{name}"),
            }
        }
    });
    futures::future::join_all(all).await;
    nothing_left(&direct(&server), "all were lost").await;
}

#[tokio::test]
async fn a_way_that_drips_or_is_slow_carries_everything() {
    let server = start(&[]);
    let carry = async |way: Way, key: &'static str| {
        let proxy = Proxy::to(server.address).await;
        proxy.both(way);
        let renewals = Arc::new(AtomicUsize::new(0));
        let (counted, (renewed, mut renews)) = (renewals.clone(), tokio::sync::watch::channel(()));
        let client = through(proxy.port).lease_ttl(4 * S).on_event(move |event| {
            if let LeaseEventKind::Renewed { .. } = event.kind {
                counted.fetch_add(1, Ordering::SeqCst);
                renewed.send_replace(());
            }
        });
        let client = client.build().unwrap();
        let guard = client.lock(key).unwrap().acquire().await.unwrap();
        guard.renew().await.unwrap();
        // Once by hand, and once in the background.
        while renewals.load(Ordering::SeqCst) < 2 {
            timeout(CAP, renews.changed()).await.expect("it is renewed").unwrap();
        }
        assert!(guard.is_held(), "{way:?}");
        assert!(client.lock(key).unwrap().try_acquire().await.unwrap().is_none(), "{way:?}");
        let stats = &client.stats().await.unwrap()[0];
        assert!(stats.locks.iter().any(|lock| lock.key == key), "{way:?}: {stats:?}");
        guard.release().await.unwrap();
        let slot = client.semaphore(format!("s{key}"), 3).unwrap().acquire().await.unwrap();
        slot.release().await.unwrap();
    };
    let slow = Way::Delay(Duration::from_millis(100));
    tokio::join!(carry(Way::Pass, "pass"), carry(Way::Drip, "drip"), carry(slow, "slow"));
    nothing_left(&direct(&server), "all were released").await;
}

#[tokio::test]
async fn a_grant_that_took_longer_than_its_lease_to_come_is_none() {
    let server = start(&[]);
    let proxy = Proxy::to(server.address).await;
    proxy.both(Way::Delay(Duration::from_millis(600)));
    let client = through(proxy.port).keepalive_interval(10 * S).lease_ttl(S).build().unwrap();
    let error = client.lock("k").unwrap().acquire_within(10 * S).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LeaseExpired, "{error}");
    assert!(error.is_lease_lost());
    nothing_left(&direct(&server), "a late grant").await;
}

#[tokio::test]
async fn an_acquire_ends_in_its_time_whatever_the_way_does() {
    let server = start(&["--auth-token=s3cret"]);
    let with = |port| through(port).auth_token("s3cret").connect_timeout(S);
    let other = with(server.address.port()).keepalive_interval(10 * S).build().unwrap();
    let held = other.lock("k").unwrap().acquire().await.unwrap();
    let busy = async |way: Way| {
        let proxy = Proxy::to(server.address).await;
        proxy.both(way);
        let lock = with(proxy.port).build().unwrap().lock("k").unwrap();
        let error = lock.acquire_within(S).await.unwrap_err();
        assert_eq!((error.kind(), error.raw()), (ErrorKind::Busy, Some("timeout")), "{way:?}: {error}");
        assert!(lock.try_acquire().await.unwrap().is_none(), "{way:?}");
        (proxy, lock)
    };
    let ((proxy, lock), ..) = tokio::join!(busy(Way::Pass), busy(Way::Drip), busy(Way::Delay(S / 20)));
    // The connection that there is answers nothing any more, and then new ones do not either.
    proxy.both(Way::Swallow);
    let error = timeout(CAP, lock.try_acquire()).await.expect("it ends").unwrap_err();
    assert_eq!((error.kind(), error.raw()), (ErrorKind::Timeout, None), "{error}");
    let error = timeout(CAP, lock.acquire()).await.expect("it ends").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(error.to_string().contains("no connection within 1s"), "{error}");
    for (what, way) in [("cut", Way::Cut), ("reset", Way::Reset), ("half-closed", Way::HalfClose)] {
        proxy.cut();
        proxy.down(way);
        let error = timeout(CAP, lock.acquire()).await.expect(what).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionClosed, "{what}: {error}");
        assert!(error.is_unavailable());
    }
    proxy.cut();
    held.release().await.unwrap();
    lock.acquire().await.expect("the way is mended").release().await.unwrap();
    nothing_left(&other, "all").await;
}

#[tokio::test]
async fn a_cancelled_wait_leaves_the_queue_whatever_the_way_does() {
    let server = start(&[]);
    let (other, proxy) = (direct(&server), Proxy::to(server.address).await);
    let held = other.lock("k").unwrap().acquire().await.unwrap();
    let lock = lock(&proxy);
    for way in [Way::Pass, Way::Delay(S / 20), Way::Drip] {
        proxy.both(way);
        let mut waiting = Box::pin(lock.acquire_within(600 * S));
        tokio::select! {
            _ = &mut waiting => panic!("{way:?}: the key is taken"),
            () = until("it waits", &other, |stats| waiters(stats) == 1) => {}
        }
        drop(waiting);
        until(&format!("{way:?}: the wait is over"), &other, |stats| waiters(stats) == 0).await;
    }
    // A way that ends under a wait ends the wait, on both sides.
    let ends: [(&str, Turn); 5] = [
        ("cut", Proxy::cut),
        ("reset", Proxy::reset),
        ("half-closed towards the server", |proxy| proxy.up(Way::HalfClose)),
        ("half-closed towards the client", |proxy| proxy.down(Way::HalfClose)),
        ("swallowed, then cut", |proxy| {
            proxy.both(Way::Swallow);
            proxy.cut();
        }),
    ];
    for (what, end) in ends {
        let waiting = tokio::spawn({
            let lock = lock.clone();
            async move { lock.acquire_within(600 * S).await }
        });
        until("it waits", &other, |stats| waiters(stats) == 1).await;
        end(&proxy);
        let error = timeout(CAP, waiting).await.expect(what).unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionClosed, "{what}: {error}");
        until(&format!("{what}: the wait is over"), &other, |stats| waiters(stats) == 0).await;
        proxy.cut();
    }
    held.release().await.unwrap();
    nothing_left(&other, "all").await;
}

#[tokio::test]
async fn an_acquire_cancelled_at_any_moment_leaves_nothing() {
    let server = start(&[]);
    let (other, proxy) = (direct(&server), Proxy::to(server.address).await);
    let lock = lock(&proxy);
    let mut granted = 0;
    for way in [Way::Pass, Way::Delay(S / 200), Way::Drip] {
        proxy.both(way);
        for turns in 0..60 {
            if turns % 5 == 0 {
                // Every now and then it has to dial first.
                proxy.cut();
                proxy.both(way);
            }
            let patience = async {
                // The last one has all the time there is.
                for _ in 0..if turns == 59 { u32::MAX } else { turns * turns } {
                    yield_now().await;
                }
            };
            tokio::select! {
                biased;
                guard = lock.acquire() => granted += usize::from(guard.is_ok()),
                () = patience => {}
            }
        }
        nothing_left(&other, &format!("{way:?}")).await;
    }
    assert!(granted > 0 && granted < 180, "{granted} of 180: it was never cancelled at the grant");
    // A reply that is lost takes its grant with it.
    for way in [Way::Cut, Way::Reset] {
        proxy.cut();
        proxy.down(way);
        let error = lock.acquire().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionClosed, "{way:?}: {error}");
        nothing_left(&other, &format!("{way:?}")).await;
    }
}
