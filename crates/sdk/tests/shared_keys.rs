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
use common::{app, builder, code, event, relay, soon};
use stvor::recipients::{Opening, Sealing};
use stvor::store::{PostgresStores, RedisStores, StoreProvider};
use stvor::{App, BackupOptions, Client, Event, SecretBytes, SendOptions, SendWait};
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
        // Whom the instance that is backed up never met.
        let carol = bobs.connect(format!("carol-{}", first.facts().kind)).await.unwrap();
        talk(&alice, &carol, "only through the other one").await;

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
        assert_eq!(said(&alice, carol.user().as_str()).await, ["only through the other one"]);
        talk(&alice, &bob, "five").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_instance_has_taken_when_the_data_key_is_replaced_is_shown_once() {
    // More than an instance takes at a time.
    const COUNT: usize = 50;
    let relay = relay().await;
    let bobs = app(&relay.url()).await;
    for Two(_servers, [stores, _]) in kinds() {
        let directory = tempfile::tempdir().unwrap();
        let kind = stores.facts().kind;
        let bob = bobs.connect(format!("bob-{kind}")).await.unwrap();
        let app = open(&relay.url(), &stores, directory.path()).await;
        let alice = app.connect(format!("alice-{kind}")).await.unwrap();
        let send = async |words: String| {
            let sent = soon(bob.send(alice.user().as_str(), words)).await.unwrap();
            soon(sent.delivered()).await.unwrap();
        };
        for number in 0..COUNT {
            send(number.to_string()).await;
        }
        let mut messages = alice.messages().manual_ack();
        let mut handed = vec![soon(messages.next()).await.unwrap(), soon(messages.next()).await.unwrap()];
        assert!(alice.unconsumed() > handed.len());
        alice.rotate_key(|_| {}).await.unwrap();
        send("last".to_owned()).await;
        let mut texts = Vec::new();
        while texts.last().map(String::as_str) != Some("last") {
            let message = match handed.is_empty() {
                true => soon(messages.next()).await.unwrap(),
                false => handed.remove(0),
            };
            soon(message.ack()).await.unwrap();
            texts.push(message.text().unwrap().to_owned());
        }
        let sent: Vec<String> = (0..COUNT).map(|number| number.to_string()).collect();
        assert_eq!(texts, [sent, vec!["last".to_owned()]].concat(), "each once, and in their order");
        assert_eq!(alice.unconsumed(), 0);
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
        (client.send("bob", "too late").await.unwrap_err().code(), client.ended_by())
    });
    assert_eq!(soon(ended).await, ("CLIENT_NOT_READY", Some("STORE_KEYS_REPLACED")));
    let read = other.run(|client| async move { client.peers().await.map(|_| ()) });
    soon(read).await.unwrap();
}

/// A replica that lagged behind takes over: what the server had acknowledged is gone under a client that runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_of_a_replica_that_lacks_commits_is_a_rollback_and_nothing_is_used_twice() {
    let settings = ["wal_level=replica", "max_wal_senders=4", "hot_standby=on"];
    let Some(primary) = Postgres::start_with(&settings).unwrap() else { return };
    let database = primary.database().unwrap();
    let replica = primary.start_replica("second").unwrap();
    let patience = std::time::Duration::from_secs(60);
    let caught_up = || {
        stvor_testkit::until(patience, || {
            let behind = "SELECT count(*) FROM pg_stat_replication WHERE replay_lsn = pg_current_wal_lsn()";
            (primary.sql("postgres", behind).ok()?.trim() == "1").then_some(())
        })
        .unwrap();
    };
    let url = format!(
        "postgres://stvor@127.0.0.1:{},127.0.0.1:{}/{}?sslmode=disable&target_session_attrs=read-write",
        primary.port(),
        replica.port(),
        database.name
    );
    let relay = relay().await;
    let directory = tempfile::tempdir().unwrap();
    let bobs = app(&relay.url()).await;
    let bob = bobs.connect("bob").await.unwrap();
    let stores = Arc::new(PostgresStores::new(&url).unwrap()) as Arc<dyn StoreProvider>;
    let app = open(&relay.url(), &stores, directory.path()).await;
    let alice = app.connect("alice").await.unwrap();
    talk(&alice, &bob, "one").await;
    talk(&bob, &alice, "two").await;
    caught_up();
    // From here on nothing reaches the replica.
    replica.sql("postgres", "ALTER SYSTEM SET primary_conninfo = ''").unwrap();
    replica.sql("postgres", "SELECT pg_reload_conf()").unwrap();
    stvor_testkit::until(patience, || {
        let count = primary.sql("postgres", "SELECT count(*) FROM pg_stat_replication").ok()?;
        (count.trim() == "0").then_some(())
    })
    .unwrap();
    let mut at_bob = bob.messages();
    for number in 0..3 {
        let sent = alice.send("bob", format!("acknowledged and lost {number}")).await.unwrap();
        soon(sent.delivered()).await.unwrap();
    }
    let mut events = alice.events();
    primary.kill().unwrap();
    replica.promote().unwrap();
    let sending = async {
        let options = SendOptions { wait: SendWait::Committed, ..SendOptions::default() };
        // A turn that meets the change may be refused: nothing of it happened then.
        while alice.send_with("bob", "after", options).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::join!(soon(sending), async {
        event(&mut events, |event| matches!(event, Event::RollbackDetected { .. }).then_some(())).await;
    });
    let mut got = Vec::new();
    while got.last().map(String::as_str) != Some("after") {
        let message = soon(at_bob.next()).await.unwrap();
        got.push(message.text().unwrap().to_owned());
    }
    got.retain(|text| text != "one");
    let lost: Vec<String> = (0..3).map(|number| format!("acknowledged and lost {number}")).collect();
    assert_eq!(got, [lost, vec!["after".to_owned()]].concat(), "each once, and in their order");
    talk(&bob, &alice, "to the new primary").await;
    app.close().await.unwrap();
    bobs.close().await.unwrap();
    relay.shutdown().await;
}
