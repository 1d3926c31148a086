//! The files that flags name. Each is read once a run: a pipe has nothing for a second reader, and
//! there may be many servers.

use std::collections::HashMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::exit::{Failure, one_line};

/// The longest file that is read; the bundles of systems have a quarter of a megabyte.
const MOST: u64 = 4 << 20;

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
            true => whole(std::io::stdin().lock()),
            false => std::fs::File::open(path).and_then(whole),
        };
        let read = outcome.map_err(|error| Failure::usage(format!("{flag} {}: {error}", named(path))))?;
        self.0.insert(path.to_owned(), read.clone());
        Ok(read)
    }
}

/// All of it, unless that is more than a token or certificates can be: a device may have no end.
fn whole(file: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(MOST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is longer than 4 MiB"));
    }
    Ok(bytes)
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
