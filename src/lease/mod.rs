//! What it means to hold something for a limited time: when to renew, when it is at risk, when it
//! is lost, and the guard that a user keeps. Knows of no engine: a lock server's connection and a
//! lock file fulfil the same small trait.

#[cfg(feature = "client")]
mod engine;
#[cfg(feature = "client")]
mod guard;
#[cfg(feature = "client")]
mod handle;
pub mod renewal;
#[cfg(feature = "client")]
mod state;
#[cfg(feature = "client")]
mod task;

#[cfg(feature = "client")]
pub(crate) use engine::Engine;
#[cfg(feature = "client")]
pub use guard::LeaseGuard;
#[cfg(feature = "client")]
pub use handle::{Lease, Outcome};
pub use renewal::{LeaseState, LostReason};
