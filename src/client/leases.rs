//! Which leases a client has out, so that closing it can let go of them. Knows of no connection.

use std::sync::{Mutex, MutexGuard, PoisonError};

use slab::Slab;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use crate::error::{Error, ErrorKind, Result};
use crate::lease::{Lease, LostReason, Releaser, WeakLease};

/// The leases of one client that were not let go yet.
#[derive(Default)]
pub(crate) struct Leases(Mutex<Book>);

#[derive(Default)]
struct Book {
    /// `None` for one that is about to begin.
    leases: Slab<Option<WeakLease>>,
    closed: bool,
}

impl Leases {
    fn book(&self) -> MutexGuard<'_, Book> {
        // Nothing panics while it is locked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn len(&self) -> usize {
        self.book().leases.len()
    }

    /// The number under which a lease that is about to begin enters, and leaves once.
    pub(crate) fn number(&self) -> usize {
        self.book().leases.insert(None)
    }

    /// Enters a lease; `false` where the client was closed meanwhile.
    pub(crate) fn enter(&self, number: usize, lease: &Lease) -> bool {
        let mut book = self.book();
        let is_open = !book.closed;
        if let Some(entry) = book.leases.get_mut(number).filter(|_| is_open) {
            *entry = Some(lease.downgrade());
        }
        is_open
    }

    pub(crate) fn leave(&self, number: usize) {
        self.book().leases.try_remove(number);
    }

    /// Ends every lease, lets go of what it held, and waits until that was answered; enters no more.
    ///
    /// # Errors
    /// The first release that failed, or [`ErrorKind::Timeout`].
    pub(crate) async fn release_all(&self, until: Instant) -> Result<()> {
        let leases = {
            let mut book = self.book();
            book.closed = true;
            std::mem::take(&mut book.leases)
        };
        let (mut answers, now) = (Vec::new(), Instant::now());
        for lease in leases.into_iter().filter_map(|(_, lease)| lease?.upgrade()) {
            let (tell, told) = oneshot::channel();
            lease.end(LostReason::ClientClosed, now, Releaser { tell, until });
            answers.push(told);
        }
        for answer in answers {
            match timeout_at(until, answer).await {
                // What was let go or forgotten before has no answer.
                Ok(answer) => answer.unwrap_or(Ok(()))?,
                Err(_) => return Err(Error::new(ErrorKind::Timeout, "not all leases were let go in time")),
            }
        }
        Ok(())
    }
}
