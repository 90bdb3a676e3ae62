//! What strangers and members can make the task that keeps groups do.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::join_all;
use stvor_base::{Address, ContentId, DeviceId, GroupId, KeyBytes, Timestamp, UserId};
use stvor_crypto::{SecretBytes, SystemRandom};
use stvor_protocol::group::{
    Action, Again, ChainId, Group as State, GroupContent, GroupEncrypted, GroupIncoming, Member,
    SignedChangeIn, limits as bounds,
};
use stvor_protocol::{ContentKind, EarlierKey, Identity, Pin, Plaintext, RecordKey, RecordKind};
use stvor_store::{ChangeSet, Scan, Table};

use super::actor::Actor;
use super::desk::Desk;
use super::rows::{self, MailRow};
use super::waiting::{Lacks, Parked};
use crate::clock::testing::soon;
use crate::hiccups::{self, Hiccups};
use crate::{App, Client, ConnectOptions, Event, Executor, OnPressure, limits};

async fn offline_client() -> Client {
    offline_client_with(Executor::default()).await
}

async fn offline_client_with(executor: Executor) -> Client {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let app = App::builder().app_token("stvor_dev_test123").relay_url(format!("ws://{nobody}"));
    let app = app.in_memory().executor(executor).open().await.unwrap();
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
    hand(actor, from, (Some(*from.user_key()), content.encode().expose())).await;
}

/// Hands a message of a member to all to the task, and has it judged.
async fn deliver(actor: &mut Actor, from: &Identity, blob: &[u8]) {
    hand(actor, from, (None, blob)).await;
}

