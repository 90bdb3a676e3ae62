//! What an instance makes of its own row.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use stvor_base::{Address, DeviceId, ErrorCode as _, Timestamp, UserId};
use stvor_crypto::{Secret, SystemRandom};
use stvor_keys::KeyHolder;
use stvor_store::{
    ChangeSet, Expect, Key, MemoryStore, Op, Page, Row, RowValue, Scan, Sealed, Stats, Store, StoreError,
};

use super::{Beat, Instances, stone};
use crate::Event;
use crate::clock::testing::soon;
use crate::core::Core;
use crate::hiccups::{self, Hiccups};
use crate::keys;
use crate::rows::{LaneRow, PeerRow};

const NOW: Timestamp = Timestamp::from_millis(1_000);

async fn sealed() -> Sealed {
    let holder = stvor_keys::IdentityKey::new(&Secret::random(&mut SystemRandom::new()).unwrap());
    Sealed::open(Arc::new(MemoryStore::new()), Arc::new(holder)).await.unwrap()
}

/// The row of an instance as it is in the store below, where nobody looks at who may write it.
async fn row(store: &Sealed, instances: &Instances) -> RowValue {
    let key = store.key_on_disk(&keys::instance(instances.id()));
    store.adapter().get(&[key]).await.unwrap().pop().flatten().unwrap().value
}

async fn beat(store: &Sealed, instances: &Instances) -> Beat {
    instances.beat(store, NOW).await.unwrap()
}

#[tokio::test]
async fn a_row_that_is_older_than_it_was_written_or_gone_without_a_stone_tells_that_the_store_was_put_back() {
    let store = sealed().await;
    let instances = Instances::join(&store, Duration::from_secs(10), NOW).await.unwrap();
    let key = store.key_on_disk(&keys::instance(instances.id()));
    let old = row(&store, &instances).await;
    assert!(!beat(&store, &instances).await.put_back);
    let put_back: ChangeSet<RowValue> = [Op::put(key.clone(), old)].into_iter().collect();
    store.adapter().commit(put_back).await.unwrap();
    // Until somebody does something about it.
    for _ in 0..2 {
        let found = beat(&store, &instances).await;
        assert_eq!(found, Beat { put_back: true, ..Beat::default() });
    }
    instances.take_row_as_it_is(&store).await.unwrap();
    assert!(beat(&store, &instances).await.receiver);

    // A copy of before this instance joined: nothing of it is committed any more.
    store.adapter().commit([Op::delete(key)].into_iter().collect()).await.unwrap();
    let mut changes = ChangeSet::new();
    changes.push(instances.fence()).put(keys::meta("test"), vec![1]);
    assert!(store.commit(changes).await.is_err());
    assert!(beat(&store, &instances).await.put_back);
    instances.take_row_as_it_is(&store).await.unwrap();
    assert_eq!(beat(&store, &instances).await, Beat { gone: true, ..Beat::default() }, "it joins again");
}

#[tokio::test]
async fn who_was_declared_gone_does_not_take_that_for_a_store_that_was_put_back() {
    let store = sealed().await;
    let instances = Instances::join(&store, Duration::from_secs(10), NOW).await.unwrap();
    let id = instances.id();
    let gone = Op::delete(keys::instance(id)).expecting(Expect::Present);
    store.commit([gone, stone(id, NOW)].into_iter().collect()).await.unwrap();
    assert_eq!(beat(&store, &instances).await, Beat { gone: true, ..Beat::default() });
}

type StoreResult<T> = Result<T, StoreError>;

/// A store in memory where something happens after one of the next reads.
#[derive(Default)]
struct Meanwhile {
    store: MemoryStore,
    /// After how many more reads, and what.
    next: Mutex<Option<(usize, BoxFuture<'static, ()>)>>,
    /// The next commit fails.
    refuses: AtomicBool,
}

impl core::fmt::Debug for Meanwhile {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Meanwhile").finish_non_exhaustive()
    }
}

impl Meanwhile {
    async fn was_read(&self) {
        let due = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((reads, _)) = next.as_mut() {
                *reads = reads.saturating_sub(1);
            }
            next.take_if(|(reads, _)| *reads == 0)
        };
        if let Some((_, what)) = due {
            what.await;
        }
    }
}

