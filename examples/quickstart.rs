//! The main uses in one run: an embedded server, five tasks that contend for one lock, six for a semaphore of
//! three, and a lease that is lost on purpose.
//!
//! `cargo run --release --example quickstart`

use std::time::{Duration, Instant};

use dflockd_client::server::{Server, ServerConfig};
use dflockd_client::{Enqueued, Lease, LeaseGuard, LockClient, Outcome, command};

const TTL: Duration = Duration::from_secs(1);

#[derive(Clone, Copy)]
struct Story(Instant);

impl Story {
    fn say(self, who: &str, what: &str) {
        println!("{:5.2} s  {who:<9} {what}", self.0.elapsed().as_secs_f32());
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let story = Story(Instant::now());
    let server = Server::bind(ServerConfig { port: 0, ..Default::default() }).await?;
    let address = server.local_addr().ok_or("the server is not bound")?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(server.run(async { drop(stopped.await) }));
    story.say("server", &format!("listens on {address}"));
    let locks = LockClient::builder().servers([("127.0.0.1", address.port())]).lease_ttl(TTL).build()?;

    println!("\nFive tasks, one key. A lease lasts 1 s and is renewed while its holder works.");
    contend(story, &locks, 5, None).await?;

    println!("\nSix tasks, a semaphore of three.");
    contend(story, &locks, 6, Some(3)).await?;

    println!("\nA lease that is lost: another client releases it behind its holder.");
    let guard = locks.lock("lost-on-purpose")?.acquire().await?;
    granted(story, "holder", &guard);
    let thief = command::open_conn("127.0.0.1", address.port(), None, Duration::from_secs(5)).await?;
    command::release(&thief, "lost-on-purpose", guard.token()).await?;
    story.say("thief", "released it with the holder's token");
    match guard.run(tokio::time::sleep(Duration::from_secs(5))).await {
        Outcome::Lost(reason) => story.say("holder", &format!("stopped its work: {reason}")),
        Outcome::Completed(()) => return Err("the holder never heard that its lease was lost".into()),
    }
    if let Err(error) = guard.release().await {
        story.say("holder", &format!("release says: {error}"));
    }

    drop(stop);
    running.await?;
    story.say("server", "stopped");
    Ok(())
}

/// Lets tasks queue up one after another, so that the order of the grants is visible.
async fn contend(
    story: Story,
    locks: &LockClient,
    tasks: u32,
    limit: Option<u64>,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut running = Vec::new();
    for number in 1..=tasks {
        let who = format!("task {number}");
        let enqueued = match limit {
            None => locks.lock("one-key")?.enqueue().await?,
            Some(limit) => locks.semaphore("three-slots", limit)?.enqueue().await?,
        };
        running.push(tokio::spawn(async move {
            let guard = match enqueued {
                Enqueued::Acquired(guard) => guard,
                Enqueued::Queued(ticket) => {
                    story.say(&who, "waits");
                    ticket.wait(Duration::from_secs(30)).await?
                }
            };
            granted(story, &who, &guard);
            // The first one works longer than its lease: only renewals keep it.
            work(story, &who, &guard, if number == 1 { 15 } else { 4 }).await;
            story.say(&who, "releases");
            guard.release().await?;
            Ok::<(), dflockd_client::Error>(())
        }));
    }
    for task in running {
        task.await??;
    }
    Ok(())
}

fn granted(story: Story, who: &str, guard: &LeaseGuard) {
    let fence = guard.fence().map_or("no fence".into(), |fence| format!("fence {fence}"));
    story.say(who, &format!("was granted, {fence}"));
}

/// Holds the lease for some tenths of a second, and prints each renewal.
async fn work(story: Story, who: &str, lease: &Lease, tenths: u32) {
    let mut deadline = lease.deadline();
    for _ in 0..tenths {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if lease.deadline() > deadline {
            deadline = lease.deadline();
            story.say(who, "renewed its lease");
        }
    }
}
