//! A server with two clients, one of which is under test: its futures are dropped after any number
//! of polls, and then nothing of them may be left.

use std::any::Any;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use dflockd_client::net::{BoxStream, Dial};
use dflockd_client::server::{Server, ServerConfig};
use dflockd_client::{AsyncDistributedLock, Builder, ClientTarget, LeaseGuard, LockClient, StatsResult};
use futures::future::{BoxFuture, FutureExt};
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout};

use crate::turns::{Dice, poll_times, turn};

pub(crate) const S: Duration = Duration::from_secs(1);
/// What pipes hold, in bytes.
const ROOMS: [usize; 3] = [1, 7, 64 * 1024];

/// What goes over the pipe on the server's side before the server's own session does.
type Accept = dyn Fn(BoxStream) -> BoxFuture<'static, dflockd_client::Result<BoxStream>> + Send + Sync;

/// How the client under test reaches the server.
#[derive(Clone)]
pub(crate) struct Way {
    pub(crate) room: usize,
    pub(crate) accept: Option<Arc<Accept>>,
    /// Whether dialling takes a while.
    pub(crate) slow: bool,
}

impl Way {
    /// A pipe that holds so many bytes.
    pub(crate) fn pipe(room: usize) -> Self {
        Self { room, accept: None, slow: false }
    }
}

struct Piped(Server, Way);

impl Dial for Piped {
    fn dial<'a>(&'a self, _host: &'a str, _port: u16) -> BoxFuture<'a, io::Result<BoxStream>> {
        async move {
            if self.1.slow {
                turn().await;
                sleep(S / 100).await;
            }
            let (near, far) = tokio::io::duplex(self.1.room);
            let (server, accept) = (self.0.clone(), self.1.accept.clone());
            tokio::spawn(async move {
                match accept {
                    None => server.serve_stream(far).await,
                    Some(accept) => {
                        if let Ok(stream) = accept(Box::new(far)).await {
                            server.serve_stream(stream).await;
                        }
                    }
                }
            });
            if self.1.slow {
                turn().await;
            }
            Ok(Box::new(near) as BoxStream)
        }
        .boxed()
    }
}

/// The builder of a client that reaches the server this way.
pub(crate) fn builder(server: &Server, way: Way) -> Builder<ClientTarget> {
    LockClient::builder().dial(Piped(server.clone(), way))
}

/// A server, the client under test, and a rival.
pub(crate) struct World {
    pub(crate) server: Server,
    pub(crate) locks: LockClient,
    pub(crate) rival: LockClient,
}

impl World {
    pub(crate) fn new(config: ServerConfig, way: Way) -> Self {
        let server = Server::new(config).unwrap();
        let locks = builder(&server, way).build().unwrap();
        let rival = builder(&server, Way::pipe(4096)).build().unwrap();
        Self { server, locks, rival }
    }

    pub(crate) fn lock(&self) -> AsyncDistributedLock {
        self.locks.lock("k").unwrap()
    }

    pub(crate) async fn rival_holds(&self) -> LeaseGuard {
        self.rival.lock("k").unwrap().acquire().await.unwrap()
    }

    /// So many of the rival's wait for the key, for as long as the answer lives.
    pub(crate) async fn rivals_wait(&self, count: usize) -> Vec<LeaveOnDrop> {
        let mut rivals = Vec::new();
        for _ in 0..count {
            // Each at the server, and not in its client's own line.
            let lock = self.rival.lock("k").unwrap().isolated();
            rivals.push(LeaveOnDrop(tokio::spawn(async move { lock.acquire_within(1000 * S).await })));
            sleep(S / 100).await;
        }
        rivals
    }
}

/// A task that ends with its handle.
pub(crate) struct LeaveOnDrop(tokio::task::JoinHandle<dflockd_client::Result<LeaseGuard>>);

impl Drop for LeaveOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Anything that is kept until the end.
pub(crate) type Kept = Box<dyn Any + Send>;

/// A future to be dropped, and what must be there afterwards.
pub(crate) struct Scene {
    future: BoxFuture<'static, Kept>,
    keeps: Vec<Kept>,
    holders: u64,
    waiters: u64,
    /// Whether the key is free then.
    free: bool,
}

impl Scene {
    /// Nothing may be left of this future, nor of what it comes to.
    pub(crate) fn leaves_nothing<T: Send + 'static>(
        future: impl Future<Output = T> + Send + 'static,
    ) -> Self {
        let future = async { Box::new(future.await) as Kept }.boxed();
        Self { future, keeps: Vec::new(), holders: 0, waiters: 0, free: true }
    }

    /// But of this much, which others have.
    pub(crate) fn but(mut self, holders: u64, waiters: u64, kept: impl Send + 'static) -> Self {
        (self.holders, self.waiters, self.free) = (holders, waiters, false);
        self.keeps.push(Box::new(kept));
        self
    }

    /// So many others hold something else than the key.
    pub(crate) fn beside(mut self, holders: u64, kept: impl Send + 'static) -> Self {
        self.holders += holders;
        self.keeps.push(Box::new(kept));
        self
    }
}

