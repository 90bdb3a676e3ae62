//! What works on the vault's one thread: keys, database, log and index, and the operations on them.

pub(crate) mod agents;
mod approvals;
pub(crate) mod backup;
mod bound;
mod budget;
mod correction;
mod ending;
mod indexing;
pub(crate) mod log;
pub(crate) mod memories;
pub(crate) mod outside;
mod owner;
mod policy;
mod profiles;
mod proofs;
mod quota;
mod reads;
mod recovery;
pub(crate) mod removal;
mod rotation;
mod search;
pub(crate) mod sessions;
mod settle;
pub(crate) mod status;
#[cfg(test)]
mod tests;
mod tokens;

use core::cell::RefCell;
use core::time::Duration;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Sender as Answer;

use stvor_base::ErrorCode;
use stvor_crypto::SystemRandom;
use stvor_tlog::{Checkpoint, Frontier, Hash, Node, Note, Signer};

use crate::audit::{Event, Operation, hex};
use crate::clock::{Clock, Moment, Pace};
use crate::error::Refusal;
use crate::gates::boundary::Boundary;
use crate::keys::{BaseKeys, SessionKeys};
use crate::level::Level;
use crate::memory::{Header, MemoryId};
use crate::metrics::{Alert, AlertHook, Metrics};
use crate::sealing::Sender;
use crate::storage::index::Index;
use crate::storage::{CheckpointFile, Database, EndedList, EventRow, Lock, MemoryRow, lost_transaction};
use crate::vault::{Auditor, Options};
use crate::verify::{Report, Verification};
use crate::{VaultError, limits};

/// Keys and log, from the first unlock on.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) base: BaseKeys,
    pub(crate) session: Option<SessionKeys>,
    pub(crate) tree: Frontier,
    pub(crate) last_event: Option<Moment>,
    /// What is believed of the clock on the wall.
    pub(crate) pace: Pace,
    /// The key that signs for the last time, with its successor.
    pub(crate) retiring: Option<Signer>,
}

/// Refusals of one agent in the current minute.
#[derive(Debug, Default)]
struct Refusals {
    since: u64,
    logged: u32,
    suppressed: u64,
}

/// What is done to the index when the commit is through.
#[derive(Debug)]
enum Later {
    Add(MemoryId, (String, Level), String),
    Remove(MemoryId),
}

/// The state of an open vault.
pub(crate) struct Engine {
    pub(crate) database: Database,
    pub(crate) outside: Vec<CheckpointFile>,
    /// Where the names of ended memories are appended to.
    pub(crate) ended: Vec<EndedList>,
    /// Lines up to this one are in all lists, and still in the database.
    listed: i64,
    /// What could not be done after a commit, and was told of.
    told: settle::Told,
    /// Watchers of the dead-man switch.
    watchers: recovery::Watchers,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) rng: SystemRandom,
    pub(crate) auditors: Vec<Arc<Auditor>>,
    /// The fingerprint of the key that the boundary daemon's answers are believed by.
    pub(crate) boundary_key: Option<String>,
    /// Whether what this process holds in memory may come into the swap.
    memory: Option<status::Memory>,
    pub(crate) held: Option<Held>,
    index: Index,
    later: Vec<Later>,
    /// By actor, and apart for entering a lockdown: other refusals must not keep anybody from that.
    refusals: HashMap<(String, bool), Refusals>,
    /// Counts of refused requests that this group logged.
    summed_up: Vec<((String, bool), u64)>,
    usage: quota::Usage,
    /// What each agent added to the log.
    budgets: budget::Budgets,
    reads: reads::Reads,
    refused_cold: u64,
    /// The tree before the group that is under way.
    before: Option<(Frontier, Option<Moment>)>,
    /// Something was destroyed in this group.
    pub(crate) wipe: bool,
    /// Something was destroyed before, and is not overwritten yet.
    unwiped: bool,
    /// This group brought keys into the memory: keys that no log entry tells of, or that are not on the disk, are not kept.
    pub(crate) new_keys: bool,
    broken: Option<VaultError>,
    /// What writing to the public key of a level takes, for the memories of one group.
    senders: HashMap<Level, Sender>,
    /// Memories of level 0, by the session that they end with.
    ephemeral: HashMap<sessions::SessionId, Vec<MemoryId>>,
    /// What of these this group stored.
    ephemeral_here: Vec<MemoryId>,
    /// Such memories whose session ended, until their end is committed.
    ending: Vec<MemoryId>,
    /// What of these this group ended.
    ended_here: Vec<MemoryId>,
    pub(crate) metrics: Metrics,
    hooks: Vec<Arc<AlertHook>>,
    /// What hooks are told when the group is over.
    alerts: Vec<Alert>,
    /// Places with damage that hooks were told of.
    damaged: RefCell<BTreeSet<String>>,
    /// Verifications that were asked for, and whom the first report is for.
    pub(crate) verifying: VecDeque<(Verification, Answer<Result<Report, VaultError>>)>,
    /// The vault is to be closed after this group.
    pub(crate) shut: bool,
    /// What a token signs next to show that it is there. Used once.
    token_challenge: Option<[u8; 32]>,
    _lock: Lock,
}

