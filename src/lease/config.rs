//! The settings of a lease, whatever the engine.

use std::sync::Arc;

use crate::lease::event_handler::EventHandler;
use crate::lease::renewal::RenewalPolicy;
use crate::lease::reporter::LeaseCounters;

/// How a lease is kept, whatever the grant.
#[derive(Clone, Debug, Default)]
pub(crate) struct LeaseConfig {
    pub(crate) renewal: RenewalPolicy,
    pub(crate) handler: EventHandler,
    pub(crate) counters: Arc<LeaseCounters>,
}
