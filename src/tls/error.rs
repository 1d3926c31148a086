//! Explains why a handshake failed, in words that point to the cause.

use std::io;

use tokio_rustls::rustls::{self, AlertDescription as Alert, CertificateError as Cert};

use crate::error::{Error, ErrorKind};

/// The end of the handshake that this side is, with what helps to explain a failure.
#[derive(Clone, Copy, Debug)]
pub(super) enum Side {
    Client { has_certificate: bool },
    Server,
}

impl Side {
    /// Returns the error of a handshake that failed with `cause`.
    pub(super) fn explain(self, cause: io::Error) -> Error {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
        let fault = match cause.get_ref().and_then(|inner| inner.downcast_ref()) {
            Some(fault) => self.name(fault),
            None => match cause.kind() {
                UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe => {
                    "the peer closed the connection during the handshake: it may not speak tls"
                }
                _ => return Error::io("tls handshake failed", cause),
            },
        };
        Error::new(ErrorKind::Tls, fault).caused_by(cause)
    }

    /// Explains a failed read after the handshake: an alert becomes an [`Error`] inside the I/O error.
    pub(super) fn explain_alert(self, cause: io::Error) -> io::Error {
        match cause.get_ref().and_then(|inner| inner.downcast_ref()) {
            Some(rustls::Error::AlertReceived(_)) => self.explain(cause).into(),
            _ => cause,
        }
    }

    fn name(self, fault: &rustls::Error) -> &'static str {
        use rustls::Error as Tls;
        match fault {
            Tls::InvalidCertificate(fault) => self.name_certificate(fault),
            Tls::AlertReceived(alert) => self.name_alert(*alert),
            Tls::InvalidMessage(_) => "the peer does not speak tls",
            Tls::NoCertificatesPresented => "the peer shows no certificate",
            Tls::PeerIncompatible(_) => "the peer shares no tls version or cipher with this side",
            _ => "the handshake failed",
        }
    }

    fn name_certificate(self, fault: &Cert) -> &'static str {
        match fault {
            Cert::UnknownIssuer | Cert::BadSignature => "the peer's certificate is of no trusted ca",
            Cert::NotValidForName | Cert::NotValidForNameContext { .. } => {
                "the server's certificate is for another name"
            }
            Cert::Expired | Cert::ExpiredContext { .. } => "the peer's certificate has expired",
            Cert::NotValidYet | Cert::NotValidYetContext { .. } => "the peer's certificate is not valid yet",
            Cert::Other(fault) if is_of_ca(fault) => {
                "the peer shows a ca's certificate, make it one with basicConstraints=critical,CA:FALSE"
            }
            _ => "the peer's certificate is refused",
        }
    }

    fn name_alert(self, alert: Alert) -> &'static str {
        match (self, alert) {
            (_, Alert::ProtocolVersion) => "the peer shares no tls version with this side",
            (Self::Client { .. }, Alert::UnrecognisedName) => "the server knows no host of that name",
            (Self::Client { .. }, Alert::CertificateRequired | Alert::NoCertificate)
            | (Self::Client { has_certificate: false }, Alert::BadCertificate) => {
                "the server requires a client certificate"
            }
            (_, alert) if !about_certificate(alert) => "the peer ended the session",
            (Self::Client { .. }, _) => "the server refused the client certificate",
            (Self::Server, _) => "the client refused the server's certificate",
        }
    }
}

/// Returns `true` if a certificate is refused because it is marked as a CA's. The error's type belongs to
/// a transitive dependency, and is known by its text.
fn is_of_ca(fault: &rustls::OtherError) -> bool {
    fault.0.to_string() == "CaUsedAsEndEntity"
}

fn about_certificate(alert: Alert) -> bool {
    matches!(
        alert,
        Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::DecryptError
    )
}
