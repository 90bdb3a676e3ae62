//! Every statement that reads or writes rows.

use crate::adapter::{Page, Row, RowValue, Scan};
use crate::change::{Expect, Key, Op, RowVersion};
use crate::{StoreError, limits};
use deadpool_postgres::{ClientWrapper, Transaction};
use stvor_base::Timestamp;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Row as SqlRow, Statement};

type Sql<T> = Result<T, tokio_postgres::Error>;

/// What is longer than any value of ours is not even loaded: it reads as NULL, which no value of the schema can be.
macro_rules! value {
    () => {
        "CASE WHEN octet_length(r.value) <= 262144 THEN r.value END AS value"
    };
}

const _: () = assert!(limits::MAX_VALUE == 262_144 && limits::MAX_SCAN_BYTES == 8_388_608);

const GET: &str = concat!(
    "SELECT k.i, r.version, r.expires, ",
    value!(),
    " FROM unnest($2::int2[], $3::bytea[], $4::bytea[]) WITH ORDINALITY AS k (tbl, part, sort, i)
     JOIN stvor_rows r ON r.place = $1 AND r.tbl = k.tbl AND r.part = k.part AND r.sort = k.sort"
);

macro_rules! scan {
    ($order:literal) => {
        concat!(
            "SELECT r.sort, r.version, r.expires, r.found, ",
            value!(),
            " FROM (
                SELECT sort, version, expires, value, row_number() OVER w AS n,
                       sum(octet_length(value)) OVER w AS bytes, count(*) OVER () AS found
                FROM (SELECT * FROM stvor_rows WHERE place = $1 AND tbl = $2 AND part = $3 AND sort >= $4 AND sort < $5
                      ORDER BY sort ",
            $order,
            " LIMIT $6::int8 + 1) AS few
                WINDOW w AS (ORDER BY sort ",
            $order,
            " ROWS UNBOUNDED PRECEDING)
              ) AS r WHERE r.n <= $6::int8 AND (r.bytes <= 8388608 OR r.n = 1) ORDER BY r.n"
        )
    };
}

const WALK: &str = concat!(
    "SELECT r.tbl, r.part, r.sort, r.version, r.expires, r.found, ",
    value!(),
    " FROM (
        SELECT *, row_number() OVER w AS n, sum(octet_length(value)) OVER w AS bytes, count(*) OVER () AS found
        FROM (SELECT tbl, part, sort, version, expires, value FROM stvor_rows
              WHERE place = $1 AND (tbl, part, sort) > ($2, $3, $4)
              ORDER BY tbl, part, sort LIMIT $5::int8 + 1) AS few
        WINDOW w AS (ORDER BY tbl, part, sort ROWS UNBOUNDED PRECEDING)
      ) AS r WHERE r.n <= $5::int8 AND (r.bytes <= 8388608 OR r.n = 1) ORDER BY r.n"
);

const COUNT: &str =
    "SELECT count(*), coalesce(sum(octet_length(part) + octet_length(sort) + octet_length(value)), 0)::int8
     FROM stvor_rows WHERE place = $1";

const SWEEP: &str = "DELETE FROM stvor_rows WHERE ctid = ANY (ARRAY (
       SELECT ctid FROM stvor_rows WHERE place = $1 AND expires <= $2 ORDER BY expires LIMIT $3))";

fn value(row: &SqlRow) -> Result<(RowValue, Option<Timestamp>), StoreError> {
    let odd = |_| StoreError::corrupt("a column has another type");
    let version: i64 = row.try_get("version").map_err(odd)?;
    let expires: Option<i64> = row.try_get("expires").map_err(odd)?;
    let bytes: Option<Vec<u8>> = row.try_get("value").map_err(odd)?;
    let bytes =
        bytes.ok_or_else(|| StoreError::corrupt("a row is longer than any that this program writes"))?;
    let version = RowVersion(version.cast_unsigned());
    Ok((RowValue { bytes, version }, expires.map(|at| Timestamp::from_millis(at.cast_unsigned()))))
}

pub(super) async fn get(
    client: &ClientWrapper,
    place: &[u8],
    keys: &[Key],
) -> Sql<Result<Vec<Option<Row>>, StoreError>> {
    let select = client.prepare_cached(GET).await?;
    let tables: Vec<i16> = keys.iter().map(|key| key.table.id().into()).collect();
    let parts: Vec<&[u8]> = keys.iter().map(|key| key.partition.as_slice()).collect();
    let sorts: Vec<&[u8]> = keys.iter().map(|key| key.sort.as_slice()).collect();
    let found = client.query(&select, &[&place, &tables, &parts, &sorts]).await?;
    let mut rows = vec![None; keys.len()];
    let mut fill = || {
        for row in &found {
            let index: i64 =
                row.try_get("i").map_err(|_| StoreError::corrupt("a column has another type"))?;
            let index = usize::try_from(index).unwrap_or(0).wrapping_sub(1);
            if let (Some(slot), Some(key)) = (rows.get_mut(index), keys.get(index)) {
                let (value, expires) = value(row)?;
                *slot = Some(Row { key: key.clone(), value, expires });
            }
        }
        Ok(())
    };
    let filled = fill();
    Ok(filled.map(|()| rows))
}

