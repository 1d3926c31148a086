//! The dflockd wire, without I/O: lines, requests and replies, encoded and parsed in both directions.
//! Client and server are built on it. Does not depend on tokio.
//!
//! A request is three lines (`command`, `key`, `arg`), a reply is one. [`LineDecoder`] cuts lines out of
//! the chunks that arrive, [`FrameDecoder`] builds [`Request`]s from them, and [`Reply::parse`] parses
//! the replies that a request can have.

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
