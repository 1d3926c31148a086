//! TLS as its users see it: certificates made on the spot, handshakes over a pipe in memory.

use std::error::Error as _;
use std::io;
use std::sync::Arc;

use dflockd_client::net::BoxStream;
use dflockd_client::tls::{ClientTls, ClientTlsBuilder, ServerTls, rustls};
use dflockd_client::{Error, ErrorKind, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

const NAME: &str = "locks.example";

struct Ca(CertifiedIssuer<'static, KeyPair>);

struct Pair {
    cert: String,
    key: String,
}

impl Ca {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn issue(&self, names: &[&str]) -> Pair {
        self.sign(params(names))
    }

    fn sign(&self, params: CertificateParams) -> Pair {
        let key = KeyPair::generate().unwrap();
        Pair { cert: params.signed_by(&key, &self.0).unwrap().pem(), key: key.serialize_pem() }
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    fn trusted(&self) -> ClientTlsBuilder {
        ClientTls::builder().ca_pem(self.pem())
    }
}

impl Pair {
    fn server(&self) -> ServerTls {
        ServerTls::from_pem(&*self.cert, &*self.key).unwrap()
    }
}

fn params(names: &[&str]) -> CertificateParams {
    CertificateParams::new(names.iter().map(|name| name.to_string()).collect::<Vec<_>>()).unwrap()
}

async fn handshake(
    client: &ClientTls,
    host: &str,
    server: &ServerTls,
) -> (Result<BoxStream>, Result<BoxStream>) {
    let (near, far) = duplex(1024);
    tokio::join!(client.connect(host, Box::new(near)), server.accept(Box::new(far)))
}

async fn carries_bytes(near: &mut BoxStream, far: &mut BoxStream) {
    let mut got = [0; 6];
    near.write_all(b"ping\n_").await.unwrap();
    near.flush().await.unwrap();
    far.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"ping\n_");
    far.write_all(b"ok 1 2").await.unwrap();
    far.flush().await.unwrap();
    near.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"ok 1 2");
}

async fn succeeds(client: &ClientTls, host: &str, server: &ServerTls) {
    let (near, far) = handshake(client, host, server).await;
    carries_bytes(&mut near.unwrap(), &mut far.unwrap()).await;
}

/// The client's and the server's errors, each of which must be of kind `Tls` and keep its cause.
async fn fails(client: &ClientTls, host: &str, server: &ServerTls) -> (String, String) {
    let (near, far) = handshake(client, host, server).await;
    (tls_error(near.err().unwrap()), tls_error(far.err().unwrap()))
}

#[track_caller]
fn tls_error(error: Error) -> String {
    assert_eq!(error.kind(), ErrorKind::Tls, "{error}");
    assert!(error.source().is_some(), "{error}");
    error.to_string()
}

#[track_caller]
fn has(text: &str, words: &str) {
    assert!(text.contains(words), "{text:?} has no {words:?}");
}

#[tokio::test]
async fn a_trusted_server_is_spoken_to() {
    let ca = Ca::new("ca");
    succeeds(&ca.trusted().build().unwrap(), NAME, &ca.issue(&[NAME]).server()).await;
}

#[tokio::test]
async fn the_handshake_comes_through_a_narrow_pipe() {
    let ca = Ca::new("ca");
    let (client, server) = (ca.trusted().build().unwrap(), ca.issue(&[NAME]).server());
    // No narrower: before the keys are agreed, neither side reads while it has something to write.
    let (near, far) = duplex(16);
    let mut got = [0; 4];
    // The server's session tickets follow the handshake: the client must read before it writes.
    let near = async {
        let mut near = client.connect(NAME, Box::new(near)).await.unwrap();
        near.read_exact(&mut got).await.unwrap();
        near.write_all(&got).await.unwrap();
        near.flush().await.unwrap();
    };
    let far = async {
        let mut far = server.accept(Box::new(far)).await.unwrap();
        let mut got = [0; 4];
        far.write_all(b"ping").await.unwrap();
        far.flush().await.unwrap();
        far.read_exact(&mut got).await.unwrap();
        got
    };
    assert_eq!(&tokio::join!(near, far).1, b"ping");
}

#[tokio::test]
async fn ip_addresses_are_names_with_or_without_brackets() {
    let ca = Ca::new("ca");
    let client = ca.trusted().build().unwrap();
    let server = ca.issue(&["127.0.0.1", "::1"]).server();
    for host in ["127.0.0.1", "::1", "[::1]"] {
        succeeds(&client, host, &server).await;
    }
    has(&fails(&client, "127.0.0.2", &server).await.0, "for another name");
}

#[tokio::test]
async fn several_cas_are_trusted_at_once() {
    let (old, new) = (Ca::new("old"), Ca::new("new"));
    let client = old.trusted().ca_pem(new.pem()).build().unwrap();
    succeeds(&client, NAME, &old.issue(&[NAME]).server()).await;
    succeeds(&client, NAME, &new.issue(&[NAME]).server()).await;
}

#[tokio::test]
async fn a_self_signed_server_is_trusted_by_its_own_certificate() {
    let key = KeyPair::generate().unwrap();
    let cert = params(&[NAME]).self_signed(&key).unwrap().pem();
    let server = ServerTls::from_pem(&*cert, key.serialize_pem()).unwrap();
    succeeds(&ClientTls::builder().ca_pem(cert).build().unwrap(), NAME, &server).await;
}

#[tokio::test]
async fn a_certificate_that_is_marked_as_a_cas_is_refused_with_a_way_out() {
    let key = KeyPair::generate().unwrap();
    let mut of_a_ca = params(&[NAME]);
    of_a_ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let cert = of_a_ca.self_signed(&key).unwrap().pem();
    let server = ServerTls::from_pem(&*cert, key.serialize_pem()).unwrap();
    let client = ClientTls::builder().ca_pem(cert).build().unwrap();
    let (client, _) = fails(&client, NAME, &server).await;
    has(&client, "the peer shows a ca's certificate, make it one with basicConstraints=critical,CA:FALSE");
}

#[tokio::test]
async fn a_server_of_another_ca_is_refused() {
    let (ours, theirs) = (Ca::new("ours"), Ca::new("theirs"));
    let server = theirs.issue(&[NAME]).server();
    let (client, server) = fails(&ours.trusted().build().unwrap(), NAME, &server).await;
    has(&client, "the peer's certificate is of no trusted ca");
    has(&server, "the client refused the server's certificate");
}

#[tokio::test]
async fn a_server_of_a_ca_that_only_bears_the_name_is_refused() {
    let (ours, theirs) = (Ca::new("ca"), Ca::new("ca"));
    let server = theirs.issue(&[NAME]).server();
    let (client, _) = fails(&ours.trusted().build().unwrap(), NAME, &server).await;
    has(&client, "the peer's certificate is of no trusted ca");
}

#[tokio::test]
async fn a_server_of_another_name_is_refused() {
    let ca = Ca::new("ca");
    let server = ca.issue(&["other.example"]).server();
    let (client, _) = fails(&ca.trusted().build().unwrap(), NAME, &server).await;
    has(&client, "the server's certificate is for another name");
    has(&client, "other.example");
}

#[tokio::test]
async fn the_name_to_expect_can_be_set() {
    let ca = Ca::new("ca");
    let server = ca.issue(&[NAME]).server();
    let client = ca.trusted().server_name(NAME).build().unwrap();
    succeeds(&client, "10.0.0.1", &server).await;
    let wrong = client.with_server_name("wrong.example").unwrap();
    has(&fails(&wrong, NAME, &server).await.0, "for another name");
}

#[tokio::test]
async fn certificates_out_of_date_are_refused() {
    let ca = Ca::new("ca");
    let client = ca.trusted().build().unwrap();
    let mut past = params(&[NAME]);
    past.not_after = date_time_ymd(2001, 1, 1);
    has(&fails(&client, NAME, &ca.sign(past).server()).await.0, "the peer's certificate has expired");
    let mut future = params(&[NAME]);
    future.not_before = date_time_ymd(4000, 1, 1);
    has(&fails(&client, NAME, &ca.sign(future).server()).await.0, "not valid yet");
}

#[tokio::test]
async fn a_server_names_a_client_that_speaks_plain_text() {
    let server = Ca::new("ca").issue(&[NAME]).server();
    let (mut near, far) = duplex(1024);
    near.write_all(b"ping\n_\n_\n").await.unwrap();
    let error = tls_error(server.accept(Box::new(far)).await.err().unwrap());
    has(&error, "the peer does not speak tls");
}

#[tokio::test]
async fn a_client_names_a_server_that_speaks_plain_text() {
    let client = Ca::new("ca").trusted().build().unwrap();
    let (near, mut far) = duplex(1024);
    far.write_all(b"error\n").await.unwrap();
    let error = tls_error(client.connect(NAME, Box::new(near)).await.err().unwrap());
    has(&error, "the peer does not speak tls");
}

#[tokio::test]
async fn a_peer_that_hangs_up_is_named_on_both_sides() {
    let ca = Ca::new("ca");
    let (near, far) = duplex(1024);
    drop(far);
    let client = ca.trusted().build().unwrap();
    has(&tls_error(client.connect(NAME, Box::new(near)).await.err().unwrap()), "it may not speak tls");
    let (near, far) = duplex(1024);
    drop(near);
    let server = ca.issue(&[NAME]).server();
    has(&tls_error(server.accept(Box::new(far)).await.err().unwrap()), "it may not speak tls");
}

fn mutual(ca: &Ca, clients: &Ca) -> ServerTls {
    let pair = ca.issue(&[NAME]);
    ServerTls::builder().cert_pem(pair.cert, pair.key).client_ca_pem(clients.pem()).build().unwrap()
}

/// A client whose TLS goes no further than 1.2, where the server's verdict is part of the handshake.
fn client_of_tls_1_2(ca: &Ca) -> ClientTls {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.0.der().clone()).unwrap();
    let ring = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(ring)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    ClientTls::from_config(Arc::new(config))
}

