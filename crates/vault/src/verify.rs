//! Verification: the log's rows against its hashes, the hashes against the checkpoints, the memories' rows against the log.

use core::hash::{BuildHasher, Hasher};
use core::sync::atomic::{AtomicU64, Ordering};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use stvor_tlog::{Checkpoint, Frontier, Hash, InclusionProof, Node, Note, ProofFile, TlogError};

use crate::VaultError;
use crate::audit::Operation;
use crate::engine::Engine;
use crate::engine::removal::Removed;
use crate::level::Level;
use crate::memory::{MemoryId, State};
use crate::reading::{self, ReadEvent, ReadMemory};

/// Rows that are worked on at a time: so many that handing them over costs little, and as many as the caches of a processor hold; and
/// how often that is done in one step.
const PART: usize = 512;
const PARTS: usize = 20;
/// Hashes that were computed before they are held against the stored ones: so few that other threads have work meanwhile.
const HASHES: usize = 2048;
/// Contents that one step opens: each may have a megabyte.
const CONTENTS: usize = 64;
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
    /// Events whose rows were archived and removed: their hashes were read, and the archive shows what they say.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub removed: u64,
    /// Removed events are all before this one.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub removed_before: u64,
    /// What is wrong; nothing if all is well.
    pub problems: Vec<Problem>,
    /// Problems that are not listed.
    pub more_problems: u64,
    /// Contents that were opened, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opened: Option<u64>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
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

/// What a verification looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// The log and every row.
    Rows,
    /// That, and every content whose key is held.
    Everything,
    /// The contents alone.
    Contents,
}

/// What is next in a verification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Begin,
    Log,
    Memories,
    Contents,
    End,
}

/// A memory that the log knows of.
#[derive(Debug)]
struct Known {
    /// The digest of its row as the log has it.
    digest: [u8; 32],
    /// Whether there is a row.
    seen: bool,
    /// The event that stored it, if that has a row.
    stored: Option<u64>,
}

/// Ids are random and the log is the vault's own, so some bytes of one are as good as a hash of it.
#[derive(Debug, Clone, Copy, Default)]
struct ById(u64);

impl BuildHasher for ById {
    type Hasher = Self;

    fn build_hasher(&self) -> Self {
        Self(0)
    }
}

impl Hasher for ById {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.as_chunks::<8>().0 {
            self.0 ^= u64::from_ne_bytes(*chunk);
        }
    }
}

/// A verification that is under way. It is done in steps between groups of operations, so that it keeps nobody waiting; what is
/// written meanwhile is read too.
#[derive(Debug)]
pub(crate) struct Verification {
    scope: Scope,
    phase: Phase,
    progress: Arc<Progress>,
    report: Report,
    contents: Report,
    /// Checkpoints of archives that the log is held against, too.
    archives: Vec<Note>,
    /// Checkpoints outside the database, and where they are.
    heads: Vec<(String, Checkpoint)>,
    tree: Frontier,
    /// Hashes that were computed and are not held against the stored ones yet.
    complete: Vec<Node>,
    /// The event that is taken next.
    next: u64,
    /// Rows of events before this number were read.
    read: u64,
    nodes: u64,
    bad_hashes: u64,
    /// Whether the log says that the vault is in lockdown.
    stopped: bool,
    /// Which events have no rows any more, and the record that says so, as it stands in the database.
    removed: (Option<Vec<u8>>, Removed),
    /// The digest of that by the log.
    pruned: Option<[u8; 32]>,
    known: HashMap<MemoryId, Known, ById>,
    /// The latest of the events that stored the memories whose rows were read.
    stored: u64,
    /// The place of the last memory whose row was read.
    after: i64,
    /// The place of the last one whose content was opened.
    opened: i64,
}

