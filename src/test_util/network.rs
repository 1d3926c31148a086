//! The way between clients and a server inside a test: pipes that carry bytes late, close, or are
//! reset, as the test says. Knows of no protocol.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::server::Server;

/// How much a pipe holds, each way, before its writer must wait.
const PIPE_BYTES: usize = 64 * 1024;
const CHUNK_BYTES: usize = 4 * 1024;

/// One network: what befalls it befalls every connection over it.
pub(super) struct Network {
    /// Whether what clients send arrives, and what servers do.
    requests: watch::Sender<bool>,
    replies: watch::Sender<bool>,
    open: Mutex<Vec<Open>>,
}

struct Open {
    serving: AbortHandle,
    ways: [AbortHandle; 2],
    /// At the client's end, and at the server's.
    faults: [Arc<Fault>; 2],
}

impl Network {
    pub(super) fn new() -> Self {
        Self { requests: watch::Sender::new(true), replies: watch::Sender::new(true), open: Mutex::default() }
    }

    /// Whether requests and replies arrive from now on.
    pub(super) fn carry(&self, requests: bool, replies: bool) {
        self.requests.send_replace(requests);
        self.replies.send_replace(replies);
    }

    /// Waits until both ways are open, which a new connection needs.
    pub(super) async fn reachable(&self) {
        let (mut requests, mut replies) = (self.requests.subscribe(), self.replies.subscribe());
        while !(*requests.borrow_and_update() && *replies.borrow_and_update()) {
            // The senders are this network's own.
            tokio::select! {
                _ = requests.changed() => {}
                _ = replies.changed() => {}
            }
        }
    }

    /// A new connection, its client's end.
    pub(super) fn connect(&self, server: &Server) -> End {
        let (near, from_near) = tokio::io::duplex(PIPE_BYTES);
        let (to_far, far) = tokio::io::duplex(PIPE_BYTES);
        let (client_out, client_in) = tokio::io::split(from_near);
        let (server_out, server_in) = tokio::io::split(to_far);
        let ways = [
            tokio::spawn(pass(client_out, server_in, self.requests.subscribe())).abort_handle(),
            tokio::spawn(pass(server_out, client_in, self.replies.subscribe())).abort_handle(),
        ];
        let [near, far] = [near, far].map(|pipe| End { pipe, fault: Arc::default() });
        let faults = [near.fault.clone(), far.fault.clone()];
        let server = server.clone();
        let serving = tokio::spawn(async move { server.serve_stream(far).await });
        let mut open = self.open();
        open.retain(|open| !open.serving.is_finished());
        open.push(Open { serving: serving.abort_handle(), ways, faults });
        near
    }

    /// Every connection breaks: the server sees that at once, and so do clients unless nothing gets
    /// through to them.
    pub(super) fn cut(&self) {
        let heard = *self.replies.borrow();
        for open in self.open().drain(..) {
            open.faults[1].strike();
            if heard {
                open.ways.iter().for_each(AbortHandle::abort);
            }
        }
    }

    /// Every connection fails at its client's end; the server hears of it when the client closes.
    pub(super) fn reset(&self) {
        self.open().iter().for_each(|open| open.faults[0].strike());
    }

    fn open(&self) -> MutexGuard<'_, Vec<Open>> {
        // Nothing panics while the list is locked.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Carries one way of a connection to its end. What comes while the way is shut waits, and so does
/// the news that the sender has closed.
async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut carries: watch::Receiver<bool>,
) {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let n = from.read(&mut chunk).await.unwrap_or(0);
        if carries.wait_for(|carries| *carries).await.is_err() {
            return; // The network is gone, and its test with it.
        }
        if n == 0 {
            // Whoever has closed as well needs no telling.
            let _ = to.shutdown().await;
            return;
        }
        if to.write_all(&chunk[..n]).await.is_err() {
            return;
        }
    }
}

/// Whether a connection was reset.
#[derive(Default)]
struct Fault {
    struck: AtomicBool,
    reader: AtomicWaker,
    writer: AtomicWaker,
}

impl Fault {
    fn strike(&self) {
        self.struck.store(true, Ordering::SeqCst);
        self.reader.wake();
        self.writer.wake();
    }

    fn check(&self) -> io::Result<()> {
        if self.struck.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(())
    }
}

/// An end of a connection.
pub(super) struct End {
    pipe: DuplexStream,
    fault: Arc<Fault>,
}

impl AsyncRead for End {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.fault.reader.register(cx.waker());
        self.fault.check()?;
        Pin::new(&mut self.pipe).poll_read(cx, buf)
    }
}

impl AsyncWrite for End {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.fault.writer.register(cx.waker());
        self.fault.check()?;
        Pin::new(&mut self.pipe).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(cx)
    }
}
