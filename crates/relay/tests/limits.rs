//! Token buckets and caps: past them a client is told to wait, and then may go on.

#![cfg(test)]

mod support;

use core::time::Duration;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use stvor_wire::client::ClientMessage;
use stvor_wire::server::Subject;
use stvor_wire::{Code, ServerMessage};
use support::{Client, Place, Raw, Server, User, accepted, address, blob, blob_of, eventually, get, refused};
use tokio::net::TcpStream;

/// Waits as long as the relay asks, as a client does.
async fn wait(retry_after: Duration) {
    assert!(retry_after > Duration::ZERO, "the relay says how long");
    assert!(retry_after <= Duration::from_secs(20));
    tokio::time::sleep(retry_after).await;
}

#[tokio::test]
async fn device_that_sends_too_much_is_told_to_wait_and_loses_nothing() {
    let server = Server::memory_with(|config| config.limits.sends_per_device = 2).await;
    let (_, mut bob) = server.user("bob").await;
    let (_, mut alice) = server.user("alice").await;
    let mut limited = 0;
    for number in 0..8 {
        let send = alice.compose(&address("bob"), blob(&number.to_string()));
        while let Err(nack) = alice.transmit(&send).await {
            assert_eq!(nack.code, Code::RateLimited);
            limited += 1;
            wait(nack.retry_after).await;
        }
        assert_eq!(bob.deliver().await.msg_id, send.recipient.msg_id);
    }
    assert!(limited > 0);
}

#[tokio::test]
async fn one_device_does_not_use_up_anothers_share() {
    let server = Server::memory_with(|config| config.limits.sends_per_device = 1).await;
    let (_, _bob) = server.user("bob").await;
    let (_, mut alice) = server.user("alice").await;
    exhaust(&mut alice).await;
    let (_, mut carol) = server.user("carol").await;
    carol.send(&address("bob"), blob("of carol")).await;
}

/// Sends signals until one is refused.
async fn exhaust(client: &mut Client) {
    for _ in 0..1000 {
        let signal = Client::signal(&address("bob"), blob("signal"));
        client.post(&signal).await;
        let refusal = client.until_pong().await.into_iter().find_map(|message| match message {
            ServerMessage::Nack(nack) => Some(nack),
            _ => None,
        });
        if let Some(nack) = refusal {
            assert_eq!(
                (nack.subject, nack.code),
                (Subject::Message(signal.recipient.msg_id), Code::RateLimited)
            );
            return;
        }
    }
    panic!("a thousand signals and no limit");
}

#[tokio::test]
async fn limit_of_a_device_outlives_its_connection() {
    let server = Server::memory_with(|config| config.limits.sends_per_device = 1).await;
    let (_, _bob) = server.user("bob").await;
    let (alice, mut client) = server.user("alice").await;
    exhaust(&mut client).await;
    client.close().await;
    let mut client = server.login(&alice).open().await;
    // At most what a second or two give back.
    for _ in 0..20 {
        client.post(&Client::signal(&address("bob"), blob("signal"))).await;
    }
    let refusals = client.until_pong().await.len();
    assert!(refusals > 0);
}

#[tokio::test]
async fn bytes_of_a_device_are_limited() {
    let server = Server::memory_with(|config| config.limits.bytes_per_device = 1024).await;
    let (_, _bob) = server.user("bob").await;
    let (_, mut alice) = server.user("alice").await;
    // The burst is sixteen seconds' worth.
    alice.send(&address("bob"), blob_of("large", 16 * 1024)).await;
    let send = alice.compose(&address("bob"), blob_of("another", 1024));
    let nack = refused(alice.transmit(&send).await, Code::RateLimited);
    wait(nack.retry_after).await;
    accepted(alice.transmit(&send).await);
}

#[tokio::test]
async fn devices_of_an_app_share_its_limit_and_other_apps_have_their_own() {
    let server = Server::memory_with(|config| config.limits.sends_per_app = 1).await;
    let (_, _bob) = server.user("bob").await;
    let (_, mut alice) = server.user("alice").await;
    let (_, mut carol) = server.user("carol").await;
    exhaust(&mut alice).await;
    exhaust(&mut carol).await;
    let token = "stvor_dev_other";
    let app = stvor_wire::token::app_of(token).unwrap();
    let dave = User::of_app(&app, "dave");
    let mut dave = server.login(&dave).token(token).open().await;
    let to = dave.address.clone();
    dave.send(&to, blob("to myself")).await;
}

#[tokio::test]
async fn requests_of_a_device_are_limited() {
    let server = Server::memory_with(|config| config.limits.requests_per_device = 1).await;
    let (_, mut alice) = server.user("alice").await;
    for _ in 0..5 {
        alice.status("bob").await;
    }
    let mut refusal = None;
    for _ in 0..20 {
        if let Err(nack) = alice.fetch("bob").await
            && nack.code == Code::RateLimited
        {
            refusal = Some(nack);
            break;
        }
    }
    wait(refusal.unwrap().retry_after).await;
    refused(alice.fetch("bob").await, Code::RecipientNotFound);
}

