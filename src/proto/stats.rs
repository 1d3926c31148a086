//! The JSON that `stats` answers with, typed. Keys that a newer server adds are ignored.

use serde::{Deserialize, Serialize};

/// What a server holds right now: the answer to `stats`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StatsResult {
    /// Open connections, the asking one among them.
    pub connections: u64,
    /// Keys of limit 1 that are held or waited for.
    pub locks: Vec<HeldLock>,
    /// Keys of another limit that are held or waited for.
    pub semaphores: Vec<HeldSemaphore>,
    /// Keys of limit 1 that nobody holds or waits for and that are not collected yet.
    pub idle_locks: Vec<IdleKey>,
    /// Keys of another limit that nobody holds or waits for and that are not collected yet.
    pub idle_semaphores: Vec<IdleKey>,
}

/// A lock that is held or waited for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldLock {
    /// The key.
    pub key: String,
    /// The number of the connection that asked for the grant; 0 while nobody holds it.
    #[serde(default)]
    pub owner_conn_id: i64,
    /// Seconds until the lease runs out; 0 where it has, or while nobody holds it.
    #[serde(default)]
    pub lease_expires_in_s: f64,
    /// How many wait.
    #[serde(default)]
    pub waiters: u64,
}

/// A semaphore that is held or waited for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldSemaphore {
    /// The key.
    pub key: String,
    /// How many may hold it at once.
    #[serde(default)]
    pub limit: u64,
    /// How many hold it.
    #[serde(default)]
    pub holders: u64,
    /// How many wait.
    #[serde(default)]
    pub waiters: u64,
}

/// A key that nobody holds or waits for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IdleKey {
    /// The key.
    pub key: String,
    /// Seconds since it was last used.
    #[serde(default)]
    pub idle_s: f64,
}

impl StatsResult {
    /// Reads the JSON of a `stats` reply.
    ///
    /// # Errors
    /// When it is not a JSON object with all five keys, each of its type.
    pub fn from_json(json: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(json)
    }

    /// Writes the JSON of a `stats` reply, on one line.
    pub fn to_json(&self) -> String {
        // Maps with string keys and finite numbers always serialise.
        serde_json::to_string(self).unwrap_or_default()
    }
}
