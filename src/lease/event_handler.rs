//! Calls an event handler on a dedicated thread, so that no lease waits for it.

use std::fmt;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::time::Instant;
use tracing::dispatcher;

use crate::failpoints;
use crate::lease::event::LeaseEvent;

/// The most events that wait for the handler.
const MAX_QUEUED: usize = 65_536;
/// The least time between two warnings of one kind.
const WARNING_INTERVAL: Duration = Duration::from_secs(10);

type EventFn = dyn Fn(&LeaseEvent) + Send + Sync;

/// The event handler of the leases of one client or lock file, if there is one. Clones share the thread, which
/// starts with the first event, and ends when all clones are dropped and every event was handled.
#[derive(Clone, Default)]
pub(crate) struct EventHandler(Option<Arc<Queue>>);

impl EventHandler {
    pub(crate) fn new(handler: impl Fn(&LeaseEvent) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(Queue {
            handler: Arc::new(handler),
            sender: OnceLock::new(),
            queued: Arc::default(),
            overflows: RateLimit::default(),
        })))
    }

    /// Queues the event without waiting. Returns `false` if the queue is full.
    pub(super) fn send(&self, event: impl FnOnce() -> LeaseEvent) -> bool {
        self.0.as_ref().is_none_or(|queue| queue.push(event()))
    }
}

impl fmt::Debug for EventHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "EventHandler" } else { "no EventHandler" })
    }
}

struct Queue {
    handler: Arc<EventFn>,
    /// The channel to the thread, made by the first event; `None` if the thread could not be started.
    sender: OnceLock<Option<Sender<LeaseEvent>>>,
    queued: Arc<AtomicUsize>,
    overflows: RateLimit,
}

impl Queue {
    fn push(&self, event: LeaseEvent) -> bool {
        let has_room = self.queued.fetch_add(1, Ordering::Relaxed) < MAX_QUEUED;
        if has_room && let Some(sender) = self.sender.get_or_init(|| self.start()) {
            failpoints::event_queued();
            // The thread outlives its sender.
            return sender.send(event).is_ok();
        }
        self.queued.fetch_sub(1, Ordering::Relaxed);
        if let Some(more) = self.overflows.admit() {
            tracing::warn!(more, "the event handler is too slow: lease events are dropped");
        }
        false
    }

    /// Starts the thread. The handler's own log goes to the subscriber of the first event.
    fn start(&self) -> Option<Sender<LeaseEvent>> {
        let (sender, receiver) = channel();
        let (handler, queued) = (self.handler.clone(), self.queued.clone());
        let subscriber = dispatcher::get_default(Clone::clone);
        let run = move || dispatcher::with_default(&subscriber, || dispatch(&*handler, &receiver, &queued));
        let started = thread::Builder::new().name("dflockd-events".into()).spawn(run);
        started.is_ok().then_some(sender)
    }
}

/// Calls the handler with every event, in order.
fn dispatch(handler: &EventFn, receiver: &Receiver<LeaseEvent>, queued: &AtomicUsize) {
    let panics = RateLimit::default();
    for event in receiver {
        let outcome = catch_unwind(AssertUnwindSafe(|| handler(&event)));
        queued.fetch_sub(1, Ordering::Relaxed);
        if let Err(payload) = outcome {
            // The payload may panic as well when it is dropped.
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
                mem::forget(payload);
            }
            if let Some(more) = panics.admit() {
                tracing::error!(more, "the event handler panicked");
            }
        }
        failpoints::event_delivered();
    }
}

/// Admits one warning per [`WARNING_INTERVAL`], and counts those that it suppresses.
#[derive(Default)]
struct RateLimit(Mutex<Suppressed>);

#[derive(Default)]
struct Suppressed {
    until: Option<Instant>,
    count: u64,
}

impl RateLimit {
    /// Returns the number of warnings suppressed since the last one, if a warning is due now.
    fn admit(&self) -> Option<u64> {
        // Nothing panics under this lock.
        let mut suppressed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if suppressed.until.is_some_and(|until| now < until) {
            suppressed.count += 1;
            return None;
        }
        suppressed.until = Some(now + WARNING_INTERVAL);
        Some(std::mem::take(&mut suppressed.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::LeaseEventKind;
    use crate::types::{Fence, Key};

    fn event(number: usize) -> LeaseEvent {
        let fence = Some(Fence::new(number as u64 + 1));
        let (key, endpoint) = (Key::parse("k").unwrap(), "here".into());
        LeaseEvent { key, fence, endpoint, kind: LeaseEventKind::AtRisk }
    }

    #[test]
    fn a_handler_that_is_stuck_loses_the_events_over_the_limit_and_no_more() {
        let (unblock, blocked) = channel::<()>();
        let (sender, received) = channel();
        let blocked = Mutex::new(blocked);
        let handler = EventHandler::new(move |event: &LeaseEvent| {
            // Blocks until the test drops the other end.
            let _ = blocked.lock().unwrap().recv();
            sender.send(event.fence.map_or(0, |fence| fence.get() as usize)).unwrap();
        });
        let (max, more) = (MAX_QUEUED, 1000);
        let queued = (0..max + more).filter(|number| handler.send(|| event(*number))).count();
        assert_eq!(queued, max);
        // The thread handles every queued event in order, after the last handle on it was dropped.
        drop((unblock, handler));
        assert_eq!(received.iter().collect::<Vec<_>>(), (1..=max).collect::<Vec<_>>());
    }

    #[test]
    fn a_handled_event_makes_room_for_the_next() {
        let (sender, received) = channel();
        let handler = EventHandler::new(move |_: &LeaseEvent| sender.send(()).unwrap());
        for number in 0..2 * MAX_QUEUED {
            assert!(handler.send(|| event(number)));
            received.recv().unwrap();
        }
    }

    /// A panic payload whose drop panics as well, unless the thread unwinds.
    struct Bomb;

    impl Drop for Bomb {
        fn drop(&mut self) {
            if !thread::panicking() {
                panic!("once more");
            }
        }
    }

    #[test]
    fn a_handler_that_panics_receives_the_next_events() {
        let (sender, received) = channel();
        let handler = EventHandler::new(move |_: &LeaseEvent| {
            sender.send(()).unwrap();
            std::panic::panic_any(Bomb);
        });
        for number in 0..5 {
            assert!(handler.send(|| event(number)));
        }
        drop(handler);
        assert_eq!(received.iter().count(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_limit_counts_what_it_suppresses() {
        let limit = RateLimit::default();
        let admitted: Vec<_> = (0..5).map(|_| limit.admit()).collect();
        assert_eq!(admitted, [Some(0), None, None, None, None]);
        tokio::time::advance(WARNING_INTERVAL).await;
        assert_eq!([limit.admit(), limit.admit()], [Some(4), None]);
    }
}
