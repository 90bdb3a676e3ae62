//! Nobody uses up a user's one-time prekeys, with the bounds that a relay has unless its operator moves them.

#![cfg(test)]

mod support;

use stvor_relay::limits::ONE_TIME_PER_PAIR;
use stvor_wire::client::UploadKeys;
use support::{Server, key_set, one_time};

#[tokio::test]
async fn one_time_prekeys_can_not_be_drained_by_one_fetcher() {
    let server = Server::memory().await;
    let (_, mut bob) = server.user("bob").await;
    bob.upload_set(100, 50).await;
    bob.upload(UploadKeys { one_time: one_time(101..=200), ..key_set(0, 0) }).await;
    let (_, mut mallory) = server.user("mallory").await;
    let mut with = 0;
    for _ in 0..200 {
        let bundles = mallory.fetch("bob").await.unwrap();
        assert_eq!(bundles.bundles.len(), 1, "a bundle is never refused");
        with += usize::from(bundles.bundles[0].one_time.is_some());
    }
    // Two more may have been let through as the bucket refills.
    let allowed = usize::try_from(ONE_TIME_PER_PAIR).unwrap();
    assert!((allowed..=allowed + 2).contains(&with), "{with} one-time prekeys are gone");
}
