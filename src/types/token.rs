//! The proof of a grant, and the fence in it.

use std::fmt;
use std::sync::Arc;

use crate::types::{Invalid, MAX_TOKEN_BYTES};

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
    /// Wraps a number that was stored.
    pub const fn new(value: u64) -> Self {
        Self(value)
    }

    /// Returns the number, to store beside the data.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Returns the fence in a lease token: its first 16 of 32 hex digits, read as a big-endian number.
///
/// `None` for a token of any other form.
///
/// Servers too old to fence (1.x) send 32 random hex digits, which look the same: read from those, the
/// number is noise and does not grow. Such a server replies `error` to `ping`, so
/// [`command::ping`](crate::command::ping) fails with [`Server`](crate::ErrorKind::Server).
/// [`Lease::fence`](crate::Lease::fence) knows, and is `None` there.
pub fn fence_from_token(token: &str) -> Option<Fence> {
    let hex = token.len() == 32 && token.bytes().all(|b| b.is_ascii_hexdigit());
    if !hex {
        return None;
    }
    u64::from_str_radix(&token[..16], 16).ok().map(Fence)
}

/// The proof of one grant, which a renewal or a release of it needs.
///
/// A process that has it can act as the holder. So `Debug` shows 8 digits; [`Token::expose`] returns the
/// whole text.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Token(TokenRepr);

#[derive(Clone, PartialEq, Eq, Hash)]
enum TokenRepr {
    /// 32 lower-case hex digits, kept as the two numbers that they spell.
    Minted { fence: u64, salt: u64 },
    /// Any other text that a server may send.
    Opaque(Arc<str>),
}

impl Token {
    /// Creates the token of a grant, as a server does.
    pub const fn mint(fence: Fence, salt: u64) -> Self {
        Self(TokenRepr::Minted { fence: fence.0, salt })
    }

    /// Parses a token from the wire.
    ///
    /// # Errors
    /// If it is empty, longer than 245 bytes (a request line could not hold it beside a lease time), or
    /// contains whitespace or control characters.
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
            return Err(Invalid::new("token", "has whitespace or control characters"));
        }
        Ok(Self(TokenRepr::Opaque(token.into())))
    }

    /// Wraps the text of a lock file, which is never sent: of any length.
    #[cfg(feature = "file")]
    pub(crate) fn of_file(text: &str) -> Self {
        Self(TokenRepr::Opaque(text.into()))
    }

    /// Parses a token of 32 lower-case hex digits, as fencing servers send, and no other.
    pub(crate) fn minted(token: &[u8]) -> Option<Self> {
        let (fence, salt) = token.split_first_chunk()?;
        Some(Self(TokenRepr::Minted { fence: number(fence)?, salt: number(salt.try_into().ok()?)? }))
    }

    /// Appends the whole token, as it is sent.
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

    /// Returns the fence of the grant, as [`fence_from_token`] reads it: `None` for a token of any other
    /// form, and noise from a 1.x server, as described there.
    pub fn fence(&self) -> Option<Fence> {
        match &self.0 {
            TokenRepr::Minted { fence, .. } => Some(Fence(*fence)),
            TokenRepr::Opaque(text) => fence_from_token(text),
        }
    }

    /// Returns the whole token. A reader of it can release the lease: keep it out of logs.
    pub fn expose(&self) -> String {
        match &self.0 {
            TokenRepr::Minted { fence, salt } => format!("{fence:016x}{salt:016x}"),
            TokenRepr::Opaque(text) => text.to_string(),
        }
    }
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// The value of each byte as a lower-case hex digit; 16 or more if it is none.
const HEX_VALUES: [u8; 256] = {
    let (mut worth, mut digit) = ([u8::MAX; 256], 0);
    while digit < DIGITS.len() {
        worth[DIGITS[digit] as usize] = digit as u8;
        digit += 1;
    }
    worth
};

/// Returns the number that 16 lower-case hex digits spell.
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
