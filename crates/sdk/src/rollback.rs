//! Getting out of an old copy of the store.
//!
//! A copy knows session keys that were used since it was made. The relay tells so at log-in: it saw a higher send counter
//! than the copy holds, and gives back the proof that this device made for it. Nothing is sent on those sessions any more:
//! recovery gives them up, and sender keys and one-time prekeys with them. A row says that a recovery is under way until
//! all of it is done, so a process that ends in the middle of one goes on with it at its next start.
//!
//! What this can not catch: a relay that replays an earlier counter with its proof, or tells none, and a writer that puts single
//! rows back together with their versions. Only a monotonic counter in hardware would show these, and none is used.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use stvor_base::codec::{CodecError, Reader, Writer};
use stvor_base::{Address, UserId};
use stvor_protocol::Identity;
use stvor_store::{ChangeSet, Expect, Op, Scan, StoreError, Table};
use stvor_wire::server::{Ready, Registration};
use tokio_util::sync::CancellationToken;

use crate::core::Core;
use crate::error::{Error, ErrorKind, Result};
use crate::events::Event;
use crate::instances::{InstanceId, Instances};
use crate::keys;
use crate::lane::{Command, GivingUp, Work};
use crate::limits;
use crate::opening::{each_lane, read_floor, read_lanes};
use crate::records;
use crate::revival;
use crate::rotation;

/// What a client does that finds its store to be an old copy.
///
/// It finds that by the send counter that the relay returns. A relay that replays an earlier counter, and a writer that puts single
/// rows back together with their versions, are not noticed: only a counter in hardware would catch them, and there is none here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum RollbackPolicy {
    /// Starts over by itself with fresh sessions, and tells. What the application handed over meanwhile waits and then goes
    /// out. Only a counter that this device proved is acted upon: else it asks.
    #[default]
    Recover,
    /// Sends nothing until [`crate::Client::recover_from_rollback`]: for applications whose owner may have the newest copy
    /// somewhere and would rather go back to it.
    Ask,
}

/// That the store is an old copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rollback {
    /// The highest counter that the relay saw.
    pub(crate) relay: u64,
    /// The highest in the store.
    pub(crate) own: u64,
    /// It is decided that sessions are given up: what is handed over waits for that.
    pub(crate) decided: bool,
    /// A row says so, if the store is shared: that it is gone means that another instance is done with it.
    pub(crate) noted: bool,
}

impl Rollback {
    /// Whether nothing was rolled back, but our identity handed over to another: the same is to be given up.
    fn is_rotation(self) -> bool {
        self.relay <= self.own
    }

    pub(crate) fn error(self) -> Error {
        ErrorKind::RollbackDetected { relay: self.relay, own: self.own }.into()
    }
}

/// The row that stands while a recovery is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Recovering {
    /// The counter to go on from.
    relay: u64,
    own: u64,
    /// Whose it is; zeros on a store of one process.
    by: InstanceId,
    /// Sessions are given up; else somebody is asked first.
    decided: bool,
}

const RECOVERING: &str = "recovering";
const VERSION: u8 = 1;

impl Recovering {
    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_capacity(33);
        out.u8(VERSION).u64(self.relay).u64(self.own).raw(&self.by.0).u8(u8::from(self.decided));
        out.finish()
    }

    fn decode(bytes: &[u8]) -> core::result::Result<Self, CodecError> {
        let mut input = Reader::new(bytes);
        match input.u8()? {
            VERSION => {}
            other => return Err(CodecError::Version(other)),
        }
        let row = Self {
            relay: input.u64()?,
            own: input.u64()?,
            by: InstanceId(*input.array()?),
            decided: input.bool()?,
        };
        input.finish()?;
        Ok(row)
    }

    fn found(self) -> Rollback {
        Rollback { relay: self.relay, own: self.own, decided: self.decided, noted: true }
    }
}

/// The row by which the next start gives up what was of an identity that hands over to another one, to go into the commit that
/// replaces it. Its counters are the same: nothing was rolled back.
pub(crate) fn row_of_rotation(core: &Core) -> Op<stvor_crypto::SecretBytes> {
    let counter = core.counter();
    let row = Recovering { relay: counter, own: counter, by: core.instances.id(), decided: true };
    Op::insert(keys::meta(RECOVERING), row.encode())
}

