//! The listening sockets: one for each address of a host, all at one port.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::task::Poll;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::error::{Error, ErrorKind, Result};
use crate::net::{Listen, try_tune};

/// The number of connections that may wait to be accepted.
const BACKLOG: u32 = 1024;
/// The number of ports that are tried if the port of the first address is in use at another address.
const MAX_PORT_TRIES: usize = 10;

/// Sockets that accept connections as if they were one.
pub(super) struct Listeners {
    sockets: Vec<TcpListener>,
    /// The socket that is polled first. It rotates, so that no socket starves.
    next: usize,
}

impl Listeners {
    /// Listens on every address of `host`: an IP address, with or without brackets, or a name. An empty
    /// host and `::` mean every interface, of both families.
    ///
    /// If this machine lacks an address, that is logged and the address is skipped, as long as another can
    /// be bound.
    pub(super) async fn bind(host: &str, port: u16) -> Result<Self> {
        let failed = |cause| Error::io(&format!("could not listen on {host}:{port}"), cause);
        let addresses = resolve(host, port).await.map_err(failed)?;
        match bind_at_one_port(&addresses, bind) {
            Ok(sockets) => Ok(Self { sockets, next: 0 }),
            Err((address, cause)) => Err(Error::io(&format!("could not listen on {address}"), cause)),
        }
    }

    pub(super) fn addresses(&self) -> Result<Vec<SocketAddr>> {
        self.local_addrs().map_err(|cause| {
            Error::new(ErrorKind::Io, "could not read the address of the listening socket").caused_by(cause)
        })
    }
}

impl Listen for Listeners {
    type Stream = TcpStream;

    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        loop {
            let (stream, peer) = poll_fn(|cx| {
                for _ in 0..self.sockets.len() {
                    let socket = &self.sockets[self.next];
                    self.next = (self.next + 1) % self.sockets.len();
                    if let Poll::Ready(accepted) = socket.poll_accept(cx) {
                        return Poll::Ready(accepted);
                    }
                }
                Poll::Pending
            })
            .await?;
            if try_tune(&stream, peer) {
                return Ok((stream, peer));
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.sockets[0].local_addr()
    }

    fn local_addrs(&self) -> io::Result<Vec<SocketAddr>> {
        self.sockets.iter().map(TcpListener::local_addr).collect()
    }
}

/// A socket that listens, with its port.
type Bound<T> = io::Result<(T, u16)>;

/// An address that cannot be bound, with the cause.
type BindError = (SocketAddr, io::Error);

/// Returns the addresses of a host, each once, and at least one.
async fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    let everywhere = [IpAddr::from(Ipv6Addr::UNSPECIFIED), Ipv4Addr::UNSPECIFIED.into()];
    if host.is_empty() || bare.parse() == Ok(everywhere[0]) {
        return Ok(everywhere.map(|ip| SocketAddr::new(ip, port)).into());
    }
    // The dot marks a fully qualified name.
    if bare.strip_suffix('.').unwrap_or(bare).eq_ignore_ascii_case("localhost") {
        // By definition, even if the machine's host table lacks one.
        let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
        return Ok(loopback.map(|ip| SocketAddr::new(ip, port)).into());
    }
    let mut addresses = Vec::new();
    for address in tokio::net::lookup_host((bare, port)).await? {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() { Err(io::Error::other("the name has no address")) } else { Ok(addresses) }
}

/// Listens on all addresses. If they name no port, the port of the first may be in use at another; then all
/// are bound again, at a new port.
fn bind_at_one_port<T>(
    addresses: &[SocketAddr],
    mut bind: impl FnMut(SocketAddr) -> Bound<T>,
) -> Result<Vec<T>, BindError> {
    let mut tries = if addresses[0].port() == 0 { MAX_PORT_TRIES } else { 1 };
    loop {
        tries -= 1;
        match bind_all(addresses, &mut bind) {
            Err((_, error)) if tries > 0 && error.kind() == io::ErrorKind::AddrInUse => {}
            outcome => return outcome,
        }
    }
}

/// Listens on all addresses. If they name no port, all take the port that the system gives the first.
fn bind_all<T>(
    addresses: &[SocketAddr],
    mut bind: impl FnMut(SocketAddr) -> Bound<T>,
) -> Result<Vec<T>, BindError> {
    let (mut sockets, mut missing) = (Vec::new(), Vec::new());
    let mut port = None;
    for address in addresses {
        let mut address = *address;
        address.set_port(port.unwrap_or(address.port()));
        match bind(address) {
            Ok((socket, given)) => {
                port = Some(given);
                sockets.push(socket);
            }
            Err(error) if is_address_missing(&error) => missing.push((address, error)),
            Err(error) => return Err((address, error)),
        }
    }
    if sockets.is_empty() {
        return Err(missing.swap_remove(0));
    }
    for (address, error) in missing {
        tracing::info!(address = %address.ip(), %error, "address skipped: this machine does not have it");
    }
    Ok(sockets)
}

fn bind(address: SocketAddr) -> Bound<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // After a restart, connections of the last server may still be closing.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    if address.is_ipv6() {
        // IPv4 has its own sockets.
        SockRef::from(&socket).set_only_v6(true)?;
    }
    socket.bind(address)?;
    let listener = socket.listen(BACKLOG)?;
    let port = listener.local_addr()?.port();
    Ok((listener, port))
}

