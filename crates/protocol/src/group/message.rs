//! What travels to all members: one blob.
//!
//! ```text
//! version     1 byte, 1
//! suite       1 byte
//! kind        1 byte, 3
//! chain id   16 bytes
//! timestamp   u64, milliseconds since the Unix epoch by the sender's clock
//! state      32 bytes, the hash of the sender's membership state
//! counter     u32
//! nonce      12 bytes of P256, 24 of X25519
//! ciphertext  the padded plaintext, sealed, with its 16-byte tag
//! signature  64 bytes, by the chain's signing key
//!
//! associated data = SHA-256(label "group associated data" | suite | lp(app id) | group id [16] | sender's address
//!                           | sender's user key | everything before the ciphertext)
//! signature       = sign(chain's signing key, label "group sender signature", associated data | SHA-256(ciphertext))
//! ```

use stvor_base::codec::{CodecError, Reader, Writer};
use stvor_base::{Address, AppId, GroupId, KeyBytes, Timestamp};
use stvor_crypto::kdf::sha256;

use crate::error::ProtocolError;
use crate::limits::MAX_BLOB;
use crate::profile::{self, SIGNATURE, Suite, TAG};

const VERSION: u8 = 1;
const KIND: u8 = 3;

/// Bytes before the ciphertext.
pub(crate) const fn clear_size(suite: Suite) -> usize {
    1 + 1 + 1 + 16 + 8 + 32 + 4 + suite.nonce_bytes()
}

/// Bytes after the plaintext.
pub(crate) const AFTER: usize = TAG + SIGNATURE;

/// The name of a chain: random, so that a relay does not see which group a message is of.
pub type ChainId = [u8; 16];

/// A group message as it came: its form is checked, nothing else. Borrow of the blob.
#[derive(Clone, Copy)]
pub struct GroupIncoming<'a> {
    pub(crate) suite: Suite,
    pub(crate) chain: ChainId,
    pub(crate) sent_at: Timestamp,
    pub(crate) state: &'a [u8; 32],
    pub(crate) counter: u32,
    pub(crate) nonce: &'a [u8],
    pub(crate) clear: &'a [u8],
    pub(crate) sealed: &'a [u8],
    pub(crate) signature: &'a [u8],
}

impl core::fmt::Debug for GroupIncoming<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("GroupIncoming")
            .field("counter", &self.counter)
            .field("bytes", &(self.clear.len() + self.sealed.len() + self.signature.len()))
            .finish_non_exhaustive()
    }
}

impl<'a> GroupIncoming<'a> {
    /// Whether a blob says that it is a group message, of a suite known here.
    #[must_use]
    pub fn is_one(blob: &[u8]) -> bool {
        matches!(blob, [_, suite, KIND, ..] if Suite::from_number(*suite).is_some())
    }

    /// Reads the form of a blob.
    ///
    /// # Errors
    /// [`ProtocolError::TooNew`] for a later version, [`ProtocolError::Malformed`] for anything else that is not exactly
    /// one group message.
    pub fn parse(blob: &'a [u8]) -> Result<Self, ProtocolError> {
        if blob.len() > MAX_BLOB {
            return Err(ProtocolError::Malformed(CodecError::Length));
        }
        Self::decode(blob).map_err(|error| match error {
            CodecError::Version(version) => ProtocolError::TooNew { what: "group message", version },
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
        if input.u8()? != KIND {
            return Err(CodecError::Value);
        }
        let chain = *input.array()?;
        let sent_at = Timestamp::from_millis(input.u64()?);
        let (state, counter) = (input.array()?, input.u32()?);
        let nonce = input.raw(suite.nonce_bytes())?;
        let rest = input.rest();
        let length = rest.len().checked_sub(SIGNATURE).ok_or(CodecError::Short)?;
        let (sealed, signature) = rest.split_at_checked(length).ok_or(CodecError::Short)?;
        if sealed.len() < TAG + crate::plaintext::OVERHEAD {
            return Err(CodecError::Short);
        }
        let clear = blob.get(..clear_size(suite)).ok_or(CodecError::Short)?;
        Ok(Self { suite, chain, sent_at, state, counter, nonce, clear, sealed, signature })
    }

    /// The chain that it names.
    #[must_use]
    pub fn chain(&self) -> &ChainId {
        &self.chain
    }

    /// Its place in the chain.
    #[must_use]
    pub fn counter(&self) -> u32 {
        self.counter
    }

    /// When it was sent, by the sender's clock. Not authenticated before the message is decrypted.
    #[must_use]
    pub fn sent_at(&self) -> Timestamp {
        self.sent_at
    }

    /// The hash of the membership state that its sender had.
    #[must_use]
    pub fn state(&self) -> &[u8; 32] {
        self.state
    }
}

/// The part before the ciphertext; with room for `size` bytes in all.
pub(crate) fn clear_bytes(
    (suite, chain, counter): (Suite, &ChainId, u32),
    sent_at: Timestamp,
    (state, nonce): (&[u8; 32], &[u8]),
    size: usize,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(size);
    out.extend_from_slice(&[VERSION, suite.number(), KIND]);
    out.extend_from_slice(chain);
    out.extend_from_slice(&sent_at.as_millis().to_be_bytes());
    out.extend_from_slice(state);
    out.extend_from_slice(&counter.to_be_bytes());
    out.extend_from_slice(nonce);
    out
}

/// Who sends what where.
#[derive(Clone, Copy)]
pub(crate) struct Scope<'a> {
    pub(crate) app: &'a AppId,
    pub(crate) group: GroupId,
    pub(crate) sender: &'a Address,
    pub(crate) key: &'a KeyBytes,
}

pub(crate) fn associated_data(scope: Scope<'_>, clear: &[u8]) -> [u8; 32] {
    let mut names = Writer::with_capacity(512);
    names.bytes(scope.app.as_str().as_bytes()).raw(scope.group.as_bytes());
    scope.sender.encode(&mut names);
    let profile = profile::of(scope.key.suite());
    sha256(&[profile.label.group_data, &[profile.suite.number()], names.as_slice(), scope.key, clear])
}

/// What the chain's signing key signs, after its label.
pub(crate) fn signed_bytes(aad: &[u8; 32], sealed: &[u8]) -> [u8; 64] {
    let mut out = [0; 64];
    out[..32].copy_from_slice(aad);
    out[32..].copy_from_slice(&sha256(&[sealed]));
    out
}
