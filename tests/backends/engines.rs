//! The engines that the suite runs over, and what it needs of each beside a client.

use std::sync::mpsc;
use std::time::Duration;
use std::{fs, thread};

use dflockd_client::server::{Server, ServerConfig};
use dflockd_client::test_util::TestServer;
use dflockd_client::{Builder, ClientTarget, Directory, IntoBackend, LockClient, LockOptions, StatsResult};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

/// Longer than anything takes, on the slowest machine.
pub(crate) const CAP: Duration = Duration::from_secs(60);
/// The key of a test that needs but one.
pub(crate) const KEY: &str = "a/key";

/// Keys held, and waiters for them, as the engine itself has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Census {
    pub(crate) held: usize,
    pub(crate) waiting: usize,
}

/// Nobody holds and nobody waits.
pub(crate) const NOTHING: Census = Census { held: 0, waiting: 0 };

pub(crate) trait Engine: Sized + Send + Sync + 'static {
    /// Starts an engine with nothing held. Within a runtime.
    fn start() -> Self;

    /// One more client of it.
    fn client(&self) -> LockClient;

    /// What stands now.
    fn census(&self) -> Census;

    /// Ends the lease on a key, without its holder's doing.
    fn take_away(&self, key: &str);

    /// Waits until this is how it stands.
    fn settles(&self, expected: Census) -> impl Future<Output = ()> + Send {
        async move {
            let settled = async {
                while self.census() != expected {
                    sleep(Duration::from_millis(2)).await;
                }
            };
            if timeout(CAP, settled).await.is_err() {
                panic!("it stands at {:?}, and not at {expected:?}", self.census());
            }
        }
    }
}

/// Leases that are over soon, and polls that come soon.
fn built<B: IntoBackend>(builder: Builder<ClientTarget, B>) -> LockClient {
    builder.lease_ttl(Duration::from_secs(8)).acquire_timeout(CAP).build().unwrap()
}

/// The shortest lease that every engine grants.
pub(crate) fn brief() -> LockOptions {
    LockOptions::new().lease_ttl(Duration::from_secs(2))
}

pub(crate) struct Dflockd(TestServer);

impl Engine for Dflockd {
    fn start() -> Self {
        Self(TestServer::new())
    }

    fn client(&self) -> LockClient {
        built(self.0.builder())
    }

    fn census(&self) -> Census {
        counted(&self.0.stats())
    }

    fn take_away(&self, key: &str) {
        self.0.expire_lease(key);
    }
}

fn counted(stats: &StatsResult) -> Census {
    let slots = stats.semaphores.iter();
    let held = stats.locks.len() as u64 + slots.clone().map(|slots| slots.holders).sum::<u64>();
    let waiting = stats.locks.iter().map(|lock| lock.waiters).chain(slots.map(|slots| slots.waiters));
    Census { held: held as usize, waiting: waiting.sum::<u64>() as usize }
}

/// The same on a runtime of its own: it goes on where a client's stands still.
pub(crate) struct DflockdApart {
    server: Server,
    port: u16,
    _stops: oneshot::Sender<()>,
}

impl Engine for DflockdApart {
    fn start() -> Self {
        let ((tell, told), (stops, stopped)) = (mpsc::channel(), oneshot::channel::<()>());
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let config = ServerConfig { port: 0, ..ServerConfig::default() };
                let server = Server::bind(config).await.unwrap();
                tell.send((server.clone(), server.local_addr().unwrap().port())).unwrap();
                server.run(async { drop(stopped.await) }).await;
            });
        });
        let (server, port) = told.recv().unwrap();
        Self { server, port, _stops: stops }
    }

    fn client(&self) -> LockClient {
        built(LockClient::builder().servers([("127.0.0.1", self.port)]))
    }

    fn census(&self) -> Census {
        counted(&self.server.stats())
    }

    fn take_away(&self, key: &str) {
        unreachable!("nobody can take {key} away");
    }
}

pub(crate) struct LockFiles(TempDir);

impl LockFiles {
    fn directory(&self) -> Directory {
        let slop = Duration::from_millis(500);
        Directory::new(self.0.path()).hostname("here").poll(Duration::from_millis(5)).slop(slop)
    }
}

impl Engine for LockFiles {
    fn start() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn client(&self) -> LockClient {
        built(LockClient::builder().backend(self.directory()))
    }

    /// Each contender has a claim, and the holder a lock file as well.
    fn census(&self) -> Census {
        let names = fs::read_dir(self.0.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let (claims, locks): (Vec<_>, Vec<_>) = names.partition(|name| name.to_str().unwrap().contains('|'));
        Census { held: locks.len(), waiting: claims.len().saturating_sub(locks.len()) }
    }

    fn take_away(&self, key: &str) {
        fs::remove_file(self.directory().path(key).unwrap()).unwrap();
    }
}
