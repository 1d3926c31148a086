//! The files that flags name. Each is read once a run: a pipe has nothing for a second reader, and
//! there may be many servers.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use dflockd_client::files::{read_file, read_whole};

use crate::exit::{Failure, one_line};

/// What has been read.
#[derive(Default)]
pub(crate) struct Files(HashMap<PathBuf, Vec<u8>>);

impl Files {
    /// The whole file at `path`, which `flag` names; standard input for `-`.
    pub(crate) fn read(&mut self, flag: &str, path: &Path) -> Result<Vec<u8>, Failure> {
        if let Some(read) = self.0.get(path) {
            return Ok(read.clone());
        }
        let outcome = match is_stdin(path) {
            true => read_whole(std::io::stdin().lock()),
            false => read_file(path),
        };
        let read = outcome.map_err(|error| Failure::usage(format!("{flag} {}: {error}", named(path))))?;
        self.0.insert(path.to_owned(), read.clone());
        Ok(read)
    }
}

pub(crate) fn is_stdin(path: &Path) -> bool {
    path == Path::new("-")
}

/// A path as an error names it: not what is a key or a certificate, given in its place.
pub(crate) fn named(path: &Path) -> String {
    const LONG: usize = 100;
    let text = path.to_string_lossy();
    let is_base64 = |c: char| c.is_ascii_alphanumeric() || "+/=".contains(c);
    let is_no_path =
        text.contains("-----") || text.contains('\n') || text.len() > LONG && text.chars().all(is_base64);
    if is_no_path {
        return format!("(a text of {} bytes, given where a path belongs)", text.len());
    }
    one_line(&text)
}
