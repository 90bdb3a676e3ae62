//! The files of a store: its directory, its lock, its database.

use crate::StoreError;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

/// The file beside `path` with `suffix` after its whole name.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// The database itself where `path` is a symbolic link to it: one database has one lock and one keyfile, whatever
/// name it is opened by.
pub(crate) fn resolve(path: PathBuf) -> Result<PathBuf, StoreError> {
    match fs::symlink_metadata(&path) {
        Ok(about) if about.is_symlink() => {
            fs::canonicalize(&path).map_err(|error| StoreError::io("following the link", &path, &error))
        }
        _ => Ok(path),
    }
}

/// Makes the directory of `path`, and those above it, for this user only, so that they survive a power cut. A directory
/// that exists stays as it is.
pub(crate) fn make_directory(path: &Path) -> Result<(), StoreError> {
    let directory = parent(path);
    let made: Vec<&Path> =
        directory.ancestors().take_while(|above| !above.as_os_str().is_empty() && !above.exists()).collect();
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt;
        builder.mode(0o700);
    }
    builder.create(directory).map_err(|error| StoreError::io("creating the directory", directory, &error))?;
    // The name of a directory is in the one above it.
    made.into_iter().try_for_each(sync_directory)
}

/// Options that make files for this user only.
pub(super) fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    options
}

pub(super) fn sync_directory(path: &Path) -> Result<(), StoreError> {
    if cfg!(unix) {
        let directory = parent(path);
        let synced = File::open(directory).and_then(|directory| directory.sync_all());
        synced.map_err(|error| StoreError::io("syncing the directory", directory, &error))?;
    }
    Ok(())
}

pub(crate) fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(StoreError::io("removing", path, &error))
        }
        _ => Ok(()),
    }
}

/// Bytes that a commit can need at once: what a file system has to take to count as one with room.
const PROBE_BYTES: usize = 64 * 1024;

/// Whether the file system, a quota or a file-size limit refuses to let the database at `path` or its journal grow: a file
/// beside them is grown as far. What the system says to that tells a full disk from a broken one.
pub(super) fn is_full(path: &Path) -> bool {
    let length = |suffix| fs::metadata(beside(path, suffix)).map_or(0, |about| about.len());
    let probe = beside(path, ".probe");
    let grown = private().create(true).truncate(true).open(&probe).and_then(|mut file| {
        file.seek(std::io::SeekFrom::Start(length("").max(length("-wal"))))?;
        file.write_all(&[0xa5; PROBE_BYTES])
    });
    let _ = fs::remove_file(&probe);
    grown.is_err_and(|error| matches!(StoreError::io("probing", &probe, &error), StoreError::Full))
}

/// Removes drafts of the keyfile at `keyfile`: a crash while it was made leaves one, which may hold the very key. Only who
/// has the lock of the store may do this.
pub(crate) fn remove_drafts(keyfile: &Path) -> Result<(), StoreError> {
    let directory = parent(keyfile);
    let failed = |error: std::io::Error| StoreError::io("reading the directory", directory, &error);
    let prefix = beside(Path::new(keyfile.file_name().unwrap_or_default()), stvor_keys::KEYFILE_DRAFT);
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_name().as_encoded_bytes().starts_with(prefix.as_os_str().as_encoded_bytes()) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// The right to be the only one who has a store open. The system takes it back when the process ends, however it ends.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Lock {
    /// Takes the lock of the database at `path`.
    pub(super) fn take(path: &Path) -> Result<Self, StoreError> {
        let name = beside(path, ".lock");
        loop {
            let mut file = private()
                .create(true)
                .truncate(false)
                .open(&name)
                .map_err(|error| StoreError::io("opening", &name, &error))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let mut pid = String::new();
                    // What cannot be read is only a name that the message goes without.
                    let _ = file.take(16).read_to_string(&mut pid);
                    return Err(StoreError::Locked { path: path.to_owned(), pid: pid.trim().parse().ok() });
                }
                Err(TryLockError::Error(error)) => return Err(StoreError::io("locking", &name, &error)),
            }
            // Someone who destroyed the store meanwhile removed the file that was locked here.
            if is_at(&file, &name) {
                let written = file
                    .set_len(0)
                    .and_then(|()| file.rewind())
                    .and_then(|()| writeln!(file, "{}", std::process::id()));
                written.map_err(|error| StoreError::io("writing", &name, &error))?;
                return Ok(Self(file));
            }
        }
    }

    /// Whether the lock still keeps others out. Someone who removed the lock file let the next one in who comes.
    pub(super) fn holds(&self, path: &Path) -> bool {
        is_at(&self.0, &beside(path, ".lock"))
    }

    /// Removes the lock file and gives the lock back.
    pub(super) fn destroy(self, path: &Path) -> Result<(), StoreError> {
        remove(&beside(path, ".lock"))?;
        drop(self.0);
        Ok(())
    }
}

#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), fs::metadata(path)) {
        (Ok(held), Ok(named)) => held.ino() == named.ino() && held.dev() == named.dev(),
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}
