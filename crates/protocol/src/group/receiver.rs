//! Chains of other member devices, and reading what they sent.
//!
//! A chain comes over a session, so whose it is, is proven; it counts for that device and identity only. Of a message the
//! signature is checked before anything is derived, and nothing changes before the tag verified.

use std::collections::BTreeSet;

use stvor_base::codec::{CodecError, Reader, Writer};
use stvor_base::{Address, AppId, GroupId, KeyBytes, Suite, Timestamp};
use stvor_crypto::kdf::sha256;
use stvor_crypto::suite::VerifyingKey;
use stvor_crypto::{Secret, SecretBytes};

use super::content::SenderKeyIn;
use super::limits::{MAX_CHAINS, MAX_SKIP};
use super::message::{ChainId, GroupIncoming, Scope, associated_data, signed_bytes};
use crate::effects::{Effects, RecordKey, RecordKind, Records};
use crate::error::ProtocolError;
use crate::plaintext::Plaintext;
use crate::profile;
use crate::ratchet::{ChainKey, MessageSeed, Skipped};
use crate::session::{Realm, Slot, StoredKeys};

const VERSION: u8 = 1;
/// All keys of a chain have one place: a chain has no ratchet keys.
const NO_RATCHET: [u8; 32] = [0; 32];

/// A chain of a device of another member.
pub struct PeerChain {
    sender: Address,
    id: ChainId,
    group: GroupId,
    /// The sender's user key when the chain came.
    user_key: KeyBytes,
    signing: VerifyingKey,
    key: ChainKey,
    next: u32,
    stored: StoredKeys,
}

impl core::fmt::Debug for PeerChain {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("PeerChain").field("next", &self.next).finish_non_exhaustive()
    }
}

/// A group message that was read.
#[derive(Debug)]
#[must_use]
pub struct GroupReceived {
    /// What it says.
    pub plaintext: Plaintext,
    /// When it was sent, by the sender's clock.
    pub sent_at: Timestamp,
    /// What to commit.
    pub effects: Effects,
}

/// Under which row the chains of a device in a group are listed.
fn index_key(group: GroupId, sender: &Address) -> RecordKey {
    let mut name = Writer::new();
    sender.encode(&mut name);
    let hash = sha256(&[name.as_slice()]);
    RecordKey::of_group(RecordKind::SenderIndex, group, &hash[..16])
}

fn chain_key(sender: &Address, chain: &ChainId) -> RecordKey {
    RecordKey::of_peer(RecordKind::SenderChain, sender, chain)
}

fn decode_index(record: Option<&SecretBytes>) -> Result<Vec<ChainId>, ProtocolError> {
    let Some(record) = record else { return Ok(Vec::new()) };
    let read = || {
        let mut input = Reader::new(record.expose());
        match input.u8()? {
            VERSION => {}
            other => return Err(CodecError::Version(other)),
        }
        let count = usize::from(input.u8()?);
        if count > MAX_CHAINS {
            return Err(CodecError::Length);
        }
        let chains = (0..count).map(|_| input.array().copied()).collect::<Result<Vec<ChainId>, _>>()?;
        input.finish()?;
        Ok(chains)
    };
    read().map_err(ProtocolError::record("sender key index"))
}

/// Takes in a sender key. Effects are empty when it is known already: a chain never goes back.
pub struct Introduction<'a> {
    /// Whose session it came over.
    pub sender: &'a Address,
    /// The user key that the session is with.
    pub user_key: &'a KeyBytes,
}

impl Introduction<'_> {
    /// The rows that [`Introduction::accept`] needs.
    #[must_use]
    pub fn needs(&self, key: &SenderKeyIn) -> Vec<RecordKey> {
        vec![
            index_key(key.group, self.sender),
            chain_key(self.sender, &key.chain),
            StoredKeys::key_of(Realm::Groups, self.sender),
        ]
    }

    /// Keeps a sender key; the oldest of three makes room.
    ///
    /// # Errors
    /// [`ProtocolError::BadChange`] for a key that is no point, or a chain id that another group's chain has;
    /// [`ProtocolError::BadRecord`].
    pub fn accept(&self, key: &SenderKeyIn, records: &Records) -> Result<Effects, ProtocolError> {
        let signing = VerifyingKey::from_bytes(&key.signing)
            .ok()
            .filter(|_| key.signing.suite() == self.user_key.suite())
            .ok_or(ProtocolError::BadChange("its sender key is malformed"))?;
        let mut effects = Effects::new();
        if let Some(known) = PeerChain::load(self.sender, &key.chain, records)? {
            let same =
                known.group == key.group && known.signing == signing && known.user_key == *self.user_key;
            return if same {
                Ok(effects)
            } else {
                Err(ProtocolError::BadChange("its sender key has the id of another"))
            };
        }
        let mut chains = decode_index(records.get(&index_key(key.group, self.sender)))?;
        let mut stored = StoredKeys::load_of(Realm::Groups, self.sender, records)?;
        chains.insert(0, key.chain);
        while chains.len() > MAX_CHAINS {
            if let Some(oldest) = chains.pop() {
                effects.delete(chain_key(self.sender, &oldest));
                stored.forget(self.sender, &oldest, &mut effects);
            }
        }
        let chain = PeerChain {
            sender: self.sender.clone(),
            id: key.chain,
            group: key.group,
            user_key: *self.user_key,
            signing,
            key: ChainKey::new(key.key.duplicate()),
            next: key.counter,
            stored: StoredKeys::default(),
        };
        effects.put(chain_key(self.sender, &key.chain), chain.record((&chain.key, chain.next)));
        stored.save(self.sender, &mut effects);
        save_index(key.group, self.sender, &chains, &mut effects);
        Ok(effects)
    }
}

