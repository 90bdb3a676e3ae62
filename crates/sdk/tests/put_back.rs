//! A shared store that is put back to an older state under instances that run: a failover to a replica that lagged. What was
//! lost was sent by one instance, and another one, or another conversation, goes on.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

#[path = "common/fake.rs"]
mod fake;
#[path = "common/tape.rs"]
mod tape;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fake::Fake;
use stvor::store::{PostgresStores, RedisStores, StoreProvider};
use stvor::{App, AppBuilder, Client, Event, Events, Messages, SendOptions, SendWait};
use stvor_testkit::{Postgres, Promotion, Redis, RedisCluster, RedisPair};
use tape::Tape;

const LEASE: Duration = Duration::from_millis(1_500);
const NO_WAIT: SendOptions = SendOptions { timeout: None, wait: SendWait::Committed };

/// Stores, and how they lose what they acknowledged since they were told to keep a copy.
struct Stores {
    provider: Arc<dyn StoreProvider>,
    keep: Box<dyn Fn()>,
    put_back: Box<dyn Fn()>,
    /// How many commits there were, of a store whose own do not say that they are gone.
    commits: Option<Box<dyn Fn() -> usize>>,
}

fn postgres() -> Option<Stores> {
    let server = Postgres::start().unwrap()?;
    let database = server.database().unwrap();
    let (server, name) = (Arc::new(server), database.name);
    let act = |act: fn(&Postgres, &str)| -> Box<dyn Fn()> {
        let (server, name) = (Arc::clone(&server), name.clone());
        Box::new(move || act(&server, &name))
    };
    Some(Stores {
        provider: Arc::new(PostgresStores::new(&database.url).unwrap()),
        keep: act(|server, name| server.keep_stores(name).unwrap()),
        put_back: act(|server, name| server.put_stores_back(name).unwrap()),
        commits: None,
    })
}

fn redis() -> Option<Stores> {
    let server = Arc::new(Redis::start().unwrap()?);
    let act = |act: fn(&Redis)| -> Box<dyn Fn()> {
        let server = Arc::clone(&server);
        Box::new(move || act(&server))
    };
    Some(Stores {
        provider: Arc::new(RedisStores::new(&server.url()).unwrap()),
        keep: act(|server| server.keep_stores().unwrap()),
        put_back: act(|server| server.put_stores_back().unwrap()),
        commits: None,
    })
}

/// A Redis whose replica is left behind and takes its place.
fn redis_pair() -> Option<Stores> {
    let pair = Arc::new(RedisPair::start().unwrap()?);
    let (url, other) = (pair.url(), Arc::clone(&pair));
    Some(Stores {
        provider: Arc::new(RedisStores::new(&url).unwrap()),
        keep: Box::new(move || pair.leave_replica_behind().unwrap()),
        put_back: Box::new(move || other.fail_over().unwrap()),
        commits: None,
    })
}

/// The same with a master of a cluster.
fn redis_cluster() -> Option<Stores> {
    let cluster = Arc::new(RedisCluster::start_with_replicas().unwrap()?);
    let (url, other) = (cluster.urls().swap_remove(0), Arc::clone(&cluster));
    Some(Stores {
        provider: Arc::new(RedisStores::new(&url).unwrap()),
        keep: Box::new(move || cluster.leave_replica_behind().unwrap()),
        put_back: Box::new(move || other.fail_over(Promotion::Ordered).unwrap()),
        commits: None,
    })
}

/// A store of somebody's own that says nothing.
fn own() -> Stores {
    let (tape, kept) = (Tape::new(true), Arc::new(AtomicUsize::new(0)));
    let (keeps, puts, counts, at) = (tape.clone(), tape.clone(), tape.clone(), Arc::clone(&kept));
    Stores {
        provider: Arc::new(tape),
        keep: Box::new(move || kept.store(keeps.len(), Ordering::SeqCst)),
        put_back: Box::new(move || futures::executor::block_on(puts.rewind(at.load(Ordering::SeqCst)))),
        commits: Some(Box::new(move || counts.len())),
    }
}

fn all() -> Vec<Stores> {
    [postgres(), redis(), redis_pair(), redis_cluster(), Some(own())].into_iter().flatten().collect()
}

fn builder(relay: &Fake) -> AppBuilder {
    App::builder().app_token("stvor_dev_test123").relay_url(relay.url()).timeout(Duration::from_secs(5))
}

async fn on(stores: &Stores, relay: &Fake, folder: &Path) -> App {
    let builder = builder(relay).store(Arc::clone(&stores.provider)).keyfile(folder.join("key"));
    builder.instance_lease(LEASE).open().await.unwrap()
}

async fn in_memory(relay: &Fake, user: &str) -> Client {
    builder(relay).in_memory().open().await.unwrap().connect(user).await.unwrap()
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), what).await.expect("it happens in time")
}

