//! Bringing a vault back from its backups: all of it, or nothing.

use core::fmt;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use stvor_crypto::{Random, SystemRandom};
use stvor_keys::KeyHolder;
use stvor_keys::recipients::Opening;

use super::pack::{read_head, unpack};
use super::{BackupKind, FORGOTTEN, Manifest};
use crate::clock::{Clock, SystemClock};
use crate::engine::Engine;
use crate::engine::backup::Known;
use crate::keys::{self, RootKey};
use crate::storage::{CheckpointFile, Database, Lock, make_directory, read_or_nothing};
use crate::vault::{CHECKPOINTS, DATABASE};
use crate::witness::WITNESSED;
use crate::{Options, Problem, Vault, VaultError, limits};

/// What stands between the name of the vault's directory and random digits in the name of the one that a restore works in.
const STAGING: &str = ".restoring-";

/// A restore.
pub struct Restore<'a> {
    /// The vault's directory. A vault that is there is kept beside it, under another name.
    pub target: &'a Path,
    /// The backups: a full one, then those that build on it, in order.
    pub files: &'a [PathBuf],
    /// What opens the files.
    pub opening: &'a Opening,
    /// The owner's secret at the time of the last of the backups.
    pub owner: &'a dyn KeyHolder,
    /// Further lists of ended memories, beside those of the target and of the backups' directories. Each has to be there.
    pub forgotten: &'a [PathBuf],
    /// Further files of checkpoints that the restored log is held against. Each has to be there, and to hold one.
    pub checkpoints: &'a [PathBuf],
    /// Whether it is all right that events after the backup are lost. Those of the backup itself, and that the vault was opened,
    /// locked and closed, are no loss where the vault that is replaced can be read.
    pub accept_loss: bool,
    /// Whether it is all right that something in the backup is damaged: the rest is brought back, and the damage is listed.
    pub accept_damage: bool,
    /// The clock.
    pub clock: Arc<dyn Clock>,
}

impl<'a> Restore<'a> {
    /// A restore of `files` to `target` that loses nothing.
    #[must_use]
    pub fn new(
        target: &'a Path,
        files: &'a [PathBuf],
        (opening, owner): (&'a Opening, &'a dyn KeyHolder),
    ) -> Self {
        Self {
            target,
            files,
            opening,
            owner,
            forgotten: &[],
            checkpoints: &[],
            accept_loss: false,
            accept_damage: false,
            clock: Arc::new(SystemClock::new()),
        }
    }
}

impl fmt::Debug for Restore<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Restore")
            .field("target", &self.target)
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

/// What a restore did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The newest of the backups.
    pub manifest: Manifest,
    /// Memories in the vault, ended ones too.
    pub memories: u64,
    /// Memories that had ended since the backup and did not come back.
    pub ended: u64,
    /// Events that were logged after the backup, as far as is known, and are lost.
    pub lost_events: u64,
    /// What does not verify, where that was accepted.
    pub damage: Vec<Problem>,
    /// Where the vault that was there before is kept.
    pub before: Option<PathBuf>,
    /// Agents that are enrolled in the restored vault. One that was removed after the backup is among them, unless that stands
    /// in a list that was found.
    pub agents: Vec<String>,
    /// Whether the dead-man switch is armed in it, with packages of the time of the backup: what its watcher has may be others.
    pub armed: bool,
    /// Files of checkpoints of a history that is lost now, under the names that they have from here on. New files are begun in
    /// their places: the old ones would say, rightly, that the log was cut.
    pub set_aside: Vec<PathBuf>,
}

/// What a backup says about itself. Whether this vault made it is seen when it is restored.
///
/// # Errors
/// [`VaultError::Key`] when it does not open, [`VaultError::Tampered`], [`VaultError::TooNew`], [`VaultError::TooOld`],
/// [`VaultError::Io`].
pub fn read_manifest(path: &Path, opening: &Opening) -> Result<Manifest, VaultError> {
    read_head(path, opening).map(|head| head.manifest)
}

