//! An old copy of the store: no key is used twice, nothing that was handed over is lost, and a relay can not make a client
//! believe that it has one.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

#[path = "common/fake.rs"]
mod fake;
#[path = "common/tape.rs"]
mod tape;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fake::Fake;
use futures::FutureExt as _;
use stvor::store::Table;
use stvor::{
    App, AppBuilder, Client, Event, Events, Messages, RecoveryPhrase, RollbackPolicy, SendOptions, SendWait,
    Timestamp,
};
use stvor_protocol::group::GroupIncoming;
use stvor_protocol::{Incoming, KemKind};
use stvor_wire::Code;
use tape::Tape;

const LEASE: Duration = Duration::from_millis(1_500);
const NO_WAIT: SendOptions = SendOptions { timeout: None, wait: SendWait::Committed };

fn builder(relay: &Fake) -> AppBuilder {
    App::builder().app_token("stvor_dev_test123").relay_url(relay.url()).timeout(Duration::from_secs(5))
}

async fn on(tape: &Tape, relay: &Fake, key: &Path) -> App {
    let stores = Arc::new(tape.clone());
    builder(relay).store(stores).keyfile(key.join("key")).instance_lease(LEASE).open().await.unwrap()
}

async fn in_memory(relay: &Fake, user: &str) -> Client {
    builder(relay).in_memory().open().await.unwrap().connect(user).await.unwrap()
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), what).await.expect("it happens in time")
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

/// Waits for messages until all of these came; each comes once, and nothing else does.
async fn comes(inbox: &mut Messages, texts: impl IntoIterator<Item = impl Into<String>>) {
    let mut expected: HashSet<String> = texts.into_iter().map(Into::into).collect();
    soon(async {
        while !expected.is_empty() {
            let message = inbox.next().await.expect("open");
            let text = message.text().unwrap().to_owned();
            assert!(expected.remove(&text), "{text:?} came twice, or from nowhere; {expected:?} is missing");
        }
    })
    .await;
}

fn numbered(name: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{name} {number}")).collect()
}

async fn send_all(from: &Client, to: &str, texts: &[String]) {
    for text in texts {
        from.send_with(to, text.as_str(), NO_WAIT).await.unwrap();
    }
}

/// The sessions that a user's messages were sent in, in the order of their beginning.
fn sessions_of(relay: &Fake, to: &str) -> Vec<Vec<u8>> {
    let mut sessions = Vec::new();
    for send in relay.log() {
        if send.recipient.to.user.as_str() == to && !GroupIncoming::is_one(&send.blob) {
            let session = Incoming::parse(&send.blob).unwrap().session().to_vec();
            if !sessions.contains(&session) {
                sessions.push(session);
            }
        }
    }
    sessions
}

