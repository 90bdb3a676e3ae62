//! The rules one by one, hostile bytes, and every bound at n and n + 1.

use stvor_base::{Address, ErrorCode as _};
use stvor_crypto::SystemRandom;
use stvor_protocol::group::{
    Action, Again, Group, GroupContent, GroupEncrypted, GroupIncoming, GroupReceived, Introduction, Member,
    PeerChain, SenderKeyIn, SignedChangeIn, bodies_of, forget_sender, limits, sender_rows,
};
use stvor_protocol::{Identity, Plaintext, ProtocolError, RecordKey, RecordKind};

use super::model::{NOW, Rows, app, context, identity, suite, text, user};

fn rng() -> SystemRandom {
    SystemRandom::new()
}

fn member(identity: &Identity) -> Member {
    Member { user: identity.user().clone(), key: *identity.user_key() }
}

/// One member's view.
struct View<'a> {
    identity: &'a Identity,
    group: Group,
    rows: Rows,
}

impl<'a> View<'a> {
    fn create(identity: &'a Identity) -> Self {
        let (group, made) = Group::create(identity, "friends", NOW, &mut rng()).unwrap();
        let mut rows = Rows::default();
        rows.commit(made.effects);
        Self { identity, group, rows }
    }

    /// The same changes, seen by another member.
    fn copy(&self, identity: &'a Identity) -> Self {
        let mut view =
            Self { identity, group: Group::join(identity, self.group.id()), rows: Rows::default() };
        self.tell(&mut view);
        view
    }

    fn tell(&self, other: &mut Self) {
        for change in self.group.beyond(&other.group.heads()) {
            let applied = other.group.apply(change.validate(&app()).unwrap()).unwrap();
            other.rows.commit(applied.effects);
        }
    }

    fn change(&mut self, action: Action) -> SignedChangeIn {
        let (made, _) = self.group.change(self.identity, (action, NOW), &mut rng()).unwrap();
        self.rows.commit(made.effects);
        made.change
    }

    fn add(&mut self, who: &[&Identity]) {
        let mut members: Vec<Member> = who.iter().map(|who| member(who)).collect();
        members.sort_by(|a, b| a.user.cmp(&b.user));
        let _ = self.change(Action::Add(members));
    }

    fn send(&mut self, id: u64) -> GroupEncrypted {
        let mut sealed = self.group.encrypt(&context(self.identity), &text(id, "hello"), &mut rng()).unwrap();
        self.rows.commit(std::mem::take(&mut sealed.effects));
        sealed
    }

    fn introduce(&mut self, from: &Identity, sealed: &GroupEncrypted) {
        let (body, _) = sealed.introduction.as_ref().unwrap();
        let GroupContent::SenderKey(key) = GroupContent::decode(suite(), body).unwrap() else {
            panic!("no sender key")
        };
        self.accept(from, &key).unwrap();
    }

    fn accept(&mut self, from: &Identity, key: &SenderKeyIn) -> Result<(), ProtocolError> {
        let introduction = Introduction { sender: from.address(), user_key: from.user_key() };
        let rows = self.rows.load(&introduction.needs(key));
        let effects = introduction.accept(key, &rows)?;
        self.rows.commit(effects);
        Ok(())
    }

    fn try_read(&self, from: &Address, blob: &[u8]) -> Result<GroupReceived, ProtocolError> {
        let incoming = GroupIncoming::parse(blob)?;
        let rows = self.rows.load(&PeerChain::keys(from, incoming.chain()));
        let chain = PeerChain::load(from, incoming.chain(), &rows)?.ok_or(ProtocolError::UnknownSenderKey)?;
        if !self.group.admits(&from.user, chain.user_key()) {
            return Err(ProtocolError::NotMember(from.user.clone()));
        }
        let wanted: Vec<RecordKey> = chain.needs(&incoming).into_iter().collect();
        chain.open(&app(), &incoming, (&self.rows.load(&wanted), NOW))
    }

    fn read(&mut self, from: &Identity, blob: &[u8]) -> Result<Plaintext, ProtocolError> {
        let received = self.try_read(from.address(), blob)?;
        self.rows.commit(received.effects);
        Ok(received.plaintext)
    }

    fn users(&self) -> Vec<String> {
        self.group.members().map(|member| member.user.as_str().to_owned()).collect()
    }
}

