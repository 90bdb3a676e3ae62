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
//! Opening is in two parts: [`Ratchet::prepare`] derives the key of a message and changes nothing; once the tag
//! verified, [`Ratchet::apply`] carries the change out.

mod chain;
mod record;

pub(crate) use chain::{ChainKey, MessageSeed};
pub(crate) use record::CHAINS_BYTES;

use stvor_crypto::kdf::hkdf_sha256;
use stvor_crypto::random::Random;
use stvor_crypto::{Secret, Shielded};

use crate::envelope::Header;
use crate::error::ProtocolError;
use crate::limits::{MAX_RECEIVING_CHAINS, MAX_SKIP};
use crate::profile::active::{AgreementKey, NONCE, PUBLIC_KEY, PublicKey, label};

/// What tells ratchet keys of one session apart: the x coordinate.
pub(crate) type KeyId = [u8; 32];

/// The id of a ratchet key. Two keys that differ in y only share it; the associated data tells them apart.
pub(crate) fn key_id(key: &[u8; PUBLIC_KEY]) -> KeyId {
    let mut id = [0; 32];
    id.copy_from_slice(&key[1..33]);
    id
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
    /// Opened for a DH step, shielded otherwise.
    pub(crate) root: Shielded,
    /// Our newest ratchet key, until the peer's answer to it came.
    pub(crate) own: Option<AgreementKey>,
    /// The chain on `own`.
    pub(crate) sending: Option<(ChainKey, u32)>,
    /// Length of our sending chain before that.
    pub(crate) previous: u32,
    /// The peer's newest ratchet key.
    pub(crate) remote: Option<PublicKey>,
    /// Newest first.
    pub(crate) chains: Vec<ReceivingChain>,
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
    Turn { remote: PublicKey, root: Shielded, first: ChainKey, chain: ChainKey, number: u32, previous: u32 },
}

impl Step {
    /// Whether it changes more than chains.
    pub(crate) fn turns(&self) -> bool {
        matches!(self, Self::Turn { .. })
    }
}

impl Ratchet {
    /// The initiator's: the responder's signed prekey is the peer's first ratchet key.
    pub(crate) fn initiator(root: &Secret<32>, remote: PublicKey) -> Result<Self, ProtocolError> {
        Self::start(root, None, Some(remote))
    }

    /// The responder's: our signed prekey is our first ratchet key.
    pub(crate) fn responder(root: &Secret<32>, own: AgreementKey) -> Result<Self, ProtocolError> {
        Self::start(root, Some(own), None)
    }

    fn start(
        root: &Secret<32>,
        own: Option<AgreementKey>,
        remote: Option<PublicKey>,
    ) -> Result<Self, ProtocolError> {
        let root = Shielded::new(root.expose())?;
        Ok(Self { root, own, sending: None, previous: 0, remote, chains: Vec::new() })
    }

    /// The header and key seed of the next message to send. Does the sending half of a DH step if one is due; says
    /// whether it did.
    pub(crate) fn next_sending(
        &mut self,
        rng: &mut dyn Random,
    ) -> Result<(Header, MessageSeed, bool), ProtocolError> {
        let mut nonce = [0; NONCE];
        rng.fill(&mut nonce)?;
        let turned = self.sending.is_none();
        if turned {
            let remote = self.remote.as_ref().ok_or(ProtocolError::BadRecord("session"))?;
            let own = AgreementKey::generate(rng)?;
            let (root, chain) = root_step(&self.root, &own.agree(remote)?)?;
            (self.root, self.own, self.sending) = (root, Some(own), Some((chain, 0)));
        }
        let (Some(own), Some((chain, number))) = (&self.own, &mut self.sending) else {
            return Err(ProtocolError::BadRecord("session"));
        };
        let header = Header {
            ratchet_key: *own.public().as_bytes(),
            previous: self.previous,
            number: *number,
            nonce,
        };
        // Nobody sends 2^32 messages without an answer: the peer forces a turn long before.
        *number = number.checked_add(1).ok_or(ProtocolError::BadRecord("session"))?;
        let (seed, next) = chain.step();
        *chain = next;
        Ok((header, seed, turned))
    }

    /// The key seed of a message, and the change that goes with it. `stored` is the message's stored seed, if there is one.
    pub(crate) fn prepare(
        &self,
        header: &Header,
        stored: Option<MessageSeed>,
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
        let own = self.own.as_ref().ok_or(ProtocolError::Undecryptable)?;
        let opaque = |_| ProtocolError::Undecryptable;
        let remote = PublicKey::from_bytes(&header.ratchet_key).map_err(opaque)?;
        let (root, first) = root_step(&self.root, &own.agree(&remote).map_err(opaque)?)?;
        let (seed, chain) = walk(&first, header.number)?;
        let (number, previous) = (header.number, header.previous);
        Ok((seed, Step::Turn { remote, root, first, chain, number, previous }))
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
            Step::Turn { remote, root, first, chain: after, number, previous } => {
                if let Some(before) = self.chains.first_mut() {
                    close(before, previous, &mut skipped);
                }
                let id = key_id(remote.as_bytes());
                collect(&first, (&id, 0, number), &mut skipped);
                let next = number.saturating_add(1);
                self.chains.insert(0, ReceivingChain { id, key: Some(after), next, end: None });
                self.chains.truncate(MAX_RECEIVING_CHAINS);
                if let Some((_, sent)) = self.sending.take() {
                    self.previous = sent;
                }
                (self.root, self.own, self.remote) = (root, None, Some(remote));
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
    if ahead == 0 {
        return Ok(key.step());
    }
    let mut at = key.next();
    for _ in 1..ahead {
        at = at.next();
    }
    Ok(at.step())
}

/// Appends the seeds of the numbers `from..to` of a chain that stands at `from`.
fn collect(key: &ChainKey, (id, from, to): (&KeyId, u32, u32), skipped: &mut Vec<Skipped>) {
    if from >= to {
        return;
    }
    let (mut seed, mut at) = key.step();
    for number in from..to {
        skipped.push(Skipped { id: *id, number, seed });
        (seed, at) = at.step();
    }
}

fn root_step(root: &Shielded, secret: &Secret<32>) -> Result<(Shielded, ChainKey), ProtocolError> {
    let derived = root.open(|root| hkdf_sha256::<64>(root, secret.expose(), label::ROOT))?;
    let (root, chain) = derived.expose().split_at(32);
    Ok((Shielded::new(root)?, ChainKey::new(Secret::from_slice(chain)?)))
}
