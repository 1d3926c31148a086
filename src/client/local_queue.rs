//! Who of this client waits for the same key: they line up here, in order, and the first of them
//! alone waits at the server. Each runtime has lines of its own, so that one that does not run holds
//! up no other; between them, the server keeps the order. Knows of no connection.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use tokio::runtime;

use crate::backend::here;
use crate::client::inner::ClientInner;
use crate::error::Result;
use crate::types::{Key, Limit};

/// What is waited for, and where: users of another limit do not line up, since the server refuses
/// them.
type QueueKey = (Key, Option<Limit>, runtime::Id);

/// The lines of one client.
#[derive(Default)]
pub(crate) struct LocalQueues(Mutex<HashMap<QueueKey, LocalQueue>>);

struct LocalQueue {
    /// One permit, which the first has; handed on in order.
    head: Arc<Semaphore>,
    length: usize,
}

impl LocalQueues {
    fn queues(&self) -> MutexGuard<'_, HashMap<QueueKey, LocalQueue>> {
        // Nothing panics while the map is locked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether somebody waits on this runtime.
    pub(crate) fn is_waited_for(&self, key: &Key, limit: Option<Limit>) -> bool {
        let queues = self.queues();
        !queues.is_empty() && here().is_ok_and(|here| queues.contains_key(&(key.clone(), limit, here)))
    }

    fn join(&self, key: &QueueKey) -> Arc<Semaphore> {
        let mut queues = self.queues();
        let line = queues.entry(key.clone());
        let line = line.or_insert_with(|| LocalQueue { head: Arc::new(Semaphore::new(1)), length: 0 });
        line.length += 1;
        line.head.clone()
    }

    fn leave(&self, key: &QueueKey) {
        let mut queues = self.queues();
        if let Some(line) = queues.get_mut(key) {
            line.length -= 1;
            if line.length == 0 {
                queues.remove(key);
            }
        }
    }
}

/// A place in a line, from its end to its head; dropping it lets the next one forward.
pub(crate) struct LocalPlace {
    client: Arc<ClientInner>,
    key: QueueKey,
    first: Arc<Semaphore>,
    turn: Option<OwnedSemaphorePermit>,
}

impl LocalPlace {
    /// Goes to the end of the line.
    pub(crate) fn join(client: &Arc<ClientInner>, key: &Key, limit: Option<Limit>) -> Result<Self> {
        let key = (key.clone(), limit, here()?);
        let first = client.queues.join(&key);
        Ok(Self { client: client.clone(), key, first, turn: None })
    }

    /// Waits until nobody stands before.
    pub(crate) async fn reach_head(&mut self) {
        // The semaphore is never closed.
        self.turn = self.first.clone().acquire_owned().await.ok();
    }
}

impl Drop for LocalPlace {
    fn drop(&mut self) {
        self.client.queues.leave(&self.key);
    }
}
