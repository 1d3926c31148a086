//! Slots with small stable numbers, so that an index entry takes four bytes.

use std::ops::Range;

/// A vector whose freed slots are used again.
pub(super) struct Slab<T> {
    slots: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    pub(super) const fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn insert(&mut self, value: T) -> u32 {
        if let Some(at) = self.free.pop() {
            self.slots[at as usize] = Some(value);
            return at;
        }
        // 2^32 slots would take more than 200 GB, so memory is exhausted first.
        let at = u32::try_from(self.slots.len()).expect("the slab has fewer than 2^32 slots");
        self.slots.push(Some(value));
        at
    }

    pub(super) fn remove(&mut self, at: u32) -> Option<T> {
        let value = self.slots.get_mut(at as usize)?.take()?;
        self.free.push(at);
        Some(value)
    }

    pub(super) fn get(&self, at: u32) -> Option<&T> {
        self.slots.get(at as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, at: u32) -> Option<&mut T> {
        self.slots.get_mut(at as usize)?.as_mut()
    }

    /// Returns the number of slots, free ones included.
    pub(super) fn slot_count(&self) -> usize {
        self.slots.len()
    }

    /// Returns the values in a range of slots. The range may end behind the last slot.
    pub(super) fn range(&self, places: Range<usize>) -> impl Iterator<Item = &T> {
        let end = places.end.min(self.slots.len());
        self.slots[places.start.min(end)..end].iter().flatten()
    }
}
