//! Many rows at once, for who reads all of them: in one piece of memory, which another thread may take over.

use rusqlite::params;
use rusqlite::types::ValueRef;
use stvor_crypto::kdf::sha256;

use super::rows::{Rows, number};
use super::{Database, failed};
use crate::memory::MemoryId;

/// Bytes of rows after which a part ends: a content alone may have a megabyte.
pub(super) const MAX_BYTES: usize = 4 << 20;

/// A row of a memory, wherever its bytes are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MemoryView<'a> {
    pub(crate) id: &'a MemoryId,
    /// Keyed hash of the namespace.
    pub(crate) space: &'a [u8],
    /// The hour since the epoch in which its time runs out.
    pub(crate) due: Option<i64>,
    pub(crate) header: &'a [u8],
    pub(crate) wrapped: Option<&'a [u8]>,
    pub(crate) content: Option<&'a [u8]>,
}

impl MemoryView<'_> {
    /// What the log binds: everything that is in the row, each part with its length before it.
    pub(crate) fn digest(&self) -> [u8; 32] {
        let due = self.due.map_or(u64::MAX, i64::cast_unsigned).to_be_bytes();
        let [space, header] = [self.space, self.header].map(length);
        let [(wrapped, key), (content, body)] = [self.wrapped, self.content].map(optional);
        sha256(&[
            self.id.as_bytes(),
            &space,
            self.space,
            &due,
            &header,
            self.header,
            &wrapped,
            key,
            &content,
            body,
        ])
    }

    /// The same of what a change of the header leaves alone: the memory's own key, and its content.
    pub(crate) fn body_digest(&self) -> [u8; 32] {
        let [(wrapped, key), (content, body)] = [self.wrapped, self.content].map(optional);
        sha256(&[&wrapped, key, &content, body])
    }
}

fn length(part: &[u8]) -> [u8; 4] {
    u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes()
}

/// Whether there is something, its length, and it.
fn optional(part: Option<&[u8]>) -> ([u8; 5], &[u8]) {
    let present = u8::from(part.is_some());
    let part = part.unwrap_or_default();
    let [a, b, c, d] = length(part);
    ([present, a, b, c, d], part)
}

/// Rows of events, in order.
#[derive(Debug, Default)]
pub(crate) struct EventPart {
    bytes: Vec<u8>,
    /// The number of each event, and where its bytes end.
    rows: Vec<(u64, usize)>,
}

impl EventPart {
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Empties it, and keeps its room.
    fn clear(&mut self) {
        self.bytes.clear();
        self.rows.clear();
    }

    /// The number of the last event.
    pub(crate) fn last(&self) -> Option<u64> {
        self.rows.last().map(|(seq, _)| *seq)
    }

    /// Calls `with` for each row.
    pub(crate) fn each<T>(&self, mut with: impl FnMut(u64, &[u8]) -> T) -> Vec<T> {
        let mut begin = 0;
        let mut done = Vec::with_capacity(self.rows.len());
        for (seq, end) in &self.rows {
            done.push(with(*seq, self.bytes.get(begin..*end).unwrap_or_default()));
            begin = *end;
        }
        done
    }
}

/// Where the parts of a memory's row end.
#[derive(Debug)]
struct MemoryEnds {
    id: MemoryId,
    due: Option<i64>,
    space: usize,
    header: usize,
    wrapped: Option<usize>,
    content: Option<usize>,
}

/// Rows of memories, in order.
#[derive(Debug, Default)]
pub(crate) struct MemoryPart {
    bytes: Vec<u8>,
    rows: Vec<MemoryEnds>,
    /// The place of the last one.
    pub(crate) last: Option<i64>,
}

impl MemoryPart {
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Empties it, and keeps its room.
    fn clear(&mut self) {
        self.bytes.clear();
        self.rows.clear();
        self.last = None;
    }

