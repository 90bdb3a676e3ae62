//! Several instances of one user on one store: what they send and receive together, and what the end of one of them does.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod common;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::shared::{Fleet, Instance};
use common::{app, code, relay, soon};
use stvor::{Client, Clock, ContentId, DeliveryState, Event, SendOptions, SendWait, Timestamp};
use stvor_testkit::VirtualClock;
use tokio::sync::mpsc;

const NO_WAIT: SendOptions = SendOptions { timeout: None, wait: SendWait::Committed };

/// What the streams of instances hand out, with the number of the instance.
type Seen = mpsc::UnboundedReceiver<(usize, String, ContentId)>;

/// Consumes messages at an instance and notes them.
fn consume(instance: &Instance, number: usize, seen: &mpsc::UnboundedSender<(usize, String, ContentId)>) {
    let seen = seen.clone();
    instance.spawn(move |client| async move {
        let mut messages = client.messages().manual_ack();
        while let Some(message) = messages.next().await {
            if message.ack().await.is_ok() {
                let _ = seen.send((number, message.text().unwrap_or_default().to_owned(), message.id));
            }
        }
    });
}

async fn send_all(client: Client, to: &'static str, texts: Vec<String>) -> Vec<ContentId> {
    let mut ids = Vec::new();
    for text in texts {
        ids.push(client.send_with(to, text, NO_WAIT).await.unwrap().id());
    }
    ids
}

fn texts(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}-{number}")).collect()
}