/// A recovery that a process which ended, or another one, began.
async fn under_way(core: &Core) -> Result<Option<Recovering>> {
    let row = core.store.one(&keys::meta(RECOVERING)).await.map_err(Error::passed)?;
    row.map(|row| Recovering::decode(row.value.expose())).transpose().map_err(Error::passed)
}

/// Before anything is sent: a recovery that was begun is to be finished, whatever relay is there.
pub(crate) async fn resume(core: &Core) -> Result<()> {
    if let Some(row) = under_way(core).await? {
        core.set_rollback(Some(row.found()));
        if row.decided {
            recover_soon(core);
        }
    }
    Ok(())
}

/// The store itself was put back to an older state under a process that has it open; if it is still there at all.
pub(crate) async fn put_back(core: &Core, (known, found): (u64, u64)) -> Result<()> {
    core.store.check_there().await.map_err(Error::passed)?;
    let news = core.rollback().is_none();
    if news {
        let decided = core.config.on_rollback == RollbackPolicy::Recover;
        let found = Rollback { relay: known, own: found, decided, noted: false };
        core.set_rollback(Some(found));
        core.hub.emit_to_first(Event::RollbackDetected { relay: found.relay, own: found.own });
    }
    // What others here have read of it meanwhile, and want to commit, is of no use either.
    core.store.accept_put_back().await;
    if news {
        recover_soon(core);
    }
    core.instances.take_row_as_it_is(&core.store).await
}

/// The store itself says that it was put back, or the row of this instance does.
pub(crate) async fn found_put_back(core: &Core) -> Result<()> {
    let identity = core.store.one(&records::key(&Identity::key())?).await.map_err(Error::passed)?;
    if identity.is_none() {
        // Another instance deleted the account: the next beat finds that, and this one ends.
        core.store.check_there().await.map_err(Error::passed)?;
        core.store.accept_put_back().await;
        return core.instances.take_row_as_it_is(&core.store).await;
    }
    // A row that can not be read may have had a higher one: then more counts as put back than was, and nothing less.
    let (stored, _) = readable_counter(core).await?;
    put_back(core, (core.counter().max(stored.saturating_add(1)), stored)).await
}

/// Recovers (or lets other instances know, where that is to be asked first) beside whatever the caller does, and tries until it
/// succeeds, also after a fault in the program. One task serves all who ask.
fn recover_soon(core: &Core) {
    if core.recovery_asked.fetch_add(1, Ordering::SeqCst) > 0 {
        return;
    }
    let (me, stop) = (core.me(), core.stop.clone());
    let run = move || recover_for_all(me.clone(), stop.clone());
    core.tasks.spawn(revival::keep("recovery", run, (core.me(), core.stop.clone())));
}

/// The task of [`recover_soon`]: it looks once more for what was found while it was ending.
async fn recover_for_all(me: Weak<Core>, stop: CancellationToken) {
    let mut told = None;
    loop {
        let Some(core) = me.upgrade() else { return };
        let asked = core.recovery_asked.load(Ordering::SeqCst);
        let done = match core.rollback() {
            Some(found) if !found.decided => announce(&core, found).await.map(|()| {
                // Should another instance have recovered before this one looks, it finds no row. What ended here
                // meanwhile stays ended.
                if let Some(now) = core.rollback() {
                    core.set_rollback(Some(Rollback { noted: true, ..now }));
                }
            }),
            _ => recover(&core).await,
        };
        let ended = done.is_ok()
            && core.recovery_asked.compare_exchange(asked, 0, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        if ended {
            return;
        }
        if let Err(error) = done {
            tracing::warn!(code = error.code(), "{LATER}");
            // Nobody else may notice, and until it is over nothing is sent.
            if !error.passes() && told.replace(error.code()) != Some(error.code()) {
                core.hub.emit(Event::StoreFailing { code: error.code() });
            }
        }
        drop(core);
        tokio::select! {
            () = tokio::time::sleep(limits::BACKOFF_FIRST) => {}
            () = stop.cancelled() => return,
        }
    }
}

const LATER: &str = "the recovery from an old copy of the store has to go on later";

/// What the relay's counter is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Worth {
    /// This device made the proof.
    Proven,
    /// The relay knows no proofs, or the counter is of a client that knew none.
    Claimed,
    /// The proof is not this device's.
    Forged,
}