impl Verification {
    pub(crate) fn new(scope: Scope, archives: Vec<Note>, progress: Arc<Progress>) -> Self {
        Self {
            scope,
            phase: if scope == Scope::Contents { Phase::Contents } else { Phase::Begin },
            progress,
            report: Report::default(),
            contents: Report::default(),
            archives,
            heads: Vec::new(),
            tree: Frontier::new(),
            complete: Vec::new(),
            next: 0,
            read: 0,
            nodes: 0,
            bad_hashes: 0,
            stopped: false,
            removed: (None, Removed::default()),
            pruned: None,
            known: HashMap::default(),
            stored: 0,
            after: i64::MIN,
            opened: i64::MIN,
        }
    }

    fn go_on(&mut self, phase: Phase) {
        self.phase = phase;
    }
}

impl Engine {
    /// One step of a verification, outside of a group. Returns the report after the last one.
    pub(crate) fn verify_step(&mut self, state: &mut Verification) -> Result<Option<Report>, VaultError> {
        match state.phase {
            Phase::Begin => {
                self.verify_begin(state)?;
                state.go_on(Phase::Log);
            }
            Phase::Log => {
                if self.verify_events(state)? {
                    state.go_on(Phase::Memories);
                }
            }
            Phase::Memories => {
                self.catch_up(state)?;
                if self.verify_memories(state)? {
                    let content = state.scope == Scope::Everything;
                    state.go_on(if content { Phase::Contents } else { Phase::End });
                }
            }
            Phase::Contents => {
                if self.verify_contents(state)? {
                    if state.scope == Scope::Contents {
                        return Ok(Some(core::mem::take(&mut state.contents)));
                    }
                    state.go_on(Phase::End);
                }
            }
            Phase::End => {
                self.catch_up(state)?;
                // Those that were stored since the last look.
                while !self.verify_memories(state)? {}
                self.verify_end(state)?;
                return Ok(Some(core::mem::take(&mut state.report)));
            }
        }
        Ok(None)
    }

    fn verify_begin(&mut self, state: &mut Verification) -> Result<(), VaultError> {
        let memories = self.database.memory_count()?;
        state.known.reserve(usize::try_from(memories).unwrap_or_default());
        let reads = if state.scope == Scope::Everything { 2 } else { 1 };
        state.progress.expect(self.held()?.tree.size() + memories * reads);
        let trust = self.held()?.base.trust();
        for (number, file) in self.outside.iter_mut().enumerate() {
            let place = format!("the checkpoint outside the database ({number})");
            let found = file.newest(|note| trust.open(note).is_ok())?;
            if let Some(note) = &found.claimed {
                let claimed = trust.open(note);
                let reason = claimed.err().map_or_else(String::new, |error| error.to_string());
                state
                    .report
                    .add(place.clone(), format!("it holds a note that this log did not sign: {reason}"));
            }
            match found.note.map(|note| trust.open(&note)) {
                Some(checkpoint) => {
                    let checkpoint = checkpoint?;
                    state.report.outside = state.report.outside.max(Some(checkpoint.size()));
                    state.heads.push((place, checkpoint));
                }
                None if found.claimed.is_none() => state.report.add(place, "there is none"),
                None => {}
            }
        }
        for note in core::mem::take(&mut state.archives) {
            match trust.open(&note) {
                Ok(checkpoint) => {
                    let place = format!("the checkpoint of the archive of {} events", checkpoint.size());
                    state.heads.push((place, checkpoint));
                }
                Err(error) => state.report.add("the checkpoint of an archive", error.to_string()),
            }
        }
        match self.missing_checkpoints() {
            Ok(missing) => missing.iter().for_each(|one| {
                let place = format!("the checkpoints outside the database in {}", one.file);
                let reason = format!(
                    "there was none when the vault was opened at {} events: whether the log was set back before, nobody can tell. \
                     If you know why, accept it: stvor vault verify --accept-missing",
                    one.size
                );
                state.report.add(place, reason);
            }),
            Err(error) => state.report.add("the record of missing checkpoints", error.to_string()),
        }
        if let Some(session) = &self.held()?.session {
            for level in [Level::Private, Level::Sealed].into_iter().filter(|level| !session.opens(*level)) {
                state.report.add(format!("the key record of level {level}"), "it does not open");
            }
        }
        Ok(())
    }

