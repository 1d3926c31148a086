//! One connection, one command at a time: writes the request and reads its reply under a lock, so that
//! replies never get mixed up.

use std::fmt;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, BufWriter, ReadHalf, WriteHalf};
use tokio::sync::{Mutex, watch};
use tokio::time::timeout;

use crate::backend::dflockd::connect::{closed_by_peer, unsolicited};
use crate::backend::{GRACE, here};
use crate::error::{Error, ErrorKind, Result};
use crate::net::{BoxStream, Stream};
use crate::process::Origin;
use crate::proto::{LineDecoder, MAX_REPLY_BYTES};
use crate::types::{MAX_AUTH_TOKEN_BYTES, MAX_LINE_BYTES};

/// The timeout of a request that does not wait for a key, unless set.
pub(crate) const DEFAULT_REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest reply to `stats` that is read, unless set: a million keys with names of 32 bytes fit.
pub(crate) const DEFAULT_MAX_STATS_BYTES: usize = 128 * 1024 * 1024;
/// The timeout of shutting the stream down in a close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection over any stream: TCP, TLS, a duplex pipe, a scripted mock.
///
/// Tasks may share it; their commands take turns. If a command's future is dropped, or times out, once its
/// first byte may be sent, the connection closes, since the reply to come could pass for another command's.
/// Every later command fails at once with [`ErrorKind::ConnectionClosed`].
///
/// A TCP or TLS stream belongs to the runtime that opened it. Once that runtime is shut down, commands fail
/// with [`ErrorKind::Io`]; while a current-thread runtime is not driven, they wait. Timeouts need a tokio
/// runtime: outside one, a command that has a timeout fails with [`ErrorKind::InvalidInput`], with nothing
/// sent.
///
/// # Examples
/// ```
/// use std::time::Duration;
/// use dflockd_client::AsyncConn;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
/// let server = tokio_test::io::Builder::new().write(b"ping\n_\n_\n").read(b"ok\n").build();
/// let conn = AsyncConn::new(server);
/// let reply = conn.command("ping", "_", "_", Some(Duration::from_secs(5))).await?;
/// assert_eq!(reply, "ok");
/// # Ok(()) }
/// ```
pub struct AsyncConn {
    /// Taken out while a command runs: dropping that command drops the stream with it.
    halves: Arc<Mutex<Option<Halves>>>,
    closing: watch::Sender<bool>,
    max_reply: usize,
    max_stats_bytes: usize,
    request_timeout: Duration,
    origin: Origin,
}

/// A forked child leaves the stream to its parent, whose runtime it is registered with.
impl Drop for AsyncConn {
    fn drop(&mut self) {
        if !self.origin.is_here() {
            mem::forget(self.halves.clone());
            mem::forget(mem::replace(&mut self.closing, watch::Sender::new(true)));
        }
    }
}

struct Halves {
    reader: BufReader<ReadHalf<BoxStream>>,
    writer: BufWriter<WriteHalf<BoxStream>>,
}

impl AsyncConn {
    /// Wraps a stream that stands at the start of the protocol.
    pub fn new(stream: impl Stream) -> Self {
        let (reader, writer) = tokio::io::split(Box::new(stream) as BoxStream);
        let halves = Halves { reader: BufReader::new(reader), writer: BufWriter::new(writer) };
        Self {
            halves: Arc::new(Mutex::new(Some(halves))),
            closing: watch::Sender::new(false),
            max_reply: MAX_REPLY_BYTES,
            max_stats_bytes: DEFAULT_MAX_STATS_BYTES,
            request_timeout: DEFAULT_REQUEST_TIMEOUT,
            origin: Origin::here(),
        }
    }

    /// Sets the maximum length of a reply line, in bytes, except of the reply to `stats`. A longer line is a
    /// protocol error and closes the connection. Defaults to 1 MiB.
    pub fn max_reply(mut self, bytes: usize) -> Self {
        self.max_reply = bytes;
        self
    }

