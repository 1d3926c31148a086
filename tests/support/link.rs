//! The way between a client and a server, in the hands of the test: it swallows or holds up what
//! goes either way, closes, or is reset. Each test uses its part of this.
#![allow(dead_code, reason = "each test uses its part")]

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use dflockd_client::net::{BoxStream, Dial};
use dflockd_client::server::Server;
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::task::AbortHandle;

/// A network to one server. Cheap to clone; clones are the same network.
#[derive(Clone)]
pub(crate) struct Net(Arc<Inner>);

struct Inner {
    server: Server,
    fate: Arc<Fate>,
    serving: Mutex<Vec<AbortHandle>>,
}

/// What befalls every stream of a network.
#[derive(Default)]
struct Fate {
    /// Requests are taken and go nowhere.
    swallows_requests: AtomicBool,
    swallows_replies: AtomicBool,
    /// Requests are held up.
    stalls_requests: AtomicBool,
    stalls_replies: AtomicBool,
    reset: AtomicBool,
    /// Whoever reads or writes.
    tasks: Mutex<Vec<Waker>>,
}

impl Net {
    pub(crate) fn new(server: &Server) -> Self {
        let (fate, serving) = (Arc::default(), Mutex::default());
        Self(Arc::new(Inner { server: server.clone(), fate, serving }))
    }

    /// Whether requests and replies are swallowed from now on.
    pub(crate) fn swallow(&self, requests: bool, replies: bool) {
        self.0.fate.swallows_requests.store(requests, Ordering::SeqCst);
        self.0.fate.swallows_replies.store(replies, Ordering::SeqCst);
    }

    /// Whether requests and replies are held up from now on, to arrive later.
    pub(crate) fn stall(&self, requests: bool, replies: bool) {
        self.0.fate.stalls_requests.store(requests, Ordering::SeqCst);
        self.0.fate.stalls_replies.store(replies, Ordering::SeqCst);
        self.0.fate.wake();
    }

    /// The server closes every connection.
    pub(crate) fn close(&self) {
        self.0.serving.lock().unwrap().drain(..).for_each(|serving| serving.abort());
    }

    /// Every connection fails, for good; the server does not hear of it until the client closes.
    pub(crate) fn reset(&self) {
        self.0.fate.reset.store(true, Ordering::SeqCst);
        self.0.fate.wake();
    }
}

impl Fate {
    /// Lets whoever reads or writes look again.
    fn wake(&self) {
        self.tasks.lock().unwrap().drain(..).for_each(Waker::wake);
    }

    fn remember(&self, cx: &Context<'_>) {
        let mut tasks = self.tasks.lock().unwrap();
        if !tasks.iter().any(|task| task.will_wake(cx.waker())) {
            tasks.push(cx.waker().clone());
        }
    }
}

impl Dial for Net {
    fn dial<'a>(&'a self, _host: &'a str, _port: u16) -> BoxFuture<'a, io::Result<BoxStream>> {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let server = self.0.server.clone();
        let serving = tokio::spawn(async move { server.serve_stream(far).await });
        self.0.serving.lock().unwrap().push(serving.abort_handle());
        let stream = Stream { pipe: near, fate: self.0.fate.clone() };
        Box::pin(async { Ok(Box::new(stream) as BoxStream) })
    }
}

struct Stream {
    pipe: DuplexStream,
    fate: Arc<Fate>,
}

impl Stream {
    fn is_reset(&self) -> io::Result<()> {
        if self.fate.reset.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(())
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.is_reset()?;
        self.fate.remember(cx);
        if self.fate.stalls_replies.load(Ordering::SeqCst) {
            return Poll::Pending;
        }
        loop {
            let before = buf.filled().len();
            let read = Pin::new(&mut self.pipe).poll_read(cx, buf);
            let swallows = self.fate.swallows_replies.load(Ordering::SeqCst);
            match read {
                // The end of the stream is swallowed with the rest: nothing more ever comes.
                Poll::Ready(Ok(())) if swallows && buf.filled().len() == before => return Poll::Pending,
                Poll::Ready(Ok(())) if swallows => buf.set_filled(before),
                other => return other,
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.is_reset()?;
        self.fate.remember(cx);
        if self.fate.stalls_requests.load(Ordering::SeqCst) {
            return Poll::Pending;
        }
        if self.fate.swallows_requests.load(Ordering::SeqCst) {
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.pipe).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(cx)
    }
}
