//! What is shown on a terminal while the lock is waited for. Knows nothing of locks.

use std::io::{self, IsTerminal};
use std::pin::pin;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::exit::one_line;
use crate::output;

/// A wait that is over sooner is not worth a word.
const SHORT: Duration = Duration::from_millis(300);

const FRAMES: [&str; 10] = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];
const FRAME: Duration = Duration::from_millis(120);

/// Back to the start of the line, of which nothing remains.
const CLEAR: &str = "\r\u{1b}[K";

/// Waits, and on a terminal shows that it does.
pub(crate) async fn waiting<T>(what: &str, acquire: impl Future<Output = T>) -> T {
    let mut acquire = pin!(acquire);
    if !io::stderr().is_terminal() {
        return acquire.await;
    }
    tokio::select! {
        outcome = &mut acquire => return outcome,
        () = sleep(SHORT) => {}
    }
    let (what, since, cleared) = (one_line(&what), Instant::now() - SHORT, Cleared);
    let mut frames = interval(FRAME);
    frames.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let outcome = loop {
        tokio::select! {
            outcome = &mut acquire => break outcome,
            _ = frames.tick() => {
                let waited = since.elapsed();
                let frame = FRAMES[(waited.as_millis() / FRAME.as_millis()) as usize % FRAMES.len()];
                let text = format!("{frame} waiting for {what} ({}s)", waited.as_secs());
                output::show(&format!("{CLEAR}{}", cut(&text, columns())));
            }
        }
    };
    drop(cleared);
    // The command finds a clean line, if the terminal is not halted.
    let _ = spawn_blocking(output::flush).await;
    outcome
}

/// The line is left clean, however the wait ends.
struct Cleared;

impl Drop for Cleared {
    fn drop(&mut self) {
        output::show_last(CLEAR);
    }
}

fn columns() -> usize {
    columns_of(rustix::termios::tcgetwinsize(io::stderr()).map_or(0, |size| size.ws_col))
}

/// A terminal that was told no size, as on a serial line, says 0.
fn columns_of(told: u16) -> usize {
    if told == 0 { 80 } else { told.into() }
}

/// As much of the text as goes into a line, its last column left free.
fn cut(text: &str, columns: usize) -> String {
    if text.width() < columns {
        return text.to_owned();
    }
    let mut room = columns.saturating_sub(2);
    let fits = text.chars().take_while(|c| {
        let width = c.width().unwrap_or(0);
        let fits = width <= room;
        room = room.saturating_sub(width);
        fits
    });
    fits.chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_without_a_size_is_an_ordinary_one() {
        assert_eq!((columns_of(0), columns_of(1), columns_of(132)), (80, 1, 132));
    }

    #[test]
    fn a_line_is_cut_to_the_terminal() {
        assert_eq!(cut("abc", 4), "abc");
        assert_eq!(cut("abcd", 4), "ab…");
        assert_eq!(cut("鍵鍵鍵", 6), "鍵鍵…");
        assert_eq!(cut("abc", 1), "…");
    }
}
