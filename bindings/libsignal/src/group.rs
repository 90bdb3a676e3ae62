//! Sender keys: bytes in, bytes out.

use napi::Env;
use napi::bindgen_prelude::BufferSlice;
use napi_derive::napi;
use stvor_protocol::signal::{
    SenderKeyDistribution, SenderKeyRecord, SenderKeyText, SignalError, wire::SenderKeyMessage,
};

use crate::curve::{public, secret};
use crate::failure::{failed, with_random};
use crate::out::Out;
use crate::session::OpenedOne;

fn read(record: &[u8]) -> napi::Result<SenderKeyRecord> {
    if record.is_empty() {
        Ok(SenderKeyRecord::new())
    } else {
        SenderKeyRecord::decode(record).map_err(failed)
    }
}

fn write<'env>(env: &'env Env, record: &SenderKeyRecord) -> napi::Result<BufferSlice<'env>> {
    BufferSlice::copy_from(env, record.encode().expose())
}

/// Refuses bytes that are no record.
///
/// # Errors
/// `BAD_RECORD`, `FORMAT_TOO_NEW`.
#[napi(catch_unwind)]
pub fn group_check(record: &[u8]) -> napi::Result<()> {
    read(record).map(|_| ())
}

/// A record, and what was made or read.
#[napi(object)]
pub struct GroupResult<'env> {
    /// The record to store first.
    pub record: BufferSlice<'env>,
    /// The message or plaintext.
    pub bytes: BufferSlice<'env>,
}

/// A record, and what was made or read of many.
#[napi(object)]
pub struct GroupResults<'env> {
    /// The record to store first.
    pub record: BufferSlice<'env>,
    /// The messages.
    pub all: Vec<BufferSlice<'env>>,
}

/// Our sender key for the members; made if there is none.
///
/// # Errors
/// `NO_SENDER_KEY` for a member's record, `BAD_RECORD`.
#[napi(catch_unwind)]
pub fn group_distribution<'env>(env: &'env Env, record: &[u8]) -> napi::Result<GroupResult<'env>> {
    let mut record = read(record)?;
    let made = with_random(|rng| record.distribution(rng))?;
    let bytes = stvor_crypto::SecretBytes::from(made.encode());
    Ok(GroupResult { record: write(env, &record)?, bytes: BufferSlice::copy_from(env, bytes.expose())? })
}

/// A new chain of our own.
///
/// # Errors
/// `BAD_RECORD`.
#[napi(catch_unwind)]
pub fn group_rotate<'env>(env: &'env Env, record: &[u8]) -> napi::Result<BufferSlice<'env>> {
    let mut record = read(record)?;
    with_random(|rng| record.rotate(rng))?;
    write(env, &record)
}

/// Takes a member's sender key in.
///
/// # Errors
/// `MALFORMED_MESSAGE`, `BAD_RECORD`.
#[napi(catch_unwind)]
pub fn group_process<'env>(
    env: &'env Env,
    record: &[u8],
    distribution: &[u8],
) -> napi::Result<BufferSlice<'env>> {
    let mut record = read(record)?;
    let key = SenderKeyDistribution::parse(distribution).map_err(failed)?;
    record.process(&key).map_err(failed)?;
    write(env, &record)
}

/// Encrypts for the group. The answer is the record, to be stored before the message is sent, and the message. False: there was no
/// room, and nothing was done.
///
/// # Errors
/// `NO_SENDER_KEY`, `MESSAGE_TOO_LARGE`, `BAD_RECORD`.
pub(crate) fn group_encrypt(out: &mut Out<'_>, record: &[u8], plaintext: &[u8]) -> napi::Result<bool> {
    let mut record = read(record)?;
    let message = with_random(|rng| record.encrypt(plaintext, rng))?;
    Ok(out.give(&record, [&message, &[]], [0, 0]))
}

/// Encrypts many for the group: all, or none.
///
/// # Errors
/// As `groupEncrypt`.
#[napi(catch_unwind)]
#[allow(clippy::needless_pass_by_value, reason = "napi hands arrays over by value")]
pub fn group_encrypt_many<'env>(
    env: &'env Env,
    record: &[u8],
    plaintexts: Vec<BufferSlice<'_>>,
) -> napi::Result<GroupResults<'env>> {
    let mut record = read(record)?;
    let mut all = Vec::with_capacity(plaintexts.len());
    for plaintext in plaintexts {
        all.push(BufferSlice::copy_from(env, with_random(|rng| record.encrypt(&plaintext, rng))?)?);
    }
    Ok(GroupResults { record: write(env, &record)?, all })
}

/// Decrypts a member's message. The answer is as that of [`group_encrypt`], the plaintext in place of the message.
///
/// # Errors
/// `NO_SENDER_KEY`, `UNDECRYPTABLE`, `DUPLICATE`, `TOO_FAR_AHEAD`, `MALFORMED_MESSAGE`, `BAD_RECORD`.
pub(crate) fn group_decrypt(out: &mut Out<'_>, record: &[u8], message: &[u8]) -> napi::Result<bool> {
    let mut record = read(record)?;
    let plaintext = record.decrypt(message).map_err(failed)?;
    Ok(out.give(&record, [plaintext.expose(), &[]], [0, 0]))
}

/// A record, and what was read of many.
#[napi(object)]
pub struct OpenedOfGroup<'env> {
    /// The record to store before any is used.
    pub record: BufferSlice<'env>,
    /// One for each message.
    pub messages: Vec<OpenedOne<'env>>,
}

