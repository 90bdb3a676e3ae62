//! The one task of an opening that writes: a call commits several change sets, several calls go together, and while the server works on
//! these the next ones are made and sent, so that neither waits for the other.

use super::link::{Connection, Link, is_passing};
use super::{Keys, after, encode, field, partition_prefix};
use crate::adapter::RowValue;
use crate::change::{ChangeSet, Expect, Op};
use crate::server::{Jobs, Next, Waiting, back_off};
use crate::{StoreError, limits};
use futures::StreamExt as _;
use futures::stream::FuturesOrdered;
use redis::{Cmd, Pipeline, RedisResult, Value};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use stvor_base::Timestamp;
use tokio::time::Instant;

/// The function's answer for a change set that was applied.
const APPLIED: i64 = -1;
/// Its answer when a set before this one is missing.
const OUT_OF_ORDER: i64 = -2;
/// Its answer when it lacks sets that it acknowledged.
const PUT_BACK: i64 = -3;

/// What the server said of one set.
enum Answer {
    Done(Result<(), StoreError>),
    /// It did nothing, and a later try may go through.
    Again(StoreError),
    /// The functions have to be loaded first.
    Unknown,
    OutOfOrder,
}

/// A change set on its way.
struct Sent {
    waiting: Waiting,
    /// Its number.
    seq: u64,
}

/// Calls of the function, and how many change sets each of them has.
type Calls = Vec<(Cmd, usize)>;

/// Where calls went, and what came back.
struct Landed {
    connection: Connection,
    /// The number of the connection.
    number: u64,
    answers: RedisResult<Vec<Value>>,
}

/// Why change sets are to be sent again.
struct Again {
    error: StoreError,
    /// So many of them may have been applied.
    sent: usize,
}

pub(super) struct Writer {
    link: Arc<Link>,
    keys: Keys,
    /// A random name of this opening.
    name: String,
    /// The number of its last set.
    seq: u64,
    /// The number of the last one that the server acknowledged; 0: none that the server has to know.
    acknowledged: Arc<AtomicU64>,
}

/// Whether an error says that the functions are not loaded.
pub(super) fn is_unknown_function(code: Option<&str>, detail: Option<&str>) -> bool {
    code == Some("ERR") && detail.is_some_and(|detail| detail.contains("Function not found"))
}

/// Whether a server refused a call without saying anything of the store.
fn is_refusal(answer: &Value, error: &StoreError) -> bool {
    matches!(answer, Value::ServerError(_))
        && !matches!(error, StoreError::Corrupt { .. } | StoreError::Emptied)
}

/// Whether a server said what became of a call.
fn is_known(result: &Result<(), StoreError>) -> bool {
    matches!(result, Ok(()) | Err(StoreError::Conflict { .. }))
}

/// Sends calls on the connection that is up, or on a new one.
async fn fly(link: Arc<Link>, pipeline: Pipeline) -> Result<Landed, StoreError> {
    let (mut connection, number) = link.connection().await?;
    let answers = connection.pipeline(&pipeline).await;
    Ok(Landed { connection, number, answers })
}

impl Writer {
    pub(super) fn new((link, keys): (Arc<Link>, Keys), name: String, acknowledged: Arc<AtomicU64>) -> Self {
        Self { link, keys, name, seq: 0, acknowledged }
    }

    /// Works until the queue is closed.
    pub(super) async fn run(mut self, mut jobs: Jobs) {
        let mut next = jobs.next().await;
        while let Some(job) = next {
            next = match job {
                Next::Commits(group) => self.commit(group, &mut jobs).await,
                Next::Sweep { now, limit, reply } => {
                    let _ = reply.send(self.sweep(now, limit).await);
                    jobs.next().await
                }
            };
        }
        let mut forget = redis::cmd("HDEL");
        forget.arg(self.keys.meta());
        for mark in ["w", "c", "s"] {
            forget.arg(format!("{mark}:{}", self.name));
        }
        if self.seq > 0
            && let Ok((mut connection, _)) = self.link.connection().await
            && let Err(error) = connection.query(&forget).await
        {
            tracing::debug!(%error, "the mark of this opening stays in the store; an opening after a month removes it");
        }
    }

