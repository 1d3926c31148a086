//! The schedule of one lease: when to renew next, when the lease is at risk, when it is lost. Takes the time as an
//! argument. Does not depend on a runtime or a clock.

use std::fmt;
use std::time::{Duration, Instant};

use crate::failpoints::{Rule, is_broken};

/// Why a lease was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LostReason {
    /// The connection that the grant is bound to closed. The server may have granted the key again.
    ConnectionClosed,
    /// The connection closed after the server had announced its shutdown.
    ServerDraining,
    /// The server sent no reply for two keepalive intervals. It may have dropped the connection by now, and
    /// granted the key again.
    KeepaliveTimeout,
    /// The server rejected a renewal with `error`: it no longer knows the holder.
    RenewalRejected,
    /// No renewal succeeded before the deadline. If the system counts the time for which this machine was
    /// suspended, that time is included.
    DeadlinePassed,
    /// The runtime that renewed the lease was shut down.
    RuntimeShutdown,
    /// The lock file was removed: another process broke the lock or deleted the file, or its claim, or gave
    /// it a third link.
    FileRemoved,
    /// Another file stands in the lock file's place: another process broke the lock, and took it.
    FileReplaced,
    /// The client was closed, which released the lease.
    ClientClosed,
    /// This process was forked from the one that holds the lease, and does not hold it.
    Forked,
    /// The lease was released on this side, through any handle: released, dropped with its guard, or
    /// forgotten. That is no loss, but no handle holds the lease any longer.
    Released,
}

impl fmt::Display for LostReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ConnectionClosed => "its connection closed",
            Self::ServerDraining => "the server shut down",
            Self::KeepaliveTimeout => "the server sent no reply for too long",
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

/// The state of a lease, the same for every handle on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LeaseState {
    /// Held, with time to spare.
    Healthy,
    /// Held, but renewals are late: little time is left.
    AtRisk,
    /// No longer held. Final.
    Lost(LostReason),
    /// Released before it was lost: by a call, with its guard, or by `forget`. Final.
    Released,
}

impl LeaseState {
    /// Returns why the lease is no longer held, or `None` while it is held. For
    /// [`Released`](Self::Released) the reason is [`LostReason::Released`].
    pub fn lost(self) -> Option<LostReason> {
        match self {
            Self::Lost(reason) => Some(reason),
            Self::Released => Some(LostReason::Released),
            Self::Healthy | Self::AtRisk => None,
        }
    }
}

/// The policy that spaces renewals.
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

/// The next action of the renewal task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenewalAction {
    /// Send a renewal now.
    Renew,
    /// Wait until this instant.
    Wait(Instant),
    /// Stop: the lease is lost.
    Lost(LostReason),
}

/// The least time between two renewals, even if little time is left.
const MIN_PAUSE: Duration = Duration::from_millis(20);
/// The most time before a failed renewal is tried again.
const MAX_RETRY_PAUSE: Duration = Duration::from_secs(2);

/// The schedule of one lease. The deadline counts from the instant before the last successful request
/// was *sent*, so it is never later than the server's.
#[derive(Clone, Debug)]
pub struct RenewalSchedule {
    policy: RenewalPolicy,
    ttl: Duration,
    /// The instant before the last successful request was sent. The deadline counts from it.
    sent: Instant,
    deadline: Instant,
    next_renewal: Instant,
    /// Only a renewal can decide whether the lease is held.
    in_doubt: bool,
    lost: Option<LostReason>,
}

impl RenewalSchedule {
    /// Makes the schedule of a lease of `ttl`, granted by a request sent at `sent`. `jitter_sample` (0 to 1)
    /// picks the jitter.
    pub fn new(
        policy: RenewalPolicy,
        sent: Instant,
        ttl: Duration,
        now: Instant,
        jitter_sample: f64,
    ) -> Self {
        let (deadline, next_renewal) = (sent, sent);
        let mut schedule = Self { policy, ttl, sent, deadline, next_renewal, in_doubt: false, lost: None };
        schedule.extend(sent, ttl, now, jitter_sample);
        schedule
    }

    /// Applies the success of a renewal sent at `sent`. Does not revive a lost lease: if the reply comes at
    /// [`lost_at`](Self::lost_at) or later, the lease is lost, as [`state`](Self::state) has returned.
    /// Of two renewals, the one sent later counts.
    pub fn renewed(&mut self, sent: Instant, ttl: Duration, now: Instant, jitter_sample: f64) {
        if now >= self.lost_at() {
            self.lose(LostReason::DeadlinePassed);
        }
        if sent >= self.sent {
            self.extend(sent, ttl, now, jitter_sample);
        }
    }

    fn extend(&mut self, sent: Instant, ttl: Duration, now: Instant, jitter_sample: f64) {
        (self.sent, self.ttl, self.in_doubt) = (sent, ttl, false);
        // A ttl past the end of the clock is cut to a value that fits.
        self.deadline = sent.checked_add(ttl).unwrap_or_else(|| sent + Duration::from_secs(u32::MAX.into()));
        self.plan(now, jitter_sample);
    }

