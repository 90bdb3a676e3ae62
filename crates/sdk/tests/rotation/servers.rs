//! Rotations on PostgreSQL and Redis: several processes, some of which are killed in the middle.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use stvor::store::{PostgresStores, RedisStores, StoreProvider};
use stvor::{Client, ConnectionState, RotateOptions, SendOptions, SendWait};
use stvor_testkit::{Postgres, Redis};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::common::shared::{Fleet, LEASE};
use crate::common::{app, code, durable, soon};
use crate::{numbered, texts};

/// The servers of the tests run without replicas, and some settings of theirs are for speed.
const RISKY: RotateOptions = RotateOptions { not_derived: false, accept_lossy_store: true };

/// Empty stores of each kind, with what keeps their servers alive.
fn kinds() -> Vec<(Box<dyn std::any::Any + Send>, Arc<dyn StoreProvider>)> {
    let mut kinds: Vec<(Box<dyn std::any::Any + Send>, Arc<dyn StoreProvider>)> = Vec::new();
    if let Some(server) = Postgres::start().unwrap() {
        let stores = Arc::new(PostgresStores::new(&server.database().unwrap().url).unwrap());
        kinds.push((Box::new(server), stores));
    }
    if let Some(server) = Redis::start().unwrap() {
        let stores = Arc::new(RedisStores::new(&server.url()).unwrap());
        kinds.push((Box::new(server), stores));
    }
    kinds
}

