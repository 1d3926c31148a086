//! Futures polled by hand, so many times and no more, while the other tasks run between the polls;
//! and the dice that say how long those run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures::task::ArcWake;
use tokio::sync::Notify;

/// After so many turns without a wake-up, only time can help.
const PATIENCE: u32 = 160;

/// Numbers that look random and are the same for the same seed.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut n = self.0;
        n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (n ^ (n >> 31)) % end
    }
}

/// Lets each task that can run now do so once. Unlike tokio's `yield_now` it comes back before
/// those have run that they wake in turn: a step, not a leap. Only within a spawned task.
pub(crate) async fn turn() {
    let mut came_back = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut came_back, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[derive(Default)]
struct Woken {
    flag: AtomicBool,
    bell: Notify,
}

impl ArcWake for Woken {
    fn wake_by_ref(woken: &Arc<Self>) {
        woken.flag.store(true, Ordering::SeqCst);
        woken.bell.notify_one();
    }
}

/// Polls a future so many times at most, and answers what it came to, if it did; then drops it.
///
/// Between two polls the other tasks have one turn, or a few where the dice say so. A future that
/// nothing has woken for long waits for that, while time goes on.
pub(crate) async fn poll_times<F: Future>(future: F, polls: usize, dice: &mut Dice) -> Option<F::Output> {
    let mut future = Box::pin(future);
    let woken = Arc::new(Woken::default());
    let mut idle = 0;
    for _ in 0..polls {
        let waker = futures::task::waker(woken.clone());
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(value);
        }
        for _ in 0..=dice.below(2) {
            turn().await;
        }
        idle = if woken.flag.swap(false, Ordering::SeqCst) { 0 } else { idle + 1 };
        if idle > PATIENCE {
            woken.bell.notified().await;
        }
    }
    None
}
