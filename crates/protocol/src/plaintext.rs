//! What is inside an encrypted message.
//!
//! ```text
//! content id   16 bytes, random; the same when a content is sent again
//! kind          1 byte
//! body          u32 length, then the bytes
//! padding       zeros up to the size that the padding policy chose for the whole blob
//! ```

use core::fmt;

use stvor_base::codec::{CodecError, Reader, Writer};
use stvor_base::{ContentId, MessageId};
use stvor_crypto::SecretBytes;

use crate::error::ProtocolError;
use crate::limits;

/// Bytes around the body.
pub(crate) const OVERHEAD: usize = 16 + 1 + 4;

/// Bytes of one message that an acknowledgement names.
const ACKNOWLEDGED: usize = 16 + 32;

/// Content ids in one receipt at most: a receipt stays in a small bucket.
pub const MAX_RECEIPT_IDS: usize = 128;

/// Messages in one acknowledgement at most: it stays in a small bucket, too.
pub const MAX_ACKNOWLEDGED: usize = 32;

/// What a content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ContentKind {
    /// Text of the application, UTF-8.
    Text,
    /// Bytes of the application.
    Bytes,
    /// JSON of the application.
    Json,
    /// The named contents are in the receiver's inbox.
    Delivered,
    /// The named contents were read.
    Read,
    /// A message did not decrypt; please send its content again.
    RetryRequest,
    /// Empty; renews keys.
    Control,
    /// The named messages arrived, where no relay answers for that. Itself it is not acknowledged.
    Acknowledgement,
    /// What members of a group tell one another ([`crate::group::GroupContent`]).
    Group,
    /// A kind of a later version: acknowledged, not shown.
    Other(u8),
}

impl ContentKind {
    const fn to_byte(self) -> u8 {
        match self {
            Self::Text => 1,
            Self::Bytes => 2,
            Self::Json => 3,
            Self::Delivered => 16,
            Self::Read => 17,
            Self::RetryRequest => 18,
            Self::Control => 19,
            Self::Acknowledgement => 21,
            Self::Group => 32,
            Self::Other(byte) => byte,
        }
    }

    const fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::Text,
            2 => Self::Bytes,
            3 => Self::Json,
            16 => Self::Delivered,
            17 => Self::Read,
            18 => Self::RetryRequest,
            19 => Self::Control,
            21 => Self::Acknowledgement,
            32 => Self::Group,
            other => Self::Other(other),
        }
    }

    /// Whether a content of this kind is of the application: shown, receipted, and counted for the forced ratchet.
    /// The protocol's own contents are neither receipted nor answered.
    #[must_use]
    pub const fn is_application(self) -> bool {
        matches!(self, Self::Text | Self::Bytes | Self::Json | Self::Other(_))
    }
}

/// One content, decrypted or about to be encrypted.
#[derive(PartialEq, Eq)]
pub struct Plaintext {
    /// What the application calls it. Once-only together with the authenticated sender.
    pub content: ContentId,
    /// What it is.
    pub kind: ContentKind,
    /// At most 64 KiB. Wiped when it is dropped.
    pub body: SecretBytes,
}

impl Clone for Plaintext {
    fn clone(&self) -> Self {
        Self { content: self.content, kind: self.kind, body: self.body.duplicate() }
    }
}

impl fmt::Debug for Plaintext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plaintext")
            .field("content", &self.content)
            .field("kind", &self.kind)
            .field("body", &format_args!("[redacted, {} bytes]", self.body.len()))
            .finish()
    }
}

/// A request to send a content again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RetryRequest {
    /// The relay's id of the message that failed.
    pub message: MessageId,
    /// SHA-256 of the blob that failed, as it arrived: the sender sees whether it was changed on the way.
    pub blob_hash: [u8; 32],
}

/// A message that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Acknowledged {
    /// The relay's id of it.
    pub message: MessageId,
    /// SHA-256 of the blob as it arrived: under an id of ours anybody may have sent something else.
    pub blob_hash: [u8; 32],
}

impl Plaintext {
    /// A receipt for up to [`MAX_RECEIPT_IDS`] contents; more are ignored.
    #[must_use]
    pub fn receipt(content: ContentId, read: bool, of: &[ContentId]) -> Self {
        let kind = if read { ContentKind::Read } else { ContentKind::Delivered };
        let ids = of.iter().take(MAX_RECEIPT_IDS).flat_map(|id| *id.as_bytes());
        Self { content, kind, body: ids.collect::<Vec<u8>>().into() }
    }

    /// A request to send a content again.
    #[must_use]
    pub fn retry_request(content: ContentId, request: &RetryRequest) -> Self {
        let mut out = Writer::with_capacity(48);
        out.raw(request.message.as_bytes()).raw(&request.blob_hash);
        Self { content, kind: ContentKind::RetryRequest, body: out.finish().into() }
    }

