//! What it means to hold something for a limited time: when to renew, when it is at risk, when it
//! is lost, and the guard that a user keeps. Knows of no engine: a lock server's connection and a
//! lock file fulfil the same small trait.

pub mod renewal;

#[cfg(feature = "client")]
mod engine;
#[cfg(feature = "client")]
mod event;
#[cfg(feature = "client")]
mod guard;
#[cfg(feature = "client")]
mod handle;
#[cfg(feature = "client")]
mod signal;
#[cfg(feature = "client")]
mod state;
#[cfg(feature = "client")]
mod task;

pub use renewal::{LeaseState, LostReason};

#[cfg(feature = "client")]
pub(crate) use {
    engine::{Done, Engine, Incident},
    event::Listener,
    guard::Terms,
};
#[cfg(feature = "client")]
pub use {
    event::{LeaseChange, LeaseEvent},
    guard::LeaseGuard,
    handle::{Lease, Outcome},
    signal::LostSignal,
};
