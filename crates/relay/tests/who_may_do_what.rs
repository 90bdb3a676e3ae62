//! What the holder of a token can not do: read, drain, overwrite or impersonate another user.

#![cfg(test)]

mod support;

use core::time::Duration;

use stvor_base::DeviceId;
use stvor_relay::TokenConfig;
use stvor_wire::Code;
use stvor_wire::ServerMessage;
use stvor_wire::client::{Ack, AckOne, ClientMessage, Credential};
use stvor_wire::server::Registration;
use support::{
    Client, Login, Raw, Server, TOKEN, User, accepted, address, app, blob, new_id, refused, text_of,
};

/// Bob is registered with keys and offline, and a message of Alice waits for him.
async fn bob_has_mail(server: &Server) -> (User, Client, stvor_base::MessageId) {
    let (bob, mut client) = server.user("bob").await;
    client.upload_set(3, 3).await;
    client.close().await;
    let (_, mut alice) = server.user("alice").await;
    let id = alice.send(&address("bob"), blob("for bob only")).await;
    (bob, alice, id)
}

async fn bob_still_gets_it(server: &Server, bob: &User, id: stvor_base::MessageId) {
    let mut client = server.login(bob).open().await;
    assert_eq!(client.ready.registration, Registration::Known);
    let message = client.deliver().await;
    assert_eq!((message.msg_id, text_of(&message.blob).as_str()), (id, "for bob only"));
}

#[tokio::test]
async fn holder_of_the_token_can_not_read_anothers_mailbox() {
    let server = Server::memory().await;
    let (bob, mut alice, id) = bob_has_mail(&server).await;
    let (_, mut mallory) = server.user("mallory").await;
    assert_eq!(mallory.mail(&mut alice).await, []);
    // Mail goes to whom it is addressed, also when its id is known.
    let epoch = mallory.ready.mailbox_epoch;
    let one = AckOne { seq: 1, msg_id: id };
    mallory.say(&ClientMessage::Ack(Ack { mailbox_epoch: epoch, up_to: Some(one), single: vec![one] })).await;
    assert_eq!(mallory.until_pong().await, []);
    bob_still_gets_it(&server, &bob, id).await;
}

#[tokio::test]
async fn holder_of_the_token_can_not_drain_anothers_mail() {
    let server = Server::memory().await;
    let (bob, _alice, id) = bob_has_mail(&server).await;
    let reader = server.login(&bob).open().await;
    let bobs_epoch = reader.ready.mailbox_epoch;
    reader.close().await;
    let (_, mut mallory) = server.user("mallory").await;
    for mailbox_epoch in [bobs_epoch, mallory.ready.mailbox_epoch] {
        let single = (0..=3).map(|seq| AckOne { seq, msg_id: id }).collect();
        mallory.say(&ClientMessage::Ack(Ack { mailbox_epoch, up_to: None, single })).await;
        let up_to = Some(AckOne { seq: u64::MAX, msg_id: id });
        mallory.say(&ClientMessage::Ack(Ack { mailbox_epoch, up_to, single: vec![] })).await;
    }
    mallory.until_pong().await;
    bob_still_gets_it(&server, &bob, id).await;
}

#[tokio::test]
async fn registering_over_anothers_name_is_refused_and_changes_nothing() {
    let server = Server::durable_with(|config| {
        config.development = false;
        config.open_registration = true;
        config.tokens =
            vec![TokenConfig { token: "sk_live_xxx".into(), app: Some(app().as_str().to_owned()) }];
    })
    .await;
    let (bob, impostor) = (User::new("bob"), User::new("bob"));
    let login = |user| Login::new(&server.place, user).token("sk_live_xxx");
    let mut client = login(&bob).open().await;
    let before = client.upload_set(3, 3).await;
    client.close().await;
    for attempt in [login(&impostor), login(&impostor).replacing(), login(&impostor).known()] {
        assert_eq!(attempt.refused().await.code, Code::UserIdTaken);
    }
    let client = login(&bob).open().await;
    assert_eq!((client.ready.registration, client.ready.keys), (Registration::Known, before));
}

