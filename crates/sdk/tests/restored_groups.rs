//! Groups after a restore: membership comes back, sender keys never do.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod common;

use common::{app_in, event, relay, soon};
use stvor::recipients::{Opening, Sealing};
use stvor::{BackupOptions, Client, ConnectOptions, Event, Messages, SecretBytes};

fn secret() -> SecretBytes {
    SecretBytes::from_slice(b"correct horse")
}

async fn reads(inbox: &mut Messages, text: &str) {
    soon(async { while inbox.next().await.expect("open").text() != Some(text) {} }).await;
}

/// Three members; Alice wrote nothing to Carol but to the group.
async fn three(url: &str, root: &std::path::Path) -> ([Client; 3], stvor::GroupId) {
    let mut clients = Vec::new();
    for name in ["alice", "bob", "carol"] {
        clients.push(app_in(url, &root.join(name)).await.connect(name).await.unwrap());
    }
    let [alice, bob, carol]: [Client; 3] = clients.try_into().unwrap();
    let mut events = [alice.events(), carol.events()];
    let group = bob.create_group("three", ["alice", "carol"]).await.unwrap().id();
    for events in &mut events {
        event(events, |event| matches!(event, Event::GroupJoined { .. }).then_some(())).await;
    }
    alice.group(group).await.unwrap().send("before").await.unwrap();
    reads(&mut bob.messages(), "before").await;
    reads(&mut carol.messages(), "before").await;
    ([alice, bob, carol], group)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_member_sends_again_reads_again_and_is_on_the_newest_state() {
    let (relay, root) = (relay().await, tempfile::tempdir().unwrap());
    let ([alice, bob, carol], group) = three(&relay.url(), root.path()).await;
    let file = root.path().join("alice.age");
    let sealing = Sealing::passphrase_with_work(&secret(), 4).unwrap();
    alice.backup(&file, sealing, BackupOptions::default()).await.unwrap();
    soon(alice.close()).await;
    // What the backup does not know.
    bob.group(group).await.unwrap().rename("renamed").await.unwrap();

    let app = app_in(&relay.url(), &root.path().join("restored")).await;
    app.restore(&file, Opening::passphrase(&secret()).unwrap(), None).await.unwrap();
    let alice = app.connect("alice").await.unwrap();
    let mut events = alice.events();
    let ours = alice.group(group).await.unwrap();
    assert_eq!(ours.members().await.unwrap().len(), 3);
    ours.send("after").await.unwrap();
    reads(&mut bob.messages(), "after").await;
    reads(&mut carol.messages(), "after").await;
    let mut inbox = alice.messages();
    bob.group(group).await.unwrap().send("welcome back").await.unwrap();
    reads(&mut inbox, "welcome back").await;
    carol.group(group).await.unwrap().send("and from me").await.unwrap();
    reads(&mut inbox, "and from me").await;
    if ours.name().await.unwrap() != "renamed" {
        event(&mut events, |event| matches!(event, Event::GroupChanged { .. }).then_some(())).await;
    }
    assert_eq!(ours.name().await.unwrap(), "renamed");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_put_out_since_the_backup_is_told_so() {
    let (relay, root) = (relay().await, tempfile::tempdir().unwrap());
    let ([alice, bob, carol], group) = three(&relay.url(), root.path()).await;
    let file = root.path().join("alice.age");
    let sealing = Sealing::passphrase_with_work(&secret(), 4).unwrap();
    alice.backup(&file, sealing, BackupOptions::default()).await.unwrap();
    soon(alice.close()).await;
    let mut at_carol = carol.events();
    bob.group(group).await.unwrap().remove("alice").await.unwrap();
    event(&mut at_carol, |event| matches!(event, Event::GroupChanged { .. }).then_some(())).await;

    let app = app_in(&relay.url(), &root.path().join("restored")).await;
    app.restore(&file, Opening::passphrase(&secret()).unwrap(), None).await.unwrap();
    let alice = app.connect("alice").await.unwrap();
    let mut events = alice.events();
    let ours = alice.group(group).await.unwrap();
    if ours.info().await.unwrap().is_member {
        let left = event(&mut events, |event| match event {
            Event::GroupLeft { by, .. } => Some(by),
            _ => None,
        });
        assert_eq!(left.await.as_str(), "bob");
    }
    assert_eq!(ours.send("am I in?").await.unwrap_err().code(), "NOT_A_MEMBER");
    // Nothing of hers comes to the others.
    bob.group(group).await.unwrap().send("without her").await.unwrap();
    reads(&mut carol.messages(), "without her").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_was_met_in_a_group_only_is_still_held_to_their_identity() {
    let (relay, root) = (relay().await, tempfile::tempdir().unwrap());
    let ([alice, _bob, carol], _) = three(&relay.url(), root.path()).await;
    let number = carol.safety_number("alice").await.unwrap().digits();
    let file = root.path().join("alice.age");
    let sealing = Sealing::passphrase_with_work(&secret(), 4).unwrap();
    alice.backup(&file, sealing, BackupOptions::default()).await.unwrap();
    soon(alice.close()).await;
    let app = app_in(&relay.url(), &root.path().join("restored")).await;
    app.restore(&file, Opening::passphrase(&secret()).unwrap(), None).await.unwrap();
    // No relay can say who Carol is: the pin does.
    relay.shutdown().await;
    let options = ConnectOptions { allow_unregistered: true, ..ConnectOptions::default() };
    let alice = app.connect_with("alice", options).await.unwrap();
    assert_eq!(alice.safety_number("carol").await.unwrap().digits(), number);
}
