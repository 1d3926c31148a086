//! Replies that nobody reads: a server gives a connection up over which it cannot get rid of them, and
//! frees what it held. So a lease's connection carries nothing that could make it do that.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use dflockd_client::{AsyncConn, ErrorKind, LockClient, command};
use futures::future::join_all;
use futures::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};
use tokio::time::{sleep, timeout};

use crate::peers::{End, Peers, TOKEN, Wire, peer};

const S: Duration = Duration::from_secs(1);
/// The least that a system's send buffer holds.
const SEND_BUFFER: usize = 16 * 1024;
/// As the original server's.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// What the network and the server share with the test.
#[derive(Clone, Default)]
struct Way {
    stall: Arc<Stall>,
    /// What each connection was asked, one after another.
    asked: Arc<Mutex<Vec<Vec<String>>>>,
    /// The connections that the server gave up because it could not write.
    given_up: Arc<Mutex<Vec<usize>>>,
}

/// Whether nothing that the server sends arrives.
#[derive(Default)]
struct Stall(AtomicBool, AtomicWaker);

impl Stall {
    fn begin(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn end(&self) {
        self.0.store(false, Ordering::SeqCst);
        self.1.wake();
    }
}

impl Way {
    /// The number of the connection over which this was asked, and was not given up.
    fn carrier(&self, request: &str) -> usize {
        let asked = self.asked.lock().unwrap();
        asked.iter().position(|asked| asked.iter().any(|one| one == request)).expect("it was asked")
    }

    fn given_up(&self) -> Vec<usize> {
        self.given_up.lock().unwrap().clone()
    }

    /// A server that grants whatever it is asked for, and frees it with the connection.
    async fn serve(self, number: usize, far: DuplexStream) {
        let mut wire = Wire::new(far);
        while let Some(request) = wire.request().await {
            let reply = match &request[..2] {
                "l " => format!("ok {TOKEN} 9223372036\n"),
                "n " => "ok 9223372036\n".to_owned(),
                "st" => format!("ok {}\n", " ".repeat(1024 * 1024)),
                _ => "ok\n".to_owned(),
            };
            self.asked.lock().unwrap()[number].push(request);
            if timeout(WRITE_TIMEOUT, wire.send(reply)).await.is_err() {
                self.given_up.lock().unwrap().push(number);
                return;
            }
        }
    }

    fn dial(&self) -> Peers {
        let way = self.clone();
        Peers::new(move |_, number| {
            let (pipe, far) = duplex(SEND_BUFFER);
            way.asked.lock().unwrap().push(Vec::new());
            tokio::spawn(way.clone().serve(number, far));
            End::Open(Box::new(Near { pipe, stall: way.stall.clone() }))
        })
    }
}

/// The client's end of a way.
struct Near {
    pipe: DuplexStream,
    stall: Arc<Stall>,
}

impl AsyncRead for Near {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stall.1.register(cx.waker());
        if self.stall.0.load(Ordering::SeqCst) {
            return Poll::Pending;
        }
        Pin::new(&mut self.pipe).poll_read(cx, buf)
    }
}

impl AsyncWrite for Near {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.pipe).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(cx)
    }
}

#[tokio::test(start_paused = true)]
async fn replies_that_are_not_read_never_hold_up_the_server_however_much_is_asked() {
    let way = Way::default();
    let locks = LockClient::builder().dial(way.dial()).request_timeout(15 * S).build().unwrap();
    let guard = locks.lock("k").unwrap().acquire().await.unwrap();
    way.stall.begin();
    let tries: Vec<_> = (0..2000)
        .map(|n| {
            let lock = locks.lock(format!("key-{n}")).unwrap();
            tokio::spawn(async move { lock.try_acquire().await })
        })
        .collect();
    sleep(2 * WRITE_TIMEOUT).await;
    assert!(guard.is_held());
    assert!(way.given_up().is_empty());
    way.stall.end();
    for tried in join_all(tries).await {
        assert!(tried.unwrap().unwrap().is_some());
    }
    assert_eq!(way.asked.lock().unwrap().len(), 1, "they shared one connection");
}

