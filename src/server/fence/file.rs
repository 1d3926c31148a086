//! The file that holds the ceiling of the fences, as 8 bytes, big-endian: locked while a server uses it,
//! and written in place.

use std::fs::{self, File, FileType, Metadata, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

/// The state file, open and locked.
///
/// The lock is on the file itself, not on its name. The file is written in place, and never replaced by a
/// rename: its other names would keep the old ceiling, without the lock. Eight bytes at the start of a file
/// are in one sector, so a crash leaves the old ceiling or the new one.
#[derive(Debug)]
pub(super) struct StateFile {
    path: PathBuf,
    file: File,
    /// `true` if the file was just created and has no ceiling yet.
    is_new: bool,
}

impl StateFile {
    /// Opens and locks the file, and reads its ceiling. Creates the file if it is missing.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Option<u64>)> {
        let fault = |what: &str, error| fault(path, what, error);
        match fs::metadata(path) {
            // Before the file is opened: for some devices, opening already has an effect.
            Ok(metadata) => refuse_special(path, &metadata)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if fs::symlink_metadata(path).is_ok() {
                    return Err(fault("is a symbolic link to a file that does not exist", error));
                }
                if let Some(state) = Self::create(path)? {
                    return Ok((state, None));
                }
                // Another server created the file first.
            }
            Err(error) => return Err(fault("cannot be opened", error)),
        }
        let mut options = OpenOptions::new();
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, nonblocking_flags());
        let file =
            options.read(true).write(true).open(path).map_err(|error| fault("cannot be opened", error))?;
        let metadata = file.metadata().map_err(|error| fault("cannot be opened", error))?;
        // Checked again on the open file: the path may lead elsewhere by now.
        refuse_special(path, &metadata)?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => {
                fault("is in use by another server", io::ErrorKind::ResourceBusy.into())
            }
            TryLockError::Error(error) => fault("cannot be locked", error),
        })?;
        let ceiling = read_ceiling(&file).map_err(|error| fault("cannot be used", error))?;
        Ok((Self { path: path.to_owned(), file, is_new: false }, Some(ceiling)))
    }

    /// Creates the file, empty and locked. Returns `None` if it exists by now.
    fn create(path: &Path) -> io::Result<Option<Self>> {
        let file = match OpenOptions::new().write(true).create_new(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
            Err(error) => return Err(fault(path, "cannot be created", error)),
        };
        // Waits only briefly: another server that locked it first finds it empty, and unlocks it.
        file.lock().map_err(|error| fault(path, "cannot be locked", error))?;
        Ok(Some(Self { path: path.to_owned(), file, is_new: true }))
    }

    /// Returns `true` if the path still leads to this file.
    pub(super) fn is_in_place(&self) -> bool {
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            let identity = |metadata: Metadata| (metadata.dev(), metadata.ino());
            let there = fs::metadata(&self.path).map(identity);
            there.is_ok_and(|there| self.file.metadata().map(identity).is_ok_and(|ours| ours == there))
        }
        #[cfg(not(unix))]
        {
            self.path.exists()
        }
    }

    /// Writes the ceiling, and returns once it is on disk.
    pub(super) fn write(&mut self, ceiling: u64) -> io::Result<()> {
        let written = self.write_through(ceiling);
        if self.is_new && written.is_err() {
            // The next start would refuse an empty file.
            let _ = fs::remove_file(&self.path);
        }
        self.is_new &= written.is_err();
        written.map_err(|error| self.fault("cannot be written", error))
    }

    fn write_through(&mut self, ceiling: u64) -> io::Result<()> {
        self.file.rewind()?;
        self.file.write_all(&ceiling.to_be_bytes())?;
        self.file.sync_all()?;
        if self.is_new { sync_directory(&self.path) } else { Ok(()) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn fault(&self, what: &str, error: io::Error) -> io::Error {
        fault(&self.path, what, error)
    }
}

/// Returns the flags that keep the open from waiting for the writer of a FIFO, and from making a terminal
/// the controlling one.
#[cfg(unix)]
fn nonblocking_flags() -> i32 {
    use rustix::fs::OFlags;
    (OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32
}

fn refuse_special(path: &Path, metadata: &Metadata) -> io::Result<()> {
    if metadata.is_file() {
        return Ok(());
    }
    let what = format!("is {}", kind(metadata.file_type()));
    Err(fault(path, &what, io::Error::new(io::ErrorKind::InvalidInput, "it must be a regular file")))
}

fn kind(file_type: FileType) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if file_type.is_fifo() {
            return "a FIFO";
        }
        if file_type.is_socket() {
            return "a socket";
        }
        if file_type.is_char_device() || file_type.is_block_device() {
            return "a device";
        }
    }
    if file_type.is_dir() { "a directory" } else { "not a regular file" }
}

fn read_ceiling(file: &File) -> io::Result<u64> {
    let mut bytes = Vec::new();
    // One byte more than allowed shows that the file is too long, without reading all of it.
    file.take(9).read_to_end(&mut bytes)?;
    let ceiling = <[u8; 8]>::try_from(bytes.as_slice()).map_err(|_| {
        let hint = if bytes.is_empty() { ", but empty: remove it if no server has used it" } else { "" };
        io::Error::new(io::ErrorKind::InvalidData, format!("it is not 8 bytes long{hint}"))
    })?;
    Ok(u64::from_be_bytes(ceiling))
}

/// Makes the new name durable: a directory is synced separately from its files.
#[cfg(unix)]
fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

/// Does nothing: on other systems, a directory cannot be opened like a file.
#[cfg(not(unix))]
fn sync_directory(_path: &Path) -> io::Result<()> {
    Ok(())
}

fn fault(path: &Path, what: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("fence state file {} {what}: {error}", path.display()))
}
