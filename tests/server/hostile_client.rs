//! Clients that attack a server, in virtual time: they send too slowly, too much or nonsense, or do not
//! read. Each is disconnected or stalled, a well-behaved client is served meanwhile, and nothing is left of
//! the attackers.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use dflockd_client::server::{Server, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, duplex};
use tokio::task::{JoinHandle, consume_budget, yield_now};
use tokio::time::{Instant, advance, sleep, timeout};

use crate::wire::{Peer, S, connect, connect_by, server, settle};

const AGES: Duration = Duration::from_secs(1_000_000);

/// Returns a server that collects idle keys soon.
fn tidy() -> ServerConfig {
    ServerConfig { gc_interval: S, gc_max_idle: S, max_locks: 1_000_000, ..Default::default() }
}

/// Checks that a well-behaved client is served at once.
async fn serves(server: &Server, during: &str) {
    let serving = async {
        let mut good = connect(server);
        let token = good.token("l", "good", "0").await;
        assert_eq!(good.ask("r", "good", &token).await, "ok", "{during}");
    };
    timeout(S, serving).await.unwrap_or_else(|_| panic!("{during}: a well-behaved client is not served"));
}

/// Checks that no connection is open and no key is kept, once idle keys are collected.
async fn forgets(server: &Server, what: &str) {
    sleep(5 * S).await;
    let stats = server.stats();
    assert_eq!(stats.connections, 0, "{what}");
    let kept =
        [stats.locks.len(), stats.semaphores.len(), stats.idle_locks.len(), stats.idle_semaphores.len()];
    assert_eq!(kept, [0; 4], "{what}: {stats:?}");
}

/// A connection, with the task that serves it.
fn watched(server: &Server, room: usize) -> (Peer, JoinHandle<()>) {
    let (near, far) = duplex(room);
    let server = server.clone();
    (Peer(near), tokio::spawn(async move { server.serve_stream(far).await }))
}

#[tokio::test(start_paused = true)]
async fn a_line_that_never_ends_is_ended_by_the_read_timeout_whichever_line_it_is() {
    let server = server(tidy());
    for whole in ["", "l\n", "l\nk\n", "auth\n_\n"] {
        let attackers: Vec<Peer> = (0..100).map(|_| connect(&server)).collect();
        let start = Instant::now();
        let attacks = attackers.into_iter().map(|mut slow| async move {
            slow.send(whole).await;
            // Later writes may find the connection closed.
            while slow.0.write_all(b"1").await.is_ok() && start.elapsed() < 200 * S {
                sleep(20 * S).await;
            }
            (start.elapsed(), slow.rest().await)
        });
        let during = async {
            sleep(22 * S).await;
            assert_eq!(server.stats().connections, 100);
            serves(&server, whole).await;
            sleep(S + S / 10).await;
            assert_eq!(server.stats().connections, 0, "after {whole:?}: 23 s are over");
        };
        let (ended, ()) = tokio::join!(futures::future::join_all(attacks), during);
        for (noticed, said) in ended {
            assert_eq!((noticed.as_secs(), &*said), (40, "error\n"), "after {whole:?}");
        }
    }
    forgets(&server, "slow lines").await;
}

#[tokio::test(start_paused = true)]
async fn the_read_timeout_is_a_lines_and_not_a_frames() {
    let server = server(ServerConfig::default());
    let mut slow = connect(&server);
    let start = Instant::now();
    for byte in "l\nk\n0\n".chars() {
        // Each line takes 22 s.
        sleep(11 * S).await;
        slow.send(byte.to_string()).await;
    }
    crate::wire::granted(&slow.line().await);
    assert_eq!(start.elapsed(), 66 * S);
}

/// A peer that is faster than the server: it always has more to send, and accepts all writes.
struct Endless {
    byte: u8,
    read: Arc<AtomicUsize>,
}

