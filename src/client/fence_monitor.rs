//! Warns of a lock's fence that falls, as far as this client has seen.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

use crate::types::{Fence, Key};

/// The most keys that are remembered. The oldest key is forgotten first.
const MAX_KEYS: usize = 4096;

/// Remembers the highest fence of each key, for the keys whose first grant is most recent.
#[derive(Default)]
pub(crate) struct FenceMonitor(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    keys: HashMap<Key, Highest>,
    order: VecDeque<Key>,
}

struct Highest {
    fence: Fence,
    /// The instant at which its grant was received.
    received: Instant,
    reported: bool,
}

impl FenceMonitor {
    /// Records the grant of a lock, requested at `sent` and received at `received`. Warns, once per key, of a
    /// fence below an earlier one: a store that checks fences will reject this holder.
    pub(crate) fn granted(
        &self,
        key: &Key,
        fence: Option<Fence>,
        (sent, received): (Instant, Instant),
        server: &str,
    ) {
        let Some(fence) = fence else { return };
        let fell_from = self.record(key, fence, sent, received);
        if let Some(highest) = fell_from {
            let (fence, highest) = (fence.get(), highest.get());
            tracing::warn!(%key, server, fence, highest, "the fence fell: the server may have lost its fence state");
        }
    }

    /// Records a fence. Returns the higher one that was received before, if the fence fell, the first time for
    /// its key.
    ///
    /// Replies over two connections may arrive in another order than the server sent them in. So a fence has
    /// fallen only if its grant was requested after the higher one was received.
    fn record(&self, key: &Key, fence: Fence, sent: Instant, received: Instant) -> Option<Fence> {
        // Nothing panics under this lock.
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(highest) = seen.keys.get_mut(key) {
            if fence >= highest.fence {
                (highest.fence, highest.received) = (fence, received);
                return None;
            }
            let fell = sent > highest.received;
            let is_first_report = fell && !highest.reported;
            highest.reported |= fell;
            return is_first_report.then_some(highest.fence);
        }
        if seen.order.len() == MAX_KEYS
            && let Some(oldest) = seen.order.pop_front()
        {
            seen.keys.remove(&oldest);
        }
        seen.order.push_back(key.clone());
        seen.keys.insert(key.clone(), Highest { fence, received, reported: false });
        None
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn key(name: &str) -> Key {
        Key::parse(name).unwrap()
    }

    /// Records a fence that was requested and received this many seconds after `start`.
    fn record(
        monitor: &FenceMonitor,
        name: &str,
        fence: u64,
        start: Instant,
        (sent, received): (u64, u64),
    ) -> Option<u64> {
        let at = |seconds| start + Duration::from_secs(seconds);
        monitor.record(&key(name), Fence::new(fence), at(sent), at(received)).map(Fence::get)
    }

    #[test]
    fn a_fence_that_falls_is_reported_once_per_key() {
        let (monitor, start) = (FenceMonitor::default(), Instant::now());
        let grants = [("a", 7), ("a", 9), ("b", 1), ("a", 8), ("a", 3), ("b", 2), ("b", 1)];
        let falls: Vec<_> = (1..)
            .zip(grants)
            .map(|(n, (name, fence))| record(&monitor, name, fence, start, (2 * n, 2 * n + 1)))
            .collect();
        assert_eq!(falls, [None, None, None, Some(9), None, None, Some(2)]);
    }

    #[test]
    fn a_grant_requested_before_the_higher_one_was_received_is_no_fall() {
        let (monitor, start) = (FenceMonitor::default(), Instant::now());
        // Both are requested together, over two connections, and the later grant is read first.
        assert_eq!(record(&monitor, "a", 9, start, (1, 5)), None);
        assert_eq!(record(&monitor, "a", 8, start, (1, 6)), None);
        assert_eq!(record(&monitor, "a", 8, start, (5, 7)), None, "in the same instant");
        // This one is requested afterwards, so the fence did fall. The grants above have not used up the warning.
        assert_eq!(record(&monitor, "a", 8, start, (6, 7)), Some(9));
        assert_eq!(record(&monitor, "a", 7, start, (8, 9)), None, "once per key");
    }

    #[test]
    fn the_number_of_remembered_keys_has_a_limit() {
        let (monitor, start) = (FenceMonitor::default(), Instant::now());
        for n in 0..=MAX_KEYS {
            assert_eq!(record(&monitor, &n.to_string(), 5, start, (0, 0)), None);
        }
        assert_eq!(monitor.0.lock().unwrap().keys.len(), MAX_KEYS);
        assert_eq!(record(&monitor, "0", 1, start, (1, 1)), None, "it was forgotten");
        assert_eq!(record(&monitor, "2", 1, start, (1, 1)), Some(5));
    }
}
