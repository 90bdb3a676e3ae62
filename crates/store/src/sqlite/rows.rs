//! Every statement that reads or writes rows.

use crate::adapter::{Page, Row, RowValue, Scan};
use crate::change::{ChangeSet, Expect, Key, Op, RowVersion};
use crate::limits;
use rusqlite::{Connection, OptionalExtension, Result, Row as SqlRow, named_params, params};
use stvor_base::Timestamp;

/// SQLite's integers are signed; the bits are kept as they are.
fn expiry(expires: Option<Timestamp>) -> Option<i64> {
    expires.map(|at| at.as_millis().cast_signed())
}

/// The columns of a row. What is longer than any row of ours is not even loaded: it reads as NULL, which no column of
/// the schema can be, so the row is refused as damaged.
macro_rules! columns {
    () => {
        "version, expires, iif(length(sort) <= 512, sort, NULL) AS sort, iif(length(value) <= 262144, value, NULL) AS value"
    };
}

const _: () = assert!(limits::MAX_KEY_PART == 512 && limits::MAX_VALUE == 262_144);

fn value(row: &SqlRow<'_>) -> Result<(RowValue, Option<Timestamp>)> {
    let version = RowVersion(row.get::<_, i64>("version")?.cast_unsigned());
    let expires: Option<i64> = row.get("expires")?;
    let expires = expires.map(|at| Timestamp::from_millis(at.cast_unsigned()));
    Ok((RowValue { bytes: row.get("value")?, version }, expires))
}

pub(super) fn get(connection: &Connection, key: &Key) -> Result<Option<Row>> {
    let mut select = connection.prepare_cached(concat!(
        "SELECT ",
        columns!(),
        " FROM rows WHERE tbl = ?1 AND part = ?2 AND sort = ?3"
    ))?;
    let found = select.query_row(params![key.table.id(), key.partition, key.sort], value).optional()?;
    Ok(found.map(|(value, expires)| Row { key: key.clone(), value, expires }))
}

pub(super) fn scan(connection: &Connection, scan: &Scan) -> Result<Page<Row>> {
    let order = if scan.reverse { "DESC" } else { "ASC" };
    let mut select = connection.prepare_cached(&format!(
        concat!(
            "SELECT ",
            columns!(),
            " FROM rows
             WHERE tbl = :tbl AND part = :part AND rows.sort >= :low AND (:high IS NULL OR rows.sort < :high)
             ORDER BY rows.sort {order} LIMIT :limit"
        ),
        order = order
    ))?;
    // One more than asked tells whether more follow.
    let mut found = select.query(named_params! {
        ":tbl": scan.table.id(),
        ":part": scan.partition,
        ":low": scan.from.as_deref().unwrap_or_default(),
        ":high": scan.before,
        ":limit": i64::try_from(scan.limit).unwrap_or(i64::MAX).saturating_add(1),
    })?;
    let mut page = Page { rows: Vec::new(), more: false };
    let mut bytes = 0;
    while let Some(row) = found.next()? {
        let (value, expires) = value(row)?;
        bytes += value.bytes.len();
        if page.rows.len() == scan.limit || (bytes > limits::MAX_SCAN_BYTES && !page.rows.is_empty()) {
            page.more = true;
            break;
        }
        let sort: Vec<u8> = row.get("sort")?;
        page.rows.push(Row { key: Key::new(scan.table, scan.partition.as_slice(), sort), value, expires });
    }
    Ok(page)
}

/// All rows in the order of their keys.
pub(super) fn walk(connection: &Connection, after: Option<&Key>, limit: usize) -> Result<Page<Row>> {
    let mut select = connection.prepare_cached(concat!(
        "SELECT tbl, iif(length(part) <= 512, part, NULL) AS part, ",
        columns!(),
        " FROM rows WHERE (rows.tbl, rows.part, rows.sort) > (:tbl, :part, :sort)
         ORDER BY rows.tbl, rows.part, rows.sort LIMIT :limit"
    ))?;
    let mut found = select.query(named_params! {
        // Before the first table, or after a key of one.
        ":tbl": after.map_or(-1, |key| i64::from(key.table.id())),
        ":part": after.map(|key| key.partition.as_slice()).unwrap_or_default(),
        ":sort": after.map(|key| key.sort.as_slice()).unwrap_or_default(),
        ":limit": i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1),
    })?;
    let mut page = Page { rows: Vec::new(), more: false };
    let mut bytes = 0;
    while let Some(row) = found.next()? {
        let (value, expires) = value(row)?;
        bytes += value.bytes.len();
        if page.rows.len() == limit || (bytes > limits::MAX_SCAN_BYTES && !page.rows.is_empty()) {
            page.more = true;
            break;
        }
        let table: i64 = row.get("tbl")?;
        // A number that no version of this program gave out is damage.
        let table = u8::try_from(table).ok().and_then(crate::Table::from_id);
        let table = table.ok_or(rusqlite::Error::IntegralValueOutOfRange(0, -1))?;
        let (part, sort): (Vec<u8>, Vec<u8>) = (row.get("part")?, row.get("sort")?);
        page.rows.push(Row { key: Key::new(table, part, sort), value, expires });
    }
    Ok(page)
}

