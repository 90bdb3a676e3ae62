//! The one writer: a thread that takes operations from a queue and commits them in groups.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Instant;

use rusqlite::Connection;

use super::mailbox::Cache;
use crate::limits::{BATCH_OPERATIONS, BATCH_WAIT, BATCH_WAIT_FROM, WRITER_QUEUE};
use crate::metrics::StoreMetrics;
use crate::storage::{AckRow, Bounds, Done, MailboxId, Put, StoreError, Stored};
use stvor_base::MessageId;

/// Says the result of an operation, after the commit or instead of it.
type After = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// Work within the transaction.
type Work = Box<dyn FnOnce(&mut Batch<'_>) -> After + Send>;

pub(super) enum Operation {
    Put(Arc<Put>, Done<Stored>),
    Ack(MailboxId, Vec<AckRow>, Done<Vec<MessageId>>),
    Run(Work),
}

/// One transaction.
pub(super) struct Batch<'a> {
    pub(super) sql: &'a Connection,
    pub(super) cache: &'a mut Cache,
    pub(super) bounds: &'a Bounds,
    /// An operation failed in SQL: the whole transaction goes back.
    pub(super) failed: Option<rusqlite::Error>,
}

pub(super) fn unavailable(error: &rusqlite::Error) -> StoreError {
    StoreError::Unavailable(error.to_string())
}

/// The queue to the writer. The thread ends when the last sender is gone.
pub(super) struct Writer(SyncSender<Operation>);

impl Writer {
    pub(super) fn start(
        connection: Connection,
        bounds: Bounds,
        metrics: StoreMetrics,
    ) -> std::io::Result<(Self, std::thread::JoinHandle<()>)> {
        let (sender, receiver) = sync_channel(WRITER_QUEUE);
        let thread = std::thread::Builder::new().name("stvor-relay-db".to_owned()).spawn(move || {
            Thread { connection, bounds, metrics, cache: Cache::default(), changes: None }.run(&receiver);
        })?;
        Ok((Self(sender), thread))
    }

    /// A queue that takes nothing.
    pub(super) fn closed() -> Self {
        Self(sync_channel(0).0)
    }

    /// Queues an operation; hands it back when the queue is full or the writer is gone.
    pub(super) fn submit(&self, operation: Operation) -> Result<(), Box<Operation>> {
        self.0.try_send(operation).map_err(|error| match error {
            TrySendError::Full(operation) | TrySendError::Disconnected(operation) => Box::new(operation),
        })
    }

    /// Runs work in a transaction and waits until it is durable.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Batch<'_>) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, result) = tokio::sync::oneshot::channel();
        let work: Work = Box::new(move |batch| {
            let result = batch.savepoint(work);
            Box::new(move |committed| {
                let _ = answer.send(committed.and(result));
            })
        });
        self.submit(Operation::Run(work)).map_err(|_| busy())?;
        result.await.map_err(|_| StoreError::Unavailable("the writer has stopped".to_owned()))?
    }
}

pub(super) fn busy() -> StoreError {
    StoreError::Unavailable("too much waits to be written".to_owned())
}

/// How work ends early.
pub(super) enum Failure {
    /// For a reason of logic.
    Store(StoreError),
    /// In SQL.
    Sql(rusqlite::Error),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Batch<'_> {
    /// Work that is undone when it is refused.
    fn savepoint<T>(
        &mut self,
        work: impl FnOnce(&mut Batch<'_>) -> Result<T, Failure>,
    ) -> Result<T, StoreError> {
        let inner = |batch: &mut Batch<'_>| -> Result<T, Failure> {
            batch.cache.flush(batch.sql)?;
            batch.sql.execute_batch("SAVEPOINT work")?;
            match work(batch) {
                Ok(value) => {
                    batch.sql.execute_batch("RELEASE work")?;
                    Ok(value)
                }
                Err(Failure::Store(error)) => {
                    batch.sql.execute_batch("ROLLBACK TO work; RELEASE work")?;
                    batch.cache.clear();
                    Err(Failure::Store(error))
                }
                Err(error) => Err(error),
            }
        };
        inner(self).map_err(|failure| match failure {
            Failure::Store(error) => error,
            Failure::Sql(error) => {
                let told = unavailable(&error);
                self.failed = Some(error);
                told
            }
        })
    }
}

