//! What travels: the bytes of an encrypted message around its ciphertext.
//!
//! ```text
//! version        1 byte, 1
//! suite          1 byte, 1 for P256, 2 for X25519
//! kind           1 byte: 1 a message, 2 a message that carries its handshake
//! session id    16 bytes
//! timestamp      u64, milliseconds since the Unix epoch by the sender's clock
//! prekey part    kind 2 only: u32 length, then the bytes (below)
//! header         P256 85 bytes: ratchet key 65, previous chain length u32, message number u32, nonce 12;
//!                X25519 64 bytes: the same with a ratchet key of 32 and a nonce of 24
//! ciphertext     the padded plaintext, sealed, with its 16-byte tag
//!
//! prekey part:
//! signed prekey  u32 id
//! one-time       u8 0 or 1, then u32 id (0 when there is none)
//! KEM prekey     u8 1 one-time or 2 last resort, then u32 id
//! base key       65 or 32 bytes, the initiator's ephemeral key
//! ciphertext  1088 bytes, of the KEM
//! device         u32, the initiator's
//! device list    u32 length, then the bytes
//! signature     64 bytes, of the initiator's user key over the list
//! ```
//!
//! Integers are big-endian. Every byte is bound by the associated data of the seal.

use stvor_base::codec::{CodecError, Reader, Writer};
use stvor_base::{DeviceId, KeyBytes, Timestamp};

use crate::devices::SignedDeviceListIn;
use crate::error::ProtocolError;
use crate::limits;
use crate::prekey::KemKind;
use crate::profile::{KEM_CIPHERTEXT, MAX_NONCE, Profile, SIGNATURE, Suite, TAG};

/// The only version so far.
const VERSION: u8 = 1;
const KIND_MESSAGE: u8 = 1;
const KIND_PREKEY: u8 = 2;

/// Bytes of the envelope without the prekey part.
pub(crate) const FIXED: usize = 1 + 1 + 1 + 16 + 8;

/// Longest device list: 16 devices, longest names.
const MAX_DEVICE_LIST: usize = 3 * 1024;

/// The name of a session: 16 bytes of a hash of its handshake.
pub type SessionId = [u8; 16];

/// The header of a message to send.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) ratchet_key: KeyBytes,
    pub(crate) previous: u32,
    pub(crate) number: u32,
    /// Zeros where the suite's nonces are shorter.
    pub(crate) nonce: [u8; MAX_NONCE],
}

/// The header of a message as it came. Borrow of the blob.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct HeaderIn<'a> {
    pub(crate) ratchet_key: KeyBytes,
    pub(crate) previous: u32,
    pub(crate) number: u32,
    pub(crate) nonce: &'a [u8],
}

impl Header {
    pub(crate) fn nonce(&self) -> &[u8] {
        self.nonce.get(..self.ratchet_key.suite().nonce_bytes()).unwrap_or(&self.nonce)
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.ratchet_key);
        out.extend_from_slice(&self.previous.to_be_bytes());
        out.extend_from_slice(&self.number.to_be_bytes());
        out.extend_from_slice(self.nonce());
    }
}

impl<'a> HeaderIn<'a> {
    fn decode(input: &mut Reader<'a>, suite: Suite) -> Result<Self, CodecError> {
        Ok(Self {
            ratchet_key: KeyBytes::read(input, suite)?,
            previous: input.u32()?,
            number: input.u32()?,
            nonce: input.raw(suite.nonce_bytes())?,
        })
    }
}

/// The initiator's half of a handshake, as it came. Nothing in it is checked but its form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PrekeyPartIn {
    pub(crate) signed_prekey: u32,
    pub(crate) one_time: Option<u32>,
    pub(crate) kem_kind: KemKind,
    pub(crate) kem: u32,
    pub(crate) base_key: KeyBytes,
    pub(crate) kem_ciphertext: Box<[u8; KEM_CIPHERTEXT]>,
    pub(crate) device: DeviceId,
    pub(crate) list: SignedDeviceListIn,
}

impl PrekeyPartIn {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_capacity(1_280 + self.list.bytes.len());
        out.u32(self.signed_prekey)
            .u8(u8::from(self.one_time.is_some()))
            .u32(self.one_time.unwrap_or(0))
            .u8(self.kem_kind.to_byte())
            .u32(self.kem)
            .raw(&self.base_key)
            .raw(&self.kem_ciphertext[..])
            .u32(self.device.get())
            .bytes(&self.list.bytes)
            .raw(&self.list.signature);
        out.finish()
    }

    pub(crate) fn decode(bytes: &[u8], suite: Suite) -> Result<Self, CodecError> {
        let mut input = Reader::new(bytes);
        let signed_prekey = input.u32()?;
        let one_time = match (input.bool()?, input.u32()?) {
            (true, id) => Some(id),
            (false, 0) => None,
            (false, _) => return Err(CodecError::Value),
        };
        let kem_kind = KemKind::from_byte(input.u8()?)?;
        let kem = input.u32()?;
        let base_key = KeyBytes::read(&mut input, suite)?;
        let kem_ciphertext = Box::new(*input.array()?);
        let device = DeviceId::new(input.u32()?).map_err(|_| CodecError::Value)?;
        let bytes = input.bytes(MAX_DEVICE_LIST)?.to_vec();
        let signature = input.array::<SIGNATURE>()?.to_vec();
        input.finish()?;
        let list = SignedDeviceListIn { bytes, signature };
        Ok(Self { signed_prekey, one_time, kem_kind, kem, base_key, kem_ciphertext, device, list })
    }
}