/// Takes messages until all are there; each once.
async fn all_once(seen: &mut Seen, mut expected: HashSet<String>) -> HashMap<usize, usize> {
    let mut by = HashMap::new();
    soon(async {
        while !expected.is_empty() {
            let (instance, text, _) = seen.recv().await.unwrap();
            assert!(expected.remove(&text), "{text} came twice, or from nowhere");
            *by.entry(instance).or_default() += 1;
        }
    })
    .await;
    by
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_send_to_and_receive_from_one_peer_as_one_device() {
    let relay = relay().await;
    let directory = tempfile::tempdir().unwrap();
    let fleet = Fleet::in_memory(&relay.url(), directory.path());
    let bobs = app(&relay.url()).await;
    let bob = bobs.connect("bob").await.unwrap();
    let first = fleet.start("alice").await;
    let second = fleet.start("alice").await;
    assert_eq!(
        first.run(|client| async move { client.identity() }).await,
        second.run(|client| async move { client.identity() }).await
    );
    let mut events = bob.events();
    let sending = [
        first.spawn(|client| send_all(client, "bob", texts("first", 40))),
        second.spawn(|client| send_all(client, "bob", texts("second", 40))),
    ];
    let mut messages = bob.messages();
    let mut got: HashMap<&str, Vec<usize>> = HashMap::new();
    soon(async {
        for _ in 0..80 {
            let message = messages.next().await.unwrap();
            let (who, number) = message.text().unwrap().split_once('-').unwrap();
            let who = if who == "first" { "first" } else { "second" };
            got.entry(who).or_default().push(number.parse().unwrap());
        }
    })
    .await;
    for (who, numbers) in got {
        assert_eq!(numbers, (0..40).collect::<Vec<_>>(), "{who}: in the order of its sending");
    }
    for sending in sending {
        sending.await.unwrap();
    }

    let (tell, mut seen) = mpsc::unbounded_channel();
    consume(&first, 1, &tell);
    consume(&second, 2, &tell);
    send_all(bob.clone(), "alice", texts("bob", 100)).await;
    all_once(&mut seen, texts("bob", 100).into_iter().collect()).await;

    // A receipt that the one gets is seen by the other that waits for it.
    for instance in [&first, &second] {
        let state = instance.run(|client| async move {
            let receipt = client.send("bob", "do you get this?").await.unwrap();
            receipt.delivered().await.unwrap();
            receipt.status()
        });
        assert!(soon(state).await >= DeliveryState::Delivered);
    }
    drop((first, second));
    bobs.close().await.unwrap();
    while let Some(event) = events.next().await {
        assert!(!matches!(event, Event::MessageUndecryptable { .. }), "{event:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_instance_did_another_one_takes_over() {
    let relay = relay().await;
    let directory = tempfile::tempdir().unwrap();
    let fleet = Fleet::in_memory(&relay.url(), directory.path());
    let bobs = app(&relay.url()).await;
    let bob = bobs.connect("bob").await.unwrap();
    let first = fleet.start("alice").await;
    let second = fleet.start("alice").await;
    first.run(|client| async move { client.send("bob", "hello").await.unwrap() }).await;
    soon(bob.messages().next()).await.unwrap();

    // The first one receives, and takes messages that it never consumes.
    let (tell, mut taken) = mpsc::unbounded_channel();
    first.spawn(move |client| async move {
        let mut messages = client.messages().manual_ack();
        while let Some(message) = messages.next().await {
            tell.send(message.text().unwrap().to_owned()).unwrap();
        }
    });
    send_all(bob.clone(), "alice", texts("early", 10)).await;
    soon(taken.recv()).await.unwrap();
    first.kill();
    send_all(bob.clone(), "alice", texts("late", 10)).await;
    let (tell, mut seen) = mpsc::unbounded_channel();
    consume(&second, 2, &tell);
    all_once(&mut seen, texts("early", 10).into_iter().chain(texts("late", 10)).collect()).await;
    second.run(|client| async move { client.send("bob", "still here").await.unwrap() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_was_silent_loses_its_messages_and_goes_on_under_another_name() {
    let relay = relay().await;
    let directory = tempfile::tempdir().unwrap();
    let fleet = Fleet::in_memory(&relay.url(), directory.path());
    let bobs = app(&relay.url()).await;
    let bob = bobs.connect("bob").await.unwrap();
    let first = fleet.start("alice").await;
    let second = fleet.start("alice").await;
    bob.send("alice", "once").await.unwrap();
    // The one worker of its runtime sleeps: nothing of it goes on, as in a process that is stopped.
    let (tell, mut told) = mpsc::unbounded_channel();
    let (wake, woken) = std::sync::mpsc::channel::<()>();
    let (acked, ack) = tokio::sync::oneshot::channel();
    first.spawn(move |client| async move {
        let message = client.messages().manual_ack().next().await.unwrap();
        tell.send(message.text().unwrap().to_owned()).unwrap();
        let _ = woken.recv();
        let _ = acked.send(message.ack().await);
    });
    assert_eq!(soon(told.recv()).await.unwrap(), "once");
    let (tell, mut seen) = mpsc::unbounded_channel();
    consume(&second, 2, &tell);
    all_once(&mut seen, HashSet::from(["once".to_owned()])).await;
    wake.send(()).unwrap();
    assert_eq!(code(soon(ack).await.unwrap()), "CLAIM_LOST");
    // It goes on, and what it sends arrives.
    first.run(|client| async move { client.send("bob", "back").await.unwrap() }).await;
    assert_eq!(soon(bob.messages().next()).await.unwrap().text(), Some("back"));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_thousand_copies_of_a_message_one_passes() {
    let relay = relay().await;
    let directory = tempfile::tempdir().unwrap();
    let fleet = Fleet::in_memory(&relay.url(), directory.path());
    let bobs = app(&relay.url()).await;
    let bob = bobs.connect("bob").await.unwrap();
    let mut instances = Vec::new();
    for _ in 0..4 {
        instances.push(fleet.start("alice").await);
    }
    let sealed = bob.seal("alice", "only once").await.unwrap();
    let passed = Arc::new(AtomicUsize::new(0));
    let mut opening = Vec::new();
    for copy in 0..1_000 {
        let (sealed, passed) = (sealed.clone(), Arc::clone(&passed));
        opening.push(instances[copy % 4].spawn(move |client| async move {
            match client.open(&sealed).await {
                Ok(_) => {
                    passed.fetch_add(1, Ordering::SeqCst);
                }
                Err(error) => assert!(matches!(error.code(), "DUPLICATE" | "REPLAY"), "{error}"),
            }
        }));
    }
    for one in opening {
        soon(one).await.unwrap();
    }
    assert_eq!(passed.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_that_one_instance_blocks_is_blocked_in_all() {
    let relay = relay().await;
    let directory = tempfile::tempdir().unwrap();
    let fleet = Fleet::in_memory(&relay.url(), directory.path());
    let bobs = app(&relay.url()).await;
    let bob = bobs.connect("bob").await.unwrap();
    let receiver = fleet.start("alice").await;
    let other = fleet.start("alice").await;
    bob.send("alice", "before").await.unwrap();
    other.run(|client| async move { client.block("bob").await.unwrap() }).await;
    let blocked = receiver.run(|client| async move {
        while !client.is_blocked("bob") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    soon(blocked).await;
    other.run(|client| async move { client.unblock("bob").await.unwrap() }).await;
    let unblocked = receiver.run(|client| async move {
        while client.is_blocked("bob") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    soon(unblocked).await;
}

/// A clock that a test sets.
struct Set(VirtualClock);

impl Clock for Set {
    fn now(&self) -> Timestamp {
        self.0.now()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_ends_no_instance_loses_nothing_and_opens_nothing_twice() {
    const HOUR: Duration = Duration::from_secs(3_600);
    // Longer than anything is kept that is kept for a while.
    const SEASON: Duration = Duration::from_secs(90 * 86_400);
    let relay = relay().await;
    let directory = tempfile::tempdir().unwrap();
    let clock = VirtualClock::at(Timestamp::system());
    let mut fleet = Fleet::in_memory(&relay.url(), directory.path());
    fleet.clock = Some(Arc::new(Set(clock.clone())));
    let bobs = app(&relay.url()).await;
    let bob = bobs.connect("bob").await.unwrap();
    let instances = [fleet.start("alice").await, fleet.start("alice").await];
    let (tell, mut seen) = mpsc::unbounded_channel();
    for (number, instance) in instances.iter().enumerate() {
        consume(instance, number, &tell);
    }
    let sealed = bob.seal("alice", "only once").await.unwrap();
    let opens = async |instance: &Instance| {
        let sealed = sealed.clone();
        soon(
            instance
                .run(move |client| async move { client.open(&sealed).await.map_err(|error| error.code()) }),
        )
        .await
        .map(|_| ())
    };
    opens(&instances[0]).await.unwrap();
    let jumps =
        [HOUR, SEASON].into_iter().flat_map(|span| ["forward", "back", "back"].map(|way| (way, span)));
    for (round, (jump, span)) in jumps.enumerate() {
        match jump {
            "forward" => clock.advance(span),
            _ => clock.set_back(span),
        };
        let mine = texts(&format!("round{round}"), 10);
        send_all(bob.clone(), "alice", mine.clone()).await;
        all_once(&mut seen, mine.into_iter().collect()).await;
        for instance in &instances {
            let again = opens(instance).await;
            assert!(matches!(again, Err("DUPLICATE" | "UNDECRYPTABLE")), "after {jump}: {again:?}");
            let back = instance.run(move |client| async move { client.send("bob", jump).await.unwrap() });
            soon(back).await;
        }
    }
    let mut messages = bob.messages();
    for _ in 0..12 {
        soon(messages.next()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_one_instance_deletes_is_gone_for_all_and_can_be_made_again() {
    let relay = relay().await;
    let directory = tempfile::tempdir().unwrap();
    let fleet = Fleet::in_memory(&relay.url(), directory.path());
    let bobs = app(&relay.url()).await;
    let bob = bobs.connect("bob").await.unwrap();
    let first = fleet.start("alice").await;
    let second = fleet.start("alice").await;
    // It goes on sending, whatever becomes of the account, until its client ends.
    let sending = second.spawn(|client| async move {
        loop {
            if let Err(error) = client.send_with("bob", "on and on", NO_WAIT).await
                && error.code() == "CLIENT_NOT_READY"
            {
                return client.ended_by();
            }
            tokio::task::yield_now().await;
        }
    });
    soon(bob.messages().next()).await.unwrap();
    let deleted = first.run(|client| async move { client.delete_account().await });
    soon(deleted).await.unwrap();
    assert_eq!(soon(sending).await.unwrap(), Some("ACCOUNT_DELETED"));
    drop((first, second));
    let again = fleet.start("alice").await;
    // Bob has pinned the identity that is gone.
    let carol = bobs.connect("carol").await.unwrap();
    again.run(|client| async move { client.send("carol", "anew").await.unwrap() }).await;
    assert_eq!(soon(carol.messages().next()).await.unwrap().text(), Some("anew"));
}

/// What became of a message in the hands of an application.
enum Fate {
    Shown,
    Consumed,
}

/// Notes each message before it is consumed and after, with the number of the instance's life.
fn note(instance: &Instance, life: usize, notes: &mpsc::UnboundedSender<(usize, String, Fate)>) {
    let notes = notes.clone();
    instance.spawn(move |client| async move {
        let mut messages = client.messages().manual_ack();
        while let Some(message) = messages.next().await {
            let text = message.text().unwrap_or_default().to_owned();
            let _ = notes.send((life, text.clone(), Fate::Shown));
            if message.ack().await.is_ok() {
                let _ = notes.send((life, text, Fate::Consumed));
            }
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_are_killed_at_random_and_nothing_is_lost_doubled_or_unreadable() {
    const ROUNDS: usize = 12;
    const EACH: usize = 20;
    let relay = relay().await;
    let directory = tempfile::tempdir().unwrap();
    let fleet = Fleet::in_memory(&relay.url(), directory.path());
    let bobs = app(&relay.url()).await;
    let bob = bobs.connect("bob").await.unwrap();
    let mut events = bob.events();
    let (tell, mut notes) = mpsc::unbounded_channel();
    let mut instances = Vec::new();
    for life in 0..4 {
        let instance = fleet.start("alice").await;
        note(&instance, life, &tell);
        instances.push((life, instance));
    }
    let (arrived, mut at_bob) = mpsc::unbounded_channel();
    let bobs_inbox = tokio::spawn({
        let bob = bob.clone();
        async move {
            let mut messages = bob.messages();
            while let Some(message) = messages.next().await {
                let _ = arrived.send(message.text().unwrap_or_default().to_owned());
            }
        }
    });
    let (mut to_bob, mut begun, mut to_alice) = (HashSet::new(), HashSet::new(), HashSet::new());
    let mut killed = HashSet::new();
    for round in 0..ROUNDS {
        let mut sending = Vec::new();
        for (life, instance) in &instances {
            let mine = texts(&format!("alice{life}.{round}"), EACH);
            begun.extend(mine.clone());
            sending.push((mine.clone(), instance.spawn(move |client| send_all(client, "bob", mine))));
        }
        let theirs = texts(&format!("bob{round}"), 2 * EACH);
        send_all(bob.clone(), "alice", theirs.clone()).await;
        to_alice.extend(theirs);
        // Whoever is killed may be anywhere in what it does; the first one receives.
        let victim = round % instances.len();
        let life = 4 + round;
        let successor = fleet.start("alice").await;
        note(&successor, life, &tell);
        let (gone, instance) = core::mem::replace(&mut instances[victim], (life, successor));
        killed.insert(gone);
        instance.kill();
        for (mine, sending) in sending {
            // What was in the outbox of the killed one goes out all the same; what it had not taken does not.
            if sending.await.is_ok() {
                to_bob.extend(mine);
            }
        }
    }
    soon(async {
        while !to_bob.is_empty() {
            let text = at_bob.recv().await.unwrap();
            assert!(begun.remove(&text), "{text} came twice, or from nowhere");
            to_bob.remove(&text);
        }
    })
    .await;
    let (mut shown, mut consumed) = (HashMap::<String, Vec<usize>>::new(), HashMap::new());
    soon(async {
        // A message is done with when an application consumed it, or showed it and was killed before it could say so.
        while !to_alice.is_empty() {
            let (life, text, fate) = notes.recv().await.unwrap();
            match fate {
                Fate::Shown => shown.entry(text.clone()).or_default().push(life),
                Fate::Consumed => {
                    assert_eq!(consumed.insert(text.clone(), life), None, "{text} was consumed twice");
                }
            }
            if consumed.contains_key(&text) || shown[&text].iter().all(|life| killed.contains(life)) {
                to_alice.remove(&text);
            }
        }
    })
    .await;
    for (text, lives) in shown {
        let (_, before) = lives.split_last().unwrap();
        assert!(before.iter().all(|life| killed.contains(life)), "{text} was shown by {lives:?}");
        assert_eq!(
            lives.iter().collect::<HashSet<_>>().len(),
            lives.len(),
            "{text}: twice by one of {lives:?}"
        );
    }
    drop(instances);
    bobs.close().await.unwrap();
    bobs_inbox.await.unwrap();
    while let Some(event) = events.next().await {
        assert!(!matches!(event, Event::MessageUndecryptable { .. }), "{event:?}");
    }
}
