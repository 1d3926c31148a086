//! A lock file: leases for programs that share a file system, NFS included, and no server.
//!
//! [`FileLock`] follows the format and the algorithm of Python's `flufl.lock` 10.0.0: programs in both
//! languages contend for one path, and each waits for, describes and breaks the other's lock.
//!
//! ```
//! use dflockd_client::FileLock;
//! use std::time::Duration;
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
//! # let dir = tempfile::tempdir().unwrap();
//! # let path = dir.path().join("report.lck");
//! let lock = FileLock::builder(&path).lifetime(Duration::from_secs(30)).build()?;
//!
//! // In a task: a guard, refreshed in the background.
//! let guard = lock.acquire().await?;
//! guard.run(async { /* one process on all machines gets here at a time */ }).await;
//! guard.release().await?;
//!
//! // In a thread.
//! lock.lock(Duration::from_secs(5))?;
//! lock.unlock()?;
//! # Ok(()) }
//! ```
//!
//! # What stands on the disk
//!
//! Each contender writes a *claim file* beside the lock file, named `<lock file>|<host>|<process>|<random
//! number>` (on Windows with `^`), whose text is its own path. To take the lock is to `link` the claim to
//! the lock file's path: if something stands there, the link fails, on any file system, over NFS too. A
//! lock is held while the lock file has two links and its text names the holder. It expires at the file's
//! modification time, which the holder sets ahead, in whole seconds. Locks by `flock` or `fcntl`,
//! `O_EXCL` and change notifications play no part, since NFS breaks each of them somewhere. A `link` that
//! reports an error counts if it has happened.
//!
//! # What it promises
//!
//! - **One holder at a time**, as long as holders finish or refresh within the lifetime, and clocks
//!   differ by no more than the [slop](Builder::slop). As with any lease, a process that was stopped in
//!   the middle of its work does not notice the time that has passed, and a file has no fence to stop it
//!   with. If that matters, take a lock from a server.
//! - **A dead holder's lock is broken** by the next contender, once its lifetime and the slop have
//!   passed, and not before.
//! - **What is no lock is never touched**: a file whose text does not have the four fields of a claim
//!   stays as it is, and contenders time out.
//! - **Nothing is left behind** by an error, a timeout or a dropped future. Of the files that dead
//!   processes have left, the next breaker removes the broken lock's claim, and each claim whose process
//!   is known to be dead.
//! - **A claim whose process may be alive stays.** A process number means nothing in another container,
//!   and several machines may share a host name: see "Which processes are dead".
//! - **No order.** Each waiter polls with pauses of its own, from 1 ms up to [`poll`](Builder::poll), so
//!   chance decides which one is next. A dflockd server grants in order.
//!
//! # Why breaking yields one holder
//!
//! A breaker that removes an expired lock file by its name removes the file that stands there now, which
//! may not be the one that it has looked at. Two breakers that find the same lock expired can remove each
//! other's new lock in this way. No file system removes a file on the condition that it is still the same
//! one. But it does move a file on the condition that the *moved* one is still there. So the right to
//! break is a file:
//!
//! 1. *Challenge*: link the claim to `<claim>|break`. Only the breaker has it, and all contenders can see
//!    it.
//! 2. *Survey*: list the directory. If another challenge stands, withdraw (remove the own challenge) if
//!    the other one's name comes first, or else wait and survey again. Remove a challenge that has
//!    expired: its owner is taken for dead.
//! 3. *Judge*: no other challenge stands. Open the lock file; if it has not expired, or is not a lock,
//!    withdraw. Set its end ahead by the lifetime, and remember file, text and end.
//! 4. *Settle*: wait 50 ms, and look again. If anything has changed, withdraw.
//! 5. *Fire*: rename the challenge to the lock file's path. It replaces the old one in one step, with two
//!    links and the breaker's text: the lock is taken, and was never free.
//!
//! **Claim**: between a breaker's last look (step 4) and its successful rename (step 5), no other breaker
//! replaces the lock file. Suppose that E and D both fire, and D does so between E's look and E's rename.
//! A challenge that fires has stood from its link to its rename. E's challenge has stood since before E's
//! survey, until after D's rename; D's since before D's survey, until its rename, which comes after E's
//! look and therefore after E's survey. If D's survey came after E's link, D has seen E's challenge, and
//! has waited, withdrawn, or removed it, so that one of the two does not fire. If it came before E's
//! link, then D's link came before E's survey: E has seen D's challenge, and the same holds. Both cases
//! contradict the assumption. No clock occurs in this argument: if a breaker is slow, stopped or taken
//! for dead while it lives, its rename fails, since its source is gone.
//!
//! Besides breakers, two others change a lock file. A contender that links a claim needs a free path, and
//! a path where a lock stands is not free. The holder itself might come back late. While its lifetime
//! runs, no breaker can have judged the lock expired, and the holder leaves by removing the file. Past
//! that, it sets the end ahead, lists the directory, and goes on only if no challenge stands and the lock
//! is still its own: a breaker that judges later finds the lock fresh, and the challenge of one that
//! judged before stands from before its judgement until it fires. (`refresh` does this too; while a
//! challenge stands, the holder waits up to a second, between steps and not within one.) One gap remains:
//! a holder that is stopped for longer than the slop between looking at the clock and the very next call
//! of its `unlock`.
//!
//! **With Python contenders as well** it is never worse than with Python's alone. Python's breakers know
//! no challenges: they set the end ahead, and remove. To those that come later, step 3 makes the lock
//! look fresh, as Python's own first step does. Those that came before finish long before step 4 ends,
//! and step 4 sees what they changed. Between two of Python's breakers nothing changes.
//!
//! **Over NFS**, `link`, `rename` and `unlink` are each one step on the server, a directory that this
//! client has just changed is listed anew, and an opened file is described anew. A rename that the server
//! runs twice may report an error: the file that stands at the path afterwards counts. If other processes
//! of a client have the old lock file open at the instant of the rename, that client moves it aside
//! first, which leaves the path free for a round trip. Contenders open a lock file only when it has
//! expired, and for microseconds.
//!
//! If a breaker crashes, its challenge stays, and other contenders wait for 5 s and the slop before they
//! remove it.
//!
//! # Which processes are dead
//!
//! Only its end decides whether a lock is broken, whichever holder it names. Two other things depend on
//! whether a process lives: [`LockState::Stale`], and the cleaning after a break. Both need certainty,
//! which the host's name and the process number do not give: containers share names, and each counts its
//! processes from 1; machines without a name are all called `localhost`. So the random number in a claim
//! that this crate makes begins with a mark, 28 bits of a checksum of the kernel's boot id and the
//! namespace of process numbers (Linux). A claim with this process's own mark was made by a process of
//! this kernel, since it was started, and in this namespace: only then its number counts. In all other
//! cases the process is taken to live: the lock is not called stale, and the claim stays. This applies to
//! every claim of Python's, to claims from before a restart of the machine, and, on other systems than
//! Linux, to all claims but this process's own. A small file remains forever, which disturbs no
//! contender; it may be removed by hand. (Two machines that were restored from one image of their memory
//! have the same mark: give them two names.)
//!
//! # From `flufl.lock`, name by name
//!
//! | There | Here | What differs |
//! |---|---|---|
//! | `Lock(lockfile, lifetime, separator, default_timeout)` | [`FileLock::builder`]`(path)` with [`lifetime`](Builder::lifetime), [`separator`](Builder::separator), [`default_timeout`](Builder::default_timeout), and [`build`](Builder::build) | a path is made absolute, so that a change of directory does no harm; settings that cannot work fail in `build`, such as a separator in the path, which would make a lock that no contender can break |
//! | `lock(timeout)` | [`FileLock::lock`] | pauses grow from 1 ms to 250 ms ([`poll`](Builder::poll)) instead of up to 2 s; an expired lock is broken within the timeout of a single try |
//! | no counterpart | [`FileLock::try_lock`], [`FileLock::acquire`] | |
//! | `unlock()`, `unlock(unconditionally=True)` | [`FileLock::unlock`], [`FileLock::unlock_unconditionally`] | a lock that has expired is left only if no contender is breaking it |
//! | `refresh(lifetime)`, `refresh(…, unconditionally=True)` | [`FileLock::refresh`], [`FileLock::refresh_unconditionally`] | the same |
//! | `is_locked` | [`FileLock::is_locked`] | it refreshes as well, so it can fail |
//! | `with lock:` | [`FileLock::acquire`], and drop | dropping a `FileLock` leaves its lock; Python's garbage collector does not |
//! | `details` | [`FileLock::details`] → [`Details`] | named fields |
//! | `state`, `LockState` | [`FileLock::state`], [`LockState`] | the same six; `Ours` and `Stale` only for claims that this crate has made, and known for certain, while Python relies on the process number; a file that cannot be read is an error |
//! | `expiration` | [`FileLock::expiration`] | [`NotLocked`](crate::ErrorKind::NotLocked) if there is no file |
//! | `lifetime` | [`FileLock::lifetime`], [`FileLock::set_lifetime`] | at least 1 s |
//! | `lockfile`, `claimfile`, `hostname` | [`FileLock::lockfile`], [`FileLock::claimfile`], [`FileLock::hostname`] | the host's name can be [set](Builder::hostname) |
//! | `retry_errnos` (get, set, delete) | [`Builder::retry_errnos`], [`FileLock::retry_errnos`] | set once; it applies to every reading of the lock file, `details` and `state` included |
//! | overriding `_now` | [`Builder::clock`] | |
//! | `CLOCK_SLOP` | [`Builder::slop`] | can be set |
//! | `DEFAULT_LOCK_LIFETIME`, `SEP` | the defaults of the builder, [`SEPARATOR`] | |
//! | `LockError` | [`Error`](crate::Error) | it names the operation and the path, and keeps the cause |
//! | `AlreadyLockedError` | [`ErrorKind::AlreadyLocked`](crate::ErrorKind::AlreadyLocked) | |
//! | `NotLockedError` | [`ErrorKind::NotLocked`](crate::ErrorKind::NotLocked) | |
//! | `TimeOutError` | [`ErrorKind::Busy`](crate::ErrorKind::Busy) | |
//! | `OSError` | [`ErrorKind::Io`](crate::ErrorKind::Io) | |
//! | logger `flufl.lock` | `tracing` | a broken lock is logged at info, the rest at debug |
//!
//! Every method that touches files has a counterpart in `_async`, whose calls run off the reactor, at
//! most 16 at a time in a process: a thousand tasks on one path do not start a thousand threads. (While a
//! file server hangs, the calls to it delay all others.)
//!
//! # Windows
//!
//! The lock works on Windows as well, with `^` as the separator. It is not known there which processes
//! live: all count as living, so [`LockState::Stale`] is never returned, and claims that dead waiters
//! left behind stay.

mod async_api;
mod attempt;
mod backoff;
mod breaking;
mod builder;
mod contender;
mod disk;
pub(crate) mod engine;
mod host;
mod lock;
mod mark;
mod name;
mod offload;
mod query;
mod settings;
mod slot;
mod steps;

#[cfg(feature = "client")]
pub(crate) use async_api::MIN_GUARD_LIFETIME;
pub use builder::{Builder, SEPARATOR};
#[cfg(feature = "client")]
pub(crate) use builder::{DEFAULT_LIFETIME, MAX_NAME_BYTES};
pub use lock::FileLock;
pub use query::{Details, LockState};
