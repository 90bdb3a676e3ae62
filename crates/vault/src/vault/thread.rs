//! The thread that does the work: groups of operations, and between them what nobody waits for.

use core::time::Duration;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
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
    let (mut purged, mut came) = (None, None);
    loop {
        let wait = match engine.verifying.is_empty() {
            true => due.saturating_duration_since(Instant::now()),
            false => Duration::ZERO,
        };
        match came.take().map_or_else(|| queue.recv_timeout(wait), Ok) {
            Ok(first) => group(&mut engine, first, queue),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if engine.shut {
            break;
        }
        came = verify_some(&mut engine, queue, due);
        if Instant::now() >= due {
            upkeep(&mut engine, &mut purged);
            due = Instant::now() + IDLE;
        }
    }
    alone(&mut engine, Engine::close);
    engine.idle();
}

/// A step of the verification that was asked for first. It goes on until somebody comes, whose job is returned, or something is `due`,
/// and does what a step does at least.
fn verify_some(engine: &mut Engine, queue: &Receiver<Job>, due: Instant) -> Option<Job> {
    let (mut state, answer) = engine.verifying.pop_front()?;
    let mut came = None;
    let alone = || {
        if came.is_some() {
            return false;
        }
        match queue.try_recv() {
            Ok(job) => came = Some(job),
            Err(TryRecvError::Empty) => return Instant::now() < due,
            Err(TryRecvError::Disconnected) => {}
        }
        false
    };
    match engine.verify_step(&mut state, alone) {
        Ok(None) => engine.verifying.push_front((state, answer)),
        // Nobody minds if the asker went away.
        Ok(Some(report)) => drop(answer.send(Ok(report))),
        Err(error) => drop(answer.send(Err(error))),
    }
    came
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};

    use stvor_crypto::SecretBytes;
    use stvor_keys::{Passphrase, PassphraseCost};

    use super::*;
    use crate::audit::{Event, Operation};
    use crate::keys::NewKeys;
    use crate::verify::{Scope, Verification};
    use crate::{Options, Vault};

    /// More than a step reads while somebody waits.
    const EVENTS: usize = 12_000;

    /// Verifies. Returns after which steps somebody had come, and how many steps it took.
    fn verify(engine: &mut Engine, queue: &Receiver<Job>, due: Instant) -> (Vec<usize>, usize) {
        let (answer, report) = mpsc::channel();
        let state = Verification::new(Scope::Rows, Vec::new(), Arc::default());
        engine.verifying.push_back((state, answer));
        let (mut came, mut steps) = (Vec::new(), 0);
        while !engine.verifying.is_empty() {
            steps += 1;
            if let Some(job) = verify_some(engine, queue, due) {
                came.push(steps);
                job(Ok(engine))(Ok(()));
            }
        }
        let report = report.recv().unwrap().unwrap();
        assert!(report.problems.is_empty(), "{:?}", report.problems);
        assert!(report.events >= EVENTS as u64, "every event is read, in however many steps");
        (came, steps)
    }

    #[test]
    fn a_verification_goes_on_until_somebody_comes_who_is_answered_before_it_ends() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vault");
        let cost = PassphraseCost { memory_kib: 64, iterations: 1, parallelism: 1 };
        let owner =
            Passphrase::new(SecretBytes::from_slice(b"correct horse")).unwrap().with_cost(cost).unwrap();
        Vault::create(&path, &NewKeys { owner: &owner, vaulted: None, origin: "home" }).unwrap();
        let vault = Vault::open(&path, Options::default()).unwrap();
        vault.unlock_with(&owner).unwrap();
        let logged = vault.ask(|engine| {
            let event = Event::new(engine.clock.now(), "owner", Operation::Verify);
            (0..EVENTS).try_for_each(|_| engine.log(&event))
        });
        logged.wait().unwrap();
        let verified = vault.ask(|engine| {
            let (jobs, queue) = mpsc::sync_channel::<Job>(1);
            let (now, later) = (Instant::now(), Instant::now() + Duration::from_secs(3_600));
            // The beginning, the log, the memories and the end.
            assert_eq!(verify(engine, &queue, later), (vec![], 4));
            assert_eq!(verify(engine, &queue, now), (vec![], 5), "what is due is not kept waiting");
            let (answer, answers) = mpsc::channel();
            let job: Job = Box::new(move |engine| {
                let left = engine.map(|engine| engine.verifying.len());
                Box::new(move |_| answer.send(left).unwrap())
            });
            assert!(jobs.send(job).is_ok());
            assert_eq!(verify(engine, &queue, later), (vec![2], 5));
            assert_eq!(answers.recv().unwrap().unwrap(), 1, "the verification was under way");
            drop(jobs);
            assert_eq!(verify(engine, &queue, later), (vec![], 5), "nor is who closes the vault");
            Ok(())
        });
        verified.wait().unwrap();
    }
}
