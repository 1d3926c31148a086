//! Warnings that a peer can cause at will. Each kind has a rate limit, and suppressed warnings are counted.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The interval at which the number of suppressed events is reported.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);
/// The number of events of a kind that are logged at once after a quiet interval.
const BURST: u32 = 5;

/// The kinds of warnings of one server.
pub(super) struct Warnings {
    pub(super) max_connections: Warning,
    pub(super) max_connections_per_ip: Warning,
    pub(super) handshake: Warning,
    pub(super) authentication: Warning,
    pub(super) accept: Warning,
}

impl Default for Warnings {
    fn default() -> Self {
        Self {
            max_connections: Warning::new("connection refused: max-connections", BURST),
            max_connections_per_ip: Warning::new("connection refused: max-connections-per-ip", BURST),
            handshake: Warning::new("handshake failed", BURST),
            authentication: Warning::new("authentication failed", BURST),
            // Peers differ, but a failure of the system is the same each time.
            accept: Warning::new("could not accept a connection", 1),
        }
    }
}

impl Warnings {
    /// Reports all suppressed warnings.
    pub(super) fn flush(&self) {
        let kinds = [
            &self.max_connections,
            &self.max_connections_per_ip,
            &self.handshake,
            &self.authentication,
            &self.accept,
        ];
        kinds.into_iter().for_each(Warning::report);
    }
}

/// A kind of warning. Clones share its rate limit.
#[derive(Clone)]
pub(super) struct Warning {
    what: &'static str,
    rate: Arc<Mutex<Rate>>,
}

impl Warning {
    fn new(what: &'static str, burst: u32) -> Self {
        Self { what, rate: Arc::new(Mutex::new(Rate::new(burst))) }
    }

    /// Calls `log` with the warning's text, or counts the event and has a task report the count later. Must
    /// be called within a runtime.
    pub(super) fn warn(&self, log: impl FnOnce(&'static str)) {
        let verdict = self.with_rate(|rate| rate.event(now()));
        match verdict {
            Verdict::Log => log(self.what),
            Verdict::Suppress => {}
            Verdict::SuppressFirst => {
                let warning = self.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(REPORT_INTERVAL).await;
                    warning.report();
                });
            }
        }
    }

    fn report(&self) {
        let more = self.with_rate(|rate| rate.report(now()));
        if more > 0 {
            tracing::warn!("{} … and {more} more", self.what);
        }
    }

    fn with_rate<T>(&self, act: impl FnOnce(&mut Rate) -> T) -> T {
        // Never poisoned: no code panics while it holds the lock.
        act(&mut self.rate.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// What to do with an event.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Log,
    /// Count it, as the first since the last report. The next report is due an interval later.
    SuppressFirst,
    /// Count it.
    Suppress,
}

/// Lets the first few events pass, then one for each report of how many were suppressed. An interval
/// without suppressed events starts over.
struct Rate {
    burst: u32,
    /// When the current interval began.
    interval_start: Option<Instant>,
    /// The number of events that may still be logged in this interval.
    remaining: u32,
    suppressed: u64,
}

impl Rate {
    fn new(burst: u32) -> Self {
        Self { burst, interval_start: None, remaining: 0, suppressed: 0 }
    }

    fn event(&mut self, now: Instant) -> Verdict {
        let over =
            self.interval_start.is_none_or(|began| now.saturating_duration_since(began) >= REPORT_INTERVAL);
        if over && self.suppressed == 0 {
            (self.interval_start, self.remaining) = (Some(now), self.burst);
        }
        if self.remaining > 0 {
            self.remaining -= 1;
            return Verdict::Log;
        }
        self.suppressed += 1;
        if self.suppressed == 1 { Verdict::SuppressFirst } else { Verdict::Suppress }
    }

    /// Begins an interval, and returns the number of events that the last one suppressed.
    fn report(&mut self, now: Instant) -> u64 {
        if self.suppressed > 0 {
            (self.interval_start, self.remaining) = (Some(now), 1);
        }
        std::mem::take(&mut self.suppressed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_few_are_logged_and_the_rest_is_counted() {
        let (mut rate, began) = (Rate::new(3), Instant::now());
        let verdicts: Vec<_> = (0..6).map(|_| rate.event(began)).collect();
        use Verdict::{Log, Suppress, SuppressFirst};
        assert_eq!(verdicts, [Log, Log, Log, SuppressFirst, Suppress, Suppress]);
        assert_eq!(rate.report(began + REPORT_INTERVAL), 3);
        assert_eq!(rate.report(began + REPORT_INTERVAL), 0);
    }

    #[test]
    fn a_flood_is_one_event_and_one_report_an_interval_and_none_is_missing() {
        let (mut rate, began, step) = (Rate::new(5), Instant::now(), REPORT_INTERVAL / 1000);
        let (mut logged, mut reported, mut due, mut reports) = (0, 0, None, 0);
        for n in 0..100_000u32 {
            let now = began + step * n;
            if due.is_some_and(|due| now >= due) {
                reported += rate.report(now);
                (due, reports) = (None, reports + 1);
            }
            match rate.event(now) {
                Verdict::Log => logged += 1,
                Verdict::SuppressFirst => {
                    assert_eq!(due.replace(now + REPORT_INTERVAL), None, "two reports are due")
                }
                Verdict::Suppress => assert!(due.is_some(), "no report is due"),
            }
        }
        reported += rate.report(began + step * 100_000);
        assert_eq!(logged + reported, 100_000);
        assert!(
            (99..=100).contains(&reports) && (5 + reports - 1..=5 + reports).contains(&logged),
            "{reports} {logged}"
        );
    }

    #[test]
    fn a_quiet_interval_brings_the_first_few_back() {
        let (mut rate, began) = (Rate::new(2), Instant::now());
        for quiet in 0..5 {
            let now = began + REPORT_INTERVAL * 3 * quiet;
            assert_eq!([rate.event(now), rate.event(now)], [Verdict::Log, Verdict::Log], "{quiet}");
            assert_eq!(rate.event(now), Verdict::SuppressFirst);
            assert_eq!(rate.report(now + REPORT_INTERVAL), 1);
        }
    }

    #[test]
    fn a_report_that_is_late_loses_nothing() {
        let (mut rate, began) = (Rate::new(1), Instant::now());
        assert_eq!(rate.event(began), Verdict::Log);
        assert_eq!(rate.event(began), Verdict::SuppressFirst);
        // The interval has ended, but its report is late.
        assert_eq!(rate.event(began + REPORT_INTERVAL * 2), Verdict::Suppress);
        assert_eq!(rate.report(began + REPORT_INTERVAL * 2), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_held_back_is_reported_though_no_further_event_comes() {
        let warning = Warning::new("x", 1);
        let mut logged = 0;
        (0..10).for_each(|_| warning.warn(|_| logged += 1));
        assert_eq!((logged, warning.with_rate(|rate| rate.suppressed)), (1, 9));
        tokio::time::sleep(REPORT_INTERVAL + Duration::from_millis(1)).await;
        assert_eq!(warning.with_rate(|rate| rate.suppressed), 0);
    }
}
