//! The settings of a directory of lock files: as a caller gives them, and checked.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::backend::directory::file_name::{SUFFIX, file_name, is_unreserved};
use crate::error::{Error, Result};
use crate::file::{self, FileLock, MAX_NAME_BYTES, SEPARATOR};
use crate::types::Key;

/// A backend without a server: a directory with a lock file for each key, on a file system that all
/// contenders share. Given to [`Builder::backend`](crate::Builder::backend).
///
/// Each lock file is a [`FileLock`](crate::FileLock)'s, with what that [promises](crate::file): a holder that
/// died is followed once its lifetime and the [slop](Self::slop) have passed, and waiters poll.
/// [`lease_ttl`](crate::Builder::lease_ttl) is the lifetime: at least 2 s, 15 s unless set. Its end falls on
/// a whole second, up to one earlier. A guard's [`endpoint`](crate::LeaseEvent::endpoint) in events and
/// errors is the path of its lock file. Semaphores, `enqueue` and `stats` are
/// [`Unsupported`](crate::ErrorKind::Unsupported); a lease has no [`fence`](crate::Lease::fence). The directory
/// must exist. All clients of a key must be given the same directory.
///
/// # File names
/// The file of a key has the key's name, percent-encoded as by RFC 3986, and then `.lock`. Letters and digits
/// of ASCII and `-`, `.`, `_`, `~` stand as they are, but for a dot at the begin; each other byte of the key
/// in UTF-8 is `%` and two hexadecimal digits in capitals. No two keys have one name, and each name tells its
/// key. (On a file system that takes capitals and small letters for the same, keys that differ in nothing else
/// exclude each other.) [`path`](Self::path) returns it. In Python:
///
/// ```python
/// name = urllib.parse.quote(key, safe="") + ".lock"
/// if name.startswith("."):
///     name = "%2E" + name[1:]
/// lock = flufl.lock.Lock(os.path.join("/srv/locks", name))
/// ```
///
/// A contender's claim stands beside the lock file and has a longer name, which must fit into the 255 bytes
/// that file systems take. A key that is too long for that is
/// [`InvalidInput`](crate::ErrorKind::InvalidInput).
///
/// # Examples
/// ```
/// use dflockd_client::{Directory, LockClient};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path();
/// let locks = LockClient::builder().backend(Directory::new(path)).build()?;
/// let guard = locks.lock("account:17")?.acquire().await?;
/// assert!(path.join("account%3A17.lock").exists());
/// guard.release().await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
#[must_use = "a directory does nothing until it is given to a builder"]
pub struct Directory {
    path: PathBuf,
    separator: String,
    files: file::Builder,
}

impl Directory {
    /// The directory at `path`. A relative path is made absolute in
    /// [`build`](crate::Builder::build).
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let files = FileLock::builder(PathBuf::new());
        Self { path: path.into(), separator: SEPARATOR.to_owned(), files }
    }

    /// See [`file::Builder::hostname`]. Defaults to what Python's `socket.getfqdn` says.
    pub fn hostname(mut self, hostname: impl Into<String>) -> Self {
        self.files = self.files.hostname(hostname);
        self
    }

    /// See [`file::Builder::separator`]. It may have no character that the names of lock files have: no letter
    /// or digit of ASCII, and none of `%`, `-`, `.`, `_`, `~`. All contenders use the same one. Defaults to
    /// `|`, on Windows to `^`.
    pub fn separator(mut self, separator: impl Into<String>) -> Self {
        self.separator = separator.into();
        self.files = self.files.separator(self.separator.clone());
        self
    }

    /// See [`file::Builder::slop`]. Defaults to 10 s.
    pub fn slop(mut self, slop: Duration) -> Self {
        self.files = self.files.slop(slop);
        self
    }

    /// See [`file::Builder::poll`]. Defaults to 250 ms.
    pub fn poll(mut self, cap: Duration) -> Self {
        self.files = self.files.poll(cap);
        self
    }

    /// See [`file::Builder::retry_errnos`]. Defaults to none.
    pub fn retry_errnos(mut self, errnos: impl IntoIterator<Item = i32>) -> Self {
        self.files = self.files.retry_errnos(errnos);
        self
    }

    /// See [`file::Builder::clock`]. Defaults to [`SystemTime::now`].
    pub fn clock(mut self, clock: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        self.files = self.files.clock(clock);
        self
    }

    /// Returns the path of a key's lock file. Touches no file.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for a key that is none, or too long for a file's name,
    /// and for a setting that cannot work.
    ///
    /// # Examples
    /// ```
    /// use dflockd_client::Directory;
    /// let locks = Directory::new("/srv/locks").hostname("worker-3");
    /// assert_eq!(locks.path("jobs/17")?, std::path::Path::new("/srv/locks/jobs%2F17.lock"));
    /// assert!(locks.path("x".repeat(250)).unwrap_err().is_invalid_input());
    /// # Ok::<(), dflockd_client::Error>(())
    /// ```
    pub fn path(&self, key: impl AsRef<str>) -> Result<PathBuf> {
        Options::check(self.clone())?.path(&Key::parse(key.as_ref())?)
    }
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Directory").field("path", &self.path).field("files", &self.files).finish()
    }
}

/// The checked settings.
pub(super) struct Options {
    pub(super) path: PathBuf,
    /// The path, as errors and logs name it.
    pub(super) name: Arc<str>,
    /// The settings of each lock file.
    pub(super) files: file::Builder,
    /// How long the name of a lock file may be, in bytes.
    name_limit: usize,
}

impl Options {
    /// Checks the settings. Looks the host's name up unless it was given.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput), naming the setting, its fault and the limit.
    pub(super) fn check(given: Directory) -> Result<Self> {
        let Directory { path, separator, mut files } = given;
        if path.as_os_str().is_empty() {
            return Err(Error::invalid("directory", "is empty"));
        }
        if separator.bytes().any(|byte| is_unreserved(byte) || byte == b'%') {
            let fault =
                format!("is {separator:?}, it may have no ASCII letter or digit and none of % - . _ ~");
            return Err(Error::invalid("separator", fault));
        }
        let path = std::path::absolute(&path).map_err(|cause| {
            let fault = format!("{} has no absolute form", path.display());
            Error::invalid("directory", fault).caused_by(cause)
        })?;
        let name: Arc<str> = path.to_string_lossy().into();
        if !separator.is_empty() && name.contains(&separator) {
            let fault = format!("{name} has the separator {separator:?} in it, set another one");
            return Err(Error::invalid("directory", fault));
        }
        let name_limit = MAX_NAME_BYTES.saturating_sub(files.resolve());
        // The shortest name shows what else is wrong.
        let shortest = Key::parse("k")?;
        files.for_key(path.join(file_name(&shortest)), shortest).build()?;
        Ok(Self { path, name, files, name_limit })
    }

    /// The path of the key's lock file.
    pub(super) fn path(&self, key: &Key) -> Result<PathBuf> {
        let name = file_name(key);
        if name.len() > self.name_limit {
            let fault = format!(
                "makes a file's name of {} bytes with its {SUFFIX}, the limit is {}: its claims must fit \
                 into {MAX_NAME_BYTES}",
                name.len(),
                self.name_limit
            );
            return Err(Error::invalid("key", fault).for_key(key));
        }
        Ok(self.path.join(name))
    }
}
