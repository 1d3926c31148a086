//! Who of this client waits for the same key: they line up here, in order, and the first of them
//! alone waits at the server. Each runtime has lines of its own, so that one that does not run holds
//! up no other; between them, the server keeps the order. Knows of no connection.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use tokio::runtime;

use crate::client::pool::Pool;
use crate::client::runtime::here;
use crate::error::Result;
use crate::types::{Key, Limit};

/// What is waited for, and where: users of another limit do not line up, since the server refuses
/// them.
type Goal = (Key, Option<Limit>, runtime::Id);

/// The lines of one client.
#[derive(Default)]
pub(crate) struct Lines(Mutex<HashMap<Goal, Line>>);

struct Line {
    /// One permit, which the first has; handed on in order.
    first: Arc<Semaphore>,
    length: usize,
}

impl Lines {
    fn lines(&self) -> MutexGuard<'_, HashMap<Goal, Line>> {
        // Nothing panics while the map is locked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether somebody waits on this runtime.
    pub(crate) fn is_waited_for(&self, key: &Key, limit: Option<Limit>) -> bool {
        let lines = self.lines();
        !lines.is_empty() && here().is_ok_and(|here| lines.contains_key(&(key.clone(), limit, here)))
    }

    fn join(&self, goal: &Goal) -> Arc<Semaphore> {
        let mut lines = self.lines();
        let line = lines.entry(goal.clone());
        let line = line.or_insert_with(|| Line { first: Arc::new(Semaphore::new(1)), length: 0 });
        line.length += 1;
        line.first.clone()
    }

    fn leave(&self, goal: &Goal) {
        let mut lines = self.lines();
        if let Some(line) = lines.get_mut(goal) {
            line.length -= 1;
            if line.length == 0 {
                lines.remove(goal);
            }
        }
    }
}

/// A place in a line, from its end to its head; dropping it lets the next one forward.
pub(crate) struct InLine {
    pool: Arc<Pool>,
    goal: Goal,
    first: Arc<Semaphore>,
    turn: Option<OwnedSemaphorePermit>,
}

impl InLine {
    /// Goes to the end of the line.
    pub(crate) fn join(pool: &Arc<Pool>, key: &Key, limit: Option<Limit>) -> Result<Self> {
        let goal = (key.clone(), limit, here()?);
        let first = pool.lines.join(&goal);
        Ok(Self { pool: pool.clone(), goal, first, turn: None })
    }

    /// Waits until nobody stands before.
    pub(crate) async fn turn(&mut self) {
        // The semaphore is never closed.
        self.turn = self.first.clone().acquire_owned().await.ok();
    }
}

impl Drop for InLine {
    fn drop(&mut self) {
        self.pool.lines.leave(&self.goal);
    }
}
