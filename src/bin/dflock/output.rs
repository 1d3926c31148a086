//! What `dflock` says on stderr. A thread of its own writes it, since a reader may have stopped
//! reading, or a terminal be halted by ^S: the lease must be renewed all the same. So lines are
//! best effort: they wait in a short line, and are dropped, and counted, where that is full.

use std::io::{self, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

/// More than is said in any run.
const WAITING: usize = 64;

/// How long the end waits for what was said to be written.
const PATIENCE: Duration = Duration::from_secs(1);

enum Piece {
    Text(String),
    /// Answered when everything before it is written.
    Mark(SyncSender<()>),
}

static WRITER: OnceLock<Option<SyncSender<Piece>>> = OnceLock::new();
static DROPPED: AtomicUsize = AtomicUsize::new(0);
static UNWRITTEN: AtomicUsize = AtomicUsize::new(0);
static MAY_BE_TOO_LONG: AtomicBool = AtomicBool::new(false);

/// Tells the user something, in one line, and does not wait for it to be read.
pub(crate) fn say(line: &str) {
    // In one piece: the command may be writing there as well.
    if !put(format!("dflock: {line}\n")) {
        DROPPED.fetch_add(1, SeqCst);
    }
}

/// Shows something that the next such text replaces, unless older text still waits to be written.
pub(crate) fn show(text: &str) {
    if UNWRITTEN.load(SeqCst) == 0 {
        put(text.to_owned());
    }
}

/// Takes away what was shown.
pub(crate) fn show_last(text: &str) {
    put(text.to_owned());
}

/// Waits until everything is written, but not for long.
pub(crate) fn flush() {
    // Without a writer, nothing waits.
    let Some(Some(writer)) = WRITER.get() else { return };
    let (tell, written) = sync_channel(1);
    if writer.try_send(Piece::Mark(tell)).is_ok() {
        let _ = written.recv_timeout(PATIENCE);
    }
}

/// Whether a write of ours is what may have brought the signal that a file has got too long.
pub(crate) fn may_be_too_long() -> bool {
    MAY_BE_TOO_LONG.load(SeqCst)
}

/// Whether there was room for the text.
fn put(text: String) -> bool {
    let writer = WRITER.get_or_init(|| {
        let (tell, pieces) = sync_channel(WAITING);
        let writer = thread::Builder::new().name("output".into()).spawn(move || write_all(&pieces));
        writer.is_ok().then_some(tell)
    });
    // Without threads there is no command either; the line says why.
    let Some(writer) = writer else {
        write(&text);
        return true;
    };
    UNWRITTEN.fetch_add(1, SeqCst);
    let has_room = writer.try_send(Piece::Text(text)).is_ok();
    if !has_room {
        UNWRITTEN.fetch_sub(1, SeqCst);
    }
    has_room
}

fn write_all(pieces: &Receiver<Piece>) {
    for piece in pieces {
        match piece {
            Piece::Text(text) => {
                write(&text);
                UNWRITTEN.fetch_sub(1, SeqCst);
                let dropped = DROPPED.swap(0, SeqCst);
                if dropped > 0 {
                    write(&format!("dflock: {dropped} more lines were dropped: stderr was not read\n"));
                }
            }
            Piece::Mark(tell) => {
                let _ = tell.send(());
            }
        }
    }
}

/// A stderr that is closed or full is no reason to stop.
fn write(text: &str) {
    MAY_BE_TOO_LONG.store(true, SeqCst);
    let outcome = io::stderr().write_all(text.as_bytes());
    let is_too_long = outcome.is_err_and(|error| error.kind() == io::ErrorKind::FileTooLarge);
    MAY_BE_TOO_LONG.store(is_too_long, SeqCst);
}
