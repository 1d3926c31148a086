//! Few held keys beside very many: how fast a server takes more, how long a probe takes meanwhile, and what
//! memory a held lease costs it. Two servers take turns, so that other load slows both alike.

use std::time::{Duration, Instant};

use dflockd_client::proto::{Family, Reply, Request};
use dflockd_client::{Seconds, Token};
use futures::future::try_join_all;
use tokio::net::TcpStream;

use crate::peer::Peer;
use crate::report::{self, Latencies};
use crate::wire::{self, LONG, Wire};
use crate::{Result, count, runtime, usage};

#[derive(Clone, clap::Args)]
pub(crate) struct Args {
    /// How many keys one server holds
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = count())]
    few: usize,
    /// How many keys the other holds
    #[arg(long, default_value_t = 1_000_000, value_name = "N", value_parser = count())]
    many: usize,
    /// Over how many connections they are taken
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = count())]
    connections: usize,
    /// How many times a free key is acquired and released on each server
    #[arg(long, default_value_t = 50_000, value_name = "N", value_parser = count())]
    probes: usize,
    /// The threads of each server
    #[arg(long, default_value_t = 1, value_name = "N")]
    server_threads: usize,
}

/// The number of parts in which the many keys are taken; after each, the few are taken again.
const PARTS: usize = 20;
/// How often the few are taken after each part: they take little time, so the mean of many is used.
const AGAIN: usize = 5;
/// How many probes one server gets before the other's turn.
const TURN: usize = 500;

pub(crate) fn main(args: &Args) -> Result<()> {
    let (few, many) = (Peer::server(args.server_threads)?, Peer::server(args.server_threads)?);
    runtime(1)?.block_on(async {
        let before = usage::resident(many.pid())?;
        let held = fill(args, &few, &many).await?;
        // The allocator must return what was in flight as well; nothing is in flight any longer.
        let after = usage::resident(many.pid())?;
        #[expect(clippy::cast_precision_loss, reason = "bytes of memory")]
        let each = (after - before) as f64 / args.many as f64;
        println!("memory per held lease at {}: {each:.0} bytes (server's VmRSS, key of 18 bytes)", args.many);
        probe(args, &few, &many).await?;
        drop(held);
        Ok(())
    })
}

/// Takes the keys on both servers and prints the rates. The keys are held while the connections are kept.
async fn fill(args: &Args, few: &Peer, many: &Peer) -> Result<Vec<Wire<TcpStream>>> {
    let mut held = connect(many, args.connections).await?;
    let (mut few_rates, mut many_rates) = (Vec::new(), Vec::new());
    let part = args.many.div_ceil(PARTS);
    for number in 0..PARTS {
        let keys = number * part..((number + 1) * part).min(args.many);
        many_rates.push((keys.len(), take(&mut held, 'm', keys).await?));
        for again in 0..AGAIN {
            let mut connections = connect(few, args.connections).await?;
            let from = (number * AGAIN + again) * args.few;
            few_rates.push((args.few, take(&mut connections, 'f', from..from + args.few).await?));
        }
    }
    let (few_rate, many_rate) = (rate(&few_rates), rate(&many_rates));
    let last = rate(&many_rates[PARTS * 9 / 10..]);
    println!("fill to {}: {few_rate:.0} keys/s", args.few);
    println!("fill to {}: {many_rate:.0} keys/s, ratio {:.2}", args.many, many_rate / few_rate);
    println!("  its last tenth: {last:.0} keys/s, ratio {:.2}", last / few_rate);
    held.extend(connect(few, 1).await?);
    let connection = held.last_mut().ok_or("just connected")?;
    connection.take((0..args.few).map(|number| wire::key('g', number)), LONG).await?;
    Ok(held)
}

async fn connect(to: &Peer, count: usize) -> Result<Vec<Wire<TcpStream>>> {
    try_join_all((0..count).map(|_| Wire::connect(to.port))).await
}

/// Takes the keys, each connection its share.
async fn take(
    connections: &mut [Wire<TcpStream>],
    group: char,
    keys: std::ops::Range<usize>,
) -> Result<Duration> {
    let (began, count) = (Instant::now(), connections.len());
    let shares = connections.iter_mut().enumerate().map(|(at, connection)| {
        connection.take(keys.clone().skip(at).step_by(count).map(move |key| wire::key(group, key)), LONG)
    });
    try_join_all(shares).await?;
    Ok(began.elapsed())
}

#[expect(clippy::cast_precision_loss, reason = "numbers of keys")]
fn rate(parts: &[(usize, Duration)]) -> f64 {
    let keys: usize = parts.iter().map(|(keys, _)| keys).sum();
    let took: Duration = parts.iter().map(|(_, took)| *took).sum();
    keys as f64 / took.as_secs_f64()
}

/// Acquires and releases a free key, one request at a time, on both servers by turns.
async fn probe(args: &Args, few: &Peer, many: &Peer) -> Result<()> {
    let mut probes = Vec::new();
    for peer in [few, many] {
        probes.push((Wire::connect(peer.port).await?, Latencies::new()));
    }
    for turn in 0..args.probes.div_ceil(TURN) {
        for (connection, latencies) in &mut probes {
            for number in turn * TURN..(turn + 1) * TURN {
                let took = acquire_and_release(connection, number).await?;
                latencies.record(took);
            }
        }
    }
    let [(_, few_took), (_, many_took)] = &probes[..] else { unreachable!("two of them") };
    report::print_compared("probe: acquire + release", (args.few, few_took), (args.many, many_took));
    Ok(())
}

async fn acquire_and_release(connection: &mut Wire<TcpStream>, number: usize) -> Result<Duration> {
    let key = wire::key('p', number);
    let began = Instant::now();
    let token = wire::granted(connection.ask(&wire::acquire(key.clone(), Seconds::ZERO, LONG)).await?)?;
    release(connection, key, token).await?;
    Ok(began.elapsed())
}

async fn release(connection: &mut Wire<TcpStream>, key: dflockd_client::Key, token: Token) -> Result<()> {
    match connection.ask(&Request::Release { key, token, family: Family::Lock }).await? {
        Reply::Done => Ok(()),
        other => Err(format!("it is held, and yet: {other:?}").into()),
    }
}
