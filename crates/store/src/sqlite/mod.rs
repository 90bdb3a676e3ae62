//! Rows in a SQLite file: write-ahead log, a sync for every acknowledged commit, one writer, several readers.

pub(crate) mod files;
mod rows;
mod schema;
#[cfg(test)]
mod tests;
mod writer;

use crate::adapter::{Page, Row, RowValue, Scan, Stats, Store, check_commit, check_get, check_sweep};
use crate::change::{ChangeSet, Key};
use crate::{StoreError, limits};
use async_trait::async_trait;
use rusqlite::Connection;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use stvor_base::Timestamp;
use tokio::sync::{Semaphore, oneshot};
use writer::{Job, Queue, Writer};

/// A [`Store`] in a SQLite database. One process has it open at a time.
pub struct SqliteStore {
    path: PathBuf,
    readers: Arc<Readers>,
    queue: Arc<Queue>,
    /// Room in the queue, in units of [`limits::QUEUE_UNIT_BYTES`].
    room: Arc<Semaphore>,
    /// Locked while the thread is waited for, so that everybody who closes waits for it.
    writer: Arc<Mutex<Option<Thread>>>,
}

type Thread = JoinHandle<Result<(), StoreError>>;

struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    free: Arc<Semaphore>,
}

impl core::fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("SqliteStore").field("path", &self.path).finish_non_exhaustive()
    }
}

impl SqliteStore {
    /// Opens the database at `path`, or makes it (mode 0600, missing directories 0700). The file is checked
    /// first, which may take a moment: it happens off the executor. One of an older version is migrated before the first
    /// write to it.
    ///
    /// # Errors
    /// [`StoreError::Locked`] while another handle has it open, [`StoreError::TooNew`], [`StoreError::Corrupt`],
    /// [`StoreError::ReadOnly`], [`StoreError::Full`], [`StoreError::Io`]. The files stay as they were.
    pub async fn open(path: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let path = path.into();
        let opened = tokio::task::spawn_blocking(move || Self::open_blocking(path)).await;
        opened.map_err(|error| StoreError::Adapter(format!("opening did not finish: {error}")))?
    }

    fn open_blocking(path: PathBuf) -> Result<Self, StoreError> {
        let path = files::resolve(path)?;
        files::make_directory(&path)?;
        let lock = files::Lock::take(&path)?;
        match std::fs::metadata(&path) {
            Ok(_) => schema::look(&path)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => schema::create(&path)?,
            Err(error) => return Err(StoreError::io("opening", &path, &error)),
        }
        let connection = schema::writer(&path)?;
        let outdated = schema::check(&connection, &path)?;
        let idle = (0..limits::READERS).map(|_| schema::reader(&path)).collect::<Result<_, _>>()?;
        let free = Arc::new(Semaphore::new(limits::READERS));
        let readers = Arc::new(Readers { path: path.clone(), idle: Mutex::new(idle), free });
        let queue = Arc::new(Queue::default());
        let writer = Writer::new((connection, outdated), path.clone(), lock);
        let jobs = Arc::clone(&queue);
        let thread = std::thread::Builder::new()
            .name("stvor-store".into())
            .spawn(move || writer.run(&jobs))
            .map_err(|error| StoreError::io("starting the writer of", &path, &error))?;
        let room = Arc::new(Semaphore::new(limits::MAX_QUEUE_BYTES / limits::QUEUE_UNIT_BYTES));
        Ok(Self { path, readers, queue, room, writer: Arc::new(Mutex::new(Some(thread))) })
    }

    /// Where the database is: the path that it was opened by, or what that links to.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the database at `path` with its journal and the keyfile beside it, from this machine and for good.
    ///
    /// # Errors
    /// [`StoreError::Locked`] while it is open; [`StoreError::ReadOnly`], [`StoreError::Io`].
    pub async fn destroy(path: impl Into<PathBuf>) -> Result<(), StoreError> {
        let path = path.into();
        let removed = tokio::task::spawn_blocking(move || {
            let path = files::resolve(path)?;
            if !files::parent(&path).exists() {
                return Ok(());
            }
            let lock = files::Lock::take(&path)?;
            files::remove_drafts(&files::beside(&path, ".key"))?;
            // The key first: without it the rest is noise, should the removal be interrupted.
            for suffix in
                [".key", "", "-wal", "-shm", ".probe", ".new", ".new-wal", ".new-shm", ".new-journal"]
            {
                files::remove(&files::beside(&path, suffix))?;
            }
            files::sync_directory(&path)?;
            lock.destroy(&path)
        });
        removed.await.map_err(|error| StoreError::Adapter(format!("removing did not finish: {error}")))?
    }