#[test]
fn a_removal_beats_everything_concurrent_by_and_about_the_removed() {
    let [ann, bob, cat, dan] = ["ann", "bob", "cat", "dan"].map(identity);
    let mut a = View::create(&ann);
    a.add(&[&bob, &cat]);
    let mut b = a.copy(&bob);
    let mut c = a.copy(&cat);
    let _ = a.change(Action::Remove(bob.user().clone()));
    // By the removed: a name, a member, a removal. About the removed: being let in again.
    let _ = b.change(Action::Rename("bob's".into()));
    b.add(&[&dan]);
    let _ = b.change(Action::Remove(cat.user().clone()));
    c.add(&[&bob]);
    b.tell(&mut a);
    c.tell(&mut a);
    a.tell(&mut c);
    for view in [&a, &c] {
        assert_eq!(view.users(), ["ann", "cat"]);
        assert_eq!(view.group.name(), "friends");
    }
    assert_eq!(a.group.state(), c.group.state());
    // What is built on the removal lets them in again.
    c.add(&[&bob]);
    assert_eq!(c.users(), ["ann", "bob", "cat"]);
}

#[test]
fn what_a_void_change_let_in_can_change_nothing() {
    let [ann, bob, dan] = ["ann", "bob", "dan"].map(identity);
    let mut a = View::create(&ann);
    a.add(&[&bob]);
    let mut b = a.copy(&bob);
    let _ = a.change(Action::Remove(bob.user().clone()));
    b.add(&[&dan]);
    let mut d = b.copy(&dan);
    let _ = d.change(Action::Rename("dan's".into()));
    d.add(&[&identity("eve")]);
    d.tell(&mut a);
    assert_eq!((a.users(), a.group.name()), (vec!["ann".to_owned()], "friends"));
}

#[test]
fn of_two_who_remove_each_other_the_more_senior_stays() {
    let [ann, bob, cat] = ["zoe", "bob", "cat"].map(identity);
    // Often enough for either hash to be the smaller one.
    for _ in 0..16 {
        let mut a = View::create(&ann);
        a.add(&[&bob]);
        a.add(&[&cat]);
        let (mut b, mut c) = (a.copy(&bob), a.copy(&cat));
        let _ = b.change(Action::Remove(ann.user().clone()));
        let _ = c.change(Action::Remove(bob.user().clone()));
        let _ = a.change(Action::Remove(bob.user().clone()));
        b.tell(&mut a);
        c.tell(&mut a);
        assert_eq!(a.users(), ["cat", "zoe"]);
        // Without the founder's word both are out: what bob did is no answer to what cat did.
        b.tell(&mut c);
        assert_eq!(c.users(), ["cat"]);
    }
}

#[test]
fn whom_somebody_let_in_can_not_undo_that_they_were_put_out() {
    let [ann, bob, sock, late] = ["zoe", "bob", "abe", "abe2"].map(identity);
    let mut a = View::create(&ann);
    a.add(&[&bob]);
    let mut b = a.copy(&bob);
    b.add(&[&sock]);
    b.tell(&mut a);
    let _ = a.change(Action::Remove(bob.user().clone()));
    // At the same time, or so they say: bob lets another one in, and both of his put the founder out.
    b.add(&[&late]);
    let mut puppet = b.copy(&late);
    let _ = puppet.change(Action::Remove(ann.user().clone()));
    let mut member = a.copy(&sock);
    member.group = Group::join(&sock, a.group.id());
    for change in b.group.changes().filter(|change| !matches!(change.action(), Action::Remove(_))) {
        let _ = member.group.apply(change.clone()).unwrap();
    }
    let _ = member.change(Action::Remove(ann.user().clone()));
    b.tell(&mut a);
    puppet.tell(&mut a);
    assert_eq!(a.users(), ["abe", "zoe"], "what the late one did is void");
    member.tell(&mut a);
    assert_eq!(a.users(), ["abe"], "a member may put the founder out; bob stays out all the same");
}

#[test]
fn of_two_names_the_more_senior_author_wins_and_a_later_one_beats_both() {
    let [ann, bob] = ["zoe", "bob"].map(identity);
    for _ in 0..8 {
        let mut a = View::create(&ann);
        a.add(&[&bob]);
        let mut b = a.copy(&bob);
        let _ = a.change(Action::Rename("one".into()));
        let _ = b.change(Action::Rename("two".into()));
        a.tell(&mut b);
        b.tell(&mut a);
        assert_eq!((a.group.name(), b.group.name()), ("one", "one"));
        let _ = b.change(Action::Rename("three".into()));
        b.tell(&mut a);
        assert_eq!(a.group.name(), "three");
    }
}

#[test]
fn who_was_put_out_is_told_of_that_and_of_nothing_after_it() {
    let [ann, bob, cat] = ["ann", "bob", "cat"].map(identity);
    let mut a = View::create(&ann);
    a.add(&[&bob]);
    let mut b = a.copy(&bob);
    let known = a.group.heads();
    let _ = a.change(Action::Remove(bob.user().clone()));
    a.add(&[&cat]);
    let _ = a.change(Action::Rename("secret".into()));
    let told = a.group.puts_out(&[bob.user()], &known);
    assert_eq!(told.len(), 1);
    for change in told {
        let _ = b.group.apply(change.validate(&app()).unwrap()).unwrap();
    }
    assert_eq!((b.users(), b.group.name()), (vec!["ann".to_owned()], "friends"));
    assert!(a.group.puts_out(&[cat.user()], &known).is_empty());
    assert!(a.group.puts_out(&[&user("nobody")], &[]).is_empty());
}

