//! The double ratchet of a session, with the steps of [`crate::ratchet`] and Signal's labels.
//!
//! ```text
//! root step     root', chain = HKDF-SHA256(salt = root, ikm = DH(own, remote), info = "WhisperRatchet", 64 bytes)
//! message keys  cipher 32, mac 32, iv 16 = HKDF-SHA256(salt = none, ikm = seed, info = "WhisperMessageKeys", 80 bytes)
//! ```
//!
//! A new ratchet key of the peer brings both halves of a DH step at once, as stored records of other libraries have it; the
//! sending half is computed only after the MAC verified. As in our own ratchet a change is prepared first, which may
//! fail, and carried out afterwards, which can not.

use stvor_base::Timestamp;
use stvor_crypto::kdf::{constant_time_eq, hkdf_sha256_unsalted, hmac_sha256_tag};
use stvor_crypto::random::Random;
use stvor_crypto::{Secret, SecretBytes, cbc_pkcs7 as cbc};

use super::SignalError;
use super::keys::{KeyPair, PublicKey};
use super::wire::{MAC, WhisperMessage};
use crate::limits::{MAX_RECEIVING_CHAINS, MAX_SKIP, MAX_STORED_KEYS};
use crate::ratchet::{ChainKey, MessageSeed, turn};

const ROOT: &[u8] = b"WhisperRatchet";
const MESSAGE: &[u8] = b"WhisperMessageKeys";

/// One chain of messages from the peer.
pub(super) struct Receiving {
    pub(super) ratchet: PublicKey,
    /// None once the chain is closed: every message of it has a key derived.
    pub(super) key: Option<ChainKey>,
    /// The next number whose key was not derived.
    pub(super) next: u32,
    /// Keys of messages that have not come, oldest first.
    pub(super) stored: Vec<(u32, MessageSeed)>,
}

/// The handshake that goes with each message until the peer answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pending {
    pub(super) prekey: Option<u32>,
    pub(super) signed: u32,
}

/// A session with one device of a peer.
pub(super) struct Session {
    /// The peer's registration id, as it said.
    pub(super) registration_id: u32,
    pub(super) remote_identity: PublicKey,
    /// The initiator's ephemeral key, which names the session.
    pub(super) base_key: PublicKey,
    /// Whether we started it.
    pub(super) initiator: bool,
    pub(super) created: Timestamp,
    pub(super) used: Timestamp,
    /// When it was replaced.
    pub(super) closed: Option<Timestamp>,
    pub(super) pending: Option<Pending>,
    pub(super) root: Secret<32>,
    /// Our newest ratchet key.
    pub(super) own: KeyPair,
    /// The peer's newest ratchet key.
    pub(super) remote: PublicKey,
    /// The number of the last message on our sending chain before this one; 0 also when there was none.
    pub(super) previous: u32,
    /// The chain on our ratchet key, and the next number on it.
    pub(super) sending: Option<(ChainKey, u32)>,
    /// Newest first.
    pub(super) receiving: Vec<Receiving>,
}

/// A change that waits for the MAC to verify.
pub(super) enum Step {
    /// The key was a stored one.
    Stored { chain: usize, at: usize },
    /// A known chain moves on.
    Advance { chain: usize, number: u32, after: ChainKey },
    /// A new chain.
    Turn(Box<Turn>),
}

/// The receiving half of a DH step, and after [`Step::complete`] the sending half.
pub(super) struct Turn {
    root: Secret<32>,
    remote: PublicKey,
    first: ChainKey,
    after: ChainKey,
    number: u32,
    previous: u32,
    sending: Option<(KeyPair, ChainKey)>,
}

fn root_step(root: &Secret<32>, secret: &Secret<32>) -> Result<(Secret<32>, ChainKey), SignalError> {
    let derived = turn(root.expose(), secret, ROOT);
    let (root, chain) = derived.expose().split_at(32);
    Ok((Secret::from_slice(root)?, ChainKey::new(Secret::from_slice(chain)?)))
}

