//! What all connections of a server share: the table under its lock, the waits that it answers,
//! the count of connections, and the phase that the server is in.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{Notify, Semaphore, oneshot, watch};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep};

use crate::error::{Error, ErrorKind, Result};
use crate::failpoints::{Rule, is_broken};
use crate::proto::{StatsResult, Status};
use crate::server::config::ServerConfig;
use crate::server::credentials::Credentials;
use crate::server::fence::{FenceCounter, token_mint};
use crate::server::lifecycle::{Lifecycle, ServerState};
use crate::server::table::{ConnId, Grant, LockTable, StatsList, TableConfig, WaiterId};
use crate::server::warnings::Warnings;
use crate::types::{Key, Seconds};

/// How many keys or leases are gone through before others have their turn: well under a millisecond's worth.
const PART_SIZE: usize = 512;

/// How long work that goes in parts stands back when a thread waits for the table.
const GIVE_WAY_DELAY: Duration = Duration::from_millis(1);

/// How often a draining server looks whether a holder's lease has run out.
pub(super) const DRAIN_POLL_INTERVAL: Duration = Duration::from_millis(200);

pub(super) struct ServerShared {
    pub(super) config: ServerConfig,
    credentials: Mutex<Credentials>,
    table: Mutex<SharedTable>,
    /// How many threads wait for `state`.
    blocked_threads: AtomicUsize,
    next_conn: AtomicU64,
    pub(super) connection_count: watch::Sender<u64>,
    pub(super) lifecycle: Lifecycle,
    pub(super) warnings: Warnings,
    maintenance_started: AtomicBool,
    /// Whose turn it is to look at a part of the table for `stats`: many that ask at once take no more
    /// of the server's time than one does.
    pub(super) stats_permit: Semaphore,
    /// Told when a connection has left more behind than goes in one part.
    leaving: Arc<Notify>,
}

type Outcome = Result<Grant, Status>;

struct SharedTable {
    table: LockTable,
    /// Not hashed: a table that grows moves all that it has.
    pending: BTreeMap<WaiterId, oneshot::Sender<Outcome>>,
}

impl ServerShared {
    pub(super) fn new(config: ServerConfig) -> Result<Arc<Self>> {
        config.validate()?;
        if cfg!(not(feature = "tls")) && config.tls_cert.is_some() {
            return Err(Error::invalid("tls_cert", "is set, but this build has no tls"));
        }
        let credentials = Credentials::load(&config)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let now = u64::try_from(now).unwrap_or(u64::MAX);
        let fences = match &config.fence_state_file {
            None => FenceCounter::in_memory(now),
            Some(path) => FenceCounter::open(path, now).map_err(|cause| {
                // The cause names the path.
                Error::new(ErrorKind::Io, "could not use fence_state_file").caused_by(cause)
            })?,
        };
        let default_lease =
            Seconds::ceil("default_lease_ttl", Duration::from_secs(config.default_lease_ttl))?;
        let table = TableConfig {
            default_lease,
            max_locks: config.max_locks,
            max_waiters: config.max_waiters,
            gc_max_idle: Duration::from_secs(config.gc_max_idle),
            auto_release: config.auto_release_on_disconnect,
        };
        let table = LockTable::new(table, Box::new(token_mint(fences)));
        Ok(Arc::new(Self {
            config,
            credentials: Mutex::new(credentials),
            table: Mutex::new(SharedTable { table, pending: BTreeMap::new() }),
            blocked_threads: AtomicUsize::new(0),
            next_conn: AtomicU64::new(1),
            connection_count: watch::Sender::new(0),
            lifecycle: Lifecycle::default(),
            warnings: Warnings::default(),
            maintenance_started: AtomicBool::new(false),
            stats_permit: Semaphore::new(1),
            leaving: Arc::default(),
        }))
    }

    /// What a connection must get past by now.
    pub(super) fn credentials(&self) -> Credentials {
        self.credentials.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the door's files anew, in one step for every connection that comes later.
    pub(super) fn reload_credentials(&self) -> Result<()> {
        let (credentials, outcome) = self.credentials().reload(&self.config);
        *self.credentials.lock().unwrap_or_else(PoisonError::into_inner) = credentials;
        outcome
    }

    fn lock(&self) -> MutexGuard<'_, SharedTable> {
        // A panic in the table is a bug, and would be one in every later call as well: go on.
        match self.table.try_lock() {
            Ok(state) => return state,
            Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {}
        }
        self.blocked_threads.fetch_add(1, Ordering::Relaxed);
        let state = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        self.blocked_threads.fetch_sub(1, Ordering::Relaxed);
        state
    }

