//! Connections, the schema and its migrations, and what SQLite's errors mean.

use super::files;
use crate::{StoreError, limits};
use rusqlite::{Connection, ErrorCode, OpenFlags, ffi};
use std::path::Path;

mod migrations {
    refinery::embed_migrations!("migrations");
}

/// `PRAGMA user_version` after the newest migration.
const SCHEMA: u32 = 1;

/// `PRAGMA application_id`: "STVR".
const APPLICATION: i64 = 0x5354_5652;

/// What an error of SQLite on the database at `path` means.
pub(super) fn error(path: &Path, error: &rusqlite::Error) -> StoreError {
    let rusqlite::Error::SqliteFailure(failure, _) = error else {
        return match error {
            // A column of another type than the schema allows.
            rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::IntegralValueOutOfRange(..) => {
                StoreError::corrupt("a column has another type")
            }
            _ => StoreError::Adapter(error.to_string()),
        };
    };
    match (failure.code, failure.extended_code) {
        (ErrorCode::DiskFull, _) => StoreError::Full,
        // SQLite calls only ENOSPC a full disk; a quota or a file-size limit shows as a failed write.
        (_, ffi::SQLITE_IOERR_WRITE | ffi::SQLITE_IOERR_SHMSIZE | ffi::SQLITE_IOERR_TRUNCATE)
            if files::is_full(path) =>
        {
            StoreError::Full
        }
        // A tool outside this program that holds one of SQLite's own locks.
        (ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked, _) => {
            StoreError::Locked { path: path.to_owned(), pid: None }
        }
        (ErrorCode::DatabaseCorrupt, _) => StoreError::corrupt("the database is malformed"),
        (ErrorCode::NotADatabase, _) => StoreError::corrupt("the file is not a database"),
        (_, ffi::SQLITE_IOERR_SHORT_READ) => StoreError::corrupt("the file ends too early"),
        (ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied, _) => {
            StoreError::ReadOnly { path: path.to_owned() }
        }
        (ErrorCode::SystemIoFailure, _) => StoreError::Io {
            what: format!("reading or writing {}", path.display()),
            reason: error.to_string(),
        },
        _ => StoreError::Adapter(error.to_string()),
    }
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(core::time::Duration::from_secs(5))?;
    connection.set_prepared_statement_cache_capacity(32);
    connection.execute_batch(
        "PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON; PRAGMA foreign_keys = ON;
         PRAGMA mmap_size = 0; PRAGMA temp_store = MEMORY;",
    )?;
    Ok(connection)
}

/// A connection that only reads.
pub(super) fn reader(path: &Path) -> Result<Connection, StoreError> {
    let open = || {
        let connection = connect(path)?;
        connection.execute_batch("PRAGMA query_only = ON;")?;
        Ok(connection)
    };
    open().map_err(|failure| error(path, &failure))
}

/// The connection that writes: every commit is synced to the disk before it returns.
pub(super) fn writer(path: &Path) -> Result<Connection, StoreError> {
    prepared(path, "")
}

fn prepared(path: &Path, first: &str) -> Result<Connection, StoreError> {
    let open = || {
        let connection = connect(path)?;
        connection.execute_batch(first)?;
        // A page that is written often is merged once in 4,000 pages of journal (16 MB), not in SQLite's usual 1,000.
        // Full syncs: on macOS an ordinary one leaves the bytes in the drive's cache; elsewhere they are the same.
        connection.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA secure_delete = ON; PRAGMA journal_size_limit = 16777216; PRAGMA wal_autocheckpoint = 4000;
             PRAGMA fullfsync = ON; PRAGMA checkpoint_fullfsync = ON;",
        )?;
        Ok(connection)
    };
    open().map_err(|failure| error(path, &failure))
}

/// Makes a fresh database. It is built under another name and renamed when it is whole and synced, so that a file at
/// `path` that is empty or cut is damage and never a beginning.
pub(super) fn create(path: &Path) -> Result<(), StoreError> {
    let journal = files::beside(path, "-wal");
    if std::fs::metadata(&journal).is_ok_and(|journal| journal.len() > 0) {
        return Err(StoreError::corrupt("its database file is gone but its journal is there"));
    }
    let draft = files::beside(path, ".new");
    for suffix in ["", "-wal", "-shm", "-journal"] {
        files::remove(&files::beside(&draft, suffix))?;
    }
    let made = files::private()
        .create_new(true)
        .open(&draft)
        .map_err(|error| StoreError::io("creating", &draft, &error));
    made?;
    // Freed pages are given back by sweeps, a few at a time. It has to be set before the first table; later it would only
    // write to the file for nothing.
    let mut connection = prepared(&draft, "PRAGMA auto_vacuum = INCREMENTAL;")?;
    migrate(&mut connection, &draft)?;
    finish(connection, &draft)?;
    let renamed = std::fs::File::open(&draft)
        .and_then(|file| file.sync_all())
        .and_then(|()| std::fs::rename(&draft, path));
    renamed.map_err(|error| StoreError::io("creating", path, &error))?;
    files::sync_directory(path)
}

