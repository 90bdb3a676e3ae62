//! The one thread that writes. Change sets that arrive while it syncs share the next transaction and the next fsync;
//! each is a savepoint of its own, so a conflict fails alone.

use super::files::Lock;
use super::{rows, schema};
use crate::adapter::RowValue;
use crate::change::ChangeSet;
use crate::{StoreError, limits};
use core::time::Duration;
use rusqlite::{Connection, ffi};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use stvor_base::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// What the writer is asked for. Nobody minds if the asker went away: the work is done all the same.
pub(super) enum Job {
    Commit { changes: ChangeSet<RowValue>, reply: Reply<()>, room: OwnedSemaphorePermit },
    Sweep { now: Timestamp, limit: usize, reply: Reply<usize> },
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    closing: bool,
}

/// Jobs on their way to the writer.
#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a job in; after [`Queue::close`] it is refused and its asker told by the dropped reply.
    pub(super) fn push(&self, job: Job) {
        let mut waiting = self.lock();
        if !waiting.closing {
            waiting.jobs.push_back(job);
            self.arrived.notify_one();
        }
    }

    /// The writer ends when it has done what is waiting.
    pub(super) fn close(&self) {
        self.lock().closing = true;
        self.arrived.notify_one();
    }

    /// Nobody works any more: who waits learns that the store is closed.
    fn abandon(&self) {
        let mut waiting = self.lock();
        waiting.closing = true;
        waiting.jobs.clear();
    }

    /// The next group, or `None` when there is none and none will come. Waits for company only if the group before
    /// this one had company, and no longer than half of what its sync took: then the committers that it woke are
    /// probably on their way back, and one shared sync is cheaper than two.
    fn next(&self, last: &Last) -> Option<Vec<Job>> {
        let mut waiting = self.lock();
        while waiting.jobs.is_empty() {
            if waiting.closing {
                return None;
            }
            waiting = self.arrived.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        if last.jobs > 1 {
            let patience = (last.took / 2).min(Duration::from_micros(limits::MAX_GROUP_WAIT_MICROS));
            let expected = |waiting: &mut Waiting| waiting.jobs.len() < last.jobs && !waiting.closing;
            let waited = self.arrived.wait_timeout_while(waiting, patience, expected);
            waiting = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let count = waiting.jobs.len().min(limits::MAX_GROUP);
        Some(waiting.jobs.drain(..count).collect())
    }
}

/// Tells who waits when the writer's thread ends, also by a panic.
struct Abandon<'a>(&'a Queue);

impl Drop for Abandon<'_> {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

/// How the last group went.
struct Last {
    jobs: usize,
    took: Duration,
}

/// The writer, on its thread.
pub(super) struct Writer {
    connection: Connection,
    /// Of an older version: migrated before the first write.
    outdated: bool,
    path: PathBuf,
    /// After a failed sync the kernel may have dropped what it could not write, and without its lock the writer may not
    /// be alone: nothing more is promised.
    broken: Option<StoreError>,
    lock: Lock,
}

impl Writer {
    pub(super) fn new((connection, outdated): (Connection, bool), path: PathBuf, lock: Lock) -> Self {
        Self { connection, outdated, path, broken: None, lock }
    }

    /// Works until the queue is closed, then merges the journal and lets go of the lock.
    pub(super) fn run(mut self, queue: &Queue) -> Result<(), StoreError> {
        let _abandoned = Abandon(queue);
        let mut last = Last { jobs: 0, took: Duration::ZERO };
        while let Some(jobs) = queue.next(&last) {
            let started = Instant::now();
            let count = jobs.len();
            self.work(jobs);
            last = Last { jobs: count, took: started.elapsed() };
        }
        schema::finish(self.connection, &self.path)
    }

    fn work(&mut self, jobs: Vec<Job>) {
        let mut group = Vec::new();
        for job in jobs {
            match job {
                // Its room is taken until it is done.
                Job::Commit { changes, reply, room } => group.push((changes, reply, room)),
                Job::Sweep { now, limit, reply } => {
                    let swept = self.guarded(|writer| {
                        let swept = rows::sweep(&writer.connection, now, limit)?;
                        rows::shrink(&writer.connection)?;
                        Ok(swept)
                    });
                    let _ = reply.send(swept);
                }
            }
        }
        if group.is_empty() {
            return;
        }
        let sets: Vec<&ChangeSet<RowValue>> = group.iter().map(|(changes, ..)| changes).collect();
        let results = match self.commit(&sets) {
            Ok(results) => results,
            // What made the group fail (a full disk, mostly) need not touch every one of it.
            Err(_) if sets.len() > 1 => sets
                .iter()
                .map(|changes| self.commit(&[changes]).map(|mut one| one.pop().flatten()))
                .map(|result| result.unwrap_or_else(Some))
                .collect(),
            Err(error) => vec![Some(error)],
        };
        for ((_, reply, room), result) in group.into_iter().zip(results) {
            drop(room);
            let _ = reply.send(result.map_or(Ok(()), Err));
        }
    }

    /// One transaction: for each change set `None`, or why it alone was not applied.
    fn commit(&mut self, sets: &[&ChangeSet<RowValue>]) -> Result<Vec<Option<StoreError>>, StoreError> {
        self.guarded(|writer| {
            let connection = &mut writer.connection;
            let transaction =
                connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            if let [alone] = sets {
                // Alone it needs no savepoint; dropped uncommitted, the transaction rolls back.
                let conflict = rows::apply(&transaction, alone)?;
                if conflict.is_none() {
                    transaction.commit()?;
                }
                return Ok(vec![conflict.map(|op| StoreError::Conflict { op })]);
            }
            let mut results = Vec::with_capacity(sets.len());
            for changes in sets {
                transaction.prepare_cached("SAVEPOINT one")?.execute([])?;
                let conflict = rows::apply(&transaction, changes)?;
                if conflict.is_some() {
                    transaction.prepare_cached("ROLLBACK TO one")?.execute([])?;
                }
                transaction.prepare_cached("RELEASE one")?.execute([])?;
                results.push(conflict.map(|op| StoreError::Conflict { op }));
            }
            transaction.commit()?;
            Ok(results)
        })
    }

    fn guarded<T>(&mut self, work: impl FnOnce(&mut Self) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        // Two writers would take one message key twice, so the one that cannot know that it is alone stops.
        if !self.lock.holds(&self.path) {
            let lost = StoreError::Io {
                what: format!("keeping the lock of {}", self.path.display()),
                reason: "its lock file was removed, so another program may use the store; open it again"
                    .into(),
            };
            return Err(self.broken.insert(lost).clone());
        }
        if self.outdated {
            schema::migrate(&mut self.connection, &self.path)?;
            self.outdated = false;
        }
        work(self).map_err(|failure| {
            let error = schema::error(&self.path, &failure);
            tracing::error!(code = stvor_base::ErrorCode::code(&error), "a write to the store failed");
            if let rusqlite::Error::SqliteFailure(failure, _) = failure
                && [ffi::SQLITE_IOERR_FSYNC, ffi::SQLITE_IOERR_DIR_FSYNC].contains(&failure.extended_code)
            {
                self.broken = Some(error.clone());
            }
            error
        })
    }
}