    /// Commits a group, and those that come while it is on its way. Answers with what came that is no group; that is done afterwards.
    async fn commit(&mut self, group: Vec<Waiting>, jobs: &mut Jobs) -> Option<Next> {
        let (mut sets, mut flights, mut after) = (VecDeque::new(), FuturesOrdered::new(), None);
        let mut group = Some(group);
        // A connection does nothing else while it waits for replicas.
        let most = if self.link.options().replicas > 0 { 1 } else { limits::GROUPS_AT_ONCE };
        loop {
            if let Some(group) = group.take() {
                let count = group.len();
                self.number(group, &mut sets);
                let calls = self.calls(&sets, count);
                // A task of its own: it may hold the lock of the connection, which answering another one may wait for.
                let flight = tokio::spawn(fly(Arc::clone(&self.link), self.pipeline(&calls)));
                let counts: Vec<usize> = calls.into_iter().map(|(_, count)| count).collect();
                let ended = self.link.unreachable("the task that sent it ended");
                flights.push_back(async move { (counts, flight.await.unwrap_or(Err(ended))) });
            }
            tokio::select! {
                biased;
                Some((counts, landed)) = flights.next() => {
                    let count = counts.iter().sum();
                    let result = self.landed(landed, &counts, 0).await;
                    if !self.answer(&mut sets, count, result.as_deref().unwrap_or_default()) {
                        let mut lost = false;
                        while let Some((_, landed)) = flights.next().await {
                            lost |= landed.is_ok_and(|landed: Landed| landed.answers.is_err());
                        }
                        // The server does no set that has one before it which it does not know; so groups behind this one may have
                        // been applied only if all of this one may. But those without an answer may be so yet, once this one is.
                        let few = |again: &Again| again.sent < count && !lost;
                        let all = |again: Again| if few(&again) { again } else { Again { sent: sets.len(), ..again } };
                        let again = result.err().map(all);
                        self.again(&mut sets, again).await;
                    }
                    if sets.is_empty() {
                        return match after {
                            Some(next) => next,
                            None => jobs.next().await,
                        };
                    }
                }
                next = jobs.next(), if after.is_none() && flights.len() < most => match next {
                    Some(Next::Commits(next)) => group = Some(next),
                    other => after = Some(other),
                },
            }
        }
    }

    /// Gives change sets their numbers, behind those that are on their way.
    fn number(&mut self, group: impl IntoIterator<Item = Waiting>, sets: &mut VecDeque<Sent>) {
        for waiting in group {
            self.seq += 1;
            sets.push_back(Sent { waiting, seq: self.seq });
        }
    }

    /// The calls for the last `count` of the sets that are on their way. One call has sets that put rows or sets that put none, which a
    /// server that is full takes, too.
    fn calls(&self, sets: &VecDeque<Sent>, count: usize) -> Calls {
        // Only the first of all that are on their way is done whatever the server knows of those before it.
        let first = sets.front().map_or(0, |set| set.seq);
        let acknowledged = self.acknowledged.load(Ordering::SeqCst);
        let from = sets.len().saturating_sub(count);
        let (mut calls, mut kind) = (Calls::new(), None);
        for set in sets.range(from..) {
            let changes = &set.waiting.changes;
            let puts = changes.ops.iter().any(|op| matches!(op, Op::Put { .. }));
            let full = calls.last().is_none_or(|(_, count)| *count == limits::SETS_PER_CALL);
            if full || kind != Some(puts) {
                let name = if puts { "stvor_v5_commit" } else { "stvor_v5_release" };
                let mut call = self.keys.call("FCALL", name);
                call.arg(&self.name).arg(acknowledged).arg(first);
                calls.push((call, 0));
                kind = Some(puts);
            }
            if let Some((call, count)) = calls.last_mut() {
                call.arg("S").arg(set.seq);
                operations(call, changes);
                *count += 1;
            }
        }
        calls
    }

    /// Tells who waits for the first sets what became of them. Whether these are `count`, each of them known to the server.
    fn answer(&self, sets: &mut VecDeque<Sent>, count: usize, results: &[Result<(), StoreError>]) -> bool {
        let put_back = matches!(results.last(), Some(Err(StoreError::PutBack)));
        for (result, set) in results.iter().zip(sets.drain(..results.len().min(sets.len()))) {
            if is_known(result) {
                self.acknowledged.store(set.seq, Ordering::SeqCst);
            }
            set.waiting.answer(result.clone());
        }
        if put_back {
            // The rest would hear the same.
            sets.drain(..).for_each(|set| set.waiting.answer(Err(StoreError::PutBack)));
        }
        put_back || (results.len() == count && results.iter().all(is_known))
    }

