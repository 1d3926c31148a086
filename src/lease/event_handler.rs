//! A listener to events, called on a thread of its own: whatever it does, no lease waits for it.

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

/// How many events are kept for a listener that has not come to them yet.
const MAX_KEPT: usize = 65_536;
/// How long a warning of one kind keeps the next one back.
const QUIET: Duration = Duration::from_secs(10);

type Listen = dyn Fn(&LeaseEvent) + Send + Sync;

/// What listens to the leases of one client or lock file, if anything does. Clones share the thread, which
/// begins with the first event, and ends when all clones are gone and every event was told.
#[derive(Clone, Default)]
pub(crate) struct EventHandler(Option<Arc<Queue>>);

impl EventHandler {
    pub(crate) fn new(listener: impl Fn(&LeaseEvent) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(Queue {
            listen: Arc::new(listener),
            events: OnceLock::new(),
            kept: Arc::default(),
            overflows: RateLimit::default(),
        })))
    }

    /// Hands the event over, without waiting; `false` if there is no room for it.
    pub(super) fn tell(&self, event: impl FnOnce() -> LeaseEvent) -> bool {
        self.0.as_ref().is_none_or(|queue| queue.put(event()))
    }
}

impl fmt::Debug for EventHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Listener" } else { "no Listener" })
    }
}

struct Queue {
    listen: Arc<Listen>,
    /// To the thread, once there was an event; none if it could not be started.
    events: OnceLock<Option<Sender<LeaseEvent>>>,
    kept: Arc<AtomicUsize>,
    overflows: RateLimit,
}

impl Queue {
    fn put(&self, event: LeaseEvent) -> bool {
        let has_room = self.kept.fetch_add(1, Ordering::Relaxed) < MAX_KEPT;
        if has_room && let Some(events) = self.events.get_or_init(|| self.start()) {
            failpoints::event_queued();
            // The thread outlives its sender.
            return events.send(event).is_ok();
        }
        self.kept.fetch_sub(1, Ordering::Relaxed);
        if let Some(more) = self.overflows.comes() {
            tracing::warn!(more, "the listener to lease events does not keep up: events are dropped");
        }
        false
    }

    /// What the listener logs goes where the log of the first event goes.
    fn start(&self) -> Option<Sender<LeaseEvent>> {
        let (events, told) = channel();
        let (listen, kept) = (self.listen.clone(), self.kept.clone());
        let log = dispatcher::get_default(Clone::clone);
        let listening = move || dispatcher::with_default(&log, || dispatch(&*listen, &told, &kept));
        let started = thread::Builder::new().name("dflockd-events".into()).spawn(listening);
        started.is_ok().then_some(events)
    }
}

/// Calls the listener with every event, in order.
fn dispatch(listen: &Listen, told: &Receiver<LeaseEvent>, kept: &AtomicUsize) {
    let panics = RateLimit::default();
    for event in told {
        let outcome = catch_unwind(AssertUnwindSafe(|| listen(&event)));
        kept.fetch_sub(1, Ordering::Relaxed);
        if let Err(payload) = outcome {
            // What it panicked with may panic once more as it is dropped.
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
                mem::forget(payload);
            }
            if let Some(more) = panics.comes() {
                tracing::error!(more, "the listener to lease events panicked");
            }
        }
        failpoints::event_delivered();
    }
}

/// Something that is said once in a while, however often it comes.
#[derive(Default)]
struct RateLimit(Mutex<Held>);

#[derive(Default)]
struct Held {
    until: Option<Instant>,
    more: u64,
}

impl RateLimit {
    /// How often it came unsaid since it was said last, if it is to be said now.
    fn comes(&self) -> Option<u64> {
        // Nothing panics while it is locked.
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if held.until.is_some_and(|until| now < until) {
            held.more += 1;
            return None;
        }
        held.until = Some(now + QUIET);
        Some(std::mem::take(&mut held.more))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::LeaseEventKind;
    use crate::types::{Fence, Key};

    fn event(number: usize) -> LeaseEvent {
        let fence = Some(Fence::new(number as u64 + 1));
        let (key, grantor) = (Key::parse("k").unwrap(), "here".into());
        LeaseEvent { key, fence, endpoint: grantor, kind: LeaseEventKind::AtRisk }
    }

    #[test]
    fn a_listener_that_is_stuck_costs_what_it_is_not_told_and_no_more() {
        let (go, gone) = channel::<()>();
        let (tell, told) = channel();
        let gone = Mutex::new(gone);
        let listener = EventHandler::new(move |event: &LeaseEvent| {
            // Stuck until the test lets it go.
            let _ = gone.lock().unwrap().recv();
            tell.send(event.fence.map_or(0, |fence| fence.get() as usize)).unwrap();
        });
        let (most, more) = (MAX_KEPT, 1000);
        let room = (0..most + more).filter(|number| listener.tell(|| event(*number))).count();
        assert_eq!(room, most);
        // It goes on, and all that was kept is told in order, though nobody has the listener any more.
        drop((go, listener));
        assert_eq!(told.iter().collect::<Vec<_>>(), (1..=most).collect::<Vec<_>>());
    }

    #[test]
    fn there_is_room_again_for_what_comes_after() {
        let (tell, told) = channel();
        let listener = EventHandler::new(move |_: &LeaseEvent| tell.send(()).unwrap());
        for number in 0..2 * MAX_KEPT {
            assert!(listener.tell(|| event(number)));
            told.recv().unwrap();
        }
    }

    /// A panic's payload that panics as well when it is dropped, outside an unwinding.
    struct Bomb;

    impl Drop for Bomb {
        fn drop(&mut self) {
            if !thread::panicking() {
                panic!("once more");
            }
        }
    }

    #[test]
    fn a_listener_hears_of_what_comes_after_whatever_it_panics_with() {
        let (tell, told) = channel();
        let listener = EventHandler::new(move |_: &LeaseEvent| {
            tell.send(()).unwrap();
            std::panic::panic_any(Bomb);
        });
        for number in 0..5 {
            assert!(listener.tell(|| event(number)));
        }
        drop(listener);
        assert_eq!(told.iter().count(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_said_seldom_counts_what_it_keeps_back() {
        let seldom = RateLimit::default();
        let said: Vec<_> = (0..5).map(|_| seldom.comes()).collect();
        assert_eq!(said, [Some(0), None, None, None, None]);
        tokio::time::advance(QUIET).await;
        assert_eq!([seldom.comes(), seldom.comes()], [Some(4), None]);
    }
}
