//! The schedule of one lease, without a clock: when to renew next, when the lease is at risk, when
//! it is lost. Time is an argument. Knows of no runtime and no engine.

use std::fmt;
use std::time::{Duration, Instant};

use crate::failpoints::{Rule, is_broken};

/// Why a lease was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LostReason {
    /// The connection that the grant is bound to closed; the server may have handed the key on.
    ConnectionClosed,
    /// The connection closed after the server had said that it was shutting down.
    ServerDraining,
    /// The server answered nothing for two keepalive intervals: it may have dropped the connection
    /// by now, and handed the key on.
    KeepaliveTimeout,
    /// The server answered a renewal with `error`: it knows no such holder any more.
    RenewalRejected,
    /// No renewal got through before the deadline. Where the system counts it, the time for which this
    /// machine was suspended is counted.
    DeadlinePassed,
    /// The runtime that renewed the lease was shut down.
    RuntimeShutdown,
    /// The lock file was removed: somebody broke the lock or deleted the file, or its claim, or gave
    /// it a third link.
    FileRemoved,
    /// Another file stands in the lock file's place: somebody broke the lock, and took it.
    FileReplaced,
    /// The client was closed, which let go of the lease.
    ClientClosed,
    /// This process was forked from the one that holds the lease, and has no part in it.
    Forked,
    /// It was let go on this side, through this handle or another: released, dropped with its guard,
    /// or forgotten. No loss, but no handle holds it any more either.
    Released,
}

impl fmt::Display for LostReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ConnectionClosed => "its connection closed",
            Self::ServerDraining => "the server shut down",
            Self::KeepaliveTimeout => "the server answered nothing for too long",
            Self::RenewalRejected => "the server rejected its renewal",
            Self::DeadlinePassed => "its deadline passed without a renewal",
            Self::RuntimeShutdown => "the runtime that renewed it shut down",
            Self::FileRemoved => "its lock file was removed, or has other links than it should",
            Self::FileReplaced => "another's lock file stands in its place",
            Self::ClientClosed => "its client was closed",
            Self::Forked => "this process was forked from its holder",
            Self::Released => "it was released or forgotten",
        })
    }
}

/// How a lease stands, the same for every handle on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LeaseState {
    /// Held, with time to spare.
    Healthy,
    /// Held, but renewals are late: little time is left.
    AtRisk,
    /// Not held any more, for good.
    Lost(LostReason),
    /// Let go before it was lost: released, dropped with its guard, or forgotten. It stays so.
    Released,
}

impl LeaseState {
    /// Returns why the lease is not held any more; `None` while it is held. For
    /// [`Released`](Self::Released) that is [`LostReason::Released`].
    pub fn lost(self) -> Option<LostReason> {
        match self {
            Self::Lost(reason) => Some(reason),
            Self::Released => Some(LostReason::Released),
            Self::Healthy | Self::AtRisk => None,
        }
    }
}

/// The pace of renewals.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RenewalPolicy {
    /// The share of the remaining time after which to renew, above 0 and below 1.
    pub ratio: f64,
    /// The share of each interval by which a renewal may come early, 0 to 1.
    pub jitter: f64,
    /// The share of the ttl left at which the lease is at risk, 0 to 1.
    pub at_risk: f64,
}

impl Default for RenewalPolicy {
    fn default() -> Self {
        Self { ratio: 0.5, jitter: 0.1, at_risk: 0.25 }
    }
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenewalAction {
    /// Send a renewal now.
    Renew,
    /// Nothing until this instant.
    Wait(Instant),
    /// Stop: the lease is lost.
    Lost(LostReason),
}

/// Renewals are spaced by at least this much, however little time is left.
const LEAST_PAUSE: Duration = Duration::from_millis(20);
/// A renewal that failed is made again after this much at the latest.
const RETRY_PAUSE: Duration = Duration::from_secs(2);

/// One lease's schedule. The deadline counts from the instant before the last successful request
/// was *sent*, so it is never later than the server's.
#[derive(Clone, Debug)]
pub struct RenewalSchedule {
    pace: RenewalPolicy,
    ttl: Duration,
    /// When the request was sent that the deadline counts from.
    sent: Instant,
    deadline: Instant,
    next: Instant,
    /// Something happened that only a renewal can clear up.
    doubtful: bool,
    lost: Option<LostReason>,
}

impl RenewalSchedule {
    /// A lease of `ttl`, granted by a request sent at `sent`. `luck` (0 to 1) picks the jitter.
    pub fn new(pace: RenewalPolicy, sent: Instant, ttl: Duration, now: Instant, luck: f64) -> Self {
        let mut renewal = Self { pace, ttl, sent, deadline: sent, next: sent, doubtful: false, lost: None };
        renewal.extend(sent, ttl, now, luck);
        renewal
    }

