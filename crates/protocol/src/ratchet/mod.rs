//! The double ratchet.
//!
//! ```text
//! root step     root', chain = HKDF-SHA256(salt = root, ikm = DH(own, remote), info = label "root chain", 64 bytes)
//! chain step    seed = HMAC-SHA256(chain, 01), chain' = HMAC-SHA256(chain, 02)
//! message key   HKDF-SHA256(salt = none, ikm = seed, info = label "message key", 32 bytes)
//! ```
//!
//! A receiver derives the receiving half of a DH step when a new ratchet key comes, and the sending half, with a fresh
//! key of its own, only when it next sends. So at any time it holds at most one private ratchet key, and none between
//! the two halves.
//!
//! Both directions are in two parts. [`Ratchet::prepare_sending`] and [`Ratchet::prepare`] derive the key of a message and
//! change nothing, though they may fail; [`Ratchet::sent`] and, once the tag verified, [`Ratchet::apply`] carry the change
//! out and can not fail.

mod chain;
mod record;

pub(crate) use chain::{ChainKey, MessageSeed, turn};
pub(crate) use record::CHAINS_BYTES;

use stvor_base::KeyBytes;
use stvor_crypto::random::Random;
use stvor_crypto::suite::{AgreementKey, PublicKey};
use stvor_crypto::{Secret, ShieldKey, Shielded};

use crate::envelope::{Header, HeaderIn};
use crate::error::ProtocolError;
use crate::limits::{MAX_RECEIVING_CHAINS, MAX_SKIP};
use crate::profile::{self, MAX_NONCE, Profile, Suite};

/// What tells ratchet keys of one session apart: the x coordinate of P-256, the u coordinate of Curve25519.
pub(crate) type KeyId = [u8; 32];

/// The id of a ratchet key. Two keys that differ in y only share it; the associated data tells them apart.
pub(crate) fn key_id(key: &KeyBytes) -> KeyId {
    let coordinate = match key.suite() {
        Suite::X25519 => key.first_chunk(),
        _ => key.get(1..).and_then(<[u8]>::first_chunk),
    };
    coordinate.copied().unwrap_or_default()
}

/// One chain of messages from the peer.
pub(crate) struct ReceivingChain {
    pub(crate) id: KeyId,
    /// None once every message of the chain has a key derived.
    pub(crate) key: Option<ChainKey>,
    /// The next number whose key was not derived.
    pub(crate) next: u32,
    /// How many messages the chain has, once the peer said so.
    pub(crate) end: Option<u32>,
}

/// The ratchet of one session.
pub(crate) struct Ratchet {
    pub(crate) profile: &'static Profile,
    pub(crate) keys: RootKeys,
    /// The chain on our ratchet key.
    pub(crate) sending: Option<(ChainKey, u32)>,
    /// Length of our sending chain before that.
    pub(crate) previous: u32,
    /// Newest first.
    pub(crate) chains: Vec<ReceivingChain>,
}

/// What only a turn changes.
pub(crate) struct RootKeys {
    /// Opened for a DH step, shielded otherwise.
    pub(crate) root: Shielded,
    /// Our newest ratchet key, until the peer's answer to it came.
    pub(crate) own: Option<AgreementKey>,
    /// The peer's newest ratchet key.
    pub(crate) remote: Option<PublicKey>,
}

/// The next message to send, and the change that goes with it.
pub(crate) struct Sending {
    pub(crate) header: Header,
    pub(crate) seed: MessageSeed,
    /// The sending half of a DH step, if one is due.
    pub(crate) keys: Option<RootKeys>,
    chain: ChainKey,
    next: u32,
}

/// A message key that was passed over.
pub(crate) struct Skipped {
    pub(crate) id: KeyId,
    pub(crate) number: u32,
    pub(crate) seed: MessageSeed,
}

/// A change that waits for the tag to verify.
pub(crate) enum Step {
    /// The key was a stored one.
    Stored,
    /// A known chain moves on.
    Advance { index: usize, number: u32, chain: ChainKey },
    /// A new chain: the receiving half of a DH step.
    Turn(Box<Turn>),
}

