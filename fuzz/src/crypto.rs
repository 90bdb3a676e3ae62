//! Parsers of `stvor-crypto`.

use stvor_crypto::Secret;
use stvor_crypto::aead::Aes256Gcm;
use stvor_crypto::kem::{Ciphertext, EncapsulationKey};
use stvor_crypto::p256::{AgreementKey, PublicKey, Signature, SigningKey};

/// The targets of this floor.
pub const TARGETS: &[crate::Target] = &[
    ("crypto-public-key", public_key),
    ("crypto-signature", signature),
    ("crypto-private-key", private_key),
    ("crypto-kem", kem),
    ("crypto-aead", aead),
];

fn public_key(data: &[u8]) {
    if let Ok(key) = PublicKey::from_bytes(data) {
        assert_eq!(&key.as_bytes()[..], data);
        let own = AgreementKey::from_bytes(&Secret::new([1; 32])).expect("a scalar in range");
        // Every accepted point works: it is on the curve. Only x = 0 gives no secret.
        let _ = own.agree(&key);
    }
}

/// A signature that was not made by the key does not verify.
fn signature(data: &[u8]) {
    let Some((bytes, message)) = data.split_at_checked(64) else { return };
    if let Ok(signature) = Signature::from_bytes(bytes) {
        assert_eq!(&signature.as_bytes()[..], bytes);
        let key = SigningKey::from_bytes(&Secret::new([2; 32])).expect("a scalar in range");
        let known = key.sign_deterministic(b"label", message).expect("a signature");
        if signature != known {
            assert!(key.public().verify(b"label", message, &signature).is_err());
        }
    }
}

fn private_key(data: &[u8]) {
    let Ok(scalar) = Secret::from_slice(data) else { return };
    assert_eq!(AgreementKey::from_bytes(&scalar).is_ok(), SigningKey::from_bytes(&scalar).is_ok());
}

fn kem(data: &[u8]) {
    if let Ok(key) = EncapsulationKey::from_bytes(data) {
        assert_eq!(&key.as_bytes()[..], data);
        key.encapsulate_deterministic(&Secret::new([3; 32])).expect("an accepted key takes a secret");
    }
    if let Ok(ciphertext) = Ciphertext::from_bytes(data) {
        assert_eq!(&ciphertext.as_bytes()[..], data);
    }
}

/// Nothing opens that was not sealed.
fn aead(data: &[u8]) {
    let mut bytes = data.to_vec();
    let opened = Aes256Gcm::new(&Secret::new([4; 32])).open(&[0; 12], b"fuzz", &mut bytes);
    assert!(opened.is_err());
}
