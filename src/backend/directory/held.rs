//! A held lock file, until it is released.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::Instant;

use crate::backend::directory::activity::InFlight;
use crate::error::Result;
use crate::file::engine::FileLease;
use crate::lease::{Change, HeldLease, LostReason, ReleaseCompletion};

pub(crate) struct DirectoryLease {
    file: FileLease,
    /// `None` once the release has begun.
    in_flight: Mutex<Option<InFlight>>,
}

impl DirectoryLease {
    pub(super) fn new(file: FileLease, in_flight: InFlight) -> Self {
        Self { file, in_flight: Mutex::new(Some(in_flight)) }
    }

    fn end(&self) -> Option<InFlight> {
        // Nothing panics while it is locked.
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl HeldLease for DirectoryLease {
    fn endpoint(&self) -> Arc<str> {
        self.file.endpoint()
    }

    fn renew(&self) -> BoxFuture<'_, Result<Duration>> {
        Box::pin(async { self.file.renew().await.map_err(|error| error.on_server(&self.endpoint())) })
    }

    fn enforces_release_deadline(&self) -> bool {
        self.file.enforces_release_deadline()
    }

    fn release(&self, _: Instant, completion: ReleaseCompletion) {
        let (in_flight, path) = (self.end(), self.endpoint());
        self.file.release_then(move |outcome| {
            completion.complete(outcome.map_err(|error| error.on_server(&path)));
            drop(in_flight);
        });
    }

    fn cut(&self) {
        self.end();
    }

    fn lost(&self, now: Instant) -> Option<LostReason> {
        self.file.lost(now)
    }

    fn changed(&self) -> impl Future<Output = Change> + Send {
        self.file.changed()
    }
}
