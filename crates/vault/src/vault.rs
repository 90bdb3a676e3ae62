//! A vault, open: a handle that any thread may use. One thread does the work; operations that wait at one time share a
//! commit.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use stvor_crypto::{Secret, SystemRandom};
use stvor_keys::KeyHolder;
use stvor_tlog::ProofFile;

use crate::audit::Operation;
use crate::clock::{Clock, SystemClock};
use crate::engine::Engine;
use crate::engine::agents::{Agent, Caller, Credential};
use crate::engine::log::{LogPage, LogQuery};
use crate::engine::memories::Recall;
use crate::engine::sessions::SessionId;
use crate::engine::status::Status;
use crate::gates::approval::Approval;
use crate::gates::boundary::Boundary;
use crate::keys::{self, NewKeys, RootKey, VerbKey};
use crate::memory::{Forgotten, Header, MemoryId, NewMemory, Recalled};
use crate::metrics::AlertHook;
use crate::storage::{CheckpointFile, Database, Lock, make_directory};
use crate::verify::{Progress, Report, Scope, Summary, Verification};
use crate::{VaultError, limits};

pub(crate) const DATABASE: &str = "vault.db";
pub(crate) const CHECKPOINTS: &str = "checkpoints";
/// Requests that wait at one time.
const QUEUE: usize = 4_096;
/// How often what nobody waits for is done: expired memories, keys that are due, syncs.
const IDLE: Duration = Duration::from_secs(1);

/// Something that looks at a plaintext before it is given out, and may refuse with a reason.
pub type Auditor = dyn Fn(&Header, &[u8]) -> Result<(), String> + Send + Sync;

/// How a vault is opened.
pub struct Options {
    /// The clocks.
    pub clock: Arc<dyn Clock>,
    /// The boundary daemon. Without one, levels 3 to 5 stay closed.
    pub boundary: Option<Boundary>,
    /// Further files that checkpoints are appended to, best on another disk or machine.
    pub checkpoints: Vec<PathBuf>,
    /// Further files that the names of forgotten and tombstoned memories are appended to, best beside the backups: no restore
    /// that finds one brings such a memory back.
    pub forgotten: Vec<PathBuf>,
    /// Who looks at plaintexts before they are given out.
    pub auditors: Vec<Arc<Auditor>>,
    /// Who hears of refusals and of a log that can not be written.
    pub alerts: Vec<Arc<AlertHook>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            clock: Arc::new(SystemClock::new()),
            boundary: None,
            checkpoints: Vec::new(),
            forgotten: Vec::new(),
            auditors: Vec::new(),
            alerts: Vec::new(),
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options").field("boundary", &self.boundary).finish_non_exhaustive()
    }
}

/// The records that the owner's secret unwraps. They are not secret.
#[derive(Debug, Clone)]
pub struct OwnerRecords {
    /// For [`crate::unwrap_root`].
    pub root: Vec<u8>,
    /// For [`crate::unwrap_verbs`].
    pub verbs: Vec<u8>,
    /// For [`crate::unwrap_vaulted`], if there is a second secret.
    pub vaulted: Option<Vec<u8>>,
}

type Answer = Box<dyn FnOnce(Result<(), VaultError>) + Send>;
/// Gets the engine, or why it can not work now; gives what to tell the asker when the commit is through, or not.
type Job = Box<dyn FnOnce(Result<&mut Engine, VaultError>) -> Answer + Send>;

/// An answer that is on its way.
#[derive(Debug)]
pub struct Pending<T>(Receiver<Result<T, VaultError>>);

impl<T> Pending<T> {
    /// Waits for it. It comes when everything that it says is on the disk.
    ///
    /// # Errors
    /// What the operation says; [`VaultError::Closed`].
    pub fn wait(self) -> Result<T, VaultError> {
        self.0.recv().unwrap_or(Err(VaultError::Closed))
    }

    /// Waits for it, and calls `meanwhile` every time that `span` passes.
    ///
    /// # Errors
    /// As [`Pending::wait`].
    pub fn wait_while(self, span: Duration, mut meanwhile: impl FnMut()) -> Result<T, VaultError> {
        loop {
            match self.0.recv_timeout(span) {
                Ok(answer) => return answer,
                Err(RecvTimeoutError::Timeout) => meanwhile(),
                Err(RecvTimeoutError::Disconnected) => return Err(VaultError::Closed),
            }
        }
    }
}