/// Returns `true` if the machine lacks the address, or its whole family.
fn is_address_missing(error: &io::Error) -> bool {
    #[cfg(unix)]
    let no_family = error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error());
    #[cfg(not(unix))]
    let no_family = error.kind() == io::ErrorKind::Unsupported;
    no_family || error.kind() == io::ErrorKind::AddrNotAvailable
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn shown(host: &str) -> io::Result<Vec<String>> {
        Ok(resolve(host, 7).await?.iter().map(ToString::to_string).collect())
    }

    #[tokio::test]
    async fn a_host_means_what_it_says() {
        assert_eq!(shown("").await.unwrap(), ["[::]:7", "0.0.0.0:7"]);
        assert_eq!(shown("::").await.unwrap(), ["[::]:7", "0.0.0.0:7"]);
        assert_eq!(shown("[::]").await.unwrap(), ["[::]:7", "0.0.0.0:7"]);
        assert_eq!(shown("0.0.0.0").await.unwrap(), ["0.0.0.0:7"]);
        assert_eq!(shown("[::1]").await.unwrap(), ["[::1]:7"]);
        assert_eq!(shown("::1").await.unwrap(), ["[::1]:7"]);
        assert_eq!(shown("127.0.0.1").await.unwrap(), ["127.0.0.1:7"]);
        for name in ["localhost", "LocalHost", "LOCALHOST."] {
            assert_eq!(shown(name).await.unwrap(), ["127.0.0.1:7", "[::1]:7"], "{name}");
        }
        assert!(shown("no such host").await.is_err());
    }

    #[tokio::test]
    async fn an_address_that_the_machine_lacks_is_passed_over_if_another_works() {
        let at = |address: &str| address.parse::<SocketAddr>().unwrap();
        // From the range for documentation: no machine has it.
        let missing = at("198.51.100.7:0");
        for addresses in [[missing, at("127.0.0.1:0")], [at("127.0.0.1:0"), missing]] {
            let sockets = bind_all(&addresses, bind).unwrap();
            assert_eq!(sockets.len(), 1);
            assert!(sockets[0].local_addr().unwrap().ip().is_loopback());
        }
        let (address, error) = bind_all(&[missing, missing], bind).unwrap_err();
        assert_eq!((address, error.kind()), (missing, io::ErrorKind::AddrNotAvailable));
        let taken = bind_all(&[at("127.0.0.1:0")], bind).unwrap();
        let taken = taken[0].local_addr().unwrap();
        let (address, error) = bind_all(&[missing, taken], bind).unwrap_err();
        assert_eq!((address, error.kind()), (taken, io::ErrorKind::AddrInUse));
    }

    #[test]
    fn another_port_is_tried_if_the_first_is_taken_at_the_second_address_but_not_for_ever() {
        let addresses =
            |port| ["127.0.0.1", "127.0.0.2"].map(|ip| SocketAddr::new(ip.parse().unwrap(), port));
        // The first address gets one port after the other; at the second, all ports but one are in use.
        let bound = |port, free: Option<u16>| {
            let mut given = 1000;
            let bind = |address: SocketAddr| match address.port() {
                0 => {
                    given += 1;
                    Ok((SocketAddr::new(address.ip(), given), given))
                }
                port if Some(port) == free => Ok((address, port)),
                _ => Err(io::ErrorKind::AddrInUse.into()),
            };
            bind_at_one_port(&addresses(port), bind)
        };
        assert_eq!(bound(0, Some(1004)).unwrap(), addresses(1004));
        let (address, error) = bound(0, None).unwrap_err();
        assert_eq!(
            (address.to_string().as_str(), error.kind()),
            ("127.0.0.2:1010", io::ErrorKind::AddrInUse)
        );
        assert_eq!(bound(7, None).unwrap_err().0, addresses(7)[0], "a port that is named stays");
    }

    #[tokio::test]
    async fn all_addresses_have_one_port_and_are_accepted_from() {
        // Both belong to this machine, and to one family that every machine has.
        let addresses = ["127.0.0.1:0", "127.0.0.2:0"].map(|address| address.parse().unwrap());
        let Ok(sockets) = bind_all(&addresses, bind) else {
            eprintln!("!!! skipped: this machine has no 127.0.0.2");
            return;
        };
        let mut listeners = Listeners { sockets, next: 0 };
        let bound = listeners.addresses().unwrap();
        assert_eq!((bound.len(), bound[0].port()), (2, bound[1].port()));
        assert_ne!(bound[0].port(), 0);
        let mut clients = Vec::new();
        for address in [bound[1], bound[0], bound[1]] {
            let mut client = TcpStream::connect(address).await.unwrap();
            let (mut stream, peer) = listeners.accept().await.unwrap();
            assert_eq!(client.local_addr().unwrap(), peer);
            stream.write_all(b"x").await.unwrap();
            assert_eq!(client.read_u8().await.unwrap(), b'x');
            clients.push((client, stream));
        }
    }
}
