//! What it means to hold something for a limited time: when to renew, when it is at risk, when it
//! is lost, and the guard that a user keeps. Knows of no engine: a lock server's connection and a
//! lock file fulfil the same small trait.

pub mod renewal;

#[cfg(any(feature = "client", feature = "file"))]
mod engine;
#[cfg(any(feature = "client", feature = "file"))]
mod event;
#[cfg(any(feature = "client", feature = "file"))]
mod guard;
#[cfg(any(feature = "client", feature = "file"))]
mod handle;
#[cfg(any(feature = "client", feature = "file"))]
mod listener;
#[cfg(any(feature = "client", feature = "file"))]
mod signal;
#[cfg(any(feature = "client", feature = "file"))]
mod standing;
#[cfg(any(feature = "client", feature = "file"))]
mod state;
#[cfg(any(feature = "client", feature = "file"))]
mod task;

pub use renewal::{LeaseState, LostReason};

#[cfg(feature = "client")]
pub(crate) use {engine::Releaser, event::Tally, handle::WeakLease};
#[cfg(any(feature = "client", feature = "file"))]
pub(crate) use {
    engine::{Done, Engine, Incident},
    guard::Terms,
    listener::Listener,
};
#[cfg(any(feature = "client", feature = "file"))]
pub use {
    event::{LeaseChange, LeaseEvent},
    guard::LeaseGuard,
    handle::{Lease, Outcome},
    signal::LostSignal,
};