    /// An empty control message.
    #[must_use]
    pub fn control(content: ContentId) -> Self {
        Self { content, kind: ContentKind::Control, body: SecretBytes::default() }
    }

    /// An acknowledgement of up to [`MAX_ACKNOWLEDGED`] messages; more are ignored.
    #[must_use]
    pub fn acknowledgement(content: ContentId, of: &[Acknowledged]) -> Self {
        let mut out = Writer::with_capacity(of.len().min(MAX_ACKNOWLEDGED) * ACKNOWLEDGED);
        for one in of.iter().take(MAX_ACKNOWLEDGED) {
            out.raw(one.message.as_bytes()).raw(&one.blob_hash);
        }
        Self { content, kind: ContentKind::Acknowledgement, body: out.finish().into() }
    }

    /// The messages that an acknowledgement names.
    ///
    /// # Errors
    /// [`ProtocolError::Malformed`] when this is not an acknowledgement or names too many.
    pub fn acknowledged(&self) -> Result<Vec<Acknowledged>, ProtocolError> {
        let (kind, length) = (self.kind, self.body.len());
        let parse = || {
            if kind != ContentKind::Acknowledgement || length > MAX_ACKNOWLEDGED * ACKNOWLEDGED {
                return Err(CodecError::Value);
            }
            let mut input = Reader::new(self.body.expose());
            let mut named = Vec::with_capacity(length / ACKNOWLEDGED);
            while input.remaining() > 0 {
                named.push(Acknowledged {
                    message: MessageId::from_bytes(*input.array()?),
                    blob_hash: *input.array()?,
                });
            }
            Ok(named)
        };
        parse().map_err(ProtocolError::Malformed)
    }

    /// The contents that a receipt names.
    ///
    /// # Errors
    /// [`ProtocolError::Malformed`] when this is not a receipt or names too many.
    pub fn receipted(&self) -> Result<Vec<ContentId>, ProtocolError> {
        let is_receipt = matches!(self.kind, ContentKind::Delivered | ContentKind::Read);
        if !is_receipt || !self.body.len().is_multiple_of(16) || self.body.len() > 16 * MAX_RECEIPT_IDS {
            return Err(ProtocolError::Malformed(CodecError::Value));
        }
        let id = |bytes| ContentId::try_from(bytes).map_err(ProtocolError::Malformed);
        self.body.expose().chunks_exact(16).map(id).collect()
    }

    /// The message that a retry request names.
    ///
    /// # Errors
    /// [`ProtocolError::Malformed`] when this is not a retry request.
    pub fn requested(&self) -> Result<RetryRequest, ProtocolError> {
        let parse = || {
            let mut input = Reader::new(self.body.expose());
            let message = MessageId::from_bytes(*input.array()?);
            let blob_hash = *input.array()?;
            input.finish()?;
            Ok(RetryRequest { message, blob_hash })
        };
        if self.kind != ContentKind::RetryRequest {
            return Err(ProtocolError::Malformed(CodecError::Value));
        }
        parse().map_err(ProtocolError::Malformed)
    }

    /// Refuses a body past the limit.
    pub(crate) fn check_size(&self) -> Result<(), ProtocolError> {
        let (size, limit) = (self.body.len(), limits::MAX_PLAINTEXT);
        if size > limit { Err(ProtocolError::MessageTooLarge { size, limit }) } else { Ok(()) }
    }

    /// The size of a blob with this inside and `before` and `after` bytes around it, as `padding` allows.
    pub(crate) fn padded_size(&self, padding: Padding, (before, after): (usize, usize)) -> usize {
        let needed = before + OVERHEAD + self.body.len() + after;
        padding(needed).max(needed)
    }

    /// Appends the encoding, zero-padded so that `out` has `size` bytes.
    pub(crate) fn encode_to(&self, out: &mut Vec<u8>, size: usize) -> Result<(), ProtocolError> {
        self.check_size()?;
        out.extend_from_slice(self.content.as_bytes());
        out.push(self.kind.to_byte());
        out.extend_from_slice(&u32::try_from(self.body.len()).unwrap_or(u32::MAX).to_be_bytes());
        out.extend_from_slice(self.body.expose());
        out.resize(size.max(out.len()), 0);
        Ok(())
    }

    /// Reads an encoding; the body stays where it is.
    pub(crate) fn decode(mut bytes: SecretBytes) -> Result<Self, CodecError> {
        let mut input = Reader::new(bytes.expose());
        let content = ContentId::from_bytes(*input.array()?);
        let kind = ContentKind::from_byte(input.u8()?);
        let length = input.bytes(limits::MAX_PLAINTEXT)?.len();
        // All of it, without stopping at the first: that lets the compiler look at many bytes at once.
        if input.rest().iter().fold(0, |seen, byte| seen | byte) != 0 {
            return Err(CodecError::Value);
        }
        bytes.keep(OVERHEAD, length);
        Ok(Self { content, kind, body: bytes })
    }
}

