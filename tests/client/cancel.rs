//! Acquires of every kind, dropped after any number of polls, over pipes of any size: the server
//! ends with no waiter and no holder from them, also one that does not free what a closed connection
//! held, and the client goes on as if nothing had been.

use std::sync::Arc;

use dflockd_client::server::ServerConfig;
use dflockd_client::tls::{ClientTls, ServerTls};
use dflockd_client::{Enqueued, LeaseGuard, LockClient, Ticket};
use futures::FutureExt;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use crate::turns::turn;
use crate::world::{S, Scene, Way, World, builder, dropped_everywhere, dropped_over_pipes};

async fn ticket(locks: &LockClient) -> Ticket {
    match locks.lock("k").unwrap().enqueue().await.unwrap() {
        Enqueued::Queued(ticket) => ticket,
        Enqueued::Acquired(_) => panic!("the key was taken"),
    }
}

/// Lets go after a while, counted in turns.
fn lets_go(guard: LeaseGuard) {
    tokio::spawn(async move {
        for _ in 0..60 {
            turn().await;
        }
        drop(guard);
    });
}

#[tokio::test(start_paused = true)]
async fn an_acquire_of_a_free_key() {
    dropped_over_pipes("acquire", |world| {
        let lock = world.lock();
        async { Scene::leaves_nothing(async move { lock.acquire().await.unwrap() }) }.boxed()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_acquire_over_a_connection_that_is_there_already() {
    dropped_over_pipes("acquire again", |world| {
        let lock = world.lock();
        async {
            lock.acquire().await.unwrap().release().await.unwrap();
            Scene::leaves_nothing(async move { lock.acquire().await.unwrap() })
        }
        .boxed()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_acquire_of_a_key_that_stays_busy() {
    dropped_over_pipes("acquire of a busy key", |world| {
        async {
            let (lock, held) = (world.lock(), world.rival_holds().await);
            Scene::leaves_nothing(async move { lock.acquire_within(2 * S).await }).but(1, 0, held)
        }
        .boxed()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_acquire_that_is_granted_while_it_waits() {
    dropped_over_pipes("acquire that waits", |world| {
        async {
            let lock = world.lock();
            lets_go(world.rival_holds().await);
            Scene::leaves_nothing(async move { lock.acquire().await.unwrap() })
        }
        .boxed()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_acquire_behind_others() {
    dropped_over_pipes("acquire behind others", |world| {
        async {
            let (lock, held) = (world.lock(), world.rival_holds().await);
            let waiting = world.rivals_wait(3).await;
            Scene::leaves_nothing(async move { lock.acquire_within(S).await }).but(1, 3, (held, waiting))
        }
        .boxed()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_try_of_a_free_key() {
    dropped_over_pipes("try", |world| {
        let lock = world.lock();
        async { Scene::leaves_nothing(async move { lock.try_acquire().await.unwrap().unwrap() }) }.boxed()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_try_of_a_busy_key() {
    dropped_over_pipes("try of a busy key", |world| {
        async {
            let (lock, held) = (world.lock(), world.rival_holds().await);
            Scene::leaves_nothing(async move { assert!(lock.try_acquire().await.unwrap().is_none()) })
                .but(1, 0, held)
        }
        .boxed()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_enqueue_that_acquires() {
    dropped_over_pipes("enqueue", |world| {
        let lock = world.lock();
        async { Scene::leaves_nothing(async move { lock.enqueue().await.unwrap() }) }.boxed()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_enqueue_that_queues_and_its_ticket() {
    dropped_over_pipes("enqueue of a busy key", |world| {
        async {
            let (lock, held) = (world.lock(), world.rival_holds().await);
            let waiting = world.rivals_wait(1).await;
            Scene::leaves_nothing(async move { lock.enqueue().await.unwrap() }).but(1, 1, (held, waiting))
        }
        .boxed()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_ticket_while_the_grant_is_on_its_way() {
    dropped_over_pipes("ticket", |world| {
        async {
            let held = world.rival_holds().await;
            let ticket = ticket(&world.locks).await;
            // The ticket itself is dropped with the future, whenever the key came free.
            Scene::leaves_nothing(async move {
                held.release().await.unwrap();
                drop(ticket);
            })
        }
        .boxed()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_wait_whose_turn_comes() {
    dropped_over_pipes("wait", |world| {
        async {
            let held = world.rival_holds().await;
            let ticket = ticket(&world.locks).await;
            lets_go(held);
            Scene::leaves_nothing(async move { ticket.wait(10 * S).await.unwrap() })
        }
        .boxed()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_wait_whose_turn_came_before() {
    dropped_over_pipes("wait after the grant", |world| {
        async {
            let held = world.rival_holds().await;
            let ticket = ticket(&world.locks).await;
            held.release().await.unwrap();
            Scene::leaves_nothing(async move { ticket.wait(S).await.unwrap() })
        }
        .boxed()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_wait_whose_turn_does_not_come() {
    dropped_over_pipes("wait in vain", |world| {
        async {
            let held = world.rival_holds().await;
            let ticket = ticket(&world.locks).await;
            Scene::leaves_nothing(async move { ticket.wait(2 * S).await }).but(1, 0, held)
        }
        .boxed()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_acquire_of_a_semaphore() {
    dropped_over_pipes("semaphore", |world| {
        let (slots, others) =
            (world.locks.semaphore("s", 2).unwrap(), world.rival.semaphore("s", 2).unwrap());
        async move {
            let (one, two) = (others.acquire().await.unwrap(), others.acquire().await.unwrap());
            lets_go(two);
            Scene::leaves_nothing(async move { slots.acquire().await.unwrap() }).beside(1, one)
        }
        .boxed()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_enqueue_for_a_semaphore_and_its_wait() {
    dropped_over_pipes("semaphore, enqueued", |world| {
        let (slots, others) =
            (world.locks.semaphore("s", 2).unwrap(), world.rival.semaphore("s", 2).unwrap());
        async move {
            let (one, two) = (others.acquire().await.unwrap(), others.acquire().await.unwrap());
            lets_go(two);
            let waits = async move {
                match slots.enqueue().await.unwrap() {
                    Enqueued::Queued(ticket) => ticket.wait(10 * S).await.unwrap(),
                    Enqueued::Acquired(guard) => guard,
                }
            };
            Scene::leaves_nothing(waits).beside(1, one)
        }
        .boxed()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_acquire_while_it_dials() {
    let slow = |config| World::new(config, Way { slow: true, ..Way::pipe(64) });
    dropped_everywhere("dial", slow, |world| {
        let lock = world.lock();
        async { Scene::leaves_nothing(async move { lock.acquire().await.unwrap() }) }.boxed()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_acquire_while_it_authenticates() {
    for room in [1, 4096] {
        let guarded = move |config| {
            let config = ServerConfig { auth_token: Some("s3cret".into()), ..config };
            let mut world = World::new(config, Way::pipe(room));
            let with_token = |way| builder(&world.server, way).auth_token("s3cret").build().unwrap();
            (world.locks, world.rival) = (with_token(Way::pipe(room)), with_token(Way::pipe(4096)));
            world
        };
        dropped_everywhere("auth", guarded, |world| {
            async {
                let lock = world.lock();
                lets_go(world.rival_holds().await);
                Scene::leaves_nothing(async move { lock.acquire().await.unwrap() })
            }
            .boxed()
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_acquire_over_tls() {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let cert = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
    let tls = ServerTls::from_pem(cert.pem(), key.serialize_pem()).unwrap();
    let trusted = ClientTls::builder().ca_pem(ca.pem()).build().unwrap();
    // No narrower: until the keys are agreed, neither side reads while it has something to write.
    for room in [16, 64 * 1024] {
        let (tls, trusted) = (tls.clone(), trusted.clone());
        let secure = move |config| {
            let tls = tls.clone();
            let accept = Arc::new(move |stream| {
                let tls = tls.clone();
                async move { tls.accept(stream).await }.boxed()
            });
            let mut world = World::new(config, Way::pipe(room));
            let way = Way { accept: Some(accept), ..Way::pipe(room) };
            world.locks = builder(&world.server, way).tls(trusted.clone()).build().unwrap();
            world
        };
        dropped_everywhere("tls", secure, |world| {
            async {
                let lock = world.lock();
                lets_go(world.rival_holds().await);
                Scene::leaves_nothing(async move { lock.acquire().await.unwrap() })
            }
            .boxed()
        })
        .await;
    }
}
