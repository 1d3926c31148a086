//! Models that are explored completely, and the simulation of client and server in a network that
//! follows a seed.

mod breaking;
mod lease;
mod sim;
