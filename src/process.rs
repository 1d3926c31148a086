//! Which process a thing belongs to. A forked child has its parent's memory, with the locks that were
//! held at the fork, but none of the threads that would release them.

/// The process in which a thing was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin(u32);

impl Origin {
    pub(crate) fn here() -> Self {
        Self(this_process())
    }

    /// Whether this process made the thing, and not one that it was forked from. A system call.
    pub(crate) fn is_here(self) -> bool {
        self.0 == this_process()
    }

    /// What is wrong with the thing where this process did not make it.
    #[cfg_attr(not(feature = "client"), allow(dead_code))]
    pub(crate) fn fault(self) -> Option<String> {
        let fault = || format!("process {} made it, this one was forked from that", self.0);
        (!self.is_here()).then(fault)
    }
}

impl Default for Origin {
    fn default() -> Self {
        Self::here()
    }
}

#[cfg(not(test))]
fn this_process() -> u32 {
    std::process::id()
}

#[cfg(test)]
pub(crate) use pretended::in_a_fork;
#[cfg(test)]
use pretended::this_process;

#[cfg(test)]
mod pretended {
    use std::cell::Cell;

    thread_local!(static FORKED: Cell<bool> = const { Cell::new(false) });

    pub(super) fn this_process() -> u32 {
        std::process::id() ^ u32::from(FORKED.get())
    }

    /// Does this as the one thread of a forked child would.
    pub(crate) fn in_a_fork<T>(act: impl FnOnce() -> T) -> T {
        FORKED.set(true);
        let value = act();
        FORKED.set(false);
        value
    }
}
