//! One connection: reads requests, serves them in order, writes the replies, and notes which side ended it.
//! That decides when what it held is freed.

mod commands;
mod reply_buffer;
#[cfg(test)]
mod tests;

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::{consume_budget, yield_now};
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};

use self::reply_buffer::ReplyBuffer;
use crate::net::Stream;
use crate::proto::{Frame, FrameDecoder, Status};
use crate::server::lifecycle::ServerState;
use crate::server::shared::{ConnectionGuard, DRAIN_POLL_INTERVAL, ServerShared};

/// The size of a read from a peer that sends little. Most do, and there may be many.
const READ_CHUNK: usize = 4 * 1024;
/// The size of a read from a peer that sent more than that: the larger the batch, the fewer the system
/// calls.
const READ_CHUNK_BUSY: usize = 32 * 1024;
/// How long a connection that failed to authenticate stays open. Slows down guessing.
const AUTH_FAILURE_DELAY: Duration = Duration::from_millis(100);

/// The side that ended a connection.
enum EndedBy {
    /// The peer closed the connection or its sending half, or broke the protocol: it knows that the
    /// connection has ended.
    Peer,
    /// The server ended the connection by itself. The peer may not notice before its keepalive fails.
    Server,
}

impl EndedBy {
    /// Returns the side that a failed read or write points to. A close by the peer shows as one of a few
    /// errors. All other errors, such as a timeout of the system or a broken TLS record, leave open what
    /// the peer knows.
    fn from_error(error: &io::Error) -> Self {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        let by_peer = matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof);
        if by_peer { Self::Peer } else { Self::Server }
    }

    fn check_read(read: io::Result<usize>) -> Result<usize, Self> {
        match read {
            Ok(0) => Err(Self::Peer),
            Ok(n) => Ok(n),
            Err(error) => Err(Self::from_error(&error)),
        }
    }
}

pub(super) async fn serve(shared: Arc<ServerShared>, stream: impl Stream) {
    let guard = shared.connect();
    serve_guarded(shared, guard, stream).await;
}

pub(super) async fn serve_guarded(shared: Arc<ServerShared>, guard: ConnectionGuard, stream: impl Stream) {
    let mut connection = Connection::new(shared, guard, stream);
    let shared = connection.shared.clone();
    let stopped = async {
        // Also wakes the connection, which checks the server's state at each poll.
        shared.lifecycle.reached(ServerState::Draining).await;
        yield_now().await;
        shared.lifecycle.reached(ServerState::Stopped).await;
    };
    let ended = tokio::select! {
        biased;
        ended = connection.run() => ended,
        () = stopped => EndedBy::Server,
    };
    connection.ended_by = ended;
    // Fails if the peer has already closed the connection.
    let _ = timeout(AUTH_FAILURE_DELAY, connection.stream.shutdown()).await;
}

struct Connection<S> {
    stream: S,
    inbox: BytesMut,
    /// The size of the next read.
    chunk: usize,
    out: ReplyBuffer,
    decoder: FrameDecoder,
    authenticated: bool,
    /// When the last line or the last wait of a command ended.
    line_started: Instant,
    /// The side that ended the connection. Before its end, the one that counts if its task panics or is
    /// dropped.
    ended_by: EndedBy,
    shared: Arc<ServerShared>,
    guard: ConnectionGuard,
}

impl<S> Connection<S> {
    fn new(shared: Arc<ServerShared>, guard: ConnectionGuard, stream: S) -> Self {
        Self {
            stream,
            inbox: BytesMut::new(),
            chunk: READ_CHUNK,
            out: ReplyBuffer::default(),
            decoder: FrameDecoder::new(),
            authenticated: shared.credentials().auth_token.is_none(),
            line_started: Instant::now(),
            ended_by: EndedBy::Server,
            shared,
            guard,
        }
    }

    /// Returns the time by which the current line must be complete.
    fn line_deadline(&self) -> Instant {
        self.line_started + self.shared.config.read_timeout
    }
}

impl<S> Drop for Connection<S> {
    fn drop(&mut self) {
        for (key, token) in self.out.undelivered() {
            self.shared.with_table(|table, now| table.release(now, &key, &token));
        }
        if let EndedBy::Server = self.ended_by {
            // The last request that got a reply was complete by `line_started`. Its sender relies on the
            // read timeout from then on, and on nothing less.
            self.guard.keep_until(self.line_deadline());
        }
    }
}

impl<S: Stream> Connection<S> {
    async fn run(&mut self) -> EndedBy {
        let mut timer = pin!(sleep_until(self.line_deadline()));
        loop {
            if let Err(ended) = self.serve_inbox().await {
                return ended;
            }
            if let Err(ended) = self.flush().await {
                return ended;
            }
            if let Err(ended) = self.read(timer.as_mut()).await {
                return ended;
            }
        }
    }

