//! The bytes of messages. Everything is checked before anything is computed: version, structure (no field twice, no
//! over-long integers, no length past the end, no fields out of shape), sizes, and the form of keys.
//!
//! ```text
//! WhisperMessage         33 | { 1 ratchet key 33, 2 counter, 3 previous counter, 4 ciphertext } | MAC 8
//! PreKeyWhisperMessage   33 | { 1 prekey id?, 2 base key 33, 3 identity 33, 4 WhisperMessage, 5 registration id,
//!                               6 signed prekey id }
//! SenderKeyMessage       33 | { 1 id, 2 iteration, 3 ciphertext } | signature 64
//! SenderKeyDistribution  33 | { 1 id, 2 iteration, 3 chain key 32, 4 signing key 33 }
//! ```
//!
//! Other implementations take 0x33 to 0xf3 for the version byte and authenticate a constant; here only 0x33 is taken, which
//! is what the MAC and the signature are over. The version byte of a PreKeyWhisperMessage is outside of the MAC and
//! has the same one accepted value. Unknown fields are skipped when they are well-formed.

use std::borrow::Cow;

use stvor_crypto::Secret;

use super::SignalError;
use super::keys::PublicKey;
use crate::limits::MAX_SIGNAL_MESSAGE;

/// What every message begins with: version 3, and 3 is the newest that the sender knows.
pub const VERSION: u8 = 0x33;
/// Bytes of the MAC at the end of a WhisperMessage.
pub const MAC: usize = 8;
/// Bytes of the signature at the end of a SenderKeyMessage.
pub const SIGNATURE: usize = 64;

