//! Servers too old to fence: their tokens look like ours and are random, so no number is read out of
//! them, however a lease comes about.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use dflockd_client::test_util::TestServer;
use dflockd_client::{Builder, ClientTarget, LockClient, OnDisconnect, command};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use crate::faces::{Enqueued, Face, Guard, on_both_faces};
use crate::peers::{End, PING, PONG, Peers, TOKEN, peer, unfenced};

const S: Duration = Duration::from_secs(1);

on_both_faces!(
    no_grant_has_a_fence_however_it_comes_about,
    a_grant_after_an_enqueue_has_no_fence,
    a_lease_that_moves_to_another_connection_keeps_to_having_no_fence,
);

fn builder() -> Builder<ClientTarget> {
    LockClient::builder().dial(Peers::new(|_, _| unfenced()))
}

#[track_caller]
fn assert_unfenced(guard: &Guard) {
    assert!(guard.is_held());
    assert!(guard.token().fence().is_some(), "the token looks as if it had one");
    assert_eq!(guard.fence(), None);
}

async fn no_grant_has_a_fence_however_it_comes_about(face: Face) {
    let (told, events) = mpsc::channel();
    let told = move |event: &dflockd_client::LeaseEvent| told.send(event.fence).unwrap();
    let locks = face.build(builder().on_event(told));
    for key in ["free", "busy"] {
        for lock in [locks.lock(key).unwrap(), locks.semaphore(key, 2).unwrap()] {
            for lock in [lock.isolated(), lock] {
                let guard = lock.acquire_within(30 * S).await.unwrap();
                assert_unfenced(&guard);
                guard.renew().await.unwrap();
                assert_unfenced(&guard);
                let lease = guard.detach();
                assert_eq!(lease.fence(), None);
                lease.release().await.unwrap();
            }
        }
    }
    assert_unfenced(&locks.lock("free").unwrap().try_acquire().await.unwrap().unwrap());
    dflockd_client::failpoints::await_event_handlers();
    let fences: Vec<_> = events.try_iter().collect();
    assert!(fences.len() >= 16 && fences.iter().all(Option::is_none), "{fences:?}");
}

async fn a_grant_after_an_enqueue_has_no_fence(face: Face) {
    let locks = face.build(builder());
    for (free, busy) in [
        (locks.lock("free").unwrap(), locks.lock("busy").unwrap()),
        (locks.semaphore("free", 2).unwrap(), locks.semaphore("busy", 2).unwrap()),
    ] {
        let Enqueued::Acquired(guard) = free.enqueue().await.unwrap() else { panic!("it is free") };
        assert_unfenced(&guard);
        let Enqueued::Queued(ticket) = busy.enqueue().await.unwrap() else { panic!("it is busy") };
        sleep(S).await;
        assert_unfenced(&ticket.wait(30 * S).await.unwrap());
    }
}

async fn a_lease_that_moves_to_another_connection_keeps_to_having_no_fence(face: Face) {
    let cut = Arc::new(tokio::sync::Notify::new());
    let dials = Peers::new({
        let cut = cut.clone();
        move |_, nth| {
            let End::Open(mut far) = unfenced() else { panic!("it is open") };
            let cut = cut.clone();
            peer(move |mut near| async move {
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    () = cut.notified(), if nth == 0 => {}
                }
            })
        }
    });
    let dialled = dials.dials();
    let builder = LockClient::builder().dial(dials).on_disconnect(OnDisconnect::Reattach);
    let guard = face.build(builder).lock("free").unwrap().acquire().await.unwrap();
    assert_unfenced(&guard);
    cut.notify_one();
    sleep(5 * S).await;
    guard.renew().await.unwrap();
    assert_eq!(dialled.load(std::sync::atomic::Ordering::SeqCst), 2);
    assert_unfenced(&guard);
}

#[tokio::test]
async fn a_bare_connection_tells_by_its_ping() {
    let End::Open(stream) = unfenced() else { panic!("it is open") };
    let conn = dflockd_client::AsyncConn::new(stream);
    let error = command::ping(&conn).await.unwrap_err();
    assert_eq!((error.kind(), error.raw()), (dflockd_client::ErrorKind::Server, Some("error")));
    let grant = command::acquire(&conn, "free", Duration::ZERO, None).await.unwrap();
    command::release(&conn, "free", &grant.token).await.unwrap();
    command::ping(&TestServer::new().conn()).await.unwrap();
}

/// The question costs no round trip: the request goes out with it, before anything is answered.
#[tokio::test(start_paused = true)]
async fn a_connection_asks_for_fences_together_with_its_first_request() {
    let dial = Peers::new(|_, _| {
        peer(|mut far| async move {
            let mut both = vec![0; (PING.to_owned() + "l\nk\n0\n").len()];
            far.read_exact(&mut both).await.unwrap();
            assert_eq!(both, (PING.to_owned() + "l\nk\n0\n").as_bytes());
            far.write_all(format!("{PONG}ok {TOKEN} 33\n").as_bytes()).await.unwrap();
            far.read_to_end(&mut both).await.unwrap();
        })
    });
    let lock = LockClient::builder().dial(dial).build().unwrap().lock("k").unwrap();
    let guard = timeout(S, lock.acquire()).await.expect("it does not wait for the ping").unwrap();
    assert_eq!(guard.fence(), guard.token().fence());
    assert_eq!(guard.fence().map(dflockd_client::Fence::get), Some(42));
}
