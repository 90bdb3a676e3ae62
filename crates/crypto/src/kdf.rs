//! Hashes, HMAC, HKDF and the passphrase hash.
//!
//! RustCrypto throughout: on the small inputs of a ratchet step it is about twice as fast as aws-lc.

use std::sync::LazyLock;

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256, Sha512};
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

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

/// A SHA-256 that has taken in the beginning of many inputs, so that it is not hashed again for each of them. What it
/// takes in is not secret.
///
/// ```
/// use stvor_crypto::kdf::{Sha256Prefix, sha256};
/// let prefix = Sha256Prefix::new(b"the same beginning, ");
/// assert_eq!(prefix.finish(&[b"another ", b"end"]), sha256(&[b"the same beginning, another end"]));
/// ```
#[derive(Clone)]
pub struct Sha256Prefix(Sha256);

impl Sha256Prefix {
    /// Takes in the beginning.
    #[must_use]
    pub fn new(beginning: &[u8]) -> Self {
        Self(Sha256::new_with_prefix(beginning))
    }

    /// SHA-256 of the beginning and the parts, one after another.
    #[must_use]
    pub fn finish(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut hash = self.0.clone();
        for part in parts {
            hash.update(part);
        }
        hash.finalize().into()
    }
}

impl core::fmt::Debug for Sha256Prefix {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Sha256Prefix(..)")
    }
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

/// The first `N` bytes of [`hmac_sha256`], 32 at most: a tag, which is no secret once it is sent.
///
/// ```
/// use stvor_crypto::kdf::{hmac_sha256, hmac_sha256_tag};
/// let tag = hmac_sha256_tag::<8>(&[7; 32], &[b"what is ", b"sent"]);
/// assert_eq!(tag, hmac_sha256(&[7; 32], &[b"what is sent"]).expose()[..8]);
/// ```
#[must_use]
pub fn hmac_sha256_tag<const N: usize>(key: &[u8], parts: &[&[u8]]) -> [u8; N] {
    const { assert!(N <= 32, "HMAC-SHA256 has 32 bytes") };
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else {
        unreachable!("HMAC takes a key of any length")
    };
    for part in parts {
        mac.update(part);
    }
    let mut whole: [u8; 32] = mac.finalize().into_bytes().into();
    let tag = core::array::from_fn(|index| whole[index]);
    whole.as_mut_slice().zeroize();
    tag
}

