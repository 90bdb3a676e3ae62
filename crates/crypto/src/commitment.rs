//! Commitments to numbers, and proofs about the numbers that show nothing else.
//!
//! A commitment is a Pedersen commitment on Ristretto255; a proof is a Bulletproofs range proof of 64 bits (Bünz et al., 2018),
//! made non-interactive over a Merlin transcript that holds the context. Both are those of the crate bulletproofs.
//!
//! A commitment hides its number whatever the power of who looks, and can not be opened to another number by anybody who can
//! not compute discrete logarithms.
//!
//! ```
//! use stvor_crypto::commitment::{Bound, Commitment, Opening};
//! use stvor_crypto::{Secret, SystemRandom};
//! let rng = &mut SystemRandom::new();
//! let opening = Opening { value: 3, blinding: Secret::random(rng)? };
//! let commitment = opening.commit();
//! let proof = opening.prove(Bound::AtMost(4), b"whom it is for", rng)?;
//! assert!(commitment.verify(Bound::AtMost(4), b"whom it is for", &proof).is_ok());
//! assert!(commitment.verify(Bound::AtMost(3), b"whom it is for", &proof).is_err(), "it is for 4");
//! assert!(commitment.verify(Bound::AtMost(4), b"somebody else", &proof).is_err());
//! assert!(opening.prove(Bound::AtMost(2), b"whom it is for", rng).is_err(), "it is not true");
//! # Ok::<(), stvor_crypto::CryptoError>(())
//! ```

use bulletproofs::{BulletproofGens, PedersenGens, RangeProof};
use curve25519_dalek::ristretto::CompressedRistretto;
use curve25519_dalek::scalar::Scalar;
use merlin::Transcript;
use rand_chacha_old::ChaCha20Rng;
use rand_chacha_old::rand_core::SeedableRng;

use crate::kdf::sha512;
use crate::{CryptoError, Random, Secret};

/// Bits of the numbers.
const BITS: usize = 64;

/// Bytes of a commitment.
pub const COMMITMENT_BYTES: usize = 32;

/// What is proved of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// It is this or less.
    AtMost(u64),
    /// It is this or more.
    AtLeast(u64),
}

/// A number, bound and hidden.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commitment([u8; COMMITMENT_BYTES]);

/// What a commitment was made of. `blinding` must be random, and used for one commitment.
#[derive(Debug)]
pub struct Opening {
    /// The number.
    pub value: u64,
    /// What hides it.
    pub blinding: Secret<32>,
}

fn scalar(blinding: &Secret<32>) -> Scalar {
    // 512 bits, so that the scalar is uniform.
    Scalar::from_bytes_mod_order_wide(&sha512(&[b"STVOR commitment blinding v1", blinding.expose()]))
}

fn transcript(bound: Bound, commitment: Commitment, context: &[u8]) -> Transcript {
    let mut transcript = Transcript::new(b"STVOR range proof v1");
    let (kind, limit) = match bound {
        Bound::AtMost(limit) => (0, limit),
        Bound::AtLeast(limit) => (1, limit),
    };
    transcript.append_u64(b"kind", kind);
    transcript.append_u64(b"limit", limit);
    transcript.append_message(b"commitment", &commitment.0);
    transcript.append_message(b"context", context);
    transcript
}

/// The generator that the library wants, from a seed of ours.
fn drawing(rng: &mut dyn Random) -> Result<ChaCha20Rng, CryptoError> {
    let seed = Secret::<32>::random(rng)?;
    Ok(ChaCha20Rng::from_seed(*seed.expose()))
}

impl Opening {
    /// The commitment.
    #[must_use]
    pub fn commit(&self) -> Commitment {
        let point = PedersenGens::default().commit(Scalar::from(self.value), scalar(&self.blinding));
        Commitment(point.compress().to_bytes())
    }

    /// Proves a bound, for one context: what the proof is about, and for whom. 672 bytes.
    ///
    /// # Errors
    /// [`CryptoError::BadParameter`] when it is not true; what `rng` says.
    pub fn prove(&self, bound: Bound, context: &[u8], rng: &mut dyn Random) -> Result<Vec<u8>, CryptoError> {
        let untrue = || CryptoError::BadParameter("bound");
        let (distance, blinding) = match bound {
            Bound::AtMost(limit) => {
                (limit.checked_sub(self.value).ok_or_else(untrue)?, -scalar(&self.blinding))
            }
            Bound::AtLeast(limit) => {
                (self.value.checked_sub(limit).ok_or_else(untrue)?, scalar(&self.blinding))
            }
        };
        let mut transcript = transcript(bound, self.commit(), context);
        let generators = BulletproofGens::new(BITS, 1);
        let made = RangeProof::prove_single_with_rng(
            &generators,
            &PedersenGens::default(),
            &mut transcript,
            distance,
            &blinding,
            BITS,
            &mut drawing(rng)?,
        );
        made.map(|(proof, _)| proof.to_bytes()).map_err(|_| CryptoError::Internal("range proof"))
    }
}

