//! `dflock run`: a command under a key of a server.

use dflockd_client::{Error, LeaseGuard};

use crate::args::Run;
use crate::exit::Failure;
use crate::hold::hold;

pub(crate) async fn run(run: &Run) -> Result<u8, Failure> {
    let client = run.connection.ready()?.client(run.holding.ttl, run.retry)?;
    let patience = run.holding.patience();
    let what = format!("{:?}", run.key);
    match run.limit {
        None => {
            let lock = client.lock(&run.key)?;
            let acquire = lock.acquire_within(patience);
            held(&what, acquire, 1, run).await
        }
        Some(limit) => {
            let semaphore = client.semaphore(&run.key, limit)?;
            let acquire = semaphore.acquire_within(patience);
            held(&what, acquire, limit, run).await
        }
    }
}

async fn held(
    what: &str,
    acquire: impl Future<Output = Result<LeaseGuard, Error>>,
    limit: u64,
    run: &Run,
) -> Result<u8, Failure> {
    hold(what, acquire, Failure::from, Some(limit), &run.holding).await
}
