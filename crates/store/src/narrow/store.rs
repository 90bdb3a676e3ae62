//! A whole store out of states that can only be replaced.

use super::blobs::Blobs;
use super::format::{Entry, Head, Rows};
use super::writer::{Job, NOBODY, Names, Writer, journal_id, page_id};
use super::{Adapters, IdentityPair, RESERVED};
use crate::adapter::{Page, Row, RowValue, Scan, Stats, Store, check_commit, check_sweep};
use crate::change::{ChangeSet, Key};
use crate::memory::MemoryStore;
use crate::{StoreError, Table, limits};
use async_trait::async_trait;
use core::fmt;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use stvor_base::Timestamp;
use stvor_crypto::{Secret, SystemRandom};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

/// A [`Store`] over a [`SessionStore`](super::SessionStore): see [the module](super) for what it promises.
///
/// ```
/// use std::collections::HashMap;
/// use std::sync::{Arc, Mutex};
/// use stvor_store::narrow::{Adapters, FingerprintStore, IdentityPair, IdentityStore, Narrow, ReplayCache, SessionStore};
/// use stvor_store::{ChangeSet, Key, RowValue, RowVersion, Store, StoreError, Table};
///
/// #[derive(Debug, Default)]
/// struct Mine {
///     states: Mutex<HashMap<String, Vec<u8>>>,
/// }
///
/// #[async_trait::async_trait]
/// impl SessionStore for Mine {
///     async fn save(&self, id: &str, state: &[u8]) -> Result<(), StoreError> {
///         self.states.lock().unwrap().insert(id.to_owned(), state.to_vec());
///         Ok(())
///     }
///     async fn load(&self, id: &str) -> Result<Option<Vec<u8>>, StoreError> {
///         Ok(self.states.lock().unwrap().get(id).cloned())
///     }
/// }
/// # #[async_trait::async_trait]
/// # impl ReplayCache for Mine {
/// #     async fn check_and_mark(&self, _: &str, _: &[u8]) -> Result<bool, StoreError> { Ok(false) }
/// # }
/// # #[async_trait::async_trait]
/// # impl FingerprintStore for Mine {
/// #     async fn store_fingerprint(&self, _: &str, _: &str) -> Result<(), StoreError> { Ok(()) }
/// #     async fn verify_fingerprint(&self, _: &str, _: &str) -> Result<bool, StoreError> { Ok(true) }
/// # }
/// # #[async_trait::async_trait]
/// # impl IdentityStore for Mine {
/// #     async fn identity_key_pair(&self) -> Result<IdentityPair, StoreError> {
/// #         let mut private = [0; 32];
/// #         private[31] = 1;
/// #         let key = stvor_crypto::p256::SigningKey::from_bytes(&stvor_crypto::Secret::new(private))?;
/// #         IdentityPair::new(key.public().as_bytes(), key.to_bytes().expose())
/// #     }
/// # }
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// let mine = Arc::new(Mine::default()); // it implements the other three, too
/// let adapters = Adapters::new(mine.clone(), mine.clone(), mine.clone(), mine.clone());
/// let key = Key::new(Table::Custom, *b"a", *b"b");
/// let store = Narrow::open(&adapters).await?;
/// let mut changes = ChangeSet::new();
/// changes.put(key.clone(), RowValue { bytes: b"sealed".to_vec(), version: RowVersion(1) });
/// store.commit(changes).await?;
/// store.close().await?;
///
/// let again = Narrow::open(&adapters).await?;
/// assert!(again.get(&[key]).await?[0].is_some());
/// # Ok::<(), StoreError>(())
/// # }).unwrap();
/// ```
pub struct Narrow {
    rows: Arc<MemoryStore>,
    names: Arc<Mutex<Names>>,
    jobs: mpsc::Sender<Job>,
    pair: IdentityPair,
}

impl fmt::Debug for Narrow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Narrow").finish_non_exhaustive()
    }
}

/// What was found, before anything is written.
struct Found {
    head: Head,
    names: HashMap<(Table, Vec<u8>), String>,
    /// Entries after the head, in order.
    entries: Vec<Entry>,
    /// The greatest number that was given out.
    seq: u64,
}

