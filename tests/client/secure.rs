//! TLS and authentication as a client meets them: over real sockets against the embedded server,
//! and over pipes that are cut in the middle of the handshake.

use std::error::Error as _;
use std::time::Duration;

use dflockd_client::server::{Server, ServerConfig};
use dflockd_client::tls::{ClientTls, ClientTlsBuilder, ServerTls};
use dflockd_client::{Builder, ClientTarget, Error, ErrorKind, LockClient, LostReason, command};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use tokio::time::Instant;

use crate::faces::Face;
use crate::peers::{End, Peers, carry, peer};

const S: Duration = Duration::from_secs(1);
const LOCAL: &str = "127.0.0.1";

struct Ca(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, in PEM.
type Pair = (String, String);

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn sign(&self, params: CertificateParams) -> Pair {
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }

    fn issue(&self, name: &str) -> Pair {
        self.sign(CertificateParams::new([name.to_owned()]).unwrap())
    }

    fn trusted(&self) -> ClientTlsBuilder {
        ClientTls::builder().ca_pem(self.0.pem())
    }
}

/// A server with these settings on a port of its own, and the builder of its clients.
async fn listen(config: ServerConfig) -> Builder<ClientTarget> {
    let server = Server::bind(ServerConfig { port: 0, ..config }).await.unwrap();
    let port = server.local_addr().unwrap().port();
    tokio::spawn(server.run(std::future::pending()));
    LockClient::builder().servers([(LOCAL, port)])
}

/// The same behind this certificate, from files as the binary would read them.
async fn listen_tls((cert, key): Pair, config: ServerConfig) -> Builder<ClientTarget> {
    let dir = tempfile::tempdir().unwrap();
    let (cert_file, key_file) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert_file, cert).unwrap();
    std::fs::write(&key_file, key).unwrap();
    listen(ServerConfig { tls_cert: Some(cert_file), tls_key: Some(key_file), ..config }).await
}

fn token(token: &str) -> ServerConfig {
    ServerConfig { auth_token: Some(token.into()), ..Default::default() }
}

async fn works(face: Face, builder: Builder<ClientTarget>) {
    let client = face.build(builder);
    let guard = client.lock("k").unwrap().acquire().await.unwrap();
    guard.renew().await.unwrap();
    assert!(client.lock("k").unwrap().try_acquire().await.unwrap().is_none());
    assert_eq!(client.stats().await.unwrap()[0].locks.len(), 1);
    guard.release().await.unwrap();
}

async fn fails(builder: Builder<ClientTarget>) -> Error {
    let error = builder.build().unwrap().lock("k").unwrap().acquire().await.unwrap_err();
    assert!(error.server().is_some_and(|server| server.starts_with(LOCAL)), "{error}");
    assert_eq!(error.key().map(ToString::to_string).as_deref(), Some("k"));
    error
}

#[track_caller]
fn is_tls(error: &Error, words: &str) {
    assert_eq!(error.kind(), ErrorKind::Tls, "{error}");
    assert!(error.to_string().contains(words), "{error}");
    assert!(error.source().is_some(), "{error}");
}

#[tokio::test]
async fn tls_and_the_right_token_let_a_client_in() {
    let ca = Ca::new();
    let tls = ca.trusted().build().unwrap();
    for face in Face::BOTH {
        works(face, listen_tls(ca.issue(LOCAL), ServerConfig::default()).await.tls(tls.clone())).await;
        let both = listen_tls(ca.issue(LOCAL), token("s3cret")).await.tls(tls.clone());
        works(face, both.auth_token("s3cret")).await;
        works(face, listen(token("with space")).await.auth_token("with space")).await;
    }
}

/// An embedded server behind TLS of any settings, and its port.
async fn serve(tls: ServerTls) -> u16 {
    let listener = tokio::net::TcpListener::bind((LOCAL, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let server = Server::new(ServerConfig::default()).unwrap();
        while let Ok((stream, _)) = listener.accept().await {
            let (server, tls) = (server.clone(), tls.clone());
            tokio::spawn(async move {
                if let Ok(stream) = tls.accept(Box::new(stream)).await {
                    server.serve_stream(stream).await;
                }
            });
        }
    });
    port
}

