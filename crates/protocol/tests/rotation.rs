//! A user's key hands over: contacts follow it, and nothing that a relay makes of the statements moves a pin.
#![cfg(test)]

#[path = "model/mod.rs"]
mod model;

use std::time::Duration;

use model::{Party, address, app, code, pair};
use proptest::prelude::*;
use stvor_base::rotations::{MAX_ROTATIONS, Rotation, Rotations};
use stvor_base::{Address, AppId, Timestamp, UserId};
use stvor_protocol::*;

impl Party {
    /// Rotates as a client does: fresh keys, fresh prekeys, no session.
    fn rotate(&mut self, peers: &[&Address]) {
        self.now = self.now + Duration::from_secs(1);
        let (next, mut effects) = self.identity.rotate(self.now, &mut self.rng).unwrap();
        self.identity = next;
        for peer in peers {
            effects.append(self.conversation(peer).retire().unwrap());
        }
        effects.append(self.prekeys.renew(&self.identity, None, self.now, &mut self.rng).unwrap());
        assert!(self.rows.commit(effects));
        self.directory = model::Directory::default();
        let _ = self.maintain();
        self.identity = self.fork().identity;
    }

    fn chain(&self) -> RotationChain {
        let bytes = self.identity.rotations().unwrap().encode();
        RotationChain::validate(&bytes, &app(), self.identity.user()).unwrap()
    }

    /// Moves the pin of a peer.
    fn follow(&mut self, peer: &Address, chain: &RotationChain) -> Result<bool, ProtocolError> {
        let mut conversation = self.conversation(peer);
        let Some(followed) = conversation.follow(chain, &self.context())? else { return Ok(false) };
        assert!(self.rows.commit(followed.effects));
        Ok(true)
    }

    fn pinned(&self, peer: &Address) -> Pin {
        self.conversation(peer).pin().cloned().unwrap()
    }

    fn verify(&mut self, peer: &Address) {
        let effects = self.conversation(peer).set_verified(true).unwrap();
        assert!(self.rows.commit(effects));
    }
}

fn refusal(bytes: &[u8], app: &AppId, user: &UserId) -> &'static str {
    code(RotationChain::validate(bytes, app, user))
}

#[test]
fn a_contact_follows_and_both_sides_go_on() {
    let (mut alice, mut bob) = pair();
    let (a, b) = (alice.address(), bob.address());
    bob.verify(&a);
    let old = *alice.identity.user_key();
    alice.rotate(&[&b]);
    let first = alice.start(&mut bob, "from the new key").unwrap();
    assert_eq!(code(bob.receive(&a, &first)), "IDENTITY_CHANGED", "without the chain it is another's key");
    assert!(bob.follow(&a, &alice.chain()).unwrap());
    let pin = bob.pinned(&a);
    assert_eq!((pin.user_key, pin.verified), (*alice.identity.user_key(), false));
    assert_eq!(pin.earlier, [EarlierKey { user_key: old, left: bob.now }]);
    let got = bob.receive_full(&a, &first).unwrap();
    assert_eq!((got.words.as_str(), got.identity), ("from the new key", IdentityEvent::Known));
    let answer = bob.send(&a, "to the new key").unwrap();
    assert_eq!(alice.receive(&b, &answer).unwrap(), "to the new key");
    assert!(!bob.follow(&a, &alice.chain()).unwrap(), "again it says nothing new");
}

#[test]
fn a_contact_who_was_away_walks_over_several_keys_and_not_over_a_gap() {
    let (mut alice, mut bob) = pair();
    let (a, b) = (alice.address(), bob.address());
    let mut carol = bob.fork();
    for _ in 0..MAX_ROTATIONS {
        alice.rotate(&[&b]);
    }
    assert!(bob.follow(&a, &alice.chain()).unwrap());
    assert_eq!(bob.pinned(&a).earlier.len(), MAX_ROTATIONS);
    let first = alice.start(&mut bob, "hello").unwrap();
    assert_eq!(bob.receive(&a, &first).unwrap(), "hello");
    alice.rotate(&[&b]);
    assert!(!carol.follow(&a, &alice.chain()).unwrap(), "the first of nine rotations is not carried");
    assert!(bob.follow(&a, &alice.chain()).unwrap());
    assert_eq!(bob.pinned(&a).earlier.len(), MAX_ROTATIONS + 1);
    assert_eq!(bob.fork().pinned(&a), bob.pinned(&a));
}

