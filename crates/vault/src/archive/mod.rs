//! The log in a file of its own, from which every event can still be proved when the vault is gone, or when its row was removed
//! from the vault ([`Vault::prune`]). It is sealed as backups are, and shows in clear, to who opens it, who asked for what and when;
//! contents are not in it, and what was said to a request only where that was asked for.
//!
//! Inside the age file are lines: `{"archive":2,"checkpoint":"...","from":0,"edge":[],"words":true}`, then each event from number
//! `from` on as the log hashes it, a JSON object. Where words are in it, those of an event follow it, as a JSON string. `edge` has the roots of the
//! complete subtrees over the events before `from`, largest first, in base64 (RFC 6962): they and the events lead to the root that the
//! checkpoint signs.

mod read;

use std::fs;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use stvor_keys::recipients::Sealing;
use stvor_tlog::{Checkpoint, Frontier, Note};

pub use crate::engine::removal::{ArchiveHead, Pruned};
pub use read::{Archive, Archived, Trust, check, each};

use crate::audit::{Event, Operation};
use crate::engine::agents::OWNER;
use crate::storage::named_when_whole;
use crate::{Pending, Progress, Vault, VaultError};

/// Events that are read at a time.
const BATCH: usize = 4_096;
/// The version that is written. Version 1 had neither `from` and `edge` nor words.
const FORMAT: u32 = 2;

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct First {
    archive: u32,
    checkpoint: String,
    #[serde(default)]
    from: u64,
    #[serde(default)]
    edge: Vec<String>,
    #[serde(default)]
    words: bool,
}

/// An event as the log hashes it, and what was said to it.
type Entry = (Vec<u8>, Option<String>);

/// What is archived first, and what it goes on from.
struct Start {
    note: Note,
    from: u64,
    edge: Vec<String>,
}

fn unwritable(error: &serde_json::Error) -> VaultError {
    VaultError::Database(error.to_string())
}

impl Vault {
    /// Writes the log, as the newest checkpoint signs it, to a file that is not there yet: from the first event on that was not
    /// removed with an earlier archive. With `words` also what was said to requests. Returns how many events. The vault goes on
    /// working meanwhile.
    ///
    /// # Errors
    /// [`crate::Refusal::Cold`], [`VaultError::Tampered`], [`VaultError::Exists`], [`VaultError::Io`], [`VaultError::Key`].
    pub fn archive(&self, path: &Path, sealing: &Sealing, words: bool) -> Result<u64, VaultError> {
        self.archive_telling(path, (sealing, words), |_, _| ())
    }

    /// As [`Vault::archive`]; `tell` hears how many events are written, and of how many.
    ///
    /// # Errors
    /// As [`Vault::archive`].
    pub fn archive_telling(
        &self,
        path: &Path,
        what: (&Sealing, bool),
        mut tell: impl FnMut(u64, u64),
    ) -> Result<u64, VaultError> {
        named_when_whole(path, |draft| self.write_archive(draft, what, &mut tell))
    }

    /// Removes from the database the rows of the events that an archive holds, all of them or none. The caller has opened the
    /// archive, and so has seen that its events are those that its checkpoint signs: this is [`Archive::head`] or what [`check`]
    /// returned. The log's hashes stay, so that every proof goes on verifying, and so do rows that something depends on: the
    /// newest of each memory, of each pause, of the lockdown, and the commitments of proofs. `lose_words`: also when what was said
    /// to requests is not in the archive. The vault answers nobody meanwhile.
    ///
    /// # Errors
    /// [`crate::Refusal::Cold`], [`crate::Refusal::Lockdown`]; [`VaultError::Invalid`] when the archive is of another log, leaves events
    /// out that are still in the database, or has no words; [`VaultError::Tampered`] when a row that is to be removed is not what
    /// the log hashed; [`VaultError::LogUnavailable`].
    pub fn prune(&self, archive: &ArchiveHead, lose_words: bool) -> Result<Pruned, VaultError> {
        self.begin_prune(archive, lose_words).0.wait()
    }

    /// As [`Vault::prune`], without waiting. The other part tells how much of the log was read.
    #[must_use]
    pub fn begin_prune(&self, archive: &ArchiveHead, lose_words: bool) -> (Pending<Pruned>, Arc<Progress>) {
        let (archive, progress) = (archive.clone(), Arc::new(Progress::default()));
        let state = Arc::clone(&progress);
        (self.ask(move |engine| engine.prune(&archive, lose_words, &state)), progress)
    }

    fn write_archive(
        &self,
        draft: &Path,
        (sealing, words): (&Sealing, bool),
        tell: &mut dyn FnMut(u64, u64),
    ) -> Result<u64, VaultError> {
        use std::os::unix::fs::OpenOptionsExt;
        let failed = |error: std::io::Error| VaultError::io("writing", draft, &error);
        let opened = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft);
        let file = BufWriter::new(opened.map_err(|error| VaultError::io("creating", draft, &error))?);
        let mut out = BufWriter::new(sealing.writer(file)?);
        self.ask(|engine| {
            let event = Event::new(engine.clock.now(), OWNER, Operation::Archive);
            engine.audited(event, |_, _| Ok(()))
        })
        .wait()?;
        let Start { note, from, edge } = self.ask(|engine| engine.archive_start()).wait()?;
        let size = Checkpoint::parse(note.unverified_text())?.size();
        let first = First { archive: FORMAT, checkpoint: note.to_string(), from, edge, words };
        let first = serde_json::to_string(&first).map_err(|error| unwritable(&error))?;
        writeln!(out, "{first}").map_err(failed)?;
        let mut next = from;
        while next < size {
            let entries = self.ask(move |engine| engine.entries(next, BATCH)).wait()?;
            if entries.is_empty() {
                return Err(VaultError::tampered(format!("the event {next}"), "its row is gone"));
            }
            for (entry, said) in entries.iter().take(usize::try_from(size - next).unwrap_or(usize::MAX)) {
                out.write_all(entry).and_then(|()| out.write_all(b"\n")).map_err(failed)?;
                if let Some(said) = said.as_ref().filter(|_| words) {
                    let said = serde_json::to_string(said).map_err(|error| unwritable(&error))?;
                    writeln!(out, "{said}").map_err(failed)?;
                }
            }
            next += entries.len() as u64;
            tell(next.min(size) - from, size - from);
        }
        let sealed = out.into_inner().map_err(|error| failed(error.into_error()))?;
        let mut buffer = sealed.finish().map_err(failed)?;
        buffer.flush().map_err(failed)?;
        buffer.get_ref().sync_all().map_err(failed)?;
        Ok(size - from)
    }
}

impl crate::engine::Engine {
    fn archive_start(&mut self) -> Result<Start, VaultError> {
        let note = self.add_checkpoint(0)?.note;
        let from = self.removed()?.upto();
        let edge = Frontier::load(&self.database, from)?;
        Ok(Start { note, from, edge: edge.roots().iter().map(|root| root.to_base64()).collect() })
    }

    /// Events, as the log hashes them, each with what was said to it; only those that follow each other.
    fn entries(&self, from: u64, count: usize) -> Result<Vec<Entry>, VaultError> {
        let rows = self.database.events_from(from, count)?;
        let follows = rows.iter().zip(from..).take_while(|(row, seq)| row.seq == *seq);
        follows.map(|(row, _)| self.open_event(row).map(|(event, entry)| (entry, event.said))).collect()
    }
}
