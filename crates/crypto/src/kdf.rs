//! Hashes, HMAC, HKDF and the passphrase hash.
//!
//! RustCrypto throughout: on the small inputs of a ratchet step it is about twice as fast as aws-lc.

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256, Sha512};
use subtle::ConstantTimeEq;

use crate::{CryptoError, Secret};

/// SHA-256 of the parts, one after another. Parts are not delimited: put lengths in where they are not fixed.
///
/// ```
/// use stvor_crypto::kdf::sha256;
/// assert_eq!(sha256(&[b"ab", b"c"]), sha256(&[b"abc"]));
/// ```
#[must_use]
pub fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().into()
}

/// SHA-512 of the parts, one after another.
#[must_use]
pub fn sha512(parts: &[&[u8]]) -> [u8; 64] {
    let mut hash = Sha512::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().into()
}

/// HMAC-SHA256 under `key` (any length) of the parts, one after another.
#[must_use]
pub fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> Secret<32> {
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else {
        unreachable!("HMAC takes a key of any length")
    };
    for part in parts {
        mac.update(part);
    }
    Secret::new(mac.finalize().into_bytes().into())
}

/// `N` bytes of HKDF-SHA256 (RFC 5869). An empty `salt` is the salt of 32 zero bytes. `N` is at most 8,160, which the
/// compiler checks.
///
/// ```
/// use stvor_crypto::kdf::hkdf_sha256;
/// let keys = hkdf_sha256::<64>(b"salt", b"input", b"purpose");
/// assert_ne!(keys.expose()[..32], keys.expose()[32..]);
/// ```
#[must_use]
pub fn hkdf_sha256<const N: usize>(salt: &[u8], ikm: &[u8], info: &[u8]) -> Secret<N> {
    const { assert!(N <= 255 * 32, "HKDF-SHA256 gives at most 255 blocks") };
    let mut out = Secret::zeroed();
    let Ok(()) = Hkdf::<Sha256>::new(Some(salt), ikm).expand(info, out.expose_mut()) else {
        unreachable!("the length is checked at compile time")
    };
    out
}

/// What Argon2id costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Argon2Params {
    /// KiB of memory: 8 for each lane at least, [`Argon2Params::MAX_MEMORY_KIB`] at most.
    pub memory_kib: u32,
    /// Passes over the memory: 1 to [`Argon2Params::MAX_ITERATIONS`].
    pub iterations: u32,
    /// Lanes: 1 to [`Argon2Params::MAX_PARALLELISM`].
    pub parallelism: u32,
}

impl Argon2Params {
    /// 4 GiB: what a stored header may ask of the machine that opens it.
    pub const MAX_MEMORY_KIB: u32 = 4 * 1024 * 1024;
    /// Passes that a stored header may ask for.
    pub const MAX_ITERATIONS: u32 = 64;
    /// Lanes that a stored header may ask for.
    pub const MAX_PARALLELISM: u32 = 64;
    /// Shortest salt, in bytes.
    pub const MIN_SALT_BYTES: usize = 16;
    /// Longest salt, in bytes.
    pub const MAX_SALT_BYTES: usize = 64;
    /// Longest passphrase, in bytes.
    pub const MAX_PASSPHRASE_BYTES: usize = 4096;
    /// For a passphrase that a person types: 64 MiB, 3 passes, one lane (RFC 9106, second recommended option, with one
    /// lane because the lanes run one after another here).
    pub const INTERACTIVE: Self = Self { memory_kib: 64 * 1024, iterations: 3, parallelism: 1 };
}

/// Argon2id (RFC 9106, version 0x13) of a passphrase.
///
/// # Errors
/// [`CryptoError::BadParameter`] outside the bounds of [`Argon2Params`]; [`CryptoError::Internal`] without memory.
pub fn argon2id(passphrase: &[u8], salt: &[u8], params: Argon2Params) -> Result<Secret<32>, CryptoError> {
    let bounds = [
        ("passphrase", passphrase.len() <= Argon2Params::MAX_PASSPHRASE_BYTES),
        ("salt", (Argon2Params::MIN_SALT_BYTES..=Argon2Params::MAX_SALT_BYTES).contains(&salt.len())),
        ("parallelism", (1..=Argon2Params::MAX_PARALLELISM).contains(&params.parallelism)),
        ("iterations", (1..=Argon2Params::MAX_ITERATIONS).contains(&params.iterations)),
        ("memory_kib", params.memory_kib <= Argon2Params::MAX_MEMORY_KIB),
        ("memory_kib", params.memory_kib >= params.parallelism.saturating_mul(8)),
    ];
    if let Some((name, _)) = bounds.iter().find(|(_, within)| !within) {
        return Err(CryptoError::BadParameter(name));
    }
    let params = argon2::Params::new(params.memory_kib, params.iterations, params.parallelism, Some(32))
        .map_err(|_| CryptoError::BadParameter("argon2"))?;
    let mut out = Secret::zeroed();
    argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params)
        .hash_password_into(passphrase, salt, out.expose_mut())
        .map_err(|_| CryptoError::Internal("Argon2id"))?;
    Ok(out)
}

/// Whether two byte strings are equal, in a time that depends on their lengths only.
#[must_use]
pub fn constant_time_eq(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}
