//! What strangers and members can make the task that keeps groups do.

use std::sync::Arc;

use stvor_base::{Address, DeviceId, GroupId, Timestamp, UserId};
use stvor_crypto::SystemRandom;
use stvor_protocol::Identity;
use stvor_protocol::group::{Action, Group as State, GroupContent, Member, SignedChangeIn, limits as bounds};
use stvor_store::{ChangeSet, Scan, Table};

use super::actor::Actor;
use super::desk::Desk;
use super::rows::{self, MailRow};
use crate::{App, Client, ConnectOptions, Event, limits};

async fn offline_client() -> Client {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let app = App::builder().app_token("stvor_dev_test123").relay_url(format!("ws://{nobody}"));
    let app = app.in_memory().open().await.unwrap();
    let options = ConnectOptions { allow_unregistered: true, ..ConnectOptions::default() };
    app.connect_with("alice", options).await.unwrap()
}

fn identity(client: &Client, name: &str) -> Identity {
    let address = Address::new(UserId::new(name).unwrap(), DeviceId::FIRST);
    let app = client.core().identity.app().clone();
    Identity::create(&app, &address, Timestamp::system(), &mut SystemRandom::new()).unwrap().0
}

/// Hands content of a member to the task, as a lane does, and has it judged.
async fn tell(actor: &mut Actor, from: &Identity, content: &GroupContent) {
    let core = Arc::clone(&actor.core);
    let row = MailRow {
        from: from.address().clone(),
        key: Some(*from.user_key()),
        id: Desk::no_id(),
        arrived_at: core.now(),
        body: content.encode().expose().to_vec(),
    };
    let mut changes = ChangeSet::new();
    core.groups.put_mail(&row, &mut changes);
    core.store.commit(changes).await.unwrap();
    actor.take_mail().await;
}

async fn mail(actor: &Actor) -> usize {
    let scan = Scan::of(Table::Group, rows::MAIL);
    actor.core.store.scan_all(scan, 10_000).await.unwrap().len()
}

async fn refused(events: &mut crate::Events) -> &'static str {
    loop {
        if let Some(Event::MessageUndecryptable { code, .. }) = events.next().await {
            return code;
        }
    }
}

#[tokio::test]
async fn nothing_that_somebody_sends_makes_a_group_go_away() {
    let client = offline_client().await;
    let mut events = client.events();
    let group = client.create_group("ours", [""; 0]).await.unwrap();
    let mallory = identity(&client, "mallory");
    let mut actor = Actor::new(Arc::clone(client.core()));
    let (own, _) = State::create(&mallory, "hers", Timestamp::system(), &mut SystemRandom::new()).unwrap();
    let foreign: Vec<SignedChangeIn> = own.beyond(&[]);
    let garbage = SignedChangeIn { bytes: vec![2; 40], signature: vec![0; 64] };
    let mut unsigned = foreign[0].clone();
    unsigned.signature[0] ^= 1;
    for changes in [vec![garbage], vec![unsigned], foreign] {
        tell(&mut actor, &mallory, &GroupContent::Changes(group.id(), changes)).await;
        assert_eq!(refused(&mut events).await, "BAD_GROUP_CHANGE");
        assert_eq!(actor.info(group.id()).unwrap().name, "ours");
        assert_eq!(mail(&actor).await, 0);
    }
}

#[tokio::test]
async fn who_was_put_out_gets_no_news_and_a_stranger_nothing() {
    let client = offline_client().await;
    let (bob, mallory) = (identity(&client, "bob"), identity(&client, "mallory"));
    let mut actor = Actor::new(Arc::clone(client.core()));
    let core = Arc::clone(&actor.core);
    let mut rng = SystemRandom::new();
    let (mut state, _) = State::create(&core.identity, "g", core.now(), &mut rng).unwrap();
    let member = Member { user: bob.user().clone(), key: *bob.user_key() };
    for action in
        [Action::Add(vec![member]), Action::Remove(bob.user().clone()), Action::Rename("secret".into())]
    {
        let _ = state.change(&core.identity, (action, core.now()), &mut rng).unwrap();
    }
    let id = state.id();
    actor.load().await.unwrap();
    actor.groups.insert(id, state);
    let effects = actor.groups[&id].save();
    let mut turn = super::turn::Turn { effects, ..Default::default() };
    turn.new.insert(id, rows::GroupRow { joined_at: core.now() });
    assert!(actor.commit(turn).await.is_ok());
    for (who, wanted) in [(&mallory, 0), (&bob, 1)] {
        tell(&mut actor, who, &GroupContent::WantChanges(id, Vec::new())).await;
        let scan = Scan::of(Table::Outbox, rows::BODIES);
        let told = core.store.scan_all(scan, 10).await.unwrap();
        assert_eq!(told.len(), wanted, "{}", who.user());
        for body in told {
            let GroupContent::Changes(_, changes) =
                GroupContent::decode(stvor_base::Suite::P256, &body.value).unwrap()
            else {
                panic!("something else")
            };
            assert_eq!(changes.len(), 3, "up to the removal");
        }
    }
}

