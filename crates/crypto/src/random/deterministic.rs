//! Reproducible bytes for vectors and tests.

use core::fmt;

use crate::random::Random;
use crate::{CryptoError, Secret, kdf};

/// The stream HMAC-SHA256(seed, counter u64 BE) for counter 0, 1, 2, ... Each fill goes on where the last one ended.
///
/// **Never for production**: who knows the seed knows every key.
pub struct DeterministicRandom {
    seed: Secret<32>,
    counter: u64,
    block: Secret<32>,
    used: usize,
}

impl DeterministicRandom {
    /// The stream of a seed.
    #[must_use]
    pub fn new(seed: [u8; 32]) -> Self {
        Self { seed: Secret::new(seed), counter: 0, block: Secret::zeroed(), used: 32 }
    }

    /// The stream of the seed SHA-256(label).
    #[must_use]
    pub fn from_label(label: &str) -> Self {
        Self::new(kdf::sha256(&[label.as_bytes()]))
    }
}

impl Random for DeterministicRandom {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), CryptoError> {
        for byte in out {
            if self.used == 32 {
                self.block = kdf::hmac_sha256(self.seed.expose(), &[&self.counter.to_be_bytes()]);
                self.counter += 1;
                self.used = 0;
            }
            *byte = self.block.expose()[self.used];
            self.used += 1;
        }
        Ok(())
    }

    fn deterministic(&self) -> bool {
        true
    }
}

impl fmt::Debug for DeterministicRandom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DeterministicRandom([redacted])")
    }
}