fn save_index(group: GroupId, sender: &Address, chains: &[ChainId], effects: &mut Effects) {
    let key = index_key(group, sender);
    if chains.is_empty() {
        effects.delete(key);
        return;
    }
    let mut out = Writer::with_capacity(2 + 16 * chains.len());
    out.u8(VERSION).u8(u8::try_from(chains.len()).unwrap_or(u8::MAX));
    chains.iter().for_each(|chain| {
        out.raw(chain);
    });
    effects.put(key, out.finish().into());
}

/// The rows that [`forget_sender`] needs.
#[must_use]
pub fn sender_rows(group: GroupId, sender: &Address) -> Vec<RecordKey> {
    vec![index_key(group, sender), StoredKeys::key_of(Realm::Groups, sender)]
}

/// Destroys the chains of a device that is no member any more.
///
/// # Errors
/// [`ProtocolError::BadRecord`].
pub fn forget_sender(group: GroupId, sender: &Address, records: &Records) -> Result<Effects, ProtocolError> {
    let mut effects = Effects::new();
    let chains = decode_index(records.get(&index_key(group, sender)))?;
    if chains.is_empty() {
        return Ok(effects);
    }
    let mut stored = StoredKeys::load_of(Realm::Groups, sender, records)?;
    for chain in &chains {
        effects.delete(chain_key(sender, chain));
        stored.forget(sender, chain, &mut effects);
    }
    stored.save(sender, &mut effects);
    effects.delete(index_key(group, sender));
    Ok(effects)
}

impl PeerChain {
    /// The rows that [`PeerChain::load`] reads.
    #[must_use]
    pub fn keys(sender: &Address, chain: &ChainId) -> Vec<RecordKey> {
        vec![chain_key(sender, chain), StoredKeys::key_of(Realm::Groups, sender)]
    }

    /// A chain of a sender; `None` when it is not here.
    ///
    /// # Errors
    /// [`ProtocolError::BadRecord`], [`ProtocolError::TooNew`].
    pub fn load(sender: &Address, chain: &ChainId, records: &Records) -> Result<Option<Self>, ProtocolError> {
        let Some(record) = records.get(&chain_key(sender, chain)) else { return Ok(None) };
        let stored = StoredKeys::load_of(Realm::Groups, sender, records)?;
        let read = || {
            let mut input = Reader::new(record.expose());
            let suite = Suite::of_layout(input.u8()?, VERSION)?;
            let group = GroupId::from_bytes(*input.array()?);
            let user_key = KeyBytes::read(&mut input, suite)?;
            let signing = KeyBytes::read(&mut input, suite)?;
            let signing = VerifyingKey::from_bytes(&signing).map_err(|_| CodecError::Value)?;
            let key = Secret::from_slice(input.raw(32)?).map_err(|_| CodecError::Length)?;
            let next = input.u32()?;
            input.finish()?;
            let (sender, key) = (sender.clone(), ChainKey::new(key));
            Ok(Self { sender, id: *chain, group, user_key, signing, key, next, stored })
        };
        read().map(Some).map_err(ProtocolError::record("sender key"))
    }

    fn record(&self, (key, next): (&ChainKey, u32)) -> SecretBytes {
        let mut out = Writer::with_capacity(1 + 16 + 2 * self.user_key.len() + 32 + 4);
        out.u8(self.user_key.suite().layout(VERSION)).raw(self.group.as_bytes()).raw(&self.user_key);
        out.raw(&self.signing.to_bytes());
        out.raw(key.expose()).u32(next);
        out.finish().into()
    }

    /// The group that the chain is of.
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// The sender's user key when the chain came: messages count while the member has this one.
    #[must_use]
    pub fn user_key(&self) -> &KeyBytes {
        &self.user_key
    }

    /// Notes messages that came before the chain did and stand before its place: nobody has read them, and its keys do not
    /// open them. [`PeerChain::open`] calls them gone, and not duplicates, until they are said again. To be committed with
    /// the chain; numbers from its place on are passed over.
    pub fn missed(mut self, numbers: &BTreeSet<u32>) -> Effects {
        let mut effects = Effects::new();
        for number in numbers.range(..self.next) {
            self.stored.missed(&Slot { session: &self.id, chain: NO_RATCHET, number: *number });
        }
        self.stored.save(&self.sender, &mut effects);
        effects
    }

