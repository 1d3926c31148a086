//! Futures that are dropped after any number of polls leave nothing behind, on any engine.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use dflockd_client::{Enqueued, LockClient};
use futures::task::{self, ArcWake};
use tokio::sync::Notify;
use tokio::task::yield_now;

use crate::engines::{CAP, Census, Engine, KEY, NOTHING};
use crate::suite::for_each_engine;

for_each_engine! {
    an_acquire_of_a_free_key
    an_acquire_of_a_busy_key
    an_acquire_of_a_key_that_comes_free
    a_try
    an_enqueue
    a_wait_at_a_place
    a_release
    a_close
}

/// More polls than any of them takes.
const MOST: usize = 500;

/// Makes futures, and drops each after one poll more than the one before, until one comes to its end: at once
/// after the poll, and also when it was woken for the next. After each, `expected` stands. What a future comes
/// to is dropped.
async fn dropped<F: Future>(engine: impl Engine, expected: Census, make: impl Fn(LockClient) -> F) {
    for polls in 0..MOST {
        let mut is_done = false;
        for until_woken in [false, true] {
            is_done |= poll_times(make(engine.client()), polls, until_woken).await.is_some();
            engine.settles(expected).await;
        }
        if is_done {
            return;
        }
    }
    panic!("{MOST} polls are not enough");
}

struct Woken(Notify);

impl ArcWake for Woken {
    fn wake_by_ref(woken: &Arc<Self>) {
        woken.0.notify_one();
    }
}

/// Polls a future whenever it was woken, so many times at most, and returns what it came to; then drops it.
async fn poll_times<F: Future>(future: F, polls: usize, until_woken: bool) -> Option<F::Output> {
    let mut future = Box::pin(future);
    let woken = Arc::new(Woken(Notify::new()));
    let waker = task::waker(woken.clone());
    for left in (0..polls).rev() {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(value);
        }
        if left > 0 || until_woken {
            woken.0.notified().await;
        }
    }
    None
}

async fn an_acquire_of_a_free_key(engine: impl Engine) {
    dropped(engine, NOTHING, |locks| async move {
        drop(locks.lock(KEY).unwrap().acquire().await.unwrap());
    })
    .await;
}

async fn an_acquire_of_a_busy_key(engine: impl Engine) {
    let _guard = engine.client().lock(KEY).unwrap().acquire().await.unwrap();
    dropped(engine, Census { held: 1, waiting: 0 }, |locks| async move {
        let patience = Duration::from_millis(30);
        locks.lock(KEY).unwrap().acquire_within(patience).await.unwrap_err();
    })
    .await;
}

async fn an_acquire_of_a_key_that_comes_free(engine: impl Engine) {
    let rival = engine.client();
    dropped(engine, NOTHING, move |locks| {
        let rival = rival.lock(KEY).unwrap();
        async move {
            let guard = rival.acquire().await.unwrap();
            tokio::spawn(async move {
                for _ in 0..30 {
                    yield_now().await;
                }
                drop(guard);
            });
            locks.lock(KEY).unwrap().acquire().await.unwrap()
        }
    })
    .await;
}

async fn a_try(engine: impl Engine) {
    dropped(engine, NOTHING, |locks| async move { locks.lock(KEY).unwrap().try_acquire().await.unwrap() })
        .await;
}

async fn an_enqueue(engine: impl Engine) {
    if engine.client().capabilities().enqueue {
        dropped(engine, NOTHING, |locks| async move { locks.lock(KEY).unwrap().enqueue().await.unwrap() })
            .await;
    }
}

async fn a_wait_at_a_place(engine: impl Engine) {
    let rival = engine.client();
    if !rival.capabilities().enqueue {
        return;
    }
    dropped(engine, NOTHING, move |locks| {
        let rival = rival.lock(KEY).unwrap();
        async move {
            let guard = rival.acquire().await.unwrap();
            let Enqueued::Queued(ticket) = locks.lock(KEY).unwrap().enqueue().await.unwrap() else {
                panic!("it is taken")
            };
            drop(guard);
            ticket.wait(CAP).await.unwrap()
        }
    })
    .await;
}

async fn a_release(engine: impl Engine) {
    dropped(engine, NOTHING, |locks| async move {
        locks.lock(KEY).unwrap().acquire().await.unwrap().release().await.unwrap();
    })
    .await;
}

async fn a_close(engine: impl Engine) {
    dropped(engine, NOTHING, |locks| async move {
        let guard = locks.lock(KEY).unwrap().acquire().await.unwrap();
        locks.close().await.unwrap();
        guard
    })
    .await;
}
