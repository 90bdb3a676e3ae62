//! Keys, signatures, and the primitives that applications use on their own.

use napi::Env;
use napi::bindgen_prelude::BufferSlice;
use napi_derive::napi;
use stvor_crypto::{CryptoError, Secret, SecretBytes, cbc_pkcs7 as cbc, kdf};
use stvor_protocol::signal::{Fingerprint, KeyPair, PublicKey, ScanOutcome, keys};

use crate::failure::{crypto, failed, with_random};

/// A key pair.
#[napi(object)]
pub struct Pair<'env> {
    /// 33 bytes.
    pub pub_key: BufferSlice<'env>,
    /// 32 bytes.
    pub priv_key: BufferSlice<'env>,
}

pub(crate) fn secret(bytes: &[u8]) -> napi::Result<Secret<32>> {
    Secret::from_slice(bytes).map_err(|_| crypto(CryptoError::BadKey))
}

pub(crate) fn public(bytes: &[u8]) -> napi::Result<PublicKey> {
    PublicKey::from_bytes(bytes).map_err(crypto)
}

fn pair<'env>(env: &'env Env, pair: &KeyPair) -> napi::Result<Pair<'env>> {
    Ok(Pair {
        pub_key: BufferSlice::copy_from(env, pair.public().to_bytes())?,
        priv_key: BufferSlice::copy_from(env, pair.private().expose())?,
    })
}

/// A fresh key pair.
///
/// # Errors
/// `RNG_UNHEALTHY`.
#[napi(catch_unwind)]
pub fn generate_pair(env: &Env) -> napi::Result<Pair<'_>> {
    pair(env, &with_random(|rng| KeyPair::generate(rng))?)
}

/// The pair of a private key.
///
/// # Errors
/// `BAD_KEY`.
#[napi(catch_unwind)]
pub fn pair_of<'env>(env: &'env Env, private: &[u8]) -> napi::Result<Pair<'env>> {
    pair(env, &KeyPair::from_private(&secret(private)?).map_err(failed)?)
}

/// A registration id.
///
/// # Errors
/// `RNG_UNHEALTHY`.
#[napi(catch_unwind)]
pub fn registration_id() -> napi::Result<u32> {
    with_random(|rng| keys::registration_id(rng))
}

/// The shared secret, 32 bytes.
///
/// # Errors
/// `BAD_KEY`, `AGREEMENT_FAILED`.
#[napi(catch_unwind)]
pub fn agree<'env>(env: &'env Env, public_key: &[u8], private: &[u8]) -> napi::Result<BufferSlice<'env>> {
    let peer = public(public_key)?;
    // The public half takes no part.
    let own = KeyPair::from_parts(secret(private)?, peer);
    BufferSlice::copy_from(env, own.agree(&peer).map_err(crypto)?.expose())
}

/// A signature, 64 bytes.
///
/// # Errors
/// `BAD_KEY`.
#[napi(catch_unwind)]
pub fn sign<'env>(env: &'env Env, private: &[u8], message: &[u8]) -> napi::Result<BufferSlice<'env>> {
    let own = KeyPair::from_private(&secret(private)?).map_err(failed)?;
    BufferSlice::copy_from(env, with_random(|rng| own.sign(message, rng))?)
}

/// Whether a signature verifies.
///
/// # Errors
/// `BAD_KEY`.
#[napi(catch_unwind)]
pub fn verify(public_key: &[u8], message: &[u8], signature: &[u8]) -> napi::Result<bool> {
    Ok(public(public_key)?.verify(message, signature).is_ok())
}

/// AES-256-CBC with PKCS#7 padding.
///
/// # Errors
/// `BAD_KEY`, `BAD_LENGTH`.
#[napi(catch_unwind)]
pub fn aes_encrypt<'env>(
    env: &'env Env,
    key: &[u8],
    data: &[u8],
    iv: &[u8],
) -> napi::Result<BufferSlice<'env>> {
    let mut out = Vec::with_capacity(data.len() + 16);
    cbc::encrypt(secret(key)?.expose(), vector(iv)?, data, &mut out);
    BufferSlice::copy_from(env, out)
}

