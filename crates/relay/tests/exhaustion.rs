//! What one peer can make the relay keep, and do, is bounded, whoever it is.

#![cfg(test)]

mod support;

use core::time::Duration;

use stvor_relay::limits::{
    BYTES_BEFORE_LOGIN, CONNECTIONS_PER_DEVICE, STRAY_ACKS_PER_SECOND, UPLOADS_PER_MINUTE,
};
use stvor_wire::client::{Ack, AckOne, ClientMessage, Credit};
use stvor_wire::limits::MAX_SINGLE_ACKS;
use stvor_wire::{Code, ServerMessage};
use support::{Server, User, address, blob, new_id, soon};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A socket that became a WebSocket by hand.
async fn upgraded(server: &Server) -> TcpStream {
    let mut socket = TcpStream::connect(server.place.address).await.unwrap();
    let request = "GET /v1/socket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: stvor.v1\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101"));
    socket
}

#[tokio::test]
async fn stranger_can_not_make_the_relay_buffer_a_large_frame() {
    // The deadline is far away: what ends the connection is what it sent.
    let server = Server::memory_with(|config| config.limits.handshake_ms = 600_000).await;
    let mut socket = upgraded(&server).await;
    // A binary frame of 90,000 bytes, of which 20 KiB come.
    let mut bytes = vec![0x82, 0x80 | 127];
    bytes.extend(90_000_u64.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.resize(BYTES_BEFORE_LOGIN + 20 * 1024, 0);
    let _ = socket.write_all(&bytes).await;
    let mut rest = Vec::new();
    // The end, or a reset since the relay did not read it all.
    let _ = soon("the end", socket.read_to_end(&mut rest)).await;
}

#[tokio::test]
async fn request_whose_body_trickles_does_not_hold_a_socket() {
    let server = Server::memory_with(|config| config.limits.handshake_ms = 100).await;
    let mut socket = TcpStream::connect(server.place.address).await.unwrap();
    let head = "POST /v1/keys HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{";
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut rest = Vec::new();
    let _ = soon("the end", socket.read_to_end(&mut rest)).await;
    assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
}

#[tokio::test]
async fn connection_that_asks_on_and_on_over_http_is_ended_in_good_order() {
    let server = Server::memory_with(|config| config.limits.handshake_ms = 200).await;
    let mut socket = TcpStream::connect(server.place.address).await.unwrap();
    let mut heard = Vec::new();
    soon("the end", async {
        let mut buffer = [0; 1024];
        loop {
            if socket.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await.is_err() {
                return;
            }
            match socket.read(&mut buffer).await {
                Ok(length @ 1..) => heard.extend_from_slice(&buffer[..length]),
                _ => return,
            }
        }
    })
    .await;
    assert!(heard.starts_with(b"HTTP/1.1 200"));
}

#[tokio::test]
async fn time_before_the_upgrade_counts_for_the_handshake() {
    let server = Server::memory_with(|config| config.limits.handshake_ms = 2_000).await;
    let early = TcpStream::connect(server.place.address).await.unwrap();
    // The time that passes here is what is looked at: the early one has the less left the longer it lasts.
    tokio::time::sleep(Duration::from_millis(1_000)).await;
    let mut late = server.raw().await;
    let Ok(mut early) = support::Raw::upgrade(&server.place, early).await else { return };
    tokio::select! {
        end = early.end() => assert_eq!(end.code, Code::HandshakeTimeout),
        end = late.end() => panic!("who came later was ended first: {end:?}"),
    }
}

#[tokio::test]
async fn connections_of_one_device_are_bounded_and_a_closed_one_makes_room() {
    let server = Server::memory().await;
    let bob = User::new("bob");
    let mut open = Vec::new();
    for _ in 0..CONNECTIONS_PER_DEVICE {
        open.push(server.login(&bob).send_only().open().await);
    }
    assert_eq!(server.login(&bob).send_only().refused().await.code, Code::TooMany);
    let (_, _alice) = server.user("alice").await;
    open.pop().unwrap().close().await;
    support::eventually("room", || async { server.login(&bob).send_only().attempt().await.ok() }).await;
}

#[tokio::test]
async fn uploads_of_a_device_are_limited() {
    let server = Server::memory_with(|config| config.limits.requests_per_device = 100_000).await;
    let (_, mut bob) = server.user("bob").await;
    for _ in 0..UPLOADS_PER_MINUTE {
        bob.upload_set(0, 0).await;
    }
    let upload = stvor_wire::client::UploadKeys { request_id: bob.request(), ..support::key_set(1, 0) };
    bob.say(&ClientMessage::UploadKeys(upload)).await;
    let nack = bob
        .expect("NACK", |message| match message {
            ServerMessage::Nack(nack) => Some(nack.clone()),
            _ => None,
        })
        .await;
    assert_eq!(nack.code, Code::RateLimited);
    assert!(nack.retry_after > Duration::ZERO);
}

#[tokio::test]
async fn acknowledgements_of_what_was_never_delivered_are_limited() {
    let server = Server::durable().await;
    let (_, mut bob) = server.user("bob").await;
    let (_, mut alice) = server.user("alice").await;
    bob.say(&ClientMessage::Credit(Credit { window_messages: 0, window_bytes: 0 })).await;
    bob.until_pong().await;
    alice.send(&address("bob"), blob("stays")).await;
    let wrong = |seq| AckOne { seq, msg_id: new_id() };
    let mailbox_epoch = bob.ready.mailbox_epoch;
    let ack = |single| ClientMessage::Ack(Ack { mailbox_epoch, up_to: None, single });
    let (flood, probe) =
        (ack((0..MAX_SINGLE_ACKS as u64).map(|at| wrong(1_000 + at)).collect()), ack(vec![wrong(1)]));
    // The message has another id: said once for each acknowledgement that is looked at.
    bob.say(&probe).await;
    bob.expect("NACK", |message| matches!(message, ServerMessage::Nack(_)).then_some(())).await;
    let burst = STRAY_ACKS_PER_SECOND as usize * 10;
    for _ in 0..2 * burst / MAX_SINGLE_ACKS {
        bob.say(&flood).await;
    }
    bob.say(&ack((0..MAX_SINGLE_ACKS).map(|_| wrong(1)).collect())).await;
    // The store answers in order, so this comes after what it was asked before.
    alice.send(&address("bob"), blob("later")).await;
    let heard = bob.until_pong().await;
    assert!(!heard.iter().any(|message| matches!(message, ServerMessage::Nack(_))), "{heard:?}");
    bob.say(&ClientMessage::Credit(Credit { window_messages: 10, window_bytes: 100_000 })).await;
    assert_eq!(bob.deliver_many(2).await.len(), 2);
}