impl Narrow {
    /// Opens what the adapters hold, or begins anew where they hold nothing. A crash in the middle of a commit is repaired
    /// here.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when these adapters are open in this process; [`StoreError::Key`] with `WRONG_KEY` when the states
    /// were saved under another identity pair; [`StoreError::TooNew`]; [`StoreError::Corrupt`] and [`StoreError::Tampered`] when states are missing,
    /// older than they should be or altered; [`StoreError::Timeout`], [`StoreError::Answer`] or what an adapter met.
    pub async fn open(adapters: &Adapters) -> Result<Self, StoreError> {
        Self::open_as(adapters, crate::LAYOUTS).await
    }

    /// [`Narrow::open`] by a program that reads and writes these layouts: for tests, as [`crate::Sealed::open_as`].
    #[doc(hidden)]
    pub async fn open_as(adapters: &Adapters, layouts: u32) -> Result<Self, StoreError> {
        let lease = adapters.lease()?;
        let pair = adapters.identity_key_pair().await?;
        let blobs = Arc::new(Blobs::new(adapters.sessions(), &pair.private()));
        let rows = Arc::new(MemoryStore::new());
        let mut rng = SystemRandom::new();
        let mut found = match head(&blobs, layouts).await? {
            Some(head) => find(&blobs, head, &rows).await?,
            None => fresh(&blobs, &mut rng).await?,
        };
        // The head that makes the states this opening's says so, before any row of it is saved.
        found.head.layouts = layouts;
        let names = Arc::new(Mutex::new(Names::new(found.names)));
        let mut writer = Writer::new((Arc::clone(&blobs), Arc::clone(&rows), Arc::clone(&names)), found.head);
        writer.take(found.entries, found.seq)?;
        writer.own(*Secret::<16>::random(&mut rng)?.expose()).await?;
        let (jobs, waiting) = mpsc::channel(limits::NARROW_QUEUE);
        tokio::spawn(writer.run(waiting, lease));
        Ok(Self { rows, names, jobs, pair })
    }

    /// The pair that the states are sealed under.
    #[must_use]
    pub fn identity_pair(&self) -> &IdentityPair {
        &self.pair
    }

    /// Keeps the rows of these partitions under the id of a peer from now on. `partitions` are as this store sees them, that is
    /// hashed. Ids that begin with [`RESERVED`] and those past [`limits::MAX_NAMES`] stay with the other rows.
    pub fn name(&self, id: &str, partitions: impl IntoIterator<Item = (Table, Vec<u8>)>) {
        if id.is_empty() || id.starts_with(RESERVED) {
            return;
        }
        self.names.lock().unwrap_or_else(PoisonError::into_inner).add(id, partitions);
    }

    async fn ask<T>(
        &self,
        job: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Job,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.jobs.send(job(answer)).await.map_err(|_| StoreError::Closed)?;
        answered.await.map_err(|_| StoreError::Closed)?
    }
}

async fn head(blobs: &Blobs, layouts: u32) -> Result<Option<Head>, StoreError> {
    let bytes = blobs.load(&super::writer::head_id()).await.map_err(|error| match error {
        // The first state that is read tells whether the key is the right one.
        StoreError::Tampered { .. } => {
            stvor_keys::KeyError::Wrong { holder: stvor_keys::HolderKind::Identity.name() }.into()
        }
        other => other,
    })?;
    bytes.map(|bytes| Head::decode(&bytes, layouts)).transpose()
}

async fn fresh(blobs: &Arc<Blobs>, rng: &mut SystemRandom) -> Result<Found, StoreError> {
    // An entry of a journal is written after a head. Beginning anew would lose what belongs to it.
    let slots = load_all(blobs, (0..limits::JOURNAL_SLOTS).map(journal_id).collect()).await?;
    if slots.iter().any(Option::is_some) {
        return Err(StoreError::headless());
    }
    let store = *Secret::<16>::random(rng)?.expose();
    let head = Head { layouts: 1, store, owner: NOBODY, seq: 0, pages: Vec::new(), names: Vec::new() };
    Ok(Found { head, names: HashMap::new(), entries: Vec::new(), seq: 0 })
}

