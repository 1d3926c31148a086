//! The bare protocol over any stream, many requests at once: fills and probes a server without the client.

use dflockd_client::proto::{LineDecoder, MAX_REPLY_BYTES, Reply, Request};
use dflockd_client::{Key, Seconds, Token};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::Result;

/// How many requests are sent together.
pub(crate) const BATCH: usize = 64;
/// Longer than any scenario.
pub(crate) const LONG: Seconds = Seconds::new(36_000).expect("ten hours");

pub(crate) struct Wire<S> {
    stream: S,
    out: Vec<u8>,
    inbox: Vec<u8>,
    /// How much of `inbox` is consumed.
    taken: usize,
}

impl Wire<TcpStream> {
    pub(crate) async fn connect(port: u16) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        Ok(Self::new(stream))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, out: Vec::new(), inbox: Vec::new(), taken: 0 }
    }

    /// Sends requests in one write.
    pub(crate) async fn send(&mut self, requests: &[Request]) -> Result<()> {
        self.out.clear();
        requests.iter().for_each(|request| request.encode(&mut self.out));
        Ok(self.stream.write_all(&self.out).await?)
    }

    /// Returns the reply to the next request in order.
    pub(crate) async fn reply(&mut self, request: &Request) -> Result<Reply> {
        loop {
            let mut rest = &self.inbox[self.taken..];
            // Each try starts a new decoder: the bytes are still there, so it need not remember any.
            if let Some(line) = LineDecoder::new().next(&mut rest, MAX_REPLY_BYTES) {
                let reply = Reply::parse(line?, request.expect())?;
                self.taken = self.inbox.len() - rest.len();
                return Ok(reply);
            }
            self.inbox.drain(..std::mem::take(&mut self.taken));
            if self.stream.read_buf(&mut self.inbox).await? == 0 {
                return Err("the server hung up".into());
            }
        }
    }

    pub(crate) async fn ask(&mut self, request: &Request) -> Result<Reply> {
        self.send(std::slice::from_ref(request)).await?;
        self.reply(request).await
    }

    /// Takes free keys, this many at a time, and keeps them.
    pub(crate) async fn take(&mut self, keys: impl Iterator<Item = Key>, lease: Seconds) -> Result<()> {
        let mut keys = keys.map(|key| acquire(key, Seconds::ZERO, lease)).peekable();
        while keys.peek().is_some() {
            let batch: Vec<_> = keys.by_ref().take(BATCH).collect();
            self.send(&batch).await?;
            for request in &batch {
                granted(self.reply(request).await?)?;
            }
        }
        Ok(())
    }
}

pub(crate) fn acquire(key: Key, timeout: Seconds, lease: Seconds) -> Request {
    Request::Acquire { key, timeout, limit: None, lease: Some(lease) }
}

pub(crate) fn granted(reply: Reply) -> Result<Token> {
    match reply {
        Reply::Granted { token, .. } => Ok(token),
        other => Err(format!("the key is free, and yet: {other:?}").into()),
    }
}

/// Returns a key of 18 bytes.
pub(crate) fn key(group: char, number: usize) -> Key {
    Key::parse(&format!("load:{group}{number:012}")).expect("neither empty, long nor spaced")
}
