//! Large tables: work on all keys goes in parts, and other connections are served between the parts. Over
//! pipes, and counted in served requests, so that no test depends on its speed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use dflockd_client::proto::StatsResult;
use dflockd_client::server::{Server, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::{JoinHandle, yield_now};

use crate::wire::{Peer, S, Serving, connect, connect_by, server, settle};

const KEYS: usize = 20_000;
/// The maximum number of keys or leases in a part.
const PART: usize = 512;
/// The minimum number of renewals that are served for each part: every task that can run does so between
/// two parts.
const BETWEEN: usize = 4;

fn large() -> Server {
    server(ServerConfig {
        max_locks: 10 * KEYS,
        gc_interval: S,
        gc_max_idle: std::time::Duration::ZERO,
        read_timeout: 10_000 * S,
        ..Default::default()
    })
}

/// Returns a connection that has sent all these requests and received as many replies.
async fn asked(server: &Server, requests: String) -> Peer {
    let count = requests.bytes().filter(|byte| *byte == b'\n').count() / 3;
    let (mut replies, mut out) = tokio::io::split(connect(server).0);
    let reading = async {
        let (mut left, mut chunk) = (count, vec![0; 64 * 1024]);
        while left > 0 {
            let n = replies.read(&mut chunk).await.unwrap();
            assert_ne!(n, 0, "it was closed");
            left -= chunk[..n].iter().filter(|byte| **byte == b'\n').count();
        }
    };
    let (_, written) = tokio::join!(reading, out.write_all(requests.as_bytes()));
    written.unwrap();
    Peer(replies.unsplit(out))
}

/// Returns a connection that holds all keys of this name.
async fn holder(server: &Server, name: &str, keys: usize) -> Peer {
    asked(server, (0..keys).map(|key| format!("l\n{name}{key}\n0 10000\n")).collect()).await
}

/// Renews a lease repeatedly, and counts the renewals.
struct Renewing {
    count: Arc<AtomicUsize>,
    over: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Renewing {
    async fn start(server: &Server) -> Self {
        let mut peer = connect(server);
        let token = peer.token("l", "renewed", "0").await;
        let (count, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, ends) = (count.clone(), over.clone());
        let task = tokio::spawn(async move {
            while !ends.load(Ordering::Relaxed) {
                assert_eq!(peer.ask("n", "renewed", &token).await, "ok 33");
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { count, over, task }
    }

    fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    async fn end(self) {
        self.over.store(true, Ordering::Relaxed);
        self.task.await.expect("each renewal gets a reply");
    }
}

/// Lets tasks run until the condition is true, without advancing virtual time.
async fn until(so: impl Fn() -> bool) {
    while !so() {
        yield_now().await;
    }
}

async fn stats(peer: &mut Peer) -> StatsResult {
    peer.send("stats\n_\n_\n").await;
    let (mut reply, mut chunk) = (Vec::new(), vec![0; 64 * 1024]);
    while reply.last() != Some(&b'\n') {
        let n = peer.0.read(&mut chunk).await.unwrap();
        assert_ne!(n, 0, "it was closed");
        reply.extend_from_slice(&chunk[..n]);
    }
    let reply = String::from_utf8(reply).unwrap();
    StatsResult::from_json(reply.strip_prefix("ok ").unwrap()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn stats_of_many_keys_are_made_in_parts_and_name_each_key() {
    let server = large();
    let mut holder = holder(&server, "k", KEYS).await;
    let _held = asked(&server, (0..KEYS).map(|key| format!("sl\ns{key}\n0 2 10000\n")).collect()).await;
    let renewing = Renewing::start(&server).await;
    let before = renewing.count();
    let seen = stats(&mut holder).await;
    let served = renewing.count() - before;
    assert!(served > BETWEEN * 2 * KEYS / PART, "only {served} renewals got a reply meanwhile");
    renewing.end().await;
    assert_eq!(seen.locks.len(), KEYS + 1);
    assert_eq!(seen.semaphores.len(), KEYS);
    let names: BTreeSet<&str> = seen.locks.iter().map(|lock| &*lock.key).collect();
    assert_eq!(names.len(), KEYS + 1);
}

#[tokio::test(start_paused = true)]
async fn many_stats_at_once_take_no_larger_share_than_one() {
    const ASKING: usize = 20;
    const FEWER: usize = 2_000;
    let server = large();
    let _holder = holder(&server, "k", FEWER).await;
    let renewing = Renewing::start(&server).await;
    let mut served = Vec::new();
    for asking in [1, ASKING] {
        let mut peers: Vec<Peer> = (0..asking).map(|_| connect(&server)).collect();
        let before = renewing.count();
        let all = futures::future::join_all(peers.iter_mut().map(stats)).await;
        served.push(renewing.count() - before);
        assert!(all.iter().all(|stats| stats.locks.len() == FEWER + 1));
    }
    renewing.end().await;
    // If each request took turns as often as a single one does, no more renewals would be served meanwhile.
    assert!(served[1] > served[0] * ASKING / 3, "{served:?} renewals got a reply meanwhile");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_read_its_stats_holds_up_none_of_the_others() {
    let server = large();
    let _holder = holder(&server, "k", KEYS).await;
    let mut deaf = Vec::new();
    for _ in 0..20 {
        let mut peer = connect_by(&server, 64);
        peer.send("stats\n_\n_\n").await;
        deaf.push(peer);
    }
    settle().await;
    let mut peer = connect(&server);
    assert_eq!(stats(&mut peer).await.locks.len(), KEYS);
    assert_eq!(server.stats().connections, 22);
    tokio::time::sleep(6 * S).await;
    assert!(server.stats().connections <= 2, "the write timeout ends those");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_reads_its_stats_slowly_gets_them_whole() {
    // Slower than a link of 64 kbit/s: the whole reply takes minutes, a batch less than the write timeout.
    let server = large();
    let _holder = asked(&server, (0..KEYS).map(|key| format!("se\nk{key}\n2 10000\n")).collect()).await;
    let mut peer = connect_by(&server, 1024);
    peer.send("stats\n_\n_\n").await;
    let (mut seen, mut chunk) = (Vec::new(), vec![0; 8 * 1024]);
    while seen.last() != Some(&b'\n') {
        let mut got = 0;
        while got < chunk.len() && seen.last() != Some(&b'\n') {
            let n = peer.0.read(&mut chunk[got..]).await.unwrap();
            assert_ne!(n, 0, "it was closed after {} bytes", seen.len());
            seen.extend_from_slice(&chunk[got..got + n]);
            got += n;
        }
        tokio::time::sleep(S).await;
    }
    let seen = String::from_utf8(seen).unwrap();
    assert_eq!(StatsResult::from_json(seen.strip_prefix("ok ").unwrap()).unwrap().semaphores.len(), KEYS);
    assert!(peer.is_open().await, "and the read timeout counts from its end");
}

#[tokio::test(start_paused = true)]
async fn a_connection_with_many_keys_leaves_in_parts() {
    let server = large();
    let leaving = holder(&server, "k", KEYS).await;
    let renewing = Renewing::start(&server).await;
    let before = renewing.count();
    drop(leaving);
    until(|| server.stats().locks.len() == 1).await;
    let served = renewing.count() - before;
    assert!(served > BETWEEN * KEYS / PART, "only {served} renewals got a reply meanwhile");
    renewing.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_with_few_keys_does_not_wait_for_one_with_many() {
    let server = large();
    let (many, mut few) = (holder(&server, "k", KEYS).await, connect(&server));
    few.token("l", "few", "0").await;
    drop(many);
    drop(few);
    until(|| server.stats().connections == 0).await;
    let held = server.stats().locks;
    assert!(held.len() > KEYS / 2, "the many are still at it: {}", held.len());
    assert!(held.iter().all(|lock| lock.key != "few"));
    until(|| server.stats().locks.is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_with_many_places_in_queues_leaves_in_parts() {
    let server = large();
    let holder = holder(&server, "k", KEYS).await;
    let queued = asked(&server, (0..KEYS).map(|key| format!("e\nk{key}\n10000\n")).collect()).await;
    let renewing = Renewing::start(&server).await;
    let before = renewing.count();
    drop(queued);
    until(|| server.stats().locks.iter().all(|lock| lock.waiters == 0)).await;
    let served = renewing.count() - before;
    assert!(served > BETWEEN * KEYS / PART, "only {served} renewals got a reply meanwhile");
    renewing.end().await;
    drop(holder);
}

#[tokio::test(start_paused = true)]
async fn many_leases_of_one_semaphore_that_expire_together_go_in_parts() {
    let server = large();
    let requests = format!("sl\ns\n0 {KEYS} 5\n").repeat(KEYS);
    let mut holder = asked(&server, requests).await;
    tokio::time::sleep(4 * S).await;
    let renewing = Renewing::start(&server).await;
    // The next request gets a place at once, however many other leases have expired.
    tokio::time::advance(S).await;
    let before = renewing.count();
    holder.token("sl", "s", &format!("0 {KEYS} 1000")).await;
    assert!(server.stats().semaphores[0].holders > KEYS as u64 / 2, "it did not evict all by itself");
    until(|| server.stats().semaphores[0].holders == 1).await;
    let served = renewing.count() - before;
    assert!(served > BETWEEN * KEYS / PART, "only {served} renewals got a reply meanwhile");
    renewing.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_server_with_many_places_in_queues_drains_in_parts() {
    let server = large();
    let mut serving = Serving::start(&server);
    let mut one = serving.connect_from([1; 4]);
    let token = one.token("l", "k", "0 1000").await;
    let _holder = holder(&server, "k", KEYS).await;
    let _queued = asked(&server, (0..KEYS).map(|key| format!("e\nk{key}\n10000\n")).collect()).await;
    let renewing = Renewing::start(&server).await;
    let before = renewing.count();
    serving.stop();
    until(|| server.stats().locks.iter().all(|lock| lock.waiters == 0)).await;
    let served = renewing.count() - before;
    assert!(served > BETWEEN * KEYS / PART, "only {served} renewals got a reply meanwhile");
    assert_eq!(one.ask("r", "k", &token).await, "ok");
    renewing.end().await;
}