#[tokio::test]
async fn the_bare_commands_go_over_tls_too() {
    let ca = Ca::new();
    let (cert, key) = ca.issue(LOCAL);
    let port = serve(ServerTls::from_pem(cert, key).unwrap()).await;
    let tls = ca.trusted().build().unwrap();
    let conn = command::open_conn(LOCAL, port, Some(&tls), 60 * S).await.unwrap();
    let grant = command::acquire(&conn, "k", S, None).await.unwrap();
    command::release(&conn, "k", &grant.token).await.unwrap();
    conn.close().await;
    let error = command::open_conn(LOCAL, port, Some(&Ca::new().trusted().build().unwrap()), 60 * S).await;
    is_tls(&error.unwrap_err(), &format!("connect on {LOCAL}:{port}: tls error: "));
}

#[tokio::test]
async fn a_wrong_token_is_permission_denied_each_time() {
    for face in Face::BOTH {
        let client = face.build(listen(token("s3cret")).await.auth_token("hunter2"));
        for _ in 0..3 {
            let error = client.lock("k").unwrap().acquire().await.unwrap_err();
            assert_eq!((error.kind(), error.raw()), (ErrorKind::PermissionDenied, Some("error_auth")));
            assert!(error.to_string().starts_with("authenticate of \"k\" on 127.0.0.1:"), "{error}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
            assert_eq!(std::io::Error::from(error).kind(), std::io::ErrorKind::PermissionDenied);
        }
    }
}

#[tokio::test]
async fn a_missing_token_is_asked_for_each_time() {
    // The server closes what failed to authenticate a moment later: the next must not run into that.
    let client = listen(token("s3cret")).await.build().unwrap();
    for _ in 0..3 {
        let error = client.lock("k").unwrap().acquire().await.unwrap_err();
        assert_eq!((error.kind(), error.raw()), (ErrorKind::Auth, Some("error_auth")), "{error}");
    }
    assert_eq!(client.stats().await.unwrap_err().kind(), ErrorKind::Auth);
    assert_eq!(client.lock("k").unwrap().enqueue().await.unwrap_err().kind(), ErrorKind::Auth);
}

#[tokio::test]
async fn a_token_that_the_server_does_not_want_is_refused() {
    let error = fails(listen(ServerConfig::default()).await.auth_token("s3cret")).await;
    assert_eq!((error.kind(), error.raw()), (ErrorKind::PermissionDenied, Some("error")));
    assert!(error.to_string().contains("or has none configured"), "{error}");
}

#[tokio::test]
async fn a_wrong_token_over_tls_is_told_as_well() {
    let ca = Ca::new();
    let builder = listen_tls(ca.issue(LOCAL), token("s3cret")).await;
    let error = fails(builder.tls(ca.trusted().build().unwrap()).auth_token("hunter2")).await;
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
}

#[tokio::test]
async fn a_server_of_another_ca_is_refused() {
    let builder = listen_tls(Ca::new().issue(LOCAL), ServerConfig::default()).await;
    is_tls(&fails(builder.tls(Ca::new().trusted().build().unwrap())).await, "of no trusted ca");
}

#[tokio::test]
async fn a_server_of_another_name_is_refused_unless_it_is_the_one_to_expect() {
    let ca = Ca::new();
    let server = ca.issue("locks.example");
    let builder = listen_tls(server.clone(), ServerConfig::default()).await;
    is_tls(&fails(builder.tls(ca.trusted().build().unwrap())).await, "is for another name");
    let named = ca.trusted().server_name("locks.example").build().unwrap();
    works(Face::Tasks, listen_tls(server.clone(), ServerConfig::default()).await.tls(named)).await;
    let wrong = ca.trusted().server_name("wrong.example").build().unwrap();
    is_tls(&fails(listen_tls(server, ServerConfig::default()).await.tls(wrong)).await, "is for another name");
}

#[tokio::test]
async fn a_server_whose_certificate_has_expired_is_refused() {
    let ca = Ca::new();
    let mut params = CertificateParams::new([LOCAL.to_owned()]).unwrap();
    params.not_after = date_time_ymd(2001, 1, 1);
    let builder = listen_tls(ca.sign(params), ServerConfig::default()).await;
    is_tls(&fails(builder.tls(ca.trusted().build().unwrap())).await, "has expired");
}

#[tokio::test]
async fn a_plain_client_of_a_tls_port_is_turned_away() {
    for auth in [None, Some("s3cret")] {
        let mut builder = listen_tls(Ca::new().issue(LOCAL), ServerConfig::default()).await;
        if let Some(auth) = auth {
            builder = builder.auth_token(auth);
        }
        let error = fails(builder).await;
        // What the server says is TLS's: an alert, in which there may happen to be a new line.
        let kinds = [ErrorKind::ConnectionClosed, ErrorKind::Protocol];
        assert!(kinds.contains(&error.kind()), "{error}");
    }
}

#[tokio::test]
async fn a_tls_client_of_a_plain_port_is_turned_away_or_gives_up() {
    let builder = listen(ServerConfig::default()).await.connect_timeout(S / 2);
    let error = fails(builder.tls(Ca::new().trusted().build().unwrap())).await;
    // Whether the hello is a request to the server, or the start of one, depends on its random bytes.
    assert!([ErrorKind::Tls, ErrorKind::Timeout].contains(&error.kind()), "{error}");
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_a_server_that_wants_one() {
    let (ca, clients) = (Ca::new(), Ca::new());
    let (cert, key) = ca.issue(LOCAL);
    let tls = ServerTls::builder().cert_pem(cert, key).client_ca_pem(clients.0.pem()).build().unwrap();
    let port = serve(tls).await;
    let builder = |tls| LockClient::builder().servers([(LOCAL, port)]).tls(tls);
    let (cert, key) = clients.issue("client");
    works(Face::Tasks, builder(ca.trusted().client_cert_pem(cert, key).build().unwrap())).await;
    // With TLS 1.3 the server judges after the handshake: the verdict comes with the first reply,
    // or as a closed connection where it is overtaken.
    let (cert, key) = Ca::new().issue("client");
    let strangers = ca.trusted().client_cert_pem(cert, key).build().unwrap();
    for refused in [ca.trusted().build().unwrap(), strangers] {
        let error = fails(builder(refused)).await;
        assert!([ErrorKind::Tls, ErrorKind::ConnectionClosed].contains(&error.kind()), "{error}");
    }
}

/// A way to a TLS server that closes after so many bytes of its replies, over pipes.
fn tls_peer(server: &Server, tls: &ServerTls, replies: Option<u64>) -> End {
    let (server, tls) = (server.clone(), tls.clone());
    peer(move |client| async move {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let serving = tokio::spawn(async move {
            if let Ok(stream) = tls.accept(Box::new(far)).await {
                server.serve_stream(stream).await;
            }
        });
        let (mut from_client, mut to_client) = tokio::io::split(client);
        let (mut from_server, mut to_server) = tokio::io::split(near);
        tokio::select! {
            () = carry(&mut from_client, &mut to_server, None) => {}
            () = carry(&mut from_server, &mut to_client, replies) => {}
        }
        drop((from_client, to_client, from_server, to_server));
        let _ = serving.await;
    })
}

#[tokio::test(start_paused = true)]
async fn a_connection_cut_at_any_byte_of_the_handshake_leaves_nothing() {
    let ca = Ca::new();
    let (cert, key) = ca.issue("127.0.0.1");
    let (near, far) = (ca.trusted().build().unwrap(), ServerTls::from_pem(cert, key).unwrap());
    let server = Server::new(ServerConfig::default()).unwrap();
    let mut kinds = Vec::new();
    let mut at = 0;
    loop {
        let (way, tls) = (server.clone(), far.clone());
        let dial = Peers::new(move |_, nth| tls_peer(&way, &tls, if nth == 0 { Some(at) } else { None }));
        let lock = LockClient::builder().dial(dial).tls(near.clone()).build().unwrap().lock("k").unwrap();
        let Err(error) = lock.acquire().await else { break };
        assert!([ErrorKind::Tls, ErrorKind::ConnectionClosed].contains(&error.kind()), "at {at}: {error}");
        kinds.push(error.kind());
        let guard = lock.acquire().await.unwrap_or_else(|error| panic!("after a cut at {at}: {error}"));
        guard.release().await.unwrap();
        drop(lock);
        at += if at < 32 { 1 } else { 13 };
    }
    // First the handshake fails, then the first reply, and at the end it all comes through.
    let handshakes = kinds.iter().take_while(|kind| **kind == ErrorKind::Tls).count();
    assert!(handshakes > 32 && handshakes < kinds.len(), "{kinds:?}");
    assert!(kinds[handshakes..].iter().all(|kind| *kind == ErrorKind::ConnectionClosed), "{kinds:?}");
    tokio::time::sleep(S).await;
    assert!(server.stats().locks.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_gets_no_answer_ends_with_the_connect_timeout() {
    let dial = Peers::new(|_, _| peer(|far| async move { crate::peers::Wire::new(far).closed().await }));
    let builder = LockClient::builder().dial(dial).connect_timeout(3 * S);
    let start = Instant::now();
    let error = fails(builder.tls(Ca::new().trusted().build().unwrap())).await;
    assert_eq!((error.kind(), start.elapsed()), (ErrorKind::Timeout, 3 * S), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_handshake_with_garbage_says_what_the_peer_is_not() {
    for garbage in ["error\n", "ok\nok\n", "HTTP/1.1 400 Bad Request\r\n\r\n", "\0\0\0\0\0\0\0"] {
        let dial = Peers::new(move |_, _| {
            peer(move |far| async move {
                let mut wire = crate::peers::Wire::new(far);
                wire.send(garbage).await;
                wire.closed().await;
            })
        });
        let error = fails(LockClient::builder().dial(dial).tls(Ca::new().trusted().build().unwrap())).await;
        is_tls(&error, "does not speak tls");
    }
}

#[tokio::test(start_paused = true)]
async fn garbage_after_the_handshake_ends_the_lease_and_the_next_goes_elsewhere() {
    let ca = Ca::new();
    let (cert, key) = ca.issue("127.0.0.1");
    let (near, tls) = (ca.trusted().build().unwrap(), ServerTls::from_pem(cert, key).unwrap());
    // Nothing of the kind, a record that cannot be decrypted, and one that never ends.
    for garbage in
        [&b"ok\nok\nok\nok\n"[..], b"\x17\x03\x03\x00\x20xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", &[0xff; 4096]]
    {
        let server = Server::new(ServerConfig::default()).unwrap();
        let (way, tls) = (server.clone(), tls.clone());
        let dial = Peers::new(move |_, nth| {
            let (server, tls) = (way.clone(), tls.clone());
            peer(move |client| async move {
                let (near, far) = tokio::io::duplex(64 * 1024);
                tokio::spawn(async move {
                    let stream = tls.accept(Box::new(far)).await.expect("the handshake is sound");
                    server.serve_stream(stream).await;
                });
                let (mut from_client, mut to_client) = tokio::io::split(client);
                let (mut from_server, mut to_server) = tokio::io::split(near);
                tokio::select! {
                    () = carry(&mut from_client, &mut to_server, None) => {}
                    () = carry(&mut from_server, &mut to_client, None) => {}
                    () = tokio::time::sleep(S), if nth == 0 => {
                        let _ = tokio::io::AsyncWriteExt::write_all(&mut to_client, garbage).await;
                        // The server's end stays open: only the garbage tells.
                        carry(&mut from_client, &mut tokio::io::sink(), None).await;
                    }
                }
            })
        });
        let lock = LockClient::builder().dial(dial).tls(near.clone()).build().unwrap().lock("k").unwrap();
        let guard = lock.acquire().await.unwrap();
        let lost = tokio::time::timeout(2 * S, guard.lost()).await;
        assert_eq!(lost, Ok(LostReason::ConnectionClosed), "{garbage:?}");
        assert!(!guard.is_held());
        drop(guard);
        let guard = lock.acquire().await.unwrap_or_else(|error| panic!("{garbage:?}: {error}"));
        guard.release().await.unwrap();
        tokio::time::sleep(S).await;
        assert!(server.stats().locks.is_empty());
    }
}