#[tokio::test]
async fn development_relay_refuses_a_taken_name_unless_the_client_insists() {
    let server = Server::memory().await;
    let (bob, mut alice, _) = bob_has_mail(&server).await;
    let lost_phone = User::new("bob");
    assert_eq!(server.login(&lost_phone).refused().await.code, Code::UserIdTaken);
    let mut client = server.login(&lost_phone).replacing().open().await;
    assert_eq!(client.ready.registration, Registration::Replaced);
    assert_eq!(client.ready.keys, Default::default());
    alice.new_lane_epoch(&address("bob"));
    assert_eq!(client.mail(&mut alice).await, [], "mail for the old identity is dropped");
    assert_eq!(server.login(&bob).refused().await.code, Code::UserIdTaken);
}

#[tokio::test]
async fn keys_are_uploaded_under_the_uploaders_own_name_only() {
    let server = Server::memory().await;
    let (_bob, _alice, _) = bob_has_mail(&server).await;
    let (_, mut mallory) = server.user("mallory").await;
    let before = mallory.fetch("bob").await.unwrap().bundles;
    mallory.upload_set(5, 5).await;
    let after = mallory.fetch("bob").await.unwrap().bundles;
    assert_eq!(after[0].signed_prekey, before[0].signed_prekey);
    assert_ne!(after[0].one_time, before[0].one_time);
    assert!(mallory.status("bob").await.has_keys);
}

#[tokio::test]
async fn the_sender_of_a_message_is_who_logged_in() {
    let server = Server::memory().await;
    let (_, mut bob) = server.user("bob").await;
    let (_, _alice) = server.user("alice").await;
    let (mallory, mut client) = server.user("mallory").await;
    // A SEND has no sender; what a message says of itself is not looked at.
    client.send(&address("bob"), blob("from: alice")).await;
    assert_eq!(bob.deliver().await.from, mallory.address());
    client.post(&Client::signal(&address("bob"), blob("from: alice"))).await;
    assert_eq!(bob.deliver().await.from, mallory.address());
}

#[tokio::test]
async fn hello_with_anothers_address_needs_that_ones_keys() {
    let server = Server::memory().await;
    let (_bob, _alice, _) = bob_has_mail(&server).await;
    let (mallory, client) = server.user("mallory").await;
    client.close().await;
    // Mallory's own list under Bob's address.
    let mut raw = server.raw().await;
    let challenge = raw.hello(Credential::AppToken(TOKEN.into()), address("bob")).await;
    let auth = server.login(&mallory).answer(&challenge);
    let end = server.login(&mallory).finish(raw, auth).await.err().unwrap();
    assert_eq!(end.code, Code::InvalidDeviceList);
}

#[tokio::test]
async fn anothers_device_list_is_public_and_opens_nothing() {
    let server = Server::memory().await;
    let (bob, _alice, id) = bob_has_mail(&server).await;
    let (mallory, mut client) = server.user("mallory").await;
    let public = client.fetch("bob").await.unwrap();
    let mut raw = server.raw().await;
    let challenge = raw.hello(Credential::AppToken(TOKEN.into()), address("bob")).await;
    let mut auth = server.login(&mallory).answer(&challenge);
    auth.device_list = public.device_list;
    auth.device_list_signature = public.device_list_signature;
    let end = server.login(&bob).finish(raw, auth).await.err().unwrap();
    assert_eq!(end.code, Code::AuthFailed);
    bob_still_gets_it(&server, &bob, id).await;
}

#[tokio::test]
async fn device_list_signed_by_another_user_key_is_refused() {
    let server = Server::memory().await;
    let (bob, mallory) = (User::new("bob"), User::new("bob"));
    let login = server.login(&bob);
    let mut raw = server.raw().await;
    let challenge = raw.hello(login.credential.clone(), login.address()).await;
    let mut auth = login.answer(&challenge);
    auth.device_list_signature = mallory.list_signature;
    let end = login.finish(raw, auth).await.err().unwrap();
    assert_eq!(end.code, Code::InvalidDeviceList);
}

#[tokio::test]
async fn device_that_the_list_does_not_hold_is_refused() {
    let server = Server::memory().await;
    let mut bob = User::with_devices(&app(), "bob", 2);
    server.login(&bob).device(2).open().await.close().await;
    let before = (bob.list_bytes.clone(), bob.list_signature);
    bob.change_devices(&[1], 0);
    server.login(&bob).open().await.close().await;
    // Device 2 was removed; the old list does not bring it back.
    let both =
        User { list_bytes: before.0, list_signature: before.1, ..User::with_devices(&app(), "bob", 2) };
    let end = server.login(&both).device(2).refused().await;
    assert_ne!(end.code, Code::Internal);
    assert!(!end.code.retryable(), "{end:?}");
}

