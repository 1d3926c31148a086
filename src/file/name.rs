//! Encodes and parses the text of a lock file, which is its holder's claim path. Does no I/O.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// The last of a challenge's five fields.
const CHALLENGE_FIELD: &[u8] = b"break";

/// The four fields of a claim's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ClaimName<'a> {
    pub(super) lockfile: &'a [u8],
    pub(super) hostname: &'a [u8],
    pub(super) pid: u32,
    pub(super) salt: u64,
}

impl<'a> ClaimName<'a> {
    /// Parses a lock file's text, with whitespace around it trimmed; `None` unless it has exactly four
    /// fields, with numbers in the last two.
    pub(super) fn parse(text: &'a [u8], separator: &str) -> Option<Self> {
        let fields = split(text.trim_ascii(), separator.as_bytes());
        let [lockfile, hostname, pid, salt] = fields.as_slice() else { return None };
        let number = |field: &[u8]| std::str::from_utf8(field).ok()?.parse::<u64>().ok();
        let pid = u32::try_from(number(pid)?).ok()?;
        Some(Self { lockfile, hostname, pid, salt: number(salt)? })
    }

    /// Returns the path of the claim that the text names, in the directory of `beside`.
    pub(super) fn beside(text: &[u8], beside: &Path) -> Option<PathBuf> {
        let path = path_of(text.trim_ascii())?;
        Some(beside.with_file_name(Path::new(path).file_name()?))
    }
}

/// Returns the path of a claim.
pub(super) fn claim(lockfile: &Path, separator: &str, hostname: &str, pid: u32, salt: u64) -> PathBuf {
    extended(lockfile, &format!("{separator}{hostname}{separator}{pid}{separator}{salt}"))
}

/// Returns the path of a claim's challenge, which announces that its owner breaks the lock.
pub(super) fn challenge(claim: &Path, separator: &str) -> PathBuf {
    extended(claim, &format!("{separator}break"))
}

/// Returns `true` if a path is a claim's challenge.
pub(super) fn is_challenge(path: &Path, separator: &str) -> bool {
    let name = path.as_os_str().as_encoded_bytes();
    name.strip_suffix(CHALLENGE_FIELD).is_some_and(|rest| rest.ends_with(separator.as_bytes()))
}

/// Returns the length, in bytes, of the longest suffix that a lock adds to its file's name.
pub(super) fn max_suffix_len(separator: &str, hostname: &str) -> usize {
    let longest = challenge(&claim(Path::new(""), separator, hostname, u32::MAX, MAX_SALT), separator);
    longest.as_os_str().len()
}

/// The largest random number in a claim's name.
pub(super) const MAX_SALT: u64 = i64::MAX as u64;

fn extended(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn split<'a>(text: &'a [u8], separator: &[u8]) -> Vec<&'a [u8]> {
    let mut fields = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.windows(separator.len()).position(|window| window == separator) {
        fields.push(&rest[..at]);
        rest = &rest[at + separator.len()..];
    }
    fields.push(rest);
    fields
}

/// Returns a path as the bytes of a lock file.
#[cfg(unix)]
pub(super) fn bytes_of(path: &Path) -> Option<Vec<u8>> {
    Some(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()).to_vec())
}

#[cfg(unix)]
pub(super) fn path_of(bytes: &[u8]) -> Option<&OsStr> {
    Some(std::os::unix::ffi::OsStrExt::from_bytes(bytes))
}

#[cfg(not(unix))]
pub(super) fn bytes_of(path: &Path) -> Option<Vec<u8>> {
    path.to_str().map(|text| text.as_bytes().to_vec())
}

#[cfg(not(unix))]
pub(super) fn path_of(bytes: &[u8]) -> Option<&OsStr> {
    std::str::from_utf8(bytes).ok().map(OsStr::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_reads_back_as_it_was_made() {
        let path = claim(Path::new("/d/x.lck"), "|", "h.example", 17, MAX_SALT);
        let text = bytes_of(&path).unwrap();
        assert_eq!(text, b"/d/x.lck|h.example|17|9223372036854775807");
        let name = ClaimName::parse(&text, "|").unwrap();
        assert_eq!((name.lockfile, name.hostname), (&b"/d/x.lck"[..], &b"h.example"[..]));
        assert_eq!((name.pid, name.salt), (17, MAX_SALT));
    }

    #[test]
    fn what_is_no_claim_is_not_taken_for_one() {
        let no: [&[u8]; 8] = [
            b"",
            b"hello",
            b"/d/x|h|17",
            b"/d/x|h|17|1|1",
            b"/d/x|h|seventeen|1",
            b"/d/x|h|17|-1",
            b"/d/x|h|4294967296|1",
            b"\xff|\xff|\xff|\xff",
        ];
        for text in no {
            assert_eq!(ClaimName::parse(text, "|"), None, "{text:?}");
        }
        assert!(ClaimName::parse(b"  /d/x|h|17|1\n", "|").is_some());
        assert!(ClaimName::parse(b"/d/x::h::17::1", "::").is_some());
    }

    #[test]
    fn a_claim_stands_beside_the_lock_whatever_its_text_says() {
        let beside = |text: &[u8]| ClaimName::beside(text, Path::new("/d/x.lck"));
        assert_eq!(beside(b"/elsewhere/x.lck|h|1|2"), Some("/d/x.lck|h|1|2".into()));
        assert_eq!(beside(b"x.lck|h|1|2"), Some("/d/x.lck|h|1|2".into()));
        assert_eq!(beside(b""), None);
    }

    #[test]
    fn the_longest_name_counts_every_part() {
        let made = challenge(&claim(Path::new("x"), "|", "host", u32::MAX, MAX_SALT), "|");
        assert_eq!(max_suffix_len("|", "host") + 1, made.as_os_str().len());
        assert!(is_challenge(&made, "|"));
        assert!(!is_challenge(Path::new("x|host|1|2"), "|"));
        assert!(!is_challenge(Path::new("xbreak"), "|"));
    }
}
