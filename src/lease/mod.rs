//! What it means to hold something for a limited time: when to renew, when it is at risk, when it
//! is lost, and the guard that a user keeps. Knows of no engine: a lock server's connection and a
//! lock file fulfil the same small trait.

pub mod renewal;

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
mod state_cell;
#[cfg(any(feature = "client", feature = "file"))]
mod task;

pub use renewal::{LeaseState, LostReason};

#[cfg(feature = "client")]
pub(crate) use {event::LeaseCounters, handle::WeakLease, held::ReleaseWaiter};
#[cfg(any(feature = "client", feature = "file"))]
pub use {
    event::{LeaseEvent, LeaseEventKind},
    guard::LeaseGuard,
    handle::{Lease, Outcome},
    lost::LostSignal,
};
#[cfg(any(feature = "client", feature = "file"))]
pub(crate) use {
    event_handler::EventHandler,
    guard::LeaseConfig,
    held::{Change, HeldLease, ReleaseCompletion},
};
