//! Which primitives an identity uses, and the bytes of its public keys.

use core::fmt;
use core::ops::Deref;
use core::str::FromStr;

use crate::codec::{CodecError, Reader};

/// A suite of primitives. An app chooses one, and all its users have it.
///
/// ```
/// use stvor_base::Suite;
/// assert_eq!("x25519".parse(), Ok(Suite::X25519));
/// assert_eq!(Suite::from_number(1), Some(Suite::P256));
/// assert_eq!(Suite::from_number(0), None);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[non_exhaustive]
#[repr(u8)]
pub enum Suite {
    /// ECDH and ECDSA on P-256, ML-KEM-768, AES-256-GCM, SHA-256.
    #[default]
    P256 = 1,
    /// X25519, Ed25519, ML-KEM-768, XChaCha20-Poly1305, SHA-256.
    X25519 = 2,
}

impl Suite {
    /// All that this build knows.
    pub const ALL: [Self; 2] = [Self::P256, Self::X25519];

    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The suite of a number, if this build knows it.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::P256),
            2 => Some(Self::X25519),
            _ => None,
        }
    }

    /// The name in documents and labels.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::P256 => "P256",
            Self::X25519 => "X25519",
        }
    }

    /// Bytes of a public key for agreements or signatures: an uncompressed point of P-256, or 32 of Curve25519.
    #[must_use]
    pub const fn key_bytes(self) -> usize {
        match self {
            Self::P256 => 65,
            Self::X25519 => 32,
        }
    }

    /// Bytes of a nonce.
    #[must_use]
    pub const fn nonce_bytes(self) -> usize {
        match self {
            Self::P256 => 12,
            Self::X25519 => 24,
        }
    }

    /// The first byte of a record whose layout depends on the suite: the low four bits are `version` (1 to 15), the high
    /// four the suite's number, but 0 for P256.
    #[must_use]
    pub const fn layout(self, version: u8) -> u8 {
        match self {
            Self::P256 => version,
            other => other.number() << 4 | version,
        }
    }

    /// The suite of a record that begins with `byte`.
    ///
    /// # Errors
    /// [`CodecError::Version`] for another version than `version`, and for a suite that this build does not know.
    pub fn of_layout(byte: u8, version: u8) -> Result<Self, CodecError> {
        Self::ALL.into_iter().find(|suite| suite.layout(version) == byte).ok_or(CodecError::Version(byte))
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no suite's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no suite; there are p256 and x25519")]
pub struct UnknownSuite(String);

impl crate::ErrorCode for UnknownSuite {
    fn code(&self) -> &'static str {
        "INVALID_CONFIG"
    }
}

impl FromStr for Suite {
    type Err = UnknownSuite;

    fn from_str(name: &str) -> Result<Self, UnknownSuite> {
        let named = |suite: &Self| suite.name().eq_ignore_ascii_case(name);
        Self::ALL.into_iter().find(named).ok_or_else(|| UnknownSuite(name.to_owned()))
    }
}

/// Bytes of the longest public key.
pub const MAX_KEY_BYTES: usize = Suite::P256.key_bytes();

/// The bytes of a public key; their number says of which suite. Not checked to be a point.
///
/// ```
/// use stvor_base::{KeyBytes, Suite};
/// let key = KeyBytes::from([7; 32]);
/// assert_eq!((key.suite(), key.len()), (Suite::X25519, 32));
/// assert!(KeyBytes::try_from(&[7; 33][..]).is_err());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyBytes {
    suite: Suite,
    /// Zeros where the suite's keys are shorter.
    bytes: [u8; MAX_KEY_BYTES],
}

impl KeyBytes {
    /// The suite whose keys have this length.
    #[must_use]
    pub const fn suite(&self) -> Suite {
        self.suite
    }

    /// Reads a key of a suite.
    ///
    /// # Errors
    /// [`CodecError::Short`].
    pub fn read(input: &mut Reader<'_>, suite: Suite) -> Result<Self, CodecError> {
        input.raw(suite.key_bytes())?.try_into()
    }
}

impl Deref for KeyBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(..self.suite.key_bytes()).unwrap_or(&self.bytes)
    }
}

impl AsRef<[u8]> for KeyBytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<[u8; 65]> for KeyBytes {
    fn from(bytes: [u8; 65]) -> Self {
        Self { suite: Suite::P256, bytes }
    }
}

impl From<[u8; 32]> for KeyBytes {
    fn from(short: [u8; 32]) -> Self {
        let mut bytes = [0; MAX_KEY_BYTES];
        if let Some((first, _)) = bytes.split_first_chunk_mut() {
            *first = short;
        }
        Self { suite: Suite::X25519, bytes }
    }
}

impl TryFrom<&[u8]> for KeyBytes {
    type Error = CodecError;

    fn try_from(bytes: &[u8]) -> Result<Self, CodecError> {
        if let Ok(long) = <[u8; 65]>::try_from(bytes) {
            return Ok(long.into());
        }
        <[u8; 32]>::try_from(bytes).map(Into::into).map_err(|_| CodecError::Length)
    }
}

/// The suite and a few bytes: enough to tell keys apart in a log.
impl fmt::Debug for KeyBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [_, a, b, c, d, ..] = self.bytes;
        write!(f, "KeyBytes({}, {a:02x}{b:02x}{c:02x}{d:02x}..)", self.suite)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_byte_of_a_record_says_version_and_suite_and_nothing_else() {
        assert_eq!((Suite::P256.layout(1), Suite::X25519.layout(1)), (0x01, 0x21));
        for byte in 0..=u8::MAX {
            let known = match byte {
                0x01 => Ok(Suite::P256),
                0x21 => Ok(Suite::X25519),
                other => Err(CodecError::Version(other)),
            };
            assert_eq!(Suite::of_layout(byte, 1), known);
        }
    }

    #[test]
    fn a_key_has_the_length_of_its_suite_and_no_other() {
        for suite in Suite::ALL {
            assert_eq!(Suite::from_number(suite.number()), Some(suite));
            assert_eq!(suite.name().parse(), Ok(suite));
            let bytes = vec![9; suite.key_bytes()];
            let key = KeyBytes::try_from(&bytes[..]).unwrap();
            assert_eq!((key.suite(), &key[..]), (suite, &bytes[..]));
        }
        for length in (0..100).filter(|length| ![32, 65].contains(length)) {
            assert_eq!(KeyBytes::try_from(&vec![9; length][..]), Err(CodecError::Length));
        }
        assert!("P384".parse::<Suite>().is_err());
    }
}