    /// Reads the events that were logged since the last look.
    fn catch_up(&self, state: &mut Verification) -> Result<(), VaultError> {
        while !self.verify_events(state)? {}
        Ok(())
    }

    /// Reads some events and their hashes. Returns whether these were the last ones.
    fn verify_events(&self, state: &mut Verification) -> Result<bool, VaultError> {
        self.read_removed(state)?;
        let base = &self.held()?.base;
        let progress = Arc::clone(&state.progress);
        let (mut next, mut left, mut end) = (state.read, PARTS, false);
        let read = |spare| {
            if left == 0 || end {
                return Ok(None);
            }
            let part = self.database.event_part((next, PART), spare)?;
            left -= 1;
            next = part.last().map_or(next, |last| last + 1);
            // No row has a greater number than that.
            end = part.len() == 0 || next > i64::MAX.cast_unsigned();
            progress.add(part.len());
            Ok(Some(part).filter(|part| part.len() > 0))
        };
        let take = |events| {
            self.take_events(state, events)?;
            if state.complete.len() < HASHES { Ok(()) } else { self.take_hashes(state) }
        };
        reading::piped(read, |part| reading::events(base, part), take)?;
        state.read = next;
        self.take_hashes(state)?;
        Ok(end)
    }

    fn take_events(
        &self,
        state: &mut Verification,
        events: Vec<(u64, Option<ReadEvent>)>,
    ) -> Result<(), VaultError> {
        let size = self.held()?.tree.size();
        for (seq, event) in events {
            if seq >= size {
                state.report.add(format!("the event {seq}"), "the log has no such event");
                continue;
            }
            self.take_gap(state, seq)?;
            state.next = seq + 1;
            state.report.events += 1;
            let Some(event) = event else {
                let reason = "it was changed, or stands in another's place";
                state.report.add(format!("the event {seq}"), reason);
                state.tree.append(Hash::empty(), &mut state.complete)?;
                continue;
            };
            state.tree.append(event.leaf, &mut state.complete)?;
            if !event.said {
                state.report.add(format!("the event {seq}"), "what was said to it was changed");
            }
            match event.operation {
                Operation::EnterLockdown if !event.refused => state.stopped = true,
                Operation::LeaveLockdown if !event.refused => state.stopped = false,
                _ => {}
            }
            state.pruned = event.removed.or(state.pruned);
            if let Some((id, digest)) = event.row {
                let known = state.known.entry(id).or_insert(Known { digest, seen: false, stored: None });
                known.digest = digest;
                if event.operation == Operation::Store {
                    known.stored = Some(seq);
                }
            }
        }
        Ok(())
    }

