//! The backends that this build has, and the one place that distinguishes them.

#[cfg(feature = "file")]
use std::convert::Infallible;
use std::time::Duration;

use crate::backend::Backend;
use crate::backend::dflockd::{Dflockd, DflockdBackend, Options};
#[cfg(feature = "file")]
use crate::backend::directory::{Directory, DirectoryBackend};
use crate::error::Result;

/// A backend with its settings, for [`Builder::backend`](crate::Builder::backend).
pub trait IntoBackend: sealed::Sealed {
    #[doc(hidden)]
    fn into_backend(self, request_timeout: Duration) -> Result<AnyBackend>;
}

impl IntoBackend for Dflockd {
    fn into_backend(self, request_timeout: Duration) -> Result<AnyBackend> {
        Ok(AnyBackend::Dflockd(DflockdBackend::new(Options::check(self, request_timeout)?)))
    }
}

#[cfg(feature = "file")]
impl IntoBackend for Directory {
    fn into_backend(self, _: Duration) -> Result<AnyBackend> {
        Ok(AnyBackend::Directory(Box::new(DirectoryBackend::new(self)?)))
    }
}

/// The backend of one client.
#[doc(hidden)]
pub enum AnyBackend {
    Dflockd(DflockdBackend),
    #[cfg(feature = "file")]
    Directory(Box<DirectoryBackend>),
}

/// A place in a backend's wait queue.
pub(crate) enum AnyPlace {
    Dflockd(<DflockdBackend as Backend>::Place),
}

/// A backend whose places convert to and from [`AnyPlace`].
pub(crate) trait KnownBackend: Backend {
    fn keep(place: Self::Place) -> AnyPlace;

    /// Returns `None` for a place in another backend's queue.
    fn take(place: AnyPlace) -> Option<Self::Place>;
}

impl KnownBackend for DflockdBackend {
    fn keep(place: Self::Place) -> AnyPlace {
        AnyPlace::Dflockd(place)
    }

    fn take(place: AnyPlace) -> Option<Self::Place> {
        let AnyPlace::Dflockd(place) = place;
        Some(place)
    }
}

#[cfg(feature = "file")]
impl KnownBackend for DirectoryBackend {
    fn keep(place: Infallible) -> AnyPlace {
        match place {}
    }

    fn take(_: AnyPlace) -> Option<Infallible> {
        None
    }
}

/// Evaluates an expression with `$backend` bound to the backend of the client.
macro_rules! with_backend {
    ($any:expr, $backend:ident => $body:expr) => {
        match $any {
            $crate::client::any::AnyBackend::Dflockd($backend) => $body,
            #[cfg(feature = "file")]
            $crate::client::any::AnyBackend::Directory(boxed) => {
                let $backend = &**boxed;
                $body
            }
        }
    };
}
pub(crate) use with_backend;

mod sealed {
    use super::Dflockd;

    /// Restricts the backends to this crate.
    pub trait Sealed {}
    impl Sealed for Dflockd {}
    #[cfg(feature = "file")]
    impl Sealed for crate::backend::directory::Directory {}
}