    /// Lets others have their turn between two parts. A thread that lets the table go and wants it again
    /// has it before one that must wake up for it, part after part: it stands back for those that wait.
    pub(super) async fn give_way(&self) {
        match self.blocked_threads.load(Ordering::Relaxed) {
            0 => yield_now().await,
            _ => sleep(GIVE_WAY_DELAY).await,
        }
    }

    /// Does one thing to the table, and delivers whatever comes of it to those who wait.
    pub(super) fn with_table<T>(&self, act: impl FnOnce(&mut LockTable, std::time::Instant) -> T) -> T {
        let mut state = self.lock();
        let outcome = act(&mut state.table, Instant::now().into_std());
        state.deliver();
        outcome
    }

    /// Registers a wait that the table has just begun; to be called in the same turn.
    pub(super) fn begin_wait<T>(
        self: &Arc<Self>,
        key: &Key,
        act: impl FnOnce(&mut LockTable, std::time::Instant) -> (T, Option<WaiterId>),
    ) -> (T, Option<PendingWait>) {
        let mut state = self.lock();
        let (outcome, waiter) = act(&mut state.table, Instant::now().into_std());
        let wait = waiter.map(|waiter| {
            let (sender, receiver) = oneshot::channel();
            state.pending.insert(waiter, sender);
            PendingWait { shared: self.clone(), waiter, key: key.clone(), receiver, done: false }
        });
        state.deliver();
        (outcome, wait)
    }

    pub(super) fn stats(&self) -> StatsResult {
        let mut stats = StatsResult { connections: self.open_connections(), ..StatsResult::default() };
        let mut from = 0;
        loop {
            let (part, more) = self.stats_part(from..from + PART_SIZE, None);
            stats.locks.extend(part.locks);
            stats.semaphores.extend(part.semaphores);
            stats.idle_locks.extend(part.idle_locks);
            stats.idle_semaphores.extend(part.idle_semaphores);
            if !more {
                return stats;
            }
            from += PART_SIZE;
        }
    }

    /// The table's keys in a range of places; whether there are more behind it.
    pub(super) fn stats_part(&self, places: Range<usize>, only: Option<StatsList>) -> (StatsResult, bool) {
        let now = Instant::now().into_std();
        self.lock().table.stats_part(now, places, only)
    }

    /// How many connections are open.
    pub(super) fn open_connections(&self) -> u64 {
        *self.connection_count.borrow()
    }

    /// Refuses new grants, and all that wait. A large table takes its time: the rest goes in parts.
    pub(super) async fn drain(&self) {
        while self.begin_drain() {
            self.give_way().await;
        }
    }

    /// The first part of [`drain`](Self::drain). Returns whether there is more.
    pub(super) fn begin_drain(&self) -> bool {
        let more = self.with_table(|table, now| table.drain_part(now, PART_SIZE));
        self.lifecycle.advance(ServerState::Draining);
        more
    }

    /// Resolves once nothing is held any more for connections that the server gave up.
    pub(super) async fn kept_leases_expired(&self) {
        while self.with_table(|table, now| table.has_kept_leases(now)) {
            sleep(DRAIN_POLL_INTERVAL).await;
        }
    }

    /// A new connection's number; counts until the guard drops.
    pub(super) fn connect(self: &Arc<Self>) -> ConnectionGuard {
        self.start_maintenance();
        self.connection_count.send_modify(|count| *count += 1);
        let id = ConnId(self.next_conn.fetch_add(1, Ordering::Relaxed));
        ConnectionGuard { shared: self.clone(), id, kept_until: None }
    }

    /// Sweeps and collects in the background, and lets go what many-keyed connections left, from the
    /// first connection on, while the server lives.
    fn start_maintenance(self: &Arc<Self>) {
        if self.maintenance_started.swap(true, Ordering::Relaxed) {
            return;
        }
        let (shared, leaving) = (Arc::downgrade(self), self.leaving.clone());
        let mut sweep = tokio::time::interval(Duration::from_secs(self.config.lease_sweep_interval));
        let mut collect = tokio::time::interval(Duration::from_secs(self.config.gc_interval));
        let parts: [fn(&mut LockTable, std::time::Instant) -> bool; 3] = [
            |table, now| table.sweep_part(now, PART_SIZE),
            |table, now| table.collect_part(now, PART_SIZE),
            |table, now| table.leave_part(now, PART_SIZE),
        ];
        tokio::spawn(async move {
            let mut due = [false; 3];
            loop {
                tokio::select! {
                    biased;
                    _ = sweep.tick() => due[0] = true,
                    _ = collect.tick() => due[1] = true,
                    () = leaving.notified() => due[2] = true,
                    () = std::future::ready(()), if due != [false; 3] => {}
                }
                let Some(shared) = shared.upgrade() else { return };
                for (due, part) in due.iter_mut().zip(parts).filter(|(due, _)| **due) {
                    *due = shared.with_table(part);
                }
                if due != [false; 3] {
                    shared.give_way().await;
                }
            }
        });
    }
}

