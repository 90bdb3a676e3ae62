//! Making backups of an open vault.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use stvor_crypto::{Random, SystemRandom};

use super::pack::{Contents, pack};
use super::seal::{self, Seal};
use super::{BackupName, BackupRecord, FORGOTTEN, NewBackup};
use crate::engine::backup::{Copied, Wanted};
use crate::keys::hash_with;
use crate::memory::MemoryId;
use crate::storage::{make_directory, read_or_nothing, sync_name, write_private};
use crate::{Vault, VaultError};

const DRAFT: &str = "backup-draft-";
/// How often it is told how far a backup is.
const OFTEN: Duration = Duration::from_millis(200);

/// The copy that a backup is made from. It is removed, whatever happens; one that a kill left goes when the vault is opened.
struct Draft(PathBuf);

/// Removes what backups that were killed left.
pub(crate) fn remove_drafts(vault: &Path) {
    for entry in fs::read_dir(vault).into_iter().flatten().filter_map(Result::ok) {
        if entry.file_name().to_string_lossy().starts_with(DRAFT) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        for suffix in ["", "-wal", "-shm"] {
            let mut name = self.0.as_os_str().to_owned();
            name.push(suffix);
            let _ = fs::remove_file(name);
        }
    }
}

/// Adds lines of a vault's list of ended memories to the one beside the backups.
///
/// # Errors
/// [`VaultError::Io`].
pub fn add_to_list(own: &str, beside: &Path) -> Result<(), VaultError> {
    let mut all = read_or_nothing(beside)?;
    let known: BTreeSet<&[u8]> = all.split(|byte| *byte == b'\n').collect();
    let new: Vec<&str> = own.lines().filter(|line| !known.contains(line.as_bytes())).collect();
    if new.is_empty() {
        return Ok(());
    }
    let mut draft = beside.as_os_str().to_owned();
    draft.push(".new");
    let draft = PathBuf::from(draft);
    let _ = fs::remove_file(&draft);
    let new = new.join("\n") + "\n";
    if !all.is_empty() && !all.ends_with(b"\n") {
        all.push(b'\n');
    }
    all.extend(new.as_bytes());
    write_private(&draft, &all)?;
    fs::rename(&draft, beside).map_err(|error| VaultError::io("naming", beside, &error))?;
    sync_name(beside)
}

impl Vault {
    /// Makes a backup, and verifies the vault: the record says how much is damaged in it. The vault answers nobody while the
    /// database is copied; verifying it, and sealing and writing the file, does not stop it.
    ///
    /// # Errors
    /// [`crate::Refusal::Cold`]; [`VaultError::Invalid`] for an incremental one when there is none to build on;
    /// [`VaultError::Io`], [`VaultError::Key`].
    pub fn backup(&self, new: &NewBackup) -> Result<BackupRecord, VaultError> {
        self.backup_telling(new, |_, _| ())
    }

    /// As [`Vault::backup`]; `tell` hears how many rows are copied and verified, and of how many. When they all are, the file is
    /// sealed and written.
    ///
    /// # Errors
    /// As [`Vault::backup`].
    pub fn backup_telling(
        &self,
        new: &NewBackup,
        mut tell: impl FnMut(u64, u64),
    ) -> Result<BackupRecord, VaultError> {
        make_directory(&new.directory)?;
        let mut random = [0; 8];
        SystemRandom::new().fill(&mut random)?;
        let draft = Draft(self.path().join(format!("{DRAFT}{:016x}", u64::from_be_bytes(random))));
        let wanted = Wanted {
            draft: draft.0.clone(),
            kind: new.kind,
            description: new.description.clone(),
            progress: Arc::default(),
        };
        let copying = Arc::clone(&wanted.progress);
        let copied = self.ask(move |engine| engine.copy(&wanted));
        let copied = copied.wait_telling(OFTEN, &copying, |done, total| tell(done, 2 * total));
        let Copied { manifest, newest, owner, key } = copied?;
        // What is damaged today is damaged in every backup from today on: it has to show before the day that one is needed.
        let (report, verifying) = self.begin_verify(false);
        let report = report.wait_telling(OFTEN, &verifying, |done, total| tell(total + done, 2 * total))?;
        let problems = report.problems.len() as u64 + report.more_problems;
        let bytes = serde_json::to_vec_pretty(&manifest);
        let bytes = bytes.map_err(|error| VaultError::Database(error.to_string()))?;
        let digest = seal::digest(&draft.0)?;
        let sealed = seal::bytes(&bytes, &digest);
        let seal = Seal::new((digest, &owner), hash_with(&key, seal::PURPOSE, &sealed));
        let path = new.directory.join(BackupName::of(&manifest).to_string());
        let contents = Contents { manifest: &manifest, bytes: &bytes, seal: &seal, database: &draft.0 };
        pack(&contents, &new.sealing, &path)?;
        drop(draft);
        let record = BackupRecord { manifest, path, problems, newest: Some(newest) };
        let kept = record.clone();
        self.ask(move |engine| engine.remember_backup(kept)).wait()?;
        let own = read_or_nothing(&self.path().join(FORGOTTEN))?;
        add_to_list(&String::from_utf8_lossy(&own), &new.directory.join(FORGOTTEN))?;
        Ok(record)
    }

    /// Backups that this vault remembers having made, oldest first.
    ///
    /// # Errors
    /// [`crate::Refusal::Cold`], [`VaultError::Tampered`].
    pub fn backups(&self) -> Result<Vec<BackupRecord>, VaultError> {
        self.ask(|engine| engine.backups()).wait()
    }

    /// Backups that still hold a memory's content, as far as this vault knows: also after it was forgotten, and also those
    /// whose file is not where it was written to.
    ///
    /// # Errors
    /// As [`Vault::backups`]; [`crate::Refusal::NotFound`].
    pub fn backups_with(&self, id: MemoryId) -> Result<Vec<BackupRecord>, VaultError> {
        self.ask(move |engine| engine.backups_with(id)).wait()
    }
}
