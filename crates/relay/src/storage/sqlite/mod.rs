//! The durable store: one SQLite file in WAL mode with `synchronous=FULL`, one writer thread with group commit, and a
//! few readers.
//!
//! The command line works on the same file from another process. The writer notices at the start of its next
//! transaction and forgets what it cached; [`super::Tokens::outside_changes`] tells the relay to review who is logged in.

mod directory;
mod mailbox;
mod offline;
mod queue;
mod tokens;
mod writer;

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use rusqlite::{Connection, OpenFlags};
use stvor_base::{Address, AppId, MessageId, Timestamp, UserId};
use stvor_wire::client::UploadKeys;
use stvor_wire::keys::KeyCounts;

use super::types::*;
use super::{Directory, Done, Mailbox, Tokens, rules};
use crate::metrics::StoreMetrics;
pub(crate) use offline::Offline;
use writer::{Failure, Operation, Writer, busy, unavailable};

mod embedded {
    refinery::embed_migrations!("migrations");
}

/// Connections that read at once.
const READERS: usize = 4;

/// How long a statement waits for another process.
const BUSY: core::time::Duration = core::time::Duration::from_secs(5);

/// A store in one file.
pub struct SqliteStore {
    /// Dropped first: it commits what is queued.
    writer: Writer,
    readers: Arc<Readers>,
    /// Held while a relay runs on the file.
    _lock: File,
}

struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    permits: tokio::sync::Semaphore,
}

/// Opens the file and brings it to the newest schema.
pub(crate) fn open_connection(path: &Path) -> Result<Connection, StoreError> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder)
            .map_err(|error| StoreError::Unavailable(format!("{}: {error}", folder.display())))?;
    }
    let told = |error: rusqlite::Error| {
        let text = format!("{}: {error}", path.display());
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => {
                StoreError::Corrupt(text)
            }
            _ => StoreError::Unavailable(text),
        }
    };
    let mut connection = Connection::open(path).map_err(told)?;
    restrict(path);
    configure(&connection).map_err(told)?;
    // Looks at the first page, which says how long the file has to be.
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())).map_err(told)?;
    migrate(&mut connection, path)?;
    Ok(connection)
}

/// Only the relay's user may read whose mail waits.
#[cfg(unix)]
fn restrict(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let _ = std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600));
}

#[cfg(not(unix))]
fn restrict(_path: &Path) {}

fn configure(connection: &Connection) -> Result<(), rusqlite::Error> {
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(())
}

/// Past the bound SQLite answers as on a full disk.
fn bound(connection: &Connection, bounds: &Bounds) -> Result<(), rusqlite::Error> {
    let Some(bytes) = bounds.database_bytes else { return Ok(()) };
    let page: u32 = connection.query_row("PRAGMA page_size", [], |row| row.get(0))?;
    // The largest that SQLite takes.
    let pages = (bytes / u64::from(page.max(1))).clamp(1, 4_294_967_294);
    // The pragma answers with the bound that is in effect.
    connection.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let runner = embedded::migrations::runner();
    let newest = runner.get_migrations().iter().map(refinery::Migration::version).max().unwrap_or(0);
    let told = |error: refinery::Error| StoreError::Unavailable(format!("{}: {error}", path.display()));
    let applied = runner.get_last_applied_migration(connection).ok().flatten();
    if let Some(applied) = applied.filter(|applied| applied.version() > newest) {
        return Err(StoreError::TooNew(format!("{}: version {}", path.display(), applied.version())));
    }
    runner.run(connection).map(drop).map_err(told)
}

/// A database as the first version left it, with two messages from one device to another.
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
pub(super) fn made_by_the_first_version(path: &Path) {
    let mut sql = Connection::open(path).unwrap();
    embedded::migrations::runner().set_target(refinery::Target::Version(1)).run(&mut sql).unwrap();
    sql.execute_batch(
        "INSERT INTO users VALUES (1, 'acme', 'alice', x'', x''), (2, 'acme', 'bob', x'', x'');
         INSERT INTO devices (id, user, device, epoch) VALUES (1, 1, 1, 7);
         INSERT INTO devices (id, user, device, epoch, last_seq, messages, bytes) VALUES (2, 2, 1, 8, 2, 2, 1024);
         INSERT INTO messages VALUES
             (2, 1, zeroblob(16), 1, 'alice', 1, 0, 9223372036854775807, zeroblob(512)),
             (2, 2, zeroblob(16), 1, 'alice', 1, 0, 9223372036854775807, zeroblob(512));
         INSERT INTO lanes VALUES (2, 1, NULL, NULL, 5, 2);",
    )
    .unwrap();
}

