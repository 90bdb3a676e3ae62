//! Changing keys: who opens a store, and what its rows are sealed under.

use super::cipher::{Place, Ring};
use super::header::{Epoch, Header, Rotated};
use super::{Clock, Sealed, off_executor, take_version};
use crate::adapter::{Row, RowValue};
use crate::change::{ChangeSet, Expect, Key, Op, RowVersion};
use crate::{SecretBytes, StoreError, Table, limits};
use std::sync::{Arc, PoisonError};
use stvor_crypto::{Secret, SystemRandom};
use stvor_keys::{DataKey, KeyHolder, WrappedKey};

/// Rows that are sealed anew in one commit: other commits wait for so many at most.
const BATCH: usize = 200;

/// How far a rotation of the data key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotation {
    /// Rows that were looked at.
    pub done: u64,
    /// Rows in the store.
    pub total: u64,
}

/// Wraps a data key and makes sure that the holder opens it again.
pub(super) fn wrap(
    holder: &dyn KeyHolder,
    data_key: &DataKey,
    store: &[u8; 16],
) -> Result<WrappedKey, StoreError> {
    let wrapped = holder.wrap(data_key, store, &mut SystemRandom::new())?;
    stvor_keys::given_back(holder.kind(), data_key, holder.unwrap(&wrapped, store))?;
    Ok(wrapped)
}

impl Sealed {
    /// Wraps the data key for another holder, a changed passphrase for example. No row is touched. The old key does not
    /// open the store from here on (an old copy of the files it does). The new one is tried before anything is written.
    ///
    /// # Errors
    /// As [`Sealed::commit`], and what the holder met; [`StoreError::Conflict`] when the keys are changed elsewhere;
    /// [`StoreError::KeysReplaced`] when they were: the store has to be opened again.
    pub async fn rewrap(&self, holder: Arc<dyn KeyHolder>) -> Result<(), StoreError> {
        let (version, mut header) = self.header().await?;
        self.refuse_replaced(&header)?;
        let (store, ring) = (self.id(), self.keys.ring());
        let rotating = header.rotated.as_ref().is_some_and(|rotated| rotated.previous.is_some());
        let wrapped = off_executor(move || {
            let previous = ring.previous.as_ref().filter(|_| rotating);
            let previous = previous.map(|key| wrap(holder.as_ref(), key, &store)).transpose()?;
            Ok((wrap(holder.as_ref(), &ring.current, &store)?, previous))
        });
        let (key, previous) = wrapped.await?;
        header.key = key;
        if let Some(rotated) = &mut header.rotated {
            rotated.previous = previous;
        }
        self.put_header(version, &header).await
    }

    /// Whether a rotation was begun and is not over.
    ///
    /// # Errors
    /// As [`Sealed::get`].
    pub async fn rotating(&self) -> Result<bool, StoreError> {
        let (_, header) = self.header().await?;
        Ok(header.rotated.is_some_and(|rotated| rotated.previous.is_some()))
    }

    /// Replaces the data key: a fresh one seals what is written from now on, and every row is sealed anew under it, batch
    /// by batch beside other work. `holder` is the one that opens the store; it is tried before anything is written. When
    /// this returns, the old data key opens nothing in the store any more. One that was interrupted, by a kill as well, goes
    /// on where it was when this is called again, and the store works in between.
    ///
    /// Names stay hashed as they are: whoever had the old data key can still check whether a name that they guess is in the
    /// store. Another process that has the store open does not learn of the new key, and what it would write could not be
    /// read again: on a store that several processes may have open, use [`Sealed::rotate_alone`].
    ///
    /// # Errors
    /// [`StoreError::Key`] with `WRONG_KEY` for another holder, [`StoreError::Unsupported`] when the adapter can not walk
    /// its rows, [`StoreError::KeysReplaced`] when the data key is another one by now (also by a call of this that was given up
    /// and took effect later: the store has to be opened again, and the rotation goes on), or as [`Sealed::commit`].
    pub async fn rotate(
        &self,
        holder: Arc<dyn KeyHolder>,
        told: impl FnMut(Rotation) + Send,
    ) -> Result<(), StoreError> {
        self.rotate_alone(holder, async { Ok(()) }, told).await
    }

