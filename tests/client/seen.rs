//! What an operator sees of leases: spans and events for the log, and the listener for those who
//! count. Nothing secret in either.

use std::io::Write;
use std::sync::{Arc, Mutex, Once, mpsc};
use std::thread;
use std::time::Duration;

use dflockd_client::failpoints::await_event_handlers;
use dflockd_client::server::ServerConfig;
use dflockd_client::test_util::TestServer;
use dflockd_client::{Builder, ClientTarget, LeaseEvent, LeaseEventKind, LockClient, LostReason};
use tokio::time::sleep;
use tracing::subscriber::DefaultGuard;

use crate::faces::{Client, Face, on_both_faces};
use crate::peers::{Peers, Wire, peer, unfenced};

const S: Duration = Duration::from_secs(1);

on_both_faces!(
    nothing_secret_is_logged_or_printed,
    the_listener_hears_of_each_step_of_a_lease,
    the_listener_hears_of_what_goes_wrong,
);

/// All that is logged on this thread, as text.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn capture() -> (Self, DefaultGuard) {
        // Which lines are of interest to any subscriber is kept for the whole process, and worked out anew
        // as tests come and go. One that is there for all of them keeps that from going wrong.
        static FOR_ALL: Once = Once::new();
        FOR_ALL.call_once(|| {
            let sink =
                tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(std::io::sink);
            tracing::subscriber::set_global_default(sink.finish()).expect("it is the first");
        });
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_ansi(false)
            .with_writer(move || writer.clone());
        (log, tracing::subscriber::set_default(subscriber.finish()))
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    /// The lines that contain all of these.
    fn lines(&self, parts: &[&str]) -> Vec<String> {
        let has_all = |line: &&str| parts.iter().all(|part| line.contains(part));
        self.text().lines().filter(has_all).map(Into::into).collect()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What the listener was told, in order.
#[derive(Clone, Default)]
struct Events(Arc<Mutex<Vec<LeaseEvent>>>);

impl Events {
    fn of(face: Face, builder: Builder<ClientTarget>) -> (Client, Self) {
        let events = Self::default();
        let told = events.clone();
        let builder = builder.on_event(move |event| told.0.lock().unwrap().push(event.clone()));
        (face.build(builder), events)
    }

    fn all(&self) -> Vec<LeaseEvent> {
        await_event_handlers();
        self.0.lock().unwrap().clone()
    }

    /// Their names, and the key and grantor of all.
    fn names(&self) -> Vec<&'static str> {
        let events = self.all();
        assert!(
            events.iter().all(|event| event.key.to_string() == "k" && &*event.endpoint == "127.0.0.1:6388")
        );
        let name = |event: &LeaseEvent| match event.kind {
            LeaseEventKind::Granted { .. } => "granted",
            LeaseEventKind::Renewed { .. } => "renewed",
            LeaseEventKind::RenewFailed(_) => "renew failed",
            LeaseEventKind::AtRisk => "at risk",
            LeaseEventKind::Lost(_) => "lost",
            LeaseEventKind::Released => "released",
            LeaseEventKind::ReleaseFailed(_) => "release failed",
            LeaseEventKind::Forgotten => "forgotten",
            _ => "unknown",
        };
        events.iter().map(name).collect()
    }
}

/// A server that answers with these lines, and then closes, or says nothing more.
fn scripted(answers: &'static [&'static str], closes: bool) -> Builder<ClientTarget> {
    LockClient::builder().dial(Peers::new(move |_, _| crate::peers::script(answers, closes)))
}

const GRANT: &str = "ok 000000000000002a00112233445566aa 10\n";

#[tokio::test(start_paused = true)]
async fn a_life_of_a_lease_is_logged_with_key_server_and_fence() {
    let (log, _capturing) = Log::capture();
    let guard = TestServer::new().locks().lock("job").unwrap().acquire().await.unwrap();
    let fence = format!("fence={}", guard.fence().unwrap().get());
    sleep(40 * S).await;
    guard.release().await.unwrap();
    for what in ["lease granted", "lease renewed", "lease released"] {
        let lines = log.lines(&["DEBUG", "lease{", "key=job", "server=127.0.0.1:6388", &fence, what]);
        assert!(!lines.is_empty(), "{what} is not in\n{}", log.text());
    }
    assert!(log.lines(&["WARN"]).is_empty() && log.lines(&["ERROR"]).is_empty(), "{}", log.text());
}

