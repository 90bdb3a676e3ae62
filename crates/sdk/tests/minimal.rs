//! The minimal JSON relay of the earlier documentation: told apart, made up for, and never fallen back to by force.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{builder, code, event, soon};
use futures::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use stvor::{Client, Content, DeliveryState, Event};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};

/// The forty lines, in Rust: it takes the first subprotocol offered, as the `ws` package does, and drops binary frames.
#[derive(Default)]
struct Relay {
    clients: Mutex<HashMap<String, UnboundedSender<Message>>>,
    keys: Mutex<HashMap<String, Value>>,
    /// Whether announcements are repeated.
    mute: bool,
}

#[allow(clippy::result_large_err, clippy::unnecessary_wraps, reason = "the shape of the callback")]
fn first_offer(request: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
    let offers = request.headers()["sec-websocket-protocol"].to_str().unwrap();
    let first = offers.split(',').next().unwrap().trim().parse().unwrap();
    response.headers_mut().insert("sec-websocket-protocol", first);
    Ok(response)
}

async fn serve(relay: Arc<Relay>, listener: TcpListener) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let relay = Arc::clone(&relay);
        tokio::spawn(async move {
            let Ok(socket) = tokio_tungstenite::accept_hdr_async(stream, first_offer).await else { return };
            let (mut sink, mut stream) = socket.split();
            let (out, mut queue) = unbounded_channel::<Message>();
            for (user, public) in &*relay.keys.lock().unwrap() {
                let announce = json!({"type": "announce", "user": user, "pub": public});
                let _ = out.send(Message::Text(announce.to_string().into()));
            }
            tokio::spawn(async move {
                while let Some(message) = queue.recv().await {
                    if sink.send(message).await.is_err() {
                        return;
                    }
                }
            });
            while let Some(Ok(message)) = stream.next().await {
                let Message::Text(text) = message else { continue };
                relay.take(&serde_json::from_str(&text).unwrap(), &out);
            }
        });
    }
}

impl Relay {
    fn take(&self, message: &Value, from: &UnboundedSender<Message>) {
        let mut clients = self.clients.lock().unwrap();
        if message["type"] == "announce" && !self.mute {
            let user = message["user"].as_str().unwrap().to_owned();
            clients.insert(user.clone(), from.clone());
            self.keys.lock().unwrap().insert(user, message["pub"].clone());
            for client in clients.values() {
                let _ = client.send(Message::Text(message.to_string().into()));
            }
        }
        if message["type"] == "message"
            && let Some(target) = clients.get(message["to"].as_str().unwrap())
        {
            let _ = target.send(Message::Text(message.to_string().into()));
        }
    }
}

async fn minimal(relay: Relay) -> (Arc<Relay>, String) {
    minimal_at(relay, SocketAddr::from(([127, 0, 0, 1], 0))).await
}

async fn minimal_at(relay: Relay, address: SocketAddr) -> (Arc<Relay>, String) {
    let (relay, listener) = (Arc::new(relay), TcpListener::bind(address).await.unwrap());
    let url = format!("ws://{}", listener.local_addr().unwrap());
    tokio::spawn(serve(Arc::clone(&relay), listener));
    (relay, url)
}

