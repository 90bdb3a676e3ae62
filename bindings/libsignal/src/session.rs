//! Starting sessions, encrypting, decrypting.
//!
//! Who we are comes packed, `public 33 | private 32 | registration id u32 BE`, and so do prekeys, `public 33 | private 32` each, so
//! that a call has few arguments.

use napi::Env;
use napi::bindgen_prelude::BufferSlice;
use napi_derive::napi;
use stvor_crypto::{CryptoError, SecretBytes};
use stvor_protocol::signal::{
    Compatibility, Context, Decrypted, KeyPair, MessageKind, OneTimeIn, PreKeyBundleIn, PreKeyMessage,
    Prekeys, SessionRecord, SignalError, WhisperMessage, cipher, session,
};

use crate::curve::{public, secret};
use crate::failure::{crypto, failed, with_random};
use crate::out::Out;
use crate::record::{read, time, write};

const PAIR: usize = 33 + 32;

fn pair(packed: &[u8]) -> napi::Result<KeyPair> {
    let (public_key, private) = packed.split_at_checked(33).ok_or_else(|| crypto(CryptoError::BadKey))?;
    Ok(KeyPair::from_parts(secret(private)?, public(public_key)?))
}

/// Who we are.
struct Own {
    identity: KeyPair,
    registration_id: u32,
    now: f64,
}

impl Own {
    fn read(packed: &[u8], now: f64) -> napi::Result<Self> {
        let (keys, id) = packed.split_last_chunk::<4>().ok_or_else(|| crypto(CryptoError::BadKey))?;
        Ok(Self { identity: pair(keys)?, registration_id: u32::from_be_bytes(*id), now })
    }

    fn context(&self) -> Context<'_> {
        Context { identity: &self.identity, registration_id: self.registration_id, now: time(self.now) }
    }
}

/// A bundle as it came.
#[napi(object)]
pub struct Bundle<'a> {
    /// As the peer said.
    pub registration_id: u32,
    /// 33 bytes.
    pub identity_key: BufferSlice<'a>,
    /// Id of the signed prekey.
    pub signed_id: u32,
    /// 33 bytes.
    pub signed: BufferSlice<'a>,
    /// 64 bytes.
    pub signature: BufferSlice<'a>,
    /// Id of the one-time prekey.
    pub prekey_id: Option<u32>,
    /// 33 bytes.
    pub prekey: Option<BufferSlice<'a>>,
}

/// A session was started.
#[napi(object)]
pub struct StartedSession<'env> {
    /// The record to store.
    pub record: BufferSlice<'env>,
    /// What is weaker than in our own profiles.
    pub compatibility: Vec<String>,
}

/// A message that was read.
#[napi(object)]
pub struct OpenedMessage<'env> {
    /// The record to store before it is used.
    pub record: BufferSlice<'env>,
    /// What was sent.
    pub plaintext: BufferSlice<'env>,
    /// Who sent it: 33 bytes, proven.
    pub identity: BufferSlice<'env>,
    /// The one-time prekey to destroy.
    pub remove_prekey: Option<u32>,
    /// Whether a session came to be.
    pub new_session: bool,
    /// What is weaker than in our own profiles; for a new session.
    pub compatibility: Vec<String>,
}

/// What the outside of a first message says.
#[napi(object)]
pub struct Outside<'env> {
    /// The one-time prekey that it uses.
    pub prekey: Option<u32>,
    /// The signed prekey that it uses.
    pub signed: u32,
    /// As the sender says.
    pub registration_id: u32,
    /// What names the session: 33 bytes.
    pub base_key: BufferSlice<'env>,
    /// As the sender says, proven by decrypting: 33 bytes.
    pub identity: BufferSlice<'env>,
}

/// What a first message has inside: the whole of its other message.
///
/// # Errors
/// As `outside`.
#[napi(catch_unwind)]
pub fn inside<'env>(env: &'env Env, message: &[u8]) -> napi::Result<BufferSlice<'env>> {
    let message = PreKeyMessage::parse(message).map_err(failed)?;
    BufferSlice::copy_from(env, message.message().to_bytes())
}

/// The fields of a message without handshake.
#[napi(object)]
pub struct WhisperFields<'env> {
    /// The sender's ratchet key: 33 bytes.
    pub ephemeral_key: BufferSlice<'env>,
    /// Its number in the chain.
    pub counter: u32,
    /// The number of the last message on the chain before.
    pub previous_counter: u32,
    /// What is encrypted.
    pub ciphertext: BufferSlice<'env>,
}

/// What a message without handshake says on its outside. Nothing of it is verified.
///
/// # Errors
/// As `outside`.
#[napi(catch_unwind)]
pub fn whisper_fields<'env>(env: &'env Env, message: &[u8]) -> napi::Result<WhisperFields<'env>> {
    let message = WhisperMessage::parse(message).map_err(failed)?;
    Ok(WhisperFields {
        ephemeral_key: BufferSlice::copy_from(env, message.ratchet_key().to_bytes())?,
        counter: message.counter(),
        previous_counter: message.previous_counter(),
        ciphertext: BufferSlice::copy_from(env, message.ciphertext())?,
    })
}

