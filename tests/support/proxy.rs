//! A way over TCP that misbehaves on command: each direction of it passes, delays, drips, swallows,
//! ends, cuts or resets what comes, from one moment to the next. Knows of no protocol.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// What a direction does with what comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Pass,
    /// Each piece comes so much later.
    Delay(Duration),
    /// One byte at a time.
    Drip,
    /// Nothing comes through, not even an end.
    Swallow,
    /// This direction ends at once, the other goes on.
    HalfClose,
    /// Both directions end in the place of the next byte that comes this way.
    Cut,
    /// The same, without a goodbye.
    Reset,
}

/// How a connection is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Cut,
    Reset,
}

#[derive(Clone, Copy, Debug)]
struct Ways {
    up: Way,
    down: Way,
    /// How often all connections were ended, and how the last time.
    ended: (usize, End),
}

/// A way that leads to a server.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    ways: watch::Sender<Ways>,
    target: Arc<Mutex<SocketAddr>>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    pub(crate) async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        let ways = Ways { up: Way::Pass, down: Way::Pass, ended: (0, End::Cut) };
        let (ways, switched) = watch::channel(ways);
        let target = Arc::new(Mutex::new(target));
        let leads_to = target.clone();
        let accepting = tokio::spawn(async move {
            loop {
                let Ok((client, _)) = listener.accept().await else { continue };
                let (ways, leads_to) = (switched.clone(), *leads_to.lock().unwrap());
                tokio::spawn(async move {
                    // Where nobody listens, the client sees its connection end.
                    if let Ok(server) = TcpStream::connect(leads_to).await {
                        carry(client, server, ways).await;
                    }
                });
            }
        });
        Self { port, ways, target, accepting }
    }

    /// Later connections lead there.
    pub(crate) fn lead_to(&self, target: SocketAddr) {
        *self.target.lock().unwrap() = target;
    }

    /// From the client to the server.
    pub(crate) fn up(&self, way: Way) {
        self.ways.send_modify(|ways| ways.up = way);
    }

    /// From the server to the client.
    pub(crate) fn down(&self, way: Way) {
        self.ways.send_modify(|ways| ways.down = way);
    }

    pub(crate) fn both(&self, way: Way) {
        self.ways.send_modify(|ways| (ways.up, ways.down) = (way, way));
    }

    /// Ends every connection at once; later ones pass.
    pub(crate) fn cut(&self) {
        self.end(End::Cut);
    }

    /// The same, without a goodbye.
    pub(crate) fn reset(&self) {
        self.end(End::Reset);
    }

    fn end(&self, end: End) {
        self.ways.send_modify(|ways| {
            *ways = Ways { up: Way::Pass, down: Way::Pass, ended: (ways.ended.0 + 1, end) };
        });
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // The connections end as they miss the switch.
        self.accepting.abort();
    }
}

async fn carry(mut client: TcpStream, mut server: TcpStream, mut ways: watch::Receiver<Ways>) {
    for stream in [&client, &server] {
        stream.set_nodelay(true).expect("it is tcp");
    }
    let (ups, downs) = (ways.clone(), ways.clone());
    let born = ways.borrow().ended.0;
    let end = {
        let (mut from_client, mut to_client) = client.split();
        let (mut from_server, mut to_server) = server.split();
        let up = pump(&mut from_client, &mut to_server, ups, |ways| ways.up);
        let down = pump(&mut from_server, &mut to_client, downs, |ways| ways.down);
        tokio::select! {
            ended = ways.wait_for(|ways| ways.ended.0 != born) => ended.map_or(End::Cut, |ways| ways.ended.1),
            both = async { tokio::try_join!(up, down) } => both.err().unwrap_or(End::Cut),
        }
    };
    if end == End::Reset {
        for stream in [&client, &server] {
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }
}

/// Carries one direction until its end has been passed on, or the whole connection is to end.
async fn pump(
    from: &mut ReadHalf<'_>,
    to: &mut WriteHalf<'_>,
    mut ways: watch::Receiver<Ways>,
    mine: fn(&Ways) -> Way,
) -> Result<(), End> {
    let mut chunk = [0; 4096];
    loop {
        let way = mine(&ways.borrow_and_update());
        if way == Way::HalfClose {
            let _ = to.shutdown().await;
            while from.read(&mut chunk).await.map_err(|_| End::Cut)? > 0 {}
            return Ok(());
        }
        let read = tokio::select! {
            read = from.read(&mut chunk) => read.map_err(|_| End::Cut)?,
            changed = ways.changed() => {
                changed.map_err(|_| End::Cut)?;
                continue;
            }
        };
        // As it stands now, and not as it stood when the wait for the bytes began.
        let way = mine(&ways.borrow_and_update());
        match way {
            Way::Swallow if read == 0 => std::future::pending().await,
            Way::Swallow => continue,
            _ if read == 0 => {
                let _ = to.shutdown().await;
                return Ok(());
            }
            Way::Cut => return Err(End::Cut),
            Way::Reset => return Err(End::Reset),
            Way::Delay(time) => sleep(time).await,
            Way::Pass | Way::Drip | Way::HalfClose => {}
        }
        let piece = if way == Way::Drip { 1 } else { read };
        for piece in chunk[..read].chunks(piece) {
            to.write_all(piece).await.map_err(|_| End::Cut)?;
            if way == Way::Drip {
                // Over an idle runtime, each byte is a segment and a wake-up of its own.
                tokio::task::yield_now().await;
            }
        }
    }
}
