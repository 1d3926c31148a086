//! The lock table, without I/O: FIFO queues, leases, limits, two-phase registrations, collection.
//! Time is an argument. Knows of no socket, runtime or clock.

mod answer;
mod holders;
mod stats;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Instant;

use crate::proto::Status;
use crate::types::{Fence, Key, Limit, Seconds, Token};
use holders::{Holder, Holders};

pub use answer::{Answer, ConnId, Delivery, Grant, Place, TableConfig, WaiterId};

/// Makes each grant's token; `None` where no fence can be had.
pub type Mint = Box<dyn FnMut() -> Option<Token> + Send>;

/// The table. After each call, drain [`poll_delivery`](Self::poll_delivery).
///
/// Acquire, enqueue, wait and renew first evict what has expired on their key. No call looks at
/// all keys or at all waiters, but for [`stats`](Self::stats) and [`drain`](Self::drain).
pub struct LockTable {
    config: TableConfig,
    mint: Mint,
    keys: HashMap<Key, Resource>,
    conns: HashMap<ConnId, Conn>,
    waiters: BTreeMap<WaiterId, Waiter>,
    next_waiter: u64,
    /// Every holder's deadline, the earliest first.
    expiry: BTreeMap<(Instant, Fence), Key>,
    /// Keys with neither holder nor waiter, the longest idle first.
    idle: BTreeMap<(Instant, u64), Key>,
    next_idle: u64,
    deliveries: VecDeque<Delivery>,
    draining: bool,
}

/// A key in use or idle.
struct Resource {
    limit: Limit,
    holders: Holders,
    /// Ids grow, so the least is the first in line.
    queue: BTreeSet<WaiterId>,
    idle: Option<(Instant, u64)>,
}

/// What belongs to a connection.
#[derive(Default)]
struct Conn {
    held: BTreeMap<Fence, Key>,
    waiting: BTreeSet<WaiterId>,
    registered: HashMap<Key, Registration>,
}

/// What became of a connection's enqueue, until its wait collects it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Registration {
    Queued(WaiterId),
    Granted(Fence),
    /// Granted, and lost before it was collected.
    Lost,
}

struct Waiter {
    key: Key,
    conn: ConnId,
    lease: Seconds,
    /// Nobody waits for the outcome yet: an enqueue without its wait.
    background: bool,
}

impl LockTable {
    /// An empty table.
    pub fn new(config: TableConfig, mint: Mint) -> Self {
        Self {
            config,
            mint,
            keys: HashMap::new(),
            conns: HashMap::new(),
            waiters: BTreeMap::new(),
            next_waiter: 0,
            expiry: BTreeMap::new(),
            idle: BTreeMap::new(),
            next_idle: 0,
            deliveries: VecDeque::new(),
            draining: false,
        }
    }

    /// `l`, `sl` (`limit` 1 for `l`): takes the key, or queues when `may_wait`.
    pub fn acquire(
        &mut self,
        now: Instant,
        conn: ConnId,
        key: &Key,
        limit: Limit,
        lease: Option<Seconds>,
        may_wait: bool,
    ) -> Answer {
        match self.take(now, conn, key, limit, lease) {
            Err(status) => Answer::Refused(status),
            Ok(Some(grant)) => Answer::Granted(grant),
            Ok(None) if !may_wait => Answer::Busy,
            Ok(None) => Answer::Waiting(self.join(conn, key, lease, false)),
        }
    }

    /// `e`, `se`: takes the key or a place, registered for the connection.
    pub fn enqueue(
        &mut self,
        now: Instant,
        conn: ConnId,
        key: &Key,
        limit: Limit,
        lease: Option<Seconds>,
    ) -> Place {
        if self.draining {
            return Place::Refused(Status::Draining);
        }
        self.evict_from(now, key);
        let registered = self.conns.get(&conn).and_then(|conn| conn.registered.get(key));
        if registered.is_some_and(|registration| *registration != Registration::Lost) {
            return Place::Refused(Status::AlreadyEnqueued);
        }
        let (place, registration) = match self.take(now, conn, key, limit, lease) {
            Err(status) => return Place::Refused(status),
            Ok(Some(grant)) => {
                let fence = minted_fence(&grant.token);
                (Place::Acquired(grant), Registration::Granted(fence))
            }
            Ok(None) => (Place::Queued, Registration::Queued(self.join(conn, key, lease, true))),
        };
        self.conns.entry(conn).or_default().registered.insert(key.clone(), registration);
        place
    }

