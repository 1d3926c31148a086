//! Tasks that do one thing over and over, at once, and how long each time takes them. Knows not what the thing is.

use std::sync::Arc;
use std::time::Instant;

use futures::future::try_join_all;
use tokio::sync::Barrier;

use crate::Result;
use crate::report::{Latencies, Series};

/// Whoever does the thing.
pub(crate) trait Worker: Send + 'static {
    /// Does it once.
    fn round(&mut self) -> impl Future<Output = Result<()>> + Send;
}

/// Workers, and what was measured of them so far.
pub(crate) struct Measured<W> {
    workers: Vec<W>,
    pub(crate) series: Series,
}

impl<W: Worker> Measured<W> {
    pub(crate) fn new(workers: Vec<W>) -> Self {
        Self { workers, series: Series::new() }
    }

    pub(crate) fn count(&self) -> usize {
        self.workers.len()
    }

    pub(crate) fn forget(&mut self) {
        self.series = Series::new();
    }

    /// Has each worker do so many rounds, all beginning together.
    pub(crate) async fn slice(&mut self, rounds: u64) -> Result<()> {
        let barrier = Arc::new(Barrier::new(self.workers.len() + 1));
        let tasks = self.workers.drain(..).map(|mut worker| {
            let barrier = barrier.clone();
            tokio::spawn(async move {
                barrier.wait().await;
                let mut latencies = Latencies::new();
                for _ in 0..rounds {
                    let began = Instant::now();
                    worker.round().await?;
                    latencies.record(began.elapsed());
                }
                Ok((worker, latencies))
            })
        });
        let tasks: Vec<_> = tasks.collect();
        barrier.wait().await;
        let began = Instant::now();
        let done: Vec<Result<(W, Latencies)>> = try_join_all(tasks).await?;
        let took = began.elapsed().as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 rounds")]
        self.series.rates.push((rounds * done.len() as u64) as f64 / took);
        for done in done {
            let (worker, latencies) = done?;
            self.workers.push(worker);
            self.series.latencies.add(&latencies)?;
        }
        Ok(())
    }
}
