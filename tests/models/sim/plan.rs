//! What a seed stands for: who there is, how they are set up, and what goes wrong when.

use std::ops::Range;
use std::time::Duration;

use dflockd_client::stable_hash_shard;
use fastrand::Rng;

use crate::sim::workload::LOOK;

/// A second.
pub(crate) const S: Duration = Duration::from_secs(1);
/// How long a dial may take.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest that a caller waits in a queue.
pub(crate) const LONGEST_WAIT: u64 = 8;

/// How bad things get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weather {
    /// Nothing goes wrong but that callers change their mind: no lease may be lost, and leases are
    /// long, so that whatever is left behind stays.
    Calm,
    /// Links and clients stall and recover, each time before a lease may be lost by it: none is. Leases
    /// are long.
    Stalls,
    /// Everything.
    Storm,
}

#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) weather: Weather,
    pub(crate) shards: usize,
    pub(crate) clients: usize,
    /// Tasks per client, which share its connections.
    pub(crate) workers: usize,
    pub(crate) keys: Vec<Key>,
    pub(crate) ttl: Duration,
    pub(crate) keepalive: Duration,
    pub(crate) auto_release: bool,
    pub(crate) reattach: bool,
    pub(crate) retry: bool,
    pub(crate) auth: bool,
    pub(crate) shared_connections: usize,
    pub(crate) leases_per_connection: usize,
    /// 0 is no cap.
    pub(crate) max_waiters: usize,
    /// The servers know many keys: what `stats` has to say does not fit between two ends.
    pub(crate) wide: bool,
    /// How long a server tries to send to a client that does not read.
    pub(crate) write_timeout: Duration,
    /// The longest that a message is on its way when nothing is wrong.
    pub(crate) latency: Duration,
    /// When workers stop, and everything that is wrong is put right.
    pub(crate) until: Duration,
    /// In order.
    pub(crate) faults: Vec<(Duration, Fault)>,
}

/// Something to be held.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) name: String,
    /// None is a lock.
    pub(crate) limit: Option<u64>,
    pub(crate) shard: usize,
}

impl Key {
    /// How many may hold it.
    pub(crate) fn slots(&self) -> u64 {
        self.limit.unwrap_or(1)
    }
}

/// A client's way to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Link {
    pub(crate) client: usize,
    pub(crate) shard: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    Server(usize),
    Client(usize),
}

/// What is wrong with a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Whatever is sent is lost, in both directions.
    Cut,
    /// What the client sends is lost.
    CutUp,
    /// What the server sends is lost.
    CutDown,
    /// Whatever is sent arrives when all is well again.
    Hold,
    /// Messages take up to so long.
    Slow(Duration),
}

/// What is done to the hosts and to what is between them.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    Break(Link, Trouble),
    Repair(Link),
    /// The process ends at once, and its connections with it.
    Kill(Host),
    /// The machine ends at once, and nobody is told.
    PowerOff(Host),
    Start(Host),
    /// The client reads nothing for so long, and is sent to all the same.
    Deafen(usize, Duration),
    /// The server stops gracefully, and starts anew.
    Drain(usize),
}

impl Plan {
    pub(crate) fn new(seed: u64) -> Self {
        let mut dice = Rng::with_seed(seed);
        let weather = match dice.u8(0..8) {
            0 | 1 => Weather::Calm,
            2 => Weather::Stalls,
            _ => Weather::Storm,
        };
        let lasting = weather != Weather::Storm;
        let shards = dice.usize(1..=3);
        // Without it, what a wait left behind that was given up in a stall stays for the lease's length.
        let auto_release = dice.u8(0..3) > 0 || weather == Weather::Stalls;
        let keys = (0..dice.usize(2..=4)).map(|index| {
            let name = format!("key-{index}");
            let shard = stable_hash_shard(&name, shards);
            Key { name, limit: (index % 2 == 1).then(|| dice.u64(1..=3)), shard }
        });
        let mut plan = Self {
            seed,
            weather,
            shards,
            keys: keys.collect(),
            clients: dice.usize(2..=4),
            workers: dice.usize(1..=if weather == Weather::Calm { 6 } else { 3 }),
            ttl: if lasting { 60 * S } else { S * dice.u32(1..=6) },
            keepalive: S * if weather == Weather::Stalls { dice.u32(3..=5) } else { dice.u32(1..=3) },
            auto_release,
            reattach: !auto_release && dice.u8(0..4) > 0,
            retry: dice.bool(),
            auth: dice.u8(0..4) == 0,
            shared_connections: dice.usize(1..=2),
            leases_per_connection: if dice.u8(0..3) == 0 { dice.usize(1..=2) } else { usize::MAX },
            max_waiters: if dice.u8(0..4) == 0 { dice.usize(1..=2) } else { 0 },
            wide: dice.u8(0..3) == 0,
            write_timeout: S * dice.u32(1..=3),
            latency: Duration::from_millis(dice.u64(2..=200)),
            until: S * if weather == Weather::Calm { 10 } else { 25 },
            faults: Vec::new(),
        };
        match weather {
            Weather::Calm => {}
            Weather::Stalls => plan.add_stalls(&mut dice),
            Weather::Storm => plan.add_faults(&mut dice),
        }
        plan.faults.sort_by_key(|(at, _)| *at);
        plan
    }

