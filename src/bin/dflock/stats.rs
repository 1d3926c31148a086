//! `dflock stats`, `ping` and `shard`: what servers say, printed once.

use std::io::{self, BufWriter, Write};

use anstyle::{AnsiColor, Style};
use dflockd_client::{Error, StatsResult, command, stable_hash_shard};
use futures::future::join_all;
use tokio::time::Instant;

use crate::args::{Ping, Shard, Stats};
use crate::connection::{Server, StatsFailure};
use crate::exit::{Failure, UNAVAILABLE, one_line};
use crate::output::say;
use crate::table::{Row, aligned, merged, summary};

const HEADER: Style = Style::new().bold();
const WAITED_FOR: Style = AnsiColor::Yellow.on_default();

type Told = (String, Result<StatsResult, StatsFailure>);

pub(crate) async fn stats(stats: &Stats) -> Result<u8, Failure> {
    stats.connection.needs_servers("stats")?;
    let ready = stats.connection.ready()?;
    let asking =
        ready.servers().iter().map(async |server: &Server| (server.name(), ready.stats(server).await));
    let told: Vec<Told> = join_all(asking).await;
    if stats.all_shards {
        return each(told, stats.json);
    }
    let of_server = |(_, outcome): Told| outcome.map_err(|failed| failed.failure);
    let all = merged(told.into_iter().map(of_server).collect::<Result<Vec<_>, _>>()?);
    print(|out| if stats.json { writeln!(out, "{}", all.to_json()) } else { table(out, &all) })?;
    Ok(0)
}

/// Every server by itself; one that says nothing makes the whole a failure, and is told of.
fn each(told: Vec<Told>, json: bool) -> Result<u8, Failure> {
    if json {
        let shards = told.iter().enumerate().map(|(shard, (server, outcome))| match outcome {
            Ok(stats) => serde_json::json!({"shard": shard, "server": server, "stats": stats}),
            Err(failed) => serde_json::json!({"shard": shard, "server": server, "error": failed.error}),
        });
        let shards: Vec<_> = shards.collect();
        print(|out| writeln!(out, "{}", serde_json::Value::from(shards)))?;
    } else {
        print(|out| {
            for (shard, (server, outcome)) in told.iter().enumerate() {
                writeln!(out, "{HEADER}shard {shard}: {server}{HEADER:#}")?;
                match outcome {
                    Ok(stats) => table(out, stats)?,
                    Err(failed) => writeln!(out, "{}", failed.status)?,
                }
            }
            Ok(())
        })?;
    }
    let mut code = 0;
    for (_, outcome) in told {
        let Err(StatsFailure { failure, .. }) = outcome else { continue };
        say(&failure.line.unwrap_or_default());
        code = failure.code;
    }
    Ok(code)
}

fn table(out: &mut dyn Write, stats: &StatsResult) -> io::Result<()> {
    let mut rows = Row::all(stats);
    rows.sort_by(|one, other| one.key.cmp(&other.key));
    let header = ["KEY", "HELD", "WAITING", "TTL"].map(str::to_owned).to_vec();
    let cells = |row: &Row| vec![row.shown(), row.held(), row.waiters.to_string(), row.ttl()];
    let lines: Vec<_> = std::iter::once(header).chain(rows.iter().map(cells)).collect();
    for (at, line) in aligned(&lines).iter().enumerate().filter(|_| !rows.is_empty()) {
        match at.checked_sub(1).map(|row| rows[row].waiters) {
            None => writeln!(out, "{HEADER}{line}{HEADER:#}")?,
            Some(0) => writeln!(out, "{line}")?,
            Some(_) => writeln!(out, "{WAITED_FOR}{line}{WAITED_FOR:#}")?,
        }
    }
    writeln!(out, "{}", summary(stats))
}

pub(crate) async fn ping(ping: &Ping) -> Result<u8, Failure> {
    ping.connection.needs_servers("ping")?;
    let ready = ping.connection.ready()?;
    let asking = ready.servers().iter().map(async |server: &Server| {
        let began = Instant::now();
        let conn = ready.open(server).await?;
        let opened = began.elapsed();
        let began = Instant::now();
        command::ping(&conn).await?;
        Ok::<_, Error>((opened, began.elapsed()))
    });
    let mut code = 0;
    // All at once: each that is away takes its time.
    for (server, answer) in ready.servers().iter().map(Server::name).zip(join_all(asking).await) {
        match answer.map_err(|error| Failure::of_server(&server, &error)) {
            Ok((opened, answered)) => {
                print(|out| writeln!(out, "{server}: {answered:.1?} (connected in {opened:.1?})"))?;
            }
            Err(failure) => {
                say(&failure.line.unwrap_or_default());
                code = failure.code;
            }
        }
    }
    Ok(code)
}

pub(crate) fn shard(shard: &Shard) -> Result<u8, Failure> {
    shard.connection.needs_servers("shard")?;
    let servers = &shard.connection.servers;
    let key = dflockd_client::Key::parse(&shard.key).map_err(Error::from)?;
    let at = stable_hash_shard(&key.to_text(), servers.len());
    let server = servers.get(at).ok_or_else(|| Failure::new(UNAVAILABLE, "there is no server"))?;
    print(|out| writeln!(out, "{} (shard {at} of {})", one_line(&server.name()), servers.len()))?;
    Ok(0)
}

/// Writes to stdout, in colour where it is a terminal that wants it.
fn print(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), Failure> {
    // A line at a time would take long where there are a million.
    let mut out = BufWriter::new(anstream::stdout().lock());
    write(&mut out).and_then(|()| out.flush()).map_err(|error| Failure::output(&error))
}
