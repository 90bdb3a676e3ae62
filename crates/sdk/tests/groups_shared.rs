//! Groups of a user whom several instances on one store are: one member, one chain, whichever of them sends.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod common;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use common::shared::{Fleet, Instance};
use common::{app, event, relay, soon};
use stvor::{Client, Event, GroupId};
use tokio::sync::mpsc;

fn texts(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}-{number}")).collect()
}

async fn send_all(client: Client, group: GroupId, texts: Vec<String>) {
    let group = client.group(group).await.unwrap();
    for text in texts {
        group.send(text).await.unwrap();
    }
}

/// Consumes messages of groups at an instance and notes them.
fn consume(instance: &Instance, seen: &mpsc::UnboundedSender<String>) {
    let seen = seen.clone();
    instance.spawn(move |client| async move {
        let mut messages = client.messages().manual_ack();
        while let Some(message) = messages.next().await {
            if message.ack().await.is_ok() {
                let _ = seen.send(message.text().unwrap_or_default().to_owned());
            }
        }
    });
}

/// Notes everything that comes to a client.
fn follow(client: &Client) -> mpsc::UnboundedReceiver<String> {
    let (tell, seen) = mpsc::unbounded_channel();
    let client = client.clone();
    tokio::spawn(async move {
        let mut messages = client.messages();
        while let Some(message) = messages.next().await {
            let _ = tell.send(message.text().unwrap_or_default().to_owned());
        }
    });
    seen
}

async fn all_once(seen: &mut mpsc::UnboundedReceiver<String>, mut expected: HashSet<String>) {
    soon(async {
        while !expected.is_empty() {
            let text = seen.recv().await.unwrap();
            assert!(expected.remove(&text), "{text} came twice, or from nowhere");
        }
    })
    .await;
}

/// Makes a group at an instance and waits until the others are in it.
async fn grouped(at: &Instance, members: &[&Client]) -> GroupId {
    let mut events: Vec<_> = members.iter().map(|client| client.events()).collect();
    let names: Vec<String> = members.iter().map(|client| client.user().to_string()).collect();
    let id = at.run(|client| async move { client.create_group("shared", names).await.unwrap().id() }).await;
    for events in &mut events {
        event(events, |event| matches!(event, Event::GroupJoined { group, .. } if group == id).then_some(()))
            .await;
    }
    id
}

