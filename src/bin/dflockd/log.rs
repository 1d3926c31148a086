//! A log that never blocks and never fails: a bounded buffer, and a thread that writes it to stderr. Lines
//! that find no room, or that stderr refuses, are counted; the count is written as soon as stderr accepts
//! text again.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

/// The number of bytes that may wait for stderr.
const MAX_QUEUED_BYTES: usize = 256 * 1024;
/// The pause before the next try if stderr is non-blocking and full.
const RETRY_DELAY: Duration = Duration::from_millis(10);

/// A handle to the log. Clones write to the same log.
#[derive(Clone)]
pub(crate) struct Log(Arc<LogShared>);

#[derive(Default)]
struct LogShared {
    queue: Mutex<Queue>,
    /// Notified when text is queued, and when a batch is done.
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    text: Vec<u8>,
    /// The number of lines that found no room behind `text`.
    lost: u64,
    /// `true` while the thread writes a batch.
    writing: bool,
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.text.is_empty() && self.lost == 0
    }
}

impl LogShared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Never poisoned: no code panics while it holds the lock.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log {
    /// Starts the thread that writes to `out`.
    pub(crate) fn start(out: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::<LogShared>::default();
        let (queue, sink) = (shared.clone(), Sink { out, unreported: 0, mid_line: false });
        thread::Builder::new().name("log".into()).spawn(move || drain_queue(&queue, sink))?;
        Ok(Self(shared))
    }

    /// Queues text that ends with a newline. If there is no room, counts its lines as lost.
    pub(crate) fn write_line(&self, text: &[u8]) {
        let mut queue = self.0.queue();
        // After a loss, nothing is queued until the thread has taken the text before it. So the report is
        // written where the lines are missing.
        if queue.lost == 0 && queue.text.len() + text.len() <= MAX_QUEUED_BYTES {
            queue.text.extend_from_slice(text);
        } else {
            queue.lost += count_lines(text);
        }
        drop(queue);
        self.0.changed.notify_all();
    }

    /// Waits until all queued text is written or lost, for at most `timeout`.
    pub(crate) fn flush(&self, timeout: Duration) {
        let queue = self.0.queue();
        let pending = |queue: &mut Queue| queue.writing || !queue.is_empty();
        drop(self.0.changed.wait_timeout_while(queue, timeout, pending));
    }
}

/// Never fails: lines that cannot be written are counted.
impl Write for Log {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.write_line(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes what is queued, batch by batch, until the process ends.
fn drain_queue(shared: &LogShared, mut sink: Sink<impl Write>) {
    let mut batch = Vec::new();
    loop {
        let waited = shared.changed.wait_while(shared.queue(), |queue| queue.is_empty());
        let mut queue = waited.unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut queue.text, &mut batch);
        let lost = std::mem::take(&mut queue.lost);
        queue.writing = true;
        drop(queue);
        sink.report();
        sink.unreported += sink.write(&batch);
        sink.unreported += lost;
        sink.report();
        batch.clear();
        shared.queue().writing = false;
        shared.changed.notify_all();
    }
}

/// The output, with the number of lines that it refused.
struct Sink<W> {
    out: W,
    /// The number of lines that are lost and not reported yet.
    unreported: u64,
    /// `true` if the last write ended within a line.
    mid_line: bool,
}

impl<W: Write> Sink<W> {
    /// Writes the number of lost lines, if any. If that fails, the next call tries again.
    fn report(&mut self) {
        if self.unreported == 0 {
            return;
        }
        let mut line = if self.mid_line { String::from("\n") } else { String::new() };
        // Writing to a string cannot fail.
        let _ = SystemTime.format_time(&mut Writer::new(&mut line));
        line += &format!("  WARN dflockd: log lines lost: {}; stderr did not accept them\n", self.unreported);
        if self.write(line.as_bytes()) == 0 {
            self.unreported = 0;
        }
    }