pub(super) async fn scan(
    client: &ClientWrapper,
    place: &[u8],
    scan: &Scan,
) -> Sql<Result<Page<Row>, StoreError>> {
    let select = client.prepare_cached(if scan.reverse { scan!("DESC") } else { scan!("ASC") }).await?;
    let from = scan.from.as_deref().unwrap_or_default();
    // No sort key is as long.
    let end = [u8::MAX; limits::MAX_KEY_PART + 2];
    let before = scan.before.as_deref().unwrap_or(&end);
    let (table, limit) = (i16::from(scan.table.id()), i64::try_from(scan.limit).unwrap_or(i64::MAX - 1));
    let found = client.query(&select, &[&place, &table, &scan.partition, &from, &before, &limit]).await?;
    let read = |row: &SqlRow| {
        let sort: Vec<u8> =
            row.try_get("sort").map_err(|_| StoreError::corrupt("a column has another type"))?;
        let (value, expires) = value(row)?;
        Ok(Row { key: Key::new(scan.table, scan.partition.as_slice(), sort), value, expires })
    };
    let in_range = found.first().map_or(0, |row| row.try_get("found").unwrap_or(0_i64));
    let more = usize::try_from(in_range).unwrap_or(usize::MAX) > found.len();
    let rows: Result<Vec<Row>, StoreError> = found.iter().map(read).collect();
    Ok(rows.map(|rows| Page { rows, more }))
}

pub(super) async fn walk(
    client: &ClientWrapper,
    place: &[u8],
    (after, limit): (Option<&Key>, usize),
) -> Sql<Result<Page<Row>, StoreError>> {
    let select = client.prepare_cached(WALK).await?;
    // Before the first table, or after a key of one.
    let table = after.map_or(-1, |key| i16::from(key.table.id()));
    let part = after.map(|key| key.partition.as_slice()).unwrap_or_default();
    let sort = after.map(|key| key.sort.as_slice()).unwrap_or_default();
    let limit = i64::try_from(limit).unwrap_or(i64::MAX - 1);
    let found = client.query(&select, &[&place, &table, &part, &sort, &limit]).await?;
    let odd = |_| StoreError::corrupt("a column has another type");
    let read = |row: &SqlRow| {
        let table: i16 = row.try_get("tbl").map_err(odd)?;
        let table = u8::try_from(table).ok().and_then(crate::Table::from_id);
        let table = table.ok_or_else(|| StoreError::corrupt("a row stands in a table that nobody knows"))?;
        let (part, sort): (Vec<u8>, Vec<u8>) =
            (row.try_get("part").map_err(odd)?, row.try_get("sort").map_err(odd)?);
        let (value, expires) = value(row)?;
        Ok(Row { key: Key::new(table, part, sort), value, expires })
    };
    let left = found.first().map_or(0, |row| row.try_get("found").unwrap_or(0_i64));
    let more = usize::try_from(left).unwrap_or(usize::MAX) > found.len();
    let rows: Result<Vec<Row>, StoreError> = found.iter().map(read).collect();
    Ok(rows.map(|rows| Page { rows, more }))
}

/// Rows, and bytes of keys and values.
pub(super) async fn count(client: &ClientWrapper, place: &[u8]) -> Sql<(u64, u64)> {
    let select = client.prepare_cached(COUNT).await?;
    let row = client.query_one(&select, &[&place]).await?;
    let (rows, bytes): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
    Ok((rows.cast_unsigned(), bytes.cast_unsigned()))
}

pub(super) async fn sweep(
    client: &Transaction<'_>,
    place: &[u8],
    (now, limit): (Timestamp, usize),
) -> Sql<usize> {
    let delete = client.prepare_cached(SWEEP).await?;
    let now = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    client
        .execute(&delete, &[&place, &now, &limit])
        .await
        .map(|removed| usize::try_from(removed).unwrap_or(0))
}

const PUT_ANY: &str = "INSERT INTO stvor_rows (place, tbl, part, sort, version, expires, value)
     VALUES ($1, $2, $3, $4, $5, $6, $7)
     ON CONFLICT (place, tbl, part, sort) DO UPDATE
     SET version = excluded.version, expires = excluded.expires, value = excluded.value";
const PUT_ABSENT: &str = "INSERT INTO stvor_rows (place, tbl, part, sort, version, expires, value)
     VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (place, tbl, part, sort) DO NOTHING";
const PUT_PRESENT: &str = "UPDATE stvor_rows SET version = $5, expires = $6, value = $7
     WHERE place = $1 AND tbl = $2 AND part = $3 AND sort = $4";
