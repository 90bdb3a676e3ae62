//! The log: its rows against its hashes, and these against the checkpoints.

use std::collections::BTreeMap;
use std::sync::Arc;

use stvor_tlog::{Frontier, Hash, InclusionProof, Node, Note, ProofFile, TlogError};

use super::rows::Known;
use super::{PART, PARTS, Report, Verification};
use crate::VaultError;
use crate::audit::Operation;
use crate::engine::Engine;
use crate::engine::removal::Removed;
use crate::reading::{self, ReadEvent};

/// Hashes that were computed before they are held against the stored ones: so few that other threads have work meanwhile.
const HASHES: usize = 2048;

impl Engine {
    /// Reads the events that were logged since the last look.
    pub(super) fn catch_up(&self, state: &mut Verification) -> Result<(), VaultError> {
        while !self.verify_events(state, || true)? {}
        Ok(())
    }

    /// Reads some events and their hashes, more than [`PARTS`] while `alone`. Returns whether these were the last ones.
    pub(super) fn verify_events(
        &self,
        state: &mut Verification,
        mut alone: impl FnMut() -> bool,
    ) -> Result<bool, VaultError> {
        self.read_removed(state)?;
        let base = &self.held()?.base;
        let progress = Arc::clone(&state.progress);
        let (mut next, mut left, mut end) = (state.read, PARTS, false);
        let read = |spare| {
            if end || left == 0 && !alone() {
                return Ok(None);
            }
            let part = self.database.event_part((next, PART), spare)?;
            left = left.saturating_sub(1);
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

    pub(super) fn verify_heads(&self, state: &mut Verification) -> Result<(), VaultError> {
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
