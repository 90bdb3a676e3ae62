//! Ids of messages.

use core::fmt;
use core::str::FromStr;

use crate::codec::CodecError;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; 16]);

        impl $name {
            /// An id from its 16 bytes.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// Its 16 bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = CodecError;

            fn try_from(bytes: &[u8]) -> Result<Self, CodecError> {
                bytes.try_into().map(Self).map_err(|_| CodecError::Length)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = CodecError;

            /// Reads 32 lower-case hexadecimal digits.
            fn from_str(text: &str) -> Result<Self, CodecError> {
                let digits = text.as_bytes();
                if digits.len() != 32 {
                    return Err(CodecError::Length);
                }
                // Without a branch for each digit: what random digits are, no processor foresees.
                let mut wrong = 0;
                let mut digit = |c: u8| {
                    let (number, letter) = (c.wrapping_sub(b'0'), c.wrapping_sub(b'a'));
                    let value = if number < 10 { number } else { letter.wrapping_add(10) };
                    wrong |= u8::from(number >= 10 && letter >= 6);
                    value
                };
                let mut bytes = [0; 16];
                for (byte, [high, low]) in bytes.iter_mut().zip(digits.as_chunks::<2>().0) {
                    *byte = digit(*high) << 4 | digit(*low) & 15;
                }
                if wrong != 0 {
                    return Err(CodecError::Value);
                }
                Ok(Self(bytes))
            }
        }
    };
}

id! {
    /// What a relay and its clients call one blob in one mailbox. Chosen at random by the sender's device; the relay
    /// removes duplicates by it. A repaired message has a new one.
    MessageId
}

id! {
    /// What the application calls one content: 16 random bytes inside the encrypted plaintext, kept by repairs, the
    /// same at both ends. No relay sees it.
    ContentId
}

id! {
    /// A group: the first 16 bytes of the hash of the change that created it, so nobody can make another group of the
    /// same id. Only members see it.
    GroupId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_read_what_they_print() {
        let id = MessageId::from_bytes(*b"0123456789abcdef");
        assert_eq!(id.to_string().parse::<MessageId>(), Ok(id));
        assert!(id.to_string().to_uppercase().replace('3', "A").parse::<MessageId>().is_err());
        assert!("00".parse::<ContentId>().is_err());
    }
}
