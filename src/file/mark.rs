//! The mark in a claim's random number, which shows where this crate has made the claim.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::file::host;
use crate::file::name::{ClaimName, MAX_SALT};

/// The number of low bits in a claim's number that count the claims of a process. A process never makes
/// so many while one of them stands, so no two are alike.
const COUNTER_BITS: u32 = 35;

/// Identifies the processes among which a process number means one process: of one kernel, since it was
/// started, in one namespace of process numbers. It is 28 bits long and stands in the number of each
/// claim that this crate makes; claims of other programs, such as Python's, have it by chance once in
/// 2^28.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    bits: u64,
    /// The process that has determined it: a forked child may run in another namespace.
    pid: u32,
}

impl Mark {
    /// Returns the mark of where this process runs. If that cannot be known, the process has a mark to
    /// itself.
    pub(super) fn here() -> Self {
        static ALONE: AtomicU64 = AtomicU64::new(0);
        let sum = system::place().map(|place| crc32fast::hash(&place));
        Self::of_sum(sum.unwrap_or_else(|| chosen_once(&ALONE) as u32))
    }

    fn of_sum(sum: u32) -> Self {
        Self { bits: u64::from(sum >> 4), pid: std::process::id() }
    }

    /// Returns a number for a new claim.
    pub(super) fn salt(self) -> u64 {
        static FIRST: AtomicU64 = AtomicU64::new(0);
        static MADE: AtomicU64 = AtomicU64::new(0);
        if self.pid != std::process::id() {
            return fastrand::u64(0..=MAX_SALT);
        }
        // The count starts at random: an earlier process with this process's number may have left claims.
        let count = chosen_once(&FIRST).wrapping_add(MADE.fetch_add(1, Ordering::Relaxed));
        self.bits << COUNTER_BITS | count & ((1 << COUNTER_BITS) - 1)
    }

    /// Returns `true` if the claim's process number means the same to this process as to the one that
    /// made the claim.
    fn made(self, claim: &ClaimName<'_>) -> bool {
        self.pid == std::process::id() && claim.salt >> COUNTER_BITS == self.bits
    }

    /// Returns `true` if this process has made the claim.
    pub(super) fn is_own(self, claim: &ClaimName<'_>) -> bool {
        self.made(claim) && claim.pid == self.pid
    }

    /// Returns `true` if the process that has made the claim is known to be dead.
    pub(super) fn is_dead(self, claim: &ClaimName<'_>) -> bool {
        self.made(claim) && !host::is_alive(claim.pid)
    }
}

/// Returns a number that is chosen once in a process, without a lock that a fork could leave taken.
fn chosen_once(number: &AtomicU64) -> u64 {
    let choice = fastrand::u64(1..);
    match number.compare_exchange(0, choice, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => choice,
        Err(earlier) => earlier,
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
mod system {
    /// Returns bytes that are unique to this kernel, its start and this namespace.
    pub(super) fn place() -> Option<Vec<u8>> {
        let mut place = std::fs::read("/proc/sys/kernel/random/boot_id").ok().filter(|id| !id.is_empty())?;
        let namespace = std::fs::read_link("/proc/self/ns/pid").ok()?;
        place.extend_from_slice(namespace.as_os_str().as_encoded_bytes());
        Some(place)
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod system {
    pub(super) fn place() -> Option<Vec<u8>> {
        None
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The mark of another place.
    pub(in crate::file) fn elsewhere() -> Mark {
        let here = Mark::here();
        Mark { bits: here.bits ^ 1, ..here }
    }

    fn claim(pid: u32, salt: u64) -> ClaimName<'static> {
        ClaimName { lockfile: b"/d/x.lck", hostname: b"h", pid, salt }
    }

    #[test]
    fn a_process_is_known_to_be_dead_only_where_its_number_means_the_same() {
        let (here, pid) = (Mark::here(), std::process::id());
        assert!(here.is_dead(&claim(u32::MAX, here.salt())));
        assert!(!here.is_dead(&claim(pid, here.salt())));
        for foreign in [elsewhere().salt(), 0, MAX_SALT - 17] {
            assert!(!here.is_dead(&claim(u32::MAX, foreign)));
            assert!(!here.is_own(&claim(pid, foreign)));
        }
        assert!(here.is_own(&claim(pid, here.salt())));
        assert!(!here.is_own(&claim(1, here.salt())));
        // A forked child has not determined its mark yet.
        let parent = Mark { pid: pid + 1, ..here };
        assert!(!parent.is_dead(&claim(u32::MAX, parent.salt())));
        assert!(!parent.is_own(&claim(pid + 1, here.salt())));
    }

    #[test]
    fn no_two_numbers_of_a_process_are_alike_and_all_are_numbers_of_a_claim() {
        let mut salts: Vec<_> = (0..10_000).map(|_| Mark::of_sum(u32::MAX).salt()).collect();
        assert!(salts.iter().all(|salt| *salt <= MAX_SALT));
        salts.sort_unstable();
        salts.dedup();
        assert_eq!(salts.len(), 10_000);
    }

    #[test]
    fn the_place_of_a_process_stays_the_same() {
        assert_eq!(Mark::here(), Mark::here());
    }
}
