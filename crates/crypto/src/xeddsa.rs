//! XEdDSA: signatures by keys of [`x25519`](crate::x25519), as Signal's libraries make and accept them.
//!
//! ```text
//! a = clamp(private) mod L,  A = aB
//! r = SHA-512(FE | FF*31 | private clamped | message | random 64) mod L,  R = rB
//! s = r + SHA-512(R | A | message) a mod L
//! signature = R | s, with the sign bit of A in bit 7 of the last byte
//! ```
//!
//! The published paper has A's sign forced to 0 by negating the key; real peers keep the sign and send it in the
//! otherwise unused top bit, and half of all keys have it set.

use core::fmt;

use curve25519::EdwardsPoint;
use curve25519::constants::ED25519_BASEPOINT_TABLE;
use curve25519::montgomery::MontgomeryPoint;
use curve25519::scalar::{Scalar, clamp_integer};
use zeroize::Zeroize;

use crate::kdf::{constant_time_eq, sha512};
use crate::random::Random;
use crate::x25519::PublicKey;
use crate::{CryptoError, Secret};

/// Bytes of a signature.
pub const SIGNATURE_BYTES: usize = 64;

/// A private key for signatures, with its point on the Edwards curve.
///
/// ```
/// use stvor_crypto::{SystemRandom, x25519::AgreementKey, xeddsa::{self, SigningKey}};
/// let rng = &mut SystemRandom::new();
/// let key = AgreementKey::generate(rng)?;
/// let signature = SigningKey::new(key.private()).sign(b"a prekey", rng)?;
/// assert!(xeddsa::verify(key.public(), b"a prekey", &signature).is_ok());
/// assert!(xeddsa::verify(key.public(), b"another", &signature).is_err());
/// # Ok::<(), stvor_crypto::CryptoError>(())
/// ```
pub struct SigningKey {
    scalar: Secret<32>,
    /// A, compressed.
    point: [u8; 32],
}

impl SigningKey {
    /// The key of the 32 bytes of a private key.
    #[must_use]
    pub fn new(private: &Secret<32>) -> Self {
        let scalar = Secret::new(clamp_integer(*private.expose()));
        let mut reduced = Scalar::from_bytes_mod_order(*scalar.expose());
        let point = (&reduced * ED25519_BASEPOINT_TABLE).compress().to_bytes();
        reduced.zeroize();
        Self { scalar, point }
    }

    /// A key whose point was stored beside it; [`SigningKey::point`] gave it. A wrong one gives signatures that do not
    /// verify, and must not come from a peer.
    #[must_use]
    pub fn from_parts(private: &Secret<32>, point: [u8; 32]) -> Self {
        Self { scalar: Secret::new(clamp_integer(*private.expose())), point }
    }

    /// The public key as a point of the Edwards curve, 32 bytes. Not secret.
    #[must_use]
    pub fn point(&self) -> [u8; 32] {
        self.point
    }

    /// Signs `message`. Two signatures of one message differ.
    ///
    /// # Errors
    /// What `rng` says.
    pub fn sign(&self, message: &[u8], rng: &mut dyn Random) -> Result<[u8; SIGNATURE_BYTES], CryptoError> {
        const PREFIX: [u8; 32] = {
            let mut prefix = [0xff; 32];
            prefix[0] = 0xfe;
            prefix
        };
        let random = Secret::<64>::random(rng)?;
        let mut wide = sha512(&[&PREFIX, self.scalar.expose(), message, random.expose()]);
        let mut r = Scalar::from_bytes_mod_order_wide(&wide);
        wide.as_mut_slice().zeroize();
        let point = (&r * ED25519_BASEPOINT_TABLE).compress().to_bytes();
        let hash = Scalar::from_bytes_mod_order_wide(&sha512(&[&point, &self.point, message]));
        let mut a = Scalar::from_bytes_mod_order(*self.scalar.expose());
        let s = r + hash * a;
        r.zeroize();
        a.zeroize();
        let mut signature = [0; SIGNATURE_BYTES];
        signature[..32].copy_from_slice(&point);
        signature[32..].copy_from_slice(s.as_bytes());
        signature[63] |= self.point[31] & 0x80;
        Ok(signature)
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey([redacted])")
    }
}