async fn hand(actor: &mut Actor, from: &Identity, (key, body): (Option<KeyBytes>, &[u8])) {
    let core = Arc::clone(&actor.core);
    let row = MailRow {
        from: from.address().clone(),
        key,
        id: Desk::no_id(),
        arrived_at: core.now(),
        body: body.to_vec(),
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

/// A post to a peer, as it is in the store.
pub(crate) async fn stored_post(core: &crate::core::Core, to: &Address) -> super::Post {
    let mut changes = ChangeSet::new();
    let body = core.groups.body(SecretBytes::from_slice(b"x"), core.now(), &mut changes);
    let to = (to.clone(), [4; 65].into());
    let post = core.groups.post(to, (&body, rows::PostKind::Content), (core.now(), None), &mut changes);
    core.store.commit(changes).await.unwrap();
    post
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
async fn all_messages_that_one_key_is_missing_for_are_asked_for_together() {
    let client = offline_client().await;
    let core = client.core();
    let mut actor = Actor::new(Arc::clone(core));
    let bob = identity(&client, "bob");
    let list = bob.signed_list().validate(core.identity.app(), bob.user()).unwrap();
    let mut changes = ChangeSet::new();
    let pin = Pin::new(&list, false, core.now());
    changes.put(crate::records::key(&RecordKey::pin(bob.user())).unwrap(), pin.to_record());
    core.store.commit(changes).await.unwrap();
    let parked = |chain, counter, since| Parked {
        since,
        arrived_at: Timestamp::system(),
        from: bob.address().clone(),
        lacks: Lacks::Key([chain; 16], counter),
        again: false,
        told: false,
    };
    let now = tokio::time::Instant::now();
    let long_ago = now.checked_sub(limits::GROUP_PATIENCE).unwrap();
    for (seq, one) in [(1, parked(1, 0, long_ago)), (2, parked(1, 1, now)), (3, parked(2, 0, now))] {
        assert_eq!(actor.waiting.put(seq, one), None);
    }
    let mut events = client.events();
    actor.ask_for_missing().await;
    let told = soon(async {
        loop {
            if let Some(Event::SenderKeyMissing { messages, .. }) = events.next().await {
                break messages;
            }
        }
    });
    assert_eq!(told.await, 2);
    let bodies = core.store.scan_all(Scan::of(Table::Outbox, rows::BODIES), 10).await.unwrap();
    let [asked] = &bodies[..] else { panic!("{} requests", bodies.len()) };
    let asked = GroupContent::decode(stvor_base::Suite::P256, &asked.value).unwrap();
    let GroupContent::WantKey(chain, counters) = asked else { panic!("{asked:?}") };
    assert_eq!((chain, counters), ([1; 16], vec![0, 1]));
    assert!(!actor.waiting.get(3).unwrap().told, "its key may be on its way");
}

#[tokio::test]
async fn what_was_sent_since_a_sender_key_was_asked_for_is_said_again_too_and_64_messages_at_most() {
    let client = offline_client().await;
    let core = Arc::clone(client.core());
    let bob = identity(&client, "bob");
    let mut actor = Actor::new(Arc::clone(&core));
    let member = Member { user: bob.user().clone(), key: *bob.user_key() };
    let id = actor.create("ours", vec![member]).await.ok().unwrap();
    let most = u8::try_from(bounds::MAX_REQUESTED).unwrap();
    for number in 0..most + 2 {
        let content = (ContentId::from_bytes([number; 16]), "hello".into());
        assert!(actor.send(id, content).await.is_ok());
    }
    let bodies = async || core.store.scan_all(Scan::of(Table::Outbox, rows::BODIES), 1_000).await.unwrap();
    let sent = bodies().await;
    let newest = sent.iter().rev().find_map(|body| GroupIncoming::parse(body.value.expose()).ok());
    let chain = *newest.unwrap().chain();
    tell(&mut actor, &bob, &GroupContent::WantKey(chain, vec![1])).await;
    let mut again = Vec::new();
    for body in bodies().await {
        if let Ok(GroupContent::Again(one)) = GroupContent::decode(stvor_base::Suite::P256, &body.value) {
            assert_eq!(one.place.map(|(chain, _)| chain), Some(chain));
            again.push(one.content);
        }
    }
    assert_eq!(again, (1..=most).map(|number| ContentId::from_bytes([number; 16])).collect::<Vec<_>>());
}

/// A message of Bob's to all, as he seals it.
fn said(client: &Client, bob: &Identity, group: &mut State, number: u8) -> GroupEncrypted {
    let his = stvor_protocol::Context { identity: bob, ..crate::lane::context(client.core()) };
    let words = Plaintext {
        content: ContentId::from_bytes([number; 16]),
        kind: ContentKind::Text,
        body: SecretBytes::from_slice(b"hello"),
    };
    group.encrypt(&his, &words, &mut SystemRandom::new()).unwrap()
}

/// The sender key of Bob's group as he gives it to us once more: where it stands.
fn key_again(client: &Client, group: &State, chain: &ChainId) -> GroupContent {
    let us = &client.core().identity;
    let us = Member { user: us.user().clone(), key: *us.user_key() };
    let key = group.introduce_again(&us, chain).unwrap();
    GroupContent::decode(stvor_base::Suite::P256, &key).unwrap()
}

#[tokio::test]
async fn a_message_before_the_place_of_a_key_that_came_waits_until_it_is_said_again() {
    for restarts in [false, true] {
        let client = offline_client().await;
        let core = Arc::clone(client.core());
        let mut events = client.events();
        let mut actor = Actor::new(Arc::clone(&core));
        let (bob, _, _, mut group) = rotated_member(&mut actor, &client).await;
        let [first, second] = [0, 1].map(|number| said(&client, &bob, &mut group, number));
        let (chain, _) = first.place;
        let key = key_again(&client, &group, &chain);
        let third = said(&client, &bob, &mut group, 2);
        // The first and the third came twice.
        for one in [&first, &second, &first, &third, &third] {
            deliver(&mut actor, &bob, &one.blob).await;
        }
        assert_eq!(mail(&actor).await, 5);
        tell(&mut actor, &bob, &key).await;
        assert_eq!(mail(&actor).await, 3, "the key is of the third");
        if restarts {
            // So it is where another instance takes over.
            actor = Actor::new(Arc::clone(&core));
        } else {
            // After a failure of the store all is judged once more.
            actor.waiting.all_again();
        }
        // What was read waits for nothing.
        deliver(&mut actor, &bob, &third.blob).await;
        assert_eq!(mail(&actor).await, 3, "restarts: {restarts}");
        let waits = |actor: &Actor, lacks: Lacks| actor.waiting.iter().any(|(_, one)| one.lacks == lacks);
        assert!([0, 1].iter().all(|number| waits(&actor, Lacks::Key(chain, *number))), "it is asked for");
        let mut repaired = Vec::new();
        for number in 0..2_u8 {
            let again = Again {
                group: group.id(),
                place: Some((chain, number.into())),
                content: ContentId::from_bytes([number; 16]),
                sent_at: core.now(),
                kind: 1,
                body: b"hello".to_vec(),
            };
            tell(&mut actor, &bob, &GroupContent::Again(again)).await;
            assert_eq!(mail(&actor).await, usize::from(1 - number));
            let shown = soon(async {
                loop {
                    if let Some(Event::Repaired { id, .. }) = events.next().await {
                        break id;
                    }
                }
            });
            repaired.push(shown.await);
        }
        assert_eq!(repaired, [0, 1].map(|number| ContentId::from_bytes([number; 16])));
        // What was said again is read, too.
        for mut actor in [actor, Actor::new(Arc::clone(&core))] {
            for one in [&first, &second] {
                deliver(&mut actor, &bob, &one.blob).await;
                assert_eq!(mail(&actor).await, 0);
            }
        }
    }
}

#[tokio::test]
async fn a_message_of_before_a_key_that_did_not_wait_for_it_is_not_asked_for() {
    let client = offline_client().await;
    let core = Arc::clone(client.core());
    let mut actor = Actor::new(Arc::clone(&core));
    let (bob, _, _, mut group) = rotated_member(&mut actor, &client).await;
    let [before, waiting] = [0, 1].map(|number| said(&client, &bob, &mut group, number));
    deliver(&mut actor, &bob, &waiting.blob).await;
    let (chain, _) = waiting.place;
    tell(&mut actor, &bob, &key_again(&client, &group, &chain)).await;
    // As who joined gets none of the past, whoever shows it to them.
    for mut actor in [actor, Actor::new(Arc::clone(&core))] {
        deliver(&mut actor, &bob, &before.blob).await;
        assert_eq!(mail(&actor).await, 1);
        assert!(actor.waiting.iter().all(|(_, one)| one.lacks == Lacks::Key(chain, 1)));
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

/// What waits to go to a user: bodies of changes, each with how many it has.
async fn told(core: &crate::core::Core, to: &Identity) -> Vec<usize> {
    let posts = core.store.scan_all(Scan::of(Table::Outbox, rows::POSTS), 1_000).await.unwrap();
    let posts = posts.iter().map(|row| rows::PostRow::decode(row.value.expose()).unwrap());
    let mut told = Vec::new();
    for post in posts.filter(|post| post.to == *to.address() && post.key == *to.user_key()) {
        let body = core.store.one(&rows::body(post.body)).await.unwrap().unwrap();
        match GroupContent::decode(stvor_base::Suite::P256, &body.value) {
            Ok(GroupContent::Changes(_, changes)) => told.push(changes.len()),
            Ok(other) => panic!("{other:?}"),
            Err(_) => {}
        }
    }
    told
}

/// Bob and Carol, whom he puts out, and Dave, whom she lets in meanwhile: the group as it was, the two changes, and the group
/// as Dave has it.
struct Voided {
    bob: Identity,
    dave: Identity,
    before: Vec<SignedChangeIn>,
    removal: SignedChangeIn,
    letting_in: SignedChangeIn,
    at_dave: State,
}

fn voided(client: &Client) -> Voided {
    let (core, mut rng) = (client.core(), SystemRandom::new());
    let [bob, carol, dave] = ["bob", "carol", "dave"].map(|name| identity(client, name));
    let member = |of: &Identity| Member { user: of.user().clone(), key: *of.user_key() };
    let (mut at_bob, _) = State::create(&bob, "ours", core.now(), &mut rng).unwrap();
    let add = Action::Add(vec![member(&core.identity), member(&carol)]);
    let _ = at_bob.change(&bob, (add, core.now()), &mut rng).unwrap();
    let before = at_bob.beyond(&[]);
    let copy = |of: &Identity, changes: &[SignedChangeIn]| {
        let mut state = State::join(of, at_bob.id());
        for change in changes {
            let _ = state.apply(change.clone().validate(core.identity.app()).unwrap()).unwrap();
        }
        state
    };
    let mut at_carol = copy(&carol, &before);
    let add = (Action::Add(vec![member(&dave)]), core.now());
    let letting_in = at_carol.change(&carol, add, &mut rng).unwrap().0.change;
    let at_dave = copy(&dave, &at_carol.beyond(&[]));
    let remove = (Action::Remove(carol.user().clone()), core.now());
    let removal = at_bob.change(&bob, remove, &mut rng).unwrap().0.change;
    Voided { bob, dave, before, removal, letting_in, at_dave }
}

#[tokio::test]
async fn who_was_let_in_by_what_becomes_void_is_told_in_either_order_and_is_out_by_that() {
    for removal_first in [true, false] {
        let client = offline_client().await;
        let mut actor = Actor::new(Arc::clone(client.core()));
        let Voided { bob, dave, before, removal, letting_in, at_dave } = voided(&client);
        let id = at_dave.id();
        let order = if removal_first { [removal, letting_in] } else { [letting_in, removal] };
        for changes in [before, vec![order[0].clone()], vec![order[1].clone()]] {
            assert_eq!(told(client.core(), &dave).await, [0; 0]);
            tell(&mut actor, &bob, &GroupContent::Changes(id, changes)).await;
        }
        assert_eq!(told(client.core(), &dave).await, [3], "the removal and what it builds on");
        assert_eq!(actor.info(id).unwrap().members.len(), 2);
    }
}

#[tokio::test]
async fn who_is_put_out_tells_those_whom_they_let_in_meanwhile() {
    let client = offline_client().await;
    let (core, mut rng) = (client.core(), SystemRandom::new());
    let mut actor = Actor::new(Arc::clone(core));
    let [bob, dave] = ["bob", "dave"].map(|name| identity(&client, name));
    let member = |of: &Identity| Member { user: of.user().clone(), key: *of.user_key() };
    let (mut at_bob, _) = State::create(&bob, "ours", core.now(), &mut rng).unwrap();
    let _ = at_bob.change(&bob, (Action::Add(vec![member(&core.identity)]), core.now()), &mut rng).unwrap();
    let (id, before) = (at_bob.id(), at_bob.beyond(&[]));
    let mut ours = State::join(&core.identity, id);
    for change in &before {
        let _ = ours.apply(change.clone().validate(core.identity.app()).unwrap()).unwrap();
    }
    let add = (Action::Add(vec![member(&dave)]), core.now());
    let letting_in = ours.change(&core.identity, add, &mut rng).unwrap().0.change;
    let remove = (Action::Remove(core.identity.user().clone()), core.now());
    let removal = at_bob.change(&bob, remove, &mut rng).unwrap().0.change;
    for changes in [before, vec![letting_in], vec![removal]] {
        assert_eq!(told(core, &dave).await, [0; 0]);
        tell(&mut actor, &bob, &GroupContent::Changes(id, changes)).await;
    }
    assert_eq!(told(core, &dave).await, [3], "Bob may never hear of him: our removal, and what it builds on");
}

#[tokio::test]
async fn who_is_out_and_writes_is_told_once_an_hour_and_a_stranger_never() {
    let client = offline_client().await;
    let core = Arc::clone(client.core());
    let mut actor = Actor::new(Arc::clone(&core));
    let Voided { bob, dave, before, removal, letting_in, mut at_dave } = voided(&client);
    let (id, mut rng) = (at_dave.id(), SystemRandom::new());
    let all = [before, vec![removal], vec![letting_in]].concat();
    tell(&mut actor, &bob, &GroupContent::Changes(id, all)).await;
    // What he was told at once is lost.
    let gone = core.store.scan_all(Scan::of(Table::Outbox, rows::POSTS), 1_000).await.unwrap();
    let mut changes = ChangeSet::new();
    for row in gone {
        changes.delete(row.key);
    }
    core.store.commit(changes).await.unwrap();
    let words = Plaintext {
        content: ContentId::from_bytes([1; 16]),
        kind: ContentKind::Text,
        body: SecretBytes::from_slice(b"hello?"),
    };
    let his = stvor_protocol::Context { identity: &dave, ..crate::lane::context(&core) };
    let sealed = at_dave.encrypt(&his, &words, &mut rng).unwrap();
    let (key, _) = sealed.introduction.unwrap();
    let key =
        || GroupContent::decode(stvor_base::Suite::P256, &SecretBytes::from_slice(key.expose())).unwrap();
    tell(&mut actor, &dave, &key()).await;
    assert_eq!(told(&core, &dave).await, [1], "he knows the rest");
    tell(&mut actor, &dave, &key()).await;
    assert_eq!(told(&core, &dave).await, [1], "once");
    // A message to all on a chain that nobody took, when that is an hour ago.
    let list = dave.signed_list().validate(core.identity.app(), dave.user()).unwrap();
    let pin = Pin::new(&list, false, core.now());
    let mut changes = ChangeSet::new();
    changes.put(crate::records::key(&RecordKey::pin(dave.user())).unwrap(), pin.to_record());
    core.store.commit(changes).await.unwrap();
    let mut actor = Actor::new(Arc::clone(&core));
    for (from, wanted) in [(&identity(&client, "mallory"), vec![1]), (&dave, vec![1, 3]), (&dave, vec![1, 3])]
    {
        deliver(&mut actor, from, &sealed.blob).await;
        assert_eq!(told(&core, &dave).await, wanted);
        assert_eq!(told(&core, from).await.len(), if from.user() == dave.user() { 2 } else { 0 });
    }
    // Somebody with his name and another key is not he.
    let other = identity(&client, "dave");
    tell(&mut Actor::new(Arc::clone(&core)), &other, &key()).await;
    assert_eq!(told(&core, &other).await, [0; 0]);
}

/// Bob as he was and as he is, Carol, and a group of Bob's with us and her in it.
async fn rotated_member(actor: &mut Actor, client: &Client) -> (Identity, Identity, Identity, State) {
    let (core, mut rng) = (Arc::clone(client.core()), SystemRandom::new());
    let (old, carol) = (identity(client, "bob"), identity(client, "carol"));
    let (new, _) = old.rotate(core.now(), &mut rng).unwrap();
    let (mut group, _) = State::create(&old, "ours", core.now(), &mut rng).unwrap();
    for other in [&core.identity, &carol] {
        let member = Member { user: other.user().clone(), key: *other.user_key() };
        let _ = group.change(&old, (Action::Add(vec![member]), core.now()), &mut rng).unwrap();
    }
    tell(actor, &old, &GroupContent::Changes(group.id(), group.beyond(&[]))).await;
    assert_eq!(actor.info(group.id()).unwrap().members.len(), 3);
    (old, new, carol, group)
}

/// The pin of Bob moves.
async fn follow(client: &Client, old: &Identity, new: &Identity) -> Timestamp {
    let core = client.core();
    let list = new.signed_list().validate(&core.config.app, new.user()).unwrap();
    let left = core.now();
    let mut pin = Pin::new(&list, true, left);
    pin.earlier.push(EarlierKey { user_key: *old.user_key(), left });
    let mut changes = ChangeSet::new();
    changes.put(crate::records::key(&RecordKey::pin(new.user())).unwrap(), pin.to_record());
    core.store.commit(changes).await.unwrap();
    // What comes from here on comes later, by the clock.
    while core.now() == left {
        tokio::task::yield_now().await;
    }
    left
}

#[tokio::test]
async fn fresh_sender_keys_that_were_owed_when_the_process_ended_are_made_at_the_next_start() {
    let client = offline_client().await;
    let core = client.core();
    let mut actor = Actor::new(Arc::clone(core));
    let (bob, _, _, group) = rotated_member(&mut actor, &client).await;
    let chain = crate::records::key(&RecordKey::of_group(RecordKind::OwnChain, group.id(), &[])).unwrap();
    let words = Plaintext {
        content: ContentId::from_bytes([1; 16]),
        kind: ContentKind::Text,
        body: SecretBytes::from_slice(b"for bob, too"),
    };
    let ours = actor.groups.get_mut(&group.id()).unwrap();
    let sealed = ours.encrypt(&crate::lane::context(core), &words, &mut SystemRandom::new()).unwrap();
    let mut turn = super::turn::Turn { effects: sealed.effects, ..Default::default() };
    turn.touched.insert(group.id());
    assert!(actor.commit(turn).await.is_ok());
    let mut changes = ChangeSet::new();
    changes.put(rows::moved(&core.store, bob.user()), bob.user().as_str().as_bytes().to_vec());
    core.store.commit(changes).await.unwrap();
    for there in [rows::moved(&core.store, bob.user()), chain.clone()] {
        assert!(core.store.one(&there).await.unwrap().is_some());
    }
    let mut next = Actor::new(Arc::clone(core));
    next.renew_owed().await.unwrap();
    for gone in [rows::moved(&core.store, bob.user()), chain] {
        assert!(core.store.one(&gone).await.unwrap().is_none());
    }
}

fn renamed(group: &mut State, by: &Identity, name: &str) -> SignedChangeIn {
    let action = (Action::Rename(name.into()), Timestamp::system());
    group.change(by, action, &mut SystemRandom::new()).unwrap().0.change
}

#[tokio::test]
async fn changes_by_a_key_that_handed_over_count_only_if_somebody_answers_for_them() {
    let client = offline_client().await;
    let mut events = client.events();
    let mut actor = Actor::new(Arc::clone(client.core()));
    let (old, new, carol, mut group) = rotated_member(&mut actor, &client).await;
    follow(&client, &old, &new).await;
    let id = group.id();
    let base = group.heads();
    let name = |actor: &Actor| actor.info(id).unwrap().name;
    // Of the thief: by himself, through a member, and with an account that he lets in.
    let first = renamed(&mut group, &old, "mine");
    tell(&mut actor, &old, &GroupContent::Changes(id, vec![first.clone()])).await;
    assert_eq!(refused(&mut events).await, "IDENTITY_SUPERSEDED");
    tell(&mut actor, &carol, &GroupContent::Changes(id, vec![first.clone()])).await;
    let mut stolen = State::join(&old, id);
    for change in group.beyond(&[]) {
        let _ = stolen.apply(change.validate(client.core().identity.app()).unwrap()).unwrap();
    }
    let account = identity(&client, "thief");
    let member = Member { user: account.user().clone(), key: *account.user_key() };
    let add = (Action::Add(vec![member]), Timestamp::system());
    let _ = stolen.change(&old, add, &mut SystemRandom::new()).unwrap();
    let _ = renamed(&mut stolen, &account, "ours alone");
    let told = GroupContent::Changes(id, stolen.beyond(&base));
    for by in [&account, &carol] {
        tell(&mut actor, by, &told).await;
    }
    assert_eq!((name(&actor).as_str(), actor.info(id).unwrap().members.len()), ("ours", 3));
    assert_eq!(mail(&actor).await, 3, "it waits for somebody who answers for it");
    // Of Bob, late: he tells it himself, or somebody who is a member went on from there.
    tell(&mut actor, &new, &GroupContent::Changes(id, vec![first])).await;
    assert_eq!((name(&actor).as_str(), mail(&actor).await), ("mine", 2));
    let late = [renamed(&mut group, &old, "late"), renamed(&mut group, &carol, "after it")];
    let mut forged = late.to_vec();
    forged[1].signature[0] ^= 1;
    tell(&mut actor, &carol, &GroupContent::Changes(id, forged)).await;
    assert_eq!(name(&actor), "mine", "nobody signed that");
    tell(&mut actor, &carol, &GroupContent::Changes(id, late.to_vec())).await;
    assert_eq!((name(&actor).as_str(), mail(&actor).await), ("after it", 2));
    // What nobody answers for is told when it has waited for too long, and nothing of it was taken.
    for parked in actor.waiting.values_mut() {
        parked.arrived_at = Timestamp::default();
    }
    actor.ask_for_missing().await;
    for _ in 0..2 {
        assert_eq!(refused(&mut events).await, "IDENTITY_SUPERSEDED");
    }
    assert_eq!((name(&actor).as_str(), mail(&actor).await), ("after it", 0));
    assert_eq!(actor.info(id).unwrap().members.len(), 3);
    assert_eq!(actor.unjudged.others(0, id).count(), 0);
}

/// Changes that came in several messages, each for itself, in any order, also to a process that began anew in between.
#[tokio::test]
async fn who_builds_on_late_changes_in_another_message_answers_for_them_in_any_order() {
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        for restarts in [false, true] {
            let client = offline_client().await;
            let mut actor = Actor::new(Arc::clone(client.core()));
            let (old, new, carol, mut group) = rotated_member(&mut actor, &client).await;
            follow(&client, &old, &new).await;
            let id = group.id();
            let changes = [
                renamed(&mut group, &old, "first"),
                renamed(&mut group, &old, "second"),
                renamed(&mut group, &carol, "third"),
            ];
            for (place, number) in order.into_iter().enumerate() {
                if restarts && place == 2 {
                    actor = Actor::new(Arc::clone(client.core()));
                    actor.take_mail().await;
                }
                let content = GroupContent::Changes(id, vec![changes[number].clone()]);
                tell(&mut actor, &carol, &content).await;
                let done = actor.info(id).unwrap().name == "third";
                assert_eq!(done, place == 2, "{order:?} {restarts}: all count once all are here");
            }
            assert_eq!(mail(&actor).await, 0, "{order:?} {restarts}");
        }
    }
}

#[tokio::test]
async fn the_present_identity_is_asked_for_what_its_key_of_before_did_and_what_it_says_counts() {
    let client = offline_client().await;
    let mut actor = Actor::new(Arc::clone(client.core()));
    let (old, new, carol, mut group) = rotated_member(&mut actor, &client).await;
    follow(&client, &old, &new).await;
    let (id, base) = (group.id(), group.heads());
    let late = renamed(&mut group, &old, "late");
    tell(&mut actor, &carol, &GroupContent::Changes(id, vec![late])).await;
    assert_eq!((actor.info(id).unwrap().name.as_str(), mail(&actor).await), ("ours", 1));
    for parked in actor.waiting.values_mut() {
        parked.since = parked.since.checked_sub(limits::GROUP_PATIENCE).unwrap();
    }
    actor.ask_for_missing().await;
    let posts = client.core().store.scan_all(Scan::of(Table::Outbox, rows::POSTS), 100).await.unwrap();
    let posts: Vec<_> = posts.iter().map(|row| rows::PostRow::decode(row.value.expose()).unwrap()).collect();
    let asked = posts.iter().find(|post| post.to == *new.address() && post.key == *new.user_key()).unwrap();
    let body = client.core().store.one(&rows::body(asked.body)).await.unwrap().unwrap();
    let asked = GroupContent::decode(stvor_base::Suite::P256, &body.value).unwrap();
    assert!(matches!(asked, GroupContent::WantChanges(of, _) if of == id));
    // And so is a member of whom a restored store wants to know what changed.
    actor.catch_up().await;
    let posts = client.core().store.scan_all(Scan::of(Table::Outbox, rows::POSTS), 100).await.unwrap();
    let to_old =
        |row: &stvor_store::Record| rows::PostRow::decode(row.value.expose()).unwrap().key == *old.user_key();
    assert!(!posts.iter().any(to_old), "nobody has that key any more");
    tell(&mut actor, &new, &GroupContent::Changes(id, group.beyond(&base))).await;
    assert_eq!((actor.info(id).unwrap().name.as_str(), mail(&actor).await), ("late", 0));
}

#[tokio::test]
async fn with_a_clock_that_was_put_back_the_old_key_gets_nothing_in() {
    let client = offline_client().await;
    let mut events = client.events();
    let mut actor = Actor::new(Arc::clone(client.core()));
    let (old, new, carol, mut group) = rotated_member(&mut actor, &client).await;
    follow(&client, &old, &new).await;
    let id = group.id();
    let core = client.core();
    let key = crate::records::key(&RecordKey::pin(new.user())).unwrap();
    let row = core.store.one(&key).await.unwrap().unwrap();
    let mut pin = Pin::from_record(&row.value).unwrap();
    // As if the clock was a day further then.
    pin.earlier[0].left = core.now() + std::time::Duration::from_secs(86_400);
    let mut changes = ChangeSet::new();
    changes.put(key, pin.to_record());
    core.store.commit(changes).await.unwrap();
    let mine = GroupContent::Changes(id, vec![renamed(&mut group, &old, "mine")]);
    tell(&mut actor, &old, &mine).await;
    assert_eq!(refused(&mut events).await, "IDENTITY_SUPERSEDED");
    tell(&mut actor, &carol, &mine).await;
    assert_eq!((actor.info(id).unwrap().name.as_str(), mail(&actor).await), ("ours", 1));
}

#[tokio::test]
async fn what_was_here_before_a_rotation_was_followed_is_taken_and_after_it_no_sender_key() {
    let client = offline_client().await;
    let mut events = client.events();
    let mut actor = Actor::new(Arc::clone(client.core()));
    let (old, new, _, mut group) = rotated_member(&mut actor, &client).await;
    let id = group.id();
    let arrived = client.core().now();
    let early = GroupContent::Changes(id, vec![renamed(&mut group, &old, "early")]);
    follow(&client, &old, &new).await;
    let row = MailRow {
        from: old.address().clone(),
        key: Some(*old.user_key()),
        id: Desk::no_id(),
        arrived_at: arrived,
        body: early.encode().expose().to_vec(),
    };
    let mut changes = ChangeSet::new();
    client.core().groups.put_mail(&row, &mut changes);
    client.core().store.commit(changes).await.unwrap();
    actor.take_mail().await;
    assert_eq!(actor.info(id).unwrap().name, "early");
    let plaintext = Plaintext {
        content: ContentId::from_bytes([1; 16]),
        kind: ContentKind::Text,
        body: SecretBytes::from_slice(b"forged"),
    };
    let context = stvor_protocol::Context { identity: &old, ..crate::lane::context(client.core()) };
    let sealed = group.encrypt(&context, &plaintext, &mut SystemRandom::new()).unwrap();
    let key = GroupContent::decode(stvor_base::Suite::P256, &sealed.introduction.unwrap().0).unwrap();
    tell(&mut actor, &old, &key).await;
    assert_eq!(refused(&mut events).await, "IDENTITY_SUPERSEDED");
}

#[tokio::test]
async fn after_a_member_rotated_the_next_message_begins_another_chain() {
    let client = offline_client().await;
    let mut actor = Actor::new(Arc::clone(client.core()));
    let (old, _, _, group) = rotated_member(&mut actor, &client).await;
    let mut chains = Vec::new();
    for number in 0..3_u8 {
        if number == 2 {
            actor.take_order(super::desk::Order::Moved(old.user().clone())).await;
        }
        let content = (ContentId::from_bytes([number; 16]), "hello".into());
        assert!(actor.send(group.id(), content).await.is_ok());
        let scan = Scan::of(Table::Outbox, rows::BODIES);
        let bodies = client.core().store.scan_all(scan, 100).await.unwrap();
        let newest = bodies.iter().rev().find_map(|body| GroupIncoming::parse(body.value.expose()).ok());
        chains.push(*newest.unwrap().chain());
    }
    assert_eq!(chains[0], chains[1]);
    assert_ne!(chains[1], chains[2], "who has the old key has the chain of before");
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
    let content = |number: u8| (ContentId::from_bytes([number; 16]), "hello".into());
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
    let body = core.groups.body(SecretBytes::from_slice(b"x"), core.now(), &mut changes);
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
async fn posts_that_could_not_be_read_at_first_go_on_once_they_can_be() {
    let store = Arc::new(Hiccups::default());
    let client = hiccups::client(&store).await;
    let core = client.core();
    let bob = identity(&client, "bob");
    let mut changes = ChangeSet::new();
    let body = core.groups.body(SecretBytes::from_slice(b"x"), core.now(), &mut changes);
    let to = (bob.address().clone(), *bob.user_key());
    drop(core.groups.post(to, (&body, rows::PostKind::Content), (core.now(), None), &mut changes));
    store.refuse(Some(|scan| scan.table == Table::Outbox));
    core.store.commit(changes).await.unwrap();
    core.groups.take_over();
    soon(async {
        while store.refused() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(!core.has_lane(bob.address()));
    store.refuse(None);
    soon(async {
        while !core.has_lane(bob.address()) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn mail_that_could_not_be_read_when_it_came_is_judged_once_it_can_be() {
    // The mail itself; and the groups that another instance may have changed.
    let away: [fn(&Scan) -> bool; 2] =
        [|scan| scan.table == Table::Group, |scan| scan.table == Table::Settings];
    for (shared, away) in [false, true].into_iter().zip(away) {
        let (store, directory) = (Arc::new(Hiccups::default()), tempfile::tempdir().unwrap());
        let client = match shared {
            true => hiccups::instance(&store, &directory).await,
            false => hiccups::client(&store).await,
        };
        let core = client.core();
        let bob = identity(&client, "bob");
        // The task has read what there was before.
        core.groups.settled().await.unwrap();
        store.refuse(Some(away));
        let content = GroupContent::WantChanges(GroupId::from_bytes([1; 16]), Vec::new());
        let row = MailRow {
            from: bob.address().clone(),
            key: Some(*bob.user_key()),
            id: Desk::no_id(),
            arrived_at: core.now(),
            body: content.encode().expose().to_vec(),
        };
        let mut changes = ChangeSet::new();
        core.groups.put_mail(&row, &mut changes);
        core.store.commit(changes).await.unwrap();
        core.groups.mailed(bob.user(), 1);
        soon(async {
            while store.refused() == 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let waits = || core.store.scan_all(Scan::of(Table::Group, rows::MAIL), 10);
        store.refuse(None);
        assert_eq!(waits().await.unwrap().len(), 1, "shared: {shared}");
        soon(async {
            while !waits().await.unwrap().is_empty() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn posts_of_a_commit_whose_answer_was_lost_go_on_also_where_another_instance_receives() {
    let (store, directory) = (Arc::new(Hiccups::default()), tempfile::tempdir().unwrap());
    let receiver = hiccups::instance(&store, &directory).await;
    let client = hiccups::instance(&store, &directory).await;
    let core = client.core();
    assert!(receiver.core().instances.receives() && !core.instances.receives());
    let (bob, mut rng) = (identity(&client, "bob"), SystemRandom::new());
    let (mut state, _) = State::create(&core.identity, "ours", core.now(), &mut rng).unwrap();
    let member = Member { user: bob.user().clone(), key: *bob.user_key() };
    let _ = state.change(&core.identity, (Action::Add(vec![member]), core.now()), &mut rng).unwrap();
    let mut turn = super::turn::Turn { effects: state.save(), ..Default::default() };
    turn.new.insert(state.id(), rows::GroupRow { joined_at: core.now() });
    assert!(Actor::new(Arc::clone(core)).commit(turn).await.is_ok());
    // The task has read what there was before.
    core.groups.settled().await.unwrap();
    let group = client.group(state.id()).await.unwrap();
    store.lose_answer(Table::Outbox);
    assert_eq!(group.send("hello?").await.unwrap_err().code(), "STORE_UNCERTAIN");
    assert!(!core.has_lane(bob.address()));
    soon(async {
        while !core.has_lane(bob.address()) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn sender_keys_that_could_not_be_renewed_when_a_key_handed_over_are_renewed_once_they_can_be() {
    let store = Arc::new(Hiccups::default());
    let client = hiccups::client(&store).await;
    let core = client.core();
    let bob = UserId::new("bob").unwrap();
    let owed = rows::moved(&core.store, &bob);
    // The task has looked at what is owed since before.
    core.groups.settled().await.unwrap();
    let mut changes = ChangeSet::new();
    changes.put(owed.clone(), bob.as_str().as_bytes().to_vec());
    core.store.commit(changes).await.unwrap();
    store.fill(true);
    core.groups.moved(bob).await;
    core.groups.settled().await.unwrap();
    assert!(core.store.one(&owed).await.unwrap().is_some());
    store.fill(false);
    soon(async {
        while core.store.one(&owed).await.unwrap().is_some() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
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

#[tokio::test]
async fn a_flood_of_messages_to_a_group_is_refused_past_its_share_and_leaves_room_for_other_groups() {
    let client = offline_client_with(Executor { max_queued: 16, ..Executor::default() }).await;
    let mut events = client.events();
    let mut groups = Vec::new();
    for name in ["flooded", "a", "b", "c"] {
        groups.push(client.create_group(name, [""; 0]).await.unwrap());
    }
    // All have called before the task, which has no thread of its own here, takes the first.
    let to = |number: usize| if number < 900 { 0 } else { 1 + number % 3 };
    let sent = join_all((0..1_000).map(|number| groups[to(number)].send(format!("{number}")))).await;
    let mut taken = [0; 4];
    for (number, result) in sent.iter().enumerate() {
        match result {
            Ok(_) => taken[to(number)] += 1,
            Err(error) => assert_eq!(error.code(), "BACKPRESSURE"),
        }
    }
    assert_eq!(taken, [4; 4], "a quarter of the room each");
    loop {
        if let Event::CallsRejected { peer, .. } = events.next().await.unwrap() {
            assert_eq!(peer.as_str(), groups[0].id().to_string());
            break;
        }
    }
    assert_eq!(client.core().pressure.waiting(), (0, 0));
    for group in &groups {
        group.send("there is room again").await.unwrap();
    }
}

#[tokio::test]
async fn messages_to_a_group_that_wait_for_room_go_in_the_order_of_their_calls() {
    let executor = Executor { max_queued: 4, on_pressure: OnPressure::Wait, ..Executor::default() };
    let client = offline_client_with(executor).await;
    let group = client.create_group("ours", [""; 0]).await.unwrap();
    for sent in join_all((0..5).map(|number| group.send(format!("{number}")))).await {
        sent.unwrap();
    }
    let page = group.history().load().await.unwrap();
    let texts: Vec<_> = page.messages.iter().map(|one| one.content.as_text().unwrap()).collect();
    assert_eq!(texts, ["4", "3", "2", "1", "0"]);
}

#[tokio::test]
async fn whoever_has_something_to_do_has_a_turn_between_the_changes_of_one_message() {
    let client = offline_client().await;
    let mallory = identity(&client, "mallory");
    let mut actor = Actor::new(Arc::clone(client.core()));
    actor.load().await.unwrap();
    let mut rng = SystemRandom::new();
    let (mut group, _) = State::create(&mallory, "0", Timestamp::system(), &mut rng).unwrap();
    let us = &client.core().identity;
    let us = Member { user: us.user().clone(), key: *us.user_key() };
    let names = (1..100).map(|number| Action::Rename(number.to_string()));
    for action in [Action::Add(vec![us])].into_iter().chain(names) {
        let _ = group.change(&mallory, (action, Timestamp::system()), &mut rng).unwrap();
    }
    let turns = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&turns);
    let other = tokio::spawn(async move {
        loop {
            counted.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
        }
    });
    tell(&mut actor, &mallory, &GroupContent::Changes(group.id(), group.beyond(&[]))).await;
    assert_eq!(actor.info(group.id()).unwrap().name, "99");
    let turns = turns.load(Ordering::Relaxed);
    assert!(turns >= 100, "{turns} turns beside a hundred changes");
    other.abort();
}
