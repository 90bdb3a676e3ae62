//! Reading the databases of other programs.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, Row};

use super::failed;
use crate::VaultError;
use crate::import::python_vault::OldMemory;

fn read(row: &Row<'_>) -> rusqlite::Result<OldMemory> {
    Ok(OldMemory {
        id: row.get(0)?,
        created_at: row.get::<_, Option<String>>(1)?.unwrap_or_default(),
        created_by: row.get::<_, Option<String>>(2)?.unwrap_or_default(),
        classification: row.get(3)?,
        profile: row.get::<_, Option<String>>(4)?.unwrap_or_default(),
        content_hash: row.get::<_, Option<String>>(5)?.unwrap_or_default(),
        ciphertext: row.get(6)?,
        nonce: row.get(7)?,
        salt: row.get(8)?,
        intent_ref: row.get(9)?,
        metadata: row.get(10)?,
        policy: row.get(11)?,
        tombstoned: row.get::<_, Option<i64>>(12)?.unwrap_or(0) != 0,
    })
}

/// Every memory of a database of the Python program `memory-vault`.
pub(crate) fn read_python_vault(path: &Path) -> Result<Vec<OldMemory>, VaultError> {
    if !path.is_file() {
        return Err(VaultError::Missing(path.to_owned()));
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let other = |_| VaultError::invalid(format!("{} is not a database of memory-vault", path.display()));
    let connection = Connection::open_with_flags(path, flags).map_err(|error| failed(&error))?;
    connection.execute_batch("PRAGMA trusted_schema = OFF").map_err(other)?;
    // A view of that name would give rows without end.
    let table = "SELECT count(*) FROM sqlite_schema WHERE name = 'memories' AND type = 'table' AND sql NOT LIKE '%VIRTUAL%'";
    if connection.query_row(table, [], |row| row.get::<_, i64>(0)).map_err(other)? != 1 {
        return Err(VaultError::invalid(format!("{} is not a database of memory-vault", path.display())));
    }
    let sql = "SELECT memory_id, created_at, created_by, classification, encryption_profile, content_hash, ciphertext,
               nonce, salt, intent_ref, value_metadata, access_policy, tombstoned FROM memories ORDER BY rowid";
    let mut statement = connection.prepare(sql).map_err(other)?;
    let rows = statement.query_map([], read).map_err(other)?;
    rows.collect::<rusqlite::Result<_>>().map_err(other)
}