#[async_trait::async_trait]
impl Store for Meanwhile {
    async fn get(&self, keys: &[Key]) -> StoreResult<Vec<Option<Row>>> {
        let rows = self.store.get(keys).await;
        self.was_read().await;
        rows
    }
    async fn scan(&self, scan: Scan) -> StoreResult<Page<Row>> {
        let page = self.store.scan(scan).await;
        self.was_read().await;
        page
    }
    async fn commit(&self, changes: ChangeSet<RowValue>) -> StoreResult<()> {
        if self.refuses.swap(false, Ordering::SeqCst) {
            return Err(StoreError::Unreachable { server: "test".into(), reason: "away".into() });
        }
        self.store.commit(changes).await
    }
    async fn sweep(&self, now: Timestamp, limit: usize) -> StoreResult<usize> {
        self.store.sweep(now, limit).await
    }
    async fn stats(&self) -> StoreResult<Stats> {
        self.store.stats().await
    }
    async fn close(&self) -> StoreResult<()> {
        Ok(())
    }
}

#[tokio::test]
async fn who_comes_and_takes_the_place_while_another_looks_is_the_only_one_who_receives() {
    let lease = Duration::from_secs(10);
    let mut came = 0;
    for reads in 1..=4 {
        let below = Arc::new(Meanwhile::default());
        let holder = stvor_keys::IdentityKey::new(&Secret::random(&mut SystemRandom::new()).unwrap());
        let holder: Arc<dyn KeyHolder> = Arc::new(holder);
        let open = || async {
            let store: Arc<dyn Store> = below.clone();
            Sealed::open(store, Arc::clone(&holder)).await.unwrap().shared(true)
        };
        let (first, second, third) = (open().await, open().await, open().await);
        let receiver = Instances::join(&first, lease, NOW).await.unwrap();
        let looks = Instances::join(&second, lease, NOW).await.unwrap();
        assert!(receiver.receives() && !looks.receives());
        receiver.leave(&first, NOW).await.unwrap();
        let (tell, told) = tokio::sync::oneshot::channel();
        let comes: BoxFuture<'static, ()> = Box::pin(async move {
            let comes = Instances::join(&third, lease, NOW).await.unwrap();
            let _ = tell.send(comes.receives());
        });
        *below.next.lock().unwrap() = Some((reads, comes));
        let here = beat(&second, &looks).await.receiver;
        below.next.lock().unwrap().take();
        match told.await {
            Ok(there) => {
                came += 1;
                assert!(here != there, "after read {reads}: {here} here, {there} there");
            }
            Err(_) => assert!(here, "nobody else came"),
        }
    }
    assert!(came >= 2, "a look is two reads");
}

#[tokio::test]
async fn what_a_beat_found_is_said_again_until_it_is_followed_though_the_store_goes_away_in_between() {
    let below = Arc::new(Meanwhile::default());
    let holder = stvor_keys::IdentityKey::new(&Secret::random(&mut SystemRandom::new()).unwrap());
    let holder: Arc<dyn KeyHolder> = Arc::new(holder);
    let open = || async {
        let store: Arc<dyn Store> = below.clone();
        Sealed::open(store, Arc::clone(&holder)).await.unwrap().shared(true)
    };
    let (first, second) = (open().await, open().await);
    let ends = Instances::join(&first, Duration::from_secs(10), NOW).await.unwrap();
    let stays = Instances::join(&second, Duration::from_secs(10), NOW).await.unwrap();
    assert_eq!(beat(&second, &stays).await, Beat::default());
    let mut changes = ChangeSet::new();
    changes.put(keys::meta("settings"), vec![1]);
    first.commit(changes).await.unwrap();
    ends.leave(&first, NOW).await.unwrap();
    // Between what is found and the commit that takes the place of who receives.
    let store = Arc::clone(&below);
    let goes_away: BoxFuture<'static, ()> =
        Box::pin(async move { store.refuses.store(true, Ordering::SeqCst) });
    *below.next.lock().unwrap() = Some((2, goes_away));
    assert_eq!(stays.beat(&second, NOW).await.unwrap_err().code(), "STORE_UNREACHABLE");
    for _ in 0..2 {
        let found = Beat { ended: true, settings: true, receiver: true, ..Beat::default() };
        assert_eq!(beat(&second, &stays).await, found);
    }
    stays.followed();
    assert_eq!(beat(&second, &stays).await, Beat { receiver: true, ..Beat::default() });
}

