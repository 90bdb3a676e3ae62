//! Faults in the program and pressure on it: a panic ends one conversation for a moment, and a flood is refused.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod common;
#[path = "common/fake.rs"]
mod fake;

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use common::{app, event, pair, relay, soon};
use fake::Fake;
use metrics::{Counter, CounterFn, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use stvor::{Client, ConnectionState, Event, Events, SendOptions, SendWait};
use tokio::sync::MutexGuard;

const ENCRYPTED: &str = "stvor_messages_encrypted_total";
const DUPLICATE: &str = "stvor_messages_duplicate_total";
const REJECTED: &str = "stvor_messages_rejected_total";
const REPAIRED: &str = "stvor_messages_repaired_total";
const CONNECTIONS: &str = "stvor_relay_connections_total";

/// An application's recorder with faults: it panics when a counter rises that is named here, so often.
#[derive(Default)]
struct Faulty {
    left: Mutex<HashMap<String, u64>>,
}

static FAULTY: OnceLock<Arc<Faulty>> = OnceLock::new();
/// The recorder is the process's: one test has it at a time.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

async fn recorder() -> MutexGuard<'static, ()> {
    let alone = ALONE.lock().await;
    FAULTY.get_or_init(|| {
        let faulty = Arc::<Faulty>::default();
        metrics::set_global_recorder(Arc::clone(&faulty)).unwrap();
        faulty
    });
    FAULTY.get().unwrap().left.lock().unwrap().clear();
    alone
}

/// The next `times` rises of a counter are faults.
fn arm(counter: &str, times: u64) {
    FAULTY.get().unwrap().left.lock().unwrap().insert(counter.to_owned(), times);
}

struct Trap(String);

impl CounterFn for Trap {
    fn increment(&self, count: u64) {
        if count == 0 {
            return;
        }
        let armed = {
            let mut left = FAULTY.get().unwrap().left.lock().unwrap();
            let left = left.entry(self.0.clone()).or_default();
            let armed = *left > 0;
            *left = left.saturating_sub(1);
            armed
        };
        assert!(!armed, "a fault on purpose");
    }

    fn absolute(&self, _: u64) {}
}

