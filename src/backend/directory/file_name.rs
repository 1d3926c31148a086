//! The name of a key's lock file. Knows of no file.

use std::fmt::Write;

use crate::types::Key;

/// What the name of each lock file ends in.
pub(super) const SUFFIX: &str = ".lock";

/// Returns `true` for what stands in a name as it is: RFC 3986 calls it unreserved.
pub(super) fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// The key with each byte but unreserved ones, and a dot at its begin, as `%` and two hexadecimal digits in
/// capitals; then the suffix.
pub(super) fn file_name(key: &Key) -> String {
    let mut name = String::with_capacity(key.as_bytes().len() + SUFFIX.len());
    for (at, &byte) in key.as_bytes().iter().enumerate() {
        if is_unreserved(byte) && (byte, at) != (b'.', 0) {
            name.push(char::from(byte));
        } else {
            let _ = write!(name, "%{byte:02X}");
        }
    }
    name + SUFFIX
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn named(key: &str) -> String {
        file_name(&Key::parse(key).unwrap())
    }

    /// What is encoded, read back.
    fn key_of(name: &str) -> Vec<u8> {
        let mut encoded = name.strip_suffix(SUFFIX).unwrap().bytes();
        let mut key = Vec::new();
        while let Some(byte) = encoded.next() {
            key.push(if byte == b'%' {
                let digits = [encoded.next().unwrap(), encoded.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
            } else {
                byte
            });
        }
        key
    }

    #[test]
    fn names_are_what_python_quotes() {
        let names = ["a", "a.b_c-d~e", "job:17", "a/b", "..", ".x", "50%", "é", "a|b", "A"].map(named);
        let expected = [
            "a.lock",
            "a.b_c-d~e.lock",
            "job%3A17.lock",
            "a%2Fb.lock",
            "%2E..lock",
            "%2Ex.lock",
            "50%25.lock",
            "%C3%A9.lock",
            "a%7Cb.lock",
            "A.lock",
        ];
        assert_eq!(names, expected);
    }

    proptest! {
        #[test]
        fn a_name_reads_back_as_its_key(key in "\\PC{1,60}") {
            let Ok(key) = Key::parse(&key) else { return Ok(()) };
            let name = file_name(&key);
            prop_assert_eq!(key_of(&name), key.as_bytes());
            prop_assert!(name.bytes().all(|byte| is_unreserved(byte) || byte == b'%'), "{}", name);
            prop_assert!(!name.starts_with('.'));
        }
    }
}