    /// A renewal sent at `sent` succeeded. Says nothing to a lease that is already lost, and one
    /// that is heard of only at [`lost_at`](Self::lost_at) or later is lost: so it has been said.
    /// Of two renewals, the one sent later counts.
    pub fn renewed(&mut self, sent: Instant, ttl: Duration, now: Instant, luck: f64) {
        if now >= self.lost_at() {
            self.lose(LostReason::DeadlinePassed);
        }
        if sent >= self.sent {
            self.extend(sent, ttl, now, luck);
        }
    }

    fn extend(&mut self, sent: Instant, ttl: Duration, now: Instant, luck: f64) {
        (self.sent, self.ttl, self.doubtful) = (sent, ttl, false);
        // A ttl past the clock's end is as good as one that ends there.
        self.deadline = sent.checked_add(ttl).unwrap_or_else(|| sent + Duration::from_secs(u32::MAX.into()));
        self.plan(now, luck);
    }

    /// A renewal failed in a way that says nothing about the lease: plan the next try.
    pub fn failed(&mut self, now: Instant, luck: f64) {
        self.plan(now, luck);
        self.next = self.next.min(now + RETRY_PAUSE);
    }

    /// Something happened that leaves the lease in doubt: it is at risk, and renewed at once.
    pub fn doubt(&mut self, now: Instant) {
        self.doubtful = true;
        self.next = now;
    }

    /// The lease is lost. The first reason stands.
    pub fn lose(&mut self, reason: LostReason) {
        self.lost.get_or_insert(reason);
    }

    /// Plans the next renewal: after a share of what remains, and while there is still time for it.
    fn plan(&mut self, now: Instant, luck: f64) {
        let remaining = self.deadline.saturating_duration_since(now);
        let early = 1.0 - self.pace.jitter * luck.clamp(0.0, 1.0);
        let pause = remaining.mul_f64((self.pace.ratio * early).clamp(0.0, 1.0));
        let latest = remaining.saturating_sub((self.ttl / 4).min(Duration::from_millis(250)));
        self.next = now + pause.min(latest).max(LEAST_PAUSE);
    }

    /// Whether something happened that only a renewal can clear up.
    pub fn is_in_doubt(&self) -> bool {
        self.doubtful
    }

    /// What to do at `now`; `in_flight` when a renewal is under way.
    pub fn poll(&mut self, now: Instant, in_flight: bool) -> RenewalAction {
        if now >= self.lost_at() {
            self.lose(LostReason::DeadlinePassed);
        }
        if let Some(reason) = self.lost {
            return RenewalAction::Lost(reason);
        }
        if !in_flight && now >= self.next {
            return RenewalAction::Renew;
        }
        let mut wake = self.lost_at();
        if now < self.at_risk_at() {
            wake = wake.min(self.at_risk_at());
        }
        if !in_flight {
            wake = wake.min(self.next);
        }
        RenewalAction::Wait(wake)
    }

    /// How the lease stands at `now`.
    pub fn state(&self, now: Instant) -> LeaseState {
        match self.lost {
            Some(reason) => LeaseState::Lost(reason),
            None if now >= self.lost_at() => LeaseState::Lost(LostReason::DeadlinePassed),
            None if self.doubtful || now >= self.at_risk_at() => LeaseState::AtRisk,
            None => LeaseState::Healthy,
        }
    }

    /// When the request was sent that the deadline counts from.
    pub fn sent(&self) -> Instant {
        self.sent
    }

    /// When the lease runs out, by this process's clock, unless renewed.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The lease's length as last set.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// When the lease counts as lost: a margin (2 % of the ttl, at most 500 ms) ahead of its
    /// deadline, for the time that hearing of it takes.
    pub fn lost_at(&self) -> Instant {
        if is_broken(Rule::Deadline) {
            return self.deadline + Duration::from_secs(3600);
        }
        self.deadline - (self.ttl / 50).min(Duration::from_millis(500))
    }

