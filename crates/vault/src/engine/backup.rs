//! Copies for backups, the memory of them, and what a restore does to the vault that it brings back.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use stvor_crypto::kdf::constant_time_eq;
use stvor_crypto::{Random, Secret};
use stvor_tlog::{Checkpoint, Frontier, Note};

use super::agents::OWNER;
use super::{Engine, sign};
use crate::audit::{Event, Operation, hex};
use crate::backup::{BackupKind, BackupRecord, Ended, FORMAT, Manifest, Revoked};
use crate::error::Refusal;
use crate::keys::SLOT_ROOT;
use crate::memory::{Header, MemoryId, State};
use crate::storage::copy::Extent;
use crate::storage::{CheckpointFile, Database, MemoryRow, Table};
use crate::verify::Progress;
use crate::{VaultError, limits};

/// The record of backups that were made.
const SLOT: &str = "backups";
/// Rows that are read at a time.
const BATCH: usize = 4_096;

/// A copy that is wanted.
#[derive(Debug)]
pub(crate) struct Wanted {
    /// Where the copied database goes.
    pub(crate) draft: PathBuf,
    pub(crate) kind: BackupKind,
    pub(crate) description: String,
    /// How many rows of events and memories are copied.
    pub(crate) progress: Arc<Progress>,
}

/// A copy that was made.
#[derive(Debug)]
pub(crate) struct Copied {
    /// What it is.
    pub(crate) manifest: Manifest,
    /// The number of the newest memory in it.
    pub(crate) newest: i64,
    /// The owner's record of the root key in it.
    pub(crate) owner: Vec<u8>,
    /// What the backup is sealed with. The root key may be changed before that is done; this one is of the copy.
    pub(crate) key: Secret<32>,
}

/// How a known checkpoint stands to the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// The log holds all that it signs.
    Holds,
    /// It signs more events than there are: so many.
    Longer(u64),
    /// It is of another history.
    Other,
}

impl Engine {
    /// Copies the database as it is now.
    pub(crate) fn copy(&mut self, wanted: &Wanted) -> Result<Copied, VaultError> {
        let event = Event::new(self.clock.now(), OWNER, Operation::Backup);
        self.audited(event, |engine, event| {
            if wanted.description.len() > limits::MAX_NAME {
                return Err(VaultError::invalid("a description has at most 256 bytes"));
            }
            engine.no_doubt()?;
            let bound = engine.seal_bound()?;
            let held = engine.held()?;
            let (size, root) = (held.tree.size(), held.tree.root().to_base64());
            let origin = held.base.signer.verifier().name().to_owned();
            let note = sign(held)?.to_string();
            let head = (note.as_str(), &bound[..]);
            wanted.progress.expect(size + engine.database.memory_count()?);
            let parent = match wanted.kind {
                BackupKind::Full => None,
                BackupKind::Incremental => Some(engine.newest_backup()?.manifest.as_parent()),
            };
            let memories = match &parent {
                None => engine.database.copy((&wanted.draft, &wanted.progress), &Extent::Whole, head)?,
                Some(parent) => {
                    let memories = engine.changed_since(parent.size)?;
                    let extent = Extent::Since { from: parent.size, memories: &memories };
                    engine.database.copy((&wanted.draft, &wanted.progress), &extent, head)?
                }
            };
            event.count = Some(memories);
            let mut id = [0; 16];
            engine.rng.fill(&mut id)?;
            let missing = || VaultError::tampered("the owner's key record", "it is missing");
            let owner = engine.database.slot(SLOT_ROOT)?.ok_or_else(missing)?;
            let manifest = Manifest {
                format: FORMAT,
                id: MemoryId::from_bytes(id),
                kind: wanted.kind,
                parent,
                made: event.at.wall,
                origin,
                size,
                root,
                memories,
                description: wanted.description.clone(),
            };
            let key = engine.held()?.base.backup_key();
            Ok(Copied { manifest, newest: engine.database.newest_memory()?, owner, key })
        })
    }

    /// The newest backup whose file is where it was written to, or in a directory that only its owner can look into.
    fn newest_backup(&self) -> Result<BackupRecord, VaultError> {
        let newest =
            self.backups()?.into_iter().rev().find(|record| !matches!(record.path.try_exists(), Ok(false)));
        let newest = newest
            .ok_or_else(|| VaultError::invalid("there is no backup to build on; make a full one first"))?;
        if newest.manifest.size <= self.rotated_at()? {
            let reason = "the root key was changed after the newest backup; make a full one first";
            return Err(VaultError::invalid(reason));
        }
        Ok(newest)
    }