/// What another instance blocks, and what else it writes.
async fn block_elsewhere(core: &Core, user: &UserId, mut changes: ChangeSet) {
    let row = PeerRow { blocked: true, ..PeerRow::new(user.clone()) };
    changes.put(keys::peer(&core.store, user), row.encode()).put(keys::meta("settings"), vec![1]);
    core.store.commit(changes).await.unwrap();
    core.instances.hurry();
}

/// The code of the next failure of the store that is told.
async fn failing(events: &mut crate::Events) -> &'static str {
    soon(async {
        loop {
            if let Some(Event::StoreFailing { code }) = events.next().await {
                break code;
            }
        }
    })
    .await
}

async fn is_blocked(core: &Core, user: &UserId) {
    soon(async {
        while !core.is_blocked(user) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn settings_that_do_not_decode_are_told_and_hold_back_none_that_another_instance_changed() {
    let (store, directory) = (Arc::default(), tempfile::tempdir().unwrap());
    let client = hiccups::instance(&store, &directory).await;
    let (core, mut events) = (client.core(), client.events());
    let [bob, carol] = ["bob", "carol"].map(|name| UserId::new(name).unwrap());
    core.change_shared_peer(&bob, |row| row.blocked = true).await.unwrap();
    let mut changes = ChangeSet::new();
    changes.put(keys::peer(&core.store, &bob), vec![255]);
    block_elsewhere(core, &carol, changes).await;
    is_blocked(core, &carol).await;
    assert!(core.is_blocked(&bob), "as far as is known");
    assert_eq!(failing(&mut events).await, "FORMAT_TOO_NEW");
}

#[tokio::test]
async fn settings_that_were_altered_are_told_and_hold_back_none_that_another_instance_changed() {
    let (store, directory) = (Arc::new(Hiccups::default()), tempfile::tempdir().unwrap());
    let client = hiccups::instance(&store, &directory).await;
    let (core, mut events) = (client.core(), client.events());
    let [bob, carol] = ["bob", "carol"].map(|name| UserId::new(name).unwrap());
    let place = keys::peer(&core.store, &bob);
    let at = core.store.key_on_disk(&place);
    let mut changes = ChangeSet::new();
    changes.put(place.clone(), PeerRow::new(bob.clone()).encode());
    core.store.commit(changes).await.unwrap();
    let other = store.row(&at).await;
    core.change_shared_peer(&bob, |row| row.blocked = true).await.unwrap();
    store.alter(&at).await;
    block_elsewhere(core, &carol, ChangeSet::new()).await;
    is_blocked(core, &carol).await;
    assert!(core.is_blocked(&bob), "as far as is known");
    assert_eq!(failing(&mut events).await, "ROW_TAMPERED");
    assert_eq!(core.store.one(&place).await.unwrap_err().code(), "ROW_TAMPERED", "it stays, and is refused");
    // Nothing but the row itself tells that it opens again.
    store.put(&at, other).await;
    core.instances.hurry();
    soon(async {
        while core.is_blocked(&bob) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(core.is_blocked(&carol));
}

#[tokio::test]
async fn a_conversation_that_was_altered_is_told_and_holds_back_none_beside_it_from_who_takes_over() {
    let (store, directory) = (Arc::new(Hiccups::default()), tempfile::tempdir().unwrap());
    let client = hiccups::instance(&store, &directory).await;
    let (core, mut events) = (client.core(), client.events());
    let [bob, carol] = ["bob", "carol"].map(|name| Address::new(UserId::new(name).unwrap(), DeviceId::FIRST));
    let lane = |peer: &Address| keys::lane(&core.store, peer);
    let row = |peer: &Address| LaneRow::default().encode(peer);
    let mut changes = ChangeSet::new();
    changes.put(lane(&bob), row(&bob)).put(lane(&carol), row(&carol));
    core.store.commit(changes).await.unwrap();
    store.alter(&core.store.key_on_disk(&lane(&bob))).await;
    let readable = core.readable_lanes().await.unwrap();
    assert_eq!(readable.into_iter().map(|(peer, _)| peer).collect::<Vec<_>>(), [carol]);
    assert_eq!(failing(&mut events).await, "ROW_TAMPERED");
}
