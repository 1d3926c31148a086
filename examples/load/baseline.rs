//! The limit for a client that does not pipeline: the same bytes as an acquire and its release, over plain
//! TCP, with one connection per worker and one request in flight, between peers that parse nothing.

use std::net::SocketAddr;

use dflockd_client::proto::{Family, Reply, Request};
use dflockd_client::{Fence, Key, Seconds, Token};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};

use crate::Result;
use crate::workers::Worker;

const TOKEN: Token = Token::mint(Fence::new(1 << 60), 1 << 60);
const TOKEN_BYTES: usize = 32;
/// Each read asks for more than comes, so that tokio knows from the short read that nothing is left: one
/// system call.
const BUFFER: usize = 1024;

/// One connection that exchanges the bytes of an acquire and its release.
pub(crate) struct Bare {
    stream: TcpStream,
    requests: [Vec<u8>; 2],
    replies: [usize; 2],
}

impl Bare {
    /// Connects to the responder on this machine.
    pub(crate) async fn connect(port: u16, key: &str, lease: Seconds) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        let key = Key::parse(key)?;
        let timeout = Seconds::ZERO;
        let acquire = Request::Acquire { key: key.clone(), timeout, limit: None, lease: Some(lease) };
        let release = Request::Release { key, token: TOKEN, family: Family::Lock };
        let mut requests = [Vec::new(), Vec::new()];
        acquire.encode(&mut requests[0]);
        release.encode(&mut requests[1]);
        Ok(Self { stream, requests, replies: canned(lease).map(|reply| reply.len()) })
    }

    /// Exchanges the first request, or the second, which returns the token that the first has brought.
    async fn exchange(&mut self, which: usize) -> Result<()> {
        let mut buffer = [0; BUFFER];
        self.stream.write_all(&self.requests[which]).await?;
        let mut read = 0;
        while read < self.replies[which] {
            read += some(self.stream.read(&mut buffer[read..]).await?)?;
        }
        match (which, buffer.strip_prefix(b"ok ")) {
            (0, Some(grant)) => {
                let end = self.requests[1].len() - 1;
                self.requests[1][end - TOKEN_BYTES..end].copy_from_slice(&grant[..TOKEN_BYTES]);
                Ok(())
            }
            _ if buffer.starts_with(b"ok") => Ok(()),
            _ => Err("the peer refused".into()),
        }
    }
}

impl Worker for Bare {
    async fn round(&mut self) -> Result<()> {
        self.exchange(0).await?;
        self.exchange(1).await
    }
}

/// The same bytes through the tasks of a client that supports cancellation and keeps leases, and nothing
/// else: one task for each connection, which receives requests by a channel, and one for each lease, which
/// ends with it.
pub(crate) struct Relayed(mpsc::UnboundedSender<(usize, oneshot::Sender<Result<()>>)>);

impl Relayed {
    pub(crate) fn new(mut bare: Bare) -> Self {
        let (calls, mut called) = mpsc::unbounded_channel::<(_, oneshot::Sender<_>)>();
        tokio::spawn(async move {
            while let Some((which, done)) = called.recv().await {
                // The caller waits for the reply, or the measurement is over.
                let _ = done.send(bare.exchange(which).await);
            }
        });
        Self(calls)
    }

    async fn exchange(&self, which: usize) -> Result<()> {
        let (done, is_done) = oneshot::channel();
        self.0.send((which, done))?;
        is_done.await?
    }
}

impl Worker for Relayed {
    async fn round(&mut self) -> Result<()> {
        self.exchange(0).await?;
        let lease = tokio::spawn(std::future::pending::<()>());
        let released = self.exchange(1);
        lease.abort();
        released.await
    }
}

fn canned(lease: Seconds) -> [Vec<u8>; 2] {
    [Reply::Granted { token: TOKEN, lease }, Reply::Done].map(|reply| {
        let mut bytes = Vec::new();
        reply.encode(&mut bytes);
        bytes
    })
}

fn some(read: usize) -> Result<usize> {
    if read == 0 { Err("the peer hung up".into()) } else { Ok(read) }
}

/// Replies to every third line, alternately with a grant and with `ok`, forever.
pub(crate) async fn respond(lease: Seconds, ready: impl FnOnce(SocketAddr)) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    ready(listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        // A worker closes the connection when it is done.
        tokio::spawn(async move { answer(stream, lease).await.ok() });
    }
}

async fn answer(mut stream: TcpStream, lease: Seconds) -> Result<()> {
    let (mut buffer, mut lines) = ([0; BUFFER], 0);
    for reply in canned(lease).iter().cycle() {
        while lines < 3 {
            let read = some(stream.read(&mut buffer).await?)?;
            lines += buffer[..read].iter().filter(|byte| **byte == b'\n').count();
        }
        lines -= 3;
        stream.write_all(reply).await?;
    }
    Ok(())
}
