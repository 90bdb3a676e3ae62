//! A passphrase, made expensive to guess by Argon2id.

use crate::{DataKey, HolderKind, KeyError, KeyHolder, WrappedKey, limits};
use stvor_base::codec::{Reader, Writer};
use stvor_crypto::kdf::{Argon2Params, argon2id};
use stvor_crypto::{Random, SecretBytes};

/// What one guess costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PassphraseCost {
    /// KiB of memory, 8 per lane to [`limits::MAX_MEMORY_KIB`].
    pub memory_kib: u32,
    /// Passes, 1 to [`limits::MAX_ITERATIONS`].
    pub iterations: u32,
    /// Lanes, 1 to [`limits::MAX_PARALLELISM`].
    pub parallelism: u32,
}

impl Default for PassphraseCost {
    /// 64 MiB, 3 passes, one lane: RFC 9106's choice for machines that have no gigabytes to spare.
    fn default() -> Self {
        Self { memory_kib: 64 * 1024, iterations: 3, parallelism: 1 }
    }
}

impl PassphraseCost {
    fn allowed(self) -> bool {
        (1..=limits::MAX_PARALLELISM).contains(&self.parallelism)
            && (1..=limits::MAX_ITERATIONS).contains(&self.iterations)
            && (self.parallelism * 8..=limits::MAX_MEMORY_KIB).contains(&self.memory_kib)
    }
}

/// A passphrase. The bytes count as given: two programs that read it from people must agree on its encoding.
#[derive(Debug)]
pub struct Passphrase {
    secret: SecretBytes,
    cost: PassphraseCost,
}

impl Passphrase {
    /// A passphrase of 1 to [`limits::MAX_PASSPHRASE`] bytes at the default cost.
    ///
    /// # Errors
    /// [`KeyError::Malformed`] when it is empty or too long.
    pub fn new(secret: SecretBytes) -> Result<Self, KeyError> {
        let malformed = |reason| KeyError::Malformed { holder: "passphrase", reason };
        if secret.is_empty() {
            return Err(malformed("it is empty"));
        }
        if secret.len() > limits::MAX_PASSPHRASE {
            return Err(malformed("it is longer than 4096 bytes"));
        }
        Ok(Self { secret, cost: PassphraseCost::default() })
    }

    /// Another cost, for what is wrapped from now on.
    ///
    /// # Errors
    /// [`KeyError::Malformed`] outside the bounds.
    pub fn with_cost(mut self, cost: PassphraseCost) -> Result<Self, KeyError> {
        if !cost.allowed() {
            return Err(KeyError::Malformed { holder: "passphrase", reason: "its cost is out of range" });
        }
        self.cost = cost;
        Ok(self)
    }

    fn stretch(&self, salt: &[u8; 16], cost: PassphraseCost) -> Result<DataKey, KeyError> {
        let PassphraseCost { memory_kib, iterations, parallelism } = cost;
        Ok(argon2id(self.secret.expose(), salt, Argon2Params { memory_kib, iterations, parallelism })?)
    }
}

impl KeyHolder for Passphrase {
    fn kind(&self) -> HolderKind {
        HolderKind::Passphrase
    }

    fn wrap(&self, data_key: &DataKey, context: &[u8], rng: &mut dyn Random) -> Result<WrappedKey, KeyError> {
        let mut salt = [0; 16];
        rng.fill(&mut salt)?;
        let mut parameters = Writer::new();
        parameters.u32(self.cost.memory_kib).u32(self.cost.iterations).u32(self.cost.parallelism).raw(&salt);
        let kek = self.stretch(&salt, self.cost)?;
        WrappedKey::seal((self.kind(), &parameters.finish()), &kek, (data_key, context), rng)
    }

    fn unwrap(&self, wrapped: &WrappedKey, context: &[u8]) -> Result<DataKey, KeyError> {
        let mut input = Reader::new(wrapped.parameters_for(self.kind())?);
        let cost = PassphraseCost {
            memory_kib: input.u32().map_err(KeyError::codec)?,
            iterations: input.u32().map_err(KeyError::codec)?,
            parallelism: input.u32().map_err(KeyError::codec)?,
        };
        let salt = *input.array().map_err(KeyError::codec)?;
        input.finish().map_err(KeyError::codec)?;
        if !cost.allowed() {
            return Err(KeyError::Corrupt("the cost of its passphrase is out of range"));
        }
        wrapped.open(&self.stretch(&salt, cost)?, context)
    }
}
