//! Messages from device to device, on a relay in memory and on a durable one.

mod common;

use core::time::Duration;

use common::*;
use stvor_wire::client::{Ack, AckOne, Credit, Recipient, SendMany};
use stvor_wire::server::{Acceptance, Registration, Resumed, Subject};
use stvor_wire::{ClientMessage, Code, ServerMessage};

/// Runs a test on both kinds of relay.
macro_rules! on_both {
    ($name:ident, $url:ident, $body:block) => {
        mod $name {
            use super::*;

            async fn run($url: String) $body

            #[tokio::test]
            async fn in_memory() {
                let relay = mock().await;
                run(relay.url()).await;
                relay.shutdown().await;
            }

            #[tokio::test]
            async fn durable() {
                let folder = tempfile::tempdir().unwrap();
                let relay = common::durable(&folder).await;
                run(relay.url()).await;
                relay.shutdown().await;
            }
        }
    };
}

on_both!(a_message_is_accepted_delivered_and_gone_after_its_ack, url, {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let mut to_bob = Flow::new(&bob);
    let mut bob_client = bob.log_in(&url).await;
    assert_eq!(bob_client.ready.registration, Registration::New);
    let mut alice_client = alice.log_in(&url).await;
    for text in ["one", "two", "three"] {
        let message = to_bob.next(&blob(text));
        let id = message.recipient.msg_id;
        alice_client.send(message).await;
        assert_eq!(alice_client.accepted().await, (id, Acceptance::Durable));
        let delivered = bob_client.delivered().await;
        assert_eq!((delivered.msg_id, &delivered.from, text_of(&delivered).as_str()), (id, &alice.address, text));
        assert_eq!(delivered.mailbox_epoch, bob_client.ready.mailbox_epoch);
        bob_client.ack(&[delivered]).await;
    }
    bob_client.hears_nothing().await;
    drop(bob_client);
    let mut again = bob.log_in(&url).await;
    assert_eq!(again.ready.registration, Registration::Known);
    again.hears_nothing().await;
});

on_both!(a_message_waits_for_a_device_that_is_away_and_comes_in_order, url, {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    drop(bob.log_in(&url).await);
    let mut alice_client = alice.log_in(&url).await;
    let mut to_bob = Flow::new(&bob);
    for number in 0..300 {
        alice_client.send(to_bob.next(&blob(&number.to_string()))).await;
        assert_eq!(alice_client.accepted().await.1, Acceptance::Durable);
    }
    let mut bob_client = bob.log_in(&url).await;
    let mut last_seq = 0;
    for number in 0..300 {
        let delivered = bob_client.delivered().await;
        assert_eq!(text_of(&delivered), number.to_string());
        assert!(delivered.seq > last_seq);
        last_seq = delivered.seq;
        bob_client.ack(&[delivered]).await;
    }
    bob_client.hears_nothing().await;
});

on_both!(what_was_not_acked_is_offered_again, url, {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let mut to_bob = Flow::new(&bob);
    let mut bob_client = bob.log_in(&url).await;
    let mut alice_client = alice.log_in(&url).await;
    for text in ["kept", "lost"] {
        alice_client.send(to_bob.next(&blob(text))).await;
        alice_client.accepted().await;
    }
    let kept = bob_client.delivered().await;
    bob_client.delivered().await;
    bob_client.ack(&[kept]).await;
    bob_client.hears_nothing().await;
    drop(bob_client);
    let mut again = bob.log_in(&url).await;
    assert_eq!(text_of(&again.delivered().await), "lost");
    again.hears_nothing().await;
});

