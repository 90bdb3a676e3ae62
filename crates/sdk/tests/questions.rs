//! Mail that waits for a person.
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

use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{app, builder, code, relay, soon};
use fake::Fake;
use stvor::{Event, Executor, MismatchPolicy, SendOptions, TrustPolicy, TrustReason};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

/// Bob is asked about Mallory, who sends `bodies`; Carol gets through meanwhile, and after a yes Mallory does, in order.
async fn held_up(bodies: Vec<String>) {
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
    for body in &bodies {
        soon(mallory.send("bob", body.as_str())).await.unwrap();
    }
    soon(carol.send("bob", "hello")).await.unwrap();
    let first = soon(inbox.next()).await.unwrap();
    assert_eq!((first.from.as_str(), first.text()), ("carol", Some("hello")), "while the question is open");
    answer.add_permits(1);
    for (number, body) in bodies.iter().enumerate() {
        let message = soon(inbox.next()).await.unwrap();
        assert_eq!(message.from.as_str(), "mallory");
        assert!(message.text() == Some(body), "{number} in its order");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_question_about_one_peer_holds_up_nobody_else_and_loses_none_of_their_mail() {
    // More than the relay sends without an acknowledgement and than failures of one peer are remembered, together.
    held_up((0..300).map(|number| number.to_string()).collect()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn long_mail_that_waits_for_an_answer_holds_up_nobody_else() {
    // More bytes than the relay sends without an acknowledgement.
    held_up((0..30).map(|number| format!("{number}{}", " ".repeat(60 * 1_024))).collect()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_on_a_session_with_a_friend_does_not_wait_for_the_answer_about_a_forger() {
    let relay = Fake::start().await;
    let (asked, mut question) = mpsc::unbounded_channel();
    let answer = Arc::new(Semaphore::new(0));
    let waited_for = Arc::clone(&answer);
    let careful = builder(&relay.url()).in_memory().on_identity_change(MismatchPolicy::Ask);
    let careful = careful.trust_callback(move |question| {
        let answer = Arc::clone(&waited_for);
        asked.send(question.reason).unwrap();
        async move { answer.acquire().await.is_err() }
    });
    let bob = careful.open().await.unwrap().connect("bob").await.unwrap();
    let alice = app(&relay.url()).await.connect("alice").await.unwrap();
    let mut inbox = bob.messages();
    soon(soon(alice.send("bob", "hello")).await.unwrap().delivered()).await.unwrap();
    assert_eq!(soon(inbox.next()).await.unwrap().text(), Some("hello"));
    let forger = app(&relay.url()).await.connect("alice").await.unwrap();
    soon(forger.send("bob", "forged")).await.unwrap();
    assert_eq!(soon(question.recv()).await, Some(TrustReason::IdentityChanged));
    forger.close().await;
    for number in 0..100 {
        soon(alice.send("bob", number.to_string())).await.unwrap();
    }
    for number in 0..100 {
        assert_eq!(soon(inbox.next()).await.unwrap().text(), Some(number.to_string().as_str()));
    }
    let mut events = bob.events();
    answer.add_permits(1);
    let refused = |event| match event {
        Event::IdentityChanged { accepted, .. } => Some(accepted),
        _ => None,
    };
    assert!(!common::event(&mut events, refused).await);
    soon(alice.send("bob", "still here")).await.unwrap();
    assert_eq!(soon(inbox.next()).await.unwrap().text(), Some("still here"));
}

#[tokio::test(flavor = "multi_thread")]
async fn sends_that_wait_for_an_answer_take_up_room_and_what_is_too_much_is_refused_at_once() {
    let relay = relay().await;
    let theirs = app(&relay.url()).await;
    let names = ["bob", "carol", "dave", "erin"];
    for name in names {
        theirs.connect(name).await.unwrap();
    }
    let answer = Arc::new(Semaphore::new(0));
    let waited_for = Arc::clone(&answer);
    let small = Executor { max_queued: 64, ..Executor::default() };
    let asking = builder(&relay.url()).in_memory().executor(small).trust_policy(TrustPolicy::Ask);
    let asking = asking.trust_callback(move |_| {
        let answer = Arc::clone(&waited_for);
        async move { answer.acquire().await.is_ok() }
    });
    let alice = asking.open().await.unwrap().connect("alice").await.unwrap();
    let mut sends = JoinSet::new();
    for number in 0..1_000 {
        let alice = alice.clone();
        sends.spawn(async move { alice.send(names[number % 4], number.to_string()).await });
    }
    for _ in 64..1_000 {
        let refused = soon(sends.join_next()).await.unwrap();
        assert_eq!(code(refused.unwrap()), "BACKPRESSURE", "while the questions are open");
    }
    answer.add_permits(1);
    while let Some(sent) = soon(sends.join_next()).await {
        sent.unwrap().unwrap();
    }
    for name in names {
        soon(alice.send(name, "there is room again")).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_can_be_judged_while_sends_that_wait_for_the_answer_fill_the_share() {
    let relay = relay().await;
    let bob = app(&relay.url()).await.connect("bob").await.unwrap();
    let mut inbox = bob.messages();
    let (told, mut asked) = mpsc::unbounded_channel();
    let small = Executor { max_queued_per_peer: Some(4), ..Executor::default() };
    let asking = builder(&relay.url()).in_memory().executor(small).trust_policy(TrustPolicy::Ask);
    let asking = asking.trust_callback(move |_| {
        told.send(()).unwrap();
        std::future::pending::<bool>()
    });
    let alice = asking.open().await.unwrap().connect("alice").await.unwrap();
    let mut sends = JoinSet::new();
    for number in 0..5 {
        let alice = alice.clone();
        sends.spawn(async move { alice.send("bob", number.to_string()).await });
    }
    let refused = soon(sends.join_next()).await.unwrap();
    assert_eq!(code(refused.unwrap()), "BACKPRESSURE");
    soon(asked.recv()).await.unwrap();
    let number = soon(alice.safety_number("bob")).await.unwrap();
    assert!(!number.verified());
    assert_eq!(code(soon(alice.send("bob", "no room")).await), "BACKPRESSURE");
    soon(alice.accept_identity("bob")).await.unwrap();
    while let Some(sent) = soon(sends.join_next()).await {
        sent.unwrap().unwrap();
    }
    for _ in 0..4 {
        assert_eq!(soon(inbox.next()).await.unwrap().from.as_str(), "alice");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_send_with_a_timeout_of_its_own_waits_no_longer_than_that_for_an_answer() {
    let relay = relay().await;
    let bob = app(&relay.url()).await.connect("bob").await.unwrap();
    let answer = Arc::new(Semaphore::new(0));
    let waited_for = Arc::clone(&answer);
    let (told, mut asked) = mpsc::unbounded_channel();
    let asking = builder(&relay.url()).in_memory().trust_policy(TrustPolicy::Ask).trust_callback(move |_| {
        let answer = Arc::clone(&waited_for);
        told.send(()).unwrap();
        async move { answer.acquire().await.is_ok() }
    });
    let alice = asking.open().await.unwrap().connect("alice").await.unwrap();
    let patient = alice.clone();
    let patient = tokio::spawn(async move { patient.send("bob", "whenever").await });
    soon(asked.recv()).await.unwrap();
    for timeout in [Duration::ZERO, Duration::from_millis(50)] {
        let options = SendOptions { timeout: Some(timeout), ..SendOptions::default() };
        assert_eq!(code(soon(alice.send_with("bob", "now or never", options)).await), "AWAITING_TRUST");
    }
    assert!(!patient.is_finished());
    answer.add_permits(1);
    soon(patient).await.unwrap().unwrap();
    soon(alice.send("bob", "and then")).await.unwrap();
    let mut inbox = bob.messages();
    for text in ["whenever", "and then"] {
        assert_eq!(soon(inbox.next()).await.unwrap().text(), Some(text));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_that_waits_for_an_answer_survives_the_process_and_is_asked_about_again() {
    let relay = Fake::start().await;
    let directory = tempfile::tempdir().unwrap();
    let alice = app(&relay.url()).await.connect("alice").await.unwrap();
    let asking = |answer: bool| {
        let asking = builder(&relay.url()).data_dir(directory.path()).trust_policy(TrustPolicy::Ask);
        asking.trust_callback(move |_| async move {
            if !answer {
                std::future::pending::<()>().await;
            }
            answer
        })
    };
    let bob = asking(false).open().await.unwrap().connect("bob").await.unwrap();
    for number in 0..10 {
        soon(alice.send("bob", number.to_string())).await.unwrap().accepted().await.unwrap();
    }
    soon(async {
        while relay.waiting("bob") > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    bob.close().await;
    let bob = asking(true).open().await.unwrap().connect("bob").await.unwrap();
    let mut inbox = bob.messages();
    for number in 0..10 {
        assert_eq!(soon(inbox.next()).await.unwrap().text(), Some(number.to_string().as_str()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callback_that_panics_answers_no() {
    let relay = relay().await;
    let _bob = app(&relay.url()).await.connect("bob").await.unwrap();
    let app = builder(&relay.url()).in_memory().trust_policy(TrustPolicy::Ask);
    let app = app.trust_callback(|question| async move { panic!("about {}", question.peer) });
    let alice = app.open().await.unwrap().connect("alice").await.unwrap();
    assert_eq!(code(soon(alice.send("bob", "x")).await), "IDENTITY_NOT_VERIFIED");
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
    assert_eq!(code(strict.verify("bob").await), "SAFETY_NUMBER_NOT_SHOWN");
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
