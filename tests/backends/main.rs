//! What every engine must do, run over each of them, and what is one engine's alone.

mod directory;
mod dropped;
mod engines;
mod suite;
mod threads;