    /// Sets the maximum length of the reply to `stats`, in bytes. Defaults to 128 MiB, which a million keys
    /// fit into.
    pub fn max_stats_bytes(mut self, bytes: usize) -> Self {
        self.max_stats_bytes = bytes;
        self
    }

    /// Sets how long the functions of [`command`](crate::command) wait for a reply if the request does not
    /// wait for a key. Defaults to 5 s.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// Returns the same connection, for another thread.
    #[cfg(feature = "blocking")]
    pub(crate) fn share(&self) -> Self {
        Self {
            halves: self.halves.clone(),
            closing: self.closing.clone(),
            origin: self.origin.clone(),
            ..*self
        }
    }

    /// Returns how long a request may take that may wait at the server for `timeout`.
    pub(crate) fn reply_within(&self, timeout: Duration) -> Duration {
        if timeout.is_zero() { self.request_timeout } else { timeout.saturating_add(GRACE) }
    }

    /// Sends one request, any three lines, and returns its one reply line without the newline.
    ///
    /// `read_timeout` covers writing and reading, not the wait for the commands of other tasks; with `None`,
    /// the command waits forever.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput), with nothing sent: a newline in a line, or a line over its
    /// maximum length. [`Timeout`](ErrorKind::Timeout), [`ConnectionClosed`](ErrorKind::ConnectionClosed),
    /// [`Protocol`](ErrorKind::Protocol) (a reply that is too long, not UTF-8, or unsolicited) and
    /// [`Io`](ErrorKind::Io): the connection is closed.
    ///
    /// # Cancel safety
    /// If the future is dropped while it waits for its turn, nothing happens. If it is dropped later, the
    /// connection closes, and the server may or may not have carried out the command.
    pub async fn command(
        &self,
        cmd: &str,
        key: &str,
        arg: &str,
        read_timeout: Option<Duration>,
    ) -> Result<String> {
        self.exchange(cmd, key, arg, read_timeout, Ok).await
    }

    /// Runs a [`command`](Self::command) whose possible replies are known. A line that `read` refuses may be
    /// another request's reply, so it closes the connection.
    pub(crate) async fn exchange<T>(
        &self,
        cmd: &str,
        key: &str,
        arg: &str,
        read_timeout: Option<Duration>,
        read: impl FnOnce(String) -> Result<T>,
    ) -> Result<T> {
        let request = encode(cmd, key, arg)?;
        let max_len = if cmd == "stats" { self.max_stats_bytes } else { self.max_reply };
        if read_timeout.is_some() {
            here()?;
        }
        let mut slot = self.halves.lock().await;
        let mut closing = self.closing.subscribe();
        let mut halves = match slot.take() {
            Some(halves) if !*closing.borrow() => halves,
            _ => return Err(already_closed()),
        };
        let exchange = async {
            tokio::select! {
                reply = halves.exchange(&request, max_len) => reply,
                _ = closing.wait_for(|closing| *closing) => Err(already_closed()),
            }
        };
        let line = match read_timeout {
            None => exchange.await,
            Some(limit) => timeout(limit, exchange).await.unwrap_or_else(|_| {
                Err(Error::new(ErrorKind::Timeout, format!("no reply within {limit:?}")))
            }),
        }?;
        let reply = read(line)?;
        *slot = Some(halves);
        Ok(reply)
    }

    /// Closes the connection. A command in flight fails with
    /// [`ConnectionClosed`](ErrorKind::ConnectionClosed), a later one fails at once. Closing twice is no
    /// error.
    ///
    /// # Cancel safety
    /// Once polled, the connection is closed for all its users.
    pub async fn close(&self) {
        self.closing.send_replace(true);
        if let Some(mut halves) = self.halves.lock().await.take() {
            // The shutdown is best effort: a peer that does not take it is gone as well. Outside a runtime
            // there is no timer, so it is tried once.
            if here().is_ok() {
                let _ = timeout(CLOSE_TIMEOUT, halves.writer.shutdown()).await;
            } else {
                let _ = halves.writer.shutdown().now_or_never();
            }
        }
    }

