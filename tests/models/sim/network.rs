//! The simulated network as the crate's own traits see it. What is sent goes in small segments, of which
//! only so many fit between two ends, as between two kernels: who does not read stops who writes.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use dflockd_client::net::{BoxStream, Dial, Listen};
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::time::{Sleep, sleep};
use turmoil::net::{TcpListener, TcpStream};

use crate::sim::history::now;

/// Where every server listens.
pub(crate) const PORT: u16 = 6388;
/// How many segments are between two ends at most.
pub(crate) const SEGMENTS: usize = 64;
/// How many bytes a segment has at most.
const SEGMENT: usize = 64;
/// How much is between two ends at most.
pub(crate) const BUFFER: usize = SEGMENTS * SEGMENT;

/// Until when a client reads nothing from any of its connections: it is busy, or asleep.
#[derive(Clone, Default)]
pub(crate) struct Ears(Arc<Mutex<Duration>>);

impl Ears {
    pub(crate) fn close_until(&self, until: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    fn closed_for(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).saturating_sub(now())
    }
}

/// One end of a connection.
struct SimStream {
    stream: TcpStream,
    ears: Ears,
    nap: Pin<Box<Sleep>>,
}

impl SimStream {
    fn new(stream: TcpStream, ears: Ears) -> Self {
        Self { stream, ears, nap: Box::pin(sleep(Duration::ZERO)) }
    }
}

impl AsyncRead for SimStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let left = self.ears.closed_for();
            if left.is_zero() {
                return Pin::new(&mut self.stream).poll_read(cx, buffer);
            }
            self.nap = Box::pin(sleep(left));
            ready!(self.nap.as_mut().poll(cx));
        }
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, &bytes[..bytes.len().min(SEGMENT)])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Dials hosts of the simulation by name.
pub(crate) struct SimDial(pub(crate) Ears);

impl Dial for SimDial {
    fn dial<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<BoxStream>> {
        Box::pin(async move {
            let stream = TcpStream::connect((host, port)).await?;
            Ok(Box::new(SimStream::new(stream, self.0.clone())) as BoxStream)
        })
    }
}

/// Listens on the simulated host that it is made on.
pub(crate) struct SimListener {
    listener: TcpListener,
    /// Accepted before all others: a connection from the host itself.
    first: Option<DuplexStream>,
}

impl SimListener {
    pub(crate) async fn bind(first: Option<DuplexStream>) -> io::Result<Self> {
        Ok(Self { listener: TcpListener::bind(("0.0.0.0", PORT)).await?, first })
    }
}

impl Listen for SimListener {
    type Stream = BoxStream;

    async fn accept(&mut self) -> io::Result<(BoxStream, SocketAddr)> {
        if let Some(first) = self.first.take() {
            return Ok((Box::new(first), SocketAddr::from((Ipv4Addr::LOCALHOST, 0))));
        }
        let (stream, peer) = self.listener.accept().await?;
        Ok((Box::new(SimStream::new(stream, Ears::default())), peer))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}