impl Step {
    /// Computes the sending half of a DH step, if this is one.
    pub(super) fn complete(&mut self, rng: &mut dyn Random) -> Result<(), SignalError> {
        if let Self::Turn(turn) = self {
            let own = KeyPair::generate(rng)?;
            let (root, chain) = root_step(&turn.root, &own.agree(&turn.remote)?)?;
            turn.root = root;
            turn.sending = Some((own, chain));
        }
        Ok(())
    }
}

impl Session {
    /// The sending half of a DH step against the peer's signed prekey: how an initiator begins.
    pub(super) fn begin(&mut self, rng: &mut dyn Random) -> Result<(), SignalError> {
        let own = KeyPair::generate(rng)?;
        let (root, chain) = root_step(&self.root, &own.agree(&self.remote)?)?;
        (self.root, self.own, self.sending) = (root, own, Some((chain, 0)));
        Ok(())
    }

    /// Whether we started it and nobody answered.
    pub(super) fn unanswered(&self) -> bool {
        self.pending.is_some()
    }

    /// Whether a message is on a chain that is known here.
    pub(super) fn knows(&self, ratchet: &PublicKey) -> bool {
        self.receiving.iter().any(|chain| chain.ratchet == *ratchet)
    }

    /// The key seed of a message and the change that goes with it. `budget` is what chain steps are left, and pays for
    /// those that are taken, also when this is the wrong session.
    pub(super) fn prepare(
        &self,
        message: &WhisperMessage<'_>,
        budget: &mut u32,
    ) -> Result<(MessageSeed, Step), SignalError> {
        let number = message.counter;
        let known = self.receiving.iter().enumerate().find(|(_, chain)| chain.ratchet == message.ratchet);
        if let Some((index, chain)) = known {
            if number < chain.next {
                let at = chain.stored.iter().position(|(stored, _)| *stored == number);
                let at = at.ok_or(SignalError::Duplicate)?;
                let (_, seed) = chain.stored.get(at).ok_or(SignalError::Duplicate)?;
                return Ok((seed.duplicate(), Step::Stored { chain: index, at }));
            }
            let key = chain.key.as_ref().ok_or(SignalError::Undecryptable)?;
            pay(budget, number - chain.next)?;
            let (seed, after) = key.ahead(number - chain.next);
            return Ok((seed, Step::Advance { chain: index, number, after }));
        }
        pay(budget, number)?;
        let secret = self.own.agree(&message.ratchet).map_err(|_| SignalError::Undecryptable)?;
        let (root, first) = root_step(&self.root, &secret)?;
        let (seed, after) = first.ahead(number);
        let (remote, previous) = (message.ratchet, message.previous);
        Ok((seed, Step::Turn(Box::new(Turn { root, remote, first, after, number, previous, sending: None }))))
    }

    /// Carries a change out. `elsewhere` is how many keys the other sessions of the record store.
    pub(super) fn apply(&mut self, step: Step, elsewhere: usize) {
        match step {
            Step::Stored { chain, at } => {
                if let Some(chain) = self.receiving.get_mut(chain) {
                    chain.stored.remove(at);
                }
            }
            Step::Advance { chain, number, after } => {
                if let Some(chain) = self.receiving.get_mut(chain) {
                    chain.pass_to(number);
                    (chain.key, chain.next) = (Some(after), number.saturating_add(1));
                }
            }
            Step::Turn(turn) => {
                let Turn { root, remote, first, after, number, previous, sending } = *turn;
                if let Some(before) = self.receiving.first_mut() {
                    before.close(previous, MAX_SKIP.saturating_sub(number));
                }
                let mut chain = Receiving { ratchet: remote, key: Some(first), next: 0, stored: Vec::new() };
                chain.pass_to(number);
                (chain.key, chain.next) = (Some(after), number.saturating_add(1));
                self.receiving.insert(0, chain);
                self.receiving.truncate(MAX_RECEIVING_CHAINS);
                if let Some((own, key)) = sending {
                    if let Some((_, next)) = &self.sending {
                        self.previous = next.saturating_sub(1);
                    }
                    (self.own, self.sending) = (own, Some((key, 0)));
                }
                (self.root, self.remote) = (root, remote);
            }
        }
        self.evict(MAX_STORED_KEYS.saturating_sub(elsewhere));
    }

