//! What watchers have to be told and were not yet: a check-in is kept in the vault from the commit that decides on it until it is
//! in the watcher's directory, which may be on a disk that is put away.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use stvor_tlog::{Note, Verifier};

use super::switch::{CHECK_IN, CheckIn, HeirRecord, package, replace_file};
use crate::memory::MemoryId;
use crate::{VaultError, limits};

/// A check-in that is not where its watcher looks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Owed {
    /// The watcher's directory.
    pub(crate) directory: PathBuf,
    /// What it says.
    pub(crate) check_in: CheckIn,
    /// The same, signed.
    pub(crate) note: String,
    /// Heirs whose packages may still be there, and are named by it no more.
    pub(crate) heirs: Vec<HeirRecord>,
}

/// A watcher that does not know yet what was decided, and goes on as before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Untold {
    /// Its directory.
    pub directory: PathBuf,
    /// Whether it is to stop: until it is told it counts, and gives the packages out.
    pub disarmed: bool,
    /// An heir whose package is not there. The check-in is: the watcher waits, and would give this heir nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub without: Option<String>,
    /// Why it could not be told when that was last tried.
    pub reason: String,
}

impl Untold {
    /// A watcher that knows of the check-in and has no package of an heir.
    pub(crate) fn without(heir: String, directory: PathBuf) -> Self {
        let missing = VaultError::PackageMissing { heir: heir.clone(), directory: directory.clone() };
        Self { directory, disarmed: false, without: Some(heir), reason: missing.to_string() }
    }
}

impl From<Untold> for VaultError {
    fn from(untold: Untold) -> Self {
        let Untold { directory, reason, without, .. } = untold;
        match without {
            Some(heir) => Self::PackageMissing { heir, directory },
            None => Self::WatcherNotTold { directory, reason },
        }
    }
}

/// A package's place among others: the heir's name and its hash.
type Package = (String, String);

impl Owed {
    /// Adds heirs of before whose packages this check-in does not name.
    pub(crate) fn keep(&mut self, before: Vec<HeirRecord>) {
        for heir in before {
            let named = |(name, hash): &Package| *name == heir.name && *hash == heir.package;
            if self.check_in.packages.iter().any(named) {
                continue;
            }
            match self.heirs.iter_mut().find(|known| known.name == heir.name) {
                Some(known) => {
                    known.memories.extend(heir.memories);
                    known.memories.sort_unstable();
                    known.memories.dedup();
                }
                None => self.heirs.push(heir),
            }
        }
    }

    /// Heirs who may still get a memory from there.
    pub(crate) fn heirs_with(&self, id: MemoryId) -> impl Iterator<Item = String> {
        self.heirs.iter().filter(move |heir| heir.memories.contains(&id)).map(|heir| heir.name.clone())
    }

    /// Puts the check-in where it belongs, unless a later one is there, and removes the packages that it does not name, but for
    /// those that are being written for the next one. Doing it twice is the same as once.
    pub(crate) fn deliver(&self, key: &Verifier, arming: &[PathBuf]) -> Result<(), VaultError> {
        let there = known_check_in(&self.directory);
        if number(&there, key).is_some_and(|number| number > self.check_in.number) {
            return Ok(());
        }
        let path = self.directory.join(CHECK_IN);
        // The place where a disk is mounted is there without the disk, too; and nobody watches it then.
        let io = |error| VaultError::io("looking for the check-in", &path, &error);
        if !path.try_exists().map_err(io)? && packages(&self.directory)?.is_empty() {
            let reason = "neither it nor a package is there; is the disk in its place?";
            return Err(VaultError::io("looking for", &path, &std::io::Error::other(reason)));
        }
        if there != self.note.as_bytes() {
            replace_file(&path, self.note.as_bytes())?;
        }
        let mut kept = Vec::new();
        for (heir, hash) in &self.check_in.packages {
            let path = package(&self.directory, (heir, hash));
            if !path.is_file() {
                // What is there in its place may be what a vault of another time named: nothing is removed in its name.
                return Err(VaultError::PackageMissing {
                    heir: heir.clone(),
                    directory: self.directory.clone(),
                });
            }
            kept.push(path);
        }
        // Now that the watcher is told of none of them.
        let armed = |path: &PathBuf| arming.iter().any(|new| new.file_name() == path.file_name());
        let superfluous = |path: &&PathBuf| !kept.contains(path) && !armed(path);
        for path in packages(&self.directory)?.iter().filter(superfluous) {
            fs::remove_file(path).map_err(|error| VaultError::io("removing", path, &error))?;
        }
        Ok(())
    }
}

/// The packages in a directory, and drafts of such.
fn packages(directory: &Path) -> Result<Vec<PathBuf>, VaultError> {
    let failed = |error: std::io::Error| VaultError::io("reading", directory, &error);
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("heir-") && name.contains(".age") {
            found.push(path);
        }
    }
    Ok(found)
}

/// The check-in that stands in a watched directory, as it was found there.
pub(crate) fn known_check_in(directory: &Path) -> Vec<u8> {
    let path = directory.join(CHECK_IN);
    let short = fs::metadata(&path).is_ok_and(|about| about.len() <= limits::MAX_CHECK_IN);
    short.then(|| fs::read(&path).ok()).flatten().unwrap_or_default()
}

/// The number of a check-in that this key signed.
pub(crate) fn number(bytes: &[u8], key: &Verifier) -> Option<u64> {
    let note = Note::parse(bytes).ok()?;
    let text = note.open(core::slice::from_ref(key)).ok()?;
    CheckIn::parse(text, key.name()).map(|known| known.number).ok()
}