fn codes(all: &[Compatibility]) -> Vec<String> {
    all.iter().map(|one| one.code().to_owned()).collect()
}

fn kind(kind: MessageKind) -> u32 {
    match kind {
        MessageKind::PreKey => 3,
        MessageKind::Whisper => 1,
    }
}

/// Starts a session from a bundle.
///
/// # Errors
/// `BAD_BUNDLE`, `BAD_RECORD`, `AGREEMENT_FAILED`.
#[napi(catch_unwind)]
#[allow(clippy::needless_pass_by_value, reason = "napi hands objects over by value")]
pub fn start_session<'env>(
    env: &'env Env,
    record: &[u8],
    own: &[u8],
    bundle: Bundle<'_>,
    now: f64,
) -> napi::Result<StartedSession<'env>> {
    let one_time = bundle.prekey_id.zip(bundle.prekey);
    let bundle = PreKeyBundleIn {
        registration_id: bundle.registration_id,
        identity: bundle.identity_key.to_vec(),
        signed_id: bundle.signed_id,
        signed: bundle.signed.to_vec(),
        signature: bundle.signature.to_vec(),
        one_time: one_time.map(|(id, key)| OneTimeIn { id, public: key.to_vec() }),
    };
    let bundle = bundle.validate().map_err(failed)?;
    let (mut record, own) = (read(record)?, Own::read(own, now)?);
    let started = with_random(|rng| session::start(&mut record, &own.context(), &bundle, rng))?;
    Ok(StartedSession { record: write(env, &record)?, compatibility: codes(&started.compatibility) })
}

/// Encrypts on the open session. The answer is the record, to be stored before the message is sent, and whom it is for (33 bytes)
/// with the message behind; the numbers of the slip are the kind (3 with the handshake, 1 without) and the peer's registration id.
/// False: there was no room, and nothing was done.
///
/// # Errors
/// `NO_SESSION`, `MESSAGE_TOO_LARGE`, `BAD_RECORD`.
pub(crate) fn encrypt(out: &mut Out<'_>, record: &[u8], plaintext: &[u8]) -> napi::Result<bool> {
    let (mut record, context) = (read(record)?, out.context()?);
    let sealed = cipher::encrypt(&mut record, context, plaintext).map_err(failed)?;
    let remote = record.remote_identity().ok_or_else(|| failed(SignalError::NoSession))?.to_bytes();
    let numbers = [kind(sealed.kind), sealed.registration_id];
    Ok(out.give(&record, [&remote, &sealed.body], numbers))
}

/// Many messages at once.
#[napi(object)]
pub struct SealedMessages<'env> {
    /// The record to store before any is sent.
    pub record: BufferSlice<'env>,
    /// 3 with the handshake, 1 without; the same for all.
    pub kind: u32,
    /// The messages.
    pub bodies: Vec<BufferSlice<'env>>,
    /// As the peer said.
    pub registration_id: u32,
}

/// Encrypts many at once: all, or none.
///
/// # Errors
/// As `encrypt`.
#[napi(catch_unwind)]
#[allow(clippy::needless_pass_by_value, reason = "napi hands arrays over by value")]
pub fn encrypt_many<'env>(
    env: &'env Env,
    record: &[u8],
    own: &[u8],
    plaintexts: Vec<BufferSlice<'_>>,
    now: f64,
) -> napi::Result<SealedMessages<'env>> {
    let (mut record, own) = (read(record)?, Own::read(own, now)?);
    let mut bodies = Vec::with_capacity(plaintexts.len());
    let (mut last, mut registration_id) = (MessageKind::Whisper, 0);
    for plaintext in plaintexts {
        let sealed = cipher::encrypt(&mut record, &own.context(), &plaintext).map_err(failed)?;
        bodies.push(BufferSlice::copy_from(env, &sealed.body)?);
        (last, registration_id) = (sealed.kind, sealed.registration_id);
    }
    Ok(SealedMessages { record: write(env, &record)?, kind: kind(last), bodies, registration_id })
}

/// What the outside of a first message says.
///
/// # Errors
/// `MALFORMED_MESSAGE`, `UNSUPPORTED_VERSION`, `MESSAGE_TOO_LARGE`.
#[napi(catch_unwind)]
pub fn outside<'env>(env: &'env Env, message: &[u8]) -> napi::Result<Outside<'env>> {
    let message = PreKeyMessage::parse(message).map_err(failed)?;
    Ok(Outside {
        prekey: message.prekey(),
        signed: message.signed_prekey(),
        registration_id: message.registration_id(),
        base_key: BufferSlice::copy_from(env, message.base_key().to_bytes())?,
        identity: BufferSlice::copy_from(env, message.identity().to_bytes())?,
    })
}

