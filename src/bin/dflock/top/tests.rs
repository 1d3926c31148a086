//! What `top` shows and what its keys do, on a screen in memory.

use std::time::Duration;

use dflockd_client::StatsResult;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent};
use tokio::time::Instant;

use super::model::Model;
use super::view::draw;
use crate::connection::StatsFailure;
use crate::exit::{Failure, UNAVAILABLE};

fn locks(of: &[(&str, i64, f64, u64)]) -> StatsResult {
    let locks = of.iter().map(|(key, owner, ttl, waiters)| {
        serde_json::json!({"key": key, "owner_conn_id": owner, "lease_expires_in_s": ttl, "waiters": waiters})
    });
    let json = serde_json::json!({
        "connections": 3, "locks": locks.collect::<Vec<_>>(), "semaphores": [],
        "idle_locks": [], "idle_semaphores": [],
    });
    StatsResult::from_json(&json.to_string()).expect("it is whole")
}

fn screen(model: &mut Model, now: Instant) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(90, 14)).expect("memory suffices");
    terminal.draw(|frame| draw(frame, model, now)).expect("memory suffices");
    let buffer = terminal.backend().buffer();
    let cells: Vec<_> = buffer.content().iter().map(|cell| cell.symbol()).collect();
    cells.chunks(90).map(|line| line.concat().trim_end().to_owned()).collect()
}

/// The keys in the order in which they are shown.
fn order(model: &mut Model, now: Instant) -> Vec<String> {
    let lines = screen(model, now);
    let inside = lines.iter().filter_map(|line| line.strip_prefix('│')).skip(1);
    inside
        .filter_map(|line| line.split_whitespace().next())
        .filter(|w| *w != "│")
        .map(str::to_owned)
        .collect()
}

fn press(model: &mut Model, code: KeyCode) -> bool {
    model.press(KeyEvent::from(code))
}

fn two_servers() -> Model {
    Model::new(["a:1".to_owned(), "b:2".to_owned()])
}

#[test]
fn keys_are_sorted_by_waiters_age_ttl_and_name_either_way() {
    let (start, mut model) = (Instant::now(), two_servers());
    model.told(0, Ok(locks(&[("x", 1, 9.0, 0)])), start);
    let now = start + Duration::from_secs(5);
    model.told(0, Ok(locks(&[("x", 1, 4.0, 1), ("y", 2, 20.0, 7)])), now);
    model.told(1, Ok(locks(&[("z", 1, 10.0, 3)])), now + Duration::from_secs(1));
    let now = now + Duration::from_secs(2);
    for (key, want) in
        [('a', ["x", "y", "z"]), ('t', ["x", "z", "y"]), ('k', ["x", "y", "z"]), ('w', ["y", "z", "x"])]
    {
        press(&mut model, KeyCode::Char(key));
        assert_eq!(order(&mut model, now), want, "{key}");
        press(&mut model, KeyCode::Char(key));
        let mut reversed = want;
        reversed.reverse();
        assert_eq!(order(&mut model, now), reversed, "{key} twice");
    }
}

#[test]
fn an_age_counts_from_when_the_holder_was_first_seen() {
    let (start, mut model) = (Instant::now(), two_servers());
    model.told(0, Ok(locks(&[("x", 1, 9.0, 0)])), start);
    let later = start + Duration::from_secs(8);
    model.told(0, Ok(locks(&[("x", 1, 9.0, 0), ("y", 2, 9.0, 0)])), later);
    let now = later + Duration::from_secs(3);
    let shown = screen(&mut model, now).join("\n");
    assert!(shown.contains("11s+"), "who held before we came is marked: {shown}");
    assert!(shown.contains(" 3s "), "{shown}");
    model.told(0, Ok(locks(&[("x", 5, 9.0, 0)])), now);
    assert!(screen(&mut model, now).join("\n").contains(" 0s "), "another holder starts anew");
}

#[test]
fn a_server_that_is_down_says_why_and_comes_back() {
    let (now, mut model) = (Instant::now(), two_servers());
    model.told(0, Ok(locks(&[("x", 1, 9.0, 0)])), now);
    let failed = |status, error: &str| {
        let failure = Failure::silent(UNAVAILABLE);
        Err(StatsFailure { status, error: error.to_owned(), failure })
    };
    model.told(1, failed("down", "connection refused"), now);
    let shown = screen(&mut model, now);
    assert!(shown[0].starts_with(" 0 a:1  up  3 connections, 1 key held"), "{shown:?}");
    assert_eq!(shown[1], " 1 b:2  down  connection refused");
    model.told(1, failed("denied", "a token is required"), now);
    assert_eq!(screen(&mut model, now)[1], " 1 b:2  denied  a token is required");
    model.told(1, Ok(locks(&[("y", 1, 9.0, 0)])), now);
    assert_eq!(order(&mut model, now), ["x", "y"]);
}

#[test]
fn tab_goes_from_all_servers_to_each_and_back() {
    let (now, mut model) = (Instant::now(), two_servers());
    model.told(0, Ok(locks(&[("x", 1, 9.0, 0)])), now);
    model.told(1, Ok(locks(&[("y", 1, 9.0, 0)])), now);
    for want in [&["x"][..], &["y"], &["x", "y"]] {
        press(&mut model, KeyCode::Tab);
        assert_eq!(order(&mut model, now), want);
    }
    press(&mut model, KeyCode::BackTab);
    assert_eq!(order(&mut model, now), ["y"]);
}

#[test]
fn a_long_list_is_scrolled_and_the_selection_stays_in_it() {
    let (now, mut model) = (Instant::now(), two_servers());
    let keys: Vec<_> = (0..40).map(|n| format!("key-{n:02}")).collect();
    let rows: Vec<_> = keys.iter().map(|key| (key.as_str(), 1, 9.0, 0)).collect();
    model.told(0, Ok(locks(&rows)), now);
    assert_eq!(order(&mut model, now)[0], "key-00");
    press(&mut model, KeyCode::End);
    assert_eq!(order(&mut model, now).last().map(String::as_str), Some("key-39"));
    press(&mut model, KeyCode::Up);
    screen(&mut model, now);
    assert_eq!(model.selected, 38);
}

#[test]
fn a_key_cannot_command_the_terminal() {
    let (now, mut model) = (Instant::now(), two_servers());
    model.told(0, Ok(locks(&[("x\u{1b}[2J", 1, 9.0, 0)])), now);
    assert!(screen(&mut model, now).join("").contains("x\\u{1b}[2J"));
}

#[test]
fn q_escape_and_control_c_end_it() {
    use ratatui::crossterm::event::KeyModifiers;
    let mut model = two_servers();
    assert!(press(&mut model, KeyCode::Char('q')));
    assert!(press(&mut model, KeyCode::Esc));
    assert!(model.press(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)));
    assert!(!press(&mut model, KeyCode::Char('c')));
}
