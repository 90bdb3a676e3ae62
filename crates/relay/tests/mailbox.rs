//! Messages: accepted, kept, delivered in order, acknowledged, never lost and never doubled.

#![cfg(test)]

mod support;

use core::num::NonZeroU64;
use core::time::Duration;
use std::sync::Arc;

use stvor_base::Timestamp;
use stvor_relay::{Config, Relay};
use stvor_testkit::{Checker, VirtualClock, temp_dir};
use stvor_wire::client::{Ack, AckOne, ClientMessage, Credit, Lane, Recipient, SendMany};
use stvor_wire::server::{Acceptance, Deliver, Registration, Resumed, Subject};
use stvor_wire::{Code, ServerMessage};
use support::{
    Client, Login, Server, User, accepted, address, app, blob, both, eventually, new_id, process, refused,
    settled, text_of, texts,
};

#[tokio::test]
async fn relay_process_says_where_it_listens_and_serves() {
    process::serve_or_check("relay_process_says_where_it_listens_and_serves").await;
}

#[tokio::test]
async fn message_to_a_connected_device_arrives_with_its_senders_address() {
    for server in both().await {
        let (_, mut bob) = server.user("bob").await;
        let (alice, mut client) = server.user("alice").await;
        for number in 0..20 {
            let text = format!("message {number}");
            let id = client.send(&address("bob"), blob(&text)).await;
            let message = bob.deliver().await;
            assert_eq!((&message.from, message.msg_id), (&alice.address(), id));
            assert_eq!((text_of(&message.blob), message.ephemeral), (text, false));
            assert_eq!(message.mailbox_epoch, bob.ready.mailbox_epoch);
        }
    }
}

#[tokio::test]
async fn messages_to_an_absent_device_wait_for_it_in_order() {
    for server in both().await {
        let (bob, client) = server.user("bob").await;
        client.close().await;
        let (_, mut alice) = server.user("alice").await;
        let mut sent = Vec::new();
        for number in 0..200 {
            sent.push(format!("{number}"));
            alice.send(&address("bob"), blob(&format!("{number}"))).await;
        }
        let mut client = server.login(&bob).open().await;
        let mut got = Vec::new();
        while got.len() < sent.len() {
            let message = client.deliver().await;
            client.ack(core::slice::from_ref(&message)).await;
            got.push(message);
        }
        assert_eq!(texts(&got), sent);
        let seqs: Vec<u64> = got.iter().map(|message| message.seq).collect();
        assert!(seqs.is_sorted() && seqs[0] > 0, "{seqs:?}");
        assert_eq!(client.mail(&mut alice).await, []);
    }
}

#[tokio::test]
async fn accepted_means_durable_even_if_the_device_acknowledged_before() {
    for server in both().await {
        let (bob, client) = server.user("bob").await;
        client.close().await;
        let (_, mut alice) = server.user("alice").await;
        let send = alice.compose(&address("bob"), blob("to nobody online"));
        assert_eq!(accepted(alice.transmit(&send).await), Acceptance::Durable);
        let mut bob = server.login(&bob).open().await;
        let send = alice.compose(&address("bob"), blob("to a device that acknowledges"));
        alice.post(&send).await;
        let messages = bob.deliver_many(2).await;
        bob.ack(&messages).await;
        assert_eq!(accepted(alice.answer(send.recipient.msg_id).await), Acceptance::Durable);
        assert_eq!(accepted(alice.transmit(&send).await), Acceptance::Duplicate);
    }
}

#[tokio::test]
async fn message_that_is_sent_twice_arrives_once() {
    for server in both().await {
        let (bob, mut receiver) = server.user("bob").await;
        let (alice, mut client) = server.user("alice").await;
        let send = client.compose(&address("bob"), blob("once"));
        accepted(client.transmit(&send).await);
        assert_eq!(accepted(client.transmit(&send).await), Acceptance::Duplicate);
        let message = receiver.deliver().await;
        receiver.ack(&[message]).await;
        settled(&mut receiver).await;
        // Also on another connection, and after it was read.
        client.close().await;
        let mut client = server.login(&alice).open().await;
        assert_eq!(accepted(client.transmit(&send).await), Acceptance::Duplicate);
        assert_eq!(receiver.mail(&mut client).await, []);
        receiver.close().await;
        let mut receiver = server.login(&bob).open().await;
        assert_eq!(receiver.mail(&mut client).await, []);
    }
}

