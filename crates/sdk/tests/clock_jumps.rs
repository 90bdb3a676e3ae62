//! A clock that jumps by 90 days, which is longer than anything is kept that is kept for a while, and back.
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
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fake::Fake;
use stvor::recipients::{Opening, Sealing};
use stvor::{
    App, AppBuilder, BackupOptions, Client, Clock, DeliveryState, Event, Events, Messages, Retention,
    SecretBytes, SendOptions, SendWait, Timestamp,
};
use stvor_testkit::VirtualClock;
use stvor_wire::server::{Acceptance, ServerMessage};

const JUMP: Duration = Duration::from_secs(90 * 86_400);
const NO_WAIT: SendOptions = SendOptions { timeout: None, wait: SendWait::Committed };

struct Set(VirtualClock);

impl Clock for Set {
    fn now(&self) -> Timestamp {
        self.0.now()
    }
}

fn builder(relay: &Fake) -> AppBuilder {
    App::builder().app_token("stvor_dev_test123").relay_url(relay.url()).timeout(Duration::from_secs(5))
}

async fn app_in(relay: &Fake, directory: &Path, clock: &VirtualClock) -> App {
    let clock = Arc::new(Set(clock.clone()));
    builder(relay).data_dir(directory).clock(clock).open().await.unwrap()
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), what).await.expect("it happens in time")
}

/// Waits for messages until all of these came, each once, and nothing else.
async fn comes(inbox: &mut Messages, texts: &[&str]) {
    let mut left = texts.to_vec();
    while !left.is_empty() {
        let message = soon(inbox.next()).await.expect("open");
        let text = message.text().unwrap();
        let at = left.iter().position(|one| *one == text);
        left.remove(
            at.unwrap_or_else(|| panic!("{text:?} came twice, or from nowhere; {left:?} is missing")),
        );
    }
}

/// Sends until it is told as delivered.
async fn delivered(from: &Client, to: &str, text: &str) {
    soon(from.send(to, text).await.unwrap().delivered()).await.unwrap();
}

