//! What an instance does beside its work: it keeps its place, and follows what the others did.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use stvor_base::{Address, ErrorCode as _, UserId};
use stvor_store::{ChangeSet, Expect, Op, StoreError, Table};

use super::{Rejoined, VERSION};
use crate::core::Core;
use crate::error::{Error, Result};
use crate::events::Event;
use crate::keys;
use crate::limits;
use crate::opening::{each_lane, each_peer};
use crate::rollback;
use crate::rows::{LaneRow, PeerRow};

/// Keeps this instance's place among those that share the store, until the client ends.
pub(crate) async fn run(core: &Arc<Core>) {
    if !core.instances.is_shared() {
        return core::future::pending().await;
    }
    let mut unread = None;
    loop {
        core.instances.pause().await;
        if let Err(error) = attend(core, &mut unread).await {
            // Of a store whose data key was replaced nothing can be read, not even that this instance is gone.
            if let Ok(false) = core.store.keys_are_current().await {
                core.instances.abandon();
                return end(core, KEYS_REPLACED).await;
            }
            // Not declared gone yet: it came between the last look of whoever rotated and their commit.
            if let Ok(true) = crate::rotation::is_replaced(core).await {
                core.instances.abandon();
                return end(core, ROTATED).await;
            }
            tracing::warn!(code = error.code(), "the store could not be asked which instances are there");
            tokio::time::sleep(limits::CLAIM_POLL).await;
        }
    }
}

/// What another instance did that ends this one, in words and as the code of an error.
type Why = (&'static str, &'static str);

const ROTATED: Why = ("the identity was rotated", "IDENTITY_HANDED_OVER");
const KEYS_REPLACED: Why = ("the data key of the store was replaced", "STORE_KEYS_REPLACED");

/// Ends this client from within one of its tasks, which the end waits for.
async fn end<T>(core: &Arc<Core>, (why, code): Why) -> T {
    tracing::error!(code, "{why} by another instance; this one ends");
    let _ = core.ended_by.set(code);
    let core = Arc::clone(core);
    tokio::spawn(async move { core.end().await });
    core::future::pending().await
}

/// One beat and what follows from it. `unread` is why not all settings could be read, as it was told.
async fn attend(core: &Arc<Core>, unread: &mut Option<&'static str>) -> Result<()> {
    let instances = &core.instances;
    let mut beat = instances.beat(&core.store, core.now()).await?;
    if beat.put_back {
        rollback::found_put_back(core).await?;
        beat = instances.beat(&core.store, core.now()).await?;
    }
    if beat.gone {
        // Before anything is asked of the store: nothing of this instance counts any more.
        core.stop_receiving();
        core.inbox.lose_claims();
        let why = match instances.rejoin(&core.store, core.identity.user_key()).await? {
            Rejoined::Here => None,
            Rejoined::Deleted => Some(("the account was deleted", "ACCOUNT_DELETED")),
            Rejoined::IdentityRotated => Some(ROTATED),
            Rejoined::KeysReplaced => Some(KEYS_REPLACED),
        };
        if let Some(why) = why {
            return end(core, why).await;
        }
        beat = instances.beat(&core.store, core.now()).await?;
        beat.settings = true;
    }
    let followed = !beat.settings || follow_settings(core, unread).await?;
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
        if instances.receives() {
            core.groups.take_over();
        }
        core.wake_lanes();
        let lanes = core.readable_lanes().await?;
        core.raise_counter(lanes.iter().map(|(_, row)| row.counter).max().unwrap_or(0));
        core.wake_lanes_with_work(lanes);
    }
    instances.followed();
    if !followed {
        instances.look_at_settings_again();
    }
    rollback::look_again(core).await
}

/// Takes over what other instances changed of the settings of conversations: those of a row that was altered or does not decode stay as
/// they are here. Whether that is done until they change again: a row that was altered may be put back as it was, and nothing tells.
async fn follow_settings(core: &Core, unread: &mut Option<&'static str>) -> Result<bool> {
    let (mut peers, mut kept, mut failed) = (HashMap::new(), HashSet::new(), None);
    let tampered = StoreError::Tampered { table: Table::Settings }.code();
    let followed = match each_peer(&core.store).await {
        Ok(rows) => {
            let mut all_open = true;
            for (key, row) in rows {
                match row {
                    Ok(row) => drop(peers.insert(row.user.clone(), row)),
                    Err(error) => {
                        all_open &= error.code() != tampered;
                        failed.get_or_insert(error.code());
                        kept.insert(key);
                    }
                }
            }
            let keep = |user: &UserId| !kept.is_empty() && kept.contains(&keys::peer(&core.store, user));
            core.follow_peers(peers, keep);
            all_open
        }
        Err(error) if error.passes() => return Err(error),
        Err(error) => {
            failed = Some(error.code());
            false
        }
    };
    // Once, however many beats find it so.
    if let Some(code) = failed
        && *unread != failed
    {
        core.hub.emit(Event::StoreFailing { code });
    }
    *unread = failed;
    Ok(followed)
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
        self.groups.count(&self.store).await?;
        let lanes = self.readable_lanes().await?;
        // Nothing that can fail comes after this: it is done once.
        self.instances.set_receives(true);
        self.groups.take_over();
        self.instances.next_epoch();
        self.hub.emit(Event::Receiving { here: true });
        self.kick.notify_one();
        self.wake_lanes();
        // Receipts that are owed, mail that waits for answers.
        self.wake_lanes_with_work(lanes);
        Ok(())
    }

    /// What there is of all conversations, as far as it can be read. That a row can not be is told, and holds up nothing that has to do
    /// with the others. What may pass is an error.
    pub(super) async fn readable_lanes(&self) -> Result<Vec<(Address, LaneRow)>> {
        let (mut lanes, mut failed) = (Vec::new(), None);
        match each_lane(&self.store).await {
            Ok(rows) => {
                for row in rows {
                    match row {
                        Ok(lane) => lanes.push(lane),
                        Err(error) => {
                            failed.get_or_insert(error);
                        }
                    }
                }
            }
            Err(error) if error.passes() => return Err(error),
            Err(error) => failed = Some(error),
        }
        if let Some(error) = failed {
            self.hub.emit(Event::StoreFailing { code: error.code() });
        }
        Ok(lanes)
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
