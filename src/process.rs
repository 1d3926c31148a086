//! Which process a thing belongs to. A forked child has its parent's memory, with the locks that were
//! held at the fork, but none of the threads that would release them.

use forkguard::Guard;

/// The process in which a thing was made.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    forks: Guard,
    #[cfg(test)]
    in_a_fork: bool,
}

impl Origin {
    pub(crate) fn here() -> Self {
        Self {
            forks: forkguard::new(),
            #[cfg(test)]
            in_a_fork: pretended::is_a_fork(),
        }
    }

    /// Whether this process made the thing, and not one that it was forked from. No system call, since each
    /// acquire asks several times: the C library's `fork` counts, and a bare `clone` goes unseen.
    pub(crate) fn is_here(&self) -> bool {
        #[cfg(test)]
        if self.in_a_fork != pretended::is_a_fork() {
            return false;
        }
        !self.forks.clone().detected_fork()
    }

    /// What is wrong with the thing where this process did not make it.
    #[cfg_attr(not(feature = "client"), allow(dead_code))]
    pub(crate) fn fault(&self) -> Option<String> {
        (!self.is_here()).then(|| "another process made it, this one was forked from that".to_owned())
    }
}

impl Default for Origin {
    fn default() -> Self {
        Self::here()
    }
}

#[cfg(test)]
pub(crate) use pretended::in_a_fork;

#[cfg(test)]
mod pretended {
    use std::cell::Cell;

    thread_local!(static FORKED: Cell<bool> = const { Cell::new(false) });

    pub(super) fn is_a_fork() -> bool {
        FORKED.get()
    }

    /// Does this as the one thread of a forked child would.
    pub(crate) fn in_a_fork<T>(act: impl FnOnce() -> T) -> T {
        FORKED.set(true);
        let value = act();
        FORKED.set(false);
        value
    }
}
