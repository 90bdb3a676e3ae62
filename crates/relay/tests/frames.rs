//! What is not a frame, too large, too late or out of place is refused with its code, and harms nobody else.

#![cfg(test)]

mod support;

use core::time::Duration;

use stvor_wire::client::{ClientMessage, Credential, Credit, Hello};
use stvor_wire::limits::{MAX_BLOB_BYTES, MAX_FRAME_AFTER_AUTH, MAX_FRAME_BEFORE_AUTH};
use stvor_wire::{Code, SUBPROTOCOL, frame, padding};
use support::{Client, Heard, Raw, Server, TOKEN, accepted, address, blob, blob_of, hello, refused};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

fn token() -> Credential {
    Credential::AppToken(TOKEN.to_owned())
}

/// Bytes that are no frame of a client, with a name for each.
fn malformed() -> Vec<(&'static str, Vec<u8>)> {
    let good = frame::encode_client(&ClientMessage::Ping { nonce: 7 }).to_vec();
    let twice = [&good[..], &good[..]].concat();
    vec![
        ("empty", vec![]),
        ("noise", vec![0xff; 40]),
        ("text of another protocol", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("two bodies", twice),
        ("unknown body", vec![0x92, 0x3f, 0x00]),
        ("body that is a number", vec![0x08, 0x01]),
        ("cut short", good[..good.len() - 1].to_vec()),
        ("length past the end", vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]),
        ("bytes after the end", [&good[..], &[0]].concat()),
    ]
}

#[tokio::test]
async fn malformed_frames_before_login_are_refused() {
    let server = Server::memory().await;
    for (what, bytes) in malformed() {
        let mut raw = server.raw().await;
        raw.bytes(bytes).await;
        assert_eq!(raw.end().await.code, Code::MalformedFrame, "{what}");
    }
}

#[tokio::test]
async fn malformed_frames_after_login_end_the_connection() {
    let server = Server::memory().await;
    let (bob, client) = server.user("bob").await;
    client.close().await;
    for (what, bytes) in malformed() {
        let mut client = server.login(&bob).open().await;
        client.raw.bytes(bytes).await;
        assert_eq!(client.end().await.code, Code::MalformedFrame, "{what}");
    }
    server.login(&bob).open().await;
}

#[tokio::test]
async fn what_was_said_before_a_malformed_frame_is_still_carried_out() {
    let server = Server::memory().await;
    let (_, mut bob) = server.user("bob").await;
    let (_, mut alice) = server.user("alice").await;
    let send = alice.compose(&address("bob"), blob("before"));
    alice.post(&send).await;
    alice.raw.bytes(vec![0xff; 3]).await;
    assert_eq!(bob.deliver().await.msg_id, send.recipient.msg_id);
}

#[tokio::test]
async fn frame_before_login_is_bounded_at_4_kib() {
    let server = Server::memory().await;
    // A capability of the right length fills the frame to the byte, and is itself out of range.
    let with = |length: usize| {
        let capabilities = vec!["x".repeat(length)];
        let hello = Hello { protocol_version: 1, credential: token(), address: address("bob"), capabilities };
        frame::encode_client(&ClientMessage::Hello(hello))
    };
    let around = with(3000).len() - 3000;
    let mut raw = server.raw().await;
    let bytes = with(MAX_FRAME_BEFORE_AUTH - around);
    assert_eq!(bytes.len(), MAX_FRAME_BEFORE_AUTH);
    raw.bytes(bytes).await;
    assert_eq!(raw.end().await.code, Code::MalformedFrame, "its size is allowed, its content is not");
    let mut raw = server.raw().await;
    raw.bytes(vec![0; MAX_FRAME_BEFORE_AUTH + 1]).await;
    assert_eq!(raw.end().await.code, Code::FrameTooLarge);
}

#[tokio::test]
async fn frame_after_login_is_bounded_at_96_kib() {
    let server = Server::memory().await;
    let (bob, mut client) = server.user("bob").await;
    client.raw.bytes(vec![0xff; MAX_FRAME_AFTER_AUTH]).await;
    assert_eq!(client.end().await.code, Code::MalformedFrame, "its size is allowed, its content is not");
    for size in [MAX_FRAME_AFTER_AUTH + 1, 4 * MAX_FRAME_AFTER_AUTH] {
        let mut client = server.login(&bob).open().await;
        client.raw.bytes(vec![0xff; size]).await;
        assert_eq!(client.end().await.code, Code::FrameTooLarge, "{size}");
    }
}

