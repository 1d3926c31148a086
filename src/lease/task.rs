//! The renewal task: asks the schedule what to do, does it, and tells the lease. Ends when the
//! lease is lost; aborted when it is released.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, OptionFuture};
use tokio::time::{Instant, sleep_until, timeout};

use crate::error::{Error, ErrorKind, Result};
use crate::lease::LostReason;
use crate::lease::held::{Change, HeldLease};
use crate::lease::inner::LeaseInner;
use crate::lease::renewal::RenewalAction;
use crate::suspend;

/// How long one renewal may take before it counts as failed and is tried again.
const RENEW_TIMEOUT: Duration = Duration::from_secs(5);

/// Marks the lease lost if the task is dropped with the runtime, not by a release.
struct LoseOnDrop<E: HeldLease>(Arc<LeaseInner<E>>);

impl<E: HeldLease> Drop for LoseOnDrop<E> {
    fn drop(&mut self) {
        self.0.lose(LostReason::RuntimeShutdown);
    }
}

/// Keeps the lease until it is lost.
pub(super) fn run<E: HeldLease>(shared: Arc<LeaseInner<E>>) -> impl Future<Output = ()> + Send {
    // Made here, since a task may be dropped before it is ever polled.
    let dropped = LoseOnDrop(shared);
    // Boxed, so that the task is small where its lease is let go before it has run.
    async move { Box::pin(run_until_expiry(&dropped.0)).await }
}

async fn run_until_expiry<E: HeldLease>(shared: &LeaseInner<E>) {
    drive(shared).await;
    // What is forgotten stays taken to its very end: its connection must not close before.
    while !shared.is_kept() {
        match shared.deadline() {
            Some(end) if suspend::now() < end => sleep_until(end).await,
            _ => return,
        }
    }
}

/// Renews until the lease is lost or forgotten. A renewal that is under way then is still heard, since it
/// tells when the server's lease ends.
async fn drive<E: HeldLease>(shared: &LeaseInner<E>) {
    // None while a doubt is not cleared up.
    let mut incident = pin!(OptionFuture::from(Some(shared.held.changed())));
    let mut in_doubt = false;
    let mut renewing: Option<BoxFuture<'_, (Instant, Result<Duration>)>> = None;
    loop {
        if in_doubt && !shared.is_in_doubt() {
            in_doubt = false;
            incident.set(Some(shared.held.changed()).into());
        }
        let now = suspend::now();
        if renewing.is_none() && !shared.is_kept() {
            return;
        }
        let until = match shared.poll_schedule(now, renewing.is_some()) {
            RenewalAction::Lost(reason) => return shared.lose(reason),
            RenewalAction::Renew => {
                renewing = Some(renew_once(shared, now).boxed());
                continue;
            }
            RenewalAction::Wait(until) => until,
        };
        tokio::select! {
            biased;
            Some(what) = incident.as_mut() => match what {
                Change::Lost(reason) => return shared.lose(reason),
                #[cfg(feature = "client")]
                Change::InDoubt => {
                    in_doubt = true;
                    incident.set(None.into());
                    // A renewal that is under way goes by what is in doubt.
                    renewing = None;
                    shared.doubt();
                }
            },
            Some((sent, outcome)) = OptionFuture::from(renewing.as_mut()) => {
                renewing = None;
                shared.apply_renewal(sent, &outcome);
            }
            () = shared.schedule_changed.notified() => {}
            () = sleep_until(until.into()) => {}
        }
    }
}

async fn renew_once<E: HeldLease>(shared: &LeaseInner<E>, sent: Instant) -> (Instant, Result<Duration>) {
    let outcome = timeout(RENEW_TIMEOUT, shared.held.renew()).await;
    let silent = || Error::new(ErrorKind::Timeout, format!("no answer within {} s", RENEW_TIMEOUT.as_secs()));
    (sent, outcome.unwrap_or_else(|_| Err(silent().during("renew").for_key(&shared.reporter.key))))
}
