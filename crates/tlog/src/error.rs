//! What can go wrong with a log.

use std::path::{Path, PathBuf};

use stvor_base::ErrorCode;
use stvor_crypto::CryptoError;

/// Why a log could not be written, read or believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TlogError {
    /// Text is not what its format says.
    #[error("the {what} is malformed: {reason}")]
    Malformed {
        /// Which text.
        what: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// No signature on the note is by a key that is trusted.
    #[error(
        "the note carries no signature by a key that is trusted; add the log's verifier key, or refuse the note"
    )]
    Untrusted,
    /// A signature under a trusted key's name does not verify.
    #[error("the signature of {name} does not verify: the note was changed or forged")]
    BadSignature {
        /// The key's name.
        name: String,
    },
    /// The checkpoint is of another log.
    #[error("the checkpoint is of the log {found:?}, not of {expected:?}")]
    OtherLog {
        /// The origin found.
        found: String,
        /// The origin wanted.
        expected: String,
    },
    /// A proof does not prove what it should.
    #[error("the {what} proof does not verify: the entry, the proof or the log was changed")]
    BadProof {
        /// Inclusion or consistency.
        what: &'static str,
    },
    /// A position or size that the log does not have.
    #[error("there is no {what} {asked} in a log of {size}")]
    OutOfRange {
        /// Entry or size.
        what: &'static str,
        /// What was asked for.
        asked: u64,
        /// How many entries the log has.
        size: u64,
    },
    /// The witness signed another size last.
    #[error("the witness signed the log at {size} entries last; prove that the log continues from there")]
    Conflict {
        /// That size.
        size: u64,
    },
    /// A stored hash, tile or entry is not there.
    #[error("{0} is missing from the log's storage; restore it from a copy")]
    Missing(String),
    /// What is stored does not lead to the root that was signed.
    #[error("{0} does not match the log's hashes: it was changed; restore it from a copy")]
    Corrupt(String),
    /// An entry is too long to be stored.
    #[error("an entry has {0} bytes; the most is 65535")]
    EntryTooLong(usize),
    /// The log is full.
    #[error("the log holds as many entries as it can; start a new one")]
    Full,
    /// The system refused an operation on a file.
    #[error("{what} {}: {reason}", path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// A primitive failed.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
}

impl TlogError {
    pub(crate) fn malformed(what: &'static str, reason: &'static str) -> Self {
        Self::Malformed { what, reason }
    }

    pub(crate) fn io(what: &'static str, path: &Path, error: &std::io::Error) -> Self {
        Self::Io { what, path: path.to_owned(), reason: error.to_string() }
    }
}

impl ErrorCode for TlogError {
    fn code(&self) -> &'static str {
        match self {
            Self::Malformed { .. } => "LOG_MALFORMED",
            Self::Untrusted => "LOG_UNTRUSTED",
            Self::BadSignature { .. } => "LOG_FORGED",
            Self::OtherLog { .. } => "LOG_OTHER",
            Self::BadProof { .. } => "LOG_PROOF_INVALID",
            Self::OutOfRange { .. } => "LOG_OUT_OF_RANGE",
            Self::Conflict { .. } => "LOG_WITNESS_CONFLICT",
            Self::Missing(_) => "LOG_MISSING",
            Self::Corrupt(_) => "LOG_TAMPERED",
            Self::EntryTooLong(_) => "LOG_ENTRY_TOO_LONG",
            Self::Full => "LOG_FULL",
            Self::Io { .. } => "LOG_IO",
            Self::Crypto(error) => error.code(),
        }
    }

    fn retryable(&self) -> bool {
        matches!(self, Self::Io { .. })
    }
}