    /// A message of the chain was said again in a session: it is a duplicate from here on.
    pub fn said_again(mut self, number: u32) -> Effects {
        let mut effects = Effects::new();
        let slot = Slot { session: &self.id, chain: NO_RATCHET, number };
        self.stored.told(&self.sender, &slot, &mut effects);
        self.stored.save(&self.sender, &mut effects);
        effects
    }

    fn slot<'a>(incoming: &'a GroupIncoming<'_>) -> Slot<'a> {
        Slot { session: &incoming.chain, chain: NO_RATCHET, number: incoming.counter }
    }

    /// The row that reading a message needs besides, if its key was stored.
    #[must_use]
    pub fn needs(&self, incoming: &GroupIncoming<'_>) -> Option<RecordKey> {
        self.stored.row(&self.sender, &Self::slot(incoming))
    }

    /// Reads a message of the chain. On an error nothing changed. That its sender is a member, with the key that the chain
    /// came from, is [`super::Group::admits`]'s to say, before this is called.
    ///
    /// # Errors
    /// [`ProtocolError::Undecryptable`] when signature or tag do not verify, [`ProtocolError::Duplicate`],
    /// [`ProtocolError::KeyGone`] for what has to be said again, [`ProtocolError::TooFarAhead`],
    /// [`ProtocolError::SuiteMismatch`].
    pub fn open(
        mut self,
        app: &AppId,
        incoming: &GroupIncoming<'_>,
        (records, now): (&Records, Timestamp),
    ) -> Result<GroupReceived, ProtocolError> {
        if incoming.chain != self.id {
            return Err(ProtocolError::UnknownSenderKey);
        }
        let (ours, theirs) = (self.user_key.suite(), incoming.suite);
        if ours != theirs {
            return Err(ProtocolError::SuiteMismatch { ours, theirs });
        }
        let profile = profile::of(ours);
        let scope = Scope { app, group: self.group, sender: &self.sender, key: &self.user_key };
        let aad = associated_data(scope, incoming.clear);
        let signed = signed_bytes(&aad, incoming.sealed);
        self.signing
            .verify(profile.label.group_signature, &signed, incoming.signature)
            .map_err(|_| ProtocolError::Undecryptable)?;

        let slot = Self::slot(incoming);
        let stored = self.stored.seed(&self.sender, &slot, (records, now))?;
        let (seed, skipped, advanced) = match stored {
            Some(seed) => (seed, Vec::new(), None),
            None => {
                let ahead = incoming.counter.checked_sub(self.next).ok_or(ProtocolError::Duplicate)?;
                if ahead > MAX_SKIP {
                    return Err(ProtocolError::TooFarAhead { ahead, limit: MAX_SKIP });
                }
                let next = incoming.counter.checked_add(1).ok_or(ProtocolError::Undecryptable)?;
                let (seed, skipped, key) = self.derive(incoming.counter);
                (seed, skipped, Some((key, next)))
            }
        };
        let mut opened = SecretBytes::from_slice(incoming.sealed);
        let length = seed
            .group_key(profile)
            .open(incoming.nonce, &aad, opened.expose_mut())
            .map_err(|_| ProtocolError::Undecryptable)?
            .len();
        opened.truncate(length);
        let plaintext = Plaintext::decode(opened).map_err(ProtocolError::Malformed)?;

        let mut effects = Effects::new();
        let mut mark = Vec::with_capacity(20);
        mark.extend_from_slice(&self.id);
        mark.extend_from_slice(&incoming.counter.to_be_bytes());
        let mark = RecordKey::of_peer(RecordKind::ReplayMark, &self.sender, &mark);
        effects.insert(mark, vec![1].into(), Some(now + crate::limits::REPLAY_MARK_LIFETIME));
        if let Some((key, next)) = &advanced {
            effects.put(chain_key(&self.sender, &self.id), self.record((key, *next)));
        }
        self.stored.used(&self.sender, &slot, &mut effects);
        self.stored.expire(&self.sender, now, &mut effects);
        self.stored.add(&self.sender, (&self.id, skipped, now), &mut effects);
        self.stored.save(&self.sender, &mut effects);
        Ok(GroupReceived { plaintext, sent_at: incoming.sent_at, effects })
    }

    fn derive(&self, counter: u32) -> (MessageSeed, Vec<Skipped>, ChainKey) {
        let mut skipped = Vec::new();
        let (mut seed, mut key) = self.key.step();
        for number in self.next..counter {
            let (following, next) = key.step();
            skipped.push(Skipped { id: NO_RATCHET, number, seed: core::mem::replace(&mut seed, following) });
            key = next;
        }
        (seed, skipped, key)
    }
}
