//! The words that both ends of the wire share, each parsed once at the edge so that
//! everything behind the edge can rely on them. Knows of no connection, clock or runtime.

use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

mod printable;

pub(crate) use printable::Quoted;
pub use printable::printable;

/// The longest request line, in bytes, that a server reads (the new line not counted).
pub const MAX_LINE_BYTES: usize = 256;

/// The longest auth token, in bytes.
pub const MAX_AUTH_TOKEN_BYTES: usize = 64 * 1024;

/// The longest lease token, in bytes, that still fits into a request line next to a lease time.
pub const MAX_TOKEN_BYTES: usize = MAX_LINE_BYTES - 1 - 10;

/// A value that the protocol cannot carry: names the field, the fault and the limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} {fault}")]
pub struct Invalid {
    field: &'static str,
    fault: String,
}

impl Invalid {
    /// Says what is wrong with `field`; `fault` completes the sentence that the field's name opens.
    pub fn new(field: &'static str, fault: impl Into<String>) -> Self {
        Self { field, fault: fault.into() }
    }

    /// The name of the faulty field.
    pub fn field(&self) -> &'static str {
        self.field
    }
}

/// The name of a lock or semaphore: 1 to 256 bytes.
///
/// Clients send UTF-8 without white space ([`Key::parse`]); a server takes any bytes but
/// space, tab, CR and LF ([`Key::from_wire`]). The key of a lock file's lease is its path, and
/// bound by neither. Cloning is cheap.
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
    /// Checks a key as a client must before it sends it.
    ///
    /// # Errors
    /// When the key is empty, longer than 256 bytes, or holds white space (Unicode's too).
    pub fn parse(key: &str) -> Result<Self, Invalid> {
        if let Some(at) = key.find(char::is_whitespace) {
            return Err(Invalid::new("key", format!("has white space at byte {at}")));
        }
        Self::from_wire(key.as_bytes())
    }

    /// Checks a key as a server must when it reads one.
    ///
    /// # Errors
    /// When the key is empty, longer than 256 bytes, or holds a space, tab, CR or LF.
    pub fn from_wire(key: &[u8]) -> Result<Self, Invalid> {
        if key.is_empty() {
            return Err(Invalid::new("key", "is empty"));
        }
        if key.len() > MAX_LINE_BYTES {
            let fault = format!("is {} bytes long, the limit is {MAX_LINE_BYTES}", key.len());
            return Err(Invalid::new("key", fault));
        }
        let is_space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
        // Looks at all bytes, which goes faster than to stop at the first.
        if key.iter().fold(false, |found, byte| found | is_space(byte)) {
            let at = key.iter().position(is_space).unwrap_or_default();
            return Err(Invalid::new("key", format!("has white space at byte {at}")));
        }
        Ok(Self(key.into()))
    }

    /// The path of a lock file, which no wire carries: any bytes, of any length.
    #[cfg(feature = "file")]
    pub(crate) fn of_file(path: &std::path::Path) -> Self {
        Self(path.as_os_str().as_encoded_bytes().into())
    }

    /// The key as it stands on the wire.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The key as text; bytes that are not UTF-8 become replacement characters.
    pub fn to_text(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }
}

/// For people: what deceives is escaped, as [`printable`] does it.
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

/// The number that grows with every grant of a server: the first half of a [`Token`].
///
/// Store the highest fence seen beside the data and refuse writes that carry a lower one. Fences
/// are comparable for one key on one server.
///
/// ```
/// use dflockd_client::fence_from_token;
/// let old = fence_from_token("000000000000002a00112233445566aa").unwrap();
/// let new = fence_from_token("000000000000002b99887766554433bb").unwrap();
/// assert!(old < new);
/// assert_eq!(old.get(), 42);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence(u64);

impl Fence {
    /// Wraps a number read back from where it was stored.
    pub const fn new(value: u64) -> Self {
        Self(value)
    }

