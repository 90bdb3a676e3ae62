//! The thread that does the work: groups of operations, and between them what nobody waits for.

use core::time::Duration;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Instant;

use super::{Answer, Job};
use crate::engine::Engine;
use crate::storage::Due;
use crate::{VaultError, limits};

/// How often what nobody waits for is done: expired memories, keys that are due, syncs.
const IDLE: Duration = Duration::from_secs(1);

/// The vault's thread.
pub(super) fn run(mut engine: Engine, queue: &Receiver<Job>) {
    // By the clock, between two groups: a vault that is never idle does it too.
    let mut due = Instant::now() + IDLE;
    let mut purged = None;
    while !engine.shut {
        let wait = match engine.verifying.is_empty() {
            true => due.saturating_duration_since(Instant::now()),
            false => Duration::ZERO,
        };
        match queue.recv_timeout(wait) {
            Ok(first) => group(&mut engine, first, queue),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        verify_some(&mut engine);
        if Instant::now() >= due && !engine.shut {
            upkeep(&mut engine, &mut purged);
            due = Instant::now() + IDLE;
        }
    }
    alone(&mut engine, Engine::close);
    engine.idle();
}

/// A step of the verification that was asked for first.
fn verify_some(engine: &mut Engine) {
    let Some((mut state, answer)) = engine.verifying.pop_front() else { return };
    match engine.verify_step(&mut state) {
        Ok(None) => engine.verifying.push_front((state, answer)),
        // Nobody minds if the asker went away.
        Ok(Some(report)) => drop(answer.send(Ok(report))),
        Err(error) => drop(answer.send(Err(error))),
    }
}

/// What nobody asks for, some of it at a time. `purged` is where looking for memories whose time ran out goes on.
fn upkeep(engine: &mut Engine, purged: &mut Option<Due>) {
    engine.idle();
    if engine.held.is_some() {
        if engine.leaves_ephemeral() {
            alone(engine, |engine| engine.end_left().map(drop));
        }
        let after = purged.take();
        alone(engine, |engine| {
            (_, *purged) = engine.purge(after, limits::MAX_GROUP)?;
            Ok(())
        });
        alone(engine, Engine::rotate_due);
    }
}

/// Work that nobody waits for.
fn alone(engine: &mut Engine, work: impl FnOnce(&mut Engine) -> Result<(), VaultError>) {
    if engine.begin().is_ok() {
        let _ = work(engine);
        let _ = engine.commit();
    }
}

/// Does what waits, commits it as one, then answers.
fn group(engine: &mut Engine, first: Job, queue: &Receiver<Job>) {
    if let Err(error) = engine.begin() {
        // Outside a transaction nothing may be touched.
        first(Err(error.clone()))(Err(error));
        return;
    }
    let mut answers = vec![perform(engine, first)];
    // What waits while the group can not be committed any more is for the next one.
    while engine.stands() && answers.len() < limits::MAX_GROUP {
        let Ok(job) = queue.try_recv() else { break };
        answers.push(perform(engine, job));
    }
    let committed = engine.commit();
    for (answer, destroyed) in answers {
        answer(match &committed {
            Ok(Some(pending)) if destroyed => Err(pending.clone()),
            Ok(_) => Ok(()),
            Err(error) => Err(error.clone()),
        });
    }
}

/// Does one job. With its answer: whether it destroyed something.
fn perform(engine: &mut Engine, job: Job) -> (Answer, bool) {
    let before = core::mem::take(&mut engine.wipe);
    let answer = job(Ok(engine));
    let destroyed = engine.wipe;
    engine.wipe |= before;
    (answer, destroyed)
}
