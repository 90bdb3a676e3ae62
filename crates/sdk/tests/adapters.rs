//! Four narrow stores of the application's own in place of a directory.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use common::{builder, code, event, soon};
use stvor::narrow::{
    Adapters, FingerprintStore, IdentityPair, IdentityStore, ReplaceFingerprint, ReplayCache, SessionStore,
    StoreError, async_trait,
};
use stvor::{App, Client, Content, Deed, Event, SecretBytes};

/// The four stores in memory.
#[derive(Debug, Default)]
struct Mine {
    nonces: Mutex<HashSet<Vec<u8>>>,
    pins: Mutex<HashMap<String, String>>,
    states: Mutex<HashMap<String, Vec<u8>>>,
    private: u8,
    /// Every call fails.
    down: Mutex<bool>,
    /// Whether fingerprints are replaced.
    replaces: bool,
    /// Nothing is saved any more once one was.
    full_after_replacing: AtomicBool,
    full: AtomicBool,
}

impl Mine {
    fn up(&self) -> Result<(), StoreError> {
        if *self.down.lock().unwrap() { Err(StoreError::Adapter("it is down".into())) } else { Ok(()) }
    }
}

#[async_trait]
impl ReplayCache for Mine {
    async fn check_and_mark(&self, peer: &str, nonce: &[u8]) -> Result<bool, StoreError> {
        self.up()?;
        assert_eq!((peer, nonce.len()), ("bob", 12));
        Ok(!self.nonces.lock().unwrap().insert(nonce.to_vec()))
    }
}

#[async_trait]
impl FingerprintStore for Mine {
    async fn store_fingerprint(&self, peer: &str, fingerprint: &str) -> Result<(), StoreError> {
        self.up()?;
        self.pins.lock().unwrap().entry(peer.to_owned()).or_insert_with(|| fingerprint.to_owned());
        Ok(())
    }

    async fn verify_fingerprint(&self, peer: &str, fingerprint: &str) -> Result<bool, StoreError> {
        self.up()?;
        Ok(self.pins.lock().unwrap().get(peer).is_some_and(|pinned| pinned == fingerprint))
    }

    fn replacing(&self) -> Option<&dyn ReplaceFingerprint> {
        self.replaces.then_some(self)
    }
}

#[async_trait]
impl ReplaceFingerprint for Mine {
    async fn replace_fingerprint(&self, peer: &str, old: &str, new: &str) -> Result<(), StoreError> {
        self.up()?;
        if let Some(stored) = self.pins.lock().unwrap().get_mut(peer).filter(|stored| *stored == old) {
            new.clone_into(stored);
            self.full.fetch_or(self.full_after_replacing.load(Ordering::SeqCst), Ordering::SeqCst);
        }
        Ok(())
    }
}

#[async_trait]
impl SessionStore for Mine {
    async fn save(&self, id: &str, state: &[u8]) -> Result<(), StoreError> {
        self.up()?;
        if self.full.load(Ordering::SeqCst) {
            return Err(StoreError::Adapter("it is full".into()));
        }
        self.states.lock().unwrap().insert(id.to_owned(), state.to_vec());
        Ok(())
    }

    async fn load(&self, id: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.up()?;
        Ok(self.states.lock().unwrap().get(id).cloned())
    }
}

#[async_trait]
impl IdentityStore for Mine {
    async fn identity_key_pair(&self) -> Result<IdentityPair, StoreError> {
        let mut private = [self.private; 32];
        private[31] = 1;
        let key = stvor_crypto::p256::SigningKey::from_bytes(&stvor_crypto::Secret::new(private)).unwrap();
        IdentityPair::new(key.public().as_bytes(), SecretBytes::from_slice(&private).expose())
    }
}

/// Says of the first nonce that it was seen before.
#[derive(Debug)]
struct SeenOnce(AtomicBool);

#[async_trait]
impl ReplayCache for SeenOnce {
    async fn check_and_mark(&self, _: &str, _: &[u8]) -> Result<bool, StoreError> {
        Ok(self.0.swap(false, Ordering::SeqCst))
    }
}

async fn app(url: &str, mine: &Arc<Mine>) -> App {
    let (a, b, c, d) = (mine.clone(), mine.clone(), mine.clone(), mine.clone());
    builder(url).storage_adapters(Adapters::new(a, b, c, d)).open().await.unwrap()
}

