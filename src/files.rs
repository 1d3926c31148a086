//! Reads the files that settings name whole: certificates, keys, tokens. A device or a pipe may have
//! no end, so one limit holds for all of them.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// The longest file that a setting may name, in bytes: 4 MiB, sixteen times the bundles of systems.
const MAX_FILE_BYTES: usize = 4 << 20;

/// Reads the whole file at `path`. Reads a pipe until its last writer closes it.
///
/// # Errors
/// [`FileTooLarge`](io::ErrorKind::FileTooLarge) if the file has more than 4 MiB, of which no more is
/// read; otherwise the error of the system. The text does not name the path.
///
/// # Examples
/// ```
/// # fn main() -> std::io::Result<()> {
/// # let directory = tempfile::tempdir()?;
/// let path = directory.path().join("token");
/// std::fs::write(&path, "s3cret\n")?;
/// assert_eq!(dflockd_client::files::read_file(&path)?, b"s3cret\n");
/// # Ok(()) }
/// ```
pub fn read_file(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    read_whole(File::open(path)?)
}

/// Reads the whole of an open file, such as standard input.
///
/// # Errors
/// As for [`read_file`].
///
/// # Examples
/// ```
/// # use std::io;
/// let endless = dflockd_client::files::read_whole(io::repeat(0)).unwrap_err();
/// assert_eq!(endless.kind(), io::ErrorKind::FileTooLarge);
/// ```
pub fn read_whole(file: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MAX_FILE_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is longer than 4 MiB, the limit"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_may_be_as_long_as_the_limit_and_not_a_byte_longer() {
        let of = |length: usize| read_whole(io::repeat(b'x').take(length as u64));
        assert_eq!(of(MAX_FILE_BYTES).unwrap().len(), MAX_FILE_BYTES);
        let error = of(MAX_FILE_BYTES + 1).unwrap_err();
        assert_eq!(error.to_string(), "it is longer than 4 MiB, the limit");
    }
}
