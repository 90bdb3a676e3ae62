//! Copies of the database for backups, whole or what changed, and putting them back. Rows are copied as they are: sealed.

use std::path::Path;

use rusqlite::{Connection, params_from_iter, types::Value};
use stvor_tlog::Frontier;

use super::{Database, failed};
use crate::VaultError;
use crate::memory::MemoryId;
use crate::verify::Progress;

/// Tables whose rows are never changed, or whose changes the log names: only these are copied in part. Names of tables are
/// never taken from a file: somebody else may have written it.
const IN_PART: [&str; 4] = ["event", "node", "memory", "fresh"];
/// Tables that are copied whole, but for that of the checkpoint.
const WHOLE: [&str; 6] = ["slot", "intent", "recall", "agent", "approval", "ended"];
const CHECKPOINT: &str = "checkpoint";

/// What is copied.
#[derive(Debug)]
pub(crate) enum Extent<'a> {
    /// Everything.
    Whole,
    /// Events and hashes from the log's size `from` on, these memories, and the other tables, which are small, whole.
    Since {
        /// The size of the log at the backup that this one builds on.
        from: u64,
        /// Memories that changed since.
        memories: &'a [MemoryId],
    },
}

fn number(value: u64) -> Value {
    Value::Integer(i64::try_from(value).unwrap_or(i64::MAX))
}

/// Copies what `clause` selects of a table. Returns how many rows.
fn rows(
    from: &Connection,
    to: &Connection,
    (table, clause): (&str, &str),
    values: &[Value],
) -> rusqlite::Result<u64> {
    rows_telling(from, to, (table, clause, None), values)
}

/// The same, and tells how many.
fn rows_telling(
    from: &Connection,
    to: &Connection,
    (table, clause, progress): (&str, &str, Option<&Progress>),
    values: &[Value],
) -> rusqlite::Result<u64> {
    let mut read = from.prepare(&format!("SELECT * FROM {table} {clause}"))?;
    let columns = read.column_count();
    let places = vec!["?"; columns].join(", ");
    let mut write = to.prepare(&format!("INSERT OR REPLACE INTO {table} VALUES ({places})"))?;
    let mut found = read.query(params_from_iter(values))?;
    let mut count = 0;
    while let Some(row) = found.next()? {
        let values: Vec<Value> = (0..columns).map(|at| row.get(at)).collect::<rusqlite::Result<_>>()?;
        write.execute(params_from_iter(values))?;
        count += 1;
        if let Some(progress) = progress {
            progress.add(1);
        }
    }
    Ok(count)
}

impl Database {
    /// Copies `extent` into a new database at `path`, mode 0600, with `note` as its checkpoint and what was sealed for that
    /// one. Returns how many memories it holds.
    pub(crate) fn copy(
        &self,
        (path, progress): (&Path, &Progress),
        extent: &Extent<'_>,
        (note, bound): (&str, &[u8]),
    ) -> Result<u64, VaultError> {
        let copy = Self::create(path)?;
        copy.run("BEGIN")?;
        let memories = self.fill(&copy.connection, extent, progress).map_err(|error| failed(&error))?;
        self.copy_small(&copy.connection)?;
        copy.put_checkpoint(note, bound)?;
        copy.run("COMMIT")?;
        copy.merge_journal()?;
        Ok(memories)
    }

    fn fill(&self, to: &Connection, extent: &Extent<'_>, progress: &Progress) -> rusqlite::Result<u64> {
        let (from, told) = (&self.connection, Some(progress));
        match extent {
            Extent::Whole => {
                rows_telling(from, to, ("event", "", told), &[])?;
                rows(from, to, ("node", ""), &[])?;
                rows(from, to, ("fresh", ""), &[])?;
                rows_telling(from, to, ("memory", "ORDER BY seq", told), &[])
            }
            Extent::Since { from: size, memories } => {
                rows_telling(from, to, ("event", "WHERE seq >= ?1", told), &[number(*size)])?;
                // A subtree of 2^level leaves was complete at that size if it ends before it.
                rows(from, to, ("node", "WHERE at >= ?1 >> level"), &[number(*size)])?;
                memories.iter().try_fold(0, |count, id| {
                    let id = Value::Blob(id.as_bytes().to_vec());
                    let id = &[id];
                    rows(from, to, ("fresh", "WHERE id = ?1"), id)?;
                    Ok(count + rows(from, to, ("memory", "WHERE id = ?1"), id)?)
                })
            }
        }
    }

    /// Copies the tables that are always copied whole.
    fn copy_small(&self, to: &Connection) -> Result<(), VaultError> {
        for table in WHOLE {
            rows(&self.connection, to, (table, ""), &[]).map_err(|error| failed(&error))?;
        }
        Ok(())
    }

    /// Brings what another copy holds of later times into this one. All of it or nothing.
    pub(crate) fn apply(&self, changes: &Self) -> Result<(), VaultError> {
        self.run("BEGIN IMMEDIATE")?;
        let done = self.apply_rows(changes);
        self.run(if done.is_ok() { "COMMIT" } else { "ROLLBACK" }).and(done)
    }

    fn apply_rows(&self, changes: &Self) -> Result<(), VaultError> {
        for table in WHOLE.iter().chain([&CHECKPOINT]) {
            self.run(&format!("DELETE FROM {table}"))?;
        }
        for table in IN_PART.iter().chain(&WHOLE).chain([&CHECKPOINT]) {
            rows(&changes.connection, &self.connection, (table, ""), &[]).map_err(|error| failed(&error))?;
        }
        Ok(())
    }

    /// The size of the log by its rows, and the root over its hashes.
    pub(crate) fn log_head(&self) -> Result<(u64, stvor_tlog::Hash), VaultError> {
        let events = self.log_size()?;
        Ok((events, Frontier::load(self, events)?.root()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_of_the_schema_is_copied() {
        let named = include_str!("schema.sql").matches("CREATE TABLE").count();
        assert_eq!(named, IN_PART.len() + WHOLE.len() + 1);
        for table in IN_PART.iter().chain(&WHOLE).chain([&CHECKPOINT]) {
            assert!(include_str!("schema.sql").contains(&format!("CREATE TABLE {table} (")), "{table}");
        }
    }
}
