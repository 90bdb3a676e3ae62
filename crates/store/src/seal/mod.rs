//! Envelope encryption: what stands between the SDK, which sees names and plaintext, and an adapter, which sees
//! neither.
//!
//! # Keys
//!
//! The random data key of a store is wrapped by a [`KeyHolder`] and stands in the store's header. From it and the store
//! id HKDF-SHA256 derives one key that hashes names and one AES-256-GCM key for every *epoch*: each opening of the
//! store for writing takes the next epoch number, with a commit that fails if another process took it first. Nonces
//! are random, for which SP 800-38D allows 2^32 seals under a key; a row version is `epoch << 32 | count of seals in
//! it`, so the count cannot pass the bound: at 2^32 seals the store takes the next epoch by itself. A store thus needs
//! no rekeying for wear, ever. A data key that may have leaked is replaced by [`Sealed::rotate`]: a fresh one seals every
//! epoch from then on, and rows of earlier epochs are sealed anew one by one.
//!
//! # What a row is bound to
//!
//! The associated data of a row holds the format, the store id, its table, hashed partition, sort key, row version and
//! expiry. A row that was altered, copied to another place, taken from another store, or put back under another version
//! does not open: [`StoreError::Tampered`]. Replacing a row *with its version* by an older copy of both, or the whole
//! database by an older copy, or removing rows, cannot be seen by sealing alone; the counter that the relay returns
//! shows a rolled-back database.

mod anchor;
mod cipher;
mod header;
mod put_back;
mod rotate;

pub(crate) use header::Layouts;
pub use header::{FORMAT, LAYOUTS};
pub use rotate::Rotation;

use crate::adapter::{Page, Row, RowValue, Scan, Stats, Store};
use crate::change::{ChangeSet, Expect, Key, Op, RowVersion};
use crate::{SecretBytes, StoreError, Table, limits};
use anchor::Anchor;
pub(crate) use anchor::removed_for_good;
use cipher::{Keys, Place};
use core::future::poll_fn;
use core::pin::pin;
use core::task::Poll;
use header::{Epoch, Header};
use put_back::Incarnation;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use stvor_base::Timestamp;
use stvor_crypto::{Secret, SystemRandom};
use stvor_keys::{HolderKind, KeyHolder};

/// A row that was read and opened.
#[derive(Debug, PartialEq, Eq)]
pub struct Record {
    /// Where it stands, the partition as the reader named it.
    pub key: Key,
    /// What it holds.
    pub value: SecretBytes,
    /// Which write made it: give it to [`Expect::Version`] to notice a change in between.
    pub version: RowVersion,
    /// From when on sweeps remove it.
    pub expires: Option<Timestamp>,
}

/// What the header of a store says in clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreInfo {
    /// The random id of the store.
    pub id: [u8; 16],
    /// What kind of key opens it.
    pub holder: HolderKind,
    /// How often its data key was replaced.
    pub rotations: u32,
    /// Whether rows that are sealed under the data key before are left: go on with [`Sealed::rotate`].
    pub rotating: bool,
}

impl StoreInfo {
    fn of(header: &Header) -> Self {
        let rotated = header.rotated.as_ref();
        Self {
            id: header.store,
            holder: header.key.kind(),
            rotations: rotated.map_or(0, |rotated| rotated.times),
            rotating: rotated.is_some_and(|rotated| rotated.previous.is_some()),
        }
    }
}

struct Clock {
    epoch: Epoch,
    /// Seals done in this epoch.
    count: u64,
    rng: SystemRandom,
}

/// A store whose values are sealed and whose partitions are hashed. Cheap to share behind an `Arc`.
pub struct Sealed {
    store: Arc<dyn Store>,
    keys: Keys,
    /// `None`: nobody opens it a second time, so it has no header.
    anchor: Option<Anchor>,
    incarnation: Incarnation,
    clock: Mutex<Clock>,
    patience: Duration,
    /// Other processes may have it open, too.
    shared: bool,
}

impl core::fmt::Debug for Sealed {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Sealed").field("store", &self.store).finish_non_exhaustive()
    }
}

/// Runs the slow work of a key holder off the executor.
async fn off_executor<T, F>(work: F) -> Result<T, StoreError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, StoreError> + Send + 'static,
{
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| StoreError::Adapter(format!("a key operation did not finish: {error}")))?
}