on_both!(a_retry_is_a_duplicate_and_other_bytes_under_its_id_are_a_conflict, url, {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let mut to_bob = Flow::new(&bob);
    let mut bob_client = bob.log_in(&url).await;
    let mut alice_client = alice.log_in(&url).await;
    let message = to_bob.next(&blob("once"));
    let id = message.recipient.msg_id;
    alice_client.send(message.clone()).await;
    assert_eq!(alice_client.accepted().await, (id, Acceptance::Durable));
    alice_client.send(message.clone()).await;
    assert_eq!(alice_client.accepted().await, (id, Acceptance::Duplicate));
    let mut changed = message.clone();
    changed.blob = blob("other").into();
    alice_client.send(changed).await;
    let nack = alice_client.refused().await;
    assert_eq!((nack.subject, nack.code), (Subject::Message(id), Code::IdConflict));
    let delivered = bob_client.delivered().await;
    assert_eq!(text_of(&delivered), "once");
    bob_client.ack(&[delivered]).await;
    bob_client.hears_nothing().await;
    // The id is remembered after the message is gone.
    alice_client.send(message).await;
    assert_eq!(alice_client.accepted().await, (id, Acceptance::Duplicate));
    bob_client.hears_nothing().await;
});

on_both!(a_skipped_lane_number_is_refused_and_the_expected_one_named, url, {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let mut bob_client = bob.log_in(&url).await;
    let mut alice_client = alice.log_in(&url).await;
    let lane = Flow::new(&bob);
    for (number, expected) in [(2, Some(1)), (1, None), (3, Some(2)), (2, None), (2, Some(3)), (3, None)] {
        alice_client.send(lane.at(number, &blob("x"))).await;
        match expected {
            None => assert_eq!(alice_client.accepted().await.1, Acceptance::Durable),
            Some(expected) => {
                let nack = alice_client.refused().await;
                assert_eq!((nack.code, nack.expected_lane), (Code::LaneGap, expected), "{number}");
            }
        }
    }
    for _ in 0..3 {
        bob_client.delivered().await;
    }
    bob_client.hears_nothing().await;
});

on_both!(blobs_that_are_no_bucket_are_refused, url, {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let mut bob_client = bob.log_in(&url).await;
    let mut alice_client = alice.log_in(&url).await;
    let mut to_bob = Flow::new(&bob);
    for length in [0, 1, 511, 513, 1023, 2000, 16_385, 73_727] {
        alice_client.send(to_bob.at(1, &vec![1; length])).await;
        assert_eq!(alice_client.refused().await.code, Code::BadPadding, "{length}");
    }
    for length in [512, 1024, 2048, 4096, 16_384, 17_408, 73_728] {
        alice_client.send(to_bob.next(&vec![1; length])).await;
        assert_eq!(alice_client.accepted().await.1, Acceptance::Durable, "{length}");
        let delivered = bob_client.delivered().await;
        assert_eq!(delivered.blob.len(), length);
        bob_client.ack(&[delivered]).await;
    }
});

on_both!(the_window_holds_back_what_is_not_acked, url, {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let mut to_bob = Flow::new(&bob);
    let mut bob_client = bob.log_in(&url).await;
    bob_client.say(&ClientMessage::Credit(Credit { window_messages: 2, window_bytes: 1_000_000 })).await;
    bob_client.hears_nothing().await;
    let mut alice_client = alice.log_in(&url).await;
    for number in 0..5 {
        alice_client.send(to_bob.next(&blob(&number.to_string()))).await;
        alice_client.accepted().await;
    }
    let mut expected = 0;
    for batch in [2, 2, 1] {
        let mut received = Vec::new();
        for _ in 0..batch {
            let delivered = bob_client.delivered().await;
            assert_eq!(text_of(&delivered), expected.to_string());
            expected += 1;
            received.push(delivered);
        }
        bob_client.hears_nothing().await;
        bob_client.ack(&received).await;
    }
    bob_client.hears_nothing().await;
    bob_client.say(&ClientMessage::Credit(Credit { window_messages: 0, window_bytes: 0 })).await;
    bob_client.hears_nothing().await;
    alice_client.send(to_bob.next(&blob("paused"))).await;
    alice_client.accepted().await;
    bob_client.hears_nothing().await;
    bob_client.say(&ClientMessage::Credit(Credit { window_messages: 1, window_bytes: 1 })).await;
    assert_eq!(text_of(&bob_client.delivered().await), "paused");
});

