//! Groups over a real relay.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::{app, app_in, builder, code, durable, event, relay, soon};
use stvor::recipients::{Opening, Sealing};
use stvor::{BackupOptions, Client, Event, Group, Messages, SecretBytes};
use stvor_relay::{Config, LimitsConfig, Relay};

async fn joined(client: &Client, events: &mut stvor::Events) -> Group {
    let id = event(events, |event| match event {
        Event::GroupJoined { group, .. } => Some(group),
        _ => None,
    })
    .await;
    client.group(id).await.unwrap()
}

/// Waits until members show the same state.
async fn agree(groups: &[&Group]) -> stvor::GroupInfo {
    soon(async {
        loop {
            let mut all = Vec::new();
            for group in groups {
                all.push(group.info().await.unwrap());
            }
            if all.iter().all(|info| info.state == all[0].state) {
                assert!(all.iter().all(|info| info.members == all[0].members && info.name == all[0].name));
                return all.remove(0);
            }
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}

async fn text(inbox: &mut Messages) -> (String, String) {
    let message = soon(inbox.next()).await.expect("a message");
    assert!(message.group.is_some(), "it is of a group");
    (message.from.to_string(), message.text().unwrap().to_owned())
}

fn names(info: &stvor::GroupInfo) -> Vec<&str> {
    info.members.iter().map(stvor::UserId::as_str).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_member_sends_to_all_and_each_message_comes_once() {
    let relay = relay().await;
    let app = app(&relay.url()).await;
    let mut clients = Vec::new();
    for name in ["alice", "bob", "carol"] {
        clients.push(app.connect(name).await.unwrap());
    }
    let [alice, bob, carol] = [&clients[0], &clients[1], &clients[2]];
    let mut events = [bob.events(), carol.events()];
    let group = alice.create_group("friends", ["bob", "carol"]).await.unwrap();
    let at_bob = joined(bob, &mut events[0]).await;
    let at_carol = joined(carol, &mut events[1]).await;
    let info = agree(&[&group, &at_bob, &at_carol]).await;
    assert_eq!((names(&info), info.name.as_str()), (vec!["alice", "bob", "carol"], "friends"));

    for round in 0..5 {
        for (from, handle) in [(alice, &group), (bob, &at_bob), (carol, &at_carol)] {
            handle.send(format!("{} {round}", from.user())).await.unwrap();
        }
    }
    for client in [alice, bob, carol] {
        let mut inbox = client.messages();
        let mut got = Vec::new();
        for _ in 0..10 {
            got.push(text(&mut inbox).await);
        }
        for other in ["alice", "bob", "carol"].iter().filter(|other| **other != client.user().as_str()) {
            let of: Vec<&str> =
                got.iter().filter(|(from, _)| from == other).map(|(_, text)| text.as_str()).collect();
            let wanted: Vec<String> = (0..5).map(|round| format!("{other} {round}")).collect();
            assert_eq!(of, wanted, "in the order of sending");
        }
    }
    // Nothing came twice: the next thing that comes is the next thing sent.
    group.send("last").await.unwrap();
    assert_eq!(text(&mut bob.messages()).await.1, "last");
    app.close().await.unwrap();
    relay.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_joins_sees_nothing_of_before_and_who_leaves_nothing_of_after() {
    let relay = relay().await;
    let app = app(&relay.url()).await;
    let alice = app.connect("alice").await.unwrap();
    let bob = app.connect("bob").await.unwrap();
    let carol = app.connect("carol").await.unwrap();
    let (mut bob_events, mut carol_events) = (bob.events(), carol.events());
    let group = alice.create_group("g", ["bob"]).await.unwrap();
    let at_bob = joined(&bob, &mut bob_events).await;
    group.send("before").await.unwrap();
    let mut bob_inbox = bob.messages();
    assert_eq!(text(&mut bob_inbox).await.1, "before");

    group.add(["carol"]).await.unwrap();
    let at_carol = joined(&carol, &mut carol_events).await;
    agree(&[&group, &at_bob, &at_carol]).await;
    group.send("with carol").await.unwrap();
    let mut carol_inbox = carol.messages();
    assert_eq!(text(&mut carol_inbox).await.1, "with carol");
    at_bob.send("from bob").await.unwrap();
    assert_eq!(text(&mut carol_inbox).await, ("bob".into(), "from bob".into()));

    // Bob, who did not make the change, puts her out.
    at_bob.remove("carol").await.unwrap();
    event(&mut carol_events, |event| {
        matches!(event, Event::GroupLeft { by, .. } if by.as_str() == "bob").then_some(())
    })
    .await;
    assert_eq!(code(at_carol.send("still here?").await), "NOT_A_MEMBER");
    agree(&[&group, &at_bob]).await;
    group.send("without carol").await.unwrap();
    assert_eq!(text(&mut bob_inbox).await.1, "with carol");
    assert_eq!(text(&mut bob_inbox).await.1, "without carol");
    // What carol gets next is what she is sent alone: nothing of the group came before it.
    alice.send("carol", "just you").await.unwrap();
    let message = soon(carol_inbox.next()).await.unwrap();
    assert_eq!((message.group, message.text()), (None, Some("just you")));

    at_bob.leave().await.unwrap();
    agree(&[&group, &at_bob]).await;
    assert_eq!(names(&group.info().await.unwrap()), ["alice"]);
    assert!(!at_bob.info().await.unwrap().is_member);
    app.close().await.unwrap();
    relay.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_survives_restarts_with_what_waits_on_both_sides() {
    let folder = tempfile::tempdir().unwrap();
    let relay_folder = tempfile::tempdir().unwrap();
    let relay = durable(relay_folder.path(), 0).await;
    let url = relay.url();
    let alice_app = app_in(&url, &folder.path().join("alice")).await;
    let bob_app = app_in(&url, &folder.path().join("bob")).await;
    let alice = alice_app.connect("alice").await.unwrap();
    let bob = bob_app.connect("bob").await.unwrap();
    let mut events = bob.events();
    let id = alice.create_group("g", ["bob"]).await.unwrap().id();
    joined(&bob, &mut events).await;
    bob_app.close().await.unwrap();
    for round in 0..3 {
        alice.group(id).await.unwrap().send(format!("away {round}")).await.unwrap();
    }
    alice_app.close().await.unwrap();

    let alice_app = app_in(&url, &folder.path().join("alice")).await;
    let alice = alice_app.connect("alice").await.unwrap();
    let group = alice.group(id).await.unwrap();
    assert_eq!(alice.groups().await.unwrap().len(), 1);
    group.send("again").await.unwrap();
    let bob_app = app_in(&url, &folder.path().join("bob")).await;
    let bob = bob_app.connect("bob").await.unwrap();
    let mut inbox = bob.messages();
    for wanted in ["away 0", "away 1", "away 2", "again"] {
        assert_eq!(text(&mut inbox).await.1, wanted);
    }
    bob.group(id).await.unwrap().send("thanks").await.unwrap();
    assert_eq!(text(&mut alice.messages()).await, ("bob".into(), "thanks".into()));
    alice_app.close().await.unwrap();
    bob_app.close().await.unwrap();
    relay.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_changes_end_in_one_state() {
    let relay = relay().await;
    let app = app(&relay.url()).await;
    let alice = app.connect("alice").await.unwrap();
    let bob = app.connect("bob").await.unwrap();
    let carol = app.connect("carol").await.unwrap();
    app.connect("dave").await.unwrap();
    let (mut bob_events, mut carol_events) = (bob.events(), carol.events());
    let group = alice.create_group("g", ["bob", "carol"]).await.unwrap();
    let at_bob = joined(&bob, &mut bob_events).await;
    let at_carol = joined(&carol, &mut carol_events).await;
    agree(&[&group, &at_bob, &at_carol]).await;
    let (one, two, three) =
        tokio::join!(group.rename("by alice"), at_bob.rename("by bob"), at_carol.add(["dave"]));
    one.unwrap();
    two.unwrap();
    three.unwrap();
    let info = soon(async {
        loop {
            let info = agree(&[&group, &at_bob, &at_carol]).await;
            if info.members.len() == 4 && info.name != "g" {
                return info;
            }
        }
    })
    .await;
    assert!(["by alice", "by bob"].contains(&info.name.as_str()), "{}", info.name);
    app.close().await.unwrap();
    relay.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_added_while_away_has_the_group_once_they_caught_up() {
    let folder = tempfile::tempdir().unwrap();
    let relay = relay().await;
    let all = app(&relay.url()).await;
    let alice = all.connect("alice").await.unwrap();
    let bob_app = app_in(&relay.url(), folder.path()).await;
    bob_app.connect("bob").await.unwrap();
    bob_app.close().await.unwrap();
    let group = alice.create_group("g", ["bob"]).await.unwrap();
    group.send("hello").await.unwrap();
    assert_eq!(alice.flush(common::PATIENCE).await.unwrap(), 0);
    let bob_app = app_in(&relay.url(), folder.path()).await;
    let bob = bob_app.connect("bob").await.unwrap();
    bob.wait_caught_up(common::PATIENCE).await.unwrap();
    let groups = bob.groups().await.unwrap();
    assert_eq!(groups.iter().map(|group| group.name.as_str()).collect::<Vec<_>>(), ["g"]);
    assert_eq!(text(&mut bob.messages()).await, ("alice".into(), "hello".into()));
    bob_app.close().await.unwrap();
    all.close().await.unwrap();
    relay.shutdown().await;
}

/// Bob puts Carol out while she lets Dave in: what she did is void, and Dave hears of it.
#[tokio::test(flavor = "multi_thread")]
async fn who_was_let_in_by_a_change_that_becomes_void_learns_that_they_are_out() {
    let (folder, relay_folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let relay = durable(relay_folder.path(), 0).await;
    let url = relay.url();
    let all = app(&url).await;
    let bob_app = app_in(&url, folder.path()).await;
    let [alice, carol, dave] =
        [all.connect("alice").await, all.connect("carol").await, all.connect("dave").await]
            .map(Result::unwrap);
    let bob = bob_app.connect("bob").await.unwrap();
    let (mut bob_events, mut carol_events) = (bob.events(), carol.events());
    let group = alice.create_group("g", ["bob", "carol"]).await.unwrap();
    let at_bob = joined(&bob, &mut bob_events).await;
    let at_carol = joined(&carol, &mut carol_events).await;
    agree(&[&group, &at_bob, &at_carol]).await;
    let port = url.rsplit(':').next().unwrap().trim_end_matches('/').parse().unwrap();
    relay.shutdown().await;
    at_bob.remove("carol").await.unwrap();
    bob_app.close().await.unwrap();

    let relay = durable(relay_folder.path(), port).await;
    let (mut dave_events, mut alice_events) = (dave.events(), alice.events());
    at_carol.add(["dave"]).await.unwrap();
    let at_dave = joined(&dave, &mut dave_events).await;
    at_dave.send("hello").await.unwrap();
    assert_eq!(text(&mut alice.messages()).await, ("dave".into(), "hello".into()));
    // Now Bob's removal comes.
    let bob_app = app_in(&url, folder.path()).await;
    let bob = bob_app.connect("bob").await.unwrap();
    event(&mut alice_events, |event| match event {
        Event::GroupChanged { by, gone, .. } if by.as_str() == "bob" => Some(gone.len()),
        _ => None,
    })
    .await;
    for events in [&mut dave_events, &mut carol_events] {
        event(events, |event| {
            matches!(event, Event::GroupLeft { by, .. } if by.as_str() == "bob").then_some(())
        })
        .await;
    }
    assert!(!at_dave.info().await.unwrap().is_member);
    assert_eq!(code(at_dave.send("anybody?").await), "NOT_A_MEMBER");
    let at_bob = bob.group(group.id()).await.unwrap();
    assert_eq!(names(&agree(&[&group, &at_bob]).await), ["alice", "bob"]);
    bob_app.close().await.unwrap();
    all.close().await.unwrap();
    relay.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_done_says_why() {
    let relay = relay().await;
    let app = app(&relay.url()).await;
    let alice = app.connect("alice").await.unwrap();
    app.connect("bob").await.unwrap();
    assert_eq!(code(alice.group(stvor::GroupId::from_bytes([7; 16])).await), "GROUP_NOT_FOUND");
    assert_eq!(code(alice.create_group("", ["bob"]).await), "BAD_GROUP_CHANGE");
    assert_eq!(code(alice.create_group("g", ["nobody"]).await), "RECIPIENT_NOT_FOUND");
    assert_eq!(code(alice.create_group("g", [" "]).await), "INVALID_NAME");
    let group = alice.create_group("g", ["bob"]).await.unwrap();
    assert_eq!(code(group.send(vec![0; 65_473]).await), "MESSAGE_TOO_LARGE");
    assert!(group.send(vec![0; 65_472]).await.is_ok());
    assert_eq!(code(group.rename("a\u{7}b").await), "BAD_GROUP_CHANGE");
    assert_eq!(code(group.remove("carol").await), "NOT_A_MEMBER");
    group.leave().await.unwrap();
    assert_eq!(code(group.rename("x").await), "NOT_A_MEMBER");
    assert_eq!(code(group.leave().await), "NOT_A_MEMBER");
    app.close().await.unwrap();
    relay.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_has_a_history_and_says_who_has_what_was_said() {
    let relay = relay().await;
    let app = app(&relay.url()).await;
    let alice = app.connect("alice").await.unwrap();
    let bob = app.connect("bob").await.unwrap();
    let carol = app.connect("carol").await.unwrap();
    let mut bob_events = bob.events();
    let mut alice_events = alice.events();
    let group = alice.create_group("g", ["bob", "carol"]).await.unwrap();
    let at_bob = joined(&bob, &mut bob_events).await;
    let first = group.send("buy milk").await.unwrap();
    let mut inbox = bob.messages();
    assert_eq!(text(&mut inbox).await.1, "buy milk");
    at_bob.send("and bread").await.unwrap();
    assert_eq!(text(&mut alice.messages()).await.1, "and bread");
    drop(carol);

    let page = group.history().load().await.unwrap();
    let said: Vec<_> = page
        .messages
        .iter()
        .map(|one| (one.peer.as_str(), one.direction.name(), one.content.as_text().unwrap()))
        .collect();
    assert_eq!(said, [("bob", "in", "and bread"), ("alice", "out", "buy milk")]);
    assert!(page.messages.iter().all(|one| one.group == Some(group.id())));
    let older = at_bob.history().limit(1).load().await.unwrap();
    assert_eq!(older.messages[0].peer.as_str(), "bob", "ours");
    let older = at_bob.history().before(older.before).load().await.unwrap();
    assert_eq!((older.messages[0].peer.as_str(), older.before), ("alice", None));
    let found = at_bob.history().containing("MILK").load().await.unwrap();
    assert_eq!(found.messages.len(), 1);
    assert!(alice.history("bob").load().await.unwrap().messages.is_empty(), "it was said in the group");

    let has = async |wanted: stvor::DeliveryState, count: usize| {
        soon(async {
            loop {
                let receipts = group.receipts(first).await.unwrap();
                if receipts.iter().filter(|one| one.state >= wanted).count() == count {
                    return receipts;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
    };
    let receipts = has(stvor::DeliveryState::Delivered, 2).await;
    assert_eq!(receipts.iter().map(|one| one.user.as_str()).collect::<Vec<_>>(), ["bob", "carol"]);
    at_bob.mark_read("alice", &[first]).await.unwrap();
    let receipts = has(stvor::DeliveryState::Read, 1).await;
    assert_eq!(receipts[0].state, stvor::DeliveryState::Read);
    event(&mut alice_events, |event| match event {
        Event::GroupReceipt { peer, ids, state: stvor::DeliveryState::Read, .. } => {
            assert_eq!((peer.as_str(), ids), ("bob", vec![first]));
            Some(())
        }
        _ => None,
    })
    .await;
    assert!(at_bob.receipts(first).await.unwrap().is_empty(), "it is not his");

    assert_eq!(code(at_bob.delete().await), "INVALID_CONFIG");
    at_bob.leave().await.unwrap();
    at_bob.delete().await.unwrap();
    assert_eq!(code(at_bob.info().await), "GROUP_NOT_FOUND");
    assert!(at_bob.history().load().await.unwrap().messages.is_empty());
    app.close().await.unwrap();
    relay.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_missed_a_removal_learns_of_it_from_the_next_message() {
    let relay = relay().await;
    let app = app(&relay.url()).await;
    let alice = app.connect("alice").await.unwrap();
    let bob = app.connect("bob").await.unwrap();
    let carol = app.connect("carol").await.unwrap();
    let (mut bob_events, mut carol_events) = (bob.events(), carol.events());
    let group = alice.create_group("g", ["bob", "carol", "alice"]).await.unwrap();
    let at_bob = joined(&bob, &mut bob_events).await;
    joined(&carol, &mut carol_events).await;
    // Carol blocks Alice, so what Alice changes does not reach her.
    carol.block("alice").await.unwrap();
    app.connect("dave").await.unwrap();
    group.add(["dave"]).await.unwrap();
    group.remove("dave").await.unwrap();
    group.rename("after").await.unwrap();
    agree(&[&group, &at_bob]).await;
    at_bob.send("hello").await.unwrap();
    let at_carol = carol.group(group.id()).await.unwrap();
    agree(&[&group, &at_bob, &at_carol]).await;
    assert_eq!(at_carol.name().await.unwrap(), "after");
    app.close().await.unwrap();
    relay.shutdown().await;
}

/// What Bob sends to the group comes to the others alone: to who is out comes only what he sends to them by themselves.
async fn sends_without(who: (&Client, &mut Messages), bob: (&Client, &Group), others: &mut [Messages]) {
    bob.1.send("just us").await.unwrap();
    for inbox in others {
        assert_eq!(text(inbox).await, ("bob".into(), "just us".into()));
    }
    bob.0.send(who.0.user().as_str(), "just you").await.unwrap();
    loop {
        let message = soon(who.1.next()).await.unwrap();
        assert_eq!(message.group, None);
        if message.text() == Some("just you") {
            return;
        }
    }
}

/// Alice goes back to a copy of her store, in which she is a member, and asks what changed since.
#[tokio::test(flavor = "multi_thread")]
async fn who_was_put_out_and_asks_from_an_older_state_learns_that_and_nothing_of_after() {
    let (relay, root) = (relay().await, tempfile::tempdir().unwrap());
    let all = app(&relay.url()).await;
    let [bob, carol, dave] =
        [all.connect("bob").await, all.connect("carol").await, all.connect("dave").await].map(Result::unwrap);
    let first = app_in(&relay.url(), &root.path().join("first")).await;
    let alice = first.connect("alice").await.unwrap();
    let (mut alice_events, mut carol_events, mut dave_events) =
        (alice.events(), carol.events(), dave.events());
    let group = bob.create_group("before", ["alice", "carol"]).await.unwrap();
    let at_alice = joined(&alice, &mut alice_events).await;
    let at_carol = joined(&carol, &mut carol_events).await;
    agree(&[&group, &at_alice, &at_carol]).await;
    let (file, secret) = (root.path().join("alice.age"), SecretBytes::from_slice(b"correct horse"));
    let sealing = Sealing::passphrase_with_work(&secret, 4).unwrap();
    alice.backup(&file, sealing, BackupOptions::default()).await.unwrap();

    // She takes what tells her so: the copy of before can only ask.
    group.remove("alice").await.unwrap();
    event(&mut alice_events, |event| matches!(event, Event::GroupLeft { .. }).then_some(())).await;
    bob.send("alice", "goodbye").await.unwrap();
    assert_eq!(soon(alice.messages().next()).await.unwrap().text(), Some("goodbye"));
    first.close().await.unwrap();
    group.add(["dave"]).await.unwrap();
    group.rename("after").await.unwrap();
    let at_dave = joined(&dave, &mut dave_events).await;
    let now = agree(&[&group, &at_carol, &at_dave]).await;

    let mut seen = [bob.events(), carol.events(), dave.events()];
    let second = app_in(&relay.url(), &root.path().join("second")).await;
    second.restore(&file, Opening::passphrase(&secret).unwrap(), None).await.unwrap();
    let alice = second.connect("alice").await.unwrap();
    let mut alice_events = alice.events();
    let at_alice = alice.group(group.id()).await.unwrap();
    if at_alice.info().await.unwrap().is_member {
        let left = event(&mut alice_events, |event| match event {
            Event::GroupLeft { by, .. } => Some(by),
            _ => None,
        });
        assert_eq!(left.await.as_str(), "bob");
    }
    assert_eq!(code(at_alice.send("am I in?").await), "NOT_A_MEMBER");
    let mut others = [carol.messages(), dave.messages()];
    sends_without((&alice, &mut alice.messages()), (&bob, &group), &mut others).await;
    let info = at_alice.info().await.unwrap();
    assert_eq!((names(&info), info.name.as_str()), (vec!["bob", "carol"], "before"));
    assert!(!info.is_member && info.epoch < now.epoch && info.state != now.state);
    assert!(at_alice.history().load().await.unwrap().messages.is_empty());

    // The members noticed nothing.
    assert_eq!(agree(&[&group, &at_carol, &at_dave]).await, now);
    second.close().await.unwrap();
    all.close().await.unwrap();
    for events in &mut seen {
        while let Some(event) = events.next().await {
            let disturbs = matches!(
                event,
                Event::GroupChanged { .. }
                    | Event::GroupJoined { .. }
                    | Event::GroupLeft { .. }
                    | Event::GroupMemberUnknown { .. }
                    | Event::MessageUndecryptable { .. }
                    | Event::SenderKeyMissing { .. }
                    | Event::Lagged { .. }
            );
            assert!(!disturbs, "{event:?}");
        }
    }
    relay.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_missed_that_they_were_put_out_learns_it_by_writing_and_nothing_of_after() {
    let relay = relay().await;
    let app = app(&relay.url()).await;
    let [alice, bob, carol, dave] = [
        app.connect("alice").await,
        app.connect("bob").await,
        app.connect("carol").await,
        app.connect("dave").await,
    ]
    .map(Result::unwrap);
    let (mut bob_events, mut carol_events, mut dave_events) = (bob.events(), carol.events(), dave.events());
    let group = alice.create_group("before", ["bob", "carol"]).await.unwrap();
    let at_bob = joined(&bob, &mut bob_events).await;
    let at_carol = joined(&carol, &mut carol_events).await;
    agree(&[&group, &at_bob, &at_carol]).await;
    let mut alice_inbox = alice.messages();
    at_carol.send("here").await.unwrap();
    assert_eq!(text(&mut alice_inbox).await, ("carol".into(), "here".into()));
    let mut bob_inbox = bob.messages();
    assert_eq!(text(&mut bob_inbox).await, ("carol".into(), "here".into()));

    // Carol blocks Alice, so that nothing of what Alice changes reaches her.
    carol.block("alice").await.unwrap();
    group.remove("carol").await.unwrap();
    group.add(["dave"]).await.unwrap();
    group.rename("after").await.unwrap();
    let at_dave = joined(&dave, &mut dave_events).await;
    let now = agree(&[&group, &at_bob, &at_dave]).await;
    assert!(at_carol.info().await.unwrap().is_member, "by what she knows");
    at_carol.send("anybody?").await.unwrap();
    event(&mut carol_events, |event| {
        matches!(event, Event::GroupLeft { by, .. } if by.as_str() == "alice").then_some(())
    })
    .await;
    assert_eq!(code(at_carol.send("still here?").await), "NOT_A_MEMBER");
    // Nor is what she wrote shown to anybody.
    let mut others = [alice_inbox, dave.messages()];
    sends_without((&carol, &mut carol.messages()), (&bob, &at_bob), &mut others).await;
    group.send("welcome, Dave").await.unwrap();
    assert_eq!(text(&mut bob_inbox).await, ("alice".into(), "welcome, Dave".into()));
    let info = at_carol.info().await.unwrap();
    assert_eq!((names(&info), info.name.as_str()), (vec!["alice", "bob"], "before"));
    assert!(!info.is_member && info.epoch < now.epoch && info.state != now.state);
    assert_eq!(agree(&[&group, &at_bob, &at_dave]).await, now);
    app.close().await.unwrap();
    relay.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_of_more_members_than_the_relay_answers_requests_at_once_is_made_at_its_pace() {
    // Five requests a second and device, 25 at once.
    let limits = LimitsConfig { requests_per_device: 5, ..LimitsConfig::default() };
    let relay = Relay::start(Config { limits, ..Config::mock(0) }).await.unwrap();
    let app = app(&relay.url()).await;
    let mut clients = Vec::new();
    for number in 0..32 {
        clients.push(app.connect(format!("member{number:04}")).await.unwrap());
    }
    let others: Vec<_> = clients[1..].iter().map(|client| client.user().to_string()).collect();
    let group = clients[0].create_group("all", &others).await.unwrap();
    group.send("hello").await.unwrap();
    for client in &clients[1..] {
        assert_eq!(text(&mut client.messages()).await, ("member0000".into(), "hello".into()));
    }

    // One request a second, five at once: of many at the same time some would wait for longer than an answer may take. They are
    // told why.
    let limits = LimitsConfig { requests_per_device: 1, ..LimitsConfig::default() };
    let slow = Relay::start(Config { limits, ..Config::mock(0) }).await.unwrap();
    let hasty = builder(&slow.url()).timeout(Duration::from_secs(1)).in_memory().open().await.unwrap();
    let alice = hasty.connect("alice").await.unwrap();
    let many = || futures::future::join_all((0..24).map(|_| alice.create_group("nobody", ["nobody"])));
    let refused = async {
        loop {
            let codes: Vec<_> = many().await.into_iter().map(|made| made.unwrap_err().code()).collect();
            assert!(
                codes.iter().all(|code| ["RATE_LIMITED", "RECIPIENT_NOT_FOUND"].contains(code)),
                "{codes:?}"
            );
            if codes.contains(&"RATE_LIMITED") && codes.contains(&"RECIPIENT_NOT_FOUND") {
                break;
            }
        }
    };
    soon(refused).await;
    for app in [app, hasty] {
        app.close().await.unwrap();
    }
    for relay in [relay, slow] {
        relay.shutdown().await;
    }
}

/// Members of a large group: `STVOR_GROUP_MEMBERS` says how many, up to 1,000, for a long run.
fn many() -> usize {
    std::env::var("STVOR_GROUP_MEMBERS").ok().and_then(|text| text.parse().ok()).unwrap_or(40)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_member_of_a_large_group_gets_the_keys_of_the_others_and_reads_what_is_said_once() {
    let count = many();
    let patience = Duration::from_secs(60 + count as u64);
    let relay = relay().await;
    let app = app(&relay.url()).await;
    let mut clients = Vec::new();
    for number in 0..count {
        clients.push(app.connect(format!("member{number:04}")).await.unwrap());
    }
    let (first, last) = (&clients[0], &clients[count - 1]);
    let mut events = last.events();
    let others: Vec<_> = clients[1..].iter().map(|client| client.user().to_string()).collect();
    let group = first.create_group("all", &others).await.unwrap();
    group.send("hello").await.unwrap();
    // The last one has a session with the first alone, and gives its key to all.
    let joining = async {
        loop {
            if let Event::GroupJoined { group, .. } = events.next().await.expect("the client is open") {
                break group;
            }
        }
    };
    let joined = tokio::time::timeout(patience, joining).await.expect("in time");
    last.group(joined).await.unwrap().send("thanks").await.unwrap();
    for client in &clients {
        let said = [(first, "hello"), (last, "thanks")];
        let wanted: BTreeSet<_> = said
            .into_iter()
            .filter(|(from, _)| from.user() != client.user())
            .map(|(from, text)| (from.user().to_string(), text.to_owned()))
            .collect();
        let (mut inbox, mut got) = (client.messages(), BTreeSet::new());
        while got.len() < wanted.len() {
            let message =
                tokio::time::timeout(patience, inbox.next()).await.expect("in time").expect("a message");
            assert_eq!(message.group, Some(joined));
            assert!(got.insert((message.from.to_string(), message.text().unwrap().to_owned())), "once");
        }
        assert_eq!(got, wanted);
    }
    // Whatever came twice stands before this.
    group.send("bye").await.unwrap();
    for client in &clients[1..] {
        let mut inbox = client.messages();
        let message =
            tokio::time::timeout(patience, inbox.next()).await.expect("in time").expect("a message");
        assert_eq!((&message.from, message.text()), (first.user(), Some("bye")));
    }
    assert_eq!(group.info().await.unwrap().members.len(), count);
    app.close().await.unwrap();
    relay.shutdown().await;
}
