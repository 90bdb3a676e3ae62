//! What a relay may answer, and what follows: a relay that does as the test tells it.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

#[path = "common/fake.rs"]
mod fake;

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fake::Fake;
use stvor::{
    App, AppBuilder, Client, ConnectOptions, ConnectionState, DeliveryState, Event, Events, SendOptions,
    SendWait,
};
use stvor_wire::Code;
use stvor_wire::server::{Nack, ServerMessage, Subject};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

fn builder(url: &str) -> AppBuilder {
    App::builder().app_token("stvor_dev_test123").relay_url(url).in_memory().timeout(Duration::from_secs(5))
}

async fn pair(relay: &Fake) -> (Client, Client) {
    let app = builder(&relay.url()).open().await.unwrap();
    (app.connect("alice").await.unwrap(), app.connect("bob").await.unwrap())
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), what).await.expect("it happens in time")
}

async fn event<T>(events: &mut Events, wanted: impl Fn(Event) -> Option<T>) -> T {
    soon(async {
        loop {
            if let Some(found) = wanted(events.next().await.expect("the client is open")) {
                return found;
            }
        }
    })
    .await
}

fn code<T: std::fmt::Debug>(result: stvor::Result<T>) -> &'static str {
    result.expect_err("an error").code()
}

fn nack(send: &stvor_wire::client::Send, code: Code) -> Option<ServerMessage> {
    Some(ServerMessage::Nack(Nack {
        subject: Subject::Message(send.recipient.msg_id),
        code,
        detail: "as the test wants".into(),
        retry_after: Duration::from_millis(1),
        expected_lane: 0,
    }))
}

