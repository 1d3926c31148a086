//! The embedded server: speaks the dflockd protocol, in this process or as the `dflockd` binary.

pub mod table;