/// An open vault. Dropping it closes it and wipes its keys.
#[derive(Debug)]
pub struct Vault {
    jobs: Option<SyncSender<Job>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    boundary: Option<Boundary>,
    sessions: AtomicU64,
    /// The last verification for agents: when it ended, for how long it serves, and what it found.
    verified: Mutex<Option<(Instant, Duration, Summary)>>,
    path: PathBuf,
}

impl Vault {
    /// The directory that it is in.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a vault in the directory `path`, which must not be there, or hold no vault. The directory gets mode 0700, its
    /// files 0600.
    ///
    /// # Errors
    /// [`VaultError::Exists`], [`VaultError::Io`], [`VaultError::Key`].
    pub fn create(path: &Path, new: &NewKeys<'_>) -> Result<(), VaultError> {
        make_directory(path)?;
        let _lock = Lock::take(path)?;
        let slots = keys::create(new, &mut SystemRandom::new())?;
        let name = path.join(DATABASE);
        if name.exists() {
            return Err(VaultError::Exists(path.to_owned()));
        }
        let draft = path.join("vault.db.new");
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(path.join(format!("vault.db.new{suffix}")));
        }
        let database = Database::create(&draft)?;
        database.run("BEGIN")?;
        slots.iter().try_for_each(|(name, record)| database.put_slot(name, record))?;
        database.run("COMMIT")?;
        database.merge_journal()?;
        drop(database);
        std::fs::rename(&draft, &name).map_err(|error| VaultError::io("naming", &name, &error))?;
        let synced = std::fs::File::open(path).and_then(|directory| directory.sync_all());
        synced.map_err(|error| VaultError::io("syncing", path, &error))
    }

    /// Opens the vault in the directory `path`. It is cold: no key is held.
    ///
    /// # Errors
    /// [`VaultError::Missing`], [`VaultError::Busy`] while another process has it open, [`VaultError::TooNew`],
    /// [`VaultError::Tampered`], [`VaultError::Io`].
    pub fn open(path: &Path, options: Options) -> Result<Self, VaultError> {
        if !path.join(DATABASE).is_file() {
            return Err(VaultError::Missing(path.to_owned()));
        }
        let lock = Lock::take(path)?;
        crate::backup::remove_drafts(path);
        let database = Database::open(&path.join(DATABASE))?;
        let mut outside = vec![CheckpointFile::open(&path.join(CHECKPOINTS))?];
        for copy in &options.checkpoints {
            outside.push(CheckpointFile::open(copy)?);
        }
        let mut ended = vec![path.join(crate::backup::FORGOTTEN)];
        ended.extend(options.forgotten.iter().cloned());
        let boundary = options.boundary.clone();
        let mut engine = Engine::new((database, lock), (outside, ended), options);
        engine.resume();
        let (jobs, queue) = mpsc::sync_channel(QUEUE);
        let thread =
            std::thread::Builder::new().name("stvor-vault".into()).spawn(move || run(engine, &queue));
        let thread = thread.map_err(|error| VaultError::io("starting the thread of", path, &error))?;
        Ok(Self {
            jobs: Some(jobs),
            thread: Mutex::new(Some(thread)),
            boundary,
            sessions: AtomicU64::new(1),
            verified: Mutex::new(None),
            path: path.to_owned(),
        })
    }

    /// Hands work in. Its answer comes when its group is committed.
    pub(crate) fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Engine) -> Result<T, VaultError> + Send + 'static,
    ) -> Pending<T> {
        let (answer, pending) = mpsc::channel();
        let job: Job = Box::new(move |engine| {
            let done = engine.and_then(work);
            Box::new(move |committed| {
                // Nobody minds if the asker went away.
                let _ = answer.send(committed.and(done));
            })
        });
        if let Some(jobs) = &self.jobs {
            let _ = jobs.send(job);
        }
        Pending(pending)
    }

    /// The records that the owner's secret unwraps.
    ///
    /// # Errors
    /// [`VaultError::Tampered`] when they are gone.
    pub fn records(&self) -> Result<OwnerRecords, VaultError> {
        let read = |engine: &mut Engine| {
            let mut slots = engine.database.slots()?;
            let missing = || VaultError::tampered("the owner's key record", "it is missing");
            Ok(OwnerRecords {
                root: slots.remove(keys::SLOT_ROOT).ok_or_else(missing)?,
                verbs: slots.remove(keys::SLOT_VERBS).ok_or_else(missing)?,
                vaulted: slots.remove(keys::SLOT_VAULTED),
            })
        };
        self.ask(read).wait()
    }

    /// Begins the owner's session, with the owner's secret in this process.
    ///
    /// # Errors
    /// [`stvor_keys::KeyError::Wrong`] for another secret; as [`Vault::unlock`].
    pub fn unlock_with(&self, owner: &dyn KeyHolder) -> Result<(), VaultError> {
        let root = keys::unwrap_root(&self.records()?.root, owner)?;
        self.unlock(root, None)
    }

    /// Begins the owner's session, with keys that were unwrapped elsewhere.
    ///
    /// # Errors
    /// [`VaultError::Tampered`] and [`VaultError::Log`] when log and checkpoints do not fit; [`VaultError::LogUnavailable`].
    pub fn unlock(&self, root: RootKey, vaulted: Option<Secret<32>>) -> Result<(), VaultError> {
        self.ask(move |engine| engine.unlock(&root, vaulted.as_ref())).wait()
    }

    /// Ends the owner's session.
    ///
    /// # Errors
    /// [`crate::Refusal::Cold`], [`VaultError::LogUnavailable`].
    pub fn lock(&self) -> Result<(), VaultError> {
        self.ask(Engine::lock).wait()
    }

    /// The state.
    ///
    /// # Errors
    /// [`VaultError::Closed`], [`VaultError::Tampered`].
    pub fn status(&self) -> Result<Status, VaultError> {
        self.ask(|engine| engine.status()).wait()
    }

    /// The key that proves owner verbs, for who serves the owner.
    ///
    /// # Errors
    /// [`crate::Refusal::Cold`].
    pub fn verb_key(&self) -> Result<VerbKey, VaultError> {
        self.ask(|engine| Ok(engine.held()?.base.verbs.duplicate())).wait()
    }

    /// Stores a memory and returns its name.
    ///
    /// # Errors
    /// [`VaultError::Refused`], [`VaultError::Invalid`], [`VaultError::LogUnavailable`].
    pub fn store(&self, caller: &Caller, memory: NewMemory) -> Result<MemoryId, VaultError> {
        self.begin_store(caller, memory).wait()
    }

    /// As [`Vault::store`], without waiting.
    #[must_use]
    pub fn begin_store(&self, caller: &Caller, memory: NewMemory) -> Pending<MemoryId> {
        self.begin_store_in(SessionId::OWNER, caller, memory)
    }

    /// As [`Vault::begin_store`]; a memory of level 0 ends with the session.
    #[must_use]
    pub fn begin_store_in(
        &self,
        session: SessionId,
        caller: &Caller,
        memory: NewMemory,
    ) -> Pending<MemoryId> {
        let caller = caller.clone();
        self.ask(move |engine| engine.store((&caller, session), &memory))
    }

    /// Begins a session for memories of level 0.
    #[must_use]
    pub fn begin_session(&self) -> SessionId {
        SessionId(self.sessions.fetch_add(1, Ordering::Relaxed))
    }

    /// Ends a session: what it stored at level 0 is destroyed. Returns how many memories that were.
    ///
    /// # Errors
    /// [`VaultError::LogUnavailable`], [`crate::Refusal::Cold`].
    pub fn end_session(&self, session: SessionId) -> Result<usize, VaultError> {
        self.ask(move |engine| engine.end_session(session)).wait()
    }

    /// What the vault counts, in the text format of Prometheus.
    ///
    /// # Errors
    /// [`VaultError::Closed`].
    pub fn metrics(&self) -> Result<String, VaultError> {
        self.ask(|engine| Ok(engine.metrics.render())).wait()
    }

    /// Recalls a memory. From level 3 on the boundary daemon is asked, and `justification` says what for.
    ///
    /// # Errors
    /// [`VaultError::Refused`], [`VaultError::Tampered`], [`VaultError::LogUnavailable`].
    pub fn recall(&self, caller: &Caller, id: MemoryId, justification: &str) -> Result<Recalled, VaultError> {
        let boundary = self.ask_boundary(caller, id)?;
        let (caller, justification) = (caller.clone(), justification.to_owned());
        let work = move |engine: &mut Engine| {
            engine.recall(&Recall { caller: &caller, id, justification: &justification, boundary })
        };
        self.ask(work).wait()
    }

    /// Asks the boundary daemon on the caller's thread, so that its delays are nobody else's.
    fn ask_boundary(
        &self,
        caller: &Caller,
        id: MemoryId,
    ) -> Result<Option<crate::gates::boundary::Verdict>, VaultError> {
        let Some(boundary) = &self.boundary else { return Ok(None) };
        let asking = caller.clone();
        let known = self.ask(move |engine| Ok((engine.level_of(&asking, id), engine.wall()))).wait()?;
        let (Some(level), now) = known else { return Ok(None) };
        if !level.needs_approval() {
            return Ok(None);
        }
        Ok(Some(boundary.ask(level, now, &mut SystemRandom::new())))
    }

    /// Searches a namespace.
    ///
    /// # Errors
    /// As [`Vault::store`].
    pub fn search(&self, caller: &Caller, namespace: &str, query: &str) -> Result<Vec<Header>, VaultError> {
        let (caller, namespace, query) = (caller.clone(), namespace.to_owned(), query.to_owned());
        self.ask(move |engine| engine.search(&caller, &namespace, &query)).wait()
    }

    /// Lists a namespace, newest first, at most [`limits::MAX_PAGE`] from before `before`; with where to go on.
    ///
    /// # Errors
    /// As [`Vault::store`].
    pub fn list(
        &self,
        caller: &Caller,
        namespace: &str,
        before: Option<i64>,
    ) -> Result<(Vec<Header>, Option<i64>), VaultError> {
        let (caller, namespace) = (caller.clone(), namespace.to_owned());
        self.ask(move |engine| engine.list(&caller, &namespace, before)).wait()
    }

    /// Memories that serve an intent.
    ///
    /// # Errors
    /// As [`Vault::store`].
    pub fn by_intent(&self, caller: &Caller, intent: &str) -> Result<Vec<Header>, VaultError> {
        let (caller, intent) = (caller.clone(), intent.to_owned());
        self.ask(move |engine| engine.by_intent(&caller, &intent)).wait()
    }

    /// Links (or unlinks) an intent to a memory.
    ///
    /// # Errors
    /// As [`Vault::store`].
    pub fn set_intent(
        &self,
        caller: &Caller,
        id: MemoryId,
        (intent, link): (&str, bool),
    ) -> Result<(), VaultError> {
        let (caller, intent) = (caller.clone(), intent.to_owned());
        self.ask(move |engine| engine.set_intent(&caller, (id, link), &intent)).wait()
    }

    /// Destroys a memory's key and content, for good and before the answer. Returns what that could not reach: backups.
    ///
    /// # Errors
    /// As [`Vault::store`]; [`VaultError::WipePending`].
    pub fn forget(&self, caller: &Caller, id: MemoryId, reason: &str) -> Result<Forgotten, VaultError> {
        let (caller, reason) = (caller.clone(), reason.to_owned());
        self.ask(move |engine| engine.forget(&caller, id, &reason)).wait()
    }

    /// Ends the pause of a memory that was recalled, for the owner: whoever may recall it may do so at once.
    ///
    /// # Errors
    /// [`VaultError::Invalid`] when no pause is under way; as [`Vault::store`].
    pub fn end_pause(&self, id: MemoryId) -> Result<(), VaultError> {
        self.ask(move |engine| engine.end_pause(id)).wait()
    }

    /// Closes a memory for good and keeps it for the record.
    ///
    /// # Errors
    /// As [`Vault::store`].
    pub fn tombstone(&self, caller: &Caller, id: MemoryId, reason: &str) -> Result<(), VaultError> {
        let (caller, reason) = (caller.clone(), reason.to_owned());
        self.ask(move |engine| engine.tombstone(&caller, id, &reason)).wait()
    }

    /// Destroys memories whose time ran out. It also happens by itself. Returns how many.
    ///
    /// # Errors
    /// As [`Vault::store`].
    pub fn purge(&self) -> Result<usize, VaultError> {
        self.ask(|engine| engine.purge(limits::MAX_GROUP)).wait()
    }

    /// Asks the owner to approve one recall, and returns the request's name.
    ///
    /// # Errors
    /// As [`Vault::store`].
    pub fn request_approval(
        &self,
        caller: &Caller,
        id: MemoryId,
        purpose: &str,
    ) -> Result<MemoryId, VaultError> {
        let (caller, purpose) = (caller.clone(), purpose.to_owned());
        self.ask(move |engine| engine.request_approval(&caller, id, &purpose)).wait()
    }

    /// Requests for approval and what became of them.
    ///
    /// # Errors
    /// [`crate::Refusal::Cold`], [`VaultError::Tampered`].
    pub fn approvals(&self) -> Result<Vec<Approval>, VaultError> {
        self.ask(|engine| engine.approvals()).wait()
    }

    /// What became of a request for approval that this caller made; nothing when there is none, or no more.
    ///
    /// # Errors
    /// [`crate::Refusal::Cold`], [`VaultError::Tampered`].
    pub fn approval(&self, caller: &Caller, request: MemoryId) -> Result<Option<Approval>, VaultError> {
        let name = caller.name().to_owned();
        let own = move |approval: &Approval| approval.id == request && approval.agent == name;
        Ok(self.approvals()?.into_iter().find(own))
    }

    /// Grants a request for `valid` (at most a day), or denies it.
    ///
    /// # Errors
    /// [`VaultError::Invalid`] when no such request waits; [`VaultError::LogUnavailable`].
    pub fn decide_approval(&self, id: MemoryId, valid: Option<Duration>) -> Result<(), VaultError> {
        self.ask(move |engine| engine.decide_approval(id, (valid, None))).wait()
    }

    /// Grants a request with the code that the owner's app shows, where one is enrolled.
    ///
    /// # Errors
    /// As [`Vault::decide_approval`]; [`crate::Refusal::OneTimeCode`], [`crate::Refusal::CodesBlocked`].
    pub fn approve_with_code(&self, id: MemoryId, valid: Duration, code: &str) -> Result<(), VaultError> {
        let code = code.to_owned();
        self.ask(move |engine| engine.decide_approval(id, (Some(valid), Some(&code)))).wait()
    }

    /// Stops everything.
    ///
    /// # Errors
    /// [`VaultError::LogUnavailable`]; [`crate::Refusal::Lockdown`] when it is stopped already.
    pub fn enter_lockdown(&self, caller: &Caller, reason: &str) -> Result<(), VaultError> {
        let (by, reason) = (caller.name().to_owned(), reason.to_owned());
        self.ask(move |engine| engine.enter_lockdown(&by, &reason)).wait()
    }

    /// Stops everything on behalf of somebody at the owner's socket who proved nothing: stopping needs no ceremony.
    pub(crate) fn enter_lockdown_unproved(&self, reason: &str) -> Result<(), VaultError> {
        let reason = reason.to_owned();
        self.ask(move |engine| engine.enter_lockdown(crate::engine::agents::UNPROVED, &reason)).wait()
    }

    /// Lets everything go on. Takes the owner's secret itself, not only an open session.
    ///
    /// # Errors
    /// [`stvor_keys::KeyError::Wrong`] for another secret.
    pub fn leave_lockdown(&self, owner: &dyn KeyHolder) -> Result<(), VaultError> {
        self.leave_lockdown_with(keys::unwrap_root(&self.records()?.root, owner)?)
    }

    /// As [`Vault::leave_lockdown`], with a root key that was unwrapped elsewhere.
    ///
    /// # Errors
    /// [`VaultError::Tampered`] when it is not the root key.
    pub fn leave_lockdown_with(&self, root: RootKey) -> Result<(), VaultError> {
        self.ask(move |engine| engine.leave_lockdown(&root)).wait()
    }

    /// Changes the owner's secret. No memory is touched.
    ///
    /// # Errors
    /// [`stvor_keys::KeyError::Wrong`] when `old` is not it.
    pub fn change_secret(&self, old: &dyn KeyHolder, new: &dyn KeyHolder) -> Result<(), VaultError> {
        let records = self.records()?;
        let (root, verbs) =
            (keys::unwrap_root(&records.root, old)?, keys::unwrap_verbs(&records.verbs, old)?);
        let slots = keys::rewrap_owner((&root, &verbs), new, &mut SystemRandom::new())?;
        self.ask(move |engine| engine.change_secret(&root, &slots)).wait()
    }

    /// As [`Vault::change_secret`], with records that were made elsewhere, for `root`.
    pub(crate) fn put_owner_records(
        &self,
        root: RootKey,
        records: (Vec<u8>, Vec<u8>),
    ) -> Result<(), VaultError> {
        let (root_record, verbs_record) = records;
        let slots = keys::owner_slots(root_record, verbs_record);
        self.ask(move |engine| engine.change_secret(&root, &slots)).wait()
    }

    /// Changes the key that signs the log. The checkpoint of the change is signed with the old and the new one; checkpoints
    /// that the old one signed stay valid.
    ///
    /// # Errors
    /// [`crate::Refusal::Cold`], [`VaultError::LogUnavailable`]; after that one the vault is cold.
    pub fn rotate_signing_key(&self) -> Result<(), VaultError> {
        self.ask(Engine::rotate_signing_key).wait()
    }

    /// Opens every content whose key is held, and checks it against its keyed hash. Returns how many were opened, and what
    /// is wrong.
    ///
    /// # Errors
    /// [`crate::Refusal::Cold`]; what is wrong is in the report.
    pub fn verify_content(&self) -> Result<Report, VaultError> {
        self.begin_verification(Scope::Contents).0.wait()
    }

    /// Enrols an agent and mints its credential.
    ///
    /// # Errors
    /// [`VaultError::Invalid`] for a name that is taken or not allowed.
    pub fn enrol(&self, agent: Agent) -> Result<Credential, VaultError> {
        self.ask(move |engine| engine.enrol(&agent)).wait()
    }

    /// Removes an agent.
    ///
    /// # Errors
    /// [`VaultError::Invalid`] when there is none of this name.
    pub fn remove_agent(&self, name: &str) -> Result<(), VaultError> {
        let name = name.to_owned();
        self.ask(move |engine| engine.remove_agent(&name)).wait()
    }

    /// All agents.
    ///
    /// # Errors
    /// [`crate::Refusal::Cold`], [`VaultError::Tampered`].
    pub fn agents(&self) -> Result<Vec<Agent>, VaultError> {
        self.ask(|engine| engine.agents()).wait()
    }

    /// Bytes that the memories of each agent take, with headers, by the agents' names. Agents that stored nothing are not in it;
    /// some that are not enrolled any more may be.
    ///
    /// # Errors
    /// [`crate::Refusal::Cold`], [`VaultError::Tampered`].
    pub fn usage(&self) -> Result<BTreeMap<String, u64>, VaultError> {
        self.ask(|engine| {
            engine.held()?;
            engine.usage().cloned()
        })
        .wait()
    }

    /// The agent that a credential is of.
    ///
    /// # Errors
    /// [`crate::Refusal::NotAllowed`] when it is of none.
    pub fn authenticate(&self, credential: &[u8]) -> Result<Caller, VaultError> {
        let credential = stvor_crypto::SecretBytes::from_slice(credential);
        self.ask(move |engine| engine.authenticate(credential.expose())).wait()
    }

    /// Refuses somebody who tried to act as the owner without the owner's secret, and logs it.
    pub(crate) fn refuse_owner<T: Send + 'static>(&self) -> Result<T, VaultError> {
        let what = "act as the owner without the owner's secret";
        self.ask(move |engine| engine.refuse_stranger(Operation::ActAsOwner, what)).wait()
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
        self.begin_verification(if content { Scope::Everything } else { Scope::Rows })
    }

    fn begin_verification(&self, scope: Scope) -> (Pending<Report>, Arc<Progress>) {
        let progress = Arc::new(Progress::default());
        let (answer, pending) = mpsc::channel();
        let state = Verification::new(scope, Arc::clone(&progress));
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
}

impl Vault {
    /// Closes the vault for everybody who holds it: what waits is done, the closing is logged, all keys are wiped. Whoever
    /// asks later gets [`VaultError::Closed`].
    ///
    /// # Errors
    /// [`VaultError::Closed`] when it is closed already.
    pub fn shut(&self) -> Result<(), VaultError> {
        let shut = self.ask(|engine| {
            engine.shut = true;
            Ok(())
        });
        shut.wait()?;
        self.join();
        Ok(())
    }

    fn join(&self) {
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Vault {
    fn drop(&mut self) {
        self.jobs = None;
        self.join();
    }
}

/// The vault's thread.
fn run(mut engine: Engine, queue: &Receiver<Job>) {
    // By the clock, between two groups: a vault that is never idle does it too.
    let mut due = Instant::now() + IDLE;
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
            upkeep(&mut engine);
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

/// What nobody asks for, some of it at a time.
fn upkeep(engine: &mut Engine) {
    engine.idle();
    if engine.held.is_some() {
        alone(engine, |engine| engine.purge(limits::MAX_GROUP).map(|_| ()));
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