/// The header of a store that a program of these layouts can read.
async fn header(store: &dyn Store, layouts: u32) -> Result<Option<Header>, StoreError> {
    let rows = store.get(&[Header::key(), Layouts::key()]).await?;
    let [header, found] = &rows[..] else {
        return Err(StoreError::Adapter("it answered another number of rows than asked".into()));
    };
    Layouts::read(found.as_ref(), layouts)?;
    header.as_ref().map(|row| Header::decode(&row.value.bytes)).transpose()
}

/// [`header`], but `None` is said only of a store without any row, or of one that was removed for good.
async fn header_or_empty(store: &dyn Store, layouts: u32) -> Result<Option<Header>, StoreError> {
    if let Some(header) = header(store, layouts).await? {
        return Ok(Some(header));
    }
    if store.stats().await?.rows == 0 || Anchor::was_removed(store).await? {
        return Ok(None);
    }
    // Perhaps another process has just made it.
    header(store, layouts).await?.map_or(Err(StoreError::Emptied), |header| Ok(Some(header)))
}

/// The keys of a store that was sealed before.
async fn unwrapped(header: Header, holder: Arc<dyn KeyHolder>) -> Result<Keys, StoreError> {
    off_executor(move || header.open(holder.as_ref())).await
}

/// Seals an empty store: a conflict if another process did so meanwhile.
async fn first_header(
    store: &dyn Store,
    holder: Arc<dyn KeyHolder>,
    layouts: u32,
) -> Result<Keys, StoreError> {
    let (header, keys) = off_executor(move || {
        let mut rng = SystemRandom::new();
        let data_key = Secret::random(&mut rng)?;
        let id = *Secret::<16>::random(&mut rng)?.expose();
        let key = rotate::wrap(holder.as_ref(), &data_key, &id)?;
        Ok((Header::first(id, key), Keys::new(id, data_key)))
    })
    .await?;
    let mut first = ChangeSet::new();
    first.ops.extend(Anchor::untouched());
    first
        .push(header.write(0, Expect::Absent))
        .push(Epoch(0).write(Expect::Absent))
        .push(Anchor::of(header.store, layouts).write());
    first.ops.extend(Layouts::first(layouts));
    store.commit(first).await?;
    Ok(keys)
}

impl Sealed {
    /// What the header of `store` says; `None` when nothing was sealed in it yet.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`], [`StoreError::TooNew`], or what the adapter met.
    pub async fn info(store: &dyn Store) -> Result<Option<StoreInfo>, StoreError> {
        Ok(header(store, LAYOUTS).await?.map(|header| StoreInfo::of(&header)))
    }

    /// As [`Sealed::info`], but `None` is said only of a store without any row, or of one that was removed for good.
    ///
    /// # Errors
    /// As [`Sealed::info`]; [`StoreError::Emptied`] when rows are there and no header is.
    pub async fn info_or_empty(store: &dyn Store) -> Result<Option<StoreInfo>, StoreError> {
        Ok(header_or_empty(store, LAYOUTS).await?.map(|header| StoreInfo::of(&header)))
    }

    /// Opens a store that was sealed before, or seals an empty one, for `holder`, which is tried before anything is written. Of several
    /// that seal an empty one at once one does, and the others open what it sealed.
    ///
    /// # Errors
    /// [`StoreError::Key`] with `WRONG_KEY` when another key opens it, and [`StoreError::TooNew`] when its records have layouts
    /// above [`LAYOUTS`], both before anything is written; [`StoreError::Corrupt`]; [`StoreError::Emptied`];
    /// [`StoreError::Conflict`] when more processes than anybody runs open it at this moment; [`StoreError::KeysReplaced`] when its
    /// data key was replaced meanwhile: it has to be opened again.
    pub async fn open(store: Arc<dyn Store>, holder: Arc<dyn KeyHolder>) -> Result<Self, StoreError> {
        Self::open_as(store, holder, LAYOUTS).await
    }

