//! The server over loopback TCP: batches of pipelined requests, with few and with many held keys.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use dflockd_client::proto::{Family, LineDecoder, MAX_REPLY_BYTES, Reply, Request};
use dflockd_client::server::{Server, ServerConfig};
use dflockd_client::{Key, Seconds, Token};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

async fn connect() -> TcpStream {
    let config = ServerConfig { port: 0, max_locks: usize::MAX, ..Default::default() };
    let server = Server::bind(config).await.unwrap();
    let address = server.local_addr().unwrap();
    tokio::spawn(server.run(std::future::pending()));
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Sends all requests in one write, and reads a reply to each.
async fn exchange(stream: &mut TcpStream, requests: &[Request]) -> Vec<Reply> {
    let (mut bytes, mut replies) = (Vec::new(), Vec::with_capacity(requests.len()));
    requests.iter().for_each(|request| request.encode(&mut bytes));
    stream.write_all(&bytes).await.unwrap();
    let (mut decoder, mut chunk) = (LineDecoder::new(), [0; 32 * 1024]);
    while replies.len() < requests.len() {
        let read = stream.read(&mut chunk).await.unwrap();
        assert!(read > 0, "the server goes on");
        let mut rest = &chunk[..read];
        while let Some(line) = decoder.next(&mut rest, MAX_REPLY_BYTES) {
            replies.push(Reply::parse(line.unwrap(), requests[replies.len()].expect()).unwrap());
        }
    }
    replies
}

fn keys(group: char, count: usize) -> Vec<Key> {
    (0..count).map(|number| Key::parse(&format!("bench:{group}{number}")).unwrap()).collect()
}

async fn take(stream: &mut TcpStream, keys: &[Key]) -> Vec<Token> {
    let request = |key: &Key| Request::Acquire {
        key: key.clone(),
        timeout: Seconds::ZERO,
        limit: None,
        lease: Seconds::new(3600),
    };
    let requests: Vec<_> = keys.iter().map(request).collect();
    let token = |reply| match reply {
        Reply::Granted { token, .. } => token,
        other => panic!("the key is free, and yet: {other:?}"),
    };
    exchange(stream, &requests).await.into_iter().map(token).collect()
}

async fn take_and_release(stream: &mut TcpStream, keys: &[Key]) {
    let tokens = take(stream, keys).await;
    let release =
        |(key, token): (&Key, Token)| Request::Release { key: key.clone(), token, family: Family::Lock };
    let requests: Vec<_> = keys.iter().zip(tokens).map(release).collect();
    let replies = exchange(stream, &requests).await;
    assert!(replies.iter().all(|reply| *reply == Reply::Done));
}

fn pipelined(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let mut group = c.benchmark_group("server: acquire and release over tcp");
    for held in [0, 100_000] {
        let mut stream = runtime.block_on(connect());
        for part in keys('h', held).chunks(64) {
            runtime.block_on(take(&mut stream, part));
        }
        for batch in [1, 64, 512] {
            let keys = keys('b', batch);
            group.throughput(Throughput::Elements(batch as u64));
            group.bench_function(BenchmarkId::new(format!("{held} held"), format!("{batch} at once")), |b| {
                b.iter(|| runtime.block_on(take_and_release(&mut stream, &keys)));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, pipelined);
criterion_main!(benches);
