//! The simulated network as the crate's own traits see it.

use std::io;
use std::net::SocketAddr;

use dflockd_client::net::{BoxStream, Dial, Listen};
use futures::future::BoxFuture;
use turmoil::net::{TcpListener, TcpStream};

/// Where every server listens.
pub(crate) const PORT: u16 = 6388;

/// Dials hosts of the simulation by name.
pub(crate) struct SimDial;

impl Dial for SimDial {
    fn dial<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<BoxStream>> {
        Box::pin(async move { Ok(Box::new(TcpStream::connect((host, port)).await?) as BoxStream) })
    }
}

/// Listens on the simulated host that it is made on.
pub(crate) struct SimListener(TcpListener);

impl SimListener {
    pub(crate) async fn bind() -> io::Result<Self> {
        TcpListener::bind(("0.0.0.0", PORT)).await.map(Self)
    }
}

impl Listen for SimListener {
    type Stream = TcpStream;

    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        self.0.accept().await
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}