#[tokio::test]
async fn a_client_certificate_of_the_right_ca_is_accepted() {
    let (ca, clients) = (Ca::new("ca"), Ca::new("clients"));
    let mine = clients.issue(&["client"]);
    let client = ca.trusted().client_cert_pem(mine.cert, mine.key).build().unwrap();
    succeeds(&client, NAME, &mutual(&ca, &clients)).await;
}

#[tokio::test]
async fn a_client_certificate_is_not_shown_to_a_server_that_does_not_ask() {
    let ca = Ca::new("ca");
    let mine = ca.issue(&["client"]);
    let client = ca.trusted().client_cert_pem(mine.cert, mine.key).build().unwrap();
    succeeds(&client, NAME, &ca.issue(&[NAME]).server()).await;
}

#[tokio::test]
async fn a_missing_client_certificate_is_named_on_both_sides() {
    let (ca, clients) = (Ca::new("ca"), Ca::new("clients"));
    let (near, far) = handshake(&ca.trusted().build().unwrap(), NAME, &mutual(&ca, &clients)).await;
    has(&tls_error(far.err().unwrap()), "the peer shows no certificate");
    has(&first_read(near.unwrap()).await, "the server requires a client certificate");
}

#[tokio::test]
async fn a_missing_client_certificate_is_named_in_the_handshake_of_tls_1_2() {
    let (ca, clients) = (Ca::new("ca"), Ca::new("clients"));
    let (client, server) = fails(&client_of_tls_1_2(&ca), NAME, &mutual(&ca, &clients)).await;
    has(&client, "the server requires a client certificate");
    has(&server, "the peer shows no certificate");
}

