//! Cuts lines out of a byte stream that arrives in any chunks, and never buffers more than the cap.

use std::fmt;

/// The longest reply line that a client reads by default, except the one to `stats`: 1 MiB.
pub const MAX_REPLY_BYTES: usize = 1024 * 1024;

/// The error of a line over its cap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line longer than {cap} bytes")]
pub struct LineTooLong {
    /// The cap in bytes, without the newline.
    pub cap: usize,
}

/// Cuts lines out of chunks: call [`next`](Self::next) with each chunk until it returns `None`.
///
/// A line comes without its `\n` and without any trailing `\r` (which count towards the cap). After
/// [`LineTooLong`] the decoder keeps returning that error.
#[derive(Clone, Default)]
pub struct LineDecoder {
    /// The start of a line whose end has not come yet.
    partial: Vec<u8>,
    /// `partial` was returned; it is cleared when the next line begins.
    spent: bool,
    overflowed: bool,
}

impl LineDecoder {
    /// Creates a decoder at the start of a line.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes one line of at most `cap` bytes off the front of `input`.
    ///
    /// Returns `None` if `input` is used up before the line ends. A line that lies whole in `input` is
    /// not copied.
    ///
    /// # Errors
    /// [`LineTooLong`] once more than `cap` bytes came without a `\n`, and from then on always.
    pub fn next<'a, 'b: 'a>(
        &'a mut self,
        input: &mut &'b [u8],
        cap: usize,
    ) -> Option<Result<&'a [u8], LineTooLong>> {
        if self.overflowed {
            return Some(Err(LineTooLong { cap }));
        }
        if std::mem::take(&mut self.spent) {
            self.partial.clear();
        }
        let end = memchr::memchr(b'\n', input);
        let taken = end.unwrap_or(input.len());
        if self.partial.len() + taken > cap {
            self.overflowed = true;
            self.partial = Vec::new();
            return Some(Err(LineTooLong { cap }));
        }
        let (line, rest) = input.split_at(taken);
        let Some(_) = end else {
            *input = rest;
            self.partial.extend_from_slice(line);
            return None;
        };
        *input = &rest[1..];
        if self.partial.is_empty() {
            return Some(Ok(trim_cr(line)));
        }
        self.partial.extend_from_slice(line);
        self.spent = true;
        Some(Ok(trim_cr(&self.partial)))
    }

    /// As [`next`](Self::next), for a line that is to be kept: one that came in parts is not copied
    /// again.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub fn next_owned(&mut self, input: &mut &[u8], cap: usize) -> Option<Result<Vec<u8>, LineTooLong>> {
        let before = *input;
        let len = match self.next(input, cap)? {
            Ok(line) => line.len(),
            Err(fault) => return Some(Err(fault)),
        };
        if !std::mem::take(&mut self.spent) {
            return Some(Ok(before[..len].to_vec()));
        }
        let mut line = std::mem::take(&mut self.partial);
        line.truncate(len);
        Some(Ok(line))
    }

    /// Whether the stream stands between two lines, where an end of file cuts nothing.
    pub fn at_boundary(&self) -> bool {
        !self.overflowed && (self.spent || self.partial.is_empty())
    }
}

/// Shows where it stands, and none of the bytes: they may be a token's.
impl fmt::Debug for LineDecoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LineDecoder").field("at_boundary", &self.at_boundary()).finish_non_exhaustive()
    }
}

fn trim_cr(mut line: &[u8]) -> &[u8] {
    while let Some(shorter) = line.strip_suffix(b"\r") {
        line = shorter;
    }
    line
}
