//! One connection: frames in, replies out, strictly in order; and who ended it, on which depends when
//! what it held is freed. While a command waits, the peer is watched.

mod commands;
mod outgoing;
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

use self::outgoing::Outgoing;
use crate::net::Stream;
use crate::proto::{Frame, FrameDecoder, Status};
use crate::server::phase::Phase;
use crate::server::shared::{Connected, DRAIN_LOOK, Shared};

/// How much is read at once from a peer that sends little: most do, and there may be many.
const READ_CHUNK: usize = 4 * 1024;
/// How much from one that sent more than fitted: the larger the batch, the fewer the system calls.
const READ_CHUNK_BUSY: usize = 32 * 1024;
/// How long a connection that failed to authenticate stays open.
const AUTH_PAUSE: Duration = Duration::from_millis(100);

/// Who ended a connection.
enum Ended {
    /// The peer closed it, half of it included, or broke the protocol: it knows.
    ByPeer,
    /// The server did by itself. Its peer may not see that until it has been silent for too long.
    ByServer,
}

impl Ended {
    /// The peer's own end of a stream comes as one of few errors. All others, such as a timeout of
    /// the system's or a broken TLS record, say nothing of what the peer knows.
    fn by(error: &io::Error) -> Self {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        let by_peer = matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof);
        if by_peer { Self::ByPeer } else { Self::ByServer }
    }

    fn unless_read(read: io::Result<usize>) -> Result<usize, Self> {
        match read {
            Ok(0) => Err(Self::ByPeer),
            Ok(n) => Ok(n),
            Err(error) => Err(Self::by(&error)),
        }
    }
}

pub(super) async fn serve(shared: Arc<Shared>, stream: impl Stream) {
    let connected = shared.connect();
    serve_connected(shared, connected, stream).await;
}

pub(super) async fn serve_connected(shared: Arc<Shared>, connected: Connected, stream: impl Stream) {
    let mut session = Session::new(shared, connected, stream);
    let shared = session.shared.clone();
    let stopped = async {
        // Wakes the session as well, which looks at the phase whenever it is polled.
        shared.life.reaches(Phase::Draining).await;
        yield_now().await;
        shared.life.reaches(Phase::Stopped).await;
    };
    let ended = tokio::select! {
        biased;
        ended = session.run() => ended,
        () = stopped => Ended::ByServer,
    };
    session.ended = ended;
    // The peer may be gone already.
    let _ = timeout(AUTH_PAUSE, session.stream.shutdown()).await;
}

struct Session<S> {
    stream: S,
    inbox: BytesMut,
    /// How much the next read asks for.
    chunk: usize,
    out: Outgoing,
    decoder: FrameDecoder,
    authenticated: bool,
    /// When the last line ended, or the last command that waited.
    line_started: Instant,
    /// Until it has ended: who will have ended it if its task panics or is dropped.
    ended: Ended,
    shared: Arc<Shared>,
    connected: Connected,
}

impl<S> Session<S> {
    fn new(shared: Arc<Shared>, connected: Connected, stream: S) -> Self {
        Self {
            stream,
            inbox: BytesMut::new(),
            chunk: READ_CHUNK,
            out: Outgoing::default(),
            decoder: FrameDecoder::new(),
            authenticated: shared.door().auth_token.is_none(),
            line_started: Instant::now(),
            ended: Ended::ByServer,
            shared,
            connected,
        }
    }

    /// When the line that has begun must have ended.
    fn line_limit(&self) -> Instant {
        self.line_started + self.shared.config.read_limit()
    }
}

impl<S> Drop for Session<S> {
    fn drop(&mut self) {
        for (key, token) in self.out.undelivered() {
            self.shared.with(|table, now| table.release(now, &key, &token));
        }
        if let Ended::ByServer = self.ended {
            // The last request that was answered had come whole by `line_started`. Its sender counts
            // on the read timeout from there, and on nothing less.
            self.connected.keep_until(self.line_limit());
        }
    }
}

impl<S: Stream> Session<S> {
    async fn run(&mut self) -> Ended {
        let mut timer = pin!(sleep_until(self.line_limit()));
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
    async fn serve_inbox(&mut self) -> Result<(), Ended> {
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
                    return Err(self.cut_off().await);
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
    async fn read(&mut self, mut timer: Pin<&mut Sleep>) -> Result<(), Ended> {
        let limit = self.line_limit();
        loop {
            let draining = self.shared.life.phase() != Phase::Serving;
            // Half a request asks nothing: it would hold the stop up until the read timeout.
            let may_go = draining && !self.holds();
            self.inbox.reserve(self.chunk);
            tokio::select! {
                biased;
                // First of all: what has come already is answered, also by a server that stops.
                read = self.stream.read_buf(&mut self.inbox) => {
                    if let Ok(0) = read {
                        return Err(self.at_end().await);
                    }
                    let n = Ended::unless_read(read)?;
                    self.fit_chunk(n);
                    let fresh = &self.inbox[self.inbox.len() - n..];
                    if memchr::memchr(b'\n', fresh).is_some() {
                        self.line_started = Instant::now();
                    } else if Instant::now() >= limit {
                        // A peer that always has more to send never lets the timer have its turn.
                        return Err(self.time_out().await);
                    }
                    return Ok(());
                }
                // A turn later, when the read has looked with a fresh budget.
                () = yield_now(), if may_go => return Err(Ended::ByServer),
                () = &mut timer => {
                    if Instant::now() >= limit {
                        return Err(self.time_out().await);
                    }
                    timer.as_mut().reset(limit);
                }
                () = self.shared.life.has_reached(Phase::Draining), if !draining => {}
                () = sleep(DRAIN_LOOK), if draining => {}
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
    async fn at_end(&mut self) -> Ended {
        if !self.authenticated {
            tracing::debug!("closed before it authenticated");
            return self.refuse_auth().await;
        }
        if self.decoder.in_overlong_line() { self.cut_off().await } else { Ended::ByPeer }
    }

    /// Ends a connection for a line over its cap, as the original server does. A client that keeps to
    /// the protocol never sends one, so no lease of such a client ends by this.
    async fn cut_off(&mut self) -> Ended {
        self.refuse(Status::Error);
        let _ = self.flush().await;
        Ended::ByPeer
    }

    async fn time_out(&mut self) -> Ended {
        tracing::debug!("read timeout: closing a connection");
        self.refuse(Status::Error);
        self.flush().await.err().unwrap_or(Ended::ByServer)
    }

    async fn flush(&mut self) -> Result<(), Ended> {
        self.out.flush(&mut self.stream, self.shared.config.write_limit()).await
    }

    fn holds(&self) -> bool {
        self.shared.with(|table, _| table.holds(self.connected.id))
    }
}
