//! The database of a vault. SQL stands here and nowhere else. What is in it is sealed, but for the levels' numbers of rows,
//! sizes, and the hour at which a memory's time runs out.

mod bound;
pub(crate) mod copy;
mod files;
pub(crate) mod foreign;
pub(crate) mod index;
mod log;
mod parts;
mod rows;
mod steps;

use core::cell::Cell;
use std::io::Read as _;
use std::path::Path;

use rusqlite::{Connection, ErrorCode, OpenFlags, ffi};
use stvor_crypto::Secret;
use stvor_tlog::{Hash, Nodes, TlogError};

pub(crate) use bound::{Sums, Table};
pub(crate) use files::{
    CheckpointFile, EndedList, Lock, make_directory, named_when_whole, read_or_nothing, sync_name,
    write_private,
};
pub(crate) use log::EventRow;
pub(crate) use parts::{EventPart, MemoryPart, MemoryView};
pub(crate) use rows::{Due, MemoryRow};

use crate::VaultError;

/// Pages of the database, sealed as they are, that are kept in memory: keys of rows are spread over all of them, and SQLite's two mebibytes
/// hold those of some thousand memories.
const CACHE_KIB: u32 = 16 * 1024;

/// `PRAGMA user_version`. Since 3 the keys of rows are spread over many.
const SCHEMA: u32 = 3;
/// The oldest that is brought up to date when it is opened. Its rows stay as they are and open as they did.
const OLDEST: u32 = 2;
/// `PRAGMA application_id`: "STVV".
const APPLICATION: u32 = 0x5354_5656;

/// The database, open.
#[derive(Debug)]
pub(crate) struct Database {
    pub(crate) connection: Connection,
    /// What the sums over the bound tables are keyed with, from the first unlock on.
    bound: Option<Secret<32>>,
    /// Whether a bound table was changed since [`Database::take_changed`] was last asked.
    changed: Cell<bool>,
}

/// What an error of SQLite means.
pub(crate) fn failed(error: &rusqlite::Error) -> VaultError {
    let rusqlite::Error::SqliteFailure(failure, _) = error else {
        return VaultError::tampered("the database", error.to_string());
    };
    match (failure.code, failure.extended_code) {
        (ErrorCode::DiskFull, _)
        | (
            _,
            ffi::SQLITE_IOERR_WRITE
            | ffi::SQLITE_IOERR_SHMSIZE
            | ffi::SQLITE_IOERR_TRUNCATE
            | ffi::SQLITE_IOERR_FSYNC,
        ) => VaultError::LogUnavailable("the disk or a quota is full, or the disk does not write".into()),
        (ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase, _) => {
            VaultError::tampered("the database", error.to_string())
        }
        _ => VaultError::Database(error.to_string()),
    }
}

/// What a schema consists of: type, name, table, text.
type Schema = Vec<(String, String, String, Option<String>)>;

fn schema(connection: &Connection) -> Result<Schema, VaultError> {
    let read = || {
        let sql = "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY name, type";
        let mut statement = connection.prepare(sql)?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?;
        rows.collect::<rusqlite::Result<Schema>>()
    };
    read().map_err(|error| failed(&error))
}

/// The version of the database in a vault's directory, read from the file's first bytes: it may be open elsewhere.
///
/// # Errors
/// [`VaultError::TooOld`] and [`VaultError::TooNew`] for another version than this program reads; [`VaultError::Tampered`] when the
/// file is no database of a vault; [`VaultError::Missing`], [`VaultError::Io`].
pub fn database_version(directory: &Path) -> Result<u32, VaultError> {
    let path = directory.join(crate::vault::DATABASE);
    let mut head = [0; 72];
    match std::fs::File::open(&path).and_then(|mut file| file.read_exact(&mut head)) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(VaultError::Missing(directory.to_owned()));
        }
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {}
        Err(error) => return Err(VaultError::io("reading", &path, &error)),
    }
    // The header of SQLite's file format: at 60 `user_version`, at 68 `application_id`.
    let number =
        |at: usize| head.get(at..).and_then(|rest| rest.first_chunk::<4>()).copied().map(u32::from_be_bytes);
    if !head.starts_with(b"SQLite format 3\0") || number(68) != Some(APPLICATION) {
        return Err(VaultError::tampered(path.display().to_string(), "it is not the database of a vault"));
    }
    match number(60).unwrap_or_default() {
        found if found < OLDEST => Err(VaultError::TooOld { found, known: SCHEMA }),
        found if found > SCHEMA => Err(VaultError::TooNew { found, known: SCHEMA }),
        found => Ok(found),
    }
}

