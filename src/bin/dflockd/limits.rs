//! The limit of open files, which is the limit of connections.

use rustix::process::{Resource, getrlimit, setrlimit};

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
