//! `dflock top`: asks the servers again and again, and shows what they say on the full screen, until
//! the user has seen enough. A server that is away is shown so, and asked again.

mod model;
#[cfg(test)]
mod tests;
mod view;

use std::io::{self, IsTerminal};
use std::time::Duration;

use dflockd_client::StatsResult;
use futures::future::join_all;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use rustix::process::Signal;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::args::Top;
use crate::connection::{Ready, Server, StatsFailure};
use crate::exit::{Failure, SIGNALLED, UNAVAILABLE};
use crate::signals::Signals;
use model::Model;

/// How often it is drawn anew where nothing happens.
const REDRAW: Duration = Duration::from_secs(1);

/// The shortest interval: more would be a load on the servers.
const SHORTEST: Duration = Duration::from_millis(100);

/// What comes in: a server's answer, or what is wrong with it; or something of the terminal's.
enum News {
    Answer(usize, Result<StatsResult, StatsFailure>),
    Terminal(Event),
}

pub(crate) async fn top(top: &Top) -> Result<u8, Failure> {
    top.connection.needs_servers("top")?;
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return Err(Failure::usage("top needs a terminal; dflock stats prints the same once"));
    }
    if top.interval < SHORTEST {
        let line = format!("--interval is {:?}, the least is {SHORTEST:?}", top.interval);
        return Err(Failure::usage(line));
    }
    if top.connection.reads_stdin() {
        return Err(Failure::usage("top reads the keyboard; it cannot take a file from standard input"));
    }
    let ready = top.connection.ready()?;
    let signals = Signals::listen().map_err(|error| unusable(&error))?;
    let servers = ready.servers();
    let model = Model::new(servers.iter().map(Server::name));
    let (tell, news) = channel(64);
    let asking = servers.iter().enumerate();
    let asking =
        join_all(asking.map(|(shard, server)| ask(shard, &ready, server, top.interval, tell.clone())));
    let terminal = ratatui::try_init().map_err(|error| unusable(&error))?;
    let _restored = Restored;
    // It ends with the process: reading the keyboard cannot be broken off.
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            if tell.blocking_send(News::Terminal(event)).is_err() {
                break;
            }
        }
    });
    tokio::select! {
        outcome = show(terminal, model, news, signals) => outcome,
        _ = asking => Ok(0),
    }
}

/// Asks one server forever, at least once per interval.
async fn ask(shard: usize, ready: &Ready<'_>, server: &Server, every: Duration, tell: Sender<News>) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let answer = ready.stats(server).await;
        if tell.send(News::Answer(shard, answer)).await.is_err() {
            return;
        }
    }
}

async fn show(
    mut terminal: DefaultTerminal,
    mut model: Model,
    mut news: Receiver<News>,
    mut signals: Signals,
) -> Result<u8, Failure> {
    loop {
        terminal
            .draw(|frame| view::draw(frame, &mut model, Instant::now()))
            .map_err(|error| unusable(&error))?;
        let news = tokio::select! {
            news = news.recv() => news,
            signal = signals.next() => return end(signal),
            () = sleep(REDRAW) => continue,
        };
        match news {
            None => return Ok(0),
            Some(News::Answer(shard, answer)) => model.told(shard, answer, Instant::now()),
            Some(News::Terminal(Event::Key(key))) if key.kind != KeyEventKind::Release => {
                if model.press(key) {
                    return Ok(0);
                }
            }
            // A new size is drawn like anything else.
            Some(News::Terminal(_)) => {}
        }
    }
}

fn end(signal: Signal) -> Result<u8, Failure> {
    Err(Failure::silent(SIGNALLED.saturating_add(signal.as_raw() as u8)))
}

fn unusable(error: &io::Error) -> Failure {
    Failure::new(UNAVAILABLE, format!("cannot use the terminal: {error}"))
}

/// The terminal is left as it was, whatever happens.
struct Restored;

impl Drop for Restored {
    fn drop(&mut self) {
        // A terminal that has gone is nothing to complain of.
        let _ = ratatui::try_restore();
    }
}
