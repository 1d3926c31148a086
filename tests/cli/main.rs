//! The `dflock` command line as people run it: a process with arguments, an environment, signals,
//! and a terminal.
#![cfg(feature = "cli")]

#[path = "../support/dflockd.rs"]
mod dflockd;

mod connection;
mod file;
mod lost;
mod output;
mod run;
mod signals;
mod support;
mod terminal;