    /// Plans the next try after a renewal that failed in a way that says nothing about the lease.
    pub fn failed(&mut self, now: Instant, jitter_sample: f64) {
        self.plan(now, jitter_sample);
        self.next_renewal = self.next_renewal.min(now + MAX_RETRY_PAUSE);
    }

    /// Puts the lease in doubt: it is at risk, and renewed at once.
    pub fn doubt(&mut self, now: Instant) {
        self.in_doubt = true;
        self.next_renewal = now;
    }

    /// Marks the lease as lost. The first reason stands.
    pub fn lose(&mut self, reason: LostReason) {
        self.lost.get_or_insert(reason);
    }

    /// Plans the next renewal: after a share of the remaining time, and early enough to succeed.
    fn plan(&mut self, now: Instant, jitter_sample: f64) {
        let remaining = self.deadline.saturating_duration_since(now);
        let early = 1.0 - self.policy.jitter * jitter_sample.clamp(0.0, 1.0);
        let pause = remaining.mul_f64((self.policy.ratio * early).clamp(0.0, 1.0));
        let latest = remaining.saturating_sub((self.ttl / 4).min(Duration::from_millis(250)));
        self.next_renewal = now + pause.min(latest).max(MIN_PAUSE);
    }

    /// Returns `true` if only a renewal can decide whether the lease is held.
    pub fn is_in_doubt(&self) -> bool {
        self.in_doubt
    }

    /// Returns what to do at `now`. `in_flight` is `true` while a renewal waits for its reply.
    pub fn poll(&mut self, now: Instant, in_flight: bool) -> RenewalAction {
        if now >= self.lost_at() {
            self.lose(LostReason::DeadlinePassed);
        }
        if let Some(reason) = self.lost {
            return RenewalAction::Lost(reason);
        }
        if !in_flight && now >= self.next_renewal {
            return RenewalAction::Renew;
        }
        let mut wake = self.lost_at();
        if now < self.at_risk_at() {
            wake = wake.min(self.at_risk_at());
        }
        if !in_flight {
            wake = wake.min(self.next_renewal);
        }
        RenewalAction::Wait(wake)
    }

    /// Returns the state of the lease at `now`.
    pub fn state(&self, now: Instant) -> LeaseState {
        match self.lost {
            Some(reason) => LeaseState::Lost(reason),
            None if now >= self.lost_at() => LeaseState::Lost(LostReason::DeadlinePassed),
            None if self.in_doubt || now >= self.at_risk_at() => LeaseState::AtRisk,
            None => LeaseState::Healthy,
        }
    }

    /// Returns the instant before the last successful request was sent. The deadline counts from it.
    pub fn sent(&self) -> Instant {
        self.sent
    }

    /// Returns when the lease expires, by this process's clock, unless it is renewed.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Returns the length of the lease, as last set.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Returns when the lease counts as lost: a margin (2 % of the ttl, at most 500 ms) before its deadline,
    /// for the time until the holder notices.
    pub fn lost_at(&self) -> Instant {
        if is_broken(Rule::Deadline) {
            return self.deadline + Duration::from_secs(3600);
        }
        self.deadline - (self.ttl / 50).min(Duration::from_millis(500))
    }

    fn at_risk_at(&self) -> Instant {
        self.deadline - self.ttl.mul_f64(self.policy.at_risk.clamp(0.0, 1.0))
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
    fn the_deadline_counts_from_the_request_and_never_from_its_reply() {
        let (start, mut lease) = lease(10 * S);
        lease.renewed(start + S, 10 * S, start + 9 * S, 0.0);
        assert_eq!(lease.deadline(), start + 11 * S);
    }

    #[test]
    fn jitter_only_makes_it_earlier() {
        let start = Instant::now();
        for sample in [0.0, 0.3, 1.0, 7.0] {
            let mut lease = RenewalSchedule::new(RenewalPolicy::default(), start, 10 * S, start, sample);
            let RenewalAction::Wait(next) = lease.poll(start, false) else { panic!("renewed at once") };
            assert!(next <= start + 5 * S && next >= start + 9 * S / 2, "{sample}");
        }
    }

    #[test]
    fn a_one_second_lease_is_renewed_in_time_at_any_ratio() {
        let start = Instant::now();
        for ratio in [0.001, 0.5, 0.999] {
            let policy = RenewalPolicy { ratio, ..RenewalPolicy::default() };
            let mut lease = RenewalSchedule::new(policy, start, S, start, 0.0);
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
    fn a_renewal_whose_reply_comes_too_late_does_not_revive_the_lease() {
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
    fn a_lease_in_doubt_is_at_risk_until_a_renewal_succeeds() {
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
