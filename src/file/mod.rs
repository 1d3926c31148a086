//! A lock file: leases for programs that share a file system, NFS included, and no server.
//!
//! [`FileLock`] speaks the format and the algorithm of Python's `flufl.lock` 10.0.0, so that both
//! contend for one path: each waits for, describes and breaks the other's lock. Nothing here knows of
//! a server.
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
//! Each contender writes a *claim file* beside the lock file, named
//! `<lock file>|<host>|<process>|<random number>` (on Windows with `^`), whose text is its own path.
//! To take the lock is to `link` the claim to the lock file's path: it fails where something stands
//! there, on any file system, over NFS too. So a lock is held when the lock file has two links and
//! its text names the holder. It ends at the file's modification time, which the holder sets ahead, in
//! whole seconds. Locks by `flock` or `fcntl`, `O_EXCL` and change notifications play no part, since
//! NFS breaks each of them somewhere; a `link` that reports an error counts if it has happened.
//!
//! # What it promises
//!
//! - **One holder at a time**, as long as holders finish or refresh within the lifetime, and clocks
//!   differ by no more than the [slop](Builder::slop). As with any lease, a process that was stopped
//!   in the middle of its work knows nothing of the time that has passed, and a file has no fence to
//!   stop it with: where that matters, take a lock from a server.
//! - **A dead holder's lock is broken** when its lifetime and the slop are over, not before, by
//!   whoever comes next.
//! - **What is no lock is never touched**: a file whose text has not the four fields of a claim stays
//!   as it is, and whoever wants the lock times out.
//! - **Nothing is left behind** by an error, a timeout or a dropped future. Of what the dead have left,
//!   the next breaker takes away the broken lock's claim, and those whose process is known to be dead.
//! - **What may be a living one's stays.** A process number says nothing in another container, and a
//!   host's name may be several machines': see "Who is dead".
//! - **No order.** Waiters poll, each with pauses of its own from 1 ms up to
//!   [`poll`](Builder::poll), so that luck decides who is next. A dflockd server hands out in order.
//!
//! # Breaking, and why it yields one holder
//!
//! To remove an expired lock file by its name is to remove whatever has come to stand there since it
//! was looked at. Two breakers that find the same lock expired can so remove each other's new lock.
//! No file system removes a file on the condition that it is still the same one. But it does move a
//! file on the condition that the *moved* one is still there, and so the right to break is a file:
//!
//! 1. *Challenge*: link the claim to `<claim>|break`. It is the breaker's alone, and all can see it.
//! 2. *Survey*: list the directory. Another's challenge stands: withdraw (remove one's own) if its
//!    name comes first, or else wait and survey again. One whose time is over is removed: its owner
//!    is taken for dead.
//! 3. *Judge*: none stands. Open the lock file; if it has not expired, or is none, withdraw. Set its
//!    end ahead by the lifetime, and remember file, text and end.
//! 4. *Settle*: wait 50 ms, and look again. Anything has changed: withdraw.
//! 5. *Fire*: rename the challenge to the lock file's path. It takes the old one's place in one step,
//!    with two links and the breaker's text: the lock is taken, and was never free.
//!
//! **Claim**: between a breaker's last look (step 4) and its successful rename (step 5), no other
//! breaker replaces the lock file. Say that E and D both fire, and D does so between E's look and E's
//! rename. A challenge that fires has stood from its link to its rename. E's has stood since before
//! E's survey, until after D's rename; D's since before D's survey, until its rename, which comes after
//! E's look and so after E's survey. Either D's survey came after E's link: then D has seen E's
//! challenge, and has waited, withdrawn, or removed it, so that one of the two does not fire. Or it
//! came before E's link, and so D's link before E's survey: then E has seen D's, and the same holds.
//! Both contradict. No clock occurs in this argument; that a breaker is slow, stopped or taken for dead
//! while it lives makes its rename fail, since its source is gone.
//!
//! Besides breakers, two others change a lock file. Whoever links a claim needs a free path, and a path
//! where a lock stands is not. The holder itself might come back late: it leaves by removing the file
//! only while its lifetime runs, when nobody can have judged it expired. Past that, it sets the end
//! ahead, lists the directory, and goes on only if no challenge stands and the lock is still its own:
//! whoever judges later finds it fresh, and whoever judged before has a challenge standing from before
//! its judgement until it fires. (`refresh` does this too.) What remains is a holder that is stopped for
//! longer than the slop between looking at the clock and the very next call of its `unlock`.
//!
//! **With Python in the mix** it is never worse than Python alone. Python's breakers know of no
//! challenges: they set the end ahead, and remove. Step 3 makes the lock look fresh to those that come
//! later, as Python's own first step does; those that came before are done long before step 4 is over,
//! and what they did is a change that step 4 sees. Among themselves they are as they are.
//!
//! **Over NFS**, `link`, `rename` and `unlink` are each one step on the server, a directory that this
//! client has just changed is listed anew, and an opened file is described anew. A rename that is
//! answered twice may report an error: what counts is what stands at the path then. One thing to know:
//! a client whose other processes have the old lock file open at the instant of the rename moves it
//! aside first, which leaves the path free for as long as a round trip takes; contenders open a lock
//! file only when it has expired, and for microseconds.
//!
//! A breaker that crashes leaves its challenge, and others wait for 5 s and the slop before they
//! remove it.
//!
//! # Who is dead
//!
//! A lock is broken by its end alone, whoever is said to hold it. Only two things ask whether a process
//! lives: [`LockState::Stale`], and the cleaning after a break. Both want to know for certain, which the
//! host's name and the process number do not tell: containers share names, and count their processes
//! from 1 each; machines without a name are all called `localhost`. So the random number in a claim
//! that this crate makes begins with a mark, 28 bits of a checksum of the kernel's boot id and the
//! namespace of process numbers (Linux). A claim with this process's own mark was made by a process of
//! this kernel, since it was started, and in this namespace: only then its number counts. In all other
//! cases the process is taken to live: the lock is not called stale, and the claim stays. That goes for
//! every claim of Python's, for those from before a restart of the machine, and, on other systems than
//! Linux, for all claims but this process's own. What so remains for good is a small file, which no
//! contender minds; it may be removed by hand. (Two machines that were restored from one image of their
//! memory have the mark in common: give them two names.)
//!
//! # From `flufl.lock`, name by name
//!
//! | There | Here | What differs |
//! |---|---|---|
//! | `Lock(lockfile, lifetime, separator, default_timeout)` | [`FileLock::builder`]`(path)` with [`lifetime`](Builder::lifetime), [`separator`](Builder::separator), [`default_timeout`](Builder::default_timeout), and [`build`](Builder::build) | a path is made absolute, so that a change of directory does no harm; what cannot work fails in `build`, such as a separator in the path, which would make a lock that nobody can break |
//! | `lock(timeout)` | [`FileLock::lock`] | pauses grow from 1 ms to 250 ms ([`poll`](Builder::poll)) instead of up to 2 s; an expired lock is broken within the timeout of a single try |
//! | no equal | [`FileLock::try_lock`], [`FileLock::acquire`] | |
//! | `unlock()`, `unlock(unconditionally=True)` | [`FileLock::unlock`], [`FileLock::unlock_unconditionally`] | a lock that has expired is left only if nobody is breaking it |
//! | `refresh(lifetime)`, `refresh(…, unconditionally=True)` | [`FileLock::refresh`], [`FileLock::refresh_unconditionally`] | the same |
//! | `is_locked` | [`FileLock::is_locked`] | it refreshes as well, hence it can fail |
//! | `with lock:` | [`FileLock::acquire`], and drop | dropping a `FileLock` leaves its lock; Python's garbage collector does not |
//! | `details` | [`FileLock::details`] → [`Details`] | named fields |
//! | `state`, `LockState` | [`FileLock::state`], [`LockState`] | the same six; `Ours` and `Stale` only of claims that this crate has made, and known for certain, where Python goes by the process number; a file that cannot be read is an error |
//! | `expiration` | [`FileLock::expiration`] | [`NotLocked`](crate::ErrorKind::NotLocked) where there is no file |
//! | `lifetime` | [`FileLock::lifetime`], [`FileLock::set_lifetime`] | at least 1 s |
//! | `lockfile`, `claimfile`, `hostname` | [`FileLock::lockfile`], [`FileLock::claimfile`], [`FileLock::hostname`] | the host's name can be [set](Builder::hostname) |
//! | `retry_errnos` (get, set, delete) | [`Builder::retry_errnos`], [`FileLock::retry_errnos`] | set once; it governs every reading of the lock file, `details` and `state` included |
//! | overriding `_now` | [`Builder::clock`] | |
//! | `CLOCK_SLOP` | [`Builder::slop`] | can be set |
//! | `DEFAULT_LOCK_LIFETIME`, `SEP` | the defaults of the builder, [`SEPARATOR`] | |
//! | `LockError` | [`Error`](crate::Error) | it names the operation and the path, and keeps the cause |
//! | `AlreadyLockedError` | [`ErrorKind::AlreadyLocked`](crate::ErrorKind::AlreadyLocked) | |
//! | `NotLockedError` | [`ErrorKind::NotLocked`](crate::ErrorKind::NotLocked) | |
//! | `TimeOutError` | [`ErrorKind::Timeout`](crate::ErrorKind::Timeout), [`Error::is_busy`](crate::Error::is_busy) | |
//! | `OSError` | [`ErrorKind::Io`](crate::ErrorKind::Io) | |
//! | logger `flufl.lock` | `tracing` | that a lock is broken is told at info, the rest at debug |
//!
//! Every method that touches files has a twin in `_async`, whose calls run off the reactor, at most 16
//! at a time in a process: a thousand tasks on one path start no thousand threads. (A file server that
//! hangs holds up those behind it, for as long as it hangs.)
//!
//! # Windows
//!
//! The calls are there for Windows as well, and `^` is the separator. Which processes live is not
//! known there: all count as living, so that [`LockState::Stale`] never shows, and claims that dead
//! waiters left behind stay.

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