#[tokio::test]
async fn same_id_with_other_bytes_is_a_conflict() {
    for server in both().await {
        let (_, mut bob) = server.user("bob").await;
        let (_, mut alice) = server.user("alice").await;
        let send = alice.compose(&address("bob"), blob("first"));
        accepted(alice.transmit(&send).await);
        let mut other = alice.compose(&address("bob"), blob("second"));
        other.recipient.msg_id = send.recipient.msg_id;
        refused(alice.transmit(&other).await, Code::IdConflict);
        // The refused message took no lane number.
        other.recipient.msg_id = new_id();
        accepted(alice.transmit(&other).await);
        assert_eq!(texts(&bob.mail(&mut alice).await), ["first", "second"]);
    }
}

#[tokio::test]
async fn two_senders_may_choose_the_same_id() {
    for server in both().await {
        let (bob, client) = server.user("bob").await;
        client.close().await;
        let (_, mut alice) = server.user("alice").await;
        let (_, mut carol) = server.user("carol").await;
        let first = alice.compose(&address("bob"), blob("of alice"));
        let mut second = carol.compose(&address("bob"), blob("of carol"));
        second.recipient.msg_id = first.recipient.msg_id;
        assert_eq!(accepted(alice.transmit(&first).await), Acceptance::Durable);
        assert_eq!(accepted(carol.transmit(&second).await), Acceptance::Durable);
        let mut bob = server.login(&bob).open().await;
        let first = bob.deliver().await;
        bob.ack(core::slice::from_ref(&first)).await;
        let second = bob.deliver().await;
        assert_eq!(texts(&[first, second]), ["of alice", "of carol"]);
    }
}

#[tokio::test]
async fn lane_number_that_skips_is_refused_and_says_which_is_expected() {
    for server in both().await {
        let (_, mut bob) = server.user("bob").await;
        let (_, mut alice) = server.user("alice").await;
        let first = alice.compose(&address("bob"), blob("1"));
        let second = alice.compose(&address("bob"), blob("2"));
        let third = alice.compose(&address("bob"), blob("3"));
        assert_eq!(refused(alice.transmit(&second).await, Code::LaneGap).expected_lane, 1);
        accepted(alice.transmit(&first).await);
        assert_eq!(refused(alice.transmit(&third).await, Code::LaneGap).expected_lane, 2);
        accepted(alice.transmit(&second).await);
        accepted(alice.transmit(&third).await);
        assert_eq!(texts(&bob.deliver_many(3).await), ["1", "2", "3"]);
    }
}

#[tokio::test]
async fn pipelined_messages_behind_a_refused_one_are_all_refused() {
    let server = Server::memory().await;
    let (_, mut bob) = server.user("bob").await;
    let (_, mut alice) = server.user("alice").await;
    let mut sends: Vec<_> =
        (1..=4).map(|number| alice.compose(&address("bob"), blob(&number.to_string()))).collect();
    sends[1].blob = vec![0; 100].into();
    for send in &sends {
        alice.post(send).await;
    }
    accepted(alice.answer(sends[0].recipient.msg_id).await);
    refused(alice.answer(sends[1].recipient.msg_id).await, Code::BadPadding);
    for late in &sends[2..] {
        assert_eq!(refused(alice.answer(late.recipient.msg_id).await, Code::LaneGap).expected_lane, 2);
    }
    sends[1].blob = blob("2").into();
    for send in &sends[1..] {
        accepted(alice.transmit(send).await);
    }
    assert_eq!(texts(&bob.mail(&mut alice).await), ["1", "2", "3", "4"]);
}

#[tokio::test]
async fn new_lane_epoch_begins_at_one() {
    for server in both().await {
        let (_, mut bob) = server.user("bob").await;
        let (_, mut alice) = server.user("alice").await;
        alice.send(&address("bob"), blob("old 1")).await;
        let late = alice.compose(&address("bob"), blob("old 2"));
        alice.new_lane_epoch(&address("bob"));
        let first = alice.compose(&address("bob"), blob("new 1"));
        let second = alice.compose(&address("bob"), blob("new 2"));
        refused(alice.transmit(&second).await, Code::LaneGap);
        accepted(alice.transmit(&first).await);
        accepted(alice.transmit(&late).await);
        accepted(alice.transmit(&second).await);
        assert_eq!(texts(&bob.deliver_many(4).await), ["old 1", "new 1", "old 2", "new 2"]);
        // Only the last two epochs are remembered.
        alice.new_lane_epoch(&address("bob"));
        alice.send(&address("bob"), blob("newest 1")).await;
        let mut forgotten = late.clone();
        forgotten.recipient.msg_id = new_id();
        let lane = forgotten.recipient.lane.unwrap();
        forgotten.recipient.lane = Some(Lane { number: NonZeroU64::new(3).unwrap(), ..lane });
        assert_eq!(refused(alice.transmit(&forgotten).await, Code::LaneGap).expected_lane, 1);
    }
}