    /// Returns the number of lines of `text` that were not written whole.
    fn write(&mut self, text: &[u8]) -> u64 {
        let mut rest = text;
        while !rest.is_empty() {
            match self.out.write(rest) {
                Ok(0) => break,
                Ok(n) => rest = &rest[n..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(RETRY_DELAY),
                Err(_) => break,
            }
        }
        let written = &text[..text.len() - rest.len()];
        if let Some(last) = written.last() {
            self.mid_line = *last != b'\n';
        }
        count_lines(rest)
    }
}

fn count_lines(text: &[u8]) -> u64 {
    text.iter().filter(|byte| **byte == b'\n').count() as u64
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// Longer than any step takes on the slowest machine.
    const TEST_TIMEOUT: Duration = Duration::from_secs(60);

    /// A writer that sends each text to the test, and receives the outcome of the write from it.
    struct Scripted {
        asked: Sender<String>,
        outcomes: Receiver<io::Result<usize>>,
    }

    impl Write for Scripted {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            let _ = self.asked.send(String::from_utf8_lossy(text).into_owned());
            // After the end of the test, every write succeeds.
            self.outcomes.recv().unwrap_or(Ok(text.len())).map(|n| n.min(text.len()))
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const ALL: io::Result<usize> = Ok(usize::MAX);

    fn start() -> (Log, Receiver<String>, Sender<io::Result<usize>>) {
        let ((asked, writes), (answer, outcomes)) = (channel(), channel());
        (Log::start(Scripted { asked, outcomes }).unwrap(), writes, answer)
    }

    #[track_caller]
    fn next(writes: &Receiver<String>) -> String {
        writes.recv_timeout(TEST_TIMEOUT).expect("the thread writes")
    }

    #[test]
    fn a_stuck_writer_blocks_nobody_and_the_loss_is_reported_where_it_was() {
        let (log, writes, answer) = start();
        log.write_line(b"first\n");
        assert_eq!(next(&writes), "first\n");
        // The writer is stuck from here on.
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        let fitting = MAX_QUEUED_BYTES / line.len();
        (0..fitting + 100).for_each(|_| log.write_line(&line));
        log.write_line(b"short, and lost all the same\n");
        log.flush(Duration::from_millis(1));
        answer.send(ALL).unwrap();
        assert_eq!(next(&writes).lines().count(), fitting);
        log.write_line(b"after\n");
        answer.send(ALL).unwrap();
        let report = next(&writes);
        assert!(
            report.ends_with("WARN dflockd: log lines lost: 101; stderr did not accept them\n"),
            "{report}"
        );
        answer.send(ALL).unwrap();
        assert_eq!(next(&writes), "after\n");
        answer.send(ALL).unwrap();
        log.flush(TEST_TIMEOUT);
        assert!(log.0.queue().is_empty() && !log.0.queue().writing);
    }

    #[test]
    fn refused_lines_are_counted_until_a_report_of_them_is_taken() {
        let (log, writes, answer) = start();
        let full = || Err(io::Error::from(io::ErrorKind::StorageFull));
        log.write_line(b"one\n");
        next(&writes);
        answer.send(full()).unwrap();
        assert!(next(&writes).contains("lost: 1;"));
        log.write_line(b"two\nthree\nfour\n");
        answer.send(full()).unwrap();
        assert!(next(&writes).contains("lost: 1;"), "with the next lines, once more");
        answer.send(full()).unwrap();
        // The write ends within "three", so "three" and "four" are lost.
        assert_eq!(next(&writes), "two\nthree\nfour\n");
        answer.send(Ok(6)).unwrap();
        assert_eq!(next(&writes), "ree\nfour\n");
        answer.send(full()).unwrap();
        let report = next(&writes);
        assert!(report.starts_with('\n') && report.contains("lost: 3;"), "{report:?}");
        answer.send(ALL).unwrap();
        log.write_line(b"five\n");
        assert_eq!(next(&writes), "five\n");
        answer.send(ALL).unwrap();
        log.flush(TEST_TIMEOUT);
    }

    #[test]
    fn a_busy_or_interrupted_stderr_is_tried_again() {
        let (log, writes, answer) = start();
        log.write_line(b"line\n");
        for kind in [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted] {
            assert_eq!(next(&writes), "line\n");
            answer.send(Err(kind.into())).unwrap();
        }
        assert_eq!(next(&writes), "line\n");
        answer.send(ALL).unwrap();
        log.flush(TEST_TIMEOUT);
        assert!(writes.try_recv().is_err(), "nothing is lost, nothing reported");
    }
}
