//! The renewal task: polls the schedule, renews, and applies the outcome to the lease. Ends when the lease is
//! lost. Aborted when the lease is released.

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

/// The time after which a renewal without a reply counts as failed and is tried again.
const RENEW_TIMEOUT: Duration = Duration::from_secs(5);

/// Marks the lease as lost if the task is dropped with its runtime. After a release that does nothing.
struct LoseOnDrop<H: HeldLease>(Arc<LeaseInner<H>>);

impl<H: HeldLease> Drop for LoseOnDrop<H> {
    fn drop(&mut self) {
        self.0.lose(LostReason::RuntimeShutdown);
    }
}

/// Keeps the lease until it is lost, or until a forgotten one has expired.
pub(super) fn run<H: HeldLease>(lease: Arc<LeaseInner<H>>) -> impl Future<Output = ()> + Send {
    // Made outside the future, since a task may be dropped before its first poll.
    let lease = LoseOnDrop(lease);
    // Boxed, so that the task is small if its lease is released before it has run.
    async move { Box::pin(run_until_expiry(&lease.0)).await }
}

async fn run_until_expiry<H: HeldLease>(lease: &LeaseInner<H>) {
    drive(lease).await;
    // A forgotten lease stays taken until its deadline, so its connection must not close before.
    while !lease.is_kept() {
        match lease.deadline() {
            Some(deadline) if suspend::now() < deadline => sleep_until(deadline).await,
            _ => return,
        }
    }
}

/// Renews until the lease is lost or forgotten. Still awaits the reply to a renewal that is in flight then, since
/// that decides when the server's lease expires.
async fn drive<H: HeldLease>(lease: &LeaseInner<H>) {
    // `None` while the lease is in doubt.
    let mut changed = pin!(OptionFuture::from(Some(lease.held.changed())));
    let mut in_doubt = false;
    let mut renewing: Option<BoxFuture<'_, (Instant, Result<Duration>)>> = None;
    loop {
        if in_doubt && !lease.is_in_doubt() {
            in_doubt = false;
            changed.set(Some(lease.held.changed()).into());
        }
        let now = suspend::now();
        if renewing.is_none() && !lease.is_kept() {
            return;
        }
        let until = match lease.poll_schedule(now, renewing.is_some()) {
            RenewalAction::Lost(reason) => return lease.lose(reason),
            RenewalAction::Renew => {
                renewing = Some(renew_once(lease, now).boxed());
                continue;
            }
            RenewalAction::Wait(until) => until,
        };
        tokio::select! {
            biased;
            Some(change) = changed.as_mut() => match change {
                Change::Lost(reason) => return lease.lose(reason),
                #[cfg(feature = "client")]
                Change::InDoubt => {
                    in_doubt = true;
                    changed.set(None.into());
                    // A renewal in flight uses the connection that is in doubt.
                    renewing = None;
                    lease.doubt();
                }
            },
            Some((sent, outcome)) = OptionFuture::from(renewing.as_mut()) => {
                renewing = None;
                lease.apply_renewal(sent, &outcome);
            }
            () = lease.schedule_changed.notified() => {}
            () = sleep_until(until.into()) => {}
        }
    }
}

async fn renew_once<H: HeldLease>(lease: &LeaseInner<H>, sent: Instant) -> (Instant, Result<Duration>) {
    let outcome = timeout(RENEW_TIMEOUT, lease.held.renew()).await;
    let no_reply =
        || Error::new(ErrorKind::Timeout, format!("no reply within {} s", RENEW_TIMEOUT.as_secs()));
    (sent, outcome.unwrap_or_else(|_| Err(no_reply().during("renew").for_key(&lease.reporter.key))))
}
