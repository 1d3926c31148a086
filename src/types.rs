//! The values that both ends of the wire share. Each is parsed once at the edge, so that all code behind
//! the edge can rely on it.

use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

mod printable;
mod token;

pub(crate) use printable::Quoted;
pub use printable::printable;
pub use token::{Fence, Token, fence_from_token};

/// The longest request line, in bytes, that a server reads (without the newline).
pub const MAX_LINE_BYTES: usize = 256;

/// The longest auth token, in bytes.
pub const MAX_AUTH_TOKEN_BYTES: usize = 64 * 1024;

/// The longest lease token, in bytes, that still fits into a request line next to a lease time.
pub const MAX_TOKEN_BYTES: usize = MAX_LINE_BYTES - 1 - 10;

/// A value that the protocol cannot carry. It names the field, the fault and the limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} {fault}")]
pub struct Invalid {
    field: &'static str,
    fault: String,
}

impl Invalid {
    /// Creates the error of `field`; `fault` completes the sentence that the field's name opens.
    pub fn new(field: &'static str, fault: impl Into<String>) -> Self {
        Self { field, fault: fault.into() }
    }

    /// Returns the name of the faulty field.
    pub fn field(&self) -> &'static str {
        self.field
    }
}

/// The name of a lock or semaphore: 1 to 256 bytes.
///
/// Clients send UTF-8 without whitespace ([`Key::parse`]); a server accepts any bytes but space, tab, CR
/// and LF ([`Key::from_wire`]). The key of a lock file's lease is its path, to which neither rule
/// applies. Cloning is cheap.
///
/// ```
/// use dflockd_client::Key;
/// assert_eq!(Key::parse("row:42")?.to_string(), "row:42");
/// assert!(Key::parse("two words").is_err());
/// # Ok::<(), dflockd_client::Invalid>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(Arc<[u8]>);

impl Key {
    /// Parses a key by the rules for clients.
    ///
    /// # Errors
    /// If the key is empty, longer than 256 bytes, or contains whitespace (Unicode's too).
    pub fn parse(key: &str) -> Result<Self, Invalid> {
        if let Some(at) = key.find(char::is_whitespace) {
            return Err(Invalid::new("key", format!("has whitespace at byte {at}")));
        }
        Self::from_wire(key.as_bytes())
    }

    /// Parses a key by the rules for servers.
    ///
    /// # Errors
    /// If the key is empty, longer than 256 bytes, or contains a space, tab, CR or LF.
    pub fn from_wire(key: &[u8]) -> Result<Self, Invalid> {
        if key.is_empty() {
            return Err(Invalid::new("key", "is empty"));
        }
        if key.len() > MAX_LINE_BYTES {
            let fault = format!("is {} bytes long, the limit is {MAX_LINE_BYTES}", key.len());
            return Err(Invalid::new("key", fault));
        }
        let is_space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
        // Checking all bytes is faster than stopping at the first.
        if key.iter().fold(false, |found, byte| found | is_space(byte)) {
            let at = key.iter().position(is_space).unwrap_or_default();
            return Err(Invalid::new("key", format!("has whitespace at byte {at}")));
        }
        Ok(Self(key.into()))
    }

    /// Wraps the path of a lock file, which is never sent: any bytes, of any length.
    #[cfg(feature = "file")]
    pub(crate) fn of_file(path: &std::path::Path) -> Self {
        Self(path.as_os_str().as_encoded_bytes().into())
    }

    /// Returns the key as it is sent.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the key as text; bytes that are not UTF-8 become replacement characters.
    pub fn to_text(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }
}

/// Shows the key to people: deceptive characters are escaped, as by [`printable`].
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable(&self.to_text()))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", Quoted(&self.to_text()))
    }
}

/// The largest time that the protocol carries, in seconds (about 292 years).
pub const MAX_SECONDS: u64 = 9_223_372_036;

/// Whole seconds, 0 to 9,223,372,036: the only times that the wire knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seconds(u64);

impl Seconds {
    /// No time: a *try*.
    pub const ZERO: Self = Self(0);
    /// The longest time that the protocol carries.
    pub const MAX: Self = Self(MAX_SECONDS);

    /// Wraps a number of seconds; returns `None` past 9,223,372,036.
    pub const fn new(seconds: u64) -> Option<Self> {
        if seconds <= MAX_SECONDS { Some(Self(seconds)) } else { None }
    }

    /// Rounds a duration **up** to whole seconds.
    ///
    /// # Errors
    /// If that is more than 9,223,372,036 s; `field` names the value in the error.
    pub fn ceil(field: &'static str, duration: Duration) -> Result<Self, Invalid> {
        let seconds = duration.as_secs().saturating_add(u64::from(duration.subsec_nanos() > 0));
        Self::new(seconds)
            .ok_or_else(|| Invalid::new(field, format!("is {seconds} s, the limit is {MAX_SECONDS} s")))
    }

    /// Returns the number of seconds.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Returns the same as a duration.
    pub const fn duration(self) -> Duration {
        Duration::from_secs(self.0)
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How many holders a key may have at once: 1 for a lock, 1 to 2^63 - 1 for a semaphore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Limit(NonZeroU64);

impl Limit {
    /// The limit of a lock.
    pub const ONE: Self = Self(NonZeroU64::MIN);

    /// Validates a semaphore's limit.
    ///
    /// # Errors
    /// If it is 0 or more than 2^63 - 1.
    pub fn new(limit: u64) -> Result<Self, Invalid> {
        match NonZeroU64::new(limit) {
            None => Err(Invalid::new("limit", "is 0, the least is 1")),
            Some(_) if limit > i64::MAX as u64 => {
                Err(Invalid::new("limit", format!("is {limit}, the most is {}", i64::MAX)))
            }
            Some(limit) => Ok(Self(limit)),
        }
    }

    /// Returns the number of holders.
    pub const fn get(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_names_its_fault_and_the_limit() {
        let fault = |key: &str| Key::parse(key).unwrap_err().to_string();
        assert_eq!(fault(""), "key is empty");
        assert_eq!(fault("a b"), "key has whitespace at byte 1");
        assert_eq!(fault("a\u{a0}b"), "key has whitespace at byte 1");
        assert_eq!(fault(&"x".repeat(257)), "key is 257 bytes long, the limit is 256");
        assert!(Key::parse(&"x".repeat(256)).is_ok());
    }

    #[test]
    fn a_server_takes_keys_that_a_client_would_not_send() {
        assert!(Key::from_wire("a\u{a0}b\x0b".as_bytes()).is_ok());
        assert!(Key::from_wire(b"\xff\xfe").is_ok());
        assert!(Key::from_wire(b"a\tb").is_err());
    }

    #[test]
    fn durations_go_up_to_whole_seconds() {
        let ceil = |d| Seconds::ceil("lease_ttl", d).map(Seconds::get);
        assert_eq!(ceil(Duration::ZERO), Ok(0));
        assert_eq!(ceil(Duration::from_nanos(1)), Ok(1));
        assert_eq!(ceil(Duration::from_millis(1500)), Ok(2));
        assert_eq!(ceil(Duration::from_secs(MAX_SECONDS)), Ok(MAX_SECONDS));
        assert_eq!(
            ceil(Duration::from_secs(MAX_SECONDS) + Duration::from_nanos(1)).unwrap_err().to_string(),
            "lease_ttl is 9223372037 s, the limit is 9223372036 s"
        );
        assert!(ceil(Duration::MAX).is_err());
    }
}
