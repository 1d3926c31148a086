//! Certificates and keys out of PEM. Every fault names the file it is in and quotes nothing of the
//! file: a parser's own words may hold a private key.

use std::fmt;
use std::path::PathBuf;

use rustls_pemfile::{Error as Fault, Item, read_one_from_slice};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, RootCertStore};

use crate::error::shown;
use crate::error::{Error, ErrorKind, Result};
use crate::files;
use crate::tls::mangled;

/// What some editors put at the start of a file, to say that it is UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// PEM that is still to be read.
#[derive(Clone)]
pub(super) enum Pem {
    File(PathBuf),
    Bytes(Vec<u8>),
}

/// A certificate chain and its private key.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub(super) cert: Pem,
    pub(super) key: Pem,
}

/// All certificates of all `sources`, as ones to trust.
pub(super) fn roots(sources: &[Pem]) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for source in sources {
        for cert in source.certs()? {
            roots.add(cert).map_err(|cause| {
                invalid(format!("a certificate in {source} cannot be trusted as a ca")).caused_by(cause)
            })?;
        }
    }
    Ok(roots)
}

impl Identity {
    pub(super) fn read(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        Ok((self.cert.certs()?, self.key.key()?))
    }

    /// Why chain and key, each well formed, make no identity.
    pub(super) fn unusable(&self, cause: rustls::Error) -> Error {
        let fault = match &cause {
            rustls::Error::InconsistentKeys(_) => {
                format!("the private key in {} does not match the certificate in {}", self.key, self.cert)
            }
            rustls::Error::InvalidCertificate(_) => format!("the certificate in {} is malformed", self.cert),
            _ => format!("the private key in {} cannot be used", self.key),
        };
        invalid(fault).caused_by(cause)
    }
}

impl Pem {
    fn read(&self) -> Result<Vec<u8>> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.clone()),
            Self::File(path) => files::read_file(path).map_err(|cause| {
                Error::new(ErrorKind::Io, format!("could not read {self}")).caused_by(cause)
            }),
        }
    }

    fn certs(&self) -> Result<Vec<CertificateDer<'static>>> {
        let text = self.read()?;
        let text = bare(&text);
        let cert = |item| if let Item::X509Certificate(cert) = item { Some(Ok(cert)) } else { None };
        let certs: Result<Vec<_>, _> =
            items(text).filter_map(|item| item.map_or_else(|fault| Some(Err(fault)), cert)).collect();
        match certs {
            Ok(certs) if !certs.is_empty() => Ok(certs),
            certs => Err(self.refused(text, "certificate", certs.err())),
        }
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>> {
        let text = self.read()?;
        let text = bare(&text);
        let fault = match items(text).find_map(|item| item.map(private_key).transpose()) {
            Some(Ok(key)) => return Ok(key),
            Some(Err(fault)) => Some(fault),
            None => None,
        };
        if mangled::is_encrypted(text) {
            return Err(invalid(format!("the private key in {self} is encrypted: decrypt it first")));
        }
        Err(self.refused(text, "private key", fault))
    }

    /// Why `text` was not taken. Of `fault`, the parser's, only the kind is used: it quotes the text.
    fn refused(&self, text: &[u8], wanted: &str, fault: Option<Fault>) -> Error {
        let what = match fault {
            None => format!("no {wanted} in {self}"),
            Some(_) => match self {
                Self::File(_) => format!("{self} is malformed"),
                // Certificate and key may both be given so.
                Self::Bytes(_) => format!("{self} of the {wanted} is malformed"),
            },
        };
        let broken = matches!(fault, Some(Fault::Base64Decode(_))).then_some("its base64 is broken".into());
        match mangled::why(text).or(broken) {
            Some(why) => invalid(format!("{what}: {why}")),
            None => invalid(what),
        }
    }
}

/// What `text` holds, up to the first fault.
fn items(text: &[u8]) -> impl Iterator<Item = Result<Item, Fault>> {
    let mut rest = Some(text);
    std::iter::from_fn(move || match read_one_from_slice(rest.take()?) {
        Ok(found) => found.map(|(item, after)| {
            rest = Some(after);
            Ok(item)
        }),
        Err(fault) => Some(Err(fault)),
    })
}

fn private_key(item: Item) -> Option<PrivateKeyDer<'static>> {
    match item {
        Item::Pkcs1Key(key) => Some(key.into()),
        Item::Pkcs8Key(key) => Some(key.into()),
        Item::Sec1Key(key) => Some(key.into()),
        _ => None,
    }
}

/// What a byte order mark leaves.
fn bare(text: &[u8]) -> &[u8] {
    text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text)
}

impl fmt::Display for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.write_str(&shown(path)),
            Self::Bytes(_) => f.write_str("the given pem"),
        }
    }
}

/// The path, never the content.
impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn invalid(fault: String) -> Error {
    Error::new(ErrorKind::InvalidInput, fault)
}
