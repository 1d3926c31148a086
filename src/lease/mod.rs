//! A key held for a limited time: its renewal schedule, its state, its events, and the guard that a caller keeps.
//! Does not depend on a backend.

pub mod renewal;

#[cfg(any(feature = "client", feature = "file"))]
mod completion;
#[cfg(any(feature = "client", feature = "file"))]
mod config;
#[cfg(any(feature = "client", feature = "file"))]
mod counters;
#[cfg(any(feature = "client", feature = "file"))]
mod event;
#[cfg(any(feature = "client", feature = "file"))]
mod event_handler;
#[cfg(any(feature = "client", feature = "file"))]
mod guard;
#[cfg(any(feature = "client", feature = "file"))]
mod handle;
#[cfg(any(feature = "client", feature = "file"))]
mod held;
#[cfg(any(feature = "client", feature = "file"))]
mod inner;
#[cfg(any(feature = "client", feature = "file"))]
mod lost;
#[cfg(any(feature = "client", feature = "file"))]
mod reporter;
#[cfg(any(feature = "client", feature = "file"))]
mod state_cell;
#[cfg(any(feature = "client", feature = "file"))]
mod task;

pub use renewal::{LeaseState, LostReason};

#[cfg(any(feature = "client", feature = "file"))]
pub(crate) use {
    completion::ReleaseCompletion,
    config::LeaseConfig,
    event_handler::EventHandler,
    held::{Change, HeldLease},
};
#[cfg(feature = "client")]
pub(crate) use {completion::ReleaseWaiter, counters::LeaseCounters, handle::WeakLease};
#[cfg(any(feature = "client", feature = "file"))]
pub use {
    event::{LeaseEvent, LeaseEventKind},
    guard::LeaseGuard,
    handle::{Lease, Outcome},
    lost::LostSignal,
};
