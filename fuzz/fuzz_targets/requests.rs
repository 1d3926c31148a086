//! What a server reads: any bytes in any chunks make the same frames, and a request that was
//! understood, written out again, is understood as the same.
#![no_main]

use dflockd_client::proto::{Frame, FrameDecoder};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (Vec<u8>, &[u8])| {
    let (cuts, bytes) = input;
    let whole = frames([bytes]);
    assert_eq!(whole, frames(bytes.chunks(1)), "byte by byte");
    assert_eq!(whole, frames(pieces(bytes, &cuts)), "cut by {cuts:?}");
    for frame in &whole.0 {
        let Frame::Request(request) = frame else { continue };
        let mut encoded = Vec::new();
        request.encode(&mut encoded);
        assert_eq!(frames([&encoded[..]]), (vec![frame.clone()], true), "{encoded:?}");
    }
});

/// The frames that the chunks make, and whether the last ends where the chunks do.
fn frames<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Frame>, bool) {
    let mut decoder = FrameDecoder::new();
    let mut frames = Vec::new();
    for mut chunk in chunks {
        while let Some(frame) = decoder.next(&mut chunk) {
            let last = matches!(frame, Frame::TooLong(_));
            frames.push(frame);
            if last {
                // A server closes here, and what the decoder would say next means nothing.
                return (frames, false);
            }
        }
        assert!(chunk.is_empty(), "the decoder asked for more with {} bytes unread", chunk.len());
    }
    (frames, decoder.at_boundary())
}

/// `bytes` in pieces as long as `cuts` says, empty ones among them, and what is left in one.
fn pieces<'a>(mut bytes: &'a [u8], cuts: &[u8]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    for cut in cuts {
        let (piece, rest) = bytes.split_at(bytes.len().min((*cut).into()));
        pieces.push(piece);
        bytes = rest;
    }
    pieces.push(bytes);
    pieces
}