    /// [`Sealed::open`] by a program that reads and writes these layouts: for tests of what programs of other versions meet.
    #[doc(hidden)]
    pub async fn open_as(
        store: Arc<dyn Store>,
        holder: Arc<dyn KeyHolder>,
        layouts: u32,
    ) -> Result<Self, StoreError> {
        let keys = match header_or_empty(store.as_ref(), layouts).await? {
            Some(header) => unwrapped(header, holder).await?,
            None => match first_header(store.as_ref(), Arc::clone(&holder), layouts).await {
                Err(StoreError::Conflict { .. }) => {
                    let header = header(store.as_ref(), layouts).await?.ok_or(StoreError::Emptied)?;
                    unwrapped(header, holder).await?
                }
                made => made?,
            },
        };
        let anchor = Anchor::of(keys.store(), layouts);
        anchor.cast(store.as_ref()).await?;
        let epoch = next_epoch(store.as_ref(), Some(&anchor)).await?;
        let clock = Clock { epoch, count: 0, rng: SystemRandom::new() };
        let sealed = Self {
            store,
            keys,
            anchor: Some(anchor),
            incarnation: Incarnation::first(),
            clock: Mutex::new(clock),
            patience: limits::ADAPTER_PATIENCE,
            shared: false,
        };
        // A rotation that was begun since the header was read would take what is sealed in this epoch, under the key before, for
        // sealed anew.
        let (_, header) = sealed.header().await?;
        sealed.refuse_replaced(&header)?;
        Ok(sealed)
    }

    /// An empty store in memory under a key that nobody keeps: for tests and for apps that want nothing on disk.
    ///
    /// # Errors
    /// [`StoreError::Crypto`].
    pub fn in_memory() -> Result<Self, StoreError> {
        Self::ephemeral(Arc::new(crate::MemoryStore::new()))
    }

    /// Seals an empty store under a key that nobody keeps: it can not be opened again.
    ///
    /// # Errors
    /// [`StoreError::Crypto`].
    pub fn ephemeral(store: Arc<dyn Store>) -> Result<Self, StoreError> {
        let mut rng = SystemRandom::new();
        let id = *Secret::<16>::random(&mut rng)?.expose();
        let keys = Keys::new(id, Secret::random(&mut rng)?);
        let clock = Clock { epoch: Epoch(1), count: 0, rng };
        Ok(Self {
            store,
            keys,
            anchor: None,
            incarnation: Incarnation::first(),
            clock: Mutex::new(clock),
            patience: limits::ADAPTER_PATIENCE,
            shared: false,
        })
    }

    /// Says that several processes may have this store open at once. What they share is then told apart by the versions of
    /// its rows alone: of a change set that was given up ([`StoreError::Timeout`], [`StoreError::Uncertain`]) what is read
    /// afterwards does not say whether it will still be applied. Of a store that one opening has to itself it does.
    #[must_use]
    pub fn shared(mut self, shared: bool) -> Self {
        self.shared = shared;
        self
    }

    /// Says that an opening before this one, which ended, may have given a commit up that is on its way still: nothing of it
    /// lands once this one has read or written anything.
    #[must_use]
    pub(crate) fn after_another(self) -> Self {
        if let Some(anchor) = &self.anchor {
            anchor.doubt();
        }
        self
    }

