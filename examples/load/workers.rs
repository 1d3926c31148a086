//! Tasks that repeat one operation concurrently, and how long each repetition takes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use tokio::sync::Barrier;

use crate::peer::Peer;
use crate::report::Series;
use crate::{Result, usage};

/// Performs the operation.
pub(crate) trait Worker: Send + 'static {
    /// Performs it once.
    fn round(&mut self) -> impl Future<Output = Result<()>> + Send;
}

/// Workers, and what was measured of them so far.
pub(crate) struct Measured<W> {
    workers: Vec<W>,
    /// This process and, if it runs on this machine, the other side's.
    processes: Vec<u32>,
    pub(crate) series: Series,
}

impl<W: Worker> Measured<W> {
    pub(crate) fn new(workers: Vec<W>, other: Option<&Peer>) -> Self {
        let processes = std::iter::once(std::process::id()).chain(other.map(Peer::pid)).collect();
        Self { workers, processes, series: Series::new() }
    }

    pub(crate) fn count(&self) -> usize {
        self.workers.len()
    }

    pub(crate) fn forget(&mut self) {
        self.series = Series::new();
    }

    /// Has each worker do this many rounds, all starting together.
    pub(crate) async fn slice(&mut self, rounds: usize) -> Result<()> {
        let barrier = Arc::new(Barrier::new(self.workers.len() + 1));
        let tasks = self.workers.drain(..).map(|mut worker| {
            let barrier = barrier.clone();
            tokio::spawn(async move {
                let mut times = Vec::with_capacity(rounds);
                barrier.wait().await;
                for _ in 0..rounds {
                    let began = Instant::now();
                    worker.round().await?;
                    times.push(began.elapsed());
                }
                Ok((worker, times))
            })
        });
        let tasks: Vec<_> = tasks.collect();
        let ran = self.ran()?;
        barrier.wait().await;
        let began = Instant::now();
        let done: Vec<Result<(W, Vec<Duration>)>> = try_join_all(tasks).await?;
        let took = began.elapsed().as_secs_f64();
        let ran = self.ran()?.iter().zip(ran).map(|(after, before)| *after - before).collect();
        #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 rounds")]
        let count = (rounds * done.len()) as f64;
        self.series.add_slice(count, took, ran);
        for done in done {
            let (worker, times) = done?;
            self.workers.push(worker);
            times.into_iter().for_each(|time| self.series.latencies.record(time));
        }
        Ok(())
    }

    fn ran(&self) -> Result<Vec<Duration>> {
        self.processes.iter().map(|pid| usage::ran(*pid)).collect()
    }
}
