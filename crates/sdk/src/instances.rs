//! Several processes on one store, as one device.
//!
//! Each instance has a row that it renews. One whose row was not renewed for the length of a lease, by the clock of
//! whoever watches it (clocks of machines are never compared), is declared gone: its row is removed and a stone with its
//! id is set, in one commit. Everything that an instance commits expects that its own row is there, so one that was
//! only asleep can commit nothing more: its id is the fencing token. It joins again under another one. The stone says why the
//! row is gone: without one, or where the row is older than its instance wrote it, the store itself was put back.
//!
//! One instance at a time receives: the one that the receiver's row names, as long as it is not gone.

mod duty;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use stvor_base::codec::{CodecError, Reader, Writer};
use stvor_base::{ErrorCode as _, KeyBytes, Timestamp};
use stvor_crypto::{SecretBytes, SystemRandom};
use stvor_protocol::Identity;
use stvor_store::{ChangeSet, Expect, Key, Op, RowVersion, Scan, Sealed, StoreError, Table};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::core::random;
use crate::error::{Error, Result};
use crate::keys;
use crate::limits;
use crate::records;

pub(crate) use self::duty::{follow_receipts, run};

const VERSION: u8 = 1;

/// Of the row of an instance that has none, as far as it knows.
const NO_ROW: RowVersion = RowVersion(0);

/// One run of one process on a shared store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct InstanceId(pub(crate) [u8; 16]);

impl InstanceId {
    fn new() -> Result<Self> {
        random(&mut SystemRandom::new()).map(Self)
    }

    pub(crate) fn encode(self) -> Vec<u8> {
        let mut out = Writer::with_capacity(17);
        out.u8(VERSION).raw(&self.0);
        out.finish()
    }

    pub(crate) fn decode(bytes: &[u8]) -> core::result::Result<Self, CodecError> {
        let mut input = Reader::new(bytes);
        match input.u8()? {
            VERSION => {}
            other => return Err(CodecError::Version(other)),
        }
        let id = Self(*input.array()?);
        input.finish()?;
        Ok(id)
    }
}

/// When the row of another instance was last seen to change.
struct Sighting {
    version: RowVersion,
    since: Instant,
}

struct State {
    id: InstanceId,
    /// Of our own row.
    version: RowVersion,
    others: HashMap<InstanceId, Sighting>,
    /// Of the row that changes with settings of conversations.
    settings: Option<RowVersion>,
    /// When the rows were last looked at.
    looked: Instant,
    news: News,
    /// The account is gone, or this instance left: nothing is written any more.
    over: bool,
}

/// What looks found that is not followed so far: the store may go away in between.
#[derive(Clone, Copy, Default)]
struct News {
    /// Others came to an end.
    ended: bool,
    /// Settings of conversations changed.
    settings: bool,
}

/// Which instances share the store, and which of them receives.
pub(crate) struct Instances {
    shared: bool,
    lease: Duration,
    state: Mutex<State>,
    receives: AtomicBool,
    /// Rises whenever instances come to an end: what they left is taken over.
    epoch: AtomicU64,
    nudge: Notify,
}

/// What a beat found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Beat {
    /// This instance had been declared gone.
    pub(crate) gone: bool,
    /// Others came to an end.
    pub(crate) ended: bool,
    /// The receiver's row names this instance.
    pub(crate) receiver: bool,
    /// Settings of conversations changed.
    pub(crate) settings: bool,
    /// The store was put back to an older state: until that is dealt with nothing else is looked at.
    pub(crate) put_back: bool,
}

/// What became of the row of this instance.
enum Renewed {
    Here,
    /// It was declared gone.
    Gone,
    /// It is not there as it was written, and nobody declared it gone.
    PutBack,
}

/// What became of an instance that had been declared gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rejoined {
    /// It is there again.
    Here,
    /// Another instance deleted the account.
    Deleted,
    /// Another instance replaced the data key of the store.
    KeysReplaced,
    /// Another instance replaced the identity.
    IdentityRotated,
}

/// The rows as they are.
struct Look {
    receiver: Option<(InstanceId, RowVersion)>,
    present: HashSet<InstanceId>,
    expired: Vec<(InstanceId, RowVersion)>,
}

impl Instances {
    /// The only process that has the store open.
    pub(crate) fn only() -> Self {
        Self::new((false, limits::INSTANCE_LEASE), InstanceId([0; 16]))
    }

