//! A server on a runtime of its own, which outlives those of its clients.

use std::io;

use dflockd_client::net::{BoxStream, Dial};
use dflockd_client::server::{Server, ServerConfig};
use dflockd_client::{Builder, ClientTarget, LockClient};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::runtime::{self, Handle, Runtime};

pub(crate) struct House {
    pub(crate) server: Server,
    pub(crate) runtime: Runtime,
}

struct Door(Server, Handle);

impl Dial for Door {
    fn dial<'a>(&'a self, _host: &'a str, _port: u16) -> BoxFuture<'a, io::Result<BoxStream>> {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let server = self.0.clone();
        self.1.spawn(async move { server.serve_stream(far).await });
        async { Ok(Box::new(near) as BoxStream) }.boxed()
    }
}

impl House {
    pub(crate) fn new(config: ServerConfig) -> Self {
        let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Self { server: Server::new(config).unwrap(), runtime }
    }

    pub(crate) fn builder(&self) -> Builder<ClientTarget> {
        LockClient::builder().dial(Door(self.server.clone(), self.runtime.handle().clone()))
    }

    pub(crate) fn client(&self) -> LockClient {
        self.builder().build().unwrap()
    }
}
