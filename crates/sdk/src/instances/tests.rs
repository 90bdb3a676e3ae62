//! What an instance makes of its own row.

use std::sync::Arc;
use std::time::Duration;

use stvor_base::Timestamp;
use stvor_crypto::{Secret, SystemRandom};
use stvor_store::{ChangeSet, Expect, MemoryStore, Op, RowValue, Sealed};

use super::{Beat, Instances, stone};
use crate::keys;

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