    /// Closes the connection without waiting. A command that reads is woken.
    #[cfg(feature = "blocking")]
    pub(crate) fn interrupt(&self) {
        self.closing.send_replace(true);
    }

    /// Returns the stream. Call it between two commands.
    pub(crate) fn into_stream(mut self) -> Result<BoxStream> {
        let halves = Arc::get_mut(&mut self.halves).and_then(|halves| halves.get_mut().take());
        let halves = halves.ok_or_else(already_closed)?;
        if !halves.reader.buffer().is_empty() {
            return Err(unsolicited(halves.reader.buffer()));
        }
        Ok(halves.reader.into_inner().unsplit(halves.writer.into_inner()))
    }
}

impl fmt::Debug for AsyncConn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncConn").finish_non_exhaustive()
    }
}

impl Halves {
    async fn exchange(&mut self, request: &[u8], max_len: usize) -> Result<String> {
        self.expect_no_input()?;
        let Self { reader, writer } = self;
        let sending = async {
            let sent = match writer.write_all(request).await {
                Ok(()) => writer.flush().await,
                failed => failed,
            };
            sent.map_err(|cause| Error::io("could not send the request", cause))
        };
        // Reads meanwhile: the peer may have to write first, as TLS does.
        let ((), line) = futures::future::try_join(sending, read_line(reader, max_len)).await?;
        Ok(line)
    }

    /// Fails if the peer has closed, or has sent an unsolicited line, before anything is sent to it.
    fn expect_no_input(&mut self) -> Result<()> {
        match self.reader.fill_buf().now_or_never() {
            None => Ok(()),
            Some(Ok([])) => Err(closed_by_peer("before the request was sent")),
            Some(Ok(bytes)) => Err(unsolicited(bytes)),
            Some(Err(cause)) => Err(Error::io("the connection failed before the request was sent", cause)),
        }
    }
}

async fn read_line(reader: &mut BufReader<ReadHalf<BoxStream>>, max_len: usize) -> Result<String> {
    let mut decoder = LineDecoder::new();
    loop {
        let chunk = reader.fill_buf().await;
        let chunk = chunk.map_err(|cause| Error::io("could not read the reply", cause))?;
        if chunk.is_empty() {
            let whole = decoder.at_boundary();
            return Err(closed_by_peer(if whole { "without a reply" } else { "in the middle of a reply" }));
        }
        let (mut rest, len) = (chunk, chunk.len());
        let line = decoder.next_owned(&mut rest, max_len);
        let used = len - rest.len();
        reader.consume(used);
        match line {
            None => {}
            Some(Ok(line)) => return text(line),
            Some(Err(fault)) => {
                return Err(Error::new(ErrorKind::Protocol, "reply too long").caused_by(fault));
            }
        }
    }
}

fn text(line: Vec<u8>) -> Result<String> {
    String::from_utf8(line).map_err(|fault| {
        // The line is left out, as it may hold a token.
        Error::new(ErrorKind::Protocol, "reply is not valid utf-8").caused_by(fault.utf8_error())
    })
}

fn encode(cmd: &str, key: &str, arg: &str) -> Result<Vec<u8>> {
    let arg_cap = if cmd == "auth" { MAX_AUTH_TOKEN_BYTES } else { MAX_LINE_BYTES };
    let lines = [("command", cmd, MAX_LINE_BYTES), ("key", key, MAX_LINE_BYTES), ("arg", arg, arg_cap)];
    let mut request = Vec::with_capacity(cmd.len() + key.len() + arg.len() + 3);
    for (field, line, cap) in lines {
        if line.contains(['\n', '\r']) {
            return Err(Error::invalid(field, "has a line break"));
        }
        if line.len() > cap {
            return Err(Error::invalid(field, format!("is {} bytes long, the limit is {cap}", line.len())));
        }
        request.extend_from_slice(line.as_bytes());
        request.push(b'\n');
    }
    Ok(request)
}

fn already_closed() -> Error {
    Error::new(
        ErrorKind::ConnectionClosed,
        "it was closed, or an earlier command on it was dropped or failed",
    )
}
