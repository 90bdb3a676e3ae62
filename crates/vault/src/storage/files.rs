//! The files of a vault, all of them for its owner only.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
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

/// Waits until the name of a file is on the disk: without it a loss of power takes the file, however well its bytes are kept.
pub(crate) fn sync_name(path: &Path) -> Result<(), VaultError> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(|error| VaultError::io("syncing", directory, &error))
}

/// What is in a file; nothing where there is none.
pub(crate) fn read_or_nothing(path: &Path) -> Result<Vec<u8>, VaultError> {
    match fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        read => read.map_err(|error| VaultError::io("reading", path, &error)),
    }
}

/// Writes a file that must not be there yet: `write` makes a draft, which gets the name once it is whole. A crash leaves nothing under that
/// name, or all of it.
pub(crate) fn named_when_whole<T>(
    path: &Path,
    write: impl FnOnce(&Path) -> Result<T, VaultError>,
) -> Result<T, VaultError> {
    if path.exists() {
        return Err(VaultError::Exists(path.to_owned()));
    }
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    let draft = PathBuf::from(draft);
    let _ = fs::remove_file(&draft);
    let done = write(&draft).and_then(|written| {
        fs::rename(&draft, path).map_err(|error| VaultError::io("naming", path, &error))?;
        sync_name(path)?;
        Ok(written)
    });
    if done.is_err() {
        let _ = fs::remove_file(&draft);
    }
    done
}

/// The right to be the only process that has the vault open. The system takes it back when the process ends.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
}

/// How often a lock that is held is tried, and the pause in between.
const LOCK_TRIES: u32 = 20;
const LOCK_AGAIN: core::time::Duration = core::time::Duration::from_millis(10);

impl Lock {
    pub(crate) fn take(directory: &Path) -> Result<Self, VaultError> {
        let path = directory.join("lock");
        let opened =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = opened.map_err(|error| VaultError::io("opening", &path, &error))?;
        // A process that is just ending, or just starting a program, holds it for a moment longer than it works.
        for left in (0..LOCK_TRIES).rev() {
            match file.try_lock() {
                Ok(()) => return Ok(Self { file }),
                Err(TryLockError::WouldBlock) if left > 0 => std::thread::sleep(LOCK_AGAIN),
                Err(TryLockError::WouldBlock) => break,
                Err(TryLockError::Error(error)) => return Err(VaultError::io("locking", &path, &error)),
            }
        }
        Err(VaultError::Busy(directory.to_owned()))
    }

    /// Whether the file, which was made for its owner only, is that: some file systems keep no modes.
    pub(crate) fn must_be_private(&self, directory: &Path) -> Result<(), VaultError> {
        let about = self.file.metadata().map_err(|error| VaultError::io("reading", directory, &error))?;
        if about.permissions().mode() & 0o077 == 0 {
            return Ok(());
        }
        let reason = "what is made there for its owner only can be read by others: its file system keeps no permissions, as FAT on most \
                      sticks, or is mounted without them; make the vault on one that does";
        Err(VaultError::Io { what: "protecting", path: directory.to_owned(), reason: reason.to_owned() })
    }
}

/// Checkpoints outside the database: each is appended after its commit, so the newest of them shows when the log in the
/// database was cut. Appending does not wait for the disk (the commit before it did); [`CheckpointFile::sync`] does.
#[derive(Debug)]
pub(crate) struct CheckpointFile {
    path: PathBuf,
    file: File,
    length: u64,
    /// Whether it ends where a note may begin.
    whole: bool,
    /// Whether no checkpoint was in it when that was last looked at.
    empty: bool,
    /// The newest checkpoint, while it could not be written.
    behind: Option<String>,
}

/// What stands between notes. Inside of one it stands before the signatures.
const GAP: &str = "\n\n";

/// What a file of checkpoints says.
#[derive(Debug)]
pub(crate) struct Newest {
    /// The checkpoint over most events that holds.
    pub(crate) note: Option<Note>,
    /// One that claims more, and does not hold.
    pub(crate) claimed: Option<Note>,
}

impl CheckpointFile {
    /// Opens the file, or makes it.
    pub(crate) fn open(path: &Path) -> Result<Self, VaultError> {
        let opened = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path);
        let file = opened.map_err(|error| VaultError::io("opening", path, &error))?;
        let length = file.metadata().map_err(|error| VaultError::io("reading", path, &error))?.len();
        let mut end = Vec::new();
        (&file)
            .seek(SeekFrom::Start(length.saturating_sub(GAP.len() as u64)))
            .and_then(|_| (&file).take(GAP.len() as u64).read_to_end(&mut end))
            .map_err(|error| VaultError::io("reading", path, &error))?;
        let whole = length == 0 || end == GAP.as_bytes();
        Ok(Self { path: path.to_owned(), file, length, whole, empty: length == 0, behind: None })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether no checkpoint was in it when that was last looked at.
    pub(crate) fn was_empty(&self) -> bool {
        self.empty
    }