on_both!(an_ack_of_another_message_deletes_nothing, url, {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let mut to_bob = Flow::new(&bob);
    drop(bob.log_in(&url).await);
    let mut alice_client = alice.log_in(&url).await;
    alice_client.send(to_bob.next(&blob("stays"))).await;
    alice_client.accepted().await;
    let mut bob_client = bob.log_in(&url).await;
    let delivered = bob_client.delivered().await;
    let wrong = fresh_id();
    let epoch = bob_client.ready.mailbox_epoch;
    let ack = |mailbox_epoch, msg_id| {
        ClientMessage::Ack(Ack {
            mailbox_epoch,
            up_to: None,
            single: vec![AckOne { seq: delivered.seq, msg_id }],
        })
    };
    bob_client.say(&ack(epoch, wrong)).await;
    let nack = bob_client.refused().await;
    assert_eq!((nack.subject, nack.code), (Subject::Message(wrong), Code::AckMismatch));
    bob_client.say(&ack(epoch ^ 1, delivered.msg_id)).await;
    bob_client.hears_nothing().await;
    drop(bob_client);
    let mut again = bob.log_in(&url).await;
    assert_eq!(text_of(&again.delivered().await), "stays");
});

on_both!(a_cumulative_ack_deletes_what_was_delivered_with_a_seq, url, {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let mut to_bob = Flow::new(&bob);
    drop(bob.log_in(&url).await);
    let mut alice_client = alice.log_in(&url).await;
    for number in 0..10 {
        alice_client.send(to_bob.next(&blob(&number.to_string()))).await;
        alice_client.accepted().await;
    }
    let mut bob_client = bob.log_in(&url).await;
    let mut received = Vec::new();
    for _ in 0..10 {
        received.push(bob_client.delivered().await);
    }
    let up_to = Some(AckOne { seq: received[6].seq, msg_id: received[6].msg_id });
    let mailbox_epoch = bob_client.ready.mailbox_epoch;
    bob_client.say(&ClientMessage::Ack(Ack { mailbox_epoch, up_to, single: Vec::new() })).await;
    bob_client.hears_nothing().await;
    drop(bob_client);
    let mut again = bob.log_in(&url).await;
    for number in 7..10 {
        assert_eq!(text_of(&again.delivered().await), number.to_string());
    }
    again.hears_nothing().await;
});

