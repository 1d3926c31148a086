//! What all connections of a server share: the table under its lock, the waits for its grants, the number
//! of connections, and the state of the server.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
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

/// The number of keys or leases that are processed before other tasks have their turn. Takes well under a
/// millisecond.
const PART_SIZE: usize = 512;

/// The pause between two parts of a long step if a thread waits for the table.
const GIVE_WAY_DELAY: Duration = Duration::from_millis(1);

/// The interval at which a draining server checks whether a holder's lease has expired.
pub(super) const DRAIN_POLL_INTERVAL: Duration = Duration::from_millis(200);

pub(super) struct ServerShared {
    pub(super) config: ServerConfig,
    credentials: Mutex<Credentials>,
    table: Mutex<SharedTable>,
    /// The number of threads that wait for the lock of `table`.
    blocked_threads: AtomicUsize,
    next_conn: AtomicU64,
    pub(super) connection_count: watch::Sender<u64>,
    pub(super) lifecycle: Lifecycle,
    pub(super) warnings: Warnings,
    maintenance_started: AtomicBool,
    /// The permit to read a part of the table for `stats`. Many requests at once take no more of the
    /// server's time than one does.
    pub(super) stats_permit: Semaphore,
    /// Notified when a connection has left more behind than is removed in one part.
    leaving: Arc<Notify>,
}

type Outcome = Result<Grant, Status>;

struct SharedTable {
    table: LockTable,
    /// Not a hash map: one that grows moves all its entries at once.
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
                // The text of the cause names the path.
                Error::new(ErrorKind::Io, "could not use fence_state_file").caused_by(cause)
            })?,
        };
        let default_lease = Seconds::ceil("default_lease_ttl", config.default_lease_ttl)?;
        let table = TableConfig {
            default_lease,
            max_locks: config.max_locks,
            max_waiters: config.max_waiters,
            gc_max_idle: config.gc_max_idle,
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

    /// Returns what new connections are checked against now.
    pub(super) fn credentials(&self) -> Credentials {
        self.credentials.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads certificate and auth token again. All later connections see the change in one step.
    pub(super) fn reload_credentials(&self) -> Result<()> {
        let (credentials, outcome) = self.credentials().reload(&self.config);
        *self.credentials.lock().unwrap_or_else(PoisonError::into_inner) = credentials;
        outcome
    }

    fn lock(&self) -> MutexGuard<'_, SharedTable> {
        // A poisoned lock is ignored: a panic in the table is a bug that fails each later call by itself.
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

    /// Lets other tasks have their turn between two parts. A thread that unlocks the table and locks it
    /// again is faster than one that must wake up first, so it pauses while threads wait.
    pub(super) async fn give_way(&self) {
        match self.blocked_threads.load(Ordering::Relaxed) {
            0 => yield_now().await,
            _ => sleep(GIVE_WAY_DELAY).await,
        }
    }

    /// Does the same as [`give_way`](Self::give_way), for code that does not await.
    fn give_way_blocking(&self) {
        if self.blocked_threads.load(Ordering::Relaxed) > 0 {
            thread::sleep(GIVE_WAY_DELAY);
        }
    }

    /// Runs `act` on the table, and delivers the outcomes to the waiting commands.
    pub(super) fn with_table<T>(&self, act: impl FnOnce(&mut LockTable, std::time::Instant) -> T) -> T {
        let mut state = self.lock();
        let outcome = act(&mut state.table, Instant::now().into_std());
        state.deliver();
        outcome
    }

    /// Runs `act` on the table, and registers the wait that it begins under the same lock.
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
            self.give_way_blocking();
        }
    }

    /// Returns the statistics of the keys in a range of slots, and `true` if there are slots behind it.
    pub(super) fn stats_part(&self, places: Range<usize>, only: Option<StatsList>) -> (StatsResult, bool) {
        let now = Instant::now().into_std();
        self.lock().table.stats_part(now, places, only)
    }

    /// Returns the number of open connections.
    pub(super) fn open_connections(&self) -> u64 {
        *self.connection_count.borrow()
    }

    /// Refuses new grants and all waiters, in parts.
    pub(super) async fn drain(&self) {
        while self.begin_drain() {
            self.give_way().await;
        }
    }

    /// Does the first part of [`drain`](Self::drain), and returns `true` if more is left.
    pub(super) fn begin_drain(&self) -> bool {
        let more = self.with_table(|table, now| table.drain_part(now, PART_SIZE));
        self.lifecycle.advance(ServerState::Draining);
        more
    }

    /// Resolves once nothing is held for connections that the server gave up.
    pub(super) async fn kept_leases_expired(&self) {
        while self.with_table(|table, now| table.has_kept_leases(now)) {
            sleep(DRAIN_POLL_INTERVAL).await;
        }
    }

    /// Creates a connection. It counts as open until the guard is dropped.
    pub(super) fn connect(self: &Arc<Self>) -> ConnectionGuard {
        self.start_maintenance();
        self.connection_count.send_modify(|count| *count += 1);
        let id = ConnId(self.next_conn.fetch_add(1, Ordering::Relaxed));
        ConnectionGuard { shared: self.clone(), id, kept_until: None }
    }

    /// Starts the task that sweeps, collects, and removes what closed connections left behind. It runs from
    /// the first connection on until the server is dropped.
    fn start_maintenance(self: &Arc<Self>) {
        if self.maintenance_started.swap(true, Ordering::Relaxed) {
            return;
        }
        let (shared, leaving) = (Arc::downgrade(self), self.leaving.clone());
        let mut sweep = tokio::time::interval(self.config.lease_sweep_interval);
        let mut collect = tokio::time::interval(self.config.gc_interval);
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
                // A wait takes the outcome out of its receiver before it drops it.
                let _ = wait.send(delivery.outcome);
            }
        }
    }
}

