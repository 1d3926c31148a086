//! TLS as the client sees it, also in a build that has none.

#[cfg(feature = "tls")]
pub(crate) use crate::tls::ClientTls;

/// Stands in for the real type in a build without the `tls` feature: there is no value of it.
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
