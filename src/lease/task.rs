//! The renewal task: asks the schedule what to do, does it, and tells the lease. Ends when the
//! lease is lost; aborted when it is released.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, OptionFuture};
use tokio::time::{Instant, sleep_until, timeout};

use crate::error::{Error, ErrorKind, Result};
use crate::lease::LostReason;
use crate::lease::engine::{Engine, Incident};
use crate::lease::renewal::Step;
use crate::lease::state::Shared;
use crate::suspend;

/// How long one renewal may take before it counts as failed and is tried again.
const RENEW_LIMIT: Duration = Duration::from_secs(5);

/// Marks the lease lost if the task is dropped with the runtime, not by a release.
struct Dropped<E: Engine>(Arc<Shared<E>>);

impl<E: Engine> Drop for Dropped<E> {
    fn drop(&mut self) {
        self.0.lose(LostReason::RuntimeShutdown);
    }
}

/// Keeps the lease until it is lost.
pub(super) fn keep<E: Engine>(shared: Arc<Shared<E>>) -> impl Future<Output = ()> + Send {
    // Made here, since a task may be dropped before it is ever polled.
    let dropped = Dropped(shared);
    // Boxed, so that the task is small where its lease is let go before it has run.
    async move { Box::pin(keep_to_its_end(&dropped.0)).await }
}

async fn keep_to_its_end<E: Engine>(shared: &Shared<E>) {
    keep_on(shared).await;
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
async fn keep_on<E: Engine>(shared: &Shared<E>) {
    // None while a doubt is not cleared up.
    let mut incident = pin!(OptionFuture::from(Some(shared.engine.incident())));
    let mut in_doubt = false;
    let mut renewing: Option<BoxFuture<'_, (Instant, Result<Duration>)>> = None;
    loop {
        if in_doubt && !shared.is_in_doubt() {
            in_doubt = false;
            incident.set(Some(shared.engine.incident()).into());
        }
        let now = suspend::now();
        if renewing.is_none() && !shared.is_kept() {
            return;
        }
        let until = match shared.poll(now, renewing.is_some()) {
            Step::Lost(reason) => return shared.lose(reason),
            Step::Renew => {
                renewing = Some(renew_once(shared, now).boxed());
                continue;
            }
            Step::Wait(until) => until,
        };
        tokio::select! {
            biased;
            Some(what) = incident.as_mut() => match what {
                Incident::Lost(reason) => return shared.lose(reason),
                Incident::Doubt => {
                    in_doubt = true;
                    incident.set(None.into());
                    // A renewal that is under way goes by what is in doubt.
                    renewing = None;
                    shared.doubt();
                }
            },
            Some((sent, outcome)) = OptionFuture::from(renewing.as_mut()) => {
                renewing = None;
                shared.settle(sent, &outcome);
            }
            () = shared.changed.notified() => {}
            () = sleep_until(until.into()) => {}
        }
    }
}

async fn renew_once<E: Engine>(shared: &Shared<E>, sent: Instant) -> (Instant, Result<Duration>) {
    let outcome = timeout(RENEW_LIMIT, shared.engine.renew()).await;
    let silent = || Error::new(ErrorKind::Timeout, format!("no answer within {} s", RENEW_LIMIT.as_secs()));
    (sent, outcome.unwrap_or_else(|_| Err(silent().during("renew").for_key(&shared.teller.key))))
}
