//! One acquire and its release over loopback TCP, beside a bare exchange of the same bytes with a peer that
//! does nothing: the cost of client, guard and server on top of the network.

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use dflockd_client::server::{Server, ServerConfig};
use dflockd_client::{AsyncConn, LockClient, command};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

const ACQUIRE: &[u8] = b"l\nbench\n10\n";
const GRANTED: &[u8] = b"ok 000000000000002a00112233445566aa 33\n";
const RELEASE: &[u8] = b"r\nbench\n000000000000002a00112233445566aa\n";
const RELEASED: &[u8] = b"ok\n";

/// Replies to the two requests without parsing them.
async fn bare_peer() -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut request = [0; RELEASE.len()];
        while stream.read_exact(&mut request[..ACQUIRE.len()]).await.is_ok() {
            stream.write_all(GRANTED).await.unwrap();
            if stream.read_exact(&mut request).await.is_err() {
                break;
            }
            stream.write_all(RELEASED).await.unwrap();
        }
    });
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

async fn exchange(stream: &mut TcpStream) {
    let mut reply = [0; GRANTED.len()];
    stream.write_all(ACQUIRE).await.unwrap();
    stream.read_exact(&mut reply).await.unwrap();
    stream.write_all(RELEASE).await.unwrap();
    stream.read_exact(&mut reply[..RELEASED.len()]).await.unwrap();
}

fn acquire_and_release(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let (mut bare, conn, locks) = runtime.block_on(async {
        let server = Server::bind(ServerConfig { port: 0, ..Default::default() }).await.unwrap();
        let port = server.local_addr().unwrap().port();
        tokio::spawn(server.run(std::future::pending()));
        let conn = command::open_conn("127.0.0.1", port, None, Duration::from_secs(5)).await.unwrap();
        let locks = LockClient::builder().servers([("127.0.0.1", port)]).build().unwrap();
        (bare_peer().await, conn, locks)
    });
    let mut group = c.benchmark_group("acquire and release");
    group.bench_function("bare exchange", |b| b.iter(|| runtime.block_on(exchange(&mut bare))));
    group.bench_function("AsyncConn", |b| b.iter(|| runtime.block_on(by_command(&conn))));
    let lock = locks.lock("bench").unwrap();
    group.bench_function("LockClient", |b| {
        b.iter(|| {
            runtime.block_on(async { lock.acquire().await.unwrap().release().await.unwrap() });
        });
    });
    group.finish();
}

async fn by_command(conn: &AsyncConn) {
    let grant = command::acquire(conn, "bench", Duration::from_secs(10), None).await.unwrap();
    command::release(conn, "bench", &grant.token).await.unwrap();
}

criterion_group!(benches, acquire_and_release);
criterion_main!(benches);