/// What `before` knows, right after it began another chain that nobody saw: who has a copy of it can go on with that.
fn turned(before: &mut Party, peer: &mut Party) -> Party {
    let (from, to) = (peer.address(), before.address());
    let blob = peer.send(&to, "turn").unwrap();
    assert_eq!(before.receive(&from, &blob).unwrap(), "turn");
    before.fork()
}

#[test]
fn mail_that_was_under_way_is_read_for_minutes_and_nothing_goes_out_on_its_session() {
    let (mut alice, mut bob) = pair();
    let (a, b) = (alice.address(), bob.address());
    let early = alice.send(&b, "early").unwrap();
    let late: Vec<_> = (0..3).map(|n| alice.send(&b, &format!("late {n}")).unwrap()).collect();
    assert_eq!(bob.receive(&a, &early).unwrap(), "early");
    alice.rotate(&[&b]);
    assert!(bob.follow(&a, &alice.chain()).unwrap());
    bob.verify(&a);
    assert_eq!(code(bob.send(&a, "on the old session")), "NO_SESSION");
    let got = bob.receive_full(&a, &late[1]).unwrap();
    assert_eq!((got.words.as_str(), got.standing), ("late 1", Standing::TheirsEarlier));
    let mut strict = bob.fork();
    strict.policy.first = FirstContact::VerifiedOnly;
    assert_eq!(
        code(strict.receive(&a, &late[0])),
        "IDENTITY_NOT_VERIFIED",
        "nobody verified the old key for good"
    );
    let mut later = bob.fork();
    later.pass(limits::LEFT_BEHIND_READING);
    assert_eq!(later.receive(&a, &late[0]).unwrap(), "late 0", "also with a stored key");
    later.pass(Duration::from_millis(1));
    let error = later.receive(&a, &late[2]).unwrap_err();
    assert!(matches!(error, ProtocolError::KeyGone) && error.wants_repair(), "it is sent again");
    // A clock that is put back gives no time again.
    later.now = Timestamp::from_millis(bob.pinned(&a).earlier[0].left.as_millis() - 1);
    assert_eq!(code(later.receive(&a, &late[2])), "MESSAGE_KEY_GONE");
}

#[test]
fn a_thief_of_the_old_key_begins_no_chain_on_a_session_that_was_left() {
    let (mut alice, mut bob) = pair();
    let (a, b) = (alice.address(), bob.address());
    let mut thief = turned(&mut alice, &mut bob);
    alice.rotate(&[&b]);
    let forged = thief.send(&b, "forged").unwrap();
    let mut unaware = bob.fork();
    assert_eq!(unaware.receive(&a, &forged).unwrap(), "forged", "who does not know of the rotation reads it");
    assert!(bob.follow(&a, &alice.chain()).unwrap());
    let before = bob.rows.0.clone();
    assert_eq!(code(bob.receive(&a, &forged)), "MESSAGE_KEY_GONE");
    assert!(bob.rows.0 == before, "nothing changed");
}

