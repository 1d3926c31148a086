//! Servers that do not answer: what may take how long. Each limit wins against an outer bound that is
//! far away from it.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::cli::support::{Ended, bare, start};

/// Takes connections, as far as the system does, and says nothing.
fn silent() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("there is a port")
}

/// Swallows packets: its queue is full, so that the system drops what asks for a connection.
fn swallowing() -> (Socket, Vec<TcpStream>, SocketAddr) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("there is a socket");
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("there is a port");
    listener.listen(0).expect("it is bound");
    let address = listener.local_addr().expect("it is bound").as_socket().expect("it is IPv4");
    let mut queued = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(500)) {
        queued.push(stream);
    }
    (listener, queued, address)
}

/// Far above every limit that is given below, and half of what it took without them.
const BOUND: Duration = Duration::from_secs(10);

#[track_caller]
fn soon(address: SocketAddr, args: &[&str]) -> Ended {
    let mut command = bare(args);
    command.env("DFLOCK_SERVERS", address.to_string()).env("DFLOCK_REQUEST_TIMEOUT", "1s");
    let (tell, told) = std::sync::mpsc::channel();
    let args = format!("{args:?}");
    std::thread::spawn(move || tell.send(start(&mut command).end()));
    told.recv_timeout(BOUND).unwrap_or_else(|_| panic!("{args} has not ended within {BOUND:?}"))
}

#[track_caller]
fn each_ends(address: SocketAddr) {
    for args in [
        &["run", "--try", "k", "--", "true"][..],
        &["run", "--wait", "1s", "k", "--", "true"],
        &["run", "--wait", "0.5", "k", "--", "true"],
        &["run", "--retry", "--wait", "2s", "k", "--", "true"],
        &["run", "--try", "--limit", "2", "k", "--", "true"],
        &["ping"],
        &["stats"],
        &["stats", "--json"],
    ] {
        let ended = soon(address, args);
        assert_eq!(ended.code, Some(69), "no server is there, which is not the same as busy: {ended:?}");
        assert!(ended.line().contains(&address.to_string()), "{ended:?}");
        let names_ping = ended.err.contains("ping");
        assert!(args[0] != "stats" || !names_ping, "what was asked for is named: {ended:?}");
    }
    let ended = soon(address, &["stats", "--all-shards"]);
    assert_eq!((ended.code, ended.out.lines().last()), (Some(69), Some("down")), "{ended:?}");
}

#[test]
fn each_command_ends_in_its_time_where_a_server_says_nothing() {
    let listener = silent();
    each_ends(listener.local_addr().expect("it is bound"));
}

#[test]
#[cfg(target_os = "linux")]
fn each_command_ends_in_its_time_where_packets_are_swallowed() {
    let (_listener, _queued, address) = swallowing();
    each_ends(address);
}

#[test]
fn servers_are_asked_side_by_side() {
    let listeners: Vec<_> = (0..20).map(|_| silent()).collect();
    let names = listeners.iter().map(|listener| listener.local_addr().expect("it is bound").to_string());
    let names = names.collect::<Vec<_>>().join(",");
    for args in [["ping", "--servers", &names], ["stats", "--servers", &names]] {
        let address = listeners[0].local_addr().expect("it is bound");
        assert_eq!(soon(address, &args).code, Some(69));
    }
}
