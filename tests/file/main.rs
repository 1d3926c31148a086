//! The lock file: what its object and its guard promise, with processes of their own where one is
//! not enough.

mod basics;
mod support;
