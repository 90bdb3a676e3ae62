//! The one task of an opening that writes: a call for each change set, many calls on their way at a time.

use super::link::{Link, is_passing};
use super::{Keys, after, encode, field, partition_prefix};
use crate::adapter::RowValue;
use crate::change::{ChangeSet, Expect, Op};
use crate::server::{Jobs, Next, back_off};
use crate::{StoreError, limits};
use redis::{Cmd, Pipeline, Value};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use stvor_base::Timestamp;
use tokio::time::Instant;

/// The function's answer for a change set that was applied.
const APPLIED: i64 = -1;
/// Its answer when a call before this one is missing.
const OUT_OF_ORDER: i64 = -2;
/// Its answer when it lacks calls that it acknowledged.
const PUT_BACK: i64 = -3;

/// What the server said of one call.
enum Answer {
    Done(Result<(), StoreError>),
    /// It did nothing, and a later try may go through.
    Again(StoreError),
    /// The functions have to be loaded first.
    Unknown,
    OutOfOrder,
}

pub(super) struct Writer {
    link: Arc<Link>,
    keys: Keys,
    /// A random name of this opening.
    name: String,
    /// The number of its last call.
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

impl Writer {
    pub(super) fn new((link, keys): (Arc<Link>, Keys), name: String, acknowledged: Arc<AtomicU64>) -> Self {
        Self { link, keys, name, seq: 0, acknowledged }
    }

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

    /// Commits change sets; a result for each, in order. Those behind one that fails are sent once more.
    async fn group(&mut self, sets: &[&ChangeSet<RowValue>]) -> Vec<Result<(), StoreError>> {
        let mut results = Vec::with_capacity(sets.len());
        while let Some(rest) = sets.get(results.len()..).filter(|rest| !rest.is_empty()) {
            let first = self.seq + 1;
            self.seq += rest.len() as u64;
            let answers = self.together(rest, first).await;
            let known = answers.iter().take_while(|result| is_known(result)).count() as u64;
            if known > 0 {
                self.acknowledged.store(first + known - 1, Ordering::SeqCst);
            }
            let put_back = matches!(answers.last(), Some(Err(StoreError::PutBack)));
            results.extend(answers);
            if put_back {
                // The rest would hear the same.
                results.resize_with(sets.len(), || Err(StoreError::PutBack));
            }
        }
        results
    }

    /// Sends change sets until the server has answered for at least the first of them.
    async fn together(&self, sets: &[&ChangeSet<RowValue>], first: u64) -> Vec<Result<(), StoreError>> {
        let calls: Vec<Cmd> =
            sets.iter().zip(first..).map(|(set, seq)| self.call(set, (first, seq))).collect();
        let deadline = Instant::now() + limits::SERVER_PATIENCE;
        // So many of the calls may have been applied.
        let (mut tries, mut sent) = (0, 0);
        loop {
            let error = match self.send(&calls, &mut sent).await {
                Ok(results) => return results,
                Err(error) => error,
            };
            if Instant::now() >= deadline {
                let uncertain = StoreError::Uncertain { server: self.link.name.to_string() };
                let failed = |place: usize| if place < sent { uncertain.clone() } else { error.clone() };
                return (0..sets.len()).map(|place| Err(failed(place))).collect();
            }
            tracing::debug!(%error, "commits are sent again");
            back_off(&mut tries).await;
        }
    }

    /// One try: results of the first calls up to one that failed for good, or why everything is to be sent again.
    async fn send(&self, calls: &[Cmd], sent: &mut usize) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        let (mut connection, number) = self.link.connection().await?;
        let replicas = self.link.options().replicas;
        let mut pipeline = Pipeline::new();
        pipeline.ignore_errors();
        calls.iter().for_each(|call| {
            pipeline.add_command(call.clone());
        });
        if replicas > 0 {
            let millis = u64::try_from(limits::SERVER_TIMEOUT.as_millis() / 2).unwrap_or(u64::MAX);
            pipeline.cmd("WAIT").arg(replicas).arg(millis);
        }
        let answers = match connection.pipeline(&pipeline).await {
            Ok(answers) => answers,
            Err(failure) => {
                *sent = calls.len();
                self.link.broke(number).await;
                return Err(self.link.error(&failure));
            }
        };
        let mut results = Vec::with_capacity(calls.len());
        for (place, answer) in answers.iter().take(calls.len()).enumerate() {
            match self.understand(answer) {
                // A server that is full says so before it looks whether it knows the call, which may be applied since it was
                // first sent.
                Answer::Done(Err(error)) if place < *sent && is_refusal(answer, &error) => return Err(error),
                Answer::Done(result) => {
                    results.push(result);
                    // Those behind one that failed were not applied.
                    if results.last().is_some_and(|result| !is_known(result)) {
                        break;
                    }
                }
                Answer::Again(error) => {
                    *sent = place.max(*sent);
                    self.link.broke(number).await;
                    return Err(error);
                }
                Answer::Unknown => {
                    *sent = place.max(*sent);
                    self.link.load(&mut connection, self.keys.meta()).await?;
                    return Err(self.link.unreachable("its functions were gone and are loaded again"));
                }
                Answer::OutOfOrder => {
                    *sent = calls.len();
                    return Err(self.link.unreachable("it lost a call"));
                }
            }
        }
        // What is known of calls before one that failed counts as well when replicas have it, and not before.
        let known = results.iter().take_while(|result| is_known(result)).count();
        if replicas > 0 && known > 0 {
            *sent = known.max(*sent);
            let have = answers.last().and_then(|value| redis::from_redis_value_ref::<usize>(value).ok());
            if have.unwrap_or(0) < replicas {
                // They may follow another primary by now, and the address lead there.
                self.link.broke(number).await;
                return Err(self.link.unreachable("too few replicas have the commit"));
            }
        }
        Ok(results)
    }

    fn understand(&self, answer: &Value) -> Answer {
        match answer {
            Value::Int(APPLIED) => Answer::Done(Ok(())),
            Value::Int(OUT_OF_ORDER) => Answer::OutOfOrder,
            Value::Int(PUT_BACK) => Answer::Done(Err(StoreError::PutBack)),
            Value::Int(op) => {
                Answer::Done(Err(StoreError::Conflict { op: usize::try_from(*op).unwrap_or(0) }))
            }
            Value::ServerError(error) => {
                let (code, detail) = (error.code(), error.details());
                if is_unknown_function(Some(code), detail) {
                    Answer::Unknown
                } else if is_passing(code) {
                    Answer::Again(self.link.said(code, detail.unwrap_or_default()))
                } else {
                    Answer::Done(Err(self.link.said(code, detail.unwrap_or_default())))
                }
            }
            other => Answer::Done(Err(StoreError::Adapter(format!("Redis answered {other:?} to a commit")))),
        }
    }

    /// The call for a change set.
    fn call(&self, changes: &ChangeSet<RowValue>, (first, seq): (u64, u64)) -> Cmd {
        let puts = changes.ops.iter().any(|op| matches!(op, Op::Put { .. }));
        let mut call = self.keys.call("FCALL", if puts { "stvor_v5_commit" } else { "stvor_v5_release" });
        call.arg(&self.name).arg(first).arg(seq).arg(self.acknowledged.load(Ordering::SeqCst));
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
        call
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

fn expectation(expect: Expect) -> Vec<u8> {
    match expect {
        Expect::Any => b"*".to_vec(),
        Expect::Absent => b"0".to_vec(),
        Expect::Present => b"1".to_vec(),
        Expect::Version(version) => [b"=".as_slice(), &version.0.to_be_bytes()].concat(),
    }
}