    /// [`Sealed::rotate`], begun, and gone on with where it was interrupted, only if `alone` says that no other process has the store
    /// open. One that enrolled after `alone` looked (see [`Sealed::enroll`]) makes this a conflict; one that opens the store once the
    /// rotation has begun knows both keys and disturbs nothing.
    ///
    /// # Errors
    /// What `alone` says, [`StoreError::Conflict`], or as [`Sealed::rotate`].
    pub async fn rotate_alone(
        &self,
        holder: Arc<dyn KeyHolder>,
        alone: impl Future<Output = Result<(), StoreError>> + Send,
        mut told: impl FnMut(Rotation) + Send,
    ) -> Result<(), StoreError> {
        // Whether it can be walked, before anything is changed.
        self.store.walk(None, 1).await?;
        let (version, header) = self.header().await?;
        self.refuse_replaced(&header)?;
        // Also of one that is under way: whoever has not heard of the new key would go on sealing under the one that is dropped at the end.
        alone.await?;
        if header.rotated.as_ref().is_none_or(|rotated| rotated.previous.is_none()) {
            self.begin((version, header), holder).await?;
        }
        let since = self.keys.ring().since;
        loop {
            if self.pass(since, &mut told).await? == 0 {
                break;
            }
        }
        self.end_rotation().await
    }

    /// Forgets the data key before. Processes that enroll meanwhile write the header, too.
    async fn end_rotation(&self) -> Result<(), StoreError> {
        let _gate = self.keys.gate.write().await;
        let mut tries = limits::MAX_EPOCH_TRIES;
        loop {
            let (version, mut header) = self.header().await?;
            self.refuse_replaced(&header)?;
            if let Some(rotated) = &mut header.rotated {
                rotated.previous = None;
            }
            tries -= 1;
            match self.put_header(version, &header).await {
                Err(StoreError::Conflict { .. }) if tries > 0 => {}
                put => {
                    put?;
                    break;
                }
            }
        }
        let ring = self.keys.ring();
        self.keys.set_ring(ring.with(ring.current.duplicate(), ring.since, None));
        Ok(())
    }

    /// Whether the data key of this opening is still the store's.
    ///
    /// # Errors
    /// As [`Sealed::info`].
    pub async fn keys_are_current(&self) -> Result<bool, StoreError> {
        // A rotation of our own holds the gate while header and keys differ.
        let _gate = self.keys.gate.read().await;
        let (_, header) = self.header().await?;
        Ok(self.refuse_replaced(&header).is_ok())
    }

    /// A header of another data key: one that another process made, or a rotation of ours that was given up and landed. What
    /// this opening knows as the current key is the one before, and must not be taken for the new one.
    pub(super) fn refuse_replaced(&self, header: &Header) -> Result<(), StoreError> {
        let since = header.rotated.as_ref().map_or(0, |rotated| rotated.since);
        if since == self.keys.ring().since { Ok(()) } else { Err(StoreError::KeysReplaced) }
    }

    /// Commits what `changes` makes if the data key of this opening is still the store's, as one of several processes that have the
    /// store open: whoever is about to replace the data key learns that somebody came.
    ///
    /// # Errors
    /// [`StoreError::KeysReplaced`] when it is not: the store has to be opened again; as [`Sealed::commit`].
    pub async fn enroll(&self, changes: impl Fn() -> ChangeSet) -> Result<RowVersion, StoreError> {
        let mut tries = limits::MAX_EPOCH_TRIES;
        loop {
            let (version, header) = self.header().await?;
            let _gate = self.keys.gate.read().await;
            self.refuse_replaced(&header)?;
            let changes = changes();
            changes.check(limits::MAX_PLAIN_VALUE, SecretBytes::len)?;
            let own = {
                let mut clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
                take_version(&mut clock, changes.len()).ok_or_else(no_room)?
            };
            let mut sealed = self.seal(changes, own)?;
            let last = sealed.len();
            sealed.push(header.write(version.0 + 1, Expect::Version(version)));
            tries -= 1;
            match self.guarded(sealed).await {
                Err(StoreError::Conflict { op }) if op == last && tries > 0 => {}
                done => return done.map(|()| own),
            }
        }
    }

    pub(super) async fn header(&self) -> Result<(RowVersion, Header), StoreError> {
        self.refuse_lost()?;
        let Some(row) = self.store.get(&[Header::key()]).await?.pop().flatten() else {
            return Err(self.found_emptied().await);
        };
        Ok((row.value.version, Header::decode(&row.value.bytes)?))
    }

    async fn put_header(&self, version: RowVersion, header: &Header) -> Result<(), StoreError> {
        let mut changes = ChangeSet::new();
        changes.push(header.write(version.0 + 1, Expect::Version(version)));
        self.guarded(changes).await
    }

