//! What a connection keeps in memory: a bound while its peer does not read, little once all is written.

use tokio::io::DuplexStream;

use super::*;
use crate::proto::{Request, StatsResult};
use crate::server::config::ServerConfig;
use crate::types::{Key, Limit, Seconds};

const KEYS: usize = 20_000;
/// What is kept of a reply, however long it is: a batch, and a part of the table on top. Twice that,
/// since vectors grow by doubling.
const MOST: usize = 2 * (32 + 16) * 1024;
/// What is kept by a connection that has nothing to do.
const IDLE: usize = 8 * 1024;

/// A server with many keys held, by a connection that stays.
fn crowded() -> (Arc<Shared>, Connected) {
    let shared = Shared::new(ServerConfig { max_locks: KEYS, ..Default::default() }).unwrap();
    let holder = shared.connect();
    for number in 0..KEYS {
        let key = Key::parse(&format!("key:{number}")).unwrap();
        let lease = Some(Seconds::new(1000).unwrap());
        shared.with(|table, now| table.acquire(now, holder.id, &key, Limit::ONE, lease, false));
    }
    (shared, holder)
}

fn session(shared: &Arc<Shared>, room: usize) -> (Session<DuplexStream>, DuplexStream) {
    let (near, far) = tokio::io::duplex(room);
    (Session::new(shared.clone(), shared.connect(), far), near)
}

#[tokio::test(start_paused = true)]
async fn a_long_reply_to_a_peer_that_does_not_read_keeps_no_more_than_a_batch() {
    let (shared, _holder) = crowded();
    let (mut session, _peer) = session(&shared, 64 * 1024);
    let start = Instant::now();
    let ended = session.serve(Request::Stats).await;
    assert!(matches!(ended, Err(Ended::ByServer)), "the write timeout");
    assert_eq!(start.elapsed(), session.shared.config.write_limit());
    assert!(session.out.kept() <= MOST, "{} bytes", session.out.kept());
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_asked_for_much_keeps_little_once_it_has_it() {
    let (shared, _holder) = crowded();
    let (mut session, mut peer) = session(&shared, 64 * 1024);
    let reading = async {
        let (mut reply, mut chunk) = (Vec::new(), vec![0; 64 * 1024]);
        while reply.last() != Some(&b'\n') {
            let n = peer.read(&mut chunk).await.unwrap();
            reply.extend_from_slice(&chunk[..n]);
        }
        reply
    };
    let serving = async {
        assert!(session.serve(Request::Stats).await.is_ok());
        assert!(session.flush().await.is_ok());
    };
    let (reply, ()) = tokio::join!(reading, serving);
    let json = std::str::from_utf8(&reply).unwrap().strip_prefix("ok ").unwrap();
    let stats = StatsResult::from_json(json).unwrap();
    assert_eq!(stats, StatsResult { connections: 2, ..shared.stats() });
    assert_eq!(stats.locks.len(), KEYS);
    assert!(session.out.kept() <= IDLE, "{} bytes", session.out.kept());
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_sent_much_keeps_little_once_it_sends_little() {
    let (shared, _holder) = crowded();
    let (mut session, mut peer) = session(&shared, 1024 * 1024);
    let mut timer = pin!(sleep_until(session.line_limit()));
    let mut most = 0;
    for (requests, count) in [("ping\n_\n_\n", 10_000), ("l\nsome-key\n0\n", 10_000), ("ping\n_\n_\n", 2)] {
        peer.write_all(requests.repeat(count).as_bytes()).await.unwrap();
        let mut seen = 0;
        while seen < requests.len() * count {
            assert!(session.read(timer.as_mut()).await.is_ok());
            seen += session.inbox.len();
            assert!(session.serve_inbox().await.is_ok());
            assert!(session.flush().await.is_ok());
            let mut replies = vec![0; 1024 * 1024];
            let _ = peer.read(&mut replies).await.unwrap();
            most = most.max(session.chunk);
        }
    }
    assert_eq!(most, READ_CHUNK_BUSY, "it was read in large chunks");
    // Shows the room in front as well, where what was read has been.
    session.inbox.reserve(session.inbox.capacity() + 1);
    assert!(session.inbox.capacity() <= IDLE, "{} bytes", session.inbox.capacity());
    assert!(session.out.kept() <= IDLE, "{} bytes", session.out.kept());
}