/// The padding policy: given the bytes that a blob needs, the size that it gets. `stvor_wire::padding` has the one
/// that relays demand; a result below the argument counts as the argument.
pub type Padding = fn(usize) -> usize;

/// No padding: for transports of one's own that hide sizes themselves.
#[must_use]
pub fn unpadded(size: usize) -> usize {
    size
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(byte: u8) -> ContentId {
        ContentId::from_bytes([byte; 16])
    }

    #[test]
    fn a_plaintext_reads_back_and_fills_its_bucket() {
        let text =
            Plaintext { content: id(1), kind: ContentKind::Text, body: SecretBytes::from_slice(b"Hello!") };
        let mut out = Vec::new();
        assert_eq!(text.padded_size(|_| 512, (112, 16)), 512);
        assert_eq!(text.padded_size(|_| 7, (112, 16)), 112 + 16 + OVERHEAD + 6);
        text.encode_to(&mut out, 384).unwrap();
        assert_eq!(out.len(), 384);
        assert_eq!(Plaintext::decode(SecretBytes::from_slice(&out)), Ok(text));
        *out.last_mut().unwrap() = 1;
        assert_eq!(Plaintext::decode(out.into()), Err(CodecError::Value));
    }

    #[test]
    fn a_body_holds_at_most_64_kib() {
        let of = |size| Plaintext { content: id(1), kind: ContentKind::Bytes, body: vec![7; size].into() };
        let mut out = Vec::new();
        assert!(of(65_536).encode_to(&mut out, 0).is_ok());
        assert_eq!(Plaintext::decode(out.into()), Ok(of(65_536)));
        let refused = of(65_537).encode_to(&mut Vec::new(), 0);
        assert!(matches!(refused, Err(ProtocolError::MessageTooLarge { size: 65_537, limit: 65_536 })));
    }

    #[test]
    fn receipts_and_retry_requests_say_what_they_name() {
        let receipt = Plaintext::receipt(id(1), true, &[id(2), id(3)]);
        assert_eq!(receipt.receipted().unwrap(), vec![id(2), id(3)]);
        assert!(receipt.requested().is_err());
        let request = RetryRequest { message: MessageId::from_bytes([4; 16]), blob_hash: [5; 32] };
        assert_eq!(Plaintext::retry_request(id(1), &request).requested().unwrap(), request);
        let full = Plaintext::receipt(id(1), false, &[id(2); MAX_RECEIPT_IDS + 1]);
        assert_eq!(full.receipted().unwrap().len(), MAX_RECEIPT_IDS);
        let over = Plaintext { body: vec![0; 16 * (MAX_RECEIPT_IDS + 1)].into(), ..full };
        assert!(over.receipted().is_err());
    }

    #[test]
    fn an_acknowledgement_names_whole_messages_and_not_too_many() {
        let one =
            |byte| Acknowledged { message: MessageId::from_bytes([byte; 16]), blob_hash: [byte + 1; 32] };
        let of = |named: &[Acknowledged]| Plaintext::acknowledgement(id(1), named);
        let two = of(&[one(2), one(4)]);
        assert_eq!(two.acknowledged().unwrap(), [one(2), one(4)]);
        let mut out = Vec::new();
        two.encode_to(&mut out, 0).unwrap();
        let bytes = [&[1; 16][..], &[21], &96_u32.to_be_bytes(), &[2; 16], &[3; 32], &[4; 16], &[5; 32]];
        assert_eq!(out, bytes.concat());
        assert_eq!(Plaintext::decode(out.into()), Ok(two));
        assert_eq!(of(&[one(2); MAX_ACKNOWLEDGED + 1]).acknowledged().unwrap().len(), MAX_ACKNOWLEDGED);
        let body = |length| Plaintext { body: vec![0; length].into(), ..of(&[]) };
        assert!(body(MAX_ACKNOWLEDGED * ACKNOWLEDGED).acknowledged().is_ok());
        for wrong in [1, ACKNOWLEDGED - 1, ACKNOWLEDGED + 1, (MAX_ACKNOWLEDGED + 1) * ACKNOWLEDGED] {
            assert!(body(wrong).acknowledged().is_err(), "{wrong}");
        }
        assert!(Plaintext { kind: ContentKind::Delivered, ..of(&[one(2)]) }.acknowledged().is_err());
    }

    #[test]
    fn debug_shows_no_content() {
        let text = Plaintext {
            content: id(1),
            kind: ContentKind::Text,
            body: SecretBytes::from_slice(b"secret words"),
        };
        assert!(!format!("{text:?}").contains("secret"));
    }
}
