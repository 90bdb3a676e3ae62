//! A vault, open: a handle that any thread may use. One thread does the work; operations that wait at one time share a
//! commit.

mod log;
mod memories;
mod owner;
mod thread;

use core::fmt;
use core::sync::atomic::AtomicU64;
use core::time::Duration;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use stvor_crypto::SystemRandom;

use crate::VaultError;
use crate::clock::{Clock, SystemClock};
use crate::engine::Engine;
use crate::engine::agents::Caller;
use crate::engine::status::Memory;
use crate::gates::boundary::Boundary;
use crate::keys::{self, NewKeys};
use crate::memory::Header;
use crate::metrics::AlertHook;
use crate::storage::{CheckpointFile, Database, Lock, make_directory};
use crate::verify::{Progress, Summary};

pub(crate) const DATABASE: &str = "vault.db";
pub(crate) const CHECKPOINTS: &str = "checkpoints";
/// Requests that wait at one time.
const QUEUE: usize = 4_096;

/// A plaintext that an agent stores, or that is about to be given out: a content, or something that is known of a memory (its
/// source, an intent, a name or value of its metadata).
pub struct Inspection<'a> {
    /// Who stores it, or gets it.
    pub caller: &'a Caller,
    /// The memory.
    pub header: &'a Header,
    /// The plaintext.
    pub plaintext: &'a [u8],
    /// Whether it is being stored.
    pub stores: bool,
}

impl fmt::Debug for Inspection<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inspection")
            .field("caller", &self.caller)
            .field("stores", &self.stores)
            .finish_non_exhaustive()
    }
}

/// Something that looks at a plaintext when an agent stores it and before anybody gets it, and may refuse with a reason.
pub type Auditor = dyn Fn(&Inspection<'_>) -> Result<(), String> + Send + Sync;

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
    /// Whether what this process holds in memory may come into the swap, for the state: [`crate::daemon::keep_memory`] says.
    pub memory: Option<Memory>,
    /// Who looks at plaintexts when agents store them, and before they are given out.
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
            memory: None,
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

    /// Waits for it, and tells how far it is: every time that `span` passes, and at its end, so that short work is seen, too.
    pub(crate) fn wait_telling(
        self,
        span: Duration,
        progress: &Progress,
        mut tell: impl FnMut(u64, u64),
    ) -> Result<T, VaultError> {
        let mut say = || {
            let (done, total) = progress.now();
            tell(done, total);
        };
        let answer = self.wait_while(span, &mut say)?;
        say();
        Ok(answer)
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
    /// [`VaultError::Exists`], [`VaultError::Io`] (also where the file system keeps no permissions), [`VaultError::Key`].
    pub fn create(path: &Path, new: &NewKeys<'_>) -> Result<(), VaultError> {
        make_directory(path)?;
        let lock = Lock::take(path)?;
        lock.must_be_private(path)?;
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
            std::thread::Builder::new().name("stvor-vault".into()).spawn(move || thread::run(engine, &queue));
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