/// HMAC-SHA256 of two messages under one key of 32 bytes, which is set up once.
///
/// ```
/// use stvor_crypto::kdf::{hmac_sha256, hmac_sha256_pair};
/// let (one, two) = hmac_sha256_pair(&[7; 32], &[1], &[2]);
/// assert_eq!((one, two), (hmac_sha256(&[7; 32], &[&[1]]), hmac_sha256(&[7; 32], &[&[2]])));
/// ```
#[must_use]
pub fn hmac_sha256_pair(key: &[u8; 32], first: &[u8], second: &[u8]) -> (Secret<32>, Secret<32>) {
    let Ok(keyed) = Hmac::<Sha256>::new_from_slice(key) else {
        unreachable!("HMAC takes a key of any length")
    };
    let of = |mut mac: Hmac<Sha256>, message: &[u8]| {
        mac.update(message);
        Secret::new(mac.finalize().into_bytes().into())
    };
    (of(keyed.clone(), first), of(keyed, second))
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

/// HMAC-SHA256 keyed with nothing, which is the extraction of an HKDF without salt.
static UNSALTED: LazyLock<Hmac<Sha256>> = LazyLock::new(|| {
    let Ok(keyed) = Hmac::new_from_slice(&[]) else { unreachable!("HMAC takes a key of any length") };
    keyed
});

/// [`hkdf_sha256`] without salt. A fifth faster, since the extraction's key is set up once in a process.
///
/// ```
/// use stvor_crypto::kdf::{hkdf_sha256, hkdf_sha256_unsalted};
/// assert_eq!(hkdf_sha256_unsalted::<32>(b"input", b"purpose"), hkdf_sha256::<32>(&[], b"input", b"purpose"));
/// ```
#[must_use]
pub fn hkdf_sha256_unsalted<const N: usize>(ikm: &[u8], info: &[u8]) -> Secret<N> {
    const { assert!(N <= 255 * 32, "HKDF-SHA256 gives at most 255 blocks") };
    let mut extract = UNSALTED.clone();
    extract.update(ikm);
    let mut prk: [u8; 32] = extract.finalize().into_bytes().into();
    let mut out = Secret::zeroed();
    let expanded = Hkdf::<Sha256>::from_prk(&prk).map(|hkdf| hkdf.expand(info, out.expose_mut()));
    prk.as_mut_slice().zeroize();
    let Ok(Ok(())) = expanded else { unreachable!("key and output have lengths that HKDF takes") };
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
    run_argon2id(passphrase, salt, params)
}

fn run_argon2id(passphrase: &[u8], salt: &[u8], params: Argon2Params) -> Result<Secret<32>, CryptoError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Argon2Params = Argon2Params { memory_kib: 8, iterations: 1, parallelism: 1 };

    #[test]
    fn argon2id_gives_the_bytes_of_the_reference_implementation() {
        // Version 0x13, password "password", salt "somesalt", from the reference's own tests.
        for (memory_kib, parallelism, expected) in [
            (65_536, 1, "09316115d5cf24ed5a15a31a3ba326e5cf32edc24702987c02b6566f61913cf7"),
            (256, 1, "9dfeb910e80bad0311fee20f9c0e2b12c17987b4cac90c2ef54d5b3021c68bfe"),
            (256, 2, "6d093c501fd5999645e0ea3bf620d7b8be7fd2db59c20d9fff9539da2bf57037"),
        ] {
            let params = Argon2Params { memory_kib, iterations: 2, parallelism };
            let out = run_argon2id(b"password", b"somesalt", params).unwrap();
            assert_eq!(hex::encode(out.expose()), expected);
        }
    }

    #[test]
    fn argon2id_accepts_each_bound_and_refuses_one_past_it() {
        let run = |passphrase: usize, salt: usize, params| {
            argon2id(&vec![1; passphrase], &vec![2; salt], params).map(|_| ())
        };
        let refused = |name| Err(CryptoError::BadParameter(name));
        assert_eq!(run(0, 16, SMALL), Ok(()));
        assert_eq!(run(4096, 16, SMALL), Ok(()));
        assert_eq!(run(4097, 16, SMALL), refused("passphrase"));
        assert_eq!(run(1, 15, SMALL), refused("salt"));
        assert_eq!(run(1, 64, SMALL), Ok(()));
        assert_eq!(run(1, 65, SMALL), refused("salt"));
        assert_eq!(run(1, 16, Argon2Params { memory_kib: 7, ..SMALL }), refused("memory_kib"));
        let lanes = Argon2Params { memory_kib: 512, parallelism: 64, ..SMALL };
        assert_eq!(run(1, 16, lanes), Ok(()));
        assert_eq!(run(1, 16, Argon2Params { memory_kib: 511, ..lanes }), refused("memory_kib"));
        assert_eq!(
            run(1, 16, Argon2Params { memory_kib: 520, parallelism: 65, ..SMALL }),
            refused("parallelism")
        );
        assert_eq!(run(1, 16, Argon2Params { parallelism: 0, ..SMALL }), refused("parallelism"));
        assert_eq!(run(1, 16, Argon2Params { iterations: 64, ..SMALL }), Ok(()));
        assert_eq!(run(1, 16, Argon2Params { iterations: 65, ..SMALL }), refused("iterations"));
        assert_eq!(run(1, 16, Argon2Params { iterations: 0, ..SMALL }), refused("iterations"));
        let most = Argon2Params { memory_kib: Argon2Params::MAX_MEMORY_KIB + 1, ..SMALL };
        assert_eq!(run(1, 16, most), refused("memory_kib"));
    }

    #[test]
    fn constant_time_equality_sees_lengths_and_bytes() {
        assert!(constant_time_eq(b"", b""));
        assert!(constant_time_eq(b"ab", b"ab"));
        assert!(!constant_time_eq(b"ab", b"ac"));
        assert!(!constant_time_eq(b"ab", b"abc"));
        assert!(!constant_time_eq(b"ab", b""));
    }
}
