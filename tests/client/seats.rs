//! What a connection is for: a lease never shares one with a wait, whatever tasks do, and none that has
//! a lease is closed for being idle. The wire itself is watched.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dflockd_client::net::{BoxStream, Dial};
use dflockd_client::server::{Server, ServerConfig};
use dflockd_client::{Enqueued, ErrorKind, LeaseGuard, LockClient, Result};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream};
use tokio::time::{Instant, sleep, timeout};

use crate::turns::{Dice, poll_times, turn};

const S: Duration = Duration::from_secs(1);

/// A client whose dials take a while, for connections with one lease each.
fn slow(server: &Server, idle: Duration) -> LockClient {
    let builder = LockClient::builder().dial(Watched::new(server, 0));
    builder.max_leases_per_connection(1).idle_timeout(idle).build().unwrap()
}

/// Two tasks wait for one dial. The first has the connection that it brings to itself, and lets it go,
/// before the second looks.
async fn a_place_taken_late(idle: Duration) -> (LockClient, LeaseGuard, LeaseGuard) {
    let locks = slow(&Server::new(ServerConfig::default()).unwrap(), idle);
    let other = locks.lock("k0").unwrap().acquire().await.unwrap();
    let (one, two) = (locks.lock("k1").unwrap(), locks.lock("k2").unwrap());
    let (mut first, mut second) = (Box::pin(one.acquire()), Box::pin(two.acquire_within(S)));
    assert!(futures::poll!(&mut first).is_pending() && futures::poll!(&mut second).is_pending());
    first.await.unwrap().release().await.unwrap();
    sleep(S / 10).await;
    let late = second.await.unwrap();
    (locks, other, late)
}

#[tokio::test(start_paused = true)]
async fn a_place_taken_late_is_not_closed_as_idle() {
    let (_locks, _other, late) = a_place_taken_late(2 * S).await;
    sleep(60 * S).await;
    assert!(late.is_held(), "{:?}", late.state());
}

#[tokio::test(start_paused = true)]
async fn a_place_taken_late_is_not_shared_with_a_wait() {
    for cancel in [true, false] {
        let (locks, other, late) = a_place_taken_late(60 * S).await;
        let waits = locks.lock("k0").unwrap().isolated();
        let waiting = tokio::spawn(async move { waits.acquire_within(100 * S).await });
        sleep(S).await;
        late.renew().await.unwrap();
        if cancel {
            waiting.abort();
        }
        sleep(60 * S).await;
        assert!(late.is_held() && other.is_held(), "{:?}", late.state());
    }
}

