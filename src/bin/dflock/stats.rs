//! `dflock stats`, `ping` and `shard`: what servers say, printed once.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use dflockd_client::{Error, StatsResult, command, stable_hash_shard};
use tokio::time::Instant;

use crate::args::{Ping, Shard, Stats};
use crate::exit::{Failure, UNAVAILABLE, printable};
use crate::output::say;
use crate::table::{Row, aligned, merged, summary};

const HEADER: Style = Style::new().bold();
const WAITED_FOR: Style = AnsiColor::Yellow.on_default();

type Told = (String, Result<StatsResult, Error>);

pub(crate) async fn stats(stats: &Stats) -> Result<u8, Failure> {
    let clients = stats.connection.client_per_server()?;
    let asking = clients.iter().map(|(server, client)| async move {
        let outcome = client.stats().await.map(|mut all| all.swap_remove(0));
        (server.name(), outcome)
    });
    let told: Vec<Told> = futures::future::join_all(asking).await;
    if stats.all_shards {
        return each(&told, stats.json);
    }
    let all = merged(told.into_iter().map(|(_, outcome)| outcome).collect::<Result<Vec<_>, _>>()?);
    print(|out| if stats.json { writeln!(out, "{}", all.to_json()) } else { table(out, &all) })?;
    Ok(0)
}

/// Every server by itself; one that says nothing makes the whole a failure, and is told of.
fn each(told: &[Told], json: bool) -> Result<u8, Failure> {
    if json {
        let shards = told.iter().enumerate().map(|(shard, (server, outcome))| match outcome {
            Ok(stats) => serde_json::json!({"shard": shard, "server": server, "stats": stats}),
            Err(error) => serde_json::json!({"shard": shard, "server": server, "error": error.to_string()}),
        });
        let shards: Vec<_> = shards.collect();
        print(|out| writeln!(out, "{}", serde_json::Value::from(shards)))?;
    } else {
        print(|out| {
            for (shard, (server, outcome)) in told.iter().enumerate() {
                writeln!(out, "{HEADER}shard {shard}: {server}{HEADER:#}")?;
                match outcome {
                    Ok(stats) => table(out, stats)?,
                    Err(_) => writeln!(out, "no answer")?,
                }
            }
            Ok(())
        })?;
    }
    let mut code = 0;
    for error in told.iter().filter_map(|(_, outcome)| outcome.as_ref().err()) {
        let failure = Failure::from(error.clone());
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
    let mut code = 0;
    for server in &ping.connection.servers {
        let began = Instant::now();
        let answer = async {
            let conn = ping.connection.open(server).await?;
            let opened = began.elapsed();
            let began = Instant::now();
            command::ping(&conn).await?;
            Ok::<_, Failure>((opened, began.elapsed()))
        };
        match answer.await {
            Ok((opened, answered)) => {
                print(|out| writeln!(out, "{}: {answered:.1?} (connected in {opened:.1?})", server.name()))?
            }
            Err(failure) if ping.connection.servers.len() == 1 => return Err(failure),
            Err(failure) => {
                say(&failure.line.unwrap_or_default());
                code = failure.code;
            }
        }
    }
    Ok(code)
}

pub(crate) fn shard(shard: &Shard) -> Result<u8, Failure> {
    let servers = &shard.connection.servers;
    let key = dflockd_client::Key::parse(&shard.key).map_err(Error::from)?;
    let at = stable_hash_shard(&key.to_text(), servers.len());
    let server = servers.get(at).ok_or_else(|| Failure::new(UNAVAILABLE, "there is no server"))?;
    print(|out| writeln!(out, "{} (shard {at} of {})", printable(&server.name()), servers.len()))?;
    Ok(0)
}

/// Writes to stdout, in colour where it is a terminal that wants it.
fn print(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), Failure> {
    let mut out = anstream::stdout().lock();
    write(&mut out).and_then(|()| out.flush()).map_err(|error| Failure::output(&error))
}
