//! A stream with its buffers: bytes read and not consumed, and bytes still to be sent.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::error::{Error, Result};
use crate::net::BoxStream;

/// The maximum number of bytes of one read.
const CHUNK: usize = 8 * 1024;
/// The capacity that the send buffer keeps after a burst of requests.
const KEPT_CAPACITY: usize = 64 * 1024;

/// Positions count the bytes ever sent.
pub(super) struct Buffered {
    stream: BoxStream,
    read_buf: Box<[u8]>,
    /// The part of `read_buf` that is not consumed yet.
    unread: Range<usize>,
    /// The position up to which requests were sent when `read_buf` was filled.
    sent_before_read: u64,
    sending: Vec<u8>,
    /// The number of bytes of `sending` that are sent.
    written: usize,
    sent: u64,
    unflushed: bool,
}

impl Buffered {
    pub(super) fn new(stream: BoxStream) -> Self {
        Self {
            stream,
            read_buf: vec![0; CHUNK].into(),
            unread: 0..0,
            sent_before_read: 0,
            sending: Vec::new(),
            written: 0,
            sent: 0,
            unflushed: false,
        }
    }

    /// Returns the number of unread bytes once there are any; 0 once the peer has closed.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize>> {
        if self.unread.is_empty() {
            let mut buffer = ReadBuf::new(&mut self.read_buf);
            let read = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer));
            self.unread = 0..buffer.filled().len();
            self.sent_before_read = self.sent;
            read.map_err(|cause| Error::io("could not read", cause))?;
        }
        Poll::Ready(Ok(self.unread.len()))
    }

    /// Returns the bytes read and not consumed.
    pub(super) fn unread(&self) -> &[u8] {
        &self.read_buf[self.unread.clone()]
    }

    /// Consumes all unread bytes but the last `left`.
    pub(super) fn consume_to(&mut self, left: usize) {
        self.unread.start = self.unread.end - left;
    }

    /// Returns the position up to which requests were sent when the unread bytes came. They answer no later
    /// request.
    pub(super) fn sent_before_read(&self) -> u64 {
        self.sent_before_read
    }

    /// Returns the position up to which bytes may have been sent. Never too low.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// Returns `true` if nothing is left to send.
    pub(super) fn is_sent(&self) -> bool {
        self.sending.is_empty()
    }

    /// Sends what is left from before, then what `more` puts into the empty buffer. Ready once all of it is
    /// sent.
    pub(super) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        more: impl FnOnce(&mut Vec<u8>),
    ) -> Poll<Result<()>> {
        ready!(self.poll_write(cx))?;
        more(&mut self.sending);
        self.poll_write(cx)
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let error = |cause| Error::io("could not send", cause);
        while self.written < self.sending.len() {
            let rest = &self.sending[self.written..];
            match ready!(Pin::new(&mut self.stream).poll_write(cx, rest)) {
                Ok(n) if n > 0 => {
                    self.written += n;
                    self.sent += n as u64;
                    self.unflushed = true;
                }
                outcome => {
                    // How much of it was sent before the error is unknown.
                    self.sent += rest.len() as u64;
                    let cause = outcome.err().unwrap_or_else(|| io::ErrorKind::WriteZero.into());
                    return Poll::Ready(Err(error(cause)));
                }
            }
        }
        self.sending.clear();
        self.sending.shrink_to(KEPT_CAPACITY);
        self.written = 0;
        if self.unflushed {
            ready!(Pin::new(&mut self.stream).poll_flush(cx)).map_err(error)?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Closes the sending half of the stream.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx).map_err(|cause| Error::io("could not close", cause))
    }
}
