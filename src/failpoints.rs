//! Rules that this crate's own tests break on purpose, to show that their checkers notice. Without the
//! feature `_failpoints`, which is for those tests alone, no rule can be broken.

/// A rule that a test can break, in its whole process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "_failpoints"), allow(dead_code, unreachable_pub))]
pub enum Rule {
    /// A lease is lost at its deadline, and when its server is silent for too long.
    Deadline,
    /// An unclaimed grant is released.
    ReleaseUnclaimed,
    /// A reply belongs to the oldest request, even if no caller waits for it.
    ReplyOrder,
    /// If the server gives a connection up, as by its write timeout, the keys of that connection are
    /// freed no earlier than the read timeout would have freed them.
    GivenUp,
    /// A request for a server's table has an exclusive connection.
    StatsApart,
}

#[cfg(feature = "_failpoints")]
mod switch {
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::Rule;

    static BROKEN: AtomicU8 = AtomicU8::new(0);

    /// Breaks these rules and restores all others.
    pub fn break_only(rules: impl IntoIterator<Item = Rule>) {
        let broken = rules.into_iter().fold(0, |broken, rule| broken | bit(rule));
        BROKEN.store(broken, Ordering::SeqCst);
    }

    pub(crate) fn is_broken(rule: Rule) -> bool {
        BROKEN.load(Ordering::Relaxed) & bit(rule) != 0
    }

    const fn bit(rule: Rule) -> u8 {
        1 << rule as u8
    }
}

#[cfg(feature = "_failpoints")]
pub use switch::break_only;
#[cfg(all(feature = "_failpoints", any(feature = "client", feature = "server")))]
pub(crate) use switch::is_broken;

#[cfg(not(feature = "_failpoints"))]
pub(crate) const fn is_broken(_: Rule) -> bool {
    false
}

/// Counts events, for tests that check them: they are delivered on another thread.
#[cfg(feature = "_failpoints")]
mod events {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::thread;
    use std::time::{Duration, Instant};

    static QUEUED: AtomicU64 = AtomicU64::new(0);
    static DELIVERED: AtomicU64 = AtomicU64::new(0);

    /// Blocks until every event of this process was delivered to its event handler.
    pub fn await_event_handlers() {
        let start = Instant::now();
        // The delivered ones are read first: if they are as many as were queued a moment later, none is left. Events of concurrent tests count, since one of them may be delivered before one of this test's.
        while DELIVERED.load(Ordering::SeqCst) < QUEUED.load(Ordering::SeqCst) {
            assert!(start.elapsed() < Duration::from_secs(60), "an event handler is stuck");
            thread::sleep(Duration::from_micros(20));
        }
    }

    #[cfg(any(feature = "client", feature = "file"))]
    pub(crate) fn event_queued() {
        QUEUED.fetch_add(1, Ordering::SeqCst);
    }

    #[cfg(any(feature = "client", feature = "file"))]
    pub(crate) fn event_delivered() {
        DELIVERED.fetch_add(1, Ordering::SeqCst);
    }
}

#[cfg(feature = "_failpoints")]
pub use events::await_event_handlers;
#[cfg(all(feature = "_failpoints", any(feature = "client", feature = "file")))]
pub(crate) use events::{event_delivered, event_queued};

#[cfg(all(not(feature = "_failpoints"), any(feature = "client", feature = "file")))]
pub(crate) const fn event_queued() {}

#[cfg(all(not(feature = "_failpoints"), any(feature = "client", feature = "file")))]
pub(crate) const fn event_delivered() {}

/// A suspended machine, as its clocks show it afterwards.
#[cfg(feature = "_failpoints")]
mod suspension {
    use std::sync::atomic::{AtomicI64, Ordering};
    use std::time::Duration;

    static SUSPENDED: AtomicI64 = AtomicI64::new(0);

    /// Makes the clocks of this process look as if the machine had been suspended for this long, a moment
    /// ago.
    pub fn suspend(slept: Duration) {
        let slept = i64::try_from(slept.as_nanos()).expect("it is less than centuries");
        SUSPENDED.fetch_add(slept, Ordering::SeqCst);
    }

    #[cfg(any(feature = "client", feature = "file"))]
    pub(crate) fn suspended() -> i64 {
        SUSPENDED.load(Ordering::Relaxed)
    }
}

#[cfg(feature = "_failpoints")]
pub use suspension::suspend;
#[cfg(all(feature = "_failpoints", any(feature = "client", feature = "file")))]
pub(crate) use suspension::suspended;

#[cfg(all(not(feature = "_failpoints"), any(feature = "client", feature = "file")))]
#[cfg_attr(not(any(target_os = "linux", target_os = "android")), allow(dead_code))]
pub(crate) const fn suspended() -> i64 {
    0
}