fn expected_schema() -> Result<Schema, VaultError> {
    let connection = Connection::open_in_memory().map_err(|error| failed(&error))?;
    connection.execute_batch(include_str!("schema.sql")).map_err(|error| failed(&error))?;
    schema(&connection)
}

impl Database {
    /// Makes the database at `path`, mode 0600.
    pub(crate) fn create(path: &Path) -> Result<Self, VaultError> {
        write_private(path, b"")?;
        let database = Self::connect_with(path, "PRAGMA auto_vacuum = INCREMENTAL;")?;
        let schema = include_str!("schema.sql");
        let all = format!(
            "BEGIN; {schema} PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {SCHEMA}; COMMIT;"
        );
        database.run(&all)?;
        Ok(database)
    }

    /// Opens the database at `path`.
    pub(crate) fn open(path: &Path) -> Result<Self, VaultError> {
        if !path.is_file() {
            return Err(VaultError::Missing(path.to_owned()));
        }
        let database = Self::connect(path)?;
        if database.pragma("application_id")? != i64::from(APPLICATION) {
            return Err(VaultError::tampered(
                path.display().to_string(),
                "it is not the database of a vault",
            ));
        }
        let found = u32::try_from(database.pragma("user_version")?).unwrap_or(u32::MAX);
        match found {
            found if found < OLDEST => return Err(VaultError::TooOld { found, known: SCHEMA }),
            found if found > SCHEMA => return Err(VaultError::TooNew { found, known: SCHEMA }),
            _ => {}
        }
        // Triggers, views, virtual tables and conditions would run inside our statements, and a table of another form would
        // hold what no statement of ours expects.
        if schema(&database.connection)? != expected_schema()? {
            return Err(VaultError::tampered("the schema", "it is not that of a vault"));
        }
        if found < SCHEMA {
            database.run(&format!("PRAGMA user_version = {SCHEMA}"))?;
        }
        Ok(database)
    }

    fn connect(path: &Path) -> Result<Self, VaultError> {
        Self::connect_with(path, "")
    }

    /// `first` is said before anything else, as what only an empty database takes.
    fn connect_with(path: &Path, first: &str) -> Result<Self, VaultError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(|error| failed(&error))?;
        connection.set_prepared_statement_cache_capacity(64);
        let database = Self { connection, bound: None, changed: Cell::new(false) };
        database.run(first)?;
        // Every acknowledged operation is synced; what is deleted is overwritten.
        database.run(&format!(
            "PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON; PRAGMA mmap_size = 0; PRAGMA temp_store = MEMORY;
             PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA secure_delete = ON;
             PRAGMA fullfsync = ON; PRAGMA checkpoint_fullfsync = ON; PRAGMA locking_mode = EXCLUSIVE;
             PRAGMA wal_autocheckpoint = 4000; PRAGMA cache_size = -{CACHE_KIB};",
        ))?;
        database.run(bound::SUMS)?;
        Ok(database)
    }

    fn pragma(&self, name: &str) -> Result<i64, VaultError> {
        let read = self.connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get(0));
        read.map_err(|error| failed(&error))
    }

    /// Whether a transaction is under way.
    pub(crate) fn in_transaction(&self) -> bool {
        !self.connection.is_autocommit()
    }

    /// Runs statements that give no rows of interest.
    pub(crate) fn run(&self, statements: &str) -> Result<(), VaultError> {
        self.connection.execute_batch(statements).map_err(|error| failed(&error))
    }

    /// Brings everything into the one file and empties the journal, so that nothing of what was deleted is left in it.
    pub(crate) fn merge_journal(&self) -> Result<(), VaultError> {
        let busy: i64 = self
            .connection
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))
            .map_err(|error| failed(&error))?;
        if busy != 0 {
            return Err(VaultError::Database(
                "the journal could not be emptied: somebody reads the database".into(),
            ));
        }
        Ok(())
    }
}

impl Nodes for Database {
    fn node(&self, level: u8, index: u64) -> Result<Hash, TlogError> {
        let place = || format!("the hash {index} of level {level}");
        let bytes = self.read_node(level, index).map_err(|_| TlogError::Corrupt(place()))?;
        let bytes = bytes.ok_or_else(|| TlogError::Missing(place()))?;
        bytes.try_into().map(Hash).map_err(|_| TlogError::Corrupt(place()))
    }
}

/// Why nothing of a group stands whose transaction is gone.
pub(crate) fn lost_transaction() -> VaultError {
    VaultError::LogUnavailable(
        "the database could not read or write a page and undid what was under way".into(),
    )
}