const PUT_VERSION: &str = "UPDATE stvor_rows SET version = $5, expires = $6, value = $7
     WHERE place = $1 AND tbl = $2 AND part = $3 AND sort = $4 AND version = $8";
const DELETE: &str = "DELETE FROM stvor_rows WHERE place = $1 AND tbl = $2 AND part = $3 AND sort = $4";
const DELETE_VERSION: &str =
    "DELETE FROM stvor_rows WHERE place = $1 AND tbl = $2 AND part = $3 AND sort = $4 AND version = $5";
// Locked, so that nobody who comes around the lock of the place removes it before the transaction is committed.
const STAYS: &str =
    "SELECT 1 FROM stvor_rows WHERE place = $1 AND tbl = $2 AND part = $3 AND sort = $4 FOR KEY SHARE";
const STAYS_VERSION: &str = "SELECT 1 FROM stvor_rows
     WHERE place = $1 AND tbl = $2 AND part = $3 AND sort = $4 AND version = $5 FOR KEY SHARE";
const IS_THERE: &str = "SELECT 1 FROM stvor_rows WHERE place = $1 AND tbl = $2 AND part = $3 AND sort = $4";
const DELETE_PARTITION: &str = "DELETE FROM stvor_rows WHERE place = $1 AND tbl = $2 AND part = $3";
const DELETE_TABLE: &str = "DELETE FROM stvor_rows WHERE place = $1 AND tbl = $2";

/// An operation as a statement: what to run, with what, and how many rows it must touch (`None`: any number).
pub(super) struct Step<'a> {
    sql: &'static str,
    place: &'a [u8],
    table: i16,
    part: &'a [u8],
    sort: &'a [u8],
    version: i64,
    expires: Option<i64>,
    value: &'a [u8],
    expected: i64,
    pub(super) wants: Option<u64>,
    parameters: usize,
}

impl<'a> Step<'a> {
    pub(super) fn new(place: &'a [u8], op: &'a Op<RowValue>) -> Self {
        let mut step = Step {
            sql: DELETE_TABLE,
            place,
            table: op.table().id().into(),
            part: &[],
            sort: &[],
            version: 0,
            expires: None,
            value: &[],
            expected: 0,
            wants: None,
            parameters: 2,
        };
        match op {
            Op::DeleteTable { .. } => {}
            Op::DeletePartition { partition, .. } => {
                (step.sql, step.part, step.parameters) = (DELETE_PARTITION, partition, 3);
            }
            Op::Delete { key, expect } => {
                (step.part, step.sort, step.parameters) = (&key.partition, &key.sort, 4);
                (step.sql, step.wants) = match expect {
                    Expect::Any => (DELETE, None),
                    Expect::Present => (DELETE, Some(1)),
                    Expect::Absent => (IS_THERE, Some(0)),
                    Expect::Version(found) => {
                        // The fifth parameter of this one.
                        (step.version, step.parameters) = (found.0.cast_signed(), 5);
                        (DELETE_VERSION, Some(1))
                    }
                };
            }
            Op::Check { key, expect } => {
                (step.part, step.sort, step.parameters) = (&key.partition, &key.sort, 4);
                (step.sql, step.wants) = match expect {
                    Expect::Any => (IS_THERE, None),
                    Expect::Present => (STAYS, Some(1)),
                    Expect::Absent => (IS_THERE, Some(0)),
                    Expect::Version(found) => {
                        (step.version, step.parameters) = (found.0.cast_signed(), 5);
                        (STAYS_VERSION, Some(1))
                    }
                };
            }
            Op::Put { key, value, expires, expect } => {
                (step.part, step.sort, step.parameters) = (&key.partition, &key.sort, 7);
                (step.version, step.value) = (value.version.0.cast_signed(), &value.bytes);
                step.expires = expires.map(|at| at.as_millis().cast_signed());
                step.wants = Some(1);
                step.sql = match expect {
                    Expect::Any => PUT_ANY,
                    Expect::Absent => PUT_ABSENT,
                    Expect::Present => PUT_PRESENT,
                    Expect::Version(found) => {
                        (step.expected, step.parameters) = (found.0.cast_signed(), 8);
                        PUT_VERSION
                    }
                };
            }
        }
        step
    }

    /// Its statement, made ready on this connection.
    pub(super) async fn prepare(&self, client: &ClientWrapper) -> Sql<Statement> {
        client.prepare_cached(self.sql).await
    }

    /// Runs it; how many rows it touched.
    pub(super) async fn run(self, client: &ClientWrapper, statement: Statement) -> Sql<u64> {
        let all: [&(dyn ToSql + Sync); 8] = [
            &self.place,
            &self.table,
            &self.part,
            &self.sort,
            &self.version,
            &self.expires,
            &self.value,
            &self.expected,
        ];
        client.execute(&statement, all.get(..self.parameters).unwrap_or(&all)).await
    }
}