fn fleet(url: &str, stores: &Arc<dyn StoreProvider>, directory: &Path) -> Fleet {
    let keyfile = directory.join("key");
    Fleet { url: url.to_owned(), stores: Arc::clone(stores), keyfile, clock: None }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_server_who_is_alone_rotates_and_others_begin_with_the_new_identity() {
    let directory = tempfile::tempdir().unwrap();
    let relay = durable(directory.path(), 0).await;
    for (_server, stores) in kinds() {
        let kind = stores.facts().kind;
        let fleet = fleet(&relay.url(), &stores, directory.path());
        let (alice, bob) = (format!("alice-{kind}"), format!("bob-{kind}"));
        let (ours, theirs) = (fleet.app().await, app(&relay.url()).await);
        let first = ours.connect(&alice).await.unwrap();
        let bob = theirs.connect(&bob).await.unwrap();
        soon(bob.send(&alice, "before").await.unwrap().delivered()).await.unwrap();
        let before = first.identity().fingerprint;
        let elsewhere = fleet.app().await;
        let second = elsewhere.connect(&alice).await.unwrap();
        let in_use = ours.rotate_identity_with(&alice, RISKY).await.map(|_| ());
        assert_eq!(code(in_use), "STORE_IN_USE", "{kind}");
        assert_eq!(second.identity().fingerprint, before);
        second.close().await;
        elsewhere.close().await.unwrap();
        let rotated = soon(ours.rotate_identity_with(&alice, RISKY)).await.unwrap();
        assert_eq!(rotated.old, before, "{kind}");
        let elsewhere = fleet.app().await;
        let second = elsewhere.connect(&alice).await.unwrap();
        assert_eq!(second.identity().fingerprint, rotated.new, "{kind}");
        soon(bob.send(&alice, "after").await.unwrap().delivered()).await.unwrap();
        soon(second.send(bob.user().as_str(), "from the other").await.unwrap().delivered()).await.unwrap();
        soon(rotated.client.send(bob.user().as_str(), "from the one").await.unwrap().delivered())
            .await
            .unwrap();
        let mut got = texts(&mut bob.messages(), 2).await;
        got.sort();
        assert_eq!(got, ["from the one", "from the other"], "{kind}");
        elsewhere.close().await.unwrap();
        ours.close().await.unwrap();
        theirs.close().await.unwrap();
    }
    relay.shutdown().await;
}

/// Rotates as soon as no other process has the store open, and tells when each try began.
async fn rotate(fleet: Fleet, user: String, tries: watch::Sender<Instant>) -> String {
    let app = fleet.app().await;
    loop {
        tries.send_replace(Instant::now());
        match app.rotate_identity_with(&user, RISKY).await {
            Ok(rotated) => return rotated.new,
            // Whoever was killed counts as there for a lease.
            Err(error) if ["STORE_IN_USE", "CLIENT_NOT_READY", "STORE_CONFLICT"].contains(&error.code()) => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// A rotation in a process of its own, which is killed so long after its try began unless it is done.
async fn killed_after(fleet: &Fleet, user: &str, bound: Duration) -> Option<(String, Duration)> {
    let runtime = Runtime::new().unwrap();
    let (tell, mut tries) = watch::channel(Instant::now());
    let mut task = runtime.spawn(rotate(fleet.clone(), user.to_owned(), tell));
    // Another process may have the store open all the time.
    let last = Instant::now() + 2 * LEASE + bound;
    let done = loop {
        let since = *tries.borrow_and_update();
        tokio::select! {
            done = &mut task => break Some((done.unwrap(), since.elapsed())),
            Ok(()) = tries.changed() => {}
            () = tokio::time::sleep_until(last.min(since + bound)) => break None,
        }
    };
    runtime.shutdown_background();
    done
}

async fn say(client: &Client, to: &str, words: &[String]) {
    for text in words {
        let options = SendOptions { wait: SendWait::Committed, ..SendOptions::default() };
        client.send_with(to, text.as_str(), options).await.unwrap();
    }
}

/// Whatever was done when the process died, the next one has one identity, which relay and contacts know, and no message is lost
/// or comes twice. Every other time another process opens the store while the rotation is under way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_that_is_killed_at_any_moment_is_gone_on_with_and_nothing_is_lost() {
    const ROUNDS: u32 = 6;
    let directory = tempfile::tempdir().unwrap();
    let relay = durable(directory.path(), 0).await;
    for (_server, stores) in kinds() {
        let kind = stores.facts().kind;
        let fleet = fleet(&relay.url(), &stores, directory.path());
        let (alice, bob_name) = (format!("alice-{kind}"), format!("bob-{kind}"));
        let theirs = app(&relay.url()).await;
        let first = fleet.start(&alice).await;
        let bob = theirs.connect(&bob_name).await.unwrap();
        let mut at_bob = bob.messages();
        soon(bob.send(&alice, "hello").await.unwrap().delivered()).await.unwrap();
        first.run(|client| async move { client.close().await }).await;
        drop(first);
        let (_, whole) = soon(killed_after(&fleet, &alice, Duration::from_secs(60))).await.unwrap();
        let mut rotations = 1;
        let mut wanted = BTreeSet::from(["hello".to_owned()]);
        for round in 0..ROUNDS {
            let words = numbered(&format!("to alice {round}"), 3);
            say(&bob, &alice, &words).await;
            wanted.extend(words);
            let slipping = (round % 2 == 1).then(|| {
                let (fleet, alice) = (fleet.clone(), alice.clone());
                tokio::spawn(async move { fleet.start(&alice).await })
            });
            let done = soon(killed_after(&fleet, &alice, whole * round / ROUNDS)).await;
            rotations += u32::from(done.is_some());
            let slipped = match slipping {
                Some(slipping) => Some(soon(slipping).await.unwrap()),
                None => None,
            };
            let next = soon(fleet.start(&alice)).await;
            let now = next.run(|client| async move { client.identity().fingerprint }).await;
            if let Some((new, _)) = done {
                assert_eq!(now, new, "{kind}, round {round}");
            }
            let words = numbered(&format!("to bob {round}"), 2);
            let (sent, to) = (words.clone(), bob_name.clone());
            let sending = next.run(move |client| async move {
                for text in sent {
                    client.send(&to, text.as_str()).await.unwrap().delivered().await.unwrap();
                }
            });
            soon(sending).await;
            let mut got = texts(&mut at_bob, words.len()).await;
            got.sort();
            assert_eq!(got, words, "{kind}, round {round}");
            if let Some(slipped) = slipped {
                // It has the identity that all have, or it ends.
                let now = now.clone();
                let settled = slipped.run(|client| async move {
                    while client.identity().fingerprint != now && client.state() != ConnectionState::Closed {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    if client.state() == ConnectionState::Closed {
                        assert_eq!(client.ended_by(), Some("IDENTITY_HANDED_OVER"));
                    }
                    client.close().await;
                });
                soon(settled).await;
            }
            next.run(|client| async move { client.close().await }).await;
        }
        assert!(rotations >= 1);
        let last = soon(fleet.start(&alice)).await;
        let count = wanted.len();
        let got = last.run(move |client| async move { texts(&mut client.messages(), count).await }).await;
        assert_eq!(got.into_iter().collect::<BTreeSet<_>>(), wanted, "{kind}: each once");
        // And nothing comes behind that.
        soon(bob.send(&alice, "last").await.unwrap().delivered()).await.unwrap();
        let got = last.run(|client| async move { texts(&mut client.messages(), 1).await }).await;
        assert_eq!(got, ["last"], "{kind}");
        last.run(|client| async move { client.close().await }).await;
        theirs.close().await.unwrap();
    }
    relay.shutdown().await;
}
