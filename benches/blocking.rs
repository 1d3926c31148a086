//! The cost of the blocking API over the async one: one acquire and its release over loopback TCP, by a task
//! on a runtime with one worker, and by a thread whose lock lives on such a runtime or on the hidden thread.
//! The server has its own runtime.

use criterion::{Criterion, criterion_group, criterion_main};
use dflockd_client::server::{Server, ServerConfig};
use dflockd_client::{AsyncDistributedLock, LockClient};
use tokio::runtime::{Builder, Runtime};

fn one_worker() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

async fn once(lock: &AsyncDistributedLock) {
    lock.acquire().await.unwrap().release().await.unwrap();
}

fn overhead(c: &mut Criterion) {
    let servers = one_worker();
    let server = servers.block_on(Server::bind(ServerConfig { port: 0, ..Default::default() })).unwrap();
    let address = [("127.0.0.1", server.local_addr().unwrap().port())];
    servers.spawn(server.run(std::future::pending()));
    let mut group = c.benchmark_group("acquire and release");

    let runtime = one_worker();
    let lock = LockClient::builder().servers(address).build().unwrap().lock("bench").unwrap();
    group.bench_function("a task, one worker", |b| {
        b.iter_custom(|times| {
            let lock = lock.clone();
            let task = runtime.spawn(async move {
                let began = std::time::Instant::now();
                for _ in 0..times {
                    once(&lock).await;
                }
                began.elapsed()
            });
            runtime.block_on(task).unwrap()
        });
    });
    group.bench_function("block_on, one worker", |b| b.iter(|| runtime.block_on(once(&lock))));

    let builder = || LockClient::builder().servers(address).blocking();
    let lent = builder().runtime(runtime.handle().clone()).build().unwrap().lock("bench").unwrap();
    group.bench_function("a thread, one worker", |b| b.iter(|| lent.acquire().unwrap().release().unwrap()));
    let hidden = builder().build().unwrap().lock("bench").unwrap();
    group.bench_function("a thread, hidden thread", |b| {
        b.iter(|| hidden.acquire().unwrap().release().unwrap());
    });
    group.finish();
}

criterion_group!(benches, overhead);
criterion_main!(benches);
