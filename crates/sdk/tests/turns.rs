//! Much mail at once: what one commit takes has a bound, and what one peer can send has not.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

#[path = "common/fake.rs"]
mod fake;

use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;

use fake::Fake;
use stvor::{App, AppBuilder, Client, DeliveryState, SendOptions, SendWait};

const PATIENCE: Duration = Duration::from_secs(60);

fn builder(url: &str) -> AppBuilder {
    App::builder().app_token("stvor_dev_test123").relay_url(url).in_memory().timeout(Duration::from_secs(5))
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it happens in time")
}

async fn connect(relay: &Fake, directory: &Path, user: &str) -> Client {
    builder(&relay.url()).data_dir(directory).open().await.unwrap().connect(user).await.unwrap()
}

/// Alice and Bob on disk, with a session between them.
async fn friends(relay: &Fake, directory: &Path) -> (Client, Client) {
    let (alice, bob) = (connect(relay, directory, "alice").await, connect(relay, directory, "bob").await);
    soon(soon(alice.send("bob", "hello")).await.unwrap().delivered()).await.unwrap();
    let hello = soon(bob.messages().next()).await.unwrap();
    hello.ack().await.unwrap();
    (alice, bob)
}

#[tokio::test(flavor = "multi_thread")]
async fn receipts_for_more_bytes_than_one_commit_takes_all_count() {
    // 18.75 MiB; a commit takes 16.
    const COUNT: usize = 300;
    let relay = Fake::start().await;
    let directory = tempfile::tempdir().unwrap();
    let (alice, bob) = friends(&relay, directory.path()).await;
    bob.close().await;
    let options = SendOptions { wait: SendWait::Accepted, ..SendOptions::default() };
    let mut ids = Vec::new();
    for _ in 0..COUNT {
        ids.push(soon(alice.send_with("bob", vec![7_u8; 65_536], options)).await.unwrap().id());
    }
    alice.close().await;
    let bob = connect(&relay, directory.path(), "bob").await;
    let mut inbox = bob.messages();
    for _ in 0..COUNT {
        soon(inbox.next()).await.unwrap();
    }
    bob.close().await;
    let alice = connect(&relay, directory.path(), "alice").await;
    // What Bob still owed when he went, he sends when he is back.
    let _bob = connect(&relay, directory.path(), "bob").await;
    for id in ids {
        let receipt = alice.receipt(id).await.unwrap().expect("its message is kept");
        soon(receipt.delivered()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_each_two_thousand_ahead_all_arrive() {
    const COUNT: usize = 6;
    let relay = Fake::start().await;
    let directory = tempfile::tempdir().unwrap();
    let (alice, bob) = friends(&relay, directory.path()).await;
    bob.close().await;
    let mut blobs = VecDeque::new();
    for number in 0..COUNT {
        for _ in 0..1_999 {
            alice.seal("bob", "never sent").await.unwrap();
        }
        let sealed = alice.seal("bob", number.to_string()).await.unwrap();
        // The blob fills a bucket; before it is the head of what goes by other ways.
        let size = (0..sealed.len()).rev().find(|size| stvor_wire::padding::is_bucket(*size)).unwrap();
        blobs.push_back(sealed[sealed.len() - size..].to_vec());
    }
    relay.on_send(move |send| {
        if let Some(blob) = blobs.pop_front() {
            send.blob = blob.into();
        }
        None
    });
    for _ in 0..COUNT {
        soon(soon(alice.send("bob", "another")).await.unwrap().accepted()).await.unwrap();
    }
    let bob = connect(&relay, directory.path(), "bob").await;
    let mut inbox = bob.messages();
    for number in 0..COUNT {
        assert_eq!(soon(inbox.next()).await.unwrap().text(), Some(number.to_string().as_str()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn read_and_delivered_in_one_turn_is_read() {
    let relay = Fake::start().await;
    let directory = tempfile::tempdir().unwrap();
    let (alice, bob) = friends(&relay, directory.path()).await;
    bob.close().await;
    let id = soon(alice.send("bob", "read me")).await.unwrap().id();
    let receipt = alice.receipt(id).await.unwrap().unwrap();
    soon(receipt.accepted()).await.unwrap();
    alice.close().await;
    let bob = connect(&relay, directory.path(), "bob").await;
    let message = soon(bob.messages().next()).await.unwrap();
    bob.mark_read("alice", &[message.id]).await.unwrap();
    bob.close().await;
    let alice = connect(&relay, directory.path(), "alice").await;
    soon(alice.receipt(id).await.unwrap().unwrap().read()).await.unwrap();
    alice.close().await;
    let alice = connect(&relay, directory.path(), "alice").await;
    assert_eq!(alice.receipt(id).await.unwrap().unwrap().status(), DeliveryState::Read);
}
