//! Whether fences grow, as far as this client has seen. Knows of no connection.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use crate::types::{Fence, Key};

/// How many keys are remembered; the oldest are forgotten first.
const MAX_KEYS: usize = 4096;

/// Remembers the highest fence of the keys that were last granted for the first time.
#[derive(Default)]
pub(crate) struct FenceWatch(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    keys: HashMap<Key, Highest>,
    order: VecDeque<Key>,
}

struct Highest {
    fence: Fence,
    reported: bool,
}

impl FenceWatch {
    /// Notes a lock's grant, and warns, once per key, of a fence below an earlier one: a store that
    /// checks fences will refuse this holder.
    pub(crate) fn granted(&self, key: &Key, fence: Option<Fence>, server: &str) {
        let Some(fence) = fence else { return };
        let fell_from = self.note(key, fence);
        if let Some(highest) = fell_from {
            let (fence, highest) = (fence.get(), highest.get());
            tracing::warn!(%key, server, fence, highest, "the fence fell: the server may have lost its fence state");
        }
    }

    /// The earlier fence that this one fell from, the first time that one does.
    fn note(&self, key: &Key, fence: Fence) -> Option<Fence> {
        // Nothing panics while the map is locked.
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(highest) = seen.keys.get_mut(key) {
            if fence >= highest.fence {
                highest.fence = fence;
                return None;
            }
            let first = !highest.reported;
            highest.reported = true;
            return first.then_some(highest.fence);
        }
        if seen.order.len() == MAX_KEYS
            && let Some(oldest) = seen.order.pop_front()
        {
            seen.keys.remove(&oldest);
        }
        seen.order.push_back(key.clone());
        seen.keys.insert(key.clone(), Highest { fence, reported: false });
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::parse(name).unwrap()
    }

    #[test]
    fn a_fence_that_falls_is_reported_once_per_key() {
        let watch = FenceWatch::default();
        let (a, b) = (key("a"), key("b"));
        let notes = [(&a, 7), (&a, 9), (&b, 1), (&a, 8), (&a, 3), (&b, 2), (&b, 1)]
            .map(|(key, fence)| watch.note(key, Fence::new(fence)).map(Fence::get));
        assert_eq!(notes, [None, None, None, Some(9), None, None, Some(2)]);
    }

    #[test]
    fn what_is_remembered_has_a_limit() {
        let watch = FenceWatch::default();
        for n in 0..=MAX_KEYS {
            assert_eq!(watch.note(&key(&n.to_string()), Fence::new(5)), None);
        }
        assert_eq!(watch.0.lock().unwrap().keys.len(), MAX_KEYS);
        assert_eq!(watch.note(&key("0"), Fence::new(1)), None, "it was forgotten");
        assert_eq!(watch.note(&key("2"), Fence::new(1)).map(Fence::get), Some(5));
    }
}
