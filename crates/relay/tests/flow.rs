//! How much a device is offered at once, on which connection, and how much its mailbox holds.

#![cfg(test)]

mod support;

use core::time::Duration;

use stvor_relay::Config;
use stvor_wire::client::{ClientMessage, Credit, Hold};
use stvor_wire::limits::CAPABILITY_CLONES;
use stvor_wire::{Code, ServerMessage};
use support::{
    Client, Login, Raw, Server, User, accepted, address, app, blob, blob_of, both, refused, settled, soon,
    text_of, texts,
};

#[tokio::test]
async fn window_of_messages_bounds_what_is_delivered_unacknowledged() {
    for server in both().await {
        let (bob, client) = server.user("bob").await;
        client.close().await;
        let (_, mut alice) = server.user("alice").await;
        for number in 0..140 {
            alice.send(&address("bob"), blob(&number.to_string())).await;
        }
        let mut client = server.login(&bob).open().await;
        let window = client.ready.limits.window_messages as usize;
        assert_eq!(window, 128);
        let first = client.deliver_many(window).await;
        assert_eq!(client.until_pong().await, [], "the window is full");
        alice.send(&address("bob"), blob("live")).await;
        assert_eq!(client.until_pong().await, [], "a live message is no exception");
        client.ack(&first[..5]).await;
        let next = client.deliver_many(5).await;
        assert_eq!(texts(&next), ["128", "129", "130", "131", "132"]);
        assert_eq!(client.until_pong().await, []);
        client.ack(&first[5..]).await;
        client.ack(&next).await;
        assert_eq!(
            client.deliver_many(8).await.last().map(|last| text_of(&last.blob)).as_deref(),
            Some("live")
        );
    }
}

#[tokio::test]
async fn mail_of_a_held_sender_leaves_the_window_to_others_and_comes_on_the_next_connection() {
    for server in both().await {
        let (bob, client) = server.user("bob").await;
        client.close().await;
        let (_, mut eve) = server.user("eve").await;
        let (_, mut alice) = server.user("alice").await;
        for number in 0..140 {
            eve.send(&address("bob"), blob(&number.to_string())).await;
        }
        alice.send(&address("bob"), blob("behind them")).await;
        let mut client = server.login(&bob).open().await;
        let first = client.deliver_many(128).await;
        assert_eq!(client.until_pong().await, [], "the window is full");
        client.say(&ClientMessage::Hold(Hold { msg_ids: vec![first[40].msg_id] })).await;
        let behind = client.deliver().await;
        assert_eq!(texts(std::slice::from_ref(&behind)), ["behind them"]);
        eve.send(&address("bob"), blob("140")).await;
        alice.send(&address("bob"), blob("live")).await;
        let live = client.deliver().await;
        assert_eq!(texts(std::slice::from_ref(&live)), ["live"]);
        // What was stored of the held sender is acknowledged all the same.
        client.ack(&first[..1]).await;
        client.ack(&[behind, live]).await;
        assert_eq!(client.until_pong().await, []);
        client.close().await;

        let mut client = server.login(&bob).open().await;
        let rest = client.deliver_many(128).await;
        client.ack(&rest).await;
        let last = client.deliver_many(12).await;
        let numbers: Vec<String> = (1..=140).map(|number| number.to_string()).collect();
        assert_eq!(texts(&[rest, last].concat()), numbers);
    }
}

#[tokio::test]
async fn credit_of_zero_pauses_and_more_credit_resumes() {
    for server in both().await {
        let (_, mut bob) = server.user("bob").await;
        let (_, mut alice) = server.user("alice").await;
        bob.say(&ClientMessage::Credit(Credit { window_messages: 0, window_bytes: 0 })).await;
        bob.until_pong().await;
        for number in 0..5 {
            alice.send(&address("bob"), blob(&number.to_string())).await;
        }
        assert_eq!(bob.until_pong().await, []);
        bob.say(&ClientMessage::Credit(Credit { window_messages: 2, window_bytes: 1 << 20 })).await;
        let two = bob.deliver_many(2).await;
        assert_eq!(texts(&two), ["0", "1"]);
        assert_eq!(bob.until_pong().await, []);
        bob.say(&ClientMessage::Credit(Credit { window_messages: u32::MAX, window_bytes: u32::MAX })).await;
        assert_eq!(texts(&bob.deliver_many(3).await), ["2", "3", "4"]);
    }
}

