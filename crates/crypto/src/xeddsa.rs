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
use std::sync::{Mutex, PoisonError};

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

/// Keys whose points are remembered.
const REMEMBERED: usize = 256;

/// A public key on the Edwards curve.
#[derive(Clone, Copy)]
struct Point {
    negative: EdwardsPoint,
    /// A, compressed.
    bytes: [u8; 32],
}

/// Points of the keys that verified something last, with the sign that the signature gave them: a sender's key comes with each
/// message, and its point is a quarter of the work. Each key has one place, by its first byte, so whatever keys come take no more
/// memory, and one that takes the place of another costs that one no more than before. Nothing here is secret.
static POINTS: Mutex<[Option<(PublicKey, u8, Point)>; REMEMBERED]> = Mutex::new([None; REMEMBERED]);

impl Point {
    /// `None` for a key that is on no point of the curve, and for one of low order.
    fn of(key: &PublicKey, sign: u8) -> Option<Self> {
        let point = MontgomeryPoint(*key.as_bytes()).to_edwards(sign)?;
        (!point.is_small_order()).then(|| Self { negative: -point, bytes: point.compress().to_bytes() })
    }

    /// The same, remembered.
    fn remembered(key: &PublicKey, sign: u8) -> Option<Self> {
        let place = usize::from(key.as_bytes()[0]);
        let points = || POINTS.lock().unwrap_or_else(PoisonError::into_inner);
        let known = points().get(place).copied().flatten();
        if let Some((_, _, point)) = known.filter(|(of, with, _)| of == key && *with == sign) {
            return Some(point);
        }
        let point = Self::of(key, sign)?;
        if let Some(slot) = points().get_mut(place) {
            *slot = Some((*key, sign, point));
        }
        Some(point)
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
    let point = Point::remembered(key, sign).ok_or(bad)?;
    let hash = Scalar::from_bytes_mod_order_wide(&sha512(&[&r, &point.bytes, message]));
    let expected = EdwardsPoint::vartime_double_scalar_mul_basepoint(&hash, &point.negative, &s);
    if constant_time_eq(expected.compress().as_bytes(), &r) { Ok(()) } else { Err(bad) }
}

#[cfg(test)]
mod tests {
    use curve25519::constants::EIGHT_TORSION;
    use proptest::prelude::*;

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

    /// As the equation says it, without what is remembered.
    fn plainly(key: &PublicKey, message: &[u8], signature: &[u8; 64]) -> bool {
        let (r, s) = signature.split_at(32);
        let (r, mut s): ([u8; 32], [u8; 32]) = (r.try_into().unwrap(), s.try_into().unwrap());
        let sign = s[31] >> 7;
        s[31] &= 0x7f;
        let s: Option<Scalar> = Scalar::from_canonical_bytes(s).into();
        let point = MontgomeryPoint(*key.as_bytes()).to_edwards(sign).filter(|point| !point.is_small_order());
        let (Some(s), Some(point)) = (s, point) else { return false };
        let hash = Scalar::from_bytes_mod_order_wide(&sha512(&[&r, point.compress().as_bytes(), message]));
        (&s * ED25519_BASEPOINT_TABLE - hash * point).compress().to_bytes() == r
    }

    /// An honest key, its other encoding, that key with each point of low order added, points of low order themselves, and others
    /// that have its place, of which about half are on no point.
    fn keys_beside(key: &PublicKey) -> Vec<PublicKey> {
        let first = key.as_bytes()[0];
        let mut top = *key.as_bytes();
        top[31] |= 0x80;
        let mut keys = vec![*key, PublicKey::new(top)];
        let point = MontgomeryPoint(*key.as_bytes()).to_edwards(0).unwrap();
        let low = EIGHT_TORSION.iter().flat_map(|low| [*low, point + low]);
        keys.extend(low.map(|point| PublicKey::new(point.to_montgomery().0)));
        keys.extend((0..32).map(|byte| {
            let mut bytes = [byte; 32];
            bytes[0] = first;
            PublicKey::new(bytes)
        }));
        keys
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_is_remembered_of_keys_changes_no_verdict(
            seed in any::<u64>(),
            flips in proptest::collection::vec(0_usize..512, 0..3),
            order in proptest::collection::vec(any::<proptest::sample::Index>(), 1..12),
        ) {
            let (honest, signing) = key(&seed.to_string());
            let message = seed.to_be_bytes();
            let good = signing.sign(&message, &mut DeterministicRandom::from_label("s")).unwrap();
            prop_assert!(plainly(honest.public(), &message, &good));
            let mut changed = good;
            flips.iter().for_each(|bit| changed[bit / 8] ^= 1 << (bit % 8));
            let mut other = good;
            other[63] ^= 0x80;
            let mut neutral = [0; 64];
            neutral[0] = 1;
            let keys = keys_beside(honest.public());
            for index in order {
                let key = index.get(&keys);
                for signature in [&good, &changed, &other, &neutral, &[0xff; 64]] {
                    prop_assert_eq!(verify(key, &message, signature).is_ok(), plainly(key, &message, signature));
                }
                // In between, so that a key is asked for whose place another one has, and after itself.
                prop_assert!(verify(honest.public(), &message, &good).is_ok());
            }
        }
    }

    #[test]
    fn a_key_that_takes_the_place_of_another_is_not_taken_for_it() {
        let keys: Vec<_> = (0..600).map(|number| key(&format!("place {number}"))).collect();
        let rng = &mut DeterministicRandom::from_label("s");
        let signatures: Vec<_> = keys.iter().map(|(_, key)| key.sign(b"message", rng).unwrap()).collect();
        for _ in 0..2 {
            for ((key, _), signature) in keys.iter().zip(&signatures) {
                verify(key.public(), b"message", signature).unwrap();
                let (other, _) = &keys[usize::from(signature[0])];
                assert_eq!(
                    verify(other.public(), b"message", signature).is_ok(),
                    other.public() == key.public()
                );
            }
        }
    }
}