impl Engine {
    pub(crate) fn new(
        (database, lock): (Database, Lock),
        (outside, ended): (Vec<CheckpointFile>, Vec<PathBuf>),
        options: Options,
    ) -> Self {
        Self {
            database,
            outside,
            ended: ended.into_iter().map(EndedList::new).collect(),
            listed: 0,
            told: settle::Told::default(),
            watchers: recovery::Watchers::default(),
            clock: options.clock,
            rng: SystemRandom::new(),
            auditors: options.auditors,
            boundary_key: options.boundary.as_ref().map(Boundary::fingerprint),
            memory: options.memory,
            held: None,
            index: Index::default(),
            later: Vec::new(),
            refusals: HashMap::new(),
            summed_up: Vec::new(),
            usage: quota::Usage::default(),
            budgets: budget::Budgets::default(),
            reads: reads::Reads::default(),
            refused_cold: 0,
            before: None,
            wipe: false,
            unwiped: true,
            new_keys: false,
            broken: None,
            senders: HashMap::new(),
            ephemeral: HashMap::new(),
            ephemeral_here: Vec::new(),
            ending: Vec::new(),
            ended_here: Vec::new(),
            metrics: Metrics::new(),
            hooks: options.alerts,
            alerts: Vec::new(),
            damaged: RefCell::default(),
            verifying: VecDeque::new(),
            shut: false,
            token_challenge: None,
            _lock: lock,
        }
    }

    pub(crate) fn held(&self) -> Result<&Held, VaultError> {
        self.held.as_ref().ok_or(VaultError::Refused(Refusal::Cold))
    }

    /// The time by which memories run out.
    pub(crate) fn latest(&self, now: &Moment) -> u64 {
        self.held.as_ref().map_or(now.wall, |held| held.pace.latest(now))
    }

    /// How much time has certainly passed since a moment. What the clock on the wall is ahead of what is believed of it ends no pause.
    pub(crate) fn certainly_since(&self, now: &Moment, earlier: &Moment) -> Duration {
        let wall = self.held.as_ref().map_or(now.wall, |held| held.pace.earliest(now));
        Moment { wall, ..now.clone() }.certainly_since(earlier)
    }

    /// Refuses, and counts, what is asked of a vault that holds no keys and so has no log to write it to.
    pub(crate) fn must_be_warm(&mut self) -> Result<(), VaultError> {
        if self.held.is_none() {
            self.refused_cold = self.refused_cold.saturating_add(1);
        }
        self.held().map(|_| ())
    }

    /// Does `work` and logs it, or logs that it was refused and leaves nothing else of it. `event` says who and what;
    /// `work` adds what it learns. Nothing is known outside before [`Engine::commit`].
    pub(crate) fn audited<T>(
        &mut self,
        mut event: Event,
        work: impl FnOnce(&mut Self, &mut Event) -> Result<T, VaultError>,
    ) -> Result<T, VaultError> {
        self.must_be_warm()?;
        if !self.stands() {
            return Err(self.broken.clone().unwrap_or_else(lost_transaction));
        }
        self.may_ask(&event)?;
        self.part("SAVEPOINT one")?;
        let (later, usage) = (self.later.len(), self.usage.changes());
        // What the work logs of its own is undone with the rest of it.
        let logged = self.held.as_ref().map(|held| (held.tree.clone(), held.last_event.clone()));
        let done = match work(self, &mut event) {
            Ok(value) => self.log(&event).map(|()| value),
            Err(error) => {
                self.later.truncate(later);
                self.usage.take_back(usage);
                event.refused = Some(error.code().to_owned());
                (event.row, event.content) = (None, None);
                self.notice_loss(&error);
                let undone = self.part("ROLLBACK TO one");
                if let (Some(held), Some(before)) = (self.held.as_mut(), logged) {
                    (held.tree, held.last_event) = before;
                }
                self.count_refusal(&event);
                self.alerts.push(Alert::Denied {
                    at: event.at.clone(),
                    actor: event.actor.clone(),
                    operation: event.operation,
                    memory: event.memory,
                    code: error.code().to_owned(),
                });
                undone.and_then(|()| self.log(&event)).and(Err(error))
            }
        };
        if self.broken.is_none() {
            self.part("RELEASE one")?;
        }
        self.metrics.count(event.operation, event.refused.as_deref());
        done
    }

