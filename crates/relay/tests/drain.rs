//! Leaving: heartbeats that find silent clients, and a relay that says goodbye.

#![cfg(test)]

mod support;

use core::time::Duration;

use stvor_testkit::ChaosProxy;
use stvor_wire::server::Drain;
use stvor_wire::{Code, ServerMessage};
use support::{
    Client, Login, Place, Raw, Server, User, accepted, address, blob, eventually, get, soon, text_of,
};
use tokio::net::TcpStream;

const SPREAD: Duration = Duration::from_secs(7);

async fn drained(client: &mut Client) -> Drain {
    client
        .expect("DRAIN", |message| match message {
            ServerMessage::Drain(drain) => Some(drain.clone()),
            _ => None,
        })
        .await
}

/// Drains in the background.
fn drain(server: Server, grace: Duration) -> (Place, tokio::task::JoinHandle<()>) {
    let Server { place, handle, .. } = server;
    (place, tokio::spawn(handle.drain(SPREAD, grace)))
}

#[tokio::test]
async fn draining_relay_tells_clients_to_come_back_within_a_spread() {
    let server = Server::memory().await;
    let (_, mut bob) = server.user("bob").await;
    let (alice, _) = server.user("alice").await;
    let mut sending = server.login(&alice).send_only().open().await;
    let (_, done) = drain(server, support::SOON);
    let to_bob = drained(&mut bob).await;
    assert_eq!(to_bob.spread, SPREAD);
    assert!(!to_bob.resume_cursor.is_empty());
    assert!(drained(&mut sending).await.resume_cursor.is_empty(), "who does not receive has no cursor");
    bob.close().await;
    sending.close().await;
    soon("the end of the drain", done).await.unwrap();
}

#[tokio::test]
async fn draining_relay_is_alive_but_not_ready_and_takes_nobody_in() {
    let server = Server::memory().await;
    let bob = User::new("bob");
    // A socket that was open before the drain, and has not said who it is.
    let waiting = server.raw().await;
    let (_, mut alice) = server.user("alice").await;
    let (place, done) = drain(server, support::SOON);
    drained(&mut alice).await;
    assert_eq!(get(place.address, "/livez").await.status, 200);
    let answer = get(place.address, "/readyz").await;
    answer.problem(Code::Draining);
    assert!(answer.header("retry-after").is_some());
    assert_eq!(get(place.address, "/health").await.json()["status"], "draining");
    let socket = TcpStream::connect(place.address).await.unwrap();
    match Raw::upgrade(&place, socket).await {
        Err(tokio_tungstenite::tungstenite::Error::Http(response)) => assert_eq!(response.status(), 503),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("a draining relay opened a socket"),
    }
    let end = Login::new(&place, &bob).on(waiting).await.err().unwrap();
    assert_eq!(end.code, Code::Draining);
    alice.close().await;
    soon("the end of the drain", done).await.unwrap();
    assert!(TcpStream::connect(place.address).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn sends_of_clients_that_are_still_there_are_answered_while_draining() {
    let server = Server::durable().await;
    let (_, mut bob) = server.user("bob").await;
    let (_, mut alice) = server.user("alice").await;
    let mut sends = Vec::new();
    for number in 0..50 {
        let send = alice.compose(&address("bob"), blob(&number.to_string()));
        alice.post(&send).await;
        sends.push(send);
    }
    let Server { handle, .. } = &server;
    assert_eq!(handle.connections(), 2);
    let config = server.config.clone();
    let place = server.place.clone();
    let done = tokio::spawn(async move {
        let Server { handle, directory, .. } = server;
        handle.drain(SPREAD, support::SOON).await;
        directory
    });
    drained(&mut alice).await;
    assert_eq!(get(place.address, "/livez").await.status, 200);
    for send in &sends {
        accepted(alice.answer(send.recipient.msg_id).await);
    }
    let late = alice.compose(&address("bob"), blob("late"));
    accepted(alice.transmit(&late).await);
    for number in 0..50 {
        assert_eq!(text_of(&bob.deliver().await.blob), number.to_string());
    }
    alice.close().await;
    bob.close().await;
    let _directory = soon("the end of the drain", done).await.unwrap();
    assert!(config.database.unwrap().exists());
}

#[tokio::test]
async fn client_that_stays_is_ended_after_the_grace() {
    let server = Server::memory().await;
    let (_, mut bob) = server.user("bob").await;
    let (_, done) = drain(server, Duration::from_millis(50));
    drained(&mut bob).await;
    assert_eq!(bob.end().await.code, Code::Draining);
    soon("the end of the drain", done).await.unwrap();
}

#[tokio::test]
async fn shutdown_ends_everybody_and_frees_the_database() {
    let server = Server::durable().await;
    let (bob, mut client) = server.user("bob").await;
    let server = server.restart().await;
    assert_eq!(client.end().await.code, Code::Draining);
    server.login(&bob).known().open().await;
}

#[tokio::test]
async fn heartbeats_go_on_for_ever_and_carry_a_fresh_cursor() {
    let server = Server::memory_with(|config| config.limits.heartbeat_ms = 30).await;
    let (bob, mut client) = server.user("bob").await;
    assert_eq!(client.ready.heartbeat, Duration::from_millis(30));
    let mut last = None;
    for _ in 0..10 {
        let (nonce, cursor) = match client.raw.message().await {
            ServerMessage::Ping { nonce, resume_cursor } => (nonce, resume_cursor),
            other => panic!("{other:?}"),
        };
        client.say(&stvor_wire::ClientMessage::Pong { nonce }).await;
        last = Some(cursor);
    }
    client.close().await;
    let client = server.login(&bob).cursor(last.unwrap()).open().await;
    assert_eq!(client.ready.resumed, stvor_wire::server::Resumed::Resumed);
}

#[tokio::test]
async fn silent_client_is_ended_after_two_missed_heartbeats() {
    let server = Server::memory_with(|config| config.limits.heartbeat_ms = 30).await;
    let (_, mut bob) = server.user("bob").await;
    let mut pings = 0;
    let end = loop {
        match bob.raw.message().await {
            ServerMessage::Ping { .. } => pings += 1,
            ServerMessage::End(end) => break end,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(end.code, Code::HeartbeatTimeout);
    assert!((2..=3).contains(&pings), "{pings}");
}

#[tokio::test]
async fn half_open_connection_is_reaped_and_its_mail_waits() {
    let server = Server::memory_with(|config| config.limits.heartbeat_ms = 50).await;
    let proxy = ChaosProxy::start(server.place.address).unwrap();
    let through = Place::of(proxy.address());
    let bob = User::new("bob");
    let lost = Login::new(&through, &bob).open().await;
    assert_eq!(server.handle.connections(), 1);
    proxy.freeze();
    eventually("the reaping", || async { (server.handle.connections() == 0).then_some(()) }).await;
    let (_, mut alice) = server.user("alice").await;
    alice.send(&address("bob"), blob("waits")).await;
    let mut client = server.login(&bob).open().await;
    assert_eq!(text_of(&client.deliver().await.blob), "waits");
    drop(lost);
}

#[tokio::test]
async fn client_that_vanishes_is_no_longer_online() {
    let server = Server::memory().await;
    let (_, bob) = server.user("bob").await;
    let (_, mut alice) = server.user("alice").await;
    assert!(alice.status("bob").await.online);
    bob.raw.cut();
    eventually("offline", || async { (server.handle.users_online() == 1).then_some(()) }).await;
    assert!(!alice.status("bob").await.online);
}
