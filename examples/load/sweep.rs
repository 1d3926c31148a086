//! Leases that expire, beside few held ones and beside very many: what the server's time is spent on. Two
//! servers, one with few keys and one with many; on both the same number of short leases is taken and left to
//! the sweep.

use std::time::{Duration, Instant};

use dflockd_client::Seconds;
use futures::future::try_join;

use crate::peer::Peer;
use crate::wire::{self, LONG, Wire};
use crate::{Result, count, runtime, usage};

#[derive(Clone, clap::Args)]
pub(crate) struct Args {
    /// How many keys one server holds
    #[arg(long, default_value_t = 1000, value_name = "N")]
    few: usize,
    /// How many keys the other holds
    #[arg(long, default_value_t = 1_000_000, value_name = "N")]
    many: usize,
    /// How many leases expire on each
    #[arg(long, default_value_t = 100_000, value_name = "N", value_parser = count())]
    expire: usize,
    /// For how many seconds each server is watched while nothing expires
    #[arg(long, default_value_t = 10, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    idle: u64,
    /// The lease of those that expire: long enough to take them all before the first expires
    #[arg(long, default_value_t = 15, value_name = "SECONDS")]
    lease: u64,
}

pub(crate) fn main(args: &Args) -> Result<()> {
    let (few, many) = (Peer::server(1)?, Peer::server(1)?);
    runtime(1)?.block_on(async {
        try_join(watch(args, &few, args.few), watch(args, &many, args.many)).await?;
        Ok(())
    })
}

async fn watch(args: &Args, server: &Peer, held: usize) -> Result<()> {
    let (mut holder, mut leaver) = (Wire::connect(server.port).await?, Wire::connect(server.port).await?);
    holder.take((0..held).map(|number| wire::key('h', number)), LONG).await?;

    let idle = ran_within(server, Duration::from_secs(args.idle)).await? / u32::try_from(args.idle)?;
    println!("{held} held, nothing expires: {:.0} µs of the server's time a second", micros(idle));

    let lease = Seconds::ceil("lease", Duration::from_secs(args.lease))?;
    let began = Instant::now();
    leaver.take((0..args.expire).map(|number| wire::key('x', number)), lease).await?;
    if began.elapsed() >= lease.duration() {
        return Err("the first of them expired before the last was taken: --lease must be longer".into());
    }
    // The sweep runs every second.
    let watched = args.lease + 2;
    let swept = ran_within(server, Duration::from_secs(watched)).await?;
    let each =
        micros(swept.saturating_sub(idle * u32::try_from(watched)?)) / f64::from(u32::try_from(args.expire)?);
    println!("{held} held, {} expire: {each:.2} µs of the server's time for each", args.expire);
    Ok(())
}

async fn ran_within(server: &Peer, time: Duration) -> Result<Duration> {
    let before = usage::ran(server.pid())?;
    tokio::time::sleep(time).await;
    Ok(usage::ran(server.pid())? - before)
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
