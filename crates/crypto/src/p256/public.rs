//! Public keys.

use core::fmt;
use core::hash::{Hash, Hasher};

use aws_lc_rs::agreement::{ECDH_P256, ParsedPublicKey, UnparsedPublicKey};

use super::{PUBLIC_KEY_BYTES, Signature};
use crate::CryptoError;

/// A point on P-256, not the identity, validated when it was made.
///
/// Keeps the library's parsed form, so that an agreement does not parse and validate again.
#[derive(Clone)]
pub struct PublicKey {
    bytes: [u8; PUBLIC_KEY_BYTES],
    parsed: ParsedPublicKey,
}

impl PublicKey {
    /// Parses 65 bytes (0x04, x, y).
    ///
    /// # Errors
    /// [`CryptoError::BadKey`] for another length or form (compressed, hybrid), and for a point off the curve.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CryptoError> {
        let bytes: [u8; PUBLIC_KEY_BYTES] = bytes.try_into().map_err(|_| CryptoError::BadKey)?;
        if bytes[0] != 4 {
            return Err(CryptoError::BadKey);
        }
        let parsed =
            UnparsedPublicKey::new(&ECDH_P256, &bytes).try_into().map_err(|_| CryptoError::BadKey)?;
        Ok(Self { bytes, parsed })
    }

    /// The 65 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; PUBLIC_KEY_BYTES] {
        &self.bytes
    }

    /// Verifies a signature over `label || message`.
    ///
    /// # Errors
    /// [`CryptoError::BadSignature`], also when s is in the upper half.
    pub fn verify(&self, label: &[u8], message: &[u8], signature: &Signature) -> Result<(), CryptoError> {
        signature.verify_under(&self.bytes, label, message)
    }

    pub(super) fn parsed(&self) -> &ParsedPublicKey {
        &self.parsed
    }
}

impl TryFrom<&[u8]> for PublicKey {
    type Error = CryptoError;

    fn try_from(bytes: &[u8]) -> Result<Self, CryptoError> {
        Self::from_bytes(bytes)
    }
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for PublicKey {}

impl Hash for PublicKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.bytes.hash(state);
    }
}

impl PartialOrd for PublicKey {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for PublicKey {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        self.bytes.cmp(&other.bytes)
    }
}

/// The first four bytes of x: enough to tell keys apart in a log.
impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [_, a, b, c, d, ..] = self.bytes;
        write!(f, "PublicKey({a:02x}{b:02x}{c:02x}{d:02x}..)")
    }
}