mod pb {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Whisper {
        #[prost(bytes = "vec", optional, tag = "1")]
        pub ratchet_key: Option<Vec<u8>>,
        #[prost(uint32, optional, tag = "2")]
        pub counter: Option<u32>,
        #[prost(uint32, optional, tag = "3")]
        pub previous_counter: Option<u32>,
        #[prost(bytes = "vec", optional, tag = "4")]
        pub ciphertext: Option<Vec<u8>>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct PreKeyWhisper {
        #[prost(uint32, optional, tag = "1")]
        pub prekey_id: Option<u32>,
        #[prost(bytes = "vec", optional, tag = "2")]
        pub base_key: Option<Vec<u8>>,
        #[prost(bytes = "vec", optional, tag = "3")]
        pub identity_key: Option<Vec<u8>>,
        #[prost(bytes = "vec", optional, tag = "4")]
        pub message: Option<Vec<u8>>,
        #[prost(uint32, optional, tag = "5")]
        pub registration_id: Option<u32>,
        #[prost(uint32, optional, tag = "6")]
        pub signed_prekey_id: Option<u32>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct SenderKey {
        #[prost(uint32, optional, tag = "1")]
        pub id: Option<u32>,
        #[prost(uint32, optional, tag = "2")]
        pub iteration: Option<u32>,
        #[prost(bytes = "vec", optional, tag = "3")]
        pub ciphertext: Option<Vec<u8>>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Distribution {
        #[prost(uint32, optional, tag = "1")]
        pub id: Option<u32>,
        #[prost(uint32, optional, tag = "2")]
        pub iteration: Option<u32>,
        #[prost(bytes = "vec", optional, tag = "3")]
        pub chain_key: Option<Vec<u8>>,
        #[prost(bytes = "vec", optional, tag = "4")]
        pub signing_key: Option<Vec<u8>>,
    }
}

/// What a known field is, by its number less one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    Integer,
    Bytes,
}

const WHISPER: &[Field] = &[Field::Bytes, Field::Integer, Field::Integer, Field::Bytes];
const PREKEY: &[Field] =
    &[Field::Integer, Field::Bytes, Field::Bytes, Field::Bytes, Field::Integer, Field::Integer];
const SENDER: &[Field] = &[Field::Integer, Field::Integer, Field::Bytes];
const DISTRIBUTION: &[Field] = &[Field::Integer, Field::Integer, Field::Bytes, Field::Bytes];

/// The pre-scan: walks the fields and refuses what a lenient decoder would read in its own way.
pub(super) fn scan(mut bytes: &[u8], known: &[Field]) -> Result<(), SignalError> {
    let mut seen = 0_u32;
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let number = tag >> 3;
        if number == 0 || tag > u64::from(u32::MAX) {
            return Err(SignalError::Malformed("a field number is out of range"));
        }
        let expected = usize::try_from(number - 1).ok().and_then(|index| known.get(index));
        if expected.is_some() {
            let bit = 1 << (number - 1);
            if seen & bit != 0 {
                return Err(SignalError::Malformed("a field occurs twice"));
            }
            seen |= bit;
        }
        let found = match tag & 7 {
            0 => {
                let value = varint(&mut bytes)?;
                if expected.is_some() && value > u64::from(u32::MAX) {
                    return Err(SignalError::Malformed("an integer has more than 32 bits"));
                }
                Some(Field::Integer)
            }
            2 => {
                let length = varint(&mut bytes)?;
                skip(&mut bytes, length)?;
                Some(Field::Bytes)
            }
            1 => skip(&mut bytes, 8).map(|()| None)?,
            5 => skip(&mut bytes, 4).map(|()| None)?,
            _ => return Err(SignalError::Malformed("a field has a type that is not in use")),
        };
        if expected.is_some_and(|expected| found != Some(*expected)) {
            return Err(SignalError::Malformed("a field has another type than it should"));
        }
    }
    Ok(())
}

fn skip(bytes: &mut &[u8], count: u64) -> Result<(), SignalError> {
    let rest = usize::try_from(count).ok().and_then(|count| bytes.get(count..));
    *bytes = rest.ok_or(SignalError::Malformed("a field runs past the end"))?;
    Ok(())
}

/// An integer in its shortest form.
fn varint(bytes: &mut &[u8]) -> Result<u64, SignalError> {
    let mut value = 0_u64;
    for shift in (0..70).step_by(7) {
        let (byte, rest) = bytes.split_first().ok_or(SignalError::Malformed("an integer ends too early"))?;
        *bytes = rest;
        let part = u64::from(byte & 0x7f);
        if shift == 63 && part > 1 || *byte == 0 && shift > 0 {
            break;
        }
        value |= part << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(SignalError::Malformed("an integer is not in its shortest form"))
}

/// Cuts version byte and `tail` bytes off, and scans what is between.
fn open<'a>(bytes: &'a [u8], tail: usize, known: &[Field]) -> Result<&'a [u8], SignalError> {
    if bytes.len() > MAX_SIGNAL_MESSAGE {
        return Err(SignalError::TooLarge { size: bytes.len(), limit: MAX_SIGNAL_MESSAGE });
    }
    let (version, rest) = bytes.split_first().ok_or(SignalError::Malformed("there are no bytes"))?;
    if *version != VERSION {
        return Err(SignalError::Version(*version));
    }
    let length = rest.len().checked_sub(tail).ok_or(SignalError::Malformed("it is too short"))?;
    let fields = rest.get(..length).ok_or(SignalError::Malformed("it is too short"))?;
    scan(fields, known)?;
    Ok(fields)
}

pub(super) fn decode<M: prost::Message + Default>(fields: &[u8]) -> Result<M, SignalError> {
    M::decode(fields).map_err(|_| SignalError::Malformed("the fields do not decode"))
}

fn key(bytes: Option<Vec<u8>>, what: &'static str) -> Result<PublicKey, SignalError> {
    let bytes = bytes.ok_or(SignalError::Malformed(what))?;
    PublicKey::from_bytes(&bytes).map_err(|_| SignalError::Malformed(what))
}

fn blocks(bytes: Option<Vec<u8>>) -> Result<Vec<u8>, SignalError> {
    match bytes {
        Some(bytes) if !bytes.is_empty() && bytes.len().is_multiple_of(16) => Ok(bytes),
        _ => Err(SignalError::Malformed("the ciphertext is not a number of blocks")),
    }
}

