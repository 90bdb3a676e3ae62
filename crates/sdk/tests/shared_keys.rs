//! Stores that several processes share: replacing the data key, backups, and restores.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod common;

use std::path::Path;
use std::sync::Arc;

use common::shared::{Fleet, LEASE};
use common::{app, builder, code, relay, soon};
use stvor::recipients::{Opening, Sealing};
use stvor::store::{PostgresStores, RedisStores, StoreProvider};
use stvor::{App, BackupOptions, Client, SecretBytes};
use stvor_testkit::{Postgres, Redis};

/// A pair of empty stores of one kind, with what keeps their servers alive.
struct Two(Box<dyn std::any::Any + Send>, [Arc<dyn StoreProvider>; 2]);

fn kinds() -> Vec<Two> {
    let mut kinds = Vec::new();
    if let Some(server) = Postgres::start().unwrap() {
        let stores = || {
            let url = server.database().unwrap().url;
            Arc::new(PostgresStores::new(&url).unwrap()) as Arc<dyn StoreProvider>
        };
        let two = [stores(), stores()];
        kinds.push(Two(Box::new(server), two));
    }
    if let (Some(one), Some(other)) = (Redis::start().unwrap(), Redis::start().unwrap()) {
        let stores =
            |server: &Redis| Arc::new(RedisStores::new(&server.url()).unwrap()) as Arc<dyn StoreProvider>;
        let two = [stores(&one), stores(&other)];
        kinds.push(Two(Box::new((one, other)), two));
    }
    kinds
}

async fn open(url: &str, stores: &Arc<dyn StoreProvider>, directory: &Path) -> App {
    let builder = builder(url).store(Arc::clone(stores)).keyfile(directory.join("key"));
    builder.instance_lease(LEASE).open().await.unwrap()
}

async fn talk(from: &Client, to: &Client, words: &str) {
    let mut inbox = to.messages();
    soon(from.send(to.user().as_str(), words)).await.unwrap();
    while soon(inbox.next()).await.unwrap().text() != Some(words) {}
}

async fn said(client: &Client, peer: &str) -> Vec<String> {
    let page = client.history(peer).load().await.unwrap();
    // The newest comes first.
    page.messages.iter().rev().map(|one| one.content.as_text().unwrap_or_default().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_store_gets_a_new_data_key_and_is_backed_up_and_restored() {
    let relay = relay().await;
    for Two(_servers, [first, second]) in kinds() {
        let directory = tempfile::tempdir().unwrap();
        let bobs = app(&relay.url()).await;
        let name = format!("alice-{}", first.facts().kind);
        let bob = bobs.connect(format!("bob-{}", first.facts().kind)).await.unwrap();
        let app = open(&relay.url(), &first, directory.path()).await;
        let alice = app.connect(&name).await.unwrap();
        talk(&alice, &bob, "one").await;
        let other = open(&relay.url(), &first, directory.path()).await;
        let same = other.connect(&name).await.unwrap();
        assert_eq!(code(alice.rotate_key(|_| {}).await), "STORE_IN_USE");
        assert_eq!(alice.store_info().await.unwrap().rotations, 0);
        talk(&same, &bob, "two").await;
        drop(same);
        other.close().await.unwrap();

        let mut last = 0;
        alice.rotate_key(|at| last = at.done).await.unwrap();
        assert!(last > 10);
        let info = alice.store_info().await.unwrap();
        assert_eq!((info.rotations, info.rotating), (1, false));
        talk(&bob, &alice, "three").await;
        let other = open(&relay.url(), &first, directory.path()).await;
        let same = other.connect(&name).await.unwrap();
        talk(&same, &bob, "four").await;
        let peer = bob.user().as_str();
        let all = ["one", "two", "three", "four"].map(str::to_owned);
        assert_eq!(said(&same, peer).await, all);

        let secret = SecretBytes::from_slice(b"correct horse");
        let file = directory.path().join("alice.age");
        let sealing = Sealing::passphrase_with_work(&secret, 4).unwrap();
        same.backup(&file, sealing, BackupOptions::default()).await.unwrap();
        drop((same, alice));
        other.close().await.unwrap();
        app.close().await.unwrap();

        let app = open(&relay.url(), &second, directory.path()).await;
        app.restore(&file, Opening::passphrase(&secret).unwrap(), None).await.unwrap();
        let alice = app.connect(&name).await.unwrap();
        assert_eq!(said(&alice, peer).await, all);
        talk(&alice, &bob, "five").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_slept_while_the_data_key_was_replaced_writes_nothing_and_ends() {
    let relay = relay().await;
    let directory = tempfile::tempdir().unwrap();
    let fleet = Fleet::in_memory(&relay.url(), directory.path());
    let sleeper = fleet.start("alice").await;
    let other = fleet.start("alice").await;
    let (asleep, sleeps) = tokio::sync::oneshot::channel();
    let (wake, woken) = std::sync::mpsc::channel::<()>();
    sleeper.spawn(move |_| async move {
        asleep.send(()).unwrap();
        let _ = woken.recv();
    });
    sleeps.await.unwrap();
    // Refused until the lease of the one that sleeps is over.
    let rotated = other.run(|client| async move {
        let mut refused = 0;
        loop {
            match client.rotate_key(|_| {}).await {
                Ok(()) => return refused,
                Err(error) => assert!(matches!(error.code(), "STORE_IN_USE" | "STORE_CONFLICT"), "{error}"),
            }
            refused += 1;
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    });
    assert!(soon(rotated).await > 0);
    wake.send(()).unwrap();
    let ended = sleeper.run(|client| async move {
        let mut messages = client.messages();
        while messages.next().await.is_some() {}
        client.send("bob", "too late").await.unwrap_err().code()
    });
    assert_eq!(soon(ended).await, "CLIENT_NOT_READY");
    let read = other.run(|client| async move { client.peers().await.map(|_| ()) });
    soon(read).await.unwrap();
}
