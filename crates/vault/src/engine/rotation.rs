//! Changing the root key: everything that a key seals which follows from it is sealed anew, in one transaction.

use stvor_crypto::p256::AgreementKey;

use super::agents::OWNER;
use super::profiles::Unwrapped;
use super::{Engine, Held};
use crate::VaultError;
use crate::audit::{Event, Operation};
use crate::clock::Moment;
use crate::error::Refusal;
use crate::keys::{BaseKeys, NewRoot, Reseal, Resealed, RootKey};
use crate::level::Level;
use crate::memory::{Header, MemoryId};
use crate::sealing::{Sender, Unwrap, Wrap, rewrap};
use crate::storage::{EventRow, MemoryRow, Table};
use crate::verify::Progress;

/// Rows that are read at a time.
const BATCH: usize = 1_000;
/// The size of the log when the root key was last changed: a backup can not build on one from before.
const ROTATED: &str = "rotated";

/// The old and the new keys, and who seals for the new keys of levels.
struct Change {
    new: BaseKeys,
    privates: std::collections::BTreeMap<Level, AgreementKey>,
    senders: std::collections::BTreeMap<Level, Sender>,
}

impl Engine {
    /// Changes the root key. Returns how many memories were sealed anew.
    pub(crate) fn rotate_root(
        &mut self,
        old: &RootKey,
        new: &NewRoot,
        progress: &Progress,
    ) -> Result<u64, VaultError> {
        let event = Event::new(self.clock.now(), OWNER, Operation::RotateRootKey);
        self.audited(event, |engine, event| {
            let slots = engine.database.slots()?;
            BaseKeys::open(old, &slots)?;
            engine.no_doubt()?;
            let session = engine.held()?.session.as_ref();
            let session = session.ok_or(Refusal::Locked { level: Level::Private })?;
            if let Some(level) =
                [Level::Private, Level::Sealed].into_iter().find(|level| !session.opens(*level))
            {
                // It gets a new key pair, and what the old one wraps would be lost with it.
                let place = format!("the key record of level {level}");
                return Err(VaultError::tampered(place, "it does not open; restore a backup that holds it"));
            }
            if let Some(closed) = engine.profile_states()?.into_iter().find(|state| !state.open) {
                return Err(Refusal::ProfileClosed(closed.profile.name).into());
            }
            engine.shares_may_end()?;
            let size = engine.held()?.tree.size();
            progress.expect(size + engine.database.memory_count()?);
            let reseal = Reseal { old: &engine.held.as_ref().ok_or(Refusal::Cold)?.base, new };
            let Resealed { slots, privates } = reseal.slots(&slots, &mut engine.rng)?;
            let base = BaseKeys::open(&new.root, &slots)?;
            let mut senders = std::collections::BTreeMap::new();
            for (level, key) in &privates {
                senders.insert(*level, Sender::new(key.public(), &mut engine.rng)?);
            }
            let change = Change { new: base, privates, senders };
            let rows = engine.reseal_memories(&change, progress)?;
            engine.reseal_records(&change)?;
            engine.reseal_events(&change, size, progress)?;
            for (name, record) in &slots {
                engine.database.put_slot(name, record)?;
            }
            // From here on the new keys are held: if this group is not committed, none are.
            engine.new_keys = true;
            engine.wipe = true;
            engine.senders.clear();
            let held = engine.held.as_mut().ok_or(Refusal::Cold)?;
            held.base = change.new;
            if let Some(session) = held.session.as_mut() {
                session.renew(change.privates);
            }
            event.count = Some(rows.len() as u64);
            let done = engine.finish_rotation(&event.at, size, &rows);
            if let Err(error) = &done {
                // The keys that are held now fit nothing on the disk: nothing of the group may stand.
                engine.broken = Some(error.clone());
            }
            done.map(|()| rows.len() as u64)
        })
    }

    /// What is sealed with the new keys, a leaf for each row that changed, and the sums over the tables under their new key.
    fn finish_rotation(
        &mut self,
        at: &Moment,
        size: u64,
        rows: &[(MemoryId, Level, String)],
    ) -> Result<(), VaultError> {
        self.renew_owned_keys()?;
        self.drop_escrows()?;
        self.put_sealed_slot(ROTATED, &size)?;
        for (id, level, digest) in rows {
            let mut leaf = Event::new(at.clone(), OWNER, Operation::Rewrap);
            (leaf.memory, leaf.level, leaf.row) = (Some(*id), Some(*level), Some(digest.clone()));
            self.log(&leaf)?;
        }
        let bound = self.held()?.base.bound.duplicate();
        self.database.rebind(bound)
    }

    /// The size of the log when the root key was last changed.
    pub(crate) fn rotated_at(&self) -> Result<u64, VaultError> {
        self.sealed_slot(ROTATED).map(Option::unwrap_or_default)
    }

