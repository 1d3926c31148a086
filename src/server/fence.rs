//! The fence counter: numbers that only ever grow, also over restarts where a state file is set,
//! and the tokens minted from them. Knows of no lock and no connection; the wall clock is the
//! caller's.

mod file;

use std::io;
use std::path::Path;

use crate::types::{Fence, Token};
use file::StateFile;

/// How many fences one write of the state file reserves.
const RESERVATION: u64 = 1_000_000;

/// Hands out fences, each greater than all before it.
///
/// [`in_memory`](Self::in_memory) trusts the wall clock to have moved on since the last run;
/// [`open`](Self::open) keeps a ceiling on disk that no earlier run has reached, so a crash or a
/// clock set back does no harm.
#[derive(Debug)]
pub struct FenceCounter {
    next: u64,
    /// Fences below this may be used.
    ceiling: u64,
    state: Option<StateFile>,
    /// How many fences one write of the state file reserves.
    reservation: u64,
    /// Whether the last reservation failed: a failure is logged once, not at every grant.
    failing: bool,
}

impl FenceCounter {
    /// Counts from the wall clock (`now_nanos` since 1970) and remembers nothing.
    pub fn in_memory(now_nanos: u64) -> Self {
        Self { next: now_nanos, ceiling: u64::MAX, state: None, reservation: 0, failing: false }
    }

    /// Counts from the wall clock or from where the state file at `path` says that an earlier run
    /// may have come to, whichever is later. A file that is missing is made.
    ///
    /// A symbolic link is followed. The file stays open and locked, and is written in place, so that
    /// it is one counter's alone by whatever name another asks for it. If the path leads to another
    /// file when more fences are reserved, that one is taken up with what it says, as at the start.
    ///
    /// # Errors
    /// When another process has the file, when it is not 8 bytes long, when it is no regular file,
    /// or when it cannot be read or written; the text names the path. Never waits for another
    /// process.
    pub fn open(path: impl AsRef<Path>, now_nanos: u64) -> io::Result<Self> {
        Self::open_reserving(path.as_ref(), now_nanos, RESERVATION)
    }

    fn open_reserving(path: &Path, now_nanos: u64, reservation: u64) -> io::Result<Self> {
        let (state, stored) = StateFile::open(path)?;
        let next = above_ceiling(now_nanos, stored);
        let mut counter = Self { next, ceiling: next, state: Some(state), reservation, failing: false };
        // Now rather than at the first grant: a path that cannot be written stops the start.
        counter.reserve()?;
        Ok(counter)
    }

    /// The next fence; `None` when no more can be reserved (it tries again at the next call) or
    /// when all 2^64 - 1 are used up.
    #[allow(clippy::should_implement_trait, reason = "a counter that may fail now and go on later")]
    pub fn next(&mut self) -> Option<Fence> {
        if self.next >= self.ceiling
            && let Err(error) = self.reserve()
        {
            if !self.failing {
                tracing::error!(%error, "no fence to be had, grants stop until there is one");
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

/// Where to go on behind a ceiling that was found in a file. One past it, for the sake of a writer
/// that counted its ceiling in.
fn above_ceiling(next: u64, stored: Option<u64>) -> u64 {
    stored.map_or(next, |ceiling| next.max(ceiling.saturating_add(1)))
}

/// Mints a token for each call: the counter's next fence and 64 cryptographically random bits.
///
/// `None` when there is no fence to be had, or no randomness.
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

/// Random numbers, drawn from the system many at a time: a call for each would be a good part of
/// what a grant costs. Each is handed out once.
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
