//! Sender keys: one ciphertext for a whole group.
//!
//! ```text
//! chain step    seed = HMAC-SHA256(chain, 01), chain' = HMAC-SHA256(chain, 02)
//! message keys  iv 16, cipher 32 = HKDF-SHA256(salt = none, ikm = seed, info = "WhisperGroup", 48 bytes)
//! ```
//!
//! There is no MAC: a signature authenticates the sender, and is checked before anything is derived. The distribution of
//! a sender key travels inside sessions, and whose it is follows from the session that it came in. Counters of some
//! clients are even only; the keys of the numbers between are kept like those of any message that has not come, but only
//! the newest 100.

use stvor_base::codec::{CodecError, Reader, Sink, Writer};
use stvor_crypto::kdf::hkdf_sha256_unsalted;
use stvor_crypto::random::Random;
use stvor_crypto::xeddsa::SigningKey;
use stvor_crypto::{Secret, SecretBytes, cbc_pkcs7 as cbc, x25519};

use super::SignalError;
use super::keys::{KeyPair, PublicKey};
use super::session::Compatibility;
use super::wire::{SenderKeyDistribution, SenderKeyMessage};
use crate::limits::{
    MAX_ALTERNATE_KEYS, MAX_SENDER_KEY_STATES, MAX_SIGNAL_MESSAGE, MAX_SKIP, MAX_STORED_KEYS,
};
use crate::ratchet::{ChainKey, MessageSeed};

mod text;

pub use text::SenderKeyText;

const LABEL: &[u8] = b"WhisperGroup";
const VERSION: u8 = 1;
/// Bytes of a state without stored keys, and of a stored key.
const STATE: usize = 4 + 4 + 32 + 32 + 1 + 32 + 32 + 4;
const STORED: usize = 4 + 32;
/// What a message has besides its ciphertext, at most.
const OVERHEAD: usize = 128;

/// Our own signing key of a chain, with its point on the Edwards curve.
struct Own {
    private: Secret<32>,
    point: [u8; 32],
}

/// One chain of a sender.
struct State {
    id: u32,
    /// The next number whose key was not derived.
    next: u32,
    chain: ChainKey,
    signing: PublicKey,
    own: Option<Own>,
    /// Keys of messages that have not come, oldest first.
    stored: Vec<(u32, MessageSeed)>,
}

/// The sender keys of one sender in one group: ours, or a member's.
///
/// ```
/// use stvor_crypto::SystemRandom;
/// use stvor_protocol::signal::{SenderKeyDistribution, SenderKeyRecord};
/// let rng = &mut SystemRandom::new();
/// let mut own = SenderKeyRecord::new();
/// let distribution = own.distribution(rng)?.encode();
/// let message = own.encrypt(b"to all", rng)?;
///
/// let mut theirs = SenderKeyRecord::new();
/// theirs.process(&SenderKeyDistribution::parse(&distribution)?)?;
/// assert_eq!(theirs.decrypt(&message)?.expose(), b"to all");
/// assert!(theirs.decrypt(&message).is_err(), "once");
/// # Ok::<(), stvor_protocol::signal::SignalError>(())
/// ```
#[derive(Default)]
pub struct SenderKeyRecord {
    /// Newest first.
    states: Vec<State>,
}

