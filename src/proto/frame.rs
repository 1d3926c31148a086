//! The server's side of the framing: three lines are a request, and there are two kinds of fault.

use std::fmt;

use crate::proto::line::{LineDecoder, LineTooLong};
use crate::proto::request::{Malformed, Request};
use crate::types::{MAX_AUTH_TOKEN_BYTES, MAX_LINE_BYTES};

/// What the decoder has read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A request.
    Request(Request),
    /// Three lines that are not a request: reply `error`, keep the connection.
    Malformed(Malformed),
    /// A line over its cap, skipped to its end: reply `error`, close the connection.
    TooLong(LineTooLong),
}

/// Decodes requests from the bytes that a client sends, in chunks of any size.
///
/// ```
/// use dflockd_client::proto::{Frame, FrameDecoder, Request};
/// let mut decoder = FrameDecoder::new();
/// let mut bytes = &b"ping\n_\n_\nl\nk"[..];
/// assert_eq!(decoder.next(&mut bytes), Some(Frame::Request(Request::Ping)));
/// assert_eq!(decoder.next(&mut bytes), None);
/// assert!(!decoder.at_boundary());
/// ```
#[derive(Default)]
pub struct FrameDecoder {
    line: LineDecoder,
    /// The frame's first lines, back to back; cleared after each frame.
    head: Vec<u8>,
    command_len: Option<usize>,
    key_len: Option<usize>,
    too_long: Option<LineTooLong>,
}

impl FrameDecoder {
    /// Creates a decoder at the start of a frame.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes one frame off the front of `input`; returns `None` if `input` is used up before the frame
    /// ends.
    ///
    /// No frame follows [`Frame::TooLong`]: close the connection.
    pub fn next(&mut self, input: &mut &[u8]) -> Option<Frame> {
        if let Some(fault) = self.too_long {
            return self.skip_to_end(input, fault);
        }
        loop {
            let cap = self.cap();
            let line = match self.line.next(input, cap)? {
                Ok(line) => line,
                Err(fault) => {
                    self.too_long = Some(fault);
                    return self.skip_to_end(input, fault);
                }
            };
            match (self.command_len, self.key_len) {
                (None, _) => {
                    self.head.extend_from_slice(line);
                    self.command_len = Some(line.len());
                }
                (Some(_), None) => {
                    self.head.extend_from_slice(line);
                    self.key_len = Some(line.len());
                }
                (Some(command), Some(_)) => {
                    let (command, key) = self.head.split_at(command);
                    let frame = match Request::parse(command, key, line) {
                        Ok(request) => Frame::Request(request),
                        Err(fault) => Frame::Malformed(fault),
                    };
                    self.head.clear();
                    (self.command_len, self.key_len) = (None, None);
                    return Some(frame);
                }
            }
        }
    }

    /// Returns `true` if the stream is between two frames.
    pub fn at_boundary(&self) -> bool {
        self.command_len.is_none() && self.line.at_boundary() && self.too_long.is_none()
    }

    /// Returns `true` if a line is over its cap and its end has not come yet.
    pub fn in_overlong_line(&self) -> bool {
        self.too_long.is_some()
    }

    /// Returns the cap of the next line: an auth token may be long.
    fn cap(&self) -> usize {
        match (self.command_len, self.key_len) {
            (Some(command), Some(_)) if &self.head[..command] == b"auth" => MAX_AUTH_TOKEN_BYTES,
            _ => MAX_LINE_BYTES,
        }
    }

    /// Skips the rest of an over-long line.
    fn skip_to_end(&mut self, input: &mut &[u8], fault: LineTooLong) -> Option<Frame> {
        let end = memchr::memchr(b'\n', input);
        *input = end.map_or(&[], |end| &input[end + 1..]);
        end.map(|_| Frame::TooLong(fault))
    }
}

/// Shows the position, and none of the bytes: they may be a token's.
impl fmt::Debug for FrameDecoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameDecoder").field("at_boundary", &self.at_boundary()).finish_non_exhaustive()
    }
}
