//! The local queues of one client: its tasks that wait for the same key queue here, and only the first of them waits
//! in the backend's queue.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::runtime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::backend::here;
use crate::error::Result;
use crate::types::{Key, Limit};

/// The key of one queue, with its limit and runtime. Each runtime has queues of its own, so that a runtime that is not
/// driven holds up no other; between runtimes the backend keeps the order. Each limit has a queue of its own, since
/// the server rejects a second limit.
type QueueKey = (Key, Option<Limit>, runtime::Id);

/// The local queues of one client.
#[derive(Default)]
pub(crate) struct LocalQueues(Mutex<HashMap<QueueKey, LocalQueue>>);

struct LocalQueue {
    /// Has one permit, which the first waiter holds. The semaphore passes it on in order.
    head: Arc<Semaphore>,
    length: usize,
}

impl LocalQueues {
    fn queues(&self) -> MutexGuard<'_, HashMap<QueueKey, LocalQueue>> {
        // Nothing panics under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns `true` if a task waits for the key on this runtime.
    pub(crate) fn is_waited_for(&self, key: &Key, limit: Option<Limit>) -> bool {
        let queues = self.queues();
        !queues.is_empty() && here().is_ok_and(|here| queues.contains_key(&(key.clone(), limit, here)))
    }

    /// Joins the queue of the key at its end.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) outside a tokio runtime.
    pub(crate) fn join(&self, key: &Key, limit: Option<Limit>) -> Result<LocalPlace<'_>> {
        let key = (key.clone(), limit, here()?);
        let mut queues = self.queues();
        let queue = queues.entry(key.clone());
        let queue = queue.or_insert_with(|| LocalQueue { head: Arc::new(Semaphore::new(1)), length: 0 });
        queue.length += 1;
        Ok(LocalPlace { queues: self, key, head: queue.head.clone(), permit: None })
    }

    fn leave(&self, key: &QueueKey) {
        let mut queues = self.queues();
        if let Some(queue) = queues.get_mut(key) {
            queue.length -= 1;
            if queue.length == 0 {
                queues.remove(key);
            }
        }
    }
}

/// A place in a local queue. Dropping it lets the next task advance.
pub(crate) struct LocalPlace<'a> {
    queues: &'a LocalQueues,
    key: QueueKey,
    head: Arc<Semaphore>,
    permit: Option<OwnedSemaphorePermit>,
}

impl LocalPlace<'_> {
    /// Waits until this place is the first of its queue.
    pub(crate) async fn reach_head(&mut self) {
        // The semaphore is never closed.
        self.permit = self.head.clone().acquire_owned().await.ok();
    }
}

impl Drop for LocalPlace<'_> {
    fn drop(&mut self) {
        self.queues.leave(&self.key);
    }
}
