//! Groups: signed membership, and one encryption for all members (sender keys).
//!
//! A [`Group`] holds the signed changes of one group and our own chain; [`PeerChain`] reads what another member's device
//! sent. Members tell one another changes and chains over their sessions ([`GroupContent`]); a message is one blob for all
//! of them ([`GroupIncoming`]). The rules that make members agree are those of `rules`, and every bound stands in
//! [`limits`].
//!
//! - A member sends with a chain of its own. Whoever lacks it gets it, at the counter where it stands, over a session and
//!   before the message; so a joiner reads no past.
//! - Before its first message after somebody left the group a member makes a new chain; so whoever left reads no future.
//!   What was sent before a removal was known may be read by whom it removed.
//! - Messages of those who are no members are refused, whatever they were when they wrote.

mod change;
mod content;
mod history;
pub mod limits;
mod message;
mod receiver;
mod rules;
mod sender;
mod untold;

use std::collections::{BTreeMap, VecDeque};

use stvor_base::{AppId, GroupId, KeyBytes, Timestamp, UserId};
use stvor_crypto::SecretBytes;
use stvor_crypto::kdf::sha256;
use stvor_crypto::random::Random;

use self::change::Base;
pub use self::change::{Action, Change, ChangeHash, Member, SignedChangeIn, is_name};
pub use self::content::{Again, GroupContent, SenderKeyIn, bodies_of};
use self::history::History;
use self::message::{AFTER, Scope, associated_data, clear_bytes, clear_size, signed_bytes};
pub use self::message::{ChainId, GroupIncoming};
pub use self::receiver::{GroupReceived, Introduction, PeerChain, forget_sender, sender_rows};
use self::sender::{OwnChain, Recipients, tag_of};
pub use self::untold::Untold;
use crate::effects::{Effects, RecordKey, RecordKind};
use crate::error::ProtocolError;
use crate::identity::Identity;
use crate::plaintext::Plaintext;
use crate::profile::{self, MAX_NONCE, Suite, TAG};
use crate::session::Context;

/// One group, as one of its members knows it.
pub struct Group {
    id: GroupId,
    app: AppId,
    own: UserId,
    history: History,
    suite: Suite,
    state: [u8; 32],
    chain: Option<OwnChain>,
    recipients: Recipients,
    /// Everybody has our chain and nobody else: so it was when we last sent, and nothing changed since.
    settled: bool,
    /// The last states that were, as far as memory goes back.
    past: VecDeque<[u8; 32]>,
}

impl core::fmt::Debug for Group {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Group")
            .field("id", &self.id)
            .field("members", &self.history.outcome().members.len())
            .finish_non_exhaustive()
    }
}

/// A change that we made.
#[derive(Debug)]
#[must_use]
pub struct Made {
    /// The change, to be told to all who are members before or after it.
    pub change: SignedChangeIn,
    /// What to commit.
    pub effects: Effects,
}

/// A change that was taken in.
#[derive(Debug)]
#[must_use]
pub struct Applied {
    /// Whether it was news.
    pub new: bool,
    /// Who is a member now and was not before.
    pub joined: Vec<UserId>,
    /// Who was a member before and is not now, or has another key.
    pub gone: Vec<UserId>,
    /// Who came in or is out by this and was not told so by its author, who knew nothing of it.
    pub untold: Untold,
    /// What to commit. What [`forget_sender`] says of those who are gone goes with it.
    pub effects: Effects,
}

/// A message for all members.
#[derive(Debug)]
#[must_use]
pub struct GroupEncrypted {
    /// What to send to each other member, once the effects are committed.
    pub blob: Vec<u8>,
    /// The chain and the counter of the message: by these it may be asked for again.
    pub place: (ChainId, u32),
    /// What is to go before it over the sessions with these members: the sender key that they lack.
    pub introduction: Option<(SecretBytes, Vec<Member>)>,
    /// What to commit.
    pub effects: Effects,
}