    /// Memories whose rows the log says were written since it had this size.
    fn changed_since(&self, size: u64) -> Result<Vec<MemoryId>, VaultError> {
        let (mut next, mut changed) = (size, BTreeSet::new());
        loop {
            let rows = self.database.events_from(next, BATCH)?;
            let Some(last) = rows.last() else { return Ok(changed.into_iter().collect()) };
            next = last.seq + 1;
            for row in &rows {
                let (event, _) = self.open_event(row)?;
                changed.extend(event.memory.filter(|_| event.row.is_some()));
            }
        }
    }

    /// Backups that were made, oldest first.
    pub(crate) fn backups(&self) -> Result<Vec<BackupRecord>, VaultError> {
        self.sealed_slot(SLOT).map(Option::unwrap_or_default)
    }

    /// Remembers a backup.
    pub(crate) fn remember_backup(&mut self, record: BackupRecord) -> Result<(), VaultError> {
        let mut all = self.backups()?;
        all.push(record);
        let excess = all.len().saturating_sub(limits::MAX_BACKUPS);
        all.drain(..excess);
        self.put_sealed_slot(SLOT, &all)
    }

    /// Remembers that a backup was taken to another place.
    pub(crate) fn backup_moved(&mut self, from: &Path, to: &Path) -> Result<(), VaultError> {
        let mut all = self.backups()?;
        let Some(record) = all.iter_mut().find(|record| record.path == from) else { return Ok(()) };
        record.path = to.to_owned();
        self.put_sealed_slot(SLOT, &all)
    }

    /// A sealed record that is JSON.
    pub(crate) fn sealed_slot<T: serde::de::DeserializeOwned>(
        &self,
        name: &str,
    ) -> Result<Option<T>, VaultError> {
        let Some(record) = self.database.slot(name)? else { return Ok(None) };
        let tampered = || VaultError::tampered(format!("the record {name}"), "it does not open");
        let plain = self.held()?.base.rows.open(name.as_bytes(), &record).map_err(|_| tampered())?;
        serde_json::from_slice(plain.expose()).map(Some).map_err(|_| tampered())
    }

    /// Writes a sealed record.
    pub(crate) fn put_sealed_slot(
        &mut self,
        name: &str,
        value: &impl serde::Serialize,
    ) -> Result<(), VaultError> {
        let plain = serde_json::to_vec(value).map_err(|error| VaultError::Database(error.to_string()))?;
        let plain = stvor_crypto::SecretBytes::from(plain);
        let held = self.held.as_ref().ok_or(VaultError::Refused(Refusal::Cold))?;
        let sealed = held.base.rows.seal(&mut self.rng, name.as_bytes(), plain.expose())?;
        self.database.put_slot(name, &sealed)
    }

    /// Backups that still hold a memory's content: made after it was stored and before it ended. Also those whose file is not
    /// there now: the disk may only be put away. Told by the numbers of memories and events, which no clock changes. Of numbers of
    /// memories somebody else may have changed one, so what only the clock says to be older than a backup counts, too.
    pub(crate) fn backups_with(&self, id: MemoryId) -> Result<Vec<BackupRecord>, VaultError> {
        let unknown = || VaultError::Refused(Refusal::NotFound(id.to_string()));
        let number = self.database.memory_number(&id)?.ok_or_else(unknown)?;
        let header = self.header(&self.database.memory_header(&id)?.ok_or_else(unknown)?)?;
        let ended = matches!(header.state, State::Forgotten | State::Expired);
        let end = header.state_since.filter(|_| ended).unwrap_or(u64::MAX);
        let holds = |record: &BackupRecord| {
            let Manifest { made, size, .. } = record.manifest;
            let begun = record
                .newest
                .map_or(made >= header.created, |newest| number <= newest || made > header.created);
            let left = header.destroyed_at.map_or(made <= end, |events| size <= events);
            begun && left
        };
        Ok(self.backups()?.into_iter().filter(holds).collect())
    }

    /// The entry of an ended memory in the lists of such.
    pub(crate) fn ended(&self, header: &Header) -> Result<Ended, VaultError> {
        let at = header.state_since.unwrap_or_default();
        let mut ended = Ended { memory: header.id, state: header.state, at, mac: String::new() };
        ended.mac = self.keyed("ended", &ended.bytes())?;
        Ok(ended)
    }

