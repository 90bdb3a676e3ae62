//! What stays on the device: inbox, history, sessions, identities; and getting rid of it.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

#[path = "common/fake.rs"]
mod fake;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fake::Fake;
use stvor::{
    App, AppBuilder, Client, Clock, DeliveryState, Direction, Event, Events, Retention, SendOptions,
    SendWait, Timestamp,
};

fn builder(url: &str) -> AppBuilder {
    App::builder().app_token("stvor_dev_test123").relay_url(url).in_memory().timeout(Duration::from_secs(5))
}

async fn app_in(relay: &Fake, directory: &Path) -> App {
    builder(&relay.url()).data_dir(directory).open().await.unwrap()
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

async fn send_all(from: &Client, to: &str, count: usize) {
    let options = SendOptions { wait: SendWait::Committed, ..SendOptions::default() };
    let mut receipts = Vec::new();
    for number in 0..count {
        receipts.push(from.send_with(to, number.to_string(), options).await.unwrap());
    }
    for receipt in receipts {
        soon(receipt.delivered()).await.unwrap();
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connecting_at_once_from_everywhere_makes_one_identity_and_one_client() {
    let relay = Fake::start().await;
    let directory = tempfile::tempdir().unwrap();
    let (one, two) = (app_in(&relay, directory.path()).await, app_in(&relay, directory.path()).await);
    let tasks: Vec<_> = (0..16)
        .map(|number| {
            let app = if number % 2 == 0 { one.clone() } else { two.clone() };
            tokio::spawn(async move { app.connect("alice").await.unwrap() })
        })
        .collect();
    let mut identities = Vec::new();
    let mut clients = Vec::new();
    for task in tasks {
        let client = task.await.unwrap();
        identities.push(client.identity());
        clients.push(client);
    }
    identities.dedup();
    assert_eq!(identities.len(), 1);
    clients[0].block("mallory").await.unwrap();
    assert!(clients.iter().all(|client| client.is_blocked("mallory")));
    clients[3].close().await;
    assert_eq!(code(clients[5].send("bob", "x").await), "CLIENT_NOT_READY");
    // And again afterwards, at once.
    assert_eq!(soon(two.connect("alice")).await.unwrap().identity(), identities[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_everything_lets_the_next_one_open_the_store() {
    let relay = Fake::start().await;
    let directory = tempfile::tempdir().unwrap();
    let mut fingerprints = Vec::new();
    for _ in 0..3 {
        let app = app_in(&relay, directory.path()).await;
        let alice = soon(app.connect("alice")).await.unwrap();
        fingerprints.push(alice.identity().fingerprint);
        drop((app, alice));
    }
    fingerprints.dedup();
    assert_eq!(fingerprints.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn bobs_of_two_apps_and_relays_never_meet() {
    let directory = tempfile::tempdir().unwrap();
    let (one, two) = (Fake::start().await, Fake::start().await);
    let here = app_in(&one, directory.path()).await.connect("bob").await.unwrap();
    let there = app_in(&two, directory.path()).await.connect("bob").await.unwrap();
    let other = App::builder().app_token("stvor_dev_another").relay_url(one.url()).data_dir(directory.path());
    let other = other.open().await.unwrap().connect("bob").await.unwrap();
    let mut paths = vec![here.data_path().unwrap(), there.data_path().unwrap(), other.data_path().unwrap()];
    paths.dedup();
    assert_eq!(paths.len(), 3);
    assert_ne!(here.identity().fingerprint, there.identity().fingerprint);
    assert_ne!(here.identity().fingerprint, other.identity().fingerprint);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_opens_with_its_key_only() {
    let relay = Fake::start().await;
    let directory = tempfile::tempdir().unwrap();
    let with = |passphrase: &str| builder(&relay.url()).data_dir(directory.path()).passphrase(passphrase);
    let alice = with("right").open().await.unwrap().connect("alice").await.unwrap();
    alice.close().await;
    assert_eq!(code(with("wrong").open().await.unwrap().connect("alice").await), "WRONG_KEY");
    assert_eq!(code(app_in(&relay, directory.path()).await.connect("alice").await), "KEY_REQUIRED");
    with("right").open().await.unwrap().connect("alice").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keyfile_that_was_made_is_told() {
    let relay = Fake::start().await;
    let directory = tempfile::tempdir().unwrap();
    let alice = app_in(&relay, directory.path()).await.connect("alice").await.unwrap();
    let path = event(&mut alice.events(), |event| match event {
        Event::KeyfileCreated { path } => Some(path),
        _ => None,
    })
    .await;
    assert!(path.starts_with(alice.data_path().unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_offered_until_it_is_consumed() {
    let relay = Fake::start().await;
    let directory = tempfile::tempdir().unwrap();
    let alice = builder(&relay.url()).open().await.unwrap().connect("alice").await.unwrap();
    let app = app_in(&relay, directory.path()).await;
    let bob = app.connect("bob").await.unwrap();
    send_all(&alice, "bob", 4).await;

    let mut manual = bob.messages().manual_ack();
    let zero = soon(manual.next()).await.unwrap();
    assert_eq!(zero.text(), Some("0"));
    assert_eq!(soon(manual.next()).await.unwrap().text(), Some("1"));
    zero.ack().await.unwrap();
    zero.ack().await.unwrap();
    assert_eq!(bob.unconsumed(), 3);
    drop(manual);
    bob.close().await;
    assert_eq!(code(zero.ack().await), "CLIENT_NOT_READY");

    // 1 was not acknowledged, so it comes again, with its id; 2 and 3 were never handed out.
    let bob = app.connect("bob").await.unwrap();
    let mut inbox = bob.messages();
    assert_eq!(soon(inbox.next()).await.unwrap().text(), Some("1"));
    assert_eq!(soon(inbox.next()).await.unwrap().text(), Some("2"));
    // Closing consumes what was handed out.
    bob.close().await;
    assert!(inbox.next().await.is_none());
    let bob = app.connect("bob").await.unwrap();
    assert_eq!(soon(bob.messages().next()).await.unwrap().text(), Some("3"));
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_share_the_work_and_lose_nothing() {
    let relay = Fake::start().await;
    let (alice, bob) = pair(&relay).await;
    let (found, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let (mut inbox, found) = (bob.messages(), found.clone());
            tokio::spawn(async move {
                while let Some(message) = inbox.next().await {
                    found.send(message.text().unwrap().parse::<usize>().unwrap()).unwrap();
                }
            })
        })
        .collect();
    send_all(&alice, "bob", 300).await;
    let mut numbers = Vec::new();
    for _ in 0..300 {
        numbers.push(soon(seen.recv()).await.unwrap());
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (0..300).collect::<Vec<_>>());
    bob.close().await;
    for worker in workers {
        soon(worker).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inbox_larger_than_memorys_window_is_read_in_order() {
    let relay = Fake::start().await;
    let (alice, bob) = pair(&relay).await;
    let count = 2 * stvor::limits::INBOX_PAGE + 50;
    send_all(&alice, "bob", count).await;
    assert_eq!(bob.unconsumed(), count);
    let mut inbox = bob.messages();
    for number in 0..count {
        assert_eq!(soon(inbox.next()).await.unwrap().text(), Some(number.to_string().as_str()));
    }
    alice.send("bob", "live").await.unwrap();
    assert_eq!(soon(inbox.next()).await.unwrap().text(), Some("live"));
}

#[tokio::test(flavor = "multi_thread")]
async fn history_pages_from_newest_to_oldest_with_both_sides() {
    let relay = Fake::start().await;
    let (alice, bob) = pair(&relay).await;
    let mut inbox = alice.messages();
    for number in 0..10 {
        if number % 2 == 0 {
            soon(alice.send("bob", number.to_string()).await.unwrap().delivered()).await.unwrap();
        } else {
            bob.send("alice", number.to_string()).await.unwrap();
            let message = soon(inbox.next()).await.unwrap();
            alice.mark_read("bob", &[message.id]).await.unwrap();
        }
    }
    let mut cursor = None;
    let mut texts = Vec::new();
    let mut pages = 0;
    loop {
        let page = alice.history("bob").before(cursor).limit(3).load().await.unwrap();
        pages += 1;
        for message in &page.messages {
            let number: u32 = message.content.as_text().unwrap().parse().unwrap();
            let sent = number.is_multiple_of(2);
            assert_eq!(message.direction, if sent { Direction::Out } else { Direction::In });
            assert_eq!(message.received_at.is_none(), sent);
            assert_eq!(message.read, !sent);
            assert_eq!(message.status, DeliveryState::Delivered);
            texts.push(number);
        }
        cursor = page.before;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(pages, 4);
    assert_eq!(texts, (0..10).rev().collect::<Vec<_>>());
    assert!(alice.history("nobody").load().await.unwrap().messages.is_empty());
    let peers = alice.peers().await.unwrap();
    assert_eq!(peers.len(), 1);
    assert_eq!((peers[0].user.as_str(), peers[0].verified), ("bob", Some(false)));
    assert!(peers[0].last_message_at.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_user_reaches_nobody_and_learns_nothing() {
    let relay = Fake::start().await;
    let (alice, bob) = pair(&relay).await;
    let mut inbox = bob.messages();
    alice.send("bob", "before").await.unwrap();
    soon(inbox.next()).await.unwrap();
    bob.block("alice").await.unwrap();
    assert!(bob.is_blocked("alice"));
    let dropped = alice.send("bob", "dropped").await.unwrap();
    assert_eq!(code(bob.send("alice", "x").await), "PEER_BLOCKED");
    assert_eq!(code(bob.seal("alice", "x").await), "PEER_BLOCKED");
    let carol = builder(&relay.url()).open().await.unwrap().connect("carol").await.unwrap();
    carol.send("bob", "from carol").await.unwrap();
    assert_eq!(soon(inbox.next()).await.unwrap().from.as_str(), "carol");
    assert_eq!(dropped.status(), DeliveryState::Accepted);
    bob.unblock("alice").await.unwrap();
    alice.send("bob", "after").await.unwrap();
    assert_eq!(soon(inbox.next()).await.unwrap().text(), Some("after"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_conversation_is_gone_and_can_start_again() {
    let relay = Fake::start().await;
    let (alice, bob) = pair(&relay).await;
    send_all(&alice, "bob", 3).await;
    alice.safety_number("bob").await.unwrap();
    alice.verify("bob").await.unwrap();
    bob.delete_conversation("alice").await.unwrap();
    assert!(bob.history("alice").load().await.unwrap().messages.is_empty());
    assert!(bob.peers().await.unwrap().is_empty());
    alice.delete_conversation("bob").await.unwrap();
    assert!(alice.history("bob").load().await.unwrap().messages.is_empty());
    assert!(
        alice.safety_number("bob").await.unwrap().verified(),
        "a deletion gives nobody a second first contact"
    );
    let receipt = alice.send("bob", "again").await.unwrap();
    let mut inbox = bob.messages();
    assert_eq!(soon(inbox.next()).await.unwrap().text(), Some("again"));
    soon(receipt.delivered()).await.unwrap();
    bob.send("alice", "hello").await.unwrap();
    assert_eq!(soon(alice.messages().next()).await.unwrap().text(), Some("hello"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_without_retention_keeps_only_what_delivery_needs() {
    let relay = Fake::start().await;
    let (alice, bob) = pair(&relay).await;
    bob.set_retention("alice", Retention::None).await.unwrap();
    alice.set_retention("bob", Retention::None).await.unwrap();
    let mut inbox = bob.messages();
    let receipt = alice.send("bob", "fleeting").await.unwrap();
    let message = soon(inbox.next()).await.unwrap();
    assert_eq!(message.text(), Some("fleeting"));
    message.ack().await.unwrap();
    bob.mark_read("alice", &[message.id]).await.unwrap();
    soon(receipt.delivered()).await.unwrap();
    assert!(bob.history("alice").load().await.unwrap().messages.is_empty());
    assert!(alice.history("bob").load().await.unwrap().messages.is_empty());
    assert_eq!(bob.peers().await.unwrap()[0].retention, Retention::None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_session_is_replaced_and_messages_go_on_both_ways() {
    let relay = Fake::start().await;
    let (alice, bob) = pair(&relay).await;
    let (mut at_alice, mut at_bob) = (alice.messages(), bob.messages());
    alice.send("bob", "one").await.unwrap();
    soon(at_bob.next()).await.unwrap();
    bob.send("alice", "two").await.unwrap();
    soon(at_alice.next()).await.unwrap();
    let mut events = bob.events();
    alice.reset_session("bob").await.unwrap();
    event(&mut events, |event| matches!(event, Event::SessionStarted { .. }).then_some(())).await;
    bob.send("alice", "three").await.unwrap();
    assert_eq!(soon(at_alice.next()).await.unwrap().text(), Some("three"));
    alice.send("bob", "four").await.unwrap();
    assert_eq!(soon(at_bob.next()).await.unwrap().text(), Some("four"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_copy_of_the_store_is_noticed_before_it_sends_and_recovers() {
    let relay = Fake::start().await;
    let directory = tempfile::tempdir().unwrap();
    let (live, old) = (directory.path().join("live"), directory.path().join("old"));
    let bob = builder(&relay.url()).open().await.unwrap().connect("bob").await.unwrap();
    let mut inbox = bob.messages();
    let app = app_in(&relay, &live).await;
    let alice = app.connect("alice").await.unwrap();
    alice.send("bob", "first").await.unwrap();
    soon(inbox.next()).await.unwrap();
    alice.close().await;
    copy(&live, &old);
    let alice = app.connect("alice").await.unwrap();
    soon(alice.send("bob", "second").await.unwrap().delivered()).await.unwrap();
    soon(inbox.next()).await.unwrap();
    alice.close().await;
    std::fs::remove_dir_all(&live).unwrap();
    copy(&old, &live);

    let sent = relay.log().len();
    let asks = builder(&relay.url()).data_dir(&live).on_rollback(stvor::RollbackPolicy::Ask);
    let app = asks.open().await.unwrap();
    let alice = app.connect("alice").await.unwrap();
    let error = alice.send("bob", "third").await.unwrap_err();
    assert_eq!(error.code(), "ROLLBACK_DETECTED");
    assert!(error.to_string().contains("recover from the rollback"), "{error}");
    assert_eq!(code(alice.seal("bob", "third").await), "ROLLBACK_DETECTED");
    assert_eq!(relay.log().len(), sent);
    alice.recover_from_rollback().await.unwrap();
    soon(alice.send("bob", "third").await.unwrap().delivered()).await.unwrap();
    assert_eq!(soon(inbox.next()).await.unwrap().text(), Some("third"));
    bob.send("alice", "welcome back").await.unwrap();
    assert_eq!(soon(alice.messages().next()).await.unwrap().text(), Some("welcome back"));
    let mut positions = std::collections::HashSet::new();
    for send in relay.log() {
        let (key, number) = stvor_protocol::Incoming::parse(&send.blob).unwrap().position();
        assert!(positions.insert((key, number)), "no key is used twice");
    }
    alice.close().await;
    // The recovery is durable.
    let alice = app.connect("alice").await.unwrap();
    alice.send("bob", "fourth").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_that_expired_at_the_relay_is_told_once_for_each_loss() {
    let relay = Fake::start().await;
    let directory = tempfile::tempdir().unwrap();
    let bob = builder(&relay.url()).open().await.unwrap().connect("bob").await.unwrap();
    let app = app_in(&relay, directory.path()).await;
    let alice = app.connect("alice").await.unwrap();
    soon(bob.send("alice", "came").await.unwrap().delivered()).await.unwrap();
    let told = async |events: &mut Events| {
        let lost = std::cell::Cell::new(0);
        event(events, |event| {
            lost.set(lost.get() + usize::from(matches!(event, Event::MailLost)));
            matches!(event, Event::CaughtUp | Event::Connected).then_some(())
        })
        .await;
        lost.get()
    };
    let mut alice = alice;
    for loss in [false, true, false, true] {
        alice.close().await;
        if loss {
            bob.send("alice", "expires").await.unwrap();
            relay.expire("alice");
        }
        alice = app.connect("alice").await.unwrap();
        let mut events = alice.events();
        // A fresh connection while somebody listens ends what is looked at.
        relay.drop_user("alice");
        assert_eq!(told(&mut events).await, usize::from(loss));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bundles_for_other_transports_cost_no_prekey_that_the_relay_holds() {
    let relay = Fake::start().await;
    let (alice, bob) = pair(&relay).await;
    let mut exported = std::collections::HashSet::new();
    for _ in 0..25 {
        assert!(exported.insert(alice.export_bundle().await.unwrap()), "each has prekeys of its own");
    }
    // Whoever fetches from the relay still gets prekeys that Alice can use.
    let app = builder(&relay.url()).open().await.unwrap();
    let mut inbox = alice.messages();
    let mut events = alice.events();
    for number in 0..5 {
        let stranger = app.connect(format!("stranger{number}")).await.unwrap();
        soon(stranger.send("alice", number.to_string()).await.unwrap().delivered()).await.unwrap();
        assert_eq!(soon(inbox.next()).await.unwrap().text(), Some(&*number.to_string()));
    }
    // And so does who got one of the first bundles.
    let first = exported.into_iter().next().unwrap();
    bob.import_bundle(&first).await.unwrap();
    bob.send("alice", "by hand").await.unwrap();
    assert_eq!(soon(inbox.next()).await.unwrap().text(), Some("by hand"));
    app.close().await.unwrap();
    alice.close().await;
    while let Some(event) = events.next().await {
        assert!(!matches!(event, Event::MessageUndecryptable { .. }), "{event:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sealing_works_without_our_transport() {
    let relay = Fake::start().await;
    let (alice, bob) = pair(&relay).await;
    let bundle = bob.export_bundle().await.unwrap();
    assert_eq!(code(bob.import_bundle(&bundle).await), "BAD_BUNDLE");
    assert_eq!(alice.import_bundle(&bundle).await.unwrap().as_str(), "bob");
    let one = alice.seal("bob", "one").await.unwrap();
    let two = alice.seal("bob", serde_json::json!([2])).await.unwrap();
    assert!(!one.windows(3).any(|window| window == b"one"));
    // In any order, each once, and only by whom it is for.
    let opened = bob.open(&two).await.unwrap();
    assert_eq!(opened.content.unwrap().as_json(), Some(&serde_json::json!([2])));
    let opened = bob.open(&one).await.unwrap();
    assert_eq!((opened.content.unwrap().as_text(), opened.from.as_str()), (Some("one"), "alice"));
    assert_eq!(code(bob.open(&one).await), "DUPLICATE");
    assert_eq!(code(alice.open(&one).await), "UNDECRYPTABLE");
    assert_eq!(code(bob.open(b"nonsense").await), "FORMAT_INVALID");
    let back = bob.seal("alice", "back").await.unwrap();
    let mut altered = back.clone();
    *altered.last_mut().unwrap() ^= 1;
    assert_eq!(code(alice.open(&altered).await), "UNDECRYPTABLE");
    assert_eq!(alice.open(&back).await.unwrap().content.unwrap().as_text(), Some("back"));
    // Over the relay it is the same session.
    alice.send("bob", "by relay").await.unwrap();
    assert_eq!(soon(bob.messages().next()).await.unwrap().text(), Some("by relay"));
}

#[tokio::test(flavor = "multi_thread")]
async fn safety_numbers_match_on_both_sides_and_by_code() {
    let relay = Fake::start().await;
    let (alice, bob) = pair(&relay).await;
    let (here, there) =
        (alice.safety_number("bob").await.unwrap(), bob.safety_number("alice").await.unwrap());
    assert_eq!(here.to_string(), there.to_string());
    assert_eq!(here.digits().len(), 60);
    assert_eq!(here.to_string().split(' ').count(), 12);
    assert_eq!(here.matches_qr(&there.qr()), Some(true));
    assert_eq!(here.matches_qr(b"something else"), None);
    let carol = builder(&relay.url()).open().await.unwrap().connect("carol").await.unwrap();
    let other = carol.safety_number("alice").await.unwrap();
    assert_eq!(here.matches_qr(&other.qr()), Some(false));
    assert!(!here.verified());
    assert_eq!(code(alice.unverify("bob").await), "IDENTITY_NOT_VERIFIED");
}

/// A clock that a test moves.
struct Hands(AtomicU64);

impl Clock for Hands {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.0.load(Ordering::SeqCst))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_back_loses_and_reorders_nothing() {
    let relay = Fake::start().await;
    let now = Timestamp::system().as_millis();
    let hands = Arc::new(Hands(AtomicU64::new(now)));
    let clock: Arc<dyn Clock> = Arc::clone(&hands) as Arc<dyn Clock>;
    let app = builder(&relay.url()).clock(clock).open().await.unwrap();
    let (alice, bob) = (app.connect("alice").await.unwrap(), app.connect("bob").await.unwrap());
    let mut inbox = bob.messages();
    for number in 0..6_u64 {
        hands.0.store(now - number * 3_600_000, Ordering::SeqCst);
        soon(alice.send("bob", number.to_string()).await.unwrap().delivered()).await.unwrap();
        assert_eq!(soon(inbox.next()).await.unwrap().text(), Some(number.to_string().as_str()));
    }
    for client in [(&alice, "bob"), (&bob, "alice")] {
        let page = client.0.history(client.1).load().await.unwrap();
        let texts: Vec<_> = page.messages.iter().map(|message| message.content.as_text().unwrap()).collect();
        assert_eq!(texts, ["5", "4", "3", "2", "1", "0"]);
    }
}