fn encode(message: &impl prost::Message, tail: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + message.encoded_len() + tail);
    out.push(VERSION);
    message.encode_raw(&mut out);
    out
}

/// A message of a session, checked but not decrypted. It borrows what came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WhisperMessage<'a> {
    pub(super) ratchet: PublicKey,
    pub(super) counter: u32,
    pub(super) previous: u32,
    pub(super) ciphertext: Vec<u8>,
    /// Version byte and fields, as they came.
    pub(super) authenticated: Cow<'a, [u8]>,
    pub(super) mac: [u8; MAC],
}

impl<'a> WhisperMessage<'a> {
    /// Parses a message.
    ///
    /// # Errors
    /// [`SignalError::Malformed`], [`SignalError::Version`], [`SignalError::TooLarge`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, SignalError> {
        let fields = open(bytes, MAC, WHISPER)?;
        let (authenticated, mac) =
            bytes.split_last_chunk::<MAC>().ok_or(SignalError::Malformed("it is too short"))?;
        let message: pb::Whisper = decode(fields)?;
        Ok(Self {
            ratchet: key(message.ratchet_key, "the ratchet key is absent or malformed")?,
            // Encoders of the newer protobuf syntax leave zeros out.
            counter: message.counter.unwrap_or(0),
            previous: message.previous_counter.unwrap_or(0),
            ciphertext: blocks(message.ciphertext)?,
            authenticated: Cow::Borrowed(authenticated),
            mac: *mac,
        })
    }

    /// One that borrows nothing.
    pub(super) fn into_owned(self) -> WhisperMessage<'static> {
        let Self { ratchet, counter, previous, ciphertext, authenticated, mac } = self;
        let authenticated = Cow::Owned(authenticated.into_owned());
        WhisperMessage { ratchet, counter, previous, ciphertext, authenticated, mac }
    }

    /// The number of the message in its chain, from 0.
    #[must_use]
    pub fn counter(&self) -> u32 {
        self.counter
    }

    /// The sender's ratchet key, which names the chain.
    #[must_use]
    pub fn ratchet_key(&self) -> PublicKey {
        self.ratchet
    }

    /// The number of the last message on the sender's chain before this one; 0 also when there was none.
    #[must_use]
    pub fn previous_counter(&self) -> u32 {
        self.previous
    }

    /// The message as it came.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        [&*self.authenticated, &self.mac].concat()
    }

    /// What is encrypted: a number of blocks of 16 bytes.
    #[must_use]
    pub fn ciphertext(&self) -> &[u8] {
        &self.ciphertext
    }

    /// Version byte and fields, without MAC.
    pub(super) fn build(
        ratchet: &PublicKey,
        (counter, previous): (u32, u32),
        ciphertext: Vec<u8>,
    ) -> Vec<u8> {
        let message = pb::Whisper {
            ratchet_key: Some(ratchet.to_bytes().to_vec()),
            counter: Some(counter),
            previous_counter: Some(previous),
            ciphertext: Some(ciphertext),
        };
        encode(&message, MAC)
    }
}

/// A message that carries a handshake, checked but not decrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreKeyMessage {
    pub(super) prekey: Option<u32>,
    pub(super) signed: u32,
    pub(super) registration_id: u32,
    pub(super) base_key: PublicKey,
    pub(super) identity: PublicKey,
    pub(super) message: WhisperMessage<'static>,
}

impl PreKeyMessage {
    /// Parses a message, and the one inside.
    ///
    /// # Errors
    /// As [`WhisperMessage::parse`].
    pub fn parse(bytes: &[u8]) -> Result<Self, SignalError> {
        let outer: pb::PreKeyWhisper = decode(open(bytes, 0, PREKEY)?)?;
        let inner = outer.message.ok_or(SignalError::Malformed("the inner message is absent"))?;
        Ok(Self {
            prekey: outer.prekey_id,
            signed: outer.signed_prekey_id.ok_or(SignalError::Malformed("no signed prekey is named"))?,
            registration_id: outer.registration_id.unwrap_or(0),
            base_key: key(outer.base_key, "the base key is absent or malformed")?,
            identity: key(outer.identity_key, "the identity key is absent or malformed")?,
            message: WhisperMessage::parse(&inner)?.into_owned(),
        })
    }

