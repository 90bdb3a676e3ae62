//! The trait that every kind of key implements.

use crate::{KeyError, WrappedKey};
use stvor_crypto::{CryptoError, Random, Secret};

/// The random key that a store's rows are sealed under.
pub type DataKey = Secret<32>;

/// What kind of key opens a store. The number is on disk and never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum HolderKind {
    /// Something that a person knows.
    Passphrase = 1,
    /// A file with 32 random bytes.
    Keyfile = 2,
    /// 32 random bytes in the operating system's keyring.
    OsKeyring = 3,
    /// A key that a TPM 2.0 of this machine seals.
    Tpm = 4,
    /// A key that a PKCS #11 token keeps.
    Pkcs11 = 5,
    /// A key that a key management service keeps.
    Kms = 8,
    /// A key that a physical token gives: FIDO2, or a challenge's answer.
    Token = 9,
    /// The user's identity pair, kept by the application.
    Identity = 32,
}

impl HolderKind {
    /// The stable number.
    #[must_use]
    pub const fn id(self) -> u8 {
        self as u8
    }

    /// The kind with this number.
    #[must_use]
    pub const fn from_id(id: u8) -> Option<Self> {
        match id {
            1 => Some(Self::Passphrase),
            2 => Some(Self::Keyfile),
            3 => Some(Self::OsKeyring),
            4 => Some(Self::Tpm),
            5 => Some(Self::Pkcs11),
            8 => Some(Self::Kms),
            9 => Some(Self::Token),
            32 => Some(Self::Identity),
            _ => None,
        }
    }

    /// What people call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Passphrase => "passphrase",
            Self::Keyfile => "keyfile",
            Self::OsKeyring => "key in the system's keyring",
            Self::Tpm => "key in the TPM",
            Self::Pkcs11 => "token",
            Self::Kms => "key management server",
            Self::Token => "physical token",
            Self::Identity => "identity key pair",
        }
    }
}

/// Someone who can open a sealed thing. `context` is the identity of that thing (a store id): a wrapped key opens in
/// its own context only.
///
/// What it wrapped for a store it has to unwrap at once, before anything is sealed with it. Both operations may take long (a passphrase
/// is slow on purpose): keep them off an asynchronous executor.
pub trait KeyHolder: core::fmt::Debug + Send + Sync {
    /// What kind this is.
    fn kind(&self) -> HolderKind;

    /// Seals a data key.
    ///
    /// # Errors
    /// [`KeyError::Crypto`] when a primitive or the random generator fails.
    fn wrap(&self, data_key: &DataKey, context: &[u8], rng: &mut dyn Random) -> Result<WrappedKey, KeyError>;

    /// Opens a data key.
    ///
    /// # Errors
    /// [`KeyError::Wrong`] for another key or another context, [`KeyError::OtherHolder`] for another kind,
    /// [`KeyError::Corrupt`] when the record was damaged.
    fn unwrap(&self, wrapped: &WrappedKey, context: &[u8]) -> Result<DataKey, KeyError>;
}

/// Whether `unwrapped` is the key that was just wrapped. What does not come back now never does: nobody could open again what is
/// sealed with it.
///
/// # Errors
/// [`KeyError::Unavailable`] when it is not; what unwrapping met, unless that speaks of something that was sealed before, for nothing was.
pub fn given_back(
    kind: HolderKind,
    key: &Secret<32>,
    unwrapped: Result<Secret<32>, KeyError>,
) -> Result<(), KeyError> {
    let same = match unwrapped {
        Ok(back) => back == *key,
        Err(
            KeyError::Wrong { .. }
            | KeyError::OtherHolder { .. }
            | KeyError::Corrupt(_)
            | KeyError::Crypto(CryptoError::BadLength { .. } | CryptoError::DecryptFailed),
        ) => false,
        Err(error) => return Err(error),
    };
    if same {
        return Ok(());
    }
    let reason = "it does not give back the key that it wrapped".into();
    Err(KeyError::Unavailable { holder: kind.name(), reason })
}

impl<H: KeyHolder + ?Sized> KeyHolder for Box<H> {
    fn kind(&self) -> HolderKind {
        (**self).kind()
    }

    fn wrap(&self, data_key: &DataKey, context: &[u8], rng: &mut dyn Random) -> Result<WrappedKey, KeyError> {
        (**self).wrap(data_key, context, rng)
    }

    fn unwrap(&self, wrapped: &WrappedKey, context: &[u8]) -> Result<DataKey, KeyError> {
        (**self).unwrap(wrapped, context)
    }
}