#[tokio::test]
async fn removed_device_is_logged_out_and_stays_out() {
    let server = Server::memory().await;
    let mut bob = User::with_devices(&app(), "bob", 2);
    let mut second = server.login(&bob).device(2).open().await;
    let old = (bob.list.clone(), bob.list_bytes.clone(), bob.list_signature);
    let second_key = bob.devices.remove(1);
    let first_key = bob.devices.remove(0);
    bob.devices = vec![first_key, second_key];
    let old_second = User {
        rotations: None,
        key: stvor_crypto::suite::SigningKey::from_bytes(stvor_base::Suite::P256, &bob.key.to_bytes())
            .unwrap(),
        devices: bob
            .devices
            .iter()
            .map(|key| {
                stvor_crypto::suite::SigningKey::from_bytes(stvor_base::Suite::P256, &key.to_bytes()).unwrap()
            })
            .collect(),
        list: old.0,
        list_bytes: old.1,
        list_signature: old.2,
    };
    bob.change_devices(&[1], 0);
    let _first = server.login(&bob).open().await;
    assert_eq!(second.end().await.code, Code::LoggedOut);
    assert_eq!(server.login(&old_second).device(2).refused().await.code, Code::UnknownDevice);
}

#[tokio::test]
async fn account_is_deleted_by_its_own_devices_only() {
    let server = Server::memory().await;
    let (bob, _alice, id) = bob_has_mail(&server).await;
    let (_, mut mallory) = server.user("mallory").await;
    mallory.delete_account().await;
    assert_eq!(mallory.end().await.code, Code::AccountDeleted);
    bob_still_gets_it(&server, &bob, id).await;
}

#[tokio::test]
async fn deleted_account_ends_all_its_connections_and_leaves_nothing() {
    let server = Server::memory().await;
    let bob = User::with_devices(&app(), "bob", 2);
    let mut first = server.login(&bob).open().await;
    let mut second = server.login(&bob).device(2).open().await;
    let mut sending = server.login(&bob).send_only().open().await;
    first.upload_set(1, 1).await;
    let (_, mut alice) = server.user("alice").await;
    alice.send(&bob.address(), blob("unread")).await;
    first.delete_account().await;
    for client in [&mut first, &mut second, &mut sending] {
        assert_eq!(client.end().await.code, Code::AccountDeleted);
    }
    refused(alice.fetch("bob").await, Code::RecipientNotFound);
    let send = alice.compose(&bob.address(), blob("late"));
    refused(alice.transmit(&send).await, Code::RecipientNotFound);
    let mut newcomer = server.login(&bob).open().await;
    assert_eq!(newcomer.ready.registration, Registration::New);
    alice.new_lane_epoch(&bob.address());
    assert_eq!(newcomer.mail(&mut alice).await, []);
}

#[tokio::test]
async fn answer_to_one_challenge_does_not_open_a_second_connection() {
    let server = Server::memory().await;
    let bob = User::new("bob");
    let login = server.login(&bob);
    let mut first = server.raw().await;
    let challenge = first.hello(login.credential.clone(), login.address()).await;
    let auth = login.answer(&challenge);
    login.finish(first, auth.clone()).await.unwrap_or_else(|end| panic!("{end:?}")).close().await;
    let mut second = server.raw().await;
    let other = second.hello(login.credential.clone(), login.address()).await;
    assert_ne!(other.nonce, challenge.nonce);
    let replayed = stvor_wire::client::Auth { time: other.server_time, ..auth };
    let end = login.finish(second, replayed).await.err().unwrap();
    assert_eq!(end.code, Code::AuthFailed);
}

#[tokio::test]
async fn every_change_to_the_proof_is_refused() {
    let server = Server::memory().await;
    let bob = User::new("bob");
    let login = server.login(&bob);
    type Change = fn(&mut stvor_wire::client::Auth);
    let changes: [Change; 4] = [
        |auth| auth.signature[40] ^= 1,
        |auth| auth.signature = [0; 64],
        |auth| auth.time = auth.time + Duration::from_millis(1),
        |auth| auth.signature = auth.device_list_signature,
    ];
    for change in changes {
        let mut raw = server.raw().await;
        let challenge = raw.hello(login.credential.clone(), login.address()).await;
        let mut auth = login.answer(&challenge);
        change(&mut auth);
        let end = login.finish(raw, auth).await.err().unwrap();
        assert_eq!(end.code, Code::AuthFailed);
    }
    let end = login.known().refused().await;
    assert_eq!(end.code, Code::RecipientNotFound, "none of the attempts registered anybody");
}

