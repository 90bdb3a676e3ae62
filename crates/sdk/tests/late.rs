//! Commits that were given up and land later: no key is used twice, and what goes out goes out once.
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

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::{app, builder, code, durable, event, soon};
use stvor::store::Table;
use stvor::{App, Client, ConnectOptions, Event, Messages};
use tape::Tape;

async fn on(tape: &Tape, url: &str, directory: &Path) -> App {
    builder(url).store(Arc::new(tape.clone())).keyfile(directory.join("key")).open().await.unwrap()
}

/// What is given up lands before anything else is done, after it, or after a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lands {
    AtOnce,
    AfterTheNext,
    AfterARestart,
}

const ALL: [Lands; 3] = [Lands::AtOnce, Lands::AfterTheNext, Lands::AfterARestart];

async fn next(inbox: &mut Messages) -> String {
    soon(inbox.next()).await.unwrap().text().unwrap().to_owned()
}

/// Nothing comes twice, and nothing waits, after everything came.
async fn all_came(inbox: &mut Messages, alice: &Client) {
    soon(alice.send("bob", "the end").await.unwrap().delivered()).await.unwrap();
    assert_eq!(next(inbox).await, "the end", "nothing came twice");
    // What was accepted is counted off by whoever hears of it, a moment after the receipt perhaps.
    soon(async {
        while alice.pending() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_send_that_was_given_up_uses_no_key_twice_and_goes_out_once_or_never() {
    for lands in ALL {
        let directory = tempfile::tempdir().unwrap();
        let relay = durable(directory.path(), 0).await;
        let bob = app(&relay.url()).await.connect("bob").await.unwrap();
        let mut inbox = bob.messages();
        let tape = Tape::new(false);
        let mut alice = on(&tape, &relay.url(), directory.path()).await.connect("alice").await.unwrap();
        soon(alice.send("bob", "first").await.unwrap().delivered()).await.unwrap();
        assert_eq!(next(&mut inbox).await, "first");
        tape.give_up(Table::Outbox);
        assert_eq!(code(alice.send("bob", "given up").await), "STORE_TIMEOUT", "{lands:?}");
        if lands == Lands::AtOnce {
            assert!(tape.land().await);
        }
        soon(alice.send("bob", "next").await.unwrap().delivered()).await.unwrap();
        if lands == Lands::AfterTheNext {
            assert!(!tape.land().await, "its keys are used");
        }
        if lands == Lands::AfterARestart {
            alice.close().await;
            assert!(!tape.land().await, "its keys are used");
            alice = on(&tape, &relay.url(), directory.path()).await.connect("alice").await.unwrap();
        }
        if lands == Lands::AtOnce {
            assert_eq!(next(&mut inbox).await, "given up", "it was stored, and leaves by itself");
        }
        assert_eq!(next(&mut inbox).await, "next", "{lands:?}");
        all_came(&mut inbox, &alice).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_send_to_a_group_that_was_given_up_uses_no_key_twice_and_goes_out_once_or_never() {
    for lands in ALL {
        let directory = tempfile::tempdir().unwrap();
        let relay = durable(directory.path(), 0).await;
        let bob = app(&relay.url()).await.connect("bob").await.unwrap();
        let (mut inbox, mut events) = (bob.messages(), bob.events());
        let tape = Tape::new(false);
        let mut alice = on(&tape, &relay.url(), directory.path()).await.connect("alice").await.unwrap();
        let mut group = alice.create_group("crew", ["bob"]).await.unwrap();
        let id = group.id();
        event(&mut events, |event| matches!(event, Event::GroupJoined { .. }).then_some(())).await;
        let first = group.send("first").await.unwrap();
        assert_eq!(next(&mut inbox).await, "first");
        // Its receipt is stored: nothing else is on its way that would make what is given up void.
        soon(async {
            while group.receipts(first).await.unwrap().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        tape.give_up(Table::Group);
        assert_eq!(code(group.send("given up").await), "STORE_TIMEOUT", "{lands:?}");
        let landed = lands == Lands::AtOnce && tape.land().await;
        group.send("next").await.unwrap();
        if landed {
            assert_eq!(next(&mut inbox).await, "given up", "it was stored, and leaves without a restart");
        }
        assert_eq!(next(&mut inbox).await, "next", "{lands:?}");
        if lands == Lands::AfterTheNext {
            assert!(!tape.land().await, "its keys are used");
        }
        if lands == Lands::AfterARestart {
            alice.close().await;
            assert!(!tape.land().await, "its keys are used");
            alice = on(&tape, &relay.url(), directory.path()).await.connect("alice").await.unwrap();
            group = alice.group(id).await.unwrap();
        }
        group.send("last").await.unwrap();
        assert_eq!(next(&mut inbox).await, "last", "{lands:?}");
        all_came(&mut inbox, &alice).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_whose_storing_was_given_up_is_shown_once_whether_it_landed_or_not() {
    for lands in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        let relay = durable(directory.path(), 0).await;
        let alice = app(&relay.url()).await.connect("alice").await.unwrap();
        let tape = Tape::new(false);
        let bob = on(&tape, &relay.url(), directory.path()).await.connect("bob").await.unwrap();
        let mut inbox = bob.messages();
        soon(alice.send("bob", "first").await.unwrap().delivered()).await.unwrap();
        assert_eq!(next(&mut inbox).await, "first");
        match lands {
            true => tape.apply_unheard(Table::Inbox),
            false => tape.give_up(Table::Inbox),
        }
        let sent = alice.send("bob", "given up").await.unwrap();
        assert_eq!(next(&mut inbox).await, "given up", "{lands}: without another message");
        soon(sent.delivered()).await.unwrap();
        all_came(&mut inbox, &alice).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_holds_no_prekey_whose_storing_was_given_up_unless_it_landed() {
    for lands in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        // Nobody listens there, and no other test will.
        let url = "ws://127.0.0.1:1";
        let offline = ConnectOptions { allow_unregistered: true, ..Default::default() };
        let bob = app(url).await.connect_with("bob", offline).await.unwrap();
        let tape = Tape::new(false);
        let alices = on(&tape, url, directory.path()).await;
        let alice = alices.connect_with("alice", offline).await.unwrap();
        // Not even what is stored can be read right after it.
        tape.give_up_and_leave(Table::SignedPrekey);
        assert!(alice.export_bundle().await.is_err());
        tape.come_back();
        if lands {
            tape.land().await;
        }
        let bundle = alice.export_bundle().await.unwrap();
        bob.import_bundle(&bundle).await.unwrap();
        let sealed = bob.seal("alice", "to be opened").await.unwrap();
        alice.close().await;
        let alice = alices.connect_with("alice", offline).await.unwrap();
        let opened = alice.open(&sealed).await.unwrap();
        assert_eq!(opened.content.unwrap().as_text(), Some("to be opened"), "{lands}");
    }
}
