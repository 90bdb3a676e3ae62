//! What can go wrong with keys.

use std::path::{Path, PathBuf};
use stvor_base::{ErrorCode, codec::CodecError};
use stvor_crypto::CryptoError;

/// Why a key could not be made, read or used.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The key is well-formed, but it is not the one.
    #[error("the {holder} does not open this; give the one that it was sealed with")]
    Wrong {
        /// What kind of key.
        holder: &'static str,
    },
    /// The key cannot be a key at all.
    #[error("the {holder} cannot be used: {reason}")]
    Malformed {
        /// What kind of key.
        holder: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The sealed file's key record is damaged.
    #[error("the key record is damaged: {0}; restore the store from a backup")]
    Corrupt(&'static str),
    /// The key record is of a newer version.
    #[error("the key record has version {found}, this program reads up to {known}; update the program")]
    TooNew {
        /// The version found.
        found: u8,
        /// The newest version that this build reads.
        known: u8,
    },
    /// The key record is for another kind of holder.
    #[error("this opens with a {needs}, a {given} was given")]
    OtherHolder {
        /// What it opens with.
        needs: &'static str,
        /// What was given.
        given: &'static str,
    },
    /// There is no such key.
    #[error("the {holder} {name} does not exist; without it what it sealed cannot be opened, so restore it")]
    Missing {
        /// What kind of key.
        holder: &'static str,
        /// Its path or name.
        name: String,
    },
    /// There is such a key already; it is not overwritten.
    #[error("the {holder} {name} exists already and is not overwritten; choose another name")]
    Exists {
        /// What kind of key.
        holder: &'static str,
        /// Its path or name.
        name: String,
    },
    /// Others may read the keyfile.
    #[error("the keyfile {} may be read by others (mode {mode:03o}); run: chmod 600 {}", path.display(), path.display())]
    Permissions {
        /// The keyfile.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The system refused an operation on a keyfile.
    #[error("{what} the keyfile {} failed: {reason}", path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// The keyfile.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The disk is full.
    #[error("the keyfile {} could not be written: the disk or a quota is full", path.display())]
    Full {
        /// The keyfile.
        path: PathBuf,
    },
    /// The operating system's keyring does not answer.
    #[error("the system's keyring cannot be used: {0}; unlock it, or use a keyfile or a passphrase")]
    Keyring(String),
    /// The device or service that keeps the key does not answer, or refuses.
    #[error("the {holder} can not be used: {reason}; check that it is there, and what it is told of itself")]
    Unavailable {
        /// What kind of key.
        holder: &'static str,
        /// What it said.
        reason: String,
    },
    /// The TPM can not load what it is given: another one sealed it, or this one was cleared since.
    #[error(
        "this TPM did not seal this key, or was cleared since; use the machine it was sealed on, the recovery passphrase, or an escrow or backup"
    )]
    TpmForeign,
    /// The TPM counts wrong PINs and refuses all for now.
    #[error(
        "the TPM refuses every PIN after too many wrong ones; wait as long as it asks (stvor vault doctor shows it) and do not try meanwhile, or use the recovery passphrase"
    )]
    TpmLocked,
    /// The machine was started with other software or settings than the key was bound to.
    #[error(
        "the TPM's measurements (PCR {pcrs}) are not those that the key was bound to: firmware, boot loader or settings changed; open it with the recovery passphrase and bind it anew"
    )]
    TpmState {
        /// Which registers it is bound to.
        pcrs: String,
    },
    /// A sealed file could not be written or read.
    #[error("the sealed file failed: {0}")]
    Sealed(String),
    /// A physical token does not answer, or not as it should.
    #[error("the token can not be used: {0}; plug it in, and touch it when it blinks")]
    Token(String),
    /// A physical token wants its PIN, or has another one.
    #[error("the token refuses the PIN: {0}")]
    Pin(&'static str),
    /// Fewer shares than the secret needs.
    #[error("{given} shares are too few: {needed} are needed; ask more of their keepers")]
    TooFewShares {
        /// How many are needed.
        needed: u8,
        /// How many were given.
        given: usize,
    },
    /// A primitive failed.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
}

impl KeyError {
    pub(crate) fn io(what: &'static str, path: &Path, error: &std::io::Error) -> Self {
        use std::io::ErrorKind as Kind;
        let name = || path.display().to_string();
        match error.kind() {
            Kind::NotFound => Self::Missing { holder: "keyfile", name: name() },
            Kind::AlreadyExists => Self::Exists { holder: "keyfile", name: name() },
            Kind::StorageFull | Kind::QuotaExceeded | Kind::FileTooLarge => Self::Full { path: path.into() },
            _ => Self::Io { what, path: path.into(), reason: error.to_string() },
        }
    }

    pub(crate) fn codec(error: CodecError) -> Self {
        match error {
            CodecError::Short => Self::Corrupt("it ends too early"),
            CodecError::Trailing => Self::Corrupt("bytes follow it"),
            _ => Self::Corrupt("a field is out of range"),
        }
    }
}

impl ErrorCode for KeyError {
    fn code(&self) -> &'static str {
        match self {
            Self::Wrong { .. } => "WRONG_KEY",
            Self::Malformed { .. } => "KEY_MALFORMED",
            Self::Corrupt(_) => "STORE_CORRUPT",
            Self::TooNew { .. } => "STORE_TOO_NEW",
            Self::OtherHolder { .. } => "KEY_REQUIRED",
            Self::Missing { .. } => "KEY_MISSING",
            Self::Exists { .. } => "KEY_EXISTS",
            Self::Permissions { .. } => "KEY_PERMISSIONS",
            Self::Io { .. } => "KEY_IO",
            Self::Full { .. } => "STORE_FULL",
            Self::Keyring(_) => "KEYRING_UNAVAILABLE",
            Self::Unavailable { .. } => "KEY_UNAVAILABLE",
            Self::TpmForeign => "TPM_FOREIGN",
            Self::TpmLocked => "TPM_LOCKED",
            Self::TpmState { .. } => "TPM_STATE",
            Self::Sealed(_) => "KEY_IO",
            Self::Token(_) => "TOKEN_UNAVAILABLE",
            Self::Pin(_) => "TOKEN_PIN",
            Self::TooFewShares { .. } => "TOO_FEW_SHARES",
            Self::Crypto(error) => error.code(),
        }
    }

    fn retryable(&self) -> bool {
        matches!(self, Self::Keyring(_) | Self::Full { .. } | Self::Token(_) | Self::Unavailable { .. })
    }
}
