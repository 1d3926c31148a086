//! The fence counter: numbers that only grow, with a state file even across restarts, and the tokens minted
//! from them. Callers pass the wall clock in.

mod file;

use std::io;
use std::path::Path;

use crate::types::{Fence, Token};
use file::StateFile;

/// How many fences one write of the state file reserves.
const RESERVATION: u64 = 1_000_000;

/// Returns fences, each greater than all before it.
///
/// [`in_memory`](Self::in_memory) relies on the wall clock to have advanced since the last run.
/// [`open`](Self::open) keeps a ceiling on disk that no earlier run has reached, so a crash or a clock set
/// back does no harm.
#[derive(Debug)]
pub struct FenceCounter {
    next: u64,
    /// Fences below this may be used.
    ceiling: u64,
    state: Option<StateFile>,
    /// How many fences one write of the state file reserves.
    reservation: u64,
    /// `true` if the last reservation failed: a failure is logged once, not at each grant.
    failing: bool,
}

impl FenceCounter {
    /// Creates a counter that starts at the wall clock (nanoseconds since 1970) and is not stored.
    pub fn in_memory(now_nanos: u64) -> Self {
        Self { next: now_nanos, ceiling: u64::MAX, state: None, reservation: 0, failing: false }
    }

    /// Creates a counter that starts at the wall clock (nanoseconds since 1970) or above the ceiling in the
    /// state file at `path`, whichever is higher. A missing file is created.
    ///
    /// A symbolic link is followed. The file stays open and locked, and is written in place, so that no
    /// other counter can use it, by any of its names. If the path leads to another file when more fences
    /// are reserved, the counter continues with that file, as at the start.
    ///
    /// # Errors
    /// If another process uses the file, or if it is not 8 bytes long, is not a regular file, or cannot be
    /// read or written. The text names the path. Never waits for another process.
    pub fn open(path: impl AsRef<Path>, now_nanos: u64) -> io::Result<Self> {
        Self::open_reserving(path.as_ref(), now_nanos, RESERVATION)
    }

    fn open_reserving(path: &Path, now_nanos: u64, reservation: u64) -> io::Result<Self> {
        let (state, stored) = StateFile::open(path)?;
        let next = above_ceiling(now_nanos, stored);
        let mut counter = Self { next, ceiling: next, state: Some(state), reservation, failing: false };
        // Now, not at the first grant: if the path cannot be written, the server must not start.
        counter.reserve()?;
        Ok(counter)
    }

    /// Returns the next fence; `None` if no more can be reserved, which the next call tries again, or if
    /// all 2^64 - 1 are used up.
    #[allow(clippy::should_implement_trait, reason = "a counter that may fail now and continue later")]
    pub fn next(&mut self) -> Option<Fence> {
        if self.next >= self.ceiling
            && let Err(error) = self.reserve()
        {
            if !self.failing {
                tracing::error!(%error, "no fence could be reserved, grants stop until one can");
            }
            self.failing = true;
            return None;
        }
        self.failing = false;
        let fence = self.next;
        self.next += 1;
        Some(Fence::new(fence))
    }

    fn reserve(&mut self) -> io::Result<()> {
        let Some(state) = &mut self.state else { return Err(io::Error::other("all fences are used up")) };
        if !state.is_in_place() {
            let (reopened, stored) = StateFile::open(state.path())?;
            *state = reopened;
            tracing::warn!(path = %state.path().display(), "the fence state file was removed or replaced while in use");
            self.next = above_ceiling(self.next, stored);
        }
        let ceiling = self.next.saturating_add(self.reservation);
        if ceiling == self.next {
            return Err(state.fault("has used up all fences", io::ErrorKind::Other.into()));
        }
        state.write(ceiling)?;
        self.ceiling = ceiling;
        Ok(())
    }
}

/// Returns the fence to continue with after a stored ceiling. Skips the ceiling itself, in case a writer
/// used it.
fn above_ceiling(next: u64, stored: Option<u64>) -> u64 {
    stored.map_or(next, |ceiling| next.max(ceiling.saturating_add(1)))
}

/// Returns a function that mints tokens, each of the counter's next fence and 64 cryptographically random
/// bits.
///
/// The function returns `None` if it has no fence or no randomness.
pub fn token_mint(mut fences: FenceCounter) -> impl FnMut() -> Option<Token> + Send + 'static {
    let mut salts = Salts { drawn: [[0; 8]; 64], left: 0 };
    let mut failing = false;
    move || {
        let salt = salts.next();
        if let Err(error) = &salt
            && !failing
        {
            tracing::error!(%error, "no randomness for a token, grants stop until there is some");
        }
        failing = salt.is_err();
        let salt = salt.ok()?;
        Some(Token::mint(fences.next()?, salt))
    }
}

/// Random numbers, each returned once. Many are drawn from the system at a time: a system call for each
/// would be a large part of the cost of a grant.
struct Salts {
    drawn: [[u8; 8]; 64],
    left: usize,
}

impl Salts {
    fn next(&mut self) -> Result<u64, getrandom::Error> {
        if self.left == 0 {
            getrandom::fill(self.drawn.as_flattened_mut())?;
            self.left = self.drawn.len();
        }
        self.left -= 1;
        Ok(u64::from_ne_bytes(self.drawn[self.left]))
    }
}

#[cfg(test)]
mod tests;
