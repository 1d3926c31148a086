//! The fence counter: numbers that only ever grow, also over restarts where a state file is set,
//! and the tokens minted from them. Knows of no lock and no connection; the wall clock is the
//! caller's.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::types::{Fence, Token};

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
    /// Whether the last reservation failed: a failure is logged once, not at every grant.
    failing: bool,
}

impl FenceCounter {
    /// Counts from the wall clock (`now_nanos` since 1970) and remembers nothing.
    pub fn in_memory(now_nanos: u64) -> Self {
        Self { next: now_nanos, ceiling: u64::MAX, state: None, failing: false }
    }

    /// Counts from the wall clock or from where the state file at `path` says that an earlier run
    /// may have come to, whichever is later. A file that is missing is made.
    ///
    /// Beside it, `<path>.lock` keeps a second server off and `<path>.tmp` holds what is being
    /// written.
    ///
    /// # Errors
    /// When another process has the file, when it is not 8 bytes long, or when it cannot be read
    /// or replaced; the text names the path.
    pub fn open(path: impl AsRef<Path>, now_nanos: u64) -> io::Result<Self> {
        Self::open_reserving(path.as_ref(), now_nanos, RESERVATION)
    }

    fn open_reserving(path: &Path, now_nanos: u64, reservation: u64) -> io::Result<Self> {
        let (state, stored) = StateFile::open(path, reservation)?;
        // One past it, for the sake of a writer that counted its ceiling in.
        let next = stored.map_or(now_nanos, |ceiling| now_nanos.max(ceiling.saturating_add(1)));
        let mut counter = Self { next, ceiling: next, state: Some(state), failing: false };
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
        let Some(state) = &self.state else { return Err(io::Error::other("all fences are used up")) };
        let ceiling = self.next.saturating_add(state.reservation);
        if ceiling == self.next {
            return Err(state.fault("has used up all fences", io::ErrorKind::Other.into()));
        }
        state.write(ceiling)?;
        self.ceiling = ceiling;
        Ok(())
    }
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

/// The file that holds the ceiling, as 8 bytes, big-endian.
#[derive(Debug)]
struct StateFile {
    path: PathBuf,
    reservation: u64,
    /// Held, not read: closing it lets the next server in.
    _lock: File,
}

impl StateFile {
    fn open(path: &Path, reservation: u64) -> io::Result<(Self, Option<u64>)> {
        let fault = |what: &str, error: io::Error| fault(path, what, error);
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(beside(path, ".lock"));
        let lock = lock.map_err(|error| fault("cannot be locked", error))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => {
                fault("is in use by another server", io::ErrorKind::ResourceBusy.into())
            }
            TryLockError::Error(error) => fault("cannot be locked", error),
        })?;
        let state = Self { path: path.to_owned(), reservation, _lock: lock };
        let stored = match File::open(path) {
            Ok(file) => Some(read_ceiling(file).map_err(|error| fault("cannot be used", error))?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(fault("cannot be opened", error)),
        };
        Ok((state, stored))
    }

    /// Replaces the file whole: a crash leaves the old ceiling or the new one.
    fn write(&self, ceiling: u64) -> io::Result<()> {
        self.replace(ceiling).map_err(|error| self.fault("cannot be written", error))
    }

    fn replace(&self, ceiling: u64) -> io::Result<()> {
        let temporary = beside(&self.path, ".tmp");
        let mut file = File::create(&temporary)?;
        file.write_all(&ceiling.to_be_bytes())?;
        file.sync_all()?;
        drop(file);
        fs::rename(&temporary, &self.path)?;
        sync_directory(&self.path)
    }

    fn fault(&self, what: &str, error: io::Error) -> io::Error {
        fault(&self.path, what, error)
    }
}

fn read_ceiling(file: File) -> io::Result<u64> {
    let mut bytes = Vec::new();
    // One byte more than it may have shows that it is too long, whatever its size.
    file.take(9).read_to_end(&mut bytes)?;
    let ceiling = <[u8; 8]>::try_from(bytes.as_slice())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not 8 bytes long"))?;
    Ok(u64::from_be_bytes(ceiling))
}

/// Makes the rename last: a directory is written back apart from its files.
#[cfg(unix)]
fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

/// Elsewhere a directory cannot be opened like a file, and a rename is written through.
#[cfg(not(unix))]
fn sync_directory(_path: &Path) -> io::Result<()> {
    Ok(())
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn fault(path: &Path, what: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("fence state file {} {what}: {error}", path.display()))
}

#[cfg(test)]
mod tests;