async fn quiet(client: &Client, events: &mut stvor::Events) {
    client.close().await;
    while let Some(event) = events.next().await {
        assert!(!matches!(event, Event::MessageUndecryptable { .. }), "{event:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_send_to_a_group_receive_from_it_and_change_it_as_one_member() {
    let relay = relay().await;
    let directory = tempfile::tempdir().unwrap();
    let fleet = Fleet::in_memory(&relay.url(), directory.path());
    let others = app(&relay.url()).await;
    let bob = others.connect("bob").await.unwrap();
    let carol = others.connect("carol").await.unwrap();
    let (mut at_bob, mut at_carol) = (follow(&bob), follow(&carol));
    let (mut bobs_events, mut carols_events) = (bob.events(), carol.events());
    let mut instances = Vec::new();
    for _ in 0..3 {
        instances.push(fleet.start("alice").await);
    }
    let id = grouped(&instances[1], &[&bob, &carol]).await;
    // All at once: each message has a key of its own, or somebody would lack one.
    let mut sending = Vec::new();
    for (number, instance) in instances.iter().enumerate() {
        let mine = texts(&format!("alice{number}"), 20);
        sending.push(instance.spawn(move |client| send_all(client, id, mine)));
        let name = format!("by {number}");
        sending.push(instance.spawn(move |client| async move {
            client.group(id).await.unwrap().rename(name).await.unwrap();
        }));
    }
    for one in sending {
        soon(one).await.unwrap();
    }
    let all: HashSet<String> = (0..3).flat_map(|number| texts(&format!("alice{number}"), 20)).collect();
    all_once(&mut at_bob, all.clone()).await;
    all_once(&mut at_carol, all).await;

    // What members send comes to one of them, once.
    let (tell, mut at_alice) = mpsc::unbounded_channel();
    instances.iter().for_each(|instance| consume(instance, &tell));
    send_all(bob.clone(), id, texts("bob", 40)).await;
    send_all(carol.clone(), id, texts("carol", 40)).await;
    all_once(&mut at_alice, texts("bob", 40).into_iter().chain(texts("carol", 40)).collect()).await;

    // A change by one is a change for all of them, also when others made it.
    instances[2]
        .run(move |client| async move { client.group(id).await.unwrap().remove("carol").await.unwrap() })
        .await;
    bob.group(id).await.unwrap().rename("by bob").await.unwrap();
    let theirs = bob.group(id).await.unwrap();
    soon(async {
        loop {
            let mut states = vec![theirs.info().await.unwrap()];
            for instance in &instances {
                states.push(
                    instance
                        .run(move |client| async move { client.group(id).await.unwrap().info().await.unwrap() })
                        .await,
                );
            }
            let done = states.iter().all(|info| info.name == "by bob" && info.members.len() == 2);
            if done && states.iter().all(|info| info.state == states[0].state) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    // Who was put out reads nothing more, whichever of them sends.
    for (number, instance) in instances.iter().enumerate() {
        let mine = vec![format!("without carol {number}")];
        instance.run(move |client| send_all(client, id, mine)).await;
    }
    let mut without: HashSet<String> = (0..3).map(|number| format!("without carol {number}")).collect();
    soon(async {
        while !without.is_empty() {
            let text = at_bob.recv().await.unwrap();
            assert!(without.remove(&text) || text.starts_with("carol-"), "{text}");
        }
    })
    .await;
    bob.send("carol", "only you").await.unwrap();
    soon(async {
        loop {
            let text = at_carol.recv().await.unwrap();
            assert!(!text.starts_with("without"), "{text}");
            if text == "only you" {
                break;
            }
        }
    })
    .await;
    drop(instances);
    quiet(&bob, &mut bobs_events).await;
    quiet(&carol, &mut carols_events).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_are_killed_while_they_send_to_a_group_and_no_key_is_used_twice() {
    const ROUNDS: usize = 8;
    const EACH: usize = 6;
    let relay = relay().await;
    let directory = tempfile::tempdir().unwrap();
    let fleet = Fleet::in_memory(&relay.url(), directory.path());
    let others = app(&relay.url()).await;
    let bob = others.connect("bob").await.unwrap();
    let mut events = bob.events();
    let mut at_bob = follow(&bob);
    let mut instances = Vec::new();
    for life in 0..3 {
        instances.push((life, fleet.start("alice").await));
    }
    let id = grouped(&instances[0].1, &[&bob]).await;
    let (tell, mut at_alice) = mpsc::unbounded_channel();
    let (mut begun, mut sure, mut to_alice) = (HashSet::new(), HashSet::new(), HashSet::new());
    for round in 0..ROUNDS {
        let mut sending = Vec::new();
        for (life, instance) in &instances {
            for text in texts(&format!("alice{life}.{round}"), EACH) {
                begun.insert(text.clone());
                let mine = vec![text.clone()];
                sending.push((text, instance.spawn(move |client| send_all(client, id, mine))));
            }
        }
        let theirs = texts(&format!("bob{round}"), EACH);
        send_all(bob.clone(), id, theirs.clone()).await;
        to_alice.extend(theirs);
        // The first one receives; it goes, too.
        let victim = round % instances.len();
        let successor = (10 + round, fleet.start("alice").await);
        let (_, gone) = core::mem::replace(&mut instances[victim], successor);
        gone.kill();
        for (text, one) in sending {
            // What the outbox of the killed one had goes out all the same; what it had not taken does not.
            if one.await.is_ok() {
                sure.insert(text);
            }
        }
    }
    soon(async {
        while !sure.is_empty() {
            let text = at_bob.recv().await.unwrap();
            assert!(begun.remove(&text), "{text} came twice, or from nowhere");
            sure.remove(&text);
        }
    })
    .await;
    instances.iter().for_each(|(_, instance)| consume(instance, &tell));
    let mut counts: HashMap<String, usize> = HashMap::new();
    soon(async {
        while !to_alice.is_empty() {
            let text = at_alice.recv().await.unwrap();
            *counts.entry(text.clone()).or_default() += 1;
            to_alice.remove(&text);
        }
    })
    .await;
    assert!(counts.values().all(|count| *count == 1), "{counts:?}");
    drop(instances);
    quiet(&bob, &mut events).await;
}
