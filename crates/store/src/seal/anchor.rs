//! What shows that a store is still the one that was opened.
//!
//! A row in clear names the store; every commit of an opening expects it, in the same change set. A shared store can be emptied
//! under a client: by hand, by a server that restarts without what it held, by an eviction. Then nothing is committed any
//! more, into what is empty as little as into what somebody else began there since.
//!
//! The same row puts an end to commits that were given up, because no answer came or nobody waits for it any more: such a
//! one may land at any time later, and what it changes was perhaps read, as it was before, by who goes on without it. So
//! before anything is read or written after that, the row gets another version, which the one that was given up does not
//! expect. Either it landed before and is seen, or it never lands. On stores that several processes may have open the rows
//! that they share have versions for that.
//!
//! And it gets another version when the number of the store's layouts is raised: a program of lower layouts that has the store open
//! meets it with its next commit, and writes nothing into rows that it could not read.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::header::{Epoch, Header, Layouts};
use super::rotate::no_room;
use super::{Sealed, take_version};
use crate::adapter::{RowValue, Store};
use crate::change::{ChangeSet, Expect, Key, Op, RowVersion};
use crate::{StoreError, Table, limits};
use std::sync::{Mutex, PoisonError};
use tokio::sync::watch;
use tokio::time::Instant;

const CHECKS: usize = 2;

/// The row that names the store, and whether it was found to be gone.
#[derive(Debug)]
pub(super) struct Anchor {
    id: [u8; 16],
    lost: watch::Sender<bool>,
    /// As the row has it, as far as we know.
    version: AtomicU64,
    /// The layouts that this opening writes, and those that the store has, as far as we know.
    layouts: u32,
    found: AtomicU32,
    /// How many commits were given up, and how many of these can not land any more.
    given_up: AtomicU64,
    settled: AtomicU64,
    settling: tokio::sync::Mutex<()>,
    /// The epochs that this opening took: the upper halves of the versions that it gives the row.
    epochs: Mutex<Vec<u64>>,
    /// How often the row was found to have a version that another opening gave it.
    others: AtomicU64,
}

/// A commit that is under way. Dropped before its answer came, it may land at any time.
struct UnderWay<'a>(Option<&'a Anchor>);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if let Some(anchor) = self.0 {
            anchor.doubt();
        }
    }
}

impl Anchor {
    pub(super) fn of(id: [u8; 16], layouts: u32) -> Self {
        // Different for each store, and never negative in a database: the id is random.
        let [a, b, c, d, e, f, g, h, ..] = id;
        let version = u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 1;
        Self {
            id,
            lost: watch::Sender::new(false),
            version: AtomicU64::new(version),
            layouts,
            found: AtomicU32::new(layouts),
            given_up: AtomicU64::new(0),
            settled: AtomicU64::new(0),
            settling: tokio::sync::Mutex::default(),
            epochs: Mutex::default(),
            others: AtomicU64::new(0),
        }
    }

    fn key() -> Key {
        Key::new(Table::Header, *b"store", *b"anchor")
    }

    /// Left where a store was, so that the next start does not begin anew as if there had been none.
    fn stone() -> Key {
        Key::new(Table::Header, *b"store", *b"emptied")
    }

    /// Left by who removed a store for good: a client that slept meanwhile is not to take it for an accident.
    fn removed() -> Key {
        Key::new(Table::Header, *b"store", *b"removed")
    }

    fn version(&self) -> RowVersion {
        RowVersion(self.version.load(Ordering::SeqCst))
    }

    fn row(&self, version: RowVersion, expect: Expect) -> Op<RowValue> {
        let value = RowValue { bytes: self.id.to_vec(), version };
        Op::Put { key: Self::key(), value, expires: None, expect }
    }

    pub(super) fn write(&self) -> Op<RowValue> {
        self.row(self.version(), Expect::Absent)
    }

    pub(super) fn doubt(&self) {
        self.given_up.fetch_add(1, Ordering::SeqCst);
    }

    fn in_doubt(&self) -> bool {
        self.given_up.load(Ordering::SeqCst) != self.settled.load(Ordering::SeqCst)
    }

    /// What every commit begins with. Without its header the store could not be opened again, whatever else is there.
    fn checks(&self) -> [Op<RowValue>; CHECKS] {
        [Op::check(Self::key(), Expect::Version(self.version())), Op::check(Header::key(), Expect::Present)]
    }

    /// What the first commit of a fresh store begins with.
    pub(super) fn untouched() -> [Op<RowValue>; 2] {
        [Op::check(Self::stone(), Expect::Absent), Op::delete(Self::removed())]
    }

    /// Whether nothing is left in `store` but the note that one was removed for good.
    pub(super) async fn was_removed(store: &dyn Store) -> Result<bool, StoreError> {
        let removed = store.get(&[Self::removed()]).await?.pop().flatten().is_some();
        Ok(removed && store.stats().await?.rows == 1)
    }