async fn detected(events: &mut Events) {
    let found = async { while !matches!(events.next().await.unwrap(), Event::RollbackDetected { .. }) {} };
    soon(found).await;
}

async fn recovered(events: &mut Events) {
    detected(events).await;
    soon(async { while !matches!(events.next().await.unwrap(), Event::RollbackRecovered) {} }).await;
}

/// Waits for messages until all of these came, each once, and nothing else.
async fn comes(inbox: &mut Messages, texts: &[&str]) {
    let mut left = texts.to_vec();
    while !left.is_empty() {
        let message = soon(inbox.next()).await.expect("open");
        let text = message.text().unwrap();
        let at = left.iter().position(|one| *one == text);
        left.remove(
            at.unwrap_or_else(|| panic!("{text:?} came twice, or from nowhere; {left:?} is missing")),
        );
    }
}

/// A turn that meets the change may be refused: nothing of it happened then.
async fn send(from: &Client, to: &str, text: &str) {
    soon(async {
        while from.send_with(to, text, NO_WAIT).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// Sends and waits until everything that follows from it is stored.
async fn settled(from: &Client, to: &mut (Client, Messages), text: &str) {
    soon(from.send(to.0.user().as_str(), text).await.unwrap().delivered()).await.unwrap();
    comes(&mut to.1, &[text]).await;
}

const LOST: [&str; 3] = ["lost 0", "lost 1", "lost 2"];

#[tokio::test(flavor = "multi_thread")]
async fn who_lost_nothing_goes_on_only_after_who_did_has_noticed() {
    for stores in all() {
        let kind = stores.provider.facts().kind;
        let (relay, folder) = (Fake::start().await, tempfile::tempdir().unwrap());
        let bob = in_memory(&relay, "bob").await;
        let inbox = bob.messages();
        let mut bob = (bob, inbox);
        let apps = [on(&stores, &relay, folder.path()).await, on(&stores, &relay, folder.path()).await];
        let first = apps[0].connect("alice").await.unwrap();
        let second = apps[1].connect("alice").await.unwrap();
        settled(&second, &mut bob, "one").await;
        soon(bob.0.send("alice", "two").await.unwrap().delivered()).await.unwrap();
        (stores.keep)();
        for text in LOST {
            settled(&first, &mut bob, text).await;
        }
        if let Some(commits) = &stores.commits {
            // Both write their rows anew: only that is missed there.
            let before = commits();
            soon(async {
                while commits() < before + 4 {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            })
            .await;
        }
        let (mut here, mut there) = (first.events(), second.events());
        (stores.put_back)();
        // Nobody logs in to the relay again: the rows of the instances, or the server, tell it within a third of the lease.
        tokio::select! {
            () = recovered(&mut here) => {}
            () = recovered(&mut there) => {}
        }
        send(&second, "bob", "after").await;
        send(&first, "bob", "and here").await;
        comes(&mut bob.1, &["after", "and here"]).await;
        relay.saw_no_key_twice();
        for one in [first, second] {
            tokio::time::timeout(Duration::from_secs(10), one.close()).await.expect(kind);
        }
    }
}

/// The conversation whose messages were lost may have rested so long that nothing of it is in memory: whatever is written next
/// tells it.
#[tokio::test(flavor = "multi_thread")]
async fn one_instance_notices_by_its_next_commit_whatever_that_is_about() {
    for stores in all().into_iter().filter(|stores| stores.commits.is_none()) {
        let (relay, folder) = (Fake::start().await, tempfile::tempdir().unwrap());
        let (bob, carol) = (in_memory(&relay, "bob").await, in_memory(&relay, "carol").await);
        let (mut bob, mut carol) = ((bob.clone(), bob.messages()), (carol.clone(), carol.messages()));
        // No look at rows of instances comes before the next commit.
        let app = builder(&relay).store(Arc::clone(&stores.provider)).keyfile(folder.path().join("key"));
        let app = app.instance_lease(Duration::from_secs(3_600)).open().await.unwrap();
        let alice = app.connect("alice").await.unwrap();
        settled(&alice, &mut carol, "hello").await;
        settled(&alice, &mut bob, "one").await;
        soon(bob.0.send("alice", "two").await.unwrap().delivered()).await.unwrap();
        (stores.keep)();
        for text in LOST {
            settled(&alice, &mut bob, text).await;
        }
        let mut events = alice.events();
        (stores.put_back)();
        send(&alice, "carol", "goes on").await;
        detected(&mut events).await;
        comes(&mut carol.1, &["goes on"]).await;
        send(&alice, "bob", "after").await;
        comes(&mut bob.1, &["after"]).await;
        relay.saw_no_key_twice();
    }
}