/// A message as it came in: its form is checked, nothing else. Borrow of the blob.
#[derive(Clone)]
pub struct Incoming<'a> {
    pub(crate) suite: Suite,
    pub(crate) session: SessionId,
    pub(crate) sent_at: Timestamp,
    pub(crate) prekey: Option<Box<PrekeyPartIn>>,
    pub(crate) header: HeaderIn<'a>,
    /// Envelope, prekey part and header, as received: what the associated data covers.
    pub(crate) clear: &'a [u8],
    /// Ciphertext and tag.
    pub(crate) sealed: &'a [u8],
}

impl core::fmt::Debug for Incoming<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Incoming")
            .field("carries_handshake", &self.prekey.is_some())
            .field("number", &self.header.number)
            .field("bytes", &(self.clear.len() + self.sealed.len()))
            .finish_non_exhaustive()
    }
}

impl<'a> Incoming<'a> {
    /// Reads the form of a blob.
    ///
    /// # Errors
    /// [`ProtocolError::TooNew`] for a later version, [`ProtocolError::Malformed`] for anything else that is not
    /// exactly one message: both want the failure path ([`crate::repair`]).
    pub fn parse(blob: &'a [u8]) -> Result<Self, ProtocolError> {
        if blob.len() > limits::MAX_BLOB {
            return Err(ProtocolError::Malformed(CodecError::Length));
        }
        Self::decode(blob).map_err(|error| match error {
            CodecError::Version(version) => ProtocolError::TooNew { what: "message", version },
            other => ProtocolError::Malformed(other),
        })
    }

    fn decode(blob: &'a [u8]) -> Result<Self, CodecError> {
        let mut input = Reader::new(blob);
        match input.u8()? {
            VERSION => {}
            other => return Err(CodecError::Version(other)),
        }
        let suite = Suite::from_number(input.u8()?).ok_or(CodecError::Value)?;
        let kind = input.u8()?;
        let session = *input.array()?;
        let sent_at = Timestamp::from_millis(input.u64()?);
        let prekey = match kind {
            KIND_MESSAGE => None,
            KIND_PREKEY => Some(Box::new(PrekeyPartIn::decode(input.bytes(limits::MAX_BLOB)?, suite)?)),
            _ => return Err(CodecError::Value),
        };
        let header = HeaderIn::decode(&mut input, suite)?;
        let sealed = input.rest();
        if sealed.len() < TAG + crate::plaintext::OVERHEAD {
            return Err(CodecError::Short);
        }
        let clear = &blob[..blob.len() - sealed.len()];
        Ok(Self { suite, session, sent_at, prekey, header, clear, sealed })
    }

    /// The suite that the message names.
    #[must_use]
    pub fn suite(&self) -> Suite {
        self.suite
    }

    /// The session that the message names.
    #[must_use]
    pub fn session(&self) -> &SessionId {
        &self.session
    }

    /// When it was sent, by the sender's clock. Not authenticated before the message is decrypted.
    #[must_use]
    pub fn sent_at(&self) -> Timestamp {
        self.sent_at
    }

    /// Whether it carries a handshake, so that it may start a session.
    #[must_use]
    pub fn carries_handshake(&self) -> bool {
        self.prekey.is_some()
    }

    /// The nonce: random bytes, as many as the suite's nonces have, new for each message.
    #[must_use]
    pub fn nonce(&self) -> &'a [u8] {
        self.header.nonce
    }

    /// Ratchet key and number: with one sender no two messages share them.
    #[must_use]
    pub fn position(&self) -> (KeyBytes, u32) {
        (self.header.ratchet_key, self.header.number)
    }
}

/// The clear bytes of a message about to be sealed: envelope, prekey part, header; with room for `size` bytes in all.
pub(crate) fn clear_bytes(
    (suite, session): (Suite, &SessionId),
    sent_at: Timestamp,
    (prekey_part, size): (Option<&[u8]>, usize),
    header: &Header,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(size);
    let kind = if prekey_part.is_some() { KIND_PREKEY } else { KIND_MESSAGE };
    out.extend_from_slice(&[VERSION, suite.number(), kind]);
    out.extend_from_slice(session);
    out.extend_from_slice(&sent_at.as_millis().to_be_bytes());
    if let Some(part) = prekey_part {
        out.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
        out.extend_from_slice(part);
    }
    header.encode(&mut out);
    out
}

