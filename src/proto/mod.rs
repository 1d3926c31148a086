//! The dflockd wire, without I/O: lines, requests and replies, encoded and parsed in both
//! directions. Knows of no socket, runtime or clock; client and server are built on it alike.
//!
//! A request is three lines (`command`, `key`, `arg`), a reply is one. [`LineDecoder`] cuts lines
//! out of whatever chunks arrive, [`FrameDecoder`] makes [`Request`]s of them, [`Reply::parse`]
//! reads the answer that a request can have.

mod frame;
mod line;
mod reply;
mod request;
mod stats;

pub use frame::{Frame, FrameDecoder};
pub use line::{LineDecoder, LineTooLong, MAX_REPLY_BYTES};
pub use reply::{BadReply, Reply, Status};
pub use request::{Expect, Family, Malformed, Request, Secret};
pub use stats::{HeldLock, HeldSemaphore, IdleKey, StatsResult};

#[cfg(test)]
mod tests;
