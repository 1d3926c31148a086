//! The typed JSON of the reply to `stats`. Keys that a newer server adds are ignored.

use serde::{Deserialize, Serialize};

/// A snapshot of a server's table: the reply to `stats`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StatsResult {
    /// Open connections, including the requesting one.
    pub connections: u64,
    /// Keys of limit 1 that have a holder or a waiter.
    pub locks: Vec<HeldLock>,
    /// Keys of another limit that have a holder or a waiter.
    pub semaphores: Vec<HeldSemaphore>,
    /// Keys of limit 1 without a holder or waiter that are not collected yet.
    pub idle_locks: Vec<IdleKey>,
    /// Keys of another limit without a holder or waiter that are not collected yet.
    pub idle_semaphores: Vec<IdleKey>,
}

/// A lock that has a holder or a waiter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldLock {
    /// The key.
    pub key: String,
    /// The number of the connection that requested the grant; 0 while there is no holder.
    #[serde(default)]
    pub owner_conn_id: i64,
    /// Seconds until the lease expires; 0 if it has expired, or while there is no holder.
    #[serde(default)]
    pub lease_expires_in_s: f64,
    /// How many wait.
    #[serde(default)]
    pub waiters: u64,
}

/// A semaphore that has a holder or a waiter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldSemaphore {
    /// The key.
    pub key: String,
    /// The maximum number of holders.
    #[serde(default)]
    pub limit: u64,
    /// The number of holders.
    #[serde(default)]
    pub holders: u64,
    /// How many wait.
    #[serde(default)]
    pub waiters: u64,
}

/// A key without a holder or waiter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IdleKey {
    /// The key.
    pub key: String,
    /// Seconds since it was last used.
    #[serde(default)]
    pub idle_s: f64,
}

impl StatsResult {
    /// Parses the JSON of a `stats` reply.
    ///
    /// # Errors
    /// If it is not a JSON object with all five keys, each of its type.
    pub fn from_json(json: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(json)
    }

    /// Returns the JSON of a `stats` reply, on one line.
    pub fn to_json(&self) -> String {
        // Maps with string keys and finite numbers always serialise.
        serde_json::to_string(self).unwrap_or_default()
    }
}