    /// What of a list was written by this vault. Everything else in it is passed over.
    pub(crate) fn trusted_ended(&self, list: &str) -> Result<Vec<Ended>, VaultError> {
        let mut trusted = Vec::new();
        for ended in list.lines().filter_map(|line| serde_json::from_str::<Ended>(line).ok()) {
            let mac = self.keyed("ended", &ended.bytes())?;
            if constant_time_eq(mac.as_bytes(), ended.mac.as_bytes()) {
                trusted.push(ended);
            }
        }
        Ok(trusted)
    }

    /// Calls `with` for each memory that another database of this vault holds and whose header opens.
    fn each_header(
        &self,
        database: &Database,
        mut with: impl FnMut(MemoryRow, Header) -> Result<(), VaultError>,
    ) -> Result<(), VaultError> {
        // The numbers are bound by nothing: a row with one that none was given counts, too.
        let mut after = i64::MIN;
        loop {
            let rows = database.memories_after(after, BATCH)?;
            let Some((last, _)) = rows.last() else { return Ok(()) };
            after = *last;
            for (_, row) in rows {
                if let Ok(header) = self.any_header(&row) {
                    with(row, header)?;
                }
            }
        }
    }

    /// Memories that have ended in another database of this vault.
    pub(crate) fn ended_in(&self, database: &Database) -> Result<Vec<Ended>, VaultError> {
        let mut all = Vec::new();
        self.each_header(database, |_, header| {
            if matches!(header.state, State::Forgotten | State::Tombstoned) {
                all.push(self.ended(&header)?);
            }
            Ok(())
        })?;
        Ok(all)
    }

    /// How a checkpoint that is known from elsewhere stands to this log.
    pub(crate) fn compare(&self, note: &Note) -> Result<Known, VaultError> {
        let held = self.held()?;
        let origin = held.base.signer.verifier().name();
        let Ok(known) = held.base.trust().open(note) else {
            // Signed with a key that came after the backup, or for another log.
            let claimed = Checkpoint::parse(note.unverified_text())?;
            return Ok(if claimed.origin() == origin { Known::Longer(claimed.size()) } else { Known::Other });
        };
        if known.size() > held.tree.size() {
            return Ok(Known::Longer(known.size()));
        }
        let same = Frontier::load(&self.database, known.size())?.root() == known.root();
        Ok(if same { Known::Holds } else { Known::Other })
    }

    /// How the checkpoints in a file stand to it: what this log signed, and what claims to go further. Nothing where there are none.
    pub(crate) fn compare_file(&self, file: &mut CheckpointFile) -> Result<Option<Known>, VaultError> {
        let trust = self.held()?.base.trust();
        let found = file.newest(|note| trust.open(note).is_ok())?;
        let signed = found.note.as_ref().map(|note| self.compare(note)).transpose()?;
        let claimed = found.claimed.as_ref().map(|note| self.compare(note)).transpose()?;
        Ok(match (signed, claimed) {
            (Some(Known::Other), _) | (None, Some(Known::Other)) => Some(Known::Other),
            (Some(Known::Longer(one)), Some(Known::Longer(other))) => Some(Known::Longer(one.max(other))),
            (Some(Known::Holds) | None, longer @ Some(Known::Longer(_))) => longer,
            (signed, _) => signed,
        })
    }

    /// The line of a removed agent in the lists of what no restore may bring back.
    pub(super) fn revoked(&self, credential: &[u8]) -> Result<String, VaultError> {
        let agent = hex(credential);
        let mac = self.keyed("revoked", agent.as_bytes())?;
        serde_json::to_string(&Revoked { agent, mac })
            .map_err(|error| VaultError::Database(error.to_string()))
    }

    /// Agents that a list says were removed, by what the vault keeps of their credentials. What this vault did not write is
    /// passed over.
    pub(crate) fn trusted_revoked(&self, list: &str) -> Result<HashSet<String>, VaultError> {
        let mut trusted = HashSet::new();
        for revoked in list.lines().filter_map(|line| serde_json::from_str::<Revoked>(line).ok()) {
            let mac = self.keyed("revoked", revoked.agent.as_bytes())?;
            if constant_time_eq(mac.as_bytes(), revoked.mac.as_bytes()) {
                trusted.insert(revoked.agent);
            }
        }
        Ok(trusted)
    }

    /// Agents whose credentials another database of this vault knows, if its log is no shorter than `size`.
    pub(crate) fn newer_agents_in(&self, database: &Database, size: u64) -> Option<HashSet<String>> {
        let events = database.log_size().ok()?;
        let records = database.records(Table::Agent).ok().filter(|_| events >= size)?;
        Some(records.into_iter().map(|(credential, _)| hex(&credential)).collect())
    }