#[tokio::test]
async fn frame_in_fragments_counts_as_a_whole() {
    let server = Server::memory().await;
    let mut socket = upgraded(&server).await;
    // Fragments of 60 KiB each, masked with zeros: the third one passes 96 KiB.
    let fragment = vec![0_u8; 60 * 1024];
    for (index, opcode) in [0x02_u8, 0x00, 0x00].into_iter().enumerate() {
        let mut head = vec![opcode, 0x80 | 126];
        head.extend(u16::try_from(fragment.len()).unwrap().to_be_bytes());
        head.extend([0; 4]);
        let written = socket.write_all(&head).await.is_ok() && socket.write_all(&fragment).await.is_ok();
        assert!(written || index > 0);
    }
    let mut rest = Vec::new();
    support::soon("the end", socket.read_to_end(&mut rest)).await.ok();
    let code = Code::FrameTooLarge.close_code().to_be_bytes();
    assert!(rest.windows(2).any(|pair| pair == code), "{rest:?}");
}

#[tokio::test]
async fn largest_blob_fits_and_a_larger_one_does_not() {
    let server = Server::memory().await;
    let (_, mut bob) = server.user("bob").await;
    let (_, mut alice) = server.user("alice").await;
    alice.send(&address("bob"), blob_of("large", MAX_BLOB_BYTES)).await;
    assert_eq!(bob.deliver().await.blob.len(), MAX_BLOB_BYTES);
    let send = alice.compose(&address("bob"), blob_of("larger", MAX_BLOB_BYTES + 1));
    alice.post(&send).await;
    assert_eq!(alice.end().await.code, Code::MalformedFrame);
}

#[tokio::test]
async fn blob_that_is_no_padding_bucket_is_refused_and_the_connection_stays() {
    let server = Server::memory().await;
    let (_, mut bob) = server.user("bob").await;
    let (_, mut alice) = server.user("alice").await;
    for size in [0, 1, 511, 513, 1023, 1025, 3000, 16 * 1024 - 1, 16 * 1024 + 1, MAX_BLOB_BYTES - 1] {
        assert!(!padding::is_bucket(size));
        let signal = Client::signal(&address("bob"), vec![0; size]);
        refused(alice.transmit(&signal).await, Code::BadPadding);
    }
    let mut send = alice.compose(&address("bob"), vec![1; 513]);
    refused(alice.transmit(&send).await, Code::BadPadding);
    send.blob = vec![1; 1024].into();
    accepted(alice.transmit(&send).await);
    assert_eq!(bob.deliver().await.blob.len(), 1024);
}

#[tokio::test]
async fn text_message_is_refused() {
    let server = Server::memory().await;
    let mut raw = server.raw().await;
    raw.send(Message::text("{\"hello\":true}")).await;
    assert_eq!(raw.end().await.code, Code::MalformedFrame);
    let (_, mut bob) = server.user("bob").await;
    bob.raw.send(Message::text("hello")).await;
    assert_eq!(bob.end().await.code, Code::MalformedFrame);
}

#[tokio::test]
async fn frames_out_of_place_are_refused() {
    let server = Server::memory().await;
    let mut raw = server.raw().await;
    raw.say(&ClientMessage::Ping { nonce: 1 }).await;
    assert_eq!(raw.end().await.code, Code::UnexpectedFrame, "before HELLO");
    let mut raw = server.raw().await;
    raw.hello(token(), address("bob")).await;
    raw.say(&hello(token(), address("bob"))).await;
    assert_eq!(raw.end().await.code, Code::UnexpectedFrame, "HELLO for AUTH");
    let (_, mut bob) = server.user("bob").await;
    bob.say(&hello(token(), address("bob"))).await;
    assert_eq!(bob.end().await.code, Code::UnexpectedFrame, "HELLO after READY");
}

#[tokio::test]
async fn another_protocol_version_is_refused() {
    let server = Server::memory().await;
    for protocol_version in [0, 2, u32::MAX] {
        let mut raw = server.raw().await;
        let hello =
            Hello { protocol_version, credential: token(), address: address("bob"), capabilities: vec![] };
        raw.say(&ClientMessage::Hello(hello)).await;
        assert_eq!(raw.end().await.code, Code::UnsupportedVersion);
    }
}

