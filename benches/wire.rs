//! The wire without a socket: cuts requests and replies from bytes, and writes both.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use dflockd_client::Key;
use dflockd_client::proto::{Expect, Frame, FrameDecoder, LineDecoder, MAX_REPLY_BYTES, Reply, Request};

const FRAMES: usize = 64;

fn wire(c: &mut Criterion) {
    let key = Key::parse("account:4711").unwrap();
    let acquire = Request::Acquire { key, timeout: dflockd_client::Seconds::ZERO, limit: None, lease: None };
    let mut requests = Vec::new();
    (0..FRAMES).for_each(|_| acquire.encode(&mut requests));
    let replies = b"ok 000000000000002a00112233445566aa 33\n".repeat(FRAMES);

    let mut group = c.benchmark_group("wire");
    group.throughput(Throughput::Elements(FRAMES as u64));
    group.bench_function("requests decoded", |b| {
        b.iter(|| {
            let (mut decoder, mut input, mut count) = (FrameDecoder::new(), &requests[..], 0);
            while let Some(Frame::Request(request)) = decoder.next(&mut input) {
                black_box(request);
                count += 1;
            }
            assert_eq!(count, FRAMES);
        });
    });
    group.bench_function("requests encoded", |b| {
        let mut out = Vec::with_capacity(requests.len());
        b.iter(|| {
            out.clear();
            (0..FRAMES).for_each(|_| black_box(&acquire).encode(&mut out));
            assert_eq!(out.len(), requests.len());
        });
    });
    group.bench_function("replies decoded", |b| {
        b.iter(|| {
            let (mut decoder, mut input, mut count) = (LineDecoder::new(), &replies[..], 0);
            while let Some(line) = decoder.next(&mut input, MAX_REPLY_BYTES) {
                let reply = Reply::parse(line.unwrap(), Expect::Grant).unwrap();
                black_box(reply);
                count += 1;
            }
            assert_eq!(count, FRAMES);
        });
    });
    group.finish();
}

criterion_group!(benches, wire);
criterion_main!(benches);