    /// The number itself, to store beside the data.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The fence in a lease token: its first 16 of 32 hex digits, read as a big-endian number.
///
/// `None` for a token of any other form.
///
/// Servers too old to fence (1.x) hand out 32 random hex digits, which look the same: read from those, the
/// number is noise and does not grow. Such a server answers `ping` with `error`, so
/// [`command::ping`](crate::command::ping) fails with [`Server`](crate::ErrorKind::Server).
/// [`Lease::fence`](crate::Lease::fence) knows, and is `None` there.
pub fn fence_from_token(token: &str) -> Option<Fence> {
    let hex = token.len() == 32 && token.bytes().all(|b| b.is_ascii_hexdigit());
    if !hex {
        return None;
    }
    u64::from_str_radix(&token[..16], 16).ok().map(Fence)
}

/// The proof of one grant, without which nobody can renew or release it.
///
/// Whoever has it can act as the holder, so `Debug` shows 8 digits; [`Token::expose`] gives the
/// whole text.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Token(TokenRepr);

#[derive(Clone, PartialEq, Eq, Hash)]
enum TokenRepr {
    /// 32 lower-case hex digits, kept as the two numbers that they spell.
    Minted { fence: u64, salt: u64 },
    /// Anything else that a server may hand out.
    Opaque(Arc<str>),
}

impl Token {
    /// Makes the token of a grant, as a server does.
    pub const fn mint(fence: Fence, salt: u64) -> Self {
        Self(TokenRepr::Minted { fence: fence.0, salt })
    }

    /// Reads a token from the wire.
    ///
    /// # Errors
    /// When it is empty, longer than 245 bytes (a request line could not hold it beside a lease
    /// time), or holds white space or control characters.
    pub fn parse(token: &str) -> Result<Self, Invalid> {
        if let Some(minted) = Self::minted(token.as_bytes()) {
            return Ok(minted);
        }
        if token.is_empty() {
            return Err(Invalid::new("token", "is empty"));
        }
        if token.len() > MAX_TOKEN_BYTES {
            let fault = format!("is {} bytes long, the limit is {MAX_TOKEN_BYTES}", token.len());
            return Err(Invalid::new("token", fault));
        }
        if token.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(Invalid::new("token", "has white space or control characters"));
        }
        Ok(Self(TokenRepr::Opaque(token.into())))
    }

    /// The text of a lock file, which no wire carries: of any length.
    #[cfg(feature = "file")]
    pub(crate) fn of_file(text: &str) -> Self {
        Self(TokenRepr::Opaque(text.into()))
    }

    /// A token of 32 lower-case hex digits, as fencing servers hand out, and nothing else.
    pub(crate) fn minted(token: &[u8]) -> Option<Self> {
        let (fence, salt) = token.split_first_chunk()?;
        Some(Self(TokenRepr::Minted { fence: number(fence)?, salt: number(salt.try_into().ok()?)? }))
    }

    /// Appends the whole token, as it stands on the wire.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match &self.0 {
            TokenRepr::Minted { fence, salt } => {
                for half in [fence, salt] {
                    out.extend((0..16).rev().map(|digit| DIGITS[(half >> (4 * digit)) as usize & 0xf]));
                }
            }
            TokenRepr::Opaque(text) => out.extend_from_slice(text.as_bytes()),
        }
    }

    /// The fence of the grant, as [`fence_from_token`] reads it: `None` for a token of any other form, and
    /// noise from a 1.x server, as is said there.
    pub fn fence(&self) -> Option<Fence> {
        match &self.0 {
            TokenRepr::Minted { fence, .. } => Some(Fence(*fence)),
            TokenRepr::Opaque(text) => fence_from_token(text),
        }
    }

    /// The whole token. Whoever reads it can release the lease: keep it out of logs.
    pub fn expose(&self) -> String {
        match &self.0 {
            TokenRepr::Minted { fence, salt } => format!("{fence:016x}{salt:016x}"),
            TokenRepr::Opaque(text) => text.to_string(),
        }
    }
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// What each byte is worth as a lower-case hex digit: 16 or more where it is none.
const HEX_VALUES: [u8; 256] = {
    let (mut worth, mut digit) = ([u8::MAX; 256], 0);
    while digit < DIGITS.len() {
        worth[DIGITS[digit] as usize] = digit as u8;
        digit += 1;
    }
    worth
};