impl Recorder for Faulty {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(Arc::new(Trap(key.name().to_owned())))
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

async fn fault_of(events: &mut Events, who: &str) -> u32 {
    event(events, |event| match event {
        Event::ConversationFailed { peer, attempt, .. } if peer.as_str() == who => Some(attempt),
        _ => None,
    })
    .await
}

async fn given_up(events: &mut Events, who: &str) -> (&'static str, bool) {
    event(events, |event| match event {
        Event::MessageUndecryptable { peer, code, repair_requested } if peer.as_str() == who => {
            Some((code, repair_requested))
        }
        _ => None,
    })
    .await
}

async fn acknowledged(fake: &Fake, user: &str) {
    soon(async {
        while fake.waiting(user) > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

async fn says(client: &Client, to: &str, text: &str) {
    soon(client.send(to, text)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_a_conversation_ends_it_for_a_moment_and_nothing_of_it_is_lost() {
    let _alone = recorder().await;
    let relay = relay().await;
    let (alice, bob) = pair(&relay.url()).await;
    let mut at_bob = bob.messages();
    let mut events = alice.events();
    let first = soon(alice.send("bob", "0")).await.unwrap();
    soon(first.delivered()).await.unwrap();
    assert_eq!(soon(at_bob.next()).await.unwrap().text(), Some("0"));

    for attempt in 1..=2 {
        // The fault comes after the commit and before the wire: what the store has is sent once the lane is back.
        arm(ENCRYPTED, 1);
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

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_meets_a_fault_each_time_is_given_up_and_what_came_with_it_is_not() {
    let _alone = recorder().await;
    let fake = Fake::start().await;
    let (alice, bob) = pair(&fake.url()).await;
    let carol = app(&fake.url()).await.connect("carol").await.unwrap();
    let mut at_bob = bob.messages();
    let mut events = bob.events();
    says(&alice, "bob", "first").await;
    says(&carol, "bob", "first").await;
    for _ in 0..2 {
        assert_eq!(soon(at_bob.next()).await.unwrap().text(), Some("first"));
    }
    acknowledged(&fake, "bob").await;
    acknowledged(&fake, "alice").await;

    // Whatever finds a message known is a fault from now on.
    let index = fake.log().iter().position(|send| send.recipient.to.user.as_str() == "bob").unwrap();
    arm(DUPLICATE, u64::MAX);
    fake.deliver_again("alice", index, None);
    assert_eq!(fault_of(&mut events, "alice").await, 1);
    // It rests, others go on; what comes behind it waits for it, and is not taken for it.
    says(&carol, "bob", "others go on").await;
    assert_eq!(soon(at_bob.next()).await.unwrap().text(), Some("others go on"));
    says(&alice, "bob", "behind it").await;
    assert_eq!(fault_of(&mut events, "alice").await, 2);
    assert_eq!(fault_of(&mut events, "alice").await, 3);
    assert_eq!(given_up(&mut events, "alice").await, ("UNDECRYPTABLE", true));
    assert_eq!(soon(at_bob.next()).await.unwrap().text(), Some("behind it"));
    acknowledged(&fake, "bob").await;
    recorder_is_quiet();
    alice.close().await;
    bob.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_comes_again_after_a_fault_takes_one_place_in_the_inbox() {
    let _alone = recorder().await;
    let fake = Fake::start().await;
    let (alice, bob) = pair(&fake.url()).await;
    let mut events = bob.events();
    let first = soon(alice.send("bob", "first")).await.unwrap();
    soon(first.delivered()).await.unwrap();
    let altered = AtomicBool::new(false);
    fake.on_send(move |send| {
        if send.recipient.to.user.as_str() == "bob" && !altered.swap(true, Ordering::SeqCst) {
            let mut blob = send.blob.to_vec();
            *blob.last_mut().unwrap() ^= 1;
            send.blob = blob.into();
        }
        None
    });
    // When it is sent again its place is taken by the time of the fault, and it is not stored.
    arm(REPAIRED, 1);
    says(&alice, "bob", "altered on its way").await;
    assert_eq!(fault_of(&mut events, "alice").await, 1);
    event(&mut events, |event| matches!(event, Event::Repaired { .. }).then_some(())).await;
    assert_eq!(bob.unconsumed(), 2);
    let mut at_bob = bob.messages();
    for text in ["first", "altered on its way"] {
        assert_eq!(soon(at_bob.next()).await.unwrap().text(), Some(text));
    }
    alice.close().await;
    bob.close().await;
}

fn recorder_is_quiet() {
    FAULTY.get().unwrap().left.lock().unwrap().clear();
}

#[tokio::test(flavor = "multi_thread")]
async fn group_mail_that_meets_a_fault_each_time_is_given_up_and_orders_are_answered_meanwhile() {
    let _alone = recorder().await;
    let fake = Fake::start().await;
    let (alice, bob) = pair(&fake.url()).await;
    let group = soon(alice.create_group("friends", ["bob"])).await.unwrap();
    let mut events = bob.events();
    let mut at_bob = bob.messages();
    soon(group.send("first")).await.unwrap();
    assert_eq!(soon(at_bob.next()).await.unwrap().text(), Some("first"));
    acknowledged(&fake, "bob").await;
    let sent = fake.log();
    let to_all = sent.iter().rposition(|send| send.recipient.to.user.as_str() == "bob").unwrap();

    arm(REJECTED, u64::MAX);
    fake.deliver_again("alice", to_all, Some(stvor_base::MessageId::from_bytes([9; 16])));
    for attempt in 1..=3 {
        let failed = event(&mut events, |event| match event {
            Event::TaskFailed { task: "groups", attempt, .. } => Some(attempt),
            _ => None,
        });
        assert_eq!(failed.await, attempt);
        assert_eq!(soon(bob.groups()).await.unwrap().len(), 1, "what the application asks is answered");
    }
    assert_eq!(given_up(&mut events, "alice").await, ("UNDECRYPTABLE", false));
    recorder_is_quiet();
    soon(group.send("after it")).await.unwrap();
    assert_eq!(soon(at_bob.next()).await.unwrap().text(), Some("after it"));
    alice.close().await;
    bob.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_to_members_outlives_faults_and_one_who_rests_holds_up_nobody() {
    const MESSAGES: usize = 30;
    let _alone = recorder().await;
    let relay = relay().await;
    let (alice, bob) = pair(&relay.url()).await;
    let carol = app(&relay.url()).await.connect("carol").await.unwrap();
    let group = soon(alice.create_group("friends", ["bob", "carol"])).await.unwrap();
    let (mut at_bob, mut at_carol) = (bob.messages(), carol.messages());
    soon(group.send("first")).await.unwrap();
    for messages in [&mut at_bob, &mut at_carol] {
        assert_eq!(soon(messages.next()).await.unwrap().text(), Some("first"));
    }
    soon(alice.flush(Duration::from_secs(20))).await.unwrap();
    let mut events = alice.events();
    // A fault while posts are in the conversations themselves, whichever of them meets it.
    arm(ENCRYPTED, 1);
    for number in 0..MESSAGES {
        soon(group.send(number.to_string())).await.unwrap();
    }
    for messages in [&mut at_bob, &mut at_carol] {
        let mut got = Vec::new();
        while got.len() < MESSAGES {
            got.push(soon(messages.next()).await.unwrap().text().unwrap().parse::<usize>().unwrap());
        }
        got.sort_unstable();
        assert_eq!(got, (0..MESSAGES).collect::<Vec<_>>());
    }
    recorder_is_quiet();
    while futures::FutureExt::now_or_never(events.next()).is_some() {}
    rests_long(&alice, "bob", &mut events).await;
    soon(group.send("while he rests")).await.unwrap();
    assert_eq!(soon(at_carol.next()).await.unwrap().text(), Some("while he rests"));
    while let Some(event) = futures::FutureExt::now_or_never(events.next()) {
        assert!(!matches!(event, Some(Event::ConversationRevived { .. })), "Bob's conversation still rests");
    }
    while soon(at_bob.next()).await.unwrap().text() != Some("while he rests") {}
    soon(alice.flush(Duration::from_secs(20))).await.unwrap();
    assert_eq!(alice.pending(), 0, "nothing is counted for ever");
    alice.close().await;
    relay.shutdown().await;
}

/// Faults in the conversation with a peer, one after the other: each doubles the rest, and the last one is long enough to be
/// seen. Meanwhile nobody else encrypts anything.
async fn rests_long(client: &Client, peer: &str, events: &mut Events) {
    loop {
        let receipt = soon(client.send(peer, "between faults")).await.unwrap();
        soon(receipt.delivered()).await.unwrap();
        arm(ENCRYPTED, 1);
        // It is accepted only when the conversation goes on.
        let committed = SendOptions { wait: SendWait::Committed, ..SendOptions::default() };
        soon(client.send_with(peer, "a fault", committed)).await.unwrap();
        if fault_of(events, peer).await >= 3 {
            return;
        }
        event(events, |event| matches!(event, Event::ConversationRevived { .. }).then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_for_a_conversation_that_rests_after_a_fault_leaves_the_window_to_others() {
    // More than the relay delivers without an ACK.
    const MESSAGES: usize = 140;
    let _alone = recorder().await;
    let relay = relay().await;
    let (alice, bob) = pair(&relay.url()).await;
    let carol = app(&relay.url()).await.connect("carol").await.unwrap();
    let mut at_bob = bob.messages();
    for from in [&alice, &carol] {
        let receipt = soon(from.send("bob", "first")).await.unwrap();
        soon(receipt.delivered()).await.unwrap();
        assert_eq!(soon(at_bob.next()).await.unwrap().text(), Some("first"));
    }
    let mut events = bob.events();
    rests_long(&bob, "alice", &mut events).await;
    // The fault was in a send: nothing that the relay delivered is unacknowledged.
    let texts: Vec<String> = (0..MESSAGES).map(|number| number.to_string()).collect();
    let sends = texts.iter().map(|text| alice.send("bob", &**text));
    for sent in soon(futures::future::join_all(sends)).await {
        sent.unwrap();
    }
    says(&carol, "bob", "others go on").await;
    assert_eq!(soon(at_bob.next()).await.unwrap().text(), Some("others go on"));
    while let Some(event) = futures::FutureExt::now_or_never(events.next()) {
        assert!(!matches!(event, Some(Event::ConversationRevived { .. })), "the conversation still rests");
    }
    for text in texts {
        assert_eq!(soon(at_bob.next()).await.unwrap().text(), Some(&*text));
    }
    relay.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_connection_is_begun_afresh_after_a_fault() {
    let _alone = recorder().await;
    let relay = relay().await;
    let (alice, bob) = pair(&relay.url()).await;
    let mut events = bob.events();
    arm(CONNECTIONS, 1);
    let port = relay.url().rsplit(':').next().unwrap().parse().unwrap();
    relay.shutdown().await;
    let relay = stvor_relay::Relay::start(stvor_relay::Config::mock(port)).await.unwrap();
    // One of the two meets the fault. Which one is for chance to say.
    let mut of_alice = alice.events();
    let failed = |event| match event {
        Event::TaskFailed { task, attempt, .. } => Some((task, attempt)),
        _ => None,
    };
    let found = tokio::select! {
        found = event(&mut events, failed) => found,
        found = event(&mut of_alice, failed) => found,
    };
    assert_eq!(found, ("connection", 1));
    for client in [&alice, &bob] {
        soon(async {
            while client.state() != ConnectionState::Online {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }
    let mut at_bob = bob.messages();
    says(&alice, "bob", "hello again").await;
    assert_eq!(soon(at_bob.next()).await.unwrap().text(), Some("hello again"));
    relay.shutdown().await;
}
