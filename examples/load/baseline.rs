//! The limit for a client that does not pipeline: the same bytes as an acquire and its release, over plain TCP, with
//! one connection per worker and one request in flight, between peers that look at nothing.

use std::net::SocketAddr;

use dflockd_client::proto::{Family, Reply, Request};
use dflockd_client::{Fence, Key, Seconds, Token};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::Result;
use crate::workers::Worker;

const TOKEN: Token = Token::mint(Fence::new(1 << 60), 1 << 60);
/// Each read asks for more than comes, so that tokio knows by its shortness that nothing is left: one system call.
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
}

impl Worker for Bare {
    async fn round(&mut self) -> Result<()> {
        let mut buffer = [0; BUFFER];
        for (request, reply) in self.requests.iter().zip(self.replies) {
            self.stream.write_all(request).await?;
            let mut read = 0;
            while read < reply {
                read += some(self.stream.read(&mut buffer).await?)?;
            }
        }
        Ok(())
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

/// Answers every third line, by turns with a grant and with `ok`, for ever.
pub(crate) async fn respond(lease: Seconds, ready: impl FnOnce(SocketAddr)) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    ready(listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        // A worker that has enough hangs up.
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