#[tokio::test]
async fn window_of_bytes_bounds_what_is_delivered_unacknowledged() {
    for server in both().await {
        let (_, mut bob) = server.user("bob").await;
        let (_, mut alice) = server.user("alice").await;
        bob.say(&ClientMessage::Credit(Credit { window_messages: 128, window_bytes: 40 * 1024 })).await;
        bob.until_pong().await;
        for number in 0..4 {
            alice.send(&address("bob"), blob_of(&number.to_string(), 16 * 1024)).await;
        }
        let two = bob.deliver_many(2).await;
        assert_eq!(bob.until_pong().await, []);
        bob.ack(&two[..1]).await;
        assert_eq!(texts(&[bob.deliver().await]), ["2"]);
        assert_eq!(bob.until_pong().await, []);
        bob.ack(&two[1..]).await;
        assert_eq!(texts(&[bob.deliver().await]), ["3"]);
    }
}

#[tokio::test]
async fn backlog_larger_than_the_outbound_cap_reaches_a_device_that_reads() {
    for server in both().await {
        let (bob, client) = server.user("bob").await;
        client.close().await;
        let (_, mut alice) = server.user("alice").await;
        // Twice the window, eight times the outbound cap.
        let size = 64 * 1024;
        for number in 0..32 {
            alice.send(&address("bob"), blob_of(&number.to_string(), size)).await;
        }
        let mut client = server.login(&bob).open().await;
        let first = client.deliver_many(16).await;
        assert_eq!(client.until_pong().await, [], "1 MiB is un-ACKed");
        client.ack(&first).await;
        let rest = client.deliver_many(16).await;
        let expected: Vec<String> = (16..32).map(|number| number.to_string()).collect();
        assert_eq!(texts(&rest), expected);
    }
}

