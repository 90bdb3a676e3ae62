//! The one writer: a thread that takes operations from a queue and commits them in groups.

use std::sync::Arc;
use std::time::Instant;

use rusqlite::Connection;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::mailbox::Cache;
use super::queue::Queue;
use crate::metrics::StoreMetrics;
use crate::storage::{AckRow, Bounds, Done, MailboxId, Put, StoreError, Stored};
use stvor_base::MessageId;

/// Says the result of an operation, after the commit or instead of it.
type After = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// Work within the transaction.
type Work = Box<dyn FnOnce(&mut Batch<'_>) -> After + Send>;

pub(super) enum Operation {
    /// A message with the hash of its blob, which its sender's thread has worked out.
    Put(Arc<Put>, [u8; 16], Done<Stored>),
    Ack(MailboxId, Vec<AckRow>, Done<Vec<MessageId>>),
    Run(Work),
}

impl Operation {
    /// Bytes that it keeps while it waits.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Put(put, ..) => put.blob.len(),
            Self::Ack(_, rows, _) => rows.len() * size_of::<AckRow>(),
            Self::Run(_) => 0,
        }
    }
}

/// One transaction.
pub(super) struct Batch<'a> {
    pub(super) sql: &'a Connection,
    pub(super) cache: &'a mut Cache,
    pub(super) bounds: &'a Bounds,
    /// Rises with each log-in that receives. It orders connections, which end with the process, so it is kept nowhere.
    pub(super) fence: &'a mut u64,
    /// An operation failed in SQL: the whole transaction goes back.
    pub(super) failed: Option<rusqlite::Error>,
}

pub(super) fn unavailable(error: &rusqlite::Error) -> StoreError {
    StoreError::Unavailable(error.to_string())
}

/// What a batch came to, with those who wait to hear it.
struct Told {
    result: Result<(), StoreError>,
    after: Vec<After>,
    /// What those who wait keep of the queue's room until they heard.
    bytes: usize,
}

impl Told {
    fn tell(self, queue: &Queue) {
        for told in self.after {
            told(self.result.clone());
        }
        queue.release(self.bytes);
    }
}

/// The writer's thread and the queue to it.
pub(super) struct Writer {
    queue: Arc<Queue>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Writer {
    pub(super) fn start(
        connection: Connection,
        bounds: Bounds,
        metrics: StoreMetrics,
    ) -> std::io::Result<Self> {
        let queue = Queue::new();
        let told = tell(queue.clone());
        let thread = std::thread::Builder::new().name("stvor-relay-db".to_owned()).spawn({
            let queue = queue.clone();
            move || {
                let cache = Cache::default();
                Thread { connection, bounds, metrics, cache, fence: 0, changes: None, told }.run(&queue);
            }
        })?;
        Ok(Self { queue, thread: Some(thread) })
    }

    /// Queues an operation; hands it back when the queue is full or the writer is gone.
    pub(super) fn submit(&self, operation: Operation) -> Result<(), Box<Operation>> {
        self.queue.push(operation)
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

impl Drop for Writer {
    fn drop(&mut self) {
        // The thread commits what is queued, then ends.
        self.queue.close();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Where results are told: in one task, batch after batch, so that the writer is free for the next batch and wakes one
/// task instead of all that wait. Outside a runtime the writer tells them itself.
fn tell(queue: Arc<Queue>) -> Option<UnboundedSender<Told>> {
    let runtime = tokio::runtime::Handle::try_current().ok()?;
    let (sender, mut batches) = unbounded_channel::<Told>();
    runtime.spawn(async move {
        while let Some(told) = batches.recv().await {
            told.tell(&queue);
        }
    });
    Some(sender)
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
    fence: u64,
    /// SQLite's number for changes by others, as of our last transaction.
    changes: Option<i64>,
    told: Option<UnboundedSender<Told>>,
}

impl Thread {
    fn run(mut self, queue: &Queue) {
        while let Some(batch) = queue.take() {
            let started = Instant::now();
            #[allow(clippy::cast_precision_loss, reason = "a batch has at most 256 operations")]
            self.metrics.batch_operations.record(batch.len() as f64);
            self.commit(batch, queue);
            self.metrics.commit_seconds.record(started.elapsed().as_secs_f64());
        }
        let _ = self.connection.pragma_update(None, "wal_checkpoint", "TRUNCATE");
    }

    fn commit(&mut self, operations: Vec<Operation>, queue: &Queue) {
        let bytes = operations.iter().map(Operation::bytes).sum();
        let mut after: Vec<After> = Vec::with_capacity(operations.len());
        let result = self.transaction(operations, &mut after);
        if let Err(error) = &result {
            tracing::warn!(%error, "a group commit failed");
            self.cache.clear();
            if !self.connection.is_autocommit() {
                let _ = self.connection.execute_batch("ROLLBACK");
            }
            self.reuse_log(error);
        }
        let told = Told { result: result.map_err(|error| unavailable(&error)), after, bytes };
        let left = match &self.told {
            // If the runtime is gone, who waits is still told, here.
            Some(teller) => teller.send(told).err().map(|unsent| unsent.0),
            None => Some(told),
        };
        if let Some(told) = left {
            told.tell(queue);
        }
    }

    /// When the log can not grow, moves what it holds to the database, if that has room: the log is then written from its
    /// start again, and acknowledgements get in.
    fn reuse_log(&self, error: &rusqlite::Error) {
        use rusqlite::ErrorCode::{DiskFull, SystemIoFailure};
        if matches!(error.sqlite_error_code(), Some(DiskFull | SystemIoFailure)) {
            let _ = self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
        }
    }

    fn transaction(
        &mut self,
        operations: Vec<Operation>,
        after: &mut Vec<After>,
    ) -> Result<(), rusqlite::Error> {
        let mut failed = self.begin().err();
        let mut batch = Batch {
            sql: &self.connection,
            cache: &mut self.cache,
            bounds: &self.bounds,
            fence: &mut self.fence,
            failed: None,
        };
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
            Operation::Put(put, hash, done) => {
                let result = if bad { Err(busy()) } else { self.put(&put, hash) };
                Box::new(move |committed| done(committed.and(result)))
            }
            Operation::Ack(mailbox, rows, done) => {
                let result = if bad { Err(busy()) } else { self.ack(mailbox, &rows) };
                Box::new(move |committed| done(committed.and(result)))
            }
        }
    }
}

#[cfg(test)]
impl Operation {
    /// A message with a blob of this many bytes.
    pub(super) fn put_of(length: usize) -> Self {
        use stvor_base::{Address, AppId, DeviceId, Timestamp, UserId};
        let put = Put {
            mailbox: MailboxId(1),
            app: Arc::new(AppId::new("acme").unwrap()),
            sender: MailboxId(2),
            generation: 0,
            from: Arc::new(Address::new(UserId::new("alice").unwrap(), DeviceId::FIRST)),
            msg_id: MessageId::from_bytes([7; 16]),
            lane: stvor_wire::client::Lane { epoch: 1, number: core::num::NonZeroU64::MIN },
            counter: 1,
            counter_mac: None,
            blob: vec![0; length].into(),
            received_at: Timestamp::from_millis(0),
            expires_at: Timestamp::from_millis(0),
        };
        Self::Put(Arc::new(put), [0; 16], Box::new(drop))
    }
}
