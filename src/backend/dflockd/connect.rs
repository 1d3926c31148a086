//! Opens connections to a server, and names the ways in which they end unexpectedly.

use std::io;
use std::time::Duration;

use crate::backend::dflockd::tls::ClientTls;
use crate::backend::here;
use crate::error::{Error, ErrorKind, Result};
use crate::net::{BoxStream, Dial};

/// Runs `connecting` under the connect timeout.
pub(crate) async fn within<T>(limit: Duration, connecting: impl Future<Output = Result<T>>) -> Result<T> {
    here()?;
    tokio::time::timeout(limit, connecting)
        .await
        .unwrap_or_else(|_| Err(Error::new(ErrorKind::Timeout, format!("no connection within {limit:?}"))))
}

pub(crate) async fn open_stream(
    dial: &dyn Dial,
    host: &str,
    port: u16,
    tls: Option<&ClientTls>,
) -> Result<BoxStream> {
    let stream = dial.dial(host, port).await.map_err(|cause| Error::io("could not connect", cause))?;
    match tls {
        Some(tls) => tls.connect(host, stream).await,
        None => Ok(stream),
    }
}

pub(crate) fn closed_by_peer(when: &str) -> Error {
    let cause = io::Error::from(io::ErrorKind::UnexpectedEof);
    Error::new(ErrorKind::ConnectionClosed, format!("the server closed it {when}")).caused_by(cause)
}

/// Returns the error of an unsolicited line. A server sends `error` before it drops an idle connection.
pub(crate) fn unsolicited(bytes: &[u8]) -> Error {
    if bytes.starts_with(b"error") {
        return Error::new(ErrorKind::ConnectionClosed, "the server closed an idle connection");
    }
    Error::new(ErrorKind::Protocol, "unsolicited line from the server")
}