/// Decrypts many messages of a member. One that fails does not keep the others.
///
/// # Errors
/// `BAD_RECORD`.
#[napi(catch_unwind)]
#[allow(clippy::needless_pass_by_value, reason = "napi hands arrays over by value")]
pub fn group_decrypt_many<'env>(
    env: &'env Env,
    record: &[u8],
    messages: Vec<BufferSlice<'_>>,
) -> napi::Result<OpenedOfGroup<'env>> {
    let mut record = read(record)?;
    let mut out = Vec::with_capacity(messages.len());
    for message in messages {
        out.push(OpenedOne::of(env, record.decrypt(&message).map_err(failed))?);
    }
    Ok(OpenedOfGroup { record: write(env, &record)?, messages: out })
}

/// The fields of a distribution or of a group message.
#[napi(object)]
pub struct GroupFields<'env> {
    /// Which chain.
    pub id: u32,
    /// The number.
    pub iteration: u32,
    /// Of a distribution: 32 bytes, secret.
    pub chain_key: Option<BufferSlice<'env>>,
    /// Of a distribution: 33 bytes.
    pub signing_key: Option<BufferSlice<'env>>,
}

/// The fields of a distribution.
///
/// # Errors
/// `MALFORMED_MESSAGE`.
#[napi(catch_unwind)]
pub fn distribution_fields<'env>(env: &'env Env, bytes: &[u8]) -> napi::Result<GroupFields<'env>> {
    let key = SenderKeyDistribution::parse(bytes).map_err(failed)?;
    Ok(GroupFields {
        id: key.id,
        iteration: key.iteration,
        chain_key: Some(BufferSlice::copy_from(env, key.chain_key.expose())?),
        signing_key: Some(BufferSlice::copy_from(env, key.signing_key.to_bytes())?),
    })
}

/// A distribution of fields.
///
/// # Errors
/// `BAD_KEY`.
#[napi(catch_unwind)]
pub fn distribution_of<'env>(
    env: &'env Env,
    id: u32,
    iteration: u32,
    chain_key: &[u8],
    signing_key: &[u8],
) -> napi::Result<BufferSlice<'env>> {
    let key = SenderKeyDistribution {
        id,
        iteration,
        chain_key: secret(chain_key)?,
        signing_key: public(signing_key)?,
    };
    BufferSlice::copy_from(env, stvor_crypto::SecretBytes::from(key.encode()).expose())
}

/// The fields of a group message, unverified.
///
/// # Errors
/// `MALFORMED_MESSAGE`.
#[napi(catch_unwind)]
pub fn group_message_fields<'env>(bytes: &[u8]) -> napi::Result<GroupFields<'env>> {
    let message = SenderKeyMessage::parse(bytes).map_err(failed)?;
    Ok(GroupFields {
        id: message.chain(),
        iteration: message.iteration(),
        chain_key: None,
        signing_key: None,
    })
}

/// A chain as Baileys stores it.
#[napi(object)]
pub struct Chain<'env> {
    /// Which chain.
    pub id: u32,
    /// The number of the next message.
    pub iteration: u32,
    /// 32 bytes.
    pub seed: BufferSlice<'env>,
    /// 33 bytes.
    pub public_key: BufferSlice<'env>,
    /// 32 bytes, of a chain of our own.
    pub private_key: Option<BufferSlice<'env>>,
    /// Numbers of messages that have not come.
    pub numbers: Vec<u32>,
    /// Their seeds, 32 bytes each.
    pub seeds: Vec<BufferSlice<'env>>,
}

/// The chains of a record, newest first.
///
/// # Errors
/// `BAD_RECORD`.
#[napi(catch_unwind)]
pub fn group_take_apart<'env>(env: &'env Env, record: &[u8]) -> napi::Result<Vec<Chain<'env>>> {
    let copy = |bytes: &[u8]| BufferSlice::copy_from(env, bytes);
    let of = |part: SenderKeyText| {
        Ok(Chain {
            id: part.id,
            iteration: part.iteration,
            seed: copy(part.chain_key.expose())?,
            public_key: copy(&part.signing_public.to_bytes())?,
            private_key: part.signing_private.as_ref().map(|key| copy(key.expose())).transpose()?,
            numbers: part.message_keys.iter().map(|(number, _)| *number).collect(),
            seeds: part
                .message_keys
                .iter()
                .map(|(_, seed)| copy(seed.expose()))
                .collect::<napi::Result<_>>()?,
        })
    };
    read(record)?.take_apart().map_err(failed)?.into_iter().map(of).collect()
}

/// A record of chains, newest first.
///
/// # Errors
/// `BAD_RECORD`, `BAD_KEY`.
#[napi(catch_unwind)]
#[allow(clippy::needless_pass_by_value, reason = "napi hands arrays over by value")]
pub fn group_put_together<'env>(env: &'env Env, chains: Vec<Chain<'_>>) -> napi::Result<BufferSlice<'env>> {
    let of = |chain: &Chain<'_>| {
        if chain.numbers.len() != chain.seeds.len() {
            return Err(failed(SignalError::BadRecord("a message key has no number")));
        }
        let keys = chain.numbers.iter().zip(&chain.seeds);
        Ok(SenderKeyText {
            id: chain.id,
            iteration: chain.iteration,
            chain_key: secret(&chain.seed)?,
            signing_public: public(&chain.public_key)?,
            signing_private: chain.private_key.as_ref().map(|key| secret(key)).transpose()?,
            message_keys: keys
                .map(|(number, seed)| Ok((*number, secret(seed)?)))
                .collect::<napi::Result<_>>()?,
        })
    };
    let parts = chains.iter().map(of).collect::<napi::Result<_>>()?;
    write(env, &SenderKeyRecord::put_together(parts).map_err(failed)?)
}
