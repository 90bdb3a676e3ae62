//! Encrypting and decrypting.
//!
//! Of a first message the MAC covers the inner message and both identities; base key, identity and prekey ids are bound
//! because the keys follow from them. **The sender's registration id is not authenticated by anything**: it is kept
//! as a hint and changes nothing else. Of later copies of a handshake nothing outer is read but base key and identity.

use stvor_base::Timestamp;
use stvor_crypto::SecretBytes;
use stvor_crypto::random::Random;

use super::SignalError;
use super::keys::{KeyPair, PublicKey};
use super::ratchet::{MessageKeys, Session, Step, pay};
use super::record::{Place, SessionRecord};
use super::session::{Compatibility, accept, gives_way};
use super::wire::{PreKeyFields, PreKeyMessage, WhisperMessage};
use crate::limits::{MAX_SIGNAL_MESSAGE, MAX_SKIP, SIGNAL_AGREEMENT_STEPS, SIGNAL_BYTES_PER_STEP};

/// Bytes that a message has besides its ciphertext, at most: version, fields, MAC, and the handshake around it.
const OVERHEAD: usize = 256;

/// Who we are, and the time.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// Our identity.
    pub identity: &'a KeyPair,
    /// Our registration id, which first messages carry.
    pub registration_id: u32,
    /// The time, for the order of sessions.
    pub now: Timestamp,
}

/// Who we are as far as a session that is there asks for it, and the time: nothing secret. A [`Context`] is one, too.
///
/// ```
/// use stvor_base::Timestamp;
/// use stvor_crypto::SystemRandom;
/// use stvor_protocol::signal::{Context, KeyPair, PublicContext};
/// let identity = KeyPair::generate(&mut SystemRandom::new())?;
/// let context = Context { identity: &identity, registration_id: 7, now: Timestamp::from_millis(1) };
/// assert_eq!(PublicContext::from(&context).identity, identity.public());
/// # Ok::<(), stvor_protocol::signal::SignalError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicContext {
    /// Our identity.
    pub identity: PublicKey,
    /// Our registration id, which first messages carry.
    pub registration_id: u32,
    /// The time, for the order of sessions.
    pub now: Timestamp,
}

impl From<&Context<'_>> for PublicContext {
    fn from(context: &Context<'_>) -> Self {
        let Context { identity, registration_id, now } = *context;
        Self { identity: identity.public(), registration_id, now }
    }
}

/// Private halves that a first message may need.
#[derive(Debug, Clone, Copy, Default)]
pub struct Prekeys<'a> {
    /// The signed prekey that it names.
    pub signed: Option<&'a KeyPair>,
    /// The one-time prekey that it names. For a message that names none: the one with id 0, if there is one. Some libraries
    /// leave a zero out, so such a message is tried without a one-time prekey, and then with this one; both together take at
    /// most 2,000 chain steps, and the second one more for each [512 bytes](SIGNAL_BYTES_PER_STEP): it may be 1,000 ahead
    /// if it is short.
    pub one_time: Option<&'a KeyPair>,
}

/// Which kind of message was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageKind {
    /// With the handshake: the peer has not answered.
    PreKey,
    /// Without.
    Whisper,
}

/// A message to send.
#[derive(Debug)]
#[must_use = "the record is to be stored before this is sent"]
pub struct Encrypted {
    /// Its kind.
    pub kind: MessageKind,
    /// Its bytes.
    pub body: Vec<u8>,
    /// The peer's registration id, as the session has it.
    pub registration_id: u32,
}

/// A message that was read. The record, and all of this, is to be stored in one transaction.
#[derive(Debug)]
#[must_use = "the record and what else changed are to be stored before the plaintext is used"]
pub struct Decrypted {
    /// What was sent.
    pub plaintext: SecretBytes,
    /// The identity that sent it, proven by this message: judge it, then pin it, and store nothing if it is refused.
    pub identity: PublicKey,
    /// The one-time prekey that is used up: its private half is to be destroyed.
    pub remove_prekey: Option<u32>,
    /// Whether a session came to be.
    pub new_session: bool,
    /// What is weaker about that session than it could be; empty when none came to be.
    pub compatibility: Vec<Compatibility>,
}

