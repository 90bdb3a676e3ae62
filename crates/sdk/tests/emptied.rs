//! Stores on servers under a live client: emptied, and set otherwise than at the start.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod common;
#[path = "common/fake.rs"]
mod fake;
#[path = "common/tape.rs"]
mod tape;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::shared::LEASE;
use common::{app, builder, code, durable, event, relay, soon};
use fake::Fake;
use stvor::store::{PostgresStores, RedisStores, StoreProvider};
use stvor::{App, Client, ConnectOptions, DeliveryState, Event, Events, SendOptions, SendWait};
use stvor_testkit::{Postgres, Redis};
use tape::Tape;

const NO_WAIT: SendOptions = SendOptions { timeout: None, wait: SendWait::Committed };

/// A statement or a command to a server.
type Command = Box<dyn Fn(&str)>;

/// A server, and how to empty what it holds and bring it back.
struct Kind {
    stores: Arc<dyn StoreProvider>,
    command: Command,
    /// Ways to lose a store: all of it, and its header only.
    empty: [&'static str; 2],
    /// Brings back what was there when the client was closed last.
    save: &'static str,
    restore: &'static str,
    clear: &'static str,
}

fn kinds() -> Vec<Kind> {
    let mut kinds = Vec::new();
    if let Some(server) = Postgres::start().unwrap() {
        let database = server.database().unwrap();
        kinds.push(Kind {
            stores: Arc::new(PostgresStores::new(&database.url).unwrap()),
            command: Box::new(move |sql| drop(server.sql(&database.name, sql).unwrap())),
            empty: ["DELETE FROM stvor_rows", "DELETE FROM stvor_rows WHERE tbl = 0"],
            save: "DROP TABLE IF EXISTS saved; CREATE TABLE saved AS TABLE stvor_rows",
            restore: "INSERT INTO stvor_rows TABLE saved ON CONFLICT DO NOTHING",
            clear: "DELETE FROM stvor_rows",
        });
    }
    if let Some(server) = Redis::start().unwrap() {
        kinds.push(Kind {
            stores: Arc::new(RedisStores::new(&server.url()).unwrap()),
            command: Box::new(move |script| drop(server.cli(&["eval", script, "0"]).unwrap())),
            empty: [
                "redis.call('FLUSHDB')",
                "for _, key in ipairs(redis.call('KEYS', '*}:rows')) do redis.call('DEL', key) end",
            ],
            save: "for _, key in ipairs(redis.call('KEYS', 'stvor:*')) do redis.call('COPY', key, key, 'DB', 1, 'REPLACE') end",
            restore: "redis.call('SELECT', 1) local keys = redis.call('KEYS', 'stvor:*') \
                      for _, key in ipairs(keys) do redis.call('COPY', key, key, 'DB', 0, 'REPLACE') end redis.call('SELECT', 0)",
            clear: "redis.call('FLUSHDB')",
        });
    }
    kinds
}

async fn on(stores: &Arc<dyn StoreProvider>, url: &str, directory: &Path) -> App {
    let keyfile = directory.join("key");
    let builder = builder(url).store(Arc::clone(stores)).keyfile(keyfile);
    builder.instance_lease(LEASE).open().await.unwrap()
}

/// Everything that is told until the client is closed; none of it is of a rollback or of fresh keys.
async fn ends_by_itself(events: &mut Events) {
    let mut told = false;
    soon(async {
        while let Some(event) = events.next().await {
            match event {
                Event::StoreFailing { code } => told |= code == "STORE_EMPTIED",
                Event::RollbackDetected { .. } | Event::RollbackRecovered | Event::PrekeysUploaded { .. } => {
                    panic!("{event:?} of a store that is not there");
                }
                _ => {}
            }
        }
    })
    .await;
    assert!(told, "why it ended");
}

async fn talking(client: &Client, peer: &Client) {
    soon(client.send(peer.user().as_str(), "before").await.unwrap().delivered()).await.unwrap();
    soon(peer.send(client.user().as_str(), "back").await.unwrap().delivered()).await.unwrap();
    assert_eq!(soon(client.messages().next()).await.unwrap().text(), Some("back"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_store_is_emptied_takes_nothing_says_so_and_ends() {
    let directory = tempfile::tempdir().unwrap();
    let relay = durable(directory.path(), 0).await;
    let theirs = app(&relay.url()).await;
    for kind in kinds() {
        for (way, empty) in kind.empty.into_iter().enumerate() {
            let name = kind.stores.facts().kind;
            let bob = theirs.connect(format!("bob-{name}-{way}")).await.unwrap();
            let user = format!("alice-{name}-{way}");
            let ours = on(&kind.stores, &relay.url(), directory.path()).await;
            let alice = ours.connect(&user).await.unwrap();
            talking(&alice, &bob).await;
            alice.close().await;
            assert_eq!(alice.ended_by(), None, "it was asked to");
            (kind.command)(kind.save);

            // Whoever hands something over learns it at once.
            let alice = ours.connect(&user).await.unwrap();
            let mut events = alice.events();
            event(&mut events, |event| matches!(event, Event::CaughtUp).then_some(())).await;
            (kind.command)(empty);
            for text in ["one", "two"] {
                let sent = alice.send_with(bob.user().as_str(), text, NO_WAIT).await;
                assert_eq!(code(sent), "STORE_EMPTIED", "{name}: {empty}");
            }
            ends_by_itself(&mut events).await;
            assert_eq!(code(alice.send(bob.user().as_str(), "late").await), "STORE_EMPTIED");
            assert_eq!(alice.ended_by(), Some("STORE_EMPTIED"));

            // The next start says it too, and makes nothing anew.
            assert_eq!(code(ours.connect(&user).await), "STORE_EMPTIED", "{name}: {empty}");
            let waiting = bob.send(&user, "meanwhile").await.unwrap();
            assert!(waiting.status() < DeliveryState::Delivered);

            // What the server's own backup brings back opens, and what came meanwhile is read.
            (kind.command)(kind.restore);
            let alice = ours.connect(&user).await.unwrap();
            assert_eq!(soon(alice.messages().next()).await.unwrap().text(), Some("meanwhile"));
            soon(alice.send(bob.user().as_str(), "again").await.unwrap().delivered()).await.unwrap();

            // One that nobody hands anything to notices by itself.
            let mut events = alice.events();
            (kind.command)(empty);
            ends_by_itself(&mut events).await;

            // Who meant it clears the place; the name at the relay still belongs to the one before.
            (kind.command)(kind.clear);
            assert_eq!(code(ours.connect(&user).await), "USER_ID_TAKEN", "{name}: {empty}");
            ours.close().await.unwrap();
            (kind.command)(kind.clear);
        }
    }
    theirs.close().await.unwrap();
    relay.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_in_with_a_store_that_was_emptied_begins_no_recovery() {
    let relay = Fake::start().await;
    let (folder, tape) = (tempfile::tempdir().unwrap(), Tape::new(true));
    let at = || {
        App::builder().app_token("stvor_dev_test123").relay_url(relay.url()).timeout(Duration::from_secs(5))
    };
    let bobs = at().in_memory().open().await.unwrap();
    let bob = bobs.connect("bob").await.unwrap();
    // A long lease: nothing but the log-in looks at the store.
    let stores = Arc::new(tape.clone());
    let app = at().store(stores).keyfile(folder.path().join("key")).instance_lease(Duration::from_secs(600));
    let app = app.open().await.unwrap();
    let alice = app.connect("alice").await.unwrap();
    soon(alice.send("bob", "before").await.unwrap().delivered()).await.unwrap();
    assert_eq!(soon(bob.messages().next()).await.unwrap().text(), Some("before"));
    let mut events = alice.events();
    let sent = relay.log().len();
    tape.rewind(0).await;
    relay.drop_user("alice");
    ends_by_itself(&mut events).await;
    assert_eq!(relay.log().len(), sent, "nothing went out");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_who_writes_first_after_a_rollback_is_read_at_once() {
    let relay = relay().await;
    let (folder, tape) = (tempfile::tempdir().unwrap(), Tape::new(true));
    let stores: Arc<dyn StoreProvider> = Arc::new(tape.clone());
    let theirs = app(&relay.url()).await;
    let bob = theirs.connect("bob").await.unwrap();
    let ours = on(&stores, &relay.url(), folder.path()).await;
    // It registers now, and made its first prekeys a moment ago.
    let alice = ours.connect("alice").await.unwrap();
    soon(alice.send("bob", "first").await.unwrap().delivered()).await.unwrap();
    let copy = tape.len();
    for text in ["second", "third"] {
        soon(alice.send("bob", text).await.unwrap().delivered()).await.unwrap();
    }
    let mut events = alice.events();
    tape.rewind(copy).await;
    alice.send_with("bob", "after", NO_WAIT).await.unwrap();
    // Once the relay has what was made anew, whoever comes is read.
    let (mut recovered, mut uploaded) = (false, 0);
    soon(async {
        while !recovered || uploaded == 0 {
            match events.next().await.unwrap() {
                Event::RollbackRecovered => recovered = true,
                Event::PrekeysUploaded { count } => uploaded = uploaded.max(count),
                _ => {}
            }
        }
    })
    .await;
    let mut inbox = alice.messages();
    for number in 0..5 {
        let stranger = theirs.connect(format!("stranger-{number}")).await.unwrap();
        soon(stranger.send("alice", "hello").await.unwrap().delivered()).await.unwrap();
        let message = soon(inbox.next()).await.unwrap();
        assert_eq!(message.text(), Some("hello"));
        stranger.close().await;
    }
    for text in ["first", "second", "third", "after"] {
        assert_eq!(soon(bob.messages().next()).await.unwrap().text(), Some(text));
    }
    alice.close().await;
    while let Some(event) = events.next().await {
        let repair = matches!(event, Event::MessageUndecryptable { .. } | Event::Repaired { .. });
        assert!(!repair, "read as it came: {event:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_set_otherwise_later_is_told_at_the_next_log_in() {
    let directory = tempfile::tempdir().unwrap();
    let mut relay = durable(directory.path(), 0).await;
    let port = relay.url().rsplit(':').next().unwrap().parse().unwrap();
    type Weakening = (Arc<dyn StoreProvider>, Box<dyn Fn(bool)>, &'static str);
    let mut kinds: Vec<Weakening> = Vec::new();
    if let Some(server) = Postgres::start().unwrap() {
        let stores = PostgresStores::new(&server.database().unwrap().url).unwrap();
        let set = move |weak: bool| {
            let value = if weak { "off" } else { "on" };
            server.sql("postgres", &format!("ALTER SYSTEM SET full_page_writes = {value}")).unwrap();
            server.sql("postgres", "SELECT pg_reload_conf()").unwrap();
        };
        kinds.push((Arc::new(stores), Box::new(set), "postgres_full_page_writes_off"));
    }
    if let Some(server) = Redis::start().unwrap() {
        let stores = RedisStores::new(&server.url()).unwrap();
        let set = move |weak: bool| {
            let value = if weak { "no" } else { "yes" };
            server.cli(&["config", "set", "appendonly", value]).unwrap();
        };
        kinds.push((Arc::new(stores), Box::new(set), "redis_appendonly"));
    }
    for (stores, set, finding) in kinds {
        let ours = on(&stores, &relay.url(), directory.path()).await;
        assert!(!ours.findings().iter().any(|found| found.code == finding));
        let alice = ours.connect(format!("alice-{}", stores.facts().kind)).await.unwrap();
        let mut events = alice.events();
        set(true);
        relay.shutdown().await;
        relay = durable(directory.path(), port).await;
        let told = event(&mut events, |event| match event {
            Event::StoreWeakened { findings } => Some(findings),
            _ => None,
        });
        let told = told.await;
        assert_eq!(told.iter().map(|found| found.code).collect::<Vec<_>>(), [finding]);
        assert!(told[0].refused && !told[0].fix.is_empty());
        set(false);
        ours.close().await.unwrap();
    }
    relay.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_connected_hears_of_a_second_store_with_the_same_keys_and_goes_on() {
    let relay = relay().await;
    let theirs = app(&relay.url()).await;
    let bob = theirs.connect("bob").await.unwrap();
    let with_words = || builder(&relay.url()).in_memory().identity_passphrase("a long passphrase of alice");
    let ours = with_words().open().await.unwrap();
    let alice = ours.connect("alice").await.unwrap();
    let mut events = alice.events();
    let thief = with_words().open().await.unwrap();
    assert_eq!(code(thief.connect("alice").await), "CLONE_DETECTED");
    event(&mut events, |event| matches!(event, Event::CloneDetected).then_some(())).await;
    soon(alice.send("bob", "still here").await.unwrap().delivered()).await.unwrap();
    assert_eq!(soon(bob.messages().next()).await.unwrap().text(), Some("still here"));
    alice.close().await;
    while let Some(event) = events.next().await {
        assert!(!matches!(event, Event::Reconnecting { .. } | Event::Superseded), "{event:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_account_on_a_server_is_none_that_exists() {
    for kind in kinds() {
        let directory = tempfile::tempdir().unwrap();
        let relay = durable(directory.path(), 0).await;
        let app = on(&kind.stores, &relay.url(), directory.path()).await;
        let client = app.connect("alice").await.unwrap();
        client.delete_account().await.unwrap();
        let existing = ConnectOptions { existing: true, ..ConnectOptions::default() };
        assert_eq!(code(app.connect_with("alice", existing).await), "IDENTITY_NOT_FOUND");
        soon(app.connect("alice")).await.unwrap();
    }
}
