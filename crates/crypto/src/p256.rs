//! Key agreement and signatures on P-256 (secp256r1).

mod agreement;
mod public;
mod signature;

pub use agreement::AgreementKey;
pub use public::PublicKey;
pub use signature::{Signature, SigningKey};

use crate::random::Random;
use crate::{CryptoError, Secret};

/// Bytes of a public key: SEC1, uncompressed.
pub const PUBLIC_KEY_BYTES: usize = 65;
/// Bytes of a private key: the scalar, big-endian.
pub const PRIVATE_KEY_BYTES: usize = 32;
/// Bytes of a signature: r and s, big-endian.
pub const SIGNATURE_BYTES: usize = 64;

/// Draws a scalar in [1, n-1] by rejection. One draw in 2^32 is refused, so more than a few in a row mean that the
/// generator is broken.
fn draw_scalar(rng: &mut dyn Random) -> Result<Secret<PRIVATE_KEY_BYTES>, CryptoError> {
    for _ in 0..64 {
        let scalar = Secret::random(rng)?;
        if ::p256::SecretKey::from_slice(scalar.expose()).is_ok() {
            return Ok(scalar);
        }
    }
    Err(CryptoError::RandomnessUnhealthy)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Constant(u8);

    impl Random for Constant {
        fn fill(&mut self, out: &mut [u8]) -> Result<(), CryptoError> {
            out.fill(self.0);
            Ok(())
        }

        fn deterministic(&self) -> bool {
            true
        }
    }

    #[test]
    fn a_generator_that_gives_only_scalars_out_of_range_is_an_error_and_not_a_loop() {
        for byte in [0x00, 0xff] {
            assert_eq!(draw_scalar(&mut Constant(byte)).err(), Some(CryptoError::RandomnessUnhealthy));
            assert!(AgreementKey::generate(&mut Constant(byte)).is_err());
            assert!(SigningKey::generate(&mut Constant(byte)).is_err());
        }
        assert!(draw_scalar(&mut Constant(1)).is_ok());
    }
}