#[tokio::test]
async fn lower_counter_is_accepted_and_the_highest_is_remembered() {
    for server in both().await {
        let (_, _bob) = server.user("bob").await;
        let (alice, mut client) = server.user("alice").await;
        assert_eq!(client.ready.highest_counter, 0);
        let mut first = client.compose(&address("bob"), blob("1"));
        (first.counter, first.counter_mac) = (70, Some([7; 32]));
        let mut second = client.compose(&address("bob"), blob("2"));
        (second.counter, second.counter_mac) = (60, Some([6; 32]));
        accepted(client.transmit(&first).await);
        accepted(client.transmit(&second).await);
        client.close().await;
        let ready = server.login(&alice).open().await.ready.clone();
        assert_eq!((ready.highest_counter, ready.counter_mac), (70, Some([7; 32])));
    }
}

#[tokio::test]
async fn acknowledged_messages_are_gone_and_others_stay() {
    for server in both().await {
        let (bob, client) = server.user("bob").await;
        client.close().await;
        let (_, mut alice) = server.user("alice").await;
        for number in 1..=6 {
            alice.send(&address("bob"), blob(&number.to_string())).await;
        }
        let mut client = server.login(&bob).open().await;
        let all = client.deliver_many(6).await;
        client.ack(&[all[1].clone(), all[4].clone()]).await;
        settled(&mut client).await;
        client.close().await;
        let mut client = server.login(&bob).open().await;
        let rest = client.deliver_many(4).await;
        assert_eq!(texts(&rest), ["1", "3", "4", "6"]);
        client.ack_up_to(&rest[2]).await;
        settled(&mut client).await;
        client.close().await;
        let mut client = server.login(&bob).open().await;
        assert_eq!(texts(&client.mail(&mut alice).await), ["6"]);
    }
}

#[tokio::test]
async fn cumulative_ack_covers_only_what_this_connection_delivered() {
    for server in both().await {
        let (user, mut bob) = server.user("bob").await;
        let (_, mut alice) = server.user("alice").await;
        bob.say(&ClientMessage::Credit(Credit { window_messages: 0, window_bytes: 0 })).await;
        bob.until_pong().await;
        let mut ids = Vec::new();
        for number in 1..=3 {
            ids.push(alice.send(&address("bob"), blob(&number.to_string())).await);
        }
        bob.say(&ClientMessage::Credit(Credit { window_messages: 1, window_bytes: 1 << 20 })).await;
        let first = bob.deliver().await;
        // A place two further on is the third message's, which was not delivered yet.
        bob.ack_up_to(&Deliver { seq: first.seq + 2, msg_id: ids[2], ..first }).await;
        settled(&mut bob).await;
        let mut bob = server.login(&user).open().await;
        let left = texts(&bob.mail(&mut alice).await);
        assert_eq!(left[..2], ["1", "2"]);
    }
}

#[tokio::test]
async fn ack_with_the_id_of_another_row_is_refused_and_deletes_nothing() {
    for server in both().await {
        let (bob, client) = server.user("bob").await;
        client.close().await;
        let (_, mut alice) = server.user("alice").await;
        alice.send(&address("bob"), blob("1")).await;
        alice.send(&address("bob"), blob("2")).await;
        let mut client = server.login(&bob).open().await;
        let all = client.deliver_many(2).await;
        let wrong = Deliver { msg_id: all[1].msg_id, ..all[0].clone() };
        client.ack(core::slice::from_ref(&wrong)).await;
        let nack = client
            .expect("NACK", |message| match message {
                ServerMessage::Nack(nack) => Some(nack.clone()),
                _ => None,
            })
            .await;
        assert_eq!((nack.subject, nack.code), (Subject::Message(wrong.msg_id), Code::AckMismatch));
        client.close().await;
        let mut client = server.login(&bob).open().await;
        assert_eq!(texts(&client.deliver_many(2).await), ["1", "2"]);
    }
}

