//! Guards dropped wherever they may be, and holders whose runtime stands still, on any engine. In real time.

use std::thread;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use crate::engines::{CAP, DflockdApart, Engine, KEY, LockFiles, NOTHING, brief};

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

macro_rules! for_each_engine {
    ($($test:ident)*) => {
        mod dflockd {
            $(#[test]
            fn $test() {
                super::$test::<super::DflockdApart>();
            })*
        }
        mod directory {
            $(#[test]
            fn $test() {
                super::$test::<super::LockFiles>();
            })*
        }
    };
}

for_each_engine! {
    a_guard_may_be_dropped_anywhere
    a_guard_outlives_its_runtime
    a_holder_that_stands_still_is_lost_before_another_holds
}

fn a_guard_may_be_dropped_anywhere<E: Engine>() {
    let runtime = runtime();
    runtime.block_on(async {
        let engine = E::start();
        let lock = engine.client().lock(KEY).unwrap();
        let guard = lock.acquire().await.unwrap();
        tokio::spawn(async move { drop(guard) }).await.unwrap();
        engine.settles(NOTHING).await;

        let guard = lock.acquire().await.unwrap();
        let panics = tokio::spawn(async move {
            let _guard = guard;
            std::panic::resume_unwind(Box::new("on purpose"));
        });
        assert!(panics.await.unwrap_err().is_panic());
        engine.settles(NOTHING).await;

        let guard = lock.acquire().await.unwrap();
        thread::spawn(move || drop(guard)).join().unwrap();
        engine.settles(NOTHING).await;
    });
}

fn a_guard_outlives_its_runtime<E: Engine>() {
    let (here, there) = (runtime(), runtime());
    let engine = here.block_on(async { E::start() });
    let locks = engine.client();
    let guard = there.block_on(locks.lock(KEY).unwrap().acquire()).unwrap();
    drop(there);
    assert!(!guard.is_held());
    drop(guard);
    here.block_on(engine.settles(NOTHING));
}

fn a_holder_that_stands_still_is_lost_before_another_holds<E: Engine>() {
    let (here, there) = (runtime(), runtime());
    let engine = here.block_on(async { E::start() });
    let (locks, others) = (engine.client(), engine.client());
    let lock = locks.lock(KEY).unwrap().with_options(brief()).unwrap();
    let guard = there.block_on(lock.acquire()).unwrap();
    // Nothing renews it from here on.
    let next = here.block_on(async {
        let lock = others.lock(KEY).unwrap();
        timeout(CAP, lock.acquire()).await.expect("the key stays taken").unwrap()
    });
    assert!(!guard.is_held(), "two holders");
    assert!(next.is_held());
}