    /// Commits what did not get through at once, whatever it takes: under the same numbers if any of it may have been applied.
    async fn again(&mut self, sets: &mut VecDeque<Sent>, mut again: Option<Again>) {
        while !sets.is_empty() {
            if again.is_none() {
                // The set before them failed, so the server did none.
                let group: Vec<Waiting> = sets.drain(..).map(|set| set.waiting).collect();
                self.number(group, sets);
            }
            let calls = self.calls(sets, sets.len());
            let results = self.together(&calls, sets.len(), again.take()).await;
            self.answer(sets, results.len(), &results);
        }
    }

    /// Sends calls for `count` sets until the server has answered for at least the first of them.
    async fn together(
        &self,
        calls: &Calls,
        count: usize,
        again: Option<Again>,
    ) -> Vec<Result<(), StoreError>> {
        let deadline = Instant::now() + limits::SERVER_PATIENCE;
        let counts: Vec<usize> = calls.iter().map(|(_, count)| *count).collect();
        let (mut tries, mut sent) = (0, again.as_ref().map_or(0, |again| again.sent));
        let mut failed = again.map(|again| again.error);
        loop {
            if let Some(error) = failed.take() {
                if Instant::now() >= deadline {
                    let uncertain = StoreError::Uncertain { server: self.link.name.to_string() };
                    let result = |place: usize| if place < sent { uncertain.clone() } else { error.clone() };
                    return (0..count).map(|place| Err(result(place))).collect();
                }
                tracing::debug!(%error, "commits are sent again");
                back_off(&mut tries).await;
            }
            let landed = fly(Arc::clone(&self.link), self.pipeline(calls)).await;
            match self.landed(landed, &counts, sent).await {
                Ok(results) => return results,
                Err(again) => {
                    sent = again.sent.max(sent);
                    failed = Some(again.error);
                }
            }
        }
    }

    /// Calls, and what waits for replicas to have them.
    fn pipeline(&self, calls: &Calls) -> Pipeline {
        let mut pipeline = Pipeline::new();
        pipeline.ignore_errors();
        for (call, _) in calls {
            pipeline.add_command(call.clone());
        }
        let replicas = self.link.options().replicas;
        if replicas > 0 {
            let millis = u64::try_from(limits::SERVER_TIMEOUT.as_millis() / 2).unwrap_or(u64::MAX);
            pipeline.cmd("WAIT").arg(replicas).arg(millis);
        }
        pipeline
    }

    /// Results of the first sets of calls that have so many of them each, up to one that failed for good, or why all of them are to be sent
    /// again. `sent` of them may have been applied before.
    async fn landed(
        &self,
        landed: Result<Landed, StoreError>,
        counts: &[usize],
        sent: usize,
    ) -> Result<Vec<Result<(), StoreError>>, Again> {
        let Landed { mut connection, number, answers } = landed.map_err(|error| Again { error, sent })?;
        let count = counts.iter().sum();
        let answers = match answers {
            Ok(answers) => answers,
            Err(failure) => {
                self.link.broke(number).await;
                return Err(Again { error: self.link.error(&failure), sent: count });
            }
        };
        let mut results: Vec<Result<(), StoreError>> = Vec::with_capacity(count);
        for (answer, sets) in answers.iter().zip(counts) {
            // Those behind one that failed were not applied.
            if results.last().is_some_and(|result| !is_known(result)) {
                break;
            }
            let again = |error, sent| Err(Again { error, sent });
            for one in self.understand(answer, *sets) {
                let place = results.len();
                match one {
                    // A server that is full says so before it looks whether it knows the call, which may be applied since it was
                    // first sent.
                    Answer::Done(Err(error)) if place < sent && is_refusal(answer, &error) => {
                        return again(error, sent);
                    }
                    Answer::Done(result) => results.push(result),
                    Answer::Again(error) => {
                        self.link.broke(number).await;
                        return again(error, place.max(sent));
                    }
                    Answer::Unknown => {
                        let sent = place.max(sent);
                        let loaded = self.link.load(&mut connection, self.keys.meta()).await;
                        loaded.map_err(|error| Again { error, sent })?;
                        let error = self.link.unreachable("its functions were gone and are loaded again");
                        return again(error, sent);
                    }
                    Answer::OutOfOrder => {
                        return again(self.link.unreachable("it lost a commit that is on its way"), count);
                    }
                }
            }
        }
        // What is known of calls before one that failed counts as well when replicas have it, and not before.
        let (known, replicas) =
            (results.iter().take_while(|result| is_known(result)).count(), self.link.options().replicas);
        if replicas > 0 && known > 0 {
            let have = answers.last().and_then(|value| redis::from_redis_value_ref::<usize>(value).ok());
            if have.unwrap_or(0) < replicas {
                // They may follow another primary by now, and the address lead there.
                self.link.broke(number).await;
                let error = self.link.unreachable("too few replicas have the commit");
                return Err(Again { error, sent: known.max(sent) });
            }
        }
        Ok(results)
    }

