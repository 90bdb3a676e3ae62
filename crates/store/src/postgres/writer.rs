//! The one task of an opening that writes. Change sets that arrive while it commits share the next transaction. A lock of
//! the place makes transactions of several processes follow one another, so that expectations mean what they say.

use super::connect::{Connection, Pool, Server, is_refused, is_transient};
use super::rows::{self, Step};
use crate::adapter::RowValue;
use crate::change::{ChangeSet, Op};
use crate::server::{Jobs, Next, back_off};
use crate::{StoreError, limits};
use deadpool::managed::Object;
use futures::future::maybe_done;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use stvor_base::Timestamp;
use tokio::time::{Instant, timeout};

const LOCK: &str = "SELECT pg_advisory_xact_lock($1)";
const MARK: &str = "INSERT INTO stvor_writers (place, writer, seq) VALUES ($1, $2, $3)
     ON CONFLICT (place, writer) DO UPDATE SET seq = excluded.seq, at = now()";
/// Its second and later marks: no row for an opening of which the server knows less than it acknowledged.
const NEXT_MARK: &str = "UPDATE stvor_writers SET seq = $3, at = now()
     WHERE place = $1 AND writer = $2 AND seq >= $4";
const LAST: &str = "SELECT seq FROM stvor_writers WHERE place = $1 AND writer = $2";
const TOUCH: &str = "UPDATE stvor_writers SET at = now() WHERE place = $1 AND writer = $2";
const FORGET: &str =
    "DELETE FROM stvor_writers WHERE place = $1 AND (writer = $2 OR at < now() - interval '30 days')";

/// How one try to commit ended.
enum Tried {
    /// All of it is committed.
    Applied,
    /// An operation of a change set did not find what it expected; nothing was committed.
    Conflict { set: usize, op: usize },
    /// The server lacks what it acknowledged; nothing was committed.
    PutBack,
    /// Nothing was committed.
    Nothing { error: StoreError, transient: bool },
    /// COMMIT was sent and its answer did not come.
    Unknown,
}

/// What a transaction is before its COMMIT.
enum Staged {
    Whole,
    Conflict { set: usize, op: usize },
    PutBack,
}

pub(super) struct Writer {
    pub(super) server: Server,
    pub(super) pool: Pool,
    pub(super) place: [u8; 16],
    /// A random name of this opening.
    pub(super) writer: [u8; 16],
    /// The number of its last transaction.
    pub(super) seq: i64,
    /// The number of the last one that the server acknowledged; 0: none that the server has to know.
    pub(super) acknowledged: Arc<AtomicI64>,
    /// The tables are of the newest version.
    pub(super) ready: Arc<AtomicBool>,
}

impl Writer {
    /// Works until the queue is closed.
    pub(super) async fn run(mut self, mut jobs: Jobs) {
        while let Some(next) = jobs.next().await {
            match next {
                Next::Commits(group) => {
                    let sets: Vec<&ChangeSet<RowValue>> = group.iter().map(|one| &one.changes).collect();
                    let results = self.group(&sets).await;
                    for (one, result) in group.into_iter().zip(results) {
                        drop(one.room);
                        // Who went away meanwhile needs no answer.
                        let _ = one.reply.send(result);
                    }
                }
                Next::Sweep { now, limit, reply } => {
                    let _ = reply.send(self.sweep(now, limit).await);
                }
            }
        }
        if self.seq > 0
            && let Err(error) = self.server.in_time(limits::SERVER_TIMEOUT, self.forget()).await
        {
            tracing::debug!(%error, "the mark of this opening stays in the store; the next opening removes it");
        }
    }

    async fn forget(&self) -> Result<(), StoreError> {
        let client = self.connection().await?;
        let forgotten = client.execute(FORGET, &[&self.place.as_slice(), &self.writer.as_slice()]).await;
        forgotten.map(|_| ()).map_err(|failure| self.server.error(&failure))
    }

    fn lock_id(&self) -> i64 {
        let [a, b, c, d, e, f, g, h, ..] = self.place;
        i64::from_be_bytes([a, b, c, d, e, f, g, h])
    }

    /// A connection, to tables that this program knows.
    async fn connection(&self) -> Result<Connection, StoreError> {
        let mut client = self.pool.get().await.map_err(|failure| self.server.pool_error(failure))?;
        if !self.ready.load(Ordering::Relaxed) {
            let migrated = self.server.migrate(&mut client);
            if let Err(error) = self.server.in_time(limits::ADAPTER_PATIENCE, migrated).await {
                // It may be at it still, with the lock of migrations.
                drop(Object::take(client));
                return Err(error);
            }
            self.ready.store(true, Ordering::Relaxed);
        }
        Ok(client)
    }