/// Turns the reading direction round, and takes no room.
const DECEIVES: &str = "\u{202e}\u{200b}";

#[tokio::test(start_paused = true)]
async fn a_key_that_deceives_is_escaped_in_the_log_and_in_errors() {
    let (log, _capturing) = Log::capture();
    let locks = TestServer::new().locks();
    let lock = locks.lock(format!("job{DECEIVES}")).unwrap();
    let guard = lock.acquire().await.unwrap();
    let error = lock.acquire_within(S).await.unwrap_err();
    assert!(error.to_string().contains("\"job\\u{202e}\\u{200b}\""), "{error}");
    assert!(!format!("{error:?} {guard:?} {}", guard.key()).contains(DECEIVES));
    assert_eq!(guard.key().to_text(), format!("job{DECEIVES}"), "the text itself is exact");
    guard.release().await.unwrap();
    assert!(!log.lines(&["key=job\\u{202e}\\u{200b}", "lease released"]).is_empty(), "{}", log.text());
    assert!(!log.text().contains(DECEIVES), "{}", log.text());
}

#[tokio::test(start_paused = true)]
async fn what_a_server_says_is_escaped_in_errors_and_exact_where_it_is_asked_for() {
    let refused: &[&str] = &["error_\u{202e}gnorw\u{1b}[2J\n"];
    let elsewhere: &[&str] = &["error_not_leader a\u{202e}b:1\n"];
    for (answers, leader) in [(refused, None), (elsewhere, Some("a\u{202e}b:1"))] {
        let client = scripted(answers, false).build().unwrap();
        let error = client.lock("k").unwrap().try_acquire().await.unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(text.contains("\\u{202e}") && !text.contains(['\u{202e}', '\u{1b}']), "{text}");
        assert_eq!((error.raw(), error.leader()), (Some(answers[0].trim_end()), leader));
    }
}

#[tokio::test(start_paused = true)]
async fn an_acquire_that_fails_is_logged_in_its_span() {
    let (log, _capturing) = Log::capture();
    let locks = TestServer::new().locks();
    let _held = locks.lock("job").unwrap().acquire().await.unwrap();
    locks.lock("job").unwrap().acquire_within(S).await.unwrap_err();
    let lines = log.lines(&["DEBUG", "acquire{key=job server=127.0.0.1:6388}", "not acquired", "busy"]);
    assert_eq!(lines.len(), 1, "{}", log.text());
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_is_one_warning_with_the_reason() {
    let (log, _capturing) = Log::capture();
    let server = TestServer::new();
    let guard = server.locks().lock("job").unwrap().acquire().await.unwrap();
    server.cut();
    guard.lost().await;
    assert!(!guard.is_held());
    drop(guard);
    sleep(60 * S).await;
    let warnings = log.lines(&["WARN"]);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("lease lost") && warnings[0].contains("its connection closed"));
    assert!(warnings[0].contains("key=job"));
}

#[tokio::test(start_paused = true)]
async fn a_release_on_drop_that_fails_is_a_warning() {
    let (log, _capturing) = Log::capture();
    let client = scripted(&[GRANT, "error\n"], false).build().unwrap();
    drop(client.lock("job").unwrap().acquire().await.unwrap());
    sleep(S).await;
    assert_eq!(
        log.lines(&["WARN", "release failed", "key=job", "not the holder"]).len(),
        1,
        "{}",
        log.text()
    );
}