/// Encrypts `plaintext` on the current session: 512 KiB with everything around it.
///
/// # Errors
/// [`SignalError::NoSession`], [`SignalError::TooLarge`]. The record is unchanged then.
pub fn encrypt(
    record: &mut SessionRecord,
    context: impl Into<PublicContext>,
    plaintext: &[u8],
) -> Result<Encrypted, SignalError> {
    let PublicContext { identity: own, registration_id: own_registration_id, now } = context.into();
    let limit = MAX_SIGNAL_MESSAGE - OVERHEAD;
    if plaintext.len() > limit {
        return Err(SignalError::TooLarge { size: plaintext.len(), limit });
    }
    let session = record.current_mut().ok_or(SignalError::NoSession)?;
    let (chain, number) = session.sending.as_ref().ok_or(SignalError::NoSession)?;
    let (seed, after) = chain.step();
    let next = number.checked_add(1).ok_or(SignalError::NoSession)?;
    let keys = MessageKeys::derive(&seed);
    let ratchet = session.own.public();
    let mut message = WhisperMessage::build(&ratchet, (*number, session.previous), keys.encrypt(plaintext));
    let mac = keys.mac((&own, &session.remote_identity), &message);
    message.extend_from_slice(&mac);
    session.sending = Some((after, next));
    session.used = session.used.max(now);
    let registration_id = session.registration_id;
    let Some(pending) = session.pending else {
        return Ok(Encrypted { kind: MessageKind::Whisper, body: message, registration_id });
    };
    let body = PreKeyMessage::build(PreKeyFields {
        prekey: pending.prekey,
        signed: pending.signed,
        registration_id: own_registration_id,
        base_key: &session.base_key,
        identity: &own,
        message,
    });
    Ok(Encrypted { kind: MessageKind::PreKey, body, registration_id })
}

/// Decrypts a message. First the sessions are tried that know its ratchet key, then the others, newest first; all
/// together take at most 2,000 chain steps, of which each session after the first that does not know the key counts for
/// [100](SIGNAL_AGREEMENT_STEPS), and one more for each [512 bytes](SIGNAL_BYTES_PER_STEP) of the message. The current
/// session stays the current one.
///
/// So a late message is read in whichever of the 41 sessions knows its ratchet key. One whose ratchet key is new is tried
/// on the current session and on 20 archived ones if it is the first of its chain, on 15 if it is the 29th, on none if it
/// is the 2,000th; on 8 if it has 64 KiB.
///
/// # Errors
/// [`SignalError::NoSession`] for a record without any, [`SignalError::Duplicate`], [`SignalError::TooFarAhead`],
/// [`SignalError::Undecryptable`]. The record is unchanged then.
pub fn decrypt(
    record: &mut SessionRecord,
    context: impl Into<PublicContext>,
    message: &WhisperMessage<'_>,
    rng: &mut dyn Random,
) -> Result<Decrypted, SignalError> {
    let PublicContext { identity: own, now, .. } = context.into();
    let Read { place, identity, plaintext, mut step } = read(record, &own, message)?;
    step.complete(rng)?;
    record.change(place, |session, elsewhere| carry_out(session, step, (elsewhere, now)))?;
    Ok(Decrypted::plain(plaintext, identity))
}

/// What a message says, on which session, and what that changes.
struct Read {
    place: Place,
    identity: PublicKey,
    plaintext: SecretBytes,
    step: Step,
}

/// Tries the sessions, and changes nothing.
fn read(record: &SessionRecord, own: &PublicKey, message: &WhisperMessage<'_>) -> Result<Read, SignalError> {
    let mut budget = MAX_SKIP;
    let mut agreed = false;
    let another = SIGNAL_AGREEMENT_STEPS.saturating_add(steps_of_mac(message));
    if record.has_none() {
        return Err(SignalError::NoSession);
    }
    let mut verdict = SignalError::Undecryptable;
    for place in record.candidates(&message.ratchet) {
        let archived;
        let session = match record.session(place) {
            Some(session) => session,
            None => {
                archived = record.archived(place)?;
                &archived
            }
        };
        if !session.knows(&message.ratchet) {
            // Those that are left do not know it either.
            if agreed && pay(&mut budget, another).is_err() {
                break;
            }
            agreed = true;
        }
        match open(session, own, message, &mut budget) {
            Ok((plaintext, step)) => {
                return Ok(Read { place, identity: session.remote_identity, plaintext, step });
            }
            // The chain is known, so no other session will do.
            Err(error @ SignalError::Duplicate) => return Err(error),
            Err(error @ SignalError::TooFarAhead { limit: MAX_SKIP, .. }) => verdict = error,
            // Not too far ahead: what is left does not pay for another session.
            Err(SignalError::TooFarAhead { .. }) => break,
            Err(SignalError::Undecryptable) => {}
            Err(error) => return Err(error),
        }
    }
    Err(verdict)
}