#[tokio::test(start_paused = true)]
async fn a_free_key_is_not_tried_behind_a_wait() {
    let locks = slow(&Server::new(ServerConfig::default()).unwrap(), 60 * S);
    let _other = locks.lock("k0").unwrap().acquire().await.unwrap();
    let (one, two) = (locks.lock("k1").unwrap(), locks.lock("k2").unwrap());
    let (mut first, mut second) = (Box::pin(one.acquire()), Box::pin(two.acquire_within(S)));
    assert!(futures::poll!(&mut first).is_pending() && futures::poll!(&mut second).is_pending());
    first.await.unwrap().release().await.unwrap();
    let waits = locks.lock("k0").unwrap().isolated();
    tokio::spawn(async move { waits.acquire_within(45 * S).await });
    sleep(S / 10).await;
    let start = Instant::now();
    assert!(second.await.unwrap().is_held());
    assert!(start.elapsed() < S, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_nobody_took_in_the_end_closes_when_it_is_idle() {
    let server = Server::new(ServerConfig::default()).unwrap();
    let locks = slow(&server, 5 * S);
    let _other = locks.lock("k0").unwrap().acquire().await.unwrap();
    let one = locks.lock("k1").unwrap();
    // Whoever dialled looks no more, but is there until the dial is over.
    let mut first = Box::pin(one.acquire());
    let second = locks.lock("k2").unwrap();
    assert!(futures::poll!(&mut first).is_pending());
    let dialling = tokio::spawn(async move { second.acquire().await });
    tokio::task::yield_now().await;
    sleep(S / 10).await;
    dialling.abort();
    drop((dialling.await, first));
    sleep(6 * S).await;
    assert_eq!((server.stats().connections, locks.metrics().connections), (1, 1));
}

/// Carries lines between a client and a server, and complains. Grants are known by their fences, those
/// that tasks have by `kept`.
struct Watched {
    server: Server,
    faults: Arc<Mutex<Vec<String>>>,
    kept: Arc<Mutex<HashSet<String>>>,
    dice: Mutex<Dice>,
}

impl Watched {
    fn new(server: &Server, seed: u64) -> Self {
        let (faults, kept) = (Arc::default(), Arc::default());
        Self { server: server.clone(), faults, kept, dice: Mutex::new(Dice::new(seed)) }
    }
}

impl Dial for Watched {
    fn dial<'a>(&'a self, _host: &'a str, _port: u16) -> BoxFuture<'a, io::Result<BoxStream>> {
        async move {
            let pause = 1 + self.dice.lock().unwrap().below(60);
            sleep(Duration::from_millis(pause)).await;
            let (near, client) = tokio::io::duplex(4096);
            let (far, server) = tokio::io::duplex(4096);
            let serving = self.server.clone();
            tokio::spawn(async move { serving.serve_stream(server).await });
            let (faults, kept) = (self.faults.clone(), self.kept.clone());
            tokio::spawn(async move { drop(watch(client, far, &faults, &kept).await) });
            Ok(Box::new(near) as BoxStream)
        }
        .boxed()
    }
}

/// One request as the wire shows it.
struct Asked {
    lines: [String; 3],
}

impl Asked {
    fn may_wait(&self) -> bool {
        let time = self.lines[2].split(' ').next().unwrap_or_default();
        matches!(&self.lines[0][..], "l" | "sl" | "w" | "sw") && time != "0"
    }
}

async fn watch(
    client: DuplexStream,
    server: DuplexStream,
    faults: &Mutex<Vec<String>>,
    kept: &Mutex<HashSet<String>>,
) -> io::Result<()> {
    let (from_client, mut to_client) = tokio::io::split(client);
    let (from_server, mut to_server) = tokio::io::split(server);
    let (mut requests, mut replies) =
        (BufReader::new(from_client).lines(), BufReader::new(from_server).lines());
    let (mut held, mut asked) = (HashSet::new(), VecDeque::<Asked>::new());
    let (mut frame, mut closed) = (Vec::new(), false);
    let complain = |what: String| faults.lock().unwrap().push(what);
    loop {
        tokio::select! {
            line = requests.next_line(), if !closed => {
                let Some(line) = line? else {
                    if !held.is_disjoint(&kept.lock().unwrap()) {
                        complain(format!("closed while it holds {held:?}"));
                    }
                    closed = true;
                    to_server.shutdown().await?;
                    continue;
                };
                to_server.write_all(format!("{line}\n").as_bytes()).await?;
                frame.push(line);
                let Ok(lines) = <[String; 3]>::try_from(std::mem::take(&mut frame)).map_err(|lines| frame = lines)
                else { continue };
                let request = Asked { lines };
                // The ping with which the connection began holds up nobody.
                let beside = asked.iter().filter(|request| request.lines[0] != "ping").count();
                if request.may_wait() && !(held.is_empty() && beside == 0) {
                    complain(format!("{:?} beside {held:?} and {}", request.lines, beside));
                }
                if asked.iter().any(Asked::may_wait) {
                    complain(format!("{:?} behind a wait", request.lines));
                }
                if matches!(&request.lines[0][..], "r" | "sr") {
                    held.remove(&request.lines[2][..16]);
                }
                asked.push_back(request);
            }
            line = replies.next_line() => {
                let Some(line) = line? else { return to_client.shutdown().await };
                let request = asked.pop_front().expect("a reply has a request");
                let token = line.split(' ').nth(1).filter(|token| token.len() == 32);
                if let Some(token) = token && !closed && !matches!(&request.lines[0][..], "n" | "sn") {
                    held.insert(token[..16].to_owned());
                }
                to_client.write_all(format!("{line}\n").as_bytes()).await?;
            }
        }
    }
}

/// Polls a future late, each time.
async fn poll_lazily<F: Future>(future: F, dice: &mut Dice) -> F::Output {
    let mut future = Box::pin(future);
    loop {
        if let std::task::Poll::Ready(value) = futures::poll!(&mut future) {
            return value;
        }
        sleep(Duration::from_millis(1 + dice.below(150))).await;
    }
}

/// Takes something this or that way, and says for how long it may take.
async fn take(locks: &LockClient, dice: &mut Dice) -> (Duration, Result<Option<LeaseGuard>>) {
    let key = format!("key-{}", dice.below(4));
    let own = format!("own-{}", dice.below(1000));
    let (lock, free) = (locks.lock(&key).unwrap(), locks.lock(&own).unwrap());
    let time = S / 2 * (1 + dice.below(4) as u32);
    match dice.below(8) {
        0 => (S, lock.try_acquire().await),
        1 => (time, lock.acquire_within(time).await.map(Some)),
        2 => (time, lock.isolated().acquire_within(time).await.map(Some)),
        3 => (S, free.isolated().try_acquire().await),
        4 => (time, locks.semaphore("slots", 3).unwrap().acquire_within(time).await.map(Some)),
        5 => {
            let outcome = match lock.enqueue().await {
                Ok(Enqueued::Acquired(guard)) => Ok(Some(guard)),
                Ok(Enqueued::Queued(ticket)) => ticket.wait(time).await.map(Some),
                Err(error) => Err(error),
            };
            (time, outcome)
        }
        _ => (S, free.acquire_within(S).await.map(Some)),
    }
}

/// What one task does, over and over. Somebody else's cancelled wait must not end what it holds.
async fn work(locks: LockClient, mut dice: Dice, kept: Arc<Mutex<HashSet<String>>>, label: String) {
    for _ in 0..12 {
        let start = Instant::now();
        let lazy = dice.below(3) == 0;
        let outcome = if lazy {
            let mut pauses = Dice::new(dice.below(1 << 30));
            Some(poll_lazily(take(&locks, &mut dice), &mut pauses).await)
        } else if dice.below(3) == 0 {
            // Dropped in the middle.
            let (polls, mut turns) = (dice.below(40) as usize, Dice::new(dice.below(1 << 30)));
            if dice.below(2) == 0 {
                poll_times(take(&locks, &mut dice), polls, &mut turns).await
            } else {
                let time = Duration::from_millis(dice.below(900));
                timeout(time, take(&locks, &mut dice)).await.ok()
            }
        } else {
            Some(take(&locks, &mut dice).await)
        };
        let Some((time, outcome)) = outcome else { continue };
        // Dials, room for a connection, and lazy polls beside; but nobody's wait.
        assert!(start.elapsed() <= time + 10 * S, "{label}: {:?} for {time:?}", start.elapsed());
        match outcome {
            Ok(Some(guard)) => {
                let fence = format!("{:016x}", guard.fence().unwrap().get());
                kept.lock().unwrap().insert(fence.clone());
                sleep(Duration::from_millis(dice.below(3) * dice.below(800))).await;
                assert!(guard.is_held(), "{label}: {:?}", guard.state());
                kept.lock().unwrap().remove(&fence);
                match dice.below(3) {
                    0 => guard.release().await.unwrap_or_else(|error| panic!("{label}: {error}")),
                    1 => assert!(guard.renew().await.is_ok(), "{label}"),
                    _ => drop(guard),
                }
            }
            Ok(None) => turn().await,
            Err(error) => {
                // The time may be up before there is room for a connection.
                let is_fair = matches!(
                    error.kind(),
                    ErrorKind::Busy | ErrorKind::Timeout | ErrorKind::Overloaded | ErrorKind::LeaseExpired
                );
                assert!(is_fair, "{label}: {error}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn no_lease_shares_a_connection_with_a_wait_whatever_tasks_do() {
    for seed in 0..150 {
        let mut dice = Dice::new(seed);
        let server = Server::new(ServerConfig::default()).unwrap();
        let shared = 1 + dice.below(3) as usize;
        let dial = Watched::new(&server, seed);
        let (faults, kept) = (dial.faults.clone(), dial.kept.clone());
        let locks = LockClient::builder()
            .dial(dial)
            .shared_connections(shared)
            .max_leases_per_connection(1 + dice.below(3) as usize)
            .max_connections(shared + 1 + dice.below(12) as usize)
            .idle_timeout(S / 5 * (1 + dice.below(5) as u32))
            .connect_timeout(S)
            .build()
            .unwrap();
        let tasks: Vec<_> = (0..10)
            .map(|n| {
                let label = format!("seed {seed}, task {n}");
                tokio::spawn(work(locks.clone(), Dice::new(seed * 1000 + n), kept.clone(), label))
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        sleep(6 * S).await;
        let faults = std::mem::take(&mut *faults.lock().unwrap());
        assert!(faults.is_empty(), "seed {seed}: {faults:#?}");
        let stats = server.stats();
        assert!(stats.locks.is_empty() && stats.semaphores.is_empty(), "seed {seed}: {stats:?}");
        assert!(stats.connections <= shared as u64, "seed {seed}: the rest were idle: {stats:?}");
    }
}