    /// Serves every complete frame that has been read.
    async fn serve_inbox(&mut self) -> Result<(), EndedBy> {
        loop {
            let mut rest = &self.inbox[..];
            let frame = self.decoder.next(&mut rest);
            let used = self.inbox.len() - rest.len();
            self.inbox.advance(used);
            match frame {
                None => return Ok(()),
                Some(Frame::Request(request)) => self.serve(request).await?,
                Some(Frame::Malformed(fault)) => {
                    tracing::debug!(%fault, "request refused");
                    self.check_auth().await?;
                    self.refuse(Status::Error);
                }
                Some(Frame::TooLong(fault)) => {
                    tracing::debug!(%fault, "closing a connection");
                    self.check_auth().await?;
                    return Err(self.end_for_overlong_line().await);
                }
            }
            if self.out.is_full() {
                self.flush().await?;
            }
            // One read may bring hundreds of frames. A peer that sends them fast must not delay other
            // tasks.
            consume_budget().await;
        }
    }

    /// Reads more, until the current line's deadline or the server's stop.
    ///
    /// The timer is kept from one read to the next, and may fire for an earlier line. Setting it for each
    /// line would cost more than serving the line.
    async fn read(&mut self, mut timer: Pin<&mut Sleep>) -> Result<(), EndedBy> {
        let deadline = self.line_deadline();
        loop {
            let draining = self.shared.lifecycle.state() != ServerState::Serving;
            // A partial request does not delay the stop: that would take until the read timeout.
            let may_close = draining && !self.holds();
            self.inbox.reserve(self.chunk);
            tokio::select! {
                biased;
                // First, so that a server that stops still serves the requests that have arrived.
                read = self.stream.read_buf(&mut self.inbox) => {
                    if let Ok(0) = read {
                        return Err(self.end_at_eof().await);
                    }
                    let n = EndedBy::check_read(read)?;
                    self.fit_chunk(n);
                    let fresh = &self.inbox[self.inbox.len() - n..];
                    if memchr::memchr(b'\n', fresh).is_some() {
                        self.line_started = Instant::now();
                    } else if Instant::now() >= deadline {
                        // While a peer always has more to send, the timer is never polled.
                        return Err(self.end_for_read_timeout().await);
                    }
                    return Ok(());
                }
                // After a yield, so that the read was polled with a fresh budget.
                () = yield_now(), if may_close => return Err(EndedBy::Server),
                () = &mut timer => {
                    if Instant::now() >= deadline {
                        return Err(self.end_for_read_timeout().await);
                    }
                    timer.as_mut().reset(deadline);
                }
                () = self.shared.lifecycle.poll_reached(ServerState::Draining), if !draining => {}
                () = sleep(DRAIN_POLL_INTERVAL), if draining => {}
            }
        }
    }

    /// Reads more at once from a peer that sends much, and shrinks the buffer once the peer sends less.
    fn fit_chunk(&mut self, n: usize) {
        if self.inbox.len() == self.inbox.capacity() {
            self.chunk = READ_CHUNK_BUSY;
        } else if n < READ_CHUNK && self.chunk == READ_CHUNK_BUSY {
            self.chunk = READ_CHUNK;
            self.inbox = BytesMut::from(&self.inbox[..]);
        }
    }

    /// Handles the end of the peer's stream. Most partial requests are dropped without a reply.
    async fn end_at_eof(&mut self) -> EndedBy {
        if !self.authenticated {
            tracing::debug!("closed before it authenticated");
            return self.refuse_auth().await;
        }
        if self.decoder.in_overlong_line() { self.end_for_overlong_line().await } else { EndedBy::Peer }
    }

    /// Ends the connection because of a line over its cap, as the original server does. A client that keeps
    /// to the protocol never sends one, so this ends no lease of such a client.
    async fn end_for_overlong_line(&mut self) -> EndedBy {
        self.refuse(Status::Error);
        let _ = self.flush().await;
        EndedBy::Peer
    }

    async fn end_for_read_timeout(&mut self) -> EndedBy {
        tracing::debug!("read timeout: closing a connection");
        self.refuse(Status::Error);
        self.flush().await.err().unwrap_or(EndedBy::Server)
    }

    async fn flush(&mut self) -> Result<(), EndedBy> {
        self.out.flush(&mut self.stream, self.shared.config.write_timeout).await
    }

    fn holds(&self) -> bool {
        self.shared.with_table(|table, _| table.holds(self.guard.id))
    }
}
