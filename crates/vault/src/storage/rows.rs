//! Reading and writing rows.

use rusqlite::{CachedStatement, OptionalExtension, Row, params};
use stvor_crypto::kdf::sha256;

use super::parts::{MAX_BYTES, MemoryView};
use super::{Database, Table, failed};
use crate::VaultError;
use crate::keys::Slots;
use crate::memory::MemoryId;

/// A memory as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MemoryRow {
    pub(crate) id: MemoryId,
    /// Keyed hash of the namespace.
    pub(crate) space: Vec<u8>,
    /// The hour since the epoch in which its time runs out.
    pub(crate) due: Option<i64>,
    pub(crate) header: Vec<u8>,
    /// The memory's own key, wrapped; gone when it was forgotten.
    pub(crate) wrapped: Option<Vec<u8>>,
    pub(crate) content: Option<Vec<u8>>,
}

impl MemoryRow {
    /// What the log binds: everything that is in the row.
    pub(crate) fn digest(&self) -> String {
        crate::audit::hex(&self.digest_bytes())
    }

    /// The same, in bytes.
    pub(crate) fn digest_bytes(&self) -> [u8; 32] {
        self.view().digest()
    }

    fn view(&self) -> MemoryView<'_> {
        MemoryView {
            id: &self.id,
            space: &self.space,
            due: self.due,
            header: &self.header,
            wrapped: self.wrapped.as_deref(),
            content: self.content.as_deref(),
        }
    }

    /// Bytes that it takes.
    pub(crate) fn size(&self) -> u64 {
        let length = |part: &Option<Vec<u8>>| part.as_ref().map_or(0, Vec::len);
        (self.header.len() + length(&self.wrapped) + length(&self.content)) as u64
    }

    /// Reads all columns, and the place as the last one, of the memories after a place.
    const SELECT_AFTER: &str = "SELECT id, space, due, header, wrapped, content, seq FROM memory \
                                           WHERE seq > ?1 AND length(id) = 16";

    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: MemoryId::from_bytes(row.get(0)?),
            space: row.get(1)?,
            due: row.get(2)?,
            header: row.get(3)?,
            wrapped: row.get(4)?,
            content: row.get(5)?,
        })
    }
}

const COLUMNS: &str = "id, space, due, header, wrapped, content";

pub(super) type Rows<T> = Result<T, VaultError>;

/// Memories, each with its number.
type Numbered = Vec<(i64, MemoryRow)>;

/// A place among the memories that have an end: its hour, and the memory's number.
pub(crate) type Due = (i64, i64);

/// What is kept of the newest row of a memory: a hash of its header, and one of the rest. Lists and searches read no more than
/// the header; who changes it alone has to know that the rest is what the log has, too.
fn fresh(row: &MemoryRow) -> [u8; 64] {
    let mut both = [0; 64];
    let (header, body) = both.split_at_mut(32);
    header.copy_from_slice(&sha256(&[&row.header]));
    body.copy_from_slice(&row.view().body_digest());
    both
}

/// Whether `newest`, as [`fresh`] made it, is of this row's header.
fn is_of_header(newest: &[u8], row: &MemoryRow) -> bool {
    newest.get(..32) == Some(&sha256(&[&row.header]))
}

/// Reads memories without their contents by their ids, one after another.
pub(crate) struct Headers<'a>(CachedStatement<'a>);

impl Headers<'_> {
    /// A memory, and whether its header is the newest that was written for it.
    pub(crate) fn of(&mut self, id: &MemoryId) -> Rows<Option<(MemoryRow, bool)>> {
        let read = self.0.query_row([id.as_bytes()], |columns| {
            let row = MemoryRow::read(columns)?;
            let newest = columns.get_ref(6)?.as_bytes_or_null()?;
            let fresh = newest.is_some_and(|newest| is_of_header(newest, &row));
            Ok((row, fresh))
        });
        read.optional().map_err(|error| failed(&error))
    }
}