    /// Learns which events have no rows any more. That may change while a verification is under way.
    fn read_removed(&self, state: &mut Verification) -> Result<(), VaultError> {
        let record = self.removed_record()?;
        if record != state.removed.0 {
            let removed =
                record.as_deref().map_or_else(|| Ok(Removed::default()), |record| self.open_removed(record));
            match removed {
                Ok(removed) => state.removed = (record, removed),
                Err(VaultError::Tampered { place, reason }) => {
                    state.report.add(place, reason);
                    state.removed = (record, Removed::default());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes events without rows up to a number: those that were removed, by their hashes. Others are missing.
    fn take_gap(&self, state: &mut Verification, upto: u64) -> Result<(), VaultError> {
        while state.next < upto {
            let count = (upto - state.next).min(PART as u64);
            let leaves = self.database.node_range(0, (state.next, PART))?;
            let mut leaves = leaves.into_iter().peekable();
            for seq in state.next..state.next + count {
                while leaves.next_if(|(at, _)| *at < seq).is_some() {}
                let leaf = leaves.next_if(|(at, _)| *at == seq).map_or_else(Hash::empty, |(_, leaf)| leaf);
                state.tree.append(leaf, &mut state.complete)?;
                if state.removed.1.contains(seq) {
                    state.report.removed += 1;
                } else {
                    state.report.add(format!("the event {seq}"), "its row is gone");
                }
            }
            state.next += count;
            state.progress.add(usize::try_from(count).unwrap_or(0));
            self.take_hashes(state)?;
        }
        Ok(())
    }

    /// Holds the hashes of what was read against the stored ones.
    fn take_hashes(&self, state: &mut Verification) -> Result<(), VaultError> {
        state.nodes += state.complete.len() as u64;
        state.bad_hashes += self.verify_hashes(&mut state.report, &mut state.complete)?;
        Ok(())
    }

    /// What can be said when everything was read.
    fn verify_end(&mut self, state: &mut Verification) -> Result<(), VaultError> {
        let (record, removed) = &state.removed;
        state.report.removed_before = removed.upto();
        if record.as_ref().map(|_| removed.digest()) != state.pruned {
            state.report.add("the record of removed events", "it is not the one that the log has");
        }
        let stored = self.database.node_count()?;
        if stored != state.nodes {
            state.report.add("the hashes of the log", format!("there are {stored} of {}", state.nodes));
        }
        match self.lockdown() {
            Ok(lockdown) if lockdown.is_some() == state.stopped => {}
            Ok(_) => {
                state
                    .report
                    .add("the record of the lockdown", "it is not what the log says: it was set back");
            }
            Err(error) => state.report.add("the record of the lockdown", error.to_string()),
        }
        self.verify_heads(state)?;
        for (id, _) in state.known.iter().filter(|(_, known)| !known.seen) {
            state.report.add(format!("the memory {id}"), "its row is gone");
        }
        if !self.database.memories_are_numbered()? {
            state.report.add(
                "the numbers of the memories",
                "they are not 1, 2, 3 and so on: which backups hold a memory follows from them",
            );
        }
        for table in self.database.unsound()? {
            state.report.add(
                format!("what the vault keeps of {}", table.what()),
                "a record was removed, added or set back",
            );
        }
        if state.scope == Scope::Everything {
            let contents = core::mem::take(&mut state.contents);
            state.report.opened = Some(contents.memories);
            contents.problems.into_iter().for_each(|problem| state.report.add(problem.place, problem.reason));
            state.report.more_problems += contents.more_problems;
        }
        Ok(())
    }

    /// Compares computed hashes with the stored ones, and empties the list.
    fn verify_hashes(&self, report: &mut Report, complete: &mut Vec<Node>) -> Result<u64, VaultError> {
        let mut bad = 0;
        // Of each level they come by their indexes.
        let mut levels = BTreeMap::<u8, Vec<Node>>::new();
        for node in complete.drain(..) {
            levels.entry(node.level).or_default().push(node);
        }
        for level in levels.values() {
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
        Ok(bad)
    }

    fn verify_heads(&self, state: &mut Verification) -> Result<(), VaultError> {
        let held = self.held()?;
        let trust = held.base.trust();
        let open = |text: &[u8]| trust.open(&Note::parse(text)?);
        let own = "the checkpoint in the database";
        match self.database.checkpoint()? {
            Some(text) => match open(text.as_bytes()) {
                Ok(checkpoint) => state.heads.push((own.into(), checkpoint)),
                Err(error) => state.report.add(own, error.to_string()),
            },
            None => state.report.add(own, "it is missing"),
        }
        let size = state.tree.size();
        for (place, head) in &state.heads {
            if head.size() > size {
                let cut = format!("it was cut: {size} events, {place} signs {}", head.size());
                state.report.add("the log", cut);
            } else if head.size() < size && place == own {
                state.report.add(place.clone(), "it was replaced by an older one");
            } else if head.size() == size && head.root() != state.tree.root() {
                state.report.add(place.clone(), "the log does not lead to the root that it signs");
            } else if state.bad_hashes == 0
                && Frontier::load(&self.database, head.size())?.root() != head.root()
            {
                // The stored hashes were just found to be those of the events.
                let reason = "the log is not the one that it signs: it was written anew";
                state.report.add(place.clone(), reason);
            }
        }
        if (held.tree.size(), held.tree.root()) != (size, state.tree.root()) {
            state.report.add("the log", "it is not the one that this process wrote");
        }
        Ok(())
    }

    /// Holds some memories' rows against the log. Returns whether these were the last ones.
    fn verify_memories(&self, state: &mut Verification) -> Result<bool, VaultError> {
        let base = &self.held()?.base;
        let progress = Arc::clone(&state.progress);
        let (mut after, mut left, mut end) = (state.after, PARTS, false);
        let read = |spare| {
            if left == 0 {
                return Ok(None);
            }
            let part = self.database.memory_part((after, PART), spare)?;
            left -= 1;
            after = part.last.unwrap_or(after);
            progress.add(part.len());
            end = part.len() == 0;
            Ok(Some(part).filter(|part| part.len() > 0))
        };
        let take = |rows| {
            take_memories(state, rows);
            Ok::<_, VaultError>(())
        };
        reading::piped(read, |part| reading::memories(base, part), take)?;
        state.after = after;
        Ok(end)
    }

    /// Opens some contents whose keys are held. Returns whether there are no more.
    fn verify_contents(&self, state: &mut Verification) -> Result<bool, VaultError> {
        let session = self.held()?.session.as_ref();
        let rows = self.database.memories_after(state.opened, CONTENTS)?;
        let Some((last, _)) = rows.last() else { return Ok(true) };
        state.opened = *last;
        state.progress.add(rows.len());
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
                Ok(opened) => state.contents.memories += opened,
                Err(error) => state.contents.add(format!("the memory {}", row.id), error.to_string()),
            }
        }
        Ok(false)
    }

    /// Proves an event against the newest checkpoint.
    pub(crate) fn prove(&self, index: u64) -> Result<(Vec<u8>, ProofFile), VaultError> {
        let held = self.held()?;
        let text = self.database.checkpoint()?.ok_or_else(|| TlogError::Missing("the checkpoint".into()))?;
        let note = Note::parse(text.as_bytes())?;
        let checkpoint = held.base.trust().open(&note)?;
        let proof = InclusionProof::make(&self.database, index, checkpoint.size())?;
        let rows = self.database.events_from(index, 1)?;
        let row = rows.first().filter(|row| row.seq == index);
        let missing = || match self.removed() {
            Ok(removed) if removed.contains(index) => VaultError::invalid(format!(
                "the event {index} was archived and removed: prove it from the archive (`stvor vault proof make --archive`)"
            )),
            _ => TlogError::Missing(format!("the event {index}")).into(),
        };
        let row = row.ok_or_else(missing)?;
        let (_, entry) = self.open_event(row)?;
        Ok((entry, ProofFile { index, proof, extra: None, checkpoint: note }))
    }
}

fn take_memories(state: &mut Verification, rows: Vec<ReadMemory>) {
    for ReadMemory { id, digest, problem } in rows {
        state.report.memories += 1;
        let place = || format!("the memory {id}");
        let Some(known) = state.known.get_mut(&id) else {
            state.report.add(place(), "the log does not know of it");
            continue;
        };
        known.seen = true;
        // Rows are numbered in the order in which their memories were stored. Where that event was archived and removed, nothing
        // tells.
        if known.stored.is_some_and(|stored| stored < state.stored) {
            state.report.add(place(), "its row stands in the place of another");
        }
        state.stored = state.stored.max(known.stored.unwrap_or(0));
        if known.digest != digest {
            let reason = "its row is not the one that the log has: it was changed or set back";
            state.report.add(place(), reason);
        } else if let Some(problem) = problem {
            state.report.add(place(), problem);
        }
    }
}
