//! The primitives of a suite behind one face: which ones they are is a value, not a type.
//!
//! Each type here is an enum with a variant for each suite, so what runs is chosen by a branch that the processor foresees,
//! and nothing is copied for a second suite. Keys of two suites never meet: an operation on such a pair is
//! [`CryptoError::BadKey`](crate::CryptoError::BadKey).

mod agreement;
mod seal;
mod signature;

pub use agreement::{AgreementKey, PublicKey};
pub use seal::Aead;
pub use signature::{SigningKey, VerifyingKey};
pub use stvor_base::{KeyBytes, Suite};

/// Bytes of a private key of any suite.
pub const PRIVATE_KEY_BYTES: usize = 32;
/// Bytes of a signature of any suite.
pub const SIGNATURE_BYTES: usize = 64;
/// Bytes of a tag of any suite.
pub const TAG_BYTES: usize = 16;