fn state_hash(suite: Suite, id: GroupId, heads: &[ChangeHash]) -> [u8; 32] {
    let mut parts: Vec<&[u8]> = vec![profile::of(suite).label.group_state, id.as_bytes()];
    parts.extend(heads.iter().map(<[u8; 32]>::as_slice));
    sha256(&parts)
}

/// Users who are members in `a`, and are not in `b` or have another key there.
fn missing(a: &BTreeMap<UserId, KeyBytes>, b: &BTreeMap<UserId, KeyBytes>) -> Vec<UserId> {
    a.iter().filter(|(user, key)| b.get(*user) != Some(*key)).map(|(user, _)| user.clone()).collect()
}

impl Group {
    fn empty(identity: &Identity, id: GroupId) -> Self {
        Self {
            id,
            app: identity.app().clone(),
            own: identity.user().clone(),
            history: History::default(),
            suite: identity.suite(),
            state: state_hash(identity.suite(), id, &[]),
            chain: None,
            recipients: Recipients::default(),
            settled: false,
            past: VecDeque::new(),
        }
    }

    /// Makes a group with us as its only member; [`Group::change`] lets others in.
    ///
    /// # Errors
    /// [`ProtocolError::BadChange`] for a name that is none; [`ProtocolError::Crypto`].
    pub fn create(
        identity: &Identity,
        name: &str,
        now: Timestamp,
        rng: &mut dyn Random,
    ) -> Result<(Self, Made), ProtocolError> {
        if !is_name(name) {
            return Err(ProtocolError::BadChange("its name is empty, too long or has control characters"));
        }
        let mut nonce = [0; 16];
        rng.fill(&mut nonce)?;
        let us = Member { user: identity.user().clone(), key: *identity.user_key() };
        let action = Action::Create { name: name.to_owned(), members: vec![us], nonce };
        let base = Base { group: GroupId::from_bytes([0; 16]), epoch: 0, parents: Vec::new(), version: None };
        let change = Change::sign(identity, &base, (action, now), rng)?;
        let mut group = Self::empty(identity, change.group);
        let signed = change.signed.clone();
        let effects = group.apply(change)?.effects;
        Ok((group, Made { change: signed, effects }))
    }

    /// A group of which only the id is known; [`Group::apply`] gives it its changes.
    #[must_use]
    pub fn join(identity: &Identity, id: GroupId) -> Self {
        Self::empty(identity, id)
    }

    /// Whether a row is one that [`Group::load`] reads: those of three kinds with the group's id as their partition.
    #[must_use]
    pub fn reads(kind: RecordKind) -> bool {
        matches!(kind, RecordKind::GroupChange | RecordKind::OwnChain | RecordKind::ChainRecipients)
    }

    /// The group that the rows of its partition make.
    ///
    /// # Errors
    /// [`ProtocolError::BadRecord`], [`ProtocolError::TooNew`].
    pub fn load(
        identity: &Identity,
        id: GroupId,
        rows: impl IntoIterator<Item = (RecordKind, SecretBytes)>,
    ) -> Result<Self, ProtocolError> {
        let mut group = Self::empty(identity, id);
        let mut changes = Vec::new();
        for (kind, row) in rows {
            match kind {
                RecordKind::GroupChange => {
                    let change = SignedChangeIn::from_record(&row)
                        .and_then(|change| change.trusted(&group.app))
                        .map_err(ProtocolError::record("group change"))?;
                    changes.push(change);
                }
                RecordKind::OwnChain => {
                    let chain = OwnChain::from_record(&row).map_err(ProtocolError::record("own chain"))?;
                    group.chain = Some(chain);
                }
                RecordKind::ChainRecipients => {
                    group.recipients =
                        Recipients::from_record(&row).map_err(ProtocolError::record("chain recipients"))?;
                }
                _ => {}
            }
        }
        // Each was taken in after what it builds on, so by epoch each finds its parents.
        changes.sort_by_key(|change| (change.epoch, change.hash));
        if changes.iter().any(|change| change.group != id) {
            return Err(ProtocolError::BadRecord("group change"));
        }
        group.history.extend(changes).ok_or(ProtocolError::BadRecord("group change"))?;
        group.state = state_hash(identity.suite(), id, &group.history.heads());
        Ok(group)
    }

