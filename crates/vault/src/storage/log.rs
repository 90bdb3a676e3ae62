//! Rows of the log: events, the hashes over them, and the newest checkpoint.

use rusqlite::{OptionalExtension, params};
use stvor_tlog::{Hash, Node};

use super::rows::{Rows, number};
use super::{Database, failed};
use crate::VaultError;

/// An event as it is stored.
#[derive(Debug)]
pub(crate) struct EventRow {
    pub(crate) seq: u64,
    pub(crate) sealed: Vec<u8>,
}

impl Database {
    pub(crate) fn insert_event(&self, event: &EventRow, nodes: &[Node]) -> Rows<()> {
        let EventRow { seq, sealed } = event;
        self.execute("INSERT INTO event VALUES (?1, ?2)", params![number(*seq), sealed])?;
        for node in nodes {
            let values = params![node.level, number(node.index), node.hash.0];
            self.execute("INSERT INTO node VALUES (?1, ?2, ?3)", values)?;
        }
        Ok(())
    }

    /// Writes an event's row anew.
    pub(crate) fn update_event(&self, event: &EventRow) -> Rows<()> {
        let values = params![number(event.seq), event.sealed];
        match self.execute("UPDATE event SET sealed = ?2 WHERE seq = ?1", values)? {
            1 => Ok(()),
            _ => Err(VaultError::tampered(format!("the event {}", event.seq), "its row is gone")),
        }
    }

    pub(crate) fn events_from(&self, from: u64, count: usize) -> Rows<Vec<EventRow>> {
        let sql = "SELECT seq, sealed FROM event WHERE seq >= ?1 ORDER BY seq LIMIT ?2";
        let read = || {
            let mut statement = self.connection.prepare_cached(sql)?;
            let rows = statement.query_map(params![number(from), number(count as u64)], |row| {
                Ok(EventRow { seq: row.get::<_, i64>(0)?.cast_unsigned(), sealed: row.get(1)? })
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(|error| failed(&error))
    }

    pub(super) fn read_node(&self, level: u8, index: u64) -> Rows<Option<Vec<u8>>> {
        let sql = "SELECT hash FROM node WHERE level = ?1 AND at = ?2";
        let read = || {
            let mut statement = self.connection.prepare_cached(sql)?;
            statement.query_row(params![level, number(index)], |row| row.get(0)).optional()
        };
        read().map_err(|error| failed(&error))
    }

    /// `count` hashes of a level from `from` on, by index.
    pub(crate) fn node_range(&self, level: u8, (from, count): (u64, usize)) -> Rows<Vec<(u64, Hash)>> {
        let sql = "SELECT at, hash FROM node WHERE level = ?1 AND at >= ?2 ORDER BY at LIMIT ?3";
        let read = || {
            let mut statement = self.connection.prepare_cached(sql)?;
            let rows = statement.query_map(params![level, number(from), number(count as u64)], |row| {
                Ok((row.get::<_, i64>(0)?.cast_unsigned(), Hash(row.get(1)?)))
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(|error| failed(&error))
    }

    /// How many rows of hashes there are.
    pub(crate) fn node_count(&self) -> Rows<u64> {
        let read = self.connection.query_row("SELECT count(*) FROM node", [], |row| row.get::<_, i64>(0));
        read.map(i64::cast_unsigned).map_err(|error| failed(&error))
    }

    /// The size of the log by its newest row. Rows before it may have been archived and removed.
    pub(crate) fn log_size(&self) -> Rows<u64> {
        let sql = "SELECT ifnull(max(seq) + 1, 0) FROM event";
        let read = self.connection.query_row(sql, [], |row| row.get::<_, i64>(0));
        read.map(i64::cast_unsigned).map_err(|error| failed(&error))
    }

    /// How many rows of events there are.
    pub(crate) fn event_count(&self) -> Rows<u64> {
        let read = self.connection.query_row("SELECT count(*) FROM event", [], |row| row.get::<_, i64>(0));
        read.map(i64::cast_unsigned).map_err(|error| failed(&error))
    }

    /// Gives the pages that hold nothing any more back to the file system, with the transaction that is under way. In a database that
    /// was made by version 2 they stay in the file, and are used again.
    pub(crate) fn give_back(&self) -> Rows<()> {
        let run = || {
            let mut statement = self.connection.prepare("PRAGMA main.incremental_vacuum")?;
            let mut steps = statement.query([])?;
            // Each step moves one page.
            while steps.next()?.is_some() {}
            Ok(())
        };
        run().map_err(|error| failed(&error))
    }

    /// Removes the rows of the events from the first number to the last. Fails when one of them is not there.
    pub(crate) fn remove_events(&self, (first, last): (u64, u64)) -> Rows<()> {
        let values = params![number(first), number(last)];
        let removed = self.execute("DELETE FROM event WHERE seq BETWEEN ?1 AND ?2", values)?;
        if removed as u64 == last - first + 1 {
            return Ok(());
        }
        Err(VaultError::tampered(format!("the events {first} to {last}"), "a row is gone"))
    }

    /// Writes the newest checkpoint, and what was sealed of the bound tables for exactly that one.
    pub(crate) fn put_checkpoint(&self, note: &str, bound: &[u8]) -> Rows<()> {
        self.execute("INSERT OR REPLACE INTO checkpoint VALUES (1, ?1, ?2)", params![note, bound]).map(|_| ())
    }

    /// What was sealed with the newest checkpoint.
    pub(crate) fn bound(&self) -> Rows<Option<Vec<u8>>> {
        let read = self.connection.query_row("SELECT bound FROM checkpoint", [], |row| row.get(0)).optional();
        read.map_err(|error| failed(&error))
    }

    pub(crate) fn checkpoint(&self) -> Rows<Option<String>> {
        let sql = "SELECT note FROM checkpoint";
        let read = self.connection.query_row(sql, [], |row| row.get(0)).optional();
        read.map_err(|error| failed(&error))
    }
}
