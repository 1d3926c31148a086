//! A lock file on a shared file system, as another engine of leases.

mod breaking;
mod contender;
mod disk;
mod engine;
mod host;
mod lock;
mod name;
mod query;
mod settings;
mod task;
mod turn;
mod wait;

pub use lock::FileLock;
pub use query::{Details, LockState};
pub use settings::{Builder, SEPARATOR};
