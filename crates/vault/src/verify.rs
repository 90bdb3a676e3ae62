//! Verification: the log's rows against its hashes, the hashes against the checkpoints, the memories' rows against the log.

use core::sync::atomic::{AtomicU64, Ordering};
use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use stvor_tlog::{Checkpoint, Frontier, Hash, InclusionProof, Note, ProofFile, TlogError};

use crate::VaultError;
use crate::audit::Operation;
use crate::engine::Engine;
use crate::level::Level;
use crate::memory::{MemoryId, State};
use crate::reading;

/// Rows that are read at a time.
const BATCH: usize = 4_096;
/// Problems that are listed; more are only counted.
const MAX_PROBLEMS: usize = 100;

/// Something that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Where.
    pub place: String,
    /// How it shows.
    pub reason: String,
}

/// What verification found.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    /// Events that were read.
    pub events: u64,
    /// Memories that were read.
    pub memories: u64,
    /// The size of the newest checkpoint outside the database, if there is one.
    pub outside: Option<u64>,
    /// What is wrong; nothing if all is well.
    pub problems: Vec<Problem>,
    /// Problems that are not listed.
    pub more_problems: u64,
    /// Contents that were opened, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opened: Option<u64>,
}

/// What verification found, in numbers: what everybody may know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Whether nothing is wrong.
    pub sound: bool,
    /// Events that were read.
    pub events: u64,
    /// Memories that were read.
    pub memories: u64,
    /// Seconds since they were read.
    pub age: u64,
}

/// How far a verification is; another thread may look.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    total: AtomicU64,
}

impl Progress {
    /// Rows that were read, and rows in all (0 before that is known).
    #[must_use]
    pub fn now(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }

    pub(crate) fn add(&self, rows: usize) {
        self.done.fetch_add(rows as u64, Ordering::Relaxed);
    }

    pub(crate) fn expect(&self, rows: u64) {
        self.total.fetch_add(rows, Ordering::Relaxed);
    }
}

impl Report {
    fn add(&mut self, place: impl Into<String>, reason: impl Into<String>) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(Problem { place: place.into(), reason: reason.into() });
        } else {
            self.more_problems += 1;
        }
    }
}

impl Engine {
    /// Reads everything and says what is wrong; with `content` also opens every content whose key is held.
    pub(crate) fn verify(&mut self, content: bool, progress: &Progress) -> Result<Report, VaultError> {
        let mut report = Report::default();
        let memories = self.database.memory_count()?;
        progress.expect(self.held()?.tree.size() + memories * if content { 2 } else { 1 });
        let trusted = self.held()?.base.verifiers();
        let origin = trusted.first().map(|key| key.name().to_owned()).unwrap_or_default();
        let open = |text: &[u8]| Checkpoint::open(&Note::parse(text)?, &origin, &trusted);
        let mut heads: Vec<(String, Checkpoint)> = Vec::new();
        match self.database.checkpoint()? {
            Some(text) => match open(text.as_bytes()) {
                Ok(checkpoint) => heads.push(("the checkpoint in the database".into(), checkpoint)),
                Err(error) => report.add("the checkpoint in the database", error.to_string()),
            },
            None => report.add("the checkpoint in the database", "it is missing"),
        }
        for (number, file) in self.outside.iter_mut().enumerate() {
            let place = format!("the checkpoint outside the database ({number})");
            let found = file.newest(|note| Checkpoint::open(note, &origin, &trusted).is_ok())?;
            if let Some(note) = &found.claimed {
                let claimed = Checkpoint::open(note, &origin, &trusted);
                let reason = claimed.err().map_or_else(String::new, |error| error.to_string());
                report.add(place.clone(), format!("it holds a note that this log did not sign: {reason}"));
            }
            match found.note.map(|note| Checkpoint::open(&note, &origin, &trusted)) {
                Some(checkpoint) => {
                    let checkpoint = checkpoint?;
                    report.outside = report.outside.max(Some(checkpoint.size()));
                    heads.push((place, checkpoint));
                }
                None if found.claimed.is_none() => report.add(place, "there is none"),
                None => {}
            }
        }
        if let Some(session) = &self.held()?.session {
            for level in [Level::Private, Level::Sealed].into_iter().filter(|level| !session.opens(*level)) {
                report.add(format!("the key record of level {level}"), "it does not open");
            }
        }
        let digests = self.verify_log((&mut report, progress), &heads)?;
        self.verify_memories((&mut report, progress), digests)?;
        for table in self.database.unsound()? {
            report.add(
                format!("what the vault keeps of {}", table.what()),
                "a record was removed, added or set back",
            );
        }
        if content {
            let contents = self.verify_content(progress)?;
            report.opened = Some(contents.memories);
            contents.problems.into_iter().for_each(|problem| report.add(problem.place, problem.reason));
            report.more_problems += contents.more_problems;
        }
        Ok(report)
    }