/// A directory that is removed unless it became the vault.
/// After an exchange there is the old vault under its name, so it is told before that it has nothing to remove.
struct Staging {
    path: PathBuf,
    keep: bool,
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.keep {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

impl Staging {
    /// Makes it beside the target, and removes what restores that were killed left there.
    fn make(target: &Path) -> Result<Self, VaultError> {
        let name =
            target.file_name().ok_or_else(|| VaultError::invalid("the vault's directory has no name"))?;
        let mut prefix = std::ffi::OsString::from(".");
        prefix.push(name);
        prefix.push(STAGING);
        let beside = parent(target);
        fs::create_dir_all(beside).map_err(|error| VaultError::io("creating", beside, &error))?;
        let entries = fs::read_dir(beside).map_err(|error| VaultError::io("reading", beside, &error))?;
        for entry in entries.filter_map(Result::ok) {
            if entry.file_name().as_encoded_bytes().starts_with(prefix.as_encoded_bytes()) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let mut random = [0; 8];
        SystemRandom::new().fill(&mut random)?;
        prefix.push(format!("{:016x}", u64::from_be_bytes(random)));
        let staging = Self { path: beside.join(prefix), keep: false };
        make_directory(&staging.path)?;
        Ok(staging)
    }
}

/// Brings a vault back. Whatever happens, also when the process is killed, there is at `target` either what was there before
/// or the restored vault, complete and verified. The daemon must not run.
///
/// # Errors
/// [`VaultError::Busy`]; [`VaultError::Key`] when a file does not open or the owner's secret is another one;
/// [`VaultError::BackupChain`] when the files do not follow each other; [`VaultError::BackupOlder`] when more would be lost than
/// that a vault was backed up and closed, and that was not accepted; [`VaultError::Tampered`] when a file was not made by this vault, or what was restored does not
/// verify; [`VaultError::Io`] also for a list of ended memories or a file of checkpoints that can not be read, and
/// [`VaultError::Invalid`] for what is no file, or a named one without a checkpoint: what they say would be lost.
pub fn restore(restore: &Restore<'_>) -> Result<Restored, VaultError> {
    let target = restore.target;
    // Held until the end: nobody opens the vault that is about to be replaced.
    let lock = if target.join(DATABASE).is_file() { Some(Lock::take(target)?) } else { None };
    if lock.is_none() && target.exists() && fs::read_dir(target).is_ok_and(|mut all| all.next().is_some()) {
        return Err(VaultError::Exists(target.to_owned()));
    }
    let staging = Staging::make(target)?;
    let lists = lists(restore)?;
    let (manifest, root) = assemble(restore, &staging.path)?;
    let options = Options { clock: restore.clock.clone(), ..Options::default() };
    let vault = Vault::open(&staging.path, options)?;
    vault.unlock(root, None)?;
    let (lost_events, other) = compare(restore, &vault, manifest.size)?;
    let old = target.to_owned();
    let from = manifest.clone();
    let finish = move |engine: &mut Engine| {
        let mut ended = engine.trusted_ended(&lists)?;
        let revoked = engine.trusted_revoked(&lists)?;
        let mut agents = None;
        if let Some(database) = Engine::other_database(&old) {
            // What can not be read there can not be known.
            ended.extend(engine.ended_in(&database).unwrap_or_default());
            agents = engine.newer_agents_in(&database, from.size);
        }
        let stays = |agent: &str| {
            !revoked.contains(agent) && agents.as_ref().is_none_or(|known| known.contains(agent))
        };
        engine.finish_restore(&from, &ended, stays)
    };
    let ended = vault.ask(finish).wait()?;
    let report = vault.verify()?;
    if let Some(problem) = report.problems.first().filter(|_| !restore.accept_damage) {
        let reason =
            format!("{}; the backup holds it so, and --accept-damage brings the rest back", problem.reason);
        return Err(VaultError::tampered(problem.place.clone(), reason));
    }
    let agents = vault.agents()?.into_iter().map(|agent| agent.name).collect();
    let armed = vault.switch().ok().flatten().is_some_and(|switch| switch.every > 0);
    drop(vault);
    keep_list(restore, &staging.path)?;
    let before = exchange(restore, staging)?;
    drop(lock);
    let set_aside = set_aside(restore, other)?;
    let damage = report.problems;
    Ok(Restored {
        manifest,
        memories: report.memories,
        ended,
        lost_events,
        damage,
        before,
        agents,
        armed,
        set_aside,
    })
}

/// Puts the files together to one database in `staging`. Returns what the last one says, and the root key that the owner's
/// secret gives: each file has to be sealed with it before its database is looked at.
fn assemble(restore: &Restore<'_>, staging: &Path) -> Result<(Manifest, RootKey), VaultError> {
    let broken = |reason: String| VaultError::BackupChain(reason);
    let Some((first, rest)) = restore.files.split_first() else {
        return Err(broken("there are no files".into()));
    };
    if rest.len() >= limits::MAX_CHAIN {
        return Err(broken("there are more than 1000 files".into()));
    }
    let last = rest.last().unwrap_or(first);
    let record = read_head(last, restore.opening)?.seal.owner();
    let record = record.ok_or_else(|| {
        VaultError::tampered(format!("the backup {}", last.display()), "its key record is not understood")
    })?;
    let root = keys::unwrap_root(&record, restore.owner)?;
    let path = staging.join(DATABASE);
    let mut newest = unpack(first, restore.opening, (&path, &root))?;
    if newest.kind != BackupKind::Full {
        return Err(broken(format!("{} is not a full backup", first.display())));
    }
    let database = Database::open(&path)?;
    check_head(&database, &newest, first)?;
    for file in rest {
        let draft = staging.join("changes.db");
        let manifest = unpack(file, restore.opening, (&draft, &root))?;
        if manifest.parent != Some(newest.as_parent()) {
            return Err(broken(format!("{} does not build on the file before it", file.display())));
        }
        let changes = Database::open(&draft)?;
        database.apply(&changes)?;
        drop(changes);
        for suffix in ["", "-wal", "-shm"] {
            let _ = fs::remove_file(staging.join(format!("changes.db{suffix}")));
        }
        check_head(&database, &manifest, file)?;
        newest = manifest;
    }
    database.merge_journal()?;
    Ok((newest, root))
}

/// The log is the one that the manifest names.
fn check_head(database: &Database, manifest: &Manifest, file: &Path) -> Result<(), VaultError> {
    let (size, root) = database.log_head()?;
    if (size, root.to_base64()) == (manifest.size, manifest.root.clone()) {
        return Ok(());
    }
    Err(VaultError::tampered(
        format!("the backup {}", file.display()),
        "its log is not the one that it names",
    ))
}

/// Holds the restored log against every checkpoint that is known. Returns how many events are lost, and the files that say so.
fn compare(restore: &Restore<'_>, vault: &Vault, size: u64) -> Result<(u64, Vec<PathBuf>), VaultError> {
    let (mut lost, mut other) = (0, Vec::new());
    let own = restore.target.join(CHECKPOINTS);
    let there = own.try_exists().map_err(|error| VaultError::io("reading", &own, &error))?;
    let named = restore.checkpoints.iter().map(|path| (path, true));
    for (path, named) in there.then_some((&own, false)).into_iter().chain(named) {
        // Opening would make one that is not there.
        let about = fs::metadata(path).map_err(|error| VaultError::io("reading", path, &error))?;
        if !about.is_file() {
            return Err(VaultError::invalid(format!("{} is no file of checkpoints", path.display())));
        }
        let mut file = CheckpointFile::open(path)?;
        match vault.ask(move |engine| engine.compare_file(&mut file)).wait()? {
            Some(Known::Holds) => {}
            // That of a vault that logged nothing yet.
            None if !named => {}
            None => {
                let none =
                    format!("{} holds no checkpoint; name the file that the vault wrote", path.display());
                return Err(VaultError::invalid(none));
            }
            Some(Known::Longer(known)) => {
                lost = lost.max(known.saturating_sub(size));
                other.push(path.clone());
            }
            // A longer log that was restored from another backup earlier ends here too.
            Some(Known::Other) if restore.accept_loss => other.push(path.clone()),
            Some(Known::Other) => {
                let place = format!("the log of the backup, or {}", path.display());
                return Err(VaultError::tampered(place, "they are of two histories"));
            }
        }
    }
    if lost > 0 && !restore.accept_loss {
        let (target, witnessed) = (restore.target.to_owned(), restore.target.join(WITNESSED).is_file());
        // A witness has signed the longer log: that it is set back is for its keeper to know, and for the owner to want.
        let nothing = !witnessed && {
            let idle = move |engine: &mut Engine| {
                let old = Engine::other_database(&target);
                Ok(old.is_some_and(|old| engine.idle_since(&old, (size, size + lost))))
            };
            vault.ask(idle).wait()?
        };
        if !nothing {
            return Err(VaultError::BackupOlder { lost });
        }
    }
    // That of the vault's own directory is kept with the vault that was there. One that was named twice is put aside once.
    let mut seen = BTreeSet::new();
    other.retain(|path| *path != own && seen.insert(path.clone()));
    Ok((lost, other))
}

/// Gives files of checkpoints of a history that was given up another name: they are evidence, and would shut the restored vault.
fn set_aside(restore: &Restore<'_>, files: Vec<PathBuf>) -> Result<Vec<PathBuf>, VaultError> {
    let rename = |path: PathBuf| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".before-{}", restore.clock.now().wall));
        let aside = PathBuf::from(name);
        fs::rename(&path, &aside).map_err(|error| VaultError::io("naming", &path, &error))?;
        Ok(aside)
    };
    files.into_iter().map(rename).collect()
}