/// The receiving half of a DH step.
pub(crate) struct Turn {
    keys: RootKeys,
    id: KeyId,
    first: ChainKey,
    chain: ChainKey,
    number: u32,
    previous: u32,
}

impl Step {
    /// What changes besides chains.
    pub(crate) fn keys(&self) -> Option<&RootKeys> {
        match self {
            Self::Turn(turn) => Some(&turn.keys),
            Self::Stored | Self::Advance { .. } => None,
        }
    }
}

impl Ratchet {
    /// The initiator's: the responder's signed prekey is the peer's first ratchet key.
    pub(crate) fn initiator(
        root: &Secret<32>,
        remote: PublicKey,
        shield: &ShieldKey,
    ) -> Result<Self, ProtocolError> {
        let root = Shielded::new_with(root.expose(), shield)?;
        let suite = remote.suite();
        Ok(Self::start(suite, RootKeys { root, own: None, remote: Some(remote) }))
    }

    /// The responder's: our signed prekey is our first ratchet key.
    pub(crate) fn responder(
        root: &Secret<32>,
        own: AgreementKey,
        shield: &ShieldKey,
    ) -> Result<Self, ProtocolError> {
        let root = Shielded::new_with(root.expose(), shield)?;
        let suite = own.public().suite();
        Ok(Self::start(suite, RootKeys { root, own: Some(own), remote: None }))
    }

    fn start(suite: Suite, keys: RootKeys) -> Self {
        Self { profile: profile::of(suite), keys, sending: None, previous: 0, chains: Vec::new() }
    }

    /// The header and key seed of the next message to send, with the sending half of a DH step if one is due.
    pub(crate) fn prepare_sending(
        &self,
        shield: &ShieldKey,
        rng: &mut dyn Random,
    ) -> Result<Sending, ProtocolError> {
        let damaged = ProtocolError::BadRecord("session");
        let mut nonce = [0; MAX_NONCE];
        rng.fill(nonce.get_mut(..self.profile.suite.nonce_bytes()).unwrap_or_default())?;
        let turned;
        let (keys, chain, number) = match &self.sending {
            Some((chain, number)) => (None, chain, *number),
            None => {
                let remote = self.keys.remote.as_ref().ok_or(damaged)?;
                let own = AgreementKey::generate(self.profile.suite, rng)?;
                let (root, chain) = self.root_step(&own.agree(remote)?, shield)?;
                turned = chain;
                (Some(RootKeys { root, own: Some(own), remote: Some(remote.clone()) }), &turned, 0)
            }
        };
        let own = keys.as_ref().unwrap_or(&self.keys).own.as_ref();
        let ratchet_key = own.ok_or(ProtocolError::BadRecord("session"))?.public();
        let header = Header { ratchet_key, previous: self.previous, number, nonce };
        // Nobody sends 2^32 messages without an answer: the peer forces a turn long before.
        let next = number.checked_add(1).ok_or(ProtocolError::BadRecord("session"))?;
        let (seed, chain) = chain.step();
        Ok(Sending { header, seed, keys, chain, next })
    }

    /// The message was made.
    pub(crate) fn sent(&mut self, sending: Sending) {
        if let Some(keys) = sending.keys {
            self.keys = keys;
        }
        self.sending = Some((sending.chain, sending.next));
    }

