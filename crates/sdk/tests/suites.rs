//! An app chooses its suite: everything works in either, and two that differ exchange nothing.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod common;

use common::{builder, code, relay, soon};
use stvor::{App, AppBuilder, Event, Suite, UserId};

async fn app(setup: AppBuilder) -> App {
    setup.open().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_receipts_groups_and_safety_numbers_work_in_the_x25519_suite() {
    let relay = relay().await;
    let app = app(builder(&relay.url()).in_memory().suite(Suite::X25519)).await;
    let [alice, bob] = [app.connect("alice").await.unwrap(), app.connect("bob").await.unwrap()];
    let (mut at_alice, mut at_bob) = (alice.messages(), bob.messages());
    for round in 0..60 {
        let receipt = alice.send("bob", format!("to bob {round}")).await.unwrap();
        assert_eq!(soon(at_bob.next()).await.unwrap().text(), Some(&*format!("to bob {round}")));
        soon(receipt.delivered()).await.unwrap();
    }
    bob.send("alice", "to alice").await.unwrap();
    assert_eq!(soon(at_alice.next()).await.unwrap().text(), Some("to alice"));
    let (here, there) =
        (alice.safety_number("bob").await.unwrap(), bob.safety_number("alice").await.unwrap());
    assert_eq!(here.digits(), there.digits());
    let group = alice.create_group("ours", ["bob"]).await.unwrap();
    group.send("to all").await.unwrap();
    assert_eq!(soon(at_bob.next()).await.unwrap().text(), Some("to all"));
    alice.close().await;
    bob.close().await;
    relay.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn users_of_two_suites_exchange_nothing_and_are_told_why() {
    let relay = relay().await;
    let (new, old) = (
        app(builder(&relay.url()).in_memory().suite(Suite::X25519)).await,
        app(builder(&relay.url()).in_memory().suite(Suite::P256)).await,
    );
    let (alice, bob) = (new.connect("alice").await.unwrap(), old.connect("bob").await.unwrap());
    let at_alice = alice.events();
    // At once each time: there is no waiting for what can not come.
    for _ in 0..3 {
        assert_eq!(code(soon(alice.send("bob", "words")).await), "SUITE_MISMATCH");
        assert_eq!(code(soon(bob.send("alice", "words")).await), "SUITE_MISMATCH");
    }
    // Whoever listens only now is told as well.
    let at_bob = bob.events();
    // Others are not disturbed by it.
    let carol = new.connect("carol").await.unwrap();
    let mut at_carol = carol.messages();
    alice.send("carol", "words").await.unwrap();
    assert_eq!(soon(at_carol.next()).await.unwrap().text(), Some("words"));
    for client in [alice, bob, carol] {
        client.close().await;
    }
    let (p256, x25519) = (Suite::P256, Suite::X25519);
    for (mut events, peer, ours, theirs) in [(at_alice, "bob", x25519, p256), (at_bob, "alice", p256, x25519)]
    {
        let mut told = Vec::new();
        while let Some(event) = soon(events.next()).await {
            if matches!(event, Event::SuiteMismatch { .. }) {
                told.push(event);
            }
        }
        let peer = UserId::new(peer).unwrap();
        assert_eq!(told, [Event::SuiteMismatch { peer, ours, theirs }], "once, and not with each message");
    }
    relay.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_keeps_its_suite_and_a_store_opens_without_naming_it() {
    let relay = relay().await;
    let directory = tempfile::tempdir().unwrap();
    let on_disk =
        || App::builder().app_token("stvor_dev_test123").relay_url(relay.url()).data_dir(directory.path());
    let alice = app(on_disk().suite(Suite::X25519)).await.connect("alice").await.unwrap();
    let own = alice.identity().fingerprint;
    alice.close().await;
    assert_eq!(code(app(on_disk().suite(Suite::P256)).await.connect("alice").await), "SUITE_FIXED");
    for setup in [on_disk(), on_disk().suite(Suite::X25519)] {
        let alice = app(setup).await.connect("alice").await.unwrap();
        assert_eq!(alice.identity().fingerprint, own);
        alice.close().await;
    }
    relay.shutdown().await;
}
