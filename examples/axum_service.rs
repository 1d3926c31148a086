//! A small bank on axum: transfers under a lock per account, whose fences the store checks; exports capped by
//! a semaphore; one instance of many that pays interest; health, metrics, and a stop that releases.
//!
//! `cargo run --release --example axum_service` starts it with a lock server inside. For several instances
//! pass `--locks HOST:PORT`. The README has the curl commands.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header::RETRY_AFTER};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use clap::Parser;
use dflockd_client::server::{Server, ServerConfig};
use dflockd_client::{Error, Fence, LeaseGuard, LockClient, LostReason, Outcome};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// How long a request waits for a busy account.
const PATIENCE: Duration = Duration::from_secs(1);
/// How many exports the whole fleet runs at a time.
const EXPORTS: u64 = 2;

#[derive(Parser)]
struct Flags {
    /// The address to listen on.
    #[arg(long, default_value = "127.0.0.1:8088")]
    listen: SocketAddr,
    /// The lock server. Unless set, it runs inside this process.
    #[arg(long, value_name = "HOST:PORT")]
    locks: Option<SocketAddr>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let colour = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_ansi(colour).with_writer(std::io::stderr).init();
    let flags = Flags::parse();
    let server = match flags.locks {
        Some(_) => None,
        None => Some(Server::bind(ServerConfig { port: 0, ..Default::default() }).await?),
    };
    let address = flags.locks.or(server.as_ref().and_then(Server::local_addr)).ok_or("no lock server")?;
    let (stop_server, server_stops) = tokio::sync::oneshot::channel::<()>();
    let serving = server.map(|server| tokio::spawn(server.run(async { drop(server_stops.await) })));

    let locks = LockClient::builder()
        .servers([(address.ip().to_string(), address.port())])
        .lease_ttl(Duration::from_secs(10))
        .build()?;
    let app = App::new(locks.clone());
    let (stop_leader, leader_stops) = watch::channel(());
    let leader = tokio::spawn(lead(app.clone(), leader_stops));

    let listener = tokio::net::TcpListener::bind(flags.listen).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, router(app)).with_graceful_shutdown(stopped()).await?;

    // No request is in flight any longer. The leader releases, so that the next one need not wait, and
    // `close` waits for the releases of dropped guards.
    drop(stop_leader);
    leader.await?;
    locks.close().await?;
    drop(stop_server);
    if let Some(serving) = serving {
        serving.await?;
    }
    println!("stopped, and released every lock");
    Ok(())
}

/// Resolves on ctrl-c and SIGTERM.
async fn stopped() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = terminate.recv() => return,
                _ = tokio::signal::ctrl_c() => return,
            }
        }
    }
    // If signals are unavailable, the service runs until it is killed.
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending().await
    }
}

/// The state that every handler shares. Cheap to clone, as the client in it is.
#[derive(Clone)]
pub(crate) struct App {
    locks: LockClient,
    pub(crate) bank: Arc<Bank>,
    pub(crate) leads: Arc<AtomicBool>,
    interest_paid: Arc<AtomicU64>,
}

impl App {
    pub(crate) fn new(locks: LockClient) -> Self {
        Self { locks, bank: Arc::default(), leads: Arc::default(), interest_paid: Arc::default() }
    }
}

pub(crate) fn router(app: App) -> Router {
    Router::new()
        .route("/accounts/{id}", get(account))
        .route("/transfers", post(transfer))
        .route("/exports", post(export))
        .route("/leader", get(leader))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .with_state(app)
}

/// Why a request is refused. A caller reacts differently to each.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// Another request has the account: the same request may succeed in a moment.
    Busy,
    /// All slots are taken.
    Full,
    /// The lease was lost half-way, or the store has seen a later holder: check before you retry.
    Lost(String),
    /// The lock server is unavailable.
    Unavailable(String),
    /// The request is invalid.
    Bad(String),
    /// The service has a bug.
    Broken(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match error {
            error if error.is_busy() => Self::Busy,
            error if error.is_lease_lost() => Self::Lost(error.to_string()),
            error if error.is_invalid_input() => Self::Bad(error.to_string()),
            error if error.is_unavailable() || error.is_timeout() => Self::Unavailable(error.to_string()),
            error => Self::Broken(error),
        }
    }
}