impl SenderKeyRecord {
    /// One without keys.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there is no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.states.is_empty()
    }

    /// What is weaker about these keys than about those of our own groups, wherever the record comes from; empty when there
    /// is no key.
    #[must_use]
    pub fn compatibility(&self) -> Vec<Compatibility> {
        match self.is_empty() {
            true => Vec::new(),
            false => vec![Compatibility::NoPostQuantum, Compatibility::NoAssociatedData],
        }
    }

    /// Our sender key for the members, from the next message on. Makes one if there is none.
    ///
    /// # Errors
    /// What `rng` says; [`SignalError::NoSenderKey`] for a record of another member.
    pub fn distribution(&mut self, rng: &mut dyn Random) -> Result<SenderKeyDistribution, SignalError> {
        if self.states.is_empty() {
            self.rotate(rng)?;
        }
        let state =
            self.states.first().filter(|state| state.own.is_some()).ok_or(SignalError::NoSenderKey)?;
        Ok(SenderKeyDistribution {
            id: state.id,
            iteration: state.next,
            chain_key: Secret::from_slice(state.chain.expose())?,
            signing_key: state.signing,
        })
    }

    /// Begins a new chain with a new signing key: after a member left. Distribute it before the next message.
    ///
    /// # Errors
    /// What `rng` says.
    pub fn rotate(&mut self, rng: &mut dyn Random) -> Result<(), SignalError> {
        let mut id = [0; 4];
        rng.fill(&mut id)?;
        let (chain, pair) = (ChainKey::new(Secret::random(rng)?), KeyPair::generate(rng)?);
        let point = SigningKey::new(pair.private()).point();
        let own = Some(Own { private: pair.private().duplicate(), point });
        let id = u32::from_be_bytes(id) & 0x7fff_ffff;
        self.add(State { id, next: 0, chain, signing: pair.public(), own, stored: Vec::new() });
        Ok(())
    }

    /// Takes a member's sender key in. One that is known already keeps its place: a copy that comes late rewinds nothing. One that is further on
    /// than a message may be ahead moves it there, or who missed so much would never read again.
    ///
    /// # Errors
    /// [`SignalError::Crypto`].
    pub fn process(&mut self, key: &SenderKeyDistribution) -> Result<(), SignalError> {
        let known =
            self.states.iter_mut().find(|state| state.id == key.id && state.signing == key.signing_key);
        if let Some(state) = known {
            if state.own.is_none() && key.iteration.saturating_sub(state.next) > MAX_SKIP {
                state.chain = ChainKey::new(key.chain_key.duplicate());
                state.next = key.iteration;
            }
        } else {
            self.add(State {
                id: key.id,
                next: key.iteration,
                chain: ChainKey::new(key.chain_key.duplicate()),
                signing: key.signing_key,
                own: None,
                stored: Vec::new(),
            });
        }
        Ok(())
    }

    /// Puts a state first. Another one of the same id goes.
    fn add(&mut self, state: State) {
        self.states.retain(|other| other.id != state.id);
        self.states.insert(0, state);
        self.states.truncate(MAX_SENDER_KEY_STATES);
    }

    /// Encrypts for the group: the message, version to signature.
    ///
    /// # Errors
    /// [`SignalError::NoSenderKey`] without a key of our own, [`SignalError::TooLarge`]. The record is unchanged then.
    pub fn encrypt(&mut self, plaintext: &[u8], rng: &mut dyn Random) -> Result<Vec<u8>, SignalError> {
        let limit = MAX_SIGNAL_MESSAGE - OVERHEAD;
        if plaintext.len() > limit {
            return Err(SignalError::TooLarge { size: plaintext.len(), limit });
        }
        let state = self.states.first_mut().ok_or(SignalError::NoSenderKey)?;
        let own = state.own.as_ref().ok_or(SignalError::NoSenderKey)?;
        let (seed, after) = state.chain.step();
        let keys = MessageKeys::derive(&seed);
        let (cipher, iv) = keys.parts();
        let mut ciphertext = Vec::with_capacity(plaintext.len() + cbc::IV_BYTES);
        cbc::encrypt(cipher, iv, plaintext, &mut ciphertext);
        let mut message = SenderKeyMessage::build(state.id, state.next, ciphertext);
        let signature = SigningKey::from_parts(&own.private, own.point).sign(&message, rng)?;
        message.extend_from_slice(&signature);
        let next = state.next.checked_add(1).ok_or(SignalError::NoSenderKey)?;
        (state.chain, state.next) = (after, next);
        Ok(message)
    }

    /// Decrypts a member's message. The signature is checked before anything is derived.
    ///
    /// # Errors
    /// [`SignalError::NoSenderKey`], [`SignalError::Undecryptable`], [`SignalError::Duplicate`],
    /// [`SignalError::TooFarAhead`]. The record is unchanged then.
    pub fn decrypt(&mut self, message: &[u8]) -> Result<SecretBytes, SignalError> {
        let message = SenderKeyMessage::parse(message)?;
        let state = self.states.iter_mut().find(|state| state.id == message.id);
        let state = state.ok_or(SignalError::NoSenderKey)?;
        let verified = state.signing.verify(&message.signed, &message.signature);
        verified.map_err(|_| SignalError::Undecryptable)?;
        let opened = |seed: &MessageSeed| {
            let keys = MessageKeys::derive(seed);
            let (cipher, iv) = keys.parts();
            cbc::decrypt(cipher, iv, &message.ciphertext).map_err(|_| SignalError::Undecryptable)
        };
        let number = message.iteration;
        if number < state.next {
            let at = state.stored.iter().position(|(stored, _)| *stored == number);
            let at = at.ok_or(SignalError::Duplicate)?;
            let (_, seed) = state.stored.get(at).ok_or(SignalError::Duplicate)?;
            let plaintext = opened(seed)?;
            state.stored.remove(at);
            return Ok(plaintext);
        }
        let ahead = number - state.next;
        if ahead > MAX_SKIP {
            return Err(SignalError::TooFarAhead { ahead, limit: MAX_SKIP });
        }
        let (seed, after) = state.chain.ahead(ahead);
        let plaintext = opened(&seed)?;
        let (mut at, stored) = (state.next, &mut state.stored);
        state.chain.pass(ahead, |seed| {
            stored.push((at, seed));
            at += 1;
        });
        if ahead == 1 {
            thin(stored);
        }
        stored.drain(..stored.len().saturating_sub(MAX_STORED_KEYS));
        (state.chain, state.next) = (after, number.saturating_add(1));
        Ok(plaintext)
    }

    /// The record as it is stored.
    #[must_use]
    pub fn encode(&self) -> SecretBytes {
        let mut out = Writer::with_capacity(self.size());
        self.write(&mut out);
        out.finish().into()
    }

    /// How many bytes [`Self::encode`] gives.
    #[must_use]
    pub fn size(&self) -> usize {
        let stored: usize = self.states.iter().map(|state| state.stored.len()).sum();
        2 + self.states.len() * STATE + stored * STORED
    }

    /// Writes what [`Self::encode`] gives into `room`, which has [`Self::size`] bytes: whether it has.
    ///
    /// ```
    /// use stvor_protocol::signal::SenderKeyRecord;
    /// let record = SenderKeyRecord::new();
    /// let mut room = vec![0; record.size()];
    /// assert!(record.encode_into(&mut room));
    /// assert_eq!(room, record.encode().expose());
    /// ```
    #[must_use = "of a record that did not fit a part is written"]
    pub fn encode_into(&self, room: &mut [u8]) -> bool {
        let mut out = Writer::into_room(room);
        self.write(&mut out);
        out.is_full()
    }

    fn write(&self, out: &mut Writer<impl Sink>) {
        out.u8(VERSION).u8(u8::try_from(self.states.len()).unwrap_or(u8::MAX));
        for state in &self.states {
            out.u32(state.id).u32(state.next).raw(state.chain.expose()).raw(state.signing.0.as_bytes());
            match &state.own {
                Some(own) => out.u8(1).raw(own.private.expose()).raw(&own.point),
                None => out.u8(0).raw(&[0; 64]),
            };
            out.u32(u32::try_from(state.stored.len()).unwrap_or(u32::MAX));
            for (number, seed) in &state.stored {
                out.u32(*number).raw(seed.expose());
            }
        }
    }

    /// Reads a stored record.
    ///
    /// # Errors
    /// [`SignalError::BadRecord`], [`SignalError::TooNew`].
    pub fn decode(bytes: &[u8]) -> Result<Self, SignalError> {
        let mut input = Reader::new(bytes);
        match input.u8()? {
            VERSION => {}
            other => return Err(SignalError::TooNew(other)),
        }
        let count = usize::from(input.u8()?);
        if count > MAX_SENDER_KEY_STATES {
            return Err(CodecError::Length.into());
        }
        let states = (0..count).map(|_| State::read(&mut input)).collect::<Result<_, CodecError>>()?;
        input.finish()?;
        Ok(Self { states })
    }
}