#[tokio::test]
async fn unknown_capabilities_are_ignored_and_those_of_both_sides_are_named() {
    let server = Server::memory().await;
    for (names, common) in [(&["teleportation"][..], &[][..]), (&["teleportation", "hold"], &["hold"])] {
        let mut raw = server.raw().await;
        let capabilities = names.iter().map(|name| (*name).to_owned()).collect();
        let hello = Hello { protocol_version: 1, credential: token(), address: address("bob"), capabilities };
        raw.say(&ClientMessage::Hello(hello)).await;
        match raw.message().await {
            stvor_wire::ServerMessage::Challenge(challenge) => assert_eq!(challenge.capabilities, common),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn client_that_does_not_log_in_is_sent_away() {
    let server = Server::memory_with(|config| config.limits.handshake_ms = 200).await;
    let mut silent = server.raw().await;
    let mut half = server.raw().await;
    half.hello(token(), address("bob")).await;
    assert_eq!(silent.end().await.code, Code::HandshakeTimeout);
    assert_eq!(half.end().await.code, Code::HandshakeTimeout);
}

#[tokio::test]
async fn chatter_does_not_prolong_the_handshake() {
    let server = Server::memory_with(|config| config.limits.handshake_ms = 200).await;
    let mut raw = server.raw().await;
    // WebSocket pings keep a connection alive, but they are no log-in.
    let end = support::soon("the end", async {
        loop {
            if !raw.send(Message::Ping(vec![1].into())).await {
                return;
            }
            match tokio::time::timeout(Duration::from_millis(5), raw.hear()).await {
                Ok(Heard::Message(stvor_wire::ServerMessage::End(end))) => {
                    assert_eq!(end.code, Code::HandshakeTimeout);
                    return;
                }
                Ok(Heard::Closed(_)) => return,
                _ => {}
            }
        }
    });
    end.await;
}

#[tokio::test]
async fn socket_that_never_speaks_http_is_closed() {
    let server = Server::memory_with(|config| config.limits.handshake_ms = 200).await;
    let mut silent = TcpStream::connect(server.place.address).await.unwrap();
    let mut slow = TcpStream::connect(server.place.address).await.unwrap();
    slow.write_all(b"GET /v1/socket HTTP/1.1\r\nHost: x\r\nX-Slow: ").await.unwrap();
    let mut rest = Vec::new();
    support::soon("the end of a slow one", slow.read_to_end(&mut rest)).await.ok();
    support::soon("the end of a silent one", silent.read_to_end(&mut rest)).await.ok();
}

#[tokio::test]
async fn plain_http_client_on_the_socket_path_is_told_what_to_do() {
    let server = Server::memory().await;
    let answer = server.get("/v1/socket").await;
    let problem = answer.problem(Code::WebsocketRequired);
    assert!(problem["detail"].as_str().unwrap().contains(SUBPROTOCOL));
    assert_eq!(answer.header("upgrade"), Some("websocket"));
}

/// Upgrades by hand, so that the answer can be looked at.
async fn handshake(server: &Server, extra: &str) -> (TcpStream, String) {
    let mut socket = TcpStream::connect(server.place.address).await.unwrap();
    let request = format!(
        "GET /v1/socket HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{extra}\r\n",
        server.place.address
    );
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(support::soon("a head", socket.read_u8()).await.unwrap());
    }
    (socket, String::from_utf8(head).unwrap().to_ascii_lowercase())
}

async fn upgraded(server: &Server) -> TcpStream {
    let (socket, head) = handshake(server, "Sec-WebSocket-Protocol: stvor.v1\r\n").await;
    assert!(head.starts_with("http/1.1 101"), "{head}");
    socket
}

#[tokio::test]
async fn no_compression_is_negotiated() {
    let server = Server::memory().await;
    let offer = "Sec-WebSocket-Protocol: stvor.v1\r\n\
                 Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\nAccept-Encoding: gzip\r\n";
    let (_socket, head) = handshake(&server, offer).await;
    assert!(head.starts_with("http/1.1 101"), "{head}");
    assert!(head.contains("sec-websocket-protocol: stvor.v1"), "{head}");
    assert!(!head.contains("sec-websocket-extensions") && !head.contains("deflate"), "{head}");
}

#[tokio::test]
async fn compressed_frame_is_refused() {
    let server = Server::memory().await;
    let mut socket = upgraded(&server).await;
    // The first reserved bit says "compressed" where that was negotiated.
    socket.write_all(&[0xc2, 0x81, 0, 0, 0, 0, 0]).await.unwrap();
    let mut rest = Vec::new();
    support::soon("the end", socket.read_to_end(&mut rest)).await.ok();
}

#[tokio::test]
async fn another_subprotocol_is_refused() {
    let server = Server::memory().await;
    for offer in ["", "Sec-WebSocket-Protocol: stvor.v2\r\n", "Sec-WebSocket-Protocol: chat, superchat\r\n"] {
        let (_socket, head) = handshake(&server, offer).await;
        assert!(head.starts_with("http/1.1 400"), "{head}");
        assert!(head.contains("application/problem+json"), "{head}");
    }
    let (_socket, head) = handshake(&server, "Sec-WebSocket-Protocol: chat, stvor.v1\r\n").await;
    assert!(head.starts_with("http/1.1 101"), "{head}");
}

#[tokio::test]
async fn malformed_client_harms_no_other() {
    let server = Server::memory().await;
    let (_, mut bob) = server.user("bob").await;
    let (_, mut alice) = server.user("alice").await;
    for (_, bytes) in malformed() {
        let mut raw: Raw = server.raw().await;
        raw.bytes(bytes).await;
        raw.cut();
    }
    alice.send(&address("bob"), blob("still here")).await;
    bob.deliver().await;
    bob.say(&ClientMessage::Credit(Credit { window_messages: 1, window_bytes: 1 })).await;
    bob.until_pong().await;
}