    /// `w`, `sw`: collects the connection's registration for the key; clears it in every case.
    pub fn wait(&mut self, now: Instant, conn: ConnId, key: &Key, may_wait: bool) -> Answer {
        if self.draining {
            return Answer::Refused(Status::Draining);
        }
        self.evict_from(now, key);
        let registration = self.conns.get_mut(&conn).and_then(|conn| conn.registered.remove(key));
        match registration {
            None => Answer::Refused(Status::NotEnqueued),
            Some(Registration::Lost) => Answer::Refused(Status::LeaseExpired),
            Some(Registration::Granted(fence)) => match self.refresh(now, key, fence) {
                Some(grant) => Answer::Granted(grant),
                None => Answer::Refused(Status::LeaseExpired),
            },
            Some(Registration::Queued(id)) if may_wait => {
                if let Some(waiter) = self.waiters.get_mut(&id) {
                    waiter.background = false;
                }
                Answer::Waiting(id)
            }
            Some(Registration::Queued(id)) => {
                self.leave(now, id);
                Answer::Busy
            }
        }
    }

    /// The wait timed out: leaves the queue. `Some` where the outcome had come first and was not
    /// polled yet (it is then not delivered any more).
    pub fn cancel_wait(&mut self, now: Instant, waiter: WaiterId) -> Option<Result<Grant, Status>> {
        if let Some(at) = self.deliveries.iter().position(|delivery| delivery.waiter == waiter) {
            return self.deliveries.remove(at).map(|delivery| delivery.outcome);
        }
        self.leave(now, waiter);
        None
    }

    /// `r`, `sr`: whether there was such a holder (an expired one counts until it is evicted).
    pub fn release(&mut self, now: Instant, key: &Key, token: &Token) -> bool {
        let Some(fence) = self.holder(key, token) else { return false };
        self.drop_holder(key, fence, None);
        self.hand_on(now, key);
        true
    }

    /// `n`, `sn`: the lease just set, or `None` where it is not held or has expired.
    pub fn renew(
        &mut self,
        now: Instant,
        key: &Key,
        token: &Token,
        lease: Option<Seconds>,
    ) -> Option<Seconds> {
        self.evict_from(now, key);
        let fence = self.holder(key, token)?;
        let lease = lease.unwrap_or(self.config.default_lease);
        self.prolong(now, key, fence, lease);
        Some(lease)
    }

    /// The connection is gone: its waiters and registrations leave; its holders too where
    /// `auto_release` is set.
    pub fn disconnect(&mut self, now: Instant, conn: ConnId) {
        let Some(gone) = self.conns.remove(&conn) else { return };
        for waiter in gone.waiting {
            self.leave(now, waiter);
        }
        if self.config.auto_release {
            for (fence, key) in gone.held {
                self.drop_holder(&key, fence, None);
                self.hand_on(now, &key);
            }
        }
    }

    /// Evicts every expired lease; costs what expires.
    pub fn sweep(&mut self, now: Instant) {
        while let Some(entry) = self.expiry.first_entry() {
            let (deadline, fence) = *entry.key();
            if deadline > now {
                break;
            }
            let key = entry.get().clone();
            self.drop_holder(&key, fence, Some(Registration::Lost));
            self.hand_on(now, &key);
        }
    }

    /// Drops keys idle for `gc_max_idle`; costs what is dropped.
    pub fn collect(&mut self, now: Instant) {
        while let Some(entry) = self.idle.first_entry() {
            if now.saturating_duration_since(entry.key().0) < self.config.gc_max_idle {
                break;
            }
            let key = entry.remove();
            self.keys.remove(&key);
        }
    }

