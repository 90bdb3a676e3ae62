//! wss to a relay whose certificate a root of our own signs.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod common;

use std::time::Duration;

use common::tls::{relay_for, url};
use common::{builder, code, soon};
use stvor_relay::Config;

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_under_a_root_of_our_own_is_trusted_and_carries_messages() {
    let directory = tempfile::tempdir().unwrap();
    let (relay, root) = relay_for("localhost", directory.path(), Config::mock(0)).await;
    let app = builder(&url(&relay)).in_memory().root_certificate(root).open().await.unwrap();
    let (alice, bob) = (app.connect("alice").await.unwrap(), app.connect("bob").await.unwrap());
    soon(alice.send("bob", "over TLS")).await.unwrap();
    assert_eq!(soon(bob.messages().next()).await.unwrap().text(), Some("over TLS"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_without_a_trusted_certificate_for_its_name_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (relay, _root) = relay_for("localhost", directory.path(), Config::mock(0)).await;
    let connect = async |builder: stvor::AppBuilder| {
        let app = builder.in_memory().timeout(Duration::from_secs(5)).open().await.unwrap();
        code(soon(app.connect("alice")).await)
    };
    assert_eq!(connect(builder(&url(&relay))).await, "RELAY_PROTOCOL", "nobody vouches for it");
    let elsewhere = tempfile::tempdir().unwrap();
    let (other, other_root) = relay_for("relay.example", elsewhere.path(), Config::mock(0)).await;
    assert_eq!(connect(builder(&url(&relay)).root_certificate(other_root.clone())).await, "RELAY_PROTOCOL");
    let misnamed = builder(&url(&other)).root_certificate(other_root);
    assert_eq!(connect(misnamed).await, "RELAY_PROTOCOL", "it is not localhost");
    let broken = builder(&url(&relay)).root_certificate("no certificate").in_memory().open().await;
    assert_eq!(code(broken), "INVALID_CONFIG");
}
