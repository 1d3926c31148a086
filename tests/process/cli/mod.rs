//! The `dflock` command line as people run it: a process with arguments, an environment, signals,
//! and a terminal.

mod connection;
mod directory;
mod file;
mod large;
mod lost;
mod output;
mod rest;
mod run;
mod signals;
mod silent;
mod stuck;
mod support;
mod terminal;