    /// Seals every memory's header and key anew, and says what the rows are then. A row that is not what the log has of it is
    /// told of and stays as it is, so that it does not become sound by this.
    fn reseal_memories(
        &mut self,
        change: &Change,
        progress: &Progress,
    ) -> Result<Vec<(MemoryId, Level, String)>, VaultError> {
        // The numbers are bound by nothing: also a row with one that none was given comes under the new key.
        let (mut after, mut all) = (i64::MIN, Vec::new());
        let (digests, _) = self.read_rows()?;
        loop {
            let rows = self.database.memories_after(after, BATCH)?;
            let Some((last, _)) = rows.last() else { return Ok(all) };
            after = *last;
            progress.add(rows.len());
            for (_, row) in rows {
                // Where the event is damaged that holds the digest, the row itself is no worse for it.
                let other = digests.get(&row.id).is_some_and(|digest| *digest != row.digest_bytes())
                    || self.database.is_whole(&row)? == Some(false);
                let header = match other {
                    false => self.header(&row),
                    true => Err(VaultError::tampered(
                        format!("the memory {}", row.id),
                        "its row is not the one that the log has",
                    )),
                };
                if let Some(header) = self.sound(header)? {
                    all.push(self.reseal_memory(change, (row, header))?);
                }
            }
        }
    }

    fn reseal_memory(
        &mut self,
        change: &Change,
        (mut row, header): (MemoryRow, Header),
    ) -> Result<(MemoryId, Level, String), VaultError> {
        if let Some(wrapped) = row.wrapped.take() {
            let held = self.held.as_ref().ok_or(Refusal::Cold)?;
            let inner = Self::unwrap_profile(held, &header, &wrapped)?;
            let anew = match keys(held, change, header.level) {
                Some(both) => {
                    let tampered =
                        |_| VaultError::tampered(format!("the memory {}", row.id), "its key does not open");
                    let (unwrap, wrap) = &both;
                    Some(
                        rewrap((unwrap, wrap), &header.bound(), inner.bytes(), &mut self.rng)
                            .map_err(tampered)?,
                    )
                }
                // Levels 4 and 5 have keys that do not follow from the root key.
                None => None,
            };
            row.wrapped = Some(match (anew, inner) {
                (Some(anew), _) => self.wrap_for_profile(&header, anew)?,
                (None, Unwrapped::Plain(_) | Unwrapped::Opened(_)) => wrapped,
            });
        }
        let plain = self.held()?.base.rows.open(row.id.as_bytes(), &row.header)?;
        row.header = change.new.rows.seal(&mut self.rng, row.id.as_bytes(), plain.expose())?;
        self.database.update_memory(&row)?;
        Ok((row.id, header.level, row.digest()))
    }

    /// Seals the records of agents and approvals anew.
    fn reseal_records(&mut self, change: &Change) -> Result<(), VaultError> {
        let agent: fn(&[u8]) -> Vec<u8> = <[u8]>::to_vec;
        for (table, bound) in [(Table::Agent, agent), (Table::Approval, super::approvals::approval_ad)] {
            for (key, record) in self.database.records(table)? {
                let bound = bound(&key);
                let tampered =
                    |_| VaultError::tampered("the record of an agent or approval", "it does not open");
                let plain = self.held()?.base.rows.open(&bound, &record).map_err(tampered)?;
                let sealed = change.new.rows.seal(&mut self.rng, &bound, plain.expose())?;
                self.database.put_record(table, &key, &sealed)?;
            }
        }
        Ok(())
    }

    /// Seals the rows of events anew. What the log hashes is inside and stays.
    fn reseal_events(&mut self, change: &Change, size: u64, progress: &Progress) -> Result<(), VaultError> {
        let mut next = 0;
        while next < size {
            let rows = self.database.events_from(next, BATCH)?;
            let Some(last) = rows.last().map(|row| row.seq) else { return Ok(()) };
            progress.add(rows.len());
            for EventRow { seq, sealed } in rows.into_iter().filter(|row| row.seq < size) {
                let bound = seq.to_be_bytes();
                let tampered = |_| VaultError::tampered(format!("the event {seq}"), "it does not open");
                let plain = self.held()?.base.events.open(&bound, &sealed).map_err(tampered);
                // One that somebody changed stays for `verify` to name.
                let Some(plain) = self.sound(plain)? else { continue };
                let sealed = change.new.events.seal(&mut self.rng, &bound, plain.expose())?;
                self.database.update_event(&EventRow { seq, sealed })?;
            }
            next = last + 1;
        }
        Ok(())
    }
}

/// What a memory's key is unwrapped with, and wrapped anew with; nothing for levels that the root key has no part in.
fn keys<'a>(held: &'a Held, change: &'a Change, level: Level) -> Option<(Unwrap<'a>, Wrap<'a>)> {
    if !level.needs_session() {
        return Some((Unwrap::Shared(&held.base.working), Wrap::Shared(&change.new.working)));
    }
    let private = held.session.as_ref()?.private(level)?;
    Some((Unwrap::Private(private), Wrap::Sender(change.senders.get(&level)?)))
}