/// Brings everything into the one file and closes it.
pub(super) fn finish(connection: Connection, path: &Path) -> Result<(), StoreError> {
    let merged = merge_journal(&connection, path);
    let closed = connection.close().map_err(|(_, failure)| error(path, &failure));
    merged.and(closed)
}

fn merge_journal(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let merged = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
    merged.map_err(|failure| error(path, &failure))
}

/// Looks at the first bytes of a database before SQLite does, which would make an empty database of a file that is cut
/// very short, and would touch one that is refused. The fields are in the header of the SQLite file format.
pub(super) fn look(path: &Path) -> Result<(), StoreError> {
    use std::io::Read;
    let failed = |error| StoreError::io("reading", path, &error);
    let about = std::fs::metadata(path).map_err(failed)?;
    if !about.is_file() {
        return Err(StoreError::corrupt("it is not a regular file"));
    }
    if about.len() < 512 {
        return Err(StoreError::corrupt("the database file was cut short"));
    }
    let mut header = [0; 100];
    // For writing too: of a database that it may only read SQLite makes a journal that stays read-only later.
    let opened = std::fs::OpenOptions::new().read(true).write(true).open(path);
    opened.and_then(|mut file| file.read_exact(&mut header)).map_err(failed)?;
    let number = |at: usize, bytes: usize| {
        let field = header.get(at..at + bytes).unwrap_or_default();
        field.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
    };
    if !header.starts_with(b"SQLite format 3\0") {
        return Err(StoreError::corrupt("the file is not a database"));
    }
    if number(68, 4) != APPLICATION.cast_unsigned() {
        return Err(StoreError::corrupt("the file is not a STVOR store"));
    }
    let found = u32::try_from(number(60, 4)).unwrap_or(u32::MAX);
    if found > SCHEMA {
        return Err(StoreError::TooNew { found, known: SCHEMA });
    }
    // With a journal the last pages may be in it and not in the file yet. A page size of 1 means 65,536.
    let journal = std::fs::metadata(files::beside(path, "-wal")).map_or(0, |journal| journal.len());
    let page = if number(16, 2) == 1 { 65_536 } else { number(16, 2) };
    if journal == 0 && about.len() < page * number(28, 4) {
        return Err(StoreError::corrupt("the database file was cut short"));
    }
    Ok(())
}

/// Refuses a database of a newer version, of another program, or damaged. Says whether it is of an older version and is to be
/// migrated before the first write: opening with a key that turns out to be wrong writes nothing.
pub(super) fn check(connection: &Connection, path: &Path) -> Result<bool, StoreError> {
    let failed = |failure| error(path, &failure);
    let pragma = |connection: &Connection, name: &str| {
        connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i64>(0)).map_err(failed)
    };
    if pragma(connection, "application_id")? != APPLICATION {
        return Err(StoreError::corrupt("the file is not a STVOR store"));
    }
    let found = u32::try_from(pragma(connection, "user_version")?).unwrap_or(0);
    if found > SCHEMA {
        return Err(StoreError::TooNew { found, known: SCHEMA });
    }
    // Pages that are only in the journal are not in the file's length.
    let merged = match connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| {
        // Frames in the journal, and those that are in the database too.
        Ok(row.get::<_, i64>(1)? == row.get::<_, i64>(2)?)
    }) {
        // A reader outside this program holds some back, or the disk has no room for them twice: all is there, but the
        // length says nothing.
        Err(failure) if matches!(error(path, &failure), StoreError::Full) => false,
        merged => merged.map_err(failed)?,
    };
    let wanted = pragma(connection, "page_count")?.saturating_mul(pragma(connection, "page_size")?);
    let length = std::fs::metadata(path).map_err(|error| StoreError::io("reading", path, &error))?.len();
    if merged && i64::try_from(length).unwrap_or(i64::MAX) < wanted {
        return Err(StoreError::corrupt("the database file was cut short"));
    }
    // They would run inside our statements, as often and as long as their author likes.
    let foreign: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_schema WHERE type NOT IN ('table', 'index')", [], |row| {
            row.get(0)
        })
        .map_err(failed)?;
    if foreign != 0 {
        return Err(StoreError::corrupt("its schema holds triggers or views, which no STVOR program makes"));
    }
    if length <= limits::MAX_CHECK_BYTES {
        let verdict: String =
            connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(failed)?;
        if verdict != "ok" {
            return Err(StoreError::corrupt("the database does not pass its check"));
        }
    }
    Ok(found < SCHEMA)
}

/// Brings a database to the newest version. The header's row is read before this, so every version of the schema has to read
/// it as the newest does.
pub(super) fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let report = migrations::migrations::runner().run(connection);
    report.map(|_| ()).map_err(|failure| match failure.kind() {
        refinery::error::Kind::Connection(_, source) => match source.downcast_ref::<rusqlite::Error>() {
            Some(source) => error(path, source),
            None => StoreError::Adapter(failure.to_string()),
        },
        _ => StoreError::corrupt("its record of migrations does not match this program"),
    })
}