    /// The key seed of a message, and the change that goes with it. `stored` is the message's stored seed, if there is one.
    pub(crate) fn prepare(
        &self,
        header: &HeaderIn<'_>,
        stored: Option<MessageSeed>,
        shield: &ShieldKey,
    ) -> Result<(MessageSeed, Step), ProtocolError> {
        if let Some(seed) = stored {
            return Ok((seed, Step::Stored));
        }
        let id = key_id(&header.ratchet_key);
        if let Some((index, chain)) = self.chains.iter().enumerate().find(|(_, chain)| chain.id == id) {
            if header.number < chain.next {
                return Err(ProtocolError::Duplicate);
            }
            let key = chain.key.as_ref().ok_or(ProtocolError::Undecryptable)?;
            if chain.end.is_some_and(|end| header.number >= end) {
                return Err(ProtocolError::Undecryptable);
            }
            let (seed, chain) = walk(key, header.number - chain.next)?;
            return Ok((seed, Step::Advance { index, number: header.number, chain }));
        }
        // The peer has a new key only in answer to ours.
        let own = self.keys.own.as_ref().ok_or(ProtocolError::Undecryptable)?;
        if header.number > MAX_SKIP {
            return Err(ProtocolError::TooFarAhead { ahead: header.number, limit: MAX_SKIP });
        }
        let opaque = |_| ProtocolError::Undecryptable;
        let remote = PublicKey::from_bytes(&header.ratchet_key).map_err(opaque)?;
        let (root, first) = self.root_step(&own.agree(&remote).map_err(opaque)?, shield)?;
        let (seed, chain) = walk(&first, header.number)?;
        let (number, previous) = (header.number, header.previous);
        let keys = RootKeys { root, own: None, remote: Some(remote) };
        Ok((seed, Step::Turn(Box::new(Turn { keys, id, first, chain, number, previous }))))
    }

    fn root_step(
        &self,
        secret: &Secret<32>,
        shield: &ShieldKey,
    ) -> Result<(Shielded, ChainKey), ProtocolError> {
        let label = self.profile.label.root;
        let derived = self.keys.root.open_with(shield, |root| turn(root, secret, label))?;
        let (root, chain) = derived.expose().split_at(32);
        Ok((Shielded::new_with(root, shield)?, ChainKey::new(Secret::from_slice(chain)?)))
    }

    /// Carries a change out, and gives back the keys that it passed over.
    pub(crate) fn apply(&mut self, step: Step) -> Vec<Skipped> {
        let mut skipped = Vec::new();
        match step {
            Step::Stored => {}
            Step::Advance { index, number, chain: after } => {
                if let Some(chain) = self.chains.get_mut(index) {
                    if let Some(key) = &chain.key {
                        collect(key, (&chain.id, chain.next, number), &mut skipped);
                    }
                    chain.next = number.saturating_add(1);
                    chain.key = Some(after).filter(|_| chain.end.is_none_or(|end| chain.next < end));
                }
            }
            Step::Turn(turn) => {
                let Turn { keys, id, first, chain: after, number, previous } = *turn;
                if let Some(before) = self.chains.first_mut() {
                    close(before, previous, &mut skipped);
                }
                collect(&first, (&id, 0, number), &mut skipped);
                let next = number.saturating_add(1);
                self.chains.insert(0, ReceivingChain { id, key: Some(after), next, end: None });
                self.chains.truncate(MAX_RECEIVING_CHAINS);
                if let Some((_, sent)) = self.sending.take() {
                    self.previous = sent;
                }
                self.keys = keys;
            }
        }
        skipped
    }
}

/// Ends a chain that has `length` messages: the keys of those that did not come are stored. If they are too many to
/// store, the chain stays open up to its end.
fn close(chain: &mut ReceivingChain, length: u32, skipped: &mut Vec<Skipped>) {
    let missing = length.saturating_sub(chain.next);
    chain.end = Some(length.max(chain.next));
    if missing <= MAX_SKIP
        && let Some(key) = chain.key.take()
    {
        collect(&key, (&chain.id, chain.next, length), skipped);
        chain.next = chain.next.max(length);
    }
}

/// The seed `ahead` steps on, and the chain after it.
fn walk(key: &ChainKey, ahead: u32) -> Result<(MessageSeed, ChainKey), ProtocolError> {
    if ahead > MAX_SKIP {
        return Err(ProtocolError::TooFarAhead { ahead, limit: MAX_SKIP });
    }
    Ok(key.ahead(ahead))
}

/// Appends the seeds of the numbers `from..to` of a chain that stands at `from`.
fn collect(key: &ChainKey, (id, from, to): (&KeyId, u32, u32), skipped: &mut Vec<Skipped>) {
    let mut number = from;
    key.pass(to.saturating_sub(from), |seed| {
        skipped.push(Skipped { id: *id, number, seed });
        number += 1;
    });
}
