//! Picks the server of a key, by the same rule as the clients in other languages.

/// The server of a client for which none is set: `127.0.0.1`, port 6388.
pub const DEFAULT_SERVERS: &[(&str, u16)] = &[("127.0.0.1", 6388)];

/// Picks a server for a key. Closures `Fn(&str, usize) -> usize` are strategies too.
///
/// Every client of a fleet must return the same server, or two holders can have one key on two servers.
pub trait ShardingStrategy: Send + Sync + 'static {
    /// Returns the index of the key's server, `0..servers`. An index out of range is reported to the
    /// caller of the lock as [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput).
    fn shard(&self, key: &str, servers: usize) -> usize;
}

impl<F: Fn(&str, usize) -> usize + Send + Sync + 'static> ShardingStrategy for F {
    fn shard(&self, key: &str, servers: usize) -> usize {
        self(key, servers)
    }
}

/// Returns the IEEE CRC-32 of the key's UTF-8, modulo the number of servers: the default strategy.
///
/// The Go, Python and TypeScript clients compute the same. Returns 0 if there are no servers.
///
/// ```
/// assert_eq!(dflockd_client::stable_hash_shard("deploy-job", 7), 4);
/// ```
pub fn stable_hash_shard(key: &str, servers: usize) -> usize {
    let hash = crc32fast::hash(key.as_bytes()) as usize;
    hash.checked_rem(servers).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_vectors_hold() {
        let vectors: [(&str, u32, usize, usize); 6] = [
            ("my-key", 3605215937, 2, 1),
            ("deploy-job", 2526400174, 1, 4),
            ("row:42", 1084471265, 2, 3),
            ("", 0, 0, 0),
            ("ключ", 212833818, 0, 1),
            (&"a".repeat(255), 2730756925, 1, 1),
        ];
        for (key, crc, of_three, of_seven) in vectors {
            assert_eq!(crc32fast::hash(key.as_bytes()), crc, "{key}");
            assert_eq!(stable_hash_shard(key, 3), of_three, "{key}");
            assert_eq!(stable_hash_shard(key, 7), of_seven, "{key}");
        }
    }

    #[test]
    fn a_closure_is_a_strategy() {
        let last = |_: &str, servers: usize| servers - 1;
        assert_eq!(ShardingStrategy::shard(&last, "k", 3), 2);
    }
}