pub(crate) fn clear_size(profile: &Profile, prekey_part: Option<&[u8]>) -> usize {
    FIXED + prekey_part.map_or(0, |part| 4 + part.len()) + profile.header
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile;

    fn key(suite: Suite, byte: u8) -> KeyBytes {
        KeyBytes::try_from(&vec![byte; suite.key_bytes()][..]).unwrap()
    }

    fn header(suite: Suite) -> Header {
        let mut nonce = [0; MAX_NONCE];
        nonce[..suite.nonce_bytes()].fill(3);
        Header { ratchet_key: key(suite, 4), previous: 7, number: 9, nonce }
    }

    fn part(suite: Suite, one_time: Option<u32>) -> PrekeyPartIn {
        PrekeyPartIn {
            signed_prekey: 3,
            one_time,
            kem_kind: KemKind::OneTime,
            kem: 5,
            base_key: key(suite, 6),
            kem_ciphertext: Box::new([8; KEM_CIPHERTEXT]),
            device: DeviceId::FIRST,
            list: SignedDeviceListIn { bytes: vec![1, 2, 3], signature: vec![9; 64] },
        }
    }

    fn blob(suite: Suite, part: Option<&PrekeyPartIn>) -> Vec<u8> {
        let part = part.map(PrekeyPartIn::encode);
        let sent_at = Timestamp::from_millis(77);
        let mut out = clear_bytes((suite, &[5; 16]), sent_at, (part.as_deref(), 0), &header(suite));
        assert_eq!(out.len(), clear_size(profile::of(suite), part.as_deref()));
        out.extend_from_slice(&[0; 64]);
        out
    }

    #[test]
    fn the_header_has_85_bytes_for_p256_and_64_for_x25519() {
        use profile::{p256, x25519};
        for (suite, size) in [(Suite::P256, p256::HEADER), (Suite::X25519, x25519::HEADER)] {
            let mut out = Vec::new();
            header(suite).encode(&mut out);
            assert_eq!((out.len(), profile::of(suite).header), (size, size));
        }
        assert_eq!((p256::HEADER, x25519::HEADER), (85, 64));
    }

    #[test]
    fn a_message_reads_back_and_every_cut_is_refused() {
        for suite in Suite::ALL {
            for part in [None, Some(part(suite, Some(0))), Some(part(suite, None))] {
                let bytes = blob(suite, part.as_ref());
                let incoming = Incoming::parse(&bytes).unwrap();
                let outer = (incoming.suite, incoming.session, incoming.sent_at.as_millis());
                assert_eq!(outer, (suite, [5; 16], 77));
                let sent = header(suite);
                let Header { ratchet_key, previous, number, .. } = sent.clone();
                assert!(incoming.header == HeaderIn { ratchet_key, previous, number, nonce: sent.nonce() });
                assert_eq!(incoming.prekey.as_deref(), part.as_ref());
                assert_eq!(incoming.clear.len() + 64, bytes.len());
                for length in 0..incoming.clear.len() + 37 {
                    assert!(Incoming::parse(&bytes[..length]).is_err(), "{length}");
                }
            }
        }
    }

    #[test]
    fn prekey_id_zero_and_none_are_two_things() {
        let suite = Suite::P256;
        let decode = |part: &PrekeyPartIn| PrekeyPartIn::decode(&part.encode(), suite).unwrap().one_time;
        assert_eq!(decode(&part(suite, Some(0))), Some(0));
        assert_eq!(decode(&part(suite, None)), None);
        let mut bytes = part(suite, None).encode();
        bytes[8] = 1;
        assert_eq!(PrekeyPartIn::decode(&bytes, suite), Err(CodecError::Value));
    }

    #[test]
    fn later_versions_unknown_suites_and_oversize_are_told_apart() {
        let mut bytes = blob(Suite::P256, None);
        bytes[0] = 2;
        assert!(matches!(Incoming::parse(&bytes), Err(ProtocolError::TooNew { version: 2, .. })));
        bytes[0] = 1;
        bytes[1] = 9;
        assert!(matches!(Incoming::parse(&bytes), Err(ProtocolError::Malformed(CodecError::Value))));
        let mut bytes = blob(Suite::P256, None);
        bytes.resize(limits::MAX_BLOB, 0);
        assert!(Incoming::parse(&bytes).is_ok());
        bytes.push(0);
        assert!(matches!(Incoming::parse(&bytes), Err(ProtocolError::Malformed(CodecError::Length))));
    }
}
