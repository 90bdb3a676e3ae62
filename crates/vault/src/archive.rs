//! The log in a file of its own, from which every event can still be proved when the vault is gone. It is sealed as backups are,
//! and shows in clear, to who opens it, who asked for what and when; contents and what was said to a request are not in it.
//!
//! Inside the age file are lines: `{"archive":1,"checkpoint":"..."}`, then each event as the log hashes it.

use std::fs;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use stvor_keys::recipients::{Opening, Sealing};
use stvor_tlog::{
    Checkpoint, Frontier, Hash, InclusionProof, MemoryNodes, Note, ProofFile, TlogError, Verifier,
};

use crate::audit::{Event, Operation};
use crate::engine::agents::OWNER;
use crate::{Vault, VaultError};

/// Events that are read at a time.
const BATCH: usize = 4_096;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct First {
    archive: u32,
    checkpoint: String,
}

/// An archive that was read and held against its checkpoint.
#[derive(Debug)]
pub struct Archive {
    note: Note,
    checkpoint: Checkpoint,
    events: Vec<Vec<u8>>,
    nodes: MemoryNodes,
}

impl Vault {
    /// Writes the log, as the newest checkpoint signs it, to a file that is not there yet. Returns how many events. The vault goes
    /// on working meanwhile.
    ///
    /// # Errors
    /// [`crate::Refusal::Cold`], [`VaultError::Tampered`], [`VaultError::Exists`], [`VaultError::Io`], [`VaultError::Key`].
    pub fn archive(&self, path: &Path, sealing: &Sealing) -> Result<u64, VaultError> {
        if path.exists() {
            return Err(VaultError::Exists(path.to_owned()));
        }
        let mut draft = path.as_os_str().to_owned();
        draft.push(".new");
        let draft = PathBuf::from(draft);
        let _ = fs::remove_file(&draft);
        let done = self.write_archive(&draft, sealing).and_then(|count| {
            fs::rename(&draft, path).map_err(|error| VaultError::io("naming", path, &error))?;
            Ok(count)
        });
        if done.is_err() {
            let _ = fs::remove_file(&draft);
        }
        done
    }

    fn write_archive(&self, draft: &Path, sealing: &Sealing) -> Result<u64, VaultError> {
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
        let asked = self.ask(|engine| engine.add_checkpoint(0)).wait()?;
        let size = Checkpoint::parse(asked.note.unverified_text())?.size();
        let first = First { archive: 1, checkpoint: asked.note.to_string() };
        let first = serde_json::to_string(&first).map_err(|error| VaultError::Database(error.to_string()))?;
        writeln!(out, "{first}").map_err(failed)?;
        let mut next = 0;
        while next < size {
            let entries = self.ask(move |engine| engine.entries(next, BATCH)).wait()?;
            if entries.is_empty() {
                return Err(VaultError::tampered(format!("the event {next}"), "its row is gone"));
            }
            for entry in entries.iter().take(usize::try_from(size - next).unwrap_or(usize::MAX)) {
                out.write_all(entry).and_then(|()| out.write_all(b"\n")).map_err(failed)?;
            }
            next += entries.len() as u64;
        }
        let sealed = out.into_inner().map_err(|error| failed(error.into_error()))?;
        let mut buffer = sealed.finish().map_err(failed)?;
        buffer.flush().map_err(failed)?;
        buffer.get_ref().sync_all().map_err(failed)?;
        Ok(size)
    }
}

impl Archive {
    /// Reads an archive of the log `origin`, and holds every event in it against the checkpoint.
    ///
    /// # Errors
    /// [`VaultError::Key`] when it does not open, [`VaultError::Log`] when none of the keys signed it, [`VaultError::Tampered`].
    pub fn open(
        path: &Path,
        opening: &Opening,
        (origin, trusted): (&str, &[Verifier]),
    ) -> Result<Self, VaultError> {
        let bad = |reason: &str| VaultError::tampered(format!("the archive {}", path.display()), reason);
        let file = fs::File::open(path).map_err(|error| VaultError::io("opening", path, &error))?;
        let mut lines = BufReader::new(opening.reader(BufReader::new(file))?).split(b'\n');
        let read = |line: Option<std::io::Result<Vec<u8>>>| {
            line.transpose().map_err(|_| bad("it is cut short or was changed"))
        };
        let first = read(lines.next())?.ok_or_else(|| bad("it is empty"))?;
        let first: First = serde_json::from_slice(&first).map_err(|_| bad("it is no archive of a log"))?;
        let note = Note::parse(first.checkpoint.as_bytes())?;
        let checkpoint = Checkpoint::open(&note, origin, trusted)?;
        let (mut tree, mut nodes, mut events) = (Frontier::new(), MemoryNodes::new(), Vec::new());
        while let Some(entry) = read(lines.next())? {
            let mut complete = Vec::new();
            tree.append(Hash::leaf(&entry), &mut complete)?;
            nodes.put(&complete)?;
            events.push(entry);
        }
        if (tree.size(), tree.root()) != (checkpoint.size(), checkpoint.root()) {
            return Err(bad("its events are not those that its checkpoint signs"));
        }
        Ok(Self { note, checkpoint, events, nodes })
    }

    /// The checkpoint that signs it.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// An event, as the log hashes it, and the proof that it is in the log.
    ///
    /// # Errors
    /// [`VaultError::Log`] when there is no such event.
    pub fn prove(&self, event: u64) -> Result<(&[u8], ProofFile), VaultError> {
        let entry = usize::try_from(event).ok().and_then(|at| self.events.get(at));
        let entry = entry.ok_or_else(|| TlogError::Missing(format!("the event {event}")))?;
        let proof = InclusionProof::make(&self.nodes, event, self.checkpoint.size())?;
        Ok((entry, ProofFile { index: event, proof, extra: None, checkpoint: self.note.clone() }))
    }
}

impl crate::engine::Engine {
    /// Events, as the log hashes them.
    pub(crate) fn entries(&self, from: u64, count: usize) -> Result<Vec<Vec<u8>>, VaultError> {
        let rows = self.database.events_from(from, count)?;
        if rows.first().is_some_and(|row| row.seq != from) {
            return Err(VaultError::tampered(format!("the event {from}"), "its row is gone"));
        }
        rows.iter().map(|row| self.open_event(row).map(|(_, entry)| entry)).collect()
    }
}