/// The plaintext of AES-256-CBC.
///
/// # Errors
/// `BAD_KEY`, `BAD_LENGTH`, `DECRYPT_FAILED`.
#[napi(catch_unwind)]
pub fn aes_decrypt<'env>(
    env: &'env Env,
    key: &[u8],
    data: &[u8],
    iv: &[u8],
) -> napi::Result<BufferSlice<'env>> {
    let opened: SecretBytes = cbc::decrypt(secret(key)?.expose(), vector(iv)?, data).map_err(crypto)?;
    BufferSlice::copy_from(env, opened.expose())
}

fn vector(iv: &[u8]) -> napi::Result<&[u8; cbc::IV_BYTES]> {
    iv.try_into().map_err(|_| crypto(CryptoError::BadLength { expected: cbc::IV_BYTES, got: iv.len() }))
}

/// HMAC-SHA256.
///
/// # Errors
/// None of its own.
#[napi(catch_unwind)]
pub fn hmac<'env>(env: &'env Env, key: &[u8], data: &[u8]) -> napi::Result<BufferSlice<'env>> {
    BufferSlice::copy_from(env, kdf::hmac_sha256(key, &[data]).expose())
}

/// SHA-512.
///
/// # Errors
/// None of its own.
#[napi(catch_unwind)]
pub fn sha512<'env>(env: &'env Env, data: &[u8]) -> napi::Result<BufferSlice<'env>> {
    BufferSlice::copy_from(env, kdf::sha512(&[data]))
}

/// Three blocks of HKDF-SHA256: 96 bytes.
///
/// # Errors
/// None of its own.
#[napi(catch_unwind)]
pub fn hkdf<'env>(env: &'env Env, input: &[u8], salt: &[u8], info: &[u8]) -> napi::Result<BufferSlice<'env>> {
    BufferSlice::copy_from(env, kdf::hkdf_sha256::<96>(salt, input, info).expose())
}

/// Whether two byte strings are equal, in a time that depends on their lengths only.
#[napi(catch_unwind)]
#[must_use]
pub fn equal(a: &[u8], b: &[u8]) -> bool {
    kdf::constant_time_eq(a, b)
}

/// A safety number.
#[napi(object)]
pub struct SafetyNumber<'env> {
    /// 60 digits.
    pub digits: String,
    /// What to show as a QR code.
    pub scannable: BufferSlice<'env>,
}

/// The safety number of two people.
///
/// # Errors
/// `BAD_KEY`.
#[napi(catch_unwind)]
pub fn safety_number<'env>(
    env: &'env Env,
    own_id: &[u8],
    own_key: &[u8],
    peer_id: &[u8],
    peer_key: &[u8],
) -> napi::Result<SafetyNumber<'env>> {
    let made = Fingerprint::new((own_id, &public(own_key)?), (peer_id, &public(peer_key)?));
    Ok(SafetyNumber { digits: made.digits(), scannable: BufferSlice::copy_from(env, made.scannable())? })
}

/// What a scanned code says: `match`, `mismatch` or `unknown`.
///
/// # Errors
/// `BAD_KEY`.
#[napi(catch_unwind)]
pub fn compare_safety_number(
    own_id: &[u8],
    own_key: &[u8],
    peer_id: &[u8],
    peer_key: &[u8],
    scanned: &[u8],
) -> napi::Result<String> {
    let made = Fingerprint::new((own_id, &public(own_key)?), (peer_id, &public(peer_key)?));
    Ok(match made.compare(scanned) {
        ScanOutcome::Match => "match",
        ScanOutcome::Mismatch => "mismatch",
        ScanOutcome::NotASafetyCode => "unknown",
    }
    .to_owned())
}