    /// Calls `with` for each row.
    pub(crate) fn each<T>(&self, mut with: impl FnMut(MemoryView<'_>) -> T) -> Vec<T> {
        let mut done = Vec::with_capacity(self.rows.len());
        let mut begin = 0;
        for row in &self.rows {
            let mut upto = |end: usize| {
                let part = self.bytes.get(begin..end).unwrap_or_default();
                begin = end;
                part
            };
            let (space, header) = (upto(row.space), upto(row.header));
            let (wrapped, content) = (row.wrapped.map(&mut upto), row.content.map(&mut upto));
            done.push(with(MemoryView { id: &row.id, space, due: row.due, header, wrapped, content }));
        }
        done
    }

    fn push(&mut self, row: &rusqlite::Row<'_>) -> rusqlite::Result<()> {
        let begin = self.bytes.len();
        let mut take = |column: usize| -> rusqlite::Result<Option<usize>> {
            match row.get_ref(column)? {
                ValueRef::Null => Ok(None),
                value => {
                    self.bytes.extend_from_slice(value.as_bytes()?);
                    Ok(Some(self.bytes.len()))
                }
            }
        };
        let (space, header) = (take(1)?, take(3)?);
        let (wrapped, content) = (take(4)?, take(5)?);
        let end = self.bytes.len();
        let Ok(id) = row.get_ref(0)?.as_bytes()?.try_into() else {
            // No memory has such a name; nobody reads such a row.
            self.bytes.truncate(begin);
            self.last = Some(row.get(6)?);
            return Ok(());
        };
        self.rows.push(MemoryEnds {
            id: MemoryId::from_bytes(id),
            due: row.get(2)?,
            space: space.unwrap_or(end),
            header: header.unwrap_or(end),
            wrapped,
            content,
        });
        self.last = Some(row.get(6)?);
        Ok(())
    }
}

impl Database {
    /// Events from the number `from` on: as many as have some megabytes together, and at most `count`. In a part that is done with.
    pub(crate) fn event_part(&self, (from, count): (u64, usize), mut part: EventPart) -> Rows<EventPart> {
        let sql = "SELECT seq, sealed FROM event WHERE seq >= ?1 ORDER BY seq";
        let read = || {
            let mut statement = self.connection.prepare_cached(sql)?;
            let mut rows = statement.query(params![number(from)])?;
            part.clear();
            while part.rows.len() < count && part.bytes.len() < MAX_BYTES {
                let Some(row) = rows.next()? else { break };
                part.bytes.extend_from_slice(row.get_ref(1)?.as_bytes()?);
                part.rows.push((row.get::<_, i64>(0)?.cast_unsigned(), part.bytes.len()));
            }
            Ok(part)
        };
        read().map_err(|error| failed(&error))
    }

    /// Memories after the place `after`, in order: as many as have some megabytes together, and at most `count`. In a part that is
    /// done with.
    pub(crate) fn memory_part(&self, (after, count): (i64, usize), mut part: MemoryPart) -> Rows<MemoryPart> {
        let sql =
            "SELECT id, space, due, header, wrapped, content, seq FROM memory WHERE seq > ?1 ORDER BY seq";
        let read = || {
            let mut statement = self.connection.prepare_cached(sql)?;
            let mut rows = statement.query(params![after])?;
            part.clear();
            while part.rows.len() < count && part.bytes.len() < MAX_BYTES {
                let Some(row) = rows.next()? else { break };
                part.push(row)?;
            }
            Ok(part)
        };
        read().map_err(|error| failed(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stvor_base::codec::Writer;

    #[test]
    fn a_digest_is_over_every_part_with_its_length() {
        let id = MemoryId::from_bytes([1; 16]);
        let whole = MemoryView {
            id: &id,
            space: &[2; 16],
            due: Some(5),
            header: b"header",
            wrapped: Some(b"key"),
            content: None,
        };
        let mut out = Writer::with_capacity(64);
        out.raw(id.as_bytes()).bytes(&[2; 16]).u64(5).bytes(b"header");
        out.u8(1).bytes(b"key").u8(0).bytes(b"");
        assert_eq!(whole.digest(), sha256(&[&out.finish()]));
        let empty = MemoryView { content: Some(b""), ..whole };
        assert!(empty.digest() != whole.digest() && empty.body_digest() != whole.body_digest());
        let moved = MemoryView { header: b"head", wrapped: Some(b"erkey"), ..whole };
        assert_ne!(moved.digest(), whole.digest());
        let other = MemoryView { header: b"another", due: None, ..whole };
        assert_eq!(other.body_digest(), whole.body_digest(), "a header is no part of the body");
    }
}
