//! Very many leases held and renewed by one client: the memory and processor time that they take, in the
//! client and in the server.

use std::time::Duration;

use dflockd_client::LockClient;
use futures::stream::{self, StreamExt, TryStreamExt};
use indicatif::ProgressBar;

use crate::peer::Peer;
use crate::{Result, count, runtime, usage};

#[derive(Clone, clap::Args)]
pub(crate) struct Args {
    /// How many leases are held
    #[arg(long, default_value_t = 100_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    leases: u32,
    /// The time to live of each; it is renewed after half of it
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    lease: u64,
    /// For how long they are held once the last is taken
    #[arg(long, default_value_t = 60, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    time: u64,
    /// How many are being acquired at once
    #[arg(long, default_value_t = 200, value_name = "N", value_parser = count())]
    at_once: usize,
}

pub(crate) fn main(args: &Args) -> Result<()> {
    let server = Peer::server(1)?;
    runtime(1)?.block_on(async {
        let (client, me) = (LockClient::builder(), std::process::id());
        let client = client.servers([("127.0.0.1", server.port)]).lease_ttl(Duration::from_secs(args.lease));
        let client = client.build()?;
        // What the first lease allocates once is not counted to each.
        let first = client.lock("load:first")?.acquire().await?;
        let before = [usage::resident(me)?, usage::resident(server.pid())?];
        let bar = ProgressBar::new(u64::from(args.leases));
        let taken = stream::iter(0..args.leases).map(|number| {
            let lock = client.lock(format!("load:h{number:012}"));
            let bar = &bar;
            async move {
                let guard = lock?.acquire().await?;
                bar.inc(1);
                Ok::<_, dflockd_client::Error>(guard)
            }
        });
        let guards: Vec<_> = taken.buffer_unordered(args.at_once).try_collect().await?;
        bar.finish_and_clear();
        println!("{} leases of {} s, renewed after half of it", args.leases, args.lease);
        for (who, pid, before) in [("client", me, before[0]), ("server", server.pid(), before[1])] {
            let each = (usage::resident(pid)? - before) / u64::from(args.leases);
            println!("  {who}: {each} bytes a lease (VmRSS)");
        }
        let before = [usage::ran(me)?, usage::ran(server.pid())?];
        tokio::time::sleep(Duration::from_secs(args.time)).await;
        for (who, pid, before) in [("client", me, before[0]), ("server", server.pid(), before[1])] {
            let share =
                (usage::ran(pid)? - before).as_secs_f64() / Duration::from_secs(args.time).as_secs_f64();
            println!("  {who}: {:.1} % of a core while they are held", share * 100.0);
        }
        let lost = guards.iter().filter(|guard| !guard.is_held()).count();
        println!("  lost meanwhile: {lost}");
        drop((guards, first));
        Ok(())
    })
}
