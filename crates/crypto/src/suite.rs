//! The numbers that say on the wire which primitives a profile uses.

/// A suite of primitives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
#[repr(u8)]
pub enum Suite {
    /// ECDH and ECDSA on P-256, ML-KEM-768, AES-256-GCM, SHA-256.
    P256 = 1,
}

/// [`Suite::P256`] as it stands on the wire.
pub const P256: u8 = Suite::P256 as u8;

impl Suite {
    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The suite of a number, if this build knows it.
    ///
    /// ```
    /// use stvor_crypto::suite::Suite;
    /// assert_eq!(Suite::from_number(1), Some(Suite::P256));
    /// assert_eq!(Suite::from_number(0), None);
    /// ```
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            P256 => Some(Self::P256),
            _ => None,
        }
    }

    /// The name in documents and labels.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::P256 => "P256",
        }
    }
}
