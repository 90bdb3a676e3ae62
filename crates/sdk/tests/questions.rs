//! Mail that waits for a person.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod common;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use common::{app, builder, code, relay, soon};
use stvor::{TrustPolicy, TrustReason};
use tokio::sync::Semaphore;

#[tokio::test(flavor = "multi_thread")]
async fn an_open_question_about_one_peer_holds_up_nobody_else_and_loses_none_of_their_mail() {
    // More than the relay sends without an acknowledgement, less than what is held and remembered of one peer.
    const COUNT: usize = 150;
    let relay = relay().await;
    let theirs = app(&relay.url()).await;
    let (mallory, carol) = (theirs.connect("mallory").await.unwrap(), theirs.connect("carol").await.unwrap());
    let answer = Arc::new(Semaphore::new(0));
    let waited_for = Arc::clone(&answer);
    let asking =
        builder(&relay.url()).in_memory().trust_policy(TrustPolicy::Ask).trust_callback(move |question| {
            let answer = Arc::clone(&waited_for);
            async move { question.peer.as_str() == "carol" || answer.acquire().await.is_ok() }
        });
    let asking = asking.open().await.unwrap();
    let bob = soon(asking.connect("bob")).await.unwrap();
    let mut inbox = bob.messages();
    for number in 0..COUNT {
        soon(mallory.send("bob", number.to_string())).await.unwrap();
    }
    soon(carol.send("bob", "hello")).await.unwrap();
    let first = soon(inbox.next()).await.unwrap();
    assert_eq!((first.from.as_str(), first.text()), ("carol", Some("hello")), "while the question is open");
    answer.add_permits(1);
    let mut arrived = BTreeSet::new();
    while arrived.len() < COUNT {
        let message = soon(inbox.next()).await.unwrap();
        assert_eq!(message.from.as_str(), "mallory");
        assert!(arrived.insert(message.text().unwrap().parse::<usize>().unwrap()), "once");
    }
    assert_eq!(arrived.last(), Some(&(COUNT - 1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_ask_and_verified_only_do_as_they_say() {
    let relay = relay().await;
    let bob = builder(&relay.url()).in_memory().open().await.unwrap().connect("bob").await.unwrap();

    let asked = Arc::new(Mutex::new(Vec::new()));
    let questions = Arc::clone(&asked);
    let ask = |answer: bool| {
        let questions = Arc::clone(&questions);
        builder(&relay.url()).in_memory().trust_policy(TrustPolicy::Ask).trust_callback(move |question| {
            questions.lock().unwrap().push((question.peer.to_string(), question.reason));
            async move { answer }
        })
    };
    let no = ask(false).open().await.unwrap().connect("no").await.unwrap();
    assert_eq!(code(soon(no.send("bob", "x")).await), "IDENTITY_NOT_VERIFIED");
    let yes = ask(true).open().await.unwrap().connect("yes").await.unwrap();
    soon(yes.send("bob", "asked")).await.unwrap();
    assert_eq!(*asked.lock().unwrap(), vec![("bob".to_owned(), TrustReason::FirstContact); 2]);

    let strict = builder(&relay.url())
        .in_memory()
        .trust_policy(TrustPolicy::VerifiedOnly)
        .open()
        .await
        .unwrap()
        .connect("strict")
        .await
        .unwrap();
    assert_eq!(code(soon(strict.send("bob", "x")).await), "IDENTITY_NOT_VERIFIED");
    assert_eq!(strict.safety_number("bob").await.unwrap(), strict.safety_number("bob").await.unwrap());
    strict.verify("bob").await.unwrap();
    assert!(strict.safety_number("bob").await.unwrap().verified());
    soon(strict.send("bob", "verified")).await.unwrap();
    let mut inbox = bob.messages();
    let texts = [soon(inbox.next()).await.unwrap(), soon(inbox.next()).await.unwrap()];
    assert_eq!(texts.map(|message| message.text().unwrap().to_owned()), ["asked", "verified"]);
    strict.unverify("bob").await.unwrap();
    assert_eq!(code(soon(strict.send("bob", "x")).await), "IDENTITY_NOT_VERIFIED");
}
