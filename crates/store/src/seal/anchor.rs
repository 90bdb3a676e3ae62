//! What shows that a store is still the one that was opened.
//!
//! A row in clear names the store; every commit of an opening expects it, in the same change set. A shared store can be emptied
//! under a client: by hand, by a server that restarts without what it held, by an eviction. Then nothing is committed any
//! more, into what is empty as little as into what somebody else began there since.

use super::Sealed;
use super::header::Header;
use crate::adapter::{Row, RowValue, Store};
use crate::change::{ChangeSet, Expect, Key, Op, RowVersion};
use crate::{StoreError, Table};
use tokio::sync::watch;

const CHECKS: usize = 2;

/// The row that names the store, and whether it was found to be gone.
#[derive(Debug)]
pub(super) struct Anchor {
    id: [u8; 16],
    lost: watch::Sender<bool>,
}

impl Anchor {
    pub(super) fn of(id: [u8; 16]) -> Self {
        Self { id, lost: watch::Sender::new(false) }
    }

    fn key() -> Key {
        Key::new(Table::Header, *b"store", *b"anchor")
    }

    /// Left where a store was, so that the next start does not begin anew as if there had been none.
    fn stone() -> Key {
        Key::new(Table::Header, *b"store", *b"emptied")
    }

    /// Different for each store, always the same for one, and never negative in a database: its id is random.
    fn version(&self) -> RowVersion {
        let [a, b, c, d, e, f, g, h, ..] = self.id;
        RowVersion(u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 1)
    }

    pub(super) fn write(&self) -> Op<RowValue> {
        let value = RowValue { bytes: self.id.to_vec(), version: self.version() };
        Op::Put { key: Self::key(), value, expires: None, expect: Expect::Absent }
    }

    /// What every commit begins with. Without its header the store could not be opened again, whatever else is there.
    fn checks(&self) -> [Op<RowValue>; CHECKS] {
        [Op::check(Self::key(), Expect::Version(self.version())), Op::check(Header::key(), Expect::Present)]
    }

    /// What the first commit of a fresh store expects.
    pub(super) fn untouched() -> Op<RowValue> {
        Op::check(Self::stone(), Expect::Absent)
    }

    pub(super) async fn is_there(&self, store: &dyn Store) -> Result<bool, StoreError> {
        let rows = store.get(&[Self::key(), Header::key()]).await?;
        let [anchor, header] = &rows[..] else { return Ok(false) };
        let own = |row: &Row| row.value.version == self.version();
        Ok(anchor.as_ref().is_some_and(own) && header.is_some())
    }

    /// Makes sure of the row in a store that was sealed before. Versions of this program before made none.
    pub(super) async fn cast(&self, store: &dyn Store) -> Result<(), StoreError> {
        if store.get(&[Self::key()]).await?.pop().flatten().is_none() {
            let ops = [Op::check(Header::key(), Expect::Present), self.write()];
            match store.commit(ops.into_iter().collect()).await {
                Ok(()) => return Ok(()),
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        if self.is_there(store).await? { Ok(()) } else { Err(StoreError::Emptied) }
    }
}

impl Sealed {
    fn refuse_emptied(anchor: &Anchor) -> Result<(), StoreError> {
        if *anchor.lost.borrow() { Err(StoreError::Emptied) } else { Ok(()) }
    }

    /// Applies a change set if the store is still the one that was opened.
    pub(super) async fn guarded(&self, changes: ChangeSet<RowValue>) -> Result<(), StoreError> {
        let Some(anchor) = &self.anchor else { return self.store.commit(changes).await };
        Self::refuse_emptied(anchor)?;
        let guarded = anchor.checks().into_iter().chain(changes.ops).collect();
        match self.store.commit(guarded).await {
            Err(StoreError::Conflict { op }) => match op.checked_sub(CHECKS) {
                Some(op) => Err(StoreError::Conflict { op }),
                None => Err(self.found_emptied().await),
            },
            done => done,
        }
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
            Op::put(Anchor::stone(), stone),
        ];
        if let Err(error) = self.store.commit(ops.into_iter().collect()).await {
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
