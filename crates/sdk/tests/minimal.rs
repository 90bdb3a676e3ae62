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
use stvor::{AppBuilder, Client, Content, DeliveryState, Event, ReceiptPolicy};
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
    /// Whether messages are handed on twice.
    twice: bool,
    /// Messages from the first to the second are lost.
    lost: Mutex<Option<(&'static str, &'static str)>>,
    /// Messages as they came: who they say that they are from, who they are to, and all of them.
    log: Mutex<Vec<(String, String, Value)>>,
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
        if message["type"] == "message" {
            let name = |part: &str| message[part].as_str().unwrap().to_owned();
            let (from, to) = (name("from"), name("to"));
            self.log.lock().unwrap().push((from.clone(), to.clone(), message.clone()));
            let lost = self.lost.lock().unwrap().is_some_and(|lost| lost == (&*from, &*to));
            if !lost && let Some(target) = clients.get(&to) {
                for _ in 0..=u8::from(self.twice) {
                    let _ = target.send(Message::Text(message.to_string().into()));
                }
            }
        }
    }

    fn lose(&self, from: &'static str, to: &'static str) {
        *self.lost.lock().unwrap() = Some((from, to));
    }

    fn lose_nothing(&self) {
        *self.lost.lock().unwrap() = None;
    }

    fn said(&self, from: &str, to: &str) -> Vec<Value> {
        let log = self.log.lock().unwrap();
        log.iter()
            .filter(|(a, b, _)| (a, b) == (&from.to_owned(), &to.to_owned()))
            .map(|one| one.2.clone())
            .collect()
    }

    /// Waits for one more message than were said before.
    async fn says(&self, from: &str, to: &str, before: usize) -> Value {
        soon(async {
            loop {
                if let Some(message) = self.said(from, to).into_iter().nth(before) {
                    return message;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
    }

    /// What anybody who is connected can do: says something to whoever has a name now.
    fn inject(&self, message: Value) {
        let to = message["to"].as_str().unwrap();
        let _ = self.clients.lock().unwrap()[to].send(Message::Text(message.to_string().into()));
    }

    /// Ends somebody's connection: they come back, and announce themselves.
    fn interrupt(&self, who: &str) {
        let _ = self.clients.lock().unwrap()[who].send(Message::Close(None));
    }
}

async fn nothing_pending(client: &Client) {
    soon(async {
        while client.pending() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// Alice and Bob, who know each other and owe each other nothing.
async fn acquainted(url: &str) -> (Client, Client) {
    acquainted_at(builder(url)).await
}

async fn acquainted_at(app: AppBuilder) -> (Client, Client) {
    let app = app.in_memory().open().await.unwrap();
    let (bob, alice) = (app.connect("bob").await.unwrap(), app.connect("alice").await.unwrap());
    alice.send("bob", "0").await.unwrap();
    assert_eq!(text(&bob).await, "0");
    bob.send("alice", "0").await.unwrap();
    assert_eq!(text(&alice).await, "0");
    nothing_pending(&alice).await;
    nothing_pending(&bob).await;
    (alice, bob)
}

/// Sends something that is lost on its way, and what it looked like.
async fn lost_on_its_way(relay: &Relay, alice: &Client) -> (stvor::Receipt, Value) {
    relay.lose("alice", "bob");
    let before = relay.said("alice", "bob").len();
    let receipt = alice.send("bob", "secret").await.unwrap();
    (receipt, relay.says("alice", "bob", before).await)
}

/// What was said to Alice before this is judged, by whoever it is from.
async fn judged(alice: &Client, from: &Client) {
    from.send("alice", "sync").await.unwrap();
    assert_eq!(text(alice).await, "sync");
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
    nothing_pending(&alice).await;
}

#[tokio::test]
async fn nothing_that_stands_in_json_acknowledges_anything() {
    let (relay, url) = minimal(Relay::default()).await;
    let (alice, bob) = acquainted(&url).await;
    let (receipt, sent) = lost_on_its_way(&relay, &alice).await;
    let (acks, blob) = (json!([sent["id"]]), sent["blob"].clone());
    relay.inject(json!({"type": "message", "to": "alice", "from": "bob", "stvor": 1, "acks": acks}));
    // Neither do her own words, nor an acknowledgement of Bob's of something else, said once more.
    relay.inject(json!({"type": "message", "to": "alice", "from": "bob", "stvor": 1, "device": 1, "id": sent["id"], "blob": blob}));
    for said in relay.said("bob", "alice") {
        let mut again = said;
        relay.inject(again.clone());
        again["id"] = sent["id"].clone();
        relay.inject(again);
    }
    judged(&alice, &bob).await;
    assert_eq!(receipt.status(), DeliveryState::Queued);
    relay.lose_nothing();
    relay.interrupt("bob");
    assert_eq!(text(&bob).await, "secret");
    soon(receipt.delivered()).await.unwrap();
    nothing_pending(&alice).await;
}

#[tokio::test]
async fn what_came_changed_or_from_somebody_else_under_its_id_is_not_acknowledged() {
    let (relay, url) = minimal(Relay::default()).await;
    let (alice, bob) = acquainted(&url).await;
    let (receipt, sent) = lost_on_its_way(&relay, &alice).await;
    // The form of a message to a group: Bob takes it before anybody can judge it.
    let group = [&[1, 1, 3][..], &[7; 509]].concat();
    for blob in
        [base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, group), "AAAA".into()]
    {
        let before = relay.said("bob", "alice").len();
        relay.inject(json!({"type": "message", "to": "bob", "from": "alice", "stvor": 1, "device": 1, "id": sent["id"], "blob": blob}));
        relay.says("bob", "alice", before).await;
    }
    judged(&alice, &bob).await;
    assert_eq!(receipt.status(), DeliveryState::Queued);
    relay.lose_nothing();
    relay.interrupt("bob");
    assert_eq!(text(&bob).await, "secret");
    nothing_pending(&alice).await;
}

#[tokio::test]
async fn only_the_device_that_a_message_is_for_acknowledges_it() {
    let (relay, url) = minimal(Relay::default()).await;
    let (alice, bob) = acquainted(&url).await;
    let app = builder(&url).in_memory().open().await.unwrap();
    let mallory = app.connect("mallory").await.unwrap();
    judged(&alice, &mallory).await;
    nothing_pending(&mallory).await;
    let (receipt, sent) = lost_on_its_way(&relay, &alice).await;
    let before = relay.said("mallory", "alice").len();
    let mut to_mallory = sent;
    to_mallory["to"] = "mallory".into();
    relay.inject(to_mallory);
    // She says what she was given, to the byte, on her own session.
    relay.says("mallory", "alice", before).await;
    judged(&alice, &mallory).await;
    assert_eq!(receipt.status(), DeliveryState::Queued);
    relay.lose_nothing();
    relay.interrupt("bob");
    assert_eq!(text(&bob).await, "secret");
    nothing_pending(&alice).await;
}

#[tokio::test]
async fn a_lost_acknowledgement_brings_the_message_again_and_nobody_sees_it_twice() {
    let (relay, url) = minimal(Relay::default()).await;
    // Receipts would say that it arrived, too.
    let none = ReceiptPolicy { delivered: false, read: false };
    let (alice, bob) = acquainted_at(builder(&url).receipts(none)).await;
    relay.lose("bob", "alice");
    let (sent, answers) = (relay.said("alice", "bob").len(), relay.said("bob", "alice").len());
    let receipt = alice.send("bob", "one").await.unwrap();
    assert_eq!(text(&bob).await, "one");
    let first = relay.says("alice", "bob", sent).await;
    relay.says("bob", "alice", answers).await;
    assert_eq!(receipt.status(), DeliveryState::Queued);
    relay.lose_nothing();
    relay.interrupt("bob");
    nothing_pending(&alice).await;
    soon(receipt.accepted()).await.unwrap();
    assert!(relay.said("alice", "bob")[sent + 1..].contains(&first), "it was sent again as it was");
    alice.send("bob", "two").await.unwrap();
    assert_eq!(text(&bob).await, "two");
}

#[tokio::test]
async fn a_receiver_that_ends_between_storing_a_message_and_saying_so_has_it_once() {
    let (relay, url) = minimal(Relay::default()).await;
    let directory = tempfile::tempdir().unwrap();
    let app = |user: &str| builder(&url).data_dir(directory.path().join(user)).open();
    let (hers, his) = (app("alice").await.unwrap(), app("bob").await.unwrap());
    let (alice, bob) = (hers.connect("alice").await.unwrap(), his.connect("bob").await.unwrap());
    alice.send("bob", "zero").await.unwrap();
    assert_eq!(text(&bob).await, "zero");
    nothing_pending(&alice).await;
    nothing_pending(&bob).await;
    relay.lose("bob", "alice");
    let answers = relay.said("bob", "alice").len();
    let receipt = alice.send("bob", "one").await.unwrap();
    // It is stored, and nobody took it yet; what says so is lost.
    relay.says("bob", "alice", answers).await;
    bob.close().await;
    assert_eq!(receipt.status(), DeliveryState::Queued);
    relay.lose_nothing();
    let bob = his.connect("bob").await.unwrap();
    assert_eq!(text(&bob).await, "one");
    nothing_pending(&alice).await;
    alice.send("bob", "two").await.unwrap();
    assert_eq!(text(&bob).await, "two");
}

#[tokio::test]
async fn at_a_relay_that_says_everything_twice_acknowledgements_come_to_an_end() {
    let (relay, url) = minimal(Relay { twice: true, ..Relay::default() }).await;
    let (alice, bob) = acquainted(&url).await;
    alice.send("bob", "one").await.unwrap();
    assert_eq!(text(&bob).await, "one");
    let frames = || relay.log.lock().unwrap().len();
    soon(async {
        let (mut before, mut quiet) = (0, 0);
        while quiet < 20 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            quiet = if frames() == before { quiet + 1 } else { 0 };
            before = frames();
        }
    })
    .await;
    alice.send("bob", "two").await.unwrap();
    assert_eq!(text(&bob).await, "two");
}

#[tokio::test]
async fn a_flood_in_the_name_of_somebody_who_is_away_uses_up_no_keys_of_theirs() {
    let (relay, url) = minimal(Relay::default()).await;
    let (alice, bob) = acquainted(&url).await;
    let mut told = bob.events();
    relay.lose("alice", "bob");
    let mut events = alice.events();
    let of = |bytes: &[u8]| base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, bytes);
    let overheard = relay.said("bob", "alice").pop().unwrap();
    let blob = overheard["blob"].as_str().unwrap();
    let decoded = base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, blob);
    let mut changed = decoded.unwrap();
    *changed.last_mut().unwrap() ^= 1;
    let later = of(&[255]);
    let group = of(&[&[1_u8, 1, 3][..], &[7; 509]].concat());
    let (before, mut number) = (relay.said("alice", "bob").len(), 0_u128);
    let mut forge = |blob: &str| {
        number += 1;
        let id = format!("{number:032x}");
        relay.inject(json!({"type": "message", "to": "alice", "from": "bob", "stvor": 1, "device": 1, "id": id, "blob": blob}));
    };
    for (blob, rounds) in [(of(&changed), 25), (later.clone(), 25), (group, 2)] {
        for _ in 0..rounds {
            for _ in 0..100 {
                forge(&blob);
            }
            // It is told of the last one, and of each of that kind.
            forge(&later);
            let count = if blob == later { 101 } else { 1 };
            for _ in 0..count {
                event(&mut events, |event| matches!(event, Event::MessageUndecryptable { .. }).then_some(()))
                    .await;
            }
        }
    }
    assert!(
        relay.said("alice", "bob").len() - before <= 64,
        "an acknowledgement each, and 64 of them at most"
    );
    relay.lose_nothing();
    alice.send("bob", "after").await.unwrap();
    assert_eq!(text(&bob).await, "after");
    while let Some(Some(event)) = futures::FutureExt::now_or_never(told.next()) {
        assert!(!matches!(event, Event::MessageUndecryptable { .. } | Event::Repaired { .. }), "{event:?}");
    }
}

#[tokio::test]
async fn who_only_reads_a_group_acknowledges_all_of_it() {
    let (_, url) = minimal(Relay::default()).await;
    // Receipts would make the two say other things to each other.
    let none = ReceiptPolicy { delivered: false, read: false };
    let (alice, bob) = acquainted_at(builder(&url).receipts(none)).await;
    let mut events = bob.events();
    let group = alice.create_group("news", ["bob"]).await.unwrap();
    event(&mut events, |event| matches!(event, Event::GroupJoined { .. }).then_some(())).await;
    // More than are under way at once and than are acknowledged of what nobody opened, one by one.
    for number in 0..150 {
        group.send(number.to_string()).await.unwrap();
        assert_eq!(text(&bob).await, number.to_string());
    }
    nothing_pending(&alice).await;
    alice.send("bob", "to you alone").await.unwrap();
    assert_eq!(text(&bob).await, "to you alone");
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