    /// The version of the row and the layouts, if the store is still this one. It is refused if the layouts are newer.
    async fn found(&self, store: &dyn Store) -> Result<Option<(RowVersion, Layouts)>, StoreError> {
        let rows = store.get(&[Self::key(), Header::key(), Layouts::key()]).await?;
        let [Some(anchor), Some(_), layouts] = &rows[..] else { return Ok(None) };
        if anchor.value.bytes != self.id {
            return Ok(None);
        }
        Ok(Some((anchor.value.version, Layouts::read(layouts.as_ref(), self.layouts)?)))
    }

    /// Takes the version of the row for what it is, if the store is still this one; whether it is. One at a time does.
    pub(super) async fn take_version(&self, store: &dyn Store) -> Result<bool, StoreError> {
        let found = self.found(store).await?;
        if let Some((version, layouts)) = found {
            let before = self.version.swap(version.0, Ordering::SeqCst);
            if before != version.0 && !self.is_own(version) {
                self.others.fetch_add(1, Ordering::SeqCst);
            }
            self.found.store(layouts.0, Ordering::SeqCst);
        }
        Ok(found.is_some())
    }

    /// This opening has this epoch for itself.
    pub(super) fn took(&self, epoch: Epoch) {
        self.epochs.lock().unwrap_or_else(PoisonError::into_inner).push(u64::from(epoch.0));
    }

    /// Whether it was this opening that gave the row this version.
    fn is_own(&self, version: RowVersion) -> bool {
        self.epochs.lock().unwrap_or_else(PoisonError::into_inner).contains(&(version.0 >> 32))
    }

    /// What an opening adds to the commit of its epoch: that the store is as it was found, or, where its layouts are lower, the raise,
    /// for which the row gets `version`. The second value is for [`Anchor::agreed`].
    pub(super) fn agree(&self, version: RowVersion) -> (Vec<Op<RowValue>>, Option<RowVersion>) {
        let [anchor, header] = self.checks();
        if !self.is_behind() {
            return (vec![anchor, header], None);
        }
        let found = Layouts(self.found.load(Ordering::SeqCst));
        let row = self.row(version, Expect::Version(self.version()));
        (vec![header, row, found.raise(self.layouts)], Some(version))
    }

    /// That commit was applied.
    pub(super) fn agreed(&self, raised: Option<RowVersion>) {
        if let Some(version) = raised {
            self.version.store(version.0, Ordering::SeqCst);
            self.found.store(self.layouts, Ordering::SeqCst);
        }
    }

    /// Whether the layouts of the store are lower than what this opening writes.
    fn is_behind(&self) -> bool {
        self.found.load(Ordering::SeqCst) < self.layouts
    }

    pub(super) async fn is_there(&self, store: &dyn Store) -> Result<bool, StoreError> {
        Ok(self.found(store).await?.is_some())
    }