    fn new((shared, lease): (bool, Duration), id: InstanceId) -> Self {
        let state = State {
            id,
            version: NO_ROW,
            others: HashMap::new(),
            settings: None,
            looked: Instant::now(),
            news: News::default(),
            over: false,
        };
        Self {
            shared,
            lease: lease.max(limits::MIN_INSTANCE_LEASE),
            state: Mutex::new(state),
            receives: AtomicBool::new(!shared),
            epoch: AtomicU64::new(1),
            nudge: Notify::new(),
        }
    }

    /// Joins those that share the store.
    pub(crate) async fn join(store: &Sealed, lease: Duration, now: Timestamp) -> Result<Self> {
        let instances = Self::new((true, lease), InstanceId::new()?);
        instances.enter(store, instances.id()).await?;
        let beat = instances.beat(store, now).await?;
        instances.receives.store(beat.receiver, Ordering::SeqCst);
        // Everything is read after this.
        instances.followed();
        Ok(instances)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether others may have the store open.
    pub(crate) fn is_shared(&self) -> bool {
        self.shared
    }

    /// Whether this instance receives.
    pub(crate) fn receives(&self) -> bool {
        self.receives.load(Ordering::SeqCst)
    }

    /// Whether that changed.
    pub(crate) fn set_receives(&self, receives: bool) -> bool {
        self.receives.swap(receives, Ordering::SeqCst) != receives
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// What lanes hold of others is to be read again and taken over.
    pub(crate) fn next_epoch(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn id(&self) -> InstanceId {
        self.lock().id
    }

    /// Whether no other instance is known.
    pub(crate) fn is_alone(&self) -> bool {
        self.lock().others.is_empty()
    }

    /// How many other instances are known.
    pub(crate) fn others(&self) -> usize {
        self.lock().others.len()
    }

    /// Whether another instance is known to be there.
    pub(crate) fn knows(&self, id: InstanceId) -> bool {
        self.lock().others.contains_key(&id)
    }

    /// Looks at the rows at once.
    pub(crate) fn hurry(&self) {
        self.nudge.notify_one();
    }

    /// Waits until it is time to look at the rows again: three times in a lease.
    pub(crate) async fn pause(&self) {
        tokio::select! {
            () = tokio::time::sleep(self.lease / 3) => {}
            () = self.nudge.notified() => {}
        }
    }

    /// What every commit of this instance begins with: it fails once the instance was declared gone.
    pub(crate) fn fence(&self) -> Op<SecretBytes> {
        Op::check(keys::instance(self.id()), Expect::Present)
    }

    /// Whether an instance is there, as the store has it now.
    pub(crate) async fn present(store: &Sealed, ids: &[InstanceId]) -> Result<HashSet<InstanceId>> {
        let rows: Vec<Key> = ids.iter().map(|id| keys::instance(*id)).collect();
        let rows = store.get(&rows).await.map_err(Error::passed)?;
        Ok(ids.iter().zip(rows).filter(|(_, row)| row.is_some()).map(|(id, _)| *id).collect())
    }

    /// Enters under an id: nothing is committed under it before its row is there.
    async fn enter(&self, store: &Sealed, id: InstanceId) -> Result<()> {
        let entered = store.enroll(|| {
            let mut changes = ChangeSet::new();
            changes.insert(keys::instance(id), vec![VERSION]);
            changes
        });
        let version = entered.await.map_err(Error::passed)?;
        let mut state = self.lock();
        (state.id, state.version) = (id, version);
        Ok(())
    }

    /// Fails unless this instance is the only one, as the store has it now.
    pub(crate) async fn alone(&self, store: &Sealed) -> core::result::Result<(), StoreError> {
        let me = self.id();
        let rows = store.scan_all(Scan::of(Table::Meta, keys::INSTANCES), limits::MAX_INSTANCES).await?;
        match rows.iter().filter(|row| row.key.sort != me.0).count() {
            0 => Ok(()),
            others => Err(StoreError::InUse { others }),
        }
    }

    /// Renews the own row, declares those gone that did not renew theirs, and takes the receiver's place if it is empty.
    /// Says only that this instance is gone if it was declared so: the caller lets go of what it held and calls
    /// [`rejoin`](Self::rejoin).
    pub(crate) async fn beat(&self, store: &Sealed, now: Timestamp) -> Result<Beat> {
        match self.renew(store).await? {
            Renewed::Here => {}
            Renewed::Gone => return Ok(Beat { gone: true, ..Beat::default() }),
            Renewed::PutBack => return Ok(Beat { put_back: true, ..Beat::default() }),
        }
        let mut look = self.look(store).await?;
        for expired in core::mem::take(&mut look.expired) {
            if self.bury(store, expired, now).await? {
                look.present.remove(&expired.0);
                let mut state = self.lock();
                state.others.remove(&expired.0);
                state.news.ended = true;
            }
        }
        let receiver = self.take_place(store, &look).await?;
        let News { ended, settings } = self.lock().news;
        Ok(Beat { ended, settings, receiver, ..Beat::default() })
    }

    /// What follows from the last beat is done: until then each beat says it again.
    pub(crate) fn followed(&self) {
        self.lock().news = News::default();
    }

    /// Settings are still to be followed.
    pub(crate) fn look_at_settings_again(&self) {
        self.lock().news.settings = true;
    }

    /// Joins again after this instance was declared gone, under another id. Until the row of that is there everything is
    /// committed under the old one, and that is nothing.
    pub(crate) async fn rejoin(&self, store: &Sealed, own: &KeyBytes) -> Result<Rejoined> {
        let identity = records::key(&Identity::key())?;
        let Some(row) = store.one(&identity).await.map_err(Error::passed)? else {
            self.lock().over = true;
            return Ok(Rejoined::Deleted);
        };
        if Identity::from_record(&row.value).map_err(Error::passed)?.user_key() != own {
            self.lock().over = true;
            return Ok(Rejoined::IdentityRotated);
        }
        match self.enter(store, InstanceId::new()?).await {
            Ok(()) => Ok(Rejoined::Here),
            Err(error) if error.code() == StoreError::KeysReplaced.code() => {
                self.lock().over = true;
                Ok(Rejoined::KeysReplaced)
            }
            Err(error) => Err(error),
        }
    }

    /// What the own row is once the store was found to be put back is no news any more: it goes on from there.
    pub(crate) async fn take_row_as_it_is(&self, store: &Sealed) -> Result<()> {
        let id = self.id();
        let row = store.one(&keys::instance(id)).await.map_err(Error::passed)?;
        let mut state = self.lock();
        if state.id == id {
            state.version = row.map_or(NO_ROW, |row| row.version);
        }
        drop(state);
        // Without a row nothing is committed before this instance joined again.
        self.hurry();
        Ok(())
    }

    /// Renews the own row.
    async fn renew(&self, store: &Sealed) -> Result<Renewed> {
        for _ in 0..limits::TURN_TRIES {
            let (id, version) = {
                let state = self.lock();
                (state.id, state.version)
            };
            let mut changes = ChangeSet::new();
            changes.push(self.fence());
            changes.push(Op::put(keys::instance(id), vec![VERSION]).expecting(Expect::Version(version)));
            match store.commit(changes).await {
                Ok(version) => {
                    self.lock().version = version;
                    return Ok(Renewed::Here);
                }
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(Error::passed(error)),
            }
            // An earlier renewal may have been applied while its answer was lost: then the row is ours, and newer.
            let rows = store.get(&[keys::instance(id), keys::stone(id)]).await.map_err(Error::passed)?;
            match &rows[..] {
                [Some(own), None] if own.version >= version => self.lock().version = own.version,
                [Some(_), None] => return Ok(Renewed::PutBack),
                [None, None] if version != NO_ROW => return Ok(Renewed::PutBack),
                _ => return Ok(Renewed::Gone),
            }
        }
        Err(Error::passed(StoreError::Conflict { op: 1 }))
    }

    async fn look(&self, store: &Sealed) -> Result<Look> {
        // Who receives before who is there: whoever enters and takes the place in between is not to be taken for gone.
        let facts = store.get(&[keys::meta("receiver"), keys::meta("settings")]).await;
        let mut facts = facts.map_err(Error::passed)?.into_iter();
        let receiver = match facts.next().flatten() {
            Some(row) => Some((InstanceId::decode(row.value.expose()).map_err(Error::passed)?, row.version)),
            None => None,
        };
        let settings = facts.next().flatten().map(|row| row.version);
        let scan = Scan::of(Table::Meta, keys::INSTANCES);
        let rows = store.scan_all(scan, limits::MAX_INSTANCES).await.map_err(Error::passed)?;
        let now = Instant::now();
        let mut state = self.lock();
        // Who could not look, because the store was away or the process asleep, has not seen that others were silent.
        if now.duration_since(state.looked) > self.lease / 3 * 2 {
            state.others.values_mut().for_each(|sighting| sighting.since = now);
        }
        state.looked = now;
        let mut present = HashSet::new();
        for row in rows {
            let Ok(id) = row.key.sort.as_slice().try_into().map(InstanceId) else { continue };
            present.insert(id);
            if id == state.id {
                continue;
            }
            let sighting = state.others.entry(id).or_insert(Sighting { version: row.version, since: now });
            if sighting.version != row.version {
                *sighting = Sighting { version: row.version, since: now };
            }
        }
        let before = state.others.len();
        state.others.retain(|id, _| present.contains(id));
        let ended = state.others.len() < before;
        let late = |sighting: &Sighting| now.duration_since(sighting.since) >= self.lease;
        let expired = state
            .others
            .iter()
            .filter(|(_, seen)| late(seen))
            .map(|(id, seen)| (*id, seen.version))
            .collect();
        let changed = state.settings != settings;
        state.settings = settings;
        state.news.ended |= ended;
        state.news.settings |= changed;
        Ok(Look { receiver, present, expired })
    }

    /// Declares an instance gone, unless it was renewed after all.
    async fn bury(&self, store: &Sealed, gone: (InstanceId, RowVersion), now: Timestamp) -> Result<bool> {
        let (id, version) = gone;
        let mut changes = ChangeSet::new();
        changes
            .push(self.fence())
            .push(Op::delete(keys::instance(id)).expecting(Expect::Version(version)))
            .push(stone(id, now));
        match store.commit(changes).await {
            Ok(_) => Ok(true),
            Err(StoreError::Conflict { .. }) => Ok(false),
            Err(error) => Err(Error::passed(error)),
        }
    }

    /// Declares all others gone, in a commit of the caller's: what they hold in memory is of no use any more.
    pub(crate) async fn bury_others(
        &self,
        store: &Sealed,
        (now, changes): (Timestamp, &mut ChangeSet),
    ) -> Result<()> {
        let scan = Scan::of(Table::Meta, keys::INSTANCES);
        let own = self.id();
        for row in store.scan_all(scan, limits::MAX_INSTANCES).await.map_err(Error::passed)? {
            let Ok(id) = row.key.sort.as_slice().try_into().map(InstanceId) else { continue };
            if id != own {
                changes
                    .push(Op::delete(row.key).expecting(Expect::Version(row.version)))
                    .push(stone(id, now));
            }
        }
        Ok(())
    }

    /// Whether this instance is the receiver now.
    async fn take_place(&self, store: &Sealed, look: &Look) -> Result<bool> {
        let me = self.id();
        let expect = match look.receiver {
            Some((id, _)) if id == me => return Ok(true),
            Some((id, _)) if look.present.contains(&id) => return Ok(false),
            Some((_, version)) => Expect::Version(version),
            None => Expect::Absent,
        };
        let mut changes = ChangeSet::new();
        changes.push(self.fence()).push(Op::put(keys::meta("receiver"), me.encode()).expecting(expect));
        match store.commit(changes).await {
            Ok(_) => Ok(true),
            Err(StoreError::Conflict { .. }) => Ok(false),
            Err(error) => Err(Error::passed(error)),
        }
    }

    /// Removes every row of the account. Whoever shares the store commits nothing more: each gets a stone. True if others
    /// were there.
    pub(crate) async fn delete_all(&self, store: &Sealed, now: Timestamp) -> Result<bool> {
        let scan = Scan::of(Table::Meta, keys::INSTANCES);
        let rows = store.scan_all(scan, limits::MAX_INSTANCES).await.map_err(Error::passed)?;
        let ids: Vec<InstanceId> =
            rows.iter().filter_map(|row| row.key.sort.as_slice().try_into().ok().map(InstanceId)).collect();
        let wiped = store.enroll(|| {
            let mut changes = ChangeSet::new();
            for table in Table::ALL.into_iter().filter(|table| *table != Table::Header) {
                changes.delete_table(table);
            }
            // A process that starts before the place is gone registers nobody anew.
            changes.push(crate::deletion::under_way());
            for id in &ids {
                changes.push(stone(*id, now));
            }
            changes
        });
        wiped.await.map_err(Error::passed)?;
        self.lock().over = true;
        Ok(ids.iter().any(|id| *id != self.id()))
    }

    /// Writes nothing more, not even that this instance leaves.
    pub(crate) fn abandon(&self) {
        self.lock().over = true;
    }

    pub(crate) fn lease(&self) -> Duration {
        self.lease
    }

    /// Leaves in order: what this instance held is free at once.
    pub(crate) async fn leave(&self, store: &Sealed, now: Timestamp) -> Result<()> {
        let id = {
            let mut state = self.lock();
            if core::mem::replace(&mut state.over, true) {
                return Ok(());
            }
            state.id
        };
        let mut changes = ChangeSet::new();
        changes.delete(keys::instance(id)).push(stone(id, now));
        store.commit(changes).await.map(|_| ()).map_err(Error::passed)
    }
}

fn stone(id: InstanceId, now: Timestamp) -> Op<SecretBytes> {
    Op::put(keys::stone(id), vec![VERSION]).expiring(now + limits::KEEP_STONES)
}

#[cfg(test)]
mod tests;
