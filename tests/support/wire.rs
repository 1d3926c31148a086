//! A server inside the test and raw connections to it: over pipes, directly or through a listener of the
//! test with any peer address.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use dflockd_client::net::Listen;
use dflockd_client::server::{Server, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

pub(crate) const S: Duration = Duration::from_secs(1);
/// Longer than any wait of a test, in virtual time.
const AGES: Duration = Duration::from_secs(1_000_000);

/// A raw connection to a server.
pub(crate) struct Peer(pub(crate) DuplexStream);

impl Peer {
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.expect("the server reads");
    }

    /// Returns the next line, without its newline.
    pub(crate) async fn line(&mut self) -> String {
        let mut line = Vec::new();
        loop {
            match timeout(AGES, self.0.read_u8()).await.expect("the server replies in time") {
                Ok(b'\n') => return String::from_utf8(line).expect("replies are text"),
                Ok(byte) => line.push(byte),
                Err(_) => panic!("closed after {:?}", String::from_utf8_lossy(&line)),
            }
        }
    }

    pub(crate) async fn ask(&mut self, cmd: &str, key: &str, arg: &str) -> String {
        self.send(format!("{cmd}\n{key}\n{arg}\n")).await;
        self.line().await
    }

    /// Requests a grant, and returns its token.
    pub(crate) async fn token(&mut self, cmd: &str, key: &str, arg: &str) -> String {
        let reply = self.ask(cmd, key, arg).await;
        granted(&reply).to_owned()
    }

    /// Returns what the server still sends until it closes.
    pub(crate) async fn rest(&mut self) -> String {
        let mut rest = String::new();
        let read = timeout(AGES, self.0.read_to_string(&mut rest)).await;
        read.expect("the server closes").expect("no error");
        rest
    }

    pub(crate) async fn half_close(&mut self) {
        self.0.shutdown().await.expect("the pipe is open");
    }

    pub(crate) async fn is_open(&mut self) -> bool {
        self.ask("ping", "_", "_").await == "ok"
    }
}

/// Returns the token in the reply to a grant.
#[track_caller]
pub(crate) fn granted(reply: &str) -> &str {
    let fields: Vec<&str> = reply.split(' ').collect();
    assert!(matches!(fields[..], ["ok" | "acquired", _, _]), "{reply}");
    assert_eq!(fields[1].len(), 32, "{reply}");
    fields[1]
}

pub(crate) fn server(config: ServerConfig) -> Server {
    Server::new(config).expect("the settings are valid")
}

pub(crate) fn connect(server: &Server) -> Peer {
    connect_by(server, 256 * 1024)
}

/// Connects over a pipe that holds so many bytes.
pub(crate) fn connect_by(server: &Server, room: usize) -> Peer {
    let (near, far) = duplex(room);
    let server = server.clone();
    tokio::spawn(async move { server.serve_stream(far).await });
    Peer(near)
}

/// Lets all tasks run that can.
pub(crate) async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

/// A server that accepts connections until [`stop`](Self::stop).
pub(crate) struct Serving {
    connections: mpsc::UnboundedSender<(DuplexStream, SocketAddr)>,
    stop: Option<oneshot::Sender<()>>,
    pub(crate) task: JoinHandle<()>,
}

impl Serving {
    pub(crate) fn start(server: &Server) -> Self {
        let (connections, incoming) = mpsc::unbounded_channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let server = server.clone();
        let task = tokio::spawn(async move {
            let stopped = async { drop(stopped.await) };
            server.serve(PipeListener(incoming), stopped).await;
        });
        Self { connections, stop: Some(stop), task }
    }

    /// Returns a connection from this address.
    pub(crate) fn connect_from(&self, from: [u8; 4]) -> Peer {
        let (near, far) = duplex(64 * 1024);
        self.connections.send((far, SocketAddr::new(IpAddr::from(from), 1))).expect("the server accepts");
        Peer(near)
    }

    pub(crate) fn stop(&mut self) {
        self.stop = None;
    }
}

struct PipeListener(mpsc::UnboundedReceiver<(DuplexStream, SocketAddr)>);

impl Listen for PipeListener {
    type Stream = DuplexStream;

    async fn accept(&mut self) -> io::Result<(DuplexStream, SocketAddr)> {
        match self.0.recv().await {
            Some(connection) => Ok(connection),
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
