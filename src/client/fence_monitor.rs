//! Whether fences grow, as far as this client has seen. Knows of no connection.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

use crate::types::{Fence, Key};

/// How many keys are remembered; the oldest are forgotten first.
const MAX_KEYS: usize = 4096;

/// Remembers the highest fence of the keys that were last granted for the first time.
#[derive(Default)]
pub(crate) struct FenceMonitor(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    keys: HashMap<Key, Highest>,
    order: VecDeque<Key>,
}

struct Highest {
    fence: Fence,
    /// When it was heard of.
    heard: Instant,
    reported: bool,
}

impl FenceMonitor {
    /// Notes the grant of a key that one holds at a time, asked for at `sent` and heard of at `now`, and
    /// warns, once per key, of a fence below an earlier one: a store that checks fences will refuse this
    /// holder.
    pub(crate) fn granted(
        &self,
        key: &Key,
        fence: Option<Fence>,
        (sent, now): (Instant, Instant),
        server: &str,
    ) {
        let Some(fence) = fence else { return };
        let fell_from = self.note(key, fence, sent, now);
        if let Some(highest) = fell_from {
            let (fence, highest) = (fence.get(), highest.get());
            tracing::warn!(%key, server, fence, highest, "the fence fell: the server may have lost its fence state");
        }
    }

    /// The earlier fence that this one fell from, the first time that one does.
    ///
    /// Replies over two connections may be heard in another order than they were given in. So a fence has
    /// fallen only if its grant was asked for when the higher one was known already.
    fn note(&self, key: &Key, fence: Fence, sent: Instant, now: Instant) -> Option<Fence> {
        // Nothing panics while the map is locked.
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(highest) = seen.keys.get_mut(key) {
            if fence >= highest.fence {
                (highest.fence, highest.heard) = (fence, now);
                return None;
            }
            let fell = sent > highest.heard;
            let is_news = fell && !highest.reported;
            highest.reported |= fell;
            return is_news.then_some(highest.fence);
        }
        if seen.order.len() == MAX_KEYS
            && let Some(oldest) = seen.order.pop_front()
        {
            seen.keys.remove(&oldest);
        }
        seen.order.push_back(key.clone());
        seen.keys.insert(key.clone(), Highest { fence, heard: now, reported: false });
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

    /// The fence that this one fell from, asked for and heard of so many seconds after `start`.
    fn note(
        watch: &FenceMonitor,
        name: &str,
        fence: u64,
        start: Instant,
        (sent, now): (u64, u64),
    ) -> Option<u64> {
        let at = |seconds| start + Duration::from_secs(seconds);
        watch.note(&key(name), Fence::new(fence), at(sent), at(now)).map(Fence::get)
    }

    #[test]
    fn a_fence_that_falls_is_reported_once_per_key() {
        let (watch, start) = (FenceMonitor::default(), Instant::now());
        let grants = [("a", 7), ("a", 9), ("b", 1), ("a", 8), ("a", 3), ("b", 2), ("b", 1)];
        let notes: Vec<_> = (1..)
            .zip(grants)
            .map(|(n, (name, fence))| note(&watch, name, fence, start, (2 * n, 2 * n + 1)))
            .collect();
        assert_eq!(notes, [None, None, None, Some(9), None, None, Some(2)]);
    }

    #[test]
    fn a_grant_that_was_asked_for_before_the_higher_one_was_heard_of_has_only_crossed_it() {
        let (watch, start) = (FenceMonitor::default(), Instant::now());
        // Asked for together, over two connections, and the later grant is read first.
        assert_eq!(note(&watch, "a", 9, start, (1, 5)), None);
        assert_eq!(note(&watch, "a", 8, start, (1, 6)), None);
        assert_eq!(note(&watch, "a", 8, start, (5, 7)), None, "in the same instant");
        // Asked for afterwards: here it did fall, and what crossed has not used up the warning.
        assert_eq!(note(&watch, "a", 8, start, (6, 7)), Some(9));
        assert_eq!(note(&watch, "a", 7, start, (8, 9)), None, "once per key");
    }

    #[test]
    fn what_is_remembered_has_a_limit() {
        let (watch, start) = (FenceMonitor::default(), Instant::now());
        for n in 0..=MAX_KEYS {
            assert_eq!(note(&watch, &n.to_string(), 5, start, (0, 0)), None);
        }
        assert_eq!(watch.0.lock().unwrap().keys.len(), MAX_KEYS);
        assert_eq!(note(&watch, "0", 1, start, (1, 1)), None, "it was forgotten");
        assert_eq!(note(&watch, "2", 1, start, (1, 1)), Some(5));
    }
}
