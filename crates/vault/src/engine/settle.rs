//! What follows a commit. Nothing of it can undo the commit, so nothing of it fails what was asked for: it is told to hooks, and
//! done later.

use stvor_base::ErrorCode;
use stvor_tlog::Note;

use super::{Engine, Later};
use crate::metrics::Alert;
use crate::storage::{CheckpointFile, EndedList};
use crate::{VaultError, limits};

/// Failures after a commit that hooks were told of: they are told again when it worked in between.
#[derive(Debug, Default)]
pub(super) struct Told {
    list: bool,
    wipe: bool,
}

impl Engine {
    /// What follows a commit and can not undo it: checkpoints outside, the index, the lists of ended memories, overwriting.
    /// What fails is reported, and done later.
    pub(super) fn settle(&mut self, note: Option<&Note>) -> Option<VaultError> {
        if let Some(note) = note {
            self.each_outside(|file| file.append(note));
        }
        self.apply_later();
        self.list_ended();
        if self.watchers.due {
            self.tell_watchers();
        }
        self.unwiped |= core::mem::take(&mut self.wipe);
        self.overwrite()
    }

    /// Writes to each file of checkpoints; one that fails keeps none of the others from it.
    fn each_outside(&mut self, mut write: impl FnMut(&mut CheckpointFile) -> Result<(), VaultError>) {
        let mut outside = core::mem::take(&mut self.outside);
        for file in &mut outside {
            let known = file.is_behind();
            if let Err(error) = write(file) {
                self.metrics.checkpoint_failures.increment(1);
                if !known {
                    self.alert(&Alert::CheckpointFailed { at: self.clock.now(), code: error.code() });
                }
            }
        }
        self.outside = outside;
    }

    fn apply_later(&mut self) {
        let changes = core::mem::take(&mut self.later);
        for change in &changes {
            match change {
                Later::Add(id, (namespace, level), text) => self.index.add(*id, (namespace, *level), text),
                Later::Remove(id) => self.index.remove(id),
            }
        }
        let added = changes.iter().any(|change| matches!(change, Later::Add(..)));
        // It is made anew when it is needed.
        if added && self.index.make_room(0, super::indexing::MOST).is_err() {
            self.drop_index();
        }
    }

    /// Appends to each list of ended memories what it has not yet.
    fn list_ended(&mut self) {
        let failed = self.try_list_ended().err();
        if let Some(error) = failed.as_ref().filter(|_| !self.told.list) {
            self.alert(&Alert::ListFailed { at: self.clock.now(), code: error.code() });
        }
        self.told.list = failed.is_some();
    }

    fn try_list_ended(&mut self) -> Result<(), VaultError> {
        loop {
            let after = self.ended.iter().map(EndedList::upto).min().unwrap_or_default();
            let lines = self.database.ended_after(after, limits::MAX_GROUP)?;
            let Some((last, _)) = lines.last() else { return Ok(()) };
            let mut done = Ok(());
            for list in self.ended.iter_mut().filter(|list| list.upto() < *last) {
                // One that fails keeps none of the others from it.
                done = done.and(list.append(&lines));
            }
            done?;
            self.listed = *last;
        }
    }

    /// Overwrites what was destroyed, in the journal too.
    fn overwrite(&mut self) -> Option<VaultError> {
        if !self.unwiped {
            return None;
        }
        match self.database.merge_journal() {
            Ok(()) => {
                (self.unwiped, self.told.wipe) = (false, false);
                None
            }
            Err(error) => {
                let error = VaultError::WipePending(error.to_string());
                if !self.told.wipe {
                    self.alert(&Alert::WipeFailed { at: self.clock.now(), code: error.code() });
                }
                self.told.wipe = true;
                Some(error)
            }
        }
    }

    /// Whether something that was destroyed is not overwritten yet.
    pub(crate) fn unwiped(&self) -> bool {
        self.unwiped
    }

    /// Does what a process before this one left behind: destroyed memories in the journal, lists without them.
    pub(crate) fn resume(&mut self) {
        self.list_ended();
        let _ = self.overwrite();
    }

    /// What is done while nobody asks for anything.
    pub(crate) fn idle(&mut self) {
        self.drop_stale_token();
        self.tell_watchers();
        self.each_outside(CheckpointFile::catch_up);
        for file in &self.outside {
            let _ = file.sync();
        }
        self.resume();
    }
}
