//! An identity hands over to a fresh one, over a real relay.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod common;
#[path = "rotation/servers.rs"]
mod servers;
#[path = "rotation/theft.rs"]
mod theft;

use common::{app, app_in, builder, code, durable, event, relay, soon};
use std::sync::Arc;

use stvor::recipients::{Opening, Sealing};
use stvor::store::{Finding, Store, StoreError, StoreFacts, StorePlace, StoreProvider};
use stvor::{
    BackupOptions, Client, Deed, Event, Messages, RotateOptions, SecretBytes, SendOptions, SendWait, Suite,
    TrustPolicy,
};

async fn texts(inbox: &mut Messages, count: usize) -> Vec<String> {
    let mut all = Vec::new();
    while all.len() < count {
        all.push(soon(inbox.next()).await.expect("a message").text().unwrap().to_owned());
    }
    all
}

fn numbered(word: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{word} {number}")).collect()
}

async fn digits(client: &Client, peer: &str) -> String {
    client.safety_number(peer).await.unwrap().digits()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_contact_follows_is_told_and_both_go_on_in_both_suites() {
    for suite in Suite::ALL {
        let relay = relay().await;
        let app = builder(&relay.url()).in_memory().suite(suite).open().await.unwrap();
        let (alice, bob) = (app.connect("alice").await.unwrap(), app.connect("bob").await.unwrap());
        let mut at_bob = bob.messages();
        soon(alice.send("bob", "before").await.unwrap().delivered()).await.unwrap();
        let shown = bob.safety_number("alice").await.unwrap();
        bob.verify_number("alice", &shown).await.unwrap();
        let (first, mut events) = (alice.identity().fingerprint, bob.events());

        let rotated = soon(app.rotate_identity("alice")).await.unwrap();
        let alice_now = rotated.client;
        assert_eq!((&rotated.old, &rotated.new), (&first, &alice_now.identity().fingerprint));
        assert_ne!(rotated.old, rotated.new);
        assert_eq!(code(alice.send("bob", "x").await), "CLIENT_NOT_READY", "the client of before is closed");
        // Bob learns of it though nobody says a word.
        let told = event(&mut events, |event| match event {
            Event::IdentityRotated { peer, old, new, was_verified } => {
                Some((peer.to_string(), old, new, was_verified))
            }
            Event::IdentityChanged { .. } => panic!("it is no stranger"),
            _ => None,
        });
        assert_eq!(told.await, ("alice".to_owned(), rotated.old.clone(), rotated.new.clone(), true));
        let mut at_alice = alice_now.messages();
        soon(bob.send("alice", "to the new key").await.unwrap().delivered()).await.unwrap();
        assert_eq!(texts(&mut at_alice, 1).await, ["to the new key"]);
        soon(alice_now.send("bob", "from the new key").await.unwrap().delivered()).await.unwrap();
        assert_eq!(texts(&mut at_bob, 2).await, ["before", "from the new key"]);

        let number = bob.safety_number("alice").await.unwrap();
        assert!(!number.verified(), "it is another number");
        assert_ne!(number.digits(), shown.digits());
        assert_eq!(number.digits(), digits(&alice_now, "bob").await);
        for client in [&alice_now, &bob] {
            let noted = client.journal(10).await.unwrap();
            let entry = noted.iter().find(|entry| entry.deed == Deed::IdentityRotated).unwrap();
            assert_eq!(entry.subject, "alice");
            assert_eq!(entry.detail, format!("{} -> {}", rotated.old, rotated.new));
        }
        relay.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_contact_who_was_away_for_two_rotations_gets_everything_once() {
    let relay = relay().await;
    let directory = tempfile::tempdir().unwrap();
    let app_of = app_in(&relay.url(), directory.path()).await;
    let (alice, bob) = (app_of.connect("alice").await.unwrap(), app_of.connect("bob").await.unwrap());
    soon(alice.send("bob", "hello").await.unwrap().delivered()).await.unwrap();
    soon(bob.send("alice", "hi").await.unwrap().delivered()).await.unwrap();
    assert_eq!(texts(&mut bob.messages(), 1).await, ["hello"]);
    bob.close().await;
    let mut alice = alice;
    for round in ["a", "b", "c"] {
        for text in numbered(round, 3) {
            alice.send("bob", text).await.unwrap();
        }
        if round != "c" {
            alice = soon(app_of.rotate_identity("alice")).await.unwrap().client;
        }
    }
    let bob = app_of.connect("bob").await.unwrap();
    let mut got = texts(&mut bob.messages(), 9).await;
    // What the new key sent may be read before what the old one's session has to be asked again for.
    got.sort();
    assert_eq!(got, [numbered("a", 3), numbered("b", 3), numbered("c", 3)].concat());
    soon(bob.send("alice", "all here").await.unwrap().delivered()).await.unwrap();
    assert_eq!(texts(&mut alice.messages(), 2).await, ["hi", "all here"]);
    let rotations = bob.journal(10).await.unwrap();
    assert!(rotations.iter().any(|entry| entry.deed == Deed::IdentityRotated));
    relay.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_while_keys_change_comes_once_in_both_directions() {
    let relay = relay().await;
    let app = app(&relay.url()).await;
    let (mut alice, bob) = (app.connect("alice").await.unwrap(), app.connect("bob").await.unwrap());
    soon(alice.send("bob", "hello").await.unwrap().delivered()).await.unwrap();
    soon(bob.send("alice", "hi").await.unwrap().delivered()).await.unwrap();
    for round in 0..2 {
        let sender = bob.clone();
        let sending = tokio::spawn(async move {
            let mut receipts = Vec::new();
            for text in numbered(&format!("to alice {round}"), 30) {
                let options = SendOptions { wait: SendWait::Committed, ..SendOptions::default() };
                receipts.push(sender.send_with("alice", text, options).await.unwrap());
                tokio::task::yield_now().await;
            }
            receipts
        });
        for text in numbered(&format!("to bob {round}"), 10) {
            let options = SendOptions { wait: SendWait::Committed, ..SendOptions::default() };
            alice.send_with("bob", text, options).await.unwrap();
        }
        alice = soon(app.rotate_identity("alice")).await.unwrap().client;
        for receipt in sending.await.unwrap() {
            soon(receipt.delivered()).await.unwrap();
        }
    }
    let mut at_alice = texts(&mut alice.messages(), 61).await;
    let mut at_bob = texts(&mut bob.messages(), 21).await;
    for (got, wanted) in [
        (
            &mut at_alice,
            [vec!["hi".to_owned()], numbered("to alice 0", 30), numbered("to alice 1", 30)].concat(),
        ),
        (
            &mut at_bob,
            [vec!["hello".to_owned()], numbered("to bob 0", 10), numbered("to bob 1", 10)].concat(),
        ),
    ] {
        let mut wanted = wanted;
        got.sort();
        wanted.sort();
        assert_eq!(*got, wanted);
    }
    // Nothing comes a second time behind what is sent last.
    soon(bob.send("alice", "last").await.unwrap().delivered()).await.unwrap();
    assert_eq!(texts(&mut alice.messages(), 1).await, ["last"]);
    relay.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_chain_another_identity_is_an_alarm_as_ever() {
    let relay = relay().await;
    let url = relay.url();
    let (home, thief) =
        (app(&url).await, builder(&url).in_memory().replace_identity(true).open().await.unwrap());
    let (alice, bob) = (home.connect("alice").await.unwrap(), home.connect("bob").await.unwrap());
    soon(alice.send("bob", "x").await.unwrap().delivered()).await.unwrap();
    alice.close().await;
    thief.connect("alice").await.unwrap();
    // A chain that begins with a key that bob never saw.
    let mallory = soon(thief.rotate_identity("alice")).await.unwrap().client;
    let mut events = bob.events();
    mallory.send("bob", "it is me").await.unwrap();
    event(&mut events, |event| match event {
        Event::IdentityChanged { accepted: false, .. } => Some(()),
        Event::IdentityRotated { .. } => panic!("no key of alice signed that"),
        _ => None,
    })
    .await;
    relay.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_rotated_says_so_and_changes_nothing() {
    let relay = relay().await;
    let directory = tempfile::tempdir().unwrap();
    let words = stvor::RecoveryPhrase::fresh().unwrap().words();
    let words = core::str::from_utf8(words.expose()).unwrap().to_owned();
    let derived = || builder(&relay.url()).data_dir(directory.path()).identity_phrase(&words);
    let app = derived().open().await.unwrap();
    let alice = app.connect("alice").await.unwrap();
    let before = alice.identity().fingerprint;
    assert_eq!(code(app.rotate_identity("alice").await.map(|_| ())), "IDENTITY_DERIVED");
    assert_eq!(alice.identity().fingerprint, before);
    alice.close().await;
    app.close().await.unwrap();
    // The store knows it without being given the words again.
    let app = app_in(&relay.url(), directory.path()).await;
    assert_eq!(code(app.rotate_identity("alice").await.map(|_| ())), "IDENTITY_DERIVED");
    app.close().await.unwrap();
    let url = relay.url();
    relay.shutdown().await;
    let app = builder(&url).data_dir(directory.path()).open().await.unwrap();
    assert_eq!(code(app.rotate_identity("alice").await.map(|_| ())), "RELAY_UNAVAILABLE");
    assert_eq!(app.connect("alice").await.unwrap().identity().fingerprint, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_knows_who_rotated_again_once_a_member_adds_them() {
    let relay = relay().await;
    let app = app(&relay.url()).await;
    let (alice, bob) = (app.connect("alice").await.unwrap(), app.connect("bob").await.unwrap());
    let group = bob.create_group("ours", ["alice"]).await.unwrap();
    group.send("before").await.unwrap();
    assert_eq!(texts(&mut alice.messages(), 1).await, ["before"]);
    let mut events = bob.events();
    let alice = soon(app.rotate_identity("alice")).await.unwrap().client;
    event(&mut events, |event| matches!(event, Event::IdentityRotated { .. }).then_some(())).await;
    group.send("not for the new key").await.unwrap();
    event(&mut events, |event| matches!(event, Event::GroupMemberUnknown { .. }).then_some(())).await;
    assert_eq!(code(alice.group(group.id()).await.unwrap().send("x").await.map(|_| ())), "NOT_A_MEMBER");
    group.add(["alice"]).await.unwrap();
    group.send("for the new key").await.unwrap();
    assert_eq!(texts(&mut alice.messages(), 1).await, ["for the new key"]);
    relay.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_new_identity_is_what_relay_and_store_know_after_restarts() {
    let directory = tempfile::tempdir().unwrap();
    let mut relay = durable(directory.path(), 0).await;
    let port = relay.local_addr().port();
    let stores = directory.path().join("data");
    let app = app_in(&relay.url(), &stores).await;
    let (alice, bob) = (app.connect("alice").await.unwrap(), app.connect("bob").await.unwrap());
    soon(alice.send("bob", "hello").await.unwrap().delivered()).await.unwrap();
    let rotated = soon(app.rotate_identity("alice")).await.unwrap();
    let new = rotated.new.clone();
    drop((rotated, alice, bob));
    app.close().await.unwrap();
    relay.shutdown().await;
    relay = durable(directory.path(), port).await;
    let app = app_in(&relay.url(), &stores).await;
    let (alice, bob) = (app.connect("alice").await.unwrap(), app.connect("bob").await.unwrap());
    assert_eq!(alice.identity().fingerprint, new);
    soon(bob.send("alice", "good morning").await.unwrap().delivered()).await.unwrap();
    soon(alice.send("bob", "good morning, too").await.unwrap().delivered()).await.unwrap();
    let pinned = bob.journal(10).await.unwrap();
    assert!(pinned.iter().any(|entry| entry.detail.ends_with(&new)));
    relay.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_closes_at_once_has_told_the_contacts_and_marks_of_before_are_gone() {
    let (relay, directory) = (relay().await, tempfile::tempdir().unwrap());
    let app = app_in(&relay.url(), directory.path()).await;
    let (alice, bob) = (app.connect("alice").await.unwrap(), app.connect("bob").await.unwrap());
    soon(alice.send("bob", "hello").await.unwrap().delivered()).await.unwrap();
    let number = alice.safety_number("bob").await.unwrap();
    alice.verify_number("bob", &number).await.unwrap();
    let mut events = bob.events();
    let alice = soon(app.rotate_identity("alice")).await.unwrap().client;
    alice.close().await;
    event(&mut events, |event| matches!(event, Event::IdentityRotated { .. }).then_some(())).await;
    let alice = app.connect("alice").await.unwrap();
    assert!(!alice.safety_number("bob").await.unwrap().verified(), "that number was never compared");
    relay.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_talks_to_compared_contacts_only_goes_on_with_them_after_rotating() {
    let relay = relay().await;
    let policy = TrustPolicy::VerifiedOnly;
    let app = builder(&relay.url()).in_memory().trust_policy(policy).open().await.unwrap();
    let (alice, bob) = (app.connect("alice").await.unwrap(), app.connect("bob").await.unwrap());
    for (client, peer) in [(&alice, "bob"), (&bob, "alice")] {
        let number = client.safety_number(peer).await.unwrap();
        client.verify_number(peer, &number).await.unwrap();
    }
    soon(alice.send("bob", "before").await.unwrap().delivered()).await.unwrap();
    let (mut at_bob, mut events) = (bob.messages(), bob.events());
    assert_eq!(texts(&mut at_bob, 1).await, ["before"]);

    let alice = soon(app.rotate_identity("alice")).await.unwrap().client;
    let mut at_alice = alice.messages();
    // Alice's policy lets her tell: bob's key is the one that she compared.
    event(&mut events, |event| matches!(event, Event::IdentityRotated { .. }).then_some(())).await;
    assert!(!alice.safety_number("bob").await.unwrap().verified(), "that number was never compared");
    // Bob's policy asks for a comparison of the new key, and both see the same number.
    let waits = bob.send("alice", "to the new key").await.unwrap();
    let number = bob.safety_number("alice").await.unwrap();
    assert_eq!(number.digits(), digits(&alice, "bob").await);
    bob.verify_number("alice", &number).await.unwrap();
    soon(waits.delivered()).await.unwrap();
    let message = soon(at_alice.next()).await.unwrap();
    assert_eq!((message.text(), message.verified), (Some("to the new key"), false));
    soon(alice.send("bob", "from the new key").await.unwrap().delivered()).await.unwrap();
    assert_eq!(texts(&mut at_bob, 1).await, ["from the new key"]);
    let number = alice.safety_number("bob").await.unwrap();
    alice.verify_number("bob", &number).await.unwrap();
    assert!(alice.safety_number("bob").await.unwrap().verified());
    alice.unverify("bob").await.unwrap();
    assert_eq!(code(alice.send("bob", "x").await), "IDENTITY_NOT_VERIFIED");
    relay.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_who_rotate_at_once_come_together_and_owe_nobody_anything() {
    let relay = relay().await;
    let app = app(&relay.url()).await;
    let (alice, bob) = (app.connect("alice").await.unwrap(), app.connect("bob").await.unwrap());
    soon(alice.send("bob", "hello").await.unwrap().delivered()).await.unwrap();
    soon(bob.send("alice", "hi").await.unwrap().delivered()).await.unwrap();
    drop((alice, bob));
    for round in 0..2 {
        let (alice, bob) = tokio::join!(app.rotate_identity("alice"), app.rotate_identity("bob"));
        let (alice, bob) = (alice.unwrap().client, bob.unwrap().client);
        let text = format!("round {round}");
        soon(bob.send("alice", &*text).await.unwrap().delivered()).await.unwrap();
        soon(alice.send("bob", &*text).await.unwrap().delivered()).await.unwrap();
        for client in [&alice, &bob] {
            soon(async {
                while client.pending() > 0 {
                    tokio::task::yield_now().await;
                }
            })
            .await;
        }
    }
    relay.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sealing_for_who_rotated_follows_them() {
    let relay = relay().await;
    let app = app(&relay.url()).await;
    let (alice, bob) = (app.connect("alice").await.unwrap(), app.connect("bob").await.unwrap());
    soon(alice.send("bob", "hello").await.unwrap().delivered()).await.unwrap();
    // Neither has a session with the other: nobody is told, and only the pin is left.
    alice.delete_conversation("bob").await.unwrap();
    bob.delete_conversation("alice").await.unwrap();
    let alice = soon(app.rotate_identity("alice")).await.unwrap().client;
    let blob = soon(bob.seal("alice", "by another way")).await.unwrap();
    assert_eq!(alice.open(&blob).await.unwrap().content.unwrap().as_text(), Some("by another way"));
    let noted = bob.journal(10).await.unwrap();
    assert!(noted.iter().any(|entry| entry.deed == Deed::IdentityRotated), "it is told who moved");
    relay.shutdown().await;
}

/// SQLite that says of itself what a server may say.
#[derive(Debug)]
struct Says(stvor::store::SqliteStores, &'static str);

#[async_trait::async_trait]
impl StoreProvider for Says {
    fn facts(&self) -> StoreFacts {
        self.0.facts()
    }

    async fn open(&self, place: &StorePlace) -> Result<Arc<dyn Store>, StoreError> {
        self.0.open(place).await
    }

    async fn findings(&self) -> Result<Vec<Finding>, StoreError> {
        Ok(vec![Finding::new(self.1, "what", "the way to mend it")])
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_may_lose_the_commit_is_refused_unless_somebody_takes_the_risk() {
    let relay = relay().await;
    for (finding, refused) in [
        ("redis_no_synchronous_replica", true),
        ("postgres_no_synchronous_standby", true),
        ("postgres_no_tls", false),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let stores = Arc::new(Says(stvor::store::SqliteStores, finding));
        let app = builder(&relay.url()).data_dir(directory.path()).store(stores).open().await.unwrap();
        let alice = app.connect(format!("of {finding}")).await.unwrap();
        let (user, before) = (alice.user().to_string(), alice.identity().fingerprint);
        if refused {
            let error = app.rotate_identity(&user).await.map(|_| ()).unwrap_err();
            assert_eq!(error.code(), "ROTATION_UNSAFE");
            assert!(error.to_string().contains("the way to mend it"), "{error}");
            assert_eq!(alice.identity().fingerprint, before);
        }
        let options = RotateOptions { accept_lossy_store: refused, ..RotateOptions::default() };
        let rotated = soon(app.rotate_identity_with(&user, options)).await.unwrap();
        assert_eq!(rotated.old, before);
        app.close().await.unwrap();
    }
    relay.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_says_whether_the_identity_follows_from_words() {
    let relay = relay().await;
    let words = stvor::RecoveryPhrase::fresh().unwrap().words();
    let words = core::str::from_utf8(words.expose()).unwrap().to_owned();
    for (user, derived) in [("alice", true), ("bob", false)] {
        let directory = tempfile::tempdir().unwrap();
        let of = |name: &str| builder(&relay.url()).data_dir(directory.path().join(name));
        let made = if derived { of("old").identity_phrase(&words) } else { of("old") };
        let app = made.open().await.unwrap();
        let client = app.connect(user).await.unwrap();
        let secret = SecretBytes::from_slice(b"correct horse");
        let file = directory.path().join("backup");
        let sealing = Sealing::passphrase_with_work(&secret, 4).unwrap();
        client.backup(&file, sealing, BackupOptions::default()).await.unwrap();
        client.close().await;
        app.close().await.unwrap();
        let app = of("new").open().await.unwrap();
        app.restore(&file, Opening::passphrase(&secret).unwrap(), None).await.unwrap();
        let rotated = soon(app.rotate_identity(user)).await.map(|_| ());
        match derived {
            true => assert_eq!(code(rotated), "IDENTITY_DERIVED"),
            false => rotated.unwrap(),
        }
        app.close().await.unwrap();
    }
    relay.shutdown().await;
}
