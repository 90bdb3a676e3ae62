//! App tokens in SQL.

use rusqlite::{Connection, OptionalExtension as _, Row, params};
use stvor_base::{AppId, Timestamp};

use super::mailbox::millis;
use crate::storage::TokenRecord;

const COLUMNS: &str = "id, hash, app, label, created_at, expires_at, revoked_at";

fn record(row: &Row<'_>) -> Result<TokenRecord, rusqlite::Error> {
    let time = |value: i64| Timestamp::from_millis(value.cast_unsigned());
    let app: String = row.get(2)?;
    let app = AppId::new(&app).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(2, rusqlite::types::Type::Text, Box::new(error))
    })?;
    Ok(TokenRecord {
        id: row.get(0)?,
        hash: row.get(1)?,
        app,
        label: row.get(3)?,
        created_at: time(row.get(4)?),
        expires_at: row.get::<_, Option<i64>>(5)?.map(time),
        revoked_at: row.get::<_, Option<i64>>(6)?.map(time),
    })
}

pub(super) fn put(sql: &Connection, token: &TokenRecord) -> Result<(), rusqlite::Error> {
    sql.prepare_cached("INSERT OR REPLACE INTO tokens VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?
        .execute(params![
            token.id,
            token.hash,
            token.app.as_str(),
            token.label,
            millis(token.created_at),
            token.expires_at.map(millis),
            token.revoked_at.map(millis)
        ])
        .map(drop)
}

pub(super) fn find(sql: &Connection, hash: &[u8; 32]) -> Result<Option<TokenRecord>, rusqlite::Error> {
    // A look-up by a hash of 256 bits: what its time tells is of no use without a preimage.
    sql.prepare_cached(&format!("SELECT {COLUMNS} FROM tokens WHERE hash = ?1"))?
        .query_row([hash], record)
        .optional()
        .map(|found| found.filter(|token| stvor_crypto::kdf::constant_time_eq(&token.hash, hash)))
}

pub(super) fn all(sql: &Connection) -> Result<Vec<TokenRecord>, rusqlite::Error> {
    sql.prepare_cached(&format!("SELECT {COLUMNS} FROM tokens ORDER BY created_at DESC, id"))?
        .query_map([], record)?
        .collect()
}

pub(super) fn revoke(sql: &Connection, id: &str, now: Timestamp) -> Result<bool, rusqlite::Error> {
    sql.prepare_cached("UPDATE tokens SET revoked_at = coalesce(revoked_at, ?2) WHERE id = ?1")?
        .execute(params![id, millis(now)])
        .map(|changed| changed > 0)
}
