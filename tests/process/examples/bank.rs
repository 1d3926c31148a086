//! What the bank of `axum_service` answers: never a write that another holder could have made.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header::RETRY_AFTER};
use axum::response::{IntoResponse, Response};
use dflockd_client::Fence;
use dflockd_client::test_util::TestServer;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::examples::axum_service::{App, Order, export, health, lead, transfer};

const HOUR: u64 = 3_600_000;

fn order(from: &str, to: &str, work_ms: u64) -> Order {
    Order { from: from.into(), to: to.into(), cents: 100, work_ms }
}

async fn ask(app: &App, order: Order) -> Response {
    transfer(State(app.clone()), Json(order)).await.into_response()
}

/// A transfer that is under way, and holds both its accounts.
async fn under_way(server: &TestServer, app: &App) -> tokio::task::JoinHandle<StatusCode> {
    let app = app.clone();
    let transfer = tokio::spawn(async move { ask(&app, order("a", "b", HOUR)).await.status() });
    server.wait_until_held("account:a").await;
    server.wait_until_held("account:b").await;
    transfer
}

#[tokio::test(start_paused = true)]
async fn a_transfer_moves_money_and_lets_go() {
    let server = TestServer::new();
    let app = App::new(server.locks());
    assert_eq!(ask(&app, order("a", "b", 5)).await.status(), StatusCode::OK);
    assert_eq!(ask(&app, order("b", "c", 60_000)).await.status(), StatusCode::OK);
    let cents = |id: &str| app.bank.accounts()[id].cents;
    assert_eq!([cents("a"), cents("b"), cents("c")], [9_900, 10_000, 10_100]);
}

#[tokio::test(start_paused = true)]
async fn a_busy_account_is_423_and_says_when_to_try_again() {
    let server = TestServer::new();
    let app = App::new(server.locks());
    let _first = under_way(&server, &app).await;
    let refused = ask(&app, order("b", "c", 0)).await;
    assert_eq!(refused.status(), StatusCode::LOCKED);
    assert!(refused.headers().contains_key(RETRY_AFTER));
}

#[tokio::test(start_paused = true)]
async fn a_transfer_whose_lease_is_lost_is_409_and_moves_nothing() {
    let server = TestServer::new();
    let app = App::new(server.locks());
    let transfer = under_way(&server, &app).await;
    server.expire_lease("account:b");
    assert_eq!(transfer.await.unwrap(), StatusCode::CONFLICT);
    assert!(app.bank.accounts().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_transfer_is_503_while_the_lock_server_is_away_and_works_again_after() {
    let server = TestServer::new();
    let app = App::new(server.locks());
    server.partition();
    assert_eq!(ask(&app, order("a", "b", 0)).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    server.heal();
    assert_eq!(ask(&app, order("a", "b", 0)).await.status(), StatusCode::OK);
    server.drain();
    assert_eq!(ask(&app, order("a", "b", 0)).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    server.restart().unwrap();
    assert_eq!(ask(&app, order("a", "b", 0)).await.status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn health_says_within_seconds_that_the_lock_server_is_away() {
    let server = TestServer::new();
    let app = App::new(server.locks());
    let ask =
        || async { timeout(Duration::from_secs(2), health(State(app.clone()))).await.expect("in time") };
    assert_eq!(ask().await.into_response().status(), StatusCode::OK);
    server.partition();
    assert_eq!(ask().await.into_response().status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test(start_paused = true)]
async fn a_transfer_that_comes_while_the_service_ends_is_503() {
    let locks = TestServer::new().locks();
    let app = App::new(locks.clone());
    locks.close().await.unwrap();
    assert_eq!(ask(&app, order("a", "b", 0)).await.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test(start_paused = true)]
async fn a_request_at_fault_is_422() {
    let app = App::new(TestServer::new().locks());
    for (from, to) in [("a", "a"), ("a b", "c")] {
        assert_eq!(ask(&app, order(from, to, 0)).await.status(), StatusCode::UNPROCESSABLE_ENTITY);
    }
}

#[tokio::test(start_paused = true)]
async fn the_store_refuses_a_writer_that_woke_up_too_late() {
    let server = TestServer::new();
    let app = App::new(server.locks());
    assert_eq!(ask(&app, order("a", "b", 0)).await.status(), StatusCode::OK);
    let before = Fence::new(app.bank.accounts()["a"].fence - 1);
    let late = app.bank.transfer(&order("a", "b", 0), [before, before]).map(Json).into_response();
    assert_eq!(late.status(), StatusCode::CONFLICT);
    assert_eq!(app.bank.accounts()["a"].cents, 9_900);
}

#[tokio::test(start_paused = true)]
async fn the_third_export_at_a_time_is_429() {
    let app = App::new(TestServer::new().locks());
    let ask = || async { export(State(app.clone())).await.into_response().status() };
    let statuses = tokio::join!(ask(), ask(), ask());
    let mut statuses = [statuses.0, statuses.1, statuses.2];
    statuses.sort_unstable();
    assert_eq!(statuses, [StatusCode::OK, StatusCode::OK, StatusCode::TOO_MANY_REQUESTS]);
}

#[tokio::test(start_paused = true)]
async fn one_instance_leads_and_another_takes_over_when_it_stops_or_loses_its_lease() {
    let server = TestServer::new();
    let (one, two) = (App::new(server.locks()), App::new(server.locks()));
    let (stop, stops) = watch::channel(());
    let first = tokio::spawn(lead(one.clone(), stops.clone()));
    server.wait_until_held("interest").await;
    tokio::spawn(lead(two.clone(), stops));
    let leads = |app: &App| app.leads.load(Relaxed);
    for (leader, other) in [(&one, &two), (&two, &one)] {
        sleep(Duration::from_secs(100)).await;
        assert!(leads(leader) && !leads(other));
        server.expire_lease("interest");
        // It hears of it by its next renewal.
        sleep(Duration::from_secs(20)).await;
    }
    assert!(leads(&one) && !leads(&two));
    drop(stop);
    timeout(Duration::from_secs(10), first).await.expect("it stops").unwrap();
    assert!(server.stats().locks.is_empty(), "{:?}", server.stats());
}