/// Verifies a signature of `message`. Of the encodings of one signature only the one with s below the group order
/// verifies, and no signature does under a key of low order.
///
/// # Errors
/// [`CryptoError::BadSignature`], also for another length than 64 bytes.
pub fn verify(key: &PublicKey, message: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
    let bad = CryptoError::BadSignature;
    let signature: &[u8; SIGNATURE_BYTES] = signature.try_into().map_err(|_| bad)?;
    let sign = signature[63] >> 7;
    let (mut r, mut s) = ([0; 32], [0; 32]);
    r.copy_from_slice(&signature[..32]);
    s.copy_from_slice(&signature[32..]);
    s[31] &= 0x7f;
    let s: Scalar = Option::from(Scalar::from_canonical_bytes(s)).ok_or(bad)?;
    let point = MontgomeryPoint(*key.as_bytes()).to_edwards(sign).ok_or(bad)?;
    if point.is_small_order() {
        return Err(bad);
    }
    let hash = Scalar::from_bytes_mod_order_wide(&sha512(&[&r, point.compress().as_bytes(), message]));
    let expected = EdwardsPoint::vartime_double_scalar_mul_basepoint(&hash, &-point, &s);
    if constant_time_eq(expected.compress().as_bytes(), &r) { Ok(()) } else { Err(bad) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::DeterministicRandom;
    use crate::x25519::AgreementKey;

    fn key(label: &str) -> (AgreementKey, SigningKey) {
        let key = AgreementKey::generate(&mut DeterministicRandom::from_label(label)).unwrap();
        let signing = SigningKey::new(key.private());
        (key, signing)
    }

    #[test]
    fn signatures_of_keys_of_either_sign_verify_and_carry_it() {
        let rng = &mut DeterministicRandom::from_label("signatures");
        let mut signs = [0, 0];
        for number in 0..40 {
            let (key, signing) = key(&number.to_string());
            let signature = signing.sign(b"message", rng).unwrap();
            verify(key.public(), b"message", &signature).unwrap();
            assert_eq!(verify(key.public(), b"massage", &signature), Err(CryptoError::BadSignature));
            let sign = usize::from(signature[63] >> 7);
            signs[sign] += 1;
            let mut other = signature;
            other[63] ^= 0x80;
            assert!(verify(key.public(), b"message", &other).is_err(), "the sign is the key's");
        }
        assert!(signs[0] > 5 && signs[1] > 5, "{signs:?}");
    }

    #[test]
    fn every_flipped_bit_of_a_signature_is_refused() {
        let (key, signing) = key("bits");
        let signature = signing.sign(b"message", &mut DeterministicRandom::from_label("s")).unwrap();
        for bit in 0..512 {
            let mut changed = signature;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(verify(key.public(), b"message", &changed).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn the_second_encoding_of_a_signature_is_refused() {
        // The group order, little-endian: s + L verifies where nobody looks.
        let order = hex::decode("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010").unwrap();
        let (key, signing) = key("malleable");
        let mut signature = signing.sign(b"message", &mut DeterministicRandom::from_label("s")).unwrap();
        let sign = signature[63] & 0x80;
        signature[63] &= 0x7f;
        let mut carry = 0;
        for (byte, add) in signature[32..].iter_mut().zip(order) {
            let sum = u16::from(*byte) + u16::from(add) + carry;
            *byte = u8::try_from(sum & 0xff).unwrap();
            carry = sum >> 8;
        }
        signature[63] |= sign;
        assert_eq!(verify(key.public(), b"message", &signature), Err(CryptoError::BadSignature));
    }

    #[test]
    fn keys_of_low_order_verify_nothing() {
        for low in [[0; 32], core::array::from_fn(|index| u8::from(index == 0))] {
            // R = the neutral point, s = 0: the equation holds under a key of low order.
            let mut signature = [0; 64];
            signature[0] = 1;
            assert!(verify(&PublicKey::new(low), b"message", &signature).is_err());
        }
    }

    #[test]
    fn a_stored_point_signs_as_the_key_does() {
        let (key, signing) = key("stored");
        let again = SigningKey::from_parts(key.private(), signing.point());
        let signature = again.sign(b"message", &mut DeterministicRandom::from_label("s")).unwrap();
        verify(key.public(), b"message", &signature).unwrap();
        assert_eq!(format!("{again:?}"), "SigningKey([redacted])");
    }
}
