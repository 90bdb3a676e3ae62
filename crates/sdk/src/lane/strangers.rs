//! Tests of looking for the prekeys of those whose mail could not be read and with whom we never spoke.

use std::sync::atomic::AtomicU64;

use stvor_base::{DeviceId, UserId};
use stvor_wire::server::Bundles;

use super::*;
use crate::clock::testing::{Behind, soon};
use crate::{App, Client};

/// What the relay answers to what the lane asks it when its pause is over.
async fn answer(lane: &mut Lane, orders: &mut mpsc::UnboundedReceiver<Order>) -> Box<Bundles> {
    lane.fetch_after = Instant::now();
    lane.turn(&mut Vec::new(), &mut Vec::new(), None).await;
    bundles(orders).await
}

async fn bundles(orders: &mut mpsc::UnboundedReceiver<Order>) -> Box<Bundles> {
    match soon(orders.recv()).await.unwrap().into_work() {
        Work::Bundle(found) => found.unwrap(),
        _ => panic!("prekeys"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_whose_prekeys_are_too_old_is_looked_for_again_without_using_any_up() {
    let relay = stvor_relay::Relay::start(stvor_relay::Config::mock(0)).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let app = || App::builder().app_token("stvor_dev_test123").relay_url(relay.url());
    let clock = Arc::new(Behind(AtomicU64::new(31 * 86_400_000)));
    let his = app().data_dir(directory.path()).clock(clock.clone()).open().await.unwrap();
    let counts = |bob: &Client| bob.core().prekeys.counts().unwrap_or_default();
    let bob = his.connect("bob").await.unwrap();
    soon(async {
        while counts(&bob).one_time == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let signed = counts(&bob).signed_prekey_id;
    bob.close().await;
    let alice = app().in_memory().open().await.unwrap().connect("alice").await.unwrap();
    let peer = Address::new(UserId::new("bob").unwrap(), DeviceId::FIRST);
    let (work, mut orders) = mpsc::unbounded_channel();
    let mut lane =
        Lane::fresh(Arc::clone(alice.core()), peer, (Arc::new(AtomicUsize::new(0)), work.downgrade()));
    lane.reload().await.unwrap();
    let mut step = Step::new(lane.row.clone());
    let unreadable = RetryRequest { message: MessageId::from_bytes([1; 16]), blob_hash: [1; 32] };
    lane.remember_request(unreadable, "DECRYPT", &mut step);
    lane.commit(step).await;
    assert!(lane.is_stranger());
    for time in 0..3 {
        let found = answer(&mut lane, &mut orders).await;
        assert_eq!(
            found.bundles[0].one_time.is_some(),
            time == 0,
            "{time}: the first costs one, no other does"
        );
        lane.turn(&mut Vec::new(), &mut vec![Work::Bundle(Ok(found))], None).await;
        assert!(
            !lane.requests.is_empty() && lane.fetch_after > Instant::now(),
            "{time}: too old, after a pause"
        );
    }
    clock.0.store(0, Ordering::Relaxed);
    let bob = his.connect("bob").await.unwrap();
    soon(async {
        while counts(&bob).signed_prekey_id.is_none_or(|id| Some(id) == signed) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let found = answer(&mut lane, &mut orders).await;
    assert!(found.bundles[0].one_time.is_none(), "whether there are newer ones is seen without");
    lane.turn(&mut Vec::new(), &mut vec![Work::Bundle(Ok(found))], None).await;
    let found = bundles(&mut orders).await;
    assert!(found.bundles[0].one_time.is_some(), "those that can be used are asked for at once, and whole");
}
