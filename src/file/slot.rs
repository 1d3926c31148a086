//! A contender that several calls share, one at a time, and the jobs that they run on it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::error::Result;
use crate::file::contender::Contender;
use crate::file::steps::Progress;

/// The contender of a [`FileLock`](crate::FileLock); empty while a call takes the lock.
pub(super) type SharedContender = Arc<Mutex<Option<Contender>>>;

/// Runs `look` on the contender; returns `None` while a call takes the lock.
pub(super) fn with_contender<T>(
    shared: &SharedContender,
    look: impl FnOnce(&mut Contender) -> T,
) -> Option<T> {
    // Nothing panics while it is locked; if it did, the files show the contender's state.
    shared.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(look)
}

/// As [`with`], but never waits; returns `None` also while another thread uses the contender.
pub(super) fn try_with_contender<T>(
    shared: &SharedContender,
    look: impl FnOnce(&Contender) -> T,
) -> Option<T> {
    shared.try_lock().ok()?.as_ref().map(look)
}

/// Returns a job that extends the contender's lock, and returns `false` if it is not held.
pub(super) fn refresh(shared: SharedContender, lifetime: Duration) -> impl FnMut() -> Result<Progress<bool>> {
    let mut late = None;
    move || {
        with_contender(&shared, |held| held.refresh(lifetime, &mut late)).unwrap_or(Ok(Progress::Done(false)))
    }
}

/// Returns a job that releases the contender's lock, and returns `false` if it is not held.
pub(super) fn release(shared: SharedContender, lifetime: Duration) -> impl FnMut() -> Result<Progress<bool>> {
    let mut late = None;
    move || {
        with_contender(&shared, |held| held.release(lifetime, &mut late)).unwrap_or(Ok(Progress::Done(false)))
    }
}

/// Returns a job that removes all files of the contender, the lock included.
pub(super) fn give_up(shared: SharedContender) -> impl FnMut() -> Result<Progress<()>> {
    let mut late = None;
    move || with_contender(&shared, |held| held.give_up(&mut late)).unwrap_or(Ok(Progress::Done(())))
}

#[cfg(all(test, unix))]
mod tests {
    use std::fs::{self, File};
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::SystemTime;

    use super::*;
    use crate::error::ErrorKind;
    use crate::file::FileLock;
    use crate::file::name;

    #[test]
    fn a_forked_child_neither_holds_nor_removes_what_its_parent_holds() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lck");
        let lock = FileLock::builder(&path).hostname("here").build().unwrap();
        lock.lock(None).unwrap();
        with_contender(&lock.contender, |held| held.seem_forked());
        assert!(!lock.is_locked().unwrap());
        assert_eq!(lock.unlock().unwrap_err().kind(), ErrorKind::NotLocked);
        assert_eq!(lock.lock(None).unwrap_err().kind(), ErrorKind::InvalidInput);
        lock.unlock_unconditionally().unwrap();
        let claim = lock.claimfile().to_owned();
        drop(lock);
        assert!(path.exists() && claim.exists());
    }

    /// A lock that is held past its end, and another contender's challenge that stands.
    fn late(dir: &Path) -> (FileLock, PathBuf) {
        let (path, days) = (dir.join("x.lck"), Arc::new(AtomicU64::new(0)));
        let lock = FileLock::builder(&path).hostname("here").clock({
            let days = days.clone();
            move || SystemTime::now() + Duration::from_secs(86_400 * days.load(Ordering::Relaxed))
        });
        let lock = lock.build().unwrap();
        lock.lock(None).unwrap();
        days.store(1, Ordering::Relaxed);
        let challenge = name::challenge(&name::claim(&path, "|", "far", 1, 2), "|");
        let file = File::create(&challenge).unwrap();
        file.set_modified(SystemTime::now() + Duration::from_secs(2 * 86_400)).unwrap();
        (lock, challenge)
    }

    #[test]
    fn a_late_holder_shares_its_contender_while_it_waits_for_a_challenge() {
        let dir = tempfile::tempdir().unwrap();
        let (lock, challenge) = late(dir.path());
        let mut job = refresh(lock.contender.clone(), Duration::from_secs(60));
        for _ in 0..3 {
            assert!(matches!(job().unwrap(), Progress::Pause(_)));
            assert_eq!(try_with_contender(&lock.contender, Contender::is_held), Some(true));
        }
        fs::remove_file(challenge).unwrap();
        assert_eq!(job().unwrap(), Progress::Done(true));
        assert!(lock.is_locked().unwrap());
    }

    #[test]
    fn a_late_holder_gives_up_if_a_challenge_stands_for_long_and_so_does_one_whose_lock_has_gone() {
        let dir = tempfile::tempdir().unwrap();
        let (lock, challenge) = late(dir.path());
        let mut job = release(lock.contender.clone(), Duration::from_secs(60));
        let pauses = (0..).take_while(|_| job().unwrap() != Progress::Done(false)).count();
        assert!((30..50).contains(&pauses), "{pauses}");
        fs::remove_file(challenge).unwrap();

        let dir = tempfile::tempdir().unwrap();
        let (lock, challenge) = late(dir.path());
        let mut job = release(lock.contender.clone(), Duration::from_secs(60));
        assert!(matches!(job().unwrap(), Progress::Pause(_)));
        fs::remove_file(challenge).unwrap();
        lock.unlock().unwrap();
        lock.lock(None).unwrap();
        assert_eq!(job().unwrap(), Progress::Done(false), "the lock that was taken since is not its own");
        assert!(lock.is_locked().unwrap());
    }
}
