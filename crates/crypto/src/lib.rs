//! Typed, zeroizing wrappers over the primitives that STVOR uses. No other crate names a primitive library.
//!
//! - [`secret`]: bytes that are wiped, never printed, compared in constant time; a shielded form for long-lived keys.
//! - [`random`]: randomness as an argument, with health tests on what the operating system gives.
//! - [`suite`]: keys, signatures and seals of one suite or the other, behind one face.
//! - [`p256`]: key agreement and signatures on P-256. [`kem`]: ML-KEM-768. [`aead`]: AES-256-GCM. [`xchacha`]:
//!   XChaCha20-Poly1305. [`kdf`]: hashes, HMAC, HKDF, Argon2id.
//! - [`ed25519`]: signatures of the X25519 suite, and those that other programs verify, for transparency logs.
//! - [`cbc`]: what FIDO2 tokens want, and nothing else.
//! - [`x25519`], [`xeddsa`], [`cbc_pkcs7`]: what the Signal protocol is made of: key agreement on Curve25519 (also of the
//!   X25519 suite), signatures under
//!   the same keys, AES-256-CBC with a MAC beside it.
//!
//! Curves, AEAD and ML-KEM come from aws-lc, where they are fastest; hashes and HMAC on small inputs from RustCrypto, where
//! those are. What aws-lc does with randomness of its own (ECDSA, ML-KEM encapsulation) has a deterministic twin in
//! RustCrypto that takes over when the generator that was passed in says [`random::Random::deterministic`].

pub mod aead;
pub mod cbc;
pub mod cbc_pkcs7;
#[cfg(feature = "commitment")]
pub mod commitment;
pub mod ed25519;
mod error;
pub mod kdf;
pub mod kem;
pub mod p256;
pub mod random;
pub mod secret;
#[cfg(feature = "secretbox")]
pub mod secretbox;
pub mod suite;
pub mod x25519;
pub mod xchacha;
pub mod xeddsa;

pub use error::CryptoError;
pub use random::{Random, SystemRandom};
pub use secret::{Secret, SecretBytes, ShieldKey, Shielded};