    /// The one-time prekey that it uses, if it uses one.
    #[must_use]
    pub fn prekey(&self) -> Option<u32> {
        self.prekey
    }

    /// The signed prekey that it uses.
    #[must_use]
    pub fn signed_prekey(&self) -> u32 {
        self.signed
    }

    /// The sender's registration id, as the sender says: nothing authenticates it.
    #[must_use]
    pub fn registration_id(&self) -> u32 {
        self.registration_id
    }

    /// The sender's identity, proven only once the message decrypted.
    #[must_use]
    pub fn identity(&self) -> PublicKey {
        self.identity
    }

    /// The message inside.
    #[must_use]
    pub fn message(&self) -> &WhisperMessage<'static> {
        &self.message
    }

    /// What names the session.
    #[must_use]
    pub fn base_key(&self) -> PublicKey {
        self.base_key
    }

    pub(super) fn build(fields: PreKeyFields<'_>) -> Vec<u8> {
        let message = pb::PreKeyWhisper {
            prekey_id: fields.prekey,
            base_key: Some(fields.base_key.to_bytes().to_vec()),
            identity_key: Some(fields.identity.to_bytes().to_vec()),
            message: Some(fields.message),
            registration_id: Some(fields.registration_id),
            signed_prekey_id: Some(fields.signed),
        };
        encode(&message, 0)
    }
}

/// What a message with a handshake is built from.
pub(super) struct PreKeyFields<'a> {
    pub(super) prekey: Option<u32>,
    pub(super) signed: u32,
    pub(super) registration_id: u32,
    pub(super) base_key: &'a PublicKey,
    pub(super) identity: &'a PublicKey,
    pub(super) message: Vec<u8>,
}

/// A group message, checked but neither verified nor decrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SenderKeyMessage {
    pub(super) id: u32,
    pub(super) iteration: u32,
    pub(super) ciphertext: Vec<u8>,
    /// What is signed, as it came.
    pub(super) signed: Vec<u8>,
    pub(super) signature: [u8; SIGNATURE],
}

impl SenderKeyMessage {
    /// Parses a message.
    ///
    /// # Errors
    /// As [`WhisperMessage::parse`].
    pub fn parse(bytes: &[u8]) -> Result<Self, SignalError> {
        let fields = open(bytes, SIGNATURE, SENDER)?;
        let (signed, signature) =
            bytes.split_last_chunk::<SIGNATURE>().ok_or(SignalError::Malformed("it is too short"))?;
        let message: pb::SenderKey = decode(fields)?;
        Ok(Self {
            id: message.id.ok_or(SignalError::Malformed("no chain is named"))?,
            iteration: message.iteration.unwrap_or(0),
            ciphertext: blocks(message.ciphertext)?,
            signed: signed.to_vec(),
            signature: *signature,
        })
    }

    /// Which of the sender's chains it is on.
    #[must_use]
    pub fn chain(&self) -> u32 {
        self.id
    }

    /// Its number on the chain.
    #[must_use]
    pub fn iteration(&self) -> u32 {
        self.iteration
    }

    /// Version byte and fields, without signature.
    pub(super) fn build(id: u32, iteration: u32, ciphertext: Vec<u8>) -> Vec<u8> {
        let (id, iteration) = (Some(id), Some(iteration));
        encode(&pb::SenderKey { id, iteration, ciphertext: Some(ciphertext) }, SIGNATURE)
    }
}

/// A sender key on its way to a member. It is secret: it travels inside sessions only.
#[derive(Debug, PartialEq, Eq)]
pub struct SenderKeyDistribution {
    /// Which chain: 31 random bits.
    pub id: u32,
    /// The number of the next message.
    pub iteration: u32,
    /// The chain key at that number.
    pub chain_key: Secret<32>,
    /// What the sender's messages are signed with.
    pub signing_key: PublicKey,
}