/// Decrypts a message with a handshake. If the session is known already, this is one more message of it, and prekeys are not
/// needed; else the handshake is accepted once its message verified, and never a second time.
///
/// # Errors
/// As [`decrypt`], [`SignalError::UnknownPrekey`], and [`SignalError::Replay`] for a handshake that was accepted before and
/// whose session was destroyed. The record is unchanged then.
pub fn decrypt_prekey(
    record: &mut SessionRecord,
    context: &Context<'_>,
    (message, prekeys): (&PreKeyMessage, Prekeys<'_>),
    rng: &mut dyn Random,
) -> Result<Decrypted, SignalError> {
    let own = context.identity.public();
    if let Some(place) = record.place_of(&message.base_key) {
        let read;
        let session = match record.session(place) {
            Some(session) => session,
            None => {
                read = record.archived(place)?;
                &read
            }
        };
        if session.initiator {
            return Err(SignalError::Undecryptable);
        }
        if session.remote_identity != message.identity {
            return Err(SignalError::IdentityChanged);
        }
        let (plaintext, mut step) = open(session, &own, &message.message, &mut { MAX_SKIP })?;
        step.complete(rng)?;
        record.change(place, |session, elsewhere| carry_out(session, step, (elsewhere, context.now)))?;
        let counter = message.message.counter;
        if record.current().is_some_and(|own| own.unanswered() && gives_way(own, &message.base_key, counter))
        {
            record.make_current(place, context.now)?;
        }
        return Ok(Decrypted::plain(plaintext, message.identity));
    }
    if record.was_used(&message.base_key) {
        return Err(SignalError::Replay);
    }
    let (mut session, plaintext, mut step, used) = first_contact(context, message, &prekeys)?;
    step.complete(rng)?;
    session.apply(step, record.stored());
    let counter = message.message.counter;
    let keeps =
        record.current().is_some_and(|own| own.unanswered() && !gives_way(own, &message.base_key, counter));
    if keeps {
        record.archive(session, context.now);
    } else {
        record.replace_current(session, context.now);
    }
    Ok(Decrypted {
        plaintext,
        identity: message.identity,
        remove_prekey: used,
        new_session: true,
        compatibility: Compatibility::of(used.is_some()),
    })
}

/// The session of a handshake whose message verified, and the one-time prekey that it used.
fn first_contact(
    context: &Context<'_>,
    message: &PreKeyMessage,
    prekeys: &Prekeys<'_>,
) -> Result<(Session, SecretBytes, Step, Option<u32>), SignalError> {
    let (mut budget, own) = (MAX_SKIP, context.identity.public());
    let attempt = |one_time: Option<u32>, budget: &mut u32| {
        let session = accept(context, message, (prekeys, one_time))?;
        let (plaintext, step) = open(&session, &own, &message.message, budget)?;
        Ok((session, plaintext, step, one_time))
    };
    match attempt(message.prekey, &mut budget) {
        Err(SignalError::Undecryptable) if message.prekey.is_none() && prekeys.one_time.is_some() => {
            match pay(&mut budget, steps_of_mac(&message.message))
                .and_then(|()| attempt(Some(0), &mut budget))
            {
                Err(SignalError::TooFarAhead { .. }) => Err(SignalError::Undecryptable),
                verdict => verdict,
            }
        }
        verdict => verdict,
    }
}

/// What checking the MAC of a message once more counts for.
fn steps_of_mac(message: &WhisperMessage<'_>) -> u32 {
    u32::try_from(message.authenticated.len() / SIGNAL_BYTES_PER_STEP).unwrap_or(u32::MAX)
}

impl Decrypted {
    fn plain(plaintext: SecretBytes, identity: PublicKey) -> Self {
        Self { plaintext, identity, remove_prekey: None, new_session: false, compatibility: Vec::new() }
    }
}

/// Opens a message on a session, and changes nothing.
fn open(
    session: &Session,
    own: &PublicKey,
    message: &WhisperMessage<'_>,
    budget: &mut u32,
) -> Result<(SecretBytes, Step), SignalError> {
    let (seed, step) = session.prepare(message, budget)?;
    let plaintext = MessageKeys::derive(&seed).open(message, (&session.remote_identity, own))?;
    Ok((plaintext, step))
}

fn carry_out(session: &mut Session, step: Step, (elsewhere, now): (usize, Timestamp)) {
    session.apply(step, elsewhere);
    session.pending = None;
    session.used = session.used.max(now);
}