#[test]
fn who_comes_back_gives_everybody_a_new_chain() {
    let [ann, bob] = ["ann", "bob"].map(identity);
    let mut a = View::create(&ann);
    a.add(&[&bob]);
    let mut b = a.copy(&bob);
    let before = b.send(1);
    let _ = a.change(Action::Remove(bob.user().clone()));
    a.tell(&mut b);
    assert!(b.rows.0.keys().all(|key| key.kind != RecordKind::OwnChain), "its chain is destroyed");
    a.add(&[&bob]);
    a.tell(&mut b);
    b.group = b.rows.group(&bob, b.group.id());
    let after = b.send(2);
    assert_ne!(after.place.0, before.place.0);
    a.introduce(&bob, &after);
    assert!(a.read(&bob, &after.blob).is_ok());
}

#[test]
fn a_group_holds_16_mib_of_changes() {
    let ann = identity("ann");
    let mut a = View::create(&ann);
    let longest = |number: usize| Member { user: user(&format!("{number:0>256}")), key: *ann.user_key() };
    let members: Vec<Member> = (0..limits::MAX_CHANGE_MEMBERS).map(longest).collect();
    let mut bytes: usize = a.group.changes().map(|change| change.signed().bytes.len()).sum();
    loop {
        match a.group.change(&ann, (Action::Add(members.clone()), NOW), &mut rng()) {
            Ok((made, _)) => bytes += made.change.bytes.len(),
            Err(ProtocolError::GroupFull { what: "bytes of changes", limit }) => {
                assert_eq!(limit, limits::MAX_CHANGES_BYTES);
                break;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(bytes <= limits::MAX_CHANGES_BYTES && bytes + limits::MAX_CHANGE > limits::MAX_CHANGES_BYTES);
    // A small one still fits.
    assert!(a.group.change(&ann, (Action::Rename("x".into()), NOW), &mut rng()).is_ok());
}

#[test]
fn a_change_counts_only_from_a_member_on_what_is_there_and_in_its_turn() {
    let [ann, bob, mallory] = ["ann", "bob", "mallory"].map(identity);
    let mut a = View::create(&ann);
    let start = a.copy(&bob);
    a.add(&[&bob]);
    // Not a member: neither by their own word nor by a change of another group.
    let mut m = a.copy(&mallory);
    let refused = m.group.change(&mallory, (Action::Rename("x".into()), NOW), &mut rng());
    assert!(matches!(refused, Err(ProtocolError::NotMember(_))));
    let mut own = View::create(&mallory);
    let foreign = own.change(Action::Rename("x".into())).validate(&app()).unwrap();
    assert!(matches!(a.group.apply(foreign), Err(ProtocolError::BadChange(_))));
    // A second identity under a member's name.
    let twin = identity("bob");
    let mut t = a.copy(&twin);
    assert!(matches!(
        t.group.change(&twin, (Action::Rename("x".into()), NOW), &mut rng()),
        Err(ProtocolError::NotMember(_))
    ));
    // A change whose parent is not here waits.
    let late = a.change(Action::Rename("late".into())).validate(&app()).unwrap();
    let mut s = start;
    assert!(matches!(s.group.apply(late.clone()), Err(ProtocolError::ChangeEarly)));
    a.tell(&mut s);
    assert!(!s.group.apply(late).unwrap().new, "it is known by now");
    // Removing nobody, and names that are none.
    for action in [
        Action::Remove(user("nobody")),
        Action::Rename(String::new()),
        Action::Rename("a\nb".into()),
        Action::Add(Vec::new()),
        Action::Create { name: "x".into(), members: vec![member(&ann)], nonce: [0; 16] },
    ] {
        assert!(a.group.change(&ann, (action, NOW), &mut rng()).is_err());
    }
}

#[test]
fn a_new_identity_is_a_member_once_it_is_added_anew_and_its_old_one_is_none() {
    let [ann, bob, again] = ["ann", "bob", "bob"].map(identity);
    let mut a = View::create(&ann);
    a.add(&[&bob]);
    assert!(a.group.admits(bob.user(), bob.user_key()) && !a.group.admits(bob.user(), again.user_key()));
    let first = a.send(1);
    a.add(&[&again]);
    assert!(!a.group.admits(bob.user(), bob.user_key()) && a.group.admits(bob.user(), again.user_key()));
    // The old one has our chain: the next message is on a new one.
    assert_ne!(a.send(2).place.0, first.place.0);
}

#[test]
fn every_flipped_bit_of_a_change_is_refused() {
    let [ann, bob] = ["ann", "bob"].map(identity);
    let mut a = View::create(&ann);
    let mut changes: Vec<SignedChangeIn> = a.group.changes().map(|change| change.signed().clone()).collect();
    changes.push(a.change(Action::Add(vec![member(&bob)])));
    changes.push(a.change(Action::Rename("n".into())));
    changes.push(a.change(Action::Remove(bob.user().clone())));
    for change in changes {
        assert!(change.clone().validate(&app()).is_ok());
        for bit in 0..8 * change.bytes.len() {
            let mut bad = change.clone();
            bad.bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(bad.validate(&app()).is_err(), "bit {bit}");
        }
        for bit in 0..8 * change.signature.len() {
            let mut bad = change.clone();
            bad.signature[bit / 8] ^= 1 << (bit % 8);
            assert!(bad.validate(&app()).is_err(), "bit {bit} of the signature");
        }
        let other = stvor_base::AppId::new("other").unwrap();
        assert!(change.validate(&other).is_err());
    }
}

#[test]
fn every_flipped_bit_of_a_message_is_refused_and_changes_nothing() {
    let [ann, bob] = ["ann", "bob"].map(identity);
    let mut a = View::create(&ann);
    a.add(&[&bob]);
    let mut b = a.copy(&bob);
    let sealed = a.send(1);
    b.introduce(&ann, &sealed);
    for bit in 0..8 * sealed.blob.len() {
        let mut bad = sealed.blob.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(b.try_read(ann.address(), &bad).is_err(), "bit {bit}");
    }
    for length in 0..sealed.blob.len() {
        assert!(b.try_read(ann.address(), &sealed.blob[..length]).is_err(), "{length} bytes");
    }
    assert_eq!(b.read(&ann, &sealed.blob).unwrap().body.expose(), b"hello");
}

#[test]
fn a_message_is_read_only_under_its_sender_group_and_chain() {
    let [ann, bob, cat] = ["ann", "bob", "cat"].map(identity);
    let mut a = View::create(&ann);
    a.add(&[&bob, &cat]);
    let mut b = a.copy(&bob);
    let mut c = a.copy(&cat);
    let by_ann = a.send(1);
    b.introduce(&ann, &by_ann);
    // Bob hands Ann's chain on as his own: Cat keeps it as Bob's, and Ann's message is not Bob's.
    c.introduce(&bob, &by_ann);
    assert!(matches!(c.read(&bob, &by_ann.blob), Err(ProtocolError::Undecryptable)));
    assert!(matches!(c.read(&ann, &by_ann.blob), Err(ProtocolError::UnknownSenderKey)));
    // Bob has Ann's chain key; without her signing key he can not write in her name.
    let by_bob = b.send(2);
    let mut forged = by_bob.blob.clone();
    forged[3..19].copy_from_slice(&by_ann.blob[3..19]);
    c.introduce(&ann, &by_ann);
    assert!(matches!(c.read(&ann, &forged), Err(ProtocolError::Undecryptable)));
    // A chain under the id of another one of the same sender.
    let (body, _) = by_ann.introduction.as_ref().unwrap();
    let mut bytes = body.expose().to_vec();
    let last = bytes.len() - 65 - 1;
    bytes[last] ^= 1;
    let GroupContent::SenderKey(changed) = GroupContent::decode(suite(), &bytes.into()).unwrap() else {
        panic!("no key")
    };
    assert!(c.accept(&ann, &changed).is_ok(), "known: it goes unheard");
    assert_eq!(c.read(&ann, &by_ann.blob).unwrap().body.expose(), b"hello");
}

#[test]
fn who_joins_reads_no_past_and_who_left_reads_no_future() {
    let [ann, bob, cat] = ["ann", "bob", "cat"].map(identity);
    let mut a = View::create(&ann);
    a.add(&[&bob]);
    let mut b = a.copy(&bob);
    let before = a.send(1);
    b.introduce(&ann, &before);
    a.add(&[&cat]);
    let mut c = a.copy(&cat);
    let after = a.send(2);
    c.introduce(&ann, &after);
    assert_eq!(before.place.0, after.place.0, "a joiner costs no new chain");
    assert!(matches!(c.read(&ann, &before.blob), Err(ProtocolError::Duplicate)), "behind the counter");
    assert!(c.read(&ann, &after.blob).is_ok());

    let _ = a.change(Action::Remove(cat.user().clone()));
    let last = a.send(3);
    let (_, to) = last.introduction.as_ref().unwrap();
    assert_eq!(to.iter().map(|member| member.user.as_str()).collect::<Vec<_>>(), ["bob"]);
    assert!(matches!(c.read(&ann, &last.blob), Err(ProtocolError::UnknownSenderKey)));
    // Cat's own words count no more.
    let by_cat = c.send(4);
    b.introduce(&cat, &by_cat);
    a.tell(&mut b);
    assert!(matches!(b.read(&cat, &by_cat.blob), Err(ProtocolError::NotMember(_))));
}

#[test]
fn messages_come_once_in_any_order_also_after_a_restart() {
    let [ann, bob] = ["ann", "bob"].map(identity);
    let mut a = View::create(&ann);
    a.add(&[&bob]);
    let mut b = a.copy(&bob);
    let first = a.send(0);
    b.introduce(&ann, &first);
    let mut sent = vec![first];
    for id in 1..6 {
        a.group = a.rows.group(&ann, a.group.id());
        sent.push(a.send(id));
        assert!(sent.last().unwrap().introduction.is_none(), "everybody has the chain");
    }
    for place in [5, 0, 3, 1, 4, 2] {
        b.group = b.rows.group(&bob, b.group.id());
        assert!(b.read(&ann, &sent[place].blob).is_ok());
        assert!(matches!(b.read(&ann, &sent[place].blob), Err(ProtocolError::Duplicate)));
    }
}

#[test]
fn what_came_before_its_key_and_stands_before_its_place_is_no_duplicate_until_it_is_said_again() {
    let [ann, bob] = ["ann", "bob"].map(identity);
    let mut a = View::create(&ann);
    a.add(&[&bob]);
    let mut b = a.copy(&bob);
    let sent: Vec<_> = (0..4).map(|id| a.send(id)).collect();
    let (chain, _) = sent[0].place;
    let key = a.group.introduce_again(&member(&bob), &chain).unwrap();
    let GroupContent::SenderKey(key) = GroupContent::decode(suite(), &key).unwrap() else {
        panic!("no sender key")
    };
    let last = a.send(4);
    b.accept(&ann, &key).unwrap();
    let load = |b: &View<'_>| {
        let rows = b.rows.load(&PeerChain::keys(ann.address(), &chain));
        PeerChain::load(ann.address(), &chain, &rows).unwrap().unwrap()
    };
    // The last one waited, too; the second did not.
    let effects = load(&b).missed(&[0, 2, 3, 4].into());
    b.rows.commit(effects);
    assert!(b.read(&ann, &last.blob).is_ok());
    let gone = |b: &mut View<'_>| {
        sent.iter().map(|one| b.read(&ann, &one.blob).unwrap_err().code()).collect::<Vec<_>>()
    };
    let (waits, was_read) = ("MESSAGE_KEY_GONE", "DUPLICATE");
    assert_eq!(gone(&mut b), [waits, was_read, waits, waits]);
    let effects = load(&b).said_again(2);
    b.rows.commit(effects);
    assert_eq!(gone(&mut b), [waits, was_read, was_read, waits]);
    // The key once more, as an answer has it, changes nothing of that.
    b.accept(&ann, &key).unwrap();
    assert_eq!(gone(&mut b), [waits, was_read, was_read, waits]);
    // With the chain goes what is known of it.
    let rows = b.rows.load(&sender_rows(b.group.id(), ann.address()));
    b.rows.commit(forget_sender(b.group.id(), ann.address(), &rows).unwrap());
    b.accept(&ann, &key).unwrap();
    assert_eq!(gone(&mut b), [was_read; 4]);
}

#[test]
fn only_who_had_the_chain_may_have_a_message_again() {
    let [ann, bob, cat] = ["ann", "bob", "cat"].map(identity);
    let mut a = View::create(&ann);
    a.add(&[&bob]);
    let (chain, first) = a.send(1).place;
    a.add(&[&cat]);
    let (_, second) = a.send(2).place;
    assert!(a.group.entitled(&member(&bob), (&chain, first)));
    assert!(!a.group.entitled(&member(&cat), (&chain, first)));
    assert!(a.group.entitled(&member(&cat), (&chain, second)));
    assert!(a.group.introduce_again(&member(&cat), &chain).is_some());
    assert!(a.group.introduce_again(&member(&identity("bob")), &chain).is_none(), "another identity");
    let _ = a.change(Action::Remove(bob.user().clone()));
    assert!(!a.group.entitled(&member(&bob), (&chain, first)));
}

#[test]
fn a_group_holds_1000_members() {
    let ann = identity("ann");
    let mut a = View::create(&ann);
    let key = *ann.user_key();
    let named = |number: usize| Member { user: user(&format!("u{number:04}")), key };
    for batch in (1..1_000).collect::<Vec<_>>().chunks(limits::MAX_CHANGE_MEMBERS) {
        let _ = a.change(Action::Add(batch.iter().map(|number| named(*number)).collect()));
    }
    assert_eq!(a.group.size(), limits::MAX_MEMBERS);
    let over = a.group.change(&ann, (Action::Add(vec![named(1_000)]), NOW), &mut rng());
    assert!(matches!(over, Err(ProtocolError::GroupFull { what: "members", limit: 1_000 })));
    let (_, to) = a.send(1).introduction.unwrap();
    assert_eq!(to.len(), 999);
    // Everything of it fits into messages.
    let bodies = bodies_of(a.group.id(), a.group.beyond(&[]));
    assert!(bodies.iter().all(|body| body.len() <= stvor_protocol::limits::MAX_PLAINTEXT));
}

#[test]
fn a_change_names_128_members_at_most() {
    let ann = identity("ann");
    let mut a = View::create(&ann);
    let longest = |number: usize| Member { user: user(&format!("{number:0>256}")), key: *ann.user_key() };
    let of = |count: usize| Action::Add((0..count).map(longest).collect());
    let full = a.change(of(limits::MAX_CHANGE_MEMBERS));
    assert!(full.bytes.len() <= limits::MAX_CHANGE, "{} bytes", full.bytes.len());
    assert!(full.validate(&app()).is_ok());
    assert!(a.group.change(&ann, (of(limits::MAX_CHANGE_MEMBERS + 1), NOW), &mut rng()).is_err());
}

#[test]
fn a_group_takes_4096_changes() {
    let ann = identity("ann");
    let mut a = View::create(&ann);
    for number in 1..limits::MAX_CHANGES {
        let (_, _) = a.group.change(&ann, (Action::Rename(format!("n{number}")), NOW), &mut rng()).unwrap();
    }
    assert_eq!(a.group.epoch(), 4_095);
    let over = a.group.change(&ann, (Action::Rename("x".into()), NOW), &mut rng());
    assert!(matches!(over, Err(ProtocolError::GroupFull { what: "changes", limit: 4_096 })));
}

#[test]
fn who_fills_a_group_with_changes_can_still_be_put_out() {
    let [ann, bob] = ["ann", "bob"].map(identity);
    let mut a = View::create(&ann);
    a.add(&[&bob]);
    let mut b = a.copy(&bob);
    while b.group.change(&bob, (Action::Rename("flood".into()), NOW), &mut rng()).is_ok() {}
    b.tell(&mut a);
    assert!(a.group.change(&ann, (Action::Rename("x".into()), NOW), &mut rng()).is_err());
    let mut saved = Rows::default();
    saved.commit(b.group.save());
    let rows: Vec<(RecordKind, stvor_crypto::SecretBytes)> =
        saved.0.into_iter().map(|(key, value)| (key.kind, value.into())).collect();
    for round in 0..=limits::MAX_LATE_REMOVALS {
        // All on the same state: they are concurrent.
        let mut view =
            Group::load(&ann, a.group.id(), rows.iter().map(|(kind, row)| (*kind, row.duplicate()))).unwrap();
        let now = stvor_base::Timestamp::from_millis(NOW.as_millis() + round as u64);
        let (made, _) = view.change(&ann, (Action::Remove(bob.user().clone()), now), &mut rng()).unwrap();
        let taken = a.group.apply(made.change.validate(&app()).unwrap());
        if round < limits::MAX_LATE_REMOVALS {
            assert!(taken.is_ok(), "{round}");
            assert_eq!(a.users(), ["ann"]);
        } else {
            assert!(matches!(taken, Err(ProtocolError::GroupFull { what: "changes", .. })));
        }
    }
    // Nobody removes who is not there, not even to fill this room.
    let gone = b.group.change(&bob, (Action::Remove(user("nobody")), NOW), &mut rng());
    assert!(matches!(gone, Err(ProtocolError::NotMember(_))));
}

#[test]
fn a_chain_that_is_given_up_is_not_used_again() {
    let [ann, bob] = ["ann", "bob"].map(identity);
    let mut a = View::create(&ann);
    a.add(&[&bob]);
    let mut b = a.copy(&bob);
    let first = a.send(1);
    b.introduce(&ann, &first);
    let effects = a.group.renew();
    a.rows.commit(effects);
    a.group = a.rows.group(&ann, a.group.id());
    let second = a.send(2);
    assert_ne!(first.place.0, second.place.0);
    b.introduce(&ann, &second);
    assert!(b.read(&ann, &second.blob).is_ok() && b.read(&ann, &first.blob).is_ok());
}

#[test]
fn the_last_64_states_are_told_from_those_that_never_were() {
    let ann = identity("ann");
    let mut a = View::create(&ann);
    let first = *a.group.state();
    for number in 0..limits::MAX_PAST_STATES {
        assert!(a.group.has_been(&first), "{number}");
        let _ = a.change(Action::Rename(format!("n{number}")));
    }
    assert!(a.group.has_been(&first) && a.group.has_been(a.group.state()));
    let _ = a.change(Action::Rename("one more".into()));
    assert!(!a.group.has_been(&first) && !a.group.has_been(&[7; 32]));
}

#[test]
fn a_change_builds_on_16_others_at_most() {
    let ann = identity("ann");
    let mut a = View::create(&ann);
    let forks: Vec<SignedChangeIn> =
        (0..17).map(|number| a.copy(&ann).change(Action::Rename(format!("n{number}")))).collect();
    for fork in forks {
        let applied = a.group.apply(fork.validate(&app()).unwrap()).unwrap();
        a.rows.commit(applied.effects);
    }
    let joined = a.change(Action::Rename("one".into())).validate(&app()).unwrap();
    assert_eq!(joined.parents().len(), limits::MAX_PARENTS);
    let rest = a.change(Action::Rename("all".into())).validate(&app()).unwrap();
    assert_eq!(rest.parents().len(), 2);
    assert_eq!(a.group.name(), "all");
}

#[test]
fn a_name_has_256_bytes_at_most() {
    let ann = identity("ann");
    let mut a = View::create(&ann);
    let _ = a.change(Action::Rename("x".repeat(limits::MAX_NAME)));
    let over = a.group.change(&ann, (Action::Rename("x".repeat(limits::MAX_NAME + 1)), NOW), &mut rng());
    assert!(matches!(over, Err(ProtocolError::BadChange(_))));
}

#[test]
fn a_message_may_be_2000_ahead() {
    let [ann, bob] = ["ann", "bob"].map(identity);
    let mut a = View::create(&ann);
    a.add(&[&bob]);
    let mut b = a.copy(&bob);
    let first = a.send(0);
    b.introduce(&ann, &first);
    let last = (1..=limits::MAX_SKIP).map(|id| a.send(u64::from(id))).last().unwrap();
    let over = a.send(9_999);
    assert!(matches!(
        b.read(&ann, &over.blob),
        Err(ProtocolError::TooFarAhead { ahead: 2_001, limit: 2_000 })
    ));
    assert!(b.read(&ann, &last.blob).is_ok());
    assert!(b.read(&ann, &first.blob).is_ok(), "2,000 keys are kept");
}

#[test]
fn three_chains_of_a_sender_are_kept() {
    let [ann, bob] = ["ann", "bob"].map(identity);
    let mut a = View::create(&ann);
    a.add(&[&bob]);
    let mut b = a.copy(&bob);
    let mut sent = Vec::new();
    for id in 0..=limits::MAX_CHAINS as u64 {
        let cat = identity("cat");
        a.add(&[&cat]);
        let gone = a.send(100 + id);
        if gone
            .introduction
            .as_ref()
            .is_some_and(|(_, to)| to.iter().any(|member| member.user == *bob.user()))
        {
            b.introduce(&ann, &gone);
        }
        let _ = a.change(Action::Remove(cat.user().clone()));
        let sealed = a.send(id);
        b.introduce(&ann, &sealed);
        sent.push(sealed);
    }
    let chains = b.rows.0.keys().filter(|key| key.kind == RecordKind::SenderChain).count();
    assert_eq!(chains, limits::MAX_CHAINS);
    assert!(matches!(b.read(&ann, &sent[0].blob), Err(ProtocolError::UnknownSenderKey)));
    for sealed in &sent[1..] {
        assert!(b.read(&ann, &sealed.blob).is_ok());
    }
}

#[test]
fn a_chain_has_10000_messages() {
    let [ann, bob] = ["ann", "bob"].map(identity);
    let mut a = View::create(&ann);
    a.add(&[&bob]);
    let (chain, _) = a.send(1).place;
    let row = RecordKey::of_group(RecordKind::OwnChain, a.group.id(), &[]);
    let bytes = a.rows.0.get_mut(&row).unwrap();
    bytes[1 + 16 + 32..][..4].copy_from_slice(&(limits::MAX_CHAIN_MESSAGES - 1).to_be_bytes());
    a.group = a.rows.group(&ann, a.group.id());
    assert_eq!(a.send(2).place, (chain, limits::MAX_CHAIN_MESSAGES - 1));
    let next = a.send(3);
    assert_ne!(next.place.0, chain);
    assert!(next.introduction.is_some());
}

#[test]
fn a_group_message_holds_a_little_less_than_64_kib() {
    let ann = identity("ann");
    let mut a = View::create(&ann);
    let of = |size: usize| Plaintext { body: vec![7; size].into(), ..text(1, "") };
    let whole = GroupContent::Again(Again {
        group: a.group.id(),
        place: Some(([1; 16], 0)),
        content: of(0).content,
        sent_at: NOW,
        kind: 1,
        body: vec![7; limits::MAX_BODY],
    });
    assert!(whole.encode().len() <= stvor_protocol::limits::MAX_PLAINTEXT);
    assert!(a.group.encrypt(&context(&ann), &of(limits::MAX_BODY), &mut rng()).is_ok());
    assert!(matches!(
        a.group.encrypt(&context(&ann), &of(limits::MAX_BODY + 1), &mut rng()),
        Err(ProtocolError::MessageTooLarge { .. })
    ));
}

#[test]
fn what_members_say_reads_back_and_every_cut_is_refused() {
    let [ann, bob] = ["ann", "bob"].map(identity);
    let mut a = View::create(&ann);
    a.add(&[&bob]);
    let (key, _) = a.send(1).introduction.unwrap();
    let again = Again {
        group: a.group.id(),
        place: None,
        content: text(1, "").content,
        sent_at: NOW,
        kind: 1,
        body: vec![1],
    };
    let placed = Again { place: Some(([4; 16], 9)), ..again.clone() };
    let bodies = [
        bodies_of(a.group.id(), a.group.beyond(&[])).remove(0),
        key,
        GroupContent::WantChanges(a.group.id(), a.group.heads()).encode(),
        GroupContent::WantKey([3; 16], vec![1, 5, 9]).encode(),
        GroupContent::Again(again.clone()).encode(),
        GroupContent::Again(placed).encode(),
    ];
    for (place, body) in bodies.iter().enumerate() {
        assert_eq!(GroupContent::decode(suite(), body).unwrap().encode(), *body);
        // A message that is sent again ends where its body ends.
        let cuts = if place >= 4 { 0..body.len() - 1 } else { 0..body.len() };
        for length in cuts {
            let cut = GroupContent::decode(suite(), &body.expose()[..length].to_vec().into());
            assert!(cut.is_err(), "{place}: {length} bytes");
        }
    }
    let over = GroupContent::WantKey([3; 16], (0..=limits::MAX_REQUESTED as u32).collect());
    assert!(GroupContent::decode(suite(), &over.encode()).is_err());
    let over = GroupContent::WantChanges(a.group.id(), vec![[1; 32], [1; 32]]);
    assert!(GroupContent::decode(suite(), &over.encode()).is_err(), "twice the same");
    assert!(GroupContent::decode(suite(), &vec![2, 1].into()).is_err(), "a later version");
    assert!(!format!("{:?}", a.group).contains("ann"));
}

/// Bob puts Carol out while she lets Dan in, on one state.
fn voided<'a>(
    all: [&'a Identity; 4],
) -> (View<'a>, View<'a>, stvor_protocol::group::Change, stvor_protocol::group::Change) {
    let [ann, bob, cat, dan] = all;
    let mut a = View::create(ann);
    a.add(&[bob, cat]);
    let (mut b, mut c) = (a.copy(bob), a.copy(cat));
    let removal = b.change(Action::Remove(cat.user().clone()));
    let member = Member { user: dan.user().clone(), key: *dan.user_key() };
    let letting_in = c.change(Action::Add(vec![member]));
    let d = c.copy(dan);
    let [removal, letting_in] = [removal, letting_in].map(|change| change.validate(&app()).unwrap());
    (a, d, removal, letting_in)
}

#[test]
fn whoever_was_let_in_by_what_becomes_void_is_named_in_either_order_and_is_out_by_what_they_are_told() {
    let [ann, bob, cat, dan] = ["ann", "bob", "cat", "dan"].map(identity);
    for removal_first in [true, false] {
        let (mut a, mut d, removal, letting_in) = voided([&ann, &bob, &cat, &dan]);
        assert!(d.group.is_member() && d.users().len() == 4);
        let order = if removal_first { [removal, letting_in] } else { [letting_in, removal] };
        let mut out = Vec::new();
        for change in order {
            let applied = a.group.apply(change).unwrap();
            out = a.group.ours_to_tell(&applied).out;
        }
        let ghost = Member { user: dan.user().clone(), key: *dan.user_key() };
        assert!(out.contains(&ghost) && a.group.has_lost(&ghost));
        // What the group becomes afterwards is not for Dan.
        let _ = a.change(Action::Rename("secret".into()));
        let told = a.group.puts_out(&[dan.user()], &d.group.heads());
        assert_eq!(told.len(), 1, "the removal that makes it void");
        for change in told {
            let _ = d.group.apply(change.validate(&app()).unwrap()).unwrap();
        }
        assert!(!d.group.is_member());
        assert_eq!((d.users(), d.group.name()), (vec!["ann".to_owned(), "bob".to_owned()], "friends"));
        let known = a.group.heads();
        assert!(a.group.puts_out(&[&user("nobody")], &[]).is_empty() && known.len() == 1);
        assert!(!a.group.has_lost(&Member { user: user("nobody"), key: *dan.user_key() }));
        assert!(!a.group.has_lost(&Member { user: dan.user().clone(), key: *ann.user_key() }));
    }
}
