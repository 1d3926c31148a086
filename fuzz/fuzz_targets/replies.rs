//! What a client reads: any bytes in any chunks make the same lines, no line makes the parser
//! panic, and a reply that was understood, written out again, is understood as the same.
#![no_main]

use dflockd_client::proto::{Expect, LineDecoder, LineTooLong, MAX_REPLY_BYTES, Reply, StatsResult};
use libfuzzer_sys::fuzz_target;

const EXPECTS: [Expect; 5] = [Expect::Done, Expect::Grant, Expect::Enqueue, Expect::Lease, Expect::Stats];

/// Small, so that lines over it turn up.
const SMALL_CAP: usize = 64;

fuzz_target!(|bytes: &[u8]| {
    for cap in [SMALL_CAP, MAX_REPLY_BYTES] {
        let whole = lines([bytes], cap);
        assert_eq!(whole, lines(bytes.chunks(1), cap), "byte by byte, cap {cap}");
        assert_eq!(whole, lines(bytes.chunks(7), cap), "by sevens, cap {cap}");
        for line in whole.iter().flatten() {
            assert!(line.len() <= cap);
            EXPECTS.iter().for_each(|expect| round_trip(line, *expect));
        }
    }
});

/// The lines that the chunks make, up to the first that is too long.
fn lines<'a>(chunks: impl IntoIterator<Item = &'a [u8]>, cap: usize) -> Vec<Result<Vec<u8>, LineTooLong>> {
    let mut decoder = LineDecoder::new();
    let mut lines = Vec::new();
    for mut chunk in chunks {
        while let Some(line) = decoder.next(&mut chunk, cap) {
            lines.push(line.map(<[u8]>::to_vec));
            if lines.last().is_some_and(Result::is_err) {
                assert!(!decoder.at_boundary());
                return lines;
            }
        }
    }
    lines
}

fn round_trip(line: &[u8], expect: Expect) {
    let Ok(reply) = Reply::parse(line, expect) else { return };
    let mut encoded = Vec::new();
    reply.encode(&mut encoded);
    let again = lines([&encoded[..]], MAX_REPLY_BYTES);
    let [Ok(again)] = &again[..] else { panic!("{reply:?} is written as {again:?}") };
    assert_eq!(Reply::parse(again, expect).as_ref(), Ok(&reply), "written as {again:?}");
    if let Reply::Stats(json) = &reply {
        stats_round_trip(json);
    }
}

fn stats_round_trip(json: &str) {
    let Ok(stats) = StatsResult::from_json(json) else { return };
    let again = StatsResult::from_json(&stats.to_json());
    assert!(again.is_ok_and(|again| again.to_json() == stats.to_json()), "{stats:?}");
}