#[tokio::test]
async fn signature_of_the_other_half_of_the_curve_is_refused() {
    let server = Server::memory().await;
    let bob = User::new("bob");
    let login = server.login(&bob);
    let mut raw = server.raw().await;
    let challenge = raw.hello(login.credential.clone(), login.address()).await;
    let mut auth = login.answer(&challenge);
    // s becomes n - s: the twin that plain ECDSA would also accept.
    let order = [
        0xff_u8, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc, 0xe6,
        0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
    ];
    let mut borrow = 0_i16;
    for at in (0..32).rev() {
        let digit = i16::from(order[at]) - i16::from(auth.signature[32 + at]) - borrow;
        borrow = i16::from(digit < 0);
        auth.signature[32 + at] = u8::try_from(digit + 256 * borrow).unwrap();
    }
    let end = login.finish(raw, auth).await.err().unwrap();
    assert_eq!(end.code, Code::AuthFailed);
}

#[tokio::test]
async fn signature_for_another_origin_is_refused() {
    let server = Server::memory().await;
    let bob = User::new("bob");
    // A relay in the middle passes the challenge on: the client signed the origin that it dialled.
    let end = server.login(&bob).origin("wss://relay-in-the-middle.example").refused().await;
    assert_eq!(end.code, Code::OriginMismatch);
    // The origin that is claimed is not the one that was signed.
    let login = server.login(&bob);
    let mut raw = server.raw().await;
    let challenge = raw.hello(login.credential.clone(), login.address()).await;
    let elsewhere = server.login(&bob).origin("wss://relay-in-the-middle.example");
    let mut auth = elsewhere.answer(&challenge);
    auth.origin = login.origin.clone();
    assert_eq!(login.finish(raw, auth).await.err().unwrap().code, Code::AuthFailed);
}

#[tokio::test]
async fn origin_that_the_operator_names_is_accepted_in_its_canonical_form_only() {
    let server = Server::memory_with(|config| {
        config.development = false;
        config.open_registration = true;
        config.tokens = vec![TokenConfig { token: TOKEN.into(), app: None }];
        config.origins = vec!["wss://relay.example.com".into()];
    })
    .await;
    let bob = User::new("bob");
    server.login(&bob).origin("wss://relay.example.com").open().await;
    for other in
        ["wss://relay.example.com/", "WSS://relay.example.com", "ws://relay.example.com", "wss://other", ""]
    {
        let end = server.login(&bob).origin(other).refused().await;
        assert_eq!(end.code, Code::OriginMismatch, "{other}");
    }
}

#[tokio::test]
async fn apps_never_meet() {
    let server = Server::memory().await;
    let other_token = "stvor_dev_other";
    let other = stvor_wire::token::app_of(other_token).unwrap();
    let (_, mut bob) = server.user("bob").await;
    let namesake = User::of_app(&other, "bob");
    let mut stranger = server.login(&namesake).token(other_token).open().await;
    assert_eq!(stranger.ready.registration, Registration::New);
    bob.upload_set(2, 2).await;
    let alice = User::of_app(&other, "alice");
    let mut alice = server.login(&alice).token(other_token).open().await;
    refused(alice.fetch("bob").await, Code::RecipientNotFound);
    let state = alice.status("bob").await;
    assert!(state.registered && state.online && !state.has_keys, "the namesake: {state:?}");
    alice.send(&address("bob"), blob("to the namesake")).await;
    alice.post(&Client::signal(&address("bob"), blob("signal"))).await;
    assert_eq!(text_of(&stranger.deliver().await.blob), "to the namesake");
    assert_eq!(text_of(&stranger.deliver().await.blob), "signal");
    assert_eq!(bob.until_pong().await, []);
    stranger.delete_account().await;
    assert_eq!(bob.until_pong().await, []);
    assert!(bob.status("bob").await.registered);
}

#[tokio::test]
async fn device_list_of_another_app_is_refused() {
    let server = Server::memory().await;
    let other = stvor_wire::token::app_of("stvor_dev_other").unwrap();
    let foreign = User::of_app(&other, "bob");
    assert_eq!(server.login(&foreign).refused().await.code, Code::InvalidDeviceList);
}

