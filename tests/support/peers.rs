//! Servers that do what a test wants of them, reached by pipes: each connection of a client is
//! another peer, sound or faulty.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use dflockd_client::net::{BoxStream, Dial};
use dflockd_client::server::Server;
use futures::future::BoxFuture;
use tokio::io::{
    AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, DuplexStream,
};

/// The grant that scripted peers hand out.
pub(crate) const TOKEN: &str = "000000000000002a00112233445566aa";

/// With what a client begins each connection, and what a server answers.
pub(crate) const PING: &str = "ping\n_\n_\n";
pub(crate) const PONG: &str = "ok\n";

/// How one attempt to connect ends.
pub(crate) enum End {
    Open(BoxStream),
    Fails(io::ErrorKind),
    Hangs,
}

type Next = Box<dyn Fn(&str, usize) -> End + Send + Sync>;

/// Dials peer after peer: the function is told the host and the number of the attempt.
pub(crate) struct Peers {
    next: Next,
    dials: Arc<AtomicUsize>,
}

impl Peers {
    pub(crate) fn new(next: impl Fn(&str, usize) -> End + Send + Sync + 'static) -> Self {
        Self { next: Box::new(next), dials: Arc::default() }
    }

    /// The first connection ends in `first`, all later ones at `then`.
    pub(crate) fn first(first: impl Fn() -> End + Send + Sync + 'static, then: &Server) -> Self {
        let then = then.clone();
        Self::new(move |_, nth| if nth == 0 { first() } else { sound(&then) })
    }

    /// How often was dialled.
    pub(crate) fn dials(&self) -> Arc<AtomicUsize> {
        self.dials.clone()
    }
}

impl Dial for Peers {
    fn dial<'a>(&'a self, host: &'a str, _port: u16) -> BoxFuture<'a, io::Result<BoxStream>> {
        let end = (self.next)(host, self.dials.fetch_add(1, Ordering::SeqCst));
        Box::pin(async move {
            match end {
                End::Open(stream) => Ok(stream),
                End::Fails(kind) => Err(kind.into()),
                End::Hangs => std::future::pending().await,
            }
        })
    }
}

/// A connection to an embedded server.
pub(crate) fn sound(server: &Server) -> End {
    let server = server.clone();
    peer(move |far| async move { server.serve_stream(far).await })
}

/// A connection whose far end is in the hands of `serve`; it closes when `serve` returns.
pub(crate) fn peer<F, T>(serve: F) -> End
where
    F: FnOnce(DuplexStream) -> T,
    T: Future<Output = ()> + Send + 'static,
{
    let (near, far) = tokio::io::duplex(4 * 1024 * 1024);
    tokio::spawn(serve(far));
    End::Open(Box::new(near))
}

/// A peer that answers its first requests with these bytes, one after another, and then nothing
/// more; with `closes` it closes after the last.
pub(crate) fn script(answers: &'static [&'static str], closes: bool) -> End {
    peer(move |far| async move {
        let mut wire = Wire::new(far);
        for answer in answers {
            if wire.request().await.is_none() {
                return;
            }
            wire.send(answer).await;
        }
        if !closes {
            while wire.request().await.is_some() {}
        }
    })
}

/// A 1.x server: it does not know `ping`, and its tokens are random. A number read out of them falls
/// with each grant here. The key `busy` is waited for; any other is free.
pub(crate) fn unfenced() -> End {
    static NOISE: AtomicU64 = AtomicU64::new(u64::MAX);
    peer(|far| async move {
        let mut wire = Wire::new(far);
        while let Some(request) = wire.any_request().await {
            let noise = NOISE.fetch_sub(1 << 40, Ordering::Relaxed);
            let grant = format!("{noise:016x}9b1d03f7c2e84a56 33\n");
            let (command, rest) = request.split_once(' ').expect("three lines");
            match (command, rest) {
                ("ping", _) => wire.send("error\n").await,
                ("l", "busy 0") | ("sl", "busy 0 2") => wire.send("timeout\n").await,
                ("e" | "se", _) if rest.starts_with("busy") => wire.send("queued\n").await,
                ("e" | "se", _) => wire.send(format!("acquired {grant}")).await,
                ("l" | "sl" | "w" | "sw", _) => {
                    let waits = if rest.starts_with("busy") { 5 } else { 0 };
                    tokio::time::sleep(Duration::from_secs(waits)).await;
                    wire.send(format!("ok {grant}")).await;
                }
                ("n" | "sn", _) => wire.send("ok 33\n").await,
                _ => wire.send("ok\n").await,
            }
        }
    })
}

/// The server's end of a connection, by hand.
pub(crate) struct Wire {
    stream: BufReader<DuplexStream>,
    /// Whether the ping with which a client begins a connection may still come.
    begins: bool,
}

impl Wire {
    pub(crate) fn new(stream: DuplexStream) -> Self {
        Self { stream: BufReader::new(stream), begins: true }
    }

    /// The next request, but for the ping with which a client begins a connection: that is answered.
    pub(crate) async fn request(&mut self) -> Option<String> {
        loop {
            let request = self.any_request().await?;
            let is_first_ping = self.begins && request == "ping _ _";
            self.begins &= request.starts_with("auth ");
            if !is_first_ping {
                return Some(request);
            }
            self.send(PONG).await;
        }
    }

    /// The next request's three lines, joined by spaces; `None` when the client has closed.
    pub(crate) async fn any_request(&mut self) -> Option<String> {
        let mut lines = String::new();
        for _ in 0..3 {
            if self.stream.read_line(&mut lines).await.ok()? == 0 {
                return None;
            }
        }
        Some(lines.trim_end().replace('\n', " "))
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        // The client may have closed: that is the test's to find out.
        let _ = self.stream.get_mut().write_all(bytes.as_ref()).await;
    }

    /// The pipe itself, where everything that was asked has been read.
    pub(crate) fn into_inner(self) -> DuplexStream {
        self.stream.into_inner()
    }

    /// Waits until the client closes.
    pub(crate) async fn closed(&mut self) {
        let _ = self.stream.read_to_end(&mut Vec::new()).await;
    }
}

/// A way to a server that is cut, both directions at once, after so many bytes of the requests or
/// of the replies.
pub(crate) fn cut(server: &Server, requests: Option<u64>, replies: Option<u64>) -> End {
    let server = server.clone();
    peer(move |client| async move {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let serving = tokio::spawn(async move { server.serve_stream(far).await });
        let (mut from_client, mut to_client) = tokio::io::split(client);
        let (mut from_server, mut to_server) = tokio::io::split(near);
        // Whichever way ends first, by its limit or because its side closed, ends the other.
        tokio::select! {
            () = carry(&mut from_client, &mut to_server, requests) => {}
            () = carry(&mut from_server, &mut to_client, replies) => {}
        }
        drop((from_client, to_client, from_server, to_server));
        let _ = serving.await;
    })
}

/// Carries bytes until there are none, or those up to the limit have gone.
pub(crate) async fn carry(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    limit: Option<u64>,
) {
    let mut left = limit.map_or(usize::MAX, |limit| limit as usize);
    let mut chunk = [0; 4096];
    while let Ok(n @ 1..) = from.read(&mut chunk).await {
        let carried = n.min(left);
        if to.write_all(&chunk[..carried]).await.is_err() {
            return;
        }
        left -= carried;
        if left == 0 {
            return;
        }
    }
}