impl From<LostReason> for Refusal {
    fn from(reason: LostReason) -> Self {
        Self::Lost(format!("the lease was lost: {reason}"))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, again, text) = match self {
            Self::Busy => (StatusCode::LOCKED, Some("1"), "another transfer has it: try again".into()),
            Self::Full => (StatusCode::TOO_MANY_REQUESTS, Some("5"), "all slots are taken".into()),
            Self::Lost(why) => (StatusCode::CONFLICT, None, why),
            Self::Unavailable(why) => (StatusCode::SERVICE_UNAVAILABLE, Some("5"), why),
            Self::Bad(why) => (StatusCode::UNPROCESSABLE_ENTITY, None, why),
            Self::Broken(error) => (StatusCode::INTERNAL_SERVER_ERROR, None, error.to_string()),
        };
        let mut response = (status, format!("{text}\n")).into_response();
        if let Some(seconds) = again {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static(seconds));
        }
        response
    }
}

#[derive(Deserialize)]
pub(crate) struct Order {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) cents: u64,
    /// How long the transfer takes, for demonstrations.
    #[serde(default)]
    pub(crate) work_ms: u64,
}

#[derive(Serialize)]
pub(crate) struct Receipt {
    from: Account,
    to: Account,
}

pub(crate) async fn transfer(
    State(app): State<App>,
    Json(order): Json<Order>,
) -> Result<Json<Receipt>, Refusal> {
    if order.from == order.to || order.cents == 0 {
        return Err(Refusal::Bad("a transfer moves something from one account to another".into()));
    }
    // All transfers take the lesser account first, so that no two wait for each other.
    let first = app.take(order.from.as_str().min(&order.to)).await?;
    let second = app.take(order.from.as_str().max(&order.to)).await?;
    let fences = if order.from < order.to { [&first, &second] } else { [&second, &first] };
    let fences = [fence(fences[0])?, fence(fences[1])?];
    let work = async {
        // Stands for a call to the fraud department, say.
        sleep(Duration::from_millis(order.work_ms)).await;
        app.bank.transfer(&order, fences)
    };
    match first.run(second.run(work)).await {
        Outcome::Completed(Outcome::Completed(receipt)) => receipt.map(Json),
        Outcome::Completed(Outcome::Lost(reason)) | Outcome::Lost(reason) => Err(reason.into()),
    }
    // The guards drop here, whatever the outcome, and release.
}

impl App {
    async fn take(&self, account: &str) -> Result<LeaseGuard, Refusal> {
        Ok(self.locks.lock(format!("account:{account}"))?.acquire_within(PATIENCE).await?)
    }
}

fn fence(guard: &LeaseGuard) -> Result<Fence, Refusal> {
    guard.fence().ok_or_else(|| Refusal::Bad("this lock server is too old to fence".into()))
}

async fn account(State(app): State<App>, Path(id): Path<String>) -> Json<Account> {
    Json(app.bank.accounts().get(&id).copied().unwrap_or_default())
}

pub(crate) async fn export(State(app): State<App>) -> Result<String, Refusal> {
    let exports = app.locks.semaphore("exports", EXPORTS)?;
    let slot = exports.try_acquire().await?.ok_or(Refusal::Full)?;
    match slot.run(sleep(Duration::from_secs(2))).await {
        Outcome::Completed(()) => Ok("exported\n".into()),
        Outcome::Lost(reason) => Err(reason.into()),
    }
}