    /// Commits change sets, as few transactions as their conflicts allow; a result for each, in order.
    async fn group(&mut self, sets: &[&ChangeSet<RowValue>]) -> Vec<Result<(), StoreError>> {
        let mut results = Vec::with_capacity(sets.len());
        let mut parts = VecDeque::from([sets]);
        while let Some(part) = parts.pop_front() {
            match self.together(part).await {
                Ok(None) => results.extend(part.iter().map(|_| Ok(()))),
                // Alone, or judged after the sets before it, which are committed next.
                Ok(Some((_, op))) if part.len() == 1 => results.push(Err(StoreError::Conflict { op })),
                Ok(Some((set, _))) => {
                    let (before, rest) = part.split_at(set);
                    let (one, after) = rest.split_at(1);
                    for part in [after, one, before].into_iter().filter(|part| !part.is_empty()) {
                        parts.push_front(part);
                    }
                }
                // Each alone would only wait once more for a server that is away, and learn no more of one that was put back.
                Err(
                    error @ (StoreError::Unreachable { .. }
                    | StoreError::Uncertain { .. }
                    | StoreError::PutBack),
                ) => {
                    results.extend(part.iter().map(|_| Err(error.clone())));
                }
                // What made the group fail (a full disk, mostly) need not touch every one of it.
                Err(_) if part.len() > 1 => {
                    for one in part.chunks(1).rev() {
                        parts.push_front(one);
                    }
                }
                Err(error) => results.push(Err(error)),
            }
        }
        results
    }

    /// Commits change sets in one transaction, however often the server goes away meanwhile: `None`, or which
    /// operation of which set was the conflict for which nothing was committed.
    async fn together(
        &mut self,
        sets: &[&ChangeSet<RowValue>],
    ) -> Result<Option<(usize, usize)>, StoreError> {
        let deadline = Instant::now() + limits::SERVER_PATIENCE;
        let mut tries = 0;
        loop {
            self.seq += 1;
            match self.once(sets).await {
                Tried::Applied => return Ok(self.acknowledge()),
                Tried::Conflict { set, op } => return Ok(Some((set, op))),
                Tried::PutBack => return Err(StoreError::PutBack),
                Tried::Nothing { error, transient } => {
                    if !transient || Instant::now() >= deadline {
                        return Err(error);
                    }
                    tracing::debug!(%error, "a commit is tried again");
                }
                Tried::Unknown => {
                    if self.was_applied(deadline).await? {
                        return Ok(self.acknowledge());
                    }
                }
            }
            back_off(&mut tries).await;
        }
    }

    /// The last transaction is committed: the server has to know it from now on.
    fn acknowledge(&self) -> Option<(usize, usize)> {
        self.acknowledged.store(self.seq, Ordering::SeqCst);
        None
    }

    async fn once(&self, sets: &[&ChangeSet<RowValue>]) -> Tried {
        let nothing =
            |error| Tried::Nothing { transient: matches!(error, StoreError::Unreachable { .. }), error };
        let client = match self.connection().await {
            Ok(client) => client,
            Err(error) => return nothing(error),
        };
        let late = |reason: &str| StoreError::Unreachable {
            server: self.server.name.to_string(),
            reason: reason.to_owned(),
        };
        let staged = timeout(limits::SERVER_TIMEOUT, self.stage(&client, sets)).await;
        let tried = match staged {
            Err(_) => nothing(late("it did not answer in time")),
            Ok(Err(failure)) => {
                Tried::Nothing { error: self.server.error(&failure), transient: is_transient(&failure) }
            }
            Ok(Ok(Staged::Conflict { set, op })) => Tried::Conflict { set, op },
            Ok(Ok(Staged::PutBack)) => Tried::PutBack,
            Ok(Ok(Staged::Whole)) => match timeout(limits::SERVER_TIMEOUT, client.batch_execute("COMMIT"))
                .await
            {
                Ok(Ok(())) => return Tried::Applied,
                Ok(Err(failure)) if is_refused(&failure) => {
                    Tried::Nothing { error: self.server.error(&failure), transient: is_transient(&failure) }
                }
                Ok(Err(_)) | Err(_) => Tried::Unknown,
            },
        };
        // A connection goes back to the pool without a transaction, or not at all.
        let rolled_back = match tried {
            Tried::Unknown => false,
            _ => {
                matches!(timeout(limits::SERVER_TIMEOUT, client.batch_execute("ROLLBACK")).await, Ok(Ok(())))
            }
        };
        if !rolled_back {
            drop(Object::take(client));
        }
        tried
    }

