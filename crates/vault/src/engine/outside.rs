//! Checkpoints outside the database that should be there and are not: with them goes what shows that a log was set back.

use serde::{Deserialize, Serialize};

use super::Engine;
use super::agents::OWNER;
use crate::VaultError;
use crate::audit::{Event, Operation};
use crate::metrics::Alert;

/// Files that checkpoints were written to.
const KNOWN: &str = "checkpoint-files";
/// Files in which there was none when the vault was opened.
pub(super) const MISSING: &str = "missing-checkpoints";

/// A file of checkpoints that had none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Missing {
    /// Where it is.
    pub(crate) file: String,
    /// The size of the log when that was seen.
    pub(crate) size: u64,
}

impl Engine {
    /// Remembers which files have checkpoints, and which of those that had some have none now. The next one that is written would
    /// hide it.
    pub(super) fn remember_outside(&mut self, size: u64) -> Result<(), VaultError> {
        // A record that somebody changed keeps nobody out: `verify` names it.
        let known: Vec<String> = self.sound(self.sealed_slot(KNOWN))?.flatten().unwrap_or_default();
        let mut missing = self.sound(self.missing_checkpoints())?.unwrap_or_default();
        let before = missing.len();
        let mut now = Vec::new();
        for (number, file) in self.outside.iter().enumerate() {
            let name = file.path().display().to_string();
            // The first is the vault's own, which goes with it wherever it is put.
            let expected = size > 0 && (number == 0 || known.contains(&name));
            if expected && file.was_empty() && !missing.iter().any(|one| one.file == name) {
                missing.push(Missing { file: name.clone(), size });
            }
            if number > 0 {
                now.push(name);
            }
        }
        for one in missing.iter().skip(before) {
            let place = format!("the checkpoints outside the database in {}", one.file);
            self.alerts.push(Alert::Damaged { at: self.clock.now(), place });
        }
        if missing.len() > before {
            self.put_sealed_slot(MISSING, &missing)?;
        }
        let all: std::collections::BTreeSet<String> = known.iter().cloned().chain(now).collect();
        match all.len() > known.len() {
            true => self.put_sealed_slot(KNOWN, &all),
            false => Ok(()),
        }
    }

    /// Files of checkpoints that had none when the vault was opened, until the owner accepts that.
    pub(crate) fn missing_checkpoints(&self) -> Result<Vec<Missing>, VaultError> {
        Ok(self.sealed_slot(MISSING)?.unwrap_or_default())
    }

    /// The owner knows why there was none. Returns how many files that is.
    pub(crate) fn accept_checkpoints(&mut self) -> Result<usize, VaultError> {
        let event = Event::new(self.clock.now(), OWNER, Operation::AcceptCheckpoints);
        self.audited(event, |engine, event| {
            let missing = engine.missing_checkpoints()?;
            event.count = Some(missing.len() as u64);
            engine.database.remove_slot(MISSING)?;
            Ok(missing.len())
        })
    }
}
