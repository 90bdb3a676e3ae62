//! Starting sessions: X3DH, from either side.
//!
//! ```text
//! IKM   = FF*32 | DH(IKa, SPKb) | DH(EKa, IKb) | DH(EKa, SPKb) | DH(EKa, OPKb)
//! root  = the first 32 bytes of HKDF-SHA256(salt = none, ikm = IKM, info = "WhisperText")
//! ```
//!
//! The last agreement is there if a one-time prekey is. EKa is the base key and names the session.

use stvor_crypto::kdf::hkdf_sha256_unsalted;
use stvor_crypto::random::Random;
use stvor_crypto::{Secret, SecretBytes};

use super::SignalError;
use super::bundle::PreKeyBundle;
use super::cipher::{Context, Prekeys};
use super::keys::{KeyPair, PublicKey};
use super::ratchet::{Pending, Session};
use super::record::SessionRecord;
use super::wire::PreKeyMessage;
use crate::limits::SIMULTANEOUS_PATIENCE;

const LABEL: &[u8] = b"WhisperText";

/// What a peer of this profile has weaker than one of our own. A session has one set of these, told when it starts; of what was
/// stored or imported [`SessionRecord::compatibility`] and [`SenderKeyRecord::compatibility`] tell it.
///
/// [`SenderKeyRecord::compatibility`]: super::SenderKeyRecord::compatibility
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Compatibility {
    /// Every session of this profile: who records today decrypts once X25519 is broken.
    NoPostQuantum,
    /// Every session of this profile: a MAC of 8 bytes.
    ShortMac,
    /// The handshake used no one-time prekey: who steals the signed prekey reads its first messages, and a replay of them
    /// is told from a fresh start only while the record remembers.
    NoOneTimePrekey,
    /// Every sender key of this profile: a message is signed with its chain and number, and with nothing that says of which
    /// group it is or who its members are.
    NoAssociatedData,
}

impl Compatibility {
    /// The stable name.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::NoPostQuantum => "no-post-quantum",
            Self::ShortMac => "short-mac",
            Self::NoOneTimePrekey => "no-one-time-prekey",
            Self::NoAssociatedData => "no-associated-data",
        }
    }

    pub(super) fn of(one_time: bool) -> Vec<Self> {
        let mut all = vec![Self::NoPostQuantum, Self::ShortMac];
        if !one_time {
            all.push(Self::NoOneTimePrekey);
        }
        all
    }
}

/// A session was started.
#[derive(Debug)]
#[must_use = "the identity is to be judged before the record is stored"]
pub struct Started {
    /// The identity that it is with.
    pub identity: PublicKey,
    /// What is weaker than it could be.
    pub compatibility: Vec<Compatibility>,
}

/// Starts a session from a bundle. It becomes the current one; the one before is archived and still decrypts.
///
/// # Errors
/// [`SignalError::Crypto`] for a key of low order or a failing random source. The record is unchanged then.
pub fn start(
    record: &mut SessionRecord,
    context: &Context<'_>,
    bundle: &PreKeyBundle,
    rng: &mut dyn Random,
) -> Result<Started, SignalError> {
    let base = KeyPair::generate(rng)?;
    let (signed_id, signed) = &bundle.signed;
    let mut agreed =
        vec![context.identity.agree(signed)?, base.agree(&bundle.identity)?, base.agree(signed)?];
    if let Some((_, one_time)) = &bundle.one_time {
        agreed.push(base.agree(one_time)?);
    }
    let mut session = Session {
        registration_id: bundle.registration_id,
        remote_identity: bundle.identity,
        base_key: base.public(),
        initiator: true,
        created: context.now,
        used: context.now,
        closed: None,
        pending: Some(Pending { prekey: bundle.one_time.as_ref().map(|(id, _)| *id), signed: *signed_id }),
        root: root(&agreed)?,
        own: base,
        remote: *signed,
        previous: 0,
        sending: None,
        receiving: Vec::new(),
    };
    session.begin(rng)?;
    record.replace_current(session, context.now);
    Ok(Started { identity: bundle.identity, compatibility: Compatibility::of(bundle.one_time.is_some()) })
}

/// The session of a handshake that came. Nothing of it is proven until its first message verified.
pub(super) fn accept(
    context: &Context<'_>,
    message: &PreKeyMessage,
    (prekeys, one_time): (&Prekeys<'_>, Option<u32>),
) -> Result<Session, SignalError> {
    let signed = prekeys.signed.ok_or(SignalError::UnknownPrekey("signed", message.signed))?;
    let base = &message.base_key;
    // Another encoding of the same key would be another name of the same handshake, and pass for a new one.
    if !base.0.is_canonical() {
        return Err(SignalError::Undecryptable);
    }
    let mut agreed = Vec::with_capacity(4);
    let mut agree = |own: &KeyPair, peer: &PublicKey| {
        own.agree(peer).map(|secret| agreed.push(secret)).map_err(|_| SignalError::Undecryptable)
    };
    agree(signed, &message.identity)?;
    agree(context.identity, base)?;
    agree(signed, base)?;
    if let Some(id) = one_time {
        agree(prekeys.one_time.ok_or(SignalError::UnknownPrekey("one-time", id))?, base)?;
    }
    Ok(Session {
        registration_id: message.registration_id,
        remote_identity: message.identity,
        base_key: *base,
        initiator: false,
        created: context.now,
        used: context.now,
        closed: None,
        pending: None,
        root: root(&agreed)?,
        own: signed.duplicate(),
        remote: *base,
        previous: 0,
        sending: None,
        receiving: Vec::new(),
    })
}

fn root(agreed: &[Secret<32>]) -> Result<Secret<32>, SignalError> {
    let mut ikm = Vec::with_capacity(32 * 5);
    ikm.extend_from_slice(&[0xff; 32]);
    for secret in agreed {
        ikm.extend_from_slice(secret.expose());
    }
    let ikm = SecretBytes::from(ikm);
    let derived = hkdf_sha256_unsalted::<64>(ikm.expose(), LABEL);
    Ok(Secret::from_slice(&derived.expose()[..32])?)
}

/// Whether our own unanswered session gives way to one that the peer started.
///
/// Of two handshakes that crossed, the one with the smaller base key stays current on both sides. The side that has to
/// give way does it once the peer has sent [`SIMULTANEOUS_PATIENCE`] messages on its own: implementations that try a
/// message on their newest session before the right one destroy that session by it, and those answer on ours before. A
/// peer that sent four times as many has lost our session, whatever the keys.
pub(super) fn gives_way(own: &Session, theirs: &PublicKey, counter: u32) -> bool {
    let sent = own.sending.as_ref().is_some_and(|(_, next)| *next > 0);
    let smaller = own.base_key.to_bytes() < theirs.to_bytes();
    let patience = if smaller { 4 * SIMULTANEOUS_PATIENCE } else { SIMULTANEOUS_PATIENCE };
    !sent || counter >= patience
}
