//! Which leases a client has out, so that closing it can let go of them. Knows of no connection.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use crate::error::{Error, ErrorKind, Result};
use crate::lease::{Lease, LostReason, WeakLease};

/// The leases of one client that were not let go yet.
#[derive(Default)]
pub(crate) struct Leases(Mutex<Book>);

#[derive(Default)]
struct Book {
    leases: HashMap<u64, WeakLease>,
    next: u64,
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

    /// The number under which a lease that is about to begin enters.
    pub(crate) fn number(&self) -> u64 {
        let mut book = self.book();
        book.next += 1;
        book.next
    }

    /// Enters a lease; `false` where the client was closed meanwhile.
    pub(crate) fn enter(&self, number: u64, lease: &Lease) -> bool {
        let mut book = self.book();
        if !book.closed {
            book.leases.insert(number, lease.downgrade());
        }
        !book.closed
    }

    pub(crate) fn leave(&self, number: u64) {
        self.book().leases.remove(&number);
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
        let mut answers = Vec::new();
        for lease in leases.into_values().filter_map(|lease| lease.upgrade()) {
            let (tell, told) = oneshot::channel();
            // Nobody listens any more where closing has taken too long.
            lease.end(LostReason::ClientClosed, Box::new(move |outcome| drop(tell.send(outcome))));
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
