//! The memory of a connection: bounded while its peer does not read, little once all replies are written.

use tokio::io::DuplexStream;

use super::*;
use crate::proto::{Request, StatsResult};
use crate::server::shared::tests::many_held;

const KEYS: usize = 20_000;
/// The maximum that is kept of a reply of any length: a batch and a part of the table, times two, since
/// vectors grow by doubling.
const MAX_WHILE_UNREAD: usize = 2 * (32 + 16) * 1024;
/// The maximum that an idle connection keeps.
const MAX_WHILE_IDLE: usize = 8 * 1024;

fn connection(shared: &Arc<ServerShared>, room: usize) -> (Connection<DuplexStream>, DuplexStream) {
    let (near, far) = tokio::io::duplex(room);
    (Connection::new(shared.clone(), shared.connect(), far), near)
}

#[tokio::test(start_paused = true)]
async fn a_long_reply_to_a_peer_that_does_not_read_keeps_no_more_than_a_batch() {
    let (shared, _holder) = many_held(KEYS);
    let (mut connection, _peer) = connection(&shared, 64 * 1024);
    let start = Instant::now();
    let ended = connection.serve(Request::Stats).await;
    assert!(matches!(ended, Err(EndedBy::Server)), "the write timeout");
    assert_eq!(start.elapsed(), connection.shared.config.write_timeout);
    assert!(connection.out.allocated() <= MAX_WHILE_UNREAD, "{} bytes", connection.out.allocated());
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_asked_for_much_keeps_little_once_it_has_it() {
    let (shared, _holder) = many_held(KEYS);
    let (mut connection, mut peer) = connection(&shared, 64 * 1024);
    let reading = async {
        let (mut reply, mut chunk) = (Vec::new(), vec![0; 64 * 1024]);
        while reply.last() != Some(&b'\n') {
            let n = peer.read(&mut chunk).await.unwrap();
            reply.extend_from_slice(&chunk[..n]);
        }
        reply
    };
    let serving = async {
        assert!(connection.serve(Request::Stats).await.is_ok());
        assert!(connection.flush().await.is_ok());
    };
    let (reply, ()) = tokio::join!(reading, serving);
    let json = std::str::from_utf8(&reply).unwrap().strip_prefix("ok ").unwrap();
    let stats = StatsResult::from_json(json).unwrap();
    assert_eq!(stats, StatsResult { connections: 2, ..shared.stats() });
    assert_eq!(stats.locks.len(), KEYS);
    assert!(connection.out.allocated() <= MAX_WHILE_IDLE, "{} bytes", connection.out.allocated());
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_sent_much_keeps_little_once_it_sends_little() {
    let (shared, _holder) = many_held(KEYS);
    let (mut connection, mut peer) = connection(&shared, 1024 * 1024);
    let mut timer = pin!(sleep_until(connection.line_deadline()));
    let mut max_chunk = 0;
    for (requests, count) in [("ping\n_\n_\n", 10_000), ("l\nsome-key\n0\n", 10_000), ("ping\n_\n_\n", 2)] {
        peer.write_all(requests.repeat(count).as_bytes()).await.unwrap();
        let mut seen = 0;
        while seen < requests.len() * count {
            assert!(connection.read(timer.as_mut()).await.is_ok());
            seen += connection.inbox.len();
            assert!(connection.serve_inbox().await.is_ok());
            assert!(connection.flush().await.is_ok());
            let mut replies = vec![0; 1024 * 1024];
            let _ = peer.read(&mut replies).await.unwrap();
            max_chunk = max_chunk.max(connection.chunk);
        }
    }
    assert_eq!(max_chunk, READ_CHUNK_BUSY, "it was read in large chunks");
    // Makes the capacity include the room of what was consumed.
    connection.inbox.reserve(connection.inbox.capacity() + 1);
    assert!(connection.inbox.capacity() <= MAX_WHILE_IDLE, "{} bytes", connection.inbox.capacity());
    assert!(connection.out.allocated() <= MAX_WHILE_IDLE, "{} bytes", connection.out.allocated());
}
