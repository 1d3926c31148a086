//! A server inside the test, reached by duplex pipes, so that paused time drives everything.

use std::io;

use dflockd_client::LockClient;
use dflockd_client::net::{BoxStream, Dial};
use dflockd_client::server::{Server, ServerConfig};
use futures::future::BoxFuture;

/// Dials a server by pipe.
pub(crate) struct Pipes(pub(crate) Server);

impl Dial for Pipes {
    fn dial<'a>(&'a self, _host: &'a str, _port: u16) -> BoxFuture<'a, io::Result<BoxStream>> {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let server = self.0.clone();
        tokio::spawn(async move { server.serve_stream(far).await });
        Box::pin(async { Ok(Box::new(near) as BoxStream) })
    }
}

/// A server with these settings.
pub(crate) fn server(config: ServerConfig) -> Server {
    Server::new(config).expect("the settings are fine")
}

/// A client of it.
pub(crate) fn client(server: &Server) -> LockClient {
    LockClient::builder().dial(Pipes(server.clone())).build().expect("the settings are fine")
}
