//! Faults in the program and pressure on it: a panic ends one conversation for a moment, and a flood is refused.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{event, pair, relay, soon};
use metrics::{Counter, CounterFn, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use stvor::Event;

/// An application's recorder with a fault: it panics when a conversation says that it encrypted, as often as it is told to.
#[derive(Default)]
struct Faulty {
    left: AtomicU64,
}

static FAULTY: std::sync::OnceLock<Arc<Faulty>> = std::sync::OnceLock::new();

struct Encrypted;

impl CounterFn for Encrypted {
    fn increment(&self, count: u64) {
        if count == 0 {
            return;
        }
        let faulty = FAULTY.get().unwrap();
        let take = |left: u64| left.checked_sub(1);
        let took = faulty.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take);
        assert!(took.is_err(), "a fault on purpose");
    }

    fn absolute(&self, _: u64) {}
}

impl Recorder for Faulty {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        match key.name() {
            "stvor_messages_encrypted_total" => Counter::from_arc(Arc::new(Encrypted)),
            _ => Counter::noop(),
        }
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_a_conversation_ends_it_for_a_moment_and_nothing_of_it_is_lost() {
    let faulty = FAULTY.get_or_init(Arc::default);
    metrics::set_global_recorder(Arc::clone(faulty)).unwrap();
    let relay = relay().await;
    let (alice, bob) = pair(&relay.url()).await;
    let mut at_bob = bob.messages();
    let mut events = alice.events();
    let first = soon(alice.send("bob", "0")).await.unwrap();
    soon(first.delivered()).await.unwrap();
    assert_eq!(soon(at_bob.next()).await.unwrap().text(), Some("0"));

    for attempt in 1..=2 {
        // The fault comes after the commit and before the wire: what the store has is sent once the lane is back.
        faulty.left.store(1, Ordering::SeqCst);
        let lost = format!("lost in a fault {attempt}");
        // It is in the outbox, and that was said before the fault: it only comes later.
        soon(alice.send("bob", &*lost)).await.unwrap();
        let failed = event(&mut events, |event| match event {
            Event::ConversationFailed { peer, attempt, .. } => Some((peer.to_string(), attempt)),
            _ => None,
        });
        assert_eq!(failed.await, ("bob".to_owned(), attempt));
        event(&mut events, |event| matches!(event, Event::ConversationRevived { .. }).then_some(())).await;
        let after = format!("after it {attempt}");
        let receipt = soon(alice.send("bob", &*after)).await.unwrap();
        let mut got = BTreeSet::new();
        for _ in 0..2 {
            let message = soon(at_bob.next()).await.unwrap();
            assert!(got.insert(message.text().unwrap().to_owned()), "each comes once");
        }
        assert_eq!(got, BTreeSet::from([lost, after]));
        // Nobody encrypts when the next fault is set up.
        soon(receipt.delivered()).await.unwrap();
    }
    // Nothing is counted as under way any more: closing does not wait out its bound.
    soon(alice.close()).await;
    bob.close().await;
    relay.shutdown().await;
}
