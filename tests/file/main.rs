//! The lock file: what its object and its guard promise, with processes of their own where one is
//! not enough.
#![cfg(unix)]

mod basics;
mod faults;
mod guards;
mod namespaces;
mod processes;
mod roles;
mod support;
mod systems;