    /// What a call's answer says of each of its sets. An error is of all of them: nothing was done.
    fn understand(&self, answer: &Value, sets: usize) -> Vec<Answer> {
        let strange =
            || Answer::Done(Err(StoreError::Adapter(format!("Redis answered {answer:?} to a commit"))));
        let one = |answer: &Value| match answer {
            Value::Int(APPLIED) => Answer::Done(Ok(())),
            Value::Int(OUT_OF_ORDER) => Answer::OutOfOrder,
            Value::Int(PUT_BACK) => Answer::Done(Err(StoreError::PutBack)),
            Value::Int(op) => {
                Answer::Done(Err(StoreError::Conflict { op: usize::try_from(*op).unwrap_or(0) }))
            }
            _ => strange(),
        };
        let refused = |error: &redis::ServerError| {
            let (code, detail) = (error.code(), error.details());
            if is_unknown_function(Some(code), detail) {
                Answer::Unknown
            } else if is_passing(code) {
                Answer::Again(self.link.said(code, detail.unwrap_or_default()))
            } else {
                Answer::Done(Err(self.link.said(code, detail.unwrap_or_default())))
            }
        };
        match answer {
            Value::Array(answers) if answers.len() == sets => answers.iter().map(one).collect(),
            Value::ServerError(error) => (0..sets).map(|_| refused(error)).collect(),
            _ => (0..sets).map(|_| strange()).collect(),
        }
    }

    async fn sweep(&self, now: Timestamp, limit: usize) -> Result<usize, StoreError> {
        let mut call = self.keys.call("FCALL", "stvor_v5_sweep");
        call.arg(now.as_millis()).arg(limit);
        let (mut connection, number) = self.link.connection().await?;
        match connection.query(&call).await {
            Ok(swept) => redis::from_redis_value(swept).map_err(|error| self.link.error(&error.into())),
            Err(failure) => {
                if is_unknown_function(failure.code(), failure.detail()) {
                    let _ = self.link.load(&mut connection, self.keys.meta()).await;
                } else {
                    self.link.broke(number).await;
                }
                // Sweeping is done again by and by.
                Err(self.link.error(&failure))
            }
        }
    }
}

/// Adds what a change set does to a call.
fn operations(call: &mut Cmd, changes: &ChangeSet<RowValue>) {
    for op in &changes.ops {
        match op {
            Op::Put { key, value, expires, expect } => {
                call.arg("P").arg(field(key)).arg(expectation(*expect)).arg(encode(value, *expires));
                match expires {
                    Some(at) => call.arg(at.as_millis()),
                    None => call.arg(""),
                };
            }
            Op::Delete { key, expect } => {
                call.arg("D").arg(field(key)).arg(expectation(*expect));
            }
            Op::Check { key, expect } => {
                call.arg("C").arg(field(key)).arg(expectation(*expect));
            }
            Op::DeletePartition { table, partition } => {
                let prefix = partition_prefix(*table, partition);
                call.arg("X").arg(&prefix).arg(after(&prefix));
            }
            Op::DeleteTable { table } => {
                let prefix = [table.id()];
                call.arg("X").arg(&prefix).arg(after(&prefix));
            }
        }
    }
}

fn expectation(expect: Expect) -> Vec<u8> {
    match expect {
        Expect::Any => b"*".to_vec(),
        Expect::Absent => b"0".to_vec(),
        Expect::Present => b"1".to_vec(),
        Expect::Version(version) => [b"=".as_slice(), &version.0.to_be_bytes()].concat(),
    }
}