#[test]
fn mail_to_the_key_that_handed_over_is_read_for_minutes_and_no_new_chain_of_it() {
    let (mut alice, mut bob) = pair();
    let (a, b) = (alice.address(), bob.address());
    let mut early: Vec<_> = (0..4).map(|n| bob.send(&a, &format!("early {n}")).unwrap()).collect();
    let answer = alice.send(&b, "turn").unwrap();
    alice.verify(&b);
    alice.rotate(&[&b]);
    alice.rotate(&[&b]);
    let pin = alice.fork().pinned(&b);
    assert!(!pin.verified, "the number that was compared is another one now");
    assert!(pin.compared_before && pin == alice.pinned(&b), "but bob's key is the one that was compared");
    assert_eq!(code(alice.send(&b, "on the old session")), "NO_SESSION");
    let got = alice.receive_full(&b, &early.remove(1)).unwrap();
    assert_eq!((got.words.as_str(), got.reply), ("early 1", None));
    assert_eq!(got.standing, Standing::OursEarlier);
    assert_eq!(alice.receive(&b, &early[0]).unwrap(), "early 0");
    assert_eq!(code(alice.receive(&b, &early[0])), "DUPLICATE");
    let request = RetryRequest { message: stvor_base::MessageId::from_bytes([1; 16]), blob_hash: [2; 32] };
    let asks = Plaintext::retry_request(stvor_base::ContentId::from_bytes([7; 16]), &request);
    let blob = bob.send_content(&a, &asks).unwrap();
    assert!(alice.receive_full(&b, &blob).is_ok());
    assert_eq!(code(alice.send(&b, "still not")), "NO_SESSION");
    // Whoever has a copy of the old store can make the peer's answers as well as the peer.
    assert_eq!(bob.receive(&a, &answer).unwrap(), "turn");
    let turned = bob.send(&a, "on a new chain").unwrap();
    let error = alice.receive(&b, &turned).unwrap_err();
    assert!(matches!(error, ProtocolError::KeyGone) && error.wants_repair());
    let mut later = alice.fork();
    later.pass(limits::LEFT_BEHIND_READING - Duration::from_secs(1));
    assert_eq!(later.receive(&b, &early[1]).unwrap(), "early 2");
    alice.pass(limits::LEFT_BEHIND_READING + Duration::from_secs(1));
    assert!(alice.receive(&b, &early[2]).is_err());
}

#[test]
fn no_policy_goes_back_to_a_key_that_handed_over_but_a_person_may() {
    let (mut alice, mut bob) = pair();
    let (a, b) = (alice.address(), bob.address());
    let mut before = alice.fork();
    alice.rotate(&[&b]);
    assert!(bob.follow(&a, &alice.chain()).unwrap());
    for mismatch in [OnMismatch::Reject, OnMismatch::Ask, OnMismatch::Replace] {
        bob.policy.mismatch = mismatch;
        let error = bob.start(&mut before, "to the old key").unwrap_err();
        assert_eq!(code(Err::<(), _>(error)), "IDENTITY_SUPERSEDED", "{mismatch:?}");
    }
    let blob = before.start(&mut bob, "from the old key").unwrap();
    let error = bob.receive(&a, &blob).unwrap_err();
    assert!(matches!(error, ProtocolError::IdentitySuperseded(_)) && error.wants_repair());
    let decision = TrustDecision { user_key: *before.identity.user_key(), accept: true, verified: false };
    let received = bob.open_with(&a, &blob, Some(&decision)).unwrap();
    assert_eq!(received.identity, IdentityEvent::Replaced { old: *alice.identity.user_key() });
}

#[test]
fn an_older_chain_moves_nothing_back() {
    let (mut alice, mut bob) = pair();
    let (a, b) = (alice.address(), bob.address());
    alice.rotate(&[&b]);
    let once = alice.chain();
    alice.rotate(&[&b]);
    assert!(bob.follow(&a, &alice.chain()).unwrap());
    assert_eq!(code(bob.follow(&a, &once)), "IDENTITY_SUPERSEDED");
    assert_eq!(bob.pinned(&a).user_key, *alice.identity.user_key());
}