#[tokio::test(start_paused = true)]
async fn a_table_that_is_not_read_costs_no_lease() {
    let way = Way::default();
    let locks = LockClient::builder().dial(way.dial()).build().unwrap();
    let guard = locks.lock("k").unwrap().acquire().await.unwrap();
    way.stall.begin();
    let asking = tokio::spawn({
        let locks = locks.clone();
        async move { locks.stats().await }
    });
    sleep(2 * WRITE_TIMEOUT).await;
    assert_eq!(asking.await.unwrap().unwrap_err().kind(), ErrorKind::Timeout);
    assert_eq!(way.carrier("stats _ _"), 1);
    assert!(!way.given_up().contains(&way.carrier("l k 0")));
    assert!(guard.is_held());
}

/// The reply to `stats` of a server with so many keys.
fn table(keys: usize) -> String {
    let locks: Vec<_> = (0..keys)
        .map(|n| {
            let key = format!("some-key-of-usual-length:{n}");
            format!(r#"{{"key":"{key}","owner_conn_id":1,"lease_expires_in_s":3599.907213,"waiters":0}}"#)
        })
        .collect();
    let locks = locks.join(",");
    format!(
        "ok {{\"connections\":1,\"locks\":[{locks}],\"semaphores\":[],\"idle_locks\":[],\"idle_semaphores\":[]}}\n"
    )
}

#[tokio::test]
async fn a_long_table_is_read_by_the_client_and_by_the_bare_command() {
    const KEYS: usize = 30_000;
    let reply = table(KEYS);
    let bytes_a_key = reply.len() / KEYS;
    assert!(bytes_a_key * 1_000_000 < 128 * 1024 * 1024, "a million keys fit into the default");
    let answers = move || {
        let reply = reply.clone();
        peer(|far| async move {
            let mut wire = Wire::new(far);
            while wire.request().await.is_some() {
                wire.send(&reply).await;
            }
        })
    };
    let End::Open(stream) = answers() else { panic!("it opens") };
    let conn = AsyncConn::new(stream);
    for _ in 0..2 {
        assert_eq!(command::stats(&conn).await.unwrap().locks.len(), KEYS);
    }
    let conn = conn.max_stats_bytes(1_000_000);
    assert!(command::stats(&conn).await.unwrap_err().to_string().contains("longer than 1000000 bytes"));
    let locks = LockClient::builder().dial(Peers::new(move |_, _| answers())).build().unwrap();
    assert_eq!(locks.stats().await.unwrap()[0].locks[KEYS - 1].key, "some-key-of-usual-length:29999");
}

/// A server on a socket, one thread a connection. Tells which connections it gave up because it could
/// not write for half a second, and which of those held something.
fn serve_sockets(listener: TcpListener) -> mpsc::Receiver<bool> {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let tell = tell.clone();
            thread::spawn(move || serve_socket(stream, &tell));
        }
    });
    told
}

fn serve_socket(mut stream: TcpStream, tell: &mpsc::Sender<bool>) {
    stream.set_write_timeout(Some(S / 2)).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let mut holds = false;
    while let (Some(command), Some(_), Some(_)) = (lines.next(), lines.next(), lines.next()) {
        let reply = match &*command {
            "l" => format!("ok {TOKEN} 60\n"),
            "n" => "ok 60\n".to_owned(),
            // More than both systems' buffers hold.
            "stats" => format!("ok {}\n", " ".repeat(64 * 1024 * 1024)),
            _ => "ok\n".to_owned(),
        };
        holds |= command == "l";
        if stream.write_all(reply.as_bytes()).is_err() {
            // The test may be over.
            let _ = tell.send(holds);
            return;
        }
    }
}

#[test]
fn a_client_that_computes_and_reads_no_table_loses_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let given_up = serve_sockets(listener);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let locks = LockClient::builder().servers([("127.0.0.1", port)]).build().unwrap();
        let guard = locks.lock("k").unwrap().acquire().await.unwrap();
        tokio::spawn({
            let locks = locks.clone();
            async move { locks.stats().await }
        });
        // Until the server says so, this thread computes, and nothing else of the client runs.
        let held_something = loop {
            tokio::time::sleep(Duration::from_millis(1)).await;
            if let Ok(held) = given_up.recv_timeout(2 * S) {
                break held;
            }
        };
        assert!(!held_something, "the server freed the key");
        assert!(guard.is_held());
    });
}
