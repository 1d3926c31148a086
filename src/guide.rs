//! The guide: recipes that run, answers to common questions, and help to choose a lock.
//!
//! - [`cookbook`]: twelve things to do with a lease.
//! - [`questions`]: which ttl, what if the server restarts, how to change the list of servers.
//! - [`choosing`]: this crate, Redis, etcd, Postgres or a file, and whether you need a lock.
//! - [`services`]: leases in HTTP and gRPC handlers, statuses, shutdown.
//!
//! For running a server there is [`docs/operating.md`][operating] in the repository.
//!
//! [operating]: https://docs.rs/crate/dflockd-client/latest/source/docs/operating.md

#[doc = include_str!("guide/cookbook.md")]
pub mod cookbook {}

#[doc = include_str!("guide/questions.md")]
pub mod questions {}

#[doc = include_str!("guide/choosing.md")]
pub mod choosing {}

#[doc = include_str!("guide/services.md")]
pub mod services {}