    /// Bounds what the adapter may take to answer, [`limits::ADAPTER_PATIENCE`] if nothing is said. One that hangs does not
    /// hold a conversation for ever. The adapters of this crate have shorter bounds of their own.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    async fn in_time<T>(
        &self,
        call: &'static str,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let mut work = pin!(work);
        // What is there at once needs no clock, which a runtime may lack.
        let answer = match poll_fn(|context| Poll::Ready(work.as_mut().poll(context))).await {
            Poll::Ready(answer) => answer,
            Poll::Pending => tokio::time::timeout(self.patience, work)
                .await
                .unwrap_or(Err(StoreError::Timeout { call, after: self.patience })),
        };
        match answer {
            // The adapter may see it by itself.
            Err(StoreError::Emptied) => Err(self.found_emptied().await),
            Err(StoreError::PutBack) => Err(self.found_put_back().await),
            answer => answer,
        }
    }

    /// The random id of this store.
    #[must_use]
    pub fn id(&self) -> [u8; 16] {
        self.keys.store()
    }

    /// The adapter below.
    #[must_use]
    pub fn adapter(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Where the adapter keeps the row of `key`: for tests and tools that look at a store from below.
    #[doc(hidden)]
    #[must_use]
    pub fn key_on_disk(&self, key: &Key) -> Key {
        self.keys.key(key)
    }

    /// A name made fit for a sort key: 32 bytes that tell nothing about it, always the same in this store and table.
    #[must_use]
    pub fn tag(&self, table: Table, name: &[u8]) -> [u8; 32] {
        self.keys.tag(1, table, name)
    }

    /// The rows under `keys`, in the order asked, as of one moment.
    ///
    /// # Errors
    /// [`StoreError::Tampered`], [`StoreError::Limit`], or what the adapter met.
    pub async fn get(&self, keys: &[Key]) -> Result<Vec<Option<Record>>, StoreError> {
        keys.iter().try_for_each(refuse_header)?;
        self.refuse_lost()?;
        let hashed: Vec<Key> = keys.iter().map(|key| self.keys.key(key)).collect();
        let rows = self.in_time("get", async {
            self.settle().await?;
            self.store.get(&hashed).await
        });
        let rows = rows.await?;
        if rows.len() != keys.len() {
            return Err(StoreError::Adapter("it answered another number of rows than asked".into()));
        }
        let open = |((row, hashed), key): ((Option<Row>, &Key), &Key)| {
            let opened = row.map(|row| self.open_row(key.clone(), &hashed.partition, row));
            opened.transpose().map_err(tampered)
        };
        rows.into_iter().zip(&hashed).zip(keys).map(open).collect()
    }

    /// The row under one key.
    ///
    /// # Errors
    /// As [`Sealed::get`].
    pub async fn one(&self, key: &Key) -> Result<Option<Record>, StoreError> {
        Ok(self.get(core::slice::from_ref(key)).await?.pop().flatten())
    }

    /// One page of a partition, in order of the sort key.
    ///
    /// # Errors
    /// As [`Sealed::get`].
    pub async fn scan(&self, scan: Scan) -> Result<Page<Record>, StoreError> {
        let page = self.page(scan).await?;
        let rows = page.rows.into_iter().map(|row| row.map_err(tampered)).collect::<Result<_, _>>()?;
        Ok(Page { rows, more: page.more })
    }

    /// One page; of a row that does not open, the key.
    async fn page(&self, scan: Scan) -> Result<Page<Result<Record, Key>>, StoreError> {
        scan.check()?;
        refuse_header_table(scan.table)?;
        self.refuse_lost()?;
        let (table, name) = (scan.table, scan.partition.clone());
        let hashed = self.keys.tag(0, table, &name);
        let scan = Scan { partition: hashed.to_vec(), ..scan };
        let page = self.in_time("scan", async {
            self.settle().await?;
            self.store.scan(scan).await
        });
        let page = page.await?;
        let open = |row: Row| {
            let key = Key::new(table, name.as_slice(), row.key.sort.as_slice());
            self.open_row(key, &hashed, row)
        };
        let rows = page.rows.into_iter().map(open).collect();
        Ok(Page { rows, more: page.more })
    }

    /// Every row of a range, page by page, up to `limit` of them.
    ///
    /// # Errors
    /// As [`Sealed::get`].
    pub async fn scan_all(&self, scan: Scan, limit: usize) -> Result<Vec<Record>, StoreError> {
        let rows = self.scan_each(scan, limit).await?;
        rows.into_iter().map(|row| row.map_err(tampered)).collect()
    }

    /// [`Sealed::scan_all`], where a row that does not open ([`StoreError::Tampered`]) holds none of the others back: its key is in its
    /// place. For callers that a missing row can not lead astray.
    ///
    /// # Errors
    /// As [`Sealed::get`], but for [`StoreError::Tampered`].
    pub async fn scan_each(
        &self,
        mut scan: Scan,
        limit: usize,
    ) -> Result<Vec<Result<Record, Key>>, StoreError> {
        let mut rows: Vec<Result<Record, Key>> = Vec::new();
        loop {
            scan.limit = (limit - rows.len()).min(limits::MAX_SCAN);
            if scan.limit == 0 {
                return Ok(rows);
            }
            let page = self.page(scan.clone()).await?;
            rows.extend(page.rows);
            let Some(last) = rows.last().filter(|_| page.more) else { return Ok(rows) };
            let last = match last {
                Ok(record) => &record.key,
                Err(key) => key,
            };
            let sort = last.sort.clone();
            scan = if scan.reverse { scan.before(sort) } else { scan.after(sort) };
        }
    }

    /// Seals and applies a change set, whole or not at all. When this returns, it is durable. All rows written get the
    /// version returned.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] with the index of the operation, [`StoreError::Full`], [`StoreError::Limit`], or what
    /// the adapter met. In all of these nothing was applied, but after an [`StoreError::Io`] of a failed sync or a lost
    /// lock that shows only when the store is opened again, which it has to be: it accepts nothing more. The same after
    /// [`StoreError::Emptied`]: the store that was opened is not there any more, and nothing is written where it was. After
    /// [`StoreError::Uncertain`] and [`StoreError::Timeout`] it may have been applied: what is read next tells, and if it
    /// was not applied by then it never is (but see [`Sealed::shared`]). The same when this future is dropped.
    pub async fn commit(&self, changes: ChangeSet) -> Result<RowVersion, StoreError> {
        changes.check(limits::MAX_PLAIN_VALUE, SecretBytes::len)?;
        changes.ops.iter().try_for_each(|op| refuse_header_table(op.table()))?;
        let _gate = self.keys.gate.read().await;
        loop {
            let taken = {
                let mut clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
                take_version(&mut clock, changes.len())
            };
            if let Some(version) = taken {
                let sealed = self.seal(changes, version)?;
                self.in_time("commit", self.guarded(sealed)).await?;
                return Ok(version);
            }
            let epoch = next_epoch(self.store.as_ref(), self.anchor.as_ref()).await?;
            let mut clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
            if epoch.0 > clock.epoch.0 {
                (clock.epoch, clock.count) = (epoch, 0);
            }
        }
    }

    fn seal(&self, changes: ChangeSet, version: RowVersion) -> Result<ChangeSet<RowValue>, StoreError> {
        let mut clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        let mut seal = |op: Op<SecretBytes>| {
            Ok(match op {
                Op::Put { key, value, expires, expect } => {
                    let key = self.keys.key(&key);
                    let expires = expires.map(|at| at.min(limits::LATEST_EXPIRY));
                    let place = Place {
                        table: key.table,
                        partition: &key.partition,
                        sort: &key.sort,
                        version,
                        expires,
                    };
                    let value = self.keys.seal(&place, value, &mut clock.rng)?;
                    Op::Put { key, value, expires, expect }
                }
                Op::Delete { key, expect } => Op::Delete { key: self.keys.key(&key), expect },
                Op::Check { key, expect } => Op::Check { key: self.keys.key(&key), expect },
                Op::DeletePartition { table, partition } => {
                    Op::DeletePartition { table, partition: self.keys.tag(0, table, &partition).to_vec() }
                }
                Op::DeleteTable { table } => Op::DeleteTable { table },
            })
        };
        changes.ops.into_iter().map(&mut seal).collect()
    }

    /// A row in open; if it is not as it was sealed there, the key.
    fn open_row(&self, key: Key, hashed: &[u8], row: Row) -> Result<Record, Key> {
        let version = row.value.version;
        let place =
            Place { table: key.table, partition: hashed, sort: &key.sort, version, expires: row.expires };
        let opened = self.keys.open(&place, row.value.bytes);
        match opened {
            Some(value) => Ok(Record { key, value, version, expires: row.expires }),
            None => Err(key),
        }
    }

    /// Marks `name` in `table`, and says whether it was not marked before: of any number of calls with one name, from
    /// any number of processes on the store, exactly one gets `true` until `until`; from then on the name is free again.
    /// The mark is durable when this returns. [`Table::ReplayMark`] is for the replay window.
    ///
    /// ```
    /// use stvor_base::Timestamp;
    /// use stvor_store::{Sealed, Table};
    ///
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let (store, now) = (Sealed::in_memory()?, Timestamp::from_millis(1_000));
    /// let until = Timestamp::from_millis(301_000);
    /// assert!(store.check_and_mark((Table::ReplayMark, b"message 7"), now, until).await?);
    /// assert!(!store.check_and_mark((Table::ReplayMark, b"message 7"), now, until).await?);
    /// # Ok::<(), stvor_store::StoreError>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    /// As [`Sealed::commit`], but for the conflict: who loses a race gets `false`.
    pub async fn check_and_mark(
        &self,
        (table, name): (Table, &[u8]),
        now: Timestamp,
        until: Timestamp,
    ) -> Result<bool, StoreError> {
        let tag = self.tag(table, name);
        let key = Key::new(table, b"marks".as_slice(), tag);
        let put = |expect| {
            let put = Op::put(key.clone(), SecretBytes::from_slice(b"")).expecting(expect).expiring(until);
            self.commit([put].into_iter().collect())
        };
        match put(Expect::Absent).await {
            Err(StoreError::Conflict { .. }) => {}
            marked => return marked.map(|_| true),
        }
        let expect = match self.one(&key).await? {
            Some(mark) if mark.expires.is_none_or(|at| at > now) => return Ok(false),
            Some(old) => Expect::Version(old.version),
            None => Expect::Absent,
        };
        match put(expect).await {
            Err(StoreError::Conflict { .. }) => Ok(false),
            marked => marked.map(|_| true),
        }
    }

    /// Removes every row of every table but the header: the account is gone, the key opens an empty store.
    ///
    /// # Errors
    /// As [`Sealed::commit`].
    pub async fn wipe(&self) -> Result<(), StoreError> {
        let tables = Table::ALL.into_iter().filter(|table| *table != Table::Header);
        self.commit(tables.map(|table| Op::DeleteTable { table }).collect()).await.map(|_| ())
    }

    /// Removes at most `limit` rows whose time has come; returns how many.
    ///
    /// # Errors
    /// As [`Store::sweep`].
    pub async fn sweep(&self, now: Timestamp, limit: usize) -> Result<usize, StoreError> {
        self.store.sweep(now, limit).await
    }

    /// How much is stored.
    ///
    /// # Errors
    /// As [`Store::stats`].
    pub async fn stats(&self) -> Result<Stats, StoreError> {
        self.store.stats().await
    }

    /// Finishes what was handed in and lets go of files and locks.
    ///
    /// # Errors
    /// As [`Store::close`].
    pub async fn close(&self) -> Result<(), StoreError> {
        self.store.close().await
    }
}

