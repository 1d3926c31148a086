//! The settings of a lease, the same for every backend.

use std::sync::Arc;

use crate::lease::counters::LeaseCounters;
use crate::lease::event_handler::EventHandler;
use crate::lease::renewal::RenewalPolicy;

/// The renewal policy of a lease, and the receivers of its events.
#[derive(Clone, Debug, Default)]
pub(crate) struct LeaseConfig {
    pub(crate) renewal: RenewalPolicy,
    pub(crate) handler: EventHandler,
    pub(crate) counters: Arc<LeaseCounters>,
}
