//! The programs in `examples/`: each runs to its end, and what the services say when a lease is busy,
//! lost or not to be had, by their handlers over a test server.

mod bank;
mod jobs;
mod runs;

#[path = "../../../examples/axum_service.rs"]
#[allow(dead_code, reason = "its handlers are tested, its main runs by itself")]
mod axum_service;
#[path = "../../../examples/tonic_service.rs"]
#[allow(dead_code, reason = "its handlers are tested, its main runs by itself")]
mod tonic_service;
