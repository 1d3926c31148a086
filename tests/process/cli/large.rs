//! Tables as large as a server may have them.

use crate::cli::support::run;
use crate::cli::terminal::Terminal;
use crate::dflockd::{Dflockd, Wire};

/// More than a megabyte of table.
const KEYS: usize = 20_000;

fn crowded() -> (Dflockd, Wire) {
    let server = Dflockd::start(&["--max-locks", "30000"], &[]);
    let mut wire = Wire::open(server.address);
    // A part at a time, so that neither side waits for the other to read.
    for first in (0..KEYS).step_by(500) {
        let requests: String = (first..first + 500).map(|n| format!("l\nkey-{n:05}\n0 3600\n")).collect();
        wire.send(&requests);
        for _ in 0..500 {
            assert!(wire.line().starts_with("ok "));
        }
    }
    (server, wire)
}

#[test]
fn a_long_table_is_told_whole() {
    let (server, _holder) = crowded();
    let told = run(&server, &["stats"]);
    assert_eq!((told.code, told.out.lines().count()), (Some(0), KEYS + 2), "{}", told.err);
    assert!(told.out.ends_with("2 connections, 20,000 keys held, 0 waiting, 0 idle\n"));
    let told = run(&server, &["stats", "--json"]);
    let told: serde_json::Value = serde_json::from_str(&told.out).expect("it is JSON");
    assert_eq!(told["locks"].as_array().map(Vec::len), Some(KEYS));
}

#[test]
fn the_full_screen_cuts_a_long_table_and_says_so() {
    let Some(terminal) = Terminal::open() else { return };
    let (server, _holder) = crowded();
    terminal.enters(&server, "dflock top; echo code $?");
    let screen = terminal.shows(" 20,000 keys, all servers, the first 1,000, 19,000 more not shown ");
    assert!(screen.contains("  up  ") && !screen.contains("down"), "{screen}");
    terminal.press("q");
    terminal.shows("code 0");
}