impl AsyncRead for Endless {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // As a socket does, which yields to other tasks now and then.
        ready!(pin!(consume_budget()).poll(cx));
        let room = buf.remaining();
        buf.initialize_unfilled().fill(self.byte);
        buf.advance(room);
        self.read.fetch_add(room, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Endless {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_line_without_end_is_ended_by_the_read_timeout_however_fast_it_comes() {
    let server = server(tidy());
    let read = Arc::new(AtomicUsize::new(0));
    let flood = Endless { byte: b'x', read: read.clone() };
    let serving = tokio::spawn({
        let server = server.clone();
        async move { server.serve_stream(flood).await }
    });
    let start = Instant::now();
    while !serving.is_finished() {
        assert!(
            start.elapsed() < 60 * S,
            "it is read forever: {} bytes by now",
            read.load(Ordering::Relaxed)
        );
        // The flood leaves no idle moment in which the paused clock would advance by itself.
        advance(S).await;
        yield_now().await;
    }
    assert!((23..=25).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    serving.await.unwrap();
    forgets(&server, "a line without end").await;
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_lines_leaves_others_their_turn_and_a_stop_its_end() {
    let server = server(ServerConfig { shutdown_timeout: S, ..tidy() });
    let read = Arc::new(AtomicUsize::new(0));
    let flood = Endless { byte: b'\n', read: read.clone() };
    let serving = tokio::spawn({
        let server = server.clone();
        async move { server.serve_stream(flood).await }
    });
    let start = Instant::now();
    serves(&server, "a flood of empty frames").await;
    assert_eq!(start.elapsed(), Duration::ZERO);
    let meanwhile = read.load(Ordering::Relaxed);
    assert!((1..256 * 1024).contains(&meanwhile), "{meanwhile} bytes were served before others had a turn");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stopping = tokio::spawn({
        let server = server.clone();
        async move { server.serve(listener, async {}).await }
    });
    while !stopping.is_finished() {
        assert!(start.elapsed() < 60 * S, "the flood keeps the server from stopping");
        advance(S / 10).await;
        yield_now().await;
    }
    settle().await;
    assert!(serving.is_finished());
}

#[tokio::test(start_paused = true)]
async fn whoever_does_not_read_is_read_no_further_and_ended_by_the_write_timeout() {
    let server = server(tidy());
    // Keys that make the reply to `stats` long.
    let mut keeper = connect(&server);
    for key in 0..500 {
        keeper.token("l", &format!("{key:0>250}"), "0 1000").await;
    }
    for frame in ["ping\n_\n_\n", "l\nk\n0\n", "bad\n\n\n", "stats\n_\n_\n", "e\nq\n5\n", "auth\n_\nx\n"] {
        let (mut mute, serving) = watched(&server, 1024);
        let start = Instant::now();
        let (mut taken, frames) = (0, frame.repeat(100_000));
        while let Ok(written) = timeout(AGES, mute.0.write(&frames.as_bytes()[taken..])).await.unwrap() {
            taken += written;
            assert!(taken < frames.len(), "{frame:?}: all of it was read");
        }
        assert_eq!(start.elapsed(), 5 * S, "{frame:?}: the write timeout");
        // At most what fills two pipes and a batch of replies.
        let replies = 1024 + 16 * 1024 + 1024;
        let requests = 1024 + 8 * 1024 + replies / 3 * frame.len();
        assert!(taken <= requests, "{frame:?}: {taken} bytes were read of one who does not read");
        serving.await.unwrap();
        serves(&server, frame).await;
    }
    drop(keeper);
    forgets(&server, "mute clients").await;
}

#[tokio::test(start_paused = true)]
async fn commands_without_authentication_are_all_refused() {
    let server = server(ServerConfig { auth_token: Some("right".into()), ..tidy() });
    let start = Instant::now();
    let mut flood = Vec::new();
    for nth in 0..1000 {
        let mut peer = connect_by(&server, 4096);
        let frames = format!("l\nk{nth}\n0 1000\n").repeat(50);
        flood.push(async move {
            peer.send(frames).await;
            peer.rest().await
        });
    }
    let good = async {
        let mut good = connect(&server);
        assert_eq!(good.ask("auth", "_", "right").await, "ok");
        good.token("l", "good", "0").await
    };
    let (said, good) = tokio::join!(futures::future::join_all(flood), timeout(S, good));
    good.expect("a client that knows the token is served meanwhile");
    assert!(said.iter().all(|said| said == "error_auth\n"));
    assert!(start.elapsed() < S, "each is closed soon");
    settle().await;
    assert!(server.stats().idle_locks.len() <= 1, "the server did nothing for them");
    forgets(&server, "a flood without authentication").await;
}

#[tokio::test(start_paused = true)]
async fn keys_of_any_bytes_up_to_the_cap_are_told_apart_and_shown_as_text() {
    let server = server(tidy());
    let mut peer = connect(&server);
    let mut keys: Vec<Vec<u8>> = (1..=255u8)
        .filter(|byte| !b" \t\r\n".contains(byte))
        .flat_map(|byte| [vec![byte], vec![byte; 256]])
        .collect();
    keys.extend([vec![0], vec![0; 256], b"\"\\\x08\x0c".to_vec(), "\u{2028}\u{feff}".into()]);
    let count = keys.len();
    for key in keys {
        peer.send([b"l\n", &key[..], b"\n0\n"].concat()).await;
        crate::wire::granted(&peer.line().await);
        peer.send([b"l\n", &key[..], b"\n0\n"].concat()).await;
        assert_eq!(peer.line().await, "timeout", "{key:?}");
    }
    let stats = peer.ask("stats", "_", "_").await;
    let stats = dflockd_client::StatsResult::from_json(stats.strip_prefix("ok ").unwrap()).unwrap();
    assert_eq!(stats.locks.len(), count);
    let (mut over, serving) = watched(&server, 4096);
    over.send([b"l\n", &[0xff; 257][..], b"\n0\n"].concat()).await;
    assert_eq!(over.rest().await, "error\n");
    serving.await.unwrap();
    drop((peer, over));
    forgets(&server, "strange keys").await;
}

/// Pseudorandom numbers, the same for each seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % sides
    }

    /// Returns frames, and texts that resemble them less and less.
    fn bytes(&mut self) -> Vec<u8> {
        const WORDS: [&[u8]; 24] = [
            b"l",
            b"sl",
            b"e",
            b"se",
            b"w",
            b"sw",
            b"r",
            b"n",
            b"ping",
            b"stats",
            b"auth",
            b"k",
            b"s",
            b"_",
            b"0",
            b"1",
            b"0 1",
            b"0 2 1",
            b"9223372036",
            b"-1",
            b"\xff\x00",
            b"\r",
            b" ",
            b"",
        ];
        let mut bytes = Vec::new();
        for _ in 0..self.roll(400) {
            match self.roll(50) {
                0 => bytes.extend((0..self.roll(300)).map(|_| self.roll(256) as u8)),
                1 => bytes.extend(vec![b'x'; self.roll(300)]),
                _ => bytes.extend_from_slice(WORDS[self.roll(WORDS.len())]),
            }
            if self.roll(30) > 0 {
                bytes.push(b'\n');
            }
        }
        bytes
    }
}

#[tokio::test(start_paused = true)]
async fn random_bytes_harm_nobody_and_leave_nothing() {
    let server = server(tidy());
    for seed in 1..=150u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut connections = Vec::new();
        for _ in 0..4 {
            let (bytes, room, leaves) = (dice.bytes(), 1 << dice.roll(14), dice.roll(3));
            let (peer, serving) = watched(&server, room);
            connections.push(async move {
                let (mut replies, mut requests) = tokio::io::split(peer.0);
                let talk = async {
                    let sent = requests.write_all(&bytes).await;
                    match leaves {
                        0 => drop(requests.shutdown().await),
                        1 => sleep(30 * S).await,
                        _ => {}
                    }
                    drop(sent);
                };
                let mut said = Vec::new();
                tokio::select! {
                    ((), _) = async { tokio::join!(talk, replies.read_to_end(&mut said)) } => {}
                    () = sleep(40 * S) => {}
                }
                drop((replies, requests));
                // A panic would show here.
                timeout(AGES, serving)
                    .await
                    .expect("it ends")
                    .unwrap_or_else(|fault| panic!("{seed}: {fault}"));
                let replies = String::from_utf8(said).unwrap_or_else(|_| panic!("{seed}: replies are text"));
                for reply in replies.split_inclusive('\n') {
                    let words = ["ok", "acquired", "queued", "timeout", "error"];
                    let known = words.iter().any(|word| reply.trim_end().starts_with(word));
                    assert!(known && reply.ends_with('\n'), "seed {seed}: {reply:?}");
                }
            });
        }
        tokio::join!(futures::future::join_all(connections), serves(&server, "random bytes"));
    }
    forgets(&server, "random bytes").await;
}
