//! Several servers: each key lives on one of them, by a rule that all clients share, and a server
//! that is down takes its own keys with it and no others.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dflockd_client::server::{Server, ServerConfig};
use dflockd_client::{
    Builder, ClientTarget, ErrorKind, LockClient, LostReason, ShardingStrategy, stable_hash_shard,
};

use crate::faces::{Enqueued, Face, on_both_faces};
use crate::peers::{End, Peers, sound};

const FLEET: [(&str, u16); 3] = [("zero", 6388), ("one", 6388), ("two", 6389)];

on_both_faces!(
    a_key_lives_where_its_hash_says,
    a_closure_decides_in_the_servers_place,
    two_clients_of_one_fleet_exclude_each_other,
    a_server_that_is_down_fails_its_own_keys_and_names_itself,
    a_server_that_goes_down_later_keeps_no_client_from_the_others,
    stats_come_in_the_order_of_the_servers_and_name_the_one_that_is_down,
);

/// Three servers, and a builder of clients for which the server of index `down` is down.
fn fleet(down: Arc<AtomicUsize>) -> (Vec<Server>, Builder<ClientTarget>) {
    let servers: Vec<_> = (0..3).map(|_| Server::new(ServerConfig::default()).unwrap()).collect();
    let ways = servers.clone();
    let dial = Peers::new(move |host, _| {
        let index = FLEET.iter().position(|(name, _)| *name == host).expect("a server of the fleet");
        if index == down.load(Ordering::SeqCst) {
            return End::Fails(std::io::ErrorKind::ConnectionRefused);
        }
        sound(&ways[index])
    });
    (servers, LockClient::builder().servers(FLEET).dial(dial))
}

fn up() -> Arc<AtomicUsize> {
    Arc::new(AtomicUsize::new(usize::MAX))
}

fn keys_on(server: &Server) -> Vec<String> {
    let stats = server.stats();
    let locks = stats.locks.into_iter().map(|lock| lock.key);
    let mut keys: Vec<_> = locks.chain(stats.semaphores.into_iter().map(|s| s.key)).collect();
    keys.sort();
    keys
}

async fn a_key_lives_where_its_hash_says(face: Face) {
    let (servers, builder) = fleet(up());
    let client = face.build(builder);
    let mut expected = vec![Vec::new(); 3];
    let mut guards = Vec::new();
    // The published vectors among them: 2, 1, 2, 0, 1.
    let known = ["my-key", "deploy-job", "row:42", "ключ", &"a".repeat(255)].map(str::to_owned);
    for (n, key) in known.into_iter().chain((0..60).map(|n| format!("key-{n}"))).enumerate() {
        expected[stable_hash_shard(&key, 3)].push(key.clone());
        guards.push(match n % 3 {
            0 => client.lock(&key).unwrap().acquire().await.unwrap(),
            1 => client.semaphore(&key, 2).unwrap().acquire().await.unwrap(),
            _ => match client.lock(&key).unwrap().enqueue().await.unwrap() {
                Enqueued::Acquired(guard) => guard,
                Enqueued::Queued(_) => panic!("{key} is free"),
            },
        });
    }
    for (server, keys) in servers.iter().zip(&mut expected) {
        keys.sort();
        assert!(keys.len() > 9, "the keys spread");
        assert_eq!(keys_on(server), *keys);
    }
    assert!(expected[2].contains(&"my-key".to_owned()) && expected[0].contains(&"ключ".to_owned()));
    for guard in guards {
        guard.release().await.unwrap();
    }
    assert!(servers.iter().all(|server| keys_on(server).is_empty()), "released where they were taken");
}

async fn a_closure_decides_in_the_servers_place(face: Face) {
    let (servers, builder) = fleet(up());
    let by_tenant =
        |key: &str, servers: usize| stable_hash_shard(key.split(':').next().unwrap_or(key), servers);
    let client = face.build(builder.sharding_strategy(by_tenant));
    let mut guards = Vec::new();
    for tenant in ["my-key", "deploy-job", "ключ"] {
        for n in 0..5 {
            guards.push(client.lock(format!("{tenant}:{n}")).unwrap().acquire().await.unwrap());
        }
    }
    for (index, tenant) in [(2, "my-key"), (1, "deploy-job"), (0, "ключ")] {
        assert_eq!(keys_on(&servers[index]), (0..5).map(|n| format!("{tenant}:{n}")).collect::<Vec<_>>());
    }
}

/// All keys on the last server.
struct Last;

impl ShardingStrategy for Last {
    fn shard(&self, _key: &str, servers: usize) -> usize {
        servers - 1
    }
}

#[tokio::test(start_paused = true)]
async fn a_type_of_ones_own_can_be_a_strategy() {
    let (servers, builder) = fleet(up());
    let client = builder.sharding_strategy(Last).build().unwrap();
    let guard = client.lock("ключ").unwrap().acquire().await.unwrap();
    assert_eq!(keys_on(&servers[2]), ["ключ"]);
    drop(guard);
}