impl Commitment {
    /// From its bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; COMMITMENT_BYTES]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; COMMITMENT_BYTES] {
        &self.0
    }

    /// Whether the number in it keeps the bound, and who made the proof knows it.
    ///
    /// # Errors
    /// [`CryptoError::BadSignature`] when the proof does not show it.
    pub fn verify(&self, bound: Bound, context: &[u8], proof: &[u8]) -> Result<(), CryptoError> {
        let bad = || CryptoError::BadSignature;
        let point = CompressedRistretto(self.0).decompress().ok_or_else(bad)?;
        let base = PedersenGens::default().B;
        // The distance to the limit is what the proof is about.
        let distance = match bound {
            Bound::AtMost(limit) => base * Scalar::from(limit) - point,
            Bound::AtLeast(limit) => point - base * Scalar::from(limit),
        };
        let read = RangeProof::from_bytes(proof).map_err(|_| bad())?;
        let mut transcript = transcript(bound, *self, context);
        let generators = BulletproofGens::new(BITS, 1);
        // The verifier's randomness only combines equations; it need not be ours.
        let seed = crate::kdf::sha256(&[b"STVOR range proof batch v1", &self.0, context, proof]);
        let checked = read.verify_single_with_rng(
            &generators,
            &PedersenGens::default(),
            &mut transcript,
            &distance.compress(),
            BITS,
            &mut ChaCha20Rng::from_seed(seed),
        );
        checked.map_err(|_| bad())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SystemRandom;

    #[test]
    fn bounds_hold_to_the_last_number_and_no_proof_serves_another() {
        let rng = &mut SystemRandom::new();
        for (value, bound, holds) in [
            (5, Bound::AtMost(5), true),
            (5, Bound::AtMost(4), false),
            (5, Bound::AtLeast(5), true),
            (5, Bound::AtLeast(6), false),
            (0, Bound::AtMost(0), true),
            (u64::MAX, Bound::AtLeast(u64::MAX), true),
            (0, Bound::AtMost(u64::MAX), true),
            (u64::MAX, Bound::AtLeast(0), true),
        ] {
            let opening = Opening { value, blinding: Secret::random(rng).unwrap() };
            let proof = opening.prove(bound, b"c", rng);
            assert_eq!(proof.is_ok(), holds, "{value} {bound:?}");
            let Ok(proof) = proof else { continue };
            let commitment = opening.commit();
            commitment.verify(bound, b"c", &proof).unwrap();
            let other = Opening { value, blinding: Secret::random(rng).unwrap() }.commit();
            assert!(other.verify(bound, b"c", &proof).is_err(), "another blinding");
            assert!(commitment.verify(bound, b"d", &proof).is_err(), "another context");
        }
    }

    #[test]
    fn a_proof_that_was_changed_or_turned_around_shows_nothing() {
        let rng = &mut SystemRandom::new();
        let opening = Opening { value: 5, blinding: Secret::random(rng).unwrap() };
        let commitment = opening.commit();
        let proof = opening.prove(Bound::AtMost(5), b"", rng).unwrap();
        assert!(commitment.verify(Bound::AtLeast(5), b"", &proof).is_err());
        for limit in [0, 4, 6, u64::MAX] {
            assert!(commitment.verify(Bound::AtMost(limit), b"", &proof).is_err(), "{limit}");
        }
        for at in (0..proof.len()).step_by(13) {
            let mut changed = proof.clone();
            changed[at] ^= 1;
            assert!(commitment.verify(Bound::AtMost(5), b"", &changed).is_err(), "{at}");
        }
        for length in [0, 31, 32, proof.len() - 1] {
            assert!(commitment.verify(Bound::AtMost(5), b"", &proof[..length]).is_err(), "{length}");
        }
        let bytes = Commitment::from_bytes([0xff; 32]);
        assert!(bytes.verify(Bound::AtMost(5), b"", &proof).is_err(), "no point");
    }
}
