//! Who holds one key: none, one (kept inline, the common case) or many.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::ConnId;
use crate::types::{Fence, Seconds, Token};

pub(super) struct Holder {
    pub(super) token: Token,
    pub(super) conn: ConnId,
    pub(super) deadline: Instant,
    /// The lease as granted or last set.
    pub(super) lease: Seconds,
}

pub(super) enum Holders {
    None,
    One(Fence, Holder),
    Many(Box<Many>),
}

/// Holders by fence, and their deadlines in order.
#[derive(Default)]
pub(super) struct Many {
    holders: BTreeMap<Fence, Holder>,
    deadlines: BTreeSet<(Instant, Fence)>,
}

impl Many {
    fn insert(&mut self, fence: Fence, holder: Holder) {
        self.deadlines.insert((holder.deadline, fence));
        self.holders.insert(fence, holder);
    }
}

impl Holders {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::One(..) => 1,
            Self::Many(many) => many.holders.len(),
        }
    }

    pub(super) fn get(&self, fence: Fence) -> Option<&Holder> {
        match self {
            Self::One(only, holder) if *only == fence => Some(holder),
            Self::Many(many) => many.holders.get(&fence),
            _ => None,
        }
    }

    /// One of the holders, where there is one.
    pub(super) fn any(&self) -> Option<&Holder> {
        match self {
            Self::None => None,
            Self::One(_, holder) => Some(holder),
            Self::Many(many) => many.holders.values().next(),
        }
    }

    pub(super) fn insert(&mut self, fence: Fence, holder: Holder) {
        *self = match std::mem::replace(self, Self::None) {
            Self::None => Self::One(fence, holder),
            Self::One(first, first_holder) => {
                let mut many = Box::<Many>::default();
                many.insert(first, first_holder);
                many.insert(fence, holder);
                Self::Many(many)
            }
            Self::Many(mut many) => {
                many.insert(fence, holder);
                Self::Many(many)
            }
        };
    }

    pub(super) fn remove(&mut self, fence: Fence) -> Option<Holder> {
        if let Self::Many(many) = self {
            let holder = many.holders.remove(&fence)?;
            many.deadlines.remove(&(holder.deadline, fence));
            if many.holders.is_empty() {
                *self = Self::None;
            }
            return Some(holder);
        }
        match std::mem::replace(self, Self::None) {
            Self::One(only, holder) if only == fence => Some(holder),
            other => {
                *self = other;
                None
            }
        }
    }

    /// Sets a deadline and answers the one before.
    pub(super) fn set(&mut self, fence: Fence, deadline: Instant, lease: Seconds) -> Option<Instant> {
        let holder = match self {
            Self::One(only, holder) if *only == fence => holder,
            Self::Many(many) => {
                let holder = many.holders.get_mut(&fence)?;
                many.deadlines.remove(&(holder.deadline, fence));
                many.deadlines.insert((deadline, fence));
                holder
            }
            _ => return None,
        };
        holder.lease = lease;
        Some(std::mem::replace(&mut holder.deadline, deadline))
    }

    /// A holder whose lease has run out.
    pub(super) fn expired(&self, now: Instant) -> Option<Fence> {
        let (deadline, fence) = match self {
            Self::None => return None,
            Self::One(fence, holder) => (holder.deadline, *fence),
            Self::Many(many) => *many.deadlines.first()?,
        };
        (deadline <= now).then_some(fence)
    }
}
