//! Mail that waits for a person.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests fail by panicking

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;

use common::{app, builder, relay, soon};
use stvor::TrustPolicy;
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
