//! The files of a vault, all of them for its owner only.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use stvor_tlog::Note;

use crate::{VaultError, limits};

/// Makes a directory, mode 0700.
pub(crate) fn make_directory(path: &Path) -> Result<(), VaultError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| VaultError::io("creating", path, &error))
}

/// Makes a file that is not there yet, mode 0600 before its bytes are written, and syncs it.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> Result<(), VaultError> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = opened.map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => VaultError::Exists(path.to_owned()),
        _ => VaultError::io("creating", path, &error),
    })?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    written.map_err(|error| VaultError::io("writing", path, &error))
}

/// The right to be the only process that has the vault open. The system takes it back when the process ends.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    pub(crate) fn take(directory: &Path) -> Result<Self, VaultError> {
        let path = directory.join("lock");
        let opened =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = opened.map_err(|error| VaultError::io("opening", &path, &error))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(VaultError::Busy(directory.to_owned())),
            Err(TryLockError::Error(error)) => Err(VaultError::io("locking", &path, &error)),
        }
    }
}

/// Checkpoints outside the database: each is appended after its commit, so the newest of them shows when the log in the
/// database was cut. Appending does not wait for the disk (the commit before it did); [`CheckpointFile::sync`] does.
#[derive(Debug)]
pub(crate) struct CheckpointFile {
    path: PathBuf,
    file: File,
    length: u64,
}

impl CheckpointFile {
    /// Opens the file, or makes it.
    pub(crate) fn open(path: &Path) -> Result<Self, VaultError> {
        let opened = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path);
        let file = opened.map_err(|error| VaultError::io("opening", path, &error))?;
        let length = file.metadata().map_err(|error| VaultError::io("reading", path, &error))?.len();
        Ok(Self { path: path.to_owned(), file, length })
    }

    /// Appends a signed checkpoint.
    pub(crate) fn append(&mut self, note: &Note) -> Result<(), VaultError> {
        let text = note.to_string() + "\n";
        if self.length > limits::MAX_CHECKPOINTS_FILE {
            self.begin_anew(&text)?;
            return Ok(());
        }
        self.file
            .write_all(text.as_bytes())
            .map_err(|error| VaultError::io("writing", &self.path, &error))?;
        self.length += text.len() as u64;
        Ok(())
    }

    fn begin_anew(&mut self, text: &str) -> Result<(), VaultError> {
        let mut name = self.path.as_os_str().to_owned();
        name.push(".new");
        let draft = PathBuf::from(name);
        let _ = fs::remove_file(&draft);
        write_private(&draft, text.as_bytes())?;
        fs::rename(&draft, &self.path).map_err(|error| VaultError::io("naming", &self.path, &error))?;
        *self = Self::open(&self.path)?;
        Ok(())
    }

    /// Waits until everything is on the disk.
    pub(crate) fn sync(&self) -> Result<(), VaultError> {
        self.file.sync_all().map_err(|error| VaultError::io("syncing", &self.path, &error))
    }

    /// The newest note that is whole. A crash may have cut the last one.
    pub(crate) fn newest(&mut self) -> Result<Option<Note>, VaultError> {
        let failed = |error: std::io::Error| VaultError::io("reading", &self.path, &error);
        // A checkpoint is far shorter than this.
        let from = self.length.saturating_sub(16 * 1024);
        self.file.seek(SeekFrom::Start(from)).map_err(failed)?;
        let mut bytes = Vec::new();
        (&self.file).take(32 * 1024).read_to_end(&mut bytes).map_err(failed)?;
        let text = String::from_utf8_lossy(&bytes);
        // Notes end with a line end and are followed by an empty line; inside, one empty line stands before the signatures.
        let mut parts = text.rsplit("\n\n").peekable();
        while let Some(signatures) = parts.next() {
            let Some(body) = parts.peek() else { break };
            if signatures.starts_with('\u{2014}') {
                let note = format!("{body}\n\n{signatures}\n");
                if let Ok(note) = Note::parse(note.as_bytes()) {
                    return Ok(Some(note));
                }
            }
        }
        Ok(None)
    }
}