    /// Sends everything but the COMMIT in one go, and looks at the answers then: of several conflicts at the first.
    async fn stage(
        &self,
        client: &Connection,
        sets: &[&ChangeSet<RowValue>],
    ) -> Result<Staged, tokio_postgres::Error> {
        let last = self.acknowledged.load(Ordering::SeqCst);
        let mark = if last == 0 { MARK } else { NEXT_MARK };
        let (lock, mark) = (client.prepare_cached(LOCK).await?, client.prepare_cached(mark).await?);
        let (id, place, writer) = (self.lock_id(), self.place.as_slice(), self.writer.as_slice());
        let id: [&(dyn tokio_postgres::types::ToSql + Sync); 1] = [&id];
        let mut own: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> = vec![&place, &writer, &self.seq];
        if last > 0 {
            own.push(&last);
        }
        let mut steps = Vec::new();
        // Nearly every set checks the header: once for the transaction, as long as nothing in it touches that table.
        let mut checked: Vec<&Op<RowValue>> = Vec::new();
        for (set, changes) in sets.iter().enumerate() {
            for (index, op) in changes.ops.iter().enumerate() {
                match op {
                    Op::Check { .. } if checked.contains(&op) => continue,
                    Op::Check { .. } => checked.push(op),
                    other => checked.retain(|before| before.table() != other.table()),
                }
                let step = Step::new(place, op);
                let statement = step.prepare(client).await?;
                steps.push((set, index, step.wants, Box::pin(maybe_done(step.run(client, statement)))));
            }
        }
        // Each future sends its request when it is first polled, so they are polled once in order.
        let mut begin = Box::pin(maybe_done(client.batch_execute(self.server.begin())));
        let mut locked = Box::pin(maybe_done(client.execute(&lock, &id)));
        let mut marked = Box::pin(maybe_done(client.execute(&mark, &own)));
        let _ = futures::poll!(begin.as_mut());
        let _ = futures::poll!(locked.as_mut());
        let _ = futures::poll!(marked.as_mut());
        for (.., step) in &mut steps {
            let _ = futures::poll!(step.as_mut());
        }
        begin.as_mut().await;
        locked.as_mut().await;
        marked.as_mut().await;
        begin.as_mut().take_output().transpose()?;
        locked.as_mut().take_output().transpose()?;
        let marked = marked.as_mut().take_output().transpose()?;
        let mut conflict = None;
        let mut failure = None;
        for (set, index, wants, mut step) in steps {
            step.as_mut().await;
            match step.as_mut().take_output() {
                Some(Ok(touched)) if conflict.is_none() && wants.is_some_and(|wants| wants != touched) => {
                    conflict = Some((set, index));
                }
                // Those after it only say that the transaction has failed.
                Some(Err(error)) if failure.is_none() => failure = Some(error),
                _ => {}
            }
        }
        match (failure, marked, conflict) {
            (Some(error), ..) => Err(error),
            // What was expected of rows that are older than they should be says nothing.
            (None, Some(0), _) => Ok(Staged::PutBack),
            (None, _, Some((set, op))) => Ok(Staged::Conflict { set, op }),
            (None, _, None) => Ok(Staged::Whole),
        }
    }

    /// Whether the transaction of the last number was committed. The lock makes this wait for the server to be done with
    /// it, should it still be at work for the connection that broke.
    async fn was_applied(&self, deadline: Instant) -> Result<bool, StoreError> {
        let mut tries = 0;
        loop {
            match timeout(limits::SERVER_TIMEOUT, self.last_applied()).await {
                Ok(Ok(last)) => return Ok(last == Some(self.seq)),
                Ok(Err(error)) => tracing::debug!(%error, "whether a commit was applied is asked again"),
                Err(_) => tracing::debug!("whether a commit was applied is asked again"),
            }
            if Instant::now() >= deadline {
                return Err(StoreError::Uncertain { server: self.server.name.to_string() });
            }
            back_off(&mut tries).await;
        }
    }

    async fn last_applied(&self) -> Result<Option<i64>, StoreError> {
        // Not back to the pool: cut off at its COMMIT, which waits for the standby, it would make the next one wait.
        let mut client = Object::take(self.connection().await?);
        let failed = |failure: tokio_postgres::Error| self.server.error(&failure);
        // Dropped, it rolls back.
        let transaction = client.transaction().await.map_err(failed)?;
        if self.server.is_lax() {
            transaction.batch_execute("SET LOCAL synchronous_commit = on").await.map_err(failed)?;
        }
        transaction.execute(LOCK, &[&self.lock_id()]).await.map_err(failed)?;
        let own: [&(dyn tokio_postgres::types::ToSql + Sync); 2] =
            [&self.place.as_slice(), &self.writer.as_slice()];
        let row = transaction.query_opt(LAST, &own).await.map_err(failed)?;
        let last: Option<i64> = row.map(|row| row.try_get(0)).transpose().map_err(failed)?;
        if last == Some(self.seq) {
            // A server that restarted shows a commit that still waited for its standby. What follows it in the log waits for the standby, too.
            transaction.execute(TOUCH, &own).await.map_err(failed)?;
            transaction.commit().await.map_err(failed)?;
        } else {
            transaction.rollback().await.map_err(failed)?;
        }
        Ok(last)
    }

    async fn sweep(&self, now: Timestamp, limit: usize) -> Result<usize, StoreError> {
        let mut client = self.connection().await?;
        let swept = self.sweep_on(&mut client, (now, limit));
        let swept = self.server.in_time(limits::SERVER_TIMEOUT, swept).await;
        if swept.is_err() {
            // Its transaction may be at work still.
            drop(Object::take(client));
        }
        swept
    }

    async fn sweep_on(&self, client: &mut Connection, due: (Timestamp, usize)) -> Result<usize, StoreError> {
        let failed = |failure: tokio_postgres::Error| self.server.error(&failure);
        let transaction = client.transaction().await.map_err(failed)?;
        transaction.execute(LOCK, &[&self.lock_id()]).await.map_err(failed)?;
        let removed = rows::sweep(&transaction, &self.place, due).await.map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
        Ok(removed)
    }
}
