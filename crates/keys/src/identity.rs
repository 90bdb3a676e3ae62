//! The user's identity pair as the key of their store, where the application keeps that pair.

use crate::{DataKey, HolderKind, KeyError, KeyHolder, WrappedKey};
use stvor_crypto::kdf::hkdf_sha256;
use stvor_crypto::{Random, Secret};

const LABEL: &[u8] = b"STVOR identity pair as a store key v1";

/// A key derived from the private half of an identity pair.
#[derive(Debug)]
pub struct IdentityKey {
    key: Secret<32>,
}

impl IdentityKey {
    /// Derives it. The pair signs and this seals: neither tells about the other.
    #[must_use]
    pub fn new(private: &Secret<32>) -> Self {
        Self { key: hkdf_sha256(b"", private.expose(), LABEL) }
    }
}

impl KeyHolder for IdentityKey {
    fn kind(&self) -> HolderKind {
        HolderKind::Identity
    }

    fn wrap(&self, data_key: &DataKey, context: &[u8], rng: &mut dyn Random) -> Result<WrappedKey, KeyError> {
        WrappedKey::seal((self.kind(), &[]), &self.key, (data_key, context), rng)
    }

    fn unwrap(&self, wrapped: &WrappedKey, context: &[u8]) -> Result<DataKey, KeyError> {
        if !wrapped.parameters_for(self.kind())?.is_empty() {
            return Err(KeyError::Corrupt("an identity pair has no parameters"));
        }
        wrapped.open(&self.key, context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stvor_crypto::SystemRandom;

    #[test]
    fn only_the_same_pair_opens_what_it_wrapped() {
        let rng = &mut SystemRandom::new();
        let (one, other) = (Secret::new([1; 32]), Secret::new([2; 32]));
        let data_key = Secret::random(rng).unwrap();
        let wrapped = IdentityKey::new(&one).wrap(&data_key, b"store", rng).unwrap();
        let wrapped = WrappedKey::decode(&wrapped.encode()).unwrap();
        let opened = IdentityKey::new(&one).unwrap(&wrapped, b"store").unwrap();
        assert_eq!(opened.expose(), data_key.expose());
        assert!(matches!(IdentityKey::new(&other).unwrap(&wrapped, b"store"), Err(KeyError::Wrong { .. })));
        assert!(IdentityKey::new(&one).unwrap(&wrapped, b"another").is_err());
    }
}
