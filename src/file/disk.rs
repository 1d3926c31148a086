//! The few calls to the file system that the lock consists of, each one system call or nearly so. A
//! missing file is a result, not an error.

use std::fs::{self, File, FileTimes};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The most that is read of a lock file; a claim's path is far shorter.
const MAX_TEXT_BYTES: u64 = 16 * 1024;

/// Identifies a file while it exists; the system reuses the number after that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileId(u64, u64);

/// The state of the file at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) id: FileId,
    pub(super) links: u64,
    pub(super) mtime: SystemTime,
    /// A plain file: no directory, pipe, device or symbolic link.
    pub(super) is_file: bool,
    pub(super) is_dir: bool,
}

/// A file's text with its state while it was open. An NFS client never describes an open file from its
/// cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) stat: Stat,
    pub(super) text: Vec<u8>,
}

/// Returns `true` if the error means that there is no such file: an NFS server may call a handle stale.
pub(super) fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::StaleNetworkFileHandle)
}

fn unless_missing<T>(outcome: io::Result<T>) -> io::Result<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) fn stat(path: &Path) -> io::Result<Option<Stat>> {
    unless_missing(system::stat(path))
}

/// Opens a plain file and reads it. Opens nothing else, since a pipe would block.
pub(super) fn read(path: &Path) -> io::Result<Option<Content>> {
    let Some(found) = stat(path)? else { return Ok(None) };
    if found.is_dir {
        return Err(system::is_a_directory());
    }
    if !found.is_file {
        return Ok(Some(Content { stat: found, text: Vec::new() }));
    }
    unless_missing(File::open(path).and_then(|file| content(&file)))
}

fn content(file: &File) -> io::Result<Content> {
    let stat = system::stat_open(file)?;
    let mut text = Vec::new();
    file.take(MAX_TEXT_BYTES).read_to_end(&mut text)?;
    Ok(Content { stat, text })
}

/// Sets the times of the file that is expected at the path, and not of another one that may have replaced
/// it. Returns its modification time afterwards; `None` if it is no longer there.
pub(super) fn touch_if_unchanged(
    path: &Path,
    expected: &Content,
    time: SystemTime,
) -> io::Result<Option<SystemTime>> {
    let Some(file) = unless_missing(File::open(path))? else { return Ok(None) };
    if content(&file)? != *expected {
        return Ok(None);
    }
    match file.set_times(FileTimes::new().set_modified(time).set_accessed(time)) {
        // Another user's file stays as it is.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
        outcome => outcome?,
    }
    Ok(Some(system::stat_open(&file)?.mtime))
}

/// Sets the times of the file at the path; returns `false` if there is none.
pub(super) fn touch(path: &Path, time: SystemTime) -> io::Result<bool> {
    unless_missing(system::touch(path, time)).map(|done| done.is_some())
}

/// Creates the file, or empties it, and writes the text. If that fails, it leaves no file behind.
pub(super) fn write(path: &Path, text: &[u8]) -> io::Result<FileId> {
    let mut file = File::create(path)?;
    let written = file.write_all(text).and_then(|()| system::stat_open(&file));
    match written {
        Ok(stat) => Ok(stat.id),
        Err(error) => {
            drop(file);
            // The first error is the one to report.
            let _ = remove(path);
            Err(error)
        }
    }
}

pub(super) fn link(from: &Path, to: &Path) -> io::Result<()> {
    fs::hard_link(from, to).map_err(named)
}

/// Turns an error of `link` into [`Unsupported`](io::ErrorKind::Unsupported) if it means that the file
/// system has no hard links: its number alone may look like a lack of permission.
fn named(error: io::Error) -> io::Error {
    if !system::has_no_links(&error) {
        return error;
    }
    let fault = format!("the file system has no hard links, which a lock file needs: {error}");
    io::Error::new(io::ErrorKind::Unsupported, fault)
}

pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)
}

/// Removes a file; returns `false` if there is none.
pub(super) fn remove(path: &Path) -> io::Result<bool> {
    unless_missing(fs::remove_file(path)).map(|done| done.is_some())
}

/// Returns the paths of all files in the directory whose names start with `prefix`.
pub(super) fn list(dir: &Path, prefix: &[u8]) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        if name.as_encoded_bytes().starts_with(prefix) {
            found.push(dir.join(name));
        }
    }
    Ok(found)
}