impl SqliteStore {
    /// Opens or creates the file.
    ///
    /// # Errors
    /// [`StoreError::InUse`] when another relay has it, [`StoreError::TooNew`], [`StoreError::Unavailable`].
    pub(crate) fn open(path: &Path, bounds: Bounds, metrics: StoreMetrics) -> Result<Self, StoreError> {
        let told = |error: std::io::Error| StoreError::Unavailable(format!("{}: {error}", path.display()));
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(told)?;
        }
        let mut lock_path = path.as_os_str().to_owned();
        lock_path.push(".lock");
        let lock =
            OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path).map_err(told)?;
        lock.try_lock().map_err(|_| StoreError::InUse(path.display().to_string()))?;
        let connection = open_connection(path)?;
        bound(&connection, &bounds).map_err(|error| unavailable(&error))?;
        let writer = Writer::start(connection, bounds, metrics).map_err(told)?;
        let readers = Readers {
            path: path.to_owned(),
            idle: Mutex::default(),
            permits: tokio::sync::Semaphore::new(READERS),
        };
        Ok(Self { writer, readers: Arc::new(readers), _lock: lock })
    }

    /// Reads on a connection of its own.
    async fn query<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, rusqlite::Error> + Send + 'static,
    ) -> Result<T, StoreError> {
        let readers = self.readers.clone();
        let permit = self.readers.permits.acquire().await.map_err(|_| busy())?;
        let result = tokio::task::spawn_blocking(move || {
            let idle = readers.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let connection = match idle {
                Some(connection) => connection,
                None => reader(&readers.path)?,
            };
            let result = work(&connection).map_err(|error| unavailable(&error));
            readers.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
            result
        });
        let result = result.await.map_err(|error| StoreError::Unavailable(error.to_string()))?;
        drop(permit);
        result
    }
}

fn reader(path: &Path) -> Result<Connection, StoreError> {
    let open = || {
        // One thread at a time has it: SQLite needs no locks of its own.
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY)?;
        connection.set_prepared_statement_cache_capacity(32);
        Ok(connection)
    };
    open().map_err(|error: rusqlite::Error| unavailable(&error))
}

#[async_trait]
impl Mailbox for SqliteStore {
    fn put(&self, put: Arc<Put>, done: Done<Stored>) {
        let hash = rules::blob_hash(&put.blob);
        if let Err(operation) = self.writer.submit(Operation::Put(put, hash, done))
            && let Operation::Put(.., done) = *operation
        {
            done(Err(busy()));
        }
    }

    fn ack(&self, mailbox: MailboxId, rows: Vec<AckRow>, done: Done<Vec<MessageId>>) {
        if let Err(operation) = self.writer.submit(Operation::Ack(mailbox, rows, done))
            && let Operation::Ack(_, _, done) = *operation
        {
            done(Err(busy()));
        }
    }

    async fn last_seq(&self, holder: Holder) -> Result<u64, StoreError> {
        self.writer
            .run(move |batch| {
                let device = batch.cache.device(batch.sql, holder.device)?;
                let device = device.filter(|device| device.generation == holder.generation);
                let device = device.ok_or(StoreError::Refused(rules::NOT_REGISTERED))?;
                Ok(device.last_seq)
            })
            .await
    }

    async fn read(
        &self,
        mailbox: MailboxId,
        after: u64,
        (limit, without): (PageLimit, &[MailboxId]),
    ) -> Result<Page, StoreError> {
        let without = without.to_vec();
        self.query(move |sql| mailbox::read(sql, mailbox, after, (limit, &without))).await
    }