#[tokio::test]
async fn client_that_does_not_read_is_ended_and_its_mail_waits() {
    let server = Server::memory_with(|config| config.limits.requests_per_device = 100_000).await;
    let (bob, client) = server.user("bob").await;
    client.close().await;
    let (_, mut alice) = server.user("alice").await;
    alice.send(&address("bob"), blob("waits")).await;
    let many = User::with_devices(&app(), "many", 16);
    for device in 1..=16 {
        server.login(&many).device(device).open().await.upload_set(0, 0).await;
    }
    let login = server.login(&bob);
    let mut deaf =
        login.on(Raw::open_narrow(&server.place).await).await.unwrap_or_else(|end| panic!("{end:?}"));
    // Each answer holds sixteen bundles: more than 20 KiB. The client asks, and never reads.
    let asking = async {
        loop {
            let fetch = deaf.fetch_of("many", Duration::ZERO);
            if !deaf.say(&ClientMessage::FetchBundle(fetch)).await || server.handle.connections() < 2 {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    soon("the end of the deaf connection", asking).await;
    drop(deaf);
    let mut client = server.login(&bob).open().await;
    assert_eq!(texts(&[client.deliver().await]), ["waits"]);
}

#[tokio::test]
async fn later_receiving_connection_takes_over() {
    for server in both().await {
        let (bob, mut first) = server.user("bob").await;
        let (_, mut alice) = server.user("alice").await;
        alice.send(&address("bob"), blob("1")).await;
        first.deliver().await;
        let mut second = server.login(&bob).open().await;
        assert_eq!(first.end().await.code, Code::Superseded);
        assert_eq!(texts(&[second.deliver().await]), ["1"], "un-ACKed mail is offered again");
        alice.send(&address("bob"), blob("2")).await;
        assert_eq!(texts(&[second.deliver().await]), ["2"]);
    }
}

#[tokio::test]
async fn second_store_of_a_device_is_kept_off_while_the_first_is_connected() {
    for server in both().await {
        let (bob, first) = server.user("bob").await;
        first.close().await;
        let first = server.login(&bob).store(1).open().await;
        let sender = server.login(&bob).store(1).send_only().open().await;
        for mode in [server.login(&bob).store(2), server.login(&bob).store(2).send_only()] {
            let end = mode.on(Raw::open(&server.place).await).await.map(|_| ()).unwrap_err();
            assert_eq!((end.code, end.retry_after.is_zero()), (Code::CloneDetected, false));
        }
        first.close().await;
        let end = server.login(&bob).store(2).on(Raw::open(&server.place).await).await.map(|_| ());
        assert_eq!(end.unwrap_err().code, Code::CloneDetected, "a sender is there still");
        sender.close().await;
        // The relay may notice a moment later that it is gone.
        soon("the end of the first store", async {
            while server.login(&bob).store(2).on(Raw::open(&server.place).await).await.is_err() {}
        })
        .await;
    }
}

#[tokio::test]
async fn the_connected_one_is_told_once_of_a_second_store_and_stays() {
    for server in both().await {
        let (bob, first) = server.user("bob").await;
        first.close().await;
        for hears in [true, false] {
            let capabilities = if hears { vec![CAPABILITY_CLONES.to_owned()] } else { vec![] };
            let mut live = Login { capabilities, ..server.login(&bob).store(1) }.open().await;
            for _ in 0..5 {
                let end = server.login(&bob).store(2).refused().await;
                assert_eq!(end.code, Code::CloneDetected);
            }
            if hears {
                let seen = |message: &ServerMessage| (*message == ServerMessage::CloneSeen).then_some(());
                live.expect("CLONE_SEEN", seen).await;
            }
            // However often the other one tries, that is all, and the connection works.
            assert!(live.say(&ClientMessage::Ping { nonce: 7 }).await);
            live.expect("PONG", |message| match message {
                ServerMessage::CloneSeen => panic!("told a second time, or without having asked for it"),
                ServerMessage::Pong { nonce } => (*nonce == 7).then_some(()),
                _ => None,
            })
            .await;
            live.close().await;
        }
    }
}

#[tokio::test]
async fn connection_that_only_sends_receives_nothing_and_takes_nothing_over() {
    let server = Server::memory().await;
    let (bob, mut receiver) = server.user("bob").await;
    let mut sender = server.login(&bob).send_only().open().await;
    let (_, mut alice) = server.user("alice").await;
    alice.send(&address("bob"), blob("for the receiver")).await;
    assert_eq!(texts(&[receiver.deliver().await]), ["for the receiver"]);
    assert_eq!(sender.until_pong().await, []);
    sender.send(&address("alice"), blob("from the sender")).await;
    assert_eq!(alice.deliver().await.from, bob.address());
}

#[tokio::test]
async fn full_mailbox_refuses_until_it_is_half_empty() {
    for durable in [false, true] {
        let small = |config: &mut Config| config.limits.mailbox_messages = 10;
        let server =
            if durable { Server::durable_with(small).await } else { Server::memory_with(small).await };
        let (bob, client) = server.user("bob").await;
        client.close().await;
        let (_, mut alice) = server.user("alice").await;
        for number in 1..=10 {
            alice.send(&address("bob"), blob(&number.to_string())).await;
        }
        let eleventh = alice.compose(&address("bob"), blob("11"));
        let nack = refused(alice.transmit(&eleventh).await, Code::MailboxFull);
        assert!(nack.retry_after > Duration::ZERO);
        let mut client = server.login(&bob).open().await;
        let all = client.deliver_many(10).await;
        client.ack(&all[..4]).await;
        settled(&mut client).await;
        refused(alice.transmit(&eleventh).await, Code::MailboxFull);
        client.ack(&all[4..5]).await;
        settled(&mut client).await;
        accepted(alice.transmit(&eleventh).await);
        assert_eq!(texts(&[client.deliver().await]), ["11"]);
    }
}

#[tokio::test]
async fn mailbox_is_bounded_in_bytes_too() {
    let server = Server::memory_with(|config| config.limits.mailbox_bytes = 4 * 1024).await;
    let (_, client) = server.user("bob").await;
    client.close().await;
    let (_, mut alice) = server.user("alice").await;
    for number in 1..=4 {
        alice.send(&address("bob"), blob_of(&number.to_string(), 1024)).await;
    }
    let fifth = alice.compose(&address("bob"), blob("5"));
    refused(alice.transmit(&fifth).await, Code::MailboxFull);
}

#[tokio::test]
async fn monthly_quota_of_an_app_is_refused_with_its_code() {
    let server = Server::durable_with(|config| config.limits.monthly_messages = Some(3)).await;
    let (_, _bob) = server.user("bob").await;
    let (_, mut alice) = server.user("alice").await;
    for number in 1..=3 {
        alice.send(&address("bob"), blob(&number.to_string())).await;
    }
    let fourth = alice.compose(&address("bob"), blob("4"));
    refused(alice.transmit(&fourth).await, Code::QuotaExceeded);
    let server = server.restart().await;
    let alice = User::new("carol");
    let mut alice = server.login(&alice).open().await;
    let fifth = alice.compose(&address("bob"), blob("5"));
    refused(alice.transmit(&fifth).await, Code::QuotaExceeded);
}

#[tokio::test]
async fn ephemeral_message_reaches_who_listens_and_is_kept_for_nobody() {
    for server in both().await {
        let (bob, mut listening) = server.user("bob").await;
        let (_, mut alice) = server.user("alice").await;
        alice.post(&Client::signal(&address("bob"), blob("typing"))).await;
        let signal = listening.deliver().await;
        assert_eq!((text_of(&signal.blob).as_str(), signal.ephemeral, signal.seq), ("typing", true, 0));
        listening.close().await;
        alice.post(&Client::signal(&address("bob"), blob("typing to nobody"))).await;
        assert_eq!(alice.until_pong().await, [], "no answer");
        let mut client = server.login(&bob).open().await;
        assert_eq!(client.mail(&mut alice).await, []);
        let missing = Client::signal(&address("nobody"), blob("typing"));
        refused(alice.transmit(&missing).await, Code::RecipientNotFound);
    }
}