fn worth(core: &Core, ready: &Ready) -> Worth {
    let counts_to = core.counter().max(core.now().as_millis().saturating_mul(1_000));
    match &ready.counter_mac {
        _ if ready.highest_counter > limits::MAX_COUNTER => Worth::Forged,
        // No device sends so much, and its own counter would have no room to rise.
        None if ready.highest_counter > counts_to.saturating_add(limits::COUNTER_LEAP) => Worth::Forged,
        Some(mac) if core.counter_key.proves(ready.highest_counter, mac) => Worth::Proven,
        Some(_) => Worth::Forged,
        None => Worth::Claimed,
    }
}

/// Compares the highest send counter that the relay saw with the store's, before anything is sent.
pub(crate) async fn look_for(core: &Core, ready: &Ready) {
    let mut told = None;
    while core.rollback().is_none() {
        match compare(core, ready).await {
            Ok(()) => break,
            // Undecided, so nothing is sent: the counter of a row that can not be read may be high enough.
            Err(error) => {
                tracing::warn!(code = error.code(), "the send counters in the store could not be read");
                if told.replace(error.code()) != Some(error.code()) {
                    core.hub.emit(Event::StoreFailing { code: error.code() });
                }
                tokio::time::sleep(limits::BACKOFF_FIRST).await;
            }
        }
    }
    // An instance that found it may have ended before it decided.
    if let Some(found) = core.rollback()
        && !found.decided
        && core.config.on_rollback == RollbackPolicy::Recover
        && ready.highest_counter > found.own
        && worth(core, ready) == Worth::Proven
    {
        core.set_rollback(Some(Rollback { decided: true, ..found }));
    }
    if core.rollback().is_some_and(|found| found.decided)
        && let Err(error) = recover(core).await
    {
        tracing::warn!(code = error.code(), "{LATER}");
        recover_soon(core);
    }
}

async fn compare(core: &Core, ready: &Ready) -> Result<()> {
    let relay = ready.highest_counter;
    if relay == 0 || ready.registration != Registration::Known {
        return Ok(());
    }
    let worth = worth(core, ready);
    if worth == Worth::Forged {
        core.hub.emit_to_first(Event::CounterForged { relay });
        return Ok(());
    }
    if core.prekeys.starts_anew() && !has_sent(core).await? {
        // A store that was restored has no session of the old one, so nothing can be used twice. Once it has sent something the comparison
        // holds for it as for any other, also before its fresh prekeys are at the relay.
        core.raise_counter(relay);
        return Ok(());
    }
    // Other instances may have sent. What the relay saw from them was in the store before, so a look at it now decides;
    // what memory holds may be of a time before the store itself was put back.
    let (own, unread) = match core.instances.is_shared() {
        true => readable_counter(core).await?,
        false => (core.counter(), None),
    };
    core.raise_counter(own);
    if relay <= own {
        return Ok(());
    }
    if let Some(unread) = unread {
        return Err(unread);
    }
    // A store that was emptied has no counter either, and there is nothing to recover in it.
    core.store.check_there().await.map_err(Error::passed)?;
    let decided = worth == Worth::Proven && core.config.on_rollback == RollbackPolicy::Recover;
    let found = Rollback { relay, own, decided, noted: true };
    announce(core, found).await?;
    core.set_rollback(Some(found));
    core.hub.emit_to_first(Event::RollbackDetected { relay, own });
    Ok(())
}

/// Whether anything was sent out of this store, by whichever instance.
async fn has_sent(core: &Core) -> Result<bool> {
    let lanes = each_lane(&core.store).await?;
    if lanes.iter().flatten().any(|(_, row)| row.counter > 0) {
        return Ok(true);
    }
    lanes.into_iter().find_map(Result::err).map_or(Ok(false), Err)
}

/// The highest send counter that can be read; and if a row was altered or does not decode, whose counter may be higher, why.
async fn readable_counter(core: &Core) -> Result<(u64, Option<Error>)> {
    let (mut highest, mut unread) = (0, None);
    for lane in each_lane(&core.store).await? {
        match lane {
            Ok((_, row)) => highest = row.counter.max(highest),
            Err(error) => {
                unread.get_or_insert(error);
            }
        }
    }
    Ok((highest.max(read_floor(&core.store).await?), unread))
}