async fn two_clients_of_one_fleet_exclude_each_other(face: Face) {
    let (servers, builder) = fleet(up());
    let ways = servers.clone();
    let dial =
        Peers::new(move |host, _| sound(&ways[FLEET.iter().position(|(name, _)| *name == host).unwrap()]));
    let (one, two) = (face.build(builder), face.build(LockClient::builder().servers(FLEET).dial(dial)));
    for n in 0..30 {
        let key = format!("key-{n}");
        let guard = one.lock(&key).unwrap().try_acquire().await.unwrap().expect("it is free");
        assert!(two.lock(&key).unwrap().try_acquire().await.unwrap().is_none(), "{key}");
        guard.release().await.unwrap();
        assert!(two.lock(&key).unwrap().try_acquire().await.unwrap().is_some(), "{key}");
    }
}

async fn a_server_that_is_down_fails_its_own_keys_and_names_itself(face: Face) {
    for (index, (host, port)) in FLEET.into_iter().enumerate() {
        let (_servers, builder) = fleet(Arc::new(AtomicUsize::new(index)));
        let client = face.build(builder);
        let (mut failed, mut taken) = (0, 0);
        for key in (0..30).map(|n| format!("key-{n}")) {
            let outcome = client.lock(&key).unwrap().try_acquire().await;
            if stable_hash_shard(&key, 3) == index {
                let (error, name) = (outcome.unwrap_err(), format!("{host}:{port}"));
                assert_eq!((error.kind(), error.server()), (ErrorKind::Io, Some(&*name)), "{error}");
                assert!(error.to_string().contains(&format!("{key:?} on {name}: ")), "{error}");
                failed += 1;
            } else {
                assert!(outcome.unwrap().is_some(), "{key} does not live on {host}");
                taken += 1;
            }
        }
        assert!(failed > 3 && taken > 3, "{failed} {taken}");
    }
}

async fn a_server_that_goes_down_later_keeps_no_client_from_the_others(face: Face) {
    let down = up();
    let (servers, builder) = fleet(down.clone());
    let client = face.build(builder);
    let lost = client.lock("deploy-job").unwrap().acquire().await.unwrap();
    let kept = client.lock("my-key").unwrap().acquire().await.unwrap();
    down.store(1, Ordering::SeqCst);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    servers[1].serve(listener, async {}).await;
    assert_eq!(lost.lost().await, LostReason::ConnectionClosed);
    assert_eq!(client.lock("deploy-job").unwrap().acquire().await.unwrap_err().kind(), ErrorKind::Io);
    assert!(kept.is_held());
    kept.release().await.unwrap();
}

async fn stats_come_in_the_order_of_the_servers_and_name_the_one_that_is_down(face: Face) {
    let down = up();
    let (_servers, builder) = fleet(down.clone());
    let client = face.build(builder);
    let _guard = client.lock("deploy-job").unwrap().acquire().await.unwrap();
    let stats = client.stats().await.unwrap();
    let locks: Vec<_> = stats.iter().map(|stats| stats.locks.len()).collect();
    assert_eq!(locks, [0, 1, 0]);
    down.store(2, Ordering::SeqCst);
    let (_servers, builder) = fleet(down);
    let error = face.build(builder).stats().await.unwrap_err();
    assert_eq!((error.kind(), error.server()), (ErrorKind::Io, Some("two:6389")), "{error}");
    assert!(error.to_string().starts_with("stats on two:6389: "), "{error}");
}

#[tokio::test]
async fn three_servers_over_tcp_share_the_keys() {
    let mut fleet = Vec::new();
    let mut servers = Vec::new();
    for _ in 0..3 {
        let server = Server::bind(ServerConfig { port: 0, ..Default::default() }).await.unwrap();
        let address = server.local_addr().unwrap();
        fleet.push((address.ip().to_string(), address.port()));
        let running = tokio::spawn(server.clone().run(std::future::pending()));
        servers.push((server, running));
    }
    let client = LockClient::builder()
        .servers(fleet.clone())
        .connect_timeout(Duration::from_secs(60))
        .build()
        .unwrap();
    for n in 0..12 {
        let key = format!("key-{n}");
        let guard = client.lock(&key).unwrap().acquire().await.unwrap();
        for (index, (server, _)) in servers.iter().enumerate() {
            let here = index == stable_hash_shard(&key, 3);
            assert_eq!(keys_on(server).contains(&key), here, "{key} on {index}");
        }
        guard.release().await.unwrap();
    }
    // One goes down: the listener closes with its task, and so do new connections to it.
    servers[1].1.abort();
    assert!((&mut servers[1].1).await.unwrap_err().is_cancelled());
    let client = LockClient::builder().servers(fleet.clone()).build().unwrap();
    for n in 0..12 {
        let key = format!("key-{n}");
        let outcome = client.lock(&key).unwrap().try_acquire().await;
        if stable_hash_shard(&key, 3) == 1 {
            let error = outcome.unwrap_err();
            assert_eq!(error.server(), Some(&*format!("{}:{}", fleet[1].0, fleet[1].1)));
            assert!(error.is_unavailable(), "{error}");
        } else {
            assert!(outcome.unwrap().is_some(), "{key}");
        }
    }
}
