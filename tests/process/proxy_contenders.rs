//! Contenders for one key, each behind a way of its own that misbehaves: a counter that only the
//! holder may raise stays exact, and nobody who claims to hold the key is overtaken.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use dflockd_client::{LeaseGuard, LockClient, Outcome};
use tokio::task::yield_now;
use tokio::time::timeout;

use crate::dflockd::Dflockd;
use crate::proxy::{Proxy, Way};

const S: Duration = Duration::from_secs(1);
/// Longer than anything takes, on the slowest machine.
const CAP: Duration = Duration::from_secs(60);

/// What becomes of a way.
type Turn = fn(&Proxy);

const CONTENDERS: usize = 4;
const ROUNDS: usize = 6;

/// What the lock protects. It knows the highest fence that has looked at it.
#[derive(Default)]
struct Counter {
    fence: u64,
    value: u64,
}

/// Another holder has come since.
#[derive(Debug)]
struct Overtaken;

impl Counter {
    fn admit(&mut self, fence: u64) -> Result<&mut u64, Overtaken> {
        if fence < self.fence {
            return Err(Overtaken);
        }
        self.fence = fence;
        Ok(&mut self.value)
    }
}

/// Raises the counter in two steps with some talk to the server between them, through whatever lies
/// between; whether it came to that.
async fn raise(guard: &LeaseGuard, counter: &Mutex<Counter>) -> bool {
    let fence = guard.fence().expect("our server fences").get();
    let work = async {
        let seen = *counter.lock().unwrap().admit(fence)?;
        for _ in 0..3 {
            // It may fail, and then it is up to the lease whether the work may go on.
            let _ = guard.renew().await;
            yield_now().await;
        }
        if !guard.is_held() {
            return Ok(false);
        }
        let mut counter = counter.lock().unwrap();
        let value = counter.admit(fence)?;
        assert_eq!(*value, seen, "somebody else has raised it meanwhile");
        *value = seen + 1;
        Ok(true)
    };
    match guard.run(work).await {
        Outcome::Completed(Ok(raised)) => raised,
        // Asked after the fact, so that a runtime that was too busy for a while is no excuse.
        Outcome::Completed(Err(Overtaken)) => {
            assert!(!guard.is_held(), "two holders: a later one has been at the counter");
            false
        }
        Outcome::Lost(_) => false,
    }
}

/// How often the counter was raised, by a contender whose way turns bad while it holds the key, or
/// before it has it.
async fn contend(server: &Dflockd, counter: Arc<Mutex<Counter>>, turn: Turn, early: bool) -> u64 {
    let proxy = Proxy::to(server.address).await;
    let client = LockClient::builder().servers([("127.0.0.1", proxy.port)]).connect_timeout(S);
    let client = client.keepalive_interval(S).lease_ttl(S).build().unwrap();
    let lock = client.lock("k").unwrap();
    let mut raised = 0;
    for round in 0..ROUNDS {
        let bad = round % 3 == 1;
        if bad && early {
            turn(&proxy);
        }
        // One whose grant or request is lost on the way gives up.
        let patience = if bad && early { S } else { CAP };
        if let Ok(Ok(guard)) = timeout(patience, lock.acquire_within(CAP)).await {
            if bad && !early {
                turn(&proxy);
            }
            raised += u64::from(raise(&guard, &counter).await);
            match round % 2 {
                0 => drop(guard),
                _ => drop(guard.release().await),
            }
        }
        if bad {
            proxy.cut();
        }
    }
    raised
}

async fn all_contend(what: &'static str, turn: Turn) {
    let server = Dflockd::start::<&str>(&[], &[]);
    let counter = Arc::new(Mutex::new(Counter::default()));
    let contenders = (0..CONTENDERS).map(|n| contend(&server, counter.clone(), turn, n == 0));
    let raised: Vec<u64> = futures::future::join_all(contenders).await;
    let counter = counter.lock().unwrap().value;
    assert_eq!(raised.iter().sum::<u64>(), counter, "{what}: {raised:?}");
    assert!(counter >= (ROUNDS / 2) as u64, "{what}: hardly anybody got through: {raised:?}");
    // Whoever was cut off leaves nothing that outlives its lease.
    let client = LockClient::builder().servers([("127.0.0.1", server.address.port())]).build().unwrap();
    client.lock("k").unwrap().acquire_within(CAP).await.unwrap().release().await.unwrap();
    let freed = async {
        while !client.stats().await.unwrap()[0].locks.is_empty() {
            yield_now().await;
        }
    };
    timeout(CAP, freed).await.unwrap_or_else(|_| panic!("{what}: somebody still holds or waits"));
}

/// Each kind of way with a server of its own, all at once.
async fn all_contend_over<const N: usize>(ways: [(&'static str, Turn); N]) {
    futures::future::join_all(ways.map(|(what, turn)| all_contend(what, turn))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_counter_stays_exact_over_slow_ways() {
    all_contend_over([
        ("sound", |_| {}),
        ("slow", |proxy| proxy.both(Way::Delay(S / 20))),
        ("slower than the lease", |proxy| proxy.both(Way::Delay(6 * S / 10))),
        ("dripping", |proxy| proxy.both(Way::Drip)),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_counter_stays_exact_over_ways_that_end() {
    all_contend_over([
        ("cut", Proxy::cut),
        ("reset", Proxy::reset),
        ("cut at the next reply", |proxy| proxy.down(Way::Cut)),
        ("reset at the next request", |proxy| proxy.up(Way::Reset)),
        ("half-closed towards the server", |proxy| proxy.up(Way::HalfClose)),
        ("half-closed towards the client", |proxy| proxy.down(Way::HalfClose)),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_counter_stays_exact_over_ways_that_swallow() {
    all_contend_over([
        ("swallows requests", |proxy| proxy.up(Way::Swallow)),
        ("swallows replies", |proxy| proxy.down(Way::Swallow)),
        ("swallows all", |proxy| proxy.both(Way::Swallow)),
    ])
    .await;
}
