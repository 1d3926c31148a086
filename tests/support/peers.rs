//! Servers that do what a test wants of them, reached by pipes: each connection of a client is
//! another peer, sound or faulty.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dflockd_client::net::{BoxStream, Dial};
use dflockd_client::server::Server;
use futures::future::BoxFuture;
use tokio::io::{
    AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, DuplexStream,
};

/// The grant that scripted peers hand out.
pub(crate) const TOKEN: &str = "000000000000002a00112233445566aa";

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

/// The server's end of a connection, by hand.
pub(crate) struct Wire(BufReader<DuplexStream>);

impl Wire {
    pub(crate) fn new(stream: DuplexStream) -> Self {
        Self(BufReader::new(stream))
    }

    /// The next request's three lines, joined by spaces; `None` when the client has closed.
    pub(crate) async fn request(&mut self) -> Option<String> {
        let mut lines = String::new();
        for _ in 0..3 {
            if self.0.read_line(&mut lines).await.ok()? == 0 {
                return None;
            }
        }
        Some(lines.trim_end().replace('\n', " "))
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        // The client may have closed: that is the test's to find out.
        let _ = self.0.get_mut().write_all(bytes.as_ref()).await;
    }

    /// The pipe itself, where everything that was asked has been read.
    pub(crate) fn into_inner(self) -> DuplexStream {
        self.0.into_inner()
    }

    /// Waits until the client closes.
    pub(crate) async fn closed(&mut self) {
        let _ = self.0.read_to_end(&mut Vec::new()).await;
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