    async fn sweep(&self, now: Timestamp, limit: usize) -> Result<Swept, StoreError> {
        self.writer.run(move |batch| Ok(batch.sweep(now, limit)?)).await
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.writer
            .run(|batch| {
                let value = Timestamp::system().as_millis().to_be_bytes();
                batch.sql.execute("INSERT OR REPLACE INTO secrets VALUES ('checked', ?1)", [value])?;
                Ok(())
            })
            .await
    }
}

#[async_trait]
impl Directory for SqliteStore {
    async fn attach(&self, attach: Attach) -> Result<Attached, StoreError> {
        self.writer.run(move |batch| batch.attach(&attach)).await
    }

    async fn resolve(&self, app: &AppId, address: &Address) -> Result<Option<MailboxId>, StoreError> {
        let (app, address) = (app.clone(), address.clone());
        self.query(move |sql| directory::resolve(sql, &app, &address)).await
    }

    async fn upload_keys(&self, holder: Holder, upload: UploadKeys) -> Result<KeyCounts, StoreError> {
        self.writer.run(move |batch| batch.upload(holder, &upload)).await
    }

    async fn bundles(
        &self,
        app: &AppId,
        user: &UserId,
        take: Take,
    ) -> Result<Option<UserBundles>, StoreError> {
        let (app, user) = (app.clone(), user.clone());
        self.writer.run(move |batch| batch.bundles(&app, &user, &take)).await
    }

    async fn user_state(&self, app: &AppId, user: &UserId) -> Result<Registered, StoreError> {
        let (app, user) = (app.clone(), user.clone());
        self.query(move |sql| directory::user_state(sql, &app, &user)).await
    }

    async fn has_keys_anywhere(&self, user: &UserId) -> Result<bool, StoreError> {
        let user = user.clone();
        self.query(move |sql| directory::has_keys_anywhere(sql, &user)).await
    }

    async fn delete_account(&self, holder: Holder) -> Result<Vec<MailboxId>, StoreError> {
        self.writer.run(move |batch| batch.delete_account(holder)).await
    }

    async fn is_current(&self, holder: Holder) -> Result<bool, StoreError> {
        let keys = (holder.device.0, mailbox::int(holder.generation));
        self.query(move |sql| {
            sql.prepare_cached("SELECT 1 FROM devices WHERE id = ?1 AND generation = ?2")?.exists(keys)
        })
        .await
    }
}

#[async_trait]
impl Tokens for SqliteStore {
    async fn put_token(&self, token: TokenRecord) -> Result<(), StoreError> {
        self.writer.run(move |batch| Ok(tokens::put(batch.sql, &token)?)).await
    }

    async fn token(&self, hash: &[u8; 32]) -> Result<Option<TokenRecord>, StoreError> {
        let hash = *hash;
        self.query(move |sql| tokens::find(sql, &hash)).await
    }

    async fn tokens(&self) -> Result<Vec<TokenRecord>, StoreError> {
        self.query(tokens::all).await
    }

    async fn revoke_token(&self, id: &str, now: Timestamp) -> Result<bool, StoreError> {
        let id = id.to_owned();
        self.writer.run(move |batch| Ok(tokens::revoke(batch.sql, &id, now)?)).await
    }

    async fn outside_changes(&self) -> Result<u64, StoreError> {
        // SQLite's number, which other connections' commits change and the writer's own do not.
        let number = |batch: &mut writer::Batch<'_>| {
            let number: i64 = batch.sql.query_row("PRAGMA data_version", [], |row| row.get(0))?;
            Ok(number.cast_unsigned())
        };
        self.writer.run(number).await
    }

    async fn secret(&self, name: &'static str, fresh: [u8; 32]) -> Result<[u8; 32], StoreError> {
        self.writer
            .run(move |batch| {
                batch.sql.execute(
                    "INSERT OR IGNORE INTO secrets VALUES (?1, ?2)",
                    rusqlite::params![name, fresh],
                )?;
                let value =
                    batch
                        .sql
                        .query_row("SELECT value FROM secrets WHERE name = ?1", [name], |row| row.get(0))?;
                Ok::<_, Failure>(value)
            })
            .await
    }
}
