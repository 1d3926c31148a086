//! Runs a plan: hosts of servers and clients, what the plan does to them, and at the end, when all
//! is put right, an auditor who must be able to take every key.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use dflockd_client::server::{Server, ServerConfig};
use dflockd_client::{AsyncConn, StatsResult, command};
use tokio::io::DuplexStream;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use turmoil::Sim;

use crate::sim::history::{History, Recorder, now};
use crate::sim::network::{BUFFER, Ears, SEGMENTS, SimListener};
use crate::sim::plan::{Fault, Host, LONGEST_WAIT, Link, Plan, S, Trouble};
use crate::sim::workload::{self, Resource};

pub(crate) const AUTH_TOKEN: &str = "open sesame";
/// How finely the network is simulated.
const TICK: Duration = Duration::from_millis(20);
/// How long the names of keys are that are there to fill the servers' tables.
const LONG_NAME: usize = 200;
/// Where fences begin: past the wall clock, so that they are the same in each run.
const FIRST_FENCE: u64 = 1 << 62;

pub(crate) fn server_name(shard: usize) -> String {
    format!("shard-{shard}")
}

fn client_name(client: usize) -> String {
    format!("client-{client}")
}

/// What the plan comes to.
pub(crate) fn run(plan: &Arc<Plan>) -> History {
    let fences = Fences::new(plan.shards);
    // After the directory, whose name is made of random letters as well.
    fastrand::seed(plan.seed);
    let mut world = World::new(plan.clone(), &fences);
    let ran = world.run_to_the_end();
    let record = world.record.clone();
    record.crashing();
    drop(world);
    let mut history = std::mem::take(&mut *record.history());
    history.faults.extend(ran.err().map(|error| format!("a host failed: {error}")));
    history
}

/// The files that servers keep their fences in.
struct Fences(tempfile::TempDir);

impl Fences {
    fn new(shards: usize) -> Self {
        // Where there is one, a file system in memory: these are synced at each start of a server.
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let fences = Self(directory.expect("there is room for a directory"));
        for shard in 0..shards {
            std::fs::write(fences.path(shard), FIRST_FENCE.to_be_bytes()).expect("the directory is ours");
        }
        fences
    }

    fn path(&self, shard: usize) -> PathBuf {
        self.0.path().join(server_name(shard))
    }
}

struct World {
    plan: Arc<Plan>,
    sim: Sim<'static>,
    record: Recorder,
    drains: Vec<Arc<Notify>>,
    ears: Vec<Ears>,
    /// What is wrong right now.
    troubles: BTreeMap<Link, Trouble>,
    /// Clients whose tasks are at their end.
    done: Rc<RefCell<Vec<bool>>>,
}

impl World {
    fn new(plan: Arc<Plan>, fences: &Fences) -> Self {
        let sim = turmoil::Builder::new()
            .rng_seed(plan.seed)
            .simulation_duration(600 * S)
            .tick_duration(TICK)
            // Never none: what is sent on one host must arrive on another later than that.
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(plan.latency)
            .tcp_capacity(SEGMENTS)
            .enable_random_order()
            .build();
        let drains = (0..plan.shards).map(|_| Arc::default()).collect();
        let ears = (0..plan.clients).map(|_| Ears::default()).collect();
        let done = Rc::new(RefCell::new(vec![false; plan.clients]));
        let (record, troubles) = (Recorder::default(), BTreeMap::new());
        let mut world = Self { plan, sim, record, drains, ears, troubles, done };
        for shard in 0..world.plan.shards {
            world.add_server(shard, fences.path(shard));
        }
        for client in 0..world.plan.clients {
            world.add_client(client);
        }
        world
    }

    fn add_server(&mut self, shard: usize, fences: PathBuf) {
        let (plan, record, drain) = (self.plan.clone(), self.record.clone(), self.drains[shard].clone());
        self.sim.host(server_name(shard), move || {
            serve(shard, plan.clone(), fences.clone(), record.clone(), drain.clone())
        });
    }

    fn add_client(&mut self, client: usize) {
        let (plan, record, done) = (self.plan.clone(), self.record.clone(), self.done.clone());
        let (lives, ears) = (Cell::new(0), self.ears[client].clone());
        self.sim.host(client_name(client), move || {
            let (plan, record, done, ears) = (plan.clone(), record.clone(), done.clone(), ears.clone());
            let life = lives.replace(lives.get() + 1);
            async move {
                workload::run(plan, client, life, record, ears).await;
                done.borrow_mut()[client] = true;
                // What the client does in the background goes on.
                std::future::pending().await
            }
        });
    }