async fn recovered(events: &mut Events) {
    event(events, |event| matches!(event, Event::RollbackRecovered).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_copy_starts_over_by_itself_and_loses_nothing_that_was_handed_over() {
    let relay = Fake::start().await;
    let (folder, tape) = (tempfile::tempdir().unwrap(), Tape::new(false));
    let bob = in_memory(&relay, "bob").await;
    let mut at_bob = bob.messages();
    let app = on(&tape, &relay, folder.path()).await;
    let alice = app.connect("alice").await.unwrap();
    let group = alice.create_group("two", ["bob"]).await.unwrap().id();
    alice.group(group).await.unwrap().send("group 0").await.unwrap();
    alice.send("bob", "first").await.unwrap();
    comes(&mut at_bob, ["first", "group 0"]).await;
    bob.send("alice", "answer").await.unwrap();
    comes(&mut alice.messages(), ["answer"]).await;
    alice.close().await;

    // What is in the outbox when the copy is made was never sent.
    relay.end_with(Some(Code::Draining));
    let alice = app.connect("alice").await.unwrap();
    let waiting = numbered("waiting", 3);
    send_all(&alice, "bob", &waiting).await;
    alice.group(group).await.unwrap().send("group waits").await.unwrap();
    alice.close().await;
    let copy = tape.len();
    relay.end_with(None);

    // The copy knows nothing of all this.
    let alice = app.connect("alice").await.unwrap();
    comes(&mut at_bob, waiting.iter().cloned().chain(["group waits".into()])).await;
    let later = numbered("later", 20);
    send_all(&alice, "bob", &later).await;
    let in_group = numbered("group later", 5);
    for text in &in_group {
        alice.group(group).await.unwrap().send(text.as_str()).await.unwrap();
    }
    comes(&mut at_bob, later.into_iter().chain(in_group)).await;
    let mut at_alice = alice.messages();
    for number in 0..10 {
        soon(bob.send("alice", format!("turn {number}")).await.unwrap().delivered()).await.unwrap();
        alice.send("bob", format!("back {number}")).await.unwrap();
    }
    comes(&mut at_bob, numbered("back", 10)).await;
    comes(&mut at_alice, numbered("turn", 10)).await;
    alice.close().await;
    drop(at_alice);
    // Bob goes on meanwhile, in a session that the copy does not know.
    let unread = numbered("unread", 3);
    send_all(&bob, "alice", &unread).await;
    tape.rewind(copy).await;

    // Handed over before anybody knows.
    relay.end_with(Some(Code::Draining));
    let alice = app.connect("alice").await.unwrap();
    let mut events = alice.events();
    let handed = numbered("handed over", 3);
    send_all(&alice, "bob", &handed).await;
    alice.group(group).await.unwrap().send("group handed over").await.unwrap();
    relay.end_with(None);
    let (seen, own) = event(&mut events, |event| match event {
        Event::RollbackDetected { relay, own } => Some((relay, own)),
        _ => None,
    })
    .await;
    assert!(seen > own && seen == relay.counter("alice").0.min(seen), "{seen} {own}");
    recovered(&mut events).await;
    // What waited in the copy had come already: it comes no second time.
    comes(&mut at_bob, handed.into_iter().chain(["group handed over".into()])).await;
    let mut at_alice = alice.messages();
    comes(&mut at_alice, unread).await;
    bob.send("alice", "and on").await.unwrap();
    comes(&mut at_alice, ["and on"]).await;
    bob.group(group).await.unwrap().send("group and on").await.unwrap();
    comes(&mut at_alice, ["group and on"]).await;
    alice.group(group).await.unwrap().send("group is well").await.unwrap();
    alice.send("bob", "all is well").await.unwrap();
    comes(&mut at_bob, ["all is well", "group is well"]).await;
    relay.saw_no_key_twice();

    // It was once: the next start goes on where this one was.
    alice.close().await;
    let before = sessions_of(&relay, "bob").len();
    let alice = app.connect("alice").await.unwrap();
    soon(alice.send("bob", "the day after").await.unwrap().delivered()).await.unwrap();
    comes(&mut at_bob, ["the day after"]).await;
    assert_eq!(sessions_of(&relay, "bob").len(), before);
    relay.saw_no_key_twice();
}

/// A conversation with sessions both ways, and how far the tape was before the last of it.
async fn with_old_copy(relay: &Fake, tape: &Tape, app: &App) -> (Client, usize) {
    let bob = in_memory(relay, "bob").await;
    let alice = app.connect("alice").await.unwrap();
    soon(alice.send("bob", "one").await.unwrap().delivered()).await.unwrap();
    soon(bob.send("alice", "two").await.unwrap().delivered()).await.unwrap();
    let carol = in_memory(relay, "carol").await;
    soon(alice.send("carol", "one").await.unwrap().delivered()).await.unwrap();
    alice.close().await;
    let copy = tape.len();
    let alice = app.connect("alice").await.unwrap();
    soon(alice.send("carol", "two").await.unwrap().delivered()).await.unwrap();
    carol.close().await;
    soon(alice.send("bob", "three").await.unwrap().delivered()).await.unwrap();
    soon(bob.send("alice", "four").await.unwrap().delivered()).await.unwrap();
    alice.close().await;
    (bob, copy)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recovery_that_ends_at_any_commit_is_finished_by_the_next_start() {
    let mut ends = 0;
    loop {
        let relay = Fake::start().await;
        let (folder, tape) = (tempfile::tempdir().unwrap(), Tape::new(false));
        let app = on(&tape, &relay, folder.path()).await;
        let (bob, copy) = with_old_copy(&relay, &tape, &app).await;
        let mut at_bob = bob.messages();
        comes(&mut at_bob, ["one", "three"]).await;
        tape.rewind(copy).await;
        // The opening of the store commits too: that may fail, as may the client.
        tape.end_after(ends);
        let mut done = false;
        if let Ok(alice) = app.connect("alice").await {
            let mut events = alice.events();
            let recovered = event(&mut events, |event| match event {
                Event::RollbackRecovered => Some(true),
                Event::StoreFailing { .. } => Some(false),
                _ => None,
            });
            let over = async {
                while !tape.is_over() {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                false
            };
            done = tokio::select! { done = recovered => done, done = over => done };
            alice.close().await;
        }
        let kept = tape.len();
        tape.rewind(kept).await;
        let alice = app.connect("alice").await.unwrap();
        soon(alice.send("bob", "five").await.unwrap().delivered()).await.unwrap();
        alice.send("carol", "three").await.unwrap();
        bob.send("alice", "six").await.unwrap();
        let mut at_alice = alice.messages();
        soon(async { while at_alice.next().await.unwrap().text() != Some("six") {} }).await;
        comes(&mut at_bob, ["five"]).await;
        relay.saw_no_key_twice();
        alice.close().await;
        ends += 1;
        if done {
            assert!(ends > 5, "the recovery was never interrupted");
            return;
        }
        assert!(ends < 100, "the recovery never ends");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_takes_the_place_of_a_lost_one_is_compared_as_soon_as_it_has_sent() {
    let relay = Fake::start().await;
    let (folder, tape) = (tempfile::tempdir().unwrap(), Tape::new(true));
    let bob = in_memory(&relay, "bob").await;
    let mut at_bob = bob.messages();
    let words = RecoveryPhrase::fresh().unwrap().words();
    let words = String::from_utf8(words.expose().to_vec()).unwrap();
    let lost = builder(&relay).in_memory().identity_phrase(&words).open().await.unwrap();
    let alice = lost.connect("alice").await.unwrap();
    alice.send("bob", "from the lost device").await.unwrap();
    comes(&mut at_bob, ["from the lost device"]).await;
    alice.close().await;

    // The same person in a fresh store, of which the relay takes no prekeys: what says that it starts anew stays.
    relay.refuse_keys_of("alice");
    let open = async || {
        let builder = builder(&relay).store(Arc::new(tape.clone())).keyfile(folder.path().join("key"));
        builder.identity_phrase(&words).instance_lease(LEASE).open().await.unwrap()
    };
    let app = open().await;
    let alice = app.connect("alice").await.unwrap();
    alice.send("bob", "one").await.unwrap();
    comes(&mut at_bob, ["one"]).await;
    let copy = tape.len();
    alice.send("bob", "two").await.unwrap();
    comes(&mut at_bob, ["two"]).await;
    app.close().await.unwrap();

    tape.rewind(copy).await;
    let app = open().await;
    let alice = app.connect("alice").await.unwrap();
    let mut events = alice.events();
    event(&mut events, |event| matches!(event, Event::RollbackDetected { .. }).then_some(())).await;
    alice.send("bob", "three").await.unwrap();
    comes(&mut at_bob, ["three"]).await;
    relay.saw_no_key_twice();
    app.close().await.unwrap();
}

/// The rows of private prekeys: one-time ones of both kinds, and signed ones.
async fn prekeys(tape: &Tape) -> [Vec<Vec<u8>>; 3] {
    let mut of_kem = tape.rows(Table::KemPrekey).await;
    // Behind the byte of the kind of row.
    of_kem.retain(|sort| sort[1] == KemKind::OneTime.to_byte());
    [tape.rows(Table::OneTimePrekey).await, of_kem, tape.rows(Table::SignedPrekey).await]
}

#[tokio::test(flavor = "multi_thread")]
async fn one_time_prekeys_of_an_old_copy_are_in_the_store_no_more_after_the_recovery() {
    let relay = Fake::start().await;
    let (folder, tape) = (tempfile::tempdir().unwrap(), Tape::new(false));
    let app = on(&tape, &relay, folder.path()).await;
    let (_bob, copy) = with_old_copy(&relay, &tape, &app).await;
    tape.rewind(copy).await;
    let old = prekeys(&tape).await;
    assert!(old.iter().all(|rows| !rows.is_empty()));
    let alice = app.connect("alice").await.unwrap();
    recovered(&mut alice.events()).await;
    let left = prekeys(&tape).await;
    for (old, left) in old.iter().zip(&left).take(2) {
        assert!(old.iter().all(|row| !left.contains(row)), "one that others may have used can be used again");
    }
    // The signed one stays for what is under way; there is another one, and one-time ones that nobody had.
    assert!(left[2].iter().any(|row| !old[2].contains(row)));
    soon(async {
        while prekeys(&tape).await.iter().any(Vec::is_empty) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_that_never_used_the_relay_starts_over_with_the_others() {
    let relay = Fake::start().await;
    let (folder, tape) = (tempfile::tempdir().unwrap(), Tape::new(false));
    let (bob, dave) = (in_memory(&relay, "bob").await, in_memory(&relay, "dave").await);
    let app = on(&tape, &relay, folder.path()).await;
    let alice = app.connect("alice").await.unwrap();
    alice.import_bundle(&dave.export_bundle().await.unwrap()).await.unwrap();
    let one = alice.seal("dave", "one").await.unwrap();
    alice.close().await;
    let copy = tape.len();
    let alice = app.connect("alice").await.unwrap();
    let two = alice.seal("dave", "two").await.unwrap();
    soon(alice.send("bob", "by the relay").await.unwrap().delivered()).await.unwrap();
    alice.close().await;
    tape.rewind(copy).await;
    let alice = app.connect("alice").await.unwrap();
    recovered(&mut alice.events()).await;
    // The session is gone: the next message starts another.
    let three = alice.seal("dave", "three").await.unwrap();
    // What is sealed for other transports has a head of its own before the envelope.
    let position = |blob: &[u8]| {
        let found =
            (0..64).find_map(|at| Incoming::parse(blob.get(at..)?).ok().map(|found| found.position()));
        found.expect("an envelope")
    };
    assert!(position(&three) != position(&one) && position(&three) != position(&two));
    for (blob, text) in [(one, "one"), (two, "two"), (three, "three")] {
        assert_eq!(dave.open(&blob).await.unwrap().content.unwrap().as_text(), Some(text));
    }
    drop(bob);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_counter_of_the_relay_makes_a_client_start_over_without_its_own_proof() {
    let relay = Fake::start().await;
    let (folder, tape) = (tempfile::tempdir().unwrap(), Tape::new(false));
    let app = on(&tape, &relay, folder.path()).await;
    let (bob, _) = with_old_copy(&relay, &tape, &app).await;
    let (highest, mac) = relay.counter("alice");
    let mac = mac.expect("a proof came with it");
    let (_, of_bob) = relay.counter("bob");
    let sessions = sessions_of(&relay, "bob");
    let mut flipped = mac;
    flipped[31] ^= 1;
    let mut at_bob = bob.messages();
    comes(&mut at_bob, ["one", "three"]).await;
    // The proof of another counter, of another device, a damaged one, none of anybody's, and a number beyond all.
    for (number, claim) in [
        (highest + 1, Some(mac)),
        (highest + 1_000, of_bob),
        (highest + 7, Some(flipped)),
        (u64::MAX >> 1, Some([0; 32])),
        (u64::MAX, None),
        (u64::MAX, Some(mac)),
    ]
    .into_iter()
    .enumerate()
    {
        relay.claim("alice", Some(claim));
        let alice = app.connect("alice").await.unwrap();
        let mut events = alice.events();
        event(&mut events, |event| match event {
            Event::CounterForged { relay } => {
                assert_eq!(relay, claim.0);
                Some(())
            }
            Event::RollbackDetected { .. } | Event::RollbackRecovered => panic!("{event:?} after {claim:?}"),
            _ => None,
        })
        .await;
        soon(alice.send("bob", number.to_string()).await.unwrap().delivered()).await.unwrap();
        comes(&mut at_bob, [number.to_string()]).await;
        alice.close().await;
    }
    assert_eq!(sessions_of(&relay, "bob"), sessions, "no session was started over");
    relay.saw_no_key_twice();
    assert!(relay.counter("alice").0 < highest + 100, "nor did the counter follow");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_without_a_proof_stops_sending_and_waits_for_a_decision() {
    let relay = Fake::start().await;
    let (folder, tape) = (tempfile::tempdir().unwrap(), Tape::new(false));
    let app = on(&tape, &relay, folder.path()).await;
    let (bob, copy) = with_old_copy(&relay, &tape, &app).await;
    let mut at_bob = bob.messages();
    comes(&mut at_bob, ["one", "three"]).await;
    // A relay that knows no proofs: an old copy is noticed there too.
    relay.forget_proofs();
    tape.rewind(copy).await;
    let sent = relay.log().len();
    let alice = app.connect("alice").await.unwrap();
    let error = alice.send("bob", "five").await.unwrap_err();
    assert_eq!(error.code(), "ROLLBACK_DETECTED");
    assert_eq!(alice.seal("bob", "five").await.unwrap_err().code(), "ROLLBACK_DETECTED");
    // What comes in on a session that went on since is not answered either.
    let mut events = alice.events();
    bob.send("alice", "six").await.unwrap();
    event(&mut events, |event| matches!(event, Event::MessageUndecryptable { .. }).then_some(())).await;
    let from_alice = |send: &&stvor_wire::client::Send| send.recipient.to.user.as_str() == "bob";
    assert_eq!(relay.log()[sent..].iter().filter(from_alice).count(), 0);
    alice.recover_from_rollback().await.unwrap();
    soon(alice.send("bob", "five").await.unwrap().delivered()).await.unwrap();
    comes(&mut at_bob, ["five"]).await;
    let mut at_alice = alice.messages();
    soon(async { while at_alice.next().await.unwrap().text() != Some("six") {} }).await;
    relay.saw_no_key_twice();
    // With a relay of before an honest client of today goes on as ever.
    alice.close().await;
    let alice = app.connect("alice").await.unwrap();
    soon(alice.send("bob", "seven").await.unwrap().delivered()).await.unwrap();
    comes(&mut at_bob, ["seven"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_who_would_rather_go_back_to_the_newest_copy_is_asked() {
    let relay = Fake::start().await;
    let (folder, tape) = (tempfile::tempdir().unwrap(), Tape::new(false));
    let app = on(&tape, &relay, folder.path()).await;
    let (bob, copy) = with_old_copy(&relay, &tape, &app).await;
    tape.rewind(copy).await;
    let asks = builder(&relay).store(Arc::new(tape.clone())).keyfile(folder.path().join("key"));
    let asks = asks.on_rollback(RollbackPolicy::Ask).open().await.unwrap();
    let alice = asks.connect("alice").await.unwrap();
    event(&mut alice.events(), |event| matches!(event, Event::RollbackDetected { .. }).then_some(())).await;
    assert_eq!(alice.send("bob", "five").await.unwrap_err().code(), "ROLLBACK_DETECTED");
    alice.recover_from_rollback().await.unwrap();
    soon(alice.send("bob", "five").await.unwrap().delivered()).await.unwrap();
    comes(&mut bob.messages(), ["one", "three", "five"]).await;
    relay.saw_no_key_twice();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recovery_that_was_asked_for_ends_though_nobody_waits_for_it_or_the_store_fails_half_way() {
    for fails in [false, true] {
        let relay = Fake::start().await;
        let (folder, tape) = (tempfile::tempdir().unwrap(), Tape::new(false));
        let app = on(&tape, &relay, folder.path()).await;
        let (bob, copy) = with_old_copy(&relay, &tape, &app).await;
        let mut at_bob = bob.messages();
        comes(&mut at_bob, ["one", "three"]).await;
        tape.rewind(copy).await;
        let asks = builder(&relay).store(Arc::new(tape.clone())).keyfile(folder.path().join("key"));
        let asks = asks.on_rollback(RollbackPolicy::Ask).open().await.unwrap();
        let alice = asks.connect("alice").await.unwrap();
        let mut events = alice.events();
        event(&mut events, |event| matches!(event, Event::RollbackDetected { .. }).then_some(())).await;
        if fails {
            // It is decided and sessions are given up by the time that prekeys are renewed.
            tape.give_up(Table::SignedPrekey);
            let _ = soon(alice.recover_from_rollback()).await;
        } else {
            let _ = alice.recover_from_rollback().now_or_never();
        }
        recovered(&mut events).await;
        soon(alice.send("bob", "five").await.unwrap().delivered()).await.unwrap();
        comes(&mut at_bob, ["five"]).await;
        relay.saw_no_key_twice();
    }
}

/// The documented limit: nobody can prove to a device what it does not remember itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_tells_an_earlier_counter_with_its_proof_hides_an_old_copy() {
    let relay = Fake::start().await;
    let (folder, tape) = (tempfile::tempdir().unwrap(), Tape::new(false));
    let app = on(&tape, &relay, folder.path()).await;
    let (_bob, copy) = with_old_copy(&relay, &tape, &app).await;
    let first = relay.log().into_iter().find(|send| send.recipient.to.user.as_str() == "bob").unwrap();
    relay.claim("alice", Some((first.counter, first.counter_mac)));
    tape.rewind(copy).await;
    let alice = app.connect("alice").await.unwrap();
    let mut events = alice.events();
    alice.send("bob", "five").await.unwrap();
    alice.close().await;
    while let Some(event) = events.next().await {
        let noticed = matches!(event, Event::RollbackDetected { .. } | Event::CounterForged { .. });
        assert!(!noticed, "{event:?}: say so in SECURITY.md");
    }
}

/// A clock that is ahead by 90 days.
struct Ahead;

impl stvor::Clock for Ahead {
    fn now(&self) -> Timestamp {
        Timestamp::system() + Duration::from_secs(90 * 86_400)
    }
}

/// The numbers of sends are times where several share a store, so one whose clock was ahead leaves a high one behind.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_was_ahead_once_hides_no_old_copy_of_what_others_send_later() {
    let relay = Fake::start().await;
    let (folder, tape) = (tempfile::tempdir().unwrap(), Tape::new(true));
    let (bob, carol) = (in_memory(&relay, "bob").await, in_memory(&relay, "carol").await);
    let mut at_carol = carol.messages();
    let app = on(&tape, &relay, folder.path()).await;
    let alice = app.connect("alice").await.unwrap();
    for peer in [&bob, &carol] {
        soon(alice.send(peer.user().as_str(), "hello").await.unwrap().delivered()).await.unwrap();
        soon(peer.send("alice", "hello").await.unwrap().delivered()).await.unwrap();
    }
    let ahead = builder(&relay).store(Arc::new(tape.clone())).keyfile(folder.path().join("key"));
    let ahead = ahead.instance_lease(LEASE).clock(Arc::new(Ahead)).open().await.unwrap();
    let other = ahead.connect("alice").await.unwrap();
    soon(other.send("bob", "of a time to come").await.unwrap().delivered()).await.unwrap();
    other.close().await;
    // The conversation goes on here, and with it the number.
    soon(bob.send("alice", "back").await.unwrap().delivered()).await.unwrap();
    soon(alice.send("carol", "kept").await.unwrap().delivered()).await.unwrap();
    let copy = tape.len();
    let lost = numbered("lost", 3);
    send_all(&alice, "carol", &lost).await;
    comes(&mut at_carol, ["hello".into(), "kept".into()].into_iter().chain(lost)).await;
    alice.close().await;

    tape.rewind(copy).await;
    let alice = app.connect("alice").await.unwrap();
    recovered(&mut alice.events()).await;
    let after = numbered("after", 3);
    send_all(&alice, "carol", &after).await;
    comes(&mut at_carol, after).await;
    relay.saw_no_key_twice();
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_on_one_store_start_over_together() {
    let relay = Fake::start().await;
    let (folder, tape) = (tempfile::tempdir().unwrap(), Tape::new(true));
    let bob = in_memory(&relay, "bob").await;
    let mut at_bob = bob.messages();
    let apps = [on(&tape, &relay, folder.path()).await, on(&tape, &relay, folder.path()).await];
    let alice = apps[0].connect("alice").await.unwrap();
    soon(alice.send("bob", "one").await.unwrap().delivered()).await.unwrap();
    soon(bob.send("alice", "two").await.unwrap().delivered()).await.unwrap();
    alice.close().await;
    let copy = tape.len();
    let alice = apps[0].connect("alice").await.unwrap();
    let second = apps[1].connect("alice").await.unwrap();
    let (here, there) = (numbered("here", 5), numbered("there", 5));
    send_all(&alice, "bob", &here).await;
    send_all(&second, "bob", &there).await;
    comes(&mut at_bob, ["one".into()].into_iter().chain(here).chain(there)).await;
    alice.close().await;
    second.close().await;

    tape.rewind(copy).await;
    let (alice, second) = tokio::join!(apps[0].connect("alice"), apps[1].connect("alice"));
    let (alice, second) = (alice.unwrap(), second.unwrap());
    let (here, there) = (numbered("again here", 5), numbered("again there", 5));
    send_all(&alice, "bob", &here).await;
    send_all(&second, "bob", &there).await;
    comes(&mut at_bob, here.into_iter().chain(there)).await;
    relay.saw_no_key_twice();

    // The store is put back under them while they run: as a failover to a copy that lagged behind would.
    let lagging = tape.len();
    let lost = numbered("lost", 5);
    send_all(&alice, "bob", &lost).await;
    send_all(&second, "bob", &numbered("lost there", 5)).await;
    comes(&mut at_bob, lost.into_iter().chain(numbered("lost there", 5))).await;
    tape.rewind(lagging).await;
    let after = numbered("after", 5);
    soon(async {
        for text in &after {
            // A turn that meets the change may be refused: nothing of it happened then.
            while second.send_with("bob", text.as_str(), NO_WAIT).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    })
    .await;
    comes(&mut at_bob, after).await;
    relay.saw_no_key_twice();
}