/// An open connection. When the guard is dropped, what the connection holds is freed, at once or at the
/// time set by [`keep_until`](Self::keep_until).
pub(super) struct ConnectionGuard {
    shared: Arc<ServerShared>,
    pub(super) id: ConnId,
    kept_until: Option<std::time::Instant>,
}

impl ConnectionGuard {
    /// Keeps what the connection holds until then. For a connection that the server gave up, and its peer
    /// did not.
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

/// A command that waits. If dropped before its outcome is taken, it leaves the queue, and releases a grant
/// that has come already.
pub(super) struct PendingWait {
    shared: Arc<ServerShared>,
    waiter: WaiterId,
    key: Key,
    receiver: oneshot::Receiver<Outcome>,
    done: bool,
}

impl PendingWait {
    /// Returns the outcome once there is one.
    pub(super) async fn outcome(&mut self) -> Outcome {
        let outcome = (&mut self.receiver).await.unwrap_or(Err(Status::Error));
        self.done = true;
        outcome
    }

    /// Ends the wait at its timeout. Returns the outcome if it came at the last moment.
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
pub(super) mod tests {
    use super::*;
    use crate::types::Limit;

    const KEYS: usize = 10 * PART_SIZE;

    #[test]
    fn a_thread_that_waits_for_the_table_is_counted_while_it_waits() {
        let shared = ServerShared::new(ServerConfig::default()).unwrap();
        let state = shared.lock();
        thread::scope(|threads| {
            let waits = threads.spawn(|| drop(shared.lock()));
            while shared.blocked_threads.load(Ordering::Relaxed) == 0 {
                thread::yield_now();
            }
            drop(state);
            waits.join().unwrap();
        });
        assert_eq!(shared.blocked_threads.load(Ordering::Relaxed), 0);
    }

    /// Returns a server with this many keys, and the connection that holds them all.
    pub(in crate::server) fn many_held(keys: usize) -> (Arc<ServerShared>, ConnectionGuard) {
        let config = ServerConfig { max_locks: keys, ..Default::default() };
        let shared = ServerShared::new(config).unwrap();
        let holder = shared.connect();
        for number in 0..keys {
            let key = Key::parse(&format!("key:{number}")).unwrap();
            let lease = Some(Seconds::new(1000).unwrap());
            shared.with_table(|table, now| table.acquire(now, holder.id, &key, Limit::ONE, lease, false));
        }
        (shared, holder)
    }

    /// Returns the virtual time until all of many keys that one connection held are free.
    async fn to_free(waiting: usize) -> Duration {
        let (shared, holder) = many_held(KEYS);
        shared.blocked_threads.store(waiting, Ordering::Relaxed);
        let start = Instant::now();
        drop(holder);
        while shared.with_table(|table, now| !table.stats(now).locks.is_empty()) {
            sleep(GIVE_WAY_DELAY).await;
        }
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn work_in_parts_stands_back_for_threads_that_wait_and_for_nobody_else() {
        assert!(to_free(0).await <= GIVE_WAY_DELAY * 2);
        assert!(to_free(1).await >= GIVE_WAY_DELAY * 8);
    }

    #[tokio::test]
    async fn stats_without_an_await_stand_back_for_threads_that_wait() {
        let (shared, _holder) = many_held(KEYS);
        shared.blocked_threads.store(1, Ordering::Relaxed);
        let start = std::time::Instant::now();
        assert_eq!(shared.stats().locks.len(), KEYS);
        assert!(start.elapsed() >= GIVE_WAY_DELAY * 8);
    }
}