#[tokio::test]
async fn a_client_certificate_of_another_ca_is_refused() {
    let (ca, clients) = (Ca::new("ca"), Ca::new("clients"));
    let mine = ca.issue(&["client"]);
    let client = ca.trusted().client_cert_pem(mine.cert, mine.key).build().unwrap();
    let (near, far) = handshake(&client, NAME, &mutual(&ca, &clients)).await;
    has(&tls_error(far.err().unwrap()), "the peer's certificate is of no trusted ca");
    has(&first_read(near.unwrap()).await, "the server refused the client certificate");
}

/// What the first read fails with: with TLS 1.3 the client is done before the server judges it.
async fn first_read(mut stream: BoxStream) -> String {
    let error = stream.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    tls_error(error.downcast::<Error>().unwrap())
}

#[tokio::test]
async fn tls_1_2_and_1_3_are_both_spoken() {
    let ca = Ca::new("ca");
    let server = ca.issue(&[NAME]).server();
    succeeds(&client_of_tls_1_2(&ca), NAME, &server).await;
    succeeds(&ca.trusted().build().unwrap(), NAME, &server).await;
}

#[tokio::test]
async fn files_serve_as_text_does() {
    let (ca, dir) = (Ca::new("ca"), tempfile::tempdir().unwrap());
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let (server, mine) = (ca.issue(&[NAME]), ca.issue(&["client"]));
    let ca_file = file("ca.pem", &ca.pem());
    let server = ServerTls::builder()
        .cert_files(file("server.pem", &server.cert), file("server.key", &server.key))
        .client_ca_file(&ca_file)
        .build()
        .unwrap();
    let client = ClientTls::builder()
        .ca_file(&ca_file)
        .client_cert_files(file("client.pem", &mine.cert), file("client.key", &mine.key))
        .build()
        .unwrap();
    succeeds(&client, NAME, &server).await;
}

