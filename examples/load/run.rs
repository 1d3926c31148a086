//! Many workers acquire and release: through one shared client, or one client each; on a key each, on one
//! key, or on some. The baseline takes its turns between, so that other load slows both alike.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use dflockd_client::tls::ClientTls;
use dflockd_client::{AsyncDistributedLock, LockClient, Seconds};
use futures::future::try_join_all;
use indicatif::{ProgressBar, ProgressStyle};

use crate::baseline::{Bare, Relayed};
use crate::peer::Peer;
use crate::report::{self, Series};
use crate::workers::{Measured, Worker};
use crate::{Result, count, plot, runtime};

#[derive(Clone, clap::Args)]
pub(crate) struct Args {
    /// How many tasks acquire and release at once; several numbers for one run each
    #[arg(long, value_delimiter = ',', default_value = "50", value_name = "N,…", value_parser = count())]
    workers: Vec<usize>,
    /// How many times each worker does so
    #[arg(long, default_value_t = 2000, value_parser = count())]
    rounds: usize,
    /// A key for each worker, one for all, or this many
    #[arg(long, default_value = "unique", value_name = "unique|one|N")]
    keys: Keys,
    #[arg(long, value_enum, default_value = "shared")]
    mode: Mode,
    /// The lease, in whole seconds
    #[arg(long, default_value_t = 33, value_name = "SECONDS")]
    lease: u64,
    /// How long an acquire waits, in whole seconds
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    timeout: u64,
    /// Over TLS (the embedded server makes itself a certificate)
    #[arg(long)]
    tls: bool,
    /// The CA to trust with --tls and --servers
    #[arg(long, requires = "servers", value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// Running servers, in place of the embedded one
    #[arg(long, value_delimiter = ',', value_name = "HOST:PORT,…")]
    servers: Vec<Address>,
    /// Measures a bare TCP exchange of the same bytes as well, by turns
    #[arg(long)]
    baseline: bool,
    /// How many connections the baseline has [default: as many as workers, or 1 with `--keys one`, where one hand-off
    /// follows another]
    #[arg(long, requires = "baseline", value_name = "N", value_parser = count())]
    baseline_workers: Option<usize>,
    /// In how many turns the rounds are done
    #[arg(long, default_value_t = 10, value_parser = count())]
    slices: usize,
    /// Draws the latencies, and ops/s over workers
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// The threads of the embedded server, and of the baseline's responder
    #[arg(long, default_value_t = 1, value_name = "N")]
    server_threads: usize,
    /// The threads of this side
    #[arg(long, default_value_t = 1, value_name = "N")]
    client_threads: usize,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Mode {
    /// One client for all workers
    Shared,
    /// A client for each worker
    PerWorker,
    /// No client: the baseline's bytes through the tasks that a client would have
    Tasks,
    /// No client: the baseline's connections to the server
    Bare,
}

#[derive(Clone, Copy)]
enum Keys {
    Unique,
    Some(u64),
}

impl FromStr for Keys {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("unique", _) => Ok(Self::Unique),
            ("one", _) => Ok(Self::Some(1)),
            (_, Ok(count)) if count > 0 => Ok(Self::Some(count)),
            _ => Err("it is `unique`, `one`, or a number from 1".to_owned()),
        }
    }
}

impl Keys {
    /// The key of a worker's round; 18 bytes each.
    fn name(self, worker: usize, round: u64) -> String {
        match self {
            Self::Unique => format!("load:w{worker:011}"),
            Self::Some(count) => format!("load:k{:011}", (worker as u64 + round) % count),
        }
    }
}

#[derive(Clone)]
struct Address(String, u16);

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (host, port) = text.rsplit_once(':').ok_or("it is host:port")?;
        Ok(Self(host.to_owned(), port.parse().map_err(|_| format!("{port:?} is no port"))?))
    }
}

pub(crate) fn main(args: Args) -> Result<()> {
    let runtime = runtime(args.client_threads)?;
    let target = Target::start(&args)?;
    let steps: u64 = args.workers.iter().map(|workers| (workers * (args.slices + 1)) as u64).sum();
    let bar = ProgressBar::new(steps)
        .with_style(ProgressStyle::with_template("{wide_bar} {percent} %, {eta} left")?);
    let mut points = Vec::new();
    for &workers in &args.workers {
        points.push(runtime.block_on(target.measure(&args, workers, &bar))?);
    }
    bar.finish_and_clear();
    report::print_head();
    for point in &points {
        let mode = args.mode.to_possible_value().map_or(String::new(), |mode| mode.get_name().to_owned());
        report::print_series(&format!("{} workers, {mode}", point.workers), &point.ours);
        if let Some((connections, bare)) = &point.bare {
            report::print_series(&format!("  baseline, {connections} connections"), bare);
            report::print_ratio(&point.ours, bare);
        }
    }
    args.plot.map_or(Ok(()), |file| plot::draw(&file, &points))
}

/// The results of one number of workers.
pub(crate) struct Point {
    pub(crate) workers: usize,
    pub(crate) ours: Series,
    /// With the number of its connections.
    pub(crate) bare: Option<(usize, Series)>,
}

/// The peer of the workers.
struct Target {
    servers: Vec<(String, u16)>,
    tls: Option<ClientTls>,
    canned: Option<Peer>,
    lease: Seconds,
    /// Kept to keep the server running.
    server: Option<Peer>,
}

