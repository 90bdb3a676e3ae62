//! Several processes on one store, as one device.
//!
//! Each instance has a row that it renews. One whose row was not renewed for the length of a lease, by the clock of
//! whoever watches it (clocks of machines are never compared), is declared gone: its row is removed and a stone with its
//! id is set, in one commit. Everything that an instance commits expects that its own stone is not there, so one that was
//! only asleep can commit nothing more: its id is the fencing token. It joins again under another one.
//!
//! One instance at a time receives: the one that the receiver's row names, as long as it is not gone.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use stvor_base::codec::{CodecError, Reader, Writer};
use stvor_base::{Timestamp, UserId};
use stvor_crypto::{SecretBytes, SystemRandom};
use stvor_store::{ChangeSet, Expect, Key, Op, RowVersion, Scan, Sealed, StoreError, Table};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::core::{Core, random};
use crate::error::{Error, Result};
use crate::events::Event;
use crate::keys;
use crate::limits;
use crate::opening::{read_lanes, read_peers};
use crate::records;
use crate::rollback;
use crate::rows::PeerRow;

const VERSION: u8 = 1;

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
    /// The account is gone, or this instance left: nothing is written any more.
    over: bool,
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
    /// This instance had been declared gone, and joined again.
    pub(crate) rejoined: bool,
    /// Another instance deleted the account.
    pub(crate) deleted: bool,
    /// Others came to an end.
    pub(crate) ended: bool,
    /// The receiver's row names this instance.
    pub(crate) receiver: bool,
    /// Settings of conversations changed.
    pub(crate) settings: bool,
}

/// The rows as they are.
struct Look {
    receiver: Option<(InstanceId, RowVersion)>,
    present: HashSet<InstanceId>,
    expired: Vec<(InstanceId, RowVersion)>,
    ended: bool,
    settings: bool,
}

impl Instances {
    /// The only process that has the store open.
    pub(crate) fn only() -> Self {
        Self::new((false, limits::INSTANCE_LEASE), InstanceId([0; 16]))
    }

