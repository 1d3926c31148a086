//! What a builder makes.

use crate::client::any::AnyBackend;
use crate::client::lease_options::LeaseOptions;
use crate::error::Result;

/// What a [`Builder`](crate::Builder) makes.
pub trait Target: Sized + sealed::Sealed {
    /// The finished thing.
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
    /// Keeps the targets to this crate's own.
    pub trait Sealed {}
}
