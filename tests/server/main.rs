//! The server against clients that a test plays byte by byte, well-behaved and hostile.

#[path = "../support/wire.rs"]
mod wire;

mod hostile_client;
mod hostile_crowd;
mod server_auth;
mod server_edges;
mod server_given_up;
mod server_large;
mod server_settings;
mod server_wire;
