//! Streams and how they are opened. Here tests plug in duplex pipes, scripted peers and simulated
//! networks.

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

/// A stream of any kind.
pub type BoxStream = Box<dyn Stream>;

/// Opens streams to servers. [`TcpDial`] is the default; tests have their own.
pub trait Dial: Send + Sync + 'static {
    /// Connects to `host:port`. Dropping the future cancels the attempt.
    fn dial<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<BoxStream>>;
}

/// Connects by TCP, with `TCP_NODELAY` on and with keepalive probes: the first after 15 s without a byte,
/// then one every 10 s; after four unanswered ones in a row the connection closes. A wait for a busy key
/// sends nothing else, so these probes keep it open at NATs and firewalls on the way. A proxy that closes
/// connections without *data* does not count them: its idle timeout must be longer than any wait.
///
/// If a name has several addresses, the next one is tried beside the first after 250 ms, or at once if
/// the first fails. The address that worked is tried first the next time. Clones share that memory.
#[derive(Clone, Debug, Default)]
pub struct TcpDial(Arc<Addresses>);

impl TcpDial {
    /// Creates a dialler that remembers no address.
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

/// Accepts streams. Implemented for tokio's `TcpListener`; tests have their own.
pub trait Listen: Send + 'static {
    /// The type of an accepted stream.
    type Stream: Stream;

    /// Waits for the next connection and returns it with its peer's address. Must be cancel safe.
    fn accept(&mut self) -> impl Future<Output = io::Result<(Self::Stream, SocketAddr)>> + Send;

    /// Returns the address that connections are accepted on; the first if there are several.
    fn local_addr(&self) -> io::Result<SocketAddr>;

    /// Returns all addresses that connections are accepted on.
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

/// Tunes an accepted connection; returns `false` if that fails. On some systems a connection that is
/// already reset accepts no options, which is not the listener's fault.
pub(crate) fn try_tune(stream: &TcpStream, peer: SocketAddr) -> bool {
    let tuned = tune(stream);
    if let Err(error) = &tuned {
        tracing::debug!(%peer, %error, "could not tune a connection");
    }
    tuned.is_ok()
}

/// How long a connection is idle before the system probes the peer's host, and how often then: often
/// enough, too, for NATs and firewalls that drop an idle connection, since a wait sends nothing. After
/// four unanswered probes the connection closes, 55 s after the peer's last byte.
const PROBE_AFTER: Duration = Duration::from_secs(15);
const PROBE_INTERVAL: Duration = Duration::from_secs(10);
/// The same for bytes that were sent and are not acknowledged, which no probe follows: the system would
/// retransmit them for a quarter of an hour.
#[cfg(any(target_os = "linux", target_os = "android"))]
const UNACKNOWLEDGED_TIMEOUT: Duration = Duration::from_secs(50);

/// Sets the options by which small frames leave at once, and a peer whose host is gone is noticed within
/// a minute.
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
