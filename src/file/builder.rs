//! The builder of a lock file, and the checks of its settings.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::error::{Error, Result};
use crate::file::host;
use crate::file::lock::FileLock;
use crate::file::mark::Mark;
use crate::file::name;
use crate::file::settings::{Clock, Settings, check_lifetime};
use crate::lease::{EventHandler, LeaseConfig, LeaseEvent};
use crate::types::Key;

/// The separator of a claim's fields on this platform: `|`, on Windows `^`.
pub const SEPARATOR: &str = if cfg!(windows) { "^" } else { "|" };

/// The longest file name, in bytes, that file systems accept.
pub(crate) const MAX_NAME_BYTES: usize = 255;

/// How long a lock is kept unless refreshed, unless set.
pub(crate) const DEFAULT_LIFETIME: Duration = Duration::from_secs(15);

/// The settings of a [`FileLock`]. They are checked in [`build`](Self::build); no file is touched before.
///
/// ```
/// use std::time::Duration;
/// use dflockd_client::FileLock;
/// let lock = FileLock::builder("/var/lock/report.lck")
///     .lifetime(Duration::from_secs(30))
///     .default_timeout(Duration::from_secs(5))
///     .hostname("worker-3")
///     .build()?;
/// assert_eq!(lock.hostname(), "worker-3");
/// # Ok::<(), dflockd_client::Error>(())
/// ```
#[derive(Clone)]
#[must_use = "a builder does nothing until it is built"]
pub struct Builder {
    lockfile: PathBuf,
    /// What errors and logs call the lock, if not by its path.
    key: Option<Key>,
    lifetime: Duration,
    separator: String,
    default_timeout: Option<Duration>,
    hostname: Option<String>,
    retry_errnos: Vec<i32>,
    clock: Arc<Clock>,
    poll: Duration,
    slop: Duration,
    lease_config: LeaseConfig,
    /// Where this process runs; only tests set something else.
    mark: Option<Mark>,
}

impl Builder {
    pub(super) fn new(lockfile: PathBuf) -> Self {
        Self {
            lockfile,
            key: None,
            lifetime: DEFAULT_LIFETIME,
            separator: SEPARATOR.to_owned(),
            default_timeout: None,
            hostname: None,
            retry_errnos: Vec::new(),
            clock: Arc::new(SystemTime::now),
            poll: Duration::from_millis(250),
            slop: Duration::from_secs(10),
            lease_config: LeaseConfig::default(),
            mark: None,
        }
    }

    /// Sets how long the lock lasts unless it is refreshed: at least 1 s. Other contenders break it once
    /// it has expired and the slop has passed. The end falls on a whole second, up to one earlier.
    /// Defaults to 15 s.
    pub fn lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = lifetime;
        self
    }

    /// Sets what separates the fields of a claim's name; all contenders use the same one. It may occur
    /// neither in the path nor in the host's name, and has no digit, slash, whitespace or control
    /// character. Defaults to `|`, on Windows to `^`.
    pub fn separator(mut self, separator: impl Into<String>) -> Self {
        self.separator = separator.into();
        self
    }

    /// Sets how long [`FileLock::lock`] waits if the call gives no timeout; 0 is a single try. Defaults
    /// to forever.
    pub fn default_timeout(mut self, timeout: Duration) -> Self {
        self.default_timeout = Some(timeout);
        self
    }

    /// Sets this machine's name in claims. Give containers that share a directory different names:
    /// messages name the holder's host, and Python relies on it (it takes the processes of every machine
    /// of its name for local ones). Defaults to what Python's `socket.getfqdn` returns, which may query a
    /// name server, once in a process, and wait for it.
    pub fn hostname(mut self, hostname: impl Into<String>) -> Self {
        self.hostname = Some(hostname.into());
        self
    }

    /// Sets the system's error numbers on which reading the lock file is tried again after a pause, for
    /// file systems with transient faults. Defaults to none.
    pub fn retry_errnos(mut self, errnos: impl IntoIterator<Item = i32>) -> Self {
        self.retry_errnos = errnos.into_iter().collect();
        self
    }

    /// Sets the clock, for machines whose own clocks differ by more than the slop. It is called often,
    /// and must not block. Defaults to [`SystemTime::now`].
    pub fn clock(mut self, clock: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Sets the longest pause between two tries of a waiter, above 0: the first is 1 ms, each next one is
    /// twice as long. Long pauses cost little, but a waiter gets a free lock late. Defaults to 250 ms.
    pub fn poll(mut self, cap: Duration) -> Self {
        self.poll = cap;
        self
    }

    /// Sets by how much the clocks of the machines may differ: a lock is broken only when it has been
    /// expired for longer. All contenders should use the same; Python's is 10 s. Defaults to 10 s.
    pub fn slop(mut self, slop: Duration) -> Self {
        self.slop = slop;
        self
    }

    /// Sets the event handler, which is called with each event of a lease that
    /// [`acquire`](FileLock::acquire) returned, in order, on a thread of its own: it may block, and no
    /// lease waits for it. Up to 65,536 events are queued for it; further ones are dropped, with a
    /// warning. Defaults to none.
    pub fn on_event(mut self, listener: impl Fn(&LeaseEvent) + Send + Sync + 'static) -> Self {
        self.lease_config.handler = EventHandler::new(listener);
        self
    }

    #[cfg(all(test, unix))]
    pub(super) fn mark(mut self, mark: Mark) -> Self {
        self.mark = Some(mark);
        self
    }

    /// The same settings for the lock file of a key.
    #[cfg(feature = "client")]
    pub(crate) fn for_key(&self, lockfile: PathBuf, key: Key) -> Self {
        Self { lockfile, key: Some(key), ..self.clone() }
    }

    /// Looks this machine's name up now, if none was given, and returns by how many bytes the names of claims
    /// are longer than that of their lock file.
    #[cfg(feature = "client")]
    pub(crate) fn resolve(&mut self) -> usize {
        let hostname = self.hostname.get_or_insert_with(|| host::name().to_owned());
        name::max_suffix_len(&self.separator, hostname)
    }

    /// Checks every setting and creates the lock, with a claim of its own. Touches no file.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput), naming the setting, its fault and the limit.
    pub fn build(self) -> Result<FileLock> {
        check_lifetime("lifetime", self.lifetime)?;
        if self.poll.is_zero() {
            return Err(Error::invalid("poll", "is 0, it must be longer"));
        }
        let hostname = self.hostname.unwrap_or_else(|| host::name().to_owned());
        check_separator(&self.separator)?;
        check_hostname(&hostname, &self.separator)?;
        let lockfile = check_path(&self.lockfile, &self.separator, &hostname)?;
        Ok(FileLock::new(Settings {
            key: self.key.unwrap_or_else(|| Key::of_file(&lockfile)),
            lockfile,
            separator: self.separator,
            hostname,
            lifetime: self.lifetime,
            default_timeout: self.default_timeout,
            slop: self.slop,
            poll: self.poll,
            retry_errnos: self.retry_errnos,
            lease_config: self.lease_config,
            mark: self.mark.unwrap_or_else(Mark::here),
            clock: self.clock,
        }))
    }
}