    /// Reads every event and every hash. Returns the digest of each memory's row as the log has it.
    fn verify_log(
        &self,
        (report, progress): (&mut Report, &Progress),
        heads: &[(String, Checkpoint)],
    ) -> Result<HashMap<MemoryId, [u8; 32]>, VaultError> {
        let base = &self.held()?.base;
        let mut digests = HashMap::new();
        let mut tree = Frontier::new();
        let mut complete = Vec::new();
        let (mut next, mut nodes, mut bad_hashes, mut stopped) = (0, 0_u64, 0_u64, false);
        loop {
            let rows = self.database.events_from(next, BATCH)?;
            let Some(last) = rows.last() else { break };
            let after = last.seq + 1;
            progress.add(rows.len());
            let read = reading::each(&rows, |row| reading::event(base, row));
            for (row, event) in rows.iter().zip(read) {
                while next < row.seq {
                    report.add(format!("the event {next}"), "its row is gone");
                    next += 1;
                    if report.more_problems > 0 {
                        break;
                    }
                }
                next = row.seq + 1;
                report.events += 1;
                let Some(event) = event else {
                    report.add(
                        format!("the event {}", row.seq),
                        "it was changed, or stands in another's place",
                    );
                    tree.append(Hash::empty(), &mut complete)?;
                    continue;
                };
                tree.append(event.leaf, &mut complete)?;
                if !event.said {
                    report.add(format!("the event {}", row.seq), "what was said to it was changed");
                }
                match event.operation {
                    Operation::EnterLockdown if !event.refused => stopped = true,
                    Operation::LeaveLockdown if !event.refused => stopped = false,
                    _ => {}
                }
                digests.extend(event.row);
            }
            next = after;
            nodes += complete.len() as u64;
            bad_hashes += self.verify_hashes(report, &mut complete)?;
            for (place, head) in heads.iter().filter(|(_, head)| head.size() == tree.size()) {
                if head.root() != tree.root() {
                    report.add(place.clone(), "the log does not lead to the root that it signs");
                }
            }
        }
        let (_, stored) = self.database.log_counts()?;
        if stored != nodes {
            report.add("the hashes of the log", format!("there are {stored} of {nodes}"));
        }
        match self.lockdown() {
            Ok(lockdown) if lockdown.is_some() == stopped => {}
            Ok(_) => report.add("the record of the lockdown", "it is not what the log says: it was set back"),
            Err(error) => report.add("the record of the lockdown", error.to_string()),
        }
        self.verify_heads(report, heads, (&tree, bad_hashes))?;
        Ok(digests)
    }

    /// Compares computed hashes with the stored ones, and empties the list.
    fn verify_hashes(
        &self,
        report: &mut Report,
        complete: &mut Vec<stvor_tlog::Node>,
    ) -> Result<u64, VaultError> {
        let mut bad = 0;
        complete.sort_unstable_by_key(|node| (node.level, node.index));
        for level in complete.chunk_by(|a, b| a.level == b.level) {
            let Some(first) = level.first() else { continue };
            let stored = self.database.node_range(first.level, (first.index, level.len()))?;
            let mut stored = stored.into_iter().peekable();
            // Both in order of their indexes; a row that is missing or too many meets nothing.
            for node in level {
                while stored.next_if(|(index, _)| *index < node.index).is_some() {}
                if stored.next_if(|(index, _)| *index == node.index) != Some((node.index, node.hash)) {
                    bad += 1;
                    let place = format!("the hash {} of level {}", node.index, node.level);
                    report.add(place, "it is not that of its events");
                }
            }
        }
        complete.clear();
        Ok(bad)
    }