#[cfg(unix)]
mod system {
    use super::{FileId, Stat};
    use std::fs::{self, File, Metadata};
    use std::io;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;
    use std::time::{SystemTime, UNIX_EPOCH};

    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
    use rustix::io::Errno;

    fn describe(metadata: &Metadata) -> io::Result<Stat> {
        Ok(Stat {
            id: FileId(metadata.dev(), metadata.ino()),
            links: metadata.nlink(),
            mtime: metadata.modified()?,
            is_file: metadata.is_file(),
            is_dir: metadata.is_dir(),
        })
    }

    pub(super) fn stat(path: &Path) -> io::Result<Stat> {
        describe(&fs::symlink_metadata(path)?)
    }

    pub(super) fn stat_open(file: &File) -> io::Result<Stat> {
        describe(&file.metadata()?)
    }

    pub(super) fn is_a_directory() -> io::Error {
        Errno::ISDIR.into()
    }

    /// File systems without hard links return each of these errors. A claim belongs to its contender and
    /// has one link, so they mean nothing else.
    pub(super) fn has_no_links(error: &io::Error) -> bool {
        let found = Errno::from_io_error(error);
        found.is_some_and(|errno| {
            [Errno::PERM, Errno::OPNOTSUPP, Errno::NOTSUP, Errno::NOSYS, Errno::MLINK].contains(&errno)
        })
    }

    pub(super) fn touch(path: &Path, time: SystemTime) -> io::Result<()> {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = since.as_secs().try_into().map_err(|_| io::ErrorKind::InvalidInput)?;
        let time = Timespec { tv_sec: seconds, tv_nsec: since.subsec_nanos().into() };
        let times = Timestamps { last_access: time, last_modification: time };
        Ok(utimensat(CWD, path, &times, AtFlags::empty())?)
    }
}

#[cfg(windows)]
mod system {
    use super::{FileId, Stat};
    use std::fs::{self, File, FileTimes};
    use std::io;
    use std::path::Path;
    use std::time::SystemTime;

    pub(super) fn stat(path: &Path) -> io::Result<Stat> {
        let metadata = fs::symlink_metadata(path)?;
        if metadata.is_file() {
            return stat_open(&File::open(path)?);
        }
        let (mtime, is_dir) = (metadata.modified()?, metadata.is_dir());
        Ok(Stat { id: FileId(0, 0), links: 0, mtime, is_file: false, is_dir })
    }

    pub(super) fn stat_open(file: &File) -> io::Result<Stat> {
        let found = winapi_util::file::information(file)?;
        let id = FileId(found.volume_serial_number(), found.file_index());
        let mtime = file.metadata()?.modified()?;
        Ok(Stat { id, links: found.number_of_links(), mtime, is_file: true, is_dir: false })
    }

    pub(super) fn is_a_directory() -> io::Error {
        io::ErrorKind::IsADirectory.into()
    }

    /// A file system without hard links, such as FAT, reports the function as invalid or not supported.
    pub(super) fn has_no_links(error: &io::Error) -> bool {
        const ERROR_INVALID_FUNCTION: i32 = 1;
        const ERROR_NOT_SUPPORTED: i32 = 50;
        matches!(error.raw_os_error(), Some(ERROR_INVALID_FUNCTION | ERROR_NOT_SUPPORTED))
    }

    pub(super) fn touch(path: &Path, time: SystemTime) -> io::Result<()> {
        let file = File::options().write(true).open(path)?;
        file.set_times(FileTimes::new().set_modified(time).set_accessed(time))
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use rustix::io::Errno;

    #[test]
    fn what_link_says_where_there_are_no_hard_links_is_told_apart_from_a_lack_of_permission() {
        for errno in [Errno::PERM, Errno::OPNOTSUPP, Errno::NOSYS, Errno::MLINK] {
            let error = named(errno.into());
            assert_eq!(error.kind(), io::ErrorKind::Unsupported, "{errno:?}");
            assert!(error.to_string().contains("no hard links"), "{error}");
        }
        for errno in [Errno::ACCESS, Errno::EXIST, Errno::NOENT, Errno::NOSPC, Errno::ROFS, Errno::STALE] {
            let error = named(errno.into());
            assert_eq!(error.raw_os_error(), Some(errno.raw_os_error()), "{errno:?}");
        }
    }
}