impl Target {
    fn start(args: &Args) -> Result<Self> {
        let lease = Seconds::ceil("lease", Duration::from_secs(args.lease))?;
        let canned = args.baseline || args.mode == Mode::Tasks;
        let canned = canned.then(|| Peer::canned(args.server_threads, lease)).transpose()?;
        let mut target = Self { servers: Vec::new(), tls: None, canned, lease, server: None };
        target.servers = args.servers.iter().map(|Address(host, port)| (host.clone(), *port)).collect();
        if !target.servers.is_empty() {
            if args.tls {
                let mut tls = ClientTls::builder();
                if let Some(ca) = &args.tls_ca {
                    tls = tls.ca_file(ca);
                }
                target.tls = Some(tls.build()?);
            }
            return Ok(target);
        }
        let server = if args.tls {
            let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
            target.tls = Some(ClientTls::builder().ca_pem(made.cert.pem()).build()?);
            let files = tempfile::tempdir()?;
            let (cert, key) = (files.path().join("cert.pem"), files.path().join("key.pem"));
            std::fs::write(&cert, made.cert.pem())?;
            std::fs::write(&key, made.signing_key.serialize_pem())?;
            Peer::tls_server(args.server_threads, &cert, &key)?
        } else {
            Peer::server(args.server_threads)?
        };
        target.servers = vec![("127.0.0.1".to_owned(), server.port)];
        target.server = Some(server);
        Ok(target)
    }

    fn client(&self, args: &Args) -> Result<LockClient> {
        let mut builder = LockClient::builder()
            .servers(self.servers.clone())
            .lease_ttl(self.lease.duration())
            .acquire_timeout(Duration::from_secs(args.timeout));
        if let Some(tls) = &self.tls {
            builder = builder.tls(tls.clone());
        }
        Ok(builder.build()?)
    }

    /// Each worker with the locks that it takes in turn.
    fn holders(&self, args: &Args, workers: usize) -> Result<Vec<Holder>> {
        let shared = self.client(args)?;
        let holder = |worker| {
            let client = if args.mode == Mode::Shared { shared.clone() } else { self.client(args)? };
            let keys = if let Keys::Some(count) = args.keys { count } else { 1 };
            let locks = (0..keys).map(|round| client.lock(args.keys.name(worker, round)));
            Ok(Holder { locks: locks.collect::<Result<_, _>>()?, next: 0 })
        };
        (0..workers).map(holder).collect()
    }

    /// Connections of the baseline's kind to this peer.
    async fn bare(&self, args: &Args, peer: Option<&Peer>, connections: usize) -> Result<Vec<Bare>> {
        let port = peer.ok_or("it talks to an embedded server or responder alone")?.port;
        let keys: Vec<_> = (0..connections).map(|worker| args.keys.name(worker, 0)).collect();
        try_join_all(keys.iter().map(|key| Bare::connect(port, key, self.lease))).await
    }

    async fn measure(&self, args: &Args, workers: usize, bar: &ProgressBar) -> Result<Point> {
        let (server, canned) = (self.server.as_ref(), self.canned.as_ref());
        match args.mode {
            Mode::Shared | Mode::PerWorker => {
                self.compare(Measured::new(self.holders(args, workers)?, server), args, bar).await
            }
            Mode::Tasks => {
                let relayed = self.bare(args, canned, workers).await?.into_iter().map(Relayed::new);
                self.compare(Measured::new(relayed.collect(), canned), args, bar).await
            }
            Mode::Bare => {
                let bare = self.bare(args, server, workers).await?;
                self.compare(Measured::new(bare, server), args, bar).await
            }
        }
    }

    /// Measures these workers and, if requested, the baseline by turns.
    async fn compare<W: Worker>(
        &self,
        mut holders: Measured<W>,
        args: &Args,
        bar: &ProgressBar,
    ) -> Result<Point> {
        let (workers, rounds) = (holders.count(), args.rounds.div_ceil(args.slices));
        let connections = match (args.baseline_workers, args.keys) {
            (Some(connections), _) => connections,
            (None, Keys::Some(1)) => 1,
            _ => workers,
        };
        let mut bare = None;
        if args.baseline {
            let canned = self.canned.as_ref();
            bare = Some(Measured::new(self.bare(args, canned, connections).await?, canned));
        }
        // One slice more, the first, to warm up.
        for slice in 0..=args.slices {
            if let Some(bare) = &mut bare {
                bare.slice(rounds * workers / bare.count()).await?;
            }
            holders.slice(rounds).await?;
            if slice == 0 {
                holders.forget();
                bare.iter_mut().for_each(Measured::forget);
            }
            bar.inc(workers as u64);
        }
        let bare = bare.map(|bare| (bare.count(), bare.series));
        Ok(Point { workers, ours: holders.series, bare })
    }
}

/// A worker that acquires and releases.
struct Holder {
    locks: Vec<AsyncDistributedLock>,
    next: usize,
}

impl Worker for Holder {
    async fn round(&mut self) -> Result<()> {
        self.next = (self.next + 1) % self.locks.len();
        Ok(self.locks[self.next].acquire().await?.release().await?)
    }
}
