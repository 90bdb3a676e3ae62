//! Who a message is from and to.

use core::fmt;
use core::str::FromStr;

use unicode_normalization::UnicodeNormalization as _;

use crate::codec::{CodecError, Reader, Writer};

/// Longest user id in bytes of UTF-8, so that a name fits one length-prefixed field of every format.
pub const MAX_USER_ID_BYTES: usize = 256;

/// Longest app id in bytes.
pub const MAX_APP_ID_BYTES: usize = 64;

/// A name that can not be used, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidName {
    /// The name is empty.
    #[error("a name can not be empty: give 1 to 256 bytes of UTF-8")]
    Empty,
    /// The name is longer than its limit.
    #[error("a name of {length} bytes is too long: {limit} bytes at most")]
    TooLong {
        /// Bytes given.
        length: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The name holds a character that could make two names look alike or break a log line.
    #[error(
        "a name can not hold control, formatting or white-space-only characters, and can not start or end with a space"
    )]
    Character,
    /// A device id of zero.
    #[error("a device id starts at 1")]
    ZeroDevice,
    /// An app id with a character other than ASCII letters, digits, `-`, `_` and `.`.
    #[error("an app id holds ASCII letters, digits, '-', '_' and '.' only")]
    AppCharacter,
}

impl crate::ErrorCode for InvalidName {
    fn code(&self) -> &'static str {
        "INVALID_NAME"
    }
}

/// The name of a user within an app, for example `alice@example.com`.
///
/// 1 to 256 bytes of UTF-8 in Unicode NFC, without control or formatting characters. Compared byte for byte after
/// normalisation.
///
/// ```
/// use stvor_base::UserId;
/// let alice: UserId = "alice@example.com".parse()?;
/// assert_eq!(alice.as_str(), "alice@example.com");
/// assert!("".parse::<UserId>().is_err());
/// # Ok::<(), stvor_base::InvalidName>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserId(Box<str>);

impl UserId {
    /// Checks and normalises a name.
    ///
    /// # Errors
    /// [`InvalidName`] when it is empty, longer than [`MAX_USER_ID_BYTES`] or holds a refused character.
    pub fn new(name: &str) -> Result<Self, InvalidName> {
        if name.is_empty() {
            return Err(InvalidName::Empty);
        }
        // Bound the work before normalising: NFC never makes a string shorter than a third of its length.
        if name.len() > 3 * MAX_USER_ID_BYTES {
            return Err(InvalidName::TooLong { length: name.len(), limit: MAX_USER_ID_BYTES });
        }
        // ASCII is in normal form, and on the hot path of every frame.
        let name: String = if name.is_ascii() { name.to_owned() } else { name.nfc().collect() };
        if name.len() > MAX_USER_ID_BYTES {
            return Err(InvalidName::TooLong { length: name.len(), limit: MAX_USER_ID_BYTES });
        }
        let refused = |c: char| c.is_control() || is_format(c) || (c.is_whitespace() && c != ' ');
        if name.chars().any(refused) || name.trim() != name {
            return Err(InvalidName::Character);
        }
        Ok(Self(name.into_boxed_str()))
    }