impl SharedTable {
    fn deliver(&mut self) {
        while let Some(delivery) = self.table.poll_delivery() {
            if let Some(wait) = self.pending.remove(&delivery.waiter) {
                // Whoever drops the receiver looks into it first.
                let _ = wait.send(delivery.outcome);
            }
        }
    }
}

/// An open connection: everything it has goes when this drops, at once or when it was told.
pub(super) struct ConnectionGuard {
    shared: Arc<ServerShared>,
    pub(super) id: ConnId,
    kept_until: Option<std::time::Instant>,
}

impl ConnectionGuard {
    /// What the connection holds is kept until then: the server gave it up, its peer did not.
    pub(super) fn keep_until(&mut self, until: Instant) {
        self.kept_until = (!is_broken(Rule::GivenUp)).then(|| until.into_std());
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        let more = self.shared.with_table(|table, now| table.leave(now, self.id, self.kept_until, PART_SIZE));
        if more {
            self.shared.leaving.notify_one();
        }
        self.shared.connection_count.send_modify(|count| *count -= 1);
    }
}

/// A command that waits. Dropped before its outcome was taken, it leaves the queue, and a grant
/// that had come already is released.
pub(super) struct PendingWait {
    shared: Arc<ServerShared>,
    waiter: WaiterId,
    key: Key,
    receiver: oneshot::Receiver<Outcome>,
    done: bool,
}

impl PendingWait {
    /// The outcome, once it is there.
    pub(super) async fn outcome(&mut self) -> Outcome {
        let outcome = (&mut self.receiver).await.unwrap_or(Err(Status::Error));
        self.done = true;
        outcome
    }

    /// The time is up: the outcome, where it came at the last moment.
    pub(super) fn cancel(mut self) -> Option<Outcome> {
        self.done = true;
        self.leave_queue()
    }

    fn leave_queue(&mut self) -> Option<Outcome> {
        let mut state = self.shared.lock();
        state.pending.remove(&self.waiter);
        if let Ok(outcome) = self.receiver.try_recv() {
            return Some(outcome);
        }
        let outcome = state.table.cancel_wait(Instant::now().into_std(), self.waiter);
        state.deliver();
        outcome
    }
}

impl Drop for PendingWait {
    fn drop(&mut self) {
        if !self.done
            && let Some(Ok(grant)) = self.leave_queue()
        {
            self.shared.with_table(|table, now| table.release(now, &self.key, &grant.token));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Limit;

    const KEYS: usize = 10 * PART_SIZE;

    #[test]
    fn a_thread_that_waits_for_the_table_is_counted_while_it_waits() {
        let shared = ServerShared::new(ServerConfig::default()).unwrap();
        let state = shared.lock();
        std::thread::scope(|threads| {
            let waits = threads.spawn(|| drop(shared.lock()));
            while shared.blocked_threads.load(Ordering::Relaxed) == 0 {
                std::thread::yield_now();
            }
            drop(state);
            waits.join().unwrap();
        });
        assert_eq!(shared.blocked_threads.load(Ordering::Relaxed), 0);
    }

    /// How long it takes, in virtual time, until all of many keys that one connection held are free.
    async fn to_free(waiting: usize) -> Duration {
        let config = ServerConfig { max_locks: KEYS, ..Default::default() };
        let shared = ServerShared::new(config).unwrap();
        let holder = shared.connect();
        for number in 0..KEYS {
            let key = Key::parse(&format!("key:{number}")).unwrap();
            let lease = Some(Seconds::new(1000).unwrap());
            shared.with_table(|table, now| table.acquire(now, holder.id, &key, Limit::ONE, lease, false));
        }
        shared.blocked_threads.store(waiting, Ordering::Relaxed);
        let start = Instant::now();
        drop(holder);
        while !shared.stats().locks.is_empty() {
            sleep(GIVE_WAY_DELAY).await;
        }
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn work_in_parts_stands_back_for_threads_that_wait_and_for_nobody_else() {
        assert!(to_free(0).await <= GIVE_WAY_DELAY * 2);
        assert!(to_free(1).await >= GIVE_WAY_DELAY * 8);
    }
}
