//! Carries the outcome of a release to the log, the event handler and the waiting caller.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
#[cfg(feature = "client")]
use tokio::time::Instant;

use crate::error::{Error, ErrorKind, Result};
use crate::lease::reporter::LeaseReporter;

/// The time that a caller waits for the reply to a release.
pub(super) const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);

/// Reports the outcome of a release to the log, the counters and the event handler, and sends it to a waiting
/// caller.
pub(crate) struct ReleaseCompletion {
    reporter: Option<Arc<LeaseReporter>>,
    caller: Option<ReleaseWaiter>,
}

/// A caller that waits for the outcome of a release, up to a deadline.
pub(crate) struct ReleaseWaiter {
    pub(crate) sender: oneshot::Sender<Result<()>>,
    #[cfg(feature = "client")]
    pub(crate) deadline: Instant,
}

impl ReleaseCompletion {
    /// Makes a completion that drops the outcome.
    pub(crate) fn ignored() -> Self {
        Self { reporter: None, caller: None }
    }

    /// Makes a completion that reports the outcome, and sends it to the waiting caller, if there is one.
    pub(super) fn new(reporter: Arc<LeaseReporter>, caller: Option<ReleaseWaiter>) -> Self {
        Self { reporter: Some(reporter), caller }
    }

    /// Delivers the outcome.
    pub(crate) fn complete(self, outcome: Result<()>) {
        if let Some(reporter) = self.reporter {
            reporter.released(&outcome);
        }
        if let Some(caller) = self.caller {
            // The caller may have stopped waiting.
            let _ = caller.sender.send(outcome);
        }
    }

    /// Returns the deadline of the waiting caller, if there is one.
    #[cfg(feature = "client")]
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.caller.as_ref().map(|caller| caller.deadline)
    }

    /// Sends a timeout error to the waiting caller. The outcome is still reported when it comes.
    #[cfg(feature = "client")]
    pub(crate) fn time_out(&mut self) {
        if let (Some(caller), Some(reporter)) = (self.caller.take(), &self.reporter) {
            // The caller may have stopped waiting.
            let _ = caller.sender.send(Err(release_timed_out(reporter)));
        }
    }
}

/// Makes the error of a release that got no reply in time.
pub(super) fn release_timed_out(reporter: &LeaseReporter) -> Error {
    let detail = format!("no reply within {} s", RELEASE_TIMEOUT.as_secs());
    reporter.error("release", ErrorKind::Timeout, detail)
}