/// What must not have been told up to the end of a client.
async fn assert_clean(mut events: Events, of: &str) {
    while let Some(event) = events.next().await {
        let bad = matches!(
            event,
            Event::MessageUndecryptable { .. }
                | Event::RollbackDetected { .. }
                | Event::CloneDetected
                | Event::DeliveryFailed { .. }
        );
        assert!(!bad, "{of}: {event:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jump_and_the_way_back_lose_double_and_reuse_nothing() {
    let (relay, directory) = (Fake::start().await, tempfile::tempdir().unwrap());
    let clock = VirtualClock::at(Timestamp::system());
    let app = app_in(&relay, directory.path(), &clock).await;
    let others = builder(&relay).in_memory().open().await.unwrap();
    let (bob, mut alice) = (others.connect("bob").await.unwrap(), app.connect("alice").await.unwrap());
    let (bobs_events, mut at_bob) = (bob.events(), bob.messages());
    delivered(&alice, "bob", "hello").await;
    comes(&mut at_bob, &["hello"]).await;
    let sealed = bob.seal("alice", "only once").await.unwrap();
    alice.open(&sealed).await.unwrap();
    for (round, jump) in ["", "forward", "back", "back", "forward"].into_iter().enumerate() {
        let events = alice.events();
        alice.close().await;
        assert_clean(events, "alice").await;
        // With prekeys of before, and on a session of before.
        let stranger = others.connect(format!("stranger{round}")).await.unwrap();
        let mut at_stranger = stranger.messages();
        let (first, second) = (format!("first {round}"), format!("away {round}"));
        stranger.send_with("alice", first.as_str(), NO_WAIT).await.unwrap();
        bob.send_with("alice", second.as_str(), NO_WAIT).await.unwrap();
        let _now = match jump {
            "forward" => clock.advance(JUMP),
            "back" => clock.set_back(JUMP),
            _ => clock.now(),
        };
        // What is due by the clock is done at the start: prekeys, and rows whose time is over.
        alice = app.connect("alice").await.unwrap();
        let mut at_alice = alice.messages();
        comes(&mut at_alice, &[first.as_str(), second.as_str()]).await;
        delivered(&alice, stranger.user().as_str(), "welcome").await;
        comes(&mut at_stranger, &["welcome"]).await;
        delivered(&alice, "bob", &first).await;
        comes(&mut at_bob, &[first.as_str()]).await;
        delivered(&bob, "alice", "both ways").await;
        comes(&mut at_alice, &["both ways"]).await;
        let again = alice.open(&sealed).await.unwrap_err().code();
        assert!(matches!(again, "DUPLICATE" | "UNDECRYPTABLE"), "after {jump}: {again}");
    }
    let events = alice.events();
    alice.close().await;
    others.close().await.unwrap();
    assert_clean(events, "alice").await;
    assert_clean(bobs_events, "bob").await;
    relay.saw_no_key_twice();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_message_waits_until_the_clock_is_right_again() {
    let (relay, directory) = (Fake::start().await, tempfile::tempdir().unwrap());
    let clock = VirtualClock::at(Timestamp::system());
    let app = app_in(&relay, directory.path(), &clock).await;
    let others = builder(&relay).in_memory().open().await.unwrap();
    let (bob, alice) = (others.connect("bob").await.unwrap(), app.connect("alice").await.unwrap());
    clock.advance(JUMP);
    // By this clock bob was away for 90 days.
    let bundle = bob.export_bundle().await.unwrap();
    assert_eq!(alice.import_bundle(&bundle).await.unwrap_err().code(), "STALE_BUNDLE");
    let receipt = soon(alice.send_with("bob", "waits", NO_WAIT)).await.unwrap();
    assert_eq!(receipt.status(), DeliveryState::Queued);
    clock.set_back(JUMP);
    soon(receipt.delivered()).await.unwrap();
    comes(&mut bob.messages(), &["waits"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_late_after_its_key_was_destroyed_is_sent_again() {
    let (relay, directory) = (Fake::start().await, tempfile::tempdir().unwrap());
    let clock = VirtualClock::at(Timestamp::system());
    let app = app_in(&relay, directory.path(), &clock).await;
    let others = builder(&relay).in_memory().open().await.unwrap();
    let (bob, alice) = (others.connect("bob").await.unwrap(), app.connect("alice").await.unwrap());
    let (mut at_alice, mut at_bob) = (alice.messages(), bob.messages());
    delivered(&alice, "bob", "hello").await;
    comes(&mut at_bob, &["hello"]).await;
    delivered(&bob, "alice", "hello").await;
    comes(&mut at_alice, &["hello"]).await;
    // The relay takes the next one and delivers it later.
    let held = Arc::new(Mutex::new(None));
    let hold = Arc::clone(&held);
    relay.on_send(move |send| {
        let mut held = hold.lock().unwrap();
        let holds = held.is_none() && send.recipient.to.user.as_str() == "alice";
        let msg_id = send.recipient.msg_id;
        holds.then(|| {
            *held = Some(msg_id);
            ServerMessage::Accepted { msg_id, acceptance: Acceptance::Durable }
        })
    });
    let deliver_late = || {
        let held = held.lock().unwrap();
        let index = relay.log().iter().position(|send| Some(send.recipient.msg_id) == *held).unwrap();
        relay.deliver_again("bob", index, None);
    };
    bob.send("alice", "late").await.unwrap();
    delivered(&bob, "alice", "early").await;
    comes(&mut at_alice, &["early"]).await;
    clock.advance(JUMP);
    delivered(&bob, "alice", "after").await;
    comes(&mut at_alice, &["after"]).await;
    deliver_late();
    comes(&mut at_alice, &["late"]).await;
    clock.set_back(JUMP);
    deliver_late();
    delivered(&bob, "alice", "last").await;
    comes(&mut at_alice, &["last"]).await;
    relay.saw_no_key_twice();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_sent_for_thirty_days_is_told_and_stays_in_the_history() {
    let (relay, directory) = (Fake::start().await, tempfile::tempdir().unwrap());
    let clock = VirtualClock::at(Timestamp::system());
    let app = app_in(&relay, directory.path(), &clock).await;
    let others = builder(&relay).in_memory().open().await.unwrap();
    let (bob, alice) = (others.connect("bob").await.unwrap(), app.connect("alice").await.unwrap());
    let mut at_bob = bob.messages();
    delivered(&alice, "bob", "hello").await;
    comes(&mut at_bob, &["hello"]).await;
    relay.end_with(Some(stvor_wire::Code::StoreUnavailable));
    relay.drop_user("alice");
    let receipt = alice.send_with("bob", "kept back", NO_WAIT).await.unwrap();
    let mut events = alice.events();
    clock.advance(JUMP);
    relay.end_with(None);
    let next = alice.send_with("bob", "next", NO_WAIT).await.unwrap();
    let failed = soon(async {
        loop {
            if let Event::DeliveryFailed { id, code, .. } = events.next().await.unwrap() {
                return (id, code);
            }
        }
    });
    assert_eq!(failed.await, (receipt.id(), "EXPIRED"));
    clock.set_back(JUMP);
    soon(next.delivered()).await.unwrap();
    comes(&mut at_bob, &["next"]).await;
    let page = alice.history("bob").load().await.unwrap();
    let states: Vec<_> =
        page.messages.iter().map(|one| (one.content.as_text().unwrap(), one.status)).collect();
    assert_eq!(
        states,
        [
            ("next", DeliveryState::Delivered),
            ("kept back", DeliveryState::Failed),
            ("hello", DeliveryState::Delivered)
        ]
    );
    // By hand, as the application may.
    delivered(&alice, "bob", "kept back").await;
    comes(&mut at_bob, &["kept back"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_goes_by_the_clock_and_leaves_what_nobody_has_read() {
    let (relay, directory) = (Fake::start().await, tempfile::tempdir().unwrap());
    let clock = VirtualClock::at(Timestamp::system());
    let app = app_in(&relay, directory.path(), &clock).await;
    let others = builder(&relay).in_memory().open().await.unwrap();
    let (bob, mut alice) = (others.connect("bob").await.unwrap(), app.connect("alice").await.unwrap());
    let carol = others.connect("carol").await.unwrap();
    alice.set_retention("bob", Retention::For(Duration::from_secs(86_400))).await.unwrap();
    let mut at_alice = alice.messages();
    for text in ["read", "shown"] {
        delivered(&bob, "alice", text).await;
        comes(&mut at_alice, &[text]).await;
    }
    delivered(&carol, "alice", "for ever").await;
    comes(&mut at_alice, &["for ever"]).await;
    drop(at_alice);
    delivered(&bob, "alice", "unread").await;
    for jump in ["forward", "back"] {
        alice.close().await;
        match jump {
            "forward" => clock.advance(JUMP),
            _ => clock.set_back(JUMP),
        };
        alice = app.connect("alice").await.unwrap();
        delivered(&carol, "alice", jump).await;
        let left = alice.history("bob").load().await.unwrap().messages;
        let unread = left.iter().any(|one| one.content.as_text() == Some("unread"));
        // By this clock its time is over as well: it is not shown, and not lost.
        assert_eq!(unread, jump == "back");
        assert!(unread || left.is_empty());
        let kept = alice.history("carol").load().await.unwrap().messages;
        assert_eq!(kept.last().unwrap().content.as_text(), Some("for ever"));
    }
    comes(&mut alice.messages(), &["unread", "forward", "back"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_after_the_way_back_is_not_removed_for_one_of_the_jump() {
    let (relay, directory) = (Fake::start().await, tempfile::tempdir().unwrap());
    let (backups, restored) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let clock = VirtualClock::at(Timestamp::system());
    let app = app_in(&relay, directory.path(), &clock).await;
    let others = builder(&relay).in_memory().open().await.unwrap();
    let (bob, alice) = (others.connect("bob").await.unwrap(), app.connect("alice").await.unwrap());
    let secret = SecretBytes::from_slice(b"correct horse");
    let back_up = async || {
        let sealing = Sealing::passphrase_with_work(&secret, 4).unwrap();
        let made = alice.backup(backups.path(), sealing, BackupOptions::default().keep(1)).await.unwrap();
        clock.advance(Duration::from_millis(5));
        made
    };
    delivered(&alice, "bob", "one").await;
    let before = back_up().await;
    clock.advance(JUMP);
    let ahead = back_up().await;
    assert_eq!(ahead.removed, [before.path]);
    clock.set_back(JUMP);
    delivered(&alice, "bob", "two").await;
    comes(&mut bob.messages(), &["one", "two"]).await;
    let after = back_up().await;
    assert!(after.path.exists());
    assert_eq!(after.removed, [ahead.path], "it is older, whatever its name says");
    let last = back_up().await;
    assert_eq!(last.removed, [after.path]);
    alice.close().await;
    let app = app_in(&relay, restored.path(), &clock).await;
    let restored = app.restore(&last.path, Opening::passphrase(&secret).unwrap(), None).await.unwrap();
    assert_eq!(restored.messages, 2);
}