#[test]
fn a_fork_by_the_thief_of_an_old_key_reaches_nobody_who_saw_the_rotation() {
    let (mut alice, mut bob) = pair();
    let (a, b) = (alice.address(), bob.address());
    let mut thief = alice.fork();
    alice.rotate(&[&b]);
    thief.rotate(&[&b]);
    assert!(bob.follow(&a, &alice.chain()).unwrap());
    let mut innocent = bob.fork();
    assert_eq!(code(bob.follow(&a, &thief.chain())), "IDENTITY_FORKED");
    let noted = bob.conversation(&a).note_fork(&thief.chain()).unwrap();
    assert!(bob.rows.commit(noted));
    assert!(bob.pinned(&a).forked && bob.fork().pinned(&a).forked);
    assert!(bob.conversation(&a).note_fork(&thief.chain()).is_none(), "it is told once");
    let mut stranger = Party::seeded("alice", "nobody knows");
    for mismatch in [OnMismatch::Reject, OnMismatch::Ask, OnMismatch::Replace] {
        bob.policy.mismatch = mismatch;
        for other in [&mut thief, &mut stranger] {
            assert_eq!(code(bob.start(other, "x")), "IDENTITY_FORKED", "{mismatch:?}");
            let blob = other.start(&mut bob, "x").unwrap();
            assert_eq!(code(bob.receive(&a, &blob)), "IDENTITY_FORKED", "{mismatch:?}");
        }
        assert_eq!(bob.pinned(&a).user_key, *alice.identity.user_key());
    }
    // The rightful one goes on.
    alice.rotate(&[&b]);
    assert!(bob.follow(&a, &alice.chain()).unwrap());
    let hello = alice.start(&mut bob, "hello").unwrap();
    assert_eq!(bob.receive(&a, &hello).unwrap(), "hello");
    // Who saw no fork is not touched by a chain that is a part of the one that was followed.
    let honest = alice.chain();
    assert!(innocent.follow(&a, &honest).unwrap());
    assert!(innocent.conversation(&a).note_fork(&honest).is_none());
}

#[test]
fn who_meets_a_user_after_their_rotation_takes_no_key_of_before_either() {
    let mut alice = Party::new("alice");
    let (a, thief) = (alice.address(), alice.fork());
    alice.rotate(&[]);
    alice.rotate(&[]);
    for written_to in [false, true] {
        let mut thief = thief.fork();
        let mut dave = Party::seeded("dave", if written_to { "dave" } else { "another dave" });
        let first = match written_to {
            true => alice.start(&mut dave, "hello").unwrap(),
            false => dave.start(&mut alice, "hello").unwrap(),
        };
        if written_to {
            assert_eq!(dave.receive(&a, &first).unwrap(), "hello");
        }
        assert!(dave.pinned(&a).earlier.is_empty(), "nothing was shown");
        let noted = dave.conversation(&a).note_earlier(&alice.chain(), dave.now).unwrap();
        assert!(dave.rows.commit(noted));
        let pin = dave.fork().pinned(&a);
        assert_eq!((pin.user_key, pin.earlier.len()), (*alice.identity.user_key(), 2));
        assert_eq!(pin.left(thief.identity.user_key()), Some(dave.now));
        assert!(dave.conversation(&a).note_earlier(&alice.chain(), dave.now).is_none(), "it is known");
        dave.policy.mismatch = OnMismatch::Replace;
        let blob = thief.start(&mut dave, "it is me").unwrap();
        assert_eq!(code(dave.receive(&a, &blob)), "IDENTITY_SUPERSEDED");
        let mut fork = thief.fork();
        fork.rotate(&[]);
        assert_eq!(code(dave.follow(&a, &fork.chain())), "IDENTITY_FORKED");
        assert!(dave.conversation(&a).note_earlier(&fork.chain(), dave.now).is_none(), "it leads elsewhere");
    }
    // Who followed from the middle of the chain learns what was before that, too.
    let mut erin = Party::new("erin");
    let _ = erin.start(&mut alice, "hello").unwrap();
    alice.rotate(&[&erin.address()]);
    assert!(erin.follow(&a, &alice.chain()).unwrap());
    assert_eq!(erin.pinned(&a).earlier.len(), 3);
}

