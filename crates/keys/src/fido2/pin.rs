//! The PIN/UV auth protocols one and two of CTAP 2.1, section 6.5: a shared secret with the token, and what is sealed with it.

use ciborium::Value;
use stvor_crypto::cbc::{aes256_cbc_decrypt, aes256_cbc_encrypt};
use stvor_crypto::kdf::{hkdf_sha256, hmac_sha256, sha256};
use stvor_crypto::p256::{AgreementKey, PublicKey};
use stvor_crypto::{Random, Secret, SecretBytes, SystemRandom};

use super::ctap::{bytes, entry, int};
use crate::KeyError;

/// A version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    One = 1,
    Two = 2,
}

/// What both sides know.
pub(super) struct Shared {
    pub(super) protocol: Protocol,
    /// Our public key, as the token wants it.
    pub(super) public: Value,
    hmac: Secret<32>,
    aes: Secret<32>,
}

fn unexpected(_: impl Sized) -> KeyError {
    KeyError::Token("its answer is not understood".into())
}

/// A P-256 key as a COSE key for key agreement.
fn cose(key: &PublicKey) -> Value {
    let (x, y) = key.as_bytes().split_at(33);
    let x = x.get(1..).unwrap_or_default();
    Value::Map(vec![
        (int(1), int(2)),
        (int(3), int(-25)),
        (int(-1), int(1)),
        (int(-2), Value::Bytes(x.to_vec())),
        (int(-3), Value::Bytes(y.to_vec())),
    ])
}

/// The P-256 key that a COSE key holds.
pub(super) fn from_cose(value: &Value) -> Result<PublicKey, KeyError> {
    let mut point = vec![4];
    for name in [-2, -3] {
        let coordinate = bytes(entry(value, name)?)?;
        if coordinate.len() != 32 {
            return Err(unexpected(()));
        }
        point.extend_from_slice(coordinate);
    }
    PublicKey::from_bytes(&point).map_err(unexpected)
}

impl Shared {
    /// Agrees with the token's key.
    pub(super) fn agree(protocol: Protocol, token: &Value) -> Result<Self, KeyError> {
        let key = AgreementKey::generate(&mut SystemRandom::new())?;
        let x = key.agree(&from_cose(token)?)?;
        let (hmac, aes) = match protocol {
            Protocol::One => {
                let both = Secret::new(sha256(&[x.expose()]));
                (both.duplicate(), both)
            }
            Protocol::Two => {
                let derive = |info: &[u8]| hkdf_sha256::<32>(&[0; 32], x.expose(), info);
                (derive(b"CTAP2 HMAC key"), derive(b"CTAP2 AES key"))
            }
        };
        Ok(Self { protocol, public: cose(key.public()), hmac, aes })
    }

    /// Encrypts whole blocks.
    pub(super) fn encrypt(&self, plain: &[u8]) -> Result<Vec<u8>, KeyError> {
        let mut sealed = plain.to_vec();
        match self.protocol {
            Protocol::One => {
                aes256_cbc_encrypt(&self.aes, &[0; 16], &mut sealed)?;
                Ok(sealed)
            }
            Protocol::Two => {
                let mut iv = [0; 16];
                SystemRandom::new().fill(&mut iv)?;
                aes256_cbc_encrypt(&self.aes, &iv, &mut sealed)?;
                Ok([&iv[..], &sealed].concat())
            }
        }
    }

    /// Decrypts what the token encrypted.
    pub(super) fn decrypt(&self, sealed: &[u8]) -> Result<SecretBytes, KeyError> {
        let (iv, sealed) = match self.protocol {
            Protocol::One => ([0; 16], sealed),
            Protocol::Two => {
                let (iv, rest) = sealed.split_first_chunk::<16>().ok_or_else(|| unexpected(()))?;
                (*iv, rest)
            }
        };
        let mut plain = SecretBytes::from_slice(sealed);
        aes256_cbc_decrypt(&self.aes, &iv, plain.expose_mut()).map_err(unexpected)?;
        Ok(plain)
    }

    /// Authenticates a message with the shared secret.
    pub(super) fn authenticate(&self, message: &[u8]) -> Vec<u8> {
        authenticate(self.protocol, self.hmac.expose(), message)
    }
}

/// Authenticates a message with a key of this protocol.
pub(super) fn authenticate(protocol: Protocol, key: &[u8], message: &[u8]) -> Vec<u8> {
    let mac = hmac_sha256(key, &[message]);
    match protocol {
        Protocol::One => mac.expose().iter().copied().take(16).collect(),
        Protocol::Two => mac.expose().to_vec(),
    }
}