    /// Parts the group for one operation. When that fails nobody knows what of the group stands, so nothing of it may.
    fn part(&mut self, statement: &str) -> Result<(), VaultError> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        let done = self.database.run(statement);
        if let Err(error) = &done {
            self.broken = Some(as_log_failure(error));
        }
        done
    }

    /// SQLite gives up the whole transaction, and not only the statement, when it can not read or write a page.
    fn notice_loss(&mut self, error: &VaultError) {
        if self.broken.is_none() && !self.database.in_transaction() {
            self.broken = Some(as_log_failure(error));
        }
    }

    /// Whether the group can still be committed. If not, nothing more may be done in it.
    pub(crate) fn stands(&mut self) -> bool {
        self.notice_loss(&lost_transaction());
        self.broken.is_none()
    }

    /// Appends an event to the log.
    pub(crate) fn log(&mut self, event: &Event) -> Result<(), VaultError> {
        let logged = self.try_log(event);
        if let Err(error) = &logged {
            // Without its log entry nothing of the group may stand.
            self.broken.get_or_insert(as_log_failure(error));
        }
        logged
    }

    fn try_log(&mut self, event: &Event) -> Result<(), VaultError> {
        let entry = serde_json::to_vec(event).map_err(|error| VaultError::Database(error.to_string()))?;
        let held = self.held.as_mut().ok_or(VaultError::Refused(Refusal::Cold))?;
        if self.before.is_none() {
            self.before = Some((held.tree.clone(), held.last_event.clone()));
        }
        let seq = held.tree.size();
        // JSON has no line end inside, so what follows one is what was said to it.
        let mut plain = entry.clone();
        if let Some(said) = &event.said {
            plain.push(b'\n');
            plain.extend_from_slice(said.as_bytes());
        }
        let sealed = held.base.events.seal(&mut self.rng, &seq.to_be_bytes(), &plain)?;
        self.budgets.count(&event.actor, sealed.len());
        let mut complete: Vec<Node> = Vec::new();
        held.tree.append(Hash::leaf(&entry), &mut complete)?;
        // A commitment has no time.
        if event.at.wall > 0 {
            held.pace.take(&event.at);
        }
        // A clock that was set back does not make the log's time go back.
        if held.last_event.as_ref().is_none_or(|last| last.wall <= event.at.wall) {
            held.last_event = Some(event.at.clone());
        }
        self.database.insert_event(&EventRow { seq, sealed }, &complete)
    }

    /// Begins a group of operations.
    pub(crate) fn begin(&mut self) -> Result<(), VaultError> {
        (self.before, self.wipe, self.broken) = (None, false, None);
        self.new_keys = false;
        self.ended_here.clear();
        self.ephemeral_here.clear();
        self.later.clear();
        self.senders.clear();
        self.alerts.clear();
        self.summed_up.clear();
        self.database.take_changed();
        if self.database.in_transaction() {
            // The end of the last group failed half-way.
            self.database.run("ROLLBACK")?;
        }
        self.database.run("BEGIN IMMEDIATE")?;
        if self.held.is_some() {
            // A log that can not be written ends the group when it is committed.
            let _ = self.log_suppressed(&self.clock.now(), |_, over| over);
        }
        if self.listed > 0 {
            self.database.remove_ended(self.listed)?;
        }
        self.drop_told()
    }

    /// Signs the log as it is now, commits the group, and writes the checkpoint outside. Fails as a whole. What can not be
    /// undone any more fails no asker: only those who destroyed something are told what is returned, when it is not
    /// overwritten yet.
    pub(crate) fn commit(&mut self) -> Result<Option<VaultError>, VaultError> {
        let done = self.try_commit();
        if done.is_err() {
            if self.database.in_transaction() {
                let _ = self.database.run("ROLLBACK");
            }
            self.forget_undone();
            self.drop_index();
            self.usage.drop_all();
            self.budgets.save_next();
            for (who, suppressed) in core::mem::take(&mut self.summed_up) {
                let refusals = self.refusals.entry(who).or_default();
                refusals.suppressed = refusals.suppressed.saturating_add(suppressed);
            }
            if let (Some((tree, last)), Some(held)) = (self.before.take(), self.held.as_mut()) {
                (held.tree, held.last_event) = (tree, last);
            }
            // What a token opened is in no log, and what changed of the keys is not on the disk: writing with such a key would
            // seal to nobody.
            self.drop_token();
            if self.new_keys {
                self.held = None;
            } else {
                self.reload_profiles();
            }
        }
        self.tell(&done);
        done.map(|note| self.settle(note.as_ref()))
    }

    /// Tells the hooks what the group brought.
    fn tell<T>(&mut self, done: &Result<T, VaultError>) {
        let mut alerts = core::mem::take(&mut self.alerts);
        match done {
            Ok(_) => self.metrics.commits.increment(1),
            Err(error) => {
                // What was refused in this group is in no log: the group is told of instead.
                alerts.clear();
                self.metrics.log_failures.increment(1);
                alerts.push(Alert::LogFailed { at: self.clock.now(), code: error.code() });
            }
        }
        if let Some(held) = &self.held {
            // Exact up to 2^53 events.
            self.metrics.events.set(held.tree.size() as f64);
        }
        alerts.iter().for_each(|alert| self.alert(alert));
    }

    fn alert(&self, alert: &Alert) {
        self.hooks.iter().for_each(|hook| hook(alert));
    }

    fn try_commit(&mut self) -> Result<Option<Note>, VaultError> {
        if !self.stands() {
            return Err(self.broken.take().unwrap_or_else(lost_transaction));
        }
        self.save_usage()?;
        self.save_budgets()?;
        if self.before.is_none() && self.held.is_some() && self.database.take_changed() {
            // Only with an event there is a checkpoint that nobody can put an older state under.
            self.log(&Event::new(self.clock.now(), "vault", Operation::Record))?;
        }
        let note = match (&self.held, &self.before) {
            (Some(held), Some(_)) => Some(sign(held)?),
            _ => None,
        };
        if let Some(note) = &note {
            let bound = self.seal_bound()?;
            self.database.put_checkpoint(&note.to_string(), &bound)?;
        }
        self.database.run("COMMIT")?;
        (self.before, self.listed) = (None, 0);
        self.forget_ended();
        self.watchers.told.clear();
        if let Some(held) = self.held.as_mut() {
            held.retiring = None;
        }
        Ok(note)
    }

    /// Refuses agents that were refused too often, without a log entry for each.
    fn may_ask(&mut self, event: &Event) -> Result<(), VaultError> {
        let who = budget(event);
        if !self.refusals.contains_key(&who) {
            return Ok(());
        }
        self.log_suppressed(&event.at, |other, over| over && *other == who)?;
        let Some(refusals) = self.refusals.get_mut(&who) else { return Ok(()) };
        if refusals.logged >= limits::REFUSALS_PER_MINUTE && event.actor != agents::OWNER {
            refusals.suppressed = refusals.suppressed.saturating_add(1);
            self.metrics.suppressed.increment(1);
            return Err(Refusal::TooManyRefusals.into());
        }
        Ok(())
    }

    /// Logs how many requests were refused without an entry for each, of those that `which` picks: it is told whose they are,
    /// and whether their minute is over.
    pub(super) fn log_suppressed(
        &mut self,
        now: &Moment,
        which: impl Fn(&(String, bool), bool) -> bool,
    ) -> Result<(), VaultError> {
        let over = |refusals: &Refusals| {
            now.wall < refusals.since || now.wall - refusals.since >= limits::REFUSALS_MINUTE
        };
        let picked = self.refusals.iter().filter(|(who, refusals)| which(who, over(refusals)));
        let picked: Vec<_> = picked.map(|(who, _)| who.clone()).collect();
        for who in picked {
            let suppressed = self.refusals.remove(&who).map_or(0, |refusals| refusals.suppressed);
            if suppressed > 0 {
                let mut summary = Event::new(now.clone(), &who.0, Operation::Suppressed);
                summary.count = Some(suppressed);
                self.summed_up.push((who, suppressed));
                self.log(&summary)?;
            }
        }
        Ok(())
    }

    fn count_refusal(&mut self, event: &Event) {
        let refusals = self.refusals.entry(budget(event)).or_default();
        if refusals.logged == 0 {
            refusals.since = event.at.wall;
        }
        refusals.logged = refusals.logged.saturating_add(1);
    }

    /// Notes a justification, purpose or reason: its keyed hash in the event, its words beside it.
    pub(crate) fn note(&self, event: &mut Event, said: &str) -> Result<(), VaultError> {
        event.text = Some(self.keyed("text", said.as_bytes())?);
        event.said =
            Some(said).filter(|said| !said.is_empty() && said.len() <= limits::MAX_TEXT).map(str::to_owned);
        Ok(())
    }

    /// A keyed hash, in hexadecimal digits.
    pub(crate) fn keyed(&self, purpose: &str, bytes: &[u8]) -> Result<String, VaultError> {
        Ok(hex(self.held()?.base.hash(purpose, bytes).expose()))
    }

    /// What is seen of a namespace or an intent in the database: half of a keyed hash.
    pub(crate) fn blind(&self, purpose: &str, text: &str) -> Result<Vec<u8>, VaultError> {
        let hash = self.held()?.base.hash(purpose, text.as_bytes());
        Ok(hash.expose().iter().copied().take(16).collect())
    }

    /// Seals a header for its row.
    pub(crate) fn seal_header(&mut self, header: &Header) -> Result<Vec<u8>, VaultError> {
        let plain = serde_json::to_vec(header).map_err(|error| VaultError::Database(error.to_string()))?;
        let held = self.held.as_ref().ok_or(VaultError::Refused(Refusal::Cold))?;
        Ok(held.base.rows.seal(&mut self.rng, header.id.as_bytes(), &plain)?)
    }

    /// Opens the header of a row, and holds it against the row and what was last written for its memory.
    pub(crate) fn header(&self, row: &MemoryRow) -> Result<Header, VaultError> {
        self.must_be_fresh(row)?;
        self.any_header(row)
    }

    /// Opens the header of a row, of whatever database of this vault and whatever time, and holds it against the row.
    pub(crate) fn any_header(&self, row: &MemoryRow) -> Result<Header, VaultError> {
        let tampered = |reason: &str| VaultError::tampered(format!("the memory {}", row.id), reason);
        let plain = self.held()?.base.rows.open(row.id.as_bytes(), &row.header);
        let plain = plain.map_err(|_| tampered("its header does not open"))?;
        let header: Header =
            serde_json::from_slice(plain.expose()).map_err(|_| tampered("its header is not understood"))?;
        let due = header.expires.filter(|_| row.wrapped.is_some() || row.due.is_some()).map(hour);
        if header.id != row.id || row.space != self.blind("namespace", &header.namespace)? || row.due != due {
            return Err(tampered("its header is of another row"));
        }
        Ok(header)
    }

    /// What was read, or nothing where somebody changed it: a damaged row is told of, and keeps nobody from the others.
    pub(crate) fn sound<T>(&self, read: Result<T, VaultError>) -> Result<Option<T>, VaultError> {
        match read {
            Ok(sound) => Ok(Some(sound)),
            Err(VaultError::Tampered { place, .. }) => {
                let mut known = self.damaged.borrow_mut();
                let room = (known.len() as u64) < limits::MAX_DAMAGED;
                if room && known.insert(place.clone()) {
                    self.alert(&Alert::Damaged { at: self.clock.now(), place });
                }
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The time of an event, if its row is there.
    pub(crate) fn event_time(&self, seq: u64) -> Result<Option<Moment>, VaultError> {
        let rows = self.database.events_from(seq, 1)?;
        let Some(row) = rows.first().filter(|row| row.seq == seq) else { return Ok(None) };
        Ok(Some(self.open_event(row)?.0.at))
    }

    /// An event, and the bytes that the log hashes.
    pub(crate) fn open_event(&self, row: &EventRow) -> Result<(Event, Vec<u8>), VaultError> {
        let place = || format!("the event {}", row.seq);
        let opened = self.held()?.base.open_event(row);
        opened.ok_or_else(|| VaultError::tampered(place(), "it was changed, or stands in another's place"))
    }
}

/// Whose refusals an event counts among.
fn budget(event: &Event) -> (String, bool) {
    (event.actor.clone(), event.operation == Operation::EnterLockdown)
}

/// The same, when an error says more.
fn as_log_failure(error: &VaultError) -> VaultError {
    match error {
        VaultError::LogUnavailable(_) => error.clone(),
        other => VaultError::LogUnavailable(other.to_string()),
    }
}

/// The log, signed as it is.
fn sign(held: &Held) -> Result<Note, VaultError> {
    let signer = &held.base.signer;
    let checkpoint = Checkpoint::new(signer.verifier().name(), held.tree.size(), held.tree.root())?;
    let signers: Vec<&Signer> = held.retiring.iter().chain([signer]).collect();
    Ok(checkpoint.sign(&signers)?)
}

/// The hour since the epoch in which a time in milliseconds is over.
pub(crate) fn hour(millis: u64) -> i64 {
    i64::try_from(millis.div_ceil(3_600_000)).unwrap_or(i64::MAX)
}