    fn run_to_the_end(&mut self) -> turmoil::Result {
        let plan = self.plan.clone();
        for (at, fault) in &plan.faults {
            self.run_until(*at)?;
            self.apply(*fault)?;
        }
        // By then nobody is in a queue any more, and what was let go is.
        self.run_until(plan.until + S * if plan.is_calm() { 1 } else { LONGEST_WAIT as u32 + 2 })?;
        let latest = plan.until + S * LONGEST_WAIT as u32 + 2 * plan.slack();
        while !self.done.borrow().iter().all(|done| *done) && self.sim.elapsed() < latest {
            self.sim.step()?;
        }
        self.run_until(self.sim.elapsed() + 2 * S)?;
        let (plan, record) = (self.plan.clone(), self.record.clone());
        self.sim.client("auditor", audit(plan, record));
        while !self.sim.step()? {}
        Ok(())
    }

    fn run_until(&mut self, at: Duration) -> turmoil::Result {
        while self.sim.elapsed() < at {
            self.sim.step()?;
        }
        Ok(())
    }

    fn apply(&mut self, fault: Fault) -> turmoil::Result {
        let at = self.sim.elapsed();
        self.record.log(at, format_args!("{fault:?}"));
        match fault {
            Fault::Break(link, trouble) => {
                self.troubles.insert(link, trouble);
                self.set(link);
            }
            Fault::Repair(link) => {
                if self.troubles.remove(&link) == Some(Trouble::Hold) {
                    self.deliver_in_order(&[link])?;
                }
                self.set(link);
            }
            Fault::Kill(host) => self.kill(host)?,
            Fault::PowerOff(host) => {
                let links = self.links_of(host);
                links
                    .iter()
                    .for_each(|link| self.sim.partition(client_name(link.client), server_name(link.shard)));
                self.crash(host);
                links.iter().for_each(|link| self.set(*link));
            }
            Fault::Start(host) => self.sim.bounce(host_name(host)),
            Fault::Deafen(client, how_long) => self.ears[client].close_until(at + how_long),
            Fault::Drain(shard) => self.drains[shard].notify_waiters(),
        }
        Ok(())
    }

    /// Makes a link what its trouble makes of it.
    fn set(&self, link: Link) {
        let (client, server) = (client_name(link.client), server_name(link.shard));
        let trouble = self.troubles.get(&link);
        let latency = if let Some(Trouble::Slow(latency)) = trouble { *latency } else { self.plan.latency };
        self.sim.set_link_max_message_latency(client.clone(), server.clone(), latency);
        // Delivers what was held, and lifts every cut.
        self.sim.release(client.clone(), server.clone());
        match trouble {
            Some(Trouble::Cut) => self.sim.partition(client, server),
            Some(Trouble::CutUp) => self.sim.partition_oneway(client, server),
            Some(Trouble::CutDown) => self.sim.partition_oneway(server, client),
            Some(Trouble::Hold) => self.sim.hold(client, server),
            Some(Trouble::Slow(_)) | None => {}
        }
    }

    fn crash(&mut self, host: Host) {
        self.record.crashing();
        self.sim.crash(host_name(host));
        let client = if let Host::Client(client) = host { Some(client) } else { None };
        self.record.crashed(client, self.sim.elapsed());
        if let Some(client) = client {
            self.done.borrow_mut()[client] = false;
        }
    }

    /// Ends a host's process. Its connections are closed in whatever order its tasks are dropped,
    /// which is not the same in each run: their ends are held, and delivered in order.
    fn kill(&mut self, host: Host) -> turmoil::Result {
        let links = self.links_of(host);
        let tells = |link: &&Link| match self.troubles.get(link) {
            Some(Trouble::Cut | Trouble::Hold) => false,
            Some(Trouble::CutUp) => matches!(host, Host::Server(_)),
            Some(Trouble::CutDown) => matches!(host, Host::Client(_)),
            Some(Trouble::Slow(_)) | None => true,
        };
        let telling: Vec<_> = links.iter().filter(tells).copied().collect();
        telling.iter().for_each(|link| self.sim.hold(client_name(link.client), server_name(link.shard)));
        self.crash(host);
        self.deliver_in_order(&telling)?;
        telling.iter().for_each(|link| self.set(*link));
        Ok(())
    }