/// Every list of ended memories that is found. One that can not be read ends the restore: what it names would come back.
fn lists(restore: &Restore<'_>) -> Result<String, VaultError> {
    let mut beside = vec![restore.target.join(FORGOTTEN)];
    beside.extend(restore.files.iter().map(|file| parent(file).join(FORGOTTEN)));
    beside.dedup();
    let mut all = Vec::new();
    for path in &beside {
        all.push(read_or_nothing(path)?);
    }
    for path in restore.forgotten {
        all.push(fs::read(path).map_err(|error| VaultError::io("reading", path, &error))?);
    }
    // Each line stands for itself: bytes that are no text void no other line.
    Ok(String::from_utf8_lossy(&all.join(&b'\n')).into_owned())
}

/// The list of the vault that is replaced goes on in the restored one, also about memories that the backup does not know.
fn keep_list(restore: &Restore<'_>, staging: &Path) -> Result<(), VaultError> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let list = read_or_nothing(&restore.target.join(FORGOTTEN))?;
    if list.is_empty() {
        return Ok(());
    }
    let path = staging.join(FORGOTTEN);
    let opened = fs::OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
    let written = opened.and_then(|mut file| {
        file.write_all(&list)?;
        file.sync_all()
    });
    written.map_err(|error| VaultError::io("writing", &path, &error))
}