#[test]
fn an_identity_that_takes_the_place_of_a_rotated_one_leads_nowhere_back() {
    let (mut alice, mut bob) = pair();
    let (a, b) = (alice.address(), bob.address());
    let mut first = alice.fork();
    alice.rotate(&[&b]);
    assert!(bob.follow(&a, &alice.chain()).unwrap());
    bob.policy.mismatch = OnMismatch::Replace;
    let mut stranger = Party::seeded("alice", "another");
    let hello = stranger.start(&mut bob, "hello").unwrap();
    let old = *alice.identity.user_key();
    assert_eq!(bob.receive_full(&a, &hello).unwrap().identity, IdentityEvent::Replaced { old });
    for earlier in [&mut first, &mut alice] {
        assert_eq!(code(bob.start(earlier, "back")), "IDENTITY_SUPERSEDED");
        let blob = earlier.start(&mut bob, "back").unwrap();
        assert_eq!(code(bob.receive(&a, &blob)), "IDENTITY_SUPERSEDED");
    }
    let decision = TrustDecision { user_key: old, accept: true, verified: false };
    let blob = alice.start(&mut bob, "named").unwrap();
    assert!(bob.open_with(&a, &blob, Some(&decision)).is_ok());
}

#[test]
fn who_talks_to_compared_contacts_only_goes_on_with_them_after_rotating() {
    let (mut alice, mut bob) = pair();
    let (a, b) = (alice.address(), bob.address());
    alice.policy.first = FirstContact::VerifiedOnly;
    alice.verify(&b);
    alice.rotate(&[&b]);
    alice.rotate(&[&b]);
    assert!(bob.follow(&a, &alice.chain()).unwrap());
    let first = alice.start(&mut bob, "from the new key").unwrap();
    assert_eq!(bob.receive(&a, &first).unwrap(), "from the new key");
    let answer = bob.send(&a, "to the new key").unwrap();
    assert_eq!(alice.receive(&b, &answer).unwrap(), "to the new key");
    assert!(!alice.pinned(&b).verified);
    // Compared anew, and taken back: then nothing of before counts.
    alice.verify(&b);
    assert!(alice.pinned(&b).verified && !alice.pinned(&b).compared_before);
    alice.rotate(&[&b]);
    let effects = alice.conversation(&b).set_verified(false).unwrap();
    assert!(alice.rows.commit(effects));
    assert_eq!(code(alice.start(&mut bob, "x")), "IDENTITY_NOT_VERIFIED");
    // And bob's own rotation takes the comparison with it.
    alice.verify(&b);
    alice.rotate(&[&b]);
    bob.rotate(&[&a]);
    assert!(alice.follow(&b, &bob.chain()).unwrap());
    assert!(!alice.pinned(&b).was_compared());
    assert_eq!(code(alice.start(&mut bob, "x")), "IDENTITY_NOT_VERIFIED");
}

#[test]
fn a_pin_remembers_as_many_keys_as_it_may_and_forgets_the_oldest_of_one_more() {
    let (mut alice, mut bob) = pair();
    let (a, b) = (alice.address(), bob.address());
    let first = *alice.identity.user_key();
    for _ in 0..limits::MAX_EARLIER_KEYS {
        alice.rotate(&[&b]);
        assert!(bob.follow(&a, &alice.chain()).unwrap());
    }
    assert!(bob.pinned(&a).had(&first) && bob.fork().pinned(&a).had(&first));
    alice.rotate(&[&b]);
    assert!(bob.follow(&a, &alice.chain()).unwrap());
    let pin = bob.fork().pinned(&a);
    assert!(!pin.had(&first));
    assert_eq!(pin.earlier.len(), limits::MAX_EARLIER_KEYS);
}

#[test]
fn chains_of_another_user_or_app_are_refused() {
    let mut alice = Party::new("alice");
    alice.rotate(&[]);
    let bytes = alice.identity.rotations().unwrap().encode();
    let (app, user) = (app(), alice.identity.user().clone());
    assert_eq!(refusal(&bytes, &app, &user), "OK");
    assert_eq!(refusal(&bytes, &app, &address("bob").user), "BAD_ROTATION");
    assert_eq!(refusal(&bytes, &AppId::new("other").unwrap(), &user), "BAD_ROTATION");
}

