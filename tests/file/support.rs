//! A directory with a lock in it.

use std::path::PathBuf;

use dflockd_client::FileLock;
use dflockd_client::file::Builder;
use tempfile::TempDir;

/// A directory of its own, gone with the test.
pub(crate) struct Place(TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory can be made"))
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.0.path().join("x.lck")
    }

    pub(crate) fn builder(&self) -> Builder {
        FileLock::builder(self.path()).hostname("here")
    }

    pub(crate) fn lock(&self) -> FileLock {
        self.builder().build().expect("the settings are fine")
    }

    /// The names in the directory, in order.
    pub(crate) fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).expect("it is there");
        let name = |entry: std::io::Result<std::fs::DirEntry>| entry.expect("it is there").file_name();
        let mut names: Vec<_> = entries.map(|entry| name(entry).to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}
