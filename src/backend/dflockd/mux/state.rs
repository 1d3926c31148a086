//! The state of a connection, which only ever advances.

use std::sync::atomic::{AtomicU8, Ordering};

/// The states, in the order in which a connection passes them. It may skip some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum ConnState {
    /// Takes requests.
    Open,
    /// Takes no more requests, and closes once those in flight are answered.
    Closing,
    /// Its wait was abandoned: takes no more requests, and only reads on for a late grant.
    Abandoned,
    /// The stream is closed.
    Closed,
    /// The stream is closed, and every caller that waited for a reply has its error.
    Finished,
}

impl ConnState {
    fn from_u8(state: u8) -> Self {
        match state {
            0 => Self::Open,
            1 => Self::Closing,
            2 => Self::Abandoned,
            3 => Self::Closed,
            _ => Self::Finished,
        }
    }
}

/// A [`ConnState`] that handles and the driver share.
pub(super) struct AtomicConnState(AtomicU8);

impl AtomicConnState {
    pub(super) fn new() -> Self {
        Self(AtomicU8::new(ConnState::Open as u8))
    }

    pub(super) fn load(&self) -> ConnState {
        ConnState::from_u8(self.0.load(Ordering::Acquire))
    }

    /// Advances to `state`. If the connection is past it already, nothing changes.
    pub(super) fn advance(&self, state: ConnState) {
        self.0.fetch_max(state as u8, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::{AtomicConnState, ConnState};

    #[test]
    fn a_connection_advances_and_never_goes_back() {
        let state = AtomicConnState::new();
        let order = [
            ConnState::Open,
            ConnState::Closing,
            ConnState::Abandoned,
            ConnState::Closed,
            ConnState::Finished,
        ];
        for (at, next) in order.into_iter().enumerate() {
            state.advance(next);
            order[..at].iter().for_each(|earlier| state.advance(*earlier));
            assert_eq!(state.load(), next);
        }
    }
}