#[track_caller]
fn invalid<T>(result: Result<T>, words: &str) {
    let error = result.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    has(&error.to_string(), words);
}

#[test]
fn what_is_missing_is_asked_for() {
    invalid(ClientTls::builder().build(), "take the system's by ClientTls::from_config");
    invalid(ServerTls::builder().build(), "no certificate for the server");
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let path = tempfile::tempdir().unwrap().path().join("missing.pem");
    let client = ClientTls::builder().ca_file(&path).build().unwrap_err();
    let server = ServerTls::from_pem_files(&path, &path).unwrap_err();
    for error in [client, server] {
        assert_eq!(error.kind(), ErrorKind::Io);
        has(&error.to_string(), &format!("could not read {}", path.display()));
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::NotFound);
    }
}

#[test]
fn pem_that_lacks_what_it_should_hold_is_refused() {
    let pair = Ca::new("ca").issue(&[NAME]);
    let (cert, key) = (&*pair.cert, &*pair.key);
    invalid(ClientTls::builder().ca_pem("").build(), "no certificate in the given pem");
    invalid(ClientTls::builder().ca_pem(key).build(), "no certificate in the given pem");
    invalid(ServerTls::from_pem("", key), "no certificate in the given pem");
    invalid(ServerTls::from_pem(cert, ""), "no private key in the given pem");
    invalid(ServerTls::from_pem(cert, cert), "no private key in the given pem");
    invalid(ServerTls::builder().cert_pem(cert, key).client_ca_pem("").build(), "no certificate");
}

#[test]
fn pem_that_cannot_be_used_is_refused() {
    let pair = Ca::new("ca").issue(&[NAME]);
    let (cert, key) = (&*pair.cert, &*pair.key);
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    invalid(ClientTls::builder().ca_pem(garbage).build(), "cannot be trusted as a ca");
    invalid(ServerTls::from_pem(garbage, key), "the certificate in the given pem is malformed");
    invalid(
        ServerTls::from_pem(&cert[..cert.len() / 2], key),
        "the given pem of the certificate is malformed",
    );
    let garbage = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    invalid(ServerTls::from_pem(cert, garbage), "the private key in the given pem cannot be used");
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let ca = Ca::new("ca");
    let (one, other) = (ca.issue(&[NAME]), ca.issue(&[NAME]));
    invalid(ServerTls::from_pem(&*one.cert, &*other.key), "does not match the certificate");
    let client = ca.trusted().client_cert_pem(one.cert, other.key).build();
    invalid(client, "does not match the certificate");
}

#[tokio::test]
async fn a_name_that_no_certificate_can_have_is_refused() {
    let ca = Ca::new("ca");
    invalid(ca.trusted().server_name("no name").build(), "\"no name\" is not a name");
    let client = ca.trusted().build().unwrap();
    invalid(client.connect("", Box::new(duplex(1).0)).await, "\"\" is not a name");
}

#[test]
fn neither_keys_nor_certificates_are_shown() {
    let ca = Ca::new("ca");
    let pair = ca.issue(&[NAME]);
    let builder = ca.trusted().client_cert_pem(&*pair.cert, &*pair.key).server_name(NAME);
    let server = ServerTls::builder().cert_pem(&*pair.cert, &*pair.key);
    let shown = format!("{builder:?} {server:?} {:?} {:?}", builder.clone().build(), pair.server());
    has(&shown, NAME);
    assert!(shown.len() < 400 && !shown.contains("BEGIN"), "{shown}");
}
