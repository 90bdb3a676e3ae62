//! Two people exchange messages.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod common;

use common::{app, app_in, code, durable, event, pair, relay, soon};
use stvor::{Content, DeliveryState, Event, SendOptions, SendWait};

#[tokio::test(flavor = "multi_thread")]
async fn the_example_of_the_front_page_works() {
    let relay = relay().await;
    let url = relay.url();
    let app =
        stvor::App::builder().app_token("stvor_dev_test123").relay_url(url).in_memory().open().await.unwrap();
    let alice = app.connect("alice@example.com").await.unwrap();
    let bob = app.connect("bob@example.com").await.unwrap();
    let mut inbox = bob.messages();
    let receipt = alice.send("bob@example.com", "Hello!").await.unwrap();
    let message = soon(inbox.next()).await.expect("a message");
    assert_eq!(message.text(), Some("Hello!"));
    assert_eq!(message.from.as_str(), "alice@example.com");
    assert_eq!(message.id, receipt.id());
    assert!(receipt.status() >= DeliveryState::Accepted);
    soon(receipt.delivered()).await.unwrap();
    bob.mark_read("alice@example.com", &[message.id]).await.unwrap();
    soon(receipt.read()).await.unwrap();
    app.close().await.unwrap();
    relay.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn text_bytes_and_json_arrive_as_what_they_are_in_both_directions() {
    let relay = relay().await;
    let (alice, bob) = pair(&relay.url()).await;
    let contents = [
        Content::from("tëxt"),
        Content::from(""),
        Content::from(vec![0, 1, 255]),
        Content::from(serde_json::json!({"a": [1, null, "x"]})),
        Content::from(vec![7; 65_536]),
    ];
    for (from, to) in [(&alice, &bob), (&bob, &alice)] {
        let mut inbox = to.messages();
        for content in &contents {
            from.send(to.user().as_str(), content.clone()).await.unwrap();
            assert_eq!(soon(inbox.next()).await.unwrap().content, *content);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_messages_arrive_once_and_in_order() {
    let relay = relay().await;
    let (alice, bob) = pair(&relay.url()).await;
    const COUNT: usize = 500;
    let sender = tokio::spawn(async move {
        let options = SendOptions { wait: SendWait::Committed, ..SendOptions::default() };
        let mut receipts = Vec::new();
        for number in 0..COUNT {
            receipts.push(alice.send_with("bob", number.to_string(), options).await.unwrap());
        }
        for receipt in &receipts {
            soon(receipt.delivered()).await.unwrap();
        }
        assert_eq!(alice.pending(), 0);
        alice
    });
    let mut inbox = bob.messages();
    for number in 0..COUNT {
        assert_eq!(soon(inbox.next()).await.unwrap().text(), Some(number.to_string().as_str()));
    }
    soon(sender).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn both_writing_first_at_once_loses_nothing() {
    let relay = relay().await;
    let (alice, bob) = pair(&relay.url()).await;
    let (mut at_alice, mut at_bob) = (alice.messages(), bob.messages());
    let (one, two) = tokio::join!(alice.send("bob", "from alice"), bob.send("alice", "from bob"));
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!(soon(at_alice.next()).await.unwrap().text(), Some("from bob"));
    assert_eq!(soon(at_bob.next()).await.unwrap().text(), Some("from alice"));
    soon(one.delivered()).await.unwrap();
    soon(two.delivered()).await.unwrap();
    for round in 0..5 {
        alice.send("bob", format!("a{round}")).await.unwrap();
        bob.send("alice", format!("b{round}")).await.unwrap();
        assert_eq!(soon(at_alice.next()).await.unwrap().text(), Some(format!("b{round}").as_str()));
        assert_eq!(soon(at_bob.next()).await.unwrap().text(), Some(format!("a{round}").as_str()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_both_sides_keeps_identities_sessions_and_unread_mail() {
    let relay = relay().await;
    let directory = tempfile::tempdir().unwrap();
    let url = relay.url();
    let first = app_in(&url, directory.path()).await;
    let (alice, bob) = (first.connect("alice").await.unwrap(), first.connect("bob").await.unwrap());
    let before = (alice.identity(), bob.identity(), alice.safety_number("bob").await.unwrap());
    alice.send("bob", "before").await.unwrap();
    let mut inbox = bob.messages();
    assert_eq!(soon(inbox.next()).await.unwrap().text(), Some("before"));
    let receipt = alice.send("bob", "not looked at").await.unwrap();
    soon(receipt.delivered()).await.unwrap();
    let id = receipt.id();
    drop((inbox, receipt));
    first.close().await.unwrap();

    let second = app_in(&url, directory.path()).await;
    assert_eq!(second.users().len(), 2);
    let (alice, bob) = (second.connect("alice").await.unwrap(), second.connect("bob").await.unwrap());
    let after = (alice.identity(), bob.identity(), alice.safety_number("bob").await.unwrap());
    assert_eq!(before, after);
    let mut events = alice.events();
    let mut inbox = bob.messages();
    let message = soon(inbox.next()).await.unwrap();
    assert_eq!((message.text(), message.id), (Some("not looked at"), id));
    assert_eq!(alice.receipt(id).await.unwrap().unwrap().status(), DeliveryState::Delivered);
    let receipt = alice.send("bob", "after").await.unwrap();
    assert_eq!(soon(inbox.next()).await.unwrap().text(), Some("after"));
    soon(receipt.delivered()).await.unwrap();
    bob.send("alice", "back").await.unwrap();
    assert_eq!(soon(alice.messages().next()).await.unwrap().text(), Some("back"));
    second.close().await.unwrap();
    // No session was started anew for any of it.
    while let Some(event) = events.next().await {
        assert!(
            !matches!(event, Event::SessionStarted { .. } | Event::MessageUndecryptable { .. }),
            "{event:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_offline_waits_and_arrives_when_the_relay_is_back() {
    let directory = tempfile::tempdir().unwrap();
    let relay = durable(directory.path(), 0).await;
    let (url, port) = (relay.url(), relay.local_addr().port());
    let app = app_in(&url, &directory.path().join("data")).await;
    let (alice, bob) = (app.connect("alice").await.unwrap(), app.connect("bob").await.unwrap());
    let mut inbox = bob.messages();
    alice.send("bob", "0").await.unwrap();
    assert_eq!(soon(inbox.next()).await.unwrap().text(), Some("0"));

    let mut events = alice.events();
    relay.shutdown().await;
    event(&mut events, |event| matches!(event, Event::Reconnecting { .. }).then_some(())).await;
    let mut receipts = Vec::new();
    for number in 1..=20 {
        let receipt = alice.send("bob", number.to_string()).await.unwrap();
        assert_eq!(receipt.status(), DeliveryState::Queued);
        receipts.push(receipt);
    }
    assert_eq!(alice.pending(), 20);
    assert_eq!(code(alice.wait_online(std::time::Duration::from_millis(50)).await), "RELAY_UNAVAILABLE");

    let _relay = durable(directory.path(), port).await;
    for number in 1..=20 {
        assert_eq!(soon(inbox.next()).await.unwrap().text(), Some(number.to_string().as_str()));
    }
    for receipt in &receipts {
        soon(receipt.delivered()).await.unwrap();
    }
    app.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_to_somebody_who_is_away_is_delivered_when_they_are_back() {
    let relay = relay().await;
    let directory = tempfile::tempdir().unwrap();
    let app = app_in(&relay.url(), directory.path()).await;
    let (alice, bob) = (app.connect("alice").await.unwrap(), app.connect("bob").await.unwrap());
    bob.close().await;
    let receipt = alice.send("bob", "while you were away").await.unwrap();
    assert_eq!(receipt.status(), DeliveryState::Accepted);
    let bob = app.connect("bob").await.unwrap();
    assert_eq!(soon(bob.messages().next()).await.unwrap().text(), Some("while you were away"));
    soon(receipt.delivered()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_lost_everything_gets_the_identity_and_the_mail_again() {
    let relay_one = relay().await;
    let port = relay_one.local_addr().port();
    let app = app(&relay_one.url()).await;
    let (alice, bob) = (app.connect("alice").await.unwrap(), app.connect("bob").await.unwrap());
    let mut inbox = bob.messages();
    for number in 0..3 {
        alice.send("bob", number.to_string()).await.unwrap();
        assert_eq!(soon(inbox.next()).await.unwrap().text(), Some(number.to_string().as_str()));
    }
    let mut events = alice.events();
    relay_one.shutdown().await;
    event(&mut events, |event| matches!(event, Event::Reconnecting { .. }).then_some(())).await;
    let waiting = alice.send("bob", "3").await.unwrap();

    let relay_two = stvor_relay::Relay::start(stvor_relay::Config::mock(port)).await.unwrap();
    assert_eq!(soon(inbox.next()).await.unwrap().text(), Some("3"));
    soon(waiting.delivered()).await.unwrap();
    // A stranger can start a session with what was uploaded again.
    let other = common::app(&relay_two.url()).await;
    let carol = other.connect("carol").await.unwrap();
    carol.send("bob", "new here").await.unwrap();
    assert_eq!(soon(inbox.next()).await.unwrap().text(), Some("new here"));
}