fn tampered(key: Key) -> StoreError {
    StoreError::Tampered { table: key.table }
}

fn refuse_header(key: &Key) -> Result<(), StoreError> {
    key.check().and_then(|()| refuse_header_table(key.table))
}

fn refuse_header_table(table: Table) -> Result<(), StoreError> {
    if table == Table::Header {
        return Err(StoreError::Limit {
            what: "the number of the header table, which is the store's own,",
            limit: 0,
        });
    }
    Ok(())
}

/// The version of a commit of `ops` operations, or `None` when the epoch has no room for so many seals.
fn take_version(clock: &mut Clock, ops: usize) -> Option<RowVersion> {
    let seals = (ops as u64).max(1);
    let count = clock.count.checked_add(seals).filter(|count| *count < limits::MAX_SEALS_PER_EPOCH)?;
    clock.count = count;
    Some(RowVersion(u64::from(clock.epoch.0) << 32 | count))
}

/// Takes an epoch for this opening alone, and raises the number of the layouts with it where that is lower than this opening's. Who loses
/// a race for one tries the next: each loss is another's gain.
async fn next_epoch(store: &dyn Store, anchor: Option<&Anchor>) -> Result<Epoch, StoreError> {
    let mut tries = limits::MAX_EPOCH_TRIES;
    loop {
        // The header and the first epoch were one change set. Beginning anew would give versions out a second time.
        let row = store.get(&[Epoch::key()]).await?.pop().flatten();
        let row = row.ok_or_else(|| StoreError::corrupt("the row of its epoch is gone"))?;
        let epoch = Epoch::decode(&row.value.bytes)?.next()?;
        let mut changes = ChangeSet::new();
        changes.push(epoch.write(Expect::Version(row.value.version)));
        // No seal has the count 0.
        let agreed = anchor.map(|anchor| anchor.agree(RowVersion(u64::from(epoch.0) << 32)));
        let (ops, raised) = agreed.unwrap_or_default();
        changes.ops.extend(ops);
        tries -= 1;
        match store.commit(changes).await {
            Err(StoreError::Conflict { .. }) if tries > 0 => {
                if let Some(anchor) = anchor
                    && !anchor.take_version(store).await?
                {
                    return Err(StoreError::Emptied);
                }
            }
            taken => {
                taken?;
                if let Some(anchor) = anchor {
                    anchor.took(epoch);
                    anchor.agreed(raised);
                }
                return Ok(epoch);
            }
        }
    }
}