    /// Remembers whether there is a checkpoint in it. Anything else vouches for nothing.
    pub(crate) fn saw(&mut self, checkpoint: bool) {
        self.empty = !checkpoint;
    }

    /// Appends a signed checkpoint. One that could not be written is made up for by the next, or by
    /// [`CheckpointFile::catch_up`].
    pub(crate) fn append(&mut self, note: &Note) -> Result<(), VaultError> {
        self.behind = Some(note.to_string() + "\n");
        self.catch_up()
    }

    /// Whether the newest checkpoint could not be written yet.
    pub(crate) fn is_behind(&self) -> bool {
        self.behind.is_some()
    }

    /// Writes the newest checkpoint, if that could not be done before.
    pub(crate) fn catch_up(&mut self) -> Result<(), VaultError> {
        let Some(text) = self.behind.clone() else { return Ok(()) };
        if self.length > limits::MAX_CHECKPOINTS_FILE {
            return self.begin_anew(&text);
        }
        let failed = |error: std::io::Error| VaultError::io("writing", &self.path, &error);
        let there = self.file.metadata().map_err(failed)?.len();
        // What somebody else wrote, or a kill cut, is not to become a part of this note.
        let whole = self.whole && there == self.length;
        let text = if whole { text } else { format!("{GAP}{text}") };
        if let Err(error) = self.file.write_all(text.as_bytes()) {
            let _ = self.file.set_len(there);
            (self.length, self.whole) = (there, whole);
            return Err(failed(error));
        }
        (self.length, self.whole) = (there + text.len() as u64, true);
        self.behind = None;
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

    /// The checkpoint over most events that `holds`, wherever it stands: who may append to the file can put anything last, and
    /// a kill may cut what was being written.
    pub(crate) fn newest(&mut self, holds: impl Fn(&Note) -> bool) -> Result<Newest, VaultError> {
        let failed = |error: std::io::Error| VaultError::io("reading", &self.path, &error);
        let length = self.file.metadata().map_err(failed)?.len();
        if length > limits::MAX_CHECKPOINTS_READ {
            let reason = "it is larger than a vault lets it become; put it aside if you know why";
            return Err(VaultError::tampered(self.path.display().to_string(), reason));
        }
        self.file.seek(SeekFrom::Start(0)).map_err(failed)?;
        let mut bytes = Vec::new();
        (&self.file).take(length).read_to_end(&mut bytes).map_err(failed)?;
        let text = String::from_utf8_lossy(&bytes);
        let parts: Vec<&str> = text.split(GAP).map(|part| part.trim_matches('\n')).collect();
        let mut claims: Vec<(u64, usize)> = Vec::new();
        for (at, pair) in parts.windows(2).enumerate() {
            let [body, signatures] = pair else { continue };
            let size = body.lines().nth(1).and_then(|size| size.parse().ok());
            claims.extend(size.filter(|_| signatures.starts_with('\u{2014}')).map(|size| (size, at)));
        }
        claims.sort_unstable();
        let mut found = Newest { note: None, claimed: None };
        for (_, at) in claims.into_iter().rev() {
            let Some([body, signatures]) = parts.get(at..at + 2) else { continue };
            let Ok(note) = Note::parse(format!("{body}{GAP}{signatures}\n").as_bytes()) else { continue };
            if holds(&note) {
                found.note = Some(note);
                break;
            }
            found.claimed.get_or_insert(note);
        }
        Ok(found)
    }
}

/// A list of memories that no restore may bring back. Lines are appended to it, and stay in the database until every list has
/// them.
#[derive(Debug)]
pub(crate) struct EndedList {
    path: PathBuf,
    /// The number of the last line that it has; nothing before the first of this process was written, and after one was cut.
    upto: Option<i64>,
}

impl EndedList {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, upto: None }
    }

    pub(crate) fn upto(&self) -> i64 {
        self.upto.unwrap_or_default()
    }

    /// Appends those of the lines that it has not.
    pub(crate) fn append(&mut self, lines: &[(i64, String)]) -> Result<(), VaultError> {
        // A process before this one may have written them, and been killed, or an append was cut.
        let there = match self.upto {
            None => read_or_nothing(&self.path)?,
            Some(_) => Vec::new(),
        };
        let there = String::from_utf8_lossy(&there);
        let known: HashSet<&str> = there.lines().collect();
        let new =
            lines.iter().filter(|(number, line)| *number > self.upto() && !known.contains(line.as_str()));
        let mut text: String = new.map(|(_, line)| format!("{line}\n")).collect();
        if !there.is_empty() && !there.ends_with('\n') {
            text.insert(0, '\n');
        }
        let opened = OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path);
        let written = opened.and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        });
        let written = written.map_err(|error| VaultError::io("writing", &self.path, &error));
        // The first of a process may have made the file.
        let written = written.and_then(|()| if self.upto.is_none() { sync_name(&self.path) } else { Ok(()) });
        if let Err(error) = written {
            // What of it is there is seen before the next one is put behind it.
            self.upto = None;
            return Err(error);
        }
        self.upto = lines.last().map(|(number, _)| *number).max(self.upto);
        Ok(())
    }
}