    /// Makes sure of the row in a store that was sealed before. Versions of this program before made none.
    pub(super) async fn cast(&self, store: &dyn Store) -> Result<(), StoreError> {
        if store.get(&[Self::key()]).await?.pop().flatten().is_none() {
            let ops = [Op::check(Header::key(), Expect::Present), self.write()];
            match store.commit(ops.into_iter().collect()).await {
                Ok(()) | Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        if self.take_version(store).await? { Ok(()) } else { Err(StoreError::Emptied) }
    }
}

/// The note of who removes a store for good, where others may have it open still. It goes with the first write of a store
/// that is begun there. A conflict if one was begun already.
pub(crate) fn removed_for_good() -> ChangeSet<RowValue> {
    let note = RowValue { bytes: Vec::new(), version: RowVersion(0) };
    let ops = [
        Op::check(Header::key(), Expect::Absent),
        Op::delete(Anchor::stone()),
        Op::put(Anchor::removed(), note),
    ];
    ops.into_iter().collect()
}

impl Sealed {
    fn refuse_emptied(anchor: &Anchor) -> Result<(), StoreError> {
        if *anchor.lost.borrow() { Err(StoreError::Emptied) } else { Ok(()) }
    }

    /// Applies a change set if the store is still the one that was opened. One that meets another version of the row, because
    /// [`Sealed::settle`] made others void meanwhile, was not applied and is tried again: its caller did not give it up. But what
    /// another opening made void stays so where one has the store to itself: that one read what this would change.
    pub(super) async fn guarded(&self, changes: ChangeSet<RowValue>) -> Result<(), StoreError> {
        let Some(anchor) = &self.anchor else { return self.store.commit(changes).await };
        let (began, others) = (Instant::now(), anchor.others.load(Ordering::SeqCst));
        loop {
            Self::refuse_emptied(anchor)?;
            self.settle().await?;
            let guarded = anchor.checks().into_iter().chain(changes.ops.iter().cloned()).collect();
            let mut under_way = UnderWay((!self.shared).then_some(anchor));
            let done = self.store.commit(guarded).await;
            if !matches!(done, Err(StoreError::Timeout { .. } | StoreError::Uncertain { .. })) {
                under_way.0 = None;
            }
            drop(under_way);
            match done {
                Err(StoreError::Conflict { op }) => match op.checked_sub(CHECKS) {
                    Some(op) => return Err(StoreError::Conflict { op }),
                    None if !self.was_overtaken(anchor).await? => return Err(self.found_emptied().await),
                    None if began.elapsed() < self.patience
                        && (self.shared || anchor.others.load(Ordering::SeqCst) == others) => {}
                    None => return Err(StoreError::Timeout { call: "commit", after: self.patience }),
                },
                done => return done,
            }
        }
    }

    /// Whether the store is still the one that was opened, though a commit met another version of the row. Where it was put back
    /// to lower layouts, these are raised again.
    async fn was_overtaken(&self, anchor: &Anchor) -> Result<bool, StoreError> {
        let _one = anchor.settling.lock().await;
        if !anchor.take_version(self.store.as_ref()).await? {
            return Ok(false);
        }
        if anchor.is_behind() {
            let (ops, raised) = anchor.agree(self.next_version()?);
            match self.store.commit(ops.into_iter().collect()).await {
                Ok(()) => anchor.agreed(raised),
                // Another one did, or the next try meets what is there now.
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// A version for a row of the header's table.
    fn next_version(&self) -> Result<RowVersion, StoreError> {
        let mut clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        take_version(&mut clock, 1).ok_or_else(no_room)
    }

    /// Makes sure that no commit which was given up lands from here on.
    pub(super) async fn settle(&self) -> Result<(), StoreError> {
        let Some(anchor) = self.anchor.as_ref().filter(|anchor| anchor.in_doubt()) else { return Ok(()) };
        let _one = anchor.settling.lock().await;
        // Those that are given up from here on may have begun after this.
        let given_up = anchor.given_up.load(Ordering::SeqCst);
        let mut tries = limits::MAX_EPOCH_TRIES;
        while anchor.settled.load(Ordering::SeqCst) != given_up {
            if !anchor.take_version(self.store.as_ref()).await? {
                return Err(self.found_emptied().await);
            }
            let next = self.next_version()?;
            let [_, header] = anchor.checks();
            let ops = [header, anchor.row(next, Expect::Version(anchor.version()))];
            match self.store.commit(ops.into_iter().collect()).await {
                Ok(()) => {
                    anchor.version.store(next.0, Ordering::SeqCst);
                    anchor.settled.store(given_up, Ordering::SeqCst);
                }
                // An earlier one of these landed late.
                Err(StoreError::Conflict { .. }) if tries > 0 => tries -= 1,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether the store was found to be emptied: then it answers nothing any more.
    pub(super) fn refuse_lost(&self) -> Result<(), StoreError> {
        self.anchor.as_ref().map_or(Ok(()), Self::refuse_emptied)
    }

    /// Notes that the store is not there any more; once also in its place, unless something else is there.
    pub(super) async fn found_emptied(&self) -> StoreError {
        let Some(anchor) = &self.anchor else { return StoreError::Emptied };
        if anchor.lost.send_replace(true) {
            return StoreError::Emptied;
        }
        tracing::error!("the store was emptied under this client: its header is gone");
        // Nothing else is written any more, so nothing that is missed can be used again.
        self.store.accept_put_back();
        let stone = RowValue { bytes: Vec::new(), version: RowVersion(0) };
        let ops = [
            Op::check(Header::key(), Expect::Absent),
            Op::check(Anchor::key(), Expect::Absent),
            Op::check(Anchor::removed(), Expect::Absent),
            Op::put(Anchor::stone(), stone),
        ];
        let noted = self.store.commit(ops.into_iter().collect()).await;
        if let Err(error) = noted {
            tracing::warn!(%error, "that a store was here could not be noted");
        }
        StoreError::Emptied
    }

    /// Looks whether the store is still the one that was opened. Commits look by themselves; this is for conclusions that are
    /// drawn from rows that are not there.
    ///
    /// # Errors
    /// [`StoreError::Emptied`] when it is not, from then on for every call; or what the adapter met.
    pub async fn check_there(&self) -> Result<(), StoreError> {
        let Some(anchor) = &self.anchor else { return Ok(()) };
        Self::refuse_emptied(anchor)?;
        match self.in_time("get", anchor.is_there(self.store.as_ref())).await? {
            true => Ok(()),
            false => Err(self.found_emptied().await),
        }
    }

    /// Whether the store was found to be emptied.
    #[must_use]
    pub fn is_emptied(&self) -> bool {
        self.refuse_lost().is_err()
    }

    /// Waits until the store is found to be emptied: for ever, mostly.
    pub async fn emptied(&self) {
        let Some(anchor) = &self.anchor else { return core::future::pending().await };
        let mut lost = anchor.lost.subscribe();
        // The sender lives as long as this store.
        let _ = lost.wait_for(|lost| *lost).await;
    }
}