    /// Makes the new data key. From the commit of the header on, the next epoch is sealed under it.
    async fn begin(
        &self,
        (version, header): (RowVersion, Header),
        holder: Arc<dyn KeyHolder>,
    ) -> Result<(), StoreError> {
        let (store, ring) = (self.id(), self.keys.ring());
        let times = header.rotated.as_ref().map_or(0, |rotated| rotated.times);
        let made = off_executor(move || {
            if holder.unwrap(&header.key, &store)? != ring.current {
                return Err(StoreError::Adapter("the keys of the store were changed elsewhere".into()));
            }
            let fresh = Secret::random(&mut SystemRandom::new())?;
            Ok((wrap(holder.as_ref(), &fresh, &store)?, fresh, header.key))
        });
        let (key, fresh, old) = made.await?;
        // Nothing that is sealed under the old key is on its way while the key changes.
        let _gate = self.keys.gate.write().await;
        let row = self.store.get(&[Epoch::key()]).await?.pop().flatten();
        let row = row.ok_or_else(|| StoreError::corrupt("the row of its epoch is gone"))?;
        let epoch = Epoch::decode(&row.value.bytes)?.next()?;
        let current = self.keys.ring();
        let ring: Ring = current.with(fresh, epoch.0, Some(current.current.duplicate()));
        let names = ring.kept_names(&store, &mut SystemRandom::new())?;
        let rotated = Rotated { times: times + 1, since: epoch.0, names, previous: Some(old) };
        let header = Header { store, key, rotated: Some(rotated) };
        let mut changes = ChangeSet::new();
        changes.push(header.write(version.0 + 1, Expect::Version(version)));
        changes.push(epoch.write(Expect::Version(row.value.version)));
        self.guarded(changes).await?;
        if let Some(anchor) = &self.anchor {
            anchor.took(epoch);
        }
        self.keys.set_ring(ring);
        let mut clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        (clock.epoch, clock.count) = (epoch, 0);
        Ok(())
    }

    /// Walks all rows once and seals those of earlier epochs anew; how many there were.
    async fn pass(&self, since: u32, told: &mut (impl FnMut(Rotation) + Send)) -> Result<u64, StoreError> {
        let total = self.store.stats().await?.rows;
        let (mut after, mut done, mut found) = (None, 0_u64, 0_u64);
        loop {
            let page = self.store.walk(after.as_ref(), BATCH).await?;
            done += page.rows.len() as u64;
            after = page.rows.last().map(|row| row.key.clone());
            let old =
                |row: &Row| row.key.table != Table::Header && row.value.version.0 >> 32 < u64::from(since);
            let rows: Vec<Row> = page.rows.into_iter().filter(old).collect();
            found += rows.len() as u64;
            self.seal_anew(rows).await?;
            told(Rotation { done: done.min(total), total });
            if !page.more {
                return Ok(found);
            }
        }
    }

    /// Seals rows under the new key. Those that somebody wrote meanwhile are sealed under it already.
    async fn seal_anew(&self, rows: Vec<Row>) -> Result<(), StoreError> {
        let _gate = self.keys.gate.read().await;
        let mut ops = Vec::with_capacity(rows.len());
        for Row { key, value, expires } in rows {
            let before = value.version;
            let opened = self.keys.open(&place(&key, before, expires), value.bytes);
            let opened = opened.ok_or(StoreError::Tampered { table: key.table })?;
            let (version, sealed) = {
                let mut clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
                let clock: &mut Clock = &mut clock;
                let version = take_version(clock, 1).ok_or_else(no_room)?;
                (version, self.keys.seal(&place(&key, version, expires), opened, &mut clock.rng)?)
            };
            debug_assert_eq!(sealed.version, version);
            ops.push(Op::Put { key, value: sealed, expires, expect: Expect::Version(before) });
        }
        // One row less in each round, so this ends.
        while !ops.is_empty() {
            let changes: ChangeSet<RowValue> = ops.iter().cloned().collect();
            match self.guarded(changes).await {
                Err(StoreError::Conflict { op }) if op < ops.len() => drop(ops.remove(op)),
                done => return done,
            }
        }
        Ok(())
    }
}

pub(super) fn no_room() -> StoreError {
    StoreError::Limit { what: "the rows that one opening seals", limit: u32::MAX as usize }
}

fn place<'a>(key: &'a Key, version: RowVersion, expires: Option<stvor_base::Timestamp>) -> Place<'a> {
    Place { table: key.table, partition: &key.partition, sort: &key.sort, version, expires }
}
