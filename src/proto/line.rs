//! Cuts lines out of a byte stream that arrives in any chunks, and never holds more than its cap.

/// The longest reply line that a client reads by default: 1 MiB.
pub const MAX_REPLY_BYTES: usize = 1024 * 1024;

/// How much is kept of a line that grew past its cap.
const HEAD_BYTES: usize = 16;

/// A line grew past its cap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line longer than {cap} bytes")]
pub struct LineTooLong {
    /// The cap in bytes, new line not counted.
    pub cap: usize,
}

/// Cuts lines out of chunks: call [`next`](Self::next) with each chunk until it answers `None`.
///
/// A line comes without its `\n` and without any trailing `\r` (which count towards the cap).
/// After [`LineTooLong`] the decoder keeps answering that, until [`resync`](Self::resync).
#[derive(Clone, Debug, Default)]
pub struct LineDecoder {
    /// The start of a line whose end has not come yet.
    partial: Vec<u8>,
    /// `partial` was handed out; it is cleared when the next line begins.
    spent: bool,
    overflowed: bool,
    /// How much of the rest of an overlong line may still be read away, where that is done.
    skipping: Option<usize>,
}

impl LineDecoder {
    /// A decoder at the start of a line.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes one line of at most `cap` bytes off the front of `input`.
    ///
    /// `None` when `input` is used up before a line ends. A line that lies whole in `input` is not
    /// copied.
    ///
    /// # Errors
    /// [`LineTooLong`] as soon as more than `cap` bytes came without a `\n`; from then on always,
    /// until [`resync`](Self::resync).
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
        if let Some(budget) = self.skipping {
            let rest = memchr::memchr(b'\n', input);
            let skipped = rest.map_or(input.len(), |end| end + 1);
            *input = &input[skipped..];
            self.overflowed = skipped > budget;
            self.skipping = rest.is_none().then(|| budget.saturating_sub(skipped));
            if self.overflowed {
                return Some(Err(LineTooLong { cap }));
            }
        }
        let end = memchr::memchr(b'\n', input);
        let taken = end.unwrap_or(input.len());
        if self.partial.len() + taken > cap {
            self.overflowed = true;
            let head = HEAD_BYTES.saturating_sub(self.partial.len()).min(taken);
            self.partial.extend_from_slice(&input[..head]);
            self.partial.truncate(HEAD_BYTES);
            self.partial.shrink_to_fit();
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

    /// After [`LineTooLong`]: the first 16 bytes of that line.
    pub fn overlong_head(&self) -> &[u8] {
        if self.overflowed { &self.partial } else { &[] }
    }

    /// After [`LineTooLong`]: reads the rest of that line away, if it is not longer than `budget`
    /// bytes, and goes on behind its end.
    pub fn resync(&mut self, budget: usize) {
        self.skipping = self.overflowed.then_some(budget);
        self.overflowed = false;
        self.spent = true;
    }

    /// Whether the stream stands between two lines, where an end of file cuts nothing.
    pub fn at_boundary(&self) -> bool {
        !self.overflowed && self.skipping.is_none() && (self.spent || self.partial.is_empty())
    }
}

fn trim_cr(mut line: &[u8]) -> &[u8] {
    while let Some(shorter) = line.strip_suffix(b"\r") {
        line = shorter;
    }
    line
}
