//! The signals that are passed on to the command: every one that would end `dflock` otherwise, and
//! with it the lock.

use std::io;
use std::thread;

use rustix::process::Signal;
use signal_hook::iterator::Signals as Handled;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::output;

/// More than any system has.
const NUMBERS: std::ops::RangeInclusive<i32> = 1..=128;

/// Those that do not end a process, that cannot be handled, or must not be because a fault of the
/// program's own may have raised them. `PIPE` is ignored, as by every program in Rust.
const LEFT_ALONE: [Signal; 13] = [
    Signal::KILL,
    Signal::STOP,
    Signal::ILL,
    Signal::FPE,
    Signal::SEGV,
    Signal::PIPE,
    Signal::CHILD,
    Signal::CONT,
    Signal::TSTP,
    Signal::TTIN,
    Signal::TTOU,
    Signal::URG,
    Signal::WINCH,
];

/// Those that have come.
pub(crate) struct Signals(UnboundedReceiver<Signal>);

impl Signals {
    /// Listens from now on. What was ignored when `dflock` was started stays ignored, by the command
    /// too: that is how `nohup` works.
    pub(crate) fn listen() -> io::Result<Self> {
        let ignored = ignored();
        let is_ignored = |signal: &Signal| {
            let bit = u32::try_from(signal.as_raw() - 1).ok().and_then(|bit| ignored.checked_shr(bit));
            bit.is_some_and(|bit| bit & 1 == 1)
        };
        let heeded = NUMBERS.filter_map(known).filter(|signal| !LEFT_ALONE.contains(signal));
        let heeded = heeded.filter(|signal| !is_ignored(signal)).map(Signal::as_raw);
        let mut handled = Handled::new(heeded)?;
        let (tell, coming) = unbounded_channel();
        // It ends with the process.
        thread::Builder::new().name("signals".into()).spawn(move || {
            let all = handled.forever().filter_map(known);
            let from_others = all.filter(|signal| *signal != Signal::XFSZ || !output::may_be_too_long());
            for signal in from_others {
                if tell.send(signal).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self(coming))
    }

    /// The next signal.
    ///
    /// # Cancel safety
    /// Dropping the future loses no signal.
    pub(crate) async fn next(&mut self) -> Signal {
        match self.0.recv().await {
            Some(signal) => signal,
            None => std::future::pending().await, // the thread has gone, and no signal comes any more
        }
    }
}

/// The signal of this number, a real-time one too, where the system has one that may be used.
#[cfg(target_os = "linux")]
fn known(number: i32) -> Option<Signal> {
    rustix_libc_wrappers::process::SignalExt::from_raw(number)
}

#[cfg(not(target_os = "linux"))]
fn known(number: i32) -> Option<Signal> {
    Signal::from_named_raw(number)
}

/// One bit for each ignored signal; none where the system does not tell.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