#[tokio::test]
async fn requests_that_wait_for_answers_are_bounded_per_connection() {
    let server = Server::memory_with(|config| config.limits.requests_per_device = 100_000).await;
    let (_, mut alice) = server.user("alice").await;
    let mut waiting = 0;
    for number in 0..200 {
        let fetch = alice.fetch_of(&format!("nobody-{number}"), Duration::from_secs(600));
        alice.say(&ClientMessage::FetchBundle(fetch)).await;
        waiting += 1;
    }
    let refused = alice.until_pong().await;
    assert!(
        refused.len() >= 200 - stvor_relay::limits::REQUESTS_PER_CONNECTION,
        "{} of {waiting}",
        refused.len()
    );
    for answer in refused {
        assert!(matches!(answer, ServerMessage::Nack(nack) if nack.code == Code::TooMany));
    }
}

#[tokio::test]
async fn logins_of_an_app_are_limited() {
    let server = Server::memory_with(|config| config.limits.logins_per_app = 1).await;
    let bob = User::new("bob");
    let mut refusal = None;
    for _ in 0..20 {
        match server.login(&bob).send_only().attempt().await {
            Ok(client) => client.close().await,
            Err(end) => {
                refusal = Some(end);
                break;
            }
        }
    }
    let end = refusal.unwrap();
    assert_eq!(end.code, Code::RateLimited);
    wait(end.retry_after).await;
    server.login(&bob).open().await;
}

#[tokio::test]
async fn connections_are_bounded_and_a_closed_one_makes_room() {
    let server = Server::memory_with(|config| config.limits.connections = 2).await;
    let (_, bob) = server.user("bob").await;
    let (_, _alice) = server.user("alice").await;
    let third = Raw::upgrade(&server.place, TcpStream::connect(server.place.address).await.unwrap()).await;
    assert!(third.is_err());
    bob.close().await;
    let carol = User::new("carol");
    eventually("room", || async {
        let socket = TcpStream::connect(server.place.address).await.unwrap();
        let raw = Raw::upgrade(&server.place, socket).await.ok()?;
        server.login(&carol).on(raw).await.ok()
    })
    .await;
}

#[tokio::test]
async fn sockets_that_never_log_in_count_too() {
    let server = Server::memory_with(|config| config.limits.connections = 3).await;
    let mut open = Vec::new();
    for _ in 0..10 {
        let socket = TcpStream::connect(server.place.address).await.unwrap();
        open.extend(Raw::upgrade(&server.place, socket).await.ok());
    }
    assert!(open.len() <= 3, "{} strangers hold a socket", open.len());
}

/// An address of this machine that is not loopback, which limits exempt.
fn own_address() -> Option<IpAddr> {
    // Connecting a datagram socket sends nothing; it only asks for the route.
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("198.51.100.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

/// A relay that is reached from another address than loopback.
async fn reached_from_outside(change: impl FnOnce(&mut stvor_relay::Config)) -> Option<(Server, Place)> {
    let Some(ip) = own_address() else {
        println!("skipped: this machine has no address but loopback, which the limits exempt");
        return None;
    };
    let server = Server::memory_with(|config| {
        config.listen = ([0, 0, 0, 0], 0).into();
        change(config);
    })
    .await;
    let place = Place::of(SocketAddr::new(ip, server.handle.local_addr().port()));
    Some((server, place))
}

#[tokio::test]
async fn connections_of_one_address_are_bounded() {
    let Some((server, place)) =
        reached_from_outside(|config| config.limits.connections_per_address = 2).await
    else {
        return;
    };
    let connect = async || Raw::upgrade(&place, TcpStream::connect(place.address).await.unwrap()).await;
    let first = connect().await.unwrap();
    let _second = connect().await.unwrap();
    assert!(connect().await.is_err());
    let local = Place::of(SocketAddr::new([127, 0, 0, 1].into(), place.address.port()));
    Raw::open(&local).await;
    first.cut();
    eventually("room", || async { connect().await.ok() }).await;
    drop(server);
}

#[tokio::test]
async fn http_requests_of_one_address_are_limited_with_the_standard_headers() {
    let Some((_server, place)) = reached_from_outside(|config| config.limits.connects_per_address = 1).await
    else {
        return;
    };
    // One connection with many requests, since connections are limited alike.
    let answers = support::many(place.address, "/livez", 30).await;
    let limited = answers.iter().find(|answer| answer.status == 429).expect("thirty requests and no limit");
    limited.problem(Code::RateLimited);
    let seconds: u64 = limited.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=20).contains(&seconds));
    assert!(limited.header("ratelimit").unwrap().contains(";t="));
    assert!(limited.header("ratelimit").unwrap().contains("r=0"));
    assert!(limited.header("ratelimit-policy").unwrap().contains(";q="));
    let local = SocketAddr::new([127, 0, 0, 1].into(), place.address.port());
    assert_eq!(get(local, "/livez").await.status, 200, "probes of the machine itself are free");
}