on_both!(one_blob_reaches_many_mailboxes, url, {
    let alice = Person::new("alice");
    let mut alice_client = alice.log_in(&url).await;
    let people: Vec<Person> = (0..5).map(|n| Person::new(&format!("friend {n}"))).collect();
    let mut clients = Vec::new();
    for person in &people {
        clients.push(person.log_in(&url).await);
    }
    let nobody = Person::new("nobody");
    let recipients: Vec<Recipient> =
        people.iter().chain([&nobody]).map(|person| Flow::new(person).next(&[]).recipient).collect();
    let ids: Vec<_> = recipients.iter().map(|to| to.msg_id).collect();
    let many = SendMany { recipients, blob: blob("all").into(), counter: 1, ttl: Duration::ZERO };
    alice_client.say(&ClientMessage::SendMany(many)).await;
    let mut accepted = Vec::new();
    for _ in 0..6 {
        match alice_client.hear().await {
            ServerMessage::Accepted { msg_id, .. } => accepted.push(msg_id),
            ServerMessage::Nack(nack) => {
                assert_eq!((nack.subject, nack.code), (Subject::Message(ids[5]), Code::RecipientNotFound));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(accepted, ids[..5]);
    for (client, id) in clients.iter_mut().zip(&ids) {
        assert_eq!(client.delivered().await.msg_id, *id);
    }
});

on_both!(an_ephemeral_message_is_for_whoever_listens_now, url, {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let mut bob_client = bob.log_in(&url).await;
    let mut alice_client = alice.log_in(&url).await;
    let mut signal = Flow::new(&bob).next(&blob("typing"));
    signal.recipient.lane = None;
    alice_client.send(signal.clone()).await;
    let delivered = bob_client.delivered().await;
    assert!(delivered.ephemeral && delivered.seq == 0);
    drop(bob_client);
    alice_client.hears_nothing().await;
    let mut again = bob.log_in(&url).await;
    again.hears_nothing().await;
});

on_both!(a_later_connection_takes_over_and_the_earlier_one_is_told, url, {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let mut first = bob.log_in(&url).await;
    let mut send_only =
        bob.try_log_in(&url, TOKEN, |auth| auth.mode = stvor_wire::client::Mode::SendOnly).await.unwrap();
    let mut second = bob.log_in(&url).await;
    assert_eq!(first.raw.hear_end().await, Code::Superseded);
    let mut alice_client = alice.log_in(&url).await;
    alice_client.send(Flow::new(&bob).next(&blob("hello"))).await;
    alice_client.accepted().await;
    assert_eq!(text_of(&second.delivered().await), "hello");
    send_only.hears_nothing().await;
});

on_both!(a_cursor_resumes_and_a_foreign_or_changed_one_only_offers_everything, url, {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let alice_client = alice.log_in(&url).await;
    let bob_client = bob.log_in(&url).await;
    assert_eq!(bob_client.ready.resumed, Resumed::Full);
    let cursor = bob_client.ready.resume_cursor.clone();
    drop(bob_client);
    let with = |cursor: bytes::Bytes| {
        let (bob, url) = (&bob, &url);
        async move {
            let client = bob.try_log_in(url, TOKEN, |auth| auth.resume_cursor = cursor).await.unwrap();
            client.ready.resumed
        }
    };
    assert_eq!(with(cursor.clone()).await, Resumed::Resumed);
    assert_eq!(with(cursor.clone()).await, Resumed::Resumed, "a replay does no harm");
    let mut changed = cursor.to_vec();
    changed[20] ^= 1;
    assert_eq!(with(changed.into()).await, Resumed::Full);
    assert_eq!(with(alice_client.ready.resume_cursor.clone()).await, Resumed::Full);
});

on_both!(the_highest_counter_is_told_at_log_in, url, {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    drop(bob.log_in(&url).await);
    let mut alice_client = alice.log_in(&url).await;
    assert_eq!(alice_client.ready.highest_counter, 0);
    let mut to_bob = Flow::new(&bob);
    for counter in [5, 6, 40] {
        let mut message = to_bob.next(&blob("x"));
        message.counter = counter;
        alice_client.send(message).await;
        alice_client.accepted().await;
    }
    drop(alice_client);
    assert_eq!(alice.log_in(&url).await.ready.highest_counter, 40);
});

on_both!(many_senders_to_one_reader_keep_each_senders_order, url, {
    let bob = Person::new("bob");
    let mut bob_client = bob.log_in(&url).await;
    let senders = (0..8).map(|n| {
        let (url, to_bob) = (url.clone(), Flow::new(&bob));
        tokio::spawn(async move {
            let person = Person::new(&format!("sender {n}"));
            let mut client = person.log_in(&url).await;
            let mut to_bob = to_bob;
            for number in 0..100 {
                client.send(to_bob.next(&blob(&format!("{n} {number}")))).await;
            }
            for _ in 0..100 {
                assert_eq!(client.accepted().await.1, Acceptance::Durable);
            }
        })
    });
    let senders: Vec<_> = senders.collect();
    let mut next = [0; 8];
    for _ in 0..800 {
        let delivered = bob_client.delivered().await;
        let text = text_of(&delivered);
        let (sender, number) = text.split_once(' ').unwrap();
        let sender: usize = sender.parse().unwrap();
        assert_eq!(number, next[sender].to_string());
        next[sender] += 1;
        bob_client.ack(&[delivered]).await;
    }
    for sender in senders {
        sender.await.unwrap();
    }
    bob_client.hears_nothing().await;
    drop(bob_client);
    bob.log_in(&url).await.hears_nothing().await;
});
