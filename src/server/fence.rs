//! The fence counter and its state file: numbers that never repeat and never go back, over crashes
//! and clock steps too where a file is set. Knows of no lock and no runtime.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::types::{Fence, Token};

/// How many fences are reserved ahead at a time.
const RESERVE: u64 = 1_000_000;

/// Hands out fences, each above all before it.
///
/// With a state file, the file always holds a ceiling above every fence handed out: it is written,
/// with fsync, before the first fence under it is used, and the next start begins at it.
#[derive(Debug)]
pub struct FenceCounter {
    next: u64,
    ceiling: u64,
    path: Option<PathBuf>,
}

impl FenceCounter {
    /// Starts from the wall clock (nanoseconds since 1970): it grows over restarts as long as the
    /// clock does.
    pub fn in_memory(now_nanos: u64) -> Self {
        Self { next: now_nanos, ceiling: u64::MAX, path: None }
    }

    /// Starts from the wall clock or the file's ceiling, whichever is higher.
    ///
    /// # Errors
    /// When the file cannot be read or written, or does not hold exactly 8 bytes.
    pub fn open(path: impl Into<PathBuf>, now_nanos: u64) -> io::Result<Self> {
        let path = path.into();
        let stored = match fs::read(&path) {
            Ok(bytes) => stored_ceiling(&bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        let start = stored.max(now_nanos);
        let mut counter = Self { next: start, ceiling: start, path: Some(path) };
        counter.reserve()?;
        Ok(counter)
    }

    /// The next fence; `None`, with the reason in the log, while no more can be reserved.
    pub fn next_fence(&mut self) -> Option<Fence> {
        if self.next >= self.ceiling
            && let Err(error) = self.reserve()
        {
            tracing::error!(%error, path = ?self.path, "no fences could be reserved: nothing is granted");
            return None;
        }
        let fence = self.next;
        self.next += 1;
        Some(Fence::new(fence))
    }

    /// The next fence with random salt: a token that nobody can guess.
    pub fn mint(&mut self) -> Option<Token> {
        let salt = getrandom::u64()
            .inspect_err(|error| tracing::error!(%error, "no randomness: nothing is granted"));
        Some(Token::mint(self.next_fence()?, salt.ok()?))
    }

    fn reserve(&mut self) -> io::Result<()> {
        let exhausted = || io::Error::other("the fence counter has reached its end");
        let Some(path) = &self.path else { return Err(exhausted()) };
        let ceiling = self.next.checked_add(RESERVE).ok_or_else(exhausted)?;
        write_durably(path, &ceiling.to_be_bytes())?;
        self.ceiling = ceiling;
        Ok(())
    }
}

fn stored_ceiling(bytes: &[u8]) -> io::Result<u64> {
    let wrong = |_| {
        let fault = format!("a fence state file holds 8 bytes, this one {}", bytes.len());
        io::Error::new(io::ErrorKind::InvalidData, fault)
    };
    bytes.try_into().map(u64::from_be_bytes).map_err(wrong)
}

/// Replaces a file so that a crash leaves either the old bytes or the new ones.
fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".tmp");
    let beside = PathBuf::from(beside);
    let mut file = File::create(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&beside, path)?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // The rename itself must survive a crash too; not every system can sync a directory.
    #[cfg(unix)]
    File::open(directory)?.sync_all()?;
    #[cfg(not(unix))]
    let _ = directory;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(counter: &mut FenceCounter) -> u64 {
        counter.next_fence().unwrap().get()
    }

    #[test]
    fn fences_grow_from_the_clock() {
        let mut counter = FenceCounter::in_memory(100);
        assert_eq!((take(&mut counter), take(&mut counter)), (100, 101));
        assert_eq!(counter.mint().unwrap().fence(), Some(Fence::new(102)));
    }

    #[test]
    fn a_restart_goes_on_above_all_that_was_handed_out_even_if_the_clock_went_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fence");
        let mut counter = FenceCounter::open(&path, 5_000).unwrap();
        let last = (0..10).map(|_| take(&mut counter)).last().unwrap();
        drop(counter);
        let mut counter = FenceCounter::open(&path, 7).unwrap();
        assert!(take(&mut counter) > last);
    }

    #[test]
    fn the_file_stays_ahead_of_the_counter_past_a_reservation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fence");
        let mut counter = FenceCounter::open(&path, 0).unwrap();
        counter.next = RESERVE - 1;
        assert_eq!((take(&mut counter), take(&mut counter)), (RESERVE - 1, RESERVE));
        assert_eq!(stored_ceiling(&fs::read(&path).unwrap()).unwrap(), 2 * RESERVE);
    }

    #[test]
    fn a_file_that_is_none_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fence");
        fs::write(&path, b"short").unwrap();
        let error = FenceCounter::open(&path, 0).unwrap_err();
        assert_eq!(error.to_string(), "a fence state file holds 8 bytes, this one 5");
        assert!(FenceCounter::open(dir.path().join("no/such/dir"), 0).is_err());
    }

    #[test]
    fn nothing_is_handed_out_while_nothing_can_be_reserved() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub").join("fence");
        fs::create_dir(dir.path().join("sub")).unwrap();
        let mut counter = FenceCounter::open(&path, 0).unwrap();
        counter.next = RESERVE;
        fs::remove_dir_all(dir.path().join("sub")).unwrap();
        assert_eq!(counter.next_fence(), None);
        fs::create_dir(dir.path().join("sub")).unwrap();
        assert_eq!(take(&mut counter), RESERVE);
    }

    #[test]
    fn the_end_of_the_numbers_is_no_beginning() {
        let mut counter = FenceCounter::in_memory(u64::MAX - 1);
        assert_eq!(take(&mut counter), u64::MAX - 1);
        assert_eq!(counter.next_fence(), None);
    }
}
