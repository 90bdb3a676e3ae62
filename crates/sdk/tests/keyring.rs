//! Stores whose keys are in a keyring.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod common;
#[path = "common/tape.rs"]
mod tape;

use std::sync::Arc;

use common::shared::{LEASE, SharedMemory};
use common::{builder, code, relay};
use stvor::store::OpenKey;
use stvor::{App, SecretBytes};
use stvor_testkit::MemoryKeyring;
use tape::Tape;

#[tokio::test(flavor = "multi_thread")]
async fn the_keyring_opens_what_it_sealed_and_nothing_else_does() {
    let relay = relay().await;
    let directory = tempfile::tempdir().unwrap();
    let ring = Arc::new(MemoryKeyring::default());
    let open =
        |ring: Arc<MemoryKeyring>| builder(&relay.url()).data_dir(directory.path()).keyring(ring).open();

    let app = open(ring.clone()).await.unwrap();
    let alice = app.connect("alice").await.unwrap();
    let fingerprint = alice.identity().fingerprint.clone();
    let store = alice.data_path().unwrap().to_owned();
    app.close().await.unwrap();
    assert_eq!(ring.len(), 1);
    let beside: Vec<_> =
        std::fs::read_dir(store.parent().unwrap()).unwrap().flatten().map(|e| e.file_name()).collect();
    assert!(!beside.iter().any(|name| name.to_string_lossy().ends_with(".key")), "{beside:?}");

    let app = open(ring).await.unwrap();
    let alice = app.connect("alice").await.unwrap();
    assert_eq!(alice.identity().fingerprint, fingerprint);
    app.close().await.unwrap();

    let app = open(Arc::new(MemoryKeyring::default())).await.unwrap();
    assert_eq!(code(app.connect("alice").await), "KEY_MISSING");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_moves_from_its_keyfile_into_a_keyring() {
    let relay = relay().await;
    let directory = tempfile::tempdir().unwrap();
    let ring = Arc::new(MemoryKeyring::default());
    let plain = || builder(&relay.url()).data_dir(directory.path());
    let app = plain().open().await.unwrap();
    let alice = app.connect("alice").await.unwrap();
    let fingerprint = alice.identity().fingerprint;
    alice.change_key_to_keyring(ring.clone()).await.unwrap();
    assert_eq!(alice.store_info().await.unwrap().holder.name(), "key in the system's keyring");
    app.close().await.unwrap();
    assert_eq!(code(plain().open().await.unwrap().connect("alice").await), "KEY_REQUIRED");
    let app = plain().keyring(ring).open().await.unwrap();
    assert_eq!(app.connect("alice").await.unwrap().identity().fingerprint, fingerprint);
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_make_a_shared_store_at_once_end_with_one_identity_and_one_key() {
    let relay = relay().await;
    for round in 0..3 {
        let name = format!("alice{round}");
        let (stores, ring) = (Arc::new(SharedMemory::default()), Arc::new(MemoryKeyring::default()));
        let open = async || {
            let stores: Arc<dyn stvor::store::StoreProvider> = stores.clone();
            let builder = builder(&relay.url()).store(stores).keyring(ring.clone());
            builder.instance_lease(LEASE).open().await.unwrap()
        };
        let apps = [open().await, open().await, open().await, open().await];
        // Each in a task of its own, as processes would.
        let racing = apps.map(|app| {
            let name = name.clone();
            tokio::spawn(async move {
                let options = stvor::ConnectOptions { allow_unregistered: true, ..Default::default() };
                (app.connect_with(&name, options).await.unwrap().identity(), app)
            })
        });
        let mut identities = Vec::new();
        for racer in racing {
            let (identity, app) = racer.await.unwrap();
            identities.push(identity);
            app.close().await.unwrap();
        }
        assert!(identities.iter().all(|identity| *identity == identities[0]), "{identities:?}");
        assert_eq!(ring.len(), 1, "the keys of those who were slower are gone");
        let again = open().await;
        assert_eq!(again.connect(&name).await.unwrap().identity(), identities[0]);
        again.close().await.unwrap();
    }
}

/// Whoever heard that it failed would throw the new key away, and with it the store.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_the_key_that_the_journal_has_no_room_for_is_done_all_the_same() {
    let tape = Tape::new(false);
    let open = |passphrase: &str| {
        // Nobody listens there: nothing but what this test does is committed.
        let builder = builder("ws://127.0.0.1:1").store(Arc::new(tape.clone()));
        builder.passphrase(passphrase).open()
    };
    let connect = async |app: &App| {
        let options = stvor::ConnectOptions { allow_unregistered: true, ..Default::default() };
        app.connect_with("alice", options).await
    };
    let app = open("the old one").await.unwrap();
    let alice = connect(&app).await.unwrap();
    let fingerprint = alice.identity().fingerprint;
    tape.end_after(1);
    alice.change_key(OpenKey::Passphrase(SecretBytes::from_slice(b"the new one"))).await.unwrap();
    assert!(tape.is_over());
    alice.close().await;
    drop(app);
    tape.rewind(tape.len()).await;
    assert_eq!(code(connect(&open("the old one").await.unwrap()).await), "WRONG_KEY");
    let again = open("the new one").await.unwrap();
    let alice = connect(&again).await.unwrap();
    assert_eq!(alice.identity().fingerprint, fingerprint);
    assert!(alice.journal(9).await.unwrap().is_empty());
}
