//! The certificate and the auth token that new connections are checked against. Read from the configured
//! files at the start, and again on request.

use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::server::config::ServerConfig;

/// Cheap to clone. Replaced as a whole, never changed in place.
#[derive(Clone, Default)]
pub(super) struct Credentials {
    pub(super) auth_token: Option<Arc<str>>,
    #[cfg(feature = "tls")]
    pub(super) tls: Option<crate::tls::ServerTls>,
}

impl Credentials {
    /// Reads the certificate with its key, and the auth token.
    pub(super) fn load(config: &ServerConfig) -> Result<Self> {
        Ok(Self {
            auth_token: config.read_auth_token()?.map(Into::into),
            #[cfg(feature = "tls")]
            tls: read_tls(config)?,
        })
    }

    /// Reads the files again, and logs the outcome for each. What cannot be read stays as it is.
    ///
    /// # Errors
    /// The error of the first file that could not be read.
    pub(super) fn reload(&self, config: &ServerConfig) -> (Self, Result<()>) {
        let (mut credentials, mut outcome) = (self.clone(), Ok(()));
        let mut log = |what: &str, fault: Option<Error>| match fault {
            None => tracing::info!("reloaded {what}"),
            Some(error) => {
                tracing::warn!(%error, "could not reload {what}, the old value stays in use");
                if outcome.is_ok() {
                    outcome = Err(error);
                }
            }
        };
        #[cfg(feature = "tls")]
        if let (Some(cert), Some(key)) = (&config.tls_cert, &config.tls_key) {
            let read = check_rereadable(cert).and_then(|()| check_rereadable(key));
            let read = read.and_then(|()| read_tls(config));
            log("tls_cert and tls_key", read.map(|tls| credentials.tls = tls).err());
        }
        if let Some(path) = &config.auth_token_file {
            let read = check_rereadable(path).and_then(|()| config.read_auth_token());
            log("auth_token_file", read.map(|token| credentials.auth_token = token.map(Into::into)).err());
        }
        if config.tls_cert.is_none() && config.auth_token_file.is_none() {
            tracing::info!("nothing to reload: no setting names a file");
        }
        (credentials, outcome)
    }
}

#[cfg(feature = "tls")]
fn read_tls(config: &ServerConfig) -> Result<Option<crate::tls::ServerTls>> {
    let (Some(cert), Some(key)) = (&config.tls_cert, &config.tls_key) else { return Ok(None) };
    let tls = crate::tls::ServerTls::from_pem_files(cert, key);
    tls.map(Some).map_err(|error| error.during("reading tls_cert and tls_key"))
}

/// Checks that the path is a regular file. A pipe returns its content once, and a second read of it blocks.
fn check_rereadable(path: &Path) -> Result<()> {
    let fault = format!("could not read {} again", path.display());
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(()),
        Ok(_) => Err(Error::new(ErrorKind::Io, format!("{fault}: it is not a regular file"))),
        Err(cause) => Err(Error::new(ErrorKind::Io, fault).caused_by(cause)),
    }
}