pub(super) fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl Database {
    pub(crate) fn slots(&self) -> Rows<Slots> {
        let read = || {
            let mut statement = self.connection.prepare_cached("SELECT name, record FROM slot")?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect::<rusqlite::Result<Slots>>()
        };
        read().map_err(|error| failed(&error))
    }

    pub(crate) fn slot(&self, name: &str) -> Rows<Option<Vec<u8>>> {
        let read = || {
            let mut statement = self.connection.prepare_cached("SELECT record FROM slot WHERE name = ?1")?;
            statement.query_row([name], |row| row.get(0)).optional()
        };
        read().map_err(|error| failed(&error))
    }

    /// Every change is one of a transaction. Where SQLite gave that up by itself, a statement that comes after would stand alone.
    pub(super) fn execute(&self, sql: &str, values: impl rusqlite::Params) -> Rows<usize> {
        if !self.in_transaction() {
            return Err(super::lost_transaction());
        }
        let run = || self.connection.prepare_cached(sql)?.execute(values);
        run().map_err(|error| failed(&error))
    }

    pub(crate) fn put_slot(&self, name: &str, record: &[u8]) -> Rows<()> {
        let sql = "INSERT INTO slot VALUES (?1, ?2) ON CONFLICT DO UPDATE SET record = excluded.record";
        let old = self.slot(name)?;
        self.execute(sql, params![name, record])?;
        self.replaced((Table::Slot, name.as_bytes()), old.as_deref(), Some(record))
    }

    pub(crate) fn remove_slot(&self, name: &str) -> Rows<()> {
        let old = self.slot(name)?;
        self.execute("DELETE FROM slot WHERE name = ?1", params![name])?;
        self.replaced((Table::Slot, name.as_bytes()), old.as_deref(), None)
    }

    pub(crate) fn insert_memory(&self, row: &MemoryRow) -> Rows<()> {
        let sql =
            "INSERT INTO memory (id, space, due, header, wrapped, content) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
        let values = params![row.id.as_bytes(), row.space, row.due, row.header, row.wrapped, row.content];
        self.execute(sql, values)?;
        self.put_fresh(row)
    }

    /// Whether this header is the newest that was written for its memory.
    pub(crate) fn is_fresh(&self, row: &MemoryRow) -> Rows<bool> {
        let newest = self.record(Table::Fresh, row.id.as_bytes())?;
        Ok(newest.is_some_and(|newest| is_of_header(&newest, row)))
    }

    /// Whether all of this row is the newest that was written for its memory. Nothing where only its header was kept.
    pub(crate) fn is_whole(&self, row: &MemoryRow) -> Rows<Option<bool>> {
        let newest = self.record(Table::Fresh, row.id.as_bytes())?.unwrap_or_default();
        Ok((newest.len() != 32).then(|| newest == fresh(row)))
    }

    /// Takes a row as the newest of its memory.
    pub(crate) fn put_fresh(&self, row: &MemoryRow) -> Rows<()> {
        self.put_record(Table::Fresh, row.id.as_bytes(), &fresh(row))
    }

    pub(crate) fn update_memory(&self, row: &MemoryRow) -> Rows<()> {
        let sql = "UPDATE memory SET due = ?2, header = ?3, wrapped = ?4, content = ?5 WHERE id = ?1";
        let values = params![row.id.as_bytes(), row.due, row.header, row.wrapped, row.content];
        match self.execute(sql, values)? {
            1 => self.put_fresh(row),
            _ => Err(VaultError::tampered(format!("the memory {}", row.id), "its row is gone")),
        }
    }

    /// Removes key and content of a memory whose header is not what it was.
    pub(crate) fn clear_memory(&self, id: &MemoryId) -> Rows<()> {
        let sql = "UPDATE memory SET wrapped = NULL, content = NULL, due = NULL WHERE id = ?1";
        self.execute(sql, [id.as_bytes()]).map(|_| ())
    }

    pub(crate) fn memory(&self, id: &MemoryId) -> Rows<Option<MemoryRow>> {
        let sql = format!("SELECT {COLUMNS} FROM memory WHERE id = ?1");
        let read = || {
            let mut statement = self.connection.prepare_cached(&sql)?;
            statement.query_row([id.as_bytes()], MemoryRow::read).optional()
        };
        read().map_err(|error| failed(&error))
    }

    /// A memory without its content.
    pub(crate) fn memory_header(&self, id: &MemoryId) -> Rows<Option<MemoryRow>> {
        let sql = "SELECT id, space, due, header, NULL, NULL FROM memory WHERE id = ?1";
        let read = || {
            let mut statement = self.connection.prepare_cached(sql)?;
            statement.query_row([id.as_bytes()], MemoryRow::read).optional()
        };
        read().map_err(|error| failed(&error))
    }

    /// For who reads many of them.
    pub(crate) fn headers(&self) -> Rows<Headers<'_>> {
        let sql = "SELECT memory.id, space, due, memory.header, NULL, NULL, fresh.header FROM memory
                   LEFT JOIN fresh ON fresh.id = memory.id WHERE memory.id = ?1";
        self.connection.prepare_cached(sql).map(Headers).map_err(|error| failed(&error))
    }

    /// Memories of a namespace, newest first, from before `before`, without their contents: as many as have some megabytes together,
    /// and at most `count`. None when there are no more.
    pub(crate) fn page(&self, space: &[u8], before: i64, count: usize) -> Rows<Numbered> {
        let sql = "SELECT id, space, due, header, NULL, NULL, seq FROM memory
                   WHERE space = ?1 AND seq < ?2 AND length(id) = 16 ORDER BY seq DESC LIMIT ?3";
        self.some(sql, params![space, before, number(count as u64)])
    }

    /// Memories after the number `after`, in order: as many as have some megabytes together, and at most `count`. None when there
    /// are no more.
    pub(crate) fn memories_after(&self, after: i64, count: usize) -> Rows<Numbered> {
        let sql = format!("{} ORDER BY seq LIMIT ?2", MemoryRow::SELECT_AFTER);
        self.some(&sql, params![after, number(count as u64)])
    }

    /// Memories after this id, by their ids: as many as have some megabytes together, and at most `count`. None when there are no
    /// more.
    pub(crate) fn memories_by_id(&self, after: Option<&MemoryId>, count: usize) -> Rows<Numbered> {
        let sql = format!(
            "SELECT {COLUMNS}, seq FROM memory WHERE id > ?1 AND length(id) = 16 ORDER BY id LIMIT ?2"
        );
        let after = after.map_or(&[][..], |id| &id.as_bytes()[..]);
        self.some(&sql, params![after, number(count as u64)])
    }

    /// The last id in that order.
    pub(crate) fn greatest_id(&self) -> Rows<Option<MemoryId>> {
        let sql = "SELECT id FROM memory WHERE length(id) = 16 ORDER BY id DESC LIMIT 1";
        let read = || {
            let mut statement = self.connection.prepare_cached(sql)?;
            statement.query_row([], |row| row.get(0).map(MemoryId::from_bytes)).optional()
        };
        read().map_err(|error| failed(&error))
    }

    /// Memories of one namespace after a number, with their contents.
    pub(crate) fn space_after(&self, space: &[u8], after: i64, count: usize) -> Rows<Numbered> {
        let sql = format!(
            "SELECT {COLUMNS}, seq FROM memory WHERE space = ?1 AND seq > ?2 AND length(id) = 16 ORDER BY seq LIMIT ?3"
        );
        self.some(&sql, params![space, after, number(count as u64)])
    }

    /// The same without their contents.
    pub(crate) fn space_headers_after(&self, space: &[u8], after: i64, count: usize) -> Rows<Numbered> {
        let sql = "SELECT id, space, due, header, NULL, NULL, seq FROM memory
                   WHERE space = ?1 AND seq > ?2 AND length(id) = 16 ORDER BY seq LIMIT ?3";
        self.some(sql, params![space, after, number(count as u64)])
    }

    /// How many memories a namespace has, and the bytes of their headers and contents.
    pub(crate) fn space_size(&self, space: &[u8]) -> Rows<(u64, u64)> {
        let sql = "SELECT count(*), ifnull(sum(length(header) + ifnull(length(content), 0)), 0) FROM memory WHERE space = ?1";
        let read = || {
            let mut statement = self.connection.prepare_cached(sql)?;
            statement.query_row([space], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))
        };
        let (rows, bytes) = read().map_err(|error| failed(&error))?;
        Ok((rows.cast_unsigned(), bytes.cast_unsigned()))
    }

    /// Memories after the number `after` without their contents, in order, at most `count`.
    pub(crate) fn headers_after(&self, after: i64, count: usize) -> Rows<Numbered> {
        let sql = "SELECT id, space, due, header, NULL, NULL, seq FROM memory
                   WHERE seq > ?1 AND length(id) = 16 ORDER BY seq LIMIT ?2";
        self.some(sql, params![after, number(count as u64)])
    }

    /// Rows with their numbers until they have [`MAX_BYTES`] together: a content alone may have a megabyte.
    fn some(&self, sql: &str, values: impl rusqlite::Params) -> Rows<Numbered> {
        let read = || {
            let mut statement = self.connection.prepare_cached(sql)?;
            let mut rows = statement.query(values)?;
            let (mut all, mut bytes) = (Vec::new(), 0);
            while bytes < MAX_BYTES as u64 {
                let Some(row) = rows.next()? else { break };
                let memory = MemoryRow::read(row)?;
                bytes += memory.size();
                all.push((row.get(6)?, memory));
            }
            Ok(all)
        };
        read().map_err(|error| failed(&error))
    }

    /// The number of the newest memory, 0 if there is none. No later one has a smaller number: rows of memories are never removed.
    pub(crate) fn newest_memory(&self) -> Rows<i64> {
        let read = self.connection.query_row("SELECT ifnull(max(seq), 0) FROM memory", [], |row| row.get(0));
        read.map_err(|error| failed(&error))
    }

    /// The number of a memory.
    pub(crate) fn memory_number(&self, id: &MemoryId) -> Rows<Option<i64>> {
        let read = || {
            let mut statement = self.connection.prepare_cached("SELECT seq FROM memory WHERE id = ?1")?;
            statement.query_row([id.as_bytes()], |row| row.get(0)).optional()
        };
        read().map_err(|error| failed(&error))
    }

    /// Names of memories whose hour has come, by it, from after a place on; each with its place.
    pub(crate) fn due(&self, hour: i64, after: Option<Due>, count: usize) -> Rows<Vec<(Due, MemoryId)>> {
        let sql =
            "SELECT due, seq, id FROM memory WHERE due <= ?1 AND (due, seq) > (?2, ?3) AND length(id) = 16
                   ORDER BY due, seq LIMIT ?4";
        let (due, seq) = after.unwrap_or((i64::MIN, i64::MIN));
        let read = || {
            let mut statement = self.connection.prepare_cached(sql)?;
            let rows = statement.query_map(params![hour, due, seq, number(count as u64)], |row| {
                Ok(((row.get(0)?, row.get(1)?), MemoryId::from_bytes(row.get(2)?)))
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(|error| failed(&error))
    }

    pub(crate) fn link(&self, intent: &[u8], id: &MemoryId) -> Rows<()> {
        let sql = "INSERT OR IGNORE INTO intent VALUES (?1, ?2)";
        match self.execute(sql, params![intent, id.as_bytes()])? {
            0 => Ok(()),
            _ => self.replaced((Table::Intent, intent), None, Some(id.as_bytes())),
        }
    }

    pub(crate) fn unlink(&self, intent: &[u8], id: &MemoryId) -> Rows<()> {
        let sql = "DELETE FROM intent WHERE intent = ?1 AND id = ?2";
        match self.execute(sql, params![intent, id.as_bytes()])? {
            0 => Ok(()),
            _ => self.replaced((Table::Intent, intent), Some(id.as_bytes()), None),
        }
    }

    /// Memories with a link, by their ids, after `after`.
    pub(crate) fn linked(&self, intent: &[u8], after: &[u8], count: usize) -> Rows<Vec<MemoryId>> {
        let sql =
            "SELECT id FROM intent WHERE intent = ?1 AND id > ?2 AND length(id) = 16 ORDER BY id LIMIT ?3";
        let read = || {
            let mut statement = self.connection.prepare_cached(sql)?;
            let rows = statement.query_map(params![intent, after, number(count as u64)], |row| {
                row.get(0).map(MemoryId::from_bytes)
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(|error| failed(&error))
    }

    pub(crate) fn put_recall(&self, id: &MemoryId, event: u64) -> Rows<()> {
        let sql = "INSERT INTO recall VALUES (?1, ?2) ON CONFLICT DO UPDATE SET event = excluded.event";
        let old = self.last_recall(id)?.map(u64::to_be_bytes);
        self.execute(sql, params![id.as_bytes(), number(event)])?;
        let new = number(event).to_be_bytes();
        self.replaced((Table::Recall, id.as_bytes()), old.as_ref().map(|old| &old[..]), Some(&new))
    }

    /// Forgets when a memory was last recalled.
    pub(crate) fn remove_recall(&self, id: &MemoryId) -> Rows<()> {
        let old = self.last_recall(id)?.map(u64::to_be_bytes);
        self.execute("DELETE FROM recall WHERE id = ?1", [id.as_bytes()])?;
        self.replaced((Table::Recall, id.as_bytes()), old.as_ref().map(|old| &old[..]), None)
    }

    pub(crate) fn last_recall(&self, id: &MemoryId) -> Rows<Option<u64>> {
        let sql = "SELECT event FROM recall WHERE id = ?1";
        let read = || {
            let mut statement = self.connection.prepare_cached(sql)?;
            statement.query_row([id.as_bytes()], |row| row.get::<_, i64>(0)).optional()
        };
        Ok(read().map_err(|error| failed(&error))?.map(i64::cast_unsigned))
    }

    /// The events of all memories' newest recalls.
    pub(crate) fn recall_events(&self) -> Rows<Vec<u64>> {
        let read = || {
            let mut statement = self.connection.prepare_cached("SELECT event FROM recall")?;
            let rows = statement.query_map([], |row| row.get::<_, i64>(0).map(i64::cast_unsigned))?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(|error| failed(&error))
    }

    /// The record of a table of records.
    pub(crate) fn record(&self, table: Table, key: &[u8]) -> Rows<Option<Vec<u8>>> {
        let (name, column, value) = table.names();
        let sql = format!("SELECT {value} FROM {name} WHERE {column} = ?1");
        let read = || {
            let mut statement = self.connection.prepare_cached(&sql)?;
            statement.query_row([key], |row| row.get(0)).optional()
        };
        read().map_err(|error| failed(&error))
    }

    pub(crate) fn records(&self, table: Table) -> Rows<Vec<(Vec<u8>, Vec<u8>)>> {
        let (name, column, value) = table.names();
        let sql = format!("SELECT {column}, {value} FROM {name}");
        let read = || {
            let mut statement = self.connection.prepare_cached(&sql)?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(|error| failed(&error))
    }

    pub(crate) fn put_record(&self, table: Table, key: &[u8], record: &[u8]) -> Rows<()> {
        let (name, _, value) = table.names();
        let sql = format!(
            "INSERT INTO {name} VALUES (?1, ?2) ON CONFLICT DO UPDATE SET {value} = excluded.{value}"
        );
        let old = self.record(table, key)?;
        self.execute(&sql, params![key, record])?;
        self.replaced((table, key), old.as_deref(), Some(record))
    }

    pub(crate) fn remove_record(&self, table: Table, key: &[u8]) -> Rows<()> {
        let (name, column, _) = table.names();
        let old = self.record(table, key)?;
        self.execute(&format!("DELETE FROM {name} WHERE {column} = ?1"), params![key])?;
        self.replaced((table, key), old.as_deref(), None)
    }

    /// Keeps a line for the lists of ended memories until each of them has it.
    pub(crate) fn add_ended(&self, line: &str) -> Rows<()> {
        self.execute("INSERT INTO ended (line) VALUES (?1)", [line]).map(|_| ())
    }

    /// Such lines after a number, in order.
    pub(crate) fn ended_after(&self, after: i64, count: usize) -> Rows<Vec<(i64, String)>> {
        let sql = "SELECT seq, line FROM ended WHERE seq > ?1 ORDER BY seq LIMIT ?2";
        let read = || {
            let mut statement = self.connection.prepare_cached(sql)?;
            let rows = statement
                .query_map(params![after, number(count as u64)], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(|error| failed(&error))
    }

    pub(crate) fn remove_ended(&self, upto: i64) -> Rows<()> {
        self.execute("DELETE FROM ended WHERE seq <= ?1", [upto]).map(|_| ())
    }

    /// Whether memories have the numbers from 1 on without a gap, as they got them: none is ever removed.
    pub(crate) fn memories_are_numbered(&self) -> Rows<bool> {
        // Each by itself: for all of them together SQLite looks at every row.
        let sql = "SELECT ifnull((SELECT min(seq) FROM memory), 1) = 1
            AND ifnull((SELECT max(seq) FROM memory), 0) = (SELECT count(*) FROM memory)";
        self.connection.query_row(sql, [], |row| row.get(0)).map_err(|error| failed(&error))
    }

    /// How many memories there are, whatever became of them.
    pub(crate) fn memory_count(&self) -> Rows<u64> {
        let read = self.connection.query_row("SELECT count(*) FROM memory", [], |row| row.get::<_, i64>(0));
        read.map(i64::cast_unsigned).map_err(|error| failed(&error))
    }
}
