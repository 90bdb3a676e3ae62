//! Reading, verifying and proving the log.

use std::sync::mpsc;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use stvor_tlog::witness::AddCheckpoint;
use stvor_tlog::{Note, ProofFile};

use super::{Job, Pending, Vault};
use crate::audit::{Event, Operation};
use crate::engine::agents::Caller;
use crate::engine::log::{LogPage, LogQuery};
use crate::verify::{Progress, Report, Scope, Summary, Verification};
use crate::{VaultError, limits};

impl Vault {
    /// Opens every content whose key is held, and checks it against its keyed hash. Returns how many were opened, and what
    /// is wrong.
    ///
    /// # Errors
    /// [`crate::Refusal::Cold`]; what is wrong is in the report.
    pub fn verify_content(&self) -> Result<Report, VaultError> {
        self.begin_verification(Scope::Contents, Vec::new()).0.wait()
    }

    /// Reads the whole log and every row, and holds them against each other and the checkpoints outside: some at a time, with
    /// others' operations in between.
    ///
    /// # Errors
    /// [`crate::Refusal::Cold`]; what is wrong is in the report, not an error.
    pub fn verify(&self) -> Result<Report, VaultError> {
        self.begin_verify(false).0.wait()
    }

    /// As [`Vault::verify`], without waiting, and with `content` also [`Vault::verify_content`]. The other part tells how far
    /// it is.
    #[must_use]
    pub fn begin_verify(&self, content: bool) -> (Pending<Report>, Arc<Progress>) {
        self.begin_verify_against(content, Vec::new())
    }

    /// As [`Vault::begin_verify`], and the log is held against the checkpoints of archives, too: it has to go on from each.
    #[must_use]
    pub fn begin_verify_against(
        &self,
        content: bool,
        archives: Vec<Note>,
    ) -> (Pending<Report>, Arc<Progress>) {
        self.begin_verification(if content { Scope::Everything } else { Scope::Rows }, archives)
    }

    fn begin_verification(&self, scope: Scope, archives: Vec<Note>) -> (Pending<Report>, Arc<Progress>) {
        let progress = Arc::new(Progress::default());
        let (answer, pending) = mpsc::channel();
        let state = Verification::new(scope, archives, Arc::clone(&progress));
        let refused = answer.clone();
        let job: Job = Box::new(move |engine| {
            let begun = engine.and_then(|engine| {
                engine.held()?;
                engine.verifying.push_back((state, answer));
                Ok(())
            });
            Box::new(move |_| {
                if let Err(error) = begun {
                    let _ = refused.send(Err(error));
                }
            })
        });
        if let Some(jobs) = &self.jobs {
            let _ = jobs.send(job);
        }
        (Pending(pending), progress)
    }

    /// Events of the log that fit, newest first.
    ///
    /// # Errors
    /// [`crate::Refusal::Cold`], [`VaultError::Tampered`].
    pub fn read_log(&self, query: LogQuery) -> Result<LogPage, VaultError> {
        self.ask(move |engine| engine.read_log(&query)).wait()
    }

    /// [`Vault::verify_summary`] for somebody who asked for it; that is logged.
    ///
    /// # Errors
    /// As [`Vault::verify`]; [`VaultError::LogUnavailable`].
    pub fn verify_for(&self, caller: &Caller) -> Result<Summary, VaultError> {
        let caller = caller.clone();
        let logged = self.ask(move |engine| {
            let event = Event::new(engine.clock.now(), caller.name(), Operation::Verify);
            engine.audited_for(&caller, event, |_, _| Ok(()))
        });
        logged.wait()?;
        self.verify_summary()
    }

    /// Whether the whole log and every row are sound, in numbers. A result serves everybody for
    /// [`limits::VERIFY_AGAIN`] at least, and for [`limits::VERIFY_SHARE`] times as long as it took: reading everything is work that agents must not be able to ask for without end.
    ///
    /// # Errors
    /// As [`Vault::verify`].
    pub fn verify_summary(&self) -> Result<Summary, VaultError> {
        // Whoever comes meanwhile waits here for the same result.
        let mut last = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some((at, _, summary)) = last.as_ref().filter(|(at, serves, _)| now - *at < *serves) {
            return Ok(Summary { age: (now - *at).as_secs(), ..*summary });
        }
        let report = self.verify()?;
        let summary = Summary {
            sound: report.problems.is_empty(),
            events: report.events,
            memories: report.memories,
            age: 0,
        };
        let serves = limits::VERIFY_AGAIN.max(now.elapsed().saturating_mul(limits::VERIFY_SHARE));
        *last = Some((Instant::now(), serves, summary));
        Ok(summary)
    }

    /// An event of the log, as the log hashes it, and the proof that it is in there.
    ///
    /// # Errors
    /// [`VaultError::Log`] when there is no such event.
    pub fn prove(&self, event: u64) -> Result<(Vec<u8>, ProofFile), VaultError> {
        self.ask(move |engine| engine.prove(event)).wait()
    }

    /// The proof that the log of the checkpoint `new`, of its newest one where that is nothing, goes on from that of `old`.
    ///
    /// # Errors
    /// [`VaultError::Log`] when one is not signed by this log; [`VaultError::Tampered`] when this is not the log that they sign;
    /// [`VaultError::Invalid`] when `new` is the earlier one.
    pub fn prove_consistency(&self, old: Note, new: Option<Note>) -> Result<AddCheckpoint, VaultError> {
        self.ask(move |engine| engine.prove_consistency(&old, new)).wait()
    }
}