/// What another instance found, or did about it.
pub(crate) async fn look_again(core: &Core) -> Result<()> {
    let found = (under_way(core).await?, core.rollback());
    if found.0.is_some() {
        // Nobody goes on with what a rotation left while they have the old identity in memory.
        rotation::refuse_replaced(core).await?;
    }
    match found {
        (Some(row), None) => {
            core.set_rollback(Some(row.found()));
            if !row.found().is_rotation() {
                core.hub.emit_to_first(Event::RollbackDetected { relay: row.relay, own: row.own });
            }
        }
        (Some(row), Some(found)) => {
            if row.decided && !found.decided {
                core.set_rollback(Some(row.found()));
            }
            // It may have ended before it was done. Beats go on meanwhile.
            if row.decided && core.recovering.try_lock().is_ok() {
                recover_soon(core);
            }
        }
        // Not noted yet, it is still to be done by this one.
        (None, Some(found)) if found.noted => {
            let (stored, _) = readable_counter(core).await?;
            if stored >= found.relay {
                end(core, stored);
            }
        }
        (None, _) => {}
    }
    Ok(())
}

/// Nothing of the old copy is in use any more.
fn end(core: &Core, counter: u64) {
    core.raise_counter(counter);
    core.set_rollback(None);
    core.instances.next_epoch();
    core.wake_lanes();
}

/// [`recover`], for somebody who asked for it: to its end, also if nobody waits for it any more, for nothing is sent while it is
/// half done. What fails once it is decided is tried until it succeeds.
pub(crate) async fn recover_now(core: &Arc<Core>) -> Result<()> {
    let me = Arc::clone(core);
    let recovering = core.tasks.spawn(async move {
        let done = recover(&me).await;
        if done.is_err() {
            // That it is decided may be stored all the same.
            if let Ok(Some(row)) = under_way(&me).await
                && row.decided
                && me.rollback().is_some()
            {
                me.set_rollback(Some(row.found()));
            }
            if me.rollback().is_some_and(|found| found.decided) {
                recover_soon(&me);
            }
        }
        done
    });
    recovering.await.map_err(|_| Error::not_ready("its recovery did not finish"))?
}

/// Gives up what the old copy would use a second time. Can be called again until it succeeds; two at once take turns.
pub(crate) async fn recover(core: &Core) -> Result<()> {
    let _turn = core.recovering.lock().await;
    let Some(found) = core.rollback() else { return Ok(()) };
    if !begin(core, found).await? {
        // Another instance is at it; this one sends nothing until it is done.
        core.set_rollback(Some(Rollback { decided: true, noted: true, ..found }));
        return Ok(());
    }
    core.set_rollback(Some(Rollback { decided: true, noted: true, ..found }));
    reset_lanes(core, found.is_rotation()).await?;
    core.groups.renew_chains().await?;
    core.prekeys.renew(core).await?;
    let counter = found.relay.max(core.counter());
    let mut changes = ChangeSet::new();
    changes.put(keys::meta("counter"), counter.to_be_bytes().to_vec()).delete(keys::meta(RECOVERING));
    if core.instances.is_shared() {
        changes.push(core.instances.fence());
    }
    core.store.commit(changes).await.map_err(Error::passed)?;
    end(core, counter);
    if !found.is_rotation() {
        core.hub.emit_to_first(Event::RollbackRecovered);
    }
    Ok(())
}

/// On a shared store: lets no instance use what the old copy holds, before it is decided what to do. All others are declared
/// gone, and find the row when they join again.
async fn announce(core: &Core, found: Rollback) -> Result<()> {
    if !core.instances.is_shared() || under_way(core).await?.is_some() {
        return Ok(());
    }
    let mut changes = ChangeSet::new();
    changes.push(core.instances.fence());
    core.instances.bury_others(&core.store, (core.now(), &mut changes)).await?;
    let row = Recovering { relay: found.relay, own: found.own, by: core.instances.id(), decided: false };
    changes.push(Op::insert(keys::meta(RECOVERING), row.encode()));
    match core.store.commit(changes).await {
        Ok(_) => Ok(()),
        Err(StoreError::Conflict { .. }) => Err(busy()),
        Err(error) => Err(Error::passed(error)),
    }
}

