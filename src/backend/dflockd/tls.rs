//! The client's TLS type, also for a build without TLS.

#[cfg(feature = "tls")]
pub(crate) use crate::tls::ClientTls;

/// Stands in for the real type in a build without the `tls` feature. It has no values.
#[cfg(not(feature = "tls"))]
#[derive(Clone, Copy, Debug)]
pub enum ClientTls {}

#[cfg(not(feature = "tls"))]
impl ClientTls {
    pub(crate) async fn connect(
        &self,
        _host: &str,
        _stream: crate::net::BoxStream,
    ) -> crate::Result<crate::net::BoxStream> {
        match *self {}
    }
}
