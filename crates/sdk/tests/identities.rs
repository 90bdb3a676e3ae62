//! Who somebody is, across relays, restarts and people who claim to be them.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod common;

use common::{TOKEN, app, app_in, builder, code, durable, event, pair, relay, soon};
use stvor::{App, Deed, DeliveryState, Event, MismatchPolicy, Timestamp};
use stvor_relay::{Config, Relay, TokenConfig};

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_the_relay_does_not_take_are_refused() {
    let relay = relay().await;
    let with = |token: &str| App::builder().app_token(token).relay_url(relay.url()).in_memory();
    assert_eq!(
        code(with("sk_live_unknown").open().await.unwrap().connect("alice").await),
        "INVALID_APP_TOKEN"
    );
    assert_eq!(code(with("nonsense").open().await.unwrap().connect("alice").await), "INVALID_APP_TOKEN");
    let other_app = with(TOKEN).app_id("somebody-elses").open().await.unwrap();
    assert_eq!(code(other_app.connect("alice").await), "AUTH_FAILED");
    with(TOKEN).open().await.unwrap().connect("alice").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_name_on_a_relay_with_closed_registration_is_told_what_to_do() {
    let literal = TokenConfig { token: "sk_live_customer".into(), app: Some("acme".into()) };
    let config = Config { development: false, tokens: vec![literal], ..Config::mock(0) };
    let relay = Relay::start(config).await.unwrap();
    let builder =
        App::builder().app_token("sk_live_customer").app_id("acme").relay_url(relay.url()).in_memory();
    let error = soon(builder.open().await.unwrap().connect("alice")).await.unwrap_err();
    assert_eq!(error.code(), "REGISTRATION_CLOSED");
    assert!(!error.retryable());
    let text = error.to_string();
    assert!(["alice", "client token", "open_registration"].iter().all(|part| text.contains(part)), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_belongs_to_whom_it_was_given_first() {
    let relay = relay().await;
    let (alice, bob) = pair(&relay.url()).await;
    assert_eq!(code(app(&relay.url()).await.connect("bob").await), "USER_ID_TAKEN");
    alice.send("bob", "to the first bob").await.unwrap();
    assert_eq!(soon(bob.messages().next()).await.unwrap().text(), Some("to the first bob"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_identity_under_an_old_name_is_refused_until_it_is_accepted() {
    let relay = relay().await;
    let url = relay.url();
    let (alice, bob) = pair(&url).await;
    let mut at_alice = alice.messages();
    bob.send("alice", "first").await.unwrap();
    soon(at_alice.next()).await.unwrap();
    soon(alice.send("bob", "seen").await.unwrap().delivered()).await.unwrap();
    let before = alice.safety_number("bob").await.unwrap();
    bob.close().await;

    let mut events = alice.events();
    let taker = builder(&url).in_memory().replace_identity(true).open().await.unwrap();
    let bob = taker.connect("bob").await.unwrap();
    let ignored = bob.send("alice", "it is really me").await.unwrap();
    let refused = event(&mut events, |event| match event {
        Event::IdentityChanged { peer, accepted } => Some((peer.to_string(), accepted)),
        _ => None,
    })
    .await;
    assert_eq!(refused, ("bob".to_owned(), false));
    assert_ne!(ignored.status(), DeliveryState::Delivered);
    assert_eq!(alice.safety_number("bob").await.unwrap(), before);
    alice.reset_session("bob").await.unwrap();
    let waiting = alice.send("bob", "for the old one").await.unwrap();
    assert_eq!(waiting.status(), DeliveryState::Queued);

    // A person accepts: what was refused is asked for again, and the conversation goes on.
    alice.accept_identity("bob").await.unwrap();
    assert_ne!(alice.safety_number("bob").await.unwrap(), before);
    event(&mut events, |event| matches!(event, Event::IdentityChanged { accepted: true, .. }).then_some(()))
        .await;
    let message = soon(at_alice.next()).await.unwrap();
    assert_eq!(message.text(), Some("it is really me"));
    soon(ignored.delivered()).await.unwrap();
    soon(waiting.delivered()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn replace_and_ask_decide_by_themselves() {
    let relay = relay().await;
    let url = relay.url();
    let easy = builder(&url).in_memory().on_identity_change(MismatchPolicy::Replace).open().await.unwrap();
    let easy = easy.connect("easy").await.unwrap();
    let asking = builder(&url)
        .in_memory()
        .on_identity_change(MismatchPolicy::Ask)
        .trust_callback(|question| async move { question.reason == stvor::TrustReason::IdentityChanged });
    let asking = asking.open().await.unwrap().connect("asking").await.unwrap();
    let bob = app(&url).await.connect("bob").await.unwrap();
    for client in [&easy, &asking] {
        soon(client.send("bob", "x").await.unwrap().delivered()).await.unwrap();
    }
    let (old, begun) = (bob.identity().fingerprint, Timestamp::system());
    bob.close().await;
    let bob = builder(&url).in_memory().replace_identity(true).open().await.unwrap();
    let bob = bob.connect("bob").await.unwrap();
    for (client, decider) in [(&easy, "trust policy"), (&asking, "trust callback")] {
        let mut events = client.events();
        bob.send(client.user().as_str(), "new keys").await.unwrap();
        assert_eq!(soon(client.messages().next()).await.unwrap().text(), Some("new keys"));
        event(&mut events, |event| {
            matches!(event, Event::IdentityChanged { accepted: true, .. }).then_some(())
        })
        .await;
        // Nobody was there to see it: the journal says who decided what, and when.
        let [entry] = <[_; 1]>::try_from(client.journal(10).await.unwrap()).unwrap();
        assert_eq!((entry.deed, &*entry.who, &*entry.subject), (Deed::IdentityAccepted, decider, "bob"));
        assert_eq!(entry.detail, format!("{old} -> {}", bob.identity().fingerprint));
        assert!((begun..=Timestamp::system()).contains(&entry.at), "{:?}", entry.at);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_account_is_gone_here_and_at_the_relay() {
    let relay = relay().await;
    let directory = tempfile::tempdir().unwrap();
    let app_one = app_in(&relay.url(), directory.path()).await;
    let (alice, bob) = (app_one.connect("alice").await.unwrap(), app_one.connect("bob").await.unwrap());
    soon(alice.send("bob", "x").await.unwrap().delivered()).await.unwrap();
    let (path, fingerprint) = (bob.data_path().unwrap().to_owned(), bob.identity().fingerprint);
    assert!(path.exists());
    bob.delete_account().await.unwrap();
    assert!(!path.exists());
    assert_eq!(code(bob.send("alice", "x").await), "CLIENT_NOT_READY");
    let short = std::time::Duration::from_millis(100);
    assert_eq!(code(alice.wait_for_user("bob", short).await), "RECIPIENT_TIMEOUT");
    // The name is free, for a new identity.
    let again = app_one.connect("bob").await.unwrap();
    assert_ne!(again.identity().fingerprint, fingerprint);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_directory_is_for_one_process() {
    let relay = relay().await;
    let directory = tempfile::tempdir().unwrap();
    let alice = app_in(&relay.url(), directory.path()).await.connect("alice").await.unwrap();
    // What another process would meet: the file is locked.
    let path = alice.data_path().unwrap().join("store.db");
    let other = stvor_store::open(path, stvor_store::OpenKey::Default).await.unwrap_err();
    assert_eq!(stvor::ErrorCode::code(&other), "STORE_LOCKED");
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_survives_relay_restarts_in_mid_conversation() {
    let directory = tempfile::tempdir().unwrap();
    let mut relay = durable(directory.path(), 0).await;
    let port = relay.local_addr().port();
    let app = app_in(&relay.url(), &directory.path().join("data")).await;
    let (alice, bob) = (app.connect("alice").await.unwrap(), app.connect("bob").await.unwrap());
    let mut inbox = bob.messages();
    let mut number = 0;
    for _ in 0..3 {
        let mut receipts = Vec::new();
        for _ in 0..10 {
            let options = stvor::SendOptions { wait: stvor::SendWait::Committed, ..Default::default() };
            receipts.push(alice.send_with("bob", number.to_string(), options).await.unwrap());
            number += 1;
        }
        relay.shutdown().await;
        relay = durable(directory.path(), port).await;
        for receipt in &receipts {
            soon(receipt.delivered()).await.unwrap();
        }
    }
    for expected in 0..number {
        assert_eq!(soon(inbox.next()).await.unwrap().text(), Some(expected.to_string().as_str()));
    }
    app.close().await.unwrap();
}
