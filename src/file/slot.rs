//! A contender that several calls share, each of which has it alone for a while.

use std::sync::{Arc, Mutex, PoisonError};

use crate::file::contender::Contender;

/// Where a [`FileLock`](crate::FileLock) keeps its contender; empty while a call takes the lock.
pub(super) type Slot = Arc<Mutex<Option<Contender>>>;

/// Runs `look` on what is in the slot; `None` while a call takes the lock.
pub(super) fn with<T>(slot: &Slot, look: impl FnOnce(&mut Contender) -> T) -> Option<T> {
    // Nothing panics while a slot is locked; if it did, the files tell how the contender stands.
    slot.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(look)
}

/// As [`with`], but never waits; `None` also while another thread is at it.
pub(super) fn glance<T>(slot: &Slot, look: impl FnOnce(&Contender) -> T) -> Option<T> {
    slot.try_lock().ok()?.as_ref().map(look)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::file::FileLock;

    #[test]
    fn a_forked_child_neither_holds_nor_removes_what_its_parent_holds() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lck");
        let lock = FileLock::builder(&path).hostname("here").build().unwrap();
        lock.lock(None).unwrap();
        with(&lock.slot, |held| held.seem_forked());
        assert!(!lock.is_locked().unwrap());
        assert_eq!(lock.unlock().unwrap_err().kind(), ErrorKind::NotLocked);
        assert_eq!(lock.lock(None).unwrap_err().kind(), ErrorKind::InvalidInput);
        lock.unlock_unconditionally().unwrap();
        let claim = lock.claimfile().to_owned();
        drop(lock);
        assert!(path.exists() && claim.exists());
    }
}