async fn nothing_secret_is_logged_or_printed(face: Face) {
    let (log, _capturing) = Log::capture();
    let config = ServerConfig { auth_token: Some("open-sesame".into()), ..ServerConfig::default() };
    let server = TestServer::with(config).unwrap();
    let (client, events) = Events::of(face, server.builder().auth_token("open-sesame"));
    let lock = client.lock("k").unwrap();
    let guard = lock.acquire().await.unwrap();
    let token = guard.token().expose();
    lock.acquire_within(S).await.unwrap_err();
    sleep(60 * S).await;
    let error = {
        server.cut();
        guard.release().await.unwrap_err()
    };
    server.builder().auth_token("open-sesamf").build().unwrap().stats().await.unwrap_err();
    sleep(60 * S).await;
    let printed = format!("{}{error:?}{error}{client:?}{lock:?}{:?}", log.text(), events.all());
    assert!(printed.len() > 1000);
    assert!(!printed.contains(&token), "a token is shown");
    assert!(!printed.contains(&token[..9]) && !printed.contains(&token[23..]), "a token is shown in part");
    assert!(!printed.contains("open-sesam"), "the auth token is shown");
}

/// A client of a server that grants with these fences, whatever it is asked for.
fn granting(fences: &'static [u64]) -> LockClient {
    let dial = Peers::new(move |_, _| {
        peer(move |far| async move {
            let mut wire = Wire::new(far);
            let mut fences = fences.iter();
            while let Some(request) = wire.request().await {
                if request.starts_with("l ") || request.starts_with("sl ") {
                    let fence = fences.next().unwrap();
                    wire.send(format!("ok {fence:016x}00112233445566aa 10\n")).await;
                } else {
                    wire.send("ok\n").await;
                }
            }
        })
    });
    LockClient::builder().dial(dial).build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_fence_that_falls_is_one_warning_per_key() {
    let (log, _capturing) = Log::capture();
    let lock = granting(&[7, 9, 8, 3, 10]).lock("job").unwrap();
    for _ in 0..5 {
        lock.acquire().await.unwrap().release().await.unwrap();
        sleep(S).await;
    }
    let warnings = log.lines(&["WARN"]);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    for part in ["the fence fell", "key=job", "fence=8", "highest=9", "127.0.0.1:6388"] {
        assert!(warnings[0].contains(part), "{part}: {warnings:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn fences_of_a_semaphore_are_not_compared_unless_it_is_a_lock() {
    for (limit, warned) in [(2, 0), (1, 1)] {
        let (log, _capturing) = Log::capture();
        let slots = granting(&[9, 8]).semaphore("slots", limit).unwrap();
        for _ in 0..2 {
            slots.acquire().await.unwrap().release().await.unwrap();
            sleep(S).await;
        }
        assert_eq!(log.lines(&["WARN", "the fence fell"]).len(), warned, "a limit of {limit}");
    }
}

#[tokio::test(start_paused = true)]
async fn no_fence_falls_on_a_server_that_has_none() {
    let (log, _capturing) = Log::capture();
    let locks = LockClient::builder().dial(Peers::new(|_, _| unfenced())).build().unwrap();
    let lock = locks.lock("job").unwrap();
    let mut noise = Vec::new();
    for _ in 0..5 {
        let guard = lock.acquire().await.unwrap();
        noise.push(guard.token().expose());
        guard.release().await.unwrap();
        sleep(S).await;
    }
    assert!(noise.is_sorted_by(|one, next| one > next), "it falls: {noise:?}");
    assert_eq!(log.lines(&["WARN"]), Vec::<String>::new());
    assert!(!log.lines(&["key=job"]).is_empty());
    assert_eq!(log.lines(&["fence="]), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn grants_that_crossed_are_no_fall() {
    let (log, _capturing) = Log::capture();
    // The second connection's grant is the older one, and is heard of later.
    let dial = Peers::new(|_, dials| {
        peer(move |far| async move {
            let mut wire = Wire::new(far);
            while let Some(request) = wire.request().await {
                let is_acquire = request.starts_with("l ");
                sleep(if is_acquire { S * (1 + dials as u32) } else { Duration::ZERO }).await;
                let fence = 9 - dials;
                let grant = format!("ok {fence:016x}00112233445566aa 100\n");
                let renewed = if request.starts_with("n ") { "ok 100\n" } else { "ok\n" };
                wire.send(if is_acquire { grant } else { renewed.into() }).await;
            }
        })
    });
    let lock = LockClient::builder().dial(dial).build().unwrap().lock("job").unwrap().isolated();
    let (first, second) = tokio::join!(lock.acquire(), lock.acquire());
    let fences = [first, second].map(|guard| guard.unwrap().fence().map(dflockd_client::Fence::get));
    assert!(fences.contains(&Some(9)) && fences.contains(&Some(8)), "{fences:?}");
    assert!(log.lines(&["WARN", "the fence fell"]).is_empty(), "{}", log.text());
}

async fn the_listener_hears_of_each_step_of_a_lease(face: Face) {
    let server = TestServer::new();
    let (client, events) = Events::of(face, server.builder().lease_ttl(10 * S).renew_jitter(0.0));
    let lock = client.lock("k").unwrap();
    let guard = lock.acquire().await.unwrap();
    let fence = guard.fence();
    sleep(11 * S).await;
    let renewed = events.names().len() - 1;
    assert!(renewed == 2 || !face.is_exact() && renewed >= 2, "{renewed}");
    guard.release().await.unwrap();
    let names = events.names();
    assert_eq!((names[0], names[1], *names.last().unwrap()), ("granted", "renewed", "released"));
    assert!(events.all().iter().all(|event| event.fence == fence));

    drop(lock.acquire().await.unwrap());
    sleep(S).await;
    assert_eq!(events.names()[names.len()..], ["granted", "released"]);

    lock.acquire().await.unwrap().forget();
    sleep(60 * S).await;
    assert_eq!(events.names()[names.len() + 2..], ["granted", "forgotten"]);
}

async fn the_listener_hears_of_what_goes_wrong(face: Face) {
    let (client, events) = Events::of(face, scripted(&[GRANT, "error_draining\n", "ok 10\n"], false));
    let guard = client.lock("k").unwrap().acquire().await.unwrap();
    assert_eq!(guard.lost().await, LostReason::DeadlinePassed);
    let names = events.names();
    assert_eq!(names[..3], ["granted", "renew failed", "renewed"]);
    assert!(names[3..].contains(&"at risk"), "{names:?}");
    assert_eq!(names.last(), Some(&"lost"));

    let (client, events) = Events::of(face, scripted(&[GRANT, "error\n"], false));
    drop(client.lock("k").unwrap().acquire().await.unwrap());
    sleep(S).await;
    assert_eq!(events.names(), ["granted", "release failed"]);
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_panics_does_the_lease_no_harm() {
    let (log, _capturing) = Log::capture();
    let server = TestServer::new();
    let client = server.builder().on_event(|_| panic!("counted too far")).build().unwrap();
    let guard = client.lock("k").unwrap().acquire().await.unwrap();
    sleep(100 * S).await;
    assert!(guard.is_held());
    guard.release().await.unwrap();
    await_event_handlers();
    // Once, however often it does.
    assert_eq!(log.lines(&["ERROR", "the event handler panicked"]).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_is_stuck_holds_up_no_lease_and_is_told_of_all_in_the_end() {
    let server = TestServer::new();
    let (go, gone) = mpsc::channel::<()>();
    let (tell, told) = mpsc::channel();
    let gone = Mutex::new(gone);
    let builder = server.builder().renew_jitter(0.0).lease_ttl(10 * S).on_event(move |event| {
        // Until the test is at its end.
        let _ = gone.lock().unwrap().recv();
        let thread = thread::current().name().map(str::to_owned);
        tell.send((format!("{:?}", event.kind), thread)).unwrap();
    });
    let client = builder.build().unwrap();
    let guard = client.lock("k").unwrap().acquire().await.unwrap();
    sleep(11 * S).await;
    assert!(guard.is_held());
    guard.release().await.unwrap();
    assert!(server.stats().locks.is_empty());
    assert_eq!((client.metrics().renewals, client.metrics().dropped_events), (2, 0));
    drop(client);
    drop(go);
    let (events, threads): (Vec<_>, Vec<_>) = told.iter().unzip();
    let (granted, renewed) = ("Granted { ttl: 10s }", "Renewed { ttl: 10s }");
    assert_eq!(events, [granted, renewed, renewed, "Released"]);
    assert!(threads.iter().all(|name| name.as_deref() == Some("dflockd-events")), "{threads:?}");
}
