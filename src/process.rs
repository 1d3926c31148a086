//! The process to which a value belongs. A forked child has its parent's memory, with the locks that were
//! held at the fork, but none of the threads that would release them.

use forkguard::Guard;

/// The process in which a value was created.
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

    /// Returns `true` if this process created the value, and not one that it was forked from. Makes no
    /// system call, since each acquire checks several times: it notices the C library's `fork`, but not a
    /// bare `clone`.
    pub(crate) fn is_here(&self) -> bool {
        #[cfg(test)]
        if self.in_a_fork != pretended::is_a_fork() {
            return false;
        }
        !self.forks.clone().detected_fork()
    }

    /// Returns the fault of a value that another process created; `None` for this process's own.
    #[cfg_attr(not(feature = "client"), allow(dead_code))]
    pub(crate) fn fault(&self) -> Option<String> {
        (!self.is_here()).then(|| "was created by a process that this one was forked from".to_owned())
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

    /// Runs `act` as the one thread of a forked child would.
    pub(crate) fn in_a_fork<T>(act: impl FnOnce() -> T) -> T {
        FORKED.set(true);
        let value = act();
        FORKED.set(false);
        value
    }
}