    /// From now on acquire, enqueue and wait are refused with `error_draining`, and so is everyone
    /// who waits.
    pub fn drain(&mut self) {
        self.draining = true;
        for (id, waiter) in std::mem::take(&mut self.waiters) {
            if let Some(resource) = self.keys.get_mut(&waiter.key) {
                resource.queue.remove(&id);
            }
            if let Some(conn) = self.conns.get_mut(&waiter.conn) {
                conn.waiting.remove(&id);
            }
            if !waiter.background {
                let outcome = Err(Status::Draining);
                self.deliveries.push_back(Delivery { conn: waiter.conn, waiter: id, outcome });
            }
        }
    }

    /// Whether the connection holds anything.
    pub fn holds(&self, conn: ConnId) -> bool {
        self.conns.get(&conn).is_some_and(|conn| !conn.held.is_empty())
    }

    /// The next outcome for a waiting connection.
    pub fn poll_delivery(&mut self) -> Option<Delivery> {
        self.deliveries.pop_front()
    }

    /// The fast path: a grant where there is capacity and nobody waits, `None` where there is not.
    fn take(
        &mut self,
        now: Instant,
        conn: ConnId,
        key: &Key,
        limit: Limit,
        lease: Option<Seconds>,
    ) -> Result<Option<Grant>, Status> {
        if self.draining {
            return Err(Status::Draining);
        }
        self.evict_from(now, key);
        match self.keys.get(key) {
            Some(resource) if resource.limit != limit => return Err(Status::LimitMismatch),
            None if self.keys.len() >= self.config.max_locks => return Err(Status::MaxLocks),
            Some(resource) if !resource.queue.is_empty() || !resource.has_room() => {
                let full = self.config.max_waiters > 0 && resource.queue.len() >= self.config.max_waiters;
                return if full { Err(Status::MaxWaiters) } else { Ok(None) };
            }
            _ => {}
        }
        let token = (self.mint)().ok_or(Status::Error)?;
        let lease = lease.unwrap_or(self.config.default_lease);
        if !self.keys.contains_key(key) {
            let resource = Resource { limit, holders: Holders::None, queue: BTreeSet::new(), idle: None };
            self.keys.insert(key.clone(), resource);
        }
        Ok(Some(self.hold(now, conn, key, token, lease)))
    }

    /// Makes the connection a holder of an existing key.
    fn hold(&mut self, now: Instant, conn: ConnId, key: &Key, token: Token, lease: Seconds) -> Grant {
        let fence = minted_fence(&token);
        let deadline = now + lease.duration();
        if let Some(resource) = self.keys.get_mut(key) {
            resource.holders.insert(fence, Holder { token: token.clone(), conn, deadline, lease });
            if let Some(since) = resource.idle.take() {
                self.idle.remove(&since);
            }
        }
        self.expiry.insert((deadline, fence), key.clone());
        self.conns.entry(conn).or_default().held.insert(fence, key.clone());
        Grant { token, lease }
    }

    fn join(&mut self, conn: ConnId, key: &Key, lease: Option<Seconds>, background: bool) -> WaiterId {
        let id = WaiterId(self.next_waiter);
        self.next_waiter += 1;
        let lease = lease.unwrap_or(self.config.default_lease);
        self.waiters.insert(id, Waiter { key: key.clone(), conn, lease, background });
        if let Some(resource) = self.keys.get_mut(key) {
            resource.queue.insert(id);
        }
        self.conns.entry(conn).or_default().waiting.insert(id);
        id
    }

    fn leave(&mut self, now: Instant, id: WaiterId) {
        let Some(waiter) = self.waiters.remove(&id) else { return };
        if let Some(conn) = self.conns.get_mut(&waiter.conn) {
            conn.waiting.remove(&id);
        }
        if let Some(resource) = self.keys.get_mut(&waiter.key) {
            resource.queue.remove(&id);
        }
        self.hand_on(now, &waiter.key);
    }