    pub(crate) fn links(&self) -> impl Iterator<Item = Link> {
        let shards = self.shards;
        (0..self.clients).flat_map(move |client| (0..shards).map(move |shard| Link { client, shard }))
    }

    fn add_faults(&mut self, dice: &mut Rng) {
        let mut faults = Vec::new();
        for link in self.links() {
            self.spells(dice, 100..8_000, 9_000, |dice, from, to| {
                let trouble = match dice.u8(0..8) {
                    0 | 1 => Trouble::Cut,
                    2 => Trouble::CutUp,
                    3 | 4 => Trouble::CutDown,
                    5 | 6 => Trouble::Hold,
                    _ => Trouble::Slow(Duration::from_millis(dice.u64(200..4_000))),
                };
                faults.extend([(from, Fault::Break(link, trouble)), (to, Fault::Repair(link))]);
            });
        }
        let hosts = (0..self.shards).map(Host::Server).chain((0..self.clients).map(Host::Client));
        for host in hosts {
            self.spells(dice, 100..24_000, 9_000, |dice, from, to| match (dice.u8(0..3), host) {
                (0, Host::Server(shard)) => faults.push((from, Fault::Drain(shard))),
                (0 | 1, _) => faults.extend([(from, Fault::Kill(host)), (to, Fault::Start(host))]),
                _ => faults.extend([(from, Fault::PowerOff(host)), (to, Fault::Start(host))]),
            });
        }
        for client in 0..self.clients {
            self.spells(dice, 100..24_000, 9_000, |_, from, to| {
                faults.push((from, Fault::Deafen(client, to - from)));
            });
        }
        self.faults = faults;
    }

    /// Stalls of one client at a time: of its links, one by one, or of itself.
    fn add_stalls(&mut self, dice: &mut Rng) {
        let mut faults = Vec::new();
        let longest = self.longest_stall().as_millis() as u64;
        for client in 0..self.clients {
            self.spells(dice, 3_000..9_000, longest, |dice, from, to| match dice.usize(0..=self.shards) {
                shard if shard < self.shards => {
                    let link = Link { client, shard };
                    faults.extend([(from, Fault::Break(link, Trouble::Hold)), (to, Fault::Repair(link))]);
                }
                _ => faults.push((from, Fault::Deafen(client, to - from))),
            });
        }
        self.faults = faults;
    }

    /// How long before a stall a holder must have asked, to be answered before it.
    fn stall_lead(&self) -> Duration {
        2 * self.latency + Duration::from_millis(100)
    }

    /// The longest stall that costs no lease: from the last proof before it, two intervals are enough for
    /// it, and for a ping after it to be answered.
    fn longest_stall(&self) -> Duration {
        2 * self.keepalive - self.stall_lead() - 3 * LOOK - 3 * self.latency - Duration::from_millis(200)
    }

    /// Whether a stall is ahead, and a holder who asks now is answered before it.
    pub(crate) fn is_time_to_prove(&self, client: usize, now: Duration) -> bool {
        self.is_near_stall(client, now) && self.next_stall(client, now) >= Some(now + self.stall_lead())
    }

    /// Whether there is a stall so soon after this that who gets a lease now has no time to prove that it
    /// is there: its last proof is as old as its wait was long.
    pub(crate) fn is_near_stall(&self, client: usize, now: Duration) -> bool {
        let stall = self.next_stall(client, now);
        stall.is_some_and(|stall| now + self.stall_lead() + 3 * LOOK >= stall)
    }

    /// When the client's next stall begins, if stalls are all that goes wrong.
    fn next_stall(&self, client: usize, now: Duration) -> Option<Duration> {
        let stalls = |fault: &Fault| match fault {
            Fault::Break(link, _) => link.client == client,
            Fault::Deafen(who, _) => *who == client,
            _ => false,
        };
        let mut faults = self.faults.iter().filter(|_| self.weather == Weather::Stalls);
        faults.find(|(at, fault)| *at > now && stalls(fault)).map(|(at, _)| *at)
    }

    /// Times at which something is wrong, one after another, all of them over by the end.
    fn spells(
        &self,
        dice: &mut Rng,
        gap: Range<u64>,
        longest: u64,
        mut add: impl FnMut(&mut Rng, Duration, Duration),
    ) {
        let mut at = Duration::ZERO;
        loop {
            let from = at + Duration::from_millis(dice.u64(gap.clone()));
            let to = from + Duration::from_millis(dice.u64(50..longest));
            if to >= self.until {
                return;
            }
            add(dice, from, to);
            at = to;
        }
    }

    pub(crate) fn is_calm(&self) -> bool {
        self.weather == Weather::Calm
    }

    /// After how much silence a server drops a connection.
    pub(crate) fn read_timeout(&self) -> Duration {
        2 * self.keepalive + S
    }

    /// By when the server must have heard that nobody has a key any more, once all is put right and
    /// nobody waits.
    pub(crate) fn handed_on_within(&self) -> Duration {
        match self.weather {
            Weather::Calm => 2 * S,
            // A connection that was given up keeps what it held until the read timeout.
            Weather::Stalls => self.read_timeout() + 3 * S,
            Weather::Storm => self.ttl + 3 * S,
        }
    }

    /// How long a call may take beyond the time that it was given: the dial, a reply that does not
    /// come, and a renewal that confirms a late grant.
    pub(crate) fn slack(&self) -> Duration {
        if self.is_calm() { 2 * S } else { 2 * CONNECT_TIMEOUT + 36 * S }
    }
}