/// Others wrote at the same time, or declared this instance gone: a later attempt finds what they wrote.
fn busy() -> Error {
    Error::not_ready("other instances change the store at the same time")
}

/// Notes that a recovery is under way. On a shared store one instance does it, and all others are declared gone: what they
/// have in memory is of no use, and what they commit from now on is refused. `false` if another one is at it.
async fn begin(core: &Core, found: Rollback) -> Result<bool> {
    rotation::refuse_replaced(core).await?;
    let key = keys::meta(RECOVERING);
    let shared = core.instances.is_shared();
    let by = core.instances.id();
    let row = core.store.one(&key).await.map_err(Error::passed)?;
    let expect = match row {
        None => Expect::Absent,
        Some(row) => {
            let begun = Recovering::decode(row.value.expose()).map_err(Error::passed)?;
            let theirs = shared && begun.by != by && begun.decided;
            if theirs && !Instances::present(&core.store, &[begun.by]).await?.is_empty() {
                return Ok(false);
            }
            Expect::Version(row.version)
        }
    };
    let mut changes = ChangeSet::new();
    if shared {
        changes.push(core.instances.fence());
        core.instances.bury_others(&core.store, (core.now(), &mut changes)).await?;
    }
    let begun = Recovering { relay: found.relay, own: found.own, by, decided: true };
    changes.push(Op::put(key, begun.encode()).expecting(expect));
    match core.store.commit(changes).await {
        Ok(_) => Ok(true),
        Err(StoreError::Conflict { .. }) => Err(busy()),
        Err(error) => Err(Error::passed(error)),
    }
}