async fn text(client: &Client) -> String {
    let mut messages = client.messages();
    match &soon(messages.next()).await.unwrap().content {
        Content::Text(text) => text.clone(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn two_clients_talk_and_are_told_that_nothing_is_kept() {
    let (_, url) = minimal(Relay::default()).await;
    let app = builder(&url).in_memory().open().await.unwrap();
    let bob = app.connect("bob").await.unwrap();
    let alice = app.connect("alice").await.unwrap();
    let mut events = alice.events();
    event(&mut events, |event| matches!(event, Event::RelayNotDurable).then_some(())).await;
    let receipt = alice.send("bob", "Hello").await.unwrap();
    assert_eq!(text(&bob).await, "Hello");
    soon(receipt.delivered()).await.unwrap();
    bob.send("alice", "Hi").await.unwrap();
    assert_eq!(text(&alice).await, "Hi");
    let nobody = alice.send_with(
        "nobody",
        "x",
        stvor::SendOptions { timeout: Some(Duration::from_millis(50)), ..stvor::SendOptions::default() },
    );
    assert_eq!(code(nobody.await), "RECIPIENT_TIMEOUT");
}

#[tokio::test]
async fn a_group_talks_over_it_also_with_a_member_who_was_away() {
    let (relay, url) = minimal(Relay::default()).await;
    let directory = tempfile::tempdir().unwrap();
    let app = |user: &str| builder(&url).data_dir(directory.path().join(user)).open();
    let (hers, his) = (app("alice").await.unwrap(), app("bob").await.unwrap());
    let alice = hers.connect("alice").await.unwrap();
    let bob = his.connect("bob").await.unwrap();
    alice.wait_for_user("bob", Duration::from_secs(30)).await.unwrap();
    let group = alice.create_group("g", ["bob"]).await.unwrap();
    group.send("one").await.unwrap();
    assert_eq!(text(&bob).await, "one");
    bob.group(group.id()).await.unwrap().send("two").await.unwrap();
    assert_eq!(text(&alice).await, "two");
    bob.close().await;
    relay.clients.lock().unwrap().remove("bob");
    group.rename("h").await.unwrap();
    group.send("three").await.unwrap();
    let bob = his.connect("bob").await.unwrap();
    assert_eq!(text(&bob).await, "three");
    assert_eq!(bob.group(group.id()).await.unwrap().name().await.unwrap(), "h");
}

#[tokio::test]
async fn what_was_sent_to_somebody_who_was_away_comes_when_they_are_back_once_and_in_order() {
    let (relay, url) = minimal(Relay::default()).await;
    let directory = tempfile::tempdir().unwrap();
    let app = |user: &str| builder(&url).data_dir(directory.path().join(user)).open();
    let (hers, his) = (app("alice").await.unwrap(), app("bob").await.unwrap());
    let alice = hers.connect("alice").await.unwrap();
    let bob = his.connect("bob").await.unwrap();
    alice.send("bob", "0").await.unwrap();
    assert_eq!(text(&bob).await, "0");
    bob.close().await;
    relay.clients.lock().unwrap().remove("bob");
    let mut receipts = Vec::new();
    for number in 1..=20 {
        let receipt = soon(alice.send("bob", number.to_string())).await.unwrap();
        assert_eq!(receipt.status(), DeliveryState::Queued, "nobody answers for it");
        receipts.push(receipt);
    }
    // Neither is anything lost with the sender's process.
    alice.close().await;
    let alice = hers.connect("alice").await.unwrap();
    let bob = his.connect("bob").await.unwrap();
    let mut messages = bob.messages();
    for number in 1..=20 {
        let message = soon(messages.next()).await.unwrap();
        assert_eq!(message.content, Content::Text(number.to_string()));
    }
    soon(async {
        while alice.pending() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_store_that_spoke_with_our_relay_never_speaks_with_a_minimal_one_in_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let real = common::relay().await;
    let address = real.local_addr();
    let app = builder(&real.url()).data_dir(directory.path()).open().await.unwrap();
    let alice = app.connect("alice").await.unwrap();
    alice.close().await;
    real.shutdown().await;
    let (_, url) = minimal_at(Relay::default(), address).await;
    let again = builder(&url).data_dir(directory.path()).open().await.unwrap();
    let options = stvor::ConnectOptions { require_relay: true, ..stvor::ConnectOptions::default() };
    assert_eq!(code(again.connect_with("alice", options).await), "RELAY_PROTOCOL");
}

#[tokio::test]
async fn it_is_spoken_to_only_where_it_may_be_and_only_if_it_repeats_announcements() {
    let (_, url) = minimal(Relay::default()).await;
    let never = builder(&url).in_memory().timeout(Duration::from_secs(1)).minimal_relay(false);
    assert_eq!(code(never.open().await.unwrap().connect("alice").await), "RELAY_UNAVAILABLE");
    let (_, url) = minimal(Relay { mute: true, ..Relay::default() }).await;
    let mute = builder(&url).in_memory().open().await.unwrap();
    assert_eq!(code(mute.connect("alice").await), "RELAY_UNAVAILABLE");
    let secure = builder("wss://localhost:1").in_memory().minimal_relay(true);
    assert_eq!(code(secure.open().await), "INVALID_CONFIG");
    assert!(builder("wss://localhost:1").in_memory().open().await.is_ok());
}