#[tokio::test]
async fn ack_of_another_mailbox_epoch_deletes_nothing() {
    let server = Server::memory().await;
    let (bob, mut client) = server.user("bob").await;
    let (_, mut alice) = server.user("alice").await;
    alice.send(&address("bob"), blob("kept")).await;
    let message = client.deliver().await;
    let one = AckOne { seq: message.seq, msg_id: message.msg_id };
    let mailbox_epoch = client.ready.mailbox_epoch ^ 1;
    client.say(&ClientMessage::Ack(Ack { mailbox_epoch, up_to: None, single: vec![one] })).await;
    settled(&mut client).await;
    client.close().await;
    let mut client = server.login(&bob).open().await;
    assert_eq!(texts(&[client.deliver().await]), ["kept"]);
}

#[tokio::test]
async fn devices_of_one_user_have_a_mailbox_each() {
    let server = Server::memory().await;
    let bob = User::with_devices(&app(), "bob", 2);
    let mut first = server.login(&bob).open().await;
    let mut second = server.login(&bob).device(2).open().await;
    let (_, mut alice) = server.user("alice").await;
    alice.send(&bob.device(1), blob("for one")).await;
    alice.send(&bob.device(2), blob("for two")).await;
    assert_eq!(texts(&[first.deliver().await]), ["for one"]);
    assert_eq!(texts(&[second.deliver().await]), ["for two"]);
    assert_eq!(first.until_pong().await, []);
    assert_eq!(second.until_pong().await, []);
    let send = alice.compose(&bob.device(3), blob("for three"));
    refused(alice.transmit(&send).await, Code::RecipientNotFound);
}

#[tokio::test]
async fn resume_cursor_says_whether_something_was_lost() {
    let clock = VirtualClock::at(Timestamp::system());
    let (ticking, config) = (clock.clone(), Config::mock(0));
    let handle = Relay::start_with_clock(config, Arc::new(move || ticking.now())).await.unwrap();
    let place = support::Place::of(handle.local_addr());
    let (bob, alice) = (User::new("bob"), User::new("alice"));
    let client = Login::new(&place, &bob).open().await;
    assert_eq!(client.ready.resumed, Resumed::Full);
    let cursor = client.ready.resume_cursor.clone();
    assert!(!cursor.is_empty());
    client.close().await;

    let client = Login::new(&place, &bob).cursor(cursor.clone()).open().await;
    assert_eq!(client.ready.resumed, Resumed::Resumed);
    client.close().await;
    let mut forged = cursor.to_vec();
    forged[20] ^= 1;
    for unknown in [forged.into(), b"made up".as_slice().into()] {
        let client = Login::new(&place, &bob).cursor(unknown).open().await;
        assert_eq!(client.ready.resumed, Resumed::Full);
        client.close().await;
    }
    // Somebody else's cursor says nothing.
    let mut sender = Login::new(&place, &alice).cursor(cursor.clone()).open().await;
    assert_eq!(sender.ready.resumed, Resumed::Full);

    let mut short_lived = sender.compose(&address("bob"), blob("expires"));
    short_lived.ttl = Duration::from_secs(60);
    accepted(sender.transmit(&short_lived).await);
    sender.send(&address("bob"), blob("stays")).await;
    clock.advance(Duration::from_secs(61));
    let resumed = eventually("the sweep", || async {
        let client = Login::new(&place, &bob).send_only().cursor(cursor.clone()).open().await;
        let resumed = client.ready.resumed;
        client.close().await;
        (resumed != Resumed::Resumed).then_some(resumed)
    })
    .await;
    assert_eq!(resumed, Resumed::Gap);
    let mut client = Login::new(&place, &bob).cursor(cursor.clone()).open().await;
    assert_eq!(texts(&[client.deliver().await]), ["stays"]);
    client.close().await;
    // A cursor is good for a quarter of an hour.
    clock.advance(Duration::from_secs(15 * 60));
    let client = Login::new(&place, &bob).cursor(cursor).open().await;
    assert_eq!(client.ready.resumed, Resumed::Full);
}

