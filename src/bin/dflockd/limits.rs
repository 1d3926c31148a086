//! The system's limits: on open files, and with them connections, and on the size of a file.

use std::io;

use rustix::process::{Resource, Signal, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

/// Raises the soft limit on open files to the hard one. Many systems keep the soft limit low for programs
/// that fail with higher file numbers; this program does not.
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

/// Makes a write beyond the limit on a file's size (`ulimit -f`) fail, as on a full disk. The signal that
/// the system sends besides would end the process, and with it all locks. Must be called within a runtime.
pub(crate) fn ignore_file_size_signal() -> io::Result<()> {
    // The handler stays installed after the value is dropped.
    signal(SignalKind::from_raw(Signal::XFSZ.as_raw())).map(drop)
}