    /// Reads a name off the wire: exactly the normalised form, nothing else.
    ///
    /// # Errors
    /// [`InvalidName`] as [`UserId::new`], and when the bytes are not already in normal form.
    pub fn from_canonical(name: &str) -> Result<Self, InvalidName> {
        let parsed = Self::new(name)?;
        if parsed.as_str() == name { Ok(parsed) } else { Err(InvalidName::Character) }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Characters that show nothing, or reorder or join text: they make two different names look alike. Unicode's property
/// `Default_Ignorable_Code_Point` (joiners, fillers, variation selectors, tags, directions), separators, annotations, and
/// the blank of Braille.
fn is_format(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{2800}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
        | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

impl FromStr for UserId {
    type Err = InvalidName;

    fn from_str(name: &str) -> Result<Self, InvalidName> {
        Self::new(name)
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UserId({:?})", &*self.0)
    }
}

/// The name of an app (a tenant of a relay): 1 to 64 ASCII letters, digits, `-`, `_` and `.`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct AppId(Box<str>);

impl AppId {
    /// Checks a name.
    ///
    /// # Errors
    /// [`InvalidName`] when it is empty, longer than [`MAX_APP_ID_BYTES`] or holds a refused character.
    pub fn new(name: &str) -> Result<Self, InvalidName> {
        if name.is_empty() {
            return Err(InvalidName::Empty);
        }
        if name.len() > MAX_APP_ID_BYTES {
            return Err(InvalidName::TooLong { length: name.len(), limit: MAX_APP_ID_BYTES });
        }
        if !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
            return Err(InvalidName::AppCharacter);
        }
        Ok(Self(name.into()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AppId {
    type Err = InvalidName;

    fn from_str(name: &str) -> Result<Self, InvalidName> {
        Self::new(name)
    }
}

impl fmt::Display for AppId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The number of a device of a user, from 1.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct DeviceId(core::num::NonZeroU32);

impl DeviceId {
    /// The first device of a user.
    pub const FIRST: Self = Self(core::num::NonZeroU32::MIN);

    /// Checks a number.
    ///
    /// # Errors
    /// [`InvalidName::ZeroDevice`] for 0.
    pub fn new(id: u32) -> Result<Self, InvalidName> {
        core::num::NonZeroU32::new(id).map(Self).ok_or(InvalidName::ZeroDevice)
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One device of one user: what a session is with.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Address {
    /// Whose device.
    pub user: UserId,
    /// Which device.
    pub device: DeviceId,
}

impl Address {
    /// An address.
    #[must_use]
    pub fn new(user: UserId, device: DeviceId) -> Self {
        Self { user, device }
    }

    /// Appends the canonical form: length-prefixed user, then the device as u32 BE.
    pub fn encode(&self, out: &mut Writer) {
        out.bytes(self.user.as_str().as_bytes()).u32(self.device.get());
    }

    /// Reads the canonical form.
    ///
    /// # Errors
    /// [`CodecError`] when the bytes are short or not canonical.
    pub fn decode(input: &mut Reader<'_>) -> Result<Self, CodecError> {
        let user = core::str::from_utf8(input.bytes(MAX_USER_ID_BYTES)?).map_err(|_| CodecError::Value)?;
        let user = UserId::from_canonical(user).map_err(|_| CodecError::Value)?;
        let device = DeviceId::new(input.u32()?).map_err(|_| CodecError::Value)?;
        Ok(Self { user, device })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.user, self.device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_ids_hold_at_most_256_bytes() {
        assert!(UserId::new(&"a".repeat(256)).is_ok());
        assert_eq!(UserId::new(&"a".repeat(257)), Err(InvalidName::TooLong { length: 257, limit: 256 }));
    }

    #[test]
    fn look_alike_names_are_one_name_or_refused() {
        let composed = UserId::new("caf\u{e9}").unwrap();
        let decomposed = UserId::new("cafe\u{301}").unwrap();
        assert_eq!(composed, decomposed);
        assert!(UserId::from_canonical("cafe\u{301}").is_err());
        let unseen = "\u{34f}\u{115f}\u{1160}\u{17b4}\u{180f}\u{2065}\u{2800}\u{3164}\u{fe0f}\u{ffa0}\u{1d173}\u{e0100}";
        for c in unseen.chars() {
            assert_eq!(UserId::new(&format!("bob{c}")), Err(InvalidName::Character), "{c:?}");
        }
        for name in ["a\u{200b}b", "a\nb", " a", "a ", "\u{202e}bob", "\0"] {
            assert_eq!(UserId::new(name), Err(InvalidName::Character), "{name:?}");
        }
    }

    #[test]
    fn app_ids_are_plain() {
        assert!(AppId::new("acme-prod_1.eu").is_ok());
        assert!(AppId::new("a/b").is_err());
        assert!(AppId::new(&"a".repeat(64)).is_ok());
        assert!(AppId::new(&"a".repeat(65)).is_err());
    }

    #[test]
    fn an_address_survives_its_codec_and_nothing_follows() {
        let address = Address::new(UserId::new("bob").unwrap(), DeviceId::new(7).unwrap());
        let mut out = Writer::new();
        address.encode(&mut out);
        let bytes = out.finish();
        let mut input = Reader::new(&bytes);
        assert_eq!(Address::decode(&mut input), Ok(address));
        assert_eq!(input.finish(), Ok(()));
    }
}