/// Pays interest while this instance leads, and stands for election while it does not.
pub(crate) async fn lead(app: App, mut stops: watch::Receiver<()>) {
    let office = app.locks.lock("interest").expect("the key is valid");
    loop {
        let elected = tokio::select! {
            _ = stops.changed() => return,
            elected = office.acquire_within(Duration::from_secs(3600)) => elected,
        };
        let guard = match elected {
            Ok(guard) => guard,
            Err(error) => {
                tracing::warn!(%error, "not elected");
                sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        app.leads.store(true, Relaxed);
        let outcome = tokio::select! {
            _ = stops.changed() => None,
            outcome = guard.run(app.pay_interest()) => Some(outcome),
        };
        app.leads.store(false, Relaxed);
        match outcome {
            Some(Outcome::Completed(never)) => match never {},
            // The library has logged why. Another instance leads now, or this one leads again.
            Some(Outcome::Lost(_)) => {}
            None => {
                if let Err(error) = guard.release().await {
                    tracing::warn!(%error, "the next leader has to wait for the lease's end");
                }
                return;
            }
        }
    }
}

impl App {
    async fn pay_interest(&self) -> Infallible {
        loop {
            self.interest_paid.fetch_add(1, Relaxed);
            sleep(Duration::from_secs(1)).await;
        }
    }
}

pub(crate) async fn leader(State(app): State<App>) -> String {
    let (leads, paid) = (app.leads.load(Relaxed), app.interest_paid.load(Relaxed));
    format!("this instance {}, and has paid interest {paid} times\n", if leads { "leads" } else { "follows" })
}

/// Returns whether the lock server is available, which transfers need. Reading an account does not.
pub(crate) async fn health(State(app): State<App>) -> Result<&'static str, Refusal> {
    let silent = |_| Refusal::Unavailable(format!("no answer within {PATIENCE:?}"));
    timeout(PATIENCE, app.locks.stats()).await.map_err(silent)??;
    Ok("ok\n")
}

/// Returns the metrics in the text format of Prometheus.
pub(crate) async fn metrics(State(app): State<App>) -> String {
    let locks = app.locks.metrics();
    let gauges = [
        ("bank_leads", u64::from(app.leads.load(Relaxed))),
        ("locks_connections", locks.connections as u64),
        ("locks_leases", locks.leases as u64),
        ("locks_waiting", locks.waiting as u64),
    ];
    let counters = [
        ("bank_interest_paid_total", app.interest_paid.load(Relaxed)),
        ("locks_acquires_total", locks.acquires),
        ("locks_failures_total", locks.failures),
        ("locks_renewals_total", locks.renewals),
        ("locks_losses_total", locks.losses),
        ("locks_release_failures_total", locks.release_failures),
    ];
    let line = |kind| move |(name, value): (&str, u64)| format!("# TYPE {name} {kind}\n{name} {value}\n");
    let mut page: String = gauges.map(line("gauge")).concat() + &counters.map(line("counter")).concat();
    page.push_str("# TYPE locks_acquire_seconds summary\n");
    for quantile in [0.5, 0.9, 0.99] {
        let seconds = locks.acquire_latency.quantile(quantile).as_secs_f64();
        page.push_str(&format!("locks_acquire_seconds{{quantile=\"{quantile}\"}} {seconds}\n"));
    }
    page
}

/// The store. It does not rely on a lease, but on the fence that comes with the write.
#[derive(Default)]
pub(crate) struct Bank(Mutex<HashMap<String, Account>>);

#[derive(Clone, Copy, Serialize)]
pub(crate) struct Account {
    pub(crate) cents: u64,
    /// The highest fence that has written.
    pub(crate) fence: u64,
}

impl Default for Account {
    fn default() -> Self {
        Self { cents: 10_000, fence: 0 }
    }
}

impl Bank {
    /// Does in one transaction, for both accounts: `UPDATE account SET cents = $1, fence = $2 WHERE id = $3
    /// AND fence <= $2`
    pub(crate) fn transfer(&self, order: &Order, fences: [Fence; 2]) -> Result<Receipt, Refusal> {
        let mut accounts = self.accounts();
        let mut from = accounts.get(&order.from).copied().unwrap_or_default();
        let mut to = accounts.get(&order.to).copied().unwrap_or_default();
        for (account, fence) in [(&mut from, fences[0]), (&mut to, fences[1])] {
            if account.fence > fence.get() {
                return Err(Refusal::Lost("a later holder has written".into()));
            }
            account.fence = fence.get();
        }
        let poor = || Refusal::Bad(format!("there are only {} cents", from.cents));
        from.cents = from.cents.checked_sub(order.cents).ok_or_else(poor)?;
        to.cents = to.cents.checked_add(order.cents).ok_or_else(|| Refusal::Bad("too rich".into()))?;
        accounts.insert(order.from.clone(), from);
        accounts.insert(order.to.clone(), to);
        Ok(Receipt { from, to })
    }

    pub(crate) fn accounts(&self) -> MutexGuard<'_, HashMap<String, Account>> {
        // Nothing panics while it is locked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
