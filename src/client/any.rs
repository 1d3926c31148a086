//! The engines that this build has, and the one place that tells them apart.

use std::time::Duration;

use crate::backend::Backend;
use crate::backend::dflockd::{Dflockd, DflockdBackend, Options};
use crate::error::Result;

/// An engine with its settings, for [`Builder::backend`](crate::Builder::backend).
pub trait IntoBackend: sealed::Sealed {
    #[doc(hidden)]
    fn into_backend(self, request_timeout: Duration) -> Result<AnyBackend>;
}

impl IntoBackend for Dflockd {
    fn into_backend(self, request_timeout: Duration) -> Result<AnyBackend> {
        Ok(AnyBackend::Dflockd(DflockdBackend::new(Options::check(self, request_timeout)?)))
    }
}

/// The backend of one client.
#[doc(hidden)]
pub enum AnyBackend {
    Dflockd(DflockdBackend),
}

/// A place in a backend's wait queue.
pub(crate) enum AnyPlace {
    Dflockd(<DflockdBackend as Backend>::Place),
}

/// Evaluates an expression with `$backend` bound to the client's backend, whichever it is.
macro_rules! with_backend {
    ($any:expr, $backend:ident => $body:expr) => {
        match $any {
            $crate::client::any::AnyBackend::Dflockd($backend) => $body,
        }
    };
}
pub(crate) use with_backend;

mod sealed {
    use super::Dflockd;

    /// Keeps the engines to this crate's own.
    pub trait Sealed {}
    impl Sealed for Dflockd {}
}
