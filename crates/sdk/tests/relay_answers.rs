//! What a relay may answer, and what follows: a relay that does as the test tells it.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "common/fake.rs"]
mod fake;

use std::time::Duration;

use fake::Fake;
use stvor::{App, AppBuilder, Client, DeliveryState};

fn builder(url: &str) -> AppBuilder {
    App::builder().app_token("stvor_dev_test123").relay_url(url).in_memory()
}

async fn pair(relay: &Fake) -> (Client, Client) {
    let app = builder(&relay.url()).open().await.unwrap();
    (app.connect("alice").await.unwrap(), app.connect("bob").await.unwrap())
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), what).await.expect("it happens in time")
}

#[tokio::test(flavor = "multi_thread")]
async fn send_receive_and_receipts() {
    let relay = Fake::start().await;
    let (alice, bob) = pair(&relay).await;
    let mut inbox = bob.messages();
    let receipt = soon(alice.send("bob", "Hello!")).await.unwrap();
    let message = soon(inbox.next()).await.expect("a message");
    assert_eq!((message.text(), message.id), (Some("Hello!"), receipt.id()));
    assert!(receipt.status() >= DeliveryState::Accepted);
    soon(receipt.delivered()).await.unwrap();
    soon(bob.mark_read("alice", &[message.id])).await.unwrap();
    soon(receipt.read()).await.unwrap();
    soon(bob.send("alice", "Hi!")).await.unwrap();
    assert_eq!(soon(alice.messages().next()).await.unwrap().text(), Some("Hi!"));
    soon(alice.close()).await;
    soon(bob.close()).await;
}