impl SenderKeyDistribution {
    /// Parses one.
    ///
    /// # Errors
    /// As [`WhisperMessage::parse`].
    pub fn parse(bytes: &[u8]) -> Result<Self, SignalError> {
        let message: pb::Distribution = decode(open(bytes, 0, DISTRIBUTION)?)?;
        let chain_key = stvor_crypto::SecretBytes::from(message.chain_key.unwrap_or_default());
        Ok(Self {
            id: message.id.ok_or(SignalError::Malformed("no chain is named"))?,
            iteration: message.iteration.unwrap_or(0),
            chain_key: Secret::from_slice(chain_key.expose())
                .map_err(|_| SignalError::Malformed("the chain key has not 32 bytes"))?,
            signing_key: key(message.signing_key, "the signing key is absent or malformed")?,
        })
    }

    /// The bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let message = pb::Distribution {
            id: Some(self.id),
            iteration: Some(self.iteration),
            chain_key: Some(self.chain_key.expose().to_vec()),
            signing_key: Some(self.signing_key.to_bytes().to_vec()),
        };
        encode(&message, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whisper() -> Vec<u8> {
        let ratchet = PublicKey::from_bytes(&[5; 33]).unwrap();
        let mut bytes = WhisperMessage::build(&ratchet, (0, 0), vec![7; 16]);
        bytes.extend_from_slice(&[9; MAC]);
        bytes
    }

    fn refused(bytes: &[u8]) -> SignalError {
        WhisperMessage::parse(bytes).unwrap_err()
    }

    /// The whisper message with these fields.
    fn with(fields: &[u8]) -> Vec<u8> {
        [&[VERSION], fields, &[9; MAC]].concat()
    }

    #[test]
    fn zeros_are_written_and_fields_ascend_as_peers_have_them() {
        let bytes = whisper();
        assert_eq!(bytes[..3], [0x33, 0x0a, 33]);
        assert_eq!(bytes[36..42], [0x10, 0, 0x18, 0, 0x22, 16]);
        assert_eq!(WhisperMessage::parse(&bytes).unwrap().counter(), 0);
    }

    #[test]
    fn only_version_0x33_is_taken() {
        let mut bytes = whisper();
        for version in (0..=255).filter(|version| *version != VERSION) {
            bytes[0] = version;
            assert_eq!(refused(&bytes), SignalError::Version(version));
        }
        assert_eq!(refused(&[]), SignalError::Malformed("there are no bytes"));
    }

    #[test]
    fn duplicates_long_integers_and_truncation_are_refused() {
        let good = whisper();
        let fields = good[1..good.len() - MAC].to_vec();
        let more = |extra: &[u8]| {
            WhisperMessage::parse(&with(&[&fields[..], extra].concat())).map(WhisperMessage::into_owned)
        };
        assert!(more(&[]).is_ok());
        assert_eq!(more(&[0x10, 0]), Err(SignalError::Malformed("a field occurs twice")));
        assert_eq!(more(&[0x22, 0]), Err(SignalError::Malformed("a field occurs twice")));
        assert!(more(&[0x50, 1]).is_ok(), "field 10 is unknown and well-formed");
        assert_eq!(
            more(&[0x50, 0x81, 0]),
            Err(SignalError::Malformed("an integer is not in its shortest form"))
        );
        assert_eq!(more(&[0x50, 0x81]), Err(SignalError::Malformed("an integer ends too early")));
        assert_eq!(more(&[0x52, 9, 1]), Err(SignalError::Malformed("a field runs past the end")));
        assert_eq!(more(&[0x51, 1, 2]), Err(SignalError::Malformed("a field runs past the end")));
        assert_eq!(more(&[0x53]), Err(SignalError::Malformed("a field has a type that is not in use")));
        assert_eq!(more(&[0x02, 0]), Err(SignalError::Malformed("a field number is out of range")));
        let long = [&[0x50][..], &[0xff; 9], &[1]].concat();
        assert!(more(&long).is_ok(), "64 bits are an integer");
        let longer = [&[0x50][..], &[0xff; 9], &[2]].concat();
        assert!(more(&longer).is_err());
        for length in 0..good.len() {
            assert!(WhisperMessage::parse(&good[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn fields_have_their_types_sizes_and_ranges() {
        let key = [&[0x0a, 33][..], &[5; 33]].concat();
        let body = [&[0x22, 16][..], &[1; 16]].concat();
        assert!(WhisperMessage::parse(&with(&[&key[..], &body].concat())).is_ok(), "zeros may be left out");
        for (fields, why) in [
            (body.clone(), "the ratchet key is absent or malformed"),
            ([&[0x0a, 32][..], &[5; 32], &body].concat(), "the ratchet key is absent or malformed"),
            ([&[0x0a, 33][..], &[6; 33], &body].concat(), "the ratchet key is absent or malformed"),
            (key.clone(), "the ciphertext is not a number of blocks"),
            ([&key[..], &[0x22, 0]].concat(), "the ciphertext is not a number of blocks"),
            ([&key[..], &[0x22, 15], &[1; 15]].concat(), "the ciphertext is not a number of blocks"),
            ([&key[..], &[0x12, 1, 1], &body].concat(), "a field has another type than it should"),
            (
                [&key[..], &[0x10, 0xff, 0xff, 0xff, 0xff, 0x1f], &body].concat(),
                "an integer has more than 32 bits",
            ),
        ] {
            assert_eq!(refused(&with(&fields)), SignalError::Malformed(why));
        }
    }

    #[test]
    fn a_message_of_the_limit_is_read_and_one_past_it_is_not() {
        let ratchet = PublicKey::from_bytes(&[5; 33]).unwrap();
        let of = |length: usize| {
            let mut bytes = WhisperMessage::build(&ratchet, (0, 0), vec![7; length]);
            bytes.extend_from_slice(&[9; MAC]);
            bytes
        };
        let least = of(MAX_SIGNAL_MESSAGE - 64);
        let pad = MAX_SIGNAL_MESSAGE - least.len();
        // An unknown field fills up to the limit exactly.
        let filled = |extra: usize| {
            let mut bytes = least[..least.len() - MAC].to_vec();
            bytes.extend_from_slice(&[0x52, u8::try_from(pad + extra - 2).unwrap()]);
            bytes.resize(bytes.len() + pad + extra - 2, 1);
            bytes.extend_from_slice(&[9; MAC]);
            bytes
        };
        assert_eq!(filled(0).len(), MAX_SIGNAL_MESSAGE);
        assert!(WhisperMessage::parse(&filled(0)).is_ok());
        assert!(matches!(refused(&filled(1)), SignalError::TooLarge { .. }));
    }

    #[test]
    fn prekey_zero_and_no_prekey_differ() {
        let key = PublicKey::from_bytes(&[5; 33]).unwrap();
        let of = |prekey| {
            let bytes = PreKeyMessage::build(PreKeyFields {
                prekey,
                signed: 0,
                registration_id: 0,
                base_key: &key,
                identity: &key,
                message: whisper(),
            });
            PreKeyMessage::parse(&bytes).unwrap().prekey()
        };
        assert_eq!((of(None), of(Some(0)), of(Some(u32::MAX))), (None, Some(0), Some(u32::MAX)));
    }

    #[test]
    fn distributions_read_back_and_print_no_secret() {
        let key = PublicKey::from_bytes(&[5; 33]).unwrap();
        let sent = SenderKeyDistribution {
            id: 1,
            iteration: 0,
            chain_key: Secret::new([0xab; 32]),
            signing_key: key,
        };
        let bytes = sent.encode();
        assert_eq!(SenderKeyDistribution::parse(&bytes).unwrap(), sent);
        assert!(!format!("{sent:?}").contains("171"));
        for length in 0..bytes.len() {
            assert!(SenderKeyDistribution::parse(&bytes[..length]).is_err(), "{length}");
        }
    }
}