    /// Gives free capacity to whoever is first in line; notes when the key falls idle.
    fn hand_on(&mut self, now: Instant, key: &Key) {
        loop {
            let Some(resource) = self.keys.get_mut(key) else { return };
            let Some(&id) = resource.queue.first().filter(|_| resource.has_room()) else { break };
            // Without a fence nobody is granted: the queue waits for the next chance.
            let Some(token) = (self.mint)() else { break };
            resource.queue.remove(&id);
            let Some(waiter) = self.waiters.remove(&id) else { continue };
            let grant = self.hold(now, waiter.conn, key, token, waiter.lease);
            let conn = self.conns.entry(waiter.conn).or_default();
            conn.waiting.remove(&id);
            if waiter.background {
                let fence = minted_fence(&grant.token);
                conn.registered.insert(key.clone(), Registration::Granted(fence));
            } else {
                self.deliveries.push_back(Delivery { conn: waiter.conn, waiter: id, outcome: Ok(grant) });
            }
        }
        if let Some(resource) = self.keys.get_mut(key)
            && resource.is_unused()
            && resource.idle.is_none()
        {
            let since = (now, self.next_idle);
            self.next_idle += 1;
            resource.idle = Some(since);
            self.idle.insert(since, key.clone());
        }
    }

    /// Evicts what has expired on one key and hands its slots on.
    fn evict_from(&mut self, now: Instant, key: &Key) {
        let mut evicted = false;
        while let Some(fence) = self.keys.get(key).and_then(|resource| resource.holders.expired(now)) {
            self.drop_holder(key, fence, Some(Registration::Lost));
            evicted = true;
        }
        if evicted {
            self.hand_on(now, key);
        }
    }

    /// The fence of the holder that the token proves, if it is one.
    fn holder(&self, key: &Key, token: &Token) -> Option<Fence> {
        let fence = token.fence()?;
        let holder = self.keys.get(key)?.holders.get(fence)?;
        (holder.token == *token).then_some(fence)
    }

    /// Removes a holder everywhere; a registration that points to it becomes `registration`.
    fn drop_holder(&mut self, key: &Key, fence: Fence, registration: Option<Registration>) {
        let Some(holder) = self.keys.get_mut(key).and_then(|resource| resource.holders.remove(fence)) else {
            return;
        };
        self.expiry.remove(&(holder.deadline, fence));
        let Some(conn) = self.conns.get_mut(&holder.conn) else { return };
        conn.held.remove(&fence);
        if conn.registered.get(key) == Some(&Registration::Granted(fence)) {
            match registration {
                Some(registration) => conn.registered.insert(key.clone(), registration),
                None => conn.registered.remove(key),
            };
        }
    }

    /// Sets a holder's deadline anew.
    fn prolong(&mut self, now: Instant, key: &Key, fence: Fence, lease: Seconds) {
        let deadline = now + lease.duration();
        let holder = self.keys.get_mut(key).and_then(|resource| resource.holders.set(fence, deadline, lease));
        if let Some(before) = holder {
            self.expiry.remove(&(before, fence));
            self.expiry.insert((deadline, fence), key.clone());
        }
    }

    /// The grant behind a registration, with its lease counting from now.
    fn refresh(&mut self, now: Instant, key: &Key, fence: Fence) -> Option<Grant> {
        let holder = self.keys.get(key)?.holders.get(fence)?;
        let grant = Grant { token: holder.token.clone(), lease: holder.lease };
        self.prolong(now, key, fence, grant.lease);
        Some(grant)
    }
}

impl Resource {
    fn has_room(&self) -> bool {
        (self.holders.len() as u64) < self.limit.get()
    }

    fn is_unused(&self) -> bool {
        self.holders.len() == 0 && self.queue.is_empty()
    }
}

/// The fence of a token that this server minted.
fn minted_fence(token: &Token) -> Fence {
    token.fence().unwrap_or(Fence::new(0))
}