/// Decrypts a message without handshake. The answer is the record, to be stored before the plaintext is used, and who sent it (33
/// bytes, proven) with the plaintext behind. False: there was no room, and nothing was done.
///
/// # Errors
/// `UNDECRYPTABLE`, `DUPLICATE`, `TOO_FAR_AHEAD`, `MALFORMED_MESSAGE`, `BAD_RECORD`.
pub(crate) fn decrypt(out: &mut Out<'_>, record: &[u8], message: &[u8]) -> napi::Result<bool> {
    let message = WhisperMessage::parse(message).map_err(failed)?;
    let (mut record, context) = (read(record)?, out.context()?);
    let opened = with_random(|rng| cipher::decrypt(&mut record, context, &message, rng))?;
    let sender = opened.identity.to_bytes();
    Ok(out.give(&record, [&sender, opened.plaintext.expose()], [0, 0]))
}

/// Decrypts a message with a handshake. `prekeys` is the signed one, then the one-time one, as far as there are.
///
/// # Errors
/// As `decrypt`, `UNKNOWN_PREKEY`, `REPLAY`, `IDENTITY_CHANGED`.
#[napi(catch_unwind)]
#[allow(
    clippy::too_many_arguments,
    reason = "the environment is one of them, and JavaScript gives the others one by one"
)]
pub fn decrypt_prekey<'env>(
    env: &'env Env,
    record: &[u8],
    own: &[u8],
    message: &[u8],
    prekeys: &[u8],
    now: f64,
) -> napi::Result<OpenedMessage<'env>> {
    let message = PreKeyMessage::parse(message).map_err(failed)?;
    let (signed, one_time) = prekeys.split_at_checked(PAIR).unwrap_or((prekeys, &[]));
    let given = |packed: &[u8]| if packed.is_empty() { Ok(None) } else { pair(packed).map(Some) };
    let (signed, one_time) = (given(signed)?, given(one_time)?);
    let prekeys = Prekeys { signed: signed.as_ref(), one_time: one_time.as_ref() };
    let (mut record, own) = (read(record)?, Own::read(own, now)?);
    let opened =
        with_random(|rng| cipher::decrypt_prekey(&mut record, &own.context(), (&message, prekeys), rng))?;
    opened_message(env, &record, &opened)
}

fn opened_message<'env>(
    env: &'env Env,
    record: &SessionRecord,
    opened: &Decrypted,
) -> napi::Result<OpenedMessage<'env>> {
    Ok(OpenedMessage {
        record: write(env, record)?,
        plaintext: BufferSlice::copy_from(env, opened.plaintext.expose())?,
        identity: BufferSlice::copy_from(env, opened.identity.to_bytes())?,
        remove_prekey: opened.remove_prekey,
        new_session: opened.new_session,
        compatibility: codes(&opened.compatibility),
    })
}

/// One of many messages: what was sent, or why it was not read, as JSON.
#[napi(object)]
pub struct OpenedOne<'env> {
    /// What was sent.
    pub plaintext: Option<BufferSlice<'env>>,
    /// Why not.
    pub failure: Option<String>,
}

impl<'env> OpenedOne<'env> {
    pub(crate) fn of(env: &'env Env, read: napi::Result<SecretBytes>) -> napi::Result<Self> {
        Ok(match read {
            Ok(plaintext) => {
                Self { plaintext: Some(BufferSlice::copy_from(env, plaintext.expose())?), failure: None }
            }
            Err(error) => Self { plaintext: None, failure: Some(error.reason.clone()) },
        })
    }
}

/// Many messages at once.
#[napi(object)]
pub struct OpenedMessages<'env> {
    /// The record to store before any is used.
    pub record: BufferSlice<'env>,
    /// The identities that sent what was read, each once: 33 bytes, proven.
    pub identities: Vec<BufferSlice<'env>>,
    /// One for each message.
    pub messages: Vec<OpenedOne<'env>>,
}

/// Decrypts many messages without handshake. One that fails does not keep the others.
///
/// # Errors
/// `BAD_RECORD`.
#[napi(catch_unwind)]
#[allow(clippy::needless_pass_by_value, reason = "napi hands arrays over by value")]
pub fn decrypt_many<'env>(
    env: &'env Env,
    record: &[u8],
    own: &[u8],
    messages: Vec<BufferSlice<'_>>,
    now: f64,
) -> napi::Result<OpenedMessages<'env>> {
    let (mut record, own) = (read(record)?, Own::read(own, now)?);
    let (mut out, mut identities) = (Vec::with_capacity(messages.len()), Vec::new());
    for message in messages {
        let opened = with_random(|rng| {
            let message = WhisperMessage::parse(&message)?;
            cipher::decrypt(&mut record, &own.context(), &message, rng)
        });
        if let Ok(opened) = &opened
            && !identities.contains(&opened.identity)
        {
            identities.push(opened.identity);
        }
        out.push(OpenedOne::of(env, opened.map(|opened| opened.plaintext))?);
    }
    let copy =
        |identity: &stvor_protocol::signal::PublicKey| BufferSlice::copy_from(env, identity.to_bytes());
    let identities = identities.iter().map(copy).collect::<napi::Result<_>>()?;
    Ok(OpenedMessages { record: write(env, &record)?, identities, messages: out })
}
