//! Verification: the log's rows against its hashes, the hashes against the checkpoints, the memories' rows against the log.

mod log;
mod report;
mod rows;

use std::collections::HashMap;
use std::sync::Arc;

use stvor_tlog::{Checkpoint, Frontier, Node, Note};

pub use report::{Problem, Progress, Report, Summary};
use rows::{ById, Known};

use crate::VaultError;
use crate::engine::Engine;
use crate::engine::removal::Removed;
use crate::level::Level;
use crate::memory::MemoryId;

/// Rows that are worked on at a time: so many that handing them over costs little, and as many as the caches of a processor hold; and
/// how often that is done in one step while others wait.
const PART: usize = 512;
const PARTS: usize = 20;

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
    /// One step of a verification, outside of a group. Returns the report after the last one. `alone` says whether nobody waits yet:
    /// as long as that is so a step may go on, for to begin and end one leaves processors idle.
    pub(crate) fn verify_step(
        &mut self,
        state: &mut Verification,
        mut alone: impl FnMut() -> bool,
    ) -> Result<Option<Report>, VaultError> {
        match state.phase {
            Phase::Begin => {
                self.verify_begin(state)?;
                state.go_on(Phase::Log);
            }
            Phase::Log => {
                if self.verify_events(state, &mut alone)? {
                    state.go_on(Phase::Memories);
                }
            }
            Phase::Memories => {
                self.catch_up(state)?;
                if self.verify_memories(state, &mut alone)? {
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
                while !self.verify_memories(state, || true)? {}
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
}