#[tokio::test]
async fn groups_that_do_not_have_us_take_a_bounded_place() {
    let client = offline_client().await;
    let mut events = client.events();
    let (mallory, bob) = (identity(&client, "mallory"), identity(&client, "bob"));
    let mut actor = Actor::new(Arc::clone(client.core()));
    let made =
        |by: &Identity| State::create(by, "x", Timestamp::system(), &mut SystemRandom::new()).unwrap().0;
    for _ in 0..limits::MAX_JOINING_OF_ONE {
        let group = made(&mallory);
        tell(&mut actor, &mallory, &GroupContent::Changes(group.id(), group.beyond(&[]))).await;
    }
    assert_eq!(actor.joining.len(), limits::MAX_JOINING_OF_ONE);
    let group = made(&mallory);
    tell(&mut actor, &mallory, &GroupContent::Changes(group.id(), group.beyond(&[]))).await;
    assert_eq!(refused(&mut events).await, "GROUP_FULL");
    assert_eq!(actor.joining.len(), limits::MAX_JOINING_OF_ONE);
    // Somebody else's are still taken, and joined once they have us in them.
    let mut group = made(&bob);
    tell(&mut actor, &bob, &GroupContent::Changes(group.id(), group.beyond(&[]))).await;
    let us = Member { user: client.core().identity.user().clone(), key: *client.core().identity.user_key() };
    let now = (Action::Add(vec![us]), Timestamp::system());
    let (change, _) = group.change(&bob, now, &mut SystemRandom::new()).unwrap();
    tell(&mut actor, &bob, &GroupContent::Changes(group.id(), vec![change.change])).await;
    assert!(actor.info(group.id()).unwrap().is_member);
    assert_eq!(mail(&actor).await, limits::MAX_JOINING_OF_ONE, "what waited for it is judged");
}

#[tokio::test]
async fn changes_of_a_group_that_does_not_have_us_fill_16_mib_at_most() {
    let client = offline_client().await;
    let mallory = identity(&client, "mallory");
    let mut actor = Actor::new(Arc::clone(client.core()));
    let mut rng = SystemRandom::new();
    let (mut group, made) = State::create(&mallory, "x", Timestamp::system(), &mut rng).unwrap();
    let longest = |number: usize| Member {
        user: UserId::new(&format!("{number:0>256}")).unwrap(),
        key: *mallory.user_key(),
    };
    let members: Vec<Member> = (0..bounds::MAX_CHANGE_MEMBERS).map(longest).collect();
    let id: GroupId = group.id();
    tell(&mut actor, &mallory, &GroupContent::Changes(id, vec![made.change])).await;
    let mut most = 0;
    loop {
        let action = (Action::Add(members.clone()), Timestamp::system());
        let Ok((made, _)) = group.change(&mallory, action, &mut rng) else { break };
        tell(&mut actor, &mallory, &GroupContent::Changes(id, vec![made.change])).await;
        let held = actor.joining.get(&id).map_or(0, |joining| joining.bytes);
        most = most.max(held);
        assert!(held <= limits::MAX_JOINING_BYTES_OF_ONE);
        assert!(mail(&actor).await <= limits::MAX_GROUP_WAITING_OF_ONE);
    }
    assert!(most > limits::MAX_JOINING_BYTES_OF_ONE / 2, "{most}");
}