/// Loads states side by side, in the order asked.
async fn load_all(blobs: &Arc<Blobs>, ids: Vec<String>) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
    let mut found: Vec<Option<Vec<u8>>> = Vec::new();
    found.resize_with(ids.len(), || None);
    let mut waiting = ids.into_iter().enumerate();
    let mut loads = JoinSet::new();
    loop {
        while loads.len() < limits::NARROW_LOADS
            && let Some((index, id)) = waiting.next()
        {
            let blobs = Arc::clone(blobs);
            loads.spawn(async move { (index, blobs.load(&id).await) });
        }
        let Some(ended) = loads.join_next().await else { return Ok(found) };
        let (index, state) = ended.map_err(|_| StoreError::Adapter("sessions.load did not finish".into()))?;
        let state = state?;
        if let Some(slot) = found.get_mut(index) {
            *slot = state;
        }
    }
}

async fn find(blobs: &Arc<Blobs>, head: Head, rows: &MemoryStore) -> Result<Found, StoreError> {
    let missing = |what: &str| StoreError::corrupt(format!("{what} is missing or older than it should be"));
    let pages = load_all(blobs, head.pages.iter().map(|page| page_id(page.number)).collect()).await?;
    for (page, state) in head.pages.iter().zip(pages) {
        let held = state.map(|bytes| Rows::decode(&bytes)).transpose()?;
        let held = held.filter(|held| held.store == head.store && held.seq == page.seq);
        rows.restore(held.ok_or_else(|| missing("a page of its rows"))?.rows)?;
    }
    let mut names = HashMap::new();
    // Which entry of the journal is in the rows of a name already.
    let mut newest: HashMap<String, u64> = HashMap::new();
    let states = load_all(blobs, head.names.iter().map(|name| name.id.clone()).collect()).await?;
    for (name, state) in head.names.iter().zip(states) {
        let held = state.map(|bytes| Rows::decode(&bytes)).transpose()?;
        let held = held.filter(|held| held.store == head.store && held.seq >= name.seq);
        let held = held.ok_or_else(|| missing("the state of a peer"))?;
        newest.insert(name.id.clone(), held.seq);
        rows.restore(held.rows)?;
        names.extend(name.partitions.iter().map(|partition| (partition.clone(), name.id.clone())));
    }
    let slots = load_all(blobs, (0..limits::JOURNAL_SLOTS).map(journal_id).collect()).await?;
    let mut entries = BTreeMap::new();
    for state in slots.into_iter().flatten() {
        let entry = Entry::decode(&state)?;
        if entry.store == head.store && entry.owner == head.owner && entry.seq > head.seq {
            entries.insert(entry.seq, entry);
        }
    }
    let seq = entries.keys().next_back().copied().unwrap_or(head.seq);
    // Backwards, so that numbers that did not count are passed over.
    let mut chain = Vec::new();
    let mut next = seq;
    while next > head.seq {
        let mut entry = entries.remove(&next).ok_or_else(|| missing("an entry of its journal"))?;
        next = entry.previous;
        entry.changes.retain(|change| {
            let partition = (change.key.table, change.key.partition.clone());
            let held = names.get(&partition).and_then(|id| newest.get(id));
            held.is_none_or(|held| *held < entry.seq)
        });
        chain.push(entry);
    }
    chain.reverse();
    Ok(Found { head, names, entries: chain, seq })
}

#[async_trait]
impl Store for Narrow {
    async fn get(&self, keys: &[Key]) -> Result<Vec<Option<Row>>, StoreError> {
        self.rows.get(keys).await
    }

    async fn scan(&self, scan: Scan) -> Result<Page<Row>, StoreError> {
        self.rows.scan(scan).await
    }

    async fn commit(&self, changes: ChangeSet<RowValue>) -> Result<(), StoreError> {
        check_commit(&changes)?;
        self.ask(|answer| Job::Commit(changes, answer)).await
    }

    async fn sweep(&self, now: Timestamp, limit: usize) -> Result<usize, StoreError> {
        check_sweep(limit)?;
        self.ask(|answer| Job::Sweep((now, limit), answer)).await
    }

    async fn stats(&self) -> Result<Stats, StoreError> {
        self.rows.stats().await
    }

    async fn close(&self) -> Result<(), StoreError> {
        match self.ask(Job::Close).await {
            // Closed before.
            Err(StoreError::Closed) => Ok(()),
            closed => closed,
        }
    }
}
