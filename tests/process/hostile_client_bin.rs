//! Clients that attack the real binary over real sockets, hundreds at once: a well-behaved client is served
//! meanwhile, each attack ends, and afterwards the memory is freed.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::dflockd::{Dflockd, granted, until};

/// Longer than any step takes on the slowest machine.
const TEST_TIMEOUT: Duration = Duration::from_secs(300);
/// The number of attackers of each kind. Each takes a file in this process and one in the server's.
const ATTACKERS: usize = 60;
const MIB: usize = 1024 * 1024;

/// Returns the resident memory in bytes: `VmRSS` for now, `VmHWM` for its maximum.
fn memory(server: &Dflockd, which: &str) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("it runs");
    let line = status.lines().find(|line| line.starts_with(which)).expect("it has memory");
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

/// Sends the text repeatedly and reads nothing. Returns how much was sent before the server closed, at most
/// the given limit.
async fn pour(address: SocketAddr, first: &str, again: &str, max: usize) -> usize {
    let socket = TcpSocket::new_v4().unwrap();
    // The smaller the system's buffer, the sooner the server stalls.
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    let mut sent = first.len();
    if stream.write_all(first.as_bytes()).await.is_err() {
        return 0;
    }
    let again = again.repeat(64 * 1024 / again.len());
    while sent < max && stream.write_all(again.as_bytes()).await.is_ok() {
        sent += again.len();
    }
    sent
}

/// Sends the text, and waits until the server closes. Ignores the replies.
async fn wait_for_the_end(address: SocketAddr, bytes: &[u8]) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _ = stream.write_all(bytes).await;
    let mut chunk = vec![0; 4096];
    while let Ok(1..) = stream.read(&mut chunk).await {}
}

/// Waits for a busy key, sends as much behind that as the server accepts, then closes.
async fn crowd(address: SocketAddr, leave: tokio::sync::watch::Receiver<bool>) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let ahead = "ping\n_\n_\n".repeat(6000);
    let _ = stream.write_all(format!("l\ntaken\n1000\n{ahead}").as_bytes()).await;
    let mut leave = leave;
    let _ = leave.wait_for(|leave| *leave).await;
}

/// A well-behaved client: acquires and releases a key, and checks the replies. With a generous timeout,
/// because this is real time on a busy machine.
fn serves(server: &Dflockd) {
    let mut good = server.connect();
    let token = good.token("l", "good", "0");
    assert_eq!(good.ask("r", "good", &token), "ok");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attack_on_every_side_leaves_the_server_serving_and_its_memory_as_it_was() {
    let flags =
        ["--read-timeout=2", "--write-timeout=1", "--gc-interval=1", "--gc-max-idle=0", "--max-locks=1000"];
    let server = Dflockd::start(&flags, &[]);
    let address = server.address;
    let mut holder = server.connect();
    granted(&holder.ask("l", "taken", "0 1000"));
    // It waits for a key from here on: the read timeout does not apply to a waiter.
    holder.send("l\ntaken\n1000\n");
    serves(&server);
    let before = memory(&server, "VmRSS:");

    let (leave, leaves) = tokio::sync::watch::channel(false);
    let (mut floods, mut others) = (JoinSet::new(), JoinSet::new());
    for nth in 0..ATTACKERS {
        // Frames whose long replies are not read; lines without end; frames, as fast as possible.
        floods.spawn(async move { pour(address, "", "stats\n_\n_\n", 16 * MIB).await });
        others.spawn(async move { _ = pour(address, "l\n", "x", MIB).await });
        if nth % 12 == 0 {
            others.spawn(async move { _ = pour(address, "", "l\ntaken\n0\n", MIB / 8).await });
        }
        // Almost as many keys as are allowed, and then silence.
        let keys: String = (0..12).map(|key| format!("e\n{nth}-{key:0>200}\n1000\n")).collect();
        others.spawn(async move { wait_for_the_end(address, keys.as_bytes()).await });
        others.spawn(async move { wait_for_the_end(address, &[0xff; 3000]).await });
        others.spawn(async move { wait_for_the_end(address, b"l\nslow\n").await });
        others.spawn(crowd(address, leaves.clone()));
    }
    let attack = async {
        while let Some(sent) = floods.join_next().await {
            let sent = sent.unwrap();
            assert!(sent < 16 * MIB, "the server took {sent} bytes of one who does not read");
        }
        leave.send_replace(true);
        while others.join_next().await.is_some() {}
    };
    let behave = async {
        loop {
            tokio::task::block_in_place(|| serves(&server));
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        ended = timeout(TEST_TIMEOUT, attack) => ended.expect("every attack ends"),
        () = behave => {}
    }
    until("nobody else is there and nothing else is held", || {
        let stats = server.connect().ask("stats", "_", "_");
        let alone = stats.starts_with("ok {\"connections\":2,") && stats.contains("\"waiters\":1");
        alone && stats.matches("\"key\"").count() == 1
    });
    drop(holder);
    until("nothing is left", || {
        let stats = server.connect().ask("stats", "_", "_");
        stats.starts_with("ok {\"connections\":1,") && !stats.contains("\"key\"")
    });
    // Without a bound, all of it would have been a gigabyte.
    let peak = memory(&server, "VmHWM:") - before;
    assert!(peak < 128 * MIB, "the attack took {} MiB", peak / MIB);
    until("the memory is given back", || memory(&server, "VmRSS:") < before + 64 * MIB);
    serves(&server);
    eprintln!(
        "peak {} MiB, after {} KiB",
        peak / MIB,
        memory(&server, "VmRSS:").saturating_sub(before) / 1024
    );
}