/// How many hold and how many wait.
pub(crate) fn count(stats: &StatsResult) -> (u64, u64) {
    let held = stats.locks.iter().filter(|lock| lock.owner_conn_id != 0).count() as u64;
    let holders = stats.semaphores.iter().map(|semaphore| semaphore.holders).sum::<u64>();
    let waiters = stats.locks.iter().map(|lock| lock.waiters).sum::<u64>();
    (held + holders, waiters + stats.semaphores.iter().map(|semaphore| semaphore.waiters).sum::<u64>())
}

/// [`dropped_everywhere`] over pipes of several sizes.
pub(crate) async fn dropped_over_pipes<P>(what: &str, scene: P)
where
    P: Fn(&World) -> BoxFuture<'_, Scene> + Clone + Send + Sync + 'static,
{
    for room in ROOMS {
        let world = move |config| World::new(config, Way::pipe(room));
        dropped_everywhere(&format!("{what} over {room} bytes"), world, scene.clone()).await;
    }
}

/// How a future is dropped.
#[derive(Clone, Copy, Debug)]
enum Drops {
    /// Alone, of a server that frees what a closed connection held.
    Alone,
    /// Alone, of a server that does not: what is free then was let go.
    Kept,
    /// Together with its client, of such a server.
    WithClient,
}

/// Drops the scene's future after 0, 1, 2 … polls (later in greater steps), in a world of its own
/// each time, until it comes to its end; after each drop nothing is left of it, and the client is as
/// good as new.
pub(crate) async fn dropped_everywhere<W, P>(what: &str, world: W, scene: P)
where
    W: Fn(ServerConfig) -> World + Clone + Send + Sync + 'static,
    P: Fn(&World) -> BoxFuture<'_, Scene> + Clone + Send + Sync + 'static,
{
    for (seed, drops) in [(1, Drops::Alone), (2, Drops::Kept), (3, Drops::Kept), (4, Drops::WithClient)] {
        let config =
            ServerConfig { auto_release_on_disconnect: matches!(drops, Drops::Alone), ..Default::default() };
        let (world, scene) = (world.clone(), scene.clone());
        let what = format!("{what}, {drops:?}, seed {seed}");
        let polls = tokio::spawn({
            let what = what.clone();
            // In a task of its own, where a turn is a turn.
            async move {
                let mut polls = 0;
                while !dropped_after(polls, Dice::new(seed), drops, &what, world(config.clone()), &scene)
                    .await
                {
                    polls += 1 + polls / 16;
                }
                polls
            }
        });
        let polls = polls.await.unwrap_or_else(|_| panic!("{what}: see above"));
        println!("{what}: ended after {polls} polls");
        assert!(polls > 0, "{what}: it is over before it is polled");
    }
}

/// Whether the future came to its end within so many polls.
async fn dropped_after<P>(
    polls: usize,
    mut dice: Dice,
    drops: Drops,
    what: &str,
    world: World,
    scene: &P,
) -> bool
where
    P: Fn(&World) -> BoxFuture<'_, Scene>,
{
    let label = format!("{what}, dropped after {polls} polls");
    let baseline = Handle::current().metrics().num_alive_tasks();
    let Scene { future, keeps, holders, waiters, free } = scene(&world).await;
    let World { server, locks, rival } = world;
    let ended = poll_times(future, polls, &mut dice).await;
    let over = ended.is_some();
    drop(ended);
    let locks = Some(locks).filter(|_| !matches!(drops, Drops::WithClient));
    sleep(S).await;
    let stats = server.stats();
    assert_eq!(count(&stats), (holders, waiters), "{label}: {stats:?}");
    if let Some(locks) = locks {
        serves_on(&locks, free, &label).await;
    }
    drop((keeps, rival));
    sleep(S).await;
    let stats = server.stats();
    assert_eq!((stats.connections, count(&stats)), (0, (0, 0)), "{label}: {stats:?}");
    drop(server);
    // The server's upkeep looks once a second whether it is still wanted.
    sleep(2 * S).await;
    assert_eq!(Handle::current().metrics().num_alive_tasks(), baseline, "{label}: tasks are left");
    over
}

/// Each command gets its own reply: the right key, the right kind, fences that grow.
async fn serves_on(locks: &LockClient, free: bool, label: &str) {
    let next = locks.lock("next").unwrap();
    let in_time = |what: &'static str| format!("{label}: {what}");
    let one = timeout(S, next.acquire()).await.unwrap_or_else(|_| panic!("{}", in_time("no acquire")));
    let one = one.unwrap_or_else(|error| panic!("{label}: {error}"));
    assert_eq!(one.key().to_text(), "next", "{label}");
    let fence = one.fence();
    let tried =
        locks.lock("k").unwrap().try_acquire().await.unwrap_or_else(|error| panic!("{label}: {error}"));
    assert_eq!(tried.is_some(), free, "{label}");
    assert!(tried.is_none_or(|guard| guard.fence() > fence && guard.key().to_text() == "k"), "{label}");
    one.release().await.unwrap_or_else(|error| panic!("{label}: {error}"));
    let two = next.try_acquire().await.unwrap_or_else(|error| panic!("{label}: {error}"));
    let two = two.unwrap_or_else(|| panic!("{}", in_time("the key is still taken")));
    assert!(two.fence() > fence, "{label}");
    let stats = locks.stats().await.unwrap_or_else(|error| panic!("{label}: {error}"));
    assert!(stats[0].locks.iter().any(|lock| lock.key == "next"), "{label}: {stats:?}");
}
