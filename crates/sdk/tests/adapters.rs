//! Four narrow stores of the application's own in place of a directory.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use common::{builder, code, event, soon};
use stvor::narrow::{
    Adapters, FingerprintStore, IdentityPair, IdentityStore, ReplayCache, SessionStore, StoreError,
    async_trait,
};
use stvor::{App, Client, Content, Event, SecretBytes};

/// The four stores in memory.
#[derive(Debug, Default)]
struct Mine {
    nonces: Mutex<HashSet<Vec<u8>>>,
    pins: Mutex<HashMap<String, String>>,
    states: Mutex<HashMap<String, Vec<u8>>>,
    private: u8,
    /// Every call fails.
    down: Mutex<bool>,
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
}

#[async_trait]
impl SessionStore for Mine {
    async fn save(&self, id: &str, state: &[u8]) -> Result<(), StoreError> {
        self.up()?;
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
    assert!(adapters().open().await.is_ok());
    let relay = common::relay().await;
    let app = app(&relay.url(), &mine).await;
    let _alice = app.connect("alice").await.unwrap();
    assert_eq!(code(app.connect("carol").await), "STORE_LOCKED", "one app with adapters has one user");
}
