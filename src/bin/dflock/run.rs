//! `dflock run`: a command under a key, of a server or a directory.

use dflockd_client::{Error, LeaseGuard};

use crate::args::Run;
use crate::exit::Failure;
use crate::hold::hold;

pub(crate) async fn run(run: &Run) -> Result<u8, Failure> {
    let client = run.connection.ready()?.client(run.holding.ttl, run.retry)?;
    let patience = run.holding.patience();
    let what = format!("{:?}", run.key);
    let failed = failure_of(run);
    match run.limit {
        None => {
            let lock = client.lock(&run.key).map_err(failed)?;
            let acquire = lock.acquire_within(patience);
            held(&what, acquire, 1, run).await
        }
        Some(limit) => {
            let semaphore = client.semaphore(&run.key, limit).map_err(failed)?;
            let acquire = semaphore.acquire_within(patience);
            held(&what, acquire, limit, run).await
        }
    }
}

/// What an error means, of a server or a directory.
fn failure_of(run: &Run) -> fn(Error) -> Failure {
    if run.connection.directory.is_some() { Failure::of_directory } else { Failure::from }
}

async fn held(
    what: &str,
    acquire: impl Future<Output = Result<LeaseGuard, Error>>,
    limit: u64,
    run: &Run,
) -> Result<u8, Failure> {
    hold(what, acquire, failure_of(run), Some(limit), &run.holding).await
}