/// Puts the restored vault in the place of the old one, in one step.
fn exchange(restore: &Restore<'_>, mut staging: Staging) -> Result<Option<PathBuf>, VaultError> {
    let target = restore.target;
    let failed = |what, error: std::io::Error| VaultError::io(what, target, &error);
    for entry in fs::read_dir(&staging.path).map_err(|error| failed("reading", error))?.filter_map(Result::ok)
    {
        let synced = File::open(entry.path()).and_then(|file| file.sync_all());
        synced.map_err(|error| failed("syncing", error))?;
    }
    sync(&staging.path)?;
    let before = if target.join(DATABASE).is_file() {
        let mut name = target.as_os_str().to_owned();
        name.push(format!(".before-{}", restore.clock.now().wall));
        let before = PathBuf::from(name);
        // Under the name that the old vault will have: after the exchange nothing more is to be done.
        fs::rename(&staging.path, &before).map_err(|error| failed("naming", error))?;
        staging.path.clone_from(&before);
        renameat_with(CWD, &before, CWD, target, RenameFlags::EXCHANGE)
            .map_err(|error| failed("replacing", error.into()))?;
        Some(before)
    } else {
        fs::rename(&staging.path, target).map_err(|error| failed("naming", error))?;
        None
    };
    staging.keep = true;
    sync(parent(target))?;
    Ok(before)
}

fn sync(directory: &Path) -> Result<(), VaultError> {
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(|error| VaultError::io("syncing", directory, &error))
}