/// Nothing secret.
impl core::fmt::Debug for SenderKeyRecord {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("SenderKeyRecord").field("states", &self.states.len()).finish_non_exhaustive()
    }
}

impl State {
    fn read(input: &mut Reader<'_>) -> Result<Self, CodecError> {
        let secret = |bytes: &[u8]| Secret::from_slice(bytes).map_err(|_| CodecError::Length);
        let (id, next) = (input.u32()?, input.u32()?);
        let chain = ChainKey::new(secret(input.raw(32)?)?);
        let signing = PublicKey(x25519::PublicKey::new(*input.array()?));
        let (present, private, point) = (input.bool()?, secret(input.raw(32)?)?, *input.array()?);
        let own = present.then_some(Own { private, point });
        let count = usize::try_from(input.u32()?).map_err(|_| CodecError::Length)?;
        if count > MAX_STORED_KEYS {
            return Err(CodecError::Length);
        }
        let stored = (0..count)
            .map(|_| Ok((input.u32()?, MessageSeed::new(secret(input.raw(32)?)?))))
            .collect::<Result<_, CodecError>>()?;
        Ok(Self { id, next, chain, signing, own, stored })
    }
}

/// Of a sender that leaves every other number out: keeps the newest keys of such numbers, and drops single ones before
/// these. Runs of several are of messages that are late or lost; they stay.
fn thin(stored: &mut Vec<(u32, MessageSeed)>) {
    let pairs = stored.iter().zip(stored.iter().skip(1));
    let steps: Vec<u32> = pairs.map(|((number, _), (following, _))| following.abs_diff(*number)).collect();
    let mut alternate = 0;
    let mut goes: Vec<bool> = Vec::with_capacity(stored.len());
    for at in (0..stored.len()).rev() {
        let sides = [at.checked_sub(1).and_then(|before| steps.get(before)), steps.get(at)];
        let single = !sides.contains(&Some(&1));
        goes.push(single && alternate >= MAX_ALTERNATE_KEYS);
        alternate += usize::from(single && sides.contains(&Some(&2)));
    }
    stored.retain(|_| !goes.pop().unwrap_or(false));
}

/// The keys of one message.
struct MessageKeys(Secret<48>);

impl MessageKeys {
    fn derive(seed: &MessageSeed) -> Self {
        Self(hkdf_sha256_unsalted(seed.expose(), LABEL))
    }

    /// Cipher key and IV.
    fn parts(&self) -> (&[u8; cbc::KEY_BYTES], &[u8; cbc::IV_BYTES]) {
        let parts = self.0.expose().split_first_chunk();
        let Some((iv, Ok(cipher))) = parts.map(|(iv, cipher)| (iv, cipher.try_into())) else {
            unreachable!("48 bytes are 16 and 32")
        };
        (cipher, iv)
    }
}