/// Every conversation gives its sessions up. What is in the outbox stays there: what was encrypted before the copy was made
/// goes out as the same bytes, the rest in fresh sessions.
async fn reset_lanes(core: &Core, rotated: bool) -> Result<()> {
    let mut lanes = read_lanes(&core.store).await?;
    // Who was written with last is told first.
    lanes.sort_by_key(|(_, row)| core::cmp::Reverse(row.order));
    let mut known: BTreeSet<Address> = BTreeSet::new();
    let recent: Vec<Address> = lanes.into_iter().map(|(peer, _)| peer).collect();
    known.extend(recent.iter().cloned());
    let mut peers: BTreeSet<Address> = BTreeSet::new();
    // A conversation whose messages travel another way has no lane.
    peers.extend(core.peers().iter().map(|row| crate::client::address_of(&row.user)));
    for row in
        core.store.scan_all(Scan::of(Table::Pin, keys::PINNED), usize::MAX).await.map_err(Error::passed)?
    {
        let name =
            core::str::from_utf8(row.value.expose()).ok().and_then(|name| UserId::from_canonical(name).ok());
        peers.extend(name.map(|user| crate::client::address_of(&user)));
    }
    let peers: Vec<Address> = recent.into_iter().chain(peers.difference(&known).cloned()).collect();
    let mut told = 0;
    for batch in peers.chunks(limits::RECOVERY_BATCH) {
        let mut answers = Vec::with_capacity(batch.len());
        for peer in batch {
            let (reply, done) = tokio::sync::oneshot::channel();
            told += 1;
            let why = match rotated {
                true => GivingUp::Rotated { tell: told <= limits::ROTATION_TOLD },
                false => GivingUp::RolledBack,
            };
            core.work_of_recovery(peer, Work::Command(Command::Recover(why, reply.into())))?;
            answers.push(done);
        }
        for done in answers {
            done.await.map_err(|_| Error::not_ready("it was closed"))??;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;
    use std::sync::atomic::AtomicBool;

    use stvor_base::{DeviceId, Timestamp};

    use super::*;
    use crate::clock::Clock;
    use crate::clock::testing::soon;
    use crate::rows::LaneRow;
    use crate::{App, ConnectOptions, hiccups};

    /// A clock that meets a fault in the first recovery, and whether it did.
    #[derive(Default)]
    struct Faulty(OnceLock<Weak<Core>>, AtomicBool);

    impl Clock for Faulty {
        fn now(&self) -> Timestamp {
            let core = self.0.get().and_then(Weak::upgrade);
            let recovers = core.is_some_and(|core| core.recovering.try_lock().is_err());
            assert!(!recovers || self.1.swap(true, Ordering::SeqCst), "a fault on purpose");
            Timestamp::system()
        }
    }

    #[tokio::test]
    async fn a_recovery_that_meets_a_fault_is_begun_afresh() {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let app = App::builder().app_token("stvor_dev_test123").relay_url(format!("ws://{nobody}"));
        let options = ConnectOptions { allow_unregistered: true, ..ConnectOptions::default() };
        let clock = Arc::new(Faulty::default());
        let app = app.clock(Arc::clone(&clock) as Arc<dyn Clock>).in_memory().open().await.unwrap();
        let client = app.connect_with("alice", options).await.unwrap();
        let (core, mut events) = (client.core(), client.events());
        clock.0.set(core.me()).unwrap();
        core.set_rollback(Some(Rollback { relay: 9, own: 7, decided: true, noted: true }));
        recover_soon(core);
        let failed = soon(async {
            loop {
                if let Some(Event::TaskFailed { task, .. }) = events.next().await {
                    break task;
                }
            }
        });
        assert_eq!(failed.await, "recovery");
        assert!(core.rollback().is_some());
        // Whoever asks meanwhile waits for the same task.
        recover_soon(core);
        soon(async {
            while core.recovery_asked.load(Ordering::SeqCst) > 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert_eq!(core.rollback(), None);
    }

    #[tokio::test]
    async fn however_often_a_recovery_is_asked_for_one_task_is_at_it() {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let app = App::builder().app_token("stvor_dev_test123").relay_url(format!("ws://{nobody}"));
        let options = ConnectOptions { allow_unregistered: true, ..ConnectOptions::default() };
        let client = app.in_memory().open().await.unwrap().connect_with("alice", options).await.unwrap();
        let core = client.core();
        for relay in [9, 10] {
            core.set_rollback(Some(Rollback { relay, own: 7, decided: true, noted: true }));
            let before = core.tasks.len();
            for _ in 0..100 {
                recover_soon(core);
            }
            assert!(core.tasks.len() <= before + 1);
            while core.recovery_asked.load(Ordering::SeqCst) > 0 {
                tokio::task::yield_now().await;
            }
            assert_eq!(core.rollback(), None, "and it is done");
        }
    }

    /// The next code with which the store is said to fail.
    async fn failing(events: &mut crate::Events) -> &'static str {
        loop {
            if let Some(Event::StoreFailing { code }) = events.next().await {
                break code;
            }
        }
    }

    #[tokio::test]
    async fn a_recovery_that_a_row_keeps_from_its_end_says_so_once_and_ends_when_the_row_opens() {
        let (store, directory) = (Arc::default(), tempfile::tempdir().unwrap());
        let client = hiccups::instance(&store, &directory).await;
        let (core, mut events) = (client.core(), client.events());
        let bob = Address::new(UserId::new("bob").unwrap(), DeviceId::FIRST);
        let mut changes = ChangeSet::new();
        changes.put(keys::lane(&core.store, &bob), LaneRow::default().encode(&bob));
        core.store.commit(changes).await.unwrap();
        let at = core.store.key_on_disk(&keys::lane(&core.store, &bob));
        let whole = store.row(&at).await;
        store.alter(&at).await;

        core.set_rollback(Some(Rollback { relay: 9, own: 7, decided: true, noted: true }));
        recover_soon(core);
        assert_eq!(soon(failing(&mut events)).await, "ROW_TAMPERED");
        let again = tokio::time::timeout(4 * limits::BACKOFF_FIRST, failing(&mut events)).await;
        assert!(again.is_err() && core.rollback().is_some(), "{again:?}, and it is still to be done");

        store.put(&at, whole).await;
        soon(async {
            while core.rollback().is_some() {
                tokio::time::sleep(limits::BACKOFF_FIRST).await;
            }
        })
        .await;
    }

    #[tokio::test]
    async fn who_can_not_compare_for_a_row_that_can_not_be_read_says_so_and_is_undecided_until_it_can_be() {
        let (store, directory) = (Arc::default(), tempfile::tempdir().unwrap());
        let client = hiccups::instance(&store, &directory).await;
        let (core, mut events) = (client.core(), client.events());
        let peer = Address::new(UserId::new("bob").unwrap(), DeviceId::FIRST);
        let write = |row: Vec<u8>| {
            let mut changes = ChangeSet::new();
            changes.put(keys::lane(&core.store, &peer), row);
            core.store.commit(changes)
        };
        write(vec![255]).await.unwrap();
        let ready = Ready { highest_counter: 5, ..crate::transport::minimal::ready() };
        let told = soon(async {
            tokio::select! {
                () = look_for(core, &ready) => panic!("decided"),
                code = failing(&mut events) => code,
            }
        });
        assert_eq!(told.await, "FORMAT_TOO_NEW");
        write(LaneRow { counter: 9, ..LaneRow::default() }.encode(&peer)).await.unwrap();
        soon(look_for(core, &ready)).await;
        assert_eq!(core.rollback(), None);
    }

    #[tokio::test]
    async fn a_row_that_was_altered_leaves_no_doubt_unless_its_counter_may_be_the_highest() {
        let (store, directory) = (Arc::default(), tempfile::tempdir().unwrap());
        let client = hiccups::instance(&store, &directory).await;
        let (core, mut events) = (client.core(), client.events());
        let [bob, carol] =
            ["bob", "carol"].map(|name| Address::new(UserId::new(name).unwrap(), DeviceId::FIRST));
        let lane = |peer: &Address| keys::lane(&core.store, peer);
        let row = |counter, peer: &Address| LaneRow { counter, ..LaneRow::default() }.encode(peer);
        let mut changes = ChangeSet::new();
        changes.put(lane(&bob), row(12, &bob)).put(lane(&carol), row(9, &carol));
        core.store.commit(changes).await.unwrap();
        let at = core.store.key_on_disk(&lane(&bob));
        let whole = store.row(&at).await;
        store.alter(&at).await;

        let ready = |highest_counter| Ready { highest_counter, ..crate::transport::minimal::ready() };
        soon(look_for(core, &ready(9))).await;
        assert_eq!(core.rollback(), None);
        let refused =
            core.store.one(&lane(&bob)).await.map(|_| ()).map_err(|error| Error::passed(error).code());
        assert_eq!(refused, Err("ROW_TAMPERED"), "it stays, and is refused");

        let ready = ready(12);
        let told = soon(async {
            tokio::select! {
                () = look_for(core, &ready) => panic!("decided"),
                code = failing(&mut events) => code,
            }
        });
        assert_eq!(told.await, "ROW_TAMPERED");
        store.put(&at, whole).await;
        soon(look_for(core, &ready)).await;
        assert_eq!(core.rollback(), None);
    }

    #[tokio::test]
    async fn a_row_that_does_not_decode_leaves_no_doubt_where_another_counter_is_high_enough() {
        let (store, directory) = (Arc::default(), tempfile::tempdir().unwrap());
        let client = hiccups::instance(&store, &directory).await;
        let core = client.core();
        let [bob, carol] =
            ["bob", "carol"].map(|name| Address::new(UserId::new(name).unwrap(), DeviceId::FIRST));
        let mut changes = ChangeSet::new();
        let row = LaneRow { counter: 9, ..LaneRow::default() };
        changes
            .put(keys::lane(&core.store, &bob), vec![255])
            .put(keys::lane(&core.store, &carol), row.encode(&carol));
        core.store.commit(changes).await.unwrap();
        let ready = Ready { highest_counter: 9, ..crate::transport::minimal::ready() };
        soon(look_for(core, &ready)).await;
        assert_eq!(core.rollback(), None);
    }

    #[test]
    fn the_row_of_a_recovery_reads_back_and_every_cut_is_refused() {
        let row = Recovering { relay: 9, own: 7, by: InstanceId([3; 16]), decided: true };
        let bytes = row.encode();
        // As version 1 writes it, for good.
        let written = [&[1][..], &9_u64.to_be_bytes(), &7_u64.to_be_bytes(), &[3; 16], &[1]].concat();
        assert_eq!(bytes, written);
        assert_eq!(Recovering::decode(&bytes), Ok(row));
        for length in 0..bytes.len() {
            assert!(Recovering::decode(&bytes[..length]).is_err(), "{length}");
        }
        assert_eq!(Recovering::decode(&[&bytes[..], &[0]].concat()), Err(CodecError::Trailing));
        let newer = [&[VERSION + 1], &bytes[1..]].concat();
        assert_eq!(Recovering::decode(&newer), Err(CodecError::Version(VERSION + 1)));
    }
}