#[tokio::test]
async fn past_the_bound_of_a_target_bundles_come_without_one_time_keys() {
    let server = Server::memory_with(|config| config.limits.one_time_per_target = 3).await;
    let (_, mut bob) = server.user("bob").await;
    bob.upload_set(20, 20).await;
    let mut with = 0;
    for fetcher in 0..8 {
        let (_, mut client) = server.user(&format!("fetcher-{fetcher}")).await;
        let bundle = client.fetch("bob").await.unwrap().bundles.remove(0);
        assert_eq!(bundle.one_time.is_some(), !bundle.kem_is_last_resort);
        with += usize::from(bundle.one_time.is_some());
    }
    // One more may have been let through as the bucket refills.
    assert!((3..=4).contains(&with), "{with}");
}

#[tokio::test]
async fn unknown_recipient_is_told_to_the_sender_and_nothing_is_stored() {
    let server = Server::memory().await;
    let (_, mut alice) = server.user("alice").await;
    let send = alice.compose(&address("nobody"), blob("hello?"));
    refused(alice.transmit(&send).await, Code::RecipientNotFound);
    let (_, mut nobody) = server.user("nobody").await;
    assert_eq!(accepted(alice.transmit(&send).await), stvor_wire::server::Acceptance::Durable);
    assert_eq!(nobody.deliver().await.msg_id, send.recipient.msg_id);
}

#[tokio::test]
async fn challenge_says_the_app_and_never_repeats_its_nonce() {
    let server = Server::memory().await;
    let mut seen = std::collections::HashSet::new();
    for _ in 0..20 {
        let mut raw = Raw::open(&server.place).await;
        let challenge = raw.hello(Credential::AppToken(TOKEN.into()), address("bob")).await;
        assert_eq!(challenge.app, app());
        assert!(challenge.development);
        assert!(seen.insert(challenge.nonce));
    }
}

#[tokio::test]
async fn ack_of_an_id_that_was_never_delivered_here_is_ignored() {
    let server = Server::memory().await;
    let (_, mut bob) = server.user("bob").await;
    let single = vec![AckOne { seq: 0, msg_id: new_id() }, AckOne { seq: 99, msg_id: new_id() }];
    bob.say(&ClientMessage::Ack(Ack { mailbox_epoch: bob.ready.mailbox_epoch, up_to: None, single })).await;
    assert!(!bob.until_pong().await.iter().any(|message| matches!(message, ServerMessage::Deliver(_))));
}

#[tokio::test]
async fn device_number_that_was_given_to_another_device_brings_no_mail_along() {
    for server in [Server::memory().await, Server::durable().await] {
        let mut bob = User::with_devices(&app(), "bob", 2);
        let mut old = server.login(&bob).device(2).open().await;
        let (_, mut alice) = server.user("alice").await;
        alice.send(&bob.device(2), blob("for the old device")).await;
        // The second device is removed, and a new one gets its number, in one step.
        bob.change_devices(&[1], 1);
        assert_eq!(bob.list.devices[1].id, DeviceId::new(2).unwrap());
        server.login(&bob).open().await;
        assert_eq!(old.end().await.code, Code::LoggedOut);
        let mut new = server.login(&bob).device(2).open().await;
        alice.new_lane_epoch(&bob.device(2));
        assert_eq!(new.mail(&mut alice).await, []);
    }
}

#[tokio::test]
async fn name_that_changed_hands_never_gets_mail_by_an_old_route() {
    for server in [Server::memory().await, Server::durable().await] {
        let (bob, client) = server.user("bob").await;
        client.close().await;
        let (_, mut alice) = server.user("alice").await;
        // Alice's connection remembers where Bob's mailbox is.
        alice.send(&address("bob"), blob("for the first bob")).await;
        let lost_phone = User::new("bob");
        let mut owner = server.login(&lost_phone).replacing().open().await;
        let send = alice.compose(&address("bob"), blob("on the old route"));
        // The lane begins anew with a new mailbox: nothing is stored where nobody reads it.
        assert_eq!(refused(alice.transmit(&send).await, Code::LaneGap).expected_lane, 1);
        alice.new_lane_epoch(&address("bob"));
        assert_eq!(owner.mail(&mut alice).await, []);
        assert_eq!(server.login(&bob).refused().await.code, Code::UserIdTaken);
    }
}
