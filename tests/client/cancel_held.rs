//! What is done with a lease, dropped after any number of polls: a release that has begun reaches
//! the server, everything else leaves the lease as it was; and the client goes on. The same for
//! bare commands, which end their connection.

use std::sync::Arc;

use dflockd_client::server::{Server, ServerConfig};
use dflockd_client::{AsyncConn, ErrorKind, Lease, LostReason, Outcome};
use futures::FutureExt;
use tokio::time::{sleep, timeout};

use crate::turns::{Dice, poll_times, turn};
use crate::world::{S, Scene, World, count, dropped_over_pipes};

/// A lease on the key, which nobody releases but by its handle.
async fn lease(world: &World) -> Lease {
    world.lock().acquire().await.unwrap().detach()
}

/// Lets go of a lease when the scene is over, after a look at it.
struct Checked(Option<Lease>);

impl Drop for Checked {
    fn drop(&mut self) {
        let lease = self.0.take().unwrap();
        assert!(lease.is_held(), "a future that was dropped cost the lease");
        // Once polled, the release is on its way.
        assert!(lease.release().now_or_never().is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn a_renewal() {
    dropped_over_pipes("renew", |world| {
        async {
            let lease = lease(world).await;
            let renewing = lease.clone();
            Scene::leaves_nothing(async move { renewing.renew().await.unwrap() }).but(
                1,
                0,
                Checked(Some(lease)),
            )
        }
        .boxed()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_guards_release() {
    dropped_over_pipes("release of a guard", |world| {
        async {
            let guard = world.lock().acquire().await.unwrap();
            Scene::leaves_nothing(async move { guard.release().await.unwrap() })
        }
        .boxed()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_release_by_a_handle_once_it_is_polled() {
    dropped_over_pipes("release by a handle", |world| {
        async {
            let lease = lease(world).await;
            let mut releasing = Box::pin(async move { lease.release().await });
            assert!((&mut releasing).now_or_never().is_none());
            Scene::leaves_nothing(async move { releasing.await.unwrap() })
        }
        .boxed()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_semaphores_renewal_and_release() {
    dropped_over_pipes("semaphore's release", |world| {
        async {
            let guard = world.locks.semaphore("s", 3).unwrap().acquire().await.unwrap();
            Scene::leaves_nothing(async move {
                guard.renew().await.unwrap();
                guard.release().await.unwrap();
            })
        }
        .boxed()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn stats() {
    dropped_over_pipes("stats", |world| {
        let locks = world.locks.clone();
        async { Scene::leaves_nothing(async move { locks.stats().await.unwrap() }) }.boxed()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_run_and_the_work_in_it() {
    dropped_over_pipes("run", |world| {
        async {
            let lease = lease(world).await;
            let (running, work) = (lease.clone(), Arc::new(()));
            let watched = Arc::downgrade(&work);
            let run = async move {
                let outcome = running.run(async move {
                    for _ in 0..20 {
                        turn().await;
                    }
                    drop(work);
                });
                assert_eq!(outcome.await, Outcome::Completed(()));
            };
            Scene::leaves_nothing(run)
                .but(1, 0, Checked(Some(lease)))
                .beside(0, OnDrop(move || assert!(watched.upgrade().is_none(), "the work goes on")))
        }
        .boxed()
    })
    .await;
}

/// Looks at something when the scene is over.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_for_the_loss() {
    dropped_over_pipes("lost and at risk", |world| {
        async {
            let lease = lease(world).await;
            let (lost, at_risk) = (lease.lost(), lease.at_risk());
            let watch = async move {
                tokio::select! {
                    reason = lost => panic!("lost: {reason}"),
                    () = at_risk => panic!("at risk"),
                    () = sleep(S) => {}
                }
            };
            Scene::leaves_nothing(watch).but(1, 0, Checked(Some(lease)))
        }
        .boxed()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_loss_is_found_by_the_next_watch() {
    let world = World::new(ServerConfig::default(), crate::world::Way::pipe(64));
    let guard = world.lock().acquire().await.unwrap();
    let thief = AsyncConn::new(connect(&world.server, 64));
    for polls in 0..3 {
        assert_eq!(poll_times(guard.lost(), polls, &mut Dice::new(1)).await, None);
    }
    dflockd_client::command::release(&thief, "k", guard.token()).await.unwrap();
    assert_eq!(guard.renew().await.unwrap_err().kind(), ErrorKind::NotHeld);
    assert_eq!(guard.lost().now_or_never(), Some(LostReason::RenewalRejected));
    assert_eq!(guard.lost().clone().await, LostReason::RenewalRejected);
}

fn connect(server: &Server, room: usize) -> tokio::io::DuplexStream {
    let (near, far) = tokio::io::duplex(room);
    let server = server.clone();
    tokio::spawn(async move { server.serve_stream(far).await });
    near
}

#[tokio::test(start_paused = true)]
async fn a_handles_release_that_is_never_polled_releases_nothing() {
    let world = World::new(ServerConfig::default(), crate::world::Way::pipe(64));
    let lease = lease(&world).await;
    drop(lease.release());
    sleep(S).await;
    assert!(lease.is_held());
    assert_eq!(count(&world.server.stats()), (1, 0));
}

/// What a bare command leaves on the server is its connection's, and goes with that.
#[tokio::test(start_paused = true)]
async fn a_bare_command_ends_its_connection_once_it_is_polled() {
    let commands =
        [("ping", "_", "_"), ("stats", "_", "_"), ("l", "k", "5"), ("l", "busy", "5"), ("e", "busy", "")];
    for (room, (cmd, key, arg)) in [1, 64 * 1024].into_iter().flat_map(|room| commands.map(|c| (room, c))) {
        let dropping = async move {
            for polls in 0.. {
                let label = format!("{cmd} {key} over {room} bytes, dropped after {polls} polls");
                let server = Server::new(ServerConfig::default()).unwrap();
                let holder = AsyncConn::new(connect(&server, 4096));
                holder.command("l", "busy", "0 100", None).await.unwrap();
                let conn = AsyncConn::new(connect(&server, room));
                let command = conn.command(cmd, key, arg, None);
                let ended = poll_times(command, polls, &mut Dice::new(polls as u64)).await;
                let pong = timeout(S, conn.command("ping", "_", "_", None)).await.expect("an answer");
                if polls == 0 || ended.is_some() {
                    assert_eq!(pong.unwrap(), "ok", "{label}");
                } else {
                    assert_eq!(pong.unwrap_err().kind(), ErrorKind::ConnectionClosed, "{label}");
                    sleep(S / 100).await;
                    let stats = server.stats();
                    assert_eq!((stats.connections, count(&stats)), (1, (1, 0)), "{label}: {stats:?}");
                }
                if ended.is_some() {
                    assert!(polls > 1, "{label}: it never waited");
                    return;
                }
            }
        };
        tokio::spawn(dropping).await.unwrap();
    }
}
