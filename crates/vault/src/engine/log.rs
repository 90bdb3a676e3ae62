//! Reading the log: what happened, and what was said to it.

use serde::{Deserialize, Serialize};

use super::Engine;
use crate::audit::{Event, Operation};
use crate::memory::MemoryId;
use crate::{VaultError, limits};

/// Which events are wanted. What is not said is not asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogQuery {
    /// Events before this number; from the newest on when it is not said.
    pub before: Option<u64>,
    /// Of this actor.
    pub actor: Option<String>,
    /// Of this operation.
    pub operation: Option<Operation>,
    /// On this memory.
    pub memory: Option<MemoryId>,
    /// Refused ones.
    pub refused: bool,
    /// Whose justification, purpose or reason holds all these words.
    pub words: Option<String>,
}

/// An event as the owner reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// Its number in the log.
    pub seq: u64,
    /// What the log hashes.
    pub event: Event,
    /// The justification, purpose or reason in the words of who asked. The log hashes its keyed hash only.
    pub said: Option<String>,
}

/// Some events, newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPage {
    /// At most [`limits::MAX_PAGE`].
    pub entries: Vec<LogEntry>,
    /// Where to go on, if the log does not end there.
    pub next: Option<u64>,
    /// Events before this one may have been archived and removed; what they say is in the archives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed_before: Option<u64>,
}

/// Rows that are read at a time.
const BATCH: u64 = 1_000;

impl LogQuery {
    /// Whether an event fits, by what is said of it and was said to it.
    #[must_use]
    pub fn matches(&self, event: &Event) -> bool {
        let wanted = self.words.as_deref().unwrap_or_default();
        let words: Vec<String> = wanted.split_whitespace().map(str::to_lowercase).collect();
        self.fits(event, &words, None)
    }

    fn fits(&self, event: &Event, words: &[String], exact: Option<&str>) -> bool {
        let said = || match &event.said {
            Some(said) => {
                let said = said.to_lowercase();
                words.iter().all(|word| said.contains(word.as_str()))
            }
            None => exact.is_some() && event.text.as_deref() == exact,
        };
        self.actor.as_ref().is_none_or(|actor| *actor == event.actor)
            && self.operation.is_none_or(|operation| operation == event.operation)
            && (self.memory.is_none() || self.memory == event.memory)
            && (!self.refused || event.refused.is_some())
            && (words.is_empty() || said())
    }
}

impl Engine {
    /// Events that fit, newest first. Reads at most [`limits::MAX_SCAN`] rows; the page says where to go on.
    pub(crate) fn read_log(&self, query: &LogQuery) -> Result<LogPage, VaultError> {
        let size = self.held()?.tree.size();
        let wanted = query.words.as_deref().unwrap_or_default();
        if wanted.len() > limits::MAX_TEXT {
            return Err(VaultError::invalid("a search of the log has at most 4096 bytes"));
        }
        let words: Vec<String> = wanted.split_whitespace().map(str::to_lowercase).collect();
        let exact = self.keyed("text", wanted.as_bytes())?;
        let removed = self.sound(self.removed())?;
        let removed_before = removed.map(|removed| removed.upto()).filter(|upto| *upto > 0);
        let mut page = LogPage { removed_before, ..LogPage::default() };
        let mut end = query.before.unwrap_or(size).min(size);
        let stop = end.saturating_sub(limits::MAX_SCAN);
        while end > stop {
            let start = end.saturating_sub(BATCH).max(stop);
            let rows = self.database.events_from(start, usize::try_from(end - start).unwrap_or(0))?;
            for row in rows.iter().rev().filter(|row| row.seq < end) {
                // A damaged one is told of, and keeps nobody from the others.
                let Some((event, _)) = self.sound(self.open_event(row))? else { continue };
                if query.fits(&event, &words, Some(&exact)) {
                    let said = event.said.clone();
                    page.entries.push(LogEntry { seq: row.seq, event, said });
                    if page.entries.len() == limits::MAX_PAGE {
                        page.next = Some(row.seq).filter(|seq| *seq > 0);
                        return Ok(page);
                    }
                }
            }
            end = start;
        }
        page.next = Some(end).filter(|end| *end > 0);
        Ok(page)
    }
}