    /// All changes, to be committed: of a group that was put together in memory.
    pub fn save(&self) -> Effects {
        let mut effects = Effects::new();
        for change in self.history.changes() {
            let key = RecordKey::of_group(RecordKind::GroupChange, self.id, &change.hash);
            effects.put(key, change.signed.to_record());
        }
        effects
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> GroupId {
        self.id
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.history.outcome().name
    }

    /// Who is in it, each with the user key that counts.
    pub fn members(&self) -> impl Iterator<Item = Member> + '_ {
        self.history.outcome().members.iter().map(|(user, key)| Member { user: user.clone(), key: *key })
    }

    /// How many are in it.
    #[must_use]
    pub fn size(&self) -> usize {
        self.history.outcome().members.len()
    }

    /// The user key that a member has.
    #[must_use]
    pub fn key_of(&self, user: &UserId) -> Option<&KeyBytes> {
        self.history.outcome().members.get(user)
    }

    /// Whether a user with this key is a member.
    #[must_use]
    pub fn admits(&self, user: &UserId, key: &KeyBytes) -> bool {
        self.key_of(user) == Some(key)
    }

    /// Whether we are in it.
    #[must_use]
    pub fn is_member(&self) -> bool {
        self.key_of(&self.own).is_some()
    }

    /// The number of its newest change: 0 for the creation, and one more than the greatest that a change builds on.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.history.epoch_of(&self.history.heads()).unwrap_or(0)
    }

    /// The hash of its membership state: members who know the same changes have the same.
    #[must_use]
    pub fn state(&self) -> &[u8; 32] {
        &self.state
    }

    /// Whether this is the state of the group, or was one of the last 64: if not, who names it knows what we do not, or the
    /// other way round.
    #[must_use]
    pub fn has_been(&self, state: &[u8; 32]) -> bool {
        self.state == *state || self.past.contains(state)
    }

    /// The changes that nothing builds on: the first 16 of them by hash.
    #[must_use]
    pub fn heads(&self) -> Vec<ChangeHash> {
        let mut heads = self.history.heads();
        heads.truncate(limits::MAX_PARENTS);
        heads
    }

    /// Whether a change is here.
    #[must_use]
    pub fn knows(&self, hash: &ChangeHash) -> bool {
        self.history.has(hash)
    }

    /// All changes, parents before children.
    pub fn changes(&self) -> impl Iterator<Item = &Change> {
        self.history.changes()
    }

    /// The changes that do not stand below `known`, parents before children.
    #[must_use]
    pub fn beyond(&self, known: &[ChangeHash]) -> Vec<SignedChangeIn> {
        self.history.beyond(known).map(|change| change.signed.clone()).collect()
    }

    /// Changes the group.
    ///
    /// # Errors
    /// [`ProtocolError::NotMember`] when we are not in it (with this identity), or who is to be removed is not;
    /// [`ProtocolError::GroupFull`]; [`ProtocolError::BadChange`] for a name that is none, and for more than 128 members at
    /// once, none, or members out of the order of their names.
    pub fn change(
        &mut self,
        identity: &Identity,
        (action, now): (Action, Timestamp),
        rng: &mut dyn Random,
    ) -> Result<(Made, Applied), ProtocolError> {
        if !self.admits(identity.user(), identity.user_key()) {
            return Err(ProtocolError::NotMember(identity.user().clone()));
        }
        match &action {
            Action::Remove(user) if self.key_of(user).is_none() => {
                return Err(ProtocolError::NotMember(user.clone()));
            }
            Action::Rename(name) if !is_name(name) => {
                return Err(ProtocolError::BadChange(
                    "its name is empty, too long or has control characters",
                ));
            }
            Action::Create { .. } => return Err(ProtocolError::BadChange("a group is created once")),
            Action::Add(members) => {
                let ordered = members.is_sorted_by(|a, b| a.user < b.user);
                if members.is_empty() || members.len() > limits::MAX_CHANGE_MEMBERS || !ordered {
                    return Err(ProtocolError::BadChange("it does not name 1 to 128 members in order"));
                }
            }
            _ => {}
        }
        let parents = self.heads();
        let epoch = self.history.epoch_of(&parents).unwrap_or(0).saturating_add(1);
        let base = Base { group: self.id, epoch, parents, version: self.history.version() };
        let change = Change::sign(identity, &base, (action, now), rng)?;
        let signed = change.signed.clone();
        let mut applied = self.apply(change)?;
        let effects = core::mem::take(&mut applied.effects);
        Ok((Made { change: signed, effects }, applied))
    }

    /// Takes in a change that was checked. A known one changes nothing.
    ///
    /// # Errors
    /// [`ProtocolError::ChangeEarly`] when it builds on a change that is not here; [`ProtocolError::BadChange`] when it is of
    /// another group, its epoch is wrong, or its author, or whom it removes, was no member by what it builds on; [`ProtocolError::GroupFull`]
    /// past 1,000 members, 4,096 changes or 16 MiB of them; of removals each author has some left past that.
    pub fn apply(&mut self, change: Change) -> Result<Applied, ProtocolError> {
        let refused = ProtocolError::BadChange;
        if change.group != self.id {
            return Err(refused("it is of another group"));
        }
        if change.author_key.suite() != self.suite {
            return Err(refused("it is of another suite"));
        }
        let nothing = Applied {
            new: false,
            joined: Vec::new(),
            gone: Vec::new(),
            untold: Untold::default(),
            effects: Effects::new(),
        };
        if self.history.has(&change.hash) {
            return Ok(nothing);
        }
        self.has_room(&change)?;
        let before = self.history.before(&change.parents).ok_or(ProtocolError::ChangeEarly)?;
        if self.history.version().is_some_and(|version| version != change.version) {
            return Err(refused("its version is not that of its group"));
        }
        let expected = self.history.epoch_of(&change.parents).map_or(0, |epoch| epoch.saturating_add(1));
        if change.epoch != expected {
            return Err(refused("its epoch is not the next one"));
        }
        let outcome = self.history.outcome_of(&before);
        if let Action::Create { .. } = change.action {
            // Its hash is the group's id, so there is no other.
        } else if outcome.members.get(&change.author.user) != Some(&change.author_key) {
            return Err(refused("its author is not a member by what it builds on"));
        }
        if let Action::Remove(user) = &change.action
            && change.version > 1
            && !outcome.members.contains_key(user)
        {
            return Err(refused("whom it removes is not a member by what it builds on"));
        }
        if let Action::Add(members) = &change.action {
            let new = members.iter().filter(|member| !outcome.members.contains_key(&member.user)).count();
            if outcome.members.len() + new > limits::MAX_MEMBERS {
                return Err(ProtocolError::GroupFull { what: "members", limit: limits::MAX_MEMBERS });
            }
        }
        let old = self.history.outcome().members.clone();
        let mut effects = Effects::new();
        effects.put(
            RecordKey::of_group(RecordKind::GroupChange, self.id, &change.hash),
            change.signed.to_record(),
        );
        let by = Member { user: change.author.user.clone(), key: change.author_key };
        let action = change.action.clone();
        self.history.push(change, before);
        self.settled = false;
        self.past.truncate(limits::MAX_PAST_STATES - 1);
        self.past.push_front(self.state);
        self.state = state_hash(self.suite, self.id, &self.history.heads());
        let new = &self.history.outcome().members;
        let (joined, gone) = (missing(new, &old), missing(&old, new));
        let untold = Untold::of((&by, &action), &old, new).without(&self.own);
        if gone.contains(&self.own) && self.chain.take().is_some() {
            // Others destroy it when they learn of this; should we come back they are given another one.
            effects.delete(RecordKey::of_group(RecordKind::OwnChain, self.id, &[]));
        }
        Ok(Applied { new: true, joined, gone, untold, effects })
    }

    /// Whether one more change fits in. Whoever fills a group up can be put out all the same: past the bound each author has
    /// some removals left.
    fn has_room(&self, change: &Change) -> Result<(), ProtocolError> {
        let full = |what, limit| Err(ProtocolError::GroupFull { what, limit });
        let removal = matches!(change.action, Action::Remove(_));
        let bytes = self.history.bytes() + change.signed.bytes.len();
        if !removal && bytes > limits::MAX_CHANGES_BYTES {
            return full("bytes of changes", limits::MAX_CHANGES_BYTES);
        }
        if self.history.len() < limits::MAX_CHANGES && bytes <= limits::MAX_CHANGES_BYTES {
            return Ok(());
        }
        let theirs = self
            .history
            .changes()
            .filter(|known| {
                known.author.user == change.author.user && matches!(known.action, Action::Remove(_))
            })
            .count();
        if !removal || theirs >= limits::MAX_LATE_REMOVALS {
            return full("changes", limits::MAX_CHANGES);
        }
        if self.history.len() >= 2 * limits::MAX_CHANGES {
            return full("changes", 2 * limits::MAX_CHANGES);
        }
        Ok(())
    }

    /// Whether the chain that we have may go on: everybody who has it is still a member.
    fn chain_stands(&self) -> bool {
        let Some(chain) = &self.chain else { return false };
        if self.settled {
            return chain.counter < limits::MAX_CHAIN_MESSAGES;
        }
        let Some(given) = self.recipients.of(&chain.id) else { return true };
        let members: std::collections::BTreeSet<_> =
            self.members().map(|member| tag_of(&member.user, &member.key)).collect();
        chain.counter < limits::MAX_CHAIN_MESSAGES && given.keys().all(|tag| members.contains(tag))
    }

    /// Encrypts a message to all members. On an error nothing changed. How long it takes depends on the group's size only
    /// where somebody lacks our sender key.
    ///
    /// # Errors
    /// [`ProtocolError::NotMember`] when we are not in the group; [`ProtocolError::MessageTooLarge`] above
    /// [`limits::MAX_BODY`]; [`ProtocolError::Crypto`].
    pub fn encrypt(
        &mut self,
        context: &Context<'_>,
        plaintext: &Plaintext,
        rng: &mut dyn Random,
    ) -> Result<GroupEncrypted, ProtocolError> {
        let identity = context.identity;
        if !self.admits(identity.user(), identity.user_key()) {
            return Err(ProtocolError::NotMember(identity.user().clone()));
        }
        let (size, limit) = (plaintext.body.len(), limits::MAX_BODY);
        if size > limit {
            return Err(ProtocolError::MessageTooLarge { size, limit });
        }
        let fresh = if self.chain_stands() { None } else { Some(OwnChain::generate(identity.suite(), rng)?) };
        let chain = fresh.as_ref().or(self.chain.as_ref()).ok_or(ProtocolError::UnknownSenderKey)?;
        let profile = profile::of(identity.suite());
        let mut nonce = [0; MAX_NONCE];
        let nonce = nonce.get_mut(..profile.suite.nonce_bytes()).unwrap_or_default();
        rng.fill(nonce)?;
        let clear = clear_size(profile.suite);
        let size = plaintext.padded_size(context.padding, (clear, AFTER));
        let place = (profile.suite, &chain.id, chain.counter);
        let mut blob = clear_bytes(place, context.now, (&self.state, nonce), size);
        let scope =
            Scope { app: &self.app, group: self.id, sender: identity.address(), key: identity.user_key() };
        let aad = associated_data(scope, &blob);
        let (seed, next) = chain.key.step();
        plaintext.encode_to(&mut blob, size - AFTER)?;
        let body = blob.get_mut(clear..).unwrap_or_default();
        let tag: [u8; TAG] = seed.group_key(profile).seal_in_place_separate_tag(nonce, &aad, body)?;
        blob.extend_from_slice(&tag);
        let signed = signed_bytes(&aad, blob.get(clear..).unwrap_or_default());
        let signature = chain.signing.sign_with(rng, profile.label.group_signature, &signed)?;
        blob.extend_from_slice(&signature);

        let place = (chain.id, chain.counter);
        let lacking = if self.settled && fresh.is_none() { Vec::new() } else { self.lacking(&chain.id) };
        let mut effects = Effects::new();
        let introduction = if lacking.is_empty() {
            None
        } else {
            let tags = lacking.iter().map(|member| tag_of(&member.user, &member.key));
            self.recipients.give((&chain.id, chain.counter), tags);
            let row = RecordKey::of_group(RecordKind::ChainRecipients, self.id, &[]);
            effects.put(row, self.recipients.record());
            Some((self.introduction(chain), lacking))
        };
        let row = RecordKey::of_group(RecordKind::OwnChain, self.id, &[]);
        effects.put(row, chain.record((&next, chain.counter + 1)));
        if let Some(fresh) = fresh {
            self.chain = Some(fresh);
        }
        if let Some(chain) = &mut self.chain {
            chain.key = next;
            chain.counter += 1;
        }
        self.settled = true;
        Ok(GroupEncrypted { blob, place, introduction, effects })
    }

    /// Other members who do not have a chain of ours.
    fn lacking(&self, chain: &ChainId) -> Vec<Member> {
        let given = self.recipients.of(chain);
        let has = |member: &Member| {
            given.is_some_and(|given| given.contains_key(&tag_of(&member.user, &member.key)))
        };
        self.members().filter(|member| member.user != self.own && !has(member)).collect()
    }

    fn introduction(&self, chain: &OwnChain) -> SecretBytes {
        GroupContent::SenderKey(SenderKeyIn {
            group: self.id,
            heads: self.heads(),
            chain: chain.id,
            counter: chain.counter,
            key: stvor_crypto::Secret::new(*chain.key.expose()),
            signing: chain.signing.public(),
        })
        .encode()
    }

    /// Gives our chain up, because its keys may be used already: the next message begins another, of which every member is
    /// told. What was sent on the old one can still be asked for.
    pub fn renew(&mut self) -> Effects {
        let mut effects = Effects::new();
        self.settled = false;
        if self.chain.take().is_some() {
            effects.delete(RecordKey::of_group(RecordKind::OwnChain, self.id, &[]));
        }
        effects
    }

    /// Whether one of our newest chains has this id.
    #[must_use]
    pub fn sent_on(&self, chain: &ChainId) -> bool {
        self.recipients.of(chain).is_some()
    }

    /// Whether a member may have a message of ours sent again: we had given them its chain before it.
    #[must_use]
    pub fn entitled(&self, member: &Member, (chain, counter): (&ChainId, u32)) -> bool {
        let given = self.recipients.of(chain);
        self.admits(&member.user, &member.key)
            && given
                .and_then(|given| given.get(&tag_of(&member.user, &member.key)))
                .is_some_and(|from| *from <= counter)
    }

    /// Our sender key at the counter where it stands, for a member to whom we gave it before and who lost it; `None` for
    /// anybody else, and when the chain is not our newest.
    #[must_use]
    pub fn introduce_again(&self, member: &Member, chain: &ChainId) -> Option<SecretBytes> {
        let own = self.chain.as_ref().filter(|own| own.id == *chain)?;
        self.entitled(member, (chain, u32::MAX)).then(|| self.introduction(own))
    }
}
