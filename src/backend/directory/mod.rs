//! The directory backend: leases that are lock files on a shared file system, one for each key.

mod activity;
mod file_name;
mod held;
mod options;

use std::convert::Infallible;
use std::error::Error as _;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::backend::{
    AcquireRequest, Attempt, Backend, Capabilities, Deadline, Gauges, Grant, Unclaimed, busy, unsupported,
};
use crate::error::{Error, ErrorKind, Result};
use crate::file::engine::FileGrant;
use crate::file::{DEFAULT_LIFETIME, MIN_GUARD_LIFETIME};
use crate::latency::SharedLatency;
use crate::proto::StatsResult;
use crate::suspend;
use crate::types::{Key, Seconds};

use activity::Activity;
use held::DirectoryLease;
use options::Options;

pub use options::Directory;

/// What an operation waits for.
const ANSWER: &str = "answer of the file system";

/// One client's view of a directory of lock files.
pub struct DirectoryBackend {
    options: Options,
    activity: Arc<Activity>,
    tries: SharedLatency,
}

impl DirectoryBackend {
    pub(crate) fn new(directory: Directory) -> Result<Self> {
        let options = Options::check(directory)?;
        Ok(Self { options, activity: Arc::default(), tries: SharedLatency::new() })
    }

    /// Takes the lock file, polling up to `timeout`; `None` when it stays busy.
    async fn take(
        &self,
        request: &AcquireRequest,
        timeout: Duration,
        deadline: &Deadline,
    ) -> Result<Option<Grant<DirectoryLease>>> {
        let in_flight = self.activity.begin()?;
        let path = self.options.path(&request.key)?;
        let endpoint = path.to_string_lossy().into();
        let file = self.options.files.for_key(path, request.key.clone()).lifetime(ttl(request)).build()?;
        let taking = file.acquire_grant(Some(timeout), Some(Box::new(in_flight.clone())));
        let taken = deadline.bounds(ANSWER, taking).await;
        let taken = taken.map_err(|error| self.explained(error).on_server(&endpoint))?;
        Ok(taken.map(|FileGrant { lease, token, began, ttl }| {
            let lease = Unclaimed::new(DirectoryLease::new(lease, in_flight));
            Grant { lease, token, fence: None, ttl, sent: began, received: suspend::now() }
        }))
    }

    /// Says what is wrong with the directory, where that is why a file could not be made.
    fn explained(&self, error: Error) -> Error {
        let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
        let Some((kind, code)) = cause.map(|cause| (cause.kind(), cause.raw_os_error())) else {
            return error;
        };
        let fault = match kind {
            io::ErrorKind::NotFound => "does not exist",
            io::ErrorKind::NotADirectory => "is not a directory",
            io::ErrorKind::PermissionDenied => "may not be written by this user",
            io::ErrorKind::ReadOnlyFilesystem => "is read-only",
            _ => return error,
        };
        let error = Error::new(ErrorKind::Io, format!("the directory {} {fault}", self.options.name));
        error.caused_by(code.map_or_else(|| kind.into(), io::Error::from_raw_os_error))
    }
}

fn ttl(request: &AcquireRequest) -> Duration {
    request.ttl.map_or(DEFAULT_LIFETIME, Seconds::duration)
}

fn has_no(what: &str) -> Error {
    unsupported(&format!("a directory of lock files has no {what}"))
}

/// What may wait for a file system is boxed: beside that, an allocation is nothing.
impl Backend for DirectoryBackend {
    type Lease = DirectoryLease;
    type Place = Infallible;

    fn capabilities(&self) -> Capabilities {
        Capabilities { semaphores: false, enqueue: false, fifo: false, fences: false }
    }

    fn endpoints(&self) -> Vec<Arc<str>> {
        vec![self.options.name.clone()]
    }

    fn check(&self, request: &AcquireRequest) -> Result<()> {
        if request.limit.is_some() {
            return Err(has_no("semaphores").for_key(&request.key));
        }
        if ttl(request) < MIN_GUARD_LIFETIME {
            let fault = format!("is {:?}, the least for a lock file is 2 s", ttl(request));
            return Err(Error::invalid("lease_ttl", fault));
        }
        self.options.path(&request.key).map(drop)
    }

    fn locate(&self, _: &Key) -> Result<usize> {
        Ok(0)
    }

    fn endpoint(&self, _: usize) -> &Arc<str> {
        &self.options.name
    }

    fn confirm_after(&self) -> Duration {
        Duration::MAX
    }

    fn skips_try(&self, _: &AcquireRequest) -> bool {
        false
    }

    fn try_acquire(
        &self,
        request: &AcquireRequest,
        _: usize,
        now: Instant,
        deadline: &Deadline,
    ) -> impl Future<Output = Result<Attempt<DirectoryLease>>> + Send {
        Box::pin(async move {
            let taken = self.take(request, Duration::ZERO, deadline).await?;
            self.tries.record([now.elapsed()]);
            Ok(taken.map_or_else(|| Attempt::Busy(busy()), Attempt::Acquired))
        })
    }

    fn acquire(
        &self,
        request: &AcquireRequest,
        _: usize,
        deadline: &Deadline,
    ) -> impl Future<Output = Result<Grant<DirectoryLease>>> + Send {
        Box::pin(async move {
            let left = deadline.wait_ends().saturating_duration_since(Instant::now());
            self.take(request, left, deadline).await?.ok_or_else(busy)
        })
    }

    async fn wait(
        &self,
        place: Infallible,
        _: &AcquireRequest,
        _: Seconds,
        _: &Deadline,
    ) -> Result<Grant<DirectoryLease>> {
        match place {}
    }

    async fn stats(&self) -> Result<Vec<StatsResult>> {
        Err(has_no("stats").during("stats"))
    }

    fn gauges(&self) -> Gauges {
        Gauges { connections: 0, in_flight: 0, connects: 0, round_trips: self.tries.read() }
    }

    fn close(&self, deadline: Instant) -> impl Future<Output = Result<()>> + Send {
        self.activity.close();
        let activity = self.activity.clone();
        async move {
            let late = |_| Error::new(ErrorKind::Timeout, "not all lock files were released in time");
            timeout_at(deadline, activity.ends()).await.map_err(late)
        }
    }
}
