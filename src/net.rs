//! Streams and how they come to be: the seam where tests plug in duplex pipes, scripted peers and
//! simulated networks. Knows of no protocol.

mod addresses;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};

use addresses::Addresses;

/// A byte stream in both directions: TCP, TLS, a duplex pipe, a scripted mock.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}

/// A stream of whatever kind.
pub type BoxStream = Box<dyn Stream>;

/// Opens streams to servers. [`TcpDial`] is the default; tests bring their own.
pub trait Dial: Send + Sync + 'static {
    /// Connects to `host:port`. Dropping the future gives the attempt up.
    fn dial<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<BoxStream>>;
}

/// Dials TCP, with `TCP_NODELAY` on, and with keepalive probes: the first after 15 s without a byte, then
/// one every 10 s, and the connection is given up when four in a row were not answered. A wait for a busy
/// key sends nothing else, so they are what keeps it open at NATs and firewalls on the way. A proxy that
/// ends connections without *data* does not count them: its idle timeout must be longer than any wait.
///
/// A name that has several addresses is tried at the next one, beside the first, after 250 ms, or at once
/// when the first fails. The address that worked is tried first the next time. Clones share that.
#[derive(Clone, Debug, Default)]
pub struct TcpDial(Arc<Addresses>);

impl TcpDial {
    /// A dialler that has not dialled yet.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Dial for TcpDial {
    fn dial<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<BoxStream>> {
        Box::pin(async move {
            let resolve = async { lookup_host((host, port)).await.map(Iterator::collect) };
            let stream = self.0.connect(host, port, resolve, TcpStream::connect).await?;
            tune(&stream)?;
            Ok(Box::new(stream) as BoxStream)
        })
    }
}

/// Accepts streams. Implemented for tokio's `TcpListener`; tests bring their own.
pub trait Listen: Send + 'static {
    /// The stream that an accepted connection is.
    type Stream: Stream;

    /// Waits for the next connection and names its peer. Must be cancel safe.
    fn accept(&mut self) -> impl Future<Output = io::Result<(Self::Stream, SocketAddr)>> + Send;

    /// The address that connections are accepted on, the first if there are several.
    fn local_addr(&self) -> io::Result<SocketAddr>;

    /// All addresses that connections are accepted on.
    fn local_addrs(&self) -> io::Result<Vec<SocketAddr>> {
        Ok(vec![self.local_addr()?])
    }
}

impl Listen for tokio::net::TcpListener {
    type Stream = TcpStream;

    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        loop {
            let (stream, peer) = tokio::net::TcpListener::accept(self).await?;
            if try_tune(&stream, peer) {
                return Ok((stream, peer));
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        tokio::net::TcpListener::local_addr(self)
    }
}

/// Tunes an accepted connection. One that is reset already takes no options, on some systems: that is no
/// fault of the listener's.
pub(crate) fn try_tune(stream: &TcpStream, peer: SocketAddr) -> bool {
    let tuned = tune(stream);
    if let Err(error) = &tuned {
        tracing::debug!(%peer, %error, "could not tune a connection");
    }
    tuned.is_ok()
}

/// How long nothing comes before the system asks whether the peer's host is still there, and how often
/// then: often enough, too, for those on the way that drop a quiet connection, since a wait sends nothing. After four probes without an answer the connection ends, 55 s after the peer was last heard.
const PROBE_AFTER: Duration = Duration::from_secs(15);
const PROBE_INTERVAL: Duration = Duration::from_secs(10);
/// The same for what was sent and is not acknowledged, which no probe follows: the system would send it
/// again for a quarter of an hour.
#[cfg(any(target_os = "linux", target_os = "android"))]
const UNACKNOWLEDGED_TIMEOUT: Duration = Duration::from_secs(50);

/// Small frames leave at once, and a peer whose host is gone is noticed within a minute.
fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let probes = TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PROBE_INTERVAL);
    #[cfg(not(any(target_os = "openbsd", target_os = "haiku", target_os = "solaris", target_os = "redox")))]
    let probes = probes.with_retries(4);
    socket.set_tcp_keepalive(&probes)?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_TIMEOUT))?;
    Ok(())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_ends_notice_within_a_minute_that_the_other_host_is_gone() {
        let mut listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (dialled, accepted) = tokio::join!(TcpStream::connect(address), Listen::accept(&mut listener));
        let dialled = dialled.unwrap();
        tune(&dialled).unwrap();
        for stream in [dialled, accepted.unwrap().0] {
            let socket = SockRef::from(&stream);
            assert!(socket.keepalive().unwrap());
            let (after, every) =
                (socket.tcp_keepalive_time().unwrap(), socket.tcp_keepalive_interval().unwrap());
            let silence = after + every * socket.tcp_keepalive_retries().unwrap();
            assert!(silence < Duration::from_secs(60), "{silence:?} of silence");
            assert!(after <= Duration::from_secs(30), "{after:?} are too long for some NATs");
            let unacknowledged = socket.tcp_user_timeout().unwrap().expect("it is set");
            // The system looks at it when a probe is due.
            assert!(unacknowledged + every <= Duration::from_secs(60), "{unacknowledged:?} unacknowledged");
            assert!(stream.nodelay().unwrap());
        }
    }
}
