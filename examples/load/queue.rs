//! A short queue for a key beside a very long one: what it costs to join, to leave, and to hand the key on.
//! Every waiter has a connection, and a process may not open that many sockets: here they are pipes inside
//! this one.

use std::time::{Duration, Instant};

use dflockd_client::proto::{Family, Reply, Request};
use dflockd_client::server::{Server, ServerConfig};
use dflockd_client::{Key, Seconds, Token};
use indicatif::ProgressBar;
use tokio::io::DuplexStream;

use crate::report::{self, Latencies};
use crate::wire::{self, LONG, Wire};
use crate::{Result, runtime, usage};

#[derive(Clone, clap::Args)]
pub(crate) struct Args {
    /// How many wait for one server's key
    #[arg(long, default_value_t = 1000, value_name = "N")]
    few: usize,
    /// How many wait for the other's
    #[arg(long, default_value_t = 100_000, value_name = "N")]
    many: usize,
    /// How many times each step is taken; fewer than wait
    #[arg(long, default_value_t = 900, value_name = "N")]
    steps: usize,
}

/// The minimum that a pipe must hold: a request or a reply.
const PIPE: usize = 512;

pub(crate) fn main(args: &Args) -> Result<()> {
    if args.steps >= args.few.min(args.many) {
        return Err("--steps is not below the shorter queue's length: it would run dry".into());
    }
    runtime(1)?.block_on(async {
        let mut few = Queue::new(args.few).await?;
        let before = usage::resident(std::process::id())?;
        let mut many = Queue::new(args.many).await?;
        let grown = usage::resident(std::process::id())? - before;
        println!(
            "memory per waiter: {} bytes (both ends of its pipe, and its task)",
            grown / args.many as u64
        );
        for _ in 0..args.steps {
            few.step().await?;
            many.step().await?;
        }
        let (short, long) = (args.few, args.many);
        report::print_compared("join (e)", (short, &few.join), (long, &many.join));
        report::print_compared("leave (w 0)", (short, &few.leave), (long, &many.leave));
        report::print_compared("hand-off (r)", (short, &few.hand_off), (long, &many.hand_off));
        Ok(())
    })
}

/// A server, and one of its keys with many waiters.
struct Queue {
    key: Key,
    holder: Wire<DuplexStream>,
    token: Token,
    /// In reverse order of the queue: the next waiter is the last.
    waiters: Vec<Wire<DuplexStream>>,
    /// Joins and leaves.
    passer_by: Wire<DuplexStream>,
    join: Latencies,
    leave: Latencies,
    hand_off: Latencies,
}

impl Queue {
    async fn new(length: usize) -> Result<Self> {
        let server =
            Server::new(ServerConfig { read_timeout: Duration::from_secs(3600), ..Default::default() })?;
        let connect = || {
            let (ours, theirs) = tokio::io::duplex(PIPE);
            let server = server.clone();
            tokio::spawn(async move { server.serve_stream(theirs).await });
            Wire::new(ours)
        };
        let key = wire::key('q', 0);
        let mut holder = connect();
        let token = wire::granted(holder.ask(&wire::acquire(key.clone(), Seconds::ZERO, LONG)).await?)?;
        let (mut waiters, bar) = (Vec::new(), ProgressBar::new(length as u64));
        for _ in 0..length {
            let mut waiter = connect();
            waiter.send(&[wire::acquire(key.clone(), LONG, LONG)]).await?;
            waiters.push(waiter);
            bar.inc(1);
        }
        // Each task has had its turn once the last one's request is in the queue.
        while server.stats().locks.first().is_none_or(|lock| lock.waiters < length as u64) {
            tokio::task::yield_now().await;
        }
        bar.finish_and_clear();
        waiters.reverse();
        let (join, leave, hand_off) = (Latencies::new(), Latencies::new(), Latencies::new());
        Ok(Self { key, holder, token, waiters, passer_by: connect(), join, leave, hand_off })
    }

    /// A waiter joins and leaves at the end, and the holder hands on to the first.
    async fn step(&mut self) -> Result<()> {
        let key = &self.key;
        let join = Request::Enqueue { key: key.clone(), limit: None, lease: Some(LONG) };
        let leave = Request::Wait { key: key.clone(), timeout: Seconds::ZERO, family: Family::Lock };
        self.join.record(timed(&mut self.passer_by, &join, &Reply::Queued).await?);
        self.leave.record(timed(&mut self.passer_by, &leave, &Reply::Timeout).await?);

        let mut next = self.waiters.pop().ok_or("the queue ran dry")?;
        let token = self.token.clone();
        let release = Request::Release { key: key.clone(), token, family: Family::Lock };
        let began = Instant::now();
        self.holder.send(&[release]).await?;
        self.token = wire::granted(next.reply(&wire::acquire(key.clone(), LONG, LONG)).await?)?;
        self.hand_off.record(began.elapsed());
        self.holder = next;
        Ok(())
    }
}

async fn timed(connection: &mut Wire<DuplexStream>, request: &Request, reply: &Reply) -> Result<Duration> {
    let began = Instant::now();
    let came = connection.ask(request).await?;
    if came != *reply {
        return Err(format!("{came:?} came, and not {reply:?}").into());
    }
    Ok(began.elapsed())
}