async fn text(client: &Client) -> String {
    let mut messages = client.messages();
    let message = soon(messages.next()).await.unwrap();
    match &message.content {
        Content::Text(text) => text.clone(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn identity_sessions_and_history_outlive_the_process_in_sealed_states() {
    let relay = common::relay().await;
    let bob = common::app(&relay.url()).await.connect("bob").await.unwrap();
    let mine = Arc::new(Mine::default());
    let alice = app(&relay.url(), &mine).await.connect("alice").await.unwrap();
    let fingerprint = alice.identity().fingerprint;
    soon(alice.send("bob", "a secret").await.unwrap().delivered()).await.unwrap();
    bob.send("alice", "another secret").await.unwrap();
    assert_eq!(text(&alice).await, "another secret");
    assert_eq!(mine.pins.lock().unwrap()["bob"], bob.identity().fingerprint);
    assert!(!mine.nonces.lock().unwrap().is_empty());
    alice.close().await;
    {
        let states = mine.states.lock().unwrap();
        assert!(states.contains_key("bob"), "sessions are under the peer's id");
        assert!(states.keys().all(|id| id == "bob" || id.starts_with("_stvor/")), "{:?}", states.keys());
        let found =
            |word: &[u8]| states.values().any(|state| state.windows(word.len()).any(|part| part == word));
        assert!(!found(b"secret") && !found(b"alice"));
    }
    let again = app(&relay.url(), &mine).await.connect("alice").await.unwrap();
    assert_eq!(again.identity().fingerprint, fingerprint);
    assert_eq!(again.history("bob").load().await.unwrap().messages.len(), 2);
    bob.send("alice", "still there?").await.unwrap();
    assert_eq!(text(&again).await, "still there?");
}

#[tokio::test]
async fn a_message_whose_nonce_was_seen_before_is_refused_and_comes_by_repair() {
    let relay = common::relay().await;
    let bob = common::app(&relay.url()).await.connect("bob").await.unwrap();
    let mine = Arc::new(Mine::default());
    let alice = app(&relay.url(), &mine).await.connect("alice").await.unwrap();
    alice.send("bob", "x").await.unwrap();
    // As after a crash between the mark and the commit, or after the states were put back.
    alice.close().await;
    let receipt = bob.send("alice", "once").await.unwrap();
    let adapters =
        Adapters::new(Arc::new(SeenOnce(AtomicBool::new(true))), mine.clone(), mine.clone(), mine.clone());
    let alice = builder(&relay.url()).storage_adapters(adapters).open().await.unwrap();
    let alice = alice.connect("alice").await.unwrap();
    let mut events = alice.events();
    assert_eq!(text(&alice).await, "once");
    let id = event(&mut events, |event| match event {
        Event::Repaired { id, .. } => Some(id),
        _ => None,
    });
    assert_eq!(id.await, receipt.id());
}

#[tokio::test]
async fn an_identity_that_the_fingerprint_store_does_not_know_is_refused() {
    let relay = common::relay().await;
    let _bob = common::app(&relay.url()).await.connect("bob").await.unwrap();
    let mine = Arc::new(Mine::default());
    mine.pins.lock().unwrap().insert("bob".to_owned(), "0".repeat(64));
    let alice = app(&relay.url(), &mine).await.connect("alice").await.unwrap();
    assert_eq!(code(alice.send("bob", "x").await), "IDENTITY_CHANGED");
}

#[tokio::test]
async fn an_adapter_that_is_down_fails_what_needs_it_and_nothing_is_lost() {
    let relay = common::relay().await;
    let bob = common::app(&relay.url()).await.connect("bob").await.unwrap();
    let mine = Arc::new(Mine::default());
    let alice = app(&relay.url(), &mine).await.connect("alice").await.unwrap();
    alice.send("bob", "1").await.unwrap();
    assert_eq!(text(&bob).await, "1");
    *mine.down.lock().unwrap() = true;
    assert_eq!(code(alice.send("bob", "2").await), "STORE_FAILED");
    bob.send("alice", "while it was down").await.unwrap();
    *mine.down.lock().unwrap() = false;
    assert_eq!(text(&alice).await, "while it was down");
    soon(alice.send("bob", "3").await.unwrap().delivered()).await.unwrap();
    assert_eq!(text(&bob).await, "3");
}

#[tokio::test]
async fn what_does_not_go_together_is_refused_before_anything_is_dialled() {
    let mine = Arc::new(Mine::default());
    let adapters = || {
        let (a, b, c, d) = (mine.clone(), mine.clone(), mine.clone(), mine.clone());
        builder("ws://localhost:1").storage_adapters(Adapters::new(a, b, c, d))
    };
    assert_eq!(code(adapters().require_atomic_session_and_prekey(true).open().await), "NOT_FOR_PRODUCTION");
    assert_eq!(code(adapters().in_memory().open().await), "INVALID_CONFIG");
    assert_eq!(code(adapters().passphrase("x").open().await), "INVALID_CONFIG");
    assert_eq!(code(adapters().suite(stvor::Suite::X25519).open().await), "INVALID_CONFIG");
    let opened = adapters().open().await.unwrap();
    let weaker = opened.findings().iter().find(|finding| finding.code == "store_not_atomic").unwrap();
    for told in ["whole or not at all", "peers' names", "the user's key"] {
        assert!(weaker.what.contains(told), "{weaker}");
    }
    drop(opened);
    let relay = common::relay().await;
    let app = app(&relay.url(), &mine).await;
    let _alice = app.connect("alice").await.unwrap();
    assert_eq!(code(app.connect("carol").await), "STORE_LOCKED", "one app with adapters has one user");
}

impl Mine {
    fn replacing_pins() -> Arc<Self> {
        Arc::new(Self { replaces: true, ..Self::default() })
    }

    fn pinned(&self) -> String {
        self.pins.lock().unwrap()["bob"].clone()
    }
}

/// Alice on these stores, who wrote to bob and had an answer; and bob.
async fn acquainted(url: &str, mine: &Arc<Mine>) -> (Client, (App, Client)) {
    let others = common::app(url).await;
    let bob = others.connect("bob").await.unwrap();
    let alice = app(url, mine).await.connect("alice").await.unwrap();
    soon(alice.send("bob", "before").await.unwrap().delivered()).await.unwrap();
    assert_eq!(text(&bob).await, "before");
    bob.send("alice", "and an answer").await.unwrap();
    assert_eq!(text(&alice).await, "and an answer");
    (alice, (others, bob))
}

/// Bob lost everything and begins anew.
async fn bob_anew(url: &str, (others, bob): (App, Client)) -> Client {
    bob.close().await;
    drop(others);
    builder(url).in_memory().replace_identity(true).open().await.unwrap().connect("bob").await.unwrap()
}

async fn refusal(alice: &Client, bob: &Client) {
    let mut events = alice.events();
    bob.send("alice", "it is me").await.unwrap();
    let accepted = event(&mut events, |event| match event {
        Event::IdentityChanged { accepted, .. } => Some(accepted),
        _ => None,
    });
    assert!(!accepted.await);
}

async fn both_go_on(alice: &Client, bob: &Client) {
    soon(alice.send("bob", "to the new one").await.unwrap().delivered()).await.unwrap();
    assert_eq!(text(bob).await, "to the new one");
    bob.send("alice", "from the new one").await.unwrap();
    assert_eq!(text(alice).await, "from the new one");
}

#[tokio::test]
async fn an_accepted_identity_takes_the_place_of_the_stored_fingerprint_and_the_journal_says_so() {
    let relay = common::relay().await;
    let mine = Mine::replacing_pins();
    let (alice, before) = acquainted(&relay.url(), &mine).await;
    let old = mine.pinned();
    let bob = bob_anew(&relay.url(), before).await;
    refusal(&alice, &bob).await;
    assert_eq!(mine.pinned(), old, "nobody decided yet");
    alice.accept_identity("bob").await.unwrap();
    let new = bob.identity().fingerprint;
    assert_eq!(mine.pinned(), new);
    let entries = alice.journal(10).await.unwrap();
    let accepted = entries.iter().find(|entry| entry.deed == Deed::IdentityAccepted).unwrap();
    assert_eq!((&*accepted.subject, &*accepted.detail), ("bob", &*format!("{old} -> {new}")));
    // What was refused is asked for again.
    assert_eq!(text(&alice).await, "it is me");
    both_go_on(&alice, &bob).await;
    alice.close().await;
    let alice = app(&relay.url(), &mine).await.connect("alice").await.unwrap();
    both_go_on(&alice, &bob).await;
}

#[tokio::test]
async fn a_store_that_writes_once_takes_another_identity_after_its_fingerprint_was_deleted() {
    for restarted in [false, true] {
        let relay = common::relay().await;
        let mine = Arc::new(Mine::default());
        let (mut alice, before) = acquainted(&relay.url(), &mine).await;
        let old = mine.pinned();
        let bob = bob_anew(&relay.url(), before).await;
        refusal(&alice, &bob).await;
        let refused = alice.accept_identity("bob").await.unwrap_err();
        assert_eq!(refused.code(), "FINGERPRINT_FIXED");
        assert!(refused.to_string().contains("delete the fingerprint of \"bob\""), "{refused}");
        assert_eq!(mine.pinned(), old);
        assert!(alice.journal(10).await.unwrap().is_empty());
        mine.pins.lock().unwrap().remove("bob");
        if restarted {
            alice.close().await;
            alice = app(&relay.url(), &mine).await.connect("alice").await.unwrap();
            assert_eq!(code(alice.send("bob", "x").await), "IDENTITY_CHANGED", "nothing is taken by itself");
        }
        alice.accept_identity("bob").await.unwrap();
        assert_eq!(mine.pinned(), bob.identity().fingerprint);
        assert_eq!(text(&alice).await, "it is me");
        both_go_on(&alice, &bob).await;
    }
}

#[tokio::test]
async fn accepting_once_more_mends_what_a_crash_left_between_the_two_stores() {
    let relay = common::relay().await;
    let mine = Mine::replacing_pins();
    let (alice, before) = acquainted(&relay.url(), &mine).await;
    let bob = bob_anew(&relay.url(), before).await;
    refusal(&alice, &bob).await;
    mine.full_after_replacing.store(true, Ordering::SeqCst);
    assert_eq!(code(alice.accept_identity("bob").await), "STORE_FAILED");
    assert_eq!(mine.pinned(), bob.identity().fingerprint);
    alice.close().await;
    mine.full_after_replacing.store(false, Ordering::SeqCst);
    mine.full.store(false, Ordering::SeqCst);
    let alice = app(&relay.url(), &mine).await.connect("alice").await.unwrap();
    assert_eq!(code(alice.send("bob", "x").await), "IDENTITY_CHANGED");
    assert!(!alice.safety_number("bob").await.unwrap().verified(), "it can be looked at");
    alice.accept_identity("bob").await.unwrap();
    assert_eq!(text(&alice).await, "it is me");
    both_go_on(&alice, &bob).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_is_followed_also_over_a_crash_between_the_two_stores() {
    for crash in [false, true] {
        let relay = common::relay().await;
        let mine = Mine::replacing_pins();
        let (mut alice, (others, _)) = acquainted(&relay.url(), &mine).await;
        mine.full_after_replacing.store(crash, Ordering::SeqCst);
        let mut events = alice.events();
        let rotated = soon(others.rotate_identity("bob")).await.unwrap();
        let bob = rotated.client;
        if crash {
            // Our own store never learns of it.
            event(&mut events, |event| matches!(event, Event::StoreFailing { .. }).then_some(())).await;
            assert_eq!(mine.pinned(), rotated.new);
            alice.close().await;
            mine.full_after_replacing.store(false, Ordering::SeqCst);
            mine.full.store(false, Ordering::SeqCst);
            alice = app(&relay.url(), &mine).await.connect("alice").await.unwrap();
            // It is followed as soon as she is connected, perhaps before anybody listens to events.
            bob.send("alice", "are you there?").await.unwrap();
            assert_eq!(text(&alice).await, "are you there?");
        } else {
            let told = event(&mut events, |event| match event {
                Event::IdentityRotated { old, new, .. } => Some((old, new)),
                Event::IdentityChanged { .. } => panic!("it is no stranger"),
                _ => None,
            });
            assert_eq!(told.await, (rotated.old, rotated.new.clone()));
        }
        assert_eq!(mine.pinned(), rotated.new);
        both_go_on(&alice, &bob).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_way_to_replace_a_fingerprint_no_rotation_is_followed() {
    let relay = common::relay().await;
    let mine = Arc::new(Mine::default());
    let (alice, (others, _)) = acquainted(&relay.url(), &mine).await;
    let old = mine.pinned();
    let bob = soon(others.rotate_identity("bob")).await.unwrap().client;
    refusal(&alice, &bob).await;
    assert_eq!(mine.pinned(), old);
    assert_eq!(code(alice.accept_identity("bob").await), "FINGERPRINT_FIXED");
    mine.pins.lock().unwrap().remove("bob");
    alice.accept_identity("bob").await.unwrap();
    assert_eq!(text(&alice).await, "it is me");
    both_go_on(&alice, &bob).await;
}