#[tokio::test]
async fn message_expires_after_the_retention_time_whatever_its_sender_asks() {
    let clock = VirtualClock::at(Timestamp::system());
    let directory = temp_dir().unwrap();
    let mut config = Config { development: true, ..Config::durable(directory.path().join("relay.db"), 0) };
    config.limits.retention_days = 1;
    let ticking = clock.clone();
    let handle = Relay::start_with_clock(config, Arc::new(move || ticking.now())).await.unwrap();
    let place = support::Place::of(handle.local_addr());
    let (bob, alice) = (User::new("bob"), User::new("alice"));
    let client = Login::new(&place, &bob).open().await;
    assert_eq!(client.ready.limits.retention, Duration::from_secs(24 * 3600));
    client.close().await;
    let mut sender = Login::new(&place, &alice).open().await;
    let mut forever = sender.compose(&address("bob"), blob("for ever"));
    forever.ttl = Duration::from_secs(365 * 24 * 3600);
    accepted(sender.transmit(&forever).await);
    clock.advance(Duration::from_secs(24 * 3600 - 10));
    let mut client = Login::new(&place, &bob).open().await;
    assert_eq!(texts(&[client.deliver().await]), ["for ever"], "not yet");
    client.close().await;
    clock.advance(Duration::from_secs(10));
    let sender = tokio::sync::Mutex::new(sender);
    eventually("the expiry", || async {
        let mut client = Login::new(&place, &bob).open().await;
        let mail = client.mail(&mut *sender.lock().await).await;
        client.close().await;
        mail.is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn one_blob_for_many_is_answered_and_delivered_one_by_one() {
    for server in both().await {
        let (_, mut bob) = server.user("bob").await;
        let (_, mut carol) = server.user("carol").await;
        let (_, mut alice) = server.user("alice").await;
        let mut recipients = Vec::new();
        for to in ["bob", "carol", "nobody"] {
            let lane = Some(alice.lane(&address(to)));
            recipients.push(Recipient { to: address(to), msg_id: new_id(), lane });
        }
        let ids: Vec<_> = recipients.iter().map(|recipient| recipient.msg_id).collect();
        let counter = alice.counter();
        let (blob, counter_mac) = (blob("for all").into(), None);
        let many = SendMany { recipients, blob, counter, counter_mac, ttl: Duration::ZERO };
        alice.say(&ClientMessage::SendMany(many.clone())).await;
        accepted(alice.answer(ids[0]).await);
        accepted(alice.answer(ids[1]).await);
        refused(alice.answer(ids[2]).await, Code::RecipientNotFound);
        assert_eq!(bob.deliver().await.msg_id, ids[0]);
        assert_eq!(carol.deliver().await.msg_id, ids[1]);
        alice.say(&ClientMessage::SendMany(many)).await;
        assert_eq!(accepted(alice.answer(ids[0]).await), Acceptance::Duplicate);
    }
}

#[tokio::test]
async fn durable_relay_keeps_users_keys_mail_and_counters_over_a_restart() {
    let server = Server::durable().await;
    let (bob, mut client) = server.user("bob").await;
    let keys = client.upload_set(30, 20).await;
    client.close().await;
    let (alice, mut sender) = server.user("alice").await;
    for number in 1..=5 {
        sender.send(&address("bob"), blob(&number.to_string())).await;
    }
    let mut duplicate = sender.compose(&address("bob"), blob("6"));
    duplicate.counter_mac = Some([3; 32]);
    accepted(sender.transmit(&duplicate).await);
    let next = sender.compose(&address("bob"), blob("7"));
    let server = server.restart().await;

    let mut sender = server.login(&alice).known().open().await;
    assert_eq!(
        (sender.ready.registration, sender.ready.highest_counter, sender.ready.counter_mac),
        (Registration::Known, duplicate.counter, duplicate.counter_mac)
    );
    assert_eq!(accepted(sender.transmit(&duplicate).await), Acceptance::Duplicate);
    assert_eq!(accepted(sender.transmit(&next).await), Acceptance::Durable, "the lane goes on");
    let mut client = server.login(&bob).known().open().await;
    assert_eq!(client.ready.keys, keys);
    let got = client.deliver_many(7).await;
    assert_eq!(texts(&got), ["1", "2", "3", "4", "5", "6", "7"]);
    client.ack(&got[..6]).await;
    settled(&mut client).await;
    let epoch = client.ready.mailbox_epoch;

    let server = server.restart().await;
    let mut client = server.login(&bob).open().await;
    assert_eq!(client.ready.mailbox_epoch, epoch, "nothing was lost, so the numbering goes on");
    let mut sender = server.login(&alice).open().await;
    assert_eq!(texts(&client.mail(&mut sender).await), ["7"]);
}

#[tokio::test]
async fn second_relay_on_one_database_is_refused_with_a_code() {
    use stvor_base::ErrorCode as _;
    let server = Server::durable().await;
    let error = Relay::start(server.config.clone()).await.unwrap_err();
    assert_eq!(error.code(), "STORE_IN_USE", "{error}");
}

/// Sends what `to_send` holds from the front, as many as the relay takes before it dies, and drops what is accepted.
async fn send_until_killed(
    client: &mut Client,
    unanswered: &mut Vec<stvor_wire::client::Send>,
    checker: &Checker,
    enough: usize,
) {
    let mut posted = 0;
    let mut taken = 0;
    while taken < enough && !unanswered.is_empty() {
        while posted < unanswered.len().min(64) {
            if !client.post(&unanswered[posted]).await {
                return;
            }
            posted += 1;
        }
        let send = unanswered.remove(0);
        posted -= 1;
        accepted(client.answer(send.recipient.msg_id).await);
        checker.accepted("alice>bob", &send.recipient.msg_id.to_string());
        taken += 1;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_accepted_survives_kills_and_arrives_once_and_in_order() {
    const ME: &str = "relay_process_says_where_it_listens_and_serves";
    let directory = temp_dir().unwrap();
    let checker = Checker::default();
    let (alice, bob) = (User::new("alice"), User::new("bob"));
    let mut relay = process::Child::start(ME, directory.path());
    let mut bob_seen = std::collections::HashSet::new();
    Login::new(&relay.place, &bob).open().await.close().await;
    let mut client = Login::new(&relay.place, &alice).open().await;
    let mut unanswered = Vec::new();
    for number in 0..400 {
        let send = client.compose(&address("bob"), blob(&number.to_string()));
        checker.sent("alice>bob", &send.recipient.msg_id.to_string(), &send.blob);
        unanswered.push(send);
    }
    let mut highest = 0;
    for round in 0..5_usize {
        assert!(client.ready.highest_counter >= highest, "accepted counters are remembered");
        let before = unanswered.len();
        send_until_killed(&mut client, &mut unanswered, &checker, 30 + 17 * round).await;
        assert!(unanswered.len() < before);
        highest = unanswered[0].counter - 1;
        // In the middle of the stream: up to 64 sends are on the way, unanswered.
        relay.kill();
        relay = process::Child::start(ME, directory.path());
        if round % 2 == 0 {
            receive_all(&relay, &bob, &checker, &mut bob_seen, 40).await;
        }
        client = Login::new(&relay.place, &alice).known().open().await;
    }
    let left = unanswered.len();
    send_until_killed(&mut client, &mut unanswered, &checker, left).await;
    assert!(unanswered.is_empty());
    receive_all(&relay, &bob, &checker, &mut bob_seen, usize::MAX).await;
    assert_eq!(checker.verdict(), []);
    let counts = checker.counts();
    assert_eq!((counts.accepted, counts.received), (400, 400));
}

/// Receives what is there, at most `most`, records what was not seen before (a device recognises repeats), and
/// acknowledges all.
async fn receive_all(
    relay: &process::Child,
    bob: &User,
    checker: &Checker,
    seen: &mut std::collections::HashSet<stvor_base::MessageId>,
    most: usize,
) {
    let mut client = Login::new(&relay.place, bob).known().open().await;
    let mut got = 0;
    while got < most {
        let messages: Vec<Deliver> = client
            .until_pong()
            .await
            .into_iter()
            .filter_map(|message| match message {
                ServerMessage::Deliver(deliver) => Some(deliver),
                _ => None,
            })
            .collect();
        if messages.is_empty() {
            if most != usize::MAX || checker.missing() == 0 {
                break;
            }
            continue;
        }
        got += messages.len();
        for message in &messages {
            if seen.insert(message.msg_id) {
                checker.received("alice>bob", &message.msg_id.to_string(), &message.blob);
            }
        }
        client.ack(&messages).await;
    }
    settled(&mut client).await;
    client.close().await;
}
