//! What can go wrong here.

/// A cryptographic operation that did not succeed. Says what, never with which bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CryptoError {
    /// A key is malformed: wrong length, not on the curve, zero, or out of range.
    #[error("the key is malformed; ask its owner for it again")]
    BadKey,
    /// A signature does not verify, or is not in its one accepted form (64 bytes, low s).
    #[error("the signature is not valid for this message and key")]
    BadSignature,
    /// The tag does not verify: another key, another context, or changed bytes.
    #[error("the sealed bytes could not be opened: wrong key, wrong context, or they were changed")]
    DecryptFailed,
    /// A value does not have its one length.
    #[error("expected {expected} bytes, got {got}")]
    BadLength {
        /// What the value must measure, in bytes.
        expected: usize,
        /// What it measures.
        got: usize,
    },
    /// A key agreement gave a result that carries no secret (all zero).
    #[error("the key agreement gave no usable secret; the other side's key is not acceptable")]
    AgreementFailed,
    /// A cost or length is outside what this build accepts.
    #[error("the parameter `{0}` is outside its accepted range")]
    BadParameter(&'static str),
    /// The source of randomness failed a health test. Nothing draws from it again in this process.
    #[error(
        "the system's random source failed its health test; restart on a healthy machine, no key was made"
    )]
    RandomnessUnhealthy,
    /// The source of randomness gave nothing.
    #[error("the system's random source gave no bytes; check that the process may read it")]
    RandomnessUnavailable,
    /// A primitive refused for a reason of its own: out of memory, or a fault in the library.
    #[error("the cryptographic library failed ({0})")]
    Internal(&'static str),
}

impl stvor_base::ErrorCode for CryptoError {
    fn code(&self) -> &'static str {
        match self {
            Self::BadKey => "BAD_KEY",
            Self::BadSignature => "BAD_SIGNATURE",
            Self::DecryptFailed => "DECRYPT_FAILED",
            Self::BadLength { .. } => "BAD_LENGTH",
            Self::AgreementFailed => "AGREEMENT_FAILED",
            Self::BadParameter(_) => "BAD_PARAMETER",
            Self::RandomnessUnhealthy => "RNG_UNHEALTHY",
            Self::RandomnessUnavailable => "RNG_UNAVAILABLE",
            Self::Internal(_) => "CRYPTO_INTERNAL",
        }
    }

    fn retryable(&self) -> bool {
        matches!(self, Self::RandomnessUnavailable)
    }
}