    /// How many keys of messages that have not come are stored.
    pub(super) fn stored(&self) -> usize {
        self.receiving.iter().map(|chain| chain.stored.len()).sum()
    }

    /// Drops the oldest stored keys beyond `room`.
    pub(super) fn evict(&mut self, room: usize) {
        let mut excess = self.stored().saturating_sub(room);
        for chain in self.receiving.iter_mut().rev() {
            let gone = excess.min(chain.stored.len());
            chain.stored.drain(..gone);
            excess -= gone;
        }
    }
}

impl Receiving {
    /// Stores the keys of the numbers up to `number`, which itself is in use.
    fn pass_to(&mut self, number: u32) {
        let Some(key) = self.key.as_ref().filter(|_| number > self.next) else { return };
        let (mut at, stored) = (self.next, &mut self.stored);
        key.pass(number.saturating_sub(self.next), |seed| {
            stored.push((at, seed));
            at += 1;
        });
    }

    /// Ends a chain whose last message is `last`: the keys of those that did not come are stored. If that takes more than
    /// `steps`, the chain stays open instead.
    fn close(&mut self, last: u32, steps: u32) {
        let end = last.saturating_add(1);
        if end.saturating_sub(self.next) > steps {
            return;
        }
        self.pass_to(end);
        (self.key, self.next) = (None, self.next.max(end));
    }
}

/// Takes `steps` out of what a message may cost.
pub(super) fn pay(budget: &mut u32, steps: u32) -> Result<(), SignalError> {
    let left = budget.checked_sub(steps);
    *budget = left.ok_or(SignalError::TooFarAhead { ahead: steps, limit: *budget })?;
    Ok(())
}

/// The keys of one message.
pub(super) struct MessageKeys(Secret<80>);

impl MessageKeys {
    pub(super) fn derive(seed: &MessageSeed) -> Self {
        Self(hkdf_sha256_unsalted(seed.expose(), MESSAGE))
    }

    /// Cipher key, MAC key, IV.
    fn parts(&self) -> (&[u8; cbc::KEY_BYTES], &[u8; 32], &[u8; cbc::IV_BYTES]) {
        let parts = self.0.expose().split_first_chunk().and_then(|(cipher, rest)| {
            let (mac, iv) = rest.split_first_chunk()?;
            Some((cipher, mac, iv.try_into().ok()?))
        });
        let Some(parts) = parts else { unreachable!("80 bytes are 32, 32 and 16") };
        parts
    }

    pub(super) fn encrypt(&self, plaintext: &[u8]) -> Vec<u8> {
        let (cipher, _, iv) = self.parts();
        let mut out = Vec::with_capacity(plaintext.len() + cbc::IV_BYTES);
        cbc::encrypt(cipher, iv, plaintext, &mut out);
        out
    }

    /// Checks the MAC over what came, in constant time, then decrypts.
    pub(super) fn open(
        &self,
        message: &WhisperMessage<'_>,
        (sender, recipient): (&PublicKey, &PublicKey),
    ) -> Result<SecretBytes, SignalError> {
        let expected = self.mac((sender, recipient), &message.authenticated);
        if !constant_time_eq(&expected, &message.mac) {
            return Err(SignalError::Undecryptable);
        }
        let (cipher, _, iv) = self.parts();
        cbc::decrypt(cipher, iv, &message.ciphertext).map_err(|_| SignalError::Undecryptable)
    }

    /// The MAC: HMAC-SHA256 over both identities, the sender's first, and the bytes from the version on; 8 of 32 bytes.
    pub(super) fn mac(&self, (sender, recipient): (&PublicKey, &PublicKey), bytes: &[u8]) -> [u8; MAC] {
        #[cfg(test)]
        super::work::hashed(bytes.len());
        let (_, mac, _) = self.parts();
        hmac_sha256_tag(mac, &[&sender.to_bytes(), &recipient.to_bytes(), bytes])
    }
}