fn check_separator(separator: &str) -> Result<()> {
    if separator.is_empty() {
        return Err(Error::invalid("separator", "is empty"));
    }
    let bad = |c: char| c.is_ascii_digit() || c.is_whitespace() || c.is_control() || "/\\".contains(c);
    if separator.contains(bad) {
        let fault = format!("is {separator:?}, it may have no digit, slash, whitespace or control character");
        return Err(Error::invalid("separator", fault));
    }
    Ok(())
}

fn check_hostname(hostname: &str, separator: &str) -> Result<()> {
    if hostname.is_empty() {
        return Err(Error::invalid("hostname", "is empty"));
    }
    let bad = |c: char| c.is_whitespace() || c.is_control() || "/\\".contains(c);
    if hostname.contains(bad) {
        let fault = format!("is {hostname:?}, it may have no slash, whitespace or control character");
        return Err(Error::invalid("hostname", fault));
    }
    if hostname.contains(separator) {
        let fault = format!("is {hostname:?}, it contains the separator {separator:?}");
        return Err(Error::invalid("hostname", fault));
    }
    Ok(())
}

fn check_path(given: &Path, separator: &str, hostname: &str) -> Result<PathBuf> {
    let invalid = |fault: String| Error::invalid("lockfile", fault);
    if given.as_os_str().is_empty() {
        return Err(invalid("is empty".to_owned()));
    }
    let shown = given.display();
    let bytes = given.as_os_str().as_encoded_bytes();
    if bytes.contains(&0) {
        return Err(invalid(format!("{shown:?} has a zero byte")));
    }
    // A claim's name extends the lock's, which must not end in `x/` or `x/..`.
    let ends_in_name = given.file_name().is_some_and(|name| bytes.ends_with(name.as_encoded_bytes()));
    if !ends_in_name {
        return Err(invalid(format!("{shown} does not end in a file's name")));
    }
    let path = std::path::absolute(given).map_err(|cause| {
        Error::invalid("lockfile", format!("{shown} has no absolute form")).caused_by(cause)
    })?;
    if contains(path.as_os_str().as_encoded_bytes(), separator.as_bytes()) {
        let fault = format!("{} contains the separator {separator:?}, set another one", path.display());
        return Err(invalid(fault));
    }
    if name::bytes_of(&path).is_none() {
        return Err(invalid(format!("{} is not Unicode text", path.display())));
    }
    let longest = path.file_name().unwrap_or_default().len() + name::max_suffix_len(separator, hostname);
    if longest > MAX_NAME_BYTES {
        let fault = format!(
            "{} has a name that grows to {longest} bytes with the host's name, the process and a number, \
             the limit is {MAX_NAME_BYTES}",
            path.display()
        );
        return Err(invalid(fault));
    }
    Ok(path)
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("lockfile", &self.lockfile)
            .field("lifetime", &self.lifetime)
            .field("separator", &self.separator)
            .field("default_timeout", &self.default_timeout)
            .field("hostname", &self.hostname)
            .field("retry_errnos", &self.retry_errnos)
            .field("poll", &self.poll)
            .field("slop", &self.slop)
            .field("lease_config", &self.lease_config)
            .finish_non_exhaustive()
    }
}
