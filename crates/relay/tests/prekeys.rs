//! The prekey directory: a one-time prekey is handed out once, to one taker.

#![cfg(test)]

mod support;

use core::time::Duration;
use std::collections::HashSet;

use stvor_wire::client::{ClientMessage, FetchBundle, UploadKeys};
use stvor_wire::limits::MAX_WAIT_MS;
use stvor_wire::server::{Bundles, Subject};
use stvor_wire::{Code, ServerMessage};
use support::{
    Client, Login, Server, User, address, app, kem_one_time, kem_prekey, key_set, one_time, refused,
    signed_prekey,
};

/// No bound but the number of keys.
fn generous(config: &mut stvor_relay::Config) {
    config.limits.one_time_per_target = 100_000;
    config.limits.one_time_per_fetcher = 100_000;
    config.limits.requests_per_device = 100_000;
}

async fn both() -> [Server; 2] {
    [Server::memory_with(generous).await, Server::durable_with(generous).await]
}

fn only(bundles: Bundles) -> stvor_wire::keys::DeviceBundle {
    assert_eq!(bundles.bundles.len(), 1);
    bundles.bundles.into_iter().next().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_takers_of_a_hundred_keys_get_a_hundred_different_ones() {
    for server in both().await {
        let (_, mut bob) = server.user("bob").await;
        bob.upload_set(100, 50).await;
        bob.upload(UploadKeys { kem_one_time: kem_one_time(51..=100), ..key_set(0, 0) }).await;
        let users: Vec<User> = (0..40).map(|number| User::new(&format!("taker-{number}"))).collect();
        let mut takers = Vec::new();
        for user in &users {
            takers.push(server.login(user).open().await);
        }
        // Five requests each (what one device may take of one user), all on their way before an answer is read.
        let taking = takers.into_iter().map(|mut taker: Client| {
            tokio::spawn(async move {
                let mut requests = Vec::new();
                for _ in 0..stvor_relay::limits::ONE_TIME_PER_PAIR {
                    let fetch = taker.fetch_of("bob", Duration::ZERO);
                    requests.push(fetch.request_id);
                    taker.say(&ClientMessage::FetchBundle(fetch)).await;
                }
                let mut got = Vec::new();
                for request in requests {
                    got.push(only(taker.bundles(request).await.unwrap()));
                }
                got
            })
        });
        let mut all = Vec::new();
        for taken in futures::future::join_all(taking).await {
            all.extend(taken.unwrap());
        }
        assert_eq!(all.len(), 200);
        let with: Vec<_> = all.iter().filter_map(|bundle| bundle.one_time.as_ref()).collect();
        assert_eq!(with.len(), 100);
        assert_eq!(with.iter().map(|key| key.id).collect::<HashSet<_>>(), (1..=100).collect());
        assert_eq!(with.iter().map(|key| key.key).collect::<HashSet<_>>().len(), 100);
        let kem: Vec<_> =
            all.iter().filter(|bundle| !bundle.kem_is_last_resort).map(|bundle| bundle.kem.id).collect();
        assert_eq!(kem.len(), 100);
        assert_eq!(kem.into_iter().collect::<HashSet<_>>().len(), 100);
    }
}

#[tokio::test]
async fn upload_is_answered_with_what_the_relay_holds() {
    for server in both().await {
        let (bob, mut client) = server.user("bob").await;
        assert_eq!(client.ready.keys, Default::default());
        let counts = client.upload_set(30, 25).await;
        assert_eq!((counts.one_time, counts.kem_one_time), (30, 25));
        assert_eq!((counts.signed_prekey_id, counts.kem_last_resort_id), (Some(1), Some(1)));
        let (_, mut alice) = server.user("alice").await;
        let bundle = only(alice.fetch("bob").await.unwrap());
        assert_eq!((bundle.one_time.is_some(), bundle.kem_is_last_resort), (true, false));
        client.close().await;
        let client = server.login(&bob).open().await;
        assert_eq!((client.ready.keys.one_time, client.ready.keys.kem_one_time), (29, 24));
    }
}

#[tokio::test]
async fn bundle_holds_exactly_what_was_uploaded() {
    for server in both().await {
        let (bob, mut client) = server.user("bob").await;
        let set = UploadKeys {
            signed_prekey: Some(signed_prekey(0)),
            kem_last_resort: Some(kem_prekey(u32::MAX)),
            one_time: one_time([7]),
            kem_one_time: kem_one_time([9]),
            ..key_set(0, 0)
        };
        client.upload(set.clone()).await;
        let (_, mut alice) = server.user("alice").await;
        let bundles = alice.fetch("bob").await.unwrap();
        assert_eq!(
            (&bundles.device_list, bundles.device_list_signature),
            (&bob.list_bytes, bob.list_signature)
        );
        let bundle = only(bundles);
        assert_eq!(Some(&bundle.signed_prekey), set.signed_prekey.as_ref());
        assert_eq!(bundle.one_time.as_ref(), set.one_time.first());
        assert_eq!((Some(&bundle.kem), bundle.kem_is_last_resort), (set.kem_one_time.first(), false));
        let bundle = only(alice.fetch("bob").await.unwrap());
        assert_eq!(bundle.one_time, None);
        assert_eq!((Some(&bundle.kem), bundle.kem_is_last_resort), (set.kem_last_resort.as_ref(), true));
    }
}

#[tokio::test]
async fn absent_parts_of_an_upload_change_nothing() {
    for server in both().await {
        let (_, mut bob) = server.user("bob").await;
        bob.upload_set(5, 5).await;
        let nothing = UploadKeys { signed_prekey: None, kem_last_resort: None, ..key_set(0, 0) };
        let counts = bob.upload(nothing.clone()).await;
        assert_eq!((counts.one_time, counts.kem_one_time, counts.signed_prekey_id), (5, 5, Some(1)));
        let rotated = UploadKeys { signed_prekey: Some(signed_prekey(2)), ..nothing };
        let counts = bob.upload(rotated).await;
        assert_eq!(
            (counts.signed_prekey_id, counts.kem_last_resort_id, counts.one_time),
            (Some(2), Some(1), 5)
        );
    }
}

#[tokio::test]
async fn repeated_upload_adds_nothing_and_replaces_nothing() {
    for server in both().await {
        let (_, mut bob) = server.user("bob").await;
        let set = key_set(3, 3);
        bob.upload(set.clone()).await;
        let other_bytes = UploadKeys { one_time: one_time(1..=3), ..set.clone() };
        let counts = bob.upload(other_bytes).await;
        assert_eq!((counts.one_time, counts.kem_one_time), (3, 3));
        let (_, mut alice) = server.user("alice").await;
        for _ in 0..3 {
            let taken = only(alice.fetch("bob").await.unwrap()).one_time.unwrap();
            assert!(set.one_time.contains(&taken));
        }
    }
}

#[tokio::test]
async fn key_that_was_handed_out_does_not_come_back_by_a_retried_upload() {
    for server in both().await {
        let (_, mut bob) = server.user("bob").await;
        let set = key_set(2, 2);
        bob.upload(set.clone()).await;
        let (_, mut alice) = server.user("alice").await;
        let first = only(alice.fetch("bob").await.unwrap());
        // The answer to the upload was lost; the device says it again.
        bob.upload(set).await;
        let second = only(alice.fetch("bob").await.unwrap());
        let third = only(alice.fetch("bob").await.unwrap());
        assert_ne!(second.one_time.as_ref().unwrap().id, first.one_time.unwrap().id);
        assert_ne!(second.kem.id, first.kem.id);
        assert_eq!(third.one_time, None, "a key was handed out twice");
        assert!(third.kem_is_last_resort);
    }
}

#[tokio::test]
async fn replace_one_time_drops_the_old_ones() {
    for server in both().await {
        let (_, mut bob) = server.user("bob").await;
        bob.upload_set(10, 10).await;
        let fresh = UploadKeys {
            one_time: one_time(101..=102),
            kem_one_time: kem_one_time(101..=101),
            replace_one_time: true,
            ..key_set(0, 0)
        };
        let counts = bob.upload(fresh).await;
        assert_eq!((counts.one_time, counts.kem_one_time), (2, 1));
        let (_, mut alice) = server.user("alice").await;
        let ids: HashSet<u32> = [alice.fetch("bob").await, alice.fetch("bob").await]
            .map(|bundles| only(bundles.unwrap()).one_time.unwrap().id)
            .into();
        assert_eq!(ids, HashSet::from([101, 102]));
    }
}

#[tokio::test]
async fn relay_holds_at_most_200_one_time_keys_of_a_kind() {
    for server in both().await {
        let (_, mut bob) = server.user("bob").await;
        for start in [1, 101, 201] {
            let one_time = one_time(start..start + 100);
            bob.upload(UploadKeys { one_time, ..key_set(0, 0) }).await;
        }
        let mut counts = Default::default();
        for start in [1, 51, 101, 151, 201] {
            let kem_one_time = kem_one_time(start..start + 50);
            counts = bob.upload(UploadKeys { kem_one_time, ..key_set(0, 0) }).await;
        }
        assert_eq!((counts.one_time, counts.kem_one_time), (200, 200));
    }
}

#[tokio::test]
async fn device_is_told_when_its_one_time_keys_run_low() {
    for server in both().await {
        let (_, mut bob) = server.user("bob").await;
        bob.upload_set(21, 30).await;
        let (_, mut alice) = server.user("alice").await;
        alice.fetch("bob").await.unwrap();
        assert_eq!(bob.until_pong().await, [], "twenty are left");
        alice.fetch("bob").await.unwrap();
        assert_eq!(bob.keys_low().await.one_time, 19);
        alice.fetch("bob").await.unwrap();
        assert_eq!(bob.until_pong().await, [], "it was told");
        // Each time it is crossed.
        bob.upload(UploadKeys { one_time: one_time(100..=101), ..key_set(0, 0) }).await;
        alice.fetch("bob").await.unwrap();
        assert_eq!(bob.keys_low().await.one_time, 19);
    }
}

#[tokio::test]
async fn keys_survive_a_restart_and_what_was_handed_out_stays_so() {
    let server = Server::durable_with(generous).await;
    let (bob, mut client) = server.user("bob").await;
    let set = key_set(3, 3);
    client.upload(set.clone()).await;
    let (alice, mut taker) = server.user("alice").await;
    let first = only(taker.fetch("bob").await.unwrap());
    let server = server.restart().await;
    let mut client = server.login(&bob).open().await;
    assert_eq!((client.ready.keys.one_time, client.ready.keys.kem_one_time), (2, 2));
    client.upload(set).await;
    let mut taker = server.login(&alice).open().await;
    let mut taken = HashSet::from([first.one_time.unwrap().id]);
    for _ in 0..2 {
        assert!(taken.insert(only(taker.fetch("bob").await.unwrap()).one_time.unwrap().id));
    }
    assert_eq!(only(taker.fetch("bob").await.unwrap()).one_time, None);
}

#[tokio::test]
async fn fetch_that_waits_is_answered_when_the_user_has_keys() {
    for server in both().await {
        let (_, mut alice) = server.user("alice").await;
        let fetch = alice.fetch_of("bob", Duration::from_secs(600));
        let request = fetch.request_id;
        alice.say(&ClientMessage::FetchBundle(fetch)).await;
        assert_eq!(alice.until_pong().await, []);
        let (bob, mut client) = server.user("bob").await;
        assert_eq!(alice.until_pong().await, [], "registered, but without keys");
        client.upload_set(1, 1).await;
        let bundles = alice.bundles(request).await.unwrap();
        assert_eq!(bundles.device_list, bob.list_bytes);
        assert!(only(bundles).one_time.is_some());
    }
}

#[tokio::test]
async fn fetch_of_the_device_list_waits_for_the_registration_only() {
    let server = Server::memory().await;
    let (_, mut alice) = server.user("alice").await;
    let fetch = FetchBundle { devices_only: true, ..alice.fetch_of("bob", Duration::from_secs(600)) };
    let request = fetch.request_id;
    alice.say(&ClientMessage::FetchBundle(fetch)).await;
    alice.until_pong().await;
    let (bob, mut client) = server.user("bob").await;
    let bundles = alice.bundles(request).await.unwrap();
    assert_eq!((bundles.device_list, bundles.bundles.len()), (bob.list_bytes.clone(), 0));
    client.upload_set(1, 1).await;
    let fetch = FetchBundle { devices_only: true, ..alice.fetch_of("bob", Duration::ZERO) };
    let request = fetch.request_id;
    alice.say(&ClientMessage::FetchBundle(fetch)).await;
    assert_eq!(alice.bundles(request).await.unwrap().bundles, []);
    assert!(only(alice.fetch("bob").await.unwrap()).one_time.is_some(), "no prekey was used up");
}

#[tokio::test]
async fn fetch_without_one_time_prekeys_uses_none_up() {
    for server in both().await {
        let (_, mut bob) = server.user("bob").await;
        bob.upload_set(1, 1).await;
        let (_, mut alice) = server.user("alice").await;
        for _ in 0..3 {
            let fetch =
                FetchBundle { without_one_time: true, ..alice.fetch_of("bob", Duration::from_secs(600)) };
            let request = fetch.request_id;
            alice.say(&ClientMessage::FetchBundle(fetch)).await;
            let bundle = only(alice.bundles(request).await.unwrap());
            assert!(bundle.one_time.is_none() && bundle.kem_is_last_resort);
        }
        let bundle = only(alice.fetch("bob").await.unwrap());
        assert!(bundle.one_time.is_some() && !bundle.kem_is_last_resort, "both are still there");
    }
}

#[tokio::test]
async fn fetch_of_nobody_is_refused_at_once_or_after_its_wait() {
    let server = Server::memory().await;
    let (_, mut alice) = server.user("alice").await;
    refused(alice.fetch("nobody").await, Code::RecipientNotFound);
    let fetch = alice.fetch_of("nobody", Duration::from_millis(50));
    let request = fetch.request_id;
    alice.say(&ClientMessage::FetchBundle(fetch)).await;
    refused(alice.bundles(request).await, Code::RecipientNotFound);
}

#[tokio::test]
async fn user_without_a_complete_set_counts_as_not_there() {
    for server in both().await {
        let (_, mut bob) = server.user("bob").await;
        let (_, mut alice) = server.user("alice").await;
        refused(alice.fetch("bob").await, Code::RecipientNotFound);
        bob.upload(UploadKeys { kem_last_resort: None, ..key_set(1, 1) }).await;
        refused(alice.fetch("bob").await, Code::RecipientNotFound);
        assert!(!alice.status("bob").await.has_keys);
        bob.upload(UploadKeys { signed_prekey: None, ..key_set(0, 0) }).await;
        assert!(only(alice.fetch("bob").await.unwrap()).one_time.is_some());
        let state = alice.status("bob").await;
        assert!(state.registered && state.online && state.has_keys);
    }
}

#[tokio::test]
async fn each_device_has_keys_of_its_own() {
    for server in both().await {
        let bob = User::with_devices(&app(), "bob", 3);
        server.login(&bob).device(1).open().await.upload_set(1, 1).await;
        server.login(&bob).device(3).open().await.upload_set(1, 1).await;
        let (_, mut alice) = server.user("alice").await;
        let only_third =
            FetchBundle { devices: vec![bob.device(3).device], ..alice.fetch_of("bob", Duration::ZERO) };
        let request = only_third.request_id;
        alice.say(&ClientMessage::FetchBundle(only_third)).await;
        let third = only(alice.bundles(request).await.unwrap());
        assert_eq!((third.device, third.one_time.is_some()), (bob.device(3).device, true));
        let all = alice.fetch("bob").await.unwrap().bundles;
        let found: Vec<_> =
            all.iter().map(|bundle| (bundle.device.get(), bundle.one_time.is_some())).collect();
        assert_eq!(found, [(1, true), (3, false)]);
    }
}

#[tokio::test]
async fn fetches_that_wait_are_bounded_per_connection() {
    let server = Server::memory_with(generous).await;
    let (_, mut alice) = server.user("alice").await;
    let mut requests = Vec::new();
    for number in 0..65 {
        let fetch = alice.fetch_of(&format!("nobody-{number}"), Duration::from_millis(MAX_WAIT_MS.into()));
        requests.push(fetch.request_id);
        alice.say(&ClientMessage::FetchBundle(fetch)).await;
    }
    let answers = alice.until_pong().await;
    let refusals: Vec<_> = answers
        .iter()
        .map(|answer| match answer {
            ServerMessage::Nack(nack) => (nack.subject, nack.code),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(refusals, [(Subject::Request(requests[64]), Code::TooMany)]);
    // The places are free again when the connection is gone.
    let user = User::new("alice-again");
    let mut other = server.login(&user).open().await;
    let fetch = other.fetch_of("bob", Duration::from_secs(60));
    let request = fetch.request_id;
    other.say(&ClientMessage::FetchBundle(fetch)).await;
    let (_, mut bob) = server.user("bob").await;
    bob.upload_set(0, 0).await;
    assert!(other.bundles(request).await.is_ok());
}

#[tokio::test]
async fn wait_ends_with_its_connection_and_takes_no_key() {
    let server = Server::memory_with(generous).await;
    let (_, mut alice) = server.user("alice").await;
    for _ in 0..10 {
        let fetch = alice.fetch_of("bob", Duration::from_secs(600));
        alice.say(&ClientMessage::FetchBundle(fetch)).await;
    }
    alice.until_pong().await;
    alice.close().await;
    support::eventually("the end of the connection", || async {
        (server.handle.connections() == 0).then_some(())
    })
    .await;
    let (_, mut bob) = server.user("bob").await;
    let counts = bob.upload_set(10, 10).await;
    assert_eq!((counts.one_time, counts.kem_one_time), (10, 10));
    let (_, mut carol) = server.user("carol").await;
    carol.until_pong().await;
    carol.fetch("bob").await.unwrap();
    let counts = bob.upload(key_set(0, 0)).await;
    assert_eq!(counts.one_time, 9, "only Carol took one");
}

#[tokio::test]
async fn replaced_identity_takes_none_of_the_old_keys_along() {
    for server in both().await {
        let (_, mut bob) = server.user("bob").await;
        bob.upload_set(10, 10).await;
        let lost_phone = User::new("bob");
        let client = Login::new(&server.place, &lost_phone).replacing().open().await;
        assert_eq!(client.ready.keys, Default::default());
        let (_, mut alice) = server.user("alice").await;
        refused(alice.fetch("bob").await, Code::RecipientNotFound);
        assert_eq!(bob.end().await.code, Code::LoggedOut);
        assert_eq!(address("bob"), lost_phone.address());
    }
}