#[tokio::test]
async fn a_group_of_1000_is_made_written_to_and_changed_and_takes_no_more() {
    let client = offline_client().await;
    let key = *identity(&client, "somebody").user_key();
    let named = |number: usize| Member { user: UserId::new(&format!("member{number:04}")).unwrap(), key };
    let mut actor = Actor::new(Arc::clone(client.core()));
    let posts = async |actor: &Actor| {
        let scan = Scan::of(Table::Outbox, rows::POSTS);
        actor.core.store.scan_all(scan, 20_000).await.unwrap().len()
    };
    let mut costs = Vec::new();
    let mut since = std::time::Instant::now();
    let mut cost = |what: &'static str| {
        costs.push(format!("{what} {:.1} ms", since.elapsed().as_secs_f64() * 1_000.0));
        since = std::time::Instant::now();
    };
    let id = actor.create("big", (1..bounds::MAX_MEMBERS).map(named).collect()).await.ok().unwrap();
    cost("create");
    let bodies = posts(&actor).await / (bounds::MAX_MEMBERS - 1);
    assert_eq!(posts(&actor).await, bodies * (bounds::MAX_MEMBERS - 1), "all changes to each member");
    let content = |number: u8| (stvor_base::ContentId::from_bytes([number; 16]), "hello".into());
    cost("count");
    assert!(actor.send(id, content(1)).await.is_ok());
    cost("first message, with the key for each member");
    assert_eq!(posts(&actor).await, (bodies + 2) * (bounds::MAX_MEMBERS - 1), "a key and a message each");
    cost("count");
    assert!(actor.send(id, content(2)).await.is_ok());
    cost("message");
    assert_eq!(posts(&actor).await, (bodies + 3) * (bounds::MAX_MEMBERS - 1));
    cost("count");
    let full = actor.change(id, &super::desk::Ask::Add(vec![named(1_000)])).await;
    assert_eq!(full.map_err(crate::Error::from).unwrap_err().code(), "GROUP_FULL");
    cost("refusal");
    let gone = super::desk::Ask::Remove(named(1).user);
    assert!(actor.change(id, &gone).await.is_ok());
    cost("removal");
    assert!(actor.change(id, &super::desk::Ask::Add(vec![named(1_000)])).await.is_ok());
    cost("add");
    assert!(actor.send(id, content(3)).await.is_ok());
    cost("message on a new chain");
    assert_eq!(actor.info(id).unwrap().members.len(), bounds::MAX_MEMBERS);
    // Shown by a failure, and with --nocapture.
    println!("a group of 1,000: {}", costs.join(", "));
}

#[tokio::test]
async fn posts_that_no_lane_took_come_back_when_the_task_ends_by_a_fault() {
    let client = offline_client().await;
    let core = Arc::clone(client.core());
    let bob = identity(&client, "bob");
    let mut actor = Actor::new(Arc::clone(&core));
    let mut changes = ChangeSet::new();
    let body = core.groups.body(stvor_crypto::SecretBytes::from_slice(b"x"), core.now(), &mut changes);
    let mut post = || {
        let to = (bob.address().clone(), *bob.user_key());
        core.groups.post(to, (&body, rows::PostKind::Content), (core.now(), None), &mut changes)
    };
    let (first, second, never) = (post(), post(), post());
    let numbers = [first.seq, second.seq];
    drop(never);
    assert!(core.groups.take_back().is_empty(), "what was never committed is nobody's");
    let posts = [first, second];
    core.groups.open_all(&posts);
    actor.backlog.extend(posts.into_iter().map(Arc::new));
    drop(actor);
    let back = core.groups.take_back();
    assert_eq!(back.iter().map(|post| post.seq).collect::<Vec<_>>(), numbers);
    assert_eq!(core.groups.open_posts(), 2);
    back.iter().for_each(|post| core.groups.posted(post));
    drop(back);
    assert!(core.groups.take_back().is_empty() && core.groups.open_posts() == 0);
}

#[tokio::test]
async fn group_mail_of_one_sender_fills_its_part_and_leaves_room_for_others() {
    let client = offline_client().await;
    let groups = &client.core().groups;
    let (eve, bob) = (UserId::new("eve").unwrap(), UserId::new("bob").unwrap());
    groups.mailed(&eve, limits::MAX_GROUP_MAIL_OF_ONE - 1);
    assert!(groups.has_room_of(&eve, 0) && !groups.has_room_of(&eve, 1) && groups.has_room_of(&bob, 1));
    let judged = |count: usize| (0..count as u64).map(|seq| (seq, Some(eve.clone()))).collect::<Vec<_>>();
    groups.judged(&judged(limits::MAX_GROUP_MAIL_OF_ONE / 2 - 2));
    assert!(!groups.has_room_of(&eve, 0) && !groups.has_room_again(), "until half of it is judged");
    groups.judged(&judged(1));
    assert!(groups.has_room_again() && groups.has_room_of(&eve, 0));
}
