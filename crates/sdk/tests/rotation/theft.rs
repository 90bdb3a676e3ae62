//! Somebody has a copy of a store that was made before its user rotated, and the relay is on their side.

use std::path::Path;

use stvor::{App, Client, Deed, Event, Events, MismatchPolicy};
use stvor_relay::Handle;

use crate::common::{app_in, builder, code, durable, event, soon};
use crate::texts;

/// Alice and Bob, a relay, and a copy of Alice's store of before she rotated.
struct Scene {
    folder: tempfile::TempDir,
    relay: Option<Handle>,
    home: App,
    alice: Client,
    bob: Client,
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (entry, to) = entry.map(|entry| (entry.path(), to.join(entry.file_name()))).unwrap();
        if entry.is_dir() { copy(&entry, &to) } else { assert!(std::fs::copy(&entry, &to).is_ok()) }
    }
}

impl Scene {
    /// A session on which the last word is Alice's, a receipt: her chain has begun, and Bob did not answer it.
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let relay = durable(folder.path(), 0).await;
        let home = app_in(&relay.url(), &folder.path().join("home")).await;
        let (alice, bob) = (home.connect("alice").await.unwrap(), home.connect("bob").await.unwrap());
        soon(alice.send("bob", "hello").await.unwrap().delivered()).await.unwrap();
        soon(bob.send("alice", "hi").await.unwrap().delivered()).await.unwrap();
        assert_eq!(texts(&mut bob.messages(), 1).await, ["hello"]);
        Self { folder, relay: Some(relay), home, alice, bob }
    }

    /// The copy is made, Alice rotates, and Bob follows and compares safety numbers.
    async fn steal_and_rotate(mut self) -> Self {
        self.alice.close().await;
        self.bob.close().await;
        self.home.close().await.unwrap();
        copy(&self.folder.path().join("home"), &self.folder.path().join("stolen"));
        self.home = app_in(&self.relay.as_ref().unwrap().url(), &self.folder.path().join("home")).await;
        self.bob = self.home.connect("bob").await.unwrap();
        let mut events = self.bob.events();
        self.alice = soon(self.home.rotate_identity("alice")).await.unwrap().client;
        event(&mut events, |event| matches!(event, Event::IdentityRotated { .. }).then_some(())).await;
        let number = self.bob.safety_number("alice").await.unwrap();
        self.bob.verify_number("alice", &number).await.unwrap();
        self
    }

    /// The relay knows nothing any more, and the thief is the first who comes. Gives the thief's app, and Bob who is back.
    async fn betray(&mut self, policy: MismatchPolicy) -> (App, Client, Events) {
        let (url, port) = self.relay.as_ref().map(|relay| (relay.url(), relay.local_addr().port())).unwrap();
        self.bob.close().await;
        self.alice.close().await;
        self.home.close().await.unwrap();
        if let Some(relay) = self.relay.take() {
            relay.shutdown().await;
        }
        let elsewhere = self.folder.path().join("elsewhere");
        std::fs::create_dir(&elsewhere).unwrap();
        self.relay = Some(durable(&elsewhere, port).await);
        let thieves = app_in(&url, &self.folder.path().join("stolen")).await;
        soon(thieves.connect("alice")).await.unwrap();
        let home = self.folder.path().join("home");
        self.home = builder(&url).data_dir(home).on_identity_change(policy).open().await.unwrap();
        let bob = self.home.connect("bob").await.unwrap();
        let events = bob.events();
        (thieves, bob, events)
    }

    /// The relay of before is back, with Alice and Bob.
    async fn come_back(&mut self) -> Events {
        self.bob.close().await;
        self.home.close().await.unwrap();
        let relay = self.relay.take().unwrap();
        let port = relay.local_addr().port();
        relay.shutdown().await;
        let relay = durable(self.folder.path(), port).await;
        self.home = app_in(&relay.url(), &self.folder.path().join("home")).await;
        self.relay = Some(relay);
        self.alice = self.home.connect("alice").await.unwrap();
        self.bob = self.home.connect("bob").await.unwrap();
        self.bob.events()
    }

    async fn end(self) {
        self.home.close().await.unwrap();
        self.relay.unwrap().shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_thief_sends_on_the_session_that_was_left_is_verified_by_nobody() {
    let mut scene = Scene::new().await.steal_and_rotate().await;
    let (thieves, bob, mut events) = scene.betray(MismatchPolicy::Reject).await;
    let thief = thieves.connect("alice").await.unwrap();
    // The chain had begun: it may have been under way.
    thief.send("bob", "forged").await.unwrap();
    let mut inbox = bob.messages();
    let message = loop {
        let message = soon(inbox.next()).await.unwrap();
        if message.text() == Some("forged") {
            break message;
        }
    };
    assert!(bob.safety_number("alice").await.unwrap().verified());
    assert!(!message.verified, "the key that was compared did not sign it");
    // Another session is none that was under way.
    thief.reset_session("bob").await.unwrap();
    event(&mut events, |event| matches!(event, Event::IdentitySuperseded { .. }).then_some(())).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_by_a_thief_is_told_and_taken_by_no_policy() {
    let mut scene = Scene::new().await.steal_and_rotate().await;
    let rightful = scene.alice.identity().fingerprint;
    let (thieves, bob, mut events) = scene.betray(MismatchPolicy::Replace).await;
    let thief = soon(thieves.rotate_identity("alice")).await.unwrap().client;
    let told = event(&mut events, |event| match event {
        Event::IdentityForked { peer, pinned, shown } => Some((peer.to_string(), pinned, shown)),
        Event::IdentityRotated { .. } | Event::IdentityChanged { .. } => panic!("it was taken"),
        _ => None,
    });
    let shown = thief.identity().fingerprint;
    assert_eq!(told.await, ("alice".to_owned(), rightful.clone(), shown.clone()));
    thief.send("bob", "it is me").await.unwrap();
    event(&mut events, |event| match event {
        Event::MessageUndecryptable { code: "IDENTITY_FORKED", repair_requested: false, .. } => Some(()),
        _ => None,
    })
    .await;
    assert_eq!(code(bob.accept_identity("alice").await), "IDENTITY_FORKED");
    let noted = bob.journal(10).await.unwrap();
    assert!(noted.iter().any(|entry| entry.deed == Deed::IdentityForked && entry.subject == "alice"));
    assert!(bob.safety_number("alice").await.unwrap().verified(), "nothing was taken");
    // A person may, by name.
    bob.accept_identity_named("alice", &shown).await.unwrap();
    assert!(!bob.safety_number("alice").await.unwrap().verified());
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_fork_was_told_a_later_rotation_of_the_rightful_one_is_followed() {
    let mut scene = Scene::new().await.steal_and_rotate().await;
    let (thieves, bob, mut events) = scene.betray(MismatchPolicy::Reject).await;
    let thief = soon(thieves.rotate_identity("alice")).await.unwrap().client;
    event(&mut events, |event| matches!(event, Event::IdentityForked { .. }).then_some(())).await;
    thief.close().await;
    thieves.close().await.unwrap();
    scene.bob = bob;
    let mut events = scene.come_back().await;
    let before = scene.alice.identity().fingerprint;
    // Nothing but her mail tells of it.
    scene.alice = soon(scene.home.rotate_identity("alice")).await.unwrap().client;
    let told = event(&mut events, |event| match event {
        Event::IdentityRotated { old, new, .. } => Some((old, new)),
        Event::MessageUndecryptable { code: "IDENTITY_FORKED", .. } => panic!("it is no fork"),
        _ => None,
    });
    assert_eq!(told.await, (before, scene.alice.identity().fingerprint));
    soon(scene.bob.send("alice", "to the newest").await.unwrap().delivered()).await.unwrap();
    soon(scene.alice.send("bob", "from the newest").await.unwrap().delivered()).await.unwrap();
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_of_before_is_accepted_by_its_fingerprint_only() {
    let scene = Scene::new().await;
    let old = scene.alice.identity().fingerprint;
    let mut scene = scene.steal_and_rotate().await;
    let new = scene.alice.identity().fingerprint;
    let (_thieves, bob, _) = scene.betray(MismatchPolicy::Replace).await;
    assert_eq!(code(bob.accept_identity("alice").await), "IDENTITY_SUPERSEDED");
    assert_eq!(code(bob.accept_identity_named("alice", &new).await), "IDENTITY_CHANGED");
    bob.accept_identity_named("alice", &old.to_ascii_uppercase()).await.unwrap();
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_group_the_old_key_says_and_does_nothing_more() {
    let scene = Scene::new().await;
    let group = scene.alice.create_group("ours", ["bob"]).await.unwrap();
    group.send("welcome").await.unwrap();
    assert_eq!(texts(&mut scene.bob.messages(), 1).await, ["welcome"]);
    let mut scene = scene.steal_and_rotate().await;
    let at_bob = scene.bob.groups().await.unwrap().remove(0).id;
    let (thieves, bob, mut events) = scene.betray(MismatchPolicy::Replace).await;
    let thief = thieves.connect("alice").await.unwrap();
    let stolen = thief.group(at_bob).await.unwrap();
    stolen.send("forged").await.unwrap();
    event(&mut events, |event| match event {
        Event::MessageUndecryptable { code: "IDENTITY_SUPERSEDED", .. } => Some(()),
        Event::GroupChanged { .. } => panic!("it changed"),
        _ => None,
    })
    .await;
    stolen.rename("mine").await.unwrap();
    event(&mut events, |event| match event {
        Event::MessageUndecryptable { code: "MESSAGE_KEY_GONE", .. } => Some(()),
        Event::GroupChanged { .. } => panic!("it changed"),
        _ => None,
    })
    .await;
    assert_eq!(bob.group(at_bob).await.unwrap().name().await.unwrap(), "ours");
    scene.end().await;
}
