//! Randomness as an argument: the operating system's, tested as it comes, and a reproducible one for vectors.

mod deterministic;
mod health;
mod system;

pub use deterministic::DeterministicRandom;
pub use health::{
    ASSUMED_ENTROPY_BITS, FALSE_ALARM_BITS, Health, HealthState, PROPORTION_CUTOFF, PROPORTION_WINDOW,
    REPETITION_CUTOFF, STARTUP_SAMPLES,
};
pub(crate) use system::require_health;
pub use system::{RawSource, SystemRandom, health};

use crate::CryptoError;

/// A generator of secret random bytes.
///
/// ```
/// use stvor_crypto::random::{DeterministicRandom, Random};
/// let mut rng: Box<dyn Random> = Box::new(DeterministicRandom::new([1; 32]));
/// let mut nonce = [0; 12];
/// rng.fill(&mut nonce)?;
/// # Ok::<(), stvor_crypto::CryptoError>(())
/// ```
pub trait Random {
    /// Fills `out`. Filling nothing asks whether the generator is in health.
    ///
    /// # Errors
    /// [`CryptoError::RandomnessUnhealthy`] and [`CryptoError::RandomnessUnavailable`]; `out` is not to be used then.
    fn fill(&mut self, out: &mut [u8]) -> Result<(), CryptoError>;

    /// Whether everything must follow from this generator alone, so that it can be repeated. Operations for which the
    /// fast library draws randomness of its own (ECDSA, ML-KEM encapsulation) then take their reproducible twin.
    fn deterministic(&self) -> bool {
        false
    }
}

impl<R: Random + ?Sized> Random for &mut R {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), CryptoError> {
        (**self).fill(out)
    }

    fn deterministic(&self) -> bool {
        (**self).deterministic()
    }
}