#[tokio::test(flavor = "multi_thread")]
async fn send_receive_and_receipts() {
    let relay = Fake::start().await;
    let (alice, bob) = pair(&relay).await;
    let mut inbox = bob.messages();
    let receipt = soon(alice.send("bob", "Hello!")).await.unwrap();
    let message = soon(inbox.next()).await.expect("a message");
    assert_eq!((message.text(), message.id), (Some("Hello!"), receipt.id()));
    assert!(receipt.status() >= DeliveryState::Accepted);
    soon(receipt.delivered()).await.unwrap();
    soon(bob.mark_read("alice", &[message.id])).await.unwrap();
    soon(receipt.read()).await.unwrap();
    soon(bob.send("alice", "Hi!")).await.unwrap();
    assert_eq!(soon(alice.messages().next()).await.unwrap().text(), Some("Hi!"));
    soon(alice.close()).await;
    soon(bob.close()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_of_a_log_in_have_their_codes() {
    let relay = Fake::start().await;
    let app = builder(&relay.url()).open().await.unwrap();
    for (said, expected) in [
        (Code::InvalidAppToken, "INVALID_APP_TOKEN"),
        (Code::AuthFailed, "AUTH_FAILED"),
        (Code::RegistrationClosed, "REGISTRATION_CLOSED"),
        (Code::UserIdTaken, "USER_ID_TAKEN"),
        (Code::IdentityHandedOver, "IDENTITY_HANDED_OVER"),
        (Code::RateLimited, "RATE_LIMITED"),
        (Code::UnsupportedVersion, "RELAY_PROTOCOL"),
        (Code::StoreUnavailable, "RELAY_UNAVAILABLE"),
        (Code::Draining, "RELAY_UNAVAILABLE"),
    ] {
        relay.end_with(Some(said));
        assert_eq!(code(soon(app.connect("alice")).await), expected, "{said:?}");
    }
    relay.end_with(None);
    soon(app.connect("alice")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_server_is_a_handshake_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let app = builder(&url).timeout(Duration::from_millis(300)).open().await.unwrap();
    let error = soon(app.connect("alice")).await.unwrap_err();
    assert_eq!(error.code(), "RELAY_UNAVAILABLE");
    assert!(error.to_string().contains("Relay handshake timeout"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_is_relay_unavailable() {
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let app = builder(&format!("ws://127.0.0.1:{port}")).open().await.unwrap();
    let error = soon(app.connect("alice")).await.unwrap_err();
    assert_eq!(error.code(), "RELAY_UNAVAILABLE");
    assert!(error.to_string().contains(&port.to_string()), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_are_no_relay_are_named_as_such() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
        "SSH-2.0-OpenSSH_9.2p1\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: bm8=\r\n\r\n",
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut request = [0; 4096];
                let _ = socket.read(&mut request).await;
                let _ = socket.write_all(answer.as_bytes()).await;
                let _ = socket.flush().await;
            }
        });
        let app = builder(&url).open().await.unwrap();
        assert_eq!(code(soon(app.connect("alice")).await), "RELAY_PROTOCOL", "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_to_a_server_without_it_is_told_and_not_hung() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("wss://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let _ = socket.read(&mut request).await;
            let _ = socket.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
        }
    });
    let app = builder(&url).open().await.unwrap();
    assert_eq!(code(soon(app.connect("alice")).await), "RELAY_PROTOCOL");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_who_does_not_appear_is_a_timeout_and_nothing_is_queued() {
    let relay = Fake::start().await;
    let (alice, _bob) = pair(&relay).await;
    let now = SendOptions { timeout: Some(Duration::ZERO), ..SendOptions::default() };
    assert_eq!(code(soon(alice.send_with("carol", "hi", now)).await), "RECIPIENT_NOT_FOUND");
    let wait = SendOptions { timeout: Some(Duration::from_millis(200)), ..SendOptions::default() };
    assert_eq!(code(soon(alice.send_with("carol", "hi", wait)).await), "RECIPIENT_TIMEOUT");
    assert_eq!(alice.pending(), 0);
    assert!(alice.history("carol").load().await.unwrap().messages.is_empty());
    assert_eq!(code(alice.wait_for_user("carol", Duration::from_millis(50)).await), "RECIPIENT_TIMEOUT");
    alice.wait_for_user("bob", Duration::from_secs(5)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_refused_before_it_is_queued() {
    let relay = Fake::start().await;
    let (alice, _bob) = pair(&relay).await;
    assert_eq!(code(alice.send("bob", vec![0; 65_537]).await), "MESSAGE_TOO_LARGE");
    alice.send("bob", vec![0; 65_536]).await.unwrap();
    assert_eq!(code(alice.send("", "x").await), "INVALID_NAME");
    assert_eq!(code(alice.send("alice", "x").await), "INVALID_ARGUMENT");
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_the_relay_refuses_for_a_while_arrive_in_order() {
    let relay = Fake::start().await;
    let (alice, bob) = pair(&relay).await;
    let mut inbox = bob.messages();
    alice.send("bob", "0").await.unwrap();
    assert_eq!(soon(inbox.next()).await.unwrap().text(), Some("0"));
    let mut events = alice.events();
    // The relay refuses two of three, and tells of gaps as the real one does.
    let expected = Arc::new(Mutex::new((None::<u64>, 0_u32)));
    relay.on_send(move |send| {
        let number = send.recipient.lane?.number.get();
        let mut state = expected.lock().unwrap();
        if send.recipient.to.user.as_str() != "bob" {
            return None;
        }
        let next = *state.0.get_or_insert(number);
        if number != next {
            return Some(ServerMessage::Nack(Nack {
                subject: Subject::Message(send.recipient.msg_id),
                code: Code::LaneGap,
                detail: String::new(),
                retry_after: Duration::ZERO,
                expected_lane: next,
            }));
        }
        state.1 += 1;
        if state.1 % 3 == 1 {
            return nack(send, Code::MailboxFull);
        }
        state.0 = Some(next + 1);
        None
    });
    let options = SendOptions { wait: SendWait::Committed, ..SendOptions::default() };
    for number in 1..=8 {
        alice.send_with("bob", number.to_string(), options).await.unwrap();
    }
    for number in 1..=8 {
        assert_eq!(soon(inbox.next()).await.unwrap().text(), Some(number.to_string().as_str()));
    }
    event(&mut events, |event| {
        matches!(event, Event::SendDelayed { code: "MAILBOX_FULL", .. }).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_right_after_another_one_is_answered_too() {
    // Long before what nobody answered goes again.
    const BOUND: Duration = Duration::from_secs(15);
    let relay = Fake::start().await;
    let (alice, bob) = pair(&relay).await;
    let mut inbox = bob.messages();
    alice.send("bob", "0").await.unwrap();
    assert_eq!(soon(inbox.next()).await.unwrap().text(), Some("0"));
    // Of each numbering it knows the first message only: all further ones leave a gap behind number 0.
    relay.on_send(|send| {
        let number = send.recipient.lane?.number.get();
        if send.recipient.to.user.as_str() != "bob" || number == 1 {
            return None;
        }
        nack(send, Code::LaneGap).map(|answer| match answer {
            ServerMessage::Nack(nack) => ServerMessage::Nack(Nack { expected_lane: 1, ..nack }),
            other => other,
        })
    });
    let options = SendOptions { wait: SendWait::Committed, ..SendOptions::default() };
    for text in ["1", "2", "3"] {
        alice.send_with("bob", text, options).await.unwrap();
        let message = tokio::time::timeout(BOUND, inbox.next()).await.expect("its gap is answered");
        assert_eq!(message.unwrap().text(), Some(text));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_accepts_nothing_that_is_sent_again_at_once_is_sent_to_after_pauses() {
    for refusal in [Code::LaneGap, Code::IdConflict] {
        let relay = Fake::start().await;
        let (alice, bob) = pair(&relay).await;
        let mut inbox = bob.messages();
        alice.send("bob", "0").await.unwrap();
        assert_eq!(soon(inbox.next()).await.unwrap().text(), Some("0"));
        let mut events = alice.events();
        let mut expected = 1_000;
        relay.on_send(move |send| {
            if send.recipient.to.user.as_str() != "bob" {
                return None;
            }
            // Never the number that comes, and each time another one.
            expected += 1;
            nack(send, refusal).map(|answer| match answer {
                ServerMessage::Nack(nack) => ServerMessage::Nack(Nack { expected_lane: expected, ..nack }),
                other => other,
            })
        });
        let options = SendOptions { wait: SendWait::Committed, ..SendOptions::default() };
        alice.send_with("bob", "1", options).await.unwrap();
        event(&mut events, |event| match event {
            Event::SendDelayed { code, .. } => (code == refusal.as_str()).then_some(()),
            _ => None,
        })
        .await;
        relay.on_send(|_| None);
        assert_eq!(soon(inbox.next()).await.unwrap().text(), Some("1"), "after {refusal:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_refused_together_are_one_refusal() {
    let relay = Fake::start().await;
    let (alice, bob) = pair(&relay).await;
    let mut inbox = bob.messages();
    alice.send("bob", "0").await.unwrap();
    assert_eq!(soon(inbox.next()).await.unwrap().text(), Some("0"));
    let mut events = alice.events();
    // As a relay with a rate does: what comes too fast is refused, and goes through when it comes again.
    let state = Mutex::new((HashSet::new(), None::<u64>));
    relay.on_send(move |send| {
        let number = send.recipient.lane?.number.get();
        if send.recipient.to.user.as_str() != "bob" {
            return None;
        }
        let (seen, next) = &mut *state.lock().unwrap();
        let expected = *next.get_or_insert(number);
        if seen.insert(send.recipient.msg_id) {
            return nack(send, Code::RateLimited);
        }
        if number != expected {
            return nack(send, Code::LaneGap).map(|answer| match answer {
                ServerMessage::Nack(nack) => ServerMessage::Nack(Nack { expected_lane: expected, ..nack }),
                other => other,
            });
        }
        *next = Some(expected + 1);
        None
    });
    let options = SendOptions { wait: SendWait::Committed, ..SendOptions::default() };
    let texts: Vec<String> = (1..=50).map(|number| number.to_string()).collect();
    let sends = texts.iter().map(|text| alice.send_with("bob", text.clone(), options));
    assert!(soon(futures::future::join_all(sends)).await.iter().all(Result::is_ok));
    for text in &texts {
        assert_eq!(soon(inbox.next()).await.unwrap().text(), Some(text.as_str()));
    }
    alice.close().await;
    let mut delays = Vec::new();
    while let Some(event) = soon(events.next()).await {
        if let Event::SendDelayed { code: "RATE_LIMITED", retry_after, .. } = event {
            delays.push(retry_after);
        }
    }
    assert!(!delays.is_empty());
    assert!(delays.iter().all(|delay| *delay <= Duration::from_secs(1)), "{delays:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_after_a_lost_connection_sends_the_same_bytes() {
    let relay = Fake::start().await;
    let (alice, bob) = pair(&relay).await;
    let mut inbox = bob.messages();
    alice.send("bob", "0").await.unwrap();
    soon(inbox.next()).await.unwrap();
    // The relay takes the message, and the connection is gone before it answers.
    let lost = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&lost);
    let cutter = relay.clone();
    relay.on_send(move |send| {
        if send.recipient.to.user.as_str() == "bob" && seen.fetch_add(1, Ordering::SeqCst) == 0 {
            let cutter = cutter.clone();
            tokio::spawn(async move { cutter.drop_user("alice") });
            // A frame that nobody waits for: no answer.
            return Some(ServerMessage::Pong { nonce: 0 });
        }
        None
    });
    let receipt = soon(alice.send("bob", "1")).await.unwrap();
    soon(receipt.delivered()).await.unwrap();
    assert_eq!(soon(inbox.next()).await.unwrap().text(), Some("1"));
    assert_eq!(lost.load(Ordering::SeqCst), 2);
    let sends: Vec<_> =
        relay.log().into_iter().filter(|send| send.recipient.to.user.as_str() == "bob").collect();
    let [.., first, second] = sends.as_slice() else { panic!("two sends") };
    assert_eq!(first, second);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_two_blobs_share_a_ratchet_key_and_number_and_all_fill_a_bucket() {
    let relay = Fake::start().await;
    let (alice, bob) = pair(&relay).await;
    let (mut at_alice, mut at_bob) = (alice.messages(), bob.messages());
    for round in 0..20 {
        alice.send("bob", vec![round; usize::from(round) * 200]).await.unwrap();
        soon(at_bob.next()).await.unwrap();
        bob.send("alice", "back").await.unwrap();
        soon(at_alice.next()).await.unwrap();
    }
    let mut positions = HashSet::new();
    for send in relay.log() {
        assert!(stvor_wire::padding::is_bucket(send.blob.len()), "{}", send.blob.len());
        assert!(positions.insert(stvor_protocol::Incoming::parse(&send.blob).unwrap().position()));
        assert!(!send.blob.windows(4).any(|window| window == b"back"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_was_altered_is_reported_and_repaired() {
    let relay = Fake::start().await;
    let (alice, bob) = pair(&relay).await;
    let mut inbox = bob.messages();
    alice.send("bob", "fine").await.unwrap();
    assert_eq!(soon(inbox.next()).await.unwrap().text(), Some("fine"));
    let mut events = bob.events();
    let altered = AtomicUsize::new(0);
    relay.on_send(move |send| {
        if send.recipient.to.user.as_str() == "bob" && altered.fetch_add(1, Ordering::SeqCst) == 0 {
            let mut blob = send.blob.to_vec();
            *blob.last_mut().unwrap() ^= 1;
            send.blob = blob.into();
        }
        None
    });
    let receipt = alice.send("bob", "altered on its way").await.unwrap();
    let requested = event(&mut events, |event| match event {
        Event::MessageUndecryptable { code, repair_requested, .. } => Some((code, repair_requested)),
        _ => None,
    })
    .await;
    assert_eq!(requested, ("UNDECRYPTABLE", true));
    let message = soon(inbox.next()).await.unwrap();
    assert_eq!((message.text(), message.id), (Some("altered on its way"), receipt.id()));
    let repaired = event(&mut events, |event| match event {
        Event::Repaired { id, .. } => Some(id),
        _ => None,
    })
    .await;
    assert_eq!(repaired, receipt.id());
    soon(receipt.delivered()).await.unwrap();
    // The session goes on.
    alice.send("bob", "next").await.unwrap();
    assert_eq!(soon(inbox.next()).await.unwrap().text(), Some("next"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_relay_delivers_twice_arrives_once() {
    let relay = Fake::start().await;
    let (alice, bob) = pair(&relay).await;
    let mut inbox = bob.messages();
    let again = relay.clone();
    relay.on_send(move |send| {
        let deliver = stvor_wire::server::Deliver {
            from: stvor_base::Address::new("alice".parse().unwrap(), stvor::DeviceId::FIRST),
            mailbox_epoch: 1,
            seq: 0,
            msg_id: send.recipient.msg_id,
            blob: send.blob.clone(),
            received_at: stvor::Timestamp::system(),
            ephemeral: false,
        };
        if send.recipient.to.user.as_str() == "bob" {
            let again = again.clone();
            tokio::spawn(async move { again.say("bob", ServerMessage::Deliver(deliver)) });
        }
        None
    });
    for number in 0..10 {
        soon(alice.send("bob", number.to_string()).await.unwrap().delivered()).await.unwrap();
    }
    alice.send("bob", "last").await.unwrap();
    let mut texts = Vec::new();
    while texts.last().is_none_or(|text| text != "last") {
        texts.push(soon(inbox.next()).await.unwrap().text().unwrap().to_owned());
    }
    let mut expected: Vec<_> = (0..10).map(|number| number.to_string()).collect();
    expected.push("last".to_owned());
    assert_eq!(texts, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_serves_the_keys_of_another_user_gets_nothing() {
    let relay = Fake::start().await;
    let (alice, bob) = pair(&relay).await;
    let mallory = builder(&relay.url()).open().await.unwrap().connect("mallory").await.unwrap();
    relay.swap("bob", "mallory");
    // The list names another user, so it is refused before anybody is asked to trust it.
    assert_eq!(code(soon(alice.send("bob", "for bob alone")).await), "BAD_DEVICE_LIST");
    assert_eq!(alice.pending(), 0);
    assert!(relay.log().is_empty());
    assert_eq!((bob.unconsumed(), mallory.unconsumed()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_verified_is_the_identity_that_was_compared_whatever_the_relay_shows_then() {
    let (relay, elsewhere) = (Fake::start().await, Fake::start().await);
    let (alice, bob) = pair(&relay).await;
    let mallory = builder(&elsewhere.url()).open().await.unwrap().connect("bob").await.unwrap();
    soon(mallory.wait_online(Duration::from_secs(10))).await.unwrap();
    let compared = alice.safety_number("bob").await.unwrap();
    assert_eq!(compared.digits(), bob.safety_number("alice").await.unwrap().digits());
    // Between comparing and marking the relay shows another identity.
    soon(async {
        while !elsewhere.has_keys("bob") || !relay.has_keys("bob") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    relay.impersonate("bob", &elsewhere);
    assert_eq!(code(alice.verify("bob").await), "IDENTITY_CHANGED");
    assert_eq!(code(alice.verify_number("bob", &compared).await), "IDENTITY_CHANGED");
    let shown = alice.safety_number("bob").await.unwrap();
    assert!(!shown.verified() && shown.digits() != compared.digits());

    // The same with a pin that a careless policy lets move. The true Bob is away: what he can not read he would have repaired,
    // and that moves such a pin, too.
    bob.close().await;
    let careless = builder(&relay.url()).on_identity_change(stvor::MismatchPolicy::Replace);
    let carol = careless.open().await.unwrap().connect("carol").await.unwrap();
    soon(async { while carol.send("bob", "pinned").await.is_err() {} }).await;
    let number = carol.safety_number("bob").await.unwrap();
    carol.verify_number("bob", &number).await.unwrap();
    assert!(carol.safety_number("bob").await.unwrap().verified());
    let other = Fake::start().await;
    let third = builder(&other.url()).open().await.unwrap().connect("bob").await.unwrap();
    soon(third.wait_online(Duration::from_secs(10))).await.unwrap();
    soon(async {
        while !other.has_keys("bob") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    relay.impersonate("bob", &other);
    let mut events = carol.events();
    carol.reset_session("bob").await.unwrap();
    event(&mut events, |event| matches!(event, Event::IdentityChanged { accepted: true, .. }).then_some(()))
        .await;
    assert_eq!(code(carol.verify_number("bob", &number).await), "IDENTITY_CHANGED");
    assert_eq!(code(carol.verify("bob").await), "IDENTITY_CHANGED");
    assert!(!carol.safety_number("bob").await.unwrap().verified());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_keeps_no_alarm_back_by_not_saying_who_rotated() {
    let (relay, elsewhere) = (Fake::start().await, Fake::start().await);
    let (alice, bob) = pair(&relay).await;
    soon(alice.send("bob", "pinned").await.unwrap().delivered()).await.unwrap();
    let mallory = builder(&elsewhere.url()).open().await.unwrap().connect("alice").await.unwrap();
    soon(mallory.wait_online(Duration::from_secs(10))).await.unwrap();
    elsewhere.impersonate("bob", &relay);
    relay.keep_rotations();
    let mut events = bob.events();
    let (cheat, from) =
        (relay.clone(), stvor_base::Address::new("alice".parse().unwrap(), stvor::DeviceId::FIRST));
    elsewhere.on_send(move |send| {
        let deliver = stvor_wire::server::Deliver {
            from: from.clone(),
            mailbox_epoch: 1,
            seq: 0,
            msg_id: send.recipient.msg_id,
            blob: send.blob.clone(),
            received_at: stvor::Timestamp::system(),
            ephemeral: false,
        };
        let cheat = cheat.clone();
        tokio::spawn(async move { cheat.say("bob", ServerMessage::Deliver(deliver)) });
        None
    });
    mallory.send("bob", "it is me").await.unwrap();
    event(&mut events, |event| matches!(event, Event::IdentityChanged { accepted: false, .. }).then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn being_superseded_ends_the_reconnecting() {
    let relay = Fake::start().await;
    let (alice, _bob) = pair(&relay).await;
    let mut events = alice.events();
    let end = stvor_wire::server::End {
        code: Code::Superseded,
        detail: String::new(),
        retry_after: Duration::ZERO,
    };
    relay.say("alice", ServerMessage::End(end));
    event(&mut events, |event| matches!(event, Event::Superseded).then_some(())).await;
    assert_eq!(alice.state(), ConnectionState::Failed("SUPERSEDED"));
    assert_eq!(code(alice.wait_online(Duration::from_millis(10)).await), "SUPERSEDED");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_comes_back_by_itself() {
    let relay = Fake::start().await;
    let (alice, bob) = pair(&relay).await;
    let mut events = bob.events();
    relay.drop_user("bob");
    event(&mut events, |event| matches!(event, Event::Reconnecting { attempt: 1, .. }).then_some(())).await;
    event(&mut events, |event| matches!(event, Event::Connected).then_some(())).await;
    event(&mut events, |event| matches!(event, Event::CaughtUp).then_some(())).await;
    assert_eq!(bob.state(), ConnectionState::Online);
    alice.send("bob", "still there?").await.unwrap();
    assert_eq!(soon(bob.messages().next()).await.unwrap().text(), Some("still there?"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_registered_before_starts_without_the_relay() {
    let directory = tempfile::tempdir().unwrap();
    let relay = Fake::start().await;
    let app = builder(&relay.url()).data_dir(directory.path()).open().await.unwrap();
    let alice = app.connect("alice").await.unwrap();
    let identity = alice.identity();
    alice.close().await;
    relay.end_with(Some(Code::StoreUnavailable));
    let alice = soon(app.connect("alice")).await.unwrap();
    assert_eq!(alice.identity(), identity);
    assert_eq!(soon(alice.send("bob", "later")).await.unwrap().status(), DeliveryState::Queued);
    let strict = ConnectOptions { require_relay: true, ..ConnectOptions::default() };
    assert_eq!(code(soon(app.connect_with("alice", strict)).await), "RELAY_UNAVAILABLE");
    assert_eq!(code(soon(app.connect("new")).await), "RELAY_UNAVAILABLE");
    let lax = ConnectOptions { allow_unregistered: true, ..ConnectOptions::default() };
    let new = soon(app.connect_with("new", lax)).await.unwrap();
    relay.end_with(None);
    let bob = builder(&relay.url()).open().await.unwrap().connect("bob").await.unwrap();
    soon(new.wait_online(Duration::from_secs(20))).await.unwrap();
    assert_eq!(soon(bob.messages().next()).await.unwrap().text(), Some("later"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_answers_no_send_stops_neither_sending_nor_reading() {
    // Together they fill what may be unanswered on one connection, and more.
    const PEERS: [&str; 4] = ["bob", "carol", "dave", "erin"];
    const EACH: usize = 64;
    let relay = Fake::start().await;
    let app = builder(&relay.url()).open().await.unwrap();
    let alice = app.connect("alice").await.unwrap();
    let mut peers = Vec::new();
    for name in PEERS {
        peers.push(app.connect(name).await.unwrap());
        soon(soon(alice.send(name, "first")).await.unwrap().delivered()).await.unwrap();
    }
    relay.on_send(|send| {
        (send.recipient.to.user.as_str() != "alice").then_some(ServerMessage::Pong { nonce: 0 })
    });
    let committed = SendOptions { wait: SendWait::Committed, ..SendOptions::default() };
    for name in PEERS {
        for number in 0..EACH {
            soon(alice.send_with(name, number.to_string(), committed)).await.unwrap();
        }
    }
    let short = SendOptions { timeout: Some(Duration::from_millis(100)), ..SendOptions::default() };
    for name in PEERS {
        let receipt = soon(alice.send_with(name, "last", short)).await.unwrap();
        assert_eq!(receipt.status(), DeliveryState::Queued);
    }
    let mut inbox = alice.messages();
    for peer in &peers {
        soon(peer.send("alice", "still there?")).await.unwrap();
        let message = soon(inbox.next()).await.unwrap();
        assert_eq!((&message.from, message.text()), (peer.user(), Some("still there?")));
    }
    relay.on_send(|_| None);
    relay.drop_user("alice");
    for peer in &peers {
        let mut inbox = peer.messages();
        let expected = (0..EACH).map(|number| number.to_string());
        let expected = std::iter::once("first".to_owned()).chain(expected).chain(["last".to_owned()]);
        for text in expected {
            assert_eq!(soon(inbox.next()).await.unwrap().text(), Some(text.as_str()), "to {}", peer.user());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_whose_deletion_was_not_confirmed_ends_deleted() {
    let relay = Fake::start().await;
    let (alice, _bob) = pair(&relay).await;
    relay.lose_deletion_answers(1);
    soon(alice.delete_account()).await.unwrap();
    assert!(!relay.knows("alice"), "the log-in after the lost answer made it anew");
    assert_eq!(code(alice.send("bob", "x").await), "CLIENT_NOT_READY");
}
