//! Limits that the system sets: of open files, which is the limit of connections, and of a file's size.

use std::io;

use rustix::process::{Resource, Signal, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

/// Raises the soft limit to the hard one. Many systems keep the soft one low for programs that cannot count past it;
/// this is none.
pub(crate) fn raise_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    let shown = |limit: Option<u64>| limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string());
    let (old, new) = (shown(limit.current), shown(limit.maximum));
    if limit.current == limit.maximum {
        tracing::info!(limit = new, "open files");
        return;
    }
    limit.current = limit.maximum;
    match setrlimit(Resource::Nofile, limit) {
        Ok(()) => tracing::info!(old, new, "raised the limit of open files"),
        Err(error) => tracing::warn!(old, new, %error, "could not raise the limit of open files"),
    }
}

/// Has a write that a file's size limit forbids (`ulimit -f`) fail, as on a full disk. The signal that comes with it
/// would end the process, and with it all locks. To be called within a runtime.
pub(crate) fn ignore_file_size_signal() -> io::Result<()> {
    // Handled for good, though nobody listens.
    signal(SignalKind::from_raw(Signal::XFSZ.as_raw())).map(drop)
}