    fn verify_heads(
        &self,
        report: &mut Report,
        heads: &[(String, Checkpoint)],
        (tree, bad_hashes): (&Frontier, u64),
    ) -> Result<(), VaultError> {
        for (place, head) in heads {
            if head.size() > tree.size() {
                report.add(
                    "the log",
                    format!("it was cut: {} events, {place} signs {}", tree.size(), head.size()),
                );
            } else if head.size() < tree.size() && place.contains("in the database") {
                report.add(place.clone(), "it was replaced by an older one");
            } else if bad_hashes == 0 && Frontier::load(&self.database, head.size())?.root() != head.root() {
                // The stored hashes were just found to be those of the events.
                report.add(place.clone(), "the log is not the one that it signs: it was written anew");
            }
        }
        let held = self.held()?;
        if (held.tree.size(), held.tree.root()) != (tree.size(), tree.root()) {
            report.add("the log", "it is not the one that this process wrote");
        }
        Ok(())
    }

    fn verify_memories(
        &self,
        (report, progress): (&mut Report, &Progress),
        mut digests: HashMap<MemoryId, [u8; 32]>,
    ) -> Result<(), VaultError> {
        let base = &self.held()?.base;
        let mut after = 0;
        loop {
            let rows = self.database.memories_after(after, BATCH)?;
            let Some((last, _)) = rows.last() else { break };
            after = *last;
            progress.add(rows.len());
            let read = reading::each(&rows, |(_, row)| (row.digest_bytes(), reading::header(base, row)));
            for ((_, row), (digest, problem)) in rows.iter().zip(read) {
                report.memories += 1;
                let place = || format!("the memory {}", row.id);
                match (digests.remove(&row.id), problem) {
                    (None, _) => report.add(place(), "the log does not know of it"),
                    (Some(logged), _) if logged != digest => {
                        report.add(
                            place(),
                            "its row is not the one that the log has: it was changed or set back",
                        );
                    }
                    (Some(_), Some(problem)) => report.add(place(), problem),
                    (Some(_), None) => {}
                }
            }
        }
        for id in digests.keys() {
            report.add(format!("the memory {id}"), "its row is gone");
        }
        Ok(())
    }

    /// Opens every content whose key is held.
    pub(crate) fn verify_content(&self, progress: &Progress) -> Result<Report, VaultError> {
        let mut report = Report::default();
        let session = self.held()?.session.as_ref();
        let mut after = 0;
        loop {
            let rows = self.database.memories_after(after, BATCH)?;
            let Some((last, _)) = rows.last() else { break };
            after = *last;
            progress.add(rows.len());
            for (_, row) in rows {
                let opened = self.header(&row).and_then(|header| {
                    let ended = matches!(header.state, State::Forgotten | State::Expired);
                    let held =
                        !header.level.needs_session() || session.is_some_and(|keys| keys.opens(header.level));
                    if ended || !held || !self.profile_open(&header) {
                        Ok(0)
                    } else {
                        self.open(&row, &header).map(|_| 1)
                    }
                });
                match opened {
                    Ok(count) => report.memories += count,
                    Err(error) => report.add(format!("the memory {}", row.id), error.to_string()),
                }
            }
        }
        Ok(report)
    }

    /// Proves an event against the newest checkpoint.
    pub(crate) fn prove(&self, index: u64) -> Result<(Vec<u8>, ProofFile), VaultError> {
        let held = self.held()?;
        let text = self.database.checkpoint()?.ok_or_else(|| TlogError::Missing("the checkpoint".into()))?;
        let note = Note::parse(text.as_bytes())?;
        let trusted = held.base.verifiers();
        let checkpoint = Checkpoint::open(&note, held.base.signer.verifier().name(), &trusted)?;
        let proof = InclusionProof::make(&self.database, index, checkpoint.size())?;
        let rows = self.database.events_from(index, 1)?;
        let row = rows.first().filter(|row| row.seq == index);
        let row = row.ok_or_else(|| TlogError::Missing(format!("the event {index}")))?;
        let (_, entry) = self.open_event(row)?;
        Ok((entry, ProofFile { index, proof, extra: None, checkpoint: note }))
    }
}