    fn new((shared, lease): (bool, Duration), id: InstanceId) -> Self {
        let state = State {
            id,
            version: RowVersion(0),
            others: HashMap::new(),
            settings: None,
            looked: Instant::now(),
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
        instances.enter(store).await?;
        let beat = instances.beat(store, now).await?;
        instances.receives.store(beat.receiver, Ordering::SeqCst);
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
        Op::delete(keys::stone(self.id())).expecting(Expect::Absent)
    }

    /// Whether an instance is there, as the store has it now.
    pub(crate) async fn present(store: &Sealed, ids: &[InstanceId]) -> Result<HashSet<InstanceId>> {
        let rows: Vec<Key> = ids.iter().map(|id| keys::instance(*id)).collect();
        let rows = store.get(&rows).await.map_err(Error::passed)?;
        Ok(ids.iter().zip(rows).filter(|(_, row)| row.is_some()).map(|(id, _)| *id).collect())
    }

    async fn enter(&self, store: &Sealed) -> Result<()> {
        let mut changes = ChangeSet::new();
        changes.insert(keys::instance(self.id()), vec![VERSION]);
        self.lock().version = store.commit(changes).await.map_err(Error::passed)?;
        Ok(())
    }

    /// Renews the own row, declares those gone that did not renew theirs, and takes the receiver's place if it is empty.
    pub(crate) async fn beat(&self, store: &Sealed, now: Timestamp) -> Result<Beat> {
        let mut beat = Beat { rejoined: !self.renew(store).await?, ..Beat::default() };
        if beat.rejoined {
            let identity = records::key(&stvor_protocol::Identity::key())?;
            if store.one(&identity).await.map_err(Error::passed)?.is_none() {
                self.lock().over = true;
                return Ok(Beat { deleted: true, ..beat });
            }
            self.lock().id = InstanceId::new()?;
            self.enter(store).await?;
        }
        let mut look = self.look(store).await?;
        (beat.ended, beat.settings) = (look.ended, look.settings);
        for expired in core::mem::take(&mut look.expired) {
            if self.bury(store, expired, now).await? {
                beat.ended = true;
                look.present.remove(&expired.0);
                self.lock().others.remove(&expired.0);
            }
        }
        beat.receiver = self.take_place(store, &look).await?;
        Ok(beat)
    }

    /// Whether the own row was there.
    async fn renew(&self, store: &Sealed) -> Result<bool> {
        let (id, version) = {
            let state = self.lock();
            (state.id, state.version)
        };
        let mut changes = ChangeSet::new();
        changes.push(Op::put(keys::instance(id), vec![VERSION]).expecting(Expect::Version(version)));
        match store.commit(changes).await {
            Ok(version) => {
                self.lock().version = version;
                Ok(true)
            }
            Err(StoreError::Conflict { .. }) => Ok(false),
            Err(error) => Err(Error::passed(error)),
        }
    }

    async fn look(&self, store: &Sealed) -> Result<Look> {
        let scan = Scan::of(Table::Meta, keys::INSTANCES);
        let rows = store.scan_all(scan, limits::MAX_INSTANCES).await.map_err(Error::passed)?;
        let facts = store.get(&[keys::meta("receiver"), keys::meta("settings")]).await;
        let mut facts = facts.map_err(Error::passed)?.into_iter();
        let receiver = match facts.next().flatten() {
            Some(row) => Some((InstanceId::decode(row.value.expose()).map_err(Error::passed)?, row.version)),
            None => None,
        };
        let settings = facts.next().flatten().map(|row| row.version);
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
        Ok(Look { receiver, present, expired, ended, settings: changed })
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

/// Keeps this instance's place among those that share the store, until the client ends.
pub(crate) async fn run(core: &Arc<Core>) {
    if !core.instances.is_shared() {
        return core::future::pending().await;
    }
    loop {
        core.instances.pause().await;
        if let Err(error) = attend(core).await {
            tracing::warn!(code = error.code(), "the store could not be asked which instances are there");
            tokio::time::sleep(limits::CLAIM_POLL).await;
        }
    }
}

/// One beat and what follows from it.
async fn attend(core: &Arc<Core>) -> Result<()> {
    let instances = &core.instances;
    let beat = instances.beat(&core.store, core.now()).await?;
    if beat.rejoined {
        core.stop_receiving();
        core.inbox.lose_claims();
    }
    if beat.deleted {
        tracing::error!("the account was deleted by another instance; this one ends");
        core.closing.store(true, Ordering::SeqCst);
        core.stop.cancel();
        return Ok(());
    }
    if beat.settings || beat.rejoined {
        core.remember_peers(read_peers(&core.store).await?);
    }
    if beat.receiver {
        core.start_receiving().await?;
        if core.inbox.is_filling() {
            core.inbox.count().await?;
        }
    } else {
        core.stop_receiving();
    }
    if beat.ended {
        // What they had sealed and not sent, taken and not consumed.
        instances.next_epoch();
        core.inbox.look_again();
        core.wake_lanes();
        core.wake_lanes_with_work(read_lanes(&core.store).await?);
    }
    rollback::look_again(core).await
}

impl Core {
    /// From now on this instance receives.
    async fn start_receiving(&self) -> Result<()> {
        if self.instances.receives() {
            return Ok(());
        }
        self.failures.read(&self.store).await?;
        self.parked.read(&self.store).await?;
        self.inbox.count().await?;
        self.instances.set_receives(true);
        self.instances.next_epoch();
        self.hub.emit(Event::Receiving { here: true });
        self.kick.notify_one();
        self.wake_lanes();
        // Receipts that are owed, mail that waits for answers.
        self.wake_lanes_with_work(read_lanes(&self.store).await?);
        Ok(())
    }

    /// From now on another instance receives, or will.
    pub(crate) fn stop_receiving(&self) {
        if !self.instances.set_receives(false) {
            return;
        }
        self.parked.clear();
        self.instances.next_epoch();
        self.hub.emit(Event::Receiving { here: false });
        self.kick.notify_one();
        self.wake_lanes();
    }

    /// Changes the settings of a conversation that other instances may change too.
    pub(crate) async fn change_shared_peer(
        &self,
        user: &UserId,
        change: impl Fn(&mut PeerRow),
    ) -> Result<()> {
        let key = keys::peer(&self.store, user);
        for _ in 0..limits::TURN_TRIES {
            let found = self.store.one(&key).await.map_err(Error::passed)?;
            let (mut row, expect) = match found {
                Some(row) => {
                    let version = Expect::Version(row.version);
                    (PeerRow::decode(row.value.expose()).map_err(Error::passed)?, version)
                }
                None => (PeerRow::new(user.clone()), Expect::Absent),
            };
            change(&mut row);
            let mut changes = ChangeSet::new();
            changes.push(Op::put(key.clone(), row.encode()).expecting(expect));
            changes.put(keys::meta("settings"), vec![VERSION]);
            match self.store.commit(changes).await {
                Ok(_) => {
                    self.remember_peer(row);
                    return Ok(());
                }
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(Error::passed(error)),
            }
        }
        Err(Error::passed(StoreError::Conflict { op: 0 }))
    }
}

/// Tells those who watch a message of ours how far it came, as the instance that receives has noted it.
pub(crate) async fn follow_receipts(core: &Arc<Core>) {
    if !core.instances.is_shared() {
        return core::future::pending().await;
    }
    let mut after = None;
    loop {
        tokio::time::sleep(limits::RECEIPT_POLL).await;
        let ids = core.watchers.unfinished(&mut after, limits::RECEIPT_POLL_BATCH);
        if ids.is_empty() {
            continue;
        }
        match crate::history::states(core, &ids).await {
            Ok(states) => states.iter().for_each(|(id, state)| core.watchers.advance(*id, *state)),
            Err(error) => tracing::warn!(code = error.code(), "receipts could not be looked up"),
        }
    }
}