struct Thread {
    connection: Connection,
    bounds: Bounds,
    metrics: StoreMetrics,
    cache: Cache,
    /// SQLite's number for changes by others, as of our last transaction.
    changes: Option<i64>,
}

impl Thread {
    fn run(mut self, queue: &Receiver<Operation>) {
        while let Some(batch) = collect(queue) {
            let started = Instant::now();
            #[allow(clippy::cast_precision_loss, reason = "a batch has at most 256 operations")]
            self.metrics.batch_operations.record(batch.len() as f64);
            self.commit(batch);
            self.metrics.commit_seconds.record(started.elapsed().as_secs_f64());
        }
        let _ = self.connection.pragma_update(None, "wal_checkpoint", "TRUNCATE");
    }

    fn commit(&mut self, operations: Vec<Operation>) {
        let mut after: Vec<After> = Vec::with_capacity(operations.len());
        let result = self.transaction(operations, &mut after);
        if let Err(error) = &result {
            tracing::warn!(%error, "a group commit failed");
            self.cache.clear();
            if !self.connection.is_autocommit() {
                let _ = self.connection.execute_batch("ROLLBACK");
            }
        }
        for told in after {
            told(result.as_ref().copied().map_err(unavailable));
        }
    }

    fn transaction(
        &mut self,
        operations: Vec<Operation>,
        after: &mut Vec<After>,
    ) -> Result<(), rusqlite::Error> {
        let mut failed = self.begin().err();
        let mut batch =
            Batch { sql: &self.connection, cache: &mut self.cache, bounds: &self.bounds, failed: None };
        for operation in operations {
            // Once something failed, the rest is only told so.
            batch.failed = batch.failed.take().or(failed.take());
            after.push(batch.apply(operation));
        }
        let flushed = match batch.failed.take() {
            Some(error) => Err(error),
            None => batch.cache.flush(batch.sql),
        };
        flushed?;
        self.connection.prepare_cached("COMMIT")?.execute([])?;
        Ok(())
    }

    /// Begins, and forgets what the cache knows if another process wrote since.
    fn begin(&mut self) -> Result<(), rusqlite::Error> {
        self.connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        let changes =
            self.connection.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?;
        if self.changes != Some(changes) {
            self.cache.clear();
            self.changes = Some(changes);
        }
        self.cache.trim();
        Ok(())
    }
}

impl Batch<'_> {
    fn apply(&mut self, operation: Operation) -> After {
        let bad = self.failed.is_some();
        match operation {
            Operation::Run(work) if !bad => work(self),
            // Its answer channel is dropped with it: the caller hears that the writer could not.
            Operation::Run(work) => {
                drop(work);
                Box::new(|_| {})
            }
            Operation::Put(put, done) => {
                let result = if bad { Err(busy()) } else { self.put(&put) };
                Box::new(move |committed| done(committed.and(result)))
            }
            Operation::Ack(mailbox, rows, done) => {
                let result = if bad { Err(busy()) } else { self.ack(mailbox, &rows) };
                Box::new(move |committed| done(committed.and(result)))
            }
        }
    }
}

/// The next batch: what waits, and under load a little more. `None` when nobody will submit any more.
fn collect(queue: &Receiver<Operation>) -> Option<Vec<Operation>> {
    let mut batch = Vec::with_capacity(16);
    batch.push(queue.recv().ok()?);
    batch.extend(queue.try_iter().take(BATCH_OPERATIONS - 1));
    if batch.len() < BATCH_WAIT_FROM {
        return Some(batch);
    }
    let deadline = Instant::now() + BATCH_WAIT;
    while batch.len() < BATCH_OPERATIONS {
        match queue.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(operation) => batch.push(operation),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
        }
    }
    Some(batch)
}