/// The number that 16 lower-case hex digits spell.
fn number(digits: &[u8; 16]) -> Option<u64> {
    let (mut number, mut seen) = (0, 0);
    for digit in digits {
        let worth = HEX_VALUES[usize::from(*digit)];
        seen |= worth;
        number = number << 4 | u64::from(worth & 0xf);
    }
    (seen < 16).then_some(number)
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.expose();
        let shown: String =
            if text.chars().count() > 8 { text.chars().take(8).collect() } else { String::new() };
        write!(f, "Token({shown}…)")
    }
}

/// The largest time that the protocol carries, in seconds (about 292 years).
pub const MAX_SECONDS: u64 = 9_223_372_036;

/// Whole seconds, 0 to 9,223,372,036: the only times that the wire knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seconds(u64);

impl Seconds {
    /// No time at all: a *try*.
    pub const ZERO: Self = Self(0);
    /// The most that the protocol carries.
    pub const MAX: Self = Self(MAX_SECONDS);

    /// Wraps a number of seconds; `None` past 9,223,372,036.
    pub const fn new(seconds: u64) -> Option<Self> {
        if seconds <= MAX_SECONDS { Some(Self(seconds)) } else { None }
    }

    /// Rounds a duration **up** to whole seconds.
    ///
    /// # Errors
    /// When that is more than 9,223,372,036 s; `field` names the value in the error.
    pub fn ceil(field: &'static str, duration: Duration) -> Result<Self, Invalid> {
        let seconds = duration.as_secs().saturating_add(u64::from(duration.subsec_nanos() > 0));
        Self::new(seconds)
            .ok_or_else(|| Invalid::new(field, format!("is {seconds} s, the limit is {MAX_SECONDS} s")))
    }

    /// The number of seconds.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The same as a duration.
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

    /// Checks a semaphore's limit.
    ///
    /// # Errors
    /// When it is 0 or more than 2^63 - 1.
    pub fn new(limit: u64) -> Result<Self, Invalid> {
        match NonZeroU64::new(limit) {
            None => Err(Invalid::new("limit", "is 0, the least is 1")),
            Some(_) if limit > i64::MAX as u64 => {
                Err(Invalid::new("limit", format!("is {limit}, the most is {}", i64::MAX)))
            }
            Some(limit) => Ok(Self(limit)),
        }
    }

    /// The number of holders.
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
        assert_eq!(fault("a b"), "key has white space at byte 1");
        assert_eq!(fault("a\u{a0}b"), "key has white space at byte 1");
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
    fn a_minted_token_spells_itself_back_and_an_opaque_one_too() {
        for text in ["000000000000002a00112233445566aa", "ABCDEF", "0000000000000ABC00112233445566aa"] {
            let token = Token::parse(text).unwrap();
            let mut encoded = Vec::new();
            token.encode(&mut encoded);
            assert_eq!((token.expose().as_str(), encoded.as_slice()), (text, text.as_bytes()));
        }
        assert_eq!(Token::mint(Fence::new(42), 7).fence(), Some(Fence::new(42)));
        assert_eq!(Token::parse("opaque").unwrap().fence(), None);
        assert_eq!(
            Token::parse("0000000000000ABC00112233445566aa").unwrap().fence(),
            Some(Fence::new(0xabc))
        );
    }

    #[test]
    fn a_token_never_shows_more_than_eight_digits() {
        let token = Token::parse("0123456789abcdef0123456789abcdef").unwrap();
        assert_eq!(format!("{token:?}"), "Token(01234567…)");
        assert_eq!(format!("{:?}", Token::parse("short").unwrap()), "Token(…)");
    }

    #[test]
    fn a_token_that_no_request_line_can_hold_is_refused() {
        assert!(Token::parse(&"t".repeat(245)).is_ok());
        for bad in ["", "a b", "a\u{0}b", &"t".repeat(246)] {
            assert!(Token::parse(bad).is_err(), "{bad:?}");
        }
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
