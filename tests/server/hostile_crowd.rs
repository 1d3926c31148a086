//! Crowds: ten thousand connections, queues of a hundred thousand waiters, and all of them closing at once.
//! Over pipes, in virtual time: a well-behaved client is served meanwhile, and nothing is left.

use dflockd_client::server::{Server, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};

use crate::wire::{Peer, S, connect, connect_by, server, settle};

const CROWD: usize = 10_000;

fn tidy() -> ServerConfig {
    ServerConfig { gc_interval: S, gc_max_idle: S, max_locks: 1_000_000, ..Default::default() }
}

async fn serves(server: &Server) {
    let serving = async {
        let mut good = connect(server);
        let token = good.token("l", "good", "0").await;
        assert_eq!(good.ask("r", "good", &token).await, "ok");
    };
    timeout(S, serving).await.expect("a well-behaved client is served");
}

async fn forgets(server: &Server) {
    sleep(5 * S).await;
    let stats = server.stats();
    assert_eq!(stats.connections, 0);
    let kept =
        [stats.locks.len(), stats.semaphores.len(), stats.idle_locks.len(), stats.idle_semaphores.len()];
    assert_eq!(kept, [0; 4]);
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_connections_that_do_nothing_are_ended_by_the_read_timeout() {
    let server = server(tidy());
    let mut crowd: Vec<Peer> = (0..CROWD).map(|_| connect_by(&server, 16)).collect();
    for (nth, peer) in crowd.iter_mut().enumerate() {
        // Some send nothing, the others a part of a request.
        peer.send(&"l\nk\n0"[..nth % 6]).await;
    }
    settle().await;
    assert_eq!(server.stats().connections, CROWD as u64);
    serves(&server).await;
    let start = Instant::now();
    for peer in &mut crowd {
        assert_eq!(peer.rest().await, "error\n");
    }
    assert!(start.elapsed() <= 23 * S);
    forgets(&server).await;
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_waiters_for_one_key_leave_at_once() {
    let server = server(tidy());
    let mut holder = connect(&server);
    holder.token("l", "k", "0 1000").await;
    let mut crowd: Vec<Peer> = Vec::with_capacity(CROWD);
    for _ in 0..CROWD {
        let mut peer = connect_by(&server, 64);
        peer.send("l\nk\n1000 1000\n").await;
        crowd.push(peer);
    }
    settle().await;
    assert_eq!(server.stats().locks[0].waiters, CROWD as u64);
    serves(&server).await;
    // The holder leaves too: the key is granted to one waiter after another that has left already.
    let last = crowd.pop().unwrap();
    drop((holder, crowd));
    let mut last = last;
    timeout(S, last.token_line()).await.expect("the waiter that stays is granted the key");
    serves(&server).await;
    drop(last);
    forgets(&server).await;
}

impl Peer {
    async fn token_line(&mut self) {
        let reply = self.line().await;
        crate::wire::granted(&reply);
    }
}

#[tokio::test(start_paused = true)]
async fn a_hundred_thousand_places_in_queues_are_given_up_at_once() {
    const KEYS: usize = 1000;
    let server = server(tidy());
    let frames: String = (0..KEYS).map(|key| format!("e\nk{key}\n1000\n")).collect();
    let crowd = (0..=CROWD / 100).map(|nth| {
        let (peer, frames) = (connect_by(&server, 64 * 1024), &frames);
        async move {
            let (mut replies, mut requests) = tokio::io::split(peer.0);
            let reading = async {
                let mut left = KEYS;
                let mut chunk = vec![0; 16 * 1024];
                while left > 0 {
                    let n = replies.read(&mut chunk).await.unwrap();
                    assert_ne!(n, 0, "connection {nth} was closed");
                    left -= chunk[..n].iter().filter(|byte| **byte == b'\n').count();
                }
            };
            tokio::join!(reading, async { requests.write_all(frames.as_bytes()).await.unwrap() });
            replies.unsplit(requests)
        }
    });
    let crowd = futures::future::join_all(crowd).await;
    let stats = server.stats();
    assert_eq!(stats.locks.len(), KEYS);
    assert_eq!(stats.locks.iter().map(|lock| lock.waiters).sum::<u64>(), (KEYS * CROWD / 100) as u64);
    serves(&server).await;
    drop(crowd);
    serves(&server).await;
    forgets(&server).await;
}
