//! Futures that are dropped before they are ready.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod common;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::shared::SharedMemory;
use common::{app, app_in, builder, code, pair, relay, soon};
use futures::FutureExt as _;
use stvor::store::OpenKey;
use stvor::{App, Client, ConnectOptions, Deed, SendOptions};

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_send_sends_once_or_not_at_all_and_harms_no_other() {
    let relay = relay().await;
    let (alice, bob) = pair(&relay.url()).await;
    let mut inbox = bob.messages();
    for number in 0..40 {
        // Each is dropped a little later than the one before.
        let mut dropped = Box::pin(alice.send("bob", format!("{number} dropped")));
        for _ in 0..number {
            if dropped.as_mut().now_or_never().is_some() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(dropped);
        soon(alice.send("bob", format!("{number} kept"))).await.unwrap();
    }
    let mut arrived = Vec::new();
    while arrived.last().is_none_or(|text| text != "39 kept") {
        // The waiting is dropped, too, now before and now after a message came.
        let message = match inbox.next().now_or_never() {
            Some(message) => message,
            None => soon(inbox.next()).await,
        };
        arrived.push(message.unwrap().text().unwrap().to_owned());
    }
    let kept: Vec<_> = arrived.iter().filter(|text| text.ends_with("kept")).cloned().collect();
    assert_eq!(kept, (0..40).map(|number| format!("{number} kept")).collect::<Vec<_>>());
    let unique: HashSet<_> = arrived.iter().collect();
    assert_eq!(unique.len(), arrived.len(), "{arrived:?}");
    soon(async {
        while alice.pending() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_send_to_somebody_who_is_not_there_yet_is_not_sent_when_they_appear() {
    let relay = relay().await;
    let app = app(&relay.url()).await;
    let alice = app.connect("alice").await.unwrap();
    let patient = SendOptions { timeout: Some(Duration::from_secs(60)), ..SendOptions::default() };
    let mut dropped = Box::pin(alice.send_with("bob", "dropped", patient));
    assert!(dropped.as_mut().now_or_never().is_none());
    let kept = alice.send_with("bob", "kept", patient);
    let bob = async {
        drop(dropped);
        let bob = app.connect("bob").await.unwrap();
        soon(bob.messages().next()).await.unwrap()
    };
    let (receipt, message) = tokio::join!(soon(kept), bob);
    receipt.unwrap();
    assert_eq!(message.text(), Some("kept"));
    assert_eq!(alice.history("bob").load().await.unwrap().messages.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_connect_leaves_a_user_who_can_connect() {
    let relay = relay().await;
    let directory = tempfile::tempdir().unwrap();
    for rounds in 0..20 {
        let app = app_in(&relay.url(), directory.path()).await;
        let mut dropped = Box::pin(app.connect("alice"));
        for _ in 0..rounds {
            if dropped.as_mut().now_or_never().is_some() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    let app = app_in(&relay.url(), directory.path()).await;
    let alice = soon(app.connect("alice")).await.unwrap();
    let bob = soon(app.connect("bob")).await.unwrap();
    soon(alice.send("bob", "here")).await.unwrap();
    assert_eq!(soon(bob.messages().next()).await.unwrap().text(), Some("here"));
}

/// In memory there is nothing to come back to: the name would be gone with what was dropped.
#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_connect_in_memory_burns_no_name() {
    let relay = relay().await;
    let app = app(&relay.url()).await;
    for round in 0..40 {
        let name = format!("alice-{round}");
        let mut dropped = Box::pin(app.connect(&name));
        let _ = tokio::time::timeout(Duration::from_micros(250 * round), dropped.as_mut()).await;
        drop(dropped);
        let alice = soon(app.connect(&name)).await.unwrap();
        assert_eq!(alice.user().as_str(), name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_close_closes_all_the_same_and_holds_nobody() {
    let relay = relay().await;
    let directory = tempfile::tempdir().unwrap();
    for rounds in 0..12 {
        let app = app_in(&relay.url(), directory.path()).await;
        let alice = soon(app.connect("alice")).await.unwrap();
        let mut dropped = Box::pin(alice.close());
        for _ in 0..rounds {
            if dropped.as_mut().now_or_never().is_some() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(dropped);
        soon(alice.close()).await;
        soon(app.close()).await.unwrap();
        assert_eq!(alice.state(), stvor::ConnectionState::Closed);
    }
}

/// What was begun, and polled once: other threads may have done it by then.
fn begun<T>(what: impl Future<Output = T>) -> impl Future<Output = T> {
    let mut what = Box::pin(what);
    match what.as_mut().now_or_never() {
        Some(done) => futures::future::ready(done).left_future(),
        None => what.right_future(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_closes_right_after_sending_has_sent() {
    let relay = relay().await;
    let directory = tempfile::tempdir().unwrap();
    let bob = app(&relay.url()).await.connect("bob").await.unwrap();
    let mut inbox = bob.messages();
    for round in 0..24 {
        // New users, who have no session yet, and one who has; in memory and on disk.
        let app = if round % 2 == 0 {
            app(&relay.url()).await
        } else {
            app_in(&relay.url(), directory.path()).await
        };
        let name = if round % 4 == 3 { "known".to_owned() } else { format!("new{round}") };
        let sender = soon(app.connect(&name)).await.unwrap();
        let sends: Vec<_> = (0..=round % 5)
            .map(|number| begun(sender.send("bob", format!("{name} {round} {number}"))))
            .collect();
        let (sent, ()) = tokio::join!(futures::future::join_all(sends), soon(sender.close()));
        for (number, receipt) in sent.into_iter().enumerate() {
            receipt.unwrap();
            let message = soon(inbox.next()).await.unwrap();
            assert_eq!(message.text(), Some(format!("{name} {round} {number}").as_str()));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_closes_right_after_writing_to_a_group_has_written() {
    let relay = relay().await;
    let (alice, bob) = pair(&relay.url()).await;
    let group = soon(alice.create_group("friends", ["bob"])).await.unwrap();
    let (sent, ()) = tokio::join!(begun(group.send("the last words")), soon(alice.close()));
    sent.unwrap();
    assert_eq!(soon(bob.messages().next()).await.unwrap().text(), Some("the last words"));
}

/// Where no relay is: nothing but what a test does happens to a store.
const NOWHERE: &str = "ws://127.0.0.1:1";

/// An app on a store that lets other tasks run before and after everything that it does.
async fn step_by_step(store: &SharedMemory, keyfile: &Path) -> App {
    builder(NOWHERE).store(Arc::new(store.clone())).keyfile(keyfile).open().await.unwrap()
}

async fn offline(app: &App, user: &str) -> stvor::Result<Client> {
    let options = ConnectOptions { allow_unregistered: true, ..ConnectOptions::default() };
    app.connect_with(user, options).await
}

/// Drops what works on a store once that has gone so many steps; whether it was done before.
async fn dropped_after<T>(steps: usize, store: &SharedMemory, what: impl Future<Output = T>) -> bool {
    let end = store.steps() + steps;
    let mut what = Box::pin(what);
    soon(async {
        loop {
            if what.as_mut().now_or_never().is_some() {
                return true;
            }
            if store.steps() >= end {
                return false;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

/// More than anything here takes.
const STEPS: usize = 200;

#[tokio::test]
async fn a_dropped_export_leaves_no_prekey_in_the_next_bundle_that_is_not_stored() {
    let directory = tempfile::tempdir().unwrap();
    let bob = offline(&app(NOWHERE).await, "bob").await.unwrap();
    for steps in 1..STEPS {
        let (store, keyfile) = (SharedMemory::alone(), directory.path().join(format!("key {steps}")));
        let app = step_by_step(&store, &keyfile).await;
        let name = format!("alice-{steps}");
        let alice = offline(&app, &name).await.unwrap();
        let done = dropped_after(steps, &store, alice.export_bundle()).await;
        let bundle = soon(alice.export_bundle()).await.unwrap();
        bob.import_bundle(&bundle).await.unwrap();
        let sealed = bob.seal(&name, "to be opened").await.unwrap();
        let opened = soon(alice.open(&sealed)).await.unwrap();
        assert_eq!(opened.content.unwrap().as_text(), Some("to be opened"), "after {steps} steps");
        if done {
            return;
        }
    }
    panic!("it was never done");
}

#[tokio::test]
async fn a_dropped_rotation_of_the_data_key_goes_on_when_it_is_asked_for_again() {
    let directory = tempfile::tempdir().unwrap();
    for steps in 1..STEPS {
        let (store, keyfile) = (SharedMemory::alone(), directory.path().join(format!("key {steps}")));
        let app = step_by_step(&store, &keyfile).await;
        let alice = offline(&app, "alice").await.unwrap();
        let done = dropped_after(steps, &store, alice.rotate_key(|_| {})).await;
        soon(alice.rotate_key(|_| {})).await.unwrap();
        let info = alice.store_info().await.unwrap();
        // The second one rotates again where the first one was over.
        assert!((1..=2).contains(&info.rotations) && !info.rotating, "after {steps} steps: {info:?}");
        assert_eq!(alice.journal(1).await.unwrap()[0].deed, Deed::KeyRotated);
        let fingerprint = alice.identity().fingerprint;
        soon(alice.close()).await;
        let alice = offline(&app, "alice").await.unwrap();
        assert_eq!(alice.identity().fingerprint, fingerprint, "after {steps} steps");
        if done {
            return;
        }
    }
    panic!("it was never done");
}

#[tokio::test]
async fn a_dropped_change_of_the_key_is_in_the_journal_if_and_only_if_it_was_made() {
    let directory = tempfile::tempdir().unwrap();
    for steps in 1..STEPS {
        let (store, old) = (SharedMemory::alone(), directory.path().join(format!("old {steps}")));
        let new = directory.path().join(format!("new {steps}"));
        let before = step_by_step(&store, &old).await;
        let alice = offline(&before, "alice").await.unwrap();
        let done = dropped_after(steps, &store, alice.change_key(OpenKey::Keyfile(new.clone()))).await;
        soon(alice.close()).await;
        let opened = offline(&before, "alice").await;
        let changed = opened.is_err();
        let alice = match opened {
            Ok(alice) => alice,
            refused => {
                assert_eq!(code(refused), "WRONG_KEY");
                offline(&step_by_step(&store, &new).await, "alice").await.unwrap()
            }
        };
        let noted = alice.journal(9).await.unwrap().iter().any(|entry| entry.deed == Deed::KeyChanged);
        assert_eq!(noted, changed, "after {steps} steps");
        if done {
            assert!(changed);
            return;
        }
    }
    panic!("it was never done");
}
