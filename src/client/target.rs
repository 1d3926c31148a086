//! The targets of a builder: a client, a lock or a semaphore.

use crate::client::any::AnyBackend;
use crate::client::lease_options::LeaseOptions;
use crate::error::Result;

/// A type that a [`Builder`](crate::Builder) can build.
pub trait Target: Sized + sealed::Sealed {
    /// The type that is built.
    type Output;

    #[doc(hidden)]
    fn build_from(self, parts: BuilderParts) -> Result<Self::Output>;
}

/// The checked settings on their way to a [`Target`].
#[doc(hidden)]
pub struct BuilderParts {
    pub(crate) backend: AnyBackend,
    pub(crate) lease: LeaseOptions,
}

pub(crate) mod sealed {
    /// Restricts the targets to this crate.
    pub trait Sealed {}
}