    /// Runs `work` on a reader; if it is of several statements, they see one moment.
    async fn read<T, F>(&self, several: bool, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let readers = Arc::clone(&self.readers);
        let free = Arc::clone(&readers.free).acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let read = tokio::task::spawn_blocking(move || {
            let _free = free;
            let idle = readers.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let connection = idle.map_or_else(|| schema::reader(&readers.path), Ok)?;
            // Several statements see one moment only inside a transaction; one is a transaction by itself.
            let result = if several {
                connection.unchecked_transaction().and_then(|transaction| work(&transaction))
            } else {
                work(&connection)
            };
            let result = result.map_err(|failure| schema::error(&readers.path, &failure));
            readers.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
            result
        });
        read.await.map_err(|error| StoreError::Adapter(format!("a read did not finish: {error}")))?
    }

    async fn ask<T>(
        &self,
        job: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Job,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.queue.push(job(reply));
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

/// Waits until the writer has ended and its lock is free. Only the first who comes learns how it ended.
fn join(writer: &Mutex<Option<Thread>>) -> Result<(), StoreError> {
    let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(thread) = writer.take() else { return Ok(()) };
    thread.join().map_err(|_| StoreError::Adapter("the writer ended by a panic".into()))?
}

/// A store that was not closed finishes what was handed in, which takes a sync at most, so that the lock is free when
/// the drop is over.
impl Drop for SqliteStore {
    fn drop(&mut self) {
        self.queue.close();
        if let Err(error) = join(&self.writer) {
            tracing::error!(%error, "the store did not close cleanly; what was acknowledged is stored");
        }
    }
}

/// How much of the queue's room a change set takes.
fn weight(changes: &ChangeSet<RowValue>) -> u32 {
    let bytes: usize = changes
        .ops
        .iter()
        .map(|op| match op {
            crate::Op::Put { key, value, .. } => key.partition.len() + key.sort.len() + value.bytes.len(),
            _ => limits::MAX_KEY_PART,
        })
        .sum();
    u32::try_from(bytes / limits::QUEUE_UNIT_BYTES + 1).unwrap_or(u32::MAX)
}

#[async_trait]
impl Store for SqliteStore {
    async fn get(&self, keys: &[Key]) -> Result<Vec<Option<Row>>, StoreError> {
        check_get(keys)?;
        let keys = keys.to_vec();
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        self.read(keys.len() > 1, move |connection| {
            keys.iter().map(|key| rows::get(connection, key)).collect()
        })
        .await
    }

    async fn scan(&self, scan: Scan) -> Result<Page<Row>, StoreError> {
        scan.check()?;
        self.read(false, move |connection| rows::scan(connection, &scan)).await
    }

    async fn commit(&self, changes: ChangeSet<RowValue>) -> Result<(), StoreError> {
        check_commit(&changes)?;
        let room = Arc::clone(&self.room).acquire_many_owned(weight(&changes)).await;
        let room = room.map_err(|_| StoreError::Closed)?;
        self.ask(|reply| Job::Commit { changes, reply, room }).await
    }

    async fn sweep(&self, now: Timestamp, limit: usize) -> Result<usize, StoreError> {
        check_sweep(limit)?;
        self.ask(|reply| Job::Sweep { now, limit, reply }).await
    }

    async fn walk(&self, after: Option<&Key>, limit: usize) -> Result<Page<Row>, StoreError> {
        check_sweep(limit)?;
        let after = after.cloned();
        self.read(false, move |connection| rows::walk(connection, after.as_ref(), limit)).await
    }

    async fn stats(&self) -> Result<Stats, StoreError> {
        let (rows, value_bytes) = self.read(false, rows::count).await?;
        let size = |suffix| std::fs::metadata(files::beside(&self.path, suffix)).map_or(0, |file| file.len());
        Ok(Stats { rows, value_bytes, disk_bytes: size("") + size("-wal") })
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.queue.close();
        self.room.close();
        // Readers under way are waited for; a connection that stays open would keep the journal from being merged.
        let all = u32::try_from(limits::READERS).unwrap_or(u32::MAX);
        if let Ok(every) = Arc::clone(&self.readers.free).acquire_many_owned(all).await {
            self.readers.free.close();
            self.readers.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
            drop(every);
        }
        let writer = Arc::clone(&self.writer);
        let joined = tokio::task::spawn_blocking(move || join(&writer)).await;
        joined.map_err(|error| StoreError::Adapter(format!("closing did not finish: {error}")))?
    }
}
