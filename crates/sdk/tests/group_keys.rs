//! Sender keys that are lost, late or come twice, by a relay that does as it is told.
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

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use common::{app_in, builder, event, soon};
use fake::Fake;
use stvor::{Client, Event, GroupId, Messages};
use stvor_protocol::group::GroupIncoming;
use stvor_wire::client::Send;
use stvor_wire::server::{Acceptance, ServerMessage};

async fn pair(relay: &Fake) -> (Client, Client) {
    let app = builder(&relay.url()).in_memory().open().await.unwrap();
    (app.connect("alice").await.unwrap(), app.connect("bob").await.unwrap())
}

async fn grouped(alice: &Client, bob: &Client) -> GroupId {
    let mut events = bob.events();
    let id = alice.create_group("g", ["bob"]).await.unwrap().id();
    event(&mut events, |event| matches!(event, Event::GroupJoined { .. }).then_some(())).await;
    alice.flush(common::PATIENCE).await.unwrap();
    id
}

async fn text(inbox: &mut Messages) -> String {
    soon(inbox.next()).await.unwrap().text().unwrap().to_owned()
}

fn accepted(send: &Send) -> ServerMessage {
    ServerMessage::Accepted { msg_id: send.recipient.msg_id, acceptance: Acceptance::Durable }
}

fn to_bob(send: &Send) -> bool {
    send.recipient.to.user.as_str() == "bob"
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_sender_key_is_told_and_asked_for_and_every_message_is_read_once() {
    let relay = Fake::start().await;
    let (alice, bob) = pair(&relay).await;
    let id = grouped(&alice, &bob).await;
    // The relay says that it took the key, and loses it.
    let mut lost = false;
    relay.on_send(move |send| {
        let loses = !lost && to_bob(send) && !GroupIncoming::is_one(&send.blob);
        lost |= loses;
        loses.then(|| accepted(send))
    });
    let (mut events, mut inbox) = (bob.events(), bob.messages());
    let group = alice.group(id).await.unwrap();
    for number in 0..3 {
        group.send(format!("{number}")).await.unwrap();
    }
    let waiting = event(&mut events, |event| match event {
        Event::SenderKeyMissing { peer, messages } => Some((peer.to_string(), messages)),
        _ => None,
    })
    .await;
    assert_eq!(waiting.0, "alice");
    assert!((1..=3).contains(&waiting.1));
    for number in 0..3 {
        assert_eq!(text(&mut inbox).await, format!("{number}"));
    }
    // From here on there is nothing to ask for.
    group.send("and on").await.unwrap();
    assert_eq!(text(&mut inbox).await, "and on");
    alice.send("bob", "end").await.unwrap();
    assert_eq!(text(&mut inbox).await, "end", "nothing came twice");
    bob.close().await;
    while let Some(event) = events.next().await {
        assert!(!matches!(event, Event::MessageUndecryptable { .. }), "{event:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_key_that_comes_late_and_messages_that_come_twice_are_read_once_and_in_order() {
    let relay = Fake::start().await;
    let (alice, bob) = pair(&relay).await;
    let id = grouped(&alice, &bob).await;
    // Everything but the first message goes out one later than it came, the key first; the last place says the first
    // message once more.
    let held: Arc<Mutex<Option<bytes::Bytes>>> = Arc::default();
    let (mut key_seen, mut blobs, mut first) = (false, 0, None);
    relay.on_send(move |send| {
        if !to_bob(send) {
            return None;
        }
        let mut held = held.lock().unwrap();
        if !GroupIncoming::is_one(&send.blob) {
            if key_seen {
                return None;
            }
            key_seen = true;
            *held = Some(send.blob.clone());
            return Some(accepted(send));
        }
        blobs += 1;
        match blobs {
            1 => first = Some(send.blob.clone()),
            2 | 3 => {
                let last = held.replace(send.blob.clone());
                send.blob = last.unwrap();
            }
            4 => send.blob = held.take().unwrap(),
            5 => send.blob = first.take().unwrap(),
            _ => {}
        }
        None
    });
    let mut inbox = bob.messages();
    let group = alice.group(id).await.unwrap();
    for number in 1..=6 {
        group.send(format!("{number}")).await.unwrap();
    }
    // The fourth and the fifth are lost; nothing that came is, and nothing comes twice.
    for wanted in ["1", "2", "3", "6"] {
        assert_eq!(text(&mut inbox).await, wanted);
    }
    alice.send("bob", "end").await.unwrap();
    assert_eq!(text(&mut inbox).await, "end");
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_a_key_came_too_late_for_are_asked_for_after_a_restart_if_their_repetitions_are_lost() {
    let (relay, directory) = (Fake::start().await, tempfile::tempdir().unwrap());
    let app = app_in(&relay.url(), directory.path()).await;
    let (alice, bob) = (app.connect("alice").await.unwrap(), app.connect("bob").await.unwrap());
    let id = grouped(&alice, &bob).await;
    // The relay says that it took the key, and what is said again, and loses them; it can tell the latter by its length.
    let loses = Arc::new(AtomicBool::new(true));
    let (lost, mut repetitions) = tokio::sync::mpsc::unbounded_channel();
    let (mut key_seen, still) = (false, Arc::clone(&loses));
    relay.on_send(move |send| {
        if !to_bob(send) || GroupIncoming::is_one(&send.blob) || !still.load(Ordering::Relaxed) {
            return None;
        }
        let is_long = send.blob.len() > 20_000;
        if is_long {
            lost.send(()).unwrap();
        }
        let is_first = !std::mem::replace(&mut key_seen, true);
        (is_first || is_long).then(|| accepted(send))
    });
    let said: Vec<String> = (0..3).map(|number| format!("{number} {}", "long ".repeat(4_000))).collect();
    let group = alice.group(id).await.unwrap();
    for text in &said {
        group.send(text.as_str()).await.unwrap();
    }
    for _ in &said {
        soon(repetitions.recv()).await.unwrap();
    }
    // Whoever reads this has the key.
    group.send("and on").await.unwrap();
    assert_eq!(text(&mut bob.messages()).await, "and on");
    loses.store(false, Ordering::Relaxed);
    app.close().await.unwrap();

    let app = app_in(&relay.url(), directory.path()).await;
    let (alice, bob) = (app.connect("alice").await.unwrap(), app.connect("bob").await.unwrap());
    let (mut events, mut inbox) = (bob.events(), bob.messages());
    let mut read = Vec::new();
    while read.len() < said.len() {
        // What was handed out just before the end may be handed out once more.
        read.push(text(&mut inbox).await);
        read.retain(|text| text != "and on");
    }
    assert_eq!(read, said);
    alice.send("bob", "end").await.unwrap();
    assert_eq!(text(&mut inbox).await, "end", "nothing came twice");
    bob.close().await;
    while let Some(event) = events.next().await {
        assert!(!matches!(event, Event::MessageUndecryptable { .. }), "{event:?}");
    }
}