    /// Delivers what is held on these links, one connection's after another's.
    fn deliver_in_order(&mut self, links: &[Link]) -> turmoil::Result {
        let hosts = |link: &Link| {
            let ends = [client_name(link.client), server_name(link.shard)];
            ends.map(|name| self.sim.lookup(name))
        };
        let ends: Vec<_> = links.iter().map(hosts).collect();
        let of_these = |(a, b): (IpAddr, IpAddr)| ends.iter().any(|end| *end == [a, b] || *end == [b, a]);
        let mut held = BTreeSet::new();
        self.sim.links(|links| {
            let links = links.filter(|link| of_these(link.pair()));
            held.extend(links.flatten().map(|message| message.pair()));
        });
        for connection in held {
            self.sim.links(|links| {
                let messages = links.flatten().filter(|message| message.pair() == connection);
                messages.for_each(|message| message.deliver());
            });
            self.sim.step()?;
        }
        Ok(())
    }

    fn links_of(&self, host: Host) -> Vec<Link> {
        let touches = |link: &Link| match host {
            Host::Server(shard) => link.shard == shard,
            Host::Client(client) => link.client == client,
        };
        self.plan.links().filter(touches).collect()
    }
}

fn host_name(host: Host) -> String {
    match host {
        Host::Server(shard) => server_name(shard),
        Host::Client(client) => client_name(client),
    }
}

fn server_config(plan: &Plan, fences: &Path) -> ServerConfig {
    ServerConfig {
        read_timeout: plan.read_timeout(),
        write_timeout: plan.write_timeout,
        shutdown_timeout: 3 * S,
        auto_release_on_disconnect: plan.auto_release,
        max_waiters: plan.max_waiters,
        gc_max_idle: if plan.wide { 3600 * S } else { 60 * S },
        auth_token: plan.auth.then(|| AUTH_TOKEN.to_owned()),
        fence_state_file: Some(fences.to_owned()),
        ..ServerConfig::default()
    }
}

/// A server's host: starts a server, and another one whenever it has stopped.
async fn serve(
    shard: usize,
    plan: Arc<Plan>,
    fences: PathBuf,
    record: Recorder,
    drain: Arc<Notify>,
) -> turmoil::Result {
    loop {
        let floor = std::fs::read(&fences)?;
        record.booted(shard, u64::from_be_bytes(floor.as_slice().try_into()?));
        let server = Server::new(server_config(&plan, &fences))?;
        let (ours, theirs) = tokio::io::duplex(BUFFER);
        let listener = SimListener::bind(plan.wide.then_some(theirs)).await?;
        if plan.wide {
            tokio::spawn(widen(plan.clone(), ours));
        }
        server.serve(listener, drain.notified()).await;
        record.log(now(), format_args!("shard {shard} stopped"));
        drop(server);
        // Its last connections end, and with them the last hold on the file.
        sleep(S / 2).await;
    }
}

/// Leaves many keys with long names on a server, which nobody has.
async fn widen(plan: Arc<Plan>, stream: DuplexStream) -> dflockd_client::Result<()> {
    let conn = AsyncConn::new(stream);
    if plan.auth {
        command::authenticate(&conn, AUTH_TOKEN).await?;
    }
    let names = (0..2 * BUFFER / LONG_NAME).map(|number| format!("{number:->LONG_NAME$}"));
    for name in names {
        let grant = command::acquire(&conn, &name, Duration::ZERO, None).await?;
        command::release(&conn, &name, &grant.token).await?;
    }
    Ok(())
}

/// Takes every slot of every key, lets go, and finds nothing left.
async fn audit(plan: Arc<Plan>, record: Recorder) -> turmoil::Result {
    let locks = workload::client(&plan, Ears::default());
    let mut guards = Vec::new();
    for key in &plan.keys {
        let resource = Resource::new(&locks, key);
        for _ in 0..key.slots() {
            let within = plan.handed_on_within();
            match timeout(within + S, resource.acquire(within)).await {
                Ok(Ok(guard)) => guards.push(guard),
                Ok(Err(error)) => record.fault(format!("{} was not handed on: {error}", key.name)),
                Err(_) => record.fault(format!("{} was not handed on within {within:?}", key.name)),
            }
        }
    }
    for guard in guards {
        if let Err(error) = guard.release().await {
            record.fault(format!("what the auditor had is not released: {error}"));
        }
    }
    for StatsResult { locks, semaphores, .. } in locks.stats().await? {
        if !locks.is_empty() || !semaphores.is_empty() {
            record.fault(format!("something is left: {locks:?} {semaphores:?}"));
        }
    }
    Ok(())
}
