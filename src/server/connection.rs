//! One connection: frames in, replies out, strictly in order; and who ended it, on which depends when
//! what it held is freed. While a command waits, the peer is watched.

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

/// How much is read at once from a peer that sends little: most do, and there may be many.
const READ_CHUNK: usize = 4 * 1024;
/// How much from one that sent more than fitted: the larger the batch, the fewer the system calls.
const READ_CHUNK_BUSY: usize = 32 * 1024;
/// How long a connection that failed to authenticate stays open.
const AUTH_FAILURE_DELAY: Duration = Duration::from_millis(100);

/// Who ended a connection.
enum EndedBy {
    /// The peer closed it, half of it included, or broke the protocol: it knows.
    Peer,
    /// The server did by itself. Its peer may not see that until it has been silent for too long.
    Server,
}

impl EndedBy {
    /// The peer's own end of a stream comes as one of few errors. All others, such as a timeout of
    /// the system's or a broken TLS record, say nothing of what the peer knows.
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
        // Wakes the connection as well, which looks at the phase whenever it is polled.
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
    // The peer may be gone already.
    let _ = timeout(AUTH_FAILURE_DELAY, connection.stream.shutdown()).await;
}

struct Connection<S> {
    stream: S,
    inbox: BytesMut,
    /// How much the next read asks for.
    chunk: usize,
    out: ReplyBuffer,
    decoder: FrameDecoder,
    authenticated: bool,
    /// When the last line ended, or the last command that waited.
    line_started: Instant,
    /// Until it has ended: who will have ended it if its task panics or is dropped.
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

    /// When the line that has begun must have ended.
    fn line_deadline(&self) -> Instant {
        self.line_started + self.shared.config.read_limit()
    }
}

impl<S> Drop for Connection<S> {
    fn drop(&mut self) {
        for (key, token) in self.out.undelivered() {
            self.shared.with_table(|table, now| table.release(now, &key, &token));
        }
        if let EndedBy::Server = self.ended_by {
            // The last request that was answered had come whole by `line_started`. Its sender counts
            // on the read timeout from there, and on nothing less.
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

    /// Serves every whole frame that has been read.
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
                    tracing::debug!(%fault, "refused a request");
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
            // One read brings hundreds of frames: a peer that sends them fast must not keep others waiting.
            consume_budget().await;
        }
    }

    /// Reads more, while the line that has begun is within its time and the server goes on.
    ///
    /// The timer is kept from one read to the next. One that goes off may be an earlier line's: to set
    /// it anew with each line would cost more than the line.
    async fn read(&mut self, mut timer: Pin<&mut Sleep>) -> Result<(), EndedBy> {
        let deadline = self.line_deadline();
        loop {
            let draining = self.shared.lifecycle.state() != ServerState::Serving;
            // Half a request asks nothing: it would hold the stop up until the read timeout.
            let may_close = draining && !self.holds();
            self.inbox.reserve(self.chunk);
            tokio::select! {
                biased;
                // First of all: what has come already is answered, also by a server that stops.
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
                        // A peer that always has more to send never lets the timer have its turn.
                        return Err(self.end_for_read_timeout().await);
                    }
                    return Ok(());
                }
                // A turn later, when the read has looked with a fresh budget.
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

    /// Reads more at once from a peer that sends much, and keeps no room for that once it does not.
    fn fit_chunk(&mut self, n: usize) {
        if self.inbox.len() == self.inbox.capacity() {
            self.chunk = READ_CHUNK_BUSY;
        } else if n < READ_CHUNK && self.chunk == READ_CHUNK_BUSY {
            self.chunk = READ_CHUNK;
            self.inbox = BytesMut::from(&self.inbox[..]);
        }
    }

    /// The peer sends no more. Most parts of a request are dropped without a word.
    async fn end_at_eof(&mut self) -> EndedBy {
        if !self.authenticated {
            tracing::debug!("closed before it authenticated");
            return self.refuse_auth().await;
        }
        if self.decoder.in_overlong_line() { self.end_for_overlong_line().await } else { EndedBy::Peer }
    }

    /// Ends a connection for a line over its cap, as the original server does. A client that keeps to
    /// the protocol never sends one, so no lease of such a client ends by this.
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
        self.out.flush(&mut self.stream, self.shared.config.write_limit()).await
    }

    fn holds(&self) -> bool {
        self.shared.with_table(|table, _| table.holds(self.guard.id))
    }
}