    /// Whether another database of this vault goes on from this log as it was at `size`, at least to `known` events, and holds
    /// nothing since but that the vault was backed up, opened, locked and closed.
    pub(crate) fn idle_since(&self, database: &Database, (size, known): (u64, u64)) -> bool {
        let root = |nodes: &Database| Frontier::load(nodes, size).map(|tree| tree.root()).ok();
        let (Ok(events), Ok(held)) = (database.log_size(), self.held()) else { return false };
        if events < known || root(database).is_none() || root(database) != root(&self.database) {
            return false;
        }
        let harmless =
            [Operation::Backup, Operation::Unlock, Operation::Lock, Operation::Close, Operation::Record];
        let mut next = size;
        while next < events {
            let Ok(rows) = database.events_from(next, BATCH) else { return false };
            for row in &rows {
                let event = held.base.open_event(row).filter(|_| row.seq == next);
                let idle = |event: Event| {
                    harmless.contains(&event.operation)
                        && event.refused.is_none()
                        && event.row.is_none()
                        && event.count.is_none_or(|_| event.operation == Operation::Backup)
                };
                if !event.is_some_and(|(event, _)| idle(event)) {
                    return false;
                }
                next += 1;
            }
            if rows.is_empty() {
                return false;
            }
        }
        true
    }

    /// Finishes a restore: nothing that ended since comes back, no approval, and of the agents only who `stays`; the log says what
    /// happened. Returns how many memories were ended.
    pub(crate) fn finish_restore(
        &mut self,
        from: &Manifest,
        ended: &[Ended],
        stays: impl Fn(&str) -> bool,
    ) -> Result<u64, VaultError> {
        let mut event = Event::new(self.clock.now(), OWNER, Operation::Restore);
        event.count = Some(from.size);
        self.audited(event, |engine, _| {
            engine.database.clear(Table::Approval)?;
            // The new directory has no checkpoints yet; what is known elsewhere was held against the log.
            engine.database.remove_slot(super::outside::MISSING)?;
            for (credential, agent) in engine.agent_records()? {
                if !stays(&hex(&credential)) {
                    let mut event = Event::new(engine.clock.now(), OWNER, Operation::RemoveAgent);
                    event.text = Some(engine.keyed("agent", agent.name.as_bytes())?);
                    engine.database.remove_record(Table::Agent, &credential)?;
                    engine.log(&event)?;
                }
            }
            let (mut done, mut seen) = (0, HashSet::new());
            // A memory may have been tombstoned first and forgotten later: the harder end counts.
            let mut ended: Vec<&Ended> = ended.iter().collect();
            ended.sort_by_key(|one| one.state != State::Forgotten);
            for one in ended.into_iter().filter(|one| seen.insert(one.memory)) {
                done += u64::from(engine.end_again(one)?);
            }
            Ok(done)
        })
    }

    fn end_again(&mut self, ended: &Ended) -> Result<bool, VaultError> {
        let Some(row) = self.database.memory(&ended.memory)? else { return Ok(false) };
        let Some(header) = self.sound(self.header(&row))? else { return self.clear_damaged(row) };
        let over = matches!(header.state, State::Forgotten | State::Expired) || header.state == ended.state;
        if over {
            return Ok(false);
        }
        // Of one whose content was damaged nothing is worth keeping for the record.
        let keep = ended.state == State::Tombstoned && self.sound(self.must_be_whole(&row))?.is_some();
        let (operation, state) = match keep {
            true => (Operation::Tombstone, State::Tombstoned),
            false => (Operation::Forget, State::Forgotten),
        };
        let mut event = Event::new(self.clock.now(), OWNER, operation);
        (event.memory, event.level) = (Some(header.id), Some(header.level));
        event.row = Some(self.destroy((row, header), state, "it had ended before the restore")?);
        self.log(&event)?;
        Ok(true)
    }

    /// Ends a memory of which nothing but its name can be read.
    fn clear_damaged(&mut self, mut row: MemoryRow) -> Result<bool, VaultError> {
        if row.wrapped.is_none() && row.content.is_none() {
            return Ok(false);
        }
        self.database.clear_memory(&row.id)?;
        (row.wrapped, row.content, row.due) = (None, None, None);
        self.wipe = true;
        let mut event = Event::new(self.clock.now(), OWNER, Operation::Forget);
        (event.memory, event.row) = (Some(row.id), Some(row.digest()));
        self.log(&event)?;
        Ok(true)
    }

    /// The database of the vault in `directory`, to be read, if it opens.
    pub(crate) fn other_database(directory: &Path) -> Option<Database> {
        Database::open(&directory.join(crate::vault::DATABASE)).ok()
    }
}
