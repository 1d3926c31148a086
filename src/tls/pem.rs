//! Certificates and keys out of PEM: every fault names the file it is in. Knows of no handshake.

use std::fmt;
use std::path::PathBuf;

use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, RootCertStore};

use crate::{Error, ErrorKind, Result};

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
            Self::File(path) => std::fs::read(path).map_err(|cause| {
                Error::new(ErrorKind::Io, format!("could not read {self}")).caused_by(cause)
            }),
        }
    }

    fn certs(&self) -> Result<Vec<CertificateDer<'static>>> {
        let pem = self.read()?;
        let certs: Vec<_> = rustls_pemfile::certs(&mut &pem[..])
            .collect::<Result<_, _>>()
            .map_err(|cause| invalid(format!("{self} is malformed")).caused_by(cause))?;
        if certs.is_empty() {
            return Err(invalid(format!("no certificate in {self}")));
        }
        Ok(certs)
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>> {
        let pem = self.read()?;
        // Both encrypted forms say so in plain text; the reader would pass over one of them.
        if memchr::memmem::find(&pem, b"ENCRYPTED").is_some() {
            return Err(invalid(format!("the private key in {self} is encrypted: decrypt it first")));
        }
        rustls_pemfile::private_key(&mut &pem[..])
            .map_err(|cause| invalid(format!("{self} is malformed")).caused_by(cause))?
            .ok_or_else(|| invalid(format!("no private key in {self}")))
    }
}

impl fmt::Display for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
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