#[test]
fn spliced_reordered_and_cut_chains_are_refused() {
    let (mut alice, mut mallory) = (Party::new("alice"), Party::seeded("alice", "mallory"));
    for _ in 0..3 {
        alice.rotate(&[]);
        mallory.rotate(&[]);
    }
    let (user, steps) = (alice.identity.user().clone(), |party: &Party| {
        let chain = party.identity.rotations().unwrap();
        (*chain.keys().next().unwrap(), chain.steps().to_vec())
    });
    let chain = |oldest, steps: &[Rotation]| {
        let mut chain = Rotations::start(oldest, steps[0].clone());
        steps[1..].iter().for_each(|step| chain.push(step.clone()));
        chain.encode()
    };
    let (oldest, own) = steps(&alice);
    let (other, theirs) = steps(&mallory);
    assert_eq!(refusal(&chain(oldest, &own), &app(), &user), "OK");
    assert_eq!(
        refusal(&chain(oldest, &own[..2]), &app(), &user),
        "OK",
        "what was there before is a chain, too"
    );
    let [one, two, three] = [0, 1, 2].map(|at: usize| own[at].clone());
    for bad in [
        chain(oldest, &theirs),
        chain(other, &own),
        chain(oldest, &[one.clone(), theirs[1].clone()]),
        chain(oldest, &[one.clone(), two.clone(), theirs[2].clone()]),
        chain(oldest, &[two.clone(), one.clone(), three.clone()]),
        chain(oldest, &[one.clone(), three.clone()]),
        // Without its first step a chain begins with another key and number.
        chain(one.new_key, &[two, three]),
    ] {
        assert_eq!(refusal(&bad, &app(), &user), "BAD_ROTATION");
    }
}

#[test]
fn only_both_keys_together_make_a_rotation() {
    let mut alice = Party::new("alice");
    let mallory = Party::seeded("alice", "mallory");
    alice.rotate(&[]);
    let chain = alice.identity.rotations().unwrap();
    let (oldest, step) = (*chain.keys().next().unwrap(), chain.steps()[0].clone());
    let with = |step: Rotation| Rotations::start(oldest, step).encode();
    let user = alice.identity.user();
    for bad in [
        Rotation { by_new: step.by_old, ..step.clone() },
        Rotation { by_old: step.by_new, ..step.clone() },
        Rotation { new_key: *mallory.identity.user_key(), ..step.clone() },
        Rotation { time: Timestamp::from_millis(step.time.as_millis() + 1), ..step.clone() },
    ] {
        assert_eq!(refusal(&with(bad), &app(), user), "BAD_ROTATION");
    }
}

#[test]
fn a_rotated_identity_reads_back_and_every_cut_is_refused() {
    let mut alice = Party::new("alice");
    alice.rotate(&[]);
    let record = &alice.rows.0[&Identity::key()];
    let read = |bytes: &[u8]| Identity::from_record(&bytes.to_vec().into());
    assert_eq!(read(record).unwrap().rotations(), alice.identity.rotations());
    assert!((0..record.len()).all(|length| read(&record[..length]).is_err()));
    let mut other = Party::seeded("alice", "another");
    other.rotate(&[]);
    let own = alice.identity.rotations().unwrap().encode();
    let foreign = other.identity.rotations().unwrap().encode();
    let at = record.windows(own.len()).position(|part| part == own).unwrap();
    let swapped = [&record[..at], &foreign, &record[at + own.len()..]].concat();
    assert_eq!(code(read(&swapped)), "BAD_RECORD");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_flipped_bit_of_a_chain_passes(at in any::<prop::sample::Index>(), bit in 0..8_u8) {
        let mut alice = Party::new("alice");
        alice.rotate(&[]);
        alice.rotate(&[]);
        let mut bytes = alice.identity.rotations().unwrap().encode();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert_eq!(refusal(&bytes, &app(), alice.identity.user()), "BAD_ROTATION");
    }
}