/// Applies operations until one does not find what it expected: its index.
pub(super) fn apply(connection: &Connection, changes: &ChangeSet<RowValue>) -> Result<Option<usize>> {
    for (index, op) in changes.ops.iter().enumerate() {
        if !step(connection, op)? {
            return Ok(Some(index));
        }
    }
    Ok(None)
}

fn step(connection: &Connection, op: &Op<RowValue>) -> Result<bool> {
    match op {
        Op::Put { key, value, expires, expect } => put(connection, (key, value), *expires, *expect),
        Op::Delete { key, expect } => delete(connection, key, *expect),
        Op::Check { key, expect } => {
            let mut select = connection
                .prepare_cached("SELECT version FROM rows WHERE tbl = ?1 AND part = ?2 AND sort = ?3")?;
            let found: Option<i64> = select
                .query_row(params![key.table.id(), key.partition, key.sort], |row| row.get(0))
                .optional()?;
            Ok(expect.holds(found.map(|version| RowVersion(version.cast_unsigned()))))
        }
        Op::DeletePartition { table, partition } => {
            let mut delete = connection.prepare_cached("DELETE FROM rows WHERE tbl = ?1 AND part = ?2")?;
            delete.execute(params![table.id(), partition]).map(|_| true)
        }
        Op::DeleteTable { table } => {
            let mut delete = connection.prepare_cached("DELETE FROM rows WHERE tbl = ?1")?;
            delete.execute([table.id()]).map(|_| true)
        }
    }
}

fn put(
    connection: &Connection,
    (key, value): (&Key, &RowValue),
    expires: Option<Timestamp>,
    expect: Expect,
) -> Result<bool> {
    let sql = match expect {
        Expect::Any => {
            "INSERT INTO rows (tbl, part, sort, version, expires, value)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT (tbl, part, sort) DO UPDATE
             SET version = excluded.version, expires = excluded.expires, value = excluded.value"
        }
        Expect::Absent => {
            "INSERT INTO rows (tbl, part, sort, version, expires, value)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT (tbl, part, sort) DO NOTHING"
        }
        Expect::Present => {
            "UPDATE rows SET version = ?4, expires = ?5, value = ?6
             WHERE tbl = ?1 AND part = ?2 AND sort = ?3"
        }
        Expect::Version(_) => {
            "UPDATE rows SET version = ?4, expires = ?5, value = ?6
             WHERE tbl = ?1 AND part = ?2 AND sort = ?3 AND version = ?7"
        }
    };
    let mut statement = connection.prepare_cached(sql)?;
    // By position: SQLite looks a name up among all of a statement's names.
    let (table, version, expires) = (key.table.id(), value.version.0.cast_signed(), expiry(expires));
    let changed = match expect {
        Expect::Version(found) => statement.execute(params![
            table,
            key.partition,
            key.sort,
            version,
            expires,
            value.bytes,
            found.0.cast_signed()
        ])?,
        _ => statement.execute(params![table, key.partition, key.sort, version, expires, value.bytes])?,
    };
    Ok(changed == 1)
}

fn delete(connection: &Connection, key: &Key, expect: Expect) -> Result<bool> {
    if expect == Expect::Any {
        let mut delete =
            connection.prepare_cached("DELETE FROM rows WHERE tbl = ?1 AND part = ?2 AND sort = ?3")?;
        return delete.execute(params![key.table.id(), key.partition, key.sort]).map(|_| true);
    }
    let mut select = connection
        .prepare_cached("SELECT id, version FROM rows WHERE tbl = ?1 AND part = ?2 AND sort = ?3")?;
    let found: Option<(i64, i64)> = select
        .query_row(params![key.table.id(), key.partition, key.sort], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    if !expect.holds(found.map(|(_, version)| RowVersion(version.cast_unsigned()))) {
        return Ok(false);
    }
    if let Some((id, _)) = found {
        connection.prepare_cached("DELETE FROM rows WHERE id = ?1")?.execute([id])?;
    }
    Ok(true)
}

pub(super) fn sweep(connection: &Connection, now: Timestamp, limit: usize) -> Result<usize> {
    let mut delete = connection.prepare_cached(
        "DELETE FROM rows WHERE id IN
         (SELECT id FROM rows WHERE expires IS NOT NULL AND expires <= ?1 ORDER BY expires LIMIT ?2)",
    )?;
    let now = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
    delete.execute(params![now, i64::try_from(limit).unwrap_or(i64::MAX)])
}

/// Gives pages that deletions freed back to the file system, a few at a time.
pub(super) fn shrink(connection: &Connection) -> Result<()> {
    let mut pages = connection.prepare("PRAGMA incremental_vacuum(256)")?;
    let mut rows = pages.query([])?;
    while rows.next()?.is_some() {}
    Ok(())
}

/// Rows, and bytes of keys and values.
pub(super) fn count(connection: &Connection) -> Result<(u64, u64)> {
    connection.query_row(
        "SELECT count(*), coalesce(sum(length(part) + length(sort) + length(value)), 0) FROM rows",
        [],
        |row| Ok((row.get::<_, i64>(0)?.cast_unsigned(), row.get::<_, i64>(1)?.cast_unsigned())),
    )
}
