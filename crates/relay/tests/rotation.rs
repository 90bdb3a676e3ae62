//! A user's key hands over at the relay: mail stays, prekeys go, and nobody else gets in that way.

#![cfg(test)]

mod support;

use bytes::Bytes;
use stvor_base::Suite;
use stvor_wire::Code;
use stvor_wire::client::{ClientMessage, Credential, Hello};
use stvor_wire::limits::{CAPABILITY_ROTATION, MAX_ROTATIONS_BYTES};
use stvor_wire::server::{Registration, ServerMessage};
use support::{Login, Server, TOKEN, User, address, app, blob, refused, text_of};

#[tokio::test]
async fn a_key_that_hands_over_keeps_its_mail_and_loses_its_prekeys() {
    let mut server = Server::durable().await;
    let bob = User::new("bob");
    let mut before = server.login(&bob).open().await;
    before.upload_set(3, 3).await;
    let (_, mut alice) = server.user("alice").await;
    let sent = alice.send(&bob.address(), blob("for bob")).await;
    let first = bob.rotated();
    let mut after = server.login(&first).open().await;
    assert_eq!(after.ready.registration, Registration::Rotated);
    assert_eq!((after.ready.keys.one_time, after.ready.keys.signed_prekey_id), (0, None));
    assert_eq!((after.ready.highest_counter, after.ready.counter_mac), (0, None));
    assert_eq!(before.end().await.code, Code::LoggedOut, "who is in with the old key is put out");
    let message = after.deliver().await;
    assert_eq!((message.msg_id, text_of(&message.blob).as_str()), (sent, "for bob"));
    refused(alice.fetch("bob").await, Code::RecipientNotFound);
    after.upload_set(3, 3).await;
    let bundles = alice.fetch("bob").await.unwrap();
    assert_eq!(bundles.device_list, first.list_bytes);
    assert_eq!(bundles.rotations, first.rotations.as_ref().unwrap().encode());
    // What came with the key is there after a restart, and after a second hand-over.
    alice.close().await;
    after.close().await;
    server = server.restart().await;
    let second = first.rotated();
    let mut after = server.login(&second).open().await;
    assert_eq!(after.ready.registration, Registration::Rotated);
    after.upload_set(1, 1).await;
    after.close().await;
    let again = server.login(&second).open().await;
    assert_eq!(again.ready.registration, Registration::Known);
    let (_, mut carol) = server.user("carol").await;
    let bundles = carol.fetch("bob").await.unwrap();
    assert_eq!(bundles.rotations, second.rotations.as_ref().unwrap().encode());
}

#[tokio::test]
async fn keys_of_both_suites_hand_over_and_one_login_may_bring_several_rotations() {
    for suite in Suite::ALL {
        let server = Server::memory().await;
        let bob = User::in_suite(suite, &app(), "bob", 1);
        server.login(&bob).open().await.close().await;
        let third = bob.rotated().rotated().rotated();
        let client = server.login(&third).open().await;
        assert_eq!(client.ready.registration, Registration::Rotated, "{suite}");
    }
}

#[tokio::test]
async fn the_key_that_handed_over_does_not_get_the_name_back() {
    let server = Server::memory().await;
    let bob = User::new("bob");
    server.login(&bob).open().await.close().await;
    let (first, fork) = (bob.rotated(), bob.rotated());
    server.login(&first).open().await.close().await;
    let second = first.rotated();
    server.login(&second).open().await.close().await;
    for stale in [&bob, &first, &fork, &fork.rotated()] {
        let plain = server.login(stale);
        let knows = Login { capabilities: vec![CAPABILITY_ROTATION.to_owned()], ..plain.clone() };
        assert_eq!(plain.refused().await.code, Code::UserIdTaken, "who does not know rotations");
        assert_eq!(knows.refused().await.code, Code::IdentityHandedOver);
    }
    let other = User::new("bob").rotated();
    let stranger = Login { capabilities: vec![CAPABILITY_ROTATION.to_owned()], ..server.login(&other) };
    assert_eq!(stranger.refused().await.code, Code::UserIdTaken, "who never had the name");
    assert_eq!(server.login(&second).open().await.ready.registration, Registration::Known);
}

#[tokio::test]
async fn statements_that_are_forged_cut_or_of_somebody_else_open_nothing() {
    let server = Server::memory().await;
    let bob = User::new("bob");
    server.login(&bob).open().await.close().await;
    let next = bob.rotated();
    let chain = next.rotations.as_ref().unwrap().encode();
    let mut forged = chain.clone();
    *forged.last_mut().unwrap() ^= 1;
    let of_another = User::new("mallory").rotated().rotations.unwrap().encode();
    let of_another_key = User::new("bob").rotated().rotations.unwrap().encode();
    let bad: [Vec<u8>; 4] = [forged, chain[..chain.len() - 1].to_vec(), of_another, of_another_key];
    for rotations in bad {
        let login = Login { rotations: rotations.into(), ..server.login(&next) };
        assert_eq!(login.refused().await.code, Code::InvalidDeviceList);
    }
    let stranger = User::new("bob");
    assert_eq!(server.login(&stranger.rotated()).refused().await.code, Code::UserIdTaken);
    let long = Bytes::from(vec![0; MAX_ROTATIONS_BYTES + 1]);
    let login = Login { rotations: long, ..server.login(&next) };
    assert_eq!(login.refused().await.code, Code::MalformedFrame);
    let known = server.login(&bob).open().await;
    assert_eq!(known.ready.registration, Registration::Known, "nothing of it changed who bob is");
}

#[tokio::test]
async fn a_user_whom_the_relay_does_not_know_brings_the_chain_along() {
    let server = Server::memory().await;
    let bob = User::new("bob").rotated();
    let mut client = server.login(&bob).open().await;
    assert_eq!(client.ready.registration, Registration::New);
    client.upload_set(1, 1).await;
    let (_, mut alice) = server.user("alice").await;
    let bundles = alice.fetch("bob").await.unwrap();
    assert_eq!(bundles.rotations, bob.rotations.as_ref().unwrap().encode());
}

#[tokio::test]
async fn the_ability_is_told_to_who_asks_for_it() {
    let server = Server::memory().await;
    for (asked, told) in [
        (vec![], vec![]),
        (vec!["other"], vec![]),
        (vec!["other", CAPABILITY_ROTATION, CAPABILITY_ROTATION], vec![CAPABILITY_ROTATION]),
    ] {
        let mut raw = server.raw().await;
        let hello = Hello {
            protocol_version: stvor_wire::PROTOCOL_VERSION,
            credential: Credential::AppToken(TOKEN.to_owned()),
            address: address("bob"),
            capabilities: asked.into_iter().map(str::to_owned).collect(),
        };
        raw.say(&ClientMessage::Hello(hello)).await;
        match raw.message().await {
            ServerMessage::Challenge(challenge) => assert_eq!(challenge.capabilities, told),
            other => panic!("no challenge: {other:?}"),
        }
    }
}