    fn at_risk_at(&self) -> Instant {
        self.deadline - self.ttl.mul_f64(self.pace.at_risk.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn lease(ttl: Duration) -> (Instant, RenewalSchedule) {
        let start = Instant::now();
        (
            start,
            RenewalSchedule::new(
                RenewalPolicy { jitter: 0.0, ..RenewalPolicy::default() },
                start,
                ttl,
                start,
                0.0,
            ),
        )
    }

    #[test]
    fn it_renews_after_a_share_of_what_remains() {
        let (start, mut lease) = lease(10 * S);
        assert_eq!(lease.poll(start, false), RenewalAction::Wait(start + 5 * S));
        assert_eq!(lease.poll(start + 5 * S, false), RenewalAction::Renew);
        lease.renewed(start + 5 * S, 10 * S, start + 6 * S, 0.0);
        assert_eq!(lease.deadline(), start + 15 * S);
        assert_eq!(lease.poll(start + 6 * S, false), RenewalAction::Wait(start + 6 * S + 9 * S / 2));
    }

    #[test]
    fn the_deadline_counts_from_sending_and_never_from_hearing() {
        let (start, mut lease) = lease(10 * S);
        lease.renewed(start + S, 10 * S, start + 9 * S, 0.0);
        assert_eq!(lease.deadline(), start + 11 * S);
    }

    #[test]
    fn jitter_only_makes_it_earlier() {
        let start = Instant::now();
        for luck in [0.0, 0.3, 1.0, 7.0] {
            let mut lease = RenewalSchedule::new(RenewalPolicy::default(), start, 10 * S, start, luck);
            let RenewalAction::Wait(next) = lease.poll(start, false) else { panic!("renewed at once") };
            assert!(next <= start + 5 * S && next >= start + 9 * S / 2, "{luck}");
        }
    }

    #[test]
    fn a_one_second_lease_is_renewed_in_time_at_any_ratio() {
        let start = Instant::now();
        for ratio in [0.001, 0.5, 0.999] {
            let pace = RenewalPolicy { ratio, ..RenewalPolicy::default() };
            let mut lease = RenewalSchedule::new(pace, start, S, start, 0.0);
            let mut now = start;
            let renew_at = loop {
                match lease.poll(now, false) {
                    RenewalAction::Renew => break now,
                    RenewalAction::Wait(until) => now = until,
                    RenewalAction::Lost(reason) => panic!("lost before a renewal at {ratio}: {reason}"),
                }
            };
            assert!(renew_at <= start + 3 * S / 4, "{ratio}");
        }
    }

    #[test]
    fn failures_are_retried_until_the_lease_is_lost_at_its_deadline() {
        let (start, mut lease) = lease(10 * S);
        let (mut now, mut tries) = (start, 0);
        let reason = loop {
            match lease.poll(now, false) {
                RenewalAction::Renew => {
                    tries += 1;
                    lease.failed(now, 0.0);
                }
                RenewalAction::Wait(until) => {
                    assert!(until > now);
                    now = until;
                }
                RenewalAction::Lost(reason) => break reason,
            }
        };
        assert_eq!(reason, LostReason::DeadlinePassed);
        assert!(now < start + 10 * S && now >= start + 9 * S);
        assert!((4..60).contains(&tries), "{tries} tries");
    }

    #[test]
    fn it_is_at_risk_before_it_is_lost_and_a_renewal_heals_it() {
        let (start, mut lease) = lease(8 * S);
        assert_eq!(lease.state(start + 5 * S), LeaseState::Healthy);
        assert_eq!(lease.state(start + 6 * S), LeaseState::AtRisk);
        assert_eq!(lease.poll(start + 5 * S, true), RenewalAction::Wait(start + 6 * S));
        lease.renewed(start + 6 * S, 8 * S, start + 6 * S, 0.0);
        assert_eq!(lease.state(start + 7 * S), LeaseState::Healthy);
    }

    #[test]
    fn lost_stays_lost_with_its_first_reason() {
        let (start, mut lease) = lease(10 * S);
        lease.lose(LostReason::RenewalRejected);
        lease.lose(LostReason::ConnectionClosed);
        lease.renewed(start, 100 * S, start, 0.0);
        assert_eq!(lease.state(start), LeaseState::Lost(LostReason::RenewalRejected));
        assert_eq!(lease.poll(start, false), RenewalAction::Lost(LostReason::RenewalRejected));
    }

    #[test]
    fn a_renewal_heard_of_too_late_does_not_revive_the_lease() {
        let (start, mut lease) = lease(10 * S);
        let late = lease.lost_at();
        assert_eq!(lease.state(late), LeaseState::Lost(LostReason::DeadlinePassed));
        lease.renewed(start + 9 * S, 10 * S, late, 0.0);
        assert_eq!(lease.state(late), LeaseState::Lost(LostReason::DeadlinePassed));
    }

    #[test]
    fn of_two_renewals_the_one_sent_later_counts() {
        let (start, mut lease) = lease(10 * S);
        lease.renewed(start + 2 * S, 5 * S, start + 3 * S, 0.0);
        lease.renewed(start + S, 10 * S, start + 4 * S, 0.0);
        assert_eq!(lease.deadline(), start + 7 * S);
    }

    #[test]
    fn a_lease_in_doubt_is_at_risk_until_a_renewal_clears_it_up() {
        let (start, mut lease) = lease(10 * S);
        lease.doubt(start + S);
        assert_eq!(lease.state(start + S), LeaseState::AtRisk);
        assert_eq!(lease.poll(start + S, false), RenewalAction::Renew);
        lease.failed(start + S, 0.0);
        assert_eq!(lease.poll(start + S, false), RenewalAction::Wait(start + 3 * S));
        lease.renewed(start + 3 * S, 10 * S, start + 3 * S, 0.0);
        assert_eq!(lease.state(start + 3 * S), LeaseState::Healthy);
    }

    #[test]
    fn the_longest_lease_does_not_overflow_the_clock() {
        let (start, mut lease) = lease(Duration::from_secs(crate::MAX_SECONDS));
        assert!(matches!(lease.poll(start, false), RenewalAction::Wait(at) if at > start));
    }
}
