//! Rules that this crate's own tests break on purpose, to show that their checkers would notice.
//! Nothing is ever broken without the feature `_sabotage`, which is for those tests alone.

/// A rule that a test can break, for its whole process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "_sabotage"), allow(dead_code, unreachable_pub))]
pub enum Rule {
    /// A lease is lost at its deadline, and when its server is silent for too long.
    Deadline,
    /// A grant that nobody took is released.
    OrphanRelease,
    /// A reply belongs to the oldest request, even if nobody waits for that any more.
    ReplyOrder,
    /// What a connection held that the server gave up, as by its write timeout, is freed no earlier
    /// than the read timeout would have freed it.
    GivenUp,
}

#[cfg(feature = "_sabotage")]
mod switch {
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::Rule;

    static BROKEN: AtomicU8 = AtomicU8::new(0);

    /// Breaks this rule and mends all others.
    pub fn break_only(rule: Option<Rule>) {
        BROKEN.store(rule.map_or(0, |rule| rule as u8 + 1), Ordering::SeqCst);
    }

    pub(crate) fn is_broken(rule: Rule) -> bool {
        BROKEN.load(Ordering::Relaxed) == rule as u8 + 1
    }
}

#[cfg(feature = "_sabotage")]
pub use switch::break_only;
#[cfg(all(feature = "_sabotage", any(feature = "client", feature = "server")))]
pub(crate) use switch::is_broken;

#[cfg(not(feature = "_sabotage"))]
pub(crate) const fn is_broken(_: Rule) -> bool {
    false
}
