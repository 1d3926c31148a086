//! The network between clients and a server inside a test: pipes that deliver bytes late, close, or are
//! reset, as the test requires.

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

/// How much a pipe buffers, each way, before its writer must wait.
const PIPE_BYTES: usize = 64 * 1024;
const CHUNK_BYTES: usize = 4 * 1024;

/// One network: its faults apply to every connection over it.
pub(super) struct Network {
    /// `true` while requests are delivered, and while replies are.
    requests: watch::Sender<bool>,
    replies: watch::Sender<bool>,
    open: Mutex<Vec<OpenConnection>>,
}

struct OpenConnection {
    serving: AbortHandle,
    pumps: [AbortHandle; 2],
    /// Of the client's end, and of the server's.
    resets: [Arc<Reset>; 2],
}

impl Network {
    pub(super) fn new() -> Self {
        Self { requests: watch::Sender::new(true), replies: watch::Sender::new(true), open: Mutex::default() }
    }

    /// Sets whether requests and replies are delivered from now on.
    pub(super) fn set_delivery(&self, requests: bool, replies: bool) {
        self.requests.send_replace(requests);
        self.replies.send_replace(replies);
    }

    /// Waits until both ways deliver, as a new connection needs.
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

    /// Opens a connection; returns the client's end.
    pub(super) fn connect(&self, server: &Server) -> PipeEnd {
        let (near, from_near) = tokio::io::duplex(PIPE_BYTES);
        let (to_far, far) = tokio::io::duplex(PIPE_BYTES);
        let (client_out, client_in) = tokio::io::split(from_near);
        let (server_out, server_in) = tokio::io::split(to_far);
        let ways = [
            tokio::spawn(pump(client_out, server_in, self.requests.subscribe())).abort_handle(),
            tokio::spawn(pump(server_out, client_in, self.replies.subscribe())).abort_handle(),
        ];
        let [near, far] = [near, far].map(|pipe| PipeEnd { pipe, reset: Arc::default() });
        let faults = [near.reset.clone(), far.reset.clone()];
        let server = server.clone();
        let serving = tokio::spawn(async move { server.serve_stream(far).await });
        let mut open = self.open();
        open.retain(|open| !open.serving.is_finished());
        open.push(OpenConnection { serving: serving.abort_handle(), pumps: ways, resets: faults });
        near
    }

    /// Breaks every connection: the server sees that at once, and so do clients, unless replies are not
    /// delivered.
    pub(super) fn cut(&self) {
        let heard = *self.replies.borrow();
        for open in self.open().drain(..) {
            open.resets[1].trigger();
            if heard {
                open.pumps.iter().for_each(AbortHandle::abort);
            }
        }
    }

    /// Makes every connection fail at its client's end; the server learns of it when the client closes.
    pub(super) fn reset(&self) {
        self.open().iter().for_each(|open| open.resets[0].trigger());
    }

    fn open(&self) -> MutexGuard<'_, Vec<OpenConnection>> {
        // Nothing panics while the list is locked.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Delivers the bytes of one way of a connection until it closes. While delivery is stopped, bytes wait,
/// and so does the news that the sender has closed.
async fn pump(
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
            // A peer that has closed as well needs no notice.
            let _ = to.shutdown().await;
            return;
        }
        if to.write_all(&chunk[..n]).await.is_err() {
            return;
        }
    }
}

/// The reset of one end of a connection.
#[derive(Default)]
struct Reset {
    triggered: AtomicBool,
    reader: AtomicWaker,
    writer: AtomicWaker,
}

impl Reset {
    fn trigger(&self) {
        self.triggered.store(true, Ordering::SeqCst);
        self.reader.wake();
        self.writer.wake();
    }

    fn check(&self) -> io::Result<()> {
        if self.triggered.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(())
    }
}

/// An end of a connection.
pub(super) struct PipeEnd {
    pipe: DuplexStream,
    reset: Arc<Reset>,
}

impl AsyncRead for PipeEnd {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.reset.reader.register(cx.waker());
        self.reset.check()?;
        Pin::new(&mut self.pipe).poll_read(cx, buf)
    }
}

impl AsyncWrite for PipeEnd {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.reset.writer.register(cx.waker());
        self.reset.check()?;
        Pin::new(&mut self.pipe).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(cx)
    }
}
